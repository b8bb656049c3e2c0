//! What is wanted, durably: the only place with SQL.
//!
//! One thread owns the writing connection. Commands queue up to it and are committed together, so 200 sandboxes made
//! at once cost a few commits and not 200. The database is in WAL mode: a kill -9 at any moment loses nothing that was
//! acknowledged. Rows about containers need no fsync (`synchronous=NORMAL`); a change that must survive a power cut,
//! because the thing it describes does (a memory image, an archive), is committed with `synchronous=FULL`, which
//! also makes everything before it safe. Checkpoints, which do sync, wait for a quiet moment, and so does the beginning
//! of the next log.
//!
//! The queue has no bound of its own: each actor has at most one awaited and a few unawaited commands in it, and the
//! number of actors is bounded.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, named_params, params};
use tokio::sync::oneshot;

use crate::{
    error::{Error, Kind, Result},
    job::{Job, JobId},
    types::*,
};

/// Rows of the history beyond this number go, the oldest first.
pub const HISTORY_ROWS_MAX: u32 = 10_000;

/// Rows of finished jobs beyond this number go, the oldest first.
pub const JOBS_MAX: u32 = 1_000;

/// Most commands committed together.
const BATCH_MAX: usize = 256;

/// A queue that was empty for so long is a quiet moment.
const QUIET: Duration = Duration::from_millis(500);

/// WAL pages after which a checkpoint does not wait for a quiet moment.
const WAL_PAGES_MAX: u32 = 16_384;

/// How long a reader waits for a lock that another connection holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Each brings the schema from its index to the next; `user_version` counts those applied. Never changed once released.
const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE sandboxes (
    id TEXT PRIMARY KEY NOT NULL,
    owner TEXT NOT NULL,
    name TEXT,
    engine TEXT NOT NULL,
    spec TEXT NOT NULL,
    labels TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    goal TEXT NOT NULL,
    generation INTEGER NOT NULL,
    disk INTEGER,
    memory INTEGER,
    archive INTEGER,
    life TEXT NOT NULL,
    up INTEGER,
    ttl_ms INTEGER NOT NULL,
    expires_at_ms INTEGER,
    failure TEXT
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX sandboxes_name ON sandboxes (owner, name) WHERE name IS NOT NULL;
CREATE TABLE ended (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    reason TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    sandbox TEXT NOT NULL
) STRICT;
CREATE INDEX ended_at ON ended (at_ms);
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    job TEXT NOT NULL
) STRICT;
",
    "
ALTER TABLE sandboxes ADD COLUMN tenancy TEXT NOT NULL DEFAULT 'own';
ALTER TABLE sandboxes ADD COLUMN claimed INTEGER;
",
];

/// What a change must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Durability {
    /// The end of the process, however it ends.
    Process,
    /// A power cut.
    Power,
}

/// The columns that change after a row was made.
#[derive(Debug)]
struct Changes {
    id: SandboxId,
    goal: Goal,
    generation: Generation,
    holdings: Holdings,
    life: Life,
    deadlines: Deadlines,
    failure: Option<String>,
}

impl Changes {
    fn of(sandbox: &Sandbox) -> Self {
        Self {
            id: sandbox.id.clone(),
            goal: sandbox.goal,
            generation: sandbox.generation,
            holdings: sandbox.holdings,
            life: sandbox.life,
            deadlines: sandbox.deadlines,
            failure: sandbox.failure.as_ref().map(json),
        }
    }
}

#[derive(Debug)]
enum Write {
    Insert { sandbox: Box<Sandbox> },
    Save(Box<Changes>),
    Claim { sandbox: Box<Sandbox> },
    Respec { id: SandboxId, spec: String },
    End { id: SandboxId, history: Option<Box<(Sandbox, Ended)>> },
    Prune { before_ms: i64 },
    Job(Box<Job>),
}

struct Command {
    write: Write,
    durability: Durability,
    reply: Option<oneshot::Sender<Result<()>>>,
}

/// The database of one instance. The instance's lock keeps other processes out.
#[derive(Debug)]
pub struct Store {
    writer: Mutex<Option<Sender<Command>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    reader: Arc<Mutex<Connection>>,
}

