//! The packet filter of an instance: one table, found by the instance's id.
//!
//! ```text
//! input    from a machine to the host itself        refused, but for name servers that the owner named
//! output   from the host into a machine             only what answers, and errors
//! forward  into a machine                           only what answers
//!          out of a machine ─▶ map by interface ─▶ its own chain: its own address only,
//!                                                   name servers, then its reach
//!          in by an interface that forwards for us  only what answers, and only if the host is no router anyway
//! nat      out of a machine                         gets the host's address
//! questions  out of a guest, to the address that     go to the first name server
//!            stands for name servers
//! ```
//!
//! An interface of ours that is in no map gets nothing through: there is no moment at which a machine is not filtered.
//! The table lives in the kernel, not in this process; what of it is not as it should be is put right by writing it
//! anew, in one transaction that no packet sees half of.

use std::{io, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::{
    NetworkConfig, Tenants,
    guard::RESOLVER_STAND_IN,
    netlink::{APPEND, CREATE, Messages, Protocol, Socket, attributes, network_number, text},
    policy::{self, NEVER, PRIVATE, Reach},
    rules::{Act, INTERFACE_NAME_BYTES, Rule, TCP, Test, UDP, Verdict, rule},
};

/// What the names of all our tables begin with.
const TABLE_PREFIX: &str = "sandhaus_";

/// The map from interfaces to chains.
const MACHINES: &str = "machines";

/// Chains that others jump to.
const RESOLVERS: &str = "resolvers";
const OUT_OF_REACH: &str = "out_of_reach";
const UPLINKS: &str = "uplinks";

/// What the names of chains begin with that stand for interfaces whose forwarding we turned on.
const FORWARDING_PREFIX: &str = "forwarding_";

/// Before the host's own filters, which may so drop more but never let through what is dropped here.
const PRIORITY: i32 = -150;

/// Where addresses are rewritten by custom: those of senders, and those that are asked for.
pub(super) const NAT_PRIORITY: i32 = 100;
pub(super) const DESTINATION_NAT_PRIORITY: i32 = -100;

/// The chain that leads questions of guests to a name server.
const QUESTIONS: &str = "questions";

/// Bytes of one transaction after which another begins: well below what a socket takes.
const TRANSACTION_BYTES: usize = 96 * 1024;

/// ICMP messages that tell of errors.
const ICMP_ERRORS: &[u8] = &[3, 11, 12];

// What libc does not have; the numbers are those of linux/netfilter/nf_tables.h.
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_ID: u16 = 10;
const SET_USER_DATA: u16 = 13;
/// Tells `nft` how keys are to be shown: kind 0, four bytes, in the order of this machine.
const KEYS_AS_HERE: [u8; 6] = [0, 4, 1, 0, 0, 0];
const SET_IS_MAP: u32 = 8;
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;
const KEY_TYPE_INTERFACE: u32 = 41;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;

/// A machine as the filter knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// The host's end.
    pub(super) interface: String,
    /// The only address it may use.
    pub(super) address: Ipv4Addr,
    /// What it may reach.
    pub(super) reach: Reach,
}

/// Everything of the table that is not about one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Common<'a> {
    /// What the server's owner says.
    pub(super) config: &'a NetworkConfig,
    /// Name servers that machines may ask.
    pub(super) resolvers: &'a [Ipv4Addr],
    /// Interfaces whose forwarding we turned on.
    pub(super) forwarding: &'a [u32],
    /// Whether the host is a router by its owner's wish.
    pub(super) router: Router,
    /// Who lives in the machines' namespaces.
    pub(super) tenants: Tenants,
}

/// Whether the host passes on packets of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Router {
    /// Its owner made it one.
    Yes,
    /// It forwards for our machines only.
    No,
}

/// A chain of whatever table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    /// Its table.
    pub(super) table: String,
    /// Its name.
    pub(super) name: String,
    /// Where packets come into it.
    pub(super) hook: Option<u32>,
    /// What becomes of packets about which it says nothing.
    pub(super) drops: bool,
    /// Whether IPv4 packets come by.
    pub(super) ipv4: bool,
}

impl Chain {
    /// The interface for which it stands, if we turned its forwarding on.
    pub(super) fn forwarding(&self) -> Option<u32> {
        let ours = self.table.starts_with(TABLE_PREFIX);
        ours.then(|| self.name.strip_prefix(FORWARDING_PREFIX)?.parse().ok()).flatten()
    }

