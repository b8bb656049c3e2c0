//! Rules of a packet filter as values, and their bytes for the kernel.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::netlink::Messages;

// What libc does not have; the numbers are those of linux/netfilter/nf_tables.h.
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const REJECT_ICMPX: u32 = 2;
const REJECT_ICMPX_ADMIN_PROHIBITED: u8 = 3;

/// The one register that rules here need.
const REGISTER: u32 = 1;
/// Where verdicts go.
const VERDICT_REGISTER: u32 = 0;

/// Where the source and destination address stand in an IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

/// ICMP over IPv4, as its header has it.
const ICMP: u8 = 1;

/// IPv4, as the filter has it.
const FAMILY_IPV4: u8 = 2;

/// The port of name servers.
const DNS_PORT: u16 = 53;

/// Connections as the kernel sees them.
const ESTABLISHED_OR_RELATED: u32 = 0b110;

/// Longest interface name with its closing zero.
pub(super) const INTERFACE_NAME_BYTES: usize = 16;

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It passes this table.
    Accept,
    /// It is gone, and nobody is told.
    Drop,
    /// It is gone, and its sender is told.
    Refuse,
    /// Another chain decides; if it does not, the next rule.
    Jump(String),
    /// Another chain decides.
    Goto(String),
    /// The chain that called this one goes on.
    Return,
}

/// What a packet is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    /// It came in by an interface whose name begins so.
    FromPrefix(String),
    /// It leaves by an interface whose name begins so.
    ToPrefix(String),
    /// It came in by the interface of this number.
    From(u32),
    /// It is IPv4.
    Ipv4,
    /// It is not IPv4.
    NotIpv4,
    /// It is IPv4 and comes from another address than this.
    SourceIsNot(Ipv4Addr),
    /// It is IPv4 and goes into this network.
    Destination(Ipv4Net),
    /// It is a question to a name server by this protocol.
    Question(u8),
    /// It is an ICMP message of this kind.
    Icmp(u8),
    /// It belongs to a connection that was let through before.
    Known,
}

/// What a rule does with the packets that pass all of its tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Decides.
    Decide(Verdict),
    /// Lets the map of this name decide by the interface it came in by.
    Map(&'static str),
    /// Gives it the address of the interface it leaves by.
    Masquerade,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// All must be so.
    pub(super) tests: Vec<Test>,
    /// Then this happens.
    pub(super) act: Act,
}

/// A rule that decides.
pub(super) fn rule(tests: impl Into<Vec<Test>>, verdict: Verdict) -> Rule {
    Rule { tests: tests.into(), act: Act::Decide(verdict) }
}

impl Rule {
    /// Writes the expressions of the rule.
    pub(super) fn put(&self, attribute: u16, messages: &mut Messages) {
        messages.nest(attribute, |list| {
            for test in &self.tests {
                test.put(list);
            }
            match &self.act {
                Act::Decide(verdict) => verdict.put_expression(list),
                Act::Map(name) => {
                    load_meta(list, libc::NFT_META_IIFNAME);
                    expression(list, "lookup", |data| {
                        data.put_text(1, name);
                        data.put_network_number(2, REGISTER);
                        data.put_network_number(3, VERDICT_REGISTER);
                    });
                }
                Act::Masquerade => expression(list, "masq", |_| {}),
            }
        });
    }
}

impl Verdict {
    /// Writes it as the value that a map gives.
    pub(super) fn put_value(&self, attribute: u16, messages: &mut Messages) {
        let (code, chain) = match self {
            Self::Accept => (libc::NF_ACCEPT, None),
            Self::Drop | Self::Refuse => (libc::NF_DROP, None),
            Self::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
            Self::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
            Self::Return => (libc::NFT_RETURN, None),
        };
        messages.nest(attribute, |data| {
            data.nest(DATA_VERDICT, |verdict| {
                verdict.put_network_number(VERDICT_CODE, code.cast_unsigned());
                if let Some(chain) = chain {
                    verdict.put_text(VERDICT_CHAIN, chain);
                }
            });
        });
    }

    fn put_expression(&self, list: &mut Messages) {
        if *self == Self::Refuse {
            expression(list, "reject", |data| {
                data.put_network_number(1, REJECT_ICMPX);
                data.put(2, &[REJECT_ICMPX_ADMIN_PROHIBITED]);
            });
            return;
        }
        expression(list, "immediate", |data| {
            data.put_network_number(1, VERDICT_REGISTER);
            self.put_value(2, data);
        });
    }
}

