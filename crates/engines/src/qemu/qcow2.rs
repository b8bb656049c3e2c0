//! qcow2 files: reading their headers without trust, and writing an empty one over another.
//!
//! Writing one is on the way of every start of a sandbox, so it is done here, in a few system calls; what takes apart or puts
//! together whole files is `qemu-img`'s work ([`super::image_tool`]).
//!
//! ```text
//!   cluster 0        header, extensions, name of the file below
//!   cluster 1        table of reference counts: one entry
//!   cluster 2        block of reference counts: one for each of these clusters
//!   cluster 3…       first level of the map of clusters, all zero: nothing is here, ask below
//! ```

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
};

/// What a qcow2 file begins with.
const MAGIC: u32 = 0x5146_49fb;

/// Clusters of the files that are written here, as a power of two: 64 KiB, as everybody has them.
const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;

/// Clusters that a second-level table of such a file maps, and with it an entry of the first level.
const CLUSTERS_PER_ENTRY: u64 = CLUSTER_BYTES / 8;

/// What sizes of disks are multiples of.
pub(super) const SECTOR_BYTES: u64 = 512;

/// Largest disk.
pub(super) const DISK_BYTES_MAX: u64 = 64 << 40;

/// How much of a file is read for its header; header, extensions and name lie there in every file that there is.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Longest name of the file below, by the format.
const BACKING_BYTES_MAX: u32 = 1023;

/// Extensions of a header that are looked at, far more than there are kinds of them.
const EXTENSIONS_MAX: usize = 32;

/// Bytes of the header of the version in use.
const HEADER_BYTES: usize = 104;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_EXTERNAL_DATA: u32 = 0x4441_5441;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

/// Why a file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// It is something else.
    #[error("it is no qcow2 file")]
    Magic,
    /// Of another time.
    #[error("its version of qcow2, {0}, is not 2 or 3")]
    Version(u32),
    /// It ends within its header.
    #[error("its header is cut off")]
    Short,
    /// It says what cannot be.
    #[error("its header is wrong: {0}")]
    Wrong(&'static str),
    /// Too large.
    #[error("its disk of {0} bytes is larger than {DISK_BYTES_MAX}")]
    Size(u64),
    /// Encrypted.
    #[error("it is encrypted")]
    Encrypted,
    /// Its data lie elsewhere.
    #[error("its data lie in another file")]
    ExternalData,
    /// It needs what nobody here knows.
    #[error("it needs features that are not known: {0:#x}")]
    Features(u64),
    /// It was not closed, or found broken, and has to be repaired first.
    #[error("it is marked as broken: `qemu-img check -r all` may repair it")]
    Broken,
    /// It stands on another file.
    #[error("it stands on another file, {0:?}: flatten it first, with `qemu-img convert`")]
    Backed(String),
    /// It stands on something that is not a file beside it.
    #[error("what it stands on, {0:?}, is not what lies below it")]
    Below(String),
}

/// What the header of a file says. Everything in it was checked by itself, nothing against other files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Size of the disk in bytes.
    pub(super) size_bytes: u64,
    /// The file below, as it is named.
    pub(super) backing: Option<String>,
    /// The format of the file below, if it is pinned.
    pub(super) backing_format: Option<String>,
    /// Snapshots within the file.
    pub(super) snapshots: u32,
}

