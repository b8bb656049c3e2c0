//! What a machine may reach, as tables and pure functions. The filter says the same to the kernel.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use sandhaus_sandbox::types::NetworkPolicy;

use super::NetworkConfig;

/// What no machine ever reaches, whatever a list says: this network, loopback, link-local (with the metadata services
/// of clouds), those services at other addresses, multicast, reserved and broadcast.
pub(super) const NEVER: &[Ipv4Net] = &[
    net([0, 0, 0, 0], 8),
    net([127, 0, 0, 0], 8),
    net([169, 254, 0, 0], 16),
    net([192, 0, 0, 0], 24),
    net([100, 100, 100, 200], 32),
    net([168, 63, 129, 16], 32),
    net([224, 0, 0, 0], 4),
    net([240, 0, 0, 0], 4),
];

/// What a machine reaches only where the server's owner says so: private networks, those of providers, and those for
/// measuring devices.
pub(super) const PRIVATE: &[Ipv4Net] = &[
    net([10, 0, 0, 0], 8),
    net([100, 64, 0, 0], 10),
    net([172, 16, 0, 0], 12),
    net([192, 168, 0, 0], 16),
    net([198, 18, 0, 0], 15),
];

/// The network between a guest and its namespace, the same for all.
pub(super) const GUESTS: Ipv4Net = net([192, 168, 0, 0], 24);

/// Longest prefix of the network that machines get their addresses from: fewer addresses would not be worth it.
pub(super) const SUBNET_BITS_MAX: u8 = 28;

/// Shortest prefix of it.
pub(super) const SUBNET_BITS_MIN: u8 = 8;

const fn net(address: [u8; 4], bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(address[0], address[1], address[2], address[3]), bits)
}

/// What a connected machine may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Nothing: what it had was taken away.
    Nothing,
    /// The internet, and what the server's owner allows beside it.
    Internet,
    /// Of that, these networks only.
    Only(Vec<Ipv4Net>),
}

impl Reach {
    /// What a policy means for a machine with an address of its own; none for a machine without.
    pub(crate) fn of(policy: &NetworkPolicy) -> Option<Self> {
        match policy {
            NetworkPolicy::None | NetworkPolicy::Host => None,
            NetworkPolicy::Bridge => Some(Self::Internet),
            NetworkPolicy::Allow(networks) => {
                let plain = networks.iter().filter_map(|network| match network {
                    IpNet::V4(network) => Some(network.trunc()),
                    IpNet::V6(_) => None,
                });
                Some(Self::Only(plain.collect()))
            }
        }
    }
}

/// Why a network cannot be on a list, in words for whoever asked; `None`: it can. Parts of it may still be out of
/// reach: a list never adds to what a machine without one could reach.
pub(super) fn refusal(network: &IpNet, config: &NetworkConfig) -> Option<String> {
    let IpNet::V4(network) = network else {
        return Some(format!("network {network} cannot be reached: sandboxes have IPv4 only"));
    };
    if NEVER.iter().any(|never| never.contains(network)) {
        return Some(format!("network {network} can never be reached from a sandbox"));
    }
    if config.subnet.contains(network) {
        return Some(format!("network {network} belongs to sandboxes, which cannot reach each other"));
    }
    let allowed = plain(&config.allow_private).any(|allowed| overlap(&allowed, network));
    let private = PRIVATE.iter().any(|private| private.contains(network));
    (private && !allowed).then(|| {
        format!("network {network} is private: the server's owner can allow it with network.allow_private")
    })
}

/// The same for guests, whose own network is one that others use too: it lies in the way.
pub(super) fn guest_refusal(network: &IpNet, config: &NetworkConfig) -> Option<String> {
    if let IpNet::V4(wanted) = network
        && overlap(wanted, &GUESTS)
        && PRIVATE.iter().any(|private| private.contains(wanted))
    {
        return Some(format!(
            "network {network} cannot be reached from a virtual machine: {GUESTS} is what lies between it and the host"
        ));
    }
    refusal(network, config)
}

/// Why a configuration cannot be, in words for the server's owner.
pub(super) fn mistake(config: &NetworkConfig) -> Option<String> {
    let subnet = config.subnet;
    if !(SUBNET_BITS_MIN..=SUBNET_BITS_MAX).contains(&subnet.prefix_len()) {
        return Some(format!(
            "network.subnet {subnet} must have {SUBNET_BITS_MIN} to {SUBNET_BITS_MAX} bits"
        ));
    }
    let private = PRIVATE.iter().any(|private| private.contains(&subnet));
    (!private).then(|| format!("network.subnet {subnet} must lie in a private network such as 10.0.0.0/8"))
}

/// The IPv4 networks of a list.
pub(super) fn plain(networks: &[IpNet]) -> impl Iterator<Item = Ipv4Net> {
    networks.iter().filter_map(|network| match network {
        IpNet::V4(network) => Some(network.trunc()),
        IpNet::V6(_) => None,
    })
}

