//! Layers: one archive each, unpacked once and shown by every image that has it.
//!
//! A layer is named by the digest of its archive, uncompressed. It is unpacked beside, checked, and only then moved to
//! its name, so what has a name is whole. Its files are brought to the disk once for all layers of an image; until then
//! the layer's record names the boot it was made in, and after another boot it counts as not there.

use std::{
    cell::{Cell, RefCell},
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Result,
    archive::{Archive, Ending},
    blob::BlobDigest,
    digest::{self, Summary},
    import::{LeftOut, Placing, Whiteouts, decoder, decoder_failure},
    root::{Limits, OPAQUE_ATTRIBUTE, Root},
    store::{self, ChangeLock, Store},
};

/// Bytes handed over at a time between the thread that decompresses and the one that unpacks.
const PIECE_BYTES: usize = 128 << 10;

/// Pieces on their way between them.
const PIECES_MAX: usize = 16;

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is known of a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Bytes of file content on disk.
    pub(crate) size_bytes: u64,
    /// Files, directories, links and whiteouts.
    pub(crate) entries: u64,
    /// The digest of the tree as it lies on disk: to find damage.
    pub(crate) tree_digest: String,
    /// Directories that the archive did not list: what they are like is for layers below to say.
    #[serde(default)]
    pub(crate) implied: Vec<String>,
    /// Nothing of the layers below shows.
    #[serde(default)]
    pub(crate) hides_all: bool,
    /// The boot in which it was made, as long as it is not surely on the disk.
    #[serde(default)]
    pub(crate) unsynced_boot: Option<String>,
}

/// A layer that cannot be removed while this lives.
#[derive(Debug)]
pub(crate) struct HeldLayer {
    pub(crate) id: BlobDigest,
    pub(crate) place: PathBuf,
    pub(crate) record: LayerRecord,
    _lock: OwnedFd,
}

impl HeldLayer {
    /// What an engine stacks.
    pub(crate) fn tree(&self) -> PathBuf {
        tree_of(&self.place)
    }

    /// Notes that its files are on the disk.
    pub(crate) fn mark_synced(&mut self, store: &Store, lock: &ChangeLock) -> Result<()> {
        if self.record.unsynced_boot.take().is_none() {
            return Ok(());
        }
        store.write_record(&record_of(&self.place), &self.record, lock)
    }
}

/// The tree of the layer at `place`.
pub(crate) fn tree_of(place: &Path) -> PathBuf {
    place.join("tree")
}

fn record_of(place: &Path) -> PathBuf {
    place.join("layer.json")
}

/// The record of the layer at `place`, if it is there.
pub(crate) fn record(place: &Path) -> Result<Option<LayerRecord>> {
    store::read_record(&record_of(place))
}

/// Takes hold of a layer if it is there, whole and surely so.
pub(crate) fn hold(store: &Store, id: &BlobDigest) -> Result<Option<HeldLayer>> {
    let place = store.layer(id);
    let Some(lock) = store::hold(&place)? else { return Ok(None) };
    let Some(record) = record(&place)? else { return Ok(None) };
    if record.unsynced_boot.as_ref().is_none_or(|boot| *boot == boot_id()) {
        return Ok(Some(HeldLayer { id: id.clone(), place, record, _lock: lock }));
    }
    // The host went down before the files were surely written.
    drop(lock);
    drop(store.take_away(&place, &store.lock()?)?);
    Ok(None)
}

fn boot_id() -> String {
    fs_err::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// What a compressed layer must turn out to be.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// The digest of what is stored or sent.
    pub(crate) blob: BlobDigest,
    /// The digest of the archive in it: the layer's name.
    pub(crate) diff: BlobDigest,
}

/// Unpacks a layer from `source`, checks both digests, and gives it its name.
pub(crate) fn make(
    store: &Store,
    source: impl Read + Send,
    origin: &Path,
    expected: &Expected,
    limits: &Limits,
) -> Result<HeldLayer> {
    let scratch = store.scratch(&store.lock()?)?;
    let whole = scratch.directory("layer")?;
    let tree = scratch.directory("layer/tree")?;
    let (blob, unpacked) = unpack(source, origin, &tree, limits)?;
    // Damage on the way explains whatever else went wrong.
    expected.blob.equals(&format!("a layer from {}", origin.display()), &blob)?;
    let (diff, implied) = unpacked?;
    expected.diff.equals("the content of a layer", &diff)?;
    publish(store, &whole, Some(&expected.diff), implied)
}