impl Header {
    /// Reads the header of a file of which nothing is known.
    pub(super) fn read(mut file: &File) -> io::Result<Result<Self, Refusal>> {
        let mut bytes = vec![0; HEADER_BYTES_MAX];
        let mut filled = 0;
        io::Seek::seek(&mut file, io::SeekFrom::Start(0))?;
        while filled < bytes.len() {
            match file.read(&mut bytes[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(Self::parse(&bytes[..filled]))
    }

    /// Makes sense of the first bytes of a file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let fields = Fields(bytes);
        if fields.u32(0) != Ok(MAGIC) {
            return Err(Refusal::Magic);
        }
        let version = fields.u32(4)?;
        let (incompatible, length) = match version {
            2 => (0, 72),
            3 => (fields.u64(72)?, fields.u32(100)?),
            other => return Err(Refusal::Version(other)),
        };
        check_features(incompatible)?;
        let cluster_bits = fields.u32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Refusal::Wrong("size of clusters"));
        }
        if version == 3 && (length < 104 || !length.is_multiple_of(8)) {
            return Err(Refusal::Wrong("length"));
        }
        let size_bytes = fields.u64(24)?;
        if size_bytes > DISK_BYTES_MAX {
            return Err(Refusal::Size(size_bytes));
        }
        if fields.u32(32)? != 0 {
            return Err(Refusal::Encrypted);
        }
        let cluster_bytes = 1_u64 << cluster_bits;
        // A first-level entry stands for a table of 8-byte entries, or 16-byte ones, each for a cluster.
        let entry_bytes = if incompatible & INCOMPATIBLE_EXTENDED_L2 == 0 { 8 } else { 16 };
        let needed = size_bytes.div_ceil(cluster_bytes * (cluster_bytes / entry_bytes));
        if u64::from(fields.u32(36)?) < needed {
            return Err(Refusal::Wrong("size of the first-level table"));
        }
        for (offset, what) in [(40, "first-level table"), (48, "table of reference counts")] {
            let place = fields.u64(offset)?;
            if !place.is_multiple_of(cluster_bytes) || (place == 0 && offset == 48) {
                return Err(Refusal::Wrong(what));
            }
        }
        let backing = backing_name(&fields)?;
        let backing_format = extensions(&fields, length as usize)?;
        Ok(Self { size_bytes, backing, backing_format, snapshots: fields.u32(60)? })
    }

    /// Refuses what does not stand alone.
    pub(super) fn stands_alone(&self) -> Result<(), Refusal> {
        match &self.backing {
            Some(backing) => Err(Refusal::Backed(backing.clone())),
            None => Ok(()),
        }
    }

    /// Refuses what does not stand on exactly this file beside it, with its format pinned.
    pub(super) fn stands_on(&self, name: &str) -> Result<(), Refusal> {
        match (&self.backing, self.backing_format.as_deref()) {
            (Some(backing), Some("qcow2")) if backing == name => Ok(()),
            (backing, _) => Err(Refusal::Below(backing.clone().unwrap_or_default())),
        }
    }
}

fn check_features(incompatible: u64) -> Result<(), Refusal> {
    if incompatible & INCOMPATIBLE_EXTERNAL_DATA != 0 {
        return Err(Refusal::ExternalData);
    }
    if incompatible & (INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT) != 0 {
        return Err(Refusal::Broken);
    }
    match incompatible & !(INCOMPATIBLE_COMPRESSION | INCOMPATIBLE_EXTENDED_L2) {
        0 => Ok(()),
        unknown => Err(Refusal::Features(unknown)),
    }
}

fn backing_name(fields: &Fields<'_>) -> Result<Option<String>, Refusal> {
    let (offset, length) = (fields.u64(8)?, fields.u32(16)?);
    if offset == 0 {
        return Ok(None);
    }
    if length == 0 || length > BACKING_BYTES_MAX {
        return Err(Refusal::Wrong("length of the name of what lies below"));
    }
    let offset =
        usize::try_from(offset).map_err(|_| Refusal::Wrong("place of the name of what lies below"))?;
    let name = fields.bytes(offset, length as usize)?;
    let name = str::from_utf8(name).map_err(|_| Refusal::Wrong("name of what lies below"))?;
    Ok(Some(name.to_owned()))
}

/// Looks through the extensions; gives the format of the file below.
fn extensions(fields: &Fields<'_>, mut offset: usize) -> Result<Option<String>, Refusal> {
    let mut format = None;
    for _ in 0..EXTENSIONS_MAX {
        let kind = fields.u32(offset)?;
        let length = fields.u32(offset + 4)? as usize;
        let data = || fields.bytes(offset + 8, length);
        match kind {
            EXTENSION_END => return Ok(format),
            EXTENSION_EXTERNAL_DATA => return Err(Refusal::ExternalData),
            EXTENSION_BACKING_FORMAT => {
                let name =
                    str::from_utf8(data()?).map_err(|_| Refusal::Wrong("format of what lies below"))?;
                format = Some(name.to_owned());
            }
            _ => drop(data()?),
        }
        offset += 8 + length.next_multiple_of(8);
    }
    Err(Refusal::Wrong("number of extensions"))
}

