//! Memory images: a machine's RAM in a file, and the sums by which a flipped bit in it is found.
//!
//! The RAM of a machine that started cold is a file without a name, which it writes to; that of a restored one is a memory
//! image mapped privately, and pages of the process's own where it wrote. Either is copied while the machine stands still, a
//! chunk at a time by several threads: read, laid over with the pages that were written, summed up, and written out. Pages
//! of zeros become holes.
//!
//! A memory image never changes: machines only ever map it privately. So one that was found whole stays so until its file
//! is touched or the host restarts, which [`Trust`] notes beside it; restoring need not read all of it each time.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::SeekFrom,
    io::Errno,
    process::{Pid, PidfdFlags, PidfdGetfdFlags},
};
use serde::{Deserialize, Serialize};

use super::disk::{if_there, open_read};

/// What is summed up, and copied, at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What is left out of a file if it is zero.
const PAGE_BYTES: usize = 4096;

/// Threads that copy or check one image.
const THREADS_MAX: usize = 8;

/// Largest RAM, in bytes.
pub(super) const MEMORY_BYTES_MAX: u64 = 1 << 40;

/// Bits of an entry of a process's page map: it has the page, has it swapped out, has it from a file.
const PAGE_PRESENT: u64 = 1 << 63;
const PAGE_SWAPPED: u64 = 1 << 62;
const PAGE_OF_FILE: u64 = 1 << 61;

/// Sums of a file's chunks. A sum of 32 bits finds every flip of up to 32 bits that lie together, and of others all but one
/// in four thousand million; a file that somebody changed on purpose it does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sums {
    /// Length of the file.
    pub(super) bytes: u64,
    /// CRC-32 of each chunk of a mebibyte, eight hexadecimal digits each, one after the other.
    crc32: String,
}

impl Sums {
    fn new(bytes: u64, sums: &[u32]) -> Self {
        use std::fmt::Write as _;
        let mut crc32 = String::with_capacity(sums.len() * 8);
        for sum in sums {
            write!(crc32, "{sum:08x}").expect("a string takes all");
        }
        Self { bytes, crc32 }
    }

    /// The sums; `None` if the text is not that of a file of this length.
    fn parse(&self) -> Option<Vec<u32>> {
        let count = usize::try_from(self.bytes.div_ceil(CHUNK_BYTES as u64)).ok()?;
        if self.bytes > MEMORY_BYTES_MAX
            || self.crc32.len() != count.checked_mul(8)?
            || !self.crc32.is_ascii()
        {
            return None;
        }
        let digits = |at: usize| u32::from_str_radix(&self.crc32[at * 8..][..8], 16).ok();
        (0..count).map(digits).collect()
    }

    /// Sums up a file.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let sums =
            in_chunks(bytes, || Ok(vec![0; CHUNK_BYTES]), |buffer, chunk| sum_of(file, buffer, chunk))?;
        Ok(Self::new(bytes, &sums))
    }

    /// Whether a file is what was summed up.
    pub(super) fn fit(&self, file: &File) -> io::Result<bool> {
        let Some(expected) = self.parse() else { return Ok(false) };
        if file.metadata()?.len() != self.bytes {
            return Ok(false);
        }
        let start = || Ok(vec![0; CHUNK_BYTES]);
        let found = in_chunks(self.bytes, start, |buffer, chunk| sum_of(file, buffer, chunk))?;
        Ok(found == expected)
    }
}

/// A part of a file.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    offset: u64,
    length: usize,
}

/// Does something with every chunk, by several threads, each with something of its own; gives what it gave, in order.
fn in_chunks<T>(
    bytes: u64,
    start: impl Fn() -> io::Result<T> + Sync,
    act: impl Fn(&mut T, Chunk) -> io::Result<u32> + Sync,
) -> io::Result<Vec<u32>> {
    let count = bytes.div_ceil(CHUNK_BYTES as u64);
    let next = AtomicU64::new(0);
    let work = || -> io::Result<Vec<(u64, u32)>> {
        let (mut own, mut done) = (start()?, Vec::new());
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok(done);
            }
            let offset = index * CHUNK_BYTES as u64;
            let length = usize::try_from(bytes - offset).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            done.push((index, act(&mut own, Chunk { offset, length })?));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = cores.min(THREADS_MAX).min(usize::try_from(count).unwrap_or(THREADS_MAX));
    let mut all = std::thread::scope(|scope| {
        // The first thread is this one.
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work()?;
        for other in others {
            all.extend(other.join().expect("copying does not panic")?);
        }
        Ok::<_, io::Error>(all)
    })?;
    all.sort_unstable_by_key(|(index, _)| *index);
    Ok(all.into_iter().map(|(_, sum)| sum).collect())
}

