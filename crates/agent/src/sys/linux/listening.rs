//! On which ports something listens, asked of the kernel at the moment of the question.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead as _, BufReader},
};

/// The state of a listening socket in the kernel's tables.
const LISTENING: &str = "0A";

/// Lines of one table that are read at most.
const LINES_MAX: usize = 65_536;

/// TCP ports with a listener, whatever address it has.
pub(crate) fn listening_ports() -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    read_table("/proc/self/net/tcp", &mut ports)?;
    match read_table("/proc/self/net/tcp6", &mut ports) {
        // A kernel without the newer protocol.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(ports),
        other => other.map(|()| ports),
    }
}

/// Listening sockets come first in a table: what follows the last one, however much it is, is never made.
fn read_table(path: &str, ports: &mut BTreeSet<u16>) -> io::Result<()> {
    for line in BufReader::new(File::open(path)?).lines().skip(1).take(LINES_MAX) {
        let Some(port) = listener(&line?) else { break };
        ports.insert(port);
    }
    Ok(())
}

/// The port of a line that tells of a listener.
fn listener(line: &str) -> Option<u16> {
    let mut fields = line.split_ascii_whitespace();
    let (_, port) = fields.nth(1)?.rsplit_once(':')?;
    (fields.nth(1)? == LISTENING).then(|| u16::from_str_radix(port, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let line =
            "   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1 0 100";
        assert_eq!(listener(line), Some(3000));
        let newer =
            "   1: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0 0 0";
        assert_eq!(listener(newer), Some(8080));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("short"), None);
    }

    #[test]
    fn a_listener_is_seen_and_gone_when_closed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("has an address").port();
        let _connected = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connect");
        assert!(listening_ports().expect("reads").contains(&port));
        drop(listener);
        assert!(!listening_ports().expect("reads").contains(&port));
    }
}
