//! What `doctor` asks: whether sandboxes can run on this host, found by trying.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MountAttrFlags, MountPropagationFlags},
};

use sandhaus_sandbox::types::Seccomp;

use crate::cgroup_probe;

use super::{
    admission, image_file, launcher, loop_device,
    mounting::{self, Attached, Parameter},
    removal,
    seccomp::Filters,
    sys::{self, MountChange, Reach},
    wire::LayerMapping,
};

/// Below this, sandboxes soon find their disk full.
const FREE_BYTES_WANTED: u64 = 1 << 30;

/// The oldest kernel that has every call this engine cannot do without (mount_setattr).
const KERNEL_MIN: (u32, u32) = (5, 12);

/// Size of the disk file that is tried.
const DISK_PROBE_BYTES: u64 = 16 << 20;

/// A fact about this host that the engine depends on, for `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCheck {
    /// What was looked at.
    pub name: &'static str,
    /// How it stands.
    pub level: CheckLevel,
    /// What was found.
    pub found: String,
    /// What to do about it, unless it is well.
    pub remedy: Option<String>,
}

/// How a checked thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckLevel {
    /// As it should be.
    Ok,
    /// Works with a restriction.
    Warn,
    /// Sandboxes cannot run.
    Fail,
}

impl HostCheck {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: CheckLevel::Ok, found: found.into(), remedy: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self { name, level: CheckLevel::Warn, found: found.into(), remedy: Some(remedy.to_owned()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self { name, level: CheckLevel::Fail, found: found.into(), remedy: Some(remedy.to_owned()) }
    }
}

/// Looks at the host by trying, not by guessing from versions: kernel, cgroups, overlay tier, user namespaces, seccomp,
/// disk limit. Needs no instance; makes and removes its own probes under `scratch`. `cgroup` is the one of version 2 that
/// sandboxes are configured to go beneath.
pub fn check_host(scratch: &Path, cgroup: Option<&Path>) -> Vec<HostCheck> {
    let mut checks = vec![check_kernel(), check_root(), check_cgroups(cgroup)];
    let mut random = [0; 8];
    // Without randomness the name is still one that only this probe uses.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let name = format!(".probe-{:016x}", u64::from_ne_bytes(random));
    let directory = scratch.join(&name);
    if let Err(error) = super::disk::make_private(&directory) {
        let found = format!("cannot write to {}: {error}", scratch.display());
        checks.push(HostCheck::fail(
            "data directory",
            found,
            "choose a data directory that root can write to",
        ));
        return checks;
    }
    checks.push(check_space(scratch));
    // A mount namespace and a filter of its own, both gone with the thread.
    let probed = std::thread::scope(|scope| scope.spawn(|| probe(&directory)).join());
    match probed {
        Ok(more) => checks.extend(more),
        Err(_) => checks.push(HostCheck::fail("sandboxes", "the probe broke off", "report this as a defect")),
    }
    if let Ok(parent) = rustix::fs::open(scratch, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        && let Err(error) = removal::remove_tree(parent.as_fd(), &name)
    {
        tracing::warn!(%error, "cannot remove the probe's directory");
    }
    checks
}

fn check_kernel() -> HostCheck {
    let uname = rustix::system::uname();
    let found = uname.release().to_string_lossy().into_owned();
    let version = admission::kernel_version();
    if version < KERNEL_MIN {
        let (major, minor) = KERNEL_MIN;
        return HostCheck::fail("kernel", found, &format!("use Linux {major}.{minor} or newer"));
    }
    match admission::layer_mapping_of(version) {
        LayerMapping::Copied => {
            HostCheck::warn("kernel", found, "Linux 5.19 or newer starts sandboxes without copying images")
        }
        LayerMapping::Attached | LayerMapping::Detached => HostCheck::ok("kernel", found),
    }
}

fn check_root() -> HostCheck {
    let remedy = "run as root, or as a service with all of root's capabilities";
    if !rustix::process::geteuid().is_root() {
        return HostCheck::fail("privileges", "not root", remedy);
    }
    let admin = rustix::thread::CapabilitySet::SYS_ADMIN;
    match rustix::thread::capabilities(None) {
        Ok(sets) if sets.effective.contains(admin) => HostCheck::ok("privileges", "root with CAP_SYS_ADMIN"),
        _ => HostCheck::fail("privileges", "root without CAP_SYS_ADMIN", remedy),
    }
}

fn check_cgroups(cgroup: Option<&Path>) -> HostCheck {
    let remedy = "boot with systemd.unified_cgroup_hierarchy=1, or run the service with Delegate=yes";
    let found = match cgroup_probe::find(cgroup) {
        Ok(found) => found,
        Err(error) => return HostCheck::fail("cgroups", error.to_string(), remedy),
    };
    for controller in cgroup_probe::CONTROLLERS {
        let unified = found.unified.as_ref().filter(|unified| unified.controllers.contains(controller));
        let Some(base) =
            unified.map(|unified| unified.base.as_path()).or_else(|| found.legacy_of(controller))
        else {
            let what = format!("{}; no controller {controller}", found.describe());
            return HostCheck::fail("cgroups", what, remedy);
        };
        let probe = base.join(format!("sandhaus-probe-{}", std::process::id()));
        let tried = fs_err::create_dir(&probe).and_then(|()| fs_err::remove_dir(&probe));
        if let Err(error) = tried {
            return HostCheck::fail("cgroups", format!("{}; {error}", found.describe()), remedy);
        }
    }
    HostCheck::ok("cgroups", found.describe())
}

fn check_space(scratch: &Path) -> HostCheck {
    match rustix::fs::statvfs(scratch) {
        Ok(status) => {
            let free = status.f_bavail.saturating_mul(status.f_frsize);
            let found = format!("{} MiB free in {}", free >> 20, scratch.display());
            if free < FREE_BYTES_WANTED {
                HostCheck::warn("disk space", found, "free some space or move the data directory")
            } else {
                HostCheck::ok("disk space", found)
            }
        }
        Err(error) => HostCheck::warn("disk space", error.to_string(), "check the data directory"),
    }
}

/// What needs a mount namespace. Runs in a thread of its own.
fn probe(directory: &Path) -> Vec<HostCheck> {
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    let private =
        sys::unshare(libc::CLONE_NEWNS).and_then(|()| Ok(rustix::mount::mount_change("/", downstream)?));
    if let Err(error) = private {
        let remedy = "run as root outside of a restricted container";
        return vec![HostCheck::fail("mount namespaces", error.to_string(), remedy)];
    }
    let mut checks = Vec::new();
    let (base, count) = (1 << 30, super::disk::IDS_PER_SANDBOX);
    match launcher::empty_namespace(&[(0, base, count)], &[(0, base, count)]) {
        Ok(namespace) => {
            checks.push(HostCheck::ok("user namespaces", "can be made, with id maps"));
            checks.push(check_overlay(directory, &namespace));
        }
        Err(error) => {
            let remedy =
                "raise user.max_user_namespaces; allow user namespaces in the host's security policy";
            checks.push(HostCheck::fail("user namespaces", error.to_string(), remedy));
        }
    }
    checks.push(check_disk_limit(directory));
    // Last: the filter stays with the thread.
    checks.push(check_filter());
    checks
}

fn check_overlay(directory: &Path, namespace: &OwnedFd) -> HostCheck {
    let ways = [
        (LayerMapping::Detached, "id-mapped layers by descriptor"),
        (LayerMapping::Attached, "id-mapped layers in the launcher's mount namespace"),
        (LayerMapping::Copied, "copied layers"),
    ];
    let mut reason = None;
    for (mapping, words) in ways {
        match try_overlay(directory, namespace, mapping) {
            Ok(()) if mapping == LayerMapping::Copied => {
                let remedy = "Linux 5.19 or newer and a data directory on ext4, xfs or btrfs start sandboxes without copying images";
                return HostCheck::warn("overlayfs", words, remedy);
            }
            Ok(()) => return HostCheck::ok("overlayfs", words),
            Err(error) => reason = Some(error),
        }
    }
    let found = reason.map(|error| error.to_string()).unwrap_or_default();
    HostCheck::fail(
        "overlayfs",
        found,
        "load the module overlay; put the data directory on ext4, xfs or btrfs",
    )
}

/// Stacks a writable directory over an id-mapped one, as a start does.
fn try_overlay(directory: &Path, namespace: &OwnedFd, mapping: LayerMapping) -> io::Result<()> {
    let attempt = directory.join(format!("{mapping:?}"));
    for name in ["lower", "upper", "work", mounting::ATTACH] {
        fs_err::create_dir_all(attempt.join(name))?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |name: &str| rustix::fs::open(attempt.join(name), flags, Mode::empty());
    let (upper, work) = (open("upper")?, open("work")?);
    let lower = match mapping {
        LayerMapping::Copied => open("lower")?,
        LayerMapping::Attached | LayerMapping::Detached => {
            let lower = mounting::copy_mount(CWD, attempt.join("lower"), Reach::One)?;
            let change = MountChange::Map(MountAttrFlags::empty(), namespace.as_fd());
            sys::change_mount(lower.as_fd(), change, Reach::One)?;
            lower
        }
    };
    let here = open(".")?;
    let attached = match mapping {
        LayerMapping::Attached => Some(Attached::new(&here, &lower)?),
        LayerMapping::Copied | LayerMapping::Detached => None,
    };
    let (lower_path, upper_path, work_path) =
        (mounting::magic_link(&lower), mounting::magic_link(&upper), mounting::magic_link(&work));
    let parameters = match mapping {
        LayerMapping::Detached => [
            Parameter::Descriptor("lowerdir+", lower.as_fd()),
            Parameter::Descriptor("upperdir", upper.as_fd()),
            Parameter::Descriptor("workdir", work.as_fd()),
        ],
        LayerMapping::Attached | LayerMapping::Copied => [
            Parameter::Text("lowerdir", &lower_path),
            Parameter::Text("upperdir", &upper_path),
            Parameter::Text("workdir", &work_path),
        ],
    };
    let overlay = mounting::new_file_system("overlay", &parameters, MountAttrFlags::empty())?;
    drop(attached);
    rustix::fs::mkdirat(overlay, "written", Mode::from_raw_mode(0o755))?;
    Ok(())
}

fn check_disk_limit(directory: &Path) -> HostCheck {
    let remedy = "install e2fsprogs and load the modules loop and ext4, or do without disk limits";
    let Some(way) = image_file::way() else {
        return HostCheck::warn("disk limit", "none: mkfs.ext4 or /dev/loop-control is missing", remedy);
    };
    let image = directory.join("probe.ext4");
    let tried = image_file::make(&directory.join("templates"), &image, DISK_PROBE_BYTES)
        .and_then(|()| loop_device::mount_image(&image));
    match tried {
        Ok(_) => HostCheck::ok("disk limit", way),
        Err(error) => HostCheck::warn("disk limit", format!("none: {error}"), remedy),
    }
}

/// Installs the very filter of all machines on this thread and makes a call that it refuses.
fn check_filter() -> HostCheck {
    let remedy = "use a kernel with CONFIG_SECCOMP_FILTER";
    let filters = Filters::compile();
    let filter = filters.of(Seccomp::Strict).expect("this level has one");
    if let Err(error) = sys::install_filter(filter) {
        return HostCheck::fail("seccomp", error.to_string(), remedy);
    }
    match sys::unshare(0) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => HostCheck::ok("seccomp", "filters work"),
        _ => HostCheck::fail("seccomp", "a filter has no effect", remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_remedy_unless_all_is_well_and_nothing_stays() {
        let scratch = tempfile::tempdir().expect("a directory");
        let checks = check_host(scratch.path(), None);
        for check in &checks {
            assert_eq!(check.remedy.is_none(), check.level == CheckLevel::Ok, "{check:?}");
            assert!(!check.found.is_empty(), "{check:?}");
        }
        let left = fs_err::read_dir(scratch.path()).expect("readable").count();
        assert_eq!(left, 0);
        // What the other tests of this crate run on must be found to work.
        assert!(checks.iter().all(|check| check.level != CheckLevel::Fail), "{checks:#?}");
    }
}
