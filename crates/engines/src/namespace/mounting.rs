//! Mounts as descriptors: made detached, changed, then attached by whoever owns the mount namespace.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
    path::Arg,
};

use super::sys::{self, Reach};

/// A parameter of a file system.
pub(super) enum Parameter<'a> {
    /// A bare word.
    Flag(&'a str),
    /// A word with a value.
    Text(&'a str, &'a str),
    /// A word with an open directory.
    Descriptor(&'a str, BorrowedFd<'a>),
}

/// Makes a file system and a mount of it that is attached nowhere.
pub(super) fn new_file_system(
    kind: &str,
    parameters: &[Parameter<'_>],
    flags: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for parameter in parameters {
        match *parameter {
            Parameter::Flag(key) => rustix::mount::fsconfig_set_flag(&context, key)?,
            Parameter::Text(key, value) => rustix::mount::fsconfig_set_string(&context, key, value)?,
            Parameter::Descriptor(key, value) => rustix::mount::fsconfig_set_fd(&context, key, value)?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// Copies the mount at a path as one that is attached nowhere.
pub(super) fn copy_mount(directory: impl AsFd, path: impl Arg, reach: Reach) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if reach == Reach::Tree {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(directory, path, flags)?)
}

/// Attaches a mount at a path of this mount namespace; a link at its end is not followed.
pub(super) fn attach(mount: impl AsFd, path: impl Arg) -> io::Result<()> {
    Ok(rustix::mount::move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Attaches a mount on an open directory or file of this mount namespace.
pub(super) fn attach_on(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// A path of what a descriptor stands for.
pub(crate) fn magic_link(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// The directory of the launcher's own on which mounts are attached for a moment.
pub(super) const ATTACH: &str = "attach";

/// A mount that is attached in the launcher's namespace as long as this lives. Before Linux 6.15 only attached mounts
/// can become layers or be copied; the overlay and the copies then live on their own.
pub(super) struct Attached<'a>(&'a OwnedFd);

impl<'a> Attached<'a> {
    /// Attaches `mount` on [`ATTACH`], over what lies there.
    pub(super) fn new(stage: &OwnedFd, mount: &'a OwnedFd) -> io::Result<Self> {
        let void = sys::open_beneath(stage.as_fd(), Path::new(ATTACH), OFlags::PATH | OFlags::DIRECTORY)?;
        attach_on(mount, void)?;
        Ok(Self(mount))
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(magic_link(self.0), UnmountFlags::DETACH) {
            tracing::warn!(%error, "cannot detach a mount; it goes with the launcher");
        }
    }
}

/// What an open thing is.
pub(super) fn kind_of(thing: impl AsFd) -> io::Result<FileType> {
    let status = rustix::fs::statat(thing, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(status.st_mode))
}
