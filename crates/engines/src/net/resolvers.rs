//! Name servers that machines can reach.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr},
};

use super::{NetworkConfig, policy};

/// Where the host says which name servers it uses; the second where the first names only a service on the host.
const FILES: &[&str] = &["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Where the host names none that machines can reach: public ones.
const FALLBACK: &[Ipv4Addr] = &[Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];

/// As many as a C library asks.
const RESOLVERS_MAX: usize = 3;

/// Most bytes of such a file that are looked at.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The first line of every `/etc/resolv.conf` that is written for a machine. One that begins otherwise is the
/// machine's own and stays.
pub(crate) const MARK: &str = "# Sandhaus: ";

/// The name servers of connected machines. `own` are the host's addresses, which no machine can reach.
pub(super) fn choose(config: &NetworkConfig, own: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let named: Vec<Ipv4Addr> = policy::plain_addresses(&config.resolvers).take(RESOLVERS_MAX).collect();
    if !named.is_empty() {
        return named;
    }
    let found = FILES.iter().map(|file| usable(&read(file), own)).find(|found| !found.is_empty());
    found.unwrap_or_else(|| FALLBACK.to_vec())
}

/// `/etc/resolv.conf` of a machine with these name servers.
pub(crate) fn text(resolvers: &[Ipv4Addr]) -> String {
    let mut text = format!("{MARK}name servers of this sandbox\n");
    for resolver in resolvers {
        text.push_str(&format!("nameserver {resolver}\n"));
    }
    text
}

/// The same of a machine that reaches nothing.
pub(crate) fn text_of_none() -> String {
    format!("{MARK}this sandbox has no network\n")
}

/// The same of a machine on the host's own network.
pub(crate) fn text_of_host() -> String {
    format!("{MARK}as on the host\n{}", read(FILES[0]))
}

fn read(file: &str) -> String {
    let mut text = Vec::new();
    // A host without such a file uses none.
    if let Ok(file) = fs_err::File::open(file) {
        let _ = file.take(FILE_BYTES_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn usable(text: &str, own: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    let reachable = servers.filter_map(|server| match server {
        IpAddr::V4(server) => Some(server),
        IpAddr::V6(_) => None,
    });
    reachable
        .filter(|server| !server.is_loopback() && !server.is_unspecified() && !own.contains(server))
        .take(RESOLVERS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_machines_reach_are_taken() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.0.7\n\
                    nameserver\tfe80::1%eth0\noptions edns0\nnameserver 192.168.1.1 # ours\nnameserver 8.8.4.4\n\
                    nameserver 8.8.8.8\nnameserver 9.9.9.9\nnameserver\nnameserver x\n";
        let own = [Ipv4Addr::new(192, 168, 1, 1)];
        let found = usable(text, &own);
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.7", "8.8.4.4", "8.8.8.8"]
        );
        assert_eq!(usable("nameserver 127.0.0.11\n", &[]), [] as [Ipv4Addr; 0]);
        assert_eq!(
            super::text(&found[..1]),
            "# Sandhaus: name servers of this sandbox\nnameserver 10.0.0.7\n"
        );
    }

    #[test]
    fn the_owners_servers_come_first() {
        let config = NetworkConfig {
            resolvers: ["10.1.0.1".parse().expect("an address"), "::1".parse().expect("an address")].into(),
            ..NetworkConfig::default()
        };
        assert_eq!(choose(&config, &[Ipv4Addr::new(10, 1, 0, 1)]), [Ipv4Addr::new(10, 1, 0, 1)]);
        assert!(!choose(&NetworkConfig::default(), &[]).is_empty());
    }
}
