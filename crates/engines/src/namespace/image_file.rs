//! Size-limited disks: sparse copies of one ext4 file per size, made ready once.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
};

use super::sparse;

/// Smallest size-limited disk: below, the file system itself takes most of it.
const BYTES_MIN: u64 = 16 << 20;

/// Sizes are rounded up to this, so that a few templates serve all.
const BYTES_STEP: u64 = 1 << 20;

/// How disks are limited here, in words for people; `None` where they cannot be.
pub(super) fn way() -> Option<&'static str> {
    let formatter = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join("mkfs.ext4").is_file())
    });
    (formatter && Path::new("/dev/loop-control").exists()).then_some("ext4 in sparse files on loop devices")
}

/// The size that a limit of `bytes` comes to; `None` for no limit.
pub(super) fn size(bytes: u64) -> Option<u64> {
    (bytes != 0).then(|| bytes.max(BYTES_MIN).div_ceil(BYTES_STEP) * BYTES_STEP)
}

/// Makes a disk file of `bytes` at `path`, from a template under `templates`.
pub(super) fn make(templates: &Path, path: &Path, bytes: u64) -> io::Result<()> {
    let bytes = size(bytes).ok_or(io::ErrorKind::InvalidInput)?;
    let template = templates.join(format!("{bytes}.ext4"));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let source = match rustix::fs::open(&template, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            format(templates, &template, bytes)?;
            rustix::fs::open(&template, flags, Mode::empty())?
        }
        opened => opened?,
    };
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600))?;
    sparse::copy(&source, &copy, bytes)
}

/// Makes a template. Several at once end with one of them.
fn format(templates: &Path, template: &Path, bytes: u64) -> io::Result<()> {
    super::disk::make_private(templates)?;
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let fresh = templates.join(format!(".{:016x}", u64::from_ne_bytes(random)));
    let file = fs_err::File::create_new(&fresh)?;
    file.set_len(bytes)?;
    drop(file);
    // No journal: the disk is as good as the host's page cache, and lost with it. No reserve, as nobody is root.
    let status = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E"])
        .arg("lazy_itable_init=1,nodiscard,root_owner=0:0")
        .arg(&fresh)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let made = match status {
        Ok(status) if status.success() => Ok(fs_err::rename(&fresh, template)?),
        Ok(status) => Err(io::Error::other(format!("mkfs.ext4 ended with {status}"))),
        Err(error) => Err(error),
    };
    if made.is_err() {
        // Already renamed, or worth no second error.
        let _ = fs_err::remove_file(&fresh);
    }
    made
}
