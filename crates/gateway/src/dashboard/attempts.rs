//! How often one peer may try a key: a bucket of tries each, so that guessing is slow and nobody else is locked out.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Wrong keys in a row before a peer has to wait.
const TRIES: u32 = 8;

/// Time after which one more try is given back.
const REFILL: Duration = Duration::from_secs(5);

/// Most peers that are remembered; when all of them are still fresh, a new one has to wait.
const PEERS_MAX: usize = 4096;

/// The network part of an IPv6 address: one household or machine owns all addresses in it.
const IPV6_PREFIX_BITS: u32 = 64;

/// Wrong keys of late, by peer.
#[derive(Default)]
pub(crate) struct Attempts {
    by_peer: Mutex<HashMap<IpAddr, Spent>>,
}

/// Tries that a peer has used up: the time at which the last of them is given back.
struct Spent {
    until: Instant,
}

impl Attempts {
    /// Whether `peer` may try now; if not, how long it has to wait.
    pub(crate) fn admit(&self, peer: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = network(peer);
        match by_peer.get(&peer) {
            Some(spent) => {
                let owed = spent.until.saturating_duration_since(now);
                let free = REFILL * (TRIES - 1);
                if owed > free { Err(owed - free) } else { Ok(()) }
            }
            None if by_peer.len() >= PEERS_MAX => {
                by_peer.retain(|_, spent| spent.until > now);
                if by_peer.len() >= PEERS_MAX { Err(REFILL) } else { Ok(()) }
            }
            None => Ok(()),
        }
    }

    /// Notes a wrong key.
    pub(crate) fn failed(&self, peer: IpAddr, now: Instant) {
        let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = by_peer.entry(network(peer)).or_insert(Spent { until: now });
        spent.until = spent.until.max(now) + REFILL;
    }
}

fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - IPV6_PREFIX_BITS))).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn guessing_becomes_slow_for_the_guesser_alone() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for _ in 0..TRIES {
            assert!(attempts.admit(peer("192.0.2.1"), now).is_ok());
            attempts.failed(peer("192.0.2.1"), now);
        }
        let wait = attempts.admit(peer("192.0.2.1"), now).unwrap_err();
        assert!(wait <= REFILL && !wait.is_zero());
        assert!(attempts.admit(peer("::ffff:192.0.2.1"), now).is_err(), "the same peer in other clothes");
        assert!(attempts.admit(peer("192.0.2.2"), now).is_ok());
        assert!(attempts.admit(peer("192.0.2.1"), now + wait).is_ok());
        attempts.failed(peer("192.0.2.1"), now + wait);
        assert!(attempts.admit(peer("192.0.2.1"), now + wait).is_err(), "one try was given back, not all");
    }

    #[test]
    fn addresses_of_one_network_share_their_tries() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for host in 0..TRIES {
            attempts.failed(peer(&format!("2001:db8::{host:x}")), now);
        }
        assert!(attempts.admit(peer("2001:db8::ffff"), now).is_err());
        assert!(attempts.admit(peer("2001:db8:0:1::1"), now).is_ok());
    }

    #[test]
    fn memory_is_bounded() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for index in 0..u32::try_from(PEERS_MAX).unwrap() {
            attempts.failed(IpAddr::from(index.to_be_bytes()), now);
        }
        assert!(attempts.admit(peer("192.0.2.1"), now).is_err());
        assert!(attempts.admit(peer("192.0.2.1"), now + REFILL).is_ok(), "old entries make room");
        assert_eq!(attempts.by_peer.lock().unwrap().len(), 0);
    }
}
