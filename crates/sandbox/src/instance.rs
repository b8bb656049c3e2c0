//! An instance: one data directory, held by a lock. Everything made in the kernel carries its id, so that two servers,
//! `run` without a server, and parallel tests never touch each other's sandboxes.
//!
//! The lock is an open-file-description lock on `<dir>/lock`: the kernel frees it however the process ends, and asking
//! who holds it never takes it, not even for a moment. The lock file appears in the directory *already locked* (an
//! unnamed file is locked first and linked afterwards), so a sweeper never mistakes a starter for a dead instance.
//! [`Instance::remove`] unlinks the lock file last; a starter that had opened the old one sees that its name now means
//! something else and begins again.
#![expect(unsafe_code, reason = "open-file-description locks have no safe wrapper")]

use std::{
    fs::{File, Permissions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::{
    digits,
    error::{Error, Kind, Result},
};

const LOCK_FILE: &str = "lock";
const ID_FILE: &str = "instance";
const HOLDER_FILE: &str = "holder";

/// How often a starter begins again because a sweeper removed the directory under it.
const ACQUIRE_ATTEMPTS_MAX: usize = 64;

/// Length of an instance's id in hex digits.
pub const ID_DIGITS: usize = 12;

/// A held data directory. The lock is freed by the kernel when the process ends, however it ends.
#[derive(Debug)]
pub struct Instance {
    id: String,
    span: Span,
    dir: PathBuf,
    /// Held for its lock only.
    _lock: File,
}

/// How long an instance is meant to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Until somebody removes its directory: what is wanted of it is kept on disk.
    Lasting,
    /// As long as its process. If that is killed, a sweeper ends what is left; nobody goes on with it, so what is
    /// wanted of it is kept in memory only, and its id is its directory's name.
    Process,
}

/// Who holds a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// Where its API listens, once it does.
    pub url: Option<String>,
}

impl Instance {
    /// Makes the directory if needed (0700) and takes its lock. [`crate::Kind::Conflict`] if another process holds it.
    pub fn acquire(dir: &Path) -> Result<Self> {
        Self::acquire_for(dir, Span::Lasting)
    }

    /// The same for an instance that ends with this process. The directory's name is its id.
    pub fn acquire_for_process(parent: &Path, id: &str) -> Result<Self> {
        if !is_id(id) {
            return Err(Error::new(Kind::Invalid, format!("an instance's id has {ID_DIGITS} hex digits")));
        }
        Self::acquire_for(&parent.join(id), Span::Process)
    }