    /// It drops what is forwarded, and is not ours.
    pub(super) fn blocks_forwarding(&self) -> bool {
        self.hook == Some(libc::NF_INET_FORWARD.cast_unsigned())
            && self.drops
            && self.ipv4
            && !self.table.starts_with(TABLE_PREFIX)
    }
}

/// The filter of an instance.
#[derive(Debug)]
pub(super) struct Filter {
    socket: Socket,
    table: String,
    /// What the names of the instance's interfaces begin with.
    prefix: String,
    /// How a machine learns that it may not.
    refusal: Verdict,
}

impl Filter {
    /// In the calling thread's network namespace.
    pub(super) fn open(instance: &str) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::open(Protocol::Netfilter)?,
            table: Self::table_of(instance),
            prefix: instance.to_owned(),
            refusal: Verdict::Refuse,
        })
    }

    /// The name of an instance's table.
    pub(super) fn table_of(instance: &str) -> String {
        format!("{TABLE_PREFIX}{instance}")
    }

    /// The number by which others know what this filter changed.
    pub(super) fn port(&self) -> io::Result<u32> {
        self.socket.port()
    }

    /// A chain is this filter's own.
    pub(super) fn owns(&self, chain: &Chain) -> bool {
        chain.table == self.table
    }

    /// Writes the whole table anew.
    pub(super) fn rebuild(&mut self, common: &Common<'_>, members: &[Member]) -> io::Result<()> {
        match self.try_rebuild(common, members) {
            // A kernel that cannot tell senders drops in silence.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
                self.refusal = Verdict::Drop;
                self.try_rebuild(common, members)
            }
            other => other,
        }
    }

    fn try_rebuild(&self, common: &Common<'_>, members: &[Member]) -> io::Result<()> {
        let mut transaction = Transaction::new(&self.table);
        // Making it first lets removing it succeed where it was not there.
        transaction.table(libc::NFT_MSG_NEWTABLE);
        transaction.table(libc::NFT_MSG_DELTABLE);
        transaction.table(libc::NFT_MSG_NEWTABLE);
        transaction.map();
        self.write_common(&mut transaction, common);
        for member in members {
            if transaction.messages.len() > TRANSACTION_BYTES {
                let full = std::mem::replace(&mut transaction, Transaction::new(&self.table));
                full.commit(&self.socket)?;
            }
            self.write_member(&mut transaction, common.config, member);
        }
        transaction.commit(&self.socket)
    }

    fn write_common(&self, transaction: &mut Transaction<'_>, common: &Common<'_>) {
        let from = || Test::FromPrefix(self.prefix.clone());
        let to = || Test::ToPrefix(self.prefix.clone());
        for (chain, rules) in [
            (RESOLVERS, resolver_rules(common.resolvers)),
            (OUT_OF_REACH, self.out_of_reach(common.config)),
            (UPLINKS, self.uplink_rules(common)),
        ] {
            transaction.chain(chain);
            rules.iter().for_each(|rule| transaction.rule(chain, rule));
        }
        for index in common.forwarding {
            transaction.chain(&format!("{FORWARDING_PREFIX}{index}"));
        }

        let mut input = Vec::new();
        for resolver in policy::plain_addresses(&common.config.resolvers) {
            for protocol in QUESTION_PROTOCOLS {
                let tests = vec![from(), Test::Question(protocol), Test::Destination(resolver.into())];
                input.push(rule(tests, Verdict::Accept));
            }
        }
        input.push(rule([from(), Test::Ipv4], self.refusal.clone()));
        input.push(rule([from()], Verdict::Drop));
        transaction.base_chain("input", "filter", libc::NF_INET_LOCAL_IN, PRIORITY, &input);

        let mut output = vec![rule([to(), Test::Known], Verdict::Accept)];
        output.extend(ICMP_ERRORS.iter().map(|&kind| rule([to(), Test::Icmp(kind)], Verdict::Accept)));
        output.push(rule([to()], Verdict::Drop));
        transaction.base_chain("output", "filter", libc::NF_INET_LOCAL_OUT, PRIORITY, &output);

        let forward = [
            rule([to(), Test::Known], Verdict::Accept),
            rule([from(), to()], self.refusal.clone()),
            rule([to()], Verdict::Drop),
            rule([from(), Test::NotIpv4], Verdict::Drop),
            Rule { tests: vec![from()], act: Act::Map(MACHINES) },
            rule([from()], Verdict::Drop),
            rule([], Verdict::Jump(UPLINKS.to_owned())),
        ];
        transaction.base_chain("forward", "filter", libc::NF_INET_FORWARD, PRIORITY, &forward);

        let nat = [Rule { tests: vec![from()], act: Act::Masquerade }];
        transaction.base_chain("nat", "nat", libc::NF_INET_POST_ROUTING, NAT_PRIORITY, &nat);
        if common.tenants == Tenants::Guests {
            let hook = libc::NF_INET_PRE_ROUTING;
            let rules = self.question_rules(common.resolvers);
            transaction.base_chain(QUESTIONS, "nat", hook, DESTINATION_NAT_PRIORITY, &rules);
        }
    }

    /// What guests ask goes to the first of these; the second of two may know less, and a guest knows no order.
    fn question_rules(&self, resolvers: &[Ipv4Addr]) -> Vec<Rule> {
        let Some(&first) = resolvers.first() else { return Vec::new() };
        let to_stand_in = Test::Destination(RESOLVER_STAND_IN.into());
        let rule = |protocol| Rule {
            tests: vec![Test::FromPrefix(self.prefix.clone()), Test::Question(protocol), to_stand_in.clone()],
            act: Act::SendTo(first),
        };
        QUESTION_PROTOCOLS.map(rule).into()
    }

    /// Those name servers may be asked, from now on.
    pub(super) fn set_resolvers(&self, resolvers: &[Ipv4Addr], tenants: Tenants) -> io::Result<()> {
        let mut transaction = Transaction::new(&self.table);
        if tenants == Tenants::Guests {
            transaction.clear(QUESTIONS);
            let rules = self.question_rules(resolvers);
            rules.iter().for_each(|rule| transaction.rule(QUESTIONS, rule));
        }
        transaction.clear(RESOLVERS);
        resolver_rules(resolvers).iter().for_each(|rule| transaction.rule(RESOLVERS, rule));
        transaction.commit(&self.socket)
    }

    /// These interfaces forward for us, from now on; `fresh` are those of them that have no chain yet.
    pub(super) fn set_forwarding(&self, common: &Common<'_>, fresh: &[u32]) -> io::Result<()> {
        let mut transaction = Transaction::new(&self.table);
        for index in fresh {
            transaction.chain(&format!("{FORWARDING_PREFIX}{index}"));
        }
        transaction.clear(UPLINKS);
        self.uplink_rules(common).iter().for_each(|rule| transaction.rule(UPLINKS, rule));
        transaction.commit(&self.socket)
    }

    /// Lets a machine in.
    pub(super) fn add(&self, config: &NetworkConfig, member: &Member) -> io::Result<()> {
        let mut transaction = Transaction::new(&self.table);
        self.write_member(&mut transaction, config, member);
        transaction.commit(&self.socket)
    }

    /// Changes what a machine may reach, also on the connections it has.
    pub(super) fn change(&self, config: &NetworkConfig, member: &Member) -> io::Result<()> {
        let mut transaction = Transaction::new(&self.table);
        transaction.clear(&member.interface);
        let rules = self.member_rules(config, member);
        rules.iter().for_each(|rule| transaction.rule(&member.interface, rule));
        transaction.commit(&self.socket)
    }

    /// Forgets a machine. Absent is success.
    pub(super) fn forget(&self, interface: &str) -> io::Result<()> {
        let mut transaction = Transaction::new(&self.table);
        transaction.remove_element(interface);
        transaction.clear(interface);
        transaction.remove_chain(interface);
        absent_is_success(transaction.commit(&self.socket))
    }

    /// Removes the table. Absent is success.
    pub(super) fn remove(&self) -> io::Result<()> {
        let mut transaction = Transaction::new(&self.table);
        transaction.table(libc::NFT_MSG_DELTABLE);
        absent_is_success(transaction.commit(&self.socket))
    }

    /// Chains of all tables of the namespace.
    pub(super) fn chains(&self) -> io::Result<Vec<Chain>> {
        let answers = self.socket.dump(|messages, flags| {
            messages.begin(kind(libc::NFT_MSG_GETCHAIN), flags, &header(0, 0));
        })?;
        let wanted = kind(libc::NFT_MSG_NEWCHAIN);
        let found = answers.iter().filter(|answer| answer.kind == wanted);
        Ok(found.filter_map(|answer| read_chain(&answer.payload)).collect())
    }

    /// Another instance of ours has a table here.
    pub(super) fn has_neighbours(&self) -> io::Result<bool> {
        let ours = |chain: &Chain| chain.table.starts_with(TABLE_PREFIX) && chain.table != self.table;
        Ok(self.chains()?.iter().any(ours))
    }

    fn write_member(&self, transaction: &mut Transaction<'_>, config: &NetworkConfig, member: &Member) {
        transaction.chain(&member.interface);
        let rules = self.member_rules(config, member);
        rules.iter().for_each(|rule| transaction.rule(&member.interface, rule));
        transaction.element(&member.interface);
    }

    fn member_rules(&self, config: &NetworkConfig, member: &Member) -> Vec<Rule> {
        let jump = |chain: &str| rule([], Verdict::Jump(chain.to_owned()));
        let mut rules = vec![rule([Test::SourceIsNot(member.address)], Verdict::Drop)];
        match &member.reach {
            Reach::Nothing => {}
            Reach::Internet => {
                rules.extend([jump(RESOLVERS), jump(OUT_OF_REACH), rule([], Verdict::Accept)]);
            }
            Reach::Only(networks) => {
                // The owner's name servers serve every list; those found on the host must be on it.
                if !config.resolvers.is_empty() {
                    rules.push(jump(RESOLVERS));
                }
                rules.push(jump(OUT_OF_REACH));
                let accept = |network: &Ipv4Net| rule([Test::Destination(*network)], Verdict::Accept);
                rules.extend(networks.iter().map(accept));
            }
        }
        rules.push(rule([], self.refusal.clone()));
        rules
    }

    /// What none may reach; it returns for the rest.
    fn out_of_reach(&self, config: &NetworkConfig) -> Vec<Rule> {
        let refuse = |network: &Ipv4Net| rule([Test::Destination(*network)], self.refusal.clone());
        let mut rules: Vec<Rule> = NEVER.iter().map(refuse).collect();
        rules.push(refuse(&config.subnet));
        let allowed = policy::plain(&config.allow_private);
        rules.extend(allowed.map(|network| rule([Test::Destination(network)], Verdict::Return)));
        rules.extend(PRIVATE.iter().map(refuse));
        rules
    }

    /// What comes in by an interface that forwards for our sake only is not passed on to anybody else.
    fn uplink_rules(&self, common: &Common<'_>) -> Vec<Rule> {
        let mut rules = Vec::new();
        if common.router == Router::No {
            for &index in common.forwarding {
                rules.push(rule([Test::From(index), Test::Known], Verdict::Return));
                rules.push(rule([Test::From(index), Test::Ipv4], Verdict::Drop));
            }
        }
        rules
    }
}