fn sum_of(file: &File, buffer: &mut [u8], chunk: Chunk) -> io::Result<u32> {
    let buffer = &mut buffer[..chunk.length];
    read_chunk(file, buffer, chunk.offset)?;
    Ok(crc32fast::hash(buffer))
}

/// Reads a part of a file; what lies in a hole is not asked for.
fn read_chunk(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<Content> {
    // The place in the file moves with it, which nobody minds: all that is read and written names its own.
    let data = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Some(data),
        Err(Errno::NXIO) => None,
        Err(error) => return Err(error.into()),
    };
    if data.is_none_or(|data| data >= offset + buffer.len() as u64) {
        buffer.fill(0);
        return Ok(Content::Hole);
    }
    file.read_exact_at(buffer, offset)?;
    Ok(Content::Data)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Hole,
    Data,
}

/// The RAM of a machine.
#[derive(Debug)]
pub(super) struct Ram {
    /// What is mapped.
    file: File,
    bytes: u64,
    pages: Pages,
}

/// Whose pages a machine writes to.
#[derive(Debug)]
enum Pages {
    /// The file's.
    Shared,
    /// Its own.
    Private {
        /// Where in the process the RAM begins.
        address: u64,
        /// What the process has where.
        map: File,
        /// All that it has.
        memory: File,
    },
}

impl Ram {
    /// Finds what is mapped at `address` of a QEMU. The descriptor is taken from the process itself, open as it has it: what
    /// it may not read is not read for it, and an image that has lost its name is found all the same.
    pub(super) fn find(process: Pid, address: u64, bytes: u64) -> io::Result<Self> {
        let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, what.to_owned());
        let directory = format!("/proc/{}", process.as_raw_nonzero());
        let maps = fs_err::read_to_string(format!("{directory}/maps"))?;
        let mapping =
            maps.lines().find_map(|line| Mapping::parse(line).filter(|found| found.start == address));
        let mapping = mapping.ok_or_else(|| missing("RAM is not mapped"))?;
        let held = rustix::process::pidfd_open(process, PidfdFlags::empty())?;
        let mut file = None;
        for entry in fs_err::read_dir(format!("{directory}/fd"))? {
            let entry = entry?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
                continue;
            };
            // A look from outside first: most are no files.
            let Ok(Some(status)) = if_there(fs_err::metadata(entry.path())) else { continue };
            if status.is_file() && status.ino() == mapping.inode && status.len() == bytes {
                let taken: OwnedFd = rustix::process::pidfd_getfd(&held, number, PidfdGetfdFlags::empty())?;
                file = Some(File::from(taken));
                break;
            }
        }
        let file = file.ok_or_else(|| missing("the file of the RAM is not open"))?;
        let status = file.metadata()?;
        if !status.is_file() || status.ino() != mapping.inode || status.len() != bytes {
            return Err(missing("the file of the RAM is another"));
        }
        let pages = if mapping.shared {
            Pages::Shared
        } else {
            let open =
                |name: &str| fs_err::File::open(format!("{directory}/{name}")).map(fs_err::File::into_file);
            Pages::Private { address, map: open("pagemap")?, memory: open("mem")? }
        };
        Ok(Self { file, bytes, pages })
    }

    /// Whether what the machine writes goes into the file.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.pages, Pages::Shared)
    }

    /// Bytes that its file takes on disk, about what a copy will take.
    pub(super) fn bytes_used(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks().saturating_mul(512).min(self.bytes))
    }

    /// Writes all of it into an empty file. The machine stands still.
    pub(super) fn copy_into(&self, into: &File) -> io::Result<Sums> {
        into.set_len(self.bytes)?;
        let start = || Ok((vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES / PAGE_BYTES * 8]));
        let sums = in_chunks(self.bytes, start, |(buffer, entries), chunk| {
            let buffer = &mut buffer[..chunk.length];
            let mut content = read_chunk(&self.file, buffer, chunk.offset)?;
            if let Pages::Private { address, map, memory } = &self.pages {
                let place = address + chunk.offset;
                let entries = &mut entries[..chunk.length / PAGE_BYTES * 8];
                map.read_exact_at(entries, place / PAGE_BYTES as u64 * 8)?;
                for (first, count) in runs(entries.chunks_exact(8).map(is_own)) {
                    let pages = &mut buffer[first * PAGE_BYTES..][..count * PAGE_BYTES];
                    memory.read_exact_at(pages, place + (first * PAGE_BYTES) as u64)?;
                    content = Content::Data;
                }
            }
            if content == Content::Data {
                write_pages(into, buffer, chunk.offset)?;
            }
            Ok(crc32fast::hash(buffer))
        })?;
        Ok(Sums::new(self.bytes, &sums))
    }
}