impl Store {
    /// Opens or makes the database at `path`. Blocking. A newer schema is refused ([`Kind::Conflict`]).
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_uri(path.as_os_str().as_ref())
    }

    /// A database in memory, under a name of this process alone: it is gone with the store. Blocking.
    pub fn open_in_memory(name: &str) -> Result<Self> {
        Self::open_uri(Path::new(&format!("file:/{name}?vfs=memdb")))
    }

    fn open_uri(path: &Path) -> Result<Self> {
        let mut connection = Connection::open(path).map_err(|error| failed("open store", error))?;
        prepare(&connection).map_err(|error| failed("prepare store", error))?;
        migrate(&mut connection)?;
        connection
            .execute(
                "UPDATE jobs SET state = 'failed',
                     job = json_set(job, '$.state', 'failed', '$.error', 'the server ended')
                 WHERE state = 'running'",
                [],
            )
            .map_err(|error| failed("close jobs of the last run", error))?;
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let reader = Connection::open_with_flags(path, flags).map_err(|error| failed("open store", error))?;
        reader.busy_timeout(BUSY_TIMEOUT).map_err(|error| failed("prepare store", error))?;

        let (writer, commands) = channel();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || Writer { connection, synchronous: Durability::Process }.run(&commands))
            .map_err(|error| Error::internal("start store thread", error))?;
        Ok(Self {
            writer: Mutex::new(Some(writer)),
            thread: Mutex::new(Some(thread)),
            reader: Arc::new(Mutex::new(reader)),
        })
    }

    /// Every row. Blocking.
    pub fn load(&self) -> Result<Vec<Sandbox>> {
        let reader = lock(&self.reader);
        let load = || -> rusqlite::Result<Vec<Sandbox>> {
            let mut statement = reader.prepare("SELECT * FROM sandboxes ORDER BY created_at_ms, id")?;
            let rows = statement.query_map([], sandbox_of)?;
            rows.collect()
        };
        load().map_err(|error| failed("read sandboxes", error))
    }

    /// Adds a row. [`Kind::Exists`] if the id was ever used or the owner's name is taken.
    pub(crate) async fn insert(&self, sandbox: &Sandbox) -> Result<()> {
        self.write(Write::Insert { sandbox: Box::new(sandbox.clone()) }, Durability::Process).await
    }

    /// Writes all of a row that can change.
    pub(crate) async fn save(&self, sandbox: &Sandbox, durability: Durability) -> Result<()> {
        self.write(Write::Save(Box::new(Changes::of(sandbox))), durability).await
    }

    /// The same without waiting: it is committed before anything queued later. A failure is logged.
    pub(crate) fn save_unawaited(&self, sandbox: &Sandbox) {
        self.send(Command {
            write: Write::Save(Box::new(Changes::of(sandbox))),
            durability: Durability::Process,
            reply: None,
        });
    }

    /// Writes what a sandbox is made of: new limits, or another reach.
    pub(crate) async fn respec(&self, sandbox: &Sandbox) -> Result<()> {
        let write = Write::Respec { id: sandbox.id.clone(), spec: json(&sandbox.spec) };
        self.write(write, Durability::Process).await
    }

    /// Gives the row of an idle sandbox to the owner that `sandbox` names, in one update. An error if it is not idle,
    /// [`Kind::Exists`] if the owner's name is taken.
    pub(crate) async fn claim(&self, sandbox: &Sandbox) -> Result<()> {
        self.write(Write::Claim { sandbox: Box::new(sandbox.clone()) }, Durability::Process).await
    }

    /// Moves a row to the history.
    pub(crate) async fn end(&self, sandbox: &Sandbox, ended: Ended) -> Result<()> {
        let history = Some(Box::new((sandbox.clone(), ended)));
        self.write(Write::End { id: sandbox.id.clone(), history }, Durability::Process).await
    }

    /// Removes a row without a trace: it never came to be.
    pub(crate) async fn forget(&self, id: &SandboxId) -> Result<()> {
        self.write(Write::End { id: id.clone(), history: None }, Durability::Process).await
    }

    /// Bounds the history and the jobs, by time and by count.
    pub(crate) async fn prune(&self, before_ms: i64) -> Result<()> {
        self.write(Write::Prune { before_ms }, Durability::Process).await
    }

    /// Adds or replaces a job.
    pub(crate) async fn put_job(&self, job: &Job) -> Result<()> {
        self.write(Write::Job(Box::new(job.clone())), Durability::Process).await
    }

    /// A job.
    pub async fn job(&self, id: &JobId) -> Result<Option<Job>> {
        let id = id.clone();
        self.read("read job", move |reader| {
            let text: Option<String> = reader
                .prepare_cached("SELECT job FROM jobs WHERE id = ?1")?
                .query_row([&id.0], |row| row.get(0))
                .optional()?;
            text.map(|text| parse(0, &text)).transpose()
        })
        .await
    }

    /// Jobs, newest first, as they were recorded.
    pub async fn jobs(&self) -> Result<Vec<Job>> {
        self.read("read jobs", |reader| {
            let mut statement = reader.prepare_cached("SELECT job FROM jobs ORDER BY number DESC")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|text| parse(0, &text?)).collect()
        })
        .await
    }

    /// One row of the history.
    pub async fn ended(&self, id: &SandboxId) -> Result<Option<(Sandbox, Ended)>> {
        let id = id.clone();
        self.read("read history", move |reader| {
            reader
                .prepare_cached("SELECT sandbox, reason, at_ms FROM ended WHERE id = ?1")?
                .query_row([id.as_str()], ended_of)
                .optional()
        })
        .await
    }

    /// The history, newest end first; at most [`HISTORY_ROWS_MAX`].
    pub async fn history(&self) -> Result<Vec<(Sandbox, Ended)>> {
        self.read("read history", |reader| {
            let mut statement = reader
                .prepare_cached("SELECT sandbox, reason, at_ms FROM ended ORDER BY number DESC LIMIT ?1")?;
            let rows = statement.query_map([HISTORY_ROWS_MAX], ended_of)?;
            rows.collect()
        })
        .await
    }

    /// Commits what is queued and closes. Later calls fail with [`Kind::Unavailable`].
    pub async fn close(&self) {
        drop(lock(&self.writer).take());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic of the writer thread was reported when it happened; waiting for it is all that is left.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    async fn write(&self, write: Write, durability: Durability) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        #[cfg(test)]
        let _still = tests::hold_paused_time();
        self.send(Command { write, durability, reply: Some(reply) });
        answer.await.unwrap_or_else(|_| Err(Error::new(Kind::Unavailable, "the store is closed")))
    }

    fn send(&self, command: Command) {
        // A closed store drops the command, and with it the reply: the caller hears "closed".
        if let Some(writer) = lock(&self.writer).as_ref() {
            let _ = writer.send(command);
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let reader = self.reader.clone();
        let result = tokio::task::spawn_blocking(move || query(&lock(&reader))).await;
        match result {
            Ok(result) => result.map_err(|error| failed(what, error)),
            Err(error) => Err(Error::internal(what, error)),
        }
    }
}