/// A name server is asked by either.
pub(super) const QUESTION_PROTOCOLS: [u8; 2] = [UDP, TCP];

fn resolver_rules(resolvers: &[Ipv4Addr]) -> Vec<Rule> {
    let both = |resolver: &Ipv4Addr| {
        let network = Ipv4Net::from(*resolver);
        QUESTION_PROTOCOLS
            .map(|protocol| rule([Test::Question(protocol), Test::Destination(network)], Verdict::Accept))
    };
    resolvers.iter().flat_map(both).collect()
}

fn absent_is_success(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Changes that happen all at once or not at all.
pub(super) struct Transaction<'a> {
    messages: Messages,
    table: &'a str,
}

impl<'a> Transaction<'a> {
    /// Changes to the table of this name.
    pub(super) fn new(table: &'a str) -> Self {
        let mut messages = Messages::default();
        let begin = u16::try_from(libc::NFNL_MSG_BATCH_BEGIN).expect("a small number");
        messages.begin(begin, 0, &header(0, libc::NFNL_SUBSYS_NFTABLES));
        Self { messages, table }
    }

    fn begin(&mut self, message: libc::c_int, flags: u16) {
        // Failures are told unasked; an answer to each of many messages would not fit the socket.
        self.messages.begin(kind(message), flags, &header(libc::NFPROTO_INET, 0));
    }

