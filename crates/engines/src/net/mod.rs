//! Networks of machines, for every engine: network namespaces with an address behind NAT, what may be reached from
//! there, name resolution.
//!
//! ```text
//!   a network namespace of its own             the host
//!   ┌───────────────────────┐        ┌───────────────────────────────────────────┐
//!   │ lo   eth0 10.55.0.7/32├────────┤0123456789ab00a ─▶ filter, NAT ─▶ uplink   │
//!   └───────────────────────┘  pair  └───────────────────────────────────────────┘
//! ```
//!
//! A guest of a virtual machine is one step further in, behind a tap, and never learns of anything that differs between
//! two hosts or two machines, so that what it remembers is true wherever it is restored:
//! ```text
//!   the guest                        a network namespace of its own
//!   ┌────────────────────────┐      ┌──────────────────────────────────┐
//!   │ 192.168.0.2 (its only  ├──────┤ tap0 192.168.0.1 ─▶ guard, NAT ─▶│ eth0, as above
//!   │ gateway and resolver   │      │ QEMU holds the tap               │
//!   │ are 192.168.0.1)       │      └──────────────────────────────────┘
//!   └────────────────────────┘
//! ```
//!
//! Invariants:
//! - Everything is said to the kernel by netlink, on one thread of its own; no program is run and no other thread waits.
//! - A machine does not own its network namespace: not even its root can change an address, a route or a setting.
//! - A namespace lives as long as its machine, and takes its pair of interfaces and its route along. All that can be
//!   left behind is the instance's one table of filters, which bears the instance's id and fits nobody else.
//! - Addresses are taken by making a route that nobody else may have: the kernel alone says which are free, to all
//!   instances of the host.
//! - Until the filter says otherwise, nothing passes.

mod check;
mod dial;
mod filter;
mod guard;
mod guest;
#[cfg(test)]
mod guest_tests;
mod host;
mod inside;
mod memory;
mod name;
mod netlink;
mod policy;
pub(crate) mod record;
mod resolvers;
mod route;
mod rules;
mod steps;
mod tap;
mod thread;
mod watch;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use sandhaus_sandbox::{
    engine::{EngineError, EngineResult},
    types::NetworkPolicy,
};

pub use check::{NetworkCheck, check_guest_network, check_network};

pub(crate) use dial::tcp as dial;
pub(crate) use guard::GUEST_DEVICE;
pub(crate) use guest::{Guest, check_guest_policy};
pub(crate) use inside::Namespace;
pub(crate) use policy::Reach;
pub(crate) use resolvers::{MARK as RESOLV_CONF_MARK, text as resolv_conf, text_of_host, text_of_none};
pub(crate) use steps::{fault_points, guest_fault_points};
pub(crate) use thread::Networks;

/// What the server's owner says about networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Addresses of machines and of the host's ends towards them are taken from here.
    pub subnet: Ipv4Net,
    /// Private networks that bridged machines may reach beside the internet.
    pub allow_private: Vec<IpNet>,
    /// Name servers of bridged machines; empty: the host's own, where machines can reach them.
    pub resolvers: Vec<IpAddr>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 55, 0, 0), 16),
            allow_private: Vec::new(),
            resolvers: Vec::new(),
        }
    }
}

/// Who lives in the machines' namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tenants {
    /// The machine's own processes.
    Processes,
    /// A program that runs a virtual machine; the machine itself is behind a tap.
    Guests,
}

/// Refuses a policy that could not do what it says.
pub(crate) fn check_policy(policy: &NetworkPolicy, config: &NetworkConfig) -> EngineResult<()> {
    let NetworkPolicy::Allow(networks) = policy else { return Ok(()) };
    match networks.iter().find_map(|network| policy::refusal(network, config)) {
        Some(refusal) => Err(EngineError::Invalid(refusal)),
        None => Ok(()),
    }
}

/// A machine's place in the host's network, as it is written down beside the machine: one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// The host's end.
    pub(crate) interface: String,
    /// The machine's address.
    pub(crate) address: Ipv4Addr,
    /// What it may reach.
    pub(crate) reach: Reach,
}

impl Attachment {
    /// The line.
    pub(crate) fn to_text(&self) -> String {
        let reach = match &self.reach {
            Reach::Nothing => "nothing".to_owned(),
            Reach::Internet => "internet".to_owned(),
            Reach::Only(networks) => {
                networks.iter().fold("only".to_owned(), |text, network| format!("{text} {network}"))
            }
        };
        format!("{} {} {reach}", self.interface, self.address)
    }

    /// Reads the line; `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let interface = words.next().filter(|name| (1..16).contains(&name.len()))?.to_owned();
        let address = words.next()?.parse().ok()?;
        let reach = match words.next()? {
            "nothing" => Reach::Nothing,
            "internet" => Reach::Internet,
            "only" => {
                let networks = words.map(|word| word.parse().ok()).collect::<Option<Vec<_>>>()?;
                return Some(Self { interface, address, reach: Reach::Only(networks) });
            }
            _ => return None,
        };
        words.next().is_none().then_some(Self { interface, address, reach })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_read_as_they_were_written() {
        for reach in [
            Reach::Nothing,
            Reach::Internet,
            Reach::Only(Vec::new()),
            Reach::Only(vec![
                "1.2.3.0/24".parse().expect("a network"),
                "8.8.8.8/32".parse().expect("a network"),
            ]),
        ] {
            let attachment = Attachment {
                interface: "0123456789ab00a".into(),
                address: Ipv4Addr::new(10, 55, 0, 7),
                reach,
            };
            assert_eq!(Attachment::parse(&attachment.to_text()), Some(attachment));
        }
        for text in [
            "",
            "a",
            "a 10.0.0.1",
            "a 10.0.0.1 all",
            "a x nothing",
            "a 10.0.0.1 internet x",
            "a 10.0.0.1 only x",
        ] {
            assert_eq!(Attachment::parse(text), None, "{text:?}");
        }
    }
}
