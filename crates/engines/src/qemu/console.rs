//! A machine's serial port: what it said last is remembered, and any number of readers hear what it says next.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use sandhaus_sandbox::engine::GuestStream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::broadcast,
    task::JoinHandle,
};

/// What is remembered.
const REMEMBERED_BYTES: usize = 64 * 1024;

/// Most that is read at once.
const READ_BYTES: usize = 4096;

/// Pieces that a slow reader may be behind before it misses some.
const PIECES_KEPT: usize = 256;

/// The serial port of one machine.
#[derive(Debug)]
pub(super) struct Console {
    shared: Arc<Shared>,
    reading: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    heard: Mutex<Heard>,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
}

#[derive(Debug)]
struct Heard {
    last: VecDeque<u8>,
    /// Gone with the connection: those who listen come to their end.
    live: Option<broadcast::Sender<Arc<[u8]>>>,
}

impl Console {
    /// Listens on a connection to the port.
    pub(super) fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        let heard = Heard { last: VecDeque::new(), live: Some(broadcast::channel(PIECES_KEPT).0) };
        let shared = Arc::new(Shared { heard: Mutex::new(heard), writer: tokio::sync::Mutex::new(writer) });
        Self { reading: tokio::spawn(read_all(reader, Arc::clone(&shared))), shared }
    }

    /// Whether the machine is still there.
    pub(super) fn is_open(&self) -> bool {
        self.shared.heard.lock().expect("no holder panics").live.is_some()
    }

    /// A connection: first what was said last, then what is said; what is written to it is typed.
    pub(super) fn dial(&self) -> GuestStream {
        let (ours, theirs) = tokio::io::duplex(REMEMBERED_BYTES);
        let (last, live) = {
            let mut heard = self.shared.heard.lock().expect("no holder panics");
            let live = heard.live.as_ref().map(broadcast::Sender::subscribe);
            (heard.last.make_contiguous().to_vec(), live)
        };
        tokio::spawn(serve(ours, last, live, Arc::clone(&self.shared)));
        GuestStream::new(theirs)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reading.abort();
        self.shared.heard.lock().expect("no holder panics").live = None;
    }
}

impl Heard {
    fn take_in(&mut self, bytes: &[u8]) {
        self.last.extend(bytes);
        let surplus = self.last.len().saturating_sub(REMEMBERED_BYTES);
        self.last.drain(..surplus);
        if let Some(live) = &self.live {
            // Nobody may listen.
            let _ = live.send(bytes.into());
        }
    }
}

async fn read_all(mut reader: OwnedReadHalf, shared: Arc<Shared>) {
    let mut bytes = [0; READ_BYTES];
    while let Ok(count @ 1..) = reader.read(&mut bytes).await {
        shared.heard.lock().expect("no holder panics").take_in(&bytes[..count]);
    }
    shared.heard.lock().expect("no holder panics").live = None;
}

/// Serves one connection until either side is gone.
async fn serve(
    mut stream: DuplexStream,
    last: Vec<u8>,
    live: Option<broadcast::Receiver<Arc<[u8]>>>,
    shared: Arc<Shared>,
) {
    if stream.write_all(&last).await.is_err() {
        return;
    }
    let Some(mut live) = live else { return };
    let mut typed = [0; READ_BYTES];
    loop {
        // Both lose nothing when they are dropped: a piece is taken or it is not, and so are bytes.
        tokio::select! {
            piece = live.recv() => match piece {
                Ok(piece) => {
                    if stream.write_all(&piece).await.is_err() {
                        return;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            read = stream.read(&mut typed) => match read {
                Ok(count @ 1..) => {
                    if shared.writer.lock().await.write_all(&typed[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(stream: &mut GuestStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).await.expect("it is said");
        bytes
    }

    #[tokio::test]
    async fn who_comes_later_hears_what_was_said_last_and_what_comes() {
        let (ours, mut machine) = UnixStream::pair().expect("a pair");
        let console = Console::new(ours);
        let mut early = console.dial();
        machine.write_all(b"first").await.expect("heard");
        assert_eq!(read(&mut early, 5).await, b"first");
        let mut late = console.dial();
        assert_eq!(read(&mut late, 5).await, b"first");
        machine.write_all(b"second").await.expect("heard");
        assert_eq!(read(&mut early, 6).await, b"second");
        assert_eq!(read(&mut late, 6).await, b"second");

        late.write_all(b"typed").await.expect("taken");
        let mut typed = [0; 5];
        machine.read_exact(&mut typed).await.expect("typed");
        assert_eq!(&typed, b"typed");

        drop(machine);
        assert_eq!(late.read(&mut typed).await.expect("an end"), 0);
        assert!(!console.is_open());
        let mut after = console.dial();
        assert_eq!(read(&mut after, 11).await, b"firstsecond");
    }

    #[tokio::test]
    async fn only_the_last_is_remembered() {
        let (ours, mut machine) = UnixStream::pair().expect("a pair");
        let console = Console::new(ours);
        for _ in 0..REMEMBERED_BYTES / 1024 {
            machine.write_all(&[b'a'; 1024]).await.expect("heard");
        }
        machine.write_all(b"the end").await.expect("heard");
        drop(machine);
        let mut all = Vec::new();
        // The end of the connection says that everything was heard.
        console.dial().read_to_end(&mut Vec::new()).await.expect("an end");
        console.dial().read_to_end(&mut all).await.expect("an end");
        assert_eq!(all.len(), REMEMBERED_BYTES);
        assert!(all.ends_with(b"the end"));
    }
}