/// What a mutex guards here is whole between any two statements, so a panic elsewhere does not make it unusable.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", WAL_PAGES_MAX, |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let known = u32::try_from(MIGRATIONS.len()).expect("migrations are few");
    let version: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| failed("read store version", error))?;
    if version > known {
        let message =
            format!("the store has schema {version}, written by a newer version; this one knows {known}");
        return Err(Error::new(Kind::Conflict, message));
    }
    for (number, migration) in (1..=known).zip(MIGRATIONS).skip(version as usize) {
        let apply = |connection: &mut Connection| -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            transaction.execute_batch(migration)?;
            transaction.pragma_update(None, "user_version", number)?;
            transaction.commit()
        };
        apply(connection).map_err(|error| failed("migrate store", error))?;
    }
    Ok(())
}

struct Writer {
    connection: Connection,
    synchronous: Durability,
}

impl Writer {
    fn run(mut self, commands: &Receiver<Command>) {
        let mut checkpointed = true;
        loop {
            let first = if checkpointed {
                commands.recv().ok()
            } else {
                match commands.recv_timeout(QUIET) {
                    Ok(command) => Some(command),
                    Err(RecvTimeoutError::Timeout) => {
                        self.checkpoint();
                        checkpointed = true;
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => None,
                }
            };
            let Some(first) = first else { break };
            let mut batch = vec![first];
            batch.extend(commands.try_iter().take(BATCH_MAX - 1));
            self.commit(batch);
            checkpointed = false;
        }
        self.checkpoint();
    }

    fn commit(&mut self, batch: Vec<Command>) {
        let durability = batch.iter().map(|command| command.durability).max().unwrap_or(Durability::Process);
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        let committed = self.set_synchronous(durability).and_then(|()| {
            let transaction = self.connection.unchecked_transaction()?;
            for command in batch {
                replies.push(command.reply);
                outcomes.push(apply(&transaction, command.write));
                // A full disk may have rolled the whole transaction back: nothing of the batch counts then.
                if transaction.is_autocommit() {
                    return Err(outcomes.pop().and_then(std::result::Result::err).unwrap_or(
                        rusqlite::Error::SqliteFailure(
                            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT),
                            None,
                        ),
                    ));
                }
            }
            transaction.commit()
        });
        // Commands that were not reached drop their replies: their callers hear that the store is closed.
        let committed = committed.map_err(|error| Arc::new(failed("write store", error)));
        for (index, reply) in replies.into_iter().enumerate() {
            let outcome = match &committed {
                Ok(()) => outcomes.get_mut(index).map_or(Ok(()), |outcome| {
                    std::mem::replace(outcome, Ok(())).map_err(|error| failed("write store", error))
                }),
                Err(error) => Err(Error::new(error.kind(), error.message()).with_source(error.clone())),
            };
            match (reply, outcome) {
                // A caller that no longer waits lost nothing: the write stands.
                (Some(reply), outcome) => drop(reply.send(outcome)),
                (None, Err(error)) => {
                    tracing::warn!(%error, source = ?std::error::Error::source(&error), "an unawaited write failed");
                }
                (None, Ok(())) => {}
            }
        }
    }