impl Test {
    fn put(&self, list: &mut Messages) {
        match self {
            Self::FromPrefix(prefix) => {
                load_meta(list, libc::NFT_META_IIFNAME);
                compare(list, libc::NFT_CMP_EQ, prefix.as_bytes());
            }
            Self::ToPrefix(prefix) => {
                load_meta(list, libc::NFT_META_OIFNAME);
                compare(list, libc::NFT_CMP_EQ, prefix.as_bytes());
            }
            Self::From(index) => {
                load_meta(list, libc::NFT_META_IIF);
                compare(list, libc::NFT_CMP_EQ, &index.to_ne_bytes());
            }
            Self::Ipv4 => is_ipv4(list, libc::NFT_CMP_EQ),
            Self::NotIpv4 => is_ipv4(list, libc::NFT_CMP_NEQ),
            Self::SourceIsNot(address) => {
                is_ipv4(list, libc::NFT_CMP_EQ);
                load_payload(list, libc::NFT_PAYLOAD_NETWORK_HEADER, SOURCE, 4);
                compare(list, libc::NFT_CMP_NEQ, &address.octets());
            }
            Self::Destination(network) => {
                is_ipv4(list, libc::NFT_CMP_EQ);
                load_payload(list, libc::NFT_PAYLOAD_NETWORK_HEADER, DESTINATION, 4);
                mask(list, network.netmask().octets());
                compare(list, libc::NFT_CMP_EQ, &network.network().octets());
            }
            Self::Question(protocol) => {
                load_meta(list, libc::NFT_META_L4PROTO);
                compare(list, libc::NFT_CMP_EQ, &[*protocol]);
                load_payload(list, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
                compare(list, libc::NFT_CMP_EQ, &DNS_PORT.to_be_bytes());
            }
            Self::Icmp(kind) => {
                load_meta(list, libc::NFT_META_L4PROTO);
                compare(list, libc::NFT_CMP_EQ, &[ICMP]);
                load_payload(list, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
                compare(list, libc::NFT_CMP_EQ, &[*kind]);
            }
            Self::Known => {
                expression(list, "ct", |data| {
                    data.put_network_number(1, REGISTER);
                    data.put_network_number(2, libc::NFT_CT_STATE.cast_unsigned());
                });
                mask(list, ESTABLISHED_OR_RELATED.to_ne_bytes());
                compare(list, libc::NFT_CMP_NEQ, &0_u32.to_ne_bytes());
            }
        }
    }
}

fn expression(list: &mut Messages, name: &str, data: impl FnOnce(&mut Messages)) {
    list.nest(LIST_ELEMENT, |element| {
        element.put_text(EXPRESSION_NAME, name);
        element.nest(EXPRESSION_DATA, data);
    });
}

fn load_meta(list: &mut Messages, key: libc::c_int) {
    expression(list, "meta", |data| {
        data.put_network_number(1, REGISTER);
        data.put_network_number(2, key.cast_unsigned());
    });
}

fn load_payload(list: &mut Messages, base: libc::c_int, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        data.put_network_number(1, REGISTER);
        data.put_network_number(2, base.cast_unsigned());
        data.put_network_number(3, offset);
        data.put_network_number(4, length);
    });
}

fn compare(list: &mut Messages, operation: libc::c_int, with: &[u8]) {
    expression(list, "cmp", |data| {
        data.put_network_number(1, REGISTER);
        data.put_network_number(2, operation.cast_unsigned());
        data.nest(3, |value| value.put(DATA_VALUE, with));
    });
}

fn mask(list: &mut Messages, bits: [u8; 4]) {
    expression(list, "bitwise", |data| {
        data.put_network_number(1, REGISTER);
        data.put_network_number(2, REGISTER);
        data.put_network_number(3, 4);
        data.nest(4, |value| value.put(DATA_VALUE, &bits));
        data.nest(5, |value| value.put(DATA_VALUE, &[0; 4]));
    });
}

fn is_ipv4(list: &mut Messages, operation: libc::c_int) {
    load_meta(list, libc::NFT_META_NFPROTO);
    compare(list, operation, &[FAMILY_IPV4]);
}
