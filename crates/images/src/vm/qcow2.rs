//! The format of disks, as far as images need it: what a file's header says, and files that hold only what differs from
//! the disk below them. Everything else is left to `qemu-img`.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use rustix::io::Errno;

use crate::{Error, Result};

/// What a file begins with.
const MAGIC: &[u8; 4] = b"QFI\xfb";

/// Bytes of the header that is read.
const HEADER_BYTES: usize = 112;

/// Bits of the features that whoever opens the file must know: dirty, corrupt, external data, compression, extended L2.
const FEATURE_CORRUPT: u64 = 1 << 1;
const FEATURE_EXTERNAL_DATA: u64 = 1 << 2;
const FEATURES_KNOWN: u64 = 0b1_1111;

/// Longest name of a backing file.
const BACKING_BYTES_MAX: u32 = 1023;

/// Largest disk: what the rest of this product gives to a machine at most.
pub(crate) const DISK_BYTES_MAX: u64 = 16 << 40;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Size of the disk as a machine sees it.
    pub(crate) size_bytes: u64,
    /// The file below, as the header names it. Never opened by that name.
    pub(crate) backing: Option<String>,
}

/// Reads the header of a file that nobody has checked. `None` if the file is of another format. Refused is whatever would
/// make a program read another file than this one, or that cannot be read without a secret.
pub(crate) fn header(path: &Path) -> Result<Option<Header>> {
    let file = File::open(path).map_err(Error::at(path))?;
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == *MAGIC => {}
        Ok(()) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(Error::at(path)(error)),
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(|_short| refused("its header is cut off"))?;
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let version = number(4);
    if !matches!(version, 2 | 3) {
        return Err(refused("its version is neither 2 nor 3"));
    }
    if number(32) != 0 {
        return Err(refused("it is encrypted"));
    }
    let size_bytes = long(24);
    if size_bytes == 0 || size_bytes > DISK_BYTES_MAX {
        return Err(refused("its disk is empty or larger than 16 TiB"));
    }
    if version == 3 {
        let features = long(72);
        if features & FEATURE_EXTERNAL_DATA != 0 {
            return Err(refused("it names an external data file"));
        }
        if features & FEATURE_CORRUPT != 0 {
            return Err(refused("it is marked as damaged"));
        }
        if features & !FEATURES_KNOWN != 0 {
            return Err(refused("it has features that are not known here"));
        }
    }
    let (backing_at, backing_length) = (long(8), number(16));
    if backing_at == 0 {
        return Ok(Some(Header { size_bytes, backing: None }));
    }
    if backing_length == 0 || backing_length > BACKING_BYTES_MAX {
        return Err(refused("the name of its backing file is empty or too long"));
    }
    let mut name = vec![0; usize::try_from(backing_length).unwrap_or(0)];
    file.read_exact_at(&mut name, backing_at).map_err(|_short| refused("its header is cut off"))?;
    Ok(Some(Header { size_bytes, backing: Some(String::from_utf8_lossy(&name).into_owned()) }))
}

fn refused(problem: &str) -> Error {
    Error::Source(format!("qcow2 file: {problem}"))
}

/// Cluster size of the files written here.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// Entries of one table of clusters, and of one block of reference counts.
const TABLE_ENTRIES: u64 = CLUSTER / 8;
const COUNTS_PER_BLOCK: u64 = CLUSTER / 2;

/// What marks an entry as the only one that points to its cluster.
const ONLY: u64 = 1 << 63;

/// A cluster that reads as zeroes, whatever lies below.
const ZEROES: u64 = 1;

/// Writes a file whose disk is that of `after`, with only what differs from `before` in it; what lies below is called
/// `backing`. Both are plain disks. Whole clusters, in order: the same disks give the same bytes.
pub(crate) fn write_difference(before: &Path, after: &Path, backing: &str, into: &Path) -> Result<()> {
    let old = File::open(before).map_err(Error::at(before))?;
    let new = File::open(after).map_err(Error::at(after))?;
    let size = new.metadata().map_err(Error::at(after))?.len();
    let old_size = old.metadata().map_err(Error::at(before))?.len();
    let tables = size.div_ceil(CLUSTER * TABLE_ENTRIES);
    let directory_clusters = (tables * 8).div_ceil(CLUSTER);
    // The header, then the directory of tables; counts of references at the end, when all is known.
    let mut writer = Difference {
        file: File::options().write(true).create_new(true).open(into).map_err(Error::at(into))?,
        next: 1 + directory_clusters,
        directory: vec![0; usize::try_from(tables).unwrap_or(0)],
        into,
    };
    let mut table = (u64::MAX, vec![0_u64; usize::try_from(TABLE_ENTRIES).unwrap_or(0)]);
    let mut at = 0;
    while let Some((start, end)) = next_data(&old, &new, at).map_err(Error::at(after))? {
        let mut cluster = start / CLUSTER;
        while cluster * CLUSTER < end.min(size) {
            let offset = cluster * CLUSTER;
            let (was, is) = (read(&old, offset, old_size), read(&new, offset, size));
            let (was, is) = (was.map_err(Error::at(before))?, is.map_err(Error::at(after))?);
            if was != is {
                if table.0 != cluster / TABLE_ENTRIES {
                    writer.table(&mut table)?;
                    table.0 = cluster / TABLE_ENTRIES;
                }
                let entry =
                    if is.iter().all(|byte| *byte == 0) { ZEROES } else { writer.cluster(&is)? | ONLY };
                table.1[usize::try_from(cluster % TABLE_ENTRIES).unwrap_or(0)] = entry;
            }
            cluster += 1;
        }
        at = cluster * CLUSTER;
        if at >= size {
            break;
        }
    }
    writer.table(&mut table)?;
    writer.finish(size, backing, directory_clusters)
}