    /// Makes or removes the table.
    pub(super) fn table(&mut self, message: libc::c_int) {
        self.begin(message, if message == libc::NFT_MSG_NEWTABLE { CREATE } else { 0 });
        self.messages.put_text(TABLE_NAME, self.table);
    }

    fn map(&mut self) {
        self.begin(libc::NFT_MSG_NEWSET, CREATE);
        self.messages.put_text(SET_TABLE, self.table);
        self.messages.put_text(SET_NAME, MACHINES);
        self.messages.put_network_number(SET_FLAGS, SET_IS_MAP);
        self.messages.put_network_number(SET_KEY_TYPE, KEY_TYPE_INTERFACE);
        self.messages.put_network_number(SET_KEY_LENGTH, 16);
        self.messages.put_network_number(SET_DATA_TYPE, DATA_TYPE_VERDICT);
        self.messages.put_network_number(SET_ID, 1);
        self.messages.put(SET_USER_DATA, &KEYS_AS_HERE);
    }

    fn chain(&mut self, name: &str) {
        self.begin(libc::NFT_MSG_NEWCHAIN, CREATE);
        self.messages.put_text(CHAIN_TABLE, self.table);
        self.messages.put_text(CHAIN_NAME, name);
    }

    /// A chain that packets come by.
    pub(super) fn base_chain(
        &mut self,
        name: &str,
        sort: &str,
        hook: libc::c_int,
        priority: i32,
        rules: &[Rule],
    ) {
        self.chain(name);
        self.messages.nest(CHAIN_HOOK, |data| {
            data.put_network_number(HOOK_NUMBER, hook.cast_unsigned());
            data.put_network_number(HOOK_PRIORITY, priority.cast_unsigned());
        });
        self.messages.put_network_number(CHAIN_POLICY, libc::NF_ACCEPT.cast_unsigned());
        self.messages.put_text(CHAIN_TYPE, sort);
        rules.iter().for_each(|rule| self.rule(name, rule));
    }

