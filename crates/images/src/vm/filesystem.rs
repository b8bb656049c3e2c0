//! From a directory to a file system on a disk, the same bytes for the same files.

use std::{
    ffi::OsStr,
    fs::File,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
};

use rustix::fs::{AtFlags, Timespec, Timestamps};

use super::{
    BUILD_TIME_S,
    tool::{DEBUGFS, MKE2FS, Tools},
};
use crate::{Error, Result};

/// Name of the configuration in the scratch folder that stands for the host's own.
pub(crate) const CONFIGURATION: &str = "mke2fs.conf";

/// What file systems are made of, whatever the host prefers.
const SETTINGS: &str = "\
[defaults]
\tbase_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
\tdefault_mntopts = acl,user_xattr
\tenable_periodic_fsck = 0
\tblocksize = 4096
\tinode_size = 256
\tinode_ratio = 16384
[fs_types]
\text4 = {
\t\tfeatures = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
\t}
";

/// What is random otherwise. A clone's file system has the id of its image; nothing mounts two of them beside each other.
const FILE_SYSTEM_ID: &str = "5a6e6448-6175-4000-8000-000000000001";
const HASH_SEED: &str = "5a6e6448-6175-4000-8000-000000000002";

/// What is added to the size of the files for inodes, tables and the journal, before a disk counts as too small.
const OVERHEAD_BYTES: u64 = 96 << 20;

/// A journal that a sandbox needs: small, since all of it is written once in a while and then lies in its overlay.
const JOURNAL_MIB: &str = "size=32";

/// Where ext file systems count their inodes.
const SUPERBLOCK: u64 = 1024;

/// Makes the file system of `tree` in the new file `disk` of the scratch folder, which is as large as said but for what
/// is empty.
pub(crate) fn make(tools: &Tools<'_>, tree: &Path, disk: &str, size_bytes: u64) -> Result<()> {
    let needed = content_bytes(tree)? + OVERHEAD_BYTES;
    if needed > size_bytes {
        return Err(Error::Source(format!(
            "its files need a disk of at least {needed} bytes, the disk has {size_bytes}; choose a larger one"
        )));
    }
    let configuration = tools.folder().join(CONFIGURATION);
    fs_err::write(&configuration, SETTINGS).map_err(Error::at(&configuration))?;
    let path = tools.folder().join(disk);
    let file = File::create_new(&path).map_err(Error::at(&path))?;
    file.set_len(size_bytes).map_err(Error::at(&path))?;
    drop(file);
    // Nothing is left for the guest to fill in later: each sandbox's overlay would grow by it.
    let options = format!("hash_seed={HASH_SEED},lazy_itable_init=0,lazy_journal_init=0,nodiscard");
    let mut arguments: Vec<&OsStr> = Vec::new();
    for argument in
        ["-q", "-F", "-t", "ext4", "-m", "1", "-U", FILE_SYSTEM_ID, "-E", &options, "-J", JOURNAL_MIB]
    {
        arguments.push(argument.as_ref());
    }
    let label = ["-L", "sandhaus", "-d"].map(OsStr::new);
    arguments.extend(label);
    arguments.push(tree.as_os_str());
    arguments.push(disk.as_ref());
    tools.run(MKE2FS, &arguments)?;
    forget_times(tools, disk)
}

/// Sets the times that say when this build ran: of access and of change, of every inode there is.
fn forget_times(tools: &Tools<'_>, disk: &str) -> Result<()> {
    let path = tools.folder().join(disk);
    let last = last_inode(&path)?;
    let mut commands = format!("set_current_time @{BUILD_TIME_S}\n");
    for inode in std::iter::once(2).chain(11..=last) {
        for field in ["atime", "ctime"] {
            commands.push_str(&format!("set_inode_field <{inode}> {field} @{BUILD_TIME_S}\n"));
        }
    }
    run_commands(tools, &commands, disk)
}

/// Lets `debugfs` work on a file system with these commands.
pub(crate) fn run_commands(tools: &Tools<'_>, commands: &str, disk: &str) -> Result<()> {
    let list = tools.folder().join("commands");
    fs_err::write(&list, commands).map_err(Error::at(&list))?;
    tools.run(DEBUGFS, &["-w", "-f", "commands", disk])?;
    fs_err::remove_file(&list).map_err(Error::at(&list))
}

/// The highest inode in use of a file system that was only ever written to: they are given out one after another.
fn last_inode(disk: &Path) -> Result<u32> {
    use std::os::unix::fs::FileExt as _;
    let file = File::open(disk).map_err(Error::at(disk))?;
    let mut counts = [0; 20];
    file.read_exact_at(&mut counts, SUPERBLOCK).map_err(Error::at(disk))?;
    let number = |at: usize| u32::from_le_bytes(counts[at..at + 4].try_into().expect("four bytes"));
    Ok(number(0).saturating_sub(number(16)))
}

/// About how many bytes a tree takes in a file system: whole blocks, and an inode each.
pub(crate) fn content_bytes(tree: &Path) -> Result<u64> {
    const BLOCK: u64 = 4096;
    const INODE: u64 = 256;
    let mut bytes = 0;
    walk(tree, &mut |_, found| {
        bytes += INODE;
        if found.is_dir() || found.is_file() {
            // Of a file with several names, each its part.
            bytes += found.len().next_multiple_of(BLOCK)
                / found.nlink().max(1).min(if found.is_file() { u64::MAX } else { 1 });
        }
        Ok(())
    })?;
    Ok(bytes)
}

/// The present as file systems tell it, later than of anything that was there before.
pub(crate) fn beginning(tools: &Tools<'_>) -> Result<(i64, i64)> {
    let path = tools.folder().join("began");
    let file = File::create_new(&path).map_err(Error::at(&path))?;
    let time = || {
        let found = file.metadata().map_err(Error::at(&path))?;
        Ok::<_, Error>((found.mtime(), found.mtime_nsec()))
    };
    let first = time()?;
    // Some milliseconds at most: the clock of file systems ticks no finer.
    loop {
        let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let now = Timestamps { last_access: now, last_modification: now };
        rustix::fs::futimens(&file, &now).map_err(Error::at(&path))?;
        let time = time()?;
        if time > first {
            return Ok(time);
        }
        std::thread::yield_now();
    }
}

/// Sets every time of a tree that is not before `began` to one that does not depend on when it was made.
pub(crate) fn settle_times(tree: &Path, began: (i64, i64)) -> Result<()> {
    let fixed = Timespec { tv_sec: BUILD_TIME_S, tv_nsec: 0 };
    let settle = |path: &Path, found: &std::fs::Metadata| {
        if (found.mtime(), found.mtime_nsec()) < began {
            return Ok(());
        }
        let times = Timestamps { last_access: fixed, last_modification: fixed };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(Error::at(path))
    };
    walk(tree, &mut |path, found| settle(path, found))?;
    settle(tree, &fs_err::symlink_metadata(tree).map_err(Error::at(tree))?)
}

/// Everything beneath a directory that nobody else writes to, links not followed; a directory after what is in it.
fn walk(directory: &Path, see: &mut dyn FnMut(&Path, &std::fs::Metadata) -> Result<()>) -> Result<()> {
    for name in crate::store::entries(directory)? {
        let path = directory.join(OsStr::from_bytes(name.as_bytes()));
        let found = fs_err::symlink_metadata(&path).map_err(Error::at(&path))?;
        if found.is_dir() {
            walk(&path, see)?;
        }
        see(&path, &found)?;
    }
    Ok(())
}
