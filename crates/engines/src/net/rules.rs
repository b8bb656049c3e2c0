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
const REJECT_TCP_RESET: u32 = 1;
const REJECT_ICMPX: u32 = 2;
const REJECT_ICMPX_ADMIN_PROHIBITED: u8 = 3;
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_ADDRESS: u16 = 3;
const NAT_TYPE_DESTINATION: u32 = 1;
const ROUTE_REGISTER: u16 = 1;
const ROUTE_KEY: u16 = 2;
const ROUTE_SEGMENT_BYTES: u32 = 3;
const ORDER_FROM: u16 = 1;
const ORDER_TO: u16 = 2;
const ORDER_OPERATION: u16 = 3;
const ORDER_BYTES: u16 = 4;
const ORDER_UNIT: u16 = 5;
const ORDER_OF_NETWORKS: u32 = 1;
const OPTION_KIND: u16 = 2;
const OPTION_OFFSET: u16 = 3;
const OPTION_BYTES: u16 = 4;
const OPTION_FAMILY: u16 = 6;
const OPTION_REGISTER: u16 = 7;
const OPTION_FAMILY_TCP: u32 = 1;

/// The one register that rules here need.
const REGISTER: u32 = 1;
/// Where verdicts go.
const VERDICT_REGISTER: u32 = 0;

/// Where the source and destination address stand in an IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

/// Where the sender stands in an Ethernet header.
const SENDER: u32 = 6;

/// What an interface must be to have such headers.
const KIND_ETHERNET: u16 = 1;

/// Protocols over IPv4, as its header has them.
const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// Where the flags stand in a TCP header, those that tell how it begins, and the one that asks for a connection.
const TCP_FLAGS: u32 = 13;
const TCP_FLAGS_OF_BEGINNING: u8 = 0b110;
const TCP_FLAG_REQUEST: u8 = 0b010;

/// The option of TCP that says how much fits into one packet, and where it says so.
const LARGEST_SEGMENT: u8 = 2;
const LARGEST_SEGMENT_OFFSET: u32 = 2;

/// IPv4, as the filter has it.
const FAMILY_IPV4: u8 = 2;

/// The port of name servers.
const DNS_PORT: u16 = 53;

/// Connections as the kernel sees them.
const ESTABLISHED_OR_RELATED: u32 = 0b110;
const INVALID: u32 = 0b001;

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
    /// It is gone, and its sender is told that there is no such connection; of TCP only.
    Reset,
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
    /// It came in by the interface of this name.
    FromInterface(&'static str),
    /// It leaves by the interface of this name.
    ToInterface(&'static str),
    /// It came in by the interface of this number.
    From(u32),
    /// It came from another device on the wire than this.
    SenderIsNot([u8; 6]),
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
    /// It is of this protocol.
    Protocol(u8),
    /// It asks for a TCP connection, or agrees to one.
    BeginsConnection,
    /// It belongs to a connection that was let through before.
    Known,
    /// It pretends to belong to a connection of which nothing is known.
    Stray,
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
    /// Sends it to this address instead.
    SendTo(Ipv4Addr),
    /// Has both ends of its connection send no more at once than fits the way.
    FitSegments,
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
                Act::SendTo(address) => send_to(list, *address),
                Act::FitSegments => fit_segments(list),
            }
        });
    }
}

