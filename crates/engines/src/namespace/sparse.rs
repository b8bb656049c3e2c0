//! Copies of files that share their content where the file system can, and keep their holes where it cannot.

use std::{io, os::fd::OwnedFd};

use rustix::{fs::SeekFrom, io::Errno};

/// Bytes copied by one call.
const COPY_BYTES_MAX: usize = 1 << 30;

/// Copies `bytes` of `source` into `copy`, which is empty.
pub(super) fn copy(source: &OwnedFd, copy: &OwnedFd, bytes: u64) -> io::Result<()> {
    if bytes == 0 || rustix::fs::ioctl_ficlone(copy, source).is_ok() {
        return Ok(());
    }
    rustix::fs::ftruncate(copy, bytes)?;
    let mut at = 0;
    while at < bytes {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?.min(bytes);
        extent(source, copy, start, end)?;
        at = end;
    }
    Ok(())
}

fn extent(source: &OwnedFd, copy: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(COPY_BYTES_MAX);
        let (mut from, mut to) = (at, at);
        let copied = match rustix::fs::copy_file_range(source, Some(&mut from), copy, Some(&mut to), length) {
            // From one file system to another of its kind the kernel only sends.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                rustix::fs::seek(copy, SeekFrom::Start(at))?;
                rustix::fs::sendfile(copy, source, Some(&mut from), length)?
            }
            copied => copied?,
        };
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += copied as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    /// In memory there is no sharing, so it goes the long way.
    #[test]
    fn holes_stay_holes() {
        const BYTES: u64 = 64 << 20;
        for (from, to) in [("/dev/shm", "/dev/shm"), ("/tmp", "/tmp"), ("/dev/shm", "/tmp")] {
            let (from, to) =
                (tempfile::tempfile_in(from).expect("made"), tempfile::tempfile_in(to).expect("made"));
            from.set_len(BYTES).expect("sized");
            from.write_all_at(b"begin", 4096).expect("written");
            from.write_all_at(b"end", BYTES - 3).expect("written");
            let (source, target) = (from.into(), to.try_clone().expect("a copy").into());
            copy(&source, &target, BYTES).expect("copied");
            let status = to.metadata().expect("there");
            assert_eq!(status.len(), BYTES);
            assert!(status.blocks() < 1024, "{} blocks", status.blocks());
            let mut text = [0; 5];
            to.read_exact_at(&mut text, 4096).expect("read");
            assert_eq!(&text, b"begin");
            to.read_exact_at(&mut text[..3], BYTES - 3).expect("read");
            assert_eq!(&text[..3], b"end");
        }
    }
}
