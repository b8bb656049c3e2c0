//! Bounded logs with byte offsets. A [`Log`] keeps the newest bytes of one output stream; readers follow it from any
//! offset and resume where they stood.
//!
//! ```text
//!   dropped        kept (at most `capacity`)
//!  ────────────┬──────────────────────────────┐
//!  0           start        reader            end      → offsets grow for ever
//! ```
//! While a reader is attached and behind by a full ring, the writer waits for it, as a pipe would; a reader that makes
//! no progress for [`STALL`] is left behind and gets a gap instead. Without a reader the oldest bytes are dropped.
//!
//! What a reader has taken may not have arrived where it sends it when its connection is cut. So a part of the ring stays
//! behind each reader, and when the agent is replaced, which cuts every connection, readers are waited for as if they were
//! still there until they come again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

/// How long a full ring waits for an attached reader.
pub(crate) const STALL: Duration = Duration::from_secs(30);

/// Bytes that a reader may have taken and not sent yet, which large rings keep for the case that they never arrive: what the
/// server keeps of an answer for a slow connection, see `crate::http`, and the piece that it was given last.
pub(crate) const UNSENT_BYTES_MAX: usize = 128 * 1024;

/// First allocation of a ring; it doubles as needed.
const FIRST_BYTES: usize = 4096;

/// The log of one stream.
pub(crate) struct Log {
    capacity: usize,
    inner: Mutex<Inner>,
    /// Pulsed after every change that a reader may wait for; shared by the streams of one process.
    changed: Arc<Notify>,
    /// Pulsed when a reader moves on or leaves.
    room: Notify,
}

struct Inner {
    bytes: VecDeque<u8>,
    start: u64,
    readers: Vec<Position>,
    next_reader: u64,
    /// Readers that the agent before this one had and that have not come again yet.
    absent: usize,
}

struct Position {
    id: u64,
    offset: u64,
    waited_for: bool,
}

impl Inner {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Bytes from this offset.
    Bytes(u64, Vec<u8>),
    /// The bytes from this offset up to the reader's new one are gone.
    Gap(u64),
    /// Nothing new.
    Nothing,
}

impl Log {
    /// A log that keeps up to `capacity` bytes and pulses `changed`. Allocates nothing yet.
    pub(crate) fn new(capacity: usize, changed: Arc<Notify>) -> Arc<Self> {
        let inner =
            Inner { bytes: VecDeque::new(), start: 0, readers: Vec::new(), next_reader: 0, absent: 0 };
        Arc::new(Self { capacity, inner: Mutex::new(inner), changed, room: Notify::new() })
    }

    /// A log that goes on where another one stood: with its bytes from offset `start` on, for so many readers who are to
    /// come again.
    pub(crate) fn restored(
        capacity: usize,
        changed: Arc<Notify>,
        start: u64,
        bytes: Vec<u8>,
        absent: usize,
    ) -> Arc<Self> {
        let inner = Inner { bytes: bytes.into(), start, readers: Vec::new(), next_reader: 0, absent };
        Arc::new(Self { capacity, inner: Mutex::new(inner), changed, room: Notify::new() })
    }

    /// Shows what is kept, in two pieces, and the offset of its first byte.
    pub(crate) fn show<T>(&self, to: impl FnOnce(u64, [&[u8]; 2]) -> T) -> T {
        let inner = self.lock();
        let (front, back) = inner.bytes.as_slices();
        to(inner.start, [front, back])
    }

    /// How many readers are waited for.
    pub(crate) fn readers(&self) -> usize {
        let inner = self.lock();
        inner.readers.iter().filter(|reader| reader.waited_for).count() + inner.absent
    }

    /// Bytes written so far.
    pub(crate) fn end(&self) -> u64 {
        self.lock().end()
    }