    fn acquire_for(dir: &Path, span: Span) -> Result<Self> {
        for _ in 0..ACQUIRE_ATTEMPTS_MAX {
            match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
                Ok(()) => {}
                // It was there when it was made and not when it was looked at: a sweeper has removed it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_file(dir) => continue,
                Err(error) => return Err(failed("make data directory", error)),
            }
            match take_lock(dir, LockFile::Create)
                .map_err(|error| failed("take lock of data directory", error))?
            {
                Take::Taken(lock) => return Self::held(dir, lock, span),
                Take::Held => {
                    let message = format!("data directory {} is held by another process", dir.display());
                    return Err(Error::new(Kind::Conflict, message));
                }
                Take::Moved => {}
            }
        }
        Err(Error::new(Kind::Unavailable, format!("data directory {} is being removed", dir.display())))
    }

    /// The id: 12 hex digits, made once per directory and kept in it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How long it is meant to last.
    pub fn span(&self) -> Span {
        self.span
    }

    /// A fresh id.
    pub fn random_id() -> String {
        digits::random::<{ ID_DIGITS / 2 }>()
    }

    /// Writes down where the API listens, for [`Self::holder`].
    pub fn announce(&self, url: &str) -> Result<()> {
        write_holder(&self.dir, Some(url.to_owned()))
    }

    /// The file whose lock tells who holds `dir`.
    pub fn lock_path(dir: &Path) -> PathBuf {
        dir.join(LOCK_FILE)
    }

    /// Who holds `dir`, if anyone does.
    pub fn holder(dir: &Path) -> Result<Option<Holder>> {
        let lock = match fs_err::File::open(dir.join(LOCK_FILE)) {
            Ok(lock) => lock.into_parts().0,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(failed("open lock of data directory", error)),
        };
        if !is_locked(&lock).map_err(|error| failed("look at lock of data directory", error))? {
            return Ok(None);
        }
        // The holder writes this file right after it took the lock; a reader in between knows no address yet.
        let holder = fs_err::read(dir.join(HOLDER_FILE))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or(Holder { pid: 0, url: None });
        Ok(Some(holder))
    }

    /// Takes every instance directly under `parent` whose holder is dead, for sweeping. The caller ends what its
    /// engines find there and then calls [`Self::remove`].
    pub fn take_dead(parent: &Path) -> Result<Vec<Self>> {
        let entries = match fs_err::read_dir(parent) {
            Ok(entries) => entries,
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            Err(error) => return Err(failed("list instances", error)),
        };
        let mut taken = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("list instances", error))?;
            // Only a real directory: a link could lead a sweeper, who is root, anywhere.
            if !entry.file_type().map_err(|error| failed("list instances", error))?.is_dir() {
                continue;
            }
            let dir = entry.path();
            match take_lock(&dir, LockFile::Existing) {
                Ok(Take::Taken(lock)) => {
                    let span = if dir.join(ID_FILE).exists() { Span::Lasting } else { Span::Process };
                    match Self::held(&dir, lock, span) {
                        Ok(instance) => taken.push(instance),
                        // One that cannot be understood must not keep the others from being swept.
                        Err(error) => tracing::warn!(dir = %dir.display(), %error, "cannot take an instance"),
                    }
                }
                // Without a lock file it is a starter's that has just begun (which begins again) or one that died
                // there; only an empty directory goes.
                Ok(Take::Moved) => drop(std::fs::remove_dir(&dir)),
                Ok(Take::Held) => {}
                Err(error) => tracing::warn!(dir = %dir.display(), %error, "cannot look at an instance"),
            }
        }
        Ok(taken)
    }

    /// Removes the directory of an instance of which nothing is left.
    pub fn remove(self) -> Result<()> {
        let remove = || -> io::Result<()> {
            // The id goes late and the lock last: whoever finds a half removed directory can still sweep it.
            for entry in fs_err::read_dir(&self.dir)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == LOCK_FILE || name == ID_FILE {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    fs_err::remove_dir_all(entry.path())?;
                } else {
                    fs_err::remove_file(entry.path())?;
                }
            }
            if self.span == Span::Lasting {
                fs_err::remove_file(self.dir.join(ID_FILE))?;
            }
            fs_err::remove_file(self.dir.join(LOCK_FILE))?;
            match std::fs::remove_dir(&self.dir) {
                // A starter has taken the empty directory over: it is its own now.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                other => other,
            }
        };
        remove().map_err(|error| failed("remove data directory", error))
    }

    fn held(dir: &Path, lock: File, span: Span) -> Result<Self> {
        let dir = dir.canonicalize().map_err(|error| failed("resolve data directory", error))?;
        let id = match span {
            Span::Lasting => {
                let id = read_or_make_id(&dir).map_err(|error| failed("read instance id", error))?;
                write_holder(&dir, None)?;
                id
            }
            // Nobody looks for its holder, and its name needs no file that a crash could leave empty.
            Span::Process => {
                let name = dir.file_name().and_then(|name| name.to_str()).filter(|name| is_id(name));
                name.ok_or_else(|| Error::new(Kind::Invalid, "the directory's name is not an id"))?.to_owned()
            }
        };
        Ok(Self { id, span, dir, _lock: lock })
    }
}

/// Whether something other than a directory is in the way.
fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| !path.is_dir() && !found.is_dir())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LockFile {
    Create,
    Existing,
}

enum Take {
    Taken(File),
    Held,
    /// The lock file is not there, or its name has come to mean another file.
    Moved,
}

fn take_lock(dir: &Path, file: LockFile) -> io::Result<Take> {
    let path = dir.join(LOCK_FILE);
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW);
    let lock = match options.open(&path) {
        Ok(lock) => lock,
        Err(error) if is_missing(&error) && file == LockFile::Create => return make_locked(dir),
        Err(error) if is_missing(&error) => return Ok(Take::Moved),
        Err(error) => return Err(error),
    };
    if !try_lock(&lock)? {
        return Ok(Take::Held);
    }
    let mine = lock.metadata()?;
    match std::fs::symlink_metadata(&path) {
        Ok(named) if (named.dev(), named.ino()) == (mine.dev(), mine.ino()) => Ok(Take::Taken(lock)),
        Ok(_) => Ok(Take::Moved),
        Err(error) if is_missing(&error) => Ok(Take::Moved),
        Err(error) => Err(error),
    }
}

