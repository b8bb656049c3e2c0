//! The messages of SFTP, version 3 as OpenSSH speaks it: read and written, without any file.

use std::ffi::CString;

use sandhaus_ssh::wire::{Malformed, Reader, Writer};

use crate::{
    clock,
    sys::remote_files::{Attributes, Opening, Standing},
};

/// Longest message.
pub(super) const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Most bytes read or written by one message: a message less its head.
pub(super) const PIECE_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 1024;

const VERSION: u32 = 3;

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 1 << 31;

/// What else can be asked for, by name and version.
const EXTENSIONS: [(&str, &str); 8] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
    ("users-groups-by-id@openssh.com", "1"),
];

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Init,
    Open {
        path: CString,
        opening: Opening,
        attributes: Attributes,
    },
    Close {
        handle: u32,
    },
    Read {
        handle: u32,
        offset: u64,
        length: usize,
    },
    Write {
        handle: u32,
        offset: u64,
        bytes: Vec<u8>,
    },
    Stat {
        path: CString,
    },
    LinkStat {
        path: CString,
    },
    FileStat {
        handle: u32,
    },
    Change {
        path: CString,
        attributes: Attributes,
    },
    ChangeLink {
        path: CString,
        attributes: Attributes,
    },
    ChangeFile {
        handle: u32,
        attributes: Attributes,
    },
    OpenDirectory {
        path: CString,
    },
    ReadDirectory {
        handle: u32,
    },
    Remove {
        path: CString,
    },
    MakeDirectory {
        path: CString,
        attributes: Attributes,
    },
    RemoveDirectory {
        path: CString,
    },
    RealPath {
        path: CString,
    },
    ExpandPath {
        path: CString,
    },
    RenameAside {
        from: CString,
        to: CString,
    },
    RenameOver {
        from: CString,
        to: CString,
    },
    ReadLink {
        path: CString,
    },
    Symlink {
        text: CString,
        link: CString,
    },
    HardLink {
        from: CString,
        to: CString,
    },
    Sync {
        handle: u32,
    },
    StatFileSystem {
        path: CString,
    },
    Limits,
    Names {
        users: Vec<u32>,
        groups: Vec<u32>,
    },
    /// Nothing that is known.
    Unknown,
}

/// Why a message cannot be answered in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// The stream makes no sense any more.
    Stream,
    /// This message does not.
    Message(u32),
}

/// Takes the next message out of what was received: its number and what it wants. `None`: there is no whole one yet.
pub(super) fn next(received: &mut bytes::BytesMut) -> Result<Option<(u32, Request)>, Wrong> {
    let Some(length) = received.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX || length == 0 {
        return Err(Wrong::Stream);
    }
    if received.len() < 4 + length {
        return Ok(None);
    }
    let message = received.split_to(4 + length);
    let mut reader = Reader::new(&message[4..]);
    let kind = reader.byte().map_err(|Malformed| Wrong::Stream)?;
    // The first message has a version where others have a number.
    let id = reader.number().map_err(|Malformed| Wrong::Stream)?;
    Request::read(kind, &mut reader)
        .map(|request| Some((id, request)))
        .map_err(|Malformed| Wrong::Message(id))
}

fn path(reader: &mut Reader<'_>) -> Result<CString, Malformed> {
    CString::new(reader.string()?).map_err(|_| Malformed)
}

fn handle(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    reader.string()?.try_into().map(u32::from_be_bytes).map_err(|_| Malformed)
}

fn opening(flags: u32) -> Opening {
    let has = |bit: u32| flags & bit != 0;
    Opening {
        read: has(1),
        write: has(2),
        append: has(4),
        create: has(8),
        truncate: has(16),
        exclusive: has(32),
    }
}

fn attributes(reader: &mut Reader<'_>) -> Result<Attributes, Malformed> {
    let flags = reader.number()?;
    let mut read = Attributes::default();
    if flags & SIZE != 0 {
        read.size = Some(reader.long()?);
    }
    if flags & OWNER != 0 {
        read.owner = Some((reader.number()?, reader.number()?));
    }
    if flags & PERMISSIONS != 0 {
        read.permissions = Some(reader.number()?);
    }
    if flags & TIMES != 0 {
        read.times = Some((reader.number()?, reader.number()?));
    }
    if flags & EXTENDED != 0 {
        for _ in 0..reader.number()? {
            let (_, _) = (reader.string()?, reader.string()?);
        }
    }
    Ok(read)
}

fn numbers(bytes: &[u8]) -> Result<Vec<u32>, Malformed> {
    let (numbers, []) = bytes.as_chunks::<4>() else { return Err(Malformed) };
    Ok(numbers.iter().map(|number| u32::from_be_bytes(*number)).collect())
}