    fn set_synchronous(&mut self, durability: Durability) -> rusqlite::Result<()> {
        if self.synchronous != durability {
            let level = match durability {
                Durability::Process => "NORMAL",
                Durability::Power => "FULL",
            };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.synchronous = durability;
        }
        Ok(())
    }

    fn checkpoint(&self) {
        let checkpointed = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        // The first write after a checkpoint begins the log anew and syncs its head. It is made here, where nobody waits:
        // the version is written as it is.
        let begun = checkpointed.and_then(|()| {
            let version: u32 = self.connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            self.connection.pragma_update(None, "user_version", version)
        });
        if let Err(error) = begun {
            tracing::warn!(%error, "checkpoint of the store failed");
        }
    }
}

fn apply(connection: &Connection, write: Write) -> rusqlite::Result<()> {
    match write {
        Write::Insert { sandbox } => insert(connection, &sandbox),
        Write::Save(changes) => save(connection, &changes),
        Write::Claim { sandbox } => claim(connection, &sandbox),
        Write::Respec { id, spec } => respec(connection, &id, &spec),
        Write::End { id, history } => {
            // First the history, then the row: a failure in between leaves both, and the next try replaces.
            if let Some(history) = history {
                let (sandbox, ended) = *history;
                connection
                    .prepare_cached(
                        "INSERT OR REPLACE INTO ended (id, owner, reason, at_ms, sandbox) VALUES (?1, ?2, ?3, ?4, ?5)",
                    )?
                    .execute(params![
                        id.as_str(),
                        sandbox.owner.0,
                        reason_word(ended.reason),
                        ended.at_ms,
                        json(&sandbox)
                    ])?;
            }
            connection.prepare_cached("DELETE FROM sandboxes WHERE id = ?1")?.execute([id.as_str()])?;
            Ok(())
        }
        Write::Prune { before_ms } => {
            connection
                .prepare_cached(
                    "DELETE FROM ended WHERE at_ms < ?1 OR number <= (SELECT max(number) FROM ended) - ?2",
                )?
                .execute(params![before_ms, HISTORY_ROWS_MAX])?;
            connection
                .prepare_cached(
                    "DELETE FROM jobs WHERE state <> 'running' AND number <= (SELECT max(number) FROM jobs) - ?1",
                )?
                .execute([JOBS_MAX])?;
            Ok(())
        }
        Write::Job(job) => {
            let state = json(&job.state);
            connection
                .prepare_cached(
                    "INSERT INTO jobs (id, state, job) VALUES (?1, ?2, ?3)
                     ON CONFLICT (id) DO UPDATE SET state = excluded.state, job = excluded.job",
                )?
                .execute(params![job.id.0, state.trim_matches('"'), json(&job)])?;
            Ok(())
        }
    }
}

