//! Import of archives and directories.

use std::{
    cell::Cell,
    collections::HashMap,
    ffi::CString,
    io::{self, Read},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, Timespec},
    io::Errno,
};

use crate::{
    Error, Result,
    archive::{Archive, Bounded, Counted, Ending, MemberKind},
    digest::extended_attributes,
    registry::manifest::Platform,
    root::{Attributes, EntryPath, Limits, Root},
};

/// Bytes moved at once.
const COPY_BYTES: usize = 256 << 10;

/// Bytes at the start of a file that tell how it is compressed.
const MAGIC_BYTES: usize = 6;

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Replace the name if it is taken.
    pub replace: bool,
    /// The kind of machine whose image is taken from a source that has several; absent: this one's.
    pub platform: Option<Platform>,
}

/// Called with bytes read so far and the total where it is known.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, Option<u64>);

/// What of a source did not go into the image.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    devices: u64,
    pipes: u64,
}

impl LeftOut {
    /// Notes it in the log.
    pub(crate) fn tell(&self) {
        let Self { devices, pipes } = self;
        if devices + pipes > 0 {
            tracing::info!(devices, pipes, "device files, pipes and sockets are not part of the image");
        }
    }

    /// Device files below `dev` are what every packed root file system has; sandboxes get their own. Elsewhere they
    /// are refused: nothing good needs them, and overlayfs would read some as "deleted".
    fn device(&mut self, path: &EntryPath) -> Result<()> {
        if path.is_in("dev") {
            self.devices += 1;
            return Ok(());
        }
        Err(Error::Source(format!(
            "entry {path} is a device file; these are accepted below dev only, and left out"
        )))
    }
}

/// Fills the empty directory `tree` from an archive or directory. The folder `catalogue` is not part of any image.
pub(crate) fn fill(
    source: &Path,
    tree: &Path,
    catalogue: &Path,
    limits: Limits,
    progress: Progress<'_>,
) -> Result<Contents> {
    let file = rustix::fs::open(
        source,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Error::at(source))?;
    let stat = rustix::fs::fstat(&file).map_err(Error::at(source))?;
    let allowance = limits.expansion_allowance_bytes;
    let mut root = Root::open(tree, limits)?;
    let (left_out, contents) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let total = u64::try_from(stat.st_size).unwrap_or(0);
            unpack(file, total, source, &mut root, allowance, progress)?
        }
        FileType::Directory => {
            let itself = rustix::fs::stat(catalogue).map_err(Error::at(catalogue))?;
            let mut copy = Copy {
                root: &mut root,
                source,
                device: stat.st_dev,
                catalogue: (itself.st_dev, itself.st_ino),
                names: HashMap::new(),
                left_out: LeftOut::default(),
                bytes: 0,
                buffer: vec![0; COPY_BYTES],
                progress,
            };
            copy.directory(&file, &EntryPath::parse(b"")?)?;
            (copy.left_out, Contents::Root)
        }
        _ => return Err(Error::Source("it is neither an archive nor a directory".to_owned())),
    };
    if root.is_empty() {
        return Err(Error::Source("it holds no files".to_owned()));
    }
    left_out.tell();
    root.finish()?;
    Ok(contents)
}

/// Unpacks an archive.
fn unpack(
    file: OwnedFd,
    total: u64,
    source: &Path,
    root: &mut Root,
    allowance: u64,
    progress: Progress<'_>,
) -> Result<(LeftOut, Contents)> {
    let count = Rc::new(Cell::new(0));
    let compressed = Counted::new(std::fs::File::from(file), Rc::clone(&count));
    let reader = decoder(compressed, &count, allowance).map_err(|error| decoder_failure(error, source))?;
    let reader = io::BufReader::with_capacity(COPY_BYTES, reader);
    let mut archive = Archive::new(reader, source.to_path_buf(), Ending::Marked);
    let mut kind_of_archive = KindOfArchive::default();
    let mut left_out = LeftOut::default();
    let mut place = Placing { root, whiteouts: Whiteouts::Names, left_out: &mut left_out };
    let mut notice = |path: Option<&EntryPath>| {
        if let Some(path) = path {
            kind_of_archive.notice(path);
        }
        progress(count.get(), Some(total));
    };
    place.all(&mut archive, &mut notice)?;
    Ok((left_out, kind_of_archive.kind()))
}