impl Request {
    fn read(kind: u8, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match kind {
            1 => Self::Init,
            3 => Self::Open {
                path: path(reader)?,
                opening: opening(reader.number()?),
                attributes: attributes(reader)?,
            },
            4 => Self::Close { handle: handle(reader)? },
            5 => {
                let (handle, offset) = (handle(reader)?, reader.long()?);
                let length = usize::try_from(reader.number()?).unwrap_or(usize::MAX);
                Self::Read { handle, offset, length: length.min(PIECE_BYTES_MAX) }
            }
            6 => Self::Write {
                handle: handle(reader)?,
                offset: reader.long()?,
                bytes: reader.string()?.to_vec(),
            },
            7 => Self::LinkStat { path: path(reader)? },
            8 => Self::FileStat { handle: handle(reader)? },
            9 => Self::Change { path: path(reader)?, attributes: attributes(reader)? },
            10 => Self::ChangeFile { handle: handle(reader)?, attributes: attributes(reader)? },
            11 => Self::OpenDirectory { path: path(reader)? },
            12 => Self::ReadDirectory { handle: handle(reader)? },
            13 => Self::Remove { path: path(reader)? },
            14 => Self::MakeDirectory { path: path(reader)?, attributes: attributes(reader)? },
            15 => Self::RemoveDirectory { path: path(reader)? },
            16 => Self::RealPath { path: path(reader)? },
            17 => Self::Stat { path: path(reader)? },
            18 => Self::RenameAside { from: path(reader)?, to: path(reader)? },
            19 => Self::ReadLink { path: path(reader)? },
            // The standard has it the other way round; OpenSSH's order is what everyone uses.
            20 => Self::Symlink { text: path(reader)?, link: path(reader)? },
            200 => Self::read_extended(reader)?,
            _ => Self::Unknown,
        })
    }

    fn read_extended(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match reader.text()? {
            "posix-rename@openssh.com" => Self::RenameOver { from: path(reader)?, to: path(reader)? },
            "statvfs@openssh.com" => Self::StatFileSystem { path: path(reader)? },
            "hardlink@openssh.com" => Self::HardLink { from: path(reader)?, to: path(reader)? },
            "fsync@openssh.com" => Self::Sync { handle: handle(reader)? },
            "lsetstat@openssh.com" => {
                Self::ChangeLink { path: path(reader)?, attributes: attributes(reader)? }
            }
            "limits@openssh.com" => Self::Limits,
            "expand-path@openssh.com" => Self::ExpandPath { path: path(reader)? },
            "users-groups-by-id@openssh.com" => {
                Self::Names { users: numbers(reader.string()?)?, groups: numbers(reader.string()?)? }
            }
            _ => Self::Unknown,
        })
    }
}

/// How a request went, where there is nothing else to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    Eof = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    BadMessage = 5,
    Unsupported = 8,
}

fn framed(message: Writer) -> Vec<u8> {
    Writer::default().string(message.finish()).finish()
}

/// The first answer.
pub(super) fn version() -> Vec<u8> {
    let message = Writer::message(2).number(VERSION);
    framed(EXTENSIONS.iter().fold(message, |message, (name, version)| message.string(name).string(version)))
}

/// How it went, in words.
pub(super) fn status(id: u32, status: Status, text: &str) -> Vec<u8> {
    framed(Writer::message(101).number(id).number(status as u32).string(text).string(""))
}

/// What was opened.
pub(super) fn opened(id: u32, handle: u32) -> Vec<u8> {
    framed(Writer::message(102).number(id).string(handle.to_be_bytes()))
}

/// What was read.
pub(super) fn data(id: u32, bytes: &[u8]) -> Vec<u8> {
    framed(Writer::message(103).number(id).string(bytes))
}

/// A path, as the only name of a list.
pub(super) fn name(id: u32, path: &[u8]) -> Vec<u8> {
    framed(Writer::message(104).number(id).number(1).string(path).string(path).number(0))
}

/// Names in a directory.
pub(super) fn names(id: u32, entries: &[(Vec<u8>, Standing)]) -> Vec<u8> {
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let message = Writer::message(104).number(id).number(count);
    framed(entries.iter().fold(message, |message, (name, stat)| {
        write_attributes(message.string(name).string(long_name(name, stat)), stat)
    }))
}

/// How a file stands.
pub(super) fn attributes_of(id: u32, stat: &Standing) -> Vec<u8> {
    framed(write_attributes(Writer::message(105).number(id), stat))
}