    /// Adds bytes, dropping the oldest where they do not fit. Writers that care for readers ask [`Self::room`] first.
    pub(crate) fn append(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut inner = self.lock();
        let kept = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let excess = (inner.bytes.len() + kept.len()).saturating_sub(self.capacity);
        inner.bytes.drain(..excess);
        inner.start += (excess + bytes.len() - kept.len()) as u64;
        let needed = inner.bytes.len() + kept.len();
        if needed > inner.bytes.capacity() {
            let target = needed.next_power_of_two().clamp(FIRST_BYTES.min(self.capacity), self.capacity);
            let more = target.max(needed) - inner.bytes.len();
            inner.bytes.reserve_exact(more);
        }
        inner.bytes.extend(kept);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// How many bytes fit without taking unread ones from a reader that is waited for.
    pub(crate) fn room(&self) -> usize {
        let inner = self.lock();
        let behind = self.kept_behind();
        let slowest = inner.readers.iter().filter(|r| r.waited_for).map(|r| r.offset.saturating_sub(behind));
        let absent = (inner.absent > 0).then_some(inner.start);
        let unread = slowest.chain(absent).min().map_or(0, |offset| inner.end().saturating_sub(offset));
        self.capacity.saturating_sub(usize::try_from(unread).unwrap_or(usize::MAX))
    }

    /// How much of what a reader has taken stays.
    fn kept_behind(&self) -> u64 {
        if self.capacity >= 2 * UNSENT_BYTES_MAX { UNSENT_BYTES_MAX as u64 } else { 0 }
    }

    /// Waits until there is [`Self::room`], at most [`STALL`] without a reader moving. Cancel-safe.
    pub(crate) async fn wait_for_room(&self) -> usize {
        loop {
            let moved = self.room.notified();
            let mut moved = std::pin::pin!(moved);
            moved.as_mut().enable();
            let room = self.room();
            if room > 0 {
                return room;
            }
            if tokio::time::timeout(STALL, moved).await.is_err() {
                self.leave_stalled_behind();
            }
        }
    }

    fn leave_stalled_behind(&self) {
        let mut inner = self.lock();
        inner.absent = 0;
        let limit = inner.end().saturating_sub(self.capacity as u64) + self.kept_behind();
        for reader in inner.readers.iter_mut().filter(|r| r.offset <= limit) {
            reader.waited_for = false;
        }
    }

    /// Attaches a reader at `offset`; one beyond the end starts at the end.
    pub(crate) fn attach(self: &Arc<Self>, offset: u64) -> Reader {
        let mut inner = self.lock();
        let id = inner.next_reader;
        inner.next_reader += 1;
        inner.absent = inner.absent.saturating_sub(1);
        let offset = offset.min(inner.end());
        inner.readers.push(Position { id, offset, waited_for: true });
        Reader { log: Arc::clone(self), id }
    }

    /// The same from `offset` on or, where that is dropped already, from the oldest byte kept; answers which.
    pub(crate) fn attach_kept(self: &Arc<Self>, offset: u64) -> (Reader, u64) {
        let reader = self.attach(offset);
        let mut inner = self.lock();
        let start = inner.start;
        let kept = inner.readers.iter_mut().find(|position| position.id == reader.id).map(|position| {
            position.offset = position.offset.max(start);
            position.offset
        });
        drop(inner);
        (reader, kept.unwrap_or(start))
    }

    /// Wakes the readers for a reason outside of the log.
    pub(crate) fn changed(&self) -> &Arc<Notify> {
        &self.changed
    }

    /// Everything kept from `offset` up to `end`, without attaching.
    pub(crate) fn copy(&self, offset: u64, end: u64) -> Vec<u8> {
        let inner = self.lock();
        copy_range(&inner, offset.max(inner.start), end.min(inner.end()))
    }

    /// Everything kept from `offset` on, and the offset of its first byte.
    pub(crate) fn copy_from(&self, offset: u64) -> (u64, Vec<u8>) {
        let inner = self.lock();
        let start = offset.clamp(inner.start, inner.end());
        (start, copy_range(&inner, start, inner.end()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn copy_range(inner: &Inner, from: u64, to: u64) -> Vec<u8> {
    let position = |offset: u64| usize::try_from(offset.saturating_sub(inner.start)).unwrap_or(usize::MAX);
    let (from, to) = (position(from).min(inner.bytes.len()), position(to).min(inner.bytes.len()));
    if from >= to {
        return Vec::new();
    }
    let (front, back) = inner.bytes.as_slices();
    let mut bytes = Vec::with_capacity(to - from);
    bytes.extend_from_slice(&front[from.min(front.len())..to.min(front.len())]);
    bytes.extend_from_slice(&back[from.saturating_sub(front.len())..to.saturating_sub(front.len())]);
    bytes
}

/// An attached reader. Dropping it detaches.
pub(crate) struct Reader {
    log: Arc<Log>,
    id: u64,
}

impl Reader {
    /// Takes up to `most` bytes below `limit` and moves on.
    pub(crate) fn take(&self, most: usize, limit: Option<u64>) -> Found {
        let mut inner = self.log.lock();
        let (start, end) = (inner.start, inner.end().min(limit.unwrap_or(u64::MAX)));
        let Some(index) = inner.readers.iter().position(|r| r.id == self.id) else { return Found::Nothing };
        let offset = inner.readers[index].offset;
        let found = if offset < start.min(limit.unwrap_or(u64::MAX)) {
            inner.readers[index].offset = start.min(limit.unwrap_or(u64::MAX));
            Found::Gap(offset)
        } else if offset < end {
            let bytes = copy_range(&inner, offset, end.min(offset + most as u64));
            inner.readers[index].offset += bytes.len() as u64;
            Found::Bytes(offset, bytes)
        } else {
            Found::Nothing
        };
        if found != Found::Nothing {
            inner.readers[index].waited_for = true;
            drop(inner);
            self.log.room.notify_waiters();
        }
        found
    }

    /// Where it stands.
    pub(crate) fn offset(&self) -> u64 {
        let inner = self.log.lock();
        inner.readers.iter().find(|r| r.id == self.id).map_or(0, |r| r.offset)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.log.lock().readers.retain(|r| r.id != self.id);
        self.log.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log(capacity: usize) -> Arc<Log> {
        Log::new(capacity, Arc::new(Notify::new()))
    }

    #[test]
    fn a_reader_holds_its_place_and_others_lose_the_oldest() {
        let log = log(8);
        let reader = log.attach(0);
        log.append(b"12345678");
        assert_eq!(log.room(), 0);
        assert_eq!(reader.take(3, None), Found::Bytes(0, b"123".to_vec()));
        assert_eq!(log.room(), 3);
        drop(reader);
        assert_eq!(log.room(), 8);
        log.append(b"9abc");
        let late = log.attach(0);
        assert_eq!(late.take(100, None), Found::Gap(0));
        assert_eq!(late.take(100, None), Found::Bytes(4, b"56789abc".to_vec()));
        assert_eq!(late.take(100, None), Found::Nothing);
    }

    #[test]
    fn a_limit_hides_what_comes_after() {
        let log = log(64);
        log.append(b"first second");
        let reader = log.attach(0);
        assert_eq!(reader.take(100, Some(5)), Found::Bytes(0, b"first".to_vec()));
        assert_eq!(reader.take(100, Some(5)), Found::Nothing);
        assert_eq!(log.copy(6, u64::MAX), b"second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_reader_is_left_behind() {
        let log = log(4);
        let reader = log.attach(0);
        log.append(b"1234");
        let before = tokio::time::Instant::now();
        assert_eq!(log.wait_for_room().await, 4);
        assert!(before.elapsed() >= STALL);
        log.append(b"56");
        assert_eq!(reader.take(9, None), Found::Gap(0));
        assert_eq!(log.room(), 0, "a reader that moves again is waited for again");
    }

    #[test]
    fn what_a_reader_may_not_have_sent_yet_stays() {
        let log = log(2 * UNSENT_BYTES_MAX);
        let reader = log.attach(0);
        log.append(&vec![0; 2 * UNSENT_BYTES_MAX]);
        assert_eq!(log.room(), 0);
        let Found::Bytes(0, taken) = reader.take(UNSENT_BYTES_MAX, None) else { panic!("nothing to take") };
        assert_eq!((taken.len(), log.room()), (UNSENT_BYTES_MAX, 0));
        reader.take(1000, None);
        assert_eq!(log.room(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn readers_that_were_there_before_are_waited_for() {
        let changed = Arc::new(Notify::new());
        let log = Log::restored(4, Arc::clone(&changed), 10, b"1234".to_vec(), 1);
        assert_eq!((log.room(), log.readers(), log.end()), (0, 1, 14));
        let reader = log.attach(12);
        assert_eq!(log.room(), 2);
        assert_eq!(reader.take(9, None), Found::Bytes(12, b"34".to_vec()));
        assert_eq!((log.room(), log.readers()), (4, 1));
        let log = Log::restored(4, changed, 10, b"1234".to_vec(), 1);
        assert_eq!(log.wait_for_room().await, 4, "not for ever");
    }

    fn position(offset: u64) -> usize {
        usize::try_from(offset).expect("tests are small")
    }

    proptest! {
        #[test]
        fn kept_bytes_are_the_newest_and_offsets_never_lie(
            capacity in 1_usize..40,
            writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20),
            from in 0_u64..400,
        ) {
            let log = log(capacity);
            let whole: Vec<u8> = writes.concat();
            for bytes in &writes {
                log.append(bytes);
                prop_assert!(log.lock().bytes.capacity() <= capacity.next_power_of_two() * 2);
            }
            prop_assert_eq!(log.end(), whole.len() as u64);
            let kept_from = whole.len().saturating_sub(capacity);
            prop_assert_eq!(log.copy(0, u64::MAX), &whole[kept_from..]);
            let reader = log.attach(from);
            let mut seen = Vec::new();
            loop {
                match reader.take(7, None) {
                    Found::Bytes(at, bytes) => {
                        prop_assert_eq!(&whole[position(at)..][..bytes.len()], &bytes[..]);
                        seen.extend(bytes);
                    }
                    Found::Gap(at) => prop_assert!(position(at) < kept_from),
                    Found::Nothing => break,
                }
            }
            let expected_from = kept_from.max(position(from).min(whole.len()));
            prop_assert_eq!(seen, &whole[expected_from..]);
        }
    }
}
