//! The packet filter inside of a guest's network namespace: what lies between the guest's tap and everything else there.
//!
//! ```text
//! arrivals     from the tap: IPv4 of the guest's own device and address, nothing else
//! questions    from the tap to the gateway's port 53    led to what stands for name servers; the host leads it on
//! input        from the tap to the namespace itself     only what answers the host: nobody who listens here is reached
//!              from the pair                            nothing
//! forward      tap to pair                              all but connections of which nothing is known: those of the
//!                                                       machine that a clone was copied from are reset at once
//!              pair to tap                              only what answers
//! output       to the pair nothing; to the tap IPv4 only
//! nat          out by the pair                          gets the address that the host knows
//! ```
//!
//! It is the same for every guest and every policy, so that it can be made ahead; what a guest may reach the host's own
//! filter decides, by the pair. A guest without a network has no pair.

use std::{io, net::Ipv4Addr};

use sandhaus_protocol::guest::{GUEST_ADDRESS, HOST_ADDRESS};

use super::{
    filter::{DESTINATION_NAT_PRIORITY, NAT_PRIORITY, QUESTION_PROTOCOLS, Transaction},
    netlink::{Protocol, Socket},
    route::MACHINE_MAC,
    rules::{Act, Rule, TCP, Test, Verdict, rule},
};

/// The guest's end of the world.
pub(super) const TAP: &str = "tap0";

/// The namespace's end of the pair towards the host.
pub(super) const PAIR: &str = "eth0";

/// The guest's address, always.
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::from_octets(GUEST_ADDRESS);

/// The hardware address that a guest's network device must have, in words.
pub(crate) const GUEST_DEVICE: &str = "02:53:48:00:00:02";

/// What the guest takes for its gateway and its name server.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::from_octets(HOST_ADDRESS);

/// Stands for name servers between a guest's namespace and the host, who leads on to the one of the moment. It belongs to
/// nobody, and where nothing leads on it is out of every machine's reach.
pub(super) const RESOLVER_STAND_IN: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 53);

/// The table's name, in a namespace where there is no other.
const TABLE: &str = "guest";

/// Before connections are looked at, so that what is dropped leaves no trace.
const ARRIVALS_PRIORITY: i32 = -300;

/// Where filters are by custom.
const FILTER_PRIORITY: i32 = 0;

/// What a kernel may lack: then connections die of silence, and packets that are too large are told so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manners {
    All,
    Plain,
}

/// Writes the table in the calling thread's network namespace, anew if it is there.
pub(super) fn write() -> io::Result<()> {
    let socket = Socket::open(Protocol::Netfilter)?;
    match write_with(&socket, Manners::All) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            write_with(&socket, Manners::Plain)
        }
        other => other,
    }
}

fn write_with(socket: &Socket, manners: Manners) -> io::Result<()> {
    let mut transaction = Transaction::new(TABLE);
    transaction.table(libc::NFT_MSG_NEWTABLE);
    transaction.table(libc::NFT_MSG_DELTABLE);
    transaction.table(libc::NFT_MSG_NEWTABLE);
    let (filter, nat) = ("filter", "nat");
    for (name, sort, hook, priority, rules) in [
        ("arrivals", filter, libc::NF_INET_PRE_ROUTING, ARRIVALS_PRIORITY, arrivals()),
        ("questions", nat, libc::NF_INET_PRE_ROUTING, DESTINATION_NAT_PRIORITY, questions()),
        ("input", filter, libc::NF_INET_LOCAL_IN, FILTER_PRIORITY, input(manners)),
        ("forward", filter, libc::NF_INET_FORWARD, FILTER_PRIORITY, forward(manners)),
        ("output", filter, libc::NF_INET_LOCAL_OUT, FILTER_PRIORITY, output()),
        ("nat", nat, libc::NF_INET_POST_ROUTING, NAT_PRIORITY, masquerade()),
    ] {
        transaction.base_chain(name, sort, hook, priority, &rules);
    }
    transaction.commit(socket)
}

fn from_guest(test: Test) -> Vec<Test> {
    vec![Test::FromInterface(TAP), test]
}

fn arrivals() -> Vec<Rule> {
    [Test::NotIpv4, Test::SenderIsNot(MACHINE_MAC), Test::SourceIsNot(GUEST)]
        .map(|test| rule(from_guest(test), Verdict::Drop))
        .into()
}

fn questions() -> Vec<Rule> {
    let question = |protocol| Rule {
        tests: vec![Test::FromInterface(TAP), Test::Question(protocol), Test::Destination(GATEWAY.into())],
        act: Act::SendTo(RESOLVER_STAND_IN),
    };
    QUESTION_PROTOCOLS.map(question).into()
}

fn input(manners: Manners) -> Vec<Rule> {
    let mut rules = vec![rule(from_guest(Test::Known), Verdict::Accept)];
    if manners == Manners::All {
        rules.push(rule(from_guest(Test::Protocol(TCP)), Verdict::Reset));
        rules.push(rule([Test::FromInterface(TAP)], Verdict::Refuse));
    }
    rules.extend([TAP, PAIR].map(|interface| rule([Test::FromInterface(interface)], Verdict::Drop)));
    rules
}

fn forward(manners: Manners) -> Vec<Rule> {
    let outwards = |test: Test| vec![Test::FromInterface(TAP), Test::ToInterface(PAIR), test];
    let mut rules = Vec::new();
    if manners == Manners::All {
        rules.push(Rule { tests: vec![Test::BeginsConnection], act: Act::FitSegments });
        let stray = [outwards(Test::Stray), vec![Test::Protocol(TCP)]].concat();
        rules.push(rule(stray, Verdict::Reset));
    }
    rules.push(rule(outwards(Test::Stray), Verdict::Drop));
    rules.push(rule([Test::FromInterface(TAP), Test::ToInterface(PAIR)], Verdict::Accept));
    rules.push(rule([Test::FromInterface(PAIR), Test::ToInterface(TAP), Test::Known], Verdict::Accept));
    if manners == Manners::All {
        rules.push(rule([Test::FromInterface(TAP)], Verdict::Refuse));
    }
    rules.push(rule([], Verdict::Drop));
    rules
}

fn output() -> Vec<Rule> {
    vec![
        rule([Test::ToInterface(PAIR)], Verdict::Drop),
        rule([Test::ToInterface(TAP), Test::NotIpv4], Verdict::Drop),
    ]
}

fn masquerade() -> Vec<Rule> {
    vec![Rule { tests: vec![Test::ToInterface(PAIR)], act: Act::Masquerade }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_for_the_guests_device_are_those_the_kernel_is_told() {
        let words = MACHINE_MAC.map(|byte| format!("{byte:02x}")).join(":");
        assert_eq!(words, GUEST_DEVICE);
    }
}