/// Makes the lock file so that it is locked before it has a name.
fn make_locked(dir: &Path) -> io::Result<Take> {
    use rustix::{fs, io::Errno};

    let folder = match fs::open(dir, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(Take::Moved),
        Err(error) => return Err(error.into()),
    };
    let mode = Mode::from_raw_mode(0o600);
    let file = match fs::openat(&folder, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(Take::Moved),
        // What ext4 says where others say that it is not there: a sweeper has removed the directory meanwhile.
        Err(Errno::PERM) if fs::fstat(&folder)?.st_nlink == 0 => return Ok(Take::Moved),
        Err(error) => return Err(error.into()),
    };
    if !try_lock(&file)? {
        return Ok(Take::Held);
    }
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    match fs::linkat(fs::CWD, unnamed, &folder, LOCK_FILE, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(Take::Taken(file)),
        // Another starter was faster, or a sweeper took the empty directory away: look again.
        Err(Errno::EXIST | Errno::NOENT) => Ok(Take::Moved),
        Err(error) => Err(error.into()),
    }
}

fn whole_file() -> libc::flock {
    // SAFETY: `flock` is a plain C record for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = short(libc::F_WRLCK);
    lock.l_whence = short(libc::SEEK_SET);
    lock
}

/// The C headers give these small constants a wider type than the record's fields.
fn short(constant: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(constant).expect("constants of fcntl.h are small")
}

