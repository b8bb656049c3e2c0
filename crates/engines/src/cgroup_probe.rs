//! Which cgroup hierarchies this host has, and where in them there is room for us.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use sandhaus_sandbox::engine::{EngineError, EngineResult};

/// The controllers that limit machines.
pub(super) const CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];

/// The leaf that the server retires to where it lives in the cgroup that sandboxes go beneath.
pub(super) const SERVER_LEAF: &str = "server";

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
    /// The base was given to this service, by a supervisor, a container or the configuration.
    pub(super) delegated: bool,
    /// The base is the server's own cgroup, which it must leave for a leaf.
    pub(super) inhabited: bool,
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

/// Looks at the mounts and at this process's own cgroup. `wanted` is the cgroup of version 2 that sandboxes go beneath,
/// as the configuration names it; it counts where version 2 has the controllers.
pub(super) fn find(wanted: Option<&Path>) -> EngineResult<Found> {
    let host = |error: io::Error| EngineError::host("find cgroups", error);
    let mounts = read_bounded(Path::new("/proc/self/mountinfo")).map_err(host)?;
    let own = read_bounded(Path::new("/proc/self/cgroup")).map_err(host)?;
    let mut found = Found::default();
    for (mount, kind, options) in mounts.lines().filter_map(parse_mount) {
        match kind {
            "cgroup2" if found.unified.is_none() => {
                found.unified = Some(unified(&mount, &own, wanted)?);
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

fn unified(mount: &Path, own: &str, wanted: Option<&Path>) -> EngineResult<Unified> {
    let available = fs_err::read_to_string(mount.join("cgroup.controllers"))
        .map_err(|error| EngineError::host("find cgroups", error))?;
    let controllers: Vec<&'static str> = CONTROLLERS
        .iter()
        .filter(|name| available.split_whitespace().any(|word| word == **name))
        .copied()
        .collect();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    // A server that was restarted in its leaf belongs to the cgroup above.
    let own = own.strip_suffix(&format!("/{SERVER_LEAF}")).unwrap_or(own);
    let own = beneath(mount, Path::new(own)).unwrap_or_else(|| mount.to_owned());
    if let Some(wanted) = wanted.filter(|_| !controllers.is_empty()) {
        let base = beneath(mount, wanted).filter(|base| base.is_dir()).ok_or_else(|| {
            let wanted = wanted.display();
            let remedy = "start the unit it belongs to, or correct the configuration key `cgroup`";
            EngineError::Unsupported(format!("the cgroup {wanted}, which is not there: {remedy}"))
        })?;
        return Ok(Unified { inhabited: own == base, base, controllers, delegated: true });
    }
    let delegated = match own == *mount {
        // In a container that has a view of its own cgroup alone, the top is an ordinary cgroup.
        true => mount.join("cgroup.type").exists(),
        false => ["trusted.delegate", "user.delegate"].iter().any(|name| is_delegated(&own, name)),
    };
    let base = if delegated { own } else { mount.to_owned() };
    Ok(Unified { base, controllers, delegated, inhabited: delegated })
}

/// The place of a cgroup's path in a mounted hierarchy; none if the path leads elsewhere.
fn beneath(mount: &Path, path: &Path) -> Option<PathBuf> {
    let inside = path.strip_prefix("/").ok()?;
    inside.components().all(|part| matches!(part, Component::Normal(_))).then(|| {
        // Joining nothing would add a slash.
        if inside.as_os_str().is_empty() { mount.to_owned() } else { mount.join(inside) }
    })
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

    #[test]
    fn a_path_of_a_cgroup_never_leads_out_of_its_hierarchy() {
        let place = |path: &str| beneath(Path::new("/sys/fs/cgroup"), Path::new(path));
        assert_eq!(place("/"), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(
            place("/system.slice/x.service"),
            Some(PathBuf::from("/sys/fs/cgroup/system.slice/x.service"))
        );
        for elsewhere in ["/../x", "system.slice", "/a/../../b", ""] {
            assert_eq!(place(elsewhere), None, "{elsewhere}");
        }
    }

    /// A directory that looks like the top of a hierarchy of version 2.
    fn hierarchy(controllers: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        fs_err::write(directory.path().join("cgroup.controllers"), controllers).expect("writable");
        directory
    }

    #[test]
    fn sandboxes_go_where_the_configuration_says() {
        let top = hierarchy("cpuset cpu io memory pids\n");
        let mount = top.path();
        fs_err::create_dir_all(mount.join("system.slice/sandboxes.service")).expect("writable");
        let wanted = Path::new("/system.slice/sandboxes.service");
        let found = unified(mount, "0::/system.slice/server.service\n", Some(wanted)).expect("a place");
        assert_eq!(found.base, mount.join("system.slice/sandboxes.service"));
        assert!(found.delegated && !found.inhabited);
        // The server's own cgroup may be named too; then it has to make room.
        let found =
            unified(mount, "0::/system.slice/sandboxes.service/server\n", Some(wanted)).expect("a place");
        assert!(found.inhabited);
    }

    #[test]
    fn a_place_that_is_not_there_is_refused_by_name() {
        let top = hierarchy("cpu memory pids\n");
        for wanted in ["/missing.service", "/../elsewhere", "relative"] {
            let refused = unified(top.path(), "0::/\n", Some(Path::new(wanted))).expect_err("not there");
            assert!(refused.to_string().contains(wanted), "{refused}");
        }
    }

    #[test]
    fn without_controllers_the_configured_place_does_not_count() {
        let top = hierarchy("hugetlb\n");
        let found = unified(top.path(), "0::/\n", Some(Path::new("/missing.service"))).expect("a place");
        assert_eq!(found.base, top.path());
        assert!(!found.delegated);
    }

    #[test]
    fn the_top_of_a_containers_own_view_is_no_real_top() {
        let top = hierarchy("cpu memory pids\n");
        let found = unified(top.path(), "0::/\n", None).expect("a place");
        assert!(!found.inhabited && !found.delegated);
        fs_err::write(top.path().join("cgroup.type"), "domain\n").expect("writable");
        let found = unified(top.path(), "0::/\n", None).expect("a place");
        assert!(found.inhabited && found.delegated);
        assert_eq!(found.base, top.path());
    }
}