/// Numbers of an extension's own.
pub(super) fn extended(id: u32, numbers: &[u64]) -> Vec<u8> {
    let message = Writer::message(201).number(id);
    framed(numbers.iter().fold(message, |message, number| message.long(*number)))
}

/// Names of users and groups.
pub(super) fn extended_names(id: u32, users: &[String], groups: &[String]) -> Vec<u8> {
    let list =
        |names: &[String]| names.iter().fold(Writer::default(), |list, name| list.string(name)).finish();
    framed(Writer::message(201).number(id).string(list(users)).string(list(groups)))
}

fn write_attributes(message: Writer, stat: &Standing) -> Writer {
    // Times end in 2106 in this protocol.
    let seconds = |seconds: i64| u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
    message
        .number(SIZE | OWNER | PERMISSIONS | TIMES)
        .long(stat.size)
        .number(stat.uid)
        .number(stat.gid)
        .number(stat.mode)
        .number(seconds(stat.accessed))
        .number(seconds(stat.modified))
}

/// A line as `ls -l` has it, with numbers for the owners: clients show it as it is.
fn long_name(name: &[u8], stat: &Standing) -> Vec<u8> {
    let letters: String = [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')]
        .iter()
        .flat_map(|(shift, special, letter)| {
            let bits = stat.mode >> shift;
            let has = |bit: u32, letter| if bits & bit != 0 { letter } else { '-' };
            let execute = match (stat.mode & special != 0, bits & 1 != 0) {
                (true, true) => *letter,
                (true, false) => letter.to_ascii_uppercase(),
                (false, true) => 'x',
                (false, false) => '-',
            };
            [has(4, 'r'), has(2, 'w'), execute]
        })
        .collect();
    // The protocol has these numbers of POSIX, whatever system it is.
    let kind = match stat.mode >> 12 {
        0o04 => 'd',
        0o12 => 'l',
        0o01 => 'p',
        0o14 => 's',
        0o02 => 'c',
        0o06 => 'b',
        _ => '-',
    };
    let Standing { links, uid, gid, size, .. } = stat;
    let modified = clock::listing_date(stat.modified);
    let line = format!("{kind}{letters} {links:>4} {uid:<8} {gid:<8} {size:>8} {modified} ");
    [line.as_bytes(), name].concat()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u8, body: Writer) -> BytesMut {
        let body = Writer::message(kind).number(7).raw(&body.finish()).finish();
        BytesMut::from(&Writer::default().string(body).finish()[..])
    }

    #[test]
    fn messages_are_read() {
        let write = Writer::default().string(9_u32.to_be_bytes()).long(5).string("abc");
        let expected = Request::Write { handle: 9, offset: 5, bytes: b"abc".to_vec() };
        assert_eq!(next(&mut message(6, write)), Ok(Some((7, expected))));
        let attributes = Attributes { permissions: Some(0o644), ..Attributes::default() };
        let open = Writer::default().string("/a").number(1 | 2 | 8).number(PERMISSIONS).number(0o644);
        let opening = Opening { read: true, write: true, create: true, ..Opening::default() };
        let expected = Request::Open { path: c"/a".to_owned(), opening, attributes };
        assert_eq!(next(&mut message(3, open)), Ok(Some((7, expected))));
        assert_eq!(next(&mut message(17, Writer::default().string("a\0b"))), Err(Wrong::Message(7)));
        assert_eq!(next(&mut message(99, Writer::default())), Ok(Some((7, Request::Unknown))));
        let extended = Writer::default().string("limits@openssh.com");
        assert_eq!(next(&mut message(200, extended)), Ok(Some((7, Request::Limits))));
        let mut cut = message(17, Writer::default().string("a"));
        cut.truncate(cut.len() - 1);
        assert_eq!(next(&mut cut), Ok(None));
        assert_eq!(next(&mut BytesMut::from(&[0xff; 8][..])), Err(Wrong::Stream));
    }

    #[test]
    fn lines_of_a_listing() {
        let stat = Standing { size: 5, mode: 0o104_755, links: 1, uid: 7, gid: 8, ..Standing::default() };
        let line = String::from_utf8(long_name(b"name", &stat)).expect("a text");
        assert_eq!(line, "-rwsr-xr-x    1 7        8               5 Jan  1  1970 name");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(kind in prop::sample::select(&[1_u8, 3, 5, 6, 9, 10, 18, 20, 200][..]), body in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut bytes = message(kind, Writer::default().raw(&body));
            let read = next(&mut bytes);
            prop_assert!(!matches!(read, Ok(None) | Err(Wrong::Stream)));
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn any_stream_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut bytes = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next(&mut bytes) {}
        }
    }
}
