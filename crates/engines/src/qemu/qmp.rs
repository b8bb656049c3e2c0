//! Speaking to QEMU: QMP over a Unix socket.
//!
//! ```text
//!   execute ──▶ one line of JSON ──▶ socket ──▶ QEMU
//!                                      │
//!   answer ◀── by id ◀── reading task ◀┘ ──▶ events: what matters of them goes to the log
//! ```
//!
//! QEMU serves one client per socket, so a machine has one connection, held by the engine and shared by its users. Dropping
//! the wait for an answer is harmless: the reading task throws away what nobody waits for any more.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, BufReader, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::oneshot,
    task::JoinHandle,
};

/// Longest line read. The longest answers are lists of what QEMU knows: processors, devices, its own schema.
const LINE_BYTES_MAX: usize = 4 << 20;

/// How long QEMU may take for a command that does not say otherwise.
const COMMAND_MAX: Duration = Duration::from_secs(20);

/// Pause between two looks at what QEMU has no event for, at first and at most.
const LOOK_AGAIN_FIRST: Duration = Duration::from_millis(1);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(50);

/// Why QEMU did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// It cannot be reached, or hung up.
    #[error("cannot talk to QEMU")]
    Connection(#[source] io::Error),
    /// It did not answer in time.
    #[error("QEMU did not answer {command} in time")]
    Timeout {
        /// What it was asked.
        command: String,
    },
    /// It answered what it should not.
    #[error("QEMU answered {command} with something else")]
    Protocol {
        /// What it was asked.
        command: String,
        /// What did not fit.
        #[source]
        source: serde_json::Error,
    },
    /// It refused.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// What it was asked.
        command: String,
        /// Its own kind of error.
        class: String,
        /// Its own words.
        description: String,
    },
    /// It began, and failed.
    #[error("{what} failed in QEMU: {description}")]
    Failed {
        /// What.
        what: String,
        /// Its own words.
        description: String,
    },
}

/// Result of a command.
pub(super) type QmpResult<T> = Result<T, QmpError>;

/// A connection to one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    shared: Arc<Shared>,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    next: AtomicU64,
    reading: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// Who waits for which answer; `None` once the connection is gone.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
}

type Answer = Result<Value, Refusal>;

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

#[derive(Debug, Deserialize)]
struct Line {
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

/// What a virtual machine does, as QEMU says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Status {
    /// QEMU's word.
    pub(super) status: String,
    /// Its processors run.
    pub(super) running: bool,
}

/// How a migration is, or was.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Migration {
    /// QEMU's word; none at all before the first.
    pub(super) status: Option<String>,
    /// Why it failed.
    #[serde(rename = "error-desc")]
    pub(super) error: Option<String>,
}

/// A job.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Job {
    /// Its name.
    pub(super) id: String,
    /// QEMU's word.
    pub(super) status: String,
    /// Why it failed, once it is concluded.
    pub(super) error: Option<String>,
}