/// Undoes the compression of what is read, told by its first bytes. `count` counts what was read through `compressed`.
pub(crate) fn decoder<'a>(
    mut compressed: impl Read + 'a,
    count: &Rc<Cell<u64>>,
    allowance: u64,
) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    (&mut compressed).take(MAGIC_BYTES as u64).read_to_end(&mut magic)?;
    let compressed = io::Cursor::new(magic.clone()).chain(compressed);
    let refuse = |problem: Compression| Err(io::Error::other(problem));
    Ok(match magic.as_slice() {
        [] => return refuse(Compression::Empty),
        [0x1f, 0x8b, ..] => {
            let decoder =
                flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(COPY_BYTES, compressed));
            Box::new(Bounded::new(decoder, Rc::clone(count), allowance))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::Decoder::new(compressed)?;
            Box::new(Bounded::new(decoder, Rc::clone(count), allowance))
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return refuse(Compression::Unknown("xz")),
        [b'B', b'Z', b'h', ..] => return refuse(Compression::Unknown("bzip2")),
        [b'P', b'K', 3, 4, ..] => return refuse(Compression::Unknown("zip")),
        _ => Box::new(compressed),
    })
}

/// Why something cannot be decompressed at all.
#[derive(Debug, thiserror::Error)]
enum Compression {
    #[error("it is empty")]
    Empty,
    #[error("it is compressed with {0}; tar, tar.gz and tar.zst are accepted")]
    Unknown(&'static str),
}

/// What a failure to begin decompression means.
pub(crate) fn decoder_failure(error: io::Error, source: &Path) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Compression>()) {
        Some(problem) => Error::Source(problem.to_string()),
        None => Error::at(source)(error),
    }
}

/// Whether names say what of layers below is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    /// `.wh.NAME` hides NAME, as layers have it.
    Meant,
    /// They are names like any other.
    Names,
}

/// Begins the name of a whiteout.
const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// Hides all that layers below have in its directory.
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// Begins further names that some tools leave; they mean nothing to us.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";

/// The members of an archive on their way into a tree.
pub(crate) struct Placing<'a> {
    pub(crate) root: &'a mut Root,
    pub(crate) whiteouts: Whiteouts,
    pub(crate) left_out: &'a mut LeftOut,
}

impl Placing<'_> {
    /// Places every member; `notice` is called with each path, and while a large file is written.
    pub(crate) fn all<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        notice: &mut dyn FnMut(Option<&EntryPath>),
    ) -> Result<()> {
        let mut buffer = vec![0; COPY_BYTES];
        while let Some(member) = archive.next()? {
            notice(Some(&member.path));
            if self.whiteouts == Whiteouts::Meant && self.whiteout(&member.path)? {
                continue;
            }
            let (path, attributes) = (&member.path, &member.attributes);
            match &member.kind {
                MemberKind::Directory => self.root.directory(path, attributes)?,
                MemberKind::Symlink(target) => self.root.symlink(path, target, attributes)?,
                MemberKind::HardLink(target) => self.root.hard_link(path, target)?,
                // Layers of images are what others made; a device in them is as useless, but nobody's fault.
                MemberKind::Device if self.whiteouts == Whiteouts::Meant => self.left_out.devices += 1,
                MemberKind::Device => self.left_out.device(path)?,
                MemberKind::Pipe => self.left_out.pipes += 1,
                MemberKind::File(length, pieces) => {
                    let mut file = self.root.create(path)?;
                    for piece in pieces {
                        self.root.extend(&mut file, piece.offset)?;
                        let end = piece.offset + piece.length;
                        while file.length() < end {
                            let wanted =
                                usize::try_from(end - file.length()).unwrap_or(usize::MAX).min(COPY_BYTES);
                            let read = archive.read_data(&mut buffer[..wanted])?;
                            self.root.append(&mut file, &buffer[..read])?;
                            notice(None);
                        }
                    }
                    self.root.extend(&mut file, *length)?;
                    self.root.finish_file(file, attributes)?;
                }
            }
        }
        Ok(())
    }

    /// Whether the member only hides something of layers below.
    fn whiteout(&mut self, path: &EntryPath) -> Result<bool> {
        let (parent, name) = path.split();
        if name == WHITEOUT_OPAQUE {
            self.root.opaque(&EntryPath::parse(parent)?)?;
        } else if name.starts_with(WHITEOUT_META_PREFIX) {
            // Nothing to do.
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Error::Source(format!("entry {path} hides nothing that can be named")));
            }
            self.root.whiteout(&EntryPath::parse(parent)?.join(hidden)?)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

/// What an archive or a directory turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// A root file system.
    Root,
    /// An image in layers, to be put together.
    Layered,
}

/// Tells the archive of a root file system from one of an image in layers.
#[derive(Debug, Default)]
struct KindOfArchive {
    layout: bool,
    manifest: bool,
    programs: bool,
}

