//! Networks of guests: what a virtual machine has beside the namespace of its own that every machine has.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use sandhaus_sandbox::{
    engine::{EngineError, EngineResult},
    types::NetworkPolicy,
};

use super::{
    Attachment, Namespace, NetworkConfig, Networks, Reach, Tenants, guard,
    guard::{GATEWAY, GUEST, TAP},
    host::host,
    inside, name, policy, record,
    route::{Ipv6, Routes},
    steps::GuestStep,
    tap,
};
use crate::steps::pass;

/// Whether a connection is made up of what is heard in the middle of it: not here, where it would be one that a copied
/// machine remembers and nobody else does.
const PICK_UP: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose";

/// How often a connection that this side has closed is tried to be brought to its end. A guest that was ended answers
/// nothing any more, and a connection into it keeps its namespace until nobody tries; one that stands still for a moment is to
/// find all that was sent to it.
const END_ATTEMPTS: &str = "/proc/sys/net/ipv4/tcp_orphan_retries";

/// Some six seconds, where the kernel's own choice comes to about two minutes.
const END_ATTEMPTS_MAX: &[u8] = b"4";

/// A guest's network, ready for the program that runs the guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The namespace that the program is to be born in. It lives as long as this, the program, or its name.
    pub(crate) namespace: OwnedFd,
    /// The tap, with a `virtio-net` header before each packet. It is there as long as this or the program's copy.
    pub(crate) tap: OwnedFd,
}

/// What is written down beside a guest's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// The namespace's number in the kernel.
    namespace: u64,
    /// Its place in the host's network, if it has one.
    attachment: Option<Attachment>,
}

