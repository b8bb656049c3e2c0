//! Files over SFTP: an answer to each message, in order, with the workload's rights. Files are open only as long as the
//! channel is.

mod packet;

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    io,
    os::fd::OwnedFd,
    sync::Arc,
};

use bytes::BytesMut;
use sandhaus_ssh::{Channel, ChannelEvent};

use self::packet::{MESSAGE_BYTES_MAX, PIECE_BYTES_MAX, Request, Status, Wrong};
use crate::{
    accounts::{self, Register},
    agent::Agent,
    error::reason,
    sys::remote_files::{self as files, Links, Listing},
};

/// Most files and directories that are open at once.
const HANDLES_MAX: usize = 256;

/// Names of a directory in one answer.
const NAMES_AT_ONCE: usize = 128;

/// Bytes of answers that are made before they are sent.
const ANSWERS_BYTES: usize = 256 * 1024;

/// Users and groups whose names are looked up at once.
const IDS_MAX: usize = 512;

/// Permissions of what is made where nothing is said of them; less what the mask takes.
const NEW_FILE_MODE: u32 = 0o666;
const NEW_DIRECTORY_MODE: u32 = 0o777;

/// What is open, and where relative paths start.
struct Server {
    workdir: String,
    home: String,
    handles: BTreeMap<u32, Handle>,
    next: u32,
}

enum Handle {
    File(OwnedFd),
    Directory(Listing),
}

/// Serves a channel to its end.
pub(super) async fn serve(agent: &Arc<Agent>, mut channel: Channel) {
    let sender = channel.sender();
    let mut server = Server {
        workdir: agent.workdir.clone(),
        home: agent.workload.home.clone(),
        handles: BTreeMap::new(),
        next: 0,
    };
    let mut received = BytesMut::new();
    while let Some(event) = channel.receive().await {
        match event {
            ChannelEvent::Data(bytes) => received.extend_from_slice(&bytes),
            ChannelEvent::Eof => break,
            ChannelEvent::Request(..) => continue,
        }
        loop {
            // As many messages at once as there are and as their answers may take.
            let work = move || {
                let (answers, outcome) = server.answer_all(&mut received);
                (server, received, answers, outcome)
            };
            let (answers, outcome);
            (server, received, answers, outcome) = agent.on_file_thread(work).await;
            if sender.data(&answers).await.is_err() {
                return;
            }
            match outcome {
                Outcome::Wait => break,
                Outcome::More => {}
                Outcome::Nonsense => return,
            }
        }
    }
    channel.finish(Some(sandhaus_ssh::Ending::Status(0)));
}

/// What follows after some messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// There is no further whole message.
    Wait,
    /// There may be.
    More,
    /// The client sends what is none.
    Nonsense,
}

impl Server {
    fn answer_all(&mut self, received: &mut BytesMut) -> (Vec<u8>, Outcome) {
        let mut answers = Vec::new();
        while answers.len() < ANSWERS_BYTES {
            match packet::next(received) {
                Ok(Some((id, request))) => answers.extend(self.answer(id, request)),
                Ok(None) => return (answers, Outcome::Wait),
                Err(Wrong::Message(id)) => {
                    answers.extend(packet::status(id, Status::BadMessage, "not a message"));
                }
                Err(Wrong::Stream) => return (answers, Outcome::Nonsense),
            }
        }
        (answers, Outcome::More)
    }

    fn answer(&mut self, id: u32, request: Request) -> Vec<u8> {
        let answer = match request {
            Request::Init => return packet::version(),
            Request::Unknown => return packet::status(id, Status::Unsupported, "not supported"),
            Request::Read { .. }
            | Request::Write { .. }
            | Request::Close { .. }
            | Request::FileStat { .. }
            | Request::ChangeFile { .. }
            | Request::Sync { .. }
            | Request::ReadDirectory { .. } => self.answer_of_handle(id, request),
            Request::Open { .. } | Request::OpenDirectory { .. } => self.open(id, request),
            _ => self.answer_of_path(id, request),
        };
        answer.unwrap_or_else(|error| packet::status(id, status_of(&error), &reason(&error)))
    }

    fn answer_of_handle(&mut self, id: u32, request: Request) -> io::Result<Vec<u8>> {
        match request {
            Request::Read { handle, offset, length } => {
                let bytes = files::read_at(self.file(handle)?, offset, length)?;
                if bytes.is_empty() && length > 0 {
                    return Ok(packet::status(id, Status::Eof, "end of file"));
                }
                return Ok(packet::data(id, &bytes));
            }
            Request::Write { handle, offset, bytes } => {
                files::write_at(self.file(handle)?, offset, &bytes)?;
            }
            Request::Close { handle } => {
                self.handles.remove(&handle).ok_or(io::ErrorKind::InvalidInput)?;
            }
            Request::FileStat { handle } => {
                return Ok(packet::attributes_of(id, &files::stat_file(self.file(handle)?)?));
            }
            Request::ChangeFile { handle, attributes } => files::change_file(self.file(handle)?, attributes)?,
            Request::Sync { handle } => files::sync_file(self.file(handle)?)?,
            Request::ReadDirectory { handle } => {
                let Some(Handle::Directory(listing)) = self.handles.get_mut(&handle) else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                let entries = listing.next(NAMES_AT_ONCE)?;
                if entries.is_empty() {
                    return Ok(packet::status(id, Status::Eof, "no more names"));
                }
                return Ok(packet::names(id, &entries));
            }
            _ => return Ok(packet::status(id, Status::Unsupported, "not supported")),
        }
        Ok(packet::status(id, Status::Ok, ""))
    }

