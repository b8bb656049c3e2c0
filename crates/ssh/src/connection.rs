//! A client's connection: it is let in, then drives its channels until it ends. One task owns the stream; channels put what
//! they send into a queue of whole messages, which that task encrypts and writes.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    sync::{Notify, oneshot},
    time::Instant,
};

use crate::{
    channel::{Channel, PIECE_BYTES_MAX, Port, Request, WINDOW_BYTES},
    error::{Error, Result},
    keys::HostKey,
    login::{Authority, Login, Verdict},
    message,
    transport::Transport,
    wire::{Reader, Writer},
};

/// Most channels of a connection at once.
const CHANNELS_MAX: usize = 128;

/// Bytes of data of all channels that wait to be encrypted; then senders wait.
const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// Encrypted bytes that wait for the socket before no more are made.
const UNSENT_BYTES_MAX: usize = 256 * 1024;

/// The same before nothing more is read either: a client that asks and does not listen.
const DEAF_BYTES: usize = 4 << 20;

/// Messages that wait although the client may not be listening: answers to what it sent.
const ANSWERS_MAX: usize = 64 * 1024;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// Pause before a refusal.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// Reasons for a refusal or an end (RFC 4253, section 11.1, and RFC 4254, section 5.1).
const PROTOCOL_ERROR: u32 = 2;
const TOO_MANY_ATTEMPTS: u32 = 14;
const PROHIBITED: u32 = 1;
const CONNECT_FAILED: u32 = 2;
const UNKNOWN_TYPE: u32 = 3;
const SHORTAGE: u32 = 4;

/// What a server decides for all its connections.
#[derive(Debug)]
pub struct Settings {
    /// The key by which clients recognise the host.
    pub host: Arc<HostKey>,
    /// Time from the first byte until the client must be in.
    pub login_max: Duration,
    /// A client that is quiet for so long is asked whether it is still there.
    pub quiet: Duration,
    /// So many questions without an answer end the connection.
    pub quiet_questions_max: u32,
    /// Bytes after which the keys are renewed.
    pub rekey_bytes: u64,
}

impl Settings {
    /// The usual ones.
    pub fn new(host: Arc<HostKey>) -> Self {
        Self {
            host,
            login_max: Duration::from_secs(60),
            quiet: Duration::from_secs(60),
            quiet_questions_max: 3,
            rekey_bytes: 1 << 30,
        }
    }
}

/// What a client wants of the connection.
#[derive(Debug)]
pub enum Incoming {
    /// A channel.
    Open(Opening),
    /// Whatever connects there is to be passed to the client.
    Listen(Forward, Question),
    /// No more of that.
    Unlisten(Forward, Question),
}

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forward {
    /// An address and a port; 0 is any that is free.
    Tcp {
        /// As the client writes it.
        address: String,
        /// The port.
        port: u16,
    },
    /// A socket with a path.
    Local {
        /// The path.
        path: String,
    },
}

/// A channel that a client wants to open. Dropping it refuses.
#[derive(Debug)]
pub struct Opening {
    /// What for.
    pub kind: OpeningKind,
    reply: Option<Reply>,
}

/// What a channel is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpeningKind {
    /// A shell, a command, a subsystem.
    Session,
    /// A connection to a port.
    Tcp {
        /// Name or address, as the client writes it.
        host: String,
        /// The port.
        port: u16,
    },
    /// A connection to a socket with a path.
    Local {
        /// The path.
        path: String,
    },
}

/// Why a channel is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It may not be.
    Prohibited,
    /// Nobody answers there.
    ConnectFailed,
    /// There are too many.
    Shortage,
}

struct Reply {
    port: Arc<Port>,
    ours: u32,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reply({})", self.ours)
    }
}

impl Opening {
    /// Opens it.
    ///
    /// # Panics
    ///
    /// Never: it is answered once.
    pub fn accept(mut self) -> Channel {
        let Reply { port, ours, shared } = self.reply.take().expect("answered only by being consumed");
        let confirmation = Writer::message(message::CHANNEL_OPEN_CONFIRMATION)
            .number(port.theirs())
            .number(ours)
            .number(WINDOW_BYTES)
            .number(PIECE_BYTES_MAX);
        shared.push(confirmation.finish());
        Channel::new(port, shared)
    }

    /// Refuses it, and says why.
    pub fn refuse(mut self, refusal: Refusal, why: &str) {
        if let Some(reply) = self.reply.take() {
            reply.refuse(refusal, why);
        }
    }
}