impl Place {
    fn to_text(&self) -> String {
        match &self.attachment {
            Some(attachment) => format!("{} {}", self.namespace, attachment.to_text()),
            None => self.namespace.to_string(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.split_once(' ') {
            None => Some(Self { namespace: text.parse().ok()?, attachment: None }),
            Some((namespace, attachment)) => Some(Self {
                namespace: namespace.parse().ok()?,
                attachment: Some(Attachment::parse(attachment)?),
            }),
        }
    }

    fn of(directory: &Path) -> Option<Self> {
        record::read(directory).as_deref().and_then(Self::parse)
    }
}

/// Refuses a policy that no guest can have.
pub(crate) fn check_guest_policy(policy: &NetworkPolicy, config: &NetworkConfig) -> EngineResult<()> {
    match policy {
        NetworkPolicy::None | NetworkPolicy::Bridge => Ok(()),
        NetworkPolicy::Host => {
            Err(EngineError::Unsupported("the host's own network in a virtual machine".to_owned()))
        }
        NetworkPolicy::Allow(networks) => {
            match networks.iter().find_map(|network| policy::guest_refusal(network, config)) {
                Some(refusal) => Err(EngineError::Invalid(refusal)),
                None => Ok(()),
            }
        }
    }
}

impl Networks {
    /// Networks of guests. The instance's id must be one that no other networks have. `machines` are the directories of
    /// machines of earlier servers: what is written down there goes on, everything else of the instance is removed.
    /// `memory` is a file for what is to be undone.
    pub(crate) fn open_for_guests(
        instance: &str,
        config: NetworkConfig,
        memory: PathBuf,
        machines: impl IntoIterator<Item = PathBuf>,
    ) -> EngineResult<Self> {
        let known = machines.into_iter().filter_map(|directory| Place::of(&directory)?.attachment);
        Self::open_for(Tenants::Guests, instance, config, memory, known.collect())
    }

    /// Makes the network of a guest, and writes it down in the machine's directory. `machine` is the machine's name.
    pub(crate) fn guest(
        &self,
        machine: &str,
        policy: &NetworkPolicy,
        directory: &Path,
    ) -> EngineResult<Guest> {
        let (namespace, attachment) = match (policy, Reach::of(policy)) {
            (NetworkPolicy::Host, _) => {
                return Err(EngineError::Unsupported(
                    "the host's own network in a virtual machine".to_owned(),
                ));
            }
            (_, Some(reach)) => {
                let connected = self.connect(machine, reach)?;
                (connected.namespace, Some(connected.attachment))
            }
            (_, None) => (self.isolated()?, None),
        };
        let Namespace { namespace, sys: _, tap } = namespace;
        let tap = tap.expect("namespaces of guests come with a tap");
        let written = rustix::fs::fstat(&namespace).map_err(io::Error::from).and_then(|found| {
            let place = Place { namespace: found.st_ino, attachment: attachment.clone() };
            pass(GuestStep::Record, || record::write(directory, &place.to_text()))
        });
        if let Err(error) = written {
            if let Some(attachment) = attachment {
                self.release(&attachment.interface);
            }
            return Err(EngineError::host("record network", error));
        }
        let named = pass(GuestStep::Name, || name::give(&self.instance, machine, &namespace));
        match named {
            Ok(name) => tracing::debug!(machine, name, "the network of a virtual machine is there"),
            Err(error) => tracing::info!(%error, machine, "the network of a virtual machine has no name"),
        }
        Ok(Guest { namespace, tap })
    }

    /// Changes what a guest may reach, at once and also on the connections it has, and what is written down of it.
    pub(crate) fn change_guest(&self, policy: &NetworkPolicy, directory: &Path) -> EngineResult<()> {
        let place = Place::of(directory).ok_or(EngineError::NotFound)?;
        let reach = match (policy, Reach::of(policy)) {
            (NetworkPolicy::Host, _) => {
                return Err(EngineError::Unsupported(
                    "the host's own network in a virtual machine".to_owned(),
                ));
            }
            (_, Some(reach)) => reach,
            (_, None) if place.attachment.is_none() => return Ok(()),
            (_, None) => Reach::Nothing,
        };
        let Some(attachment) = place.attachment else {
            return Err(EngineError::Unsupported(
                "giving a network to a virtual machine that was started without one".to_owned(),
            ));
        };
        let changed = Attachment { reach, ..attachment };
        let place = Place { namespace: place.namespace, attachment: Some(changed.clone()) };
        // Should this be the last that is done, the next server makes it so.
        record::write(directory, &place.to_text())
            .map_err(|error| EngineError::host("record network", error))?;
        self.change(changed)
    }

    /// Lets go of what is written down in a machine's directory, when the machine has ended and before the directory goes.
    /// Absent is success.
    pub(crate) fn release_guest(&self, machine: &str, directory: &Path) {
        // What has a name was written down before.
        let Some(place) = Place::of(directory) else { return };
        let gone = pass(GuestStep::Unname, || name::take_back(&self.instance, machine, place.namespace));
        if let Err(error) = gone {
            tracing::warn!(%error, machine, "cannot remove the name of a network");
        }
        if let Some(attachment) = place.attachment {
            self.release(&attachment.interface);
        }
    }
}

/// Makes a new namespace a guest's. The calling thread is in `home` before and after.
pub(super) fn fit_out(
    home: &OwnedFd,
    namespace: &mut Namespace,
    routes: &Routes,
    ipv6: Ipv6,
) -> EngineResult<()> {
    let tap = pass(GuestStep::Tap, || inside::within(home, &namespace.namespace, || tap::make(TAP)))
        .map_err(tap_failure)?;
    pass(GuestStep::Guard, || {
        inside::within(home, &namespace.namespace, || {
            guard::write()?;
            // Without it connections of a copied machine may live on, but nobody answers them.
            set(PICK_UP, b"0");
            // Without it the namespace is there for longer, that is all.
            set(END_ATTEMPTS, END_ATTEMPTS_MAX);
            Ok(())
        })?;
        let link = routes.link(TAP)?.ok_or(io::ErrorKind::NotFound)?;
        routes.face_guest(link.index, GATEWAY, GUEST, ipv6)
    })
    .map_err(host("set up network of virtual machine"))?;
    namespace.tap = Some(tap);
    Ok(())
}

/// Sets what not every kernel has.
fn set(path: &str, value: &[u8]) {
    if let Ok(mut file) = fs_err::OpenOptions::new().write(true).open(path) {
        let _ = file.write_all(value);
    }
}

fn tap_failure(error: io::Error) -> EngineError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EPERM | libc::EACCES) => {
            EngineError::Unsupported(format!(
                "a network for virtual machines without {} (load the module tun, or let this container have the device)",
                tap::DEVICE
            ))
        }
        _ => host("make tap")(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn places_read_as_they_were_written() {
        let attachment = Attachment {
            interface: "v123456789ab00a".into(),
            address: Ipv4Addr::new(10, 55, 0, 7),
            reach: Reach::Only(vec!["1.2.3.0/24".parse().expect("a network"); 2]),
        };
        for attachment in [None, Some(attachment)] {
            let place = Place { namespace: 4_026_533_211, attachment };
            assert_eq!(Place::parse(&place.to_text()), Some(place));
        }
        for text in ["", "x", "1 ", "1 a", "-1", "v123456789ab00a 10.55.0.7 internet"] {
            assert_eq!(Place::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn no_guest_is_on_the_hosts_network() {
        let config = NetworkConfig::default();
        let refused = check_guest_policy(&NetworkPolicy::Host, &config).expect_err("refused");
        assert!(matches!(&refused, EngineError::Unsupported(_)), "{refused:?}");
        assert!(check_guest_policy(&NetworkPolicy::None, &config).is_ok());
        assert!(check_guest_policy(&NetworkPolicy::Bridge, &config).is_ok());
    }
}
