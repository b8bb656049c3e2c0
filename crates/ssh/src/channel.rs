//! One channel: what the client sent on it, in order, and what it is sent, as far as it has room.
//!
//! What the client may send is what was taken out before ([`WINDOW_BYTES`] at first), so a queue never holds more.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::{
    connection::{Question, Shared},
    error::{Error, Result},
    message,
    wire::{Malformed, Reader, Writer},
};

/// What a client may send on a channel before any of it is taken.
pub(crate) const WINDOW_BYTES: u32 = 1 << 20;

/// Longest piece of data in one packet, in either direction.
pub(crate) const PIECE_BYTES_MAX: u32 = 32 * 1024;

/// Requests on one channel that wait to be looked at.
const REQUESTS_MAX: usize = 128;

/// Kind of extended data that is standard error.
const STANDARD_ERROR: u32 = 1;

/// Longest name or value of a variable, name of a terminal or subsystem.
const TEXT_BYTES_MAX: usize = 32 * 1024;

/// What came on a channel.
#[derive(Debug)]
pub enum ChannelEvent {
    /// Bytes.
    Data(Bytes),
    /// There will be no more.
    Eof,
    /// The client wants something, and perhaps an answer.
    Request(Request, Question),
}

/// What a client wants of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A terminal for what will run.
    Terminal(TerminalRequest),
    /// A variable for what will run.
    Variable {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// A shell.
    Shell,
    /// A command.
    Execute(Vec<u8>),
    /// Something by name.
    Subsystem(String),
    /// The terminal has another size.
    Resize {
        /// Columns.
        cols: u32,
        /// Rows.
        rows: u32,
    },
    /// A signal for what runs, by its name without `SIG`.
    Signal(String),
    /// What runs may use the keys of the client's agent.
    ForwardAgent,
    /// Anything else.
    Other,
}

/// What a terminal is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminalRequest {
    /// Its kind, as in `TERM`.
    pub term: String,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
    /// Settings by number, and their values (RFC 4254, section 8).
    pub modes: Vec<(u8, u32)>,
}

/// How what ran in a channel has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this status.
    Status(u32),
    /// By a signal of this name, without `SIG`.
    Signal(&'static str),
}

impl Request {
    /// Reads a request of this name.
    pub(crate) fn read(name: &str, reader: &mut Reader<'_>) -> std::result::Result<Self, Malformed> {
        let short =
            |text: &str| if text.len() > TEXT_BYTES_MAX { Err(Malformed) } else { Ok(text.to_owned()) };
        Ok(match name {
            "pty-req" => {
                let term = short(reader.text()?)?;
                let (cols, rows) = (reader.number()?, reader.number()?);
                // In pixels.
                let (_, _) = (reader.number()?, reader.number()?);
                Self::Terminal(TerminalRequest { term, cols, rows, modes: modes(reader.string()?) })
            }
            "env" => Self::Variable { name: short(reader.text()?)?, value: short(reader.text()?)? },
            "shell" => Self::Shell,
            "exec" => Self::Execute(reader.string()?.to_owned()),
            "subsystem" => Self::Subsystem(short(reader.text()?)?),
            "window-change" => Self::Resize { cols: reader.number()?, rows: reader.number()? },
            "signal" => Self::Signal(short(reader.text()?)?),
            "auth-agent-req@openssh.com" => Self::ForwardAgent,
            _ => Self::Other,
        })
    }
}

/// Settings of a terminal up to the first that is none.
fn modes(encoded: &[u8]) -> Vec<(u8, u32)> {
    // Those from 160 on have no form that is known.
    const KNOWN: std::ops::Range<u8> = 1..160;
    let mut reader = Reader::new(encoded);
    let mut modes = Vec::new();
    while let Ok(number) = reader.byte()
        && KNOWN.contains(&number)
        && let Ok(value) = reader.number()
    {
        modes.push((number, value));
    }
    modes
}