impl Reply {
    fn refuse(&self, refusal: Refusal, why: &str) {
        let reason = match refusal {
            Refusal::Prohibited => PROHIBITED,
            Refusal::ConnectFailed => CONNECT_FAILED,
            Refusal::Shortage => SHORTAGE,
        };
        self.shared.push(open_failure(self.port.theirs(), reason, why));
        self.port.never_was();
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            reply.refuse(Refusal::Prohibited, "not served");
        }
    }
}

fn open_failure(theirs: u32, reason: u32, why: &str) -> Vec<u8> {
    let failure = Writer::message(message::CHANNEL_OPEN_FAILURE).number(theirs).number(reason);
    failure.string(why).string("").finish()
}

/// Something that a client may want an answer to. Dropping it says no.
pub struct Question {
    shared: Arc<Shared>,
    /// `None`: the connection itself.
    channel: Option<Arc<Port>>,
    open: bool,
    /// The answer names the port that was found.
    any_port: bool,
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Question")
    }
}

impl Question {
    /// Yes.
    pub fn agree(self) {
        self.agree_with_port(0);
    }

    /// Yes, and this is the port that was found if any would do.
    pub fn agree_with_port(mut self, port: u16) {
        let any_port = self.any_port;
        self.answer(message::CHANNEL_SUCCESS, message::REQUEST_SUCCESS, any_port.then_some(port));
    }

    fn answer(&mut self, of_channel: u8, of_connection: u8, port: Option<u16>) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        match &self.channel {
            Some(channel) if channel.is_closed_here() => {}
            Some(channel) => self.shared.push(Writer::message(of_channel).number(channel.theirs()).finish()),
            None => {
                let answer = Writer::message(of_connection);
                let answer = match port {
                    Some(port) => answer.number(port.into()),
                    None => answer,
                };
                self.shared.push(answer.finish());
            }
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.answer(message::CHANNEL_FAILURE, message::REQUEST_FAILURE, None);
    }
}

/// What the connection's task shares with its channels.
pub(crate) struct Shared {
    state: Mutex<SharedState>,
    /// There is something to send or to do.
    wake: Notify,
    /// There is room for data again.
    room: Notify,
}

#[derive(Default)]
struct SharedState {
    queue: VecDeque<Vec<u8>>,
    data_bytes: usize,
    wishes: Vec<Wish>,
    over: bool,
}

/// A channel that the server's side wants to open.
struct Wish {
    kind: &'static str,
    details: Vec<u8>,
    done: oneshot::Sender<Channel>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, SharedState> {
        // Whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message.
    pub(crate) fn push(&self, payload: Vec<u8>) {
        let mut state = self.state();
        if !state.over {
            state.queue.push_back(payload);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The same, of a message that counts as data.
    pub(crate) fn push_data(&self, payload: Vec<u8>) {
        self.state().data_bytes += payload.len();
        self.push(payload);
    }

    pub(crate) fn has_room(&self) -> bool {
        self.state().data_bytes < QUEUE_BYTES_MAX
    }

    pub(crate) fn room(&self) -> &Notify {
        &self.room
    }
}

/// Opens channels to the client.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Control")
    }
}

impl Control {
    /// For a connection that was made to a place that the client listens at. `None`: it does not want it.
    pub async fn open_forwarded(&self, forward: &Forward, from: Option<(IpAddr, u16)>) -> Option<Channel> {
        let (kind, details) = match forward {
            Forward::Tcp { address, port } => {
                let (ip, from_port) = from.unwrap_or((IpAddr::from([127, 0, 0, 1]), 0));
                let details = Writer::default().string(address).number(u32::from(*port));
                ("forwarded-tcpip", details.string(ip.to_string()).number(u32::from(from_port)))
            }
            Forward::Local { path } => {
                ("forwarded-streamlocal@openssh.com", Writer::default().string(path).string(""))
            }
        };
        self.open(kind, details.finish()).await
    }

    /// To the client's agent of keys.
    pub async fn open_agent(&self) -> Option<Channel> {
        self.open("auth-agent@openssh.com", Vec::new()).await
    }

    async fn open(&self, kind: &'static str, details: Vec<u8>) -> Option<Channel> {
        let (done, opened) = oneshot::channel();
        {
            let mut state = self.shared.state();
            if state.over {
                return None;
            }
            state.wishes.push(Wish { kind, details, done });
        }
        self.shared.wake.notify_one();
        opened.await.ok()
    }
}

/// A channel by our number.
enum Slot {
    Free,
    Open(Arc<Port>),
    /// The client was asked to open it.
    Wished(oneshot::Sender<Channel>),
}

/// A client's connection, once the client is in.
pub struct Connection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    transport: Transport,
    shared: Arc<Shared>,
    slots: Vec<Slot>,
    settings: Arc<Settings>,
    ask_at: Instant,
    asked: u32,
}