/// Big-endian fields of bytes that may end anywhere.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&self, offset: usize, length: usize) -> Result<&'a [u8], Refusal> {
        let end = offset.checked_add(length).ok_or(Refusal::Short)?;
        self.0.get(offset..end).ok_or(Refusal::Short)
    }

    fn u32(&self, offset: usize) -> Result<u32, Refusal> {
        let bytes = self.bytes(offset, 4)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn u64(&self, offset: usize) -> Result<u64, Refusal> {
        let bytes = self.bytes(offset, 8)?;
        Ok(u64::from_be_bytes(bytes.try_into().expect("eight bytes were taken")))
    }
}

/// Fills a new, empty file: a disk of `size_bytes` that shows what the file called `below` beside it has, or nothing but
/// zeros.
pub(super) fn write_empty(file: &File, size_bytes: u64, below: Option<&str>) -> io::Result<()> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) || size_bytes > DISK_BYTES_MAX {
        return Err(invalid("such a size no disk can have"));
    }
    // Never less than a whole cluster of them, so that the disk can grow by one number alone.
    let entries = entries_for(size_bytes).max(CLUSTERS_PER_ENTRY);
    let entries = u32::try_from(entries).map_err(|_| invalid("such a size no disk can have"))?;
    let map_clusters = (u64::from(entries) * 8).div_ceil(CLUSTER_BYTES);
    let clusters = 3 + map_clusters;
    let header = header(size_bytes, entries, below);
    let counts: Vec<u8> = (0..clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();
    file.set_len(clusters * CLUSTER_BYTES)?;
    file.write_all_at(&header, 0)?;
    file.write_all_at(&(2 * CLUSTER_BYTES).to_be_bytes(), CLUSTER_BYTES)?;
    file.write_all_at(&counts, 2 * CLUSTER_BYTES)
}

/// Entries of the first level that a disk of this size needs.
fn entries_for(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(CLUSTER_BYTES * CLUSTERS_PER_ENTRY)
}

/// Makes the disk of a file that was written here larger; nobody has it open.
pub(super) fn grow(file: &File, size_bytes: u64) -> io::Result<()> {
    let refused = |refusal| io::Error::new(io::ErrorKind::InvalidData, refusal);
    let header = Header::read(file)?.map_err(refused)?;
    let mut entries = [0; 4];
    file.read_exact_at(&mut entries, 36)?;
    if size_bytes < header.size_bytes || entries_for(size_bytes) > u64::from(u32::from_be_bytes(entries)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "such a size this disk cannot have"));
    }
    file.write_all_at(&size_bytes.to_be_bytes(), 24)
}