    fn remove_chain(&mut self, name: &str) {
        self.begin(libc::NFT_MSG_DELCHAIN, 0);
        self.messages.put_text(CHAIN_TABLE, self.table);
        self.messages.put_text(CHAIN_NAME, name);
    }

    fn rule(&mut self, chain: &str, rule: &Rule) {
        self.begin(libc::NFT_MSG_NEWRULE, CREATE | APPEND);
        self.messages.put_text(RULE_TABLE, self.table);
        self.messages.put_text(RULE_CHAIN, chain);
        rule.put(RULE_EXPRESSIONS, &mut self.messages);
    }

    /// Removes all rules of a chain.
    fn clear(&mut self, chain: &str) {
        self.begin(libc::NFT_MSG_DELRULE, 0);
        self.messages.put_text(RULE_TABLE, self.table);
        self.messages.put_text(RULE_CHAIN, chain);
    }

    fn element(&mut self, interface: &str) {
        self.begin(libc::NFT_MSG_NEWSETELEM, CREATE);
        self.put_element(interface, Some(&Verdict::Goto(interface.to_owned())));
    }

    fn remove_element(&mut self, interface: &str) {
        self.begin(libc::NFT_MSG_DELSETELEM, 0);
        self.put_element(interface, None);
    }

    fn put_element(&mut self, interface: &str, verdict: Option<&Verdict>) {
        let mut key = [0; INTERFACE_NAME_BYTES];
        key[..interface.len()].copy_from_slice(interface.as_bytes());
        self.messages.put_text(ELEMENTS_TABLE, self.table);
        self.messages.put_text(ELEMENTS_SET, MACHINES);
        self.messages.nest(ELEMENTS_LIST, |list| {
            list.nest(LIST_ELEMENT, |element| {
                element.nest(ELEMENT_KEY, |data| data.put(DATA_VALUE, &key));
                if let Some(verdict) = verdict {
                    verdict.put_value(ELEMENT_DATA, element);
                }
            });
        });
    }

    /// Has them happen.
    pub(super) fn commit(mut self, socket: &Socket) -> io::Result<()> {
        let end = u16::try_from(libc::NFNL_MSG_BATCH_END).expect("a small number");
        self.messages.begin(end, 0, &header(0, libc::NFNL_SUBSYS_NFTABLES));
        socket.request(self.messages)
    }
}

fn kind(message: libc::c_int) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_NFTABLES << 8 | message).expect("a small number")
}

/// `nfgenmsg`.
fn header(family: libc::c_int, resource: libc::c_int) -> [u8; 4] {
    let [high, low] = u16::try_from(resource).expect("a small number").to_be_bytes();
    [u8::try_from(family).expect("a small number"), 0, high, low]
}

fn read_chain(payload: &[u8]) -> Option<Chain> {
    let family = libc::c_int::from(*payload.first()?);
    let mut chain = Chain {
        table: String::new(),
        name: String::new(),
        hook: None,
        drops: false,
        ipv4: matches!(family, libc::NFPROTO_INET | libc::NFPROTO_IPV4),
    };
    for (kind, value) in attributes(payload.get(4..)?) {
        match kind {
            CHAIN_TABLE => chain.table = text(value),
            CHAIN_NAME => chain.name = text(value),
            CHAIN_HOOK => {
                chain.hook = attributes(value)
                    .find(|(kind, _)| *kind == HOOK_NUMBER)
                    .and_then(|(_, value)| network_number(value));
            }
            CHAIN_POLICY => chain.drops = network_number(value) == Some(libc::NF_DROP.cast_unsigned()),
            _ => {}
        }
    }
    Some(chain)
}
