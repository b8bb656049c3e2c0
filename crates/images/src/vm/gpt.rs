//! Where the root file system lies on a disk that somebody else partitioned.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use crate::{Error, Result};

const SECTOR: u64 = 512;

/// Most entries of a table that are read, and the size of one.
const ENTRIES_MAX: u32 = 256;
const ENTRY_BYTES_MIN: u32 = 128;
const ENTRY_BYTES_MAX: u32 = 4096;

/// Where an ext file system says what it is.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_MAGIC_AT: u64 = SUPERBLOCK + 56;
const SUPERBLOCK_MAGIC: [u8; 2] = [0x53, 0xef];

/// An ext file system on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExtFileSystem {
    /// Number of its partition; none: it is the whole disk.
    pub(crate) partition: Option<u32>,
    /// Where it begins, in bytes.
    pub(crate) start: u64,
    /// How long it may be, in bytes.
    pub(crate) length: u64,
}

impl ExtFileSystem {
    /// What a guest calls its device.
    pub(crate) fn device(&self) -> String {
        self.partition.map_or_else(|| "/dev/vda".to_owned(), |number| format!("/dev/vda{number}"))
    }
}

/// The ext file systems on a plain disk, the largest first.
pub(crate) fn ext_file_systems(disk: &Path) -> Result<Vec<ExtFileSystem>> {
    let file = File::open(disk).map_err(Error::at(disk))?;
    let size = file.metadata().map_err(Error::at(disk))?.len();
    if has_superblock(&file, 0) {
        return Ok(vec![ExtFileSystem { partition: None, start: 0, length: size }]);
    }
    let mut found = partitions(&file, size)?;
    found.retain(|partition| has_superblock(&file, partition.start));
    found.sort_by_key(|partition| std::cmp::Reverse(partition.length));
    Ok(found)
}

fn has_superblock(disk: &File, start: u64) -> bool {
    let mut magic = [0; 2];
    disk.read_exact_at(&mut magic, start + SUPERBLOCK_MAGIC_AT).is_ok() && magic == SUPERBLOCK_MAGIC
}

/// The partitions of a disk's table, in its order.
fn partitions(disk: &File, size: u64) -> Result<Vec<ExtFileSystem>> {
    let refused = |problem: &str| Error::Source(format!("disk: {problem}"));
    let mut header = [0; 92];
    let read = disk.read_exact_at(&mut header, SECTOR);
    if read.is_err() || !header.starts_with(b"EFI PART") {
        return Err(refused("it has neither an ext4 file system nor a GUID partition table"));
    }
    let number =
        |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let long =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (table, entries, entry_bytes) = (long(&header, 72), number(&header, 80), number(&header, 84));
    if !(ENTRY_BYTES_MIN..=ENTRY_BYTES_MAX).contains(&entry_bytes) || entries > ENTRIES_MAX {
        return Err(refused("its partition table is of a size that is not known here"));
    }
    let mut found = Vec::new();
    let mut entry = [0; 128];
    for index in 0..entries {
        let place = table
            .checked_mul(SECTOR)
            .and_then(|start| start.checked_add(u64::from(index) * u64::from(entry_bytes)))
            .ok_or_else(|| refused("its partition table lies behind its end"))?;
        disk.read_exact_at(&mut entry, place).map_err(|_short| refused("its partition table is cut off"))?;
        if entry[..16] == [0; 16] {
            continue;
        }
        let (first, last) = (long(&entry, 32), long(&entry, 40));
        let bounds = (first.checked_mul(SECTOR), last.checked_add(1).and_then(|end| end.checked_mul(SECTOR)));
        let (Some(start), Some(end)) = bounds else {
            return Err(refused("a partition lies behind its end"));
        };
        if start >= end || end > size {
            return Err(refused("a partition lies behind its end"));
        }
        found.push(ExtFileSystem { partition: Some(index + 1), start, length: end - start });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with these partitions, by their first and last sector.
    fn disk(sectors: u64, partitions: &[(u32, u64, u64)]) -> tempfile::NamedTempFile {
        let disk = tempfile::NamedTempFile::new().unwrap();
        let file = disk.as_file();
        file.set_len(sectors * SECTOR).unwrap();
        let mut header = [0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        file.write_all_at(&header, SECTOR).unwrap();
        for (number, first, last) in partitions {
            let mut entry = [0; 128];
            entry[0] = 1;
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            file.write_all_at(&entry, 2 * SECTOR + u64::from(number - 1) * 128).unwrap();
        }
        disk
    }

    fn mark(disk: &tempfile::NamedTempFile, sector: u64) {
        disk.as_file().write_all_at(&SUPERBLOCK_MAGIC, sector * SECTOR + SUPERBLOCK_MAGIC_AT).unwrap();
    }

    #[test]
    fn the_largest_ext_file_system_comes_first() {
        let disk = disk(4096, &[(1, 1000, 3999), (14, 100, 199), (15, 200, 900)]);
        mark(&disk, 1000);
        mark(&disk, 200);
        let found = ext_file_systems(disk.path()).unwrap();
        let numbers: Vec<_> = found.iter().map(|found| found.partition).collect();
        assert_eq!(numbers, [Some(1), Some(15)]);
        assert_eq!((found[0].start, found[0].length), (512_000, 3000 * 512));
        assert_eq!(found[0].device(), "/dev/vda1");
    }

    #[test]
    fn a_disk_may_be_one_file_system() {
        let disk = disk(4096, &[]);
        mark(&disk, 0);
        let found = ext_file_systems(disk.path()).unwrap();
        assert_eq!(found.iter().map(ExtFileSystem::device).collect::<Vec<_>>(), ["/dev/vda"]);
    }

    #[test]
    fn tables_that_lie_are_refused() {
        for partitions in [[(1, 4000, 5000)], [(1, 9, 8)], [(1, u64::MAX, u64::MAX)], [(1, u64::MAX / 2, 10)]]
        {
            let disk = disk(4096, &partitions);
            let refused = ext_file_systems(disk.path());
            assert!(matches!(refused, Err(Error::Source(_))), "{partitions:?} gave {refused:?}");
        }
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(ext_file_systems(empty.path()), Err(Error::Source(_))));
        let huge = disk(4096, &[]);
        huge.as_file().write_all_at(&u64::MAX.to_le_bytes(), SECTOR + 72).unwrap();
        assert!(matches!(ext_file_systems(huge.path()), Err(Error::Source(_))));
    }
}
