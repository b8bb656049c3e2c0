//! A log file that never grows beyond its share: at a size it is put aside, and only so many of those are kept, for so
//! long. Used on threads with the workload's rights alone: it lies where the workload can put something else.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::fs::{FileType, Mode, OFlags};

/// How much of a log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Bytes of one file.
    pub(crate) bytes_max: u64,
    /// Files put aside.
    pub(crate) files_max: u32,
    /// How long those stay.
    pub(crate) age_max: Duration,
}

/// The file, opened with the first line.
#[derive(Debug)]
pub(crate) struct RotatingFile {
    path: PathBuf,
    keep: Keep,
    open: Option<(File, u64)>,
}

impl RotatingFile {
    /// Nothing is touched yet.
    pub(crate) fn new(path: PathBuf, keep: Keep) -> Self {
        Self { path, keep, open: None }
    }

    /// Adds whole lines.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let (mut file, mut size) = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        if size > 0 && size + lines.len() as u64 > self.keep.bytes_max {
            drop(file);
            self.put_aside();
            (file, size) = self.begin()?;
        }
        file.write_all(lines)?;
        self.open = Some((file, size + lines.len() as u64));
        Ok(())
    }

    /// Never through a link, never into anything but a file, never waiting for one.
    fn begin(&self) -> io::Result<(File, u64)> {
        let flags = OFlags::CREATE
            | OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.path, flags, Mode::from_raw_mode(0o640))?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok((File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// What cannot be moved or removed stays: the next line goes on after it.
    fn put_aside(&self) {
        let _ = fs::remove_file(self.aside(self.keep.files_max.max(1)));
        for number in (1..self.keep.files_max).rev() {
            let _ = fs::rename(self.aside(number), self.aside(number + 1));
        }
        let _ = match self.keep.files_max {
            0 => fs::remove_file(&self.path),
            _ => fs::rename(&self.path, self.aside(1)),
        };
        let oldest = SystemTime::now().checked_sub(self.keep.age_max);
        for number in 1..=self.keep.files_max {
            let written = fs::symlink_metadata(self.aside(number)).and_then(|stat| stat.modified());
            if written.is_ok_and(|written| oldest.is_some_and(|oldest| written < oldest)) {
                let _ = fs::remove_file(self.aside(number));
            }
        }
    }

    fn aside(&self, number: u32) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.parent().unwrap_or(Path::new("/")).join(format!("{name}.{number}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_share_and_no_more() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("log");
        let keep = Keep { bytes_max: 10, files_max: 2, age_max: Duration::from_secs(3600) };
        let mut log = RotatingFile::new(path.clone(), keep);
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n", "a line that is longer\n", "last\n"] {
            log.append(line.as_bytes()).expect("appends");
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(read("log").as_deref(), Some("last\n"));
        assert_eq!(read("log.1").as_deref(), Some("a line that is longer\n"));
        assert_eq!(read("log.2").as_deref(), Some("four\nfive\n"));
        assert_eq!(read("log.3"), None);
        let old = SystemTime::now() - Duration::from_secs(7200);
        File::options()
            .append(true)
            .open(folder.path().join("log.1"))
            .and_then(|file| file.set_modified(old))
            .expect("ages");
        let mut log = RotatingFile::new(path, keep);
        log.append(b"after a restart\n").expect("appends");
        assert_eq!(read("log.2"), None, "what is too old goes");
        assert_eq!(read("log").as_deref(), Some("after a restart\n"));
    }

    #[test]
    fn a_log_is_no_way_to_other_files() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("log");
        let keep = Keep { bytes_max: 10, files_max: 2, age_max: Duration::from_secs(1) };
        fs::write(folder.path().join("secret"), "kept").expect("write");
        std::os::unix::fs::symlink("secret", &path).expect("link");
        RotatingFile::new(path.clone(), keep).append(b"line\n").expect_err("a link");
        fs::remove_file(&path).expect("remove");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .expect("a pipe");
        RotatingFile::new(path, keep).append(b"line\n").expect_err("a pipe");
        assert_eq!(fs::read(folder.path().join("secret")).expect("read"), b"kept");
    }
}