impl Qmp {
    /// Takes a stream that is connected and agrees on capabilities.
    pub(super) async fn begin(stream: UnixStream) -> QmpResult<Self> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let greeting = read_line(&mut reader).await.map_err(QmpError::Connection)?;
        #[derive(Deserialize)]
        struct Greeting {
            #[serde(rename = "QMP")]
            _qmp: Value,
        }
        serde_json::from_slice::<Greeting>(&greeting)
            .map_err(|source| QmpError::Protocol { command: "the greeting".to_owned(), source })?;
        let shared = Arc::new(Shared { waiting: Mutex::new(Some(HashMap::new())) });
        let reading = tokio::spawn(read_all(reader, Arc::clone(&shared)));
        let qmp = Self { shared, writer: tokio::sync::Mutex::new(writer), next: AtomicU64::new(1), reading };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Whether the other end is still there, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        self.shared.waiting.lock().expect("no holder panics").is_some()
    }

    /// Has a command carried out.
    pub(super) async fn execute(&self, command: &str, arguments: Value) -> QmpResult<Value> {
        self.execute_within(COMMAND_MAX, command, arguments).await
    }

    /// The same with a limit of its own.
    pub(super) async fn execute_within(
        &self,
        limit: Duration,
        command: &str,
        arguments: Value,
    ) -> QmpResult<Value> {
        self.exchange(limit, command, arguments, None).await
    }

    /// The same with an answer of a known form.
    pub(super) async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        command: &str,
        arguments: Value,
    ) -> QmpResult<T> {
        let answer = self.execute(command, arguments).await?;
        serde_json::from_value(answer)
            .map_err(|source| QmpError::Protocol { command: command.to_owned(), source })
    }

    async fn exchange(
        &self,
        limit: Duration,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> QmpResult<Value> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match self.shared.waiting.lock().expect("no holder panics").as_mut() {
            Some(waiting) => drop(waiting.insert(id, sender)),
            None => return Err(QmpError::Connection(io::ErrorKind::BrokenPipe.into())),
        }
        // Whoever stops waiting takes its place along.
        let _place = Place { shared: &self.shared, id };
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let exchange = async {
            {
                let writer = self.writer.lock().await;
                // A line goes out whole, or nobody can say what QEMU makes of the next.
                let whole = Whole { shared: &self.shared };
                write_line(writer.as_ref(), line.as_bytes(), descriptor)
                    .await
                    .map_err(QmpError::Connection)?;
                std::mem::forget(whole);
            }
            match receiver.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(refusal)) => Err(QmpError::Refused {
                    command: command.to_owned(),
                    class: refusal.class,
                    description: refusal.desc,
                }),
                Err(_) => Err(QmpError::Connection(io::ErrorKind::UnexpectedEof.into())),
            }
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(answered) => answered,
            Err(_) => Err(QmpError::Timeout { command: command.to_owned() }),
        }
    }

    // ---- the machine --------------------------------------------------------------------------------------------

    /// What the machine does.
    pub(super) async fn status(&self) -> QmpResult<Status> {
        self.ask("query-status", json!({})).await
    }

    /// Stops the processors.
    pub(super) async fn stop(&self) -> QmpResult<()> {
        self.execute("stop", json!({})).await.map(drop)
    }

    /// Lets them run.
    pub(super) async fn cont(&self) -> QmpResult<()> {
        self.execute("cont", json!({})).await.map(drop)
    }

    /// Ends QEMU.
    pub(super) async fn quit(&self) -> QmpResult<()> {
        self.execute("quit", json!({})).await.map(drop)
    }

    /// Presses the power button.
    pub(super) async fn system_powerdown(&self) -> QmpResult<()> {
        self.execute("system_powerdown", json!({})).await.map(drop)
    }

    // ---- descriptors --------------------------------------------------------------------------------------------

    /// Hands over a descriptor; from then on `/dev/fdset/<set>` names it wherever QEMU opens a file in the way it is open.
    /// QEMU itself may not open anything of the host by path.
    pub(super) async fn add_fd(&self, set: u32, descriptor: impl AsFd) -> QmpResult<()> {
        let arguments = json!({ "fdset-id": set });
        self.exchange(COMMAND_MAX, "add-fd", arguments, Some(descriptor.as_fd())).await.map(drop)
    }

    /// The same with a word by which the descriptor is found again in its set.
    pub(super) async fn add_marked_fd(&self, set: u32, descriptor: impl AsFd, mark: &str) -> QmpResult<()> {
        let arguments = json!({ "fdset-id": set, "opaque": mark });
        self.exchange(COMMAND_MAX, "add-fd", arguments, Some(descriptor.as_fd())).await.map(drop)
    }

    /// Forgets the descriptors of a set; files that are open stay so.
    pub(super) async fn remove_fds(&self, set: u32) -> QmpResult<()> {
        self.execute("remove-fd", json!({ "fdset-id": set })).await.map(drop)
    }

    /// Hands over a descriptor under a name, for the one command that takes it.
    pub(super) async fn getfd(&self, name: &str, descriptor: impl AsFd) -> QmpResult<()> {
        let arguments = json!({ "fdname": name });
        self.exchange(COMMAND_MAX, "getfd", arguments, Some(descriptor.as_fd())).await.map(drop)
    }

    // ---- migration ----------------------------------------------------------------------------------------------

    /// Turns capabilities of migration on or off.
    pub(super) async fn set_migration_capabilities(&self, states: &[(&str, bool)]) -> QmpResult<()> {
        let states: Vec<Value> = states
            .iter()
            .map(|(capability, state)| json!({ "capability": capability, "state": state }))
            .collect();
        self.execute("migrate-set-capabilities", json!({ "capabilities": states })).await.map(drop)
    }

    /// Sets parameters of migration.
    pub(super) async fn set_migration_parameters(&self, parameters: Value) -> QmpResult<()> {
        self.execute("migrate-set-parameters", parameters).await.map(drop)
    }

    /// Begins to write the machine's state.
    pub(super) async fn migrate(&self, uri: &str) -> QmpResult<()> {
        self.execute("migrate", json!({ "uri": uri })).await.map(drop)
    }

    /// Begins to read it.
    pub(super) async fn migrate_incoming(&self, uri: &str) -> QmpResult<()> {
        self.execute("migrate-incoming", json!({ "uri": uri })).await.map(drop)
    }

    /// How the migration is.
    pub(super) async fn migration(&self) -> QmpResult<Migration> {
        self.ask("query-migrate", json!({})).await
    }

    /// Waits until the migration, which was begun, is over.
    pub(super) async fn migration_ends(&self, limit: Duration) -> QmpResult<()> {
        let ends = async {
            let mut pause = LOOK_AGAIN_FIRST;
            loop {
                let migration = self.migration().await?;
                match migration.status.as_deref() {
                    Some("completed") => return Ok(()),
                    Some("failed" | "cancelled") => {
                        let description = migration.error.unwrap_or_else(|| "no reason is given".to_owned());
                        return Err(QmpError::Failed { what: "migration".to_owned(), description });
                    }
                    _ => {}
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_AGAIN_MAX);
            }
        };
        match tokio::time::timeout(limit, ends).await {
            Ok(ended) => ended,
            Err(_) => Err(QmpError::Timeout { command: "migrate".to_owned() }),
        }
    }

    /// Ends a migration that is under way.
    pub(super) async fn migrate_cancel(&self) -> QmpResult<()> {
        self.execute("migrate_cancel", json!({})).await.map(drop)
    }

    // ---- disks --------------------------------------------------------------------------------------------------

    /// Adds a node.
    pub(super) async fn blockdev_add(&self, node: Value) -> QmpResult<()> {
        self.execute("blockdev-add", node).await.map(drop)
    }

    /// Removes a node that nothing uses.
    pub(super) async fn blockdev_del(&self, node: &str) -> QmpResult<()> {
        self.execute("blockdev-del", json!({ "node-name": node })).await.map(drop)
    }

    /// Puts the node `overlay` over `node`: from then on writes go there and `node` is left as it is.
    pub(super) async fn blockdev_snapshot(&self, node: &str, overlay: &str) -> QmpResult<()> {
        self.execute("blockdev-snapshot", json!({ "node": node, "overlay": overlay })).await.map(drop)
    }

    /// Makes the disk whose node this is as large as so many bytes, also for a guest that runs.
    pub(super) async fn block_resize(&self, node: &str, size_bytes: u64) -> QmpResult<()> {
        self.execute("block_resize", json!({ "node-name": node, "size": size_bytes })).await.map(drop)
    }

    /// Forgets a job that is concluded.
    pub(super) async fn job_dismiss(&self, job: &str) -> QmpResult<()> {
        self.execute("job-dismiss", json!({ "id": job })).await.map(drop)
    }

    /// All jobs.
    pub(super) async fn jobs(&self) -> QmpResult<Vec<Job>> {
        self.ask("query-jobs", json!({})).await
    }

    /// Waits until a job has one of these states, or is gone, or failed.
    pub(super) async fn job_reaches(&self, job: &str, states: &[&str], limit: Duration) -> QmpResult<()> {
        let reaches = async {
            let mut pause = LOOK_AGAIN_FIRST;
            loop {
                let Some(found) = self.jobs().await?.into_iter().find(|found| found.id == job) else {
                    return Ok(());
                };
                if let Some(description) = found.error {
                    return Err(QmpError::Failed { what: format!("job {job}"), description });
                }
                if states.contains(&found.status.as_str()) {
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_AGAIN_MAX);
            }
        };
        match tokio::time::timeout(limit, reaches).await {
            Ok(ended) => ended,
            Err(_) => Err(QmpError::Timeout { command: format!("job {job}") }),
        }
    }

    // ---- screen and keys ----------------------------------------------------------------------------------------

    /// Hands over a stream whose other end is to see the display.
    pub(super) async fn add_display_client(&self, stream: impl AsFd) -> QmpResult<()> {
        let name = format!("display-{}", self.next.load(Ordering::Relaxed));
        self.getfd(&name, stream).await?;
        let arguments = json!({ "protocol": "vnc", "fdname": name, "skipauth": true });
        self.execute("add_client", arguments).await.map(drop)
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// A place among those who wait for an answer.
struct Place<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.shared.waiting.lock().expect("no holder panics").as_mut() {
            waiting.remove(&self.id);
        }
    }
}

