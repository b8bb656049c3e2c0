//! Networks of machines, for every engine: addresses behind NAT, what may be reached, name resolution.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

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
