//! Reading tar archives, one member after another.
//!
//! The reader decides nothing about where members go. It bounds what an archive can make it hold: extended headers,
//! maps of sparse files, and how much more comes out of a decompressor than went in.

use std::{
    cell::Cell,
    fmt,
    io::{self, Read},
    path::PathBuf,
    rc::Rc,
};

use rustix::fs::Timespec;
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::{
    Error, Result,
    pax::Records,
    root::{Attributes, EntryPath, escaped, within},
};

/// Bytes of a block, the unit of archives.
const BLOCK_BYTES: usize = 512;

/// Largest extended header: attributes, long names and long link targets.
const EXTENDED_HEADER_BYTES_MAX: u64 = 1 << 20;

/// Most extended headers before one member.
const EXTENDED_HEADERS_MAX: usize = 16;

/// Most pieces of one sparse file.
const SPARSE_PIECES_MAX: u64 = 100_000;

/// Most bytes read after the archive's end mark, to let a decompressor check what it read.
const TRAILER_BYTES_MAX: u64 = 1 << 20;

/// Most bytes that come out of a decompressor for each byte that goes in, above a first allowance.
pub(crate) const EXPANSION_MAX: u64 = 250;

/// An archive being read.
pub(crate) struct Archive<R> {
    reader: R,
    location: PathBuf,
    /// Stored bytes of the present member that were not read yet, and the filling after them.
    data_left: u64,
    filling: u64,
    global: Records,
    ending: Ending,
}

/// How an archive ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By its end mark: without it something is missing.
    Marked,
    /// By its mark, or where there is no more of it: whoever reads it knows its digest.
    Open,
}

/// A member of an archive.
#[derive(Debug)]
pub(crate) struct Member {
    /// Where it goes.
    pub(crate) path: EntryPath,
    /// What it is.
    pub(crate) kind: MemberKind,
    /// Permissions and the like.
    pub(crate) attributes: Attributes,
}

/// What a member is.
#[derive(Debug)]
pub(crate) enum MemberKind {
    /// A file: its length, and where in it the stored bytes go. The rest are holes.
    File(u64, Vec<Piece>),
    /// A directory.
    Directory,
    /// A symbolic link to these bytes.
    Symlink(Vec<u8>),
    /// Another name for a file that came before.
    HardLink(EntryPath),
    /// A character or block device.
    Device,
    /// A named pipe.
    Pipe,
}