/// Closes the connection unless it is forgotten.
struct Whole<'a> {
    shared: &'a Shared,
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        self.shared.waiting.lock().expect("no holder panics").take();
    }
}

/// The reading task's life.
async fn read_all(mut reader: BufReader<OwnedReadHalf>, shared: Arc<Shared>) {
    let mut disk_failed = false;
    let end = loop {
        let line = match read_line(&mut reader).await {
            Ok(line) => line,
            Err(error) => break error.to_string(),
        };
        let line: Line = match serde_json::from_slice(&line) {
            Ok(line) => line,
            Err(error) => break error.to_string(),
        };
        if let Some(event) = line.event {
            if event == DISK_ERROR && !std::mem::replace(&mut disk_failed, true) {
                // The guest is told as of a bad disk; most often it is the host that is full.
                tracing::warn!(data = %line.data, "a virtual machine cannot use its disk");
            }
            tracing::trace!(event, data = %line.data, "qemu says");
            continue;
        }
        let answer = match (line.error, line.value) {
            (Some(refusal), _) => Err(refusal),
            (None, value) => Ok(value.unwrap_or(Value::Null)),
        };
        let waiting = line.id.and_then(|id| {
            shared.waiting.lock().expect("no holder panics").as_mut().and_then(|all| all.remove(&id))
        });
        if let Some(waiting) = waiting {
            // Whoever asked may have gone.
            let _ = waiting.send(answer);
        }
    };
    tracing::trace!(end, "qemu's monitor is closed");
    // Those who wait see their senders dropped.
    shared.waiting.lock().expect("no holder panics").take();
}

