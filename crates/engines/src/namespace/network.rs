//! A machine's network: the namespace it is born in, its place in the host's network, written down beside it, and the
//! name servers it is told.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use sandhaus_sandbox::{
    engine::{EngineError, EngineResult},
    types::NetworkPolicy,
};

use super::{disk, sys, wire::LaunchNetwork};
use crate::net::{self, Attachment, Namespace, Networks, Reach, record};

/// What the launcher and the machine's files need to know.
pub(super) struct Joined {
    /// What the launcher is told.
    pub(super) network: LaunchNetwork,
    /// The namespace that the machine is born in.
    pub(super) namespace: Option<OwnedFd>,
    /// `/sys` of that namespace.
    pub(super) sys: Option<OwnedFd>,
    /// `/etc/resolv.conf`.
    pub(super) resolv_conf: String,
}

/// Gives a machine the network that its policy says. Its directory is there.
pub(super) fn join(
    networks: &Networks,
    policy: &NetworkPolicy,
    machine: &str,
    directory: &Path,
) -> EngineResult<Joined> {
    let Some(reach) = Reach::of(policy) else {
        return match policy {
            NetworkPolicy::Host => Ok(Joined {
                network: LaunchNetwork::Host,
                namespace: None,
                sys: None,
                resolv_conf: net::text_of_host(),
            }),
            NetworkPolicy::None | NetworkPolicy::Bridge | NetworkPolicy::Allow(_) => {
                Ok(Joined::apart(networks.isolated()?, net::text_of_none()))
            }
        };
    };
    let connected = networks.connect(machine, reach)?;
    if let Err(error) = record::write(directory, &connected.attachment.to_text()) {
        networks.release(&connected.attachment.interface);
        return Err(disk::failure("record network", error));
    }
    Ok(Joined::apart(connected.namespace, net::resolv_conf(&connected.resolvers)))
}

impl Joined {
    fn apart(namespace: Namespace, resolv_conf: String) -> Self {
        let Namespace { namespace, sys, tap: _ } = namespace;
        let network = if sys.is_some() { LaunchNetwork::ApartWithSys } else { LaunchNetwork::Apart };
        Self { network, namespace: Some(namespace), sys, resolv_conf }
    }
}

/// Changes what a machine may reach, and what is written down of it.
pub(super) fn change(networks: &Networks, policy: &NetworkPolicy, directory: &Path) -> EngineResult<()> {
    let attachment = attachment(directory);
    let unsupported = |what: &str| Err(EngineError::Unsupported(what.to_owned()));
    let reach = match (Reach::of(policy), policy) {
        (_, NetworkPolicy::Host) => return unsupported("moving a running sandbox to the host's network"),
        (None, _) if attachment.is_none() => return Ok(()),
        (None, _) => Reach::Nothing,
        (Some(reach), _) => reach,
    };
    let Some(attachment) = attachment else {
        return unsupported("giving a network to a sandbox that was started without one");
    };
    let changed = Attachment { reach, ..attachment };
    // Should this be the last that is done, the next server makes it so.
    record::write(directory, &changed.to_text()).map_err(|error| disk::failure("record network", error))?;
    networks.change(changed)
}

/// A machine's place in the host's network, if it has one.
pub(super) fn attachment(directory: &Path) -> Option<Attachment> {
    record::read(directory).as_deref().and_then(Attachment::parse)
}