/// Gives an unpacked tree in `whole` its name as a layer, unless another was quicker. Without one it is named by what
/// it holds.
pub(crate) fn publish(
    store: &Store,
    whole: &Path,
    id: Option<&BlobDigest>,
    implied: Vec<String>,
) -> Result<HeldLayer> {
    let tree = tree_of(whole);
    let Summary { digest: tree_digest, stored_bytes, entries } = digest::summarize(&tree)?;
    let own_id = BlobDigest::parse(&tree_digest).expect("a summary's digest is one");
    let id = id.unwrap_or(&own_id);
    let record = LayerRecord {
        size_bytes: stored_bytes,
        entries,
        tree_digest,
        implied,
        hides_all: is_opaque(&tree),
        unsynced_boot: Some(boot_id()),
    };
    store::write_new(&record_of(whole), &record)?;
    loop {
        let lock = store.lock()?;
        let place = store.layer(id);
        if !store::exists(&place)? {
            store::publish(whole, &place)?;
        }
        drop(lock);
        if let Some(held) = hold(store, id)? {
            return Ok(held);
        }
        if !store::exists(whole)? {
            // Ours was moved there and removed at once by others: somebody works against us.
            return Err(Error::NotFound(id.to_string()));
        }
    }
}

/// Whether a directory says that nothing below it shows.
pub(crate) fn is_opaque(directory: &Path) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::lgetxattr(directory, OPAQUE_ATTRIBUTE, &mut value[..]).is_ok_and(|length| length == 1)
        && value == *b"y"
}

type Unpacked = Result<(BlobDigest, Vec<String>)>;

/// Fills the empty directory `tree`. One thread decompresses while this one writes files. Gives the digest of what was
/// read, all of it, also if it could not be unpacked.
fn unpack(
    source: impl Read + Send,
    origin: &Path,
    tree: &Path,
    limits: &Limits,
) -> Result<(BlobDigest, Unpacked)> {
    let (sender, receiver) = sync_channel(PIECES_MAX);
    thread::scope(|scope| {
        let allowance = limits.expansion_allowance_bytes;
        let feeder = scope.spawn(move || feed(source, origin, &sender, allowance));
        let unpacked = untar(Pieces { receiver, piece: Vec::new(), at: 0 }, origin, tree, limits.clone());
        let blob = feeder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((blob, unpacked))
    })
}

fn untar(pieces: Pieces, origin: &Path, tree: &Path, limits: Limits) -> Unpacked {
    let mut hashed = Hashed { reader: pieces, hasher: Sha256::new() };
    let mut root = Root::open(tree, limits)?;
    let mut left_out = LeftOut::default();
    let mut archive = Archive::new(&mut hashed, origin.to_path_buf(), Ending::Open);
    let mut place = Placing { root: &mut root, whiteouts: Whiteouts::Meant, left_out: &mut left_out };
    place.all(&mut archive, &mut |_| {})?;
    drop(archive);
    left_out.tell();
    // What follows the archive's end belongs to what the digest names.
    io::copy(&mut hashed, &mut io::sink()).map_err(|error| decoder_failure(error, origin))?;
    let implied = root.implied().filter_map(|path| str::from_utf8(path).ok().map(str::to_owned)).collect();
    root.finish()?;
    Ok((BlobDigest::finish(hashed.hasher), implied))
}

/// Decompresses `source` into pieces. When nobody wants them any more the rest is read for its digest only.
fn feed(
    source: impl Read,
    origin: &Path,
    sender: &SyncSender<io::Result<Vec<u8>>>,
    allowance: u64,
) -> Result<BlobDigest> {
    let count = Rc::new(Cell::new(0));
    let hasher = Rc::new(RefCell::new(Sha256::new()));
    let mut tap = Tap { reader: source, hasher: Rc::clone(&hasher), count: Rc::clone(&count) };
    send_decoded(&mut tap, &count, allowance, sender);
    let rest = io::copy(&mut tap, &mut io::sink()).map_err(Error::at(origin));
    drop(tap);
    rest?;
    let hasher = Rc::into_inner(hasher).expect("its only other holder is gone");
    Ok(BlobDigest::finish(hasher.into_inner()))
}

fn send_decoded(
    tap: &mut impl Read,
    count: &Rc<Cell<u64>>,
    allowance: u64,
    sender: &SyncSender<io::Result<Vec<u8>>>,
) {
    // Whoever unpacks has ended if nothing can be sent; they know why.
    let mut decoder = match decoder(tap, count, allowance) {
        Ok(decoder) => decoder,
        Err(error) => return drop(sender.send(Err(error))),
    };
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let mut filled = 0;
        let ended = loop {
            match decoder.read(&mut piece[filled..]) {
                Ok(0) => break Some(Ok(())),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(Err(error)),
            }
            if filled == piece.len() {
                break None;
            }
        };
        piece.truncate(filled);
        if !piece.is_empty() && sender.send(Ok(piece)).is_err() {
            return;
        }
        match ended {
            None => {}
            Some(Ok(())) => return,
            Some(Err(error)) => return drop(sender.send(Err(error))),
        }
    }
}

/// Reads pieces as one stream.
struct Pieces {
    receiver: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => (self.piece, self.at) = (piece?, 0),
                Err(_ended) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Hashes and counts what is read, for a reader that outlives its user.
struct Tap<R> {
    reader: R,
    hasher: Rc<RefCell<Sha256>>,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hasher.borrow_mut().update(&buffer[..count]);
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// Hashes what is read.
struct Hashed<R> {
    reader: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
