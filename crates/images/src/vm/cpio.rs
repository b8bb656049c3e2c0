//! Archives as the kernel unpacks them for its initial file system: "newc" of cpio, uncompressed, the same bytes for the
//! same content.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Write},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
};

use crate::{Error, Result};

/// What the last entry is called.
const TRAILER: &str = "TRAILER!!!";

/// Most bytes of one file: the format counts them in eight hexadecimal digits.
const FILE_BYTES_MAX: u64 = u32::MAX as u64;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive being written.
#[derive(Debug)]
pub(crate) struct Cpio<W> {
    output: W,
    written: u64,
    entries: u32,
}

/// What an entry's header says besides its name and length.
#[derive(Debug, Clone, Copy)]
struct Header {
    number: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    time_s: u32,
}

impl<W: Write> Cpio<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output, written: 0, entries: 0 }
    }

    /// A directory of root's.
    pub(crate) fn directory(&mut self, path: &str, permissions: u32) -> Result<()> {
        let header = self.header(DIRECTORY | permissions);
        self.entry(header, path.as_bytes(), 0, &mut io::empty())
    }

    /// A file of root's.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<()> {
        let header = self.header(REGULAR | permissions);
        self.entry(header, path.as_bytes(), content.len() as u64, &mut &*content)
    }

    /// Everything beneath a directory that nobody else writes to, except the names at its top that `leave_out` has.
    /// Names in order; files with several names are one file in the archive too.
    pub(crate) fn tree(&mut self, directory: &Path, leave_out: &[&str]) -> Result<()> {
        self.beneath(directory, &mut Vec::new(), leave_out, &mut HashMap::new())
    }

    /// The end of the archive. Returns what it was written to.
    pub(crate) fn finish(mut self) -> Result<W> {
        let last = Header { number: 0, mode: 0, uid: 0, gid: 0, links: 1, time_s: 0 };
        self.entry(last, TRAILER.as_bytes(), 0, &mut io::empty())?;
        self.output.flush().map_err(failed)?;
        Ok(self.output)
    }

    fn beneath(
        &mut self,
        directory: &Path,
        path: &mut Vec<u8>,
        leave_out: &[&str],
        known: &mut HashMap<(u64, u64), u32>,
    ) -> Result<()> {
        let mut names = crate::store::entries(directory)?;
        names.sort();
        for name in names {
            let at_top = path.is_empty();
            if at_top && leave_out.iter().any(|left| name == **left) {
                continue;
            }
            let length = path.len();
            if !at_top {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let place = directory.join(&name);
            let found = fs_err::symlink_metadata(&place).map_err(Error::at(&place))?;
            let mut header = self.header(found.mode());
            (header.uid, header.gid) = (found.uid(), found.gid());
            header.time_s = u32::try_from(found.mtime()).unwrap_or(0);
            if found.is_dir() {
                self.entry(header, path, 0, &mut io::empty())?;
                self.beneath(&place, path, &[], known)?;
            } else if found.is_symlink() {
                let target = fs_err::read_link(&place).map_err(Error::at(&place))?;
                let target = target.as_os_str().as_bytes();
                header.mode = SYMLINK | 0o777;
                self.entry(header, path, target.len() as u64, &mut &*target)?;
            } else if found.is_file() {
                let mut length = found.len();
                if found.nlink() > 1 {
                    header.links = u32::try_from(found.nlink()).unwrap_or(u32::MAX);
                    match known.get(&(found.dev(), found.ino())) {
                        // The content came with the first name; the kernel makes a link of the others.
                        Some(number) => (header.number, length) = (*number, 0),
                        None => drop(known.insert((found.dev(), found.ino()), header.number)),
                    }
                }
                let file = File::open(&place).map_err(Error::at(&place))?;
                self.entry(header, path, length, &mut file.take(length))?;
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn header(&mut self, mode: u32) -> Header {
        self.entries += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        Header { number: self.entries, mode, uid: 0, gid: 0, links, time_s: 0 }
    }

    fn entry(&mut self, header: Header, path: &[u8], length: u64, content: &mut dyn io::Read) -> Result<()> {
        let Ok(size) = u32::try_from(length) else {
            return Err(Error::TooLarge { what: "a file in an initial file system", limit: FILE_BYTES_MAX });
        };
        let name_length = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let mut text = String::from("070701");
        let Header { number, mode, uid, gid, links, time_s } = header;
        // Number, mode, owner, links, time, size, the device it lay on, the device it is, name, checksum.
        for field in [number, mode, uid, gid, links, time_s, size, 0, 0, 0, 0, name_length, 0] {
            text.push_str(&format!("{field:08x}"));
        }
        self.write(text.as_bytes())?;
        self.write(path)?;
        self.write(&[0])?;
        self.pad()?;
        let mut counted = Counted { output: &mut self.output, count: 0 };
        let copied = io::copy(content, &mut counted).map_err(failed)?;
        self.written += copied;
        if copied != length {
            return Err(Error::Source(format!(
                "file {} changed while it was read",
                crate::root::shown(path)
            )));
        }
        self.pad()
    }

    fn pad(&mut self) -> Result<()> {
        let missing = usize::try_from(self.written.next_multiple_of(4) - self.written).unwrap_or(0);
        self.write(&[0; 3][..missing])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(failed)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

struct Counted<'a, W> {
    output: &'a mut W,
    count: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.output.write(buffer)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

fn failed(error: io::Error) -> Error {
    Error::at("initramfs")(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        std::fs::create_dir(top.join("bin")).unwrap();
        std::fs::write(top.join("bin/one"), "content").unwrap();
        std::fs::hard_link(top.join("bin/one"), top.join("bin/two")).unwrap();
        std::os::unix::fs::symlink("bin/one", top.join("link")).unwrap();
        std::fs::write(top.join("init"), "left out").unwrap();
        for path in ["bin/one", "bin"] {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(7);
            File::open(top.join(path)).unwrap().set_modified(time).unwrap();
        }
        let link = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 7, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 7, tv_nsec: 0 },
        };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, top.join("link"), &link, flags).unwrap();
        let mut archive = Cpio::new(Vec::new());
        archive.file("init", 0o755, b"#!").unwrap();
        archive.directory("modules", 0o755).unwrap();
        archive.tree(top, &["init"]).unwrap();
        archive.finish().unwrap()
    }

    /// Reads an archive back: name, mode, number, content.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let whole = bytes.len();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let digits = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (number, mode, size, name_length) =
                (field(0), field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_length - 1].to_vec()).unwrap();
            let start = (110 + name_length).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(whole % 4, 0);
                return entries;
            }
            entries.push((name, mode, number, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn an_archive_holds_what_the_kernel_is_to_find() {
        let entries = read(&packed());
        let names: Vec<&str> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["init", "modules", "bin", "bin/one", "bin/two", "link"]);
        assert_eq!((entries[0].1, &*entries[0].3), (0o100_755, &b"#!"[..]));
        assert_eq!(entries[3].3, b"content");
        assert_eq!((entries[4].2, entries[4].3.len()), (entries[3].2, 0), "a second name is no second file");
        assert_eq!((entries[5].1, &*entries[5].3), (0o120_777, &b"bin/one"[..]));
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        assert_eq!(packed(), packed());
    }

    #[test]
    fn cpio_reads_it() {
        let Some(path) = std::env::var_os("PATH") else { return };
        assert!(
            std::env::split_paths(&path).any(|folder| folder.join("cpio").exists()),
            "cpio is not installed"
        );
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("archive"), packed()).unwrap();
        let archive = File::open(folder.path().join("archive")).unwrap();
        let output = std::process::Command::new("cpio").arg("-tv").stdin(archive).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let listed = String::from_utf8(output.stdout).unwrap();
        assert!(listed.contains("bin/two") && listed.contains("link -> bin/one"), "{listed}");
    }
}