/// A channel as the connection sees it.
pub(crate) struct Port {
    state: Mutex<PortState>,
    /// Something came, or nothing will any more.
    readable: Notify,
    /// There is room at the client, or never will be.
    writable: Notify,
}

struct PortState {
    /// The client's number of the channel.
    theirs: u32,
    /// What the client has room for.
    window: u32,
    piece_max: u32,
    /// What the client may still send.
    granted: u32,
    /// What was taken and not granted again.
    taken: u32,
    events: VecDeque<Item>,
    requests: usize,
    /// Nobody takes anything out any more.
    abandoned: bool,
    closed_here: bool,
    closed_there: bool,
}

enum Item {
    Data(BytesMut),
    Eof,
    Request(Request, Question),
}

impl Port {
    /// A channel of which the client said so much.
    pub(crate) fn new(theirs: u32, window: u32, piece_max: u32) -> Arc<Self> {
        let state = PortState {
            theirs,
            window,
            piece_max: piece_max.clamp(1, PIECE_BYTES_MAX),
            granted: WINDOW_BYTES,
            taken: 0,
            events: VecDeque::new(),
            requests: 0,
            abandoned: false,
            closed_here: false,
            closed_there: false,
        };
        Arc::new(Self { state: Mutex::new(state), readable: Notify::new(), writable: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, PortState> {
        // Whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this side has closed it, so that nothing more may be said on it.
    pub(crate) fn is_closed_here(&self) -> bool {
        self.state().closed_here
    }

    /// Whether the client has closed it, so that it may say nothing more on it.
    pub(crate) fn is_closed_there(&self) -> bool {
        self.state().closed_there
    }

    /// It was refused: its number is free.
    pub(crate) fn never_was(&self) {
        let mut state = self.state();
        (state.abandoned, state.closed_here, state.closed_there) = (true, true, true);
    }

    /// Whether both sides have closed it, so that its number is free.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.state();
        state.closed_here && state.closed_there
    }

    /// The client's number of the channel.
    pub(crate) fn theirs(&self) -> u32 {
        self.state().theirs
    }

    /// The client sent bytes. What nobody will take is dropped.
    pub(crate) fn receive(&self, bytes: &[u8], shared: &Shared) -> Result<()> {
        let mut state = self.state();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        state.granted =
            state.granted.checked_sub(length).ok_or(Error::Protocol("more data than there is room for"))?;
        if state.abandoned || state.closed_here {
            state.take(length, shared);
            return Ok(());
        }
        match state.events.back_mut() {
            Some(Item::Data(last)) if last.len() + bytes.len() <= PIECE_BYTES_MAX as usize => {
                last.extend_from_slice(bytes);
            }
            _ => state.events.push_back(Item::Data(BytesMut::from(bytes))),
        }
        drop(state);
        self.readable.notify_one();
        Ok(())
    }

    /// The client sent bytes that have no meaning here.
    pub(crate) fn discard(&self, bytes: usize, shared: &Shared) -> Result<()> {
        let length = u32::try_from(bytes).unwrap_or(u32::MAX);
        let mut state = self.state();
        state.granted =
            state.granted.checked_sub(length).ok_or(Error::Protocol("more data than there is room for"))?;
        state.take(length, shared);
        Ok(())
    }

    /// The client will send no more.
    pub(crate) fn receive_eof(&self) {
        self.queue(Item::Eof);
    }

    /// The client wants something.
    pub(crate) fn receive_request(&self, request: Request, question: Question) -> Result<()> {
        {
            let mut state = self.state();
            state.requests += 1;
            let too_many = state.requests > REQUESTS_MAX;
            // First: the question, when it is dropped, looks at the state.
            drop(state);
            if too_many {
                return Err(Error::Protocol("too many requests at once"));
            }
        }
        self.queue(Item::Request(request, question));
        Ok(())
    }

    fn queue(&self, item: Item) {
        let mut state = self.state();
        // What is dropped answers itself, outside of the lock.
        let dropped = if state.abandoned {
            Some(item)
        } else {
            state.events.push_back(item);
            None
        };
        drop(state);
        drop(dropped);
        self.readable.notify_one();
    }

    /// The client has room for more.
    pub(crate) fn widen(&self, bytes: u32) {
        let mut state = self.state();
        state.window = state.window.saturating_add(bytes);
        drop(state);
        self.writable.notify_waiters();
    }

    /// The client has closed it; it is told the same unless it was before.
    pub(crate) fn close_there(&self, shared: &Shared) {
        let mut state = self.state();
        state.closed_there = true;
        state.close_here(shared);
        drop(state);
        self.readable.notify_one();
        self.writable.notify_waiters();
    }
}

impl PortState {
    /// So much was taken: when it is enough, the client may send as much again.
    fn take(&mut self, bytes: u32, shared: &Shared) {
        self.taken += bytes;
        if self.taken >= WINDOW_BYTES / 2 && !self.closed_here {
            let adjust =
                Writer::message(message::CHANNEL_WINDOW_ADJUST).number(self.theirs).number(self.taken);
            shared.push(adjust.finish());
            self.granted += self.taken;
            self.taken = 0;
        }
    }

    fn close_here(&mut self, shared: &Shared) {
        if !std::mem::replace(&mut self.closed_here, true) {
            shared.push(Writer::message(message::CHANNEL_CLOSE).number(self.theirs).finish());
        }
    }
}

/// A channel. Dropping it closes it.
pub struct Channel {
    sender: Sender,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channel")
    }
}

impl Channel {
    pub(crate) fn new(port: Arc<Port>, shared: Arc<Shared>) -> Self {
        Self { sender: Sender { port, shared } }
    }

    /// What comes next; `None` once the client has closed the channel, or is gone. Cancel-safe.
    pub async fn receive(&mut self) -> Option<ChannelEvent> {
        let Sender { port, shared } = &self.sender;
        loop {
            {
                let mut state = port.state();
                if let Some(item) = state.events.pop_front() {
                    return Some(match item {
                        Item::Data(bytes) => {
                            state.take(u32::try_from(bytes.len()).unwrap_or(u32::MAX), shared);
                            ChannelEvent::Data(bytes.freeze())
                        }
                        Item::Eof => ChannelEvent::Eof,
                        Item::Request(request, question) => {
                            state.requests -= 1;
                            ChannelEvent::Request(request, question)
                        }
                    });
                }
                if state.closed_there {
                    return None;
                }
            }
            port.readable.notified().await;
        }
    }

    /// The next request, before the data that came earlier: for whoever cannot take that data now. `None` once the client
    /// has closed the channel, or is gone. Cancel-safe.
    pub async fn receive_request(&mut self) -> Option<ChannelEvent> {
        let port = &self.sender.port;
        loop {
            {
                let mut state = port.state();
                let at = state.events.iter().position(|item| matches!(item, Item::Request(..)));
                let request = at.and_then(|at| state.events.remove(at));
                if let Some(Item::Request(request, question)) = request {
                    state.requests -= 1;
                    return Some(ChannelEvent::Request(request, question));
                }
                if state.closed_there {
                    return None;
                }
            }
            port.readable.notified().await;
        }
    }

    /// The way to the client.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Says how what ran has ended, that nothing more will come, and closes the channel.
    pub fn finish(self, ending: Option<Ending>) {
        let Sender { port, shared } = &self.sender;
        let theirs = port.theirs();
        let request =
            |name: &str| Writer::message(message::CHANNEL_REQUEST).number(theirs).string(name).boolean(false);
        let said = match ending {
            None => None,
            Some(Ending::Status(status)) => Some(request("exit-status").number(status)),
            Some(Ending::Signal(name)) => {
                Some(request("exit-signal").string(name).boolean(false).string("").string(""))
            }
        };
        let state = port.state();
        if !state.closed_here {
            if let Some(said) = said {
                shared.push(said.finish());
            }
            shared.push(Writer::message(message::CHANNEL_EOF).number(theirs).finish());
        }
        drop(state);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let Sender { port, shared } = &self.sender;
        let mut state = port.state();
        state.abandoned = true;
        state.close_here(shared);
        let dropped = std::mem::take(&mut state.events);
        drop(state);
        drop(dropped);
        port.writable.notify_waiters();
    }
}

/// Sends on a channel.
#[derive(Clone)]
pub struct Sender {
    port: Arc<Port>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

impl Sender {
    /// Sends bytes, as the client has room for them. Not cancel-safe: a part may be on its way.
    pub async fn data(&self, bytes: &[u8]) -> Result<()> {
        self.send(bytes, |theirs| Writer::message(message::CHANNEL_DATA).number(theirs)).await
    }

    /// The same as standard error.
    pub async fn error(&self, bytes: &[u8]) -> Result<()> {
        let head =
            |theirs| Writer::message(message::CHANNEL_EXTENDED_DATA).number(theirs).number(STANDARD_ERROR);
        self.send(bytes, head).await
    }

    async fn send(&self, mut bytes: &[u8], head: impl Fn(u32) -> Writer) -> Result<()> {
        while !bytes.is_empty() {
            let widened = self.port.writable.notified();
            let room = self.shared.room().notified();
            let (mut widened, mut room) = (std::pin::pin!(widened), std::pin::pin!(room));
            widened.as_mut().enable();
            room.as_mut().enable();
            if let Some(sent) = self.send_now(bytes, &head)? {
                bytes = &bytes[sent..];
                continue;
            }
            tokio::select! {
                () = widened => {}
                () = room => {}
            }
        }
        Ok(())
    }

    /// Sends what there is room for now; `None` when there is none.
    fn send_now(&self, bytes: &[u8], head: &impl Fn(u32) -> Writer) -> Result<Option<usize>> {
        let mut state = self.port.state();
        if state.closed_here || state.closed_there {
            return Err(Error::HungUp);
        }
        let most = state.piece_max.min(state.window);
        let length = bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        if length == 0 || !self.shared.has_room() {
            return Ok(None);
        }
        state.window -= u32::try_from(length).unwrap_or(u32::MAX);
        let payload = head(state.theirs).string(&bytes[..length]).finish();
        self.shared.push_data(payload);
        Ok(Some(length))
    }

    /// Says that nothing more will be sent.
    pub fn eof(&self) {
        let state = self.port.state();
        if !state.closed_here && !state.closed_there {
            self.shared.push(Writer::message(message::CHANNEL_EOF).number(state.theirs).finish());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_read() {
        let read = |name, body: Writer| {
            let bytes = body.finish();
            Request::read(name, &mut Reader::new(&bytes))
        };
        let terminal = Writer::default().string("xterm").number(80).number(24).number(0).number(0);
        let modes = Writer::default().byte(53).number(1).byte(128).number(38400).byte(0).finish();
        let expected = TerminalRequest {
            term: "xterm".to_owned(),
            cols: 80,
            rows: 24,
            modes: vec![(53, 1), (128, 38400)],
        };
        assert_eq!(read("pty-req", terminal.string(modes)), Ok(Request::Terminal(expected)));
        assert_eq!(read("exec", Writer::default().string([0xff])), Ok(Request::Execute(vec![0xff])));
        assert_eq!(read("signal", Writer::default().string("INT")), Ok(Request::Signal("INT".to_owned())));
        assert_eq!(read("x11-req", Writer::default()), Ok(Request::Other));
        assert_eq!(read("env", Writer::default().string("A")), Err(Malformed));
        let long = Writer::default().string("A").string(vec![b'x'; TEXT_BYTES_MAX + 1]);
        assert_eq!(read("env", long), Err(Malformed));
    }

    proptest! {
        #[test]
        fn any_request_is_read_or_refused(name in prop::sample::select(&["pty-req", "env", "exec", "subsystem", "window-change", "signal"][..]), bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Request::read(name, &mut Reader::new(&bytes));
        }
    }
}