fn insert(connection: &Connection, sandbox: &Sandbox) -> rusqlite::Result<()> {
    // An id of the history is never given again: links and logs would mean another sandbox.
    let inserted = connection
        .prepare_cached(
            "INSERT INTO sandboxes (id, owner, name, engine, spec, labels, created_at_ms, goal, generation, disk,
                 memory, archive, life, up, ttl_ms, expires_at_ms, failure, tenancy, claimed)
             SELECT :id, :owner, :name, :engine, :spec, :labels, :created_at_ms, :goal, :generation, :disk,
                 :memory, :archive, :life, :up, :ttl_ms, :expires_at_ms, :failure, :tenancy, :claimed
             WHERE NOT EXISTS (SELECT 1 FROM ended WHERE id = :id)",
        )?
        .execute(named_params! {
            ":id": sandbox.id.as_str(),
            ":owner": sandbox.owner.0,
            ":name": sandbox.name,
            ":engine": sandbox.spec.engine.0,
            ":spec": json(&sandbox.spec),
            ":labels": json(&sandbox.labels),
            ":created_at_ms": sandbox.created_at_ms,
            ":goal": goal_word(sandbox.goal),
            ":generation": sandbox.generation.0.cast_signed(),
            ":disk": sandbox.holdings.disk.map(|generation| generation.0.cast_signed()),
            ":memory": sandbox.holdings.memory.map(|generation| generation.0.cast_signed()),
            ":archive": sandbox.holdings.archive.map(|generation| generation.0.cast_signed()),
            ":life": life_word(sandbox.life),
            ":up": life_generation(sandbox.life),
            ":ttl_ms": sandbox.deadlines.ttl_ms.cast_signed(),
            ":expires_at_ms": sandbox.deadlines.expires_at_ms,
            ":failure": sandbox.failure.as_ref().map(json),
            ":tenancy": tenancy_word(sandbox.tenancy),
            ":claimed": tenancy_generation(sandbox.tenancy),
        })?;
    if inserted == 0 {
        let constraint = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY);
        return Err(rusqlite::Error::SqliteFailure(constraint, Some("id is in the history".to_owned())));
    }
    Ok(())
}

fn save(connection: &Connection, changes: &Changes) -> rusqlite::Result<()> {
    let updated = connection
        .prepare_cached(
            "UPDATE sandboxes SET goal = :goal, generation = :generation, disk = :disk, memory = :memory,
                 archive = :archive, life = :life, up = :up, ttl_ms = :ttl_ms, expires_at_ms = :expires_at_ms,
                 failure = :failure
             WHERE id = :id",
        )?
        .execute(named_params! {
            ":id": changes.id.as_str(),
            ":goal": goal_word(changes.goal),
            ":generation": changes.generation.0.cast_signed(),
            ":disk": changes.holdings.disk.map(|generation| generation.0.cast_signed()),
            ":memory": changes.holdings.memory.map(|generation| generation.0.cast_signed()),
            ":archive": changes.holdings.archive.map(|generation| generation.0.cast_signed()),
            ":life": life_word(changes.life),
            ":up": life_generation(changes.life),
            ":ttl_ms": changes.deadlines.ttl_ms.cast_signed(),
            ":expires_at_ms": changes.deadlines.expires_at_ms,
            ":failure": changes.failure,
        })?;
    if updated == 0 { Err(rusqlite::Error::QueryReturnedNoRows) } else { Ok(()) }
}

fn claim(connection: &Connection, sandbox: &Sandbox) -> rusqlite::Result<()> {
    let updated = connection
        .prepare_cached(
            "UPDATE sandboxes SET owner = :owner, name = :name, spec = :spec, labels = :labels,
                 created_at_ms = :created_at_ms, ttl_ms = :ttl_ms, expires_at_ms = :expires_at_ms,
                 tenancy = :tenancy, claimed = :claimed
             WHERE id = :id AND tenancy = 'idle'",
        )?
        .execute(named_params! {
            ":id": sandbox.id.as_str(),
            ":owner": sandbox.owner.0,
            ":name": sandbox.name,
            ":spec": json(&sandbox.spec),
            ":labels": json(&sandbox.labels),
            ":created_at_ms": sandbox.created_at_ms,
            ":ttl_ms": sandbox.deadlines.ttl_ms.cast_signed(),
            ":expires_at_ms": sandbox.deadlines.expires_at_ms,
            ":tenancy": tenancy_word(sandbox.tenancy),
            ":claimed": tenancy_generation(sandbox.tenancy),
        })?;
    if updated == 0 { Err(rusqlite::Error::QueryReturnedNoRows) } else { Ok(()) }
}

fn respec(connection: &Connection, id: &SandboxId, spec: &str) -> rusqlite::Result<()> {
    let updated = connection
        .prepare_cached("UPDATE sandboxes SET spec = ?2 WHERE id = ?1")?
        .execute(params![id.as_str(), spec])?;
    if updated == 0 { Err(rusqlite::Error::QueryReturnedNoRows) } else { Ok(()) }
}

