//! What holds a workspace's files: a directory, or an ext4 file system within a file, which is how a quota is kept.
//!
//! The file stands behind one loop device that all its users share, so that they see one file system: each sandbox's
//! mount and the server's own. The server's mount is attached nowhere. With the last of them the device goes too.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags},
};

use super::OWNER;
use crate::{loop_device::LoopDevice, removal};

/// The directory of a workspace without a quota.
const DIRECTORY: &str = "files";

/// The file of one with a quota.
const IMAGE: &str = "files.ext4";

/// Smallest quota: below, the file system itself takes most of it.
const QUOTA_BYTES_MIN: u64 = 16 << 20;

/// Quotas are rounded up to this.
const QUOTA_BYTES_STEP: u64 = 1 << 20;

/// What every workspace's mount forbids. Who may be who in it is the engine's part.
const FLAGS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOATIME);

/// The size that a quota comes to; `None` for no quota.
pub(super) fn quota(bytes: u64) -> Option<u64> {
    (bytes != 0).then(|| bytes.max(QUOTA_BYTES_MIN).div_ceil(QUOTA_BYTES_STEP) * QUOTA_BYTES_STEP)
}

/// Makes what holds the files of the workspace in `path`.
pub(super) fn make(path: &Path, quota_bytes: u64) -> io::Result<()> {
    let Some(bytes) = quota(quota_bytes) else {
        let files = path.join(DIRECTORY);
        rustix::fs::mkdir(&files, Mode::from_raw_mode(0o755))?;
        return give(open_directory(CWD, &files)?);
    };
    let image = path.join(IMAGE);
    let file = fs_err::File::create_new(&image)?;
    file.set_len(bytes)?;
    format(&image)?;
    // Every new ext4 has it; inside it would only puzzle.
    let root = mount_image(&image)?;
    match rustix::fs::unlinkat(&root, "lost+found", AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::syncfs(open_directory(&root, ".")?)?;
    drop(root);
    file.sync_all()
}

/// With a journal and barriers, unlike the disks of sandboxes: it outlives a power cut. No reserve, as nobody is root.
fn format(image: &Path) -> io::Result<()> {
    let owner = format!("lazy_itable_init=1,nodiscard,root_owner={OWNER}:{OWNER}");
    let status = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-E", &owner])
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("mkfs.ext4 ended with {status}"))) }
}

/// The files of a workspace, open.
#[derive(Debug)]
pub(super) struct Volume {
    root: OwnedFd,
    /// Bytes it may hold.
    pub(super) quota_bytes: Option<u64>,
}

impl Volume {
    /// Opens the files of the workspace in `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match open_directory(CWD, path.join(DIRECTORY)) {
            Ok(root) => Ok(Self { root, quota_bytes: None }),
            Err(Errno::NOENT) => {
                let image = path.join(IMAGE);
                let mount = mount_image(&image)?;
                Ok(Self {
                    // What `fsmount` gives can be looked beneath, not read.
                    root: open_directory(&mount, ".")?,
                    quota_bytes: Some(fs_err::metadata(image)?.len()),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The directory of all files.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// A mount of a workspace's files, attached nowhere, for a machine. `workspace` is [`MachineSpec::workspace`]. Ids are
/// as they lie on disk; mapping them is the caller's part.
///
/// [`MachineSpec::workspace`]: crate::engine::MachineSpec::workspace
pub fn mount(workspace: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match rustix::mount::open_tree(CWD, workspace.join(DIRECTORY), flags) {
        Ok(mount) => Ok(mount),
        Err(Errno::NOENT) => mount_image(&workspace.join(IMAGE)),
        Err(error) => Err(error.into()),
    }
}

fn mount_image(image: &Path) -> io::Result<OwnedFd> {
    let file = rustix::fs::open(image, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    // It stays open until it is mounted: the device clears itself with its last user.
    let device = LoopDevice::share(&file)?;
    let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", device.path())?;
    rustix::mount::fsconfig_set_flag(&context, "noinit_itable")?;
    // What is deleted inside shrinks the file outside.
    rustix::mount::fsconfig_set_flag(&context, "discard")?;
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, FLAGS)?)
}

/// Takes all files from the sandboxes that have the workspace in `path` open. Files that nobody has open go with it.
pub(super) fn empty(path: &Path) -> io::Result<()> {
    let image = path.join(IMAGE);
    let file =
        match rustix::fs::open(&image, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            // A directory is emptied when it is removed.
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
    if LoopDevice::find(&file)?.is_none() {
        return Ok(());
    }
    let mount = mount_image(&image)?;
    removal::take_and_empty(&open_directory(&mount, ".")?)
}

/// Bytes that a workspace takes of the host's disk, if that can be told without looking at too many files.
pub(super) fn used(path: &Path, entries_max: usize) -> io::Result<Option<u64>> {
    use std::os::unix::fs::MetadataExt;
    match fs_err::symlink_metadata(path.join(IMAGE)) {
        Ok(image) => return Ok(Some(image.blocks() * 512)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Usage { bytes: 0, entries_left: entries_max }.of(&open_directory(CWD, path.join(DIRECTORY))?)
}

/// How large a workspace may become, as it was made.
pub(super) fn quota_of(path: &Path) -> io::Result<Option<u64>> {
    match fs_err::symlink_metadata(path.join(IMAGE)) {
        Ok(image) => Ok(Some(image.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether quotas can be kept on this host.
pub(super) fn can_limit() -> bool {
    let formatter = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join("mkfs.ext4").is_file())
    });
    formatter && Path::new("/dev/loop-control").exists()
}

struct Usage {
    bytes: u64,
    entries_left: usize,
}

impl Usage {
    /// Counts beneath a directory, without recursion: how deep it goes is the sandbox's choice.
    fn of(mut self, root: &OwnedFd) -> io::Result<Option<u64>> {
        let mut waiting = vec![std::path::PathBuf::from(".")];
        while let Some(path) = waiting.pop() {
            let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = match rustix::fs::openat2(root, &path, flags, Mode::empty(), resolve) {
                Ok(directory) => directory,
                // It changes while it is looked at.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::AGAIN | Errno::NAMETOOLONG) => {
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for entry in rustix::fs::Dir::new(directory.try_clone()?)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                if self.entries_left == 0 {
                    return Ok(None);
                }
                self.entries_left -= 1;
                let Ok(status) = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                    continue;
                };
                self.bytes += u64::try_from(status.st_blocks).unwrap_or(0) * 512;
                if rustix::fs::FileType::from_raw_mode(status.st_mode).is_dir() {
                    use std::os::unix::ffi::OsStrExt;
                    waiting.push(path.join(std::ffi::OsStr::from_bytes(name.to_bytes())));
                }
            }
        }
        Ok(Some(self.bytes))
    }
}

/// Gives what is open to the sandbox's user.
pub(super) fn give(file: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fchown(file, Some(Uid::from_raw(OWNER)), Some(Gid::from_raw(OWNER)))?)
}

/// Opens a directory to look beneath it and to read it.
pub(super) fn open_directory(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}
