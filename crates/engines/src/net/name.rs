//! Names of namespaces for people, where `ip netns` looks for them. They are a comfort: whoever cannot give one goes on
//! without.
//!
//! A name is a file on which the namespace is mounted. The file itself says whose it is, and it appears with those words in
//! it, so that no moment leaves one of which nobody knows the owner. Which of the names is whose is never guessed: what is
//! mounted must be the namespace that was written down, and the words must be ours.

use std::{
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FlockOperation, Mode, OFlags},
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags},
};

/// Where `ip netns` keeps names.
const DIRECTORY: &str = "/run/netns";

/// Characters of a machine's name that make the name of its namespace, if nobody has it.
const SHORT: usize = 8;

/// Most bytes that the words in a file have.
const WORDS_MAX: u64 = 256;

/// Gives a namespace the first of its names that is free. `None`: none is.
pub(super) fn give(instance: &str, machine: &str, namespace: &OwnedFd) -> io::Result<Option<String>> {
    prepare()?;
    let words = words(instance, machine);
    for name in candidates(instance, machine) {
        let path = Path::new(DIRECTORY).join(&name);
        if !claim(&path, &words)? {
            continue;
        }
        let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        if let Err(error) = rustix::mount::mount_bind(source, &path) {
            rustix::fs::unlink(&path)?;
            return Err(error.into());
        }
        return Ok(Some(name));
    }
    Ok(None)
}

/// Removes the names that `give` gave to the namespace of this number, and those it was about to give.
pub(super) fn take_back(instance: &str, machine: &str, namespace: u64) -> io::Result<()> {
    let words = words(instance, machine);
    for name in candidates(instance, machine) {
        let path = Path::new(DIRECTORY).join(name);
        if is_mounted(&path, namespace)? {
            rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        }
        // Where it is mounted elsewhere too, it goes there with the file.
        if says(&path, &words)? {
            absent_is_success(rustix::fs::unlink(&path))?;
        }
    }
    Ok(())
}

/// The names that a machine's namespace may have, the best first.
fn candidates(instance: &str, machine: &str) -> impl Iterator<Item = String> {
    let short = machine.get(..SHORT).filter(|short| short.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let long = format!("ns-{:016x}", hash(&words(instance, machine)));
    short.map(|short| format!("ns-{short}")).into_iter().chain([long])
}

fn words(instance: &str, machine: &str) -> String {
    format!("sandhaus {instance} {machine}\n")
}

/// FNV-1a: the same in every version of this program.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Makes the directory as `ip netns` does: a mount point of its own, so that names appear in every mount namespace that
/// follows this one, and go from all of them.
fn prepare() -> io::Result<()> {
    match rustix::fs::mkdir(DIRECTORY, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let share =
        || rustix::mount::mount_change(DIRECTORY, MountPropagationFlags::SHARED | MountPropagationFlags::REC);
    match share() {
        Err(Errno::INVAL) => {}
        other => return Ok(other?),
    }
    // Two that do it at once would hide each other's names.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = rustix::fs::open(DIRECTORY, flags, Mode::empty())?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    match share() {
        Err(Errno::INVAL) => {}
        other => return Ok(other?),
    }
    rustix::mount::mount_bind_recursive(DIRECTORY, DIRECTORY)?;
    Ok(share()?)
}

/// Makes the file, with its words in it. `false`: the name is taken.
fn claim(path: &Path, words: &str) -> io::Result<bool> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(DIRECTORY, flags, Mode::from_raw_mode(0o400))?;
    let mut file = std::fs::File::from(file);
    file.write_all(words.as_bytes())?;
    let unnamed = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    match rustix::fs::linkat(CWD, &unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the namespace of this number is what is seen there.
fn is_mounted(path: &Path, namespace: u64) -> io::Result<bool> {
    /// What the file system of namespaces is known by (`NSFS_MAGIC`).
    const NAMESPACES: i128 = 0x6e73_6673;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(there) => there,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let kind = rustix::fs::fstatfs(&there)?.f_type;
    Ok(i128::from(kind) == NAMESPACES && rustix::fs::fstat(&there)?.st_ino == namespace)
}

/// Whether these words are all that is in the file.
fn says(path: &Path, words: &str) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(false);
    }
    let mut found = Vec::new();
    match file.take(WORDS_MAX).read_to_end(&mut found) {
        Ok(_) => Ok(found == words.as_bytes()),
        // Something that can be opened but not read: a namespace, for one, and so not ours.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

fn absent_is_success(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_where_that_is_safe() {
        let of = |machine: &str| candidates("v123456789ab", machine).collect::<Vec<_>>();
        let usual = of("0a1b2c3d-abc.3");
        assert_eq!(usual.len(), 2);
        assert_eq!(usual[0], "ns-0a1b2c3d");
        assert_eq!(usual[1].len(), "ns-".len() + 16);
        assert_ne!(usual[1], of("0a1b2c3d-abc.4")[1]);
        for odd in ["../../x9.1", "short.1", "0a1b2c3/x", "ä1b2c3d4"] {
            let names = of(odd);
            assert_eq!(names.len(), 1, "{odd}");
            assert!(names[0].bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{names:?}");
        }
    }

    #[test]
    fn a_hash_that_machines_are_found_by_never_changes() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
