//! What `/proc/mounts` of a distribution says.

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    source: String,
    point: String,
    kind: String,
    options: String,
}

/// All mounts of a distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounts(Vec<Mount>);

/// Which cgroups there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cgroups {
    /// Version 2 alone.
    Unified,
    /// Version 1, perhaps with an empty version 2 beside it.
    Legacy,
    /// None.
    Missing,
}

impl Mounts {
    pub(crate) fn parse(text: &str) -> Self {
        let mount = |line: &str| {
            let mut words = line.split(' ').map(unescape);
            Some(Mount {
                source: words.next()?,
                point: words.next()?,
                kind: words.next()?,
                options: words.next()?,
            })
        };
        Self(text.lines().filter_map(mount).collect())
    }

    pub(crate) fn cgroups(&self) -> Cgroups {
        let has = |kind: &str, beneath: &str| {
            self.0.iter().any(|mount| mount.kind == kind && mount.point.starts_with(beneath))
        };
        if has("cgroup", "/sys/fs/cgroup/") {
            return Cgroups::Legacy;
        }
        if has("cgroup2", "/sys/fs/cgroup") { Cgroups::Unified } else { Cgroups::Missing }
    }

    /// Whether a path lies on a drive of Windows.
    pub(crate) fn is_windows(&self, path: &str) -> bool {
        // Of mounts on the same place the last one counts, and of places the deepest.
        let over = self.0.iter().filter(|mount| is_beneath(path, &mount.point));
        over.max_by_key(|mount| mount.point.trim_end_matches('/').len()).is_some_and(|mount| {
            match mount.kind.as_str() {
                "drvfs" => true,
                "9p" | "virtiofs" => mount.options.contains("drvfs") || mount.source.contains("drvfs"),
                _ => false,
            }
        })
    }
}

fn is_beneath(path: &str, point: &str) -> bool {
    let point = point.trim_end_matches('/');
    path.strip_prefix(point).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Blanks and the like are octal numbers.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "/dev/sdc / ext4 rw,relatime,discard,errors=remount-ro,data=ordered 0 0\n\
        none /mnt/wslg tmpfs rw,relatime 0 0\n\
        cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime,nsdelegate 0 0\n\
        C:\\134 /mnt/c 9p rw,noatime,aname=drvfs;path=C:\\134;uid=1000;gid=1000;symlinkroot=/mnt/,cache=5 0 0\n\
        none /usr/lib/wsl/drivers 9p ro,nosuid,nodev,noatime,aname=drivers;fmask=222 0 0\n\
        tmpfs /mnt/c/mnt\\040here tmpfs rw 0 0\n\
        drvfsa /mnt/d virtiofs rw,noatime 0 0\n";

    #[test]
    fn drives_of_windows_are_told_from_those_of_linux() {
        let mounts = Mounts::parse(NOW);
        for path in ["/mnt/c", "/mnt/c/Users/me/data", "/mnt/d/x"] {
            assert!(mounts.is_windows(path), "{path}");
        }
        for path in
            ["/", "/var/lib/sandhaus", "/mnt/cd", "/mnt", "/mnt/c/mnt here/x", "/usr/lib/wsl/drivers/x"]
        {
            assert!(!mounts.is_windows(path), "{path}");
        }
        let old = Mounts::parse("rootfs / lxfs rw 0 0\nC: /mnt/c drvfs rw,noatime 0 0\n");
        assert!(old.is_windows("/mnt/c/x") && !old.is_windows("/var"));
    }

    #[test]
    fn cgroups_are_told_apart() {
        assert_eq!(Mounts::parse(NOW).cgroups(), Cgroups::Unified);
        let both = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                    cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        assert_eq!(Mounts::parse(both).cgroups(), Cgroups::Legacy);
        assert_eq!(Mounts::parse("rootfs / lxfs rw 0 0\n").cgroups(), Cgroups::Missing);
        assert_eq!(Mounts::parse("").cgroups(), Cgroups::Missing);
    }
}