    fn open(&mut self, id: u32, request: Request) -> io::Result<Vec<u8>> {
        if self.handles.len() >= HANDLES_MAX {
            return Ok(packet::status(id, Status::Failure, "too many open files"));
        }
        let handle = match request {
            Request::Open { path, opening, attributes } => {
                let mode = attributes.permissions.unwrap_or(NEW_FILE_MODE);
                let file = files::open_file(&self.place(&path), opening, mode)?;
                Handle::File(file)
            }
            Request::OpenDirectory { path } => Handle::Directory(files::open_listing(&self.place(&path))?),
            _ => return Ok(packet::status(id, Status::Unsupported, "not supported")),
        };
        while self.handles.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.handles.insert(number, handle);
        Ok(packet::opened(id, number))
    }

    fn answer_of_path(&self, id: u32, request: Request) -> io::Result<Vec<u8>> {
        match request {
            Request::Stat { path } => {
                let stat = files::stat_path(&self.place(&path), Links::Followed)?;
                return Ok(packet::attributes_of(id, &stat));
            }
            Request::LinkStat { path } => {
                let stat = files::stat_path(&self.place(&path), Links::Themselves)?;
                return Ok(packet::attributes_of(id, &stat));
            }
            Request::Change { path, attributes } => {
                files::change_path(&self.place(&path), attributes, Links::Followed)?;
            }
            Request::ChangeLink { path, attributes } => {
                files::change_path(&self.place(&path), attributes, Links::Themselves)?;
            }
            Request::Remove { path } => files::remove_file(&self.place(&path))?,
            Request::MakeDirectory { path, attributes } => {
                let mode = attributes.permissions.unwrap_or(NEW_DIRECTORY_MODE);
                files::make_directory(&self.place(&path), mode)?;
            }
            Request::RemoveDirectory { path } => files::remove_directory(&self.place(&path))?,
            Request::RealPath { path } => {
                return Ok(packet::name(id, &files::absolute(self.place(&path).as_bytes())?));
            }
            Request::ExpandPath { path } => {
                return Ok(packet::name(id, &files::absolute(self.expand(&path).as_bytes())?));
            }
            Request::RenameAside { from, to } => files::rename_aside(&self.place(&from), &self.place(&to))?,
            Request::RenameOver { from, to } => files::rename_over(&self.place(&from), &self.place(&to))?,
            Request::HardLink { from, to } => files::link_file(&self.place(&from), &self.place(&to))?,
            Request::Symlink { text, link } => files::link_symbolically(&text, &self.place(&link))?,
            Request::ReadLink { path } => {
                return Ok(packet::name(id, &files::read_link(&self.place(&path))?));
            }
            Request::StatFileSystem { path } => {
                return Ok(packet::extended(id, &files::stat_file_system(&self.place(&path))?));
            }
            Request::Limits => {
                let limits = [MESSAGE_BYTES_MAX, PIECE_BYTES_MAX, PIECE_BYTES_MAX, HANDLES_MAX];
                return Ok(packet::extended(id, &limits.map(|limit| limit as u64)));
            }
            Request::Names { users, groups } => {
                let names =
                    |register, ids: &[u32]| accounts::names_of(register, &ids[..ids.len().min(IDS_MAX)]);
                let (users, groups) = (names(Register::Users, &users), names(Register::Groups, &groups));
                return Ok(packet::extended_names(id, &users, &groups));
            }
            _ => return Ok(packet::status(id, Status::Unsupported, "not supported")),
        }
        Ok(packet::status(id, Status::Ok, ""))
    }

    fn file(&self, handle: u32) -> io::Result<&OwnedFd> {
        match self.handles.get(&handle) {
            Some(Handle::File(file)) => Ok(file),
            Some(Handle::Directory(_)) | None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// A path as files have it.
    fn place(&self, path: &CStr) -> CString {
        if path.to_bytes().starts_with(b"/") {
            return path.to_owned();
        }
        joined(&self.workdir, path.to_bytes())
    }

    /// The same where `~` is the home directory.
    fn expand(&self, path: &CStr) -> CString {
        match path.to_bytes() {
            b"~" => joined(&self.home, b""),
            bytes => match bytes.strip_prefix(b"~/") {
                Some(rest) => joined(&self.home, rest),
                None => self.place(path),
            },
        }
    }
}

fn joined(folder: &str, path: &[u8]) -> CString {
    let whole = [folder.as_bytes(), b"/", path].concat();
    // Neither part has a NUL byte: one comes from a boot document that was checked, the other from a C string.
    CString::new(whole).unwrap_or_default()
}

fn status_of(error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Status::NoSuchFile,
        io::ErrorKind::PermissionDenied => Status::PermissionDenied,
        io::ErrorKind::InvalidInput => Status::BadMessage,
        io::ErrorKind::Unsupported => Status::Unsupported,
        _ => Status::Failure,
    }
}