fn try_lock(file: &File) -> io::Result<bool> {
    let lock = whole_file();
    // SAFETY: the descriptor is open and the record outlives the call, which only reads it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

fn is_locked(file: &File) -> io::Result<bool> {
    let mut lock = whole_file();
    // SAFETY: the descriptor is open and the record is valid for writing during the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type != short(libc::F_UNLCK))
}

fn read_or_make_id(dir: &Path) -> io::Result<String> {
    let path = dir.join(ID_FILE);
    match fs_err::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim();
            if is_id(id) {
                return Ok(id.to_owned());
            }
            Err(io::Error::new(io::ErrorKind::InvalidData, "the file `instance` does not hold an id"))
        }
        Err(error) if is_missing(&error) => {
            let id = Instance::random_id();
            // Synced: kernel objects carry it, and a lost id would leave them without an owner.
            replace_file(&path, id.as_bytes(), Sync::Yes)?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn write_holder(dir: &Path, url: Option<String>) -> Result<()> {
    let holder = Holder { pid: std::process::id(), url };
    let json = serde_json::to_vec(&holder).expect("a holder is plain data");
    replace_file(&dir.join(HOLDER_FILE), &json, Sync::No).map_err(|error| failed("write holder", error))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    Yes,
    No,
}

/// Replaces a file as a whole: readers see the old content or the new. Only the lock's holder writes here.
fn replace_file(path: &Path, content: &[u8], sync: Sync) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs_err::File::create(&new)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    if sync == Sync::Yes {
        file.sync_all()?;
    }
    fs_err::rename(&new, path)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn failed(what: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Error::new(Kind::Forbidden, format!("{what}: permission denied")).with_source(error)
        }
        _ => Error::internal(what, error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use super::*;

    #[test]
    fn one_holder_at_a_time_and_the_id_stays() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let dir = parent.path().join("deep/data");
        let first = Instance::acquire(&dir).expect("free");
        assert_eq!(first.id().len(), ID_DIGITS);
        assert_eq!(dir.metadata().expect("made").permissions().mode() & 0o777, 0o700);
        assert_eq!(Instance::acquire(&dir).expect_err("held").kind(), Kind::Conflict);
        let holder = Instance::holder(&dir).expect("readable").expect("held");
        assert_eq!((holder.pid, holder.url), (std::process::id(), None));
        first.announce("http://127.0.0.1:1").expect("written");
        let holder = Instance::holder(&dir).expect("readable").expect("held");
        assert_eq!(holder.url.as_deref(), Some("http://127.0.0.1:1"));

        let id = first.id().to_owned();
        drop(first);
        assert_eq!(Instance::holder(&dir).expect("readable"), None, "free again, whatever the file says");
        let second = Instance::acquire(&dir).expect("free again");
        assert_eq!(second.id(), id);
        let holder = Instance::holder(&dir).expect("readable").expect("held");
        assert_eq!(holder.url, None, "the address of the former holder is not this one's");
    }

    #[test]
    fn nobody_holds_what_is_not_there() {
        let parent = tempfile::tempdir().expect("temporary directory");
        assert_eq!(Instance::holder(&parent.path().join("missing")).expect("readable"), None);
        assert!(Instance::take_dead(&parent.path().join("missing")).expect("readable").is_empty());
    }

    #[test]
    fn a_broken_id_is_refused() {
        let parent = tempfile::tempdir().expect("temporary directory");
        std::fs::write(parent.path().join(ID_FILE), "../../etc").expect("written");
        assert_eq!(Instance::acquire(parent.path()).expect_err("refused").kind(), Kind::Internal);
    }

    #[test]
    fn one_that_ends_with_its_process_is_named_by_its_directory_and_swept() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let id = Instance::random_id();
        let instance = Instance::acquire_for_process(parent.path(), &id).expect("free");
        assert_eq!((instance.id(), instance.span()), (id.as_str(), Span::Process));
        let files = |instance: &Instance| instance.dir().read_dir().expect("readable").count();
        assert_eq!(files(&instance), 1, "nothing but its lock");
        assert!(Instance::take_dead(parent.path()).expect("readable").is_empty());
        drop(instance);
        std::fs::create_dir(parent.path().join("odd")).expect("made");
        std::fs::write(parent.path().join("odd").join(LOCK_FILE), "").expect("made");
        let mut taken = Instance::take_dead(parent.path()).expect("one that is odd keeps nobody");
        assert_eq!(taken.iter().map(Instance::id).collect::<Vec<_>>(), [id.as_str()]);
        taken.pop().expect("one").remove().expect("removed");
        assert!(!parent.path().join(id).exists());
        for wrong in ["", "..", "0123456789ag", "0123456789abc", "../456789ab"] {
            assert_eq!(
                Instance::acquire_for_process(parent.path(), wrong).expect_err("refused").kind(),
                Kind::Invalid
            );
        }
    }

    #[test]
    fn only_the_dead_are_taken_and_they_can_be_removed() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let live = Instance::acquire(&parent.path().join("live")).expect("free");
        let dead = Instance::acquire(&parent.path().join("dead")).expect("free");
        let dead_id = dead.id().to_owned();
        std::fs::create_dir_all(dead.dir().join("disks/x")).expect("made");
        drop(dead);
        std::fs::create_dir(parent.path().join("begun")).expect("made");
        std::fs::write(parent.path().join("file"), "").expect("made");
        std::os::unix::fs::symlink("/", parent.path().join("link")).expect("made");

        let mut taken = Instance::take_dead(parent.path()).expect("readable");
        assert_eq!(taken.iter().map(Instance::id).collect::<Vec<_>>(), [dead_id]);
        assert!(
            Instance::take_dead(parent.path()).expect("readable").is_empty(),
            "a second sweeper finds it held"
        );
        taken.pop().expect("one").remove().expect("removed");
        assert!(!parent.path().join("dead").exists());
        assert!(!parent.path().join("begun").exists(), "an empty directory without a lock goes");
        assert!(live.dir().join(LOCK_FILE).exists());
    }

    /// Starters and sweepers race for the same directory: at every moment at most one holds it, a starter only ever
    /// hears "held", and nobody fails.
    #[test]
    fn starters_and_sweepers_race_safely() {
        let parent = Arc::new(tempfile::tempdir().expect("temporary directory"));
        let barrier = Arc::new(Barrier::new(4));
        let holders = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let threads: Vec<_> = (0..4)
            .map(|index| {
                let (parent, barrier, holders) = (parent.clone(), barrier.clone(), holders.clone());
                std::thread::spawn(move || {
                    use std::sync::atomic::Ordering::SeqCst;
                    barrier.wait();
                    for _ in 0..200 {
                        let held = if index % 2 == 0 {
                            match Instance::acquire(&parent.path().join("x")) {
                                Ok(instance) => vec![instance],
                                Err(error) => {
                                    assert!(
                                        matches!(error.kind(), Kind::Conflict | Kind::Unavailable),
                                        "{error}: {:?}",
                                        std::error::Error::source(&error)
                                    );
                                    Vec::new()
                                }
                            }
                        } else {
                            Instance::take_dead(parent.path()).expect("sweep")
                        };
                        for instance in held {
                            assert_eq!(holders.fetch_add(1, SeqCst), 0, "two holders");
                            std::thread::yield_now();
                            holders.fetch_sub(1, SeqCst);
                            if index == 1 {
                                instance.remove().expect("removed");
                            }
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no thread failed");
        }
    }
}