/// Whether a page, by its entry in the page map, is the process's own.
fn is_own(entry: &[u8]) -> bool {
    let entry = u64::from_ne_bytes(entry.try_into().expect("entries have eight bytes"));
    entry & PAGE_SWAPPED != 0 || (entry & PAGE_PRESENT != 0 && entry & PAGE_OF_FILE == 0)
}

/// Writes the pages that are not zero.
fn write_pages(into: &File, buffer: &[u8], offset: u64) -> io::Result<()> {
    static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    let filled = buffer.chunks(PAGE_BYTES).map(|page| page != &ZEROS[..page.len()]);
    for (first, count) in runs(filled) {
        let end = ((first + count) * PAGE_BYTES).min(buffer.len());
        into.write_all_at(&buffer[first * PAGE_BYTES..end], offset + (first * PAGE_BYTES) as u64)?;
    }
    Ok(())
}

/// Where `true` stands how often in a row.
fn runs(flags: impl Iterator<Item = bool>) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (index, _) in flags.enumerate().filter(|(_, flag)| *flag) {
        match found.last_mut() {
            Some((first, count)) if *first + *count == index => *count += 1,
            _ => found.push((index, 1)),
        }
    }
    found
}

/// A line of a process's list of mappings.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    shared: bool,
    inode: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, _) = words.next()?.split_once('-')?;
        let access = words.next()?;
        let (_offset, _device, inode) = (words.next()?, words.next()?, words.next()?);
        Some(Self {
            start: u64::from_str_radix(start, 16).ok()?,
            shared: access.as_bytes().get(3) == Some(&b's'),
            inode: inode.parse().ok()?,
        })
    }
}

/// What vouches for files without reading them: that they are the very ones that were found whole, since which neither
/// they nor the host's uptime have changed. Links to them in other directories are the same files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trust {
    boot: String,
    files: Vec<Seen>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// The file in a snapshot's directory that has it. It means nothing elsewhere.
const VERIFIED: &str = "verified";

/// Longest such file.
const TRUST_BYTES_MAX: u64 = 16 << 10;