impl KindOfArchive {
    fn notice(&mut self, path: &EntryPath) {
        self.layout |= path.as_bytes() == b"oci-layout";
        self.manifest |= path.as_bytes() == b"manifest.json";
        self.programs |=
            ["bin", "usr", "etc"].iter().any(|name| path.as_bytes() == name.as_bytes() || path.is_in(name));
    }

    fn kind(&self) -> Contents {
        if (self.layout || self.manifest) && !self.programs { Contents::Layered } else { Contents::Root }
    }
}

/// A directory being copied.
struct Copy<'a> {
    root: &'a mut Root,
    source: &'a Path,
    /// File system of the source; what is mounted in it stays out.
    device: u64,
    catalogue: (u64, u64),
    /// Files with several names, and the first one.
    names: HashMap<(u64, u64), EntryPath>,
    left_out: LeftOut,
    bytes: u64,
    buffer: Vec<u8>,
    progress: Progress<'a>,
}

impl Copy<'_> {
    /// Copies what is in a directory. Everything is opened by its name in it, never through a link.
    fn directory(&mut self, directory: &OwnedFd, path: &EntryPath) -> Result<()> {
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(directory).map_err(Error::at(self.source))? {
            let entry = entry.map_err(Error::at(self.source))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        for name in names {
            let path = path.join(name.to_bytes())?;
            self.entry(directory, &name, &path)?;
            (self.progress)(self.bytes, None);
        }
        Ok(())
    }

    fn entry(&mut self, parent: &OwnedFd, name: &CString, path: &EntryPath) -> Result<()> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It was removed since its name was read.
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(self.failed(path)(error)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory | FileType::RegularFile => self.opened(parent, name, path),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(self.failed(path))?;
                self.root.symlink(path, target.as_bytes(), &attributes(&stat))
            }
            FileType::CharacterDevice | FileType::BlockDevice => self.left_out.device(path),
            FileType::Fifo | FileType::Socket | FileType::Unknown => {
                self.left_out.pipes += 1;
                Ok(())
            }
        }
    }

    /// Copies a file or directory as it is once it is open, whatever its name stands for by then.
    fn opened(&mut self, parent: &OwnedFd, name: &CString, path: &EntryPath) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(self.failed(path))?;
        let stat = rustix::fs::fstat(&opened).map_err(self.failed(path))?;
        let mut attributes = attributes(&stat);
        attributes.extended = extended_attributes(opened.as_fd()).map_err(self.failed(path))?;
        let identity = (stat.st_dev, stat.st_ino);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.root.directory(path, &attributes)?;
                if stat.st_dev != self.device || identity == self.catalogue {
                    return Ok(());
                }
                self.directory(&opened, path)
            }
            FileType::RegularFile => {
                if stat.st_nlink > 1 {
                    if let Some(first) = self.names.get(&identity) {
                        return self.root.hard_link(path, first);
                    }
                    self.names.insert(identity, path.clone());
                }
                self.file(opened, path, &stat, &attributes)
            }
            _ => Err(Error::Source(format!("{path} changed while it was copied"))),
        }
    }

    /// Copies the content of a file, holes as holes.
    fn file(
        &mut self,
        opened: OwnedFd,
        path: &EntryPath,
        stat: &Stat,
        attributes: &Attributes,
    ) -> Result<()> {
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        let mut file = self.root.create(path)?;
        let content = std::fs::File::from(opened);
        while file.length() < length {
            let data = match rustix::fs::seek(&content, SeekFrom::Data(file.length())) {
                Ok(data) => data.min(length),
                // Only a hole is left.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(self.failed(path)(error)),
            };
            let end =
                rustix::fs::seek(&content, SeekFrom::Hole(data)).map_err(self.failed(path))?.min(length);
            self.root.extend(&mut file, data)?;
            while file.length() < end {
                let wanted = usize::try_from(end - file.length()).unwrap_or(usize::MAX).min(COPY_BYTES);
                let read =
                    content.read_at(&mut self.buffer[..wanted], file.length()).map_err(self.failed(path))?;
                if read == 0 {
                    return Err(Error::Source(format!("{path} became shorter while it was copied")));
                }
                self.root.append(&mut file, &self.buffer[..read])?;
                self.bytes += read as u64;
                (self.progress)(self.bytes, None);
            }
        }
        self.root.extend(&mut file, length)?;
        self.root.finish_file(file, attributes)
    }

    fn failed<E: Into<io::Error>>(&self, path: &EntryPath) -> impl FnOnce(E) -> Error + use<E> {
        use std::os::unix::ffi::OsStrExt as _;
        Error::at(self.source.join(std::ffi::OsStr::from_bytes(path.as_bytes())))
    }
}

fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid.into(),
        gid: stat.st_gid.into(),
        modified: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() },
        extended: Vec::new(),
    }
}