fn header(size_bytes: u64, entries: u32, below: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    let put32 = |bytes: &mut Vec<u8>, value: u32| bytes.extend_from_slice(&value.to_be_bytes());
    let put64 = |bytes: &mut Vec<u8>, value: u64| bytes.extend_from_slice(&value.to_be_bytes());
    // The format's name fills its extension exactly.
    const FORMAT: &[u8; 8] = b"qcow2\0\0\0";
    let extensions_bytes = if below.is_some() { 8 + FORMAT.len() } else { 0 } + 8;
    let name_offset = below.map_or(0, |_| (HEADER_BYTES + extensions_bytes) as u64);
    let name_bytes = below.map_or(0, |name| u32::try_from(name.len()).expect("names of layers are short"));
    put32(&mut bytes, MAGIC);
    put32(&mut bytes, 3);
    put64(&mut bytes, name_offset);
    put32(&mut bytes, name_bytes);
    put32(&mut bytes, CLUSTER_BITS);
    put64(&mut bytes, size_bytes);
    // Not encrypted.
    put32(&mut bytes, 0);
    put32(&mut bytes, entries);
    put64(&mut bytes, 3 * CLUSTER_BYTES);
    put64(&mut bytes, CLUSTER_BYTES);
    // The table of reference counts is one cluster; there are no snapshots, and so nowhere that they are.
    put32(&mut bytes, 1);
    put32(&mut bytes, 0);
    put64(&mut bytes, 0);
    // No features, of any of the three kinds.
    put64(&mut bytes, 0);
    put64(&mut bytes, 0);
    put64(&mut bytes, 0);
    // Reference counts have 2 to the power of 4 bits.
    put32(&mut bytes, 4);
    put32(&mut bytes, u32::try_from(HEADER_BYTES).expect("it is small"));
    if below.is_some() {
        put32(&mut bytes, EXTENSION_BACKING_FORMAT);
        put32(&mut bytes, 5);
        bytes.extend_from_slice(FORMAT);
    }
    put32(&mut bytes, EXTENSION_END);
    put32(&mut bytes, 0);
    bytes.extend_from_slice(below.unwrap_or_default().as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use proptest::prelude::*;

    use super::*;

    fn written(directory: &Path, name: &str, size_bytes: u64, below: Option<&str>) -> File {
        let path = directory.join(name);
        let options = fs_err::OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = options.expect("made").into_file();
        write_empty(&file, size_bytes, below).expect("written");
        file
    }

    fn bytes() -> Vec<u8> {
        header(1 << 30, 8192, Some("0.qcow2"))
    }

    fn with(change: impl FnOnce(&mut Vec<u8>)) -> Result<Header, Refusal> {
        let mut bytes = bytes();
        bytes.resize(512, 0);
        change(&mut bytes);
        Header::parse(&bytes)
    }

    #[test]
    fn a_header_reads_as_it_was_written() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, size_bytes, below) in
            [("a", 512, None), ("b", 10 << 30, Some("0.qcow2")), ("c", DISK_BYTES_MAX, Some("17.qcow2"))]
        {
            let file = written(directory.path(), name, size_bytes, below);
            let header = Header::read(&file).expect("read").expect("a header");
            let backing_format = below.map(|_| "qcow2".to_owned());
            let backing = below.map(str::to_owned);
            assert_eq!(header, Header { size_bytes, backing, backing_format, snapshots: 0 });
            match below {
                Some(below) => {
                    header.stands_on(below).expect("it does");
                    assert_eq!(header.stands_alone(), Err(Refusal::Backed(below.to_owned())));
                    assert!(header.stands_on("1.qcow2").is_err());
                }
                None => header.stands_alone().expect("it does"),
            }
        }
        let file = written(directory.path(), "d", 512, None);
        for size_bytes in [0, 511, 513, DISK_BYTES_MAX + 512] {
            assert!(write_empty(&file, size_bytes, None).is_err(), "{size_bytes}");
        }
    }

    #[test]
    fn a_disk_grows_and_never_shrinks() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = written(directory.path(), "a", 1 << 30, None);
        for size_bytes in [(1 << 30) + 512, 2 << 40] {
            grow(&file, size_bytes).expect("grown");
            assert_eq!(Header::read(&file).expect("read").expect("a header").size_bytes, size_bytes);
        }
        assert!(grow(&file, 1 << 30).is_err(), "it is smaller");
        assert!(grow(&file, 5 << 40).is_err(), "its map has no room for that");
    }

    #[test]
    fn qemu_img_agrees() {
        let directory = tempfile::tempdir().expect("a directory");
        let run = |arguments: &[&str]| {
            Command::new("qemu-img").args(arguments).current_dir(directory.path()).output()
        };
        if run(&["--version"]).is_err() {
            use std::io::Write as _;
            io::stderr().write_all(b"SKIPPED qemu_img_agrees: it is not installed\n").expect("written");
            return;
        }
        drop(written(directory.path(), "0.qcow2", 1 << 30, None));
        let top = written(directory.path(), "1.qcow2", 2 << 30, Some("0.qcow2"));
        grow(&top, 3 << 30).expect("grown");
        drop(top);
        drop(written(directory.path(), "large.qcow2", DISK_BYTES_MAX, None));
        for name in ["0.qcow2", "1.qcow2", "large.qcow2"] {
            let checked = run(&["check", "-f", "qcow2", name]).expect("it runs");
            assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stdout));
        }
        let info = run(&["info", "-f", "qcow2", "--output", "json", "1.qcow2"]).expect("it runs");
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("json");
        assert_eq!(info["virtual-size"], 3_u64 << 30);
        assert_eq!(info["backing-filename"], "0.qcow2");
        assert_eq!(info["backing-filename-format"], "qcow2");
        assert_eq!(info["cluster-size"], CLUSTER_BYTES);
    }

    #[test]
    fn what_cannot_be_trusted_is_refused() {
        assert!(with(|_| {}).is_ok());
        let wrong = |change: fn(&mut Vec<u8>)| with(change).expect_err("it is refused");
        assert_eq!(wrong(|bytes| bytes[0] = 0), Refusal::Magic);
        assert_eq!(Header::parse(b""), Err(Refusal::Magic));
        assert_eq!(wrong(|bytes| bytes[7] = 4), Refusal::Version(4));
        assert_eq!(wrong(|bytes| bytes.truncate(90)), Refusal::Short);
        assert_eq!(wrong(|bytes| bytes.truncate(104)), Refusal::Short);
        assert_eq!(wrong(|bytes| bytes[23] = 8), Refusal::Wrong("size of clusters"));
        assert_eq!(wrong(|bytes| bytes[23] = 22), Refusal::Wrong("size of clusters"));
        assert_eq!(wrong(|bytes| bytes[24] = 1), Refusal::Size((1 << 56) + (1 << 30)));
        assert_eq!(wrong(|bytes| bytes[35] = 2), Refusal::Encrypted);
        assert_eq!(wrong(|bytes| bytes[38..40].fill(0)), Refusal::Wrong("size of the first-level table"));
        assert_eq!(wrong(|bytes| bytes[47] = 1), Refusal::Wrong("first-level table"));
        assert_eq!(wrong(|bytes| bytes[55] = 1), Refusal::Wrong("table of reference counts"));
        assert_eq!(wrong(|bytes| bytes[79] = 1), Refusal::Broken);
        assert_eq!(wrong(|bytes| bytes[79] = 2), Refusal::Broken);
        assert_eq!(wrong(|bytes| bytes[79] = 4), Refusal::ExternalData);
        assert_eq!(wrong(|bytes| bytes[79] = 0x20), Refusal::Features(0x20));
        assert!(with(|bytes| bytes[79] = 0x08).is_ok(), "other ways to compress are known");
        assert_eq!(wrong(|bytes| bytes[103] = 100), Refusal::Wrong("length"));
        // An external data file that no bit admits to.
        assert_eq!(
            wrong(|bytes| bytes[104..108].copy_from_slice(&EXTENSION_EXTERNAL_DATA.to_be_bytes())),
            Refusal::ExternalData
        );
        assert_eq!(wrong(|bytes| bytes[108] = 0xff), Refusal::Short);
        assert_eq!(wrong(|bytes| bytes[16] = 1), Refusal::Wrong("length of the name of what lies below"));
        assert_eq!(wrong(|bytes| bytes[8] = 1), Refusal::Short);
        // Its format is not pinned.
        let guessed = with(|bytes| bytes[104] = 0).expect("a header");
        assert_eq!(guessed.stands_on("0.qcow2"), Err(Refusal::Below("0.qcow2".to_owned())));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Header::parse(&bytes);
        }

        #[test]
        fn no_change_makes_it_panic(changes in proptest::collection::vec((0_usize..256, any::<u8>()), 1..8)) {
            let _ = with(|bytes| changes.iter().for_each(|&(at, value)| bytes[at] = value));
        }
    }
}