impl Trust {
    /// What these files are now.
    pub(super) fn of<'a>(files: impl IntoIterator<Item = &'a File>) -> io::Result<Self> {
        let boot = fs_err::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let mut seen = Vec::new();
        for file in files {
            let status = file.metadata()?;
            let modified = (status.mtime(), status.mtime_nsec());
            seen.push(Seen { device: status.dev(), inode: status.ino(), bytes: status.len(), modified });
        }
        Ok(Self { boot, files: seen })
    }

    /// What was noted in a directory, if it can be read.
    pub(super) fn noted(directory: &Path) -> Option<Self> {
        let file = open_read(&directory.join(VERIFIED)).ok()?;
        let length = file.metadata().ok()?.len();
        if length > TRUST_BYTES_MAX {
            return None;
        }
        let mut text = vec![0; usize::try_from(length).ok()?];
        file.read_exact_at(&mut text, 0).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Notes it.
    pub(super) fn note(&self, directory: &Path) -> io::Result<()> {
        let aside = directory.join("verified.new");
        fs_err::write(&aside, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        fs_err::rename(aside, directory.join(VERIFIED))
    }
}

/// Bytes free where a directory lies.
pub(super) fn bytes_free(directory: impl AsFd) -> io::Result<u64> {
    let status = rustix::fs::fstatvfs(directory)?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file_of(bytes: u64, parts: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(bytes).expect("sized");
        for (offset, part) in parts {
            file.write_all_at(part, *offset).expect("written");
        }
        file
    }

    #[test]
    fn sums_fit_what_was_summed_up_and_nothing_else() {
        let mebibyte = CHUNK_BYTES as u64;
        for bytes in [0, 1, mebibyte - 1, mebibyte, 5 * mebibyte + 17] {
            let parts: &[(u64, &[u8])] =
                if bytes > 4 * mebibyte { &[(3 * mebibyte + 5, b"something")] } else { &[] };
            let file = file_of(bytes, parts);
            let sums = Sums::of(&file).expect("summed up");
            assert!(sums.fit(&file).expect("read"));
            assert!(!sums.fit(&file_of(bytes + 1, parts)).expect("read"), "it is longer");
            for offset in [0, bytes / 2, bytes.saturating_sub(1)] {
                if bytes == 0 {
                    continue;
                }
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset).expect("read");
                file.write_all_at(&[byte[0] ^ 0x80], offset).expect("written");
                assert!(!sums.fit(&file).expect("read"), "a bit is flipped at {offset} of {bytes}");
                file.write_all_at(&byte, offset).expect("written");
            }
            assert!(sums.fit(&file).expect("read"));
        }
    }

    #[test]
    fn sums_that_are_none_fit_nothing() {
        let file = file_of(10, &[]);
        for crc32 in ["", "0123456", "012345678", "0123456g", "ééé ", "0000000000000000"] {
            assert!(!Sums { bytes: 10, crc32: crc32.to_owned() }.fit(&file).expect("read"), "{crc32}");
        }
        assert_eq!(Sums { bytes: u64::MAX, crc32: String::new() }.parse(), None);
    }

    #[test]
    fn pages_of_zeros_become_holes() {
        let into = file_of(0, &[]);
        let mut buffer = vec![0; CHUNK_BYTES];
        buffer[5 * PAGE_BYTES] = 1;
        buffer[7 * PAGE_BYTES - 1] = 2;
        buffer[CHUNK_BYTES - 1] = 3;
        into.set_len(CHUNK_BYTES as u64).expect("sized");
        write_pages(&into, &buffer, 0).expect("written");
        let mut read = vec![9; CHUNK_BYTES];
        into.read_exact_at(&mut read, 0).expect("read");
        assert!(read == buffer);
        assert!(into.metadata().expect("a status").blocks() * 512 <= 4 * PAGE_BYTES as u64);
    }

    #[test]
    fn trust_ends_when_a_file_is_touched() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("memory");
        fs_err::write(&path, "what it is").expect("written");
        let open = || open_read(&path).expect("opened");
        assert_eq!(Trust::noted(directory.path()), None);
        Trust::of([&open()]).expect("seen").note(directory.path()).expect("noted");
        let trusted = || Trust::noted(directory.path()) == Trust::of([&open()]).ok();
        assert!(trusted());
        fs_err::hard_link(&path, directory.path().join("linked")).expect("linked");
        assert!(trusted(), "a link changes nothing");
        fs_err::write(&path, "what it was").expect("written");
        assert!(!trusted());
        fs_err::write(directory.path().join(VERIFIED), "no note").expect("written");
        assert_eq!(Trust::noted(directory.path()), None);
    }

    #[test]
    fn mappings_are_read() {
        let line = "7f9f83fff000-7f9f93fff000 rw-p 00000000 fe:00 10316114    /data/memory (deleted)";
        let read = Mapping { start: 0x7f9f_83ff_f000, shared: false, inode: 10_316_114 };
        assert_eq!(Mapping::parse(line), Some(read));
        assert!(Mapping::parse(&line.replace("rw-p", "rw-s")).expect("one").shared);
        assert_eq!(Mapping::parse("nonsense"), None);
    }

    proptest! {
        #[test]
        fn runs_are_what_was_set(flags in proptest::collection::vec(any::<bool>(), 0..300)) {
            let mut again = vec![false; flags.len()];
            for (first, count) in runs(flags.iter().copied()) {
                again[first..first + count].fill(true);
            }
            prop_assert_eq!(again, flags);
        }
    }
}