/// The IPv4 addresses of a list.
pub(super) fn plain_addresses(addresses: &[IpAddr]) -> impl Iterator<Item = Ipv4Addr> {
    addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

/// Whether two networks have an address in common.
pub(super) fn overlap(one: &Ipv4Net, other: &Ipv4Net) -> bool {
    one.contains(other) || other.contains(one)
}

/// Whether a route of the host means that somebody else uses a subnet. A machine's own route, of whatever instance, is for
/// one address.
pub(super) fn takes(destination: &Ipv4Net, subnet: Ipv4Net) -> bool {
    subnet.contains(destination) && destination.prefix_len() < 32
}

/// The machines' side of all links: the address that packets leave by.
pub(super) fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 1)
}

/// How many machines have an address in a subnet: not the network's own, the gateway's and the last.
pub(super) fn places(subnet: Ipv4Net) -> u32 {
    (1 << (32 - subnet.prefix_len())) - 3
}

/// The address of one of them.
pub(super) fn address(subnet: Ipv4Net, place: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 2 + place % places(subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(network: &str, config: &NetworkConfig) -> Option<String> {
        refusal(&network.parse().expect("a network"), config)
    }

    #[test]
    fn lists_name_only_what_can_be_reached() {
        let mut config = NetworkConfig::default();
        for network in ["0.0.0.0/0", "1.1.1.1/32", "198.51.100.0/24", "8.0.0.0/5"] {
            assert_eq!(refused(network, &config), None, "{network}");
        }
        for (network, word) in [
            ("127.0.0.0/8", "never"),
            ("127.0.0.1/32", "never"),
            ("169.254.169.254/32", "never"),
            ("224.0.0.0/8", "never"),
            ("255.255.255.255/32", "never"),
            ("168.63.129.16/32", "never"),
            ("10.55.3.0/24", "each other"),
            ("10.1.0.0/16", "allow_private"),
            ("192.168.7.0/24", "allow_private"),
            ("100.64.0.0/10", "allow_private"),
            ("::/0", "IPv4"),
            ("2001:db8::/32", "IPv4"),
        ] {
            let why = refused(network, &config).unwrap_or_else(|| panic!("{network} is refused"));
            assert!(why.contains(word) && why.contains(network), "{why}");
        }
        config.allow_private = vec!["192.168.7.0/24".parse().expect("a network")];
        assert_eq!(refused("192.168.7.9/32", &config), None);
        assert_eq!(refused("192.168.0.0/16", &config), None);
        assert!(refused("192.168.8.0/24", &config).is_some());
    }

    #[test]
    fn guests_cannot_name_their_own_network() {
        let allow = |network: &str| NetworkConfig {
            allow_private: vec![network.parse().expect("a network")],
            ..NetworkConfig::default()
        };
        let config = allow("192.168.0.0/16");
        let refused = |network: &str| guest_refusal(&network.parse().expect("a network"), &config);
        for network in ["192.168.0.0/24", "192.168.0.9/32", "192.168.0.0/16", "192.168.0.0/23"] {
            let why = refused(network).unwrap_or_else(|| panic!("{network} is refused"));
            assert!(why.contains("virtual machine") && why.contains(network), "{why}");
        }
        for network in ["192.168.1.0/24", "0.0.0.0/0", "192.0.0.0/4", "1.1.1.1/32"] {
            assert_eq!(refused(network), None, "{network}");
        }
        assert!(refused("169.254.0.0/16").is_some_and(|why| why.contains("never")));
        assert!(
            GUESTS.contains(&super::super::guard::GUEST) && GUESTS.contains(&super::super::guard::GATEWAY)
        );
    }

    #[test]
    fn addresses_of_machines_are_neither_the_gateways_nor_the_networks() {
        let subnet: Ipv4Net = "10.9.8.0/28".parse().expect("a network");
        let all: Vec<Ipv4Addr> = (0..places(subnet)).map(|place| address(subnet, place)).collect();
        assert_eq!(all.len(), 13);
        assert_eq!(all.first(), Some(&Ipv4Addr::new(10, 9, 8, 2)));
        assert_eq!(all.last(), Some(&Ipv4Addr::new(10, 9, 8, 14)));
        assert_eq!(address(subnet, 13), all[0]);
        assert_eq!(gateway(subnet), Ipv4Addr::new(10, 9, 8, 1));
    }

    #[test]
    fn a_subnet_is_private_and_neither_tiny_nor_all() {
        let with = |subnet: &str| NetworkConfig {
            subnet: subnet.parse().expect("a network"),
            ..NetworkConfig::default()
        };
        assert_eq!(mistake(&NetworkConfig::default()), None);
        assert_eq!(mistake(&with("192.168.100.0/24")), None);
        for subnet in ["10.0.0.0/30", "0.0.0.0/0", "8.8.8.0/24", "127.0.0.0/16"] {
            assert!(mistake(&with(subnet)).is_some_and(|why| why.contains(subnet)), "{subnet}");
        }
    }
}