impl Verdict {
    /// Writes it as the value that a map gives.
    pub(super) fn put_value(&self, attribute: u16, messages: &mut Messages) {
        let (code, chain) = match self {
            Self::Accept => (libc::NF_ACCEPT, None),
            Self::Drop | Self::Refuse | Self::Reset => (libc::NF_DROP, None),
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
        let told = match self {
            Self::Refuse => Some((REJECT_ICMPX, REJECT_ICMPX_ADMIN_PROHIBITED)),
            Self::Reset => Some((REJECT_TCP_RESET, 0)),
            Self::Accept | Self::Drop | Self::Jump(_) | Self::Goto(_) | Self::Return => None,
        };
        if let Some((kind, code)) = told {
            expression(list, "reject", |data| {
                data.put_network_number(1, kind);
                data.put(2, &[code]);
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
            Self::FromInterface(name) => {
                load_meta(list, libc::NFT_META_IIFNAME);
                compare(list, libc::NFT_CMP_EQ, &whole_name(name));
            }
            Self::ToInterface(name) => {
                load_meta(list, libc::NFT_META_OIFNAME);
                compare(list, libc::NFT_CMP_EQ, &whole_name(name));
            }
            Self::SenderIsNot(device) => {
                load_meta(list, libc::NFT_META_IIFTYPE);
                compare(list, libc::NFT_CMP_EQ, &KIND_ETHERNET.to_ne_bytes());
                load_payload(list, libc::NFT_PAYLOAD_LL_HEADER, SENDER, 6);
                compare(list, libc::NFT_CMP_NEQ, device);
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
                mask(list, &network.netmask().octets());
                compare(list, libc::NFT_CMP_EQ, &network.network().octets());
            }
            Self::Question(protocol) => {
                is_protocol(list, *protocol);
                load_payload(list, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
                compare(list, libc::NFT_CMP_EQ, &DNS_PORT.to_be_bytes());
            }
            Self::Icmp(kind) => {
                is_protocol(list, ICMP);
                load_payload(list, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
                compare(list, libc::NFT_CMP_EQ, &[*kind]);
            }
            Self::Protocol(protocol) => is_protocol(list, *protocol),
            Self::BeginsConnection => {
                is_protocol(list, TCP);
                load_payload(list, libc::NFT_PAYLOAD_TRANSPORT_HEADER, TCP_FLAGS, 1);
                mask(list, &[TCP_FLAGS_OF_BEGINNING]);
                compare(list, libc::NFT_CMP_EQ, &[TCP_FLAG_REQUEST]);
            }
            Self::Known => is_in_state(list, ESTABLISHED_OR_RELATED),
            Self::Stray => is_in_state(list, INVALID),
        }
    }
}

/// A name as the kernel compares it: with its closing zero it is no prefix.
fn whole_name(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn is_protocol(list: &mut Messages, protocol: u8) {
    load_meta(list, libc::NFT_META_L4PROTO);
    compare(list, libc::NFT_CMP_EQ, &[protocol]);
}

/// Its connection is in one of these states.
fn is_in_state(list: &mut Messages, states: u32) {
    expression(list, "ct", |data| {
        data.put_network_number(1, REGISTER);
        data.put_network_number(2, libc::NFT_CT_STATE.cast_unsigned());
    });
    mask(list, &states.to_ne_bytes());
    compare(list, libc::NFT_CMP_NEQ, &0_u32.to_ne_bytes());
}

fn send_to(list: &mut Messages, address: Ipv4Addr) {
    expression(list, "immediate", |data| {
        data.put_network_number(1, REGISTER);
        data.nest(2, |value| value.put(DATA_VALUE, &address.octets()));
    });
    expression(list, "nat", |data| {
        data.put_network_number(NAT_TYPE, NAT_TYPE_DESTINATION);
        data.put_network_number(NAT_FAMILY, u32::from(FAMILY_IPV4));
        data.put_network_number(NAT_ADDRESS, REGISTER);
    });
}

fn fit_segments(list: &mut Messages) {
    expression(list, "rt", |data| {
        data.put_network_number(ROUTE_REGISTER, REGISTER);
        data.put_network_number(ROUTE_KEY, ROUTE_SEGMENT_BYTES);
    });
    expression(list, "byteorder", |data| {
        data.put_network_number(ORDER_FROM, REGISTER);
        data.put_network_number(ORDER_TO, REGISTER);
        data.put_network_number(ORDER_OPERATION, ORDER_OF_NETWORKS);
        data.put_network_number(ORDER_BYTES, 2);
        data.put_network_number(ORDER_UNIT, 2);
    });
    expression(list, "exthdr", |data| {
        data.put(OPTION_KIND, &[LARGEST_SEGMENT]);
        data.put_network_number(OPTION_OFFSET, LARGEST_SEGMENT_OFFSET);
        data.put_network_number(OPTION_BYTES, 2);
        data.put_network_number(OPTION_FAMILY, OPTION_FAMILY_TCP);
        data.put_network_number(OPTION_REGISTER, REGISTER);
    });
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

fn mask(list: &mut Messages, bits: &[u8]) {
    let length = u32::try_from(bits.len()).expect("a few bytes");
    expression(list, "bitwise", |data| {
        data.put_network_number(1, REGISTER);
        data.put_network_number(2, REGISTER);
        data.put_network_number(3, length);
        data.nest(4, |value| value.put(DATA_VALUE, bits));
        data.nest(5, |value| value.put(DATA_VALUE, &vec![0; bits.len()]));
    });
}

fn is_ipv4(list: &mut Messages, operation: libc::c_int) {
    load_meta(list, libc::NFT_META_NFPROTO);
    compare(list, operation, &[FAMILY_IPV4]);
}
