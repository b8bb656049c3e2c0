//! Disks within files: a loop device that goes with its last user, and the ext4 file system on it as a mount.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{Mode, OFlags},
    mount::MountAttrFlags,
};
use sandhaus_sandbox::loop_device::LoopDevice;

use super::mounting::{self, Parameter};

/// Mounts the ext4 file system in `image`, attached nowhere. Device and mount last as long as somebody uses them.
pub(super) fn mount_image(image: &Path) -> io::Result<OwnedFd> {
    mount(&LoopDevice::attach(&open(image)?)?)
}

/// The same where a machine may have it mounted already: two devices would be two file systems in one file.
pub(super) fn share_image(image: &Path) -> io::Result<OwnedFd> {
    mount(&LoopDevice::share(&open(image)?)?)
}

fn open(image: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(image, flags, Mode::empty())?)
}

/// The device has to stay open until it is mounted: it clears itself with its last user.
fn mount(device: &LoopDevice) -> io::Result<OwnedFd> {
    mounting::new_file_system(
        "ext4",
        &[
            Parameter::Text("source", device.path()),
            Parameter::Flag("noinit_itable"),
            // What is deleted inside shrinks the file outside.
            Parameter::Flag("discard"),
            // Nothing here outlives a power cut by promise; without this the end of a machine waits for the disk.
            Parameter::Flag("nobarrier"),
        ],
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME,
    )
}