/// The event that tells of a disk that could not be read or written. It may come as often as the guest tries.
const DISK_ERROR: &str = "BLOCK_IO_ERROR";

/// Reads a line of bounded length.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let bytes = reader.fill_buf().await?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (count, ended) = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (bytes.len(), false),
        };
        if line.len() + count > LINE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
        }
        line.extend_from_slice(&bytes[..count]);
        reader.consume(count);
        if ended {
            return Ok(line);
        }
    }
}

/// Writes a line; a descriptor goes with its first byte.
async fn write_line(
    stream: &UnixStream,
    mut line: &[u8],
    mut descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    while !line.is_empty() {
        stream.writable().await?;
        let sent = stream.try_io(Interest::WRITABLE, || send(stream, line, descriptor));
        match sent {
            Ok(count) => {
                line = &line[count..];
                descriptor = None;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn send(stream: &UnixStream, line: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let lines = [io::IoSlice::new(line)];
    Ok(rustix::net::sendmsg(stream, &lines, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

    /// The other end, as a QEMU is: it greets, agrees, and then says what the test has it say.
    struct Fake(UnixStream);

    impl Fake {
        async fn connected() -> (Qmp, Self) {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            let mut fake = Self(theirs);
            let (qmp, ()) = tokio::join!(Qmp::begin(ours), async {
                fake.say(GREETING).await;
                assert_eq!(fake.hear().await["execute"], "qmp_capabilities");
                fake.say("{\"return\": {}, \"id\": 1}\n").await;
            });
            (qmp.expect("agreed"), fake)
        }

        async fn say(&mut self, text: &str) {
            self.0.write_all(text.as_bytes()).await.expect("heard");
        }

        async fn hear(&mut self) -> Value {
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                line.push(self.0.read_u8().await.expect("said"));
            }
            serde_json::from_slice(&line).expect("JSON")
        }
    }

    #[tokio::test]
    async fn answers_find_who_asked_in_any_order_and_between_events() {
        let (qmp, mut fake) = Fake::connected().await;
        let (first, second, ()) =
            tokio::join!(qmp.execute("a", json!({})), qmp.execute("b", json!({})), async {
                let (one, two) = (fake.hear().await, fake.hear().await);
                fake.say(&format!("{{\"return\": 2, \"id\": {}}}\n", two["id"])).await;
                fake.say("{\"event\": \"STOP\", \"timestamp\": {}}\n").await;
                let refusal = "{\"class\": \"GenericError\", \"desc\": \"no\"}";
                fake.say(&format!("{{\"error\": {refusal}, \"id\": {}}}\n", one["id"])).await;
            });
        assert_eq!(second.expect("answered"), json!(2));
        let refused = first.expect_err("refused").to_string();
        assert_eq!(refused, "QEMU refused a: no");
    }

    #[tokio::test]
    async fn whoever_waits_when_the_connection_ends_is_told() {
        let (qmp, mut fake) = Fake::connected().await;
        let (asked, ()) = tokio::join!(qmp.execute("a", json!({})), async {
            fake.hear().await;
            drop(fake);
        });
        assert!(matches!(asked, Err(QmpError::Connection(_))), "{asked:?}");
        assert!(!qmp.is_open());
        assert!(matches!(qmp.execute("b", json!({})).await, Err(QmpError::Connection(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_too_late_is_nobodys() {
        let (qmp, mut fake) = Fake::connected().await;
        let late = qmp.execute_within(Duration::from_millis(5), "a", json!({})).await;
        assert!(matches!(late, Err(QmpError::Timeout { .. })), "{late:?}");
        let first = fake.hear().await;
        let (answered, ()) = tokio::join!(qmp.execute("b", json!({})), async {
            let second = fake.hear().await;
            fake.say(&format!("{{\"return\": 1, \"id\": {}}}\n", first["id"])).await;
            fake.say(&format!("{{\"return\": 2, \"id\": {}}}\n", second["id"])).await;
        });
        assert_eq!(answered.expect("answered"), json!(2));
    }

    #[tokio::test]
    async fn a_line_without_end_ends_the_connection() {
        let (qmp, mut fake) = Fake::connected().await;
        let piece = vec![b' '; 1 << 20];
        let endless = async {
            while fake.0.write_all(&piece).await.is_ok() {}
            // Nobody takes it any more.
            std::future::pending::<()>().await;
        };
        let asked = tokio::select! {
            asked = qmp.execute("a", json!({})) => asked,
            () = endless => unreachable!("it has no end"),
        };
        assert!(matches!(asked, Err(QmpError::Connection(_))), "{asked:?}");
    }

    #[tokio::test]
    async fn a_descriptor_goes_with_its_command() {
        let (qmp, fake) = Fake::connected().await;
        let file = tempfile::tempfile().expect("a file");
        let (added, ()) = tokio::join!(qmp.add_fd(7, &file), async {
            fake.0.readable().await.expect("something comes");
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 4096];
            let mut parts = [io::IoSliceMut::new(&mut bytes)];
            let received = rustix::net::recvmsg(&fake.0, &mut parts, &mut control, RecvFlags::empty())
                .expect("received");
            let line: Value = serde_json::from_slice(&bytes[..received.bytes]).expect("JSON");
            assert_eq!((&line["execute"], &line["arguments"]["fdset-id"]), (&json!("add-fd"), &json!(7)));
            let descriptors: Vec<OwnedFd> = control
                .drain()
                .flat_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(rights) => rights.collect::<Vec<_>>(),
                    _ => Vec::new(),
                })
                .collect();
            let [copy] = &descriptors[..] else { panic!("one descriptor: {descriptors:?}") };
            let inode = |descriptor| rustix::fs::fstat(descriptor).expect("open").st_ino;
            assert_eq!(inode(copy.as_fd()), inode(file.as_fd()));
            let answer = format!("{{\"return\": {{}}, \"id\": {}}}\n", line["id"]);
            fake.0.writable().await.expect("it listens");
            fake.0.try_write(answer.as_bytes()).expect("said");
        });
        added.expect("added");
    }
}
