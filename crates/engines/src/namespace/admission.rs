//! From the domain's words to the launcher's: checks of a machine's description, its boot document, and what a failed
//! launch means.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{MemfdFlags, Mode, OFlags};
use sandhaus_protocol::boot;
use sandhaus_sandbox::engine::{EngineError, EngineResult, MachineSpec};

use super::{
    NamespaceConfig, disk,
    launcher_client::LaunchError,
    steps::{ChildStep, LaunchStep, Step},
    wire::{LaunchBind, LaunchMount, LayerMapping},
};

/// Most layers of an image.
pub(super) const LAYERS_MAX: usize = 128;

/// Most views of the host in an image.
pub(super) const BINDS_MAX: usize = 64;

/// Most directories of the host shown at a user's wish.
pub(super) const MOUNTS_MAX: usize = 64;

/// Longest host name, the kernel's own limit.
const HOSTNAME_BYTES_MAX: usize = 64;

/// Where nothing of the host's may be shown: the machine's own places lie there.
const RESERVED_TARGETS: &[&str] = &["/proc", "/sys", "/dev"];

/// How layers get a machine's ids on this kernel. Trying is the launcher's part: what fails is copied.
pub(super) fn layer_mapping() -> LayerMapping {
    layer_mapping_of(kernel_version())
}

/// The same for a kernel of some version.
pub(super) fn layer_mapping_of(kernel: (u32, u32)) -> LayerMapping {
    if kernel >= (6, 15) {
        LayerMapping::Detached
    } else if kernel >= (5, 19) {
        LayerMapping::Attached
    } else {
        LayerMapping::Copied
    }
}

/// Major and minor version of the running kernel.
pub(super) fn kernel_version() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers =
        release.split(|character: char| !character.is_ascii_digit()).map(|text| text.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Puts the agent's executable where machines start it from: to be executed by all, read by none, so that inside it
/// cannot be looked into.
pub(super) fn install_agent(config: &NamespaceConfig) -> EngineResult<OwnedFd> {
    let host = |error: io::Error| disk::failure("install agent", error);
    let path = config.agent_dir.join(config.agent_digest);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    disk::make_private(&config.agent_dir).map_err(host)?;
    let whole = fs_err::symlink_metadata(&path).is_ok_and(|status| status.len() == config.agent.len() as u64);
    if !whole {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| host(error.into()))?;
        let fresh = config.agent_dir.join(format!(".{:016x}", u64::from_ne_bytes(random)));
        write_agent(&fresh, config.agent).and_then(|()| fs_err::rename(&fresh, &path)).map_err(host)?;
    }
    rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| host(error.into()))
}

fn write_agent(path: &Path, agent: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut file = fs_err::File::create_new(path)?;
    file.write_all(agent)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o711))
}

/// Refuses what cannot be a machine, before anything is made.
pub(super) fn check(spec: &MachineSpec) -> EngineResult<()> {
    let invalid = |message: String| Err(EngineError::Invalid(message));
    let name = &spec.hostname;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if name.is_empty() || name.len() > HOSTNAME_BYTES_MAX || !name.bytes().all(plain) {
        return invalid("the host name must have 1 to 64 letters, digits, dots and dashes".to_owned());
    }
    if spec.tree.disk.is_some() {
        return invalid("the image is a disk of a virtual machine: it needs another engine".to_owned());
    }
    if spec.tree.layers.is_empty() || spec.tree.layers.len() > LAYERS_MAX {
        return invalid(format!("an image must have 1 to {LAYERS_MAX} layers"));
    }
    if spec.tree.binds.len() > BINDS_MAX {
        return invalid(format!("an image may have at most {BINDS_MAX} views of the host"));
    }
    if spec.mounts.len() > MOUNTS_MAX {
        return invalid(format!("at most {MOUNTS_MAX} mounts"));
    }
    for mount in &spec.mounts {
        if !mount.source.is_absolute() {
            return invalid(format!("mount source {} is not absolute", mount.source.display()));
        }
        if !is_plain(Path::new(&mount.target))
            || RESERVED_TARGETS.iter().any(|reserved| lies_in(&mount.target, reserved))
        {
            return invalid(format!("mount target {} is not allowed", mount.target));
        }
    }
    Ok(())
}

/// Absolute, below the root, and without a way up.
fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    components.next() == Some(Component::RootDir)
        && path.file_name().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
}

fn lies_in(path: &str, directory: &str) -> bool {
    Path::new(path).starts_with(directory)
}

/// The image's views of the host.
pub(super) fn binds(spec: &MachineSpec) -> Vec<LaunchBind> {
    let binds = spec.tree.binds.iter();
    binds.map(|bind| LaunchBind { source: bind.source.clone(), target: bind.target.clone() }).collect()
}

