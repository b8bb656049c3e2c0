//! Extended headers of tar archives: records of `length key=value`.

use std::ffi::CString;

use rustix::fs::Timespec;

use crate::{
    Error, Result,
    archive::{Piece, damaged},
    root::{keeps_attribute, within},
};

/// Most extended attributes of one file.
const ATTRIBUTES_MAX: u64 = 64;

/// What extended headers said about a member. Keys that change nothing for us are left out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) modified: Option<Timespec>,
    pub(crate) attributes: Vec<(CString, Vec<u8>)>,
    pub(crate) sparse: Sparse,
}

/// What extended headers said about holes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sparse {
    /// The file's own name; the plain one is made up.
    pub(crate) name: Option<Vec<u8>>,
    /// Length with holes; there if the file is sparse.
    pub(crate) length: Option<u64>,
    /// The map lies before the content, not here.
    pub(crate) map_is_in_data: bool,
    pub(crate) pieces: Vec<Piece>,
    /// An offset whose length has not come yet.
    offset: Option<u64>,
}

impl Records {
    /// Adds the records of one extended header; later ones win.
    pub(crate) fn read(&mut self, mut content: &[u8]) -> Result<()> {
        while !content.is_empty() {
            let record =
                first_record(content).ok_or_else(|| damaged(&"an extended header of no known form"))?;
            content = &content[record.length..];
            self.set(record.key, record.value)?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.modified = Some(time(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.length = Some(number(value)?),
            b"GNU.sparse.major" => self.sparse.map_is_in_data = number(value)? == 1,
            b"GNU.sparse.offset" => self.sparse.offset = Some(number(value)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take();
                let offset = offset.ok_or_else(|| damaged(&"a sparse file with a damaged map"))?;
                self.sparse.pieces.push(Piece { offset, length: number(value)? });
            }
            b"GNU.sparse.map" => self.sparse.pieces = map(value)?,
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                    && keeps_attribute(name)
                {
                    self.set_attribute(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_attribute(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let name = CString::new(name)
            .map_err(|_nul| Error::Source("an extended attribute has a NUL byte in its name".to_owned()))?;
        self.attributes.retain(|(other, _)| *other != name);
        self.attributes.push((name, value.to_vec()));
        within("number of extended attributes", self.attributes.len() as u64, ATTRIBUTES_MAX)
    }
}

struct Record<'a> {
    length: usize,
    key: &'a [u8],
    value: &'a [u8],
}

/// The record at the start. The length counts itself, so values may hold any byte.
fn first_record(content: &[u8]) -> Option<Record<'_>> {
    const LENGTH_DIGITS_MAX: usize = 20;
    let space = content.iter().take(LENGTH_DIGITS_MAX).position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&content[..space]).ok()?.parse().ok()?;
    let record = content.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(Record { length, key: &record[..equals], value: &record[equals + 1..] })
}

fn number(value: &[u8]) -> Result<u64> {
    str::from_utf8(value)
        .ok()
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| damaged(&"an extended header with a damaged number"))
}

/// Seconds since the epoch, possibly with a fraction, possibly negative.
fn time(value: &[u8]) -> Result<Timespec> {
    const NANOSECOND_DIGITS: usize = 9;
    let failed = || damaged(&"an extended header with a damaged time");
    let value = str::from_utf8(value).map_err(|_not_text| failed())?;
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(failed());
    }
    let seconds: i64 = whole.parse().map_err(|_no_number| failed())?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(NANOSECOND_DIGITS).collect();
    let nanoseconds: i64 = digits.parse().map_err(|_no_number| failed())?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Ok(Timespec { tv_sec: seconds.saturating_sub(1), tv_nsec: 1_000_000_000 - nanoseconds });
    }
    Ok(Timespec { tv_sec: seconds, tv_nsec: nanoseconds })
}

/// A map of a sparse file in one value: `offset,length,offset,length…`.
fn map(value: &[u8]) -> Result<Vec<Piece>> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let numbers: Vec<u64> = value.split(|byte| *byte == b',').map(number).collect::<Result<_>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(damaged(&"a sparse file with a damaged map"));
    }
    Ok(pairs.iter().map(|[offset, length]| Piece { offset: *offset, length: *length }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_may_hold_any_byte() {
        let mut records = Records::default();
        records.read(b"12 path=a\nb\n33 SCHILY.xattr.user.x=\0\n=\xff12345\n").unwrap();
        assert_eq!(records.path.unwrap(), b"a\nb");
        assert_eq!(records.attributes, [(c"user.x".to_owned(), b"\0\n=\xff12345".to_vec())]);
    }

    #[test]
    fn damaged_records_are_errors() {
        for bad in [
            "path=a\n",
            "5 path",
            "999 path=a\n",
            "0 a=b\n",
            "3 \n",
            "-1 a=b\n",
            "6 a=b\n7",
            "10 size=a\n",
            "8 uid=\n",
            "99999999999999999999 a=b\n",
        ] {
            assert!(
                matches!(Records::default().read(bad.as_bytes()), Err(Error::Source(_))),
                "{bad:?} was taken"
            );
        }
    }

    #[test]
    fn times_before_the_epoch_count_down() {
        let parsed = |value: &str| time(value.as_bytes()).map(|time| (time.tv_sec, time.tv_nsec)).ok();
        assert_eq!(parsed("12"), Some((12, 0)));
        assert_eq!(parsed("12.5"), Some((12, 500_000_000)));
        assert_eq!(parsed("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parsed("12.0123456789999"), Some((12, 12_345_678)));
        assert_eq!(parsed("x"), None);
        assert_eq!(parsed("1.x"), None);
    }

    #[test]
    fn attributes_that_steer_overlays_are_left_out() {
        let mut records = Records::default();
        for key in
            ["user.overlay.opaque", "trusted.overlay.opaque", "security.selinux", "system.posix_acl_access"]
        {
            records.set(format!("SCHILY.xattr.{key}").as_bytes(), b"y").unwrap();
        }
        assert_eq!(records.attributes, []);
    }
}