/// The next stretch in which either disk may have anything but zeroes.
fn next_data(old: &File, new: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let mut found: Option<(u64, u64)> = None;
    for file in [old, new] {
        let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => continue,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?;
        found = match found {
            Some(other) if other.0 <= start => Some(other),
            _ => Some((start, end)),
        };
    }
    Ok(found)
}

/// A cluster of a plain disk; what lies behind its end reads as zeroes.
fn read(disk: &File, offset: u64, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(CLUSTER).unwrap_or(0)];
    let there = usize::try_from(size.saturating_sub(offset).min(CLUSTER)).unwrap_or(0);
    disk.read_exact_at(&mut bytes[..there], offset)?;
    Ok(bytes)
}

struct Difference<'a> {
    file: File,
    /// The next cluster that nothing has.
    next: u64,
    directory: Vec<u64>,
    into: &'a Path,
}

impl Difference<'_> {
    /// Writes a cluster and says where.
    fn cluster(&mut self, bytes: &[u8]) -> Result<u64> {
        let place = self.next * CLUSTER;
        self.file.write_all_at(bytes, place).map_err(Error::at(self.into))?;
        self.next += 1;
        Ok(place)
    }

    /// Writes a table, if it has anything, and empties it.
    fn table(&mut self, (index, entries): &mut (u64, Vec<u64>)) -> Result<()> {
        if *index != u64::MAX {
            let place = self.cluster(&big_endian(entries))?;
            self.directory[usize::try_from(*index).unwrap_or(0)] = place | ONLY;
            entries.fill(0);
        }
        Ok(())
    }

    fn finish(mut self, size: u64, backing: &str, directory_clusters: u64) -> Result<()> {
        let first = self.next;
        // Counts of references for all clusters, those that hold the counts too.
        let (mut blocks, mut table_clusters) = (0, 0);
        loop {
            let clusters = first + blocks + table_clusters;
            let wanted = (clusters.div_ceil(COUNTS_PER_BLOCK), (blocks * 8).div_ceil(CLUSTER).max(1));
            if wanted == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = wanted;
        }
        let clusters = first + blocks + table_clusters;
        for block in 0..blocks {
            let counted = clusters.saturating_sub(block * COUNTS_PER_BLOCK).min(COUNTS_PER_BLOCK);
            let mut counts = vec![0; usize::try_from(CLUSTER).unwrap_or(0)];
            for count in counts.chunks_exact_mut(2).take(usize::try_from(counted).unwrap_or(0)) {
                count.copy_from_slice(&1_u16.to_be_bytes());
            }
            self.cluster(&counts)?;
        }
        let table_at = self.next * CLUSTER;
        let places: Vec<u64> = (0..blocks).map(|block| (first + block) * CLUSTER).collect();
        let mut table = big_endian(&places);
        table.resize(usize::try_from(table_clusters * CLUSTER).unwrap_or(0), 0);
        self.file.write_all_at(&table, table_at).map_err(Error::at(self.into))?;
        self.file.write_all_at(&big_endian(&self.directory), CLUSTER).map_err(Error::at(self.into))?;
        let header = self.header(size, backing, directory_clusters, (table_at, table_clusters));
        self.file.write_all_at(&header, 0).map_err(Error::at(self.into))?;
        self.file.set_len(clusters * CLUSTER).map_err(Error::at(self.into))
    }

    fn header(&self, size: u64, backing: &str, directory_clusters: u64, counts: (u64, u64)) -> Vec<u8> {
        let mut header = Vec::new();
        let number = |value: u64| u32::try_from(value).unwrap_or(0).to_be_bytes();
        // The format of the file below, so that nobody guesses it, and the end of the extensions.
        let extensions =
            [&0xE279_2ACA_u32.to_be_bytes()[..], &5_u32.to_be_bytes(), b"qcow2\0\0\0", &[0; 8]].concat();
        let backing_at = HEADER_BYTES - 8 + extensions.len();
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&3_u32.to_be_bytes());
        header.extend_from_slice(&(backing_at as u64).to_be_bytes());
        header.extend_from_slice(&number(backing.len() as u64));
        header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
        header.extend_from_slice(&size.to_be_bytes());
        header.extend_from_slice(&0_u32.to_be_bytes());
        header.extend_from_slice(&number(self.directory.len() as u64));
        header.extend_from_slice(&CLUSTER.to_be_bytes());
        header.extend_from_slice(&counts.0.to_be_bytes());
        header.extend_from_slice(&number(counts.1));
        // No internal snapshots, no features; counts of 16 bits; 104 bytes of header.
        header.extend_from_slice(&[0; 12]);
        header.extend_from_slice(&[0; 24]);
        header.extend_from_slice(&4_u32.to_be_bytes());
        header.extend_from_slice(&104_u32.to_be_bytes());
        debug_assert_eq!(header.len(), HEADER_BYTES - 8);
        debug_assert!(directory_clusters > 0);
        header.extend_from_slice(&extensions);
        header.extend_from_slice(backing.as_bytes());
        header
    }
}

fn big_endian(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}
