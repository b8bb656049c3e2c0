//! A disk as the launcher opens it: where the writable files of a machine lie, in a directory or in a file system
//! within a file.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{MountAttrFlags, UnmountFlags},
};

use super::{
    disk::{Layout, UPPER, WORK, WORKSPACE},
    loop_device, mounting, network, removal,
    sys::{self, MountChange, Reach},
    wire::{DiskPlace, LaunchRequest, LayerMapping},
};

/// An open disk.
pub(super) struct Place {
    /// The machine's own layer.
    pub(super) upper: OwnedFd,
    /// The overlay's own directory beside it, fresh for each start.
    pub(super) work: OwnedFd,
    directory: Directory,
}

/// The directory that holds it all; the root of a mount where the disk is a file.
struct Directory {
    descriptor: OwnedFd,
    attached: bool,
}

impl Place {
    /// Opens the disk of a request.
    pub(super) fn open(request: &LaunchRequest, stage: &OwnedFd) -> io::Result<Self> {
        let directory = match &request.disk {
            // As a mount of its own its root is the disk: `/proc/mounts` inside does not tell where it lies outside.
            DiskPlace::Directory(path) if request.mapping == LayerMapping::Detached => {
                Directory { descriptor: mounting::copy_mount(CWD, path, Reach::One)?, attached: false }
            }
            DiskPlace::Directory(path) => Directory {
                descriptor: rustix::fs::openat(CWD, path, FLAGS, Mode::empty())?,
                attached: false,
            },
            DiskPlace::Image(path) => {
                let directory = Directory::mount(path, request.mapping, stage)?;
                let workload = request.base + request.workload;
                Layout { base: request.base, workload, hostname: &request.hostname }
                    .lay(directory.descriptor.as_fd())?;
                directory
            }
        };
        let root = &directory.descriptor;
        let mode = Mode::from_raw_mode(0o755);
        match rustix::fs::mkdirat(root, WORK, mode) {
            // An earlier start used it; the kernel refuses one that a volatile overlay used.
            Err(Errno::EXIST) => {
                removal::remove_tree(root.as_fd(), WORK)?;
                rustix::fs::mkdirat(root, WORK, mode)?;
            }
            made => made?,
        }
        let upper = rustix::fs::openat(root, UPPER, FLAGS, Mode::empty())?;
        network::write_resolv_conf(upper.as_fd(), &request.resolv_conf, request.base)?;
        let work = rustix::fs::openat(root, WORK, FLAGS, Mode::empty())?;
        Ok(Self { upper, work, directory })
    }

    /// The workspace as a mount of its own.
    pub(super) fn workspace_mount(&self) -> io::Result<OwnedFd> {
        let mount = mounting::copy_mount(&self.directory.descriptor, WORKSPACE, Reach::One)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        sys::change_mount(mount.as_fd(), MountChange::Flags(flags), Reach::One)?;
        Ok(mount)
    }
}

const FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Directory {
    fn mount(image: &Path, mapping: LayerMapping, stage: &OwnedFd) -> io::Result<Self> {
        let descriptor = loop_device::mount_image(image)?;
        if mapping == LayerMapping::Detached {
            return Ok(Self { descriptor, attached: false });
        }
        // Before Linux 6.15 only attached mounts can be layers or be copied.
        let void =
            sys::open_beneath(stage.as_fd(), Path::new(mounting::ATTACH), OFlags::PATH | OFlags::DIRECTORY)?;
        mounting::attach_on(&descriptor, void)?;
        Ok(Self { descriptor, attached: true })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.attached
            && let Err(error) =
                rustix::mount::unmount(mounting::magic_link(&self.descriptor), UnmountFlags::DETACH)
        {
            tracing::warn!(%error, "cannot detach a disk; it goes with the launcher");
        }
    }
}
