//! Finding a disk by what is on it: the names of file systems and partitions, read from the disks themselves.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, FileTypeExt as _},
    path::{Path, PathBuf},
};

/// Where the kernel lists disks and partitions.
const BLOCK_DEVICES: &str = "/sys/class/block";

/// Where partition tables begin, counted in this many bytes.
const SECTOR: u64 = 512;

/// Most entries of a partition table that are looked at.
const PARTITIONS_MAX: u32 = 256;

/// Where a file system says who it is.
struct Kind {
    name: &'static str,
    magic: (u64, &'static [u8]),
    id: u64,
    label: (u64, usize),
}

const KINDS: [Kind; 3] = [
    Kind { name: "ext4", magic: (1080, &[0x53, 0xef]), id: 1128, label: (1144, 16) },
    Kind { name: "xfs", magic: (0, b"XFSB"), id: 32, label: (108, 12) },
    Kind { name: "btrfs", magic: (65_600, b"_BHRfS_M"), id: 65_568, label: (65_835, 256) },
];

/// Bytes of an id.
const ID_BYTES: usize = 16;

/// The device that `/dev/…`, `UUID=…`, `LABEL=…` or `PARTUUID=…` means, once it is there.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let by = |is: &dyn Fn(&Path) -> bool| all().into_iter().map(PathBuf::from).find(|device| is(device));
    match name.split_once('=') {
        Some(("UUID", wanted)) => by(&|device| {
            read_super(device, |disk, kind| Some(id_text(&disk.bytes(kind.id, ID_BYTES)?)))
                .is_some_and(|id| id.eq_ignore_ascii_case(wanted))
        }),
        Some(("LABEL", wanted)) => by(&|device| {
            read_super(device, |disk, kind| disk.bytes(kind.label.0, kind.label.1))
                .is_some_and(|label| text(&label) == wanted.as_bytes())
        }),
        Some(("PARTUUID", wanted)) => {
            by(&|device| partition_id(device).is_some_and(|id| id.eq_ignore_ascii_case(wanted)))
        }
        _ => {
            let device = PathBuf::from(name);
            fs::metadata(&device)
                .is_ok_and(|metadata| metadata.file_type().is_block_device())
                .then_some(device)
        }
    }
}

/// Every disk and partition, as `/dev/…`.
pub(super) fn all() -> Vec<String> {
    let entries = fs::read_dir(BLOCK_DEVICES).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut devices: Vec<String> = names.map(|name| format!("/dev/{name}")).collect();
    devices.sort();
    devices
}

/// The type of the file system on a device, if it is one of those known here.
pub(super) fn file_system(device: &Path) -> io::Result<Option<&'static str>> {
    File::open(device)?;
    Ok(read_super(device, |_, kind| Some(kind.name)))
}

/// A disk that is read piece by piece.
struct Disk(File);

impl Disk {
    fn open(device: &Path) -> Option<Self> {
        Some(Self(File::open(device).ok()?))
    }

    fn bytes(&self, at: u64, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.0.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    }

    fn number(&self, at: u64) -> Option<u32> {
        self.bytes(at, 4).and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)))
    }
}

fn read_super<T>(device: &Path, read: impl Fn(&Disk, &Kind) -> Option<T>) -> Option<T> {
    let disk = Disk::open(device)?;
    let kind = KINDS.iter().find(|kind| {
        let (at, magic) = kind.magic;
        disk.bytes(at, magic.len()).is_some_and(|bytes| bytes == magic)
    })?;
    read(&disk, kind)
}

/// The id that the partition table of its disk gives to a partition.
fn partition_id(device: &Path) -> Option<String> {
    let place = fs::canonicalize(Path::new(BLOCK_DEVICES).join(device.file_name()?)).ok()?;
    let number: u32 = fs::read_to_string(place.join("partition")).ok()?.trim_end().parse().ok()?;
    let disk = Disk::open(&Path::new("/dev").join(place.parent()?.file_name()?))?;
    table_id(&disk, number)
}

/// The id of the partition with this number, counted from one.
fn table_id(disk: &Disk, number: u32) -> Option<String> {
    if disk.bytes(SECTOR, 8)? != b"EFI PART" {
        // The old kind of table has one number for the whole disk.
        return Some(format!("{:08x}-{number:02x}", disk.number(440)?));
    }
    let entries = u64::from_le_bytes(disk.bytes(SECTOR + 72, 8)?.try_into().ok()?);
    let (count, size) = (disk.number(SECTOR + 80)?, disk.number(SECTOR + 84)?);
    let index = number.checked_sub(1).filter(|index| *index < count.min(PARTITIONS_MAX))?;
    let at = entries.checked_mul(SECTOR)?.checked_add(u64::from(index) * u64::from(size) + 16)?;
    let mut id = disk.bytes(at, ID_BYTES)?;
    // The first three parts are numbers with their lowest byte first.
    id[0..4].reverse();
    id[4..6].reverse();
    id[6..8].reverse();
    Some(id_text(&id))
}

fn id_text(id: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// What comes before the first zero.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, process::Command};

    use super::*;

    #[test]
    fn file_systems_say_who_they_are() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(4 << 20).expect("4 MiB");
        assert_eq!(file_system(file.path()).expect("readable"), None);
        let id = "0f6e1c5a-9f0c-4e53-a1f4-0123456789ab";
        let made = Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-U", id, "-L", "sandhaus-root"])
            .arg(file.path())
            .status();
        let Ok(status) = made else {
            eprintln!("SKIPPED: this machine has no mke2fs");
            return;
        };
        assert!(status.success());
        assert_eq!(file_system(file.path()).expect("readable"), Some("ext4"));
        let read = read_super(file.path(), |disk, kind| disk.bytes(kind.id, ID_BYTES)).expect("an id");
        assert_eq!(id_text(&read), id);
        let label = read_super(file.path(), |disk, kind| disk.bytes(kind.label.0, kind.label.1));
        assert_eq!(text(&label.expect("a label")), b"sandhaus-root");
    }

    #[test]
    fn partition_tables() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let mut table = vec![0_u8; 4096];
        table[440..444].copy_from_slice(&0x00c0_ffee_u32.to_le_bytes());
        file.write_all(&table).expect("write");
        let disk = Disk::open(file.path()).expect("open");
        assert_eq!(table_id(&disk, 1).as_deref(), Some("00c0ffee-01"));
        table[512..520].copy_from_slice(b"EFI PART");
        table[584..592].copy_from_slice(&2_u64.to_le_bytes());
        table[592..596].copy_from_slice(&4_u32.to_le_bytes());
        table[596..600].copy_from_slice(&128_u32.to_le_bytes());
        let id: Vec<u8> = (0..16).collect();
        table[1024 + 128 + 16..1024 + 128 + 32].copy_from_slice(&id);
        fs::write(file.path(), &table).expect("write");
        assert_eq!(table_id(&disk, 2).as_deref(), Some("03020100-0504-0706-0809-0a0b0c0d0e0f"));
        assert_eq!(table_id(&disk, 5), None);
        assert_eq!(table_id(&disk, 0), None);
    }
}
