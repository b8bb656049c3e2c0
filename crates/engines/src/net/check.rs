//! What `doctor` asks: whether bridged networks work on this host, found by making one where it harms nobody.

use std::{io, os::fd::AsFd, path::PathBuf, sync::mpsc};

use rustix::thread::LinkNameSpaceType;
use sandhaus_sandbox::engine::{EngineError, EngineResult};

use super::{
    NetworkConfig, Tenants, filter::Filter, host::Host, inside, memory::Memory, policy, policy::Reach,
    route::Routes,
};

/// Stands for an instance in a namespace where there is no other.
const PROBE: &str = "000000000000";

/// Where iptables of the old kind, whose rules cannot be looked into from here, names its tables.
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";

/// How bridged networks stand on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkCheck {
    /// What was found.
    pub found: String,
    /// What to do about it, unless it is well.
    pub remedy: Option<String>,
}

impl NetworkCheck {
    fn warn(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// Makes a bridged network in a network namespace of its own and looks at what in the host's own would be in its way.
/// Nothing of the host is changed.
pub fn check_network(config: &NetworkConfig) -> NetworkCheck {
    if let Some(mistake) = policy::mistake(config) {
        return NetworkCheck::warn(mistake, "change network.subnet");
    }
    match probe_apart(config, Tenants::Processes) {
        Ok(Ok(())) => look(config),
        Ok(Err(error)) => {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            NetworkCheck::warn(
                format!("no bridged networks: {error}{cause}"),
                "use a kernel with nf_tables, NAT (nft_masq), connection tracking (nft_ct) and veth, or load these \
                 modules; network `none` needs none of them",
            )
        }
        Err(_) => NetworkCheck::warn("no bridged networks: the probe broke off", "report this as a defect"),
    }
}

/// What keeps virtual machines from having a network beside what [`check_network`] finds; `None`: nothing. It is made
/// where it harms nobody.
pub fn check_guest_network(config: &NetworkConfig) -> Option<NetworkCheck> {
    let Ok(Err(error)) = probe_apart(config, Tenants::Guests) else { return None };
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let remedy = match error {
        EngineError::Unsupported(_) => {
            "load the modules tun and nf_tables; in a container, let it have /dev/net/tun"
        }
        _ => "use a kernel with tun, nf_tables and NAT, or look into the log",
    };
    Some(NetworkCheck::warn(format!("no networks for virtual machines: {error}{cause}"), remedy))
}

/// The namespace goes with the thread.
fn probe_apart(config: &NetworkConfig, tenants: Tenants) -> std::thread::Result<EngineResult<()>> {
    std::thread::scope(|scope| scope.spawn(|| probe(config, tenants)).join())
}

fn probe(config: &NetworkConfig, tenants: Tenants) -> EngineResult<()> {
    let host = |error: io::Error| EngineError::host("make network namespace", error);
    let home = inside::own().map_err(host)?;
    let (scratch, _) = inside::make(&home, Tenants::Processes).map_err(host)?;
    rustix::thread::move_into_link_name_space(scratch.namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| host(error.into()))?;
    // Without an uplink nothing is turned on, so nothing is remembered either.
    let memory = Memory::at(PathBuf::from("/dev/null/forwarding"));
    let (mender, _changes) = mpsc::channel();
    let mut probed = Host::new(PROBE, tenants, config.clone(), memory, mender)?;
    let connected = probed.connect("doctor", Reach::Internet)?;
    probed.release(&connected.attachment.interface);
    probed.close()
}

fn look(config: &NetworkConfig) -> NetworkCheck {
    let subnet = config.subnet;
    let found = format!("nftables with NAT; sandboxes get addresses of {subnet}");
    let Ok(chains) = Filter::open(PROBE).and_then(|filter| filter.chains()) else {
        return NetworkCheck { found, remedy: None };
    };
    if let Some(chain) = chains.iter().find(|chain| chain.blocks_forwarding()) {
        return NetworkCheck::warn(
            format!("chain {} of table {} drops what the host forwards", chain.name, chain.table),
            format!(
                "let bridged sandboxes through there, both ways; with Docker: iptables -I DOCKER-USER -s {subnet} -j \
                 ACCEPT; iptables -I DOCKER-USER -d {subnet} -j ACCEPT"
            ),
        );
    }
    let taken = Routes::open()
        .and_then(|routes| routes.routes())
        .ok()
        .and_then(|routes| routes.into_iter().find(|route| policy::takes(&route.destination, subnet)));
    if let Some(route) = taken {
        return NetworkCheck::warn(
            format!("network.subnet {subnet} is in use (route {})", route.destination),
            "choose a private network that this host does not use",
        );
    }
    if fs_err::read_to_string(LEGACY_TABLES).is_ok_and(|tables| tables.lines().any(|table| table == "filter"))
    {
        return NetworkCheck::warn(
            format!("{found}; iptables-legacy has rules of its own, which were not looked into"),
            format!(
                "if its chain FORWARD drops: iptables-legacy -I FORWARD -s {subnet} -j ACCEPT; iptables-legacy -I \
                     FORWARD -d {subnet} -j ACCEPT"
            ),
        );
    }
    NetworkCheck { found, remedy: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tests_of_networks_run_on_is_found_to_work() {
        let check = check_network(&NetworkConfig::default());
        assert!(check.found.contains("nftables with NAT"), "{check:?}");
        assert_eq!(check_guest_network(&NetworkConfig::default()), None);
        let wrong =
            NetworkConfig { subnet: "8.8.8.0/24".parse().expect("a network"), ..NetworkConfig::default() };
        assert!(check_network(&wrong).remedy.is_some());
    }
}