fn sandbox_of(row: &Row<'_>) -> rusqlite::Result<Sandbox> {
    let generation = |name: &str| -> rusqlite::Result<Option<Generation>> {
        Ok(row.get::<_, Option<i64>>(name)?.map(|number| Generation(number.cast_unsigned())))
    };
    let text = |name: &str| row.get::<_, String>(name);
    let id = text("id")?;
    let goal = text("goal")?;
    let life = text("life")?;
    let tenancy = text("tenancy")?;
    Ok(Sandbox {
        id: SandboxId::parse(&id).map_err(|error| unreadable(0, error))?,
        name: row.get("name")?,
        owner: OwnerId(text("owner")?),
        spec: parse(0, &text("spec")?)?,
        goal: goal_of(&goal)
            .ok_or_else(|| unreadable(0, Error::new(Kind::Internal, format!("goal {goal:?}"))))?,
        generation: Generation(row.get::<_, i64>("generation")?.cast_unsigned()),
        holdings: Holdings {
            disk: generation("disk")?,
            memory: generation("memory")?,
            archive: generation("archive")?,
        },
        life: match (life.as_str(), generation("up")?) {
            ("new", _) => Life::New,
            ("up", Some(up)) => Life::Up(up),
            ("down", _) => Life::Down,
            _ => return Err(unreadable(0, Error::new(Kind::Internal, format!("life {life:?}")))),
        },
        deadlines: Deadlines {
            ttl_ms: row.get::<_, i64>("ttl_ms")?.cast_unsigned(),
            expires_at_ms: row.get("expires_at_ms")?,
        },
        labels: parse(0, &text("labels")?)?,
        failure: row.get::<_, Option<String>>("failure")?.map(|text| parse(0, &text)).transpose()?,
        created_at_ms: row.get("created_at_ms")?,
        tenancy: match (tenancy.as_str(), generation("claimed")?) {
            ("own", _) => Tenancy::Own,
            ("idle", _) => Tenancy::Idle,
            ("claimed", Some(claimed)) => Tenancy::Claimed(claimed),
            _ => return Err(unreadable(0, Error::new(Kind::Internal, format!("tenancy {tenancy:?}")))),
        },
    })
}

fn ended_of(row: &Row<'_>) -> rusqlite::Result<(Sandbox, Ended)> {
    let text: String = row.get("sandbox")?;
    let word: String = row.get("reason")?;
    let reason = match word.as_str() {
        "deleted" => EndReason::Deleted,
        "expired" => EndReason::Expired,
        _ => return Err(unreadable(0, Error::new(Kind::Internal, format!("reason {word:?}")))),
    };
    Ok((parse(0, &text)?, Ended { reason, at_ms: row.get("at_ms")? }))
}

fn goal_word(goal: Goal) -> &'static str {
    match goal {
        Goal::Running => "running",
        Goal::Paused => "paused",
        Goal::Suspended => "suspended",
        Goal::Stopped => "stopped",
        Goal::Archived => "archived",
        Goal::Absent => "absent",
    }
}

fn goal_of(word: &str) -> Option<Goal> {
    [Goal::Running, Goal::Paused, Goal::Suspended, Goal::Stopped, Goal::Archived, Goal::Absent]
        .into_iter()
        .find(|goal| goal_word(*goal) == word)
}

fn life_word(life: Life) -> &'static str {
    match life {
        Life::New => "new",
        Life::Up(_) => "up",
        Life::Down => "down",
    }
}

fn life_generation(life: Life) -> Option<i64> {
    match life {
        Life::Up(generation) => Some(generation.0.cast_signed()),
        Life::New | Life::Down => None,
    }
}

fn tenancy_word(tenancy: Tenancy) -> &'static str {
    match tenancy {
        Tenancy::Own => "own",
        Tenancy::Idle => "idle",
        Tenancy::Claimed(_) => "claimed",
    }
}

fn tenancy_generation(tenancy: Tenancy) -> Option<i64> {
    match tenancy {
        Tenancy::Claimed(generation) => Some(generation.0.cast_signed()),
        Tenancy::Own | Tenancy::Idle => None,
    }
}

fn reason_word(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Deleted => "deleted",
        EndReason::Expired => "expired",
    }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our own types have string keys and finite numbers only")
}

fn parse<T: serde::de::DeserializeOwned>(column: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| unreadable(column, error))
}

fn unreadable(column: usize, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
}

fn failed(what: &str, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode;
    let (kind, message) = match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => (Kind::Exists, format!("{what}: the id or name is taken")),
        Some(ErrorCode::DiskFull) => (Kind::Exhausted, format!("{what}: no space left for the store")),
        _ => (Kind::Internal, what.to_owned()),
    };
    Error::new(kind, message).with_source(error)
}

#[cfg(test)]
mod tests;