/// A part of a file that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl<R: Read> Archive<R> {
    /// Reads from the beginning of an archive. `location` is named in errors.
    pub(crate) fn new(reader: R, location: PathBuf, ending: Ending) -> Self {
        Self { reader, location, data_left: 0, filling: 0, global: Records::default(), ending }
    }

    /// The next member; `None` at the archive's end.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        let mut local = Records::default();
        for _ in 0..=EXTENDED_HEADERS_MAX {
            if !self.skip_member()? {
                return Ok(None);
            }
            let mut block = [0; BLOCK_BYTES];
            if !self.header(&mut block)? {
                return Ok(None);
            }
            if block.iter().all(|byte| *byte == 0) {
                self.read_to_end()?;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            if header.cksum().ok() != Some(checksum(&block)) {
                return Err(Error::Source("it is no tar archive, or a damaged one".to_owned()));
            }
            let kind = header.entry_type();
            let size = header.entry_size().map_err(|error| damaged(&error))?;
            match kind {
                EntryType::XHeader => local.read(&self.extended_header(size)?)?,
                EntryType::XGlobalHeader => {
                    let content = self.extended_header(size)?;
                    self.global.read(&content)?;
                }
                EntryType::GNULongName => local.path = Some(text(self.extended_header(size)?)),
                EntryType::GNULongLink => local.link = Some(text(self.extended_header(size)?)),
                // The archive's own name.
                kind if kind.as_byte() == b'V' => self.expect_data(size),
                kind => return self.member(header, kind, size, local).map(Some),
            }
        }
        Err(Error::TooLarge { what: "number of extended headers", limit: EXTENDED_HEADERS_MAX as u64 })
    }

    /// Goes on to the next header; false where an archive ends that may.
    fn skip_member(&mut self) -> Result<bool> {
        self.skip(self.data_left)?;
        // At most a block; some writers leave it out at the end.
        let filling = usize::try_from(std::mem::take(&mut self.filling)).unwrap_or(BLOCK_BYTES);
        let mut block = [0; BLOCK_BYTES];
        self.fill_or_end(&mut block[..filling])
    }

    /// Reads a header; false where an archive ends that may.
    fn header(&mut self, block: &mut [u8; BLOCK_BYTES]) -> Result<bool> {
        self.fill_or_end(block)
    }

    fn fill_or_end(&mut self, buffer: &mut [u8]) -> Result<bool> {
        match self.ending {
            Ending::Marked => self.fill(buffer).map(|()| true),
            Ending::Open => {
                let wanted = buffer.len().min(1);
                let first = loop {
                    match self.reader.read(&mut buffer[..wanted]) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        result => break result.map_err(|error| self.failed(error))?,
                    }
                };
                if first < wanted {
                    return Ok(false);
                }
                self.fill(&mut buffer[first..]).map(|()| true)
            }
        }
    }

    /// Reads from the stored bytes of the present member; zero bytes when there are no more.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        self.fill(&mut buffer[..wanted])?;
        self.data_left -= wanted as u64;
        Ok(wanted)
    }

    fn member(&mut self, header: &Header, kind: EntryType, size: u64, local: Records) -> Result<Member> {
        let raw_path = local.path.as_deref().map_or_else(|| header.path_bytes(), Into::into).into_owned();
        let path = EntryPath::parse(local.sparse.name.as_deref().unwrap_or(&raw_path))?;
        let attributes = self.attributes(header, &local)?;
        let link = local.link.clone().or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let link = move || link.ok_or_else(|| damaged(&"a link without a target"));
        // Some old writers give links a size although nothing is stored for them.
        self.expect_data(if kind == EntryType::Link { 0 } else { size });
        let kind = match kind {
            // Old writers mark directories by their names only.
            EntryType::Regular if raw_path.ends_with(b"/") => MemberKind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                let stored = local.size.unwrap_or(size);
                self.expect_data(stored);
                self.file(stored, local)?
            }
            EntryType::GNUSparse => self.gnu_sparse_file(header, size)?,
            EntryType::Link => MemberKind::HardLink(EntryPath::parse(&link()?)?),
            EntryType::Symlink => MemberKind::Symlink(link()?),
            EntryType::Directory => MemberKind::Directory,
            EntryType::Char | EntryType::Block => MemberKind::Device,
            EntryType::Fifo => MemberKind::Pipe,
            kind if kind.as_byte() == b'D' => MemberKind::Directory,
            kind => {
                let letter = kind.as_byte().escape_ascii();
                return Err(Error::Source(format!("entry {path} is of a kind that is not known, {letter}")));
            }
        };
        Ok(Member { path, kind, attributes })
    }

    fn attributes(&self, header: &Header, local: &Records) -> Result<Attributes> {
        let global = &self.global;
        let number = |pax: Option<u64>, plain: io::Result<u64>| match pax {
            Some(number) => Ok(number),
            None => plain.map_err(|error| damaged(&error)),
        };
        let modified = local.modified.or(global.modified).unwrap_or_else(|| Timespec {
            tv_sec: header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0),
            tv_nsec: 0,
        });
        Ok(Attributes {
            mode: header.mode().map_err(|error| damaged(&error))?,
            uid: number(local.uid.or(global.uid), header.uid())?,
            gid: number(local.gid.or(global.gid), header.gid())?,
            modified: sane(modified),
            extended: local.attributes.clone(),
        })
    }

    /// A file as it is, or sparse in one of the three ways that extended headers say it.
    fn file(&mut self, stored: u64, local: Records) -> Result<MemberKind> {
        let sparse = local.sparse;
        let Some(length) = sparse.length else {
            return Ok(MemberKind::File(stored, vec![Piece { offset: 0, length: stored }]));
        };
        let pieces = if sparse.map_is_in_data { self.map_in_data()? } else { sparse.pieces };
        checked(length, pieces, self.data_left)
    }

    /// The map of a sparse file that lies before its content: decimal numbers, a line each, filled up to a block.
    fn map_in_data(&mut self) -> Result<Vec<Piece>> {
        let mut block = [0; BLOCK_BYTES];
        let mut position = BLOCK_BYTES;
        let mut number = |archive: &mut Self| {
            let mut number = 0_u64;
            loop {
                if position == BLOCK_BYTES {
                    if archive.read_data(&mut block)? < BLOCK_BYTES {
                        return Err(damaged(&"a sparse file without its map"));
                    }
                    position = 0;
                }
                let byte = block[position];
                position += 1;
                match byte {
                    b'\n' => return Ok(number),
                    b'0'..=b'9' => {
                        number = number
                            .checked_mul(10)
                            .and_then(|number| number.checked_add(u64::from(byte - b'0')))
                            .ok_or_else(|| damaged(&"a sparse file with an endless map"))?;
                    }
                    _ => return Err(damaged(&"a sparse file with a damaged map")),
                }
            }
        };
        let count = number(self)?;
        within("number of pieces of a sparse file", count, SPARSE_PIECES_MAX)?;
        (0..count).map(|_| Ok(Piece { offset: number(self)?, length: number(self)? })).collect()
    }

    /// A sparse file in the old way of GNU tar: a map in the header and in blocks after it.
    fn gnu_sparse_file(&mut self, header: &Header, stored: u64) -> Result<MemberKind> {
        let gnu = header.as_gnu().ok_or_else(|| damaged(&"a sparse file of no known kind"))?;
        let length = gnu.real_size().map_err(|error| damaged(&error))?;
        let mut pieces = Vec::new();
        let add = |pieces: &mut Vec<Piece>, entries: &[GnuSparseHeader]| -> Result<()> {
            for entry in entries.iter().filter(|entry| !entry.is_empty()) {
                let offset = entry.offset().map_err(|error| damaged(&error))?;
                let length = entry.length().map_err(|error| damaged(&error))?;
                pieces.push(Piece { offset, length });
            }
            within("number of pieces of a sparse file", pieces.len() as u64, SPARSE_PIECES_MAX)
        };
        add(&mut pieces, &gnu.sparse)?;
        let mut extended = gnu.is_extended();
        while extended {
            let mut more = GnuExtSparseHeader::new();
            self.fill(more.as_mut_bytes())?;
            add(&mut pieces, more.sparse())?;
            extended = more.is_extended();
        }
        checked(length, pieces, stored)
    }

    fn extended_header(&mut self, size: u64) -> Result<Vec<u8>> {
        within("size of an extended header", size, EXTENDED_HEADER_BYTES_MAX)?;
        self.expect_data(size);
        let mut content = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        self.read_data(&mut content)?;
        Ok(content)
    }

    fn expect_data(&mut self, size: u64) {
        self.data_left = size;
        self.filling = size.wrapping_neg() % BLOCK_BYTES as u64;
    }

    fn skip(&mut self, mut count: u64) -> Result<()> {
        let mut buffer = [0; 16 * BLOCK_BYTES];
        while count > 0 {
            let part = usize::try_from(count).unwrap_or(usize::MAX).min(buffer.len());
            self.fill(&mut buffer[..part])?;
            count -= part as u64;
        }
        self.data_left = 0;
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.reader.read_exact(buffer).map_err(|error| self.failed(error))
    }

    fn read_to_end(&mut self) -> Result<()> {
        io::copy(&mut (&mut self.reader).take(TRAILER_BYTES_MAX), &mut io::sink())
            .map_err(|error| self.failed(error))?;
        Ok(())
    }

    fn failed(&self, error: io::Error) -> Error {
        if error.raw_os_error().is_some() {
            return Error::at(&self.location)(error);
        }
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Error::Source("the archive ends before its end mark".to_owned());
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Expanded>()) {
            Some(Expanded) => {
                Error::TooLarge { what: "expansion of the compressed archive", limit: EXPANSION_MAX }
            }
            None => damaged(&error),
        }
    }
}