/// The user's.
pub(super) fn mounts(spec: &MachineSpec) -> Vec<LaunchMount> {
    spec.mounts
        .iter()
        .map(|mount| LaunchMount {
            source: mount.source.clone(),
            target: PathBuf::from(&mount.target),
            access: mount.access,
        })
        .collect()
}

/// The agent's boot document, ready to be read, in memory: nothing of it shows in argv, environment or files.
pub(super) fn boot_document(spec: &MachineSpec) -> EngineResult<OwnedFd> {
    let host = |error: io::Error| disk::failure("write boot document", error);
    let config = spec.boot_config();
    let bytes = serde_json::to_vec(&config).map_err(|error| host(error.into()))?;
    if bytes.len() > boot::CONFIG_BYTES_MAX {
        return Err(EngineError::Invalid("environment and entry point are too long".to_owned()));
    }
    let document =
        rustix::fs::memfd_create("boot", MemfdFlags::CLOEXEC).map_err(|error| host(error.into()))?;
    let mut file = std::fs::File::from(document);
    file.write_all(&bytes).and_then(|()| io::Seek::rewind(&mut file)).map_err(host)?;
    Ok(file.into())
}

/// What a failed launch means to whoever asked for it.
pub(super) fn explain(error: LaunchError, spec: &MachineSpec) -> EngineError {
    let failure = match error {
        LaunchError::Failed(failure) => failure,
        LaunchError::TooLarge => {
            return EngineError::Invalid("the paths of image and mounts are too long".to_owned());
        }
        LaunchError::Ended | LaunchError::Unreachable(_) => {
            return EngineError::host("reach launcher", error);
        }
    };
    let at = |area: &str, step: &str| failure.area == area && failure.step == step;
    let subject = failure.subject.as_deref().unwrap_or("");
    if at(LaunchStep::AREA, LaunchStep::Mounts.name()) {
        let source =
            spec.mounts.iter().find(|mount| mount.target == subject).map(|mount| mount.source.display());
        let source = source.map(|source| source.to_string()).unwrap_or_default();
        match failure.errno {
            libc::ENOENT | libc::ENOTDIR => {
                return EngineError::Invalid(format!("mount source {source} does not exist"));
            }
            libc::EINVAL => {
                let message = format!("mount source {source} lies on a file system that cannot map owners");
                return EngineError::Invalid(message);
            }
            _ => {}
        }
    }
    if at(LaunchStep::AREA, LaunchStep::Workspace.name()) && failure.errno == libc::EINVAL {
        let message = "workspaces lie on a file system that cannot map owners; put data_dir on ext4, xfs or btrfs, or \
                       set workspace.quota_mb, which gives each a file system of its own";
        return EngineError::Invalid(message.to_owned());
    }
    if at(ChildStep::AREA, ChildStep::Mounts.name()) {
        let reason = io::Error::from_raw_os_error(failure.errno);
        return EngineError::Invalid(format!("mount target {subject} cannot be made: {reason}"));
    }
    match failure.errno {
        libc::ENOSPC => EngineError::Exhausted("disk space".to_owned()),
        libc::ENOMEM => EngineError::Exhausted("memory".to_owned()),
        libc::EMFILE | libc::ENFILE => EngineError::Exhausted("open files".to_owned()),
        libc::EAGAIN => EngineError::Exhausted("processes".to_owned()),
        libc::ECHILD if spec.resources.memory_bytes != 0 => EngineError::Invalid(
            "the machine ended before it was up; its memory limit may be too low".to_owned(),
        ),
        _ => {
            let what = format!("start machine ({} {})", failure.area, failure.step);
            EngineError::host(what, failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_targets_stay_below_the_root_and_off_the_machines_own_places() {
        for target in ["/a", "/a/b", "/devices", "/data dir"] {
            assert!(is_plain(Path::new(target)), "{target}");
        }
        for target in ["/", "a", "/a/../b", "/..", ""] {
            assert!(!is_plain(Path::new(target)), "{target}");
        }
        assert!(lies_in("/proc/self", "/proc") && lies_in("/dev", "/dev") && !lies_in("/devices", "/dev"));
    }

    #[test]
    fn each_kernel_gets_its_way() {
        assert_eq!(layer_mapping_of((6, 18)), LayerMapping::Detached);
        assert_eq!(layer_mapping_of((6, 15)), LayerMapping::Detached);
        assert_eq!(layer_mapping_of((6, 1)), LayerMapping::Attached);
        assert_eq!(layer_mapping_of((5, 19)), LayerMapping::Attached);
        assert_eq!(layer_mapping_of((5, 15)), LayerMapping::Copied);
        assert!(kernel_version() >= (5, 0));
    }
}