impl<S> std::fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    /// Exchanges keys and lets the client in if it may.
    pub async fn accept(
        stream: S,
        settings: Arc<Settings>,
        authority: &(dyn Authority + Sync),
    ) -> Result<Self> {
        let (reader, writer) = tokio::io::split(stream);
        let shared = Shared { state: Mutex::default(), wake: Notify::new(), room: Notify::new() };
        let mut connection = Self {
            reader,
            writer,
            transport: Transport::new(Arc::clone(&settings.host), settings.rekey_bytes),
            shared: Arc::new(shared),
            slots: Vec::new(),
            ask_at: Instant::now() + settings.quiet,
            settings,
            asked: 0,
        };
        let limit = connection.settings.login_max;
        let outcome = match tokio::time::timeout(limit, connection.log_in(authority)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(Error::TooSlow),
        };
        match outcome {
            Ok(()) => Ok(connection),
            Err(error) => {
                connection.say_why(&error).await;
                Err(error)
            }
        }
    }

    async fn log_in(&mut self, authority: &(dyn Authority + Sync)) -> Result<()> {
        let mut login = Login::default();
        loop {
            let Some(payload) = self.transport.next_payload()? else {
                self.flush().await?;
                self.read().await?;
                continue;
            };
            match login.answer(&payload, self.transport.session(), authority)? {
                Verdict::Reply(reply) => self.transport.send(reply)?,
                Verdict::Refuse(reply) => {
                    tokio::time::sleep(REFUSAL_PAUSE).await;
                    self.transport.send(reply)?;
                }
                Verdict::Welcome(reply) => {
                    self.transport.send(reply)?;
                    return self.flush().await;
                }
            }
        }
    }

    async fn read(&mut self) -> Result<()> {
        let (incoming, _) = self.transport.buffers();
        incoming.reserve(READ_BYTES);
        match self.reader.read_buf(incoming).await? {
            0 => Err(Error::HungUp),
            _ => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let (_, outgoing) = self.transport.buffers();
        while outgoing.has_remaining() {
            self.writer.write_buf(outgoing).await?;
        }
        Ok(())
    }

    /// Tells the client why it is cut off, if it may hear it.
    async fn say_why(&mut self, error: &Error) {
        const TOLD_MAX: Duration = Duration::from_secs(2);
        let reason = match error {
            Error::Stream(_) | Error::HungUp | Error::Silent => return,
            Error::TooManyAttempts | Error::TooSlow => TOO_MANY_ATTEMPTS,
            Error::Malformed(_) | Error::Protocol(_) | Error::NothingInCommon(_) | Error::Tampered => {
                PROTOCOL_ERROR
            }
        };
        self.transport.disconnect(reason, &error.to_string());
        // Best effort: it is the last thing to happen.
        let _ = tokio::time::timeout(TOLD_MAX, async {
            self.flush().await.and(Ok(self.writer.shutdown().await?))
        })
        .await;
    }

    /// Opens channels to the client.
    pub fn control(&self) -> Control {
        Control { shared: Arc::clone(&self.shared) }
    }

    /// What the client wants next. Everything of its channels happens while this is waited for. Cancel-safe.
    pub async fn next(&mut self) -> Result<Incoming> {
        let result = self.drive().await;
        if let Err(error) = &result {
            self.say_why(error).await;
        }
        result
    }

    async fn drive(&mut self) -> Result<Incoming> {
        loop {
            while self.transport.unsent() < DEAF_BYTES
                && let Some(payload) = self.transport.next_payload()?
            {
                self.asked = 0;
                if let Some(incoming) = self.dispatch(&payload)? {
                    return Ok(incoming);
                }
            }
            self.grant_wishes()?;
            self.encrypt()?;
            let (incoming, outgoing) = self.transport.buffers();
            let listens = outgoing.len() < DEAF_BYTES;
            incoming.reserve(if listens { READ_BYTES } else { 0 });
            tokio::select! {
                // Each arm is cancel-safe: bytes are taken only by the arm that wins.
                read = self.reader.read_buf(incoming), if listens => {
                    if read? == 0 {
                        return Err(Error::HungUp);
                    }
                    self.ask_at = Instant::now() + self.settings.quiet;
                }
                written = self.writer.write_buf(outgoing), if outgoing.has_remaining() => {
                    written?;
                }
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep_until(self.ask_at) => self.ask()?,
            }
        }
    }

    /// Asks a quiet client whether it is still there.
    fn ask(&mut self) -> Result<()> {
        self.ask_at = Instant::now() + self.settings.quiet;
        self.asked += 1;
        if self.asked > self.settings.quiet_questions_max {
            return Err(Error::Silent);
        }
        let question = Writer::message(message::GLOBAL_REQUEST).string("keepalive@openssh.com").boolean(true);
        self.transport.send(question.finish())
    }

    /// Moves queued messages into the stream while there is room in it.
    fn encrypt(&mut self) -> Result<()> {
        let mut made_room = false;
        while self.transport.unsent() < UNSENT_BYTES_MAX && !self.transport.is_exchanging() {
            let mut state = self.shared.state();
            let Some(payload) = state.queue.pop_front() else { break };
            if matches!(payload.first(), Some(&(message::CHANNEL_DATA | message::CHANNEL_EXTENDED_DATA))) {
                state.data_bytes -= payload.len();
                made_room = true;
            }
            drop(state);
            self.transport.send(payload)?;
        }
        if made_room {
            self.shared.room.notify_waiters();
        }
        if self.shared.state().queue.len() > ANSWERS_MAX {
            return Err(Error::Protocol("too many questions whose answers are not listened to"));
        }
        Ok(())
    }

    fn grant_wishes(&mut self) -> Result<()> {
        let wishes = std::mem::take(&mut self.shared.state().wishes);
        for Wish { kind, details, done } in wishes {
            let Some(ours) = self.free_slot() else { continue };
            let open = Writer::message(message::CHANNEL_OPEN)
                .string(kind)
                .number(ours)
                .number(WINDOW_BYTES)
                .number(PIECE_BYTES_MAX)
                .raw(&details);
            self.shared.push(open.finish());
            self.set(ours, Slot::Wished(done));
        }
        Ok(())
    }

    fn free_slot(&mut self) -> Option<u32> {
        let is_free = |slot: &Slot| match slot {
            Slot::Free => true,
            Slot::Open(port) => port.is_over(),
            Slot::Wished(_) => false,
        };
        let at = match self.slots.iter().position(is_free) {
            Some(at) => at,
            None if self.slots.len() < CHANNELS_MAX => {
                self.slots.push(Slot::Free);
                self.slots.len() - 1
            }
            None => return None,
        };
        u32::try_from(at).ok()
    }

    fn set(&mut self, ours: u32, slot: Slot) {
        if let Some(place) = usize::try_from(ours).ok().and_then(|at| self.slots.get_mut(at)) {
            *place = slot;
        }
    }

    fn slot(&self, ours: u32) -> Result<&Slot> {
        let slot = usize::try_from(ours).ok().and_then(|at| self.slots.get(at));
        slot.ok_or(Error::Protocol("a channel that is not there"))
    }

    fn port(&self, ours: u32) -> Result<&Arc<Port>> {
        match self.slot(ours)? {
            Slot::Open(port) if !port.is_closed_there() => Ok(port),
            Slot::Open(_) | Slot::Free | Slot::Wished(_) => {
                Err(Error::Protocol("a channel that is not open"))
            }
        }
    }

    fn dispatch(&mut self, payload: &Bytes) -> Result<Option<Incoming>> {
        let mut reader = Reader::new(payload);
        let kind = reader.byte()?;
        match kind {
            message::GLOBAL_REQUEST => return self.global_request(reader),
            message::CHANNEL_OPEN => return self.open(reader),
            message::CHANNEL_OPEN_CONFIRMATION => self.confirm(reader)?,
            message::CHANNEL_OPEN_FAILURE => {
                let ours = reader.number()?;
                match self.slot(ours)? {
                    Slot::Wished(_) => self.set(ours, Slot::Free),
                    Slot::Free | Slot::Open(_) => {
                        return Err(Error::Protocol("an answer without a question"));
                    }
                }
            }
            message::CHANNEL_WINDOW_ADJUST => self.port(reader.number()?)?.widen(reader.number()?),
            message::CHANNEL_DATA => {
                let port = self.port(reader.number()?)?;
                port.receive(reader.string()?, &self.shared)?;
            }
            message::CHANNEL_EXTENDED_DATA => {
                let port = self.port(reader.number()?)?;
                reader.number()?;
                port.discard(reader.string()?.len(), &self.shared)?;
            }
            message::CHANNEL_EOF => self.port(reader.number()?)?.receive_eof(),
            message::CHANNEL_CLOSE => self.port(reader.number()?)?.close_there(&self.shared),
            message::CHANNEL_REQUEST => {
                let port = Arc::clone(self.port(reader.number()?)?);
                let name = reader.text()?;
                let open = reader.boolean()?;
                let shared = Arc::clone(&self.shared);
                let question = Question { shared, channel: Some(Arc::clone(&port)), open, any_port: false };
                port.receive_request(Request::read(name, &mut reader)?, question)?;
            }
            // Answers to questions whether it is still there; logins of one who is in.
            message::REQUEST_SUCCESS | message::REQUEST_FAILURE | message::USERAUTH_REQUEST..=79 => {}
            _ => return Err(Error::Protocol("a message that nobody expects")),
        }
        Ok(None)
    }

    fn global_request(&mut self, mut reader: Reader<'_>) -> Result<Option<Incoming>> {
        let name = reader.text()?;
        let open = reader.boolean()?;
        let mut question =
            Question { shared: Arc::clone(&self.shared), channel: None, open, any_port: false };
        let tcp = |reader: &mut Reader<'_>| -> Result<Forward> {
            let address = reader.text()?.to_owned();
            let port = u16::try_from(reader.number()?).map_err(|_| Error::Protocol("a port that is none"))?;
            Ok(Forward::Tcp { address, port })
        };
        let local = |reader: &mut Reader<'_>| -> Result<Forward> {
            Ok(Forward::Local { path: reader.text()?.to_owned() })
        };
        Ok(match name {
            "tcpip-forward" => {
                let forward = tcp(&mut reader)?;
                question.any_port = matches!(forward, Forward::Tcp { port: 0, .. });
                Some(Incoming::Listen(forward, question))
            }
            "cancel-tcpip-forward" => Some(Incoming::Unlisten(tcp(&mut reader)?, question)),
            "streamlocal-forward@openssh.com" => Some(Incoming::Listen(local(&mut reader)?, question)),
            "cancel-streamlocal-forward@openssh.com" => {
                Some(Incoming::Unlisten(local(&mut reader)?, question))
            }
            // Asked so, too, whether we are still there: any answer will do, and this one is no.
            _ => None,
        })
    }

    fn open(&mut self, mut reader: Reader<'_>) -> Result<Option<Incoming>> {
        let name = reader.text()?;
        let (theirs, window, piece_max) = (reader.number()?, reader.number()?, reader.number()?);
        let kind = match name {
            "session" => OpeningKind::Session,
            "direct-tcpip" => {
                let host = reader.text()?.to_owned();
                let port =
                    u16::try_from(reader.number()?).map_err(|_| Error::Protocol("a port that is none"))?;
                OpeningKind::Tcp { host, port }
            }
            "direct-streamlocal@openssh.com" => OpeningKind::Local { path: reader.text()?.to_owned() },
            _ => {
                self.shared.push(open_failure(theirs, UNKNOWN_TYPE, "no channels of this type"));
                return Ok(None);
            }
        };
        let Some(ours) = self.free_slot() else {
            self.shared.push(open_failure(theirs, SHORTAGE, "too many channels"));
            return Ok(None);
        };
        let port = Port::new(theirs, window, piece_max);
        self.set(ours, Slot::Open(Arc::clone(&port)));
        let reply = Some(Reply { port, ours, shared: Arc::clone(&self.shared) });
        Ok(Some(Incoming::Open(Opening { kind, reply })))
    }

    fn confirm(&mut self, mut reader: Reader<'_>) -> Result<()> {
        let ours = reader.number()?;
        let port = Port::new(reader.number()?, reader.number()?, reader.number()?);
        let at = usize::try_from(ours).ok().and_then(|at| self.slots.get_mut(at));
        let Some(slot @ Slot::Wished(_)) = at else {
            return Err(Error::Protocol("an answer without a question"));
        };
        if let Slot::Wished(done) = std::mem::replace(slot, Slot::Open(Arc::clone(&port))) {
            // Whoever wished for it may be gone: then it is closed by being dropped.
            let _ = done.send(Channel::new(port, Arc::clone(&self.shared)));
        }
        Ok(())
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.over = true;
        state.queue.clear();
        let wishes = std::mem::take(&mut state.wishes);
        drop(state);
        drop(wishes);
        for slot in self.slots.drain(..) {
            if let Slot::Open(port) = slot {
                port.close_there(&self.shared);
            }
        }
        self.shared.room.notify_waiters();
    }
}