/// Pieces that follow one another, lie within the file and are all that is stored.
fn checked(length: u64, mut pieces: Vec<Piece>, stored: u64) -> Result<MemberKind> {
    within("number of pieces of a sparse file", pieces.len() as u64, SPARSE_PIECES_MAX)?;
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for piece in &pieces {
        let after = piece.offset.checked_add(piece.length).filter(|after| *after <= length);
        end = match after {
            Some(after) if piece.offset >= end => after,
            _ => return Err(damaged(&"a sparse file whose map is out of order")),
        };
        sum += piece.length;
    }
    if sum != stored {
        return Err(damaged(&"a sparse file whose map does not fit its content"));
    }
    pieces.retain(|piece| piece.length > 0);
    Ok(MemberKind::File(length, pieces))
}

/// The sum of a header's bytes, its own field counted as spaces.
fn checksum(block: &[u8; BLOCK_BYTES]) -> u32 {
    const FIELD: std::ops::Range<usize> = 148..156;
    let counted = |(position, byte): (usize, &u8)| if FIELD.contains(&position) { b' ' } else { *byte };
    block.iter().enumerate().map(|byte| u32::from(counted(byte))).sum()
}

/// A name from a GNU extended header: up to its first NUL.
fn text(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    name
}

/// A time that file systems can hold.
fn sane(time: Timespec) -> Timespec {
    const SECONDS: std::ops::RangeInclusive<i64> = -2_147_483_648..=253_402_300_799;
    if SECONDS.contains(&time.tv_sec) { time } else { Timespec { tv_sec: 0, tv_nsec: 0 } }
}

pub(crate) fn damaged(what: &dyn fmt::Display) -> Error {
    Error::Source(format!("the archive is damaged: {}", escaped(what.to_string().as_bytes())))
}

/// Counts what is read through it.
pub(crate) struct Counted<R> {
    reader: R,
    count: Rc<Cell<u64>>,
}

impl<R> Counted<R> {
    pub(crate) fn new(reader: R, count: Rc<Cell<u64>>) -> Self {
        Self { reader, count }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// Stops a decompressor that makes too much of too little.
pub(crate) struct Bounded<R> {
    reader: R,
    allowance: u64,
    count: u64,
    compressed: Rc<Cell<u64>>,
}

impl<R> Bounded<R> {
    /// `compressed` is the count of what went into the decompressor; `allowance` may come out in any case.
    pub(crate) fn new(reader: R, compressed: Rc<Cell<u64>>, allowance: u64) -> Self {
        Self { reader, allowance, count: 0, compressed }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.count += count as u64;
        if self.count > self.allowance.saturating_add(self.compressed.get().saturating_mul(EXPANSION_MAX)) {
            return Err(io::Error::other(Expanded));
        }
        Ok(count)
    }
}

/// A decompressor made too much of too little.
#[derive(Debug, thiserror::Error)]
#[error("the archive expands too much")]
struct Expanded;