/// Puts `/etc/resolv.conf` into a machine's own layer, which nobody uses now. A file that the machine made its own
/// stays; a link or a directory that it put there or on the way is left alone as well.
pub(super) fn write_resolv_conf(upper: BorrowedFd<'_>, text: &str, owner: u32) -> io::Result<()> {
    const NAME: &str = "resolv.conf";
    let etc = match sys::open_beneath(upper, Path::new("etc"), OFlags::PATH | OFlags::DIRECTORY) {
        Ok(etc) => etc,
        Err(error) if left_alone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    match sys::open_beneath(etc.as_fd(), Path::new(NAME), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => {
            let mut old = vec![0; text.len().max(net::RESOLV_CONF_MARK.len()) + 1];
            let read = match rustix::io::pread(&file, &mut old[..], 0) {
                Ok(read) => read,
                Err(Errno::ISDIR | Errno::SPIPE) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            old.truncate(read);
            if old == text.as_bytes() || !old.starts_with(net::RESOLV_CONF_MARK.as_bytes()) {
                return Ok(());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A mark of the overlay says that the machine removed the image's: then it gets ours again.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
        Err(error) if left_alone(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    match rustix::fs::unlinkat(&etc, NAME, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&etc, NAME, flags, Mode::from_raw_mode(0o644))?;
    rustix::io::write(&file, text.as_bytes())?;
    let (user, group) = (rustix::fs::Uid::from_raw(owner), rustix::fs::Gid::from_raw(owner));
    Ok(rustix::fs::fchown(&file, Some(user), Some(group))?)
}

/// The machine put something of its own there.
fn left_alone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ELOOP | libc::ENOTDIR | libc::ENOENT | libc::EXDEV | libc::EACCES)
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("opened")
    }

    #[test]
    fn name_servers_are_put_right_but_never_what_is_the_machines_own() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (upper, outside) = (scratch.path().join("upper"), scratch.path().join("outside"));
        fs_err::write(&outside, format!("{}kept\n", net::RESOLV_CONF_MARK)).expect("written");
        let write = |text: &str| write_resolv_conf(open(&upper).as_fd(), text, 0).expect("no failure");
        let file = upper.join("etc/resolv.conf");
        fs_err::create_dir_all(&upper).expect("made");
        write(&net::text_of_none());
        assert!(!upper.join("etc").exists(), "nothing is made where no layout is");
        fs_err::create_dir_all(upper.join("etc")).expect("made");
        write(&net::text_of_none());
        assert_eq!(fs_err::read_to_string(&file).expect("there"), net::text_of_none());
        let ours = net::resolv_conf(&[std::net::Ipv4Addr::new(9, 9, 9, 9)]);
        write(&ours);
        assert_eq!(fs_err::read_to_string(&file).expect("there"), ours);
        fs_err::write(&file, "nameserver 10.1.1.1\n").expect("written");
        write(&ours);
        assert_eq!(fs_err::read_to_string(&file).expect("there"), "nameserver 10.1.1.1\n");
        fs_err::remove_file(&file).expect("removed");
        symlink(&outside, &file).expect("linked");
        write(&ours);
        assert!(file.is_symlink());
        fs_err::remove_file(&file).expect("removed");
        rustix::fs::mknodat(CWD, &file, rustix::fs::FileType::CharacterDevice, Mode::empty(), 0)
            .expect("made");
        write(&ours);
        assert_eq!(fs_err::read_to_string(&file).expect("there"), ours);
        fs_err::remove_dir_all(upper.join("etc")).expect("removed");
        symlink(scratch.path(), upper.join("etc")).expect("linked");
        write(&ours);
        assert!(!scratch.path().join("resolv.conf").exists());
        assert!(fs_err::read_to_string(&outside).expect("there").contains("kept"));
    }

    #[test]
    fn an_attachment_is_found_again() {
        let scratch = tempfile::tempdir().expect("a directory");
        assert_eq!(attachment(scratch.path()), None);
        for reach in [Reach::Internet, Reach::Only(vec!["1.2.3.0/24".parse().expect("a network"); 64])] {
            let one = Attachment {
                interface: "0123456789ab00a".into(),
                address: std::net::Ipv4Addr::new(10, 55, 0, 9),
                reach,
            };
            record::write(scratch.path(), &one.to_text()).expect("recorded");
            assert_eq!(attachment(scratch.path()), Some(one));
        }
    }
}
