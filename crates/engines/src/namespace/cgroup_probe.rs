//! Which cgroup hierarchies this host has, and where in them there is room for us.

use std::{
    io,
    path::{Path, PathBuf},
};

use sandhaus_sandbox::engine::{EngineError, EngineResult};

/// The controllers that limit machines.
pub(super) const CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];

/// Largest list of mounts read.
const MOUNTS_BYTES_MAX: u64 = 4 << 20;

/// What a host has.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The hierarchy of version 2.
    pub(super) unified: Option<Unified>,
    /// Those of version 1: mount point and controllers.
    pub(super) legacy: Vec<(PathBuf, Vec<String>)>,
}

/// The unified hierarchy.
#[derive(Debug)]
pub(super) struct Unified {
    /// The cgroup below which ours go.
    pub(super) base: PathBuf,
    /// Those of [`CONTROLLERS`] that it offers.
    pub(super) controllers: Vec<&'static str>,
    /// The base was given to this service; the server must leave it for a leaf.
    pub(super) delegated: bool,
}

impl Found {
    /// The hierarchy of version 1 that has a controller.
    pub(super) fn legacy_of(&self, controller: &str) -> Option<&Path> {
        let mut all = self.legacy.iter();
        all.find(|(_, controllers)| controllers.iter().any(|name| name == controller))
            .map(|(path, _)| path.as_path())
    }

    /// In words for people.
    pub(super) fn describe(&self) -> String {
        let legacy = self.legacy.len();
        match &self.unified {
            Some(unified) if !unified.controllers.is_empty() => {
                let how = if unified.delegated { ", delegated" } else { "" };
                format!("version 2 ({}{how})", unified.controllers.join(", "))
            }
            Some(_) => format!("version 1 with {legacy} hierarchies, and an empty unified one"),
            None => format!("version 1 with {legacy} hierarchies"),
        }
    }
}

/// Looks at the mounts and at this process's own cgroup.
pub(super) fn find() -> EngineResult<Found> {
    let host = |error: io::Error| EngineError::host("find cgroups", error);
    let mounts = read_bounded(Path::new("/proc/self/mountinfo")).map_err(host)?;
    let own = read_bounded(Path::new("/proc/self/cgroup")).map_err(host)?;
    let mut found = Found::default();
    for (mount, kind, options) in mounts.lines().filter_map(parse_mount) {
        match kind {
            "cgroup2" if found.unified.is_none() => {
                found.unified = Some(unified(&mount, &own).map_err(host)?)
            }
            "cgroup" => found.legacy.push((mount, options.split(',').map(str::to_owned).collect())),
            _ => {}
        }
    }
    Ok(found)
}

/// Mount point, type and options of the file system, of one line of mountinfo.
fn parse_mount(line: &str) -> Option<(PathBuf, &str, &str)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let point = mount.split(' ').nth(4)?;
    let mut words = file_system.split(' ');
    let kind = words.next()?;
    let options = words.nth(1)?;
    Some((PathBuf::from(unescape(point)), kind, options))
}

/// Mount points carry blanks as octal numbers.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn unified(mount: &Path, own: &str) -> io::Result<Unified> {
    let available = fs_err::read_to_string(mount.join("cgroup.controllers"))?;
    let controllers: Vec<&'static str> = CONTROLLERS
        .iter()
        .filter(|name| available.split_whitespace().any(|word| word == **name))
        .copied()
        .collect();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    // A server that was restarted in its leaf belongs to the cgroup above.
    let own = own.strip_suffix("/server").unwrap_or(own);
    let own = mount.join(own.trim_start_matches('/'));
    let delegated =
        own != *mount && ["trusted.delegate", "user.delegate"].iter().any(|name| is_delegated(&own, name));
    Ok(Unified { base: if delegated { own } else { mount.to_owned() }, controllers, delegated })
}

fn is_delegated(directory: &Path, attribute: &str) -> bool {
    let mut value = [0_u8; 8];
    matches!(rustix::fs::getxattr(directory, attribute, &mut value), Ok(1)) && value[0] == b'1'
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    fs_err::File::open(path)?.take(MOUNTS_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_blanks() {
        let line = r"36 35 0:30 / /sys/fs/cgroup/my\040own rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct";
        let (point, kind, options) = parse_mount(line).expect("a mount");
        assert_eq!(point, Path::new("/sys/fs/cgroup/my own"));
        assert_eq!((kind, options), ("cgroup", "rw,cpu,cpuacct"));
        assert_eq!(parse_mount("36 35 0:30 / /x rw"), None);
    }
}
