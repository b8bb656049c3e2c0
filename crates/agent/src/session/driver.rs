//! The task behind a session: its shell on pipes, fed one command at a time.
//!
//! What it knows lies in its [`Wiring`], and changes only between two of its waits: so the agent's successor can be told of
//! it at any moment, and goes on from there.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{QUEUE_MAX, READ_BYTES, STDERR_MARKER, STDOUT_MARKER, Session, SessionCommand, State};
use crate::{
    agent::Agent,
    error::Result,
    shell::{
        dialect::{Dialect, Plumbing, Wire},
        inbox::Inbox,
        scanner::{Marker, Piece, Scanner},
    },
    sys::{
        Channel, Command, Ended, Ending, Family, Script, Session as ProcessSession, discard, input_pipe,
        output_pipe, random_hex, script_pipe, second_reader, second_writer,
    },
};

/// How long the last words of an ended shell may take through its pipes.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Status of a command that never ran because its session ended.
const NEVER_RAN: i32 = -1;

/// How the agent and a session's shell are connected, and how far they are.
pub(super) struct Wiring {
    pub(super) ended: Ended,
    pub(super) dialect: Dialect,
    pub(super) script_pipe: Channel,
    pub(super) script: Option<Script>,
    /// Where leftover input is taken out.
    pub(super) leftovers: Channel,
    /// The agent's own ends of the output pipes.
    pub(super) outputs: [Channel; 2],
    pub(super) streams: [Channel; 2],
    pub(super) scanners: [Mutex<Scanner>; 2],
    pub(super) markers: Inbox<(usize, Marker)>,
    pub(super) nonce: String,
    pub(super) course: Mutex<Course>,
}

/// How far a session is.
pub(super) struct Course {
    /// The command whose output the readers are taking in, which is also the last one when none runs.
    pub(super) current: Option<Arc<SessionCommand>>,
    pub(super) stage: Stage,
}

/// How far its present command is.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    /// There is none.
    Idle,
    /// This is still to be written for the shell.
    Sending(Bytes),
    /// The shell has it; the end has come through these streams.
    Running([Option<i32>; 2]),
}

impl Wiring {
    pub(super) fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn scanner(&self, stream: usize) -> MutexGuard<'_, Scanner> {
        self.scanners[stream].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Driver {
    session: Arc<Session>,
    queue: mpsc::Receiver<Arc<SessionCommand>>,
    wiring: Arc<Wiring>,
    ended: Ended,
    readers: [JoinHandle<()>; 2],
}

/// Starts a session's shell and the task that drives it.
pub(super) fn start(agent: &Arc<Agent>, id: &str) -> Result<Arc<Session>> {
    let dialect = Dialect::choose(&agent.shell);
    let (script_pipe, script_end) = script_pipe(&agent.workload)?;
    let (input, input_end) = input_pipe()?;
    let (stdout, stdout_end) = output_pipe()?;
    let (stderr, stderr_end) = output_pipe()?;
    let nowhere = discard()?;
    let script = dialect.script_fd().map(|_| Script::new()).transpose()?;
    let mark = Family::new_mark();
    let mut env = agent.environment();
    env.entry("SHELL".to_owned()).or_insert_with(|| dialect.program().to_owned());
    env.insert(Family::MARK.to_owned(), mark.clone());
    let mut descriptors = vec![
        (nowhere.as_fd(), 0),
        (script_end.as_fd(), dialect.pipe_fd().into()),
        (nowhere.as_fd(), 1),
        (nowhere.as_fd(), 2),
        (input_end.as_fd(), dialect.wire(Wire::Input).into()),
        (stdout_end.as_fd(), dialect.wire(Wire::Output).into()),
        (stderr_end.as_fd(), dialect.wire(Wire::Errors).into()),
    ];
    if let (Some(script), Some(fd)) = (&script, dialect.script_fd()) {
        descriptors.push((script.descriptor(), fd.into()));
    }
    let child = agent.children.spawn(&Command {
        argv: &dialect.argv(),
        env: &env,
        cwd: &agent.workdir,
        descriptors: &descriptors,
        session: ProcessSession::Leaderless,
        workload: agent.spawn_identity(),
    })?;
    let script_pipe = Channel::writing(script_pipe)?;
    script_pipe.write_first(dialect.first_line().as_bytes())?;
    let nonce = random_hex(8);
    let wiring = Wiring {
        ended: child.ended,
        dialect,
        script_pipe,
        script,
        leftovers: Channel::reading(second_reader(&input_end)?)?,
        outputs: [
            Channel::writing(second_writer(&stdout_end)?)?,
            Channel::writing(second_writer(&stderr_end)?)?,
        ],
        streams: [Channel::reading(stdout)?, Channel::reading(stderr)?],
        scanners: [Mutex::new(Scanner::new(&nonce)), Mutex::new(Scanner::new(&nonce))],
        markers: Inbox::default(),
        nonce,
        course: Mutex::new(Course { current: None, stage: Stage::Idle }),
    };
    let (queue, receiver) = mpsc::channel(QUEUE_MAX);
    let session = Arc::new(Session {
        id: id.to_owned(),
        family: Family { root: child.pid, mark },
        queue: Some(queue),
        input: Some(Arc::new(Channel::writing(input)?)),
        state: Mutex::new(State::default()),
    });
    drive(&session, wiring, receiver);
    Ok(session)
}

/// Starts the tasks of a session.
pub(super) fn drive(session: &Arc<Session>, wiring: Wiring, queue: mpsc::Receiver<Arc<SessionCommand>>) {
    let wiring = Arc::new(wiring);
    session.state().wiring = Some(Arc::clone(&wiring));
    let reader = |stream, marker| tokio::spawn(read(Arc::clone(&wiring), stream, marker));
    let readers = [reader(0, STDOUT_MARKER), reader(1, STDERR_MARKER)];
    let ended = wiring.ended.clone();
    tokio::spawn(Driver { session: Arc::clone(session), queue, wiring, ended, readers }.run());
}

impl Driver {
    async fn run(mut self) {
        let begun = match &*self.wiring.course() {
            Course { current: Some(command), stage: Stage::Sending(_) | Stage::Running(_) } => {
                Some(Arc::clone(command))
            }
            Course { .. } => None,
        };
        let ending = match begun {
            Some(command) => self.see_through(&command).await,
            None => None,
        };
        let ending = match ending {
            Some(ending) => ending,
            None => match self.take_commands().await {
                Some(ending) => ending,
                None => return,
            },
        };
        // In this order: whoever waits for a command then sees that its session is gone.
        self.session.state().ended = true;
        self.queue.close();
        self.last_words().await;
        let current = self.wiring.course().current.take();
        if let Some(command) = current {
            command.finish(ending.code());
        }
        while let Some(command) = self.queue.recv().await {
            command.finish(NEVER_RAN);
        }
        for reader in &self.readers {
            reader.abort();
        }
        self.session.state().wiring = None;
    }

    /// Runs commands until the shell ends; `None` when nobody can give any more.
    async fn take_commands(&mut self) -> Option<Ending> {
        loop {
            tokio::select! {
                // Both arms are cancel-safe.
                command = self.queue.recv() => {
                    let command = command?;
                    if self.begin(&command)
                        && let Some(ending) = self.see_through(&command).await
                    {
                        return Some(ending);
                    }
                }
                ending = &mut self.ended => return Some(ending.unwrap_or(Ending::Exited(NEVER_RAN))),
            }
        }
    }

    /// Makes a command the present one; false if there is no room for its text.
    fn begin(&self, command: &Arc<SessionCommand>) -> bool {
        let Wiring { dialect, script, nonce, leftovers, .. } = &*self.wiring;
        let mut course = self.wiring.course();
        course.current = Some(Arc::clone(command));
        // What an earlier command was sent and did not read is not for this one.
        let mut sink = [0; 4096];
        while let Ok(Some(1..)) = leftovers.try_read(&mut sink) {}
        let mut lines = dialect.run_line(&command.text, Plumbing::Pipes { input: command.reads() });
        lines.push('\n');
        for wire in [Wire::Output, Wire::Errors] {
            lines.push_str(&Scanner::end_command(nonce, command.marker, dialect.wire(wire)));
        }
        if let (Some(script), Some(parts)) = (script, dialect.file_parts(&command.text))
            && let Err(error) = script.replace(&parts)
        {
            command.write(STDERR_MARKER, format!("no room for the command: {error}\n").as_bytes());
            command.finish(NEVER_RAN);
            return false;
        }
        course.stage = Stage::Sending(lines.into());
        true
    }

    /// Takes the present command to its end; answers the shell's end if it came to that.
    async fn see_through(&mut self, command: &Arc<SessionCommand>) -> Option<Ending> {
        loop {
            let stage = self.wiring.course().stage.clone();
            match stage {
                Stage::Idle => return None,
                Stage::Sending(rest) if rest.is_empty() => {
                    self.wiring.course().stage = Stage::Running([None; 2]);
                }
                Stage::Sending(mut rest) => tokio::select! {
                    // Both arms are cancel-safe.
                    written = self.wiring.script_pipe.write_some(&rest) => {
                        // A shell that is gone closes its pipe: its end is on the way.
                        rest.advance(written.unwrap_or(rest.len()));
                        self.wiring.course().stage = Stage::Sending(rest);
                    }
                    ending = &mut self.ended => return Some(ending.unwrap_or(Ending::Exited(NEVER_RAN))),
                },
                Stage::Running([Some(code), Some(_)]) => {
                    // The first one printed says how the command ended, the second how printing the first went.
                    self.wiring.course().stage = Stage::Idle;
                    command.finish(code);
                }
                Stage::Running(mut status) => tokio::select! {
                    // Both arms are cancel-safe. The markers first: a shell may end right after them.
                    biased;
                    (stream, marker) = self.wiring.markers.next() => {
                        if let Marker::End { exec_id, status: code, .. } = marker
                            && exec_id == command.marker
                        {
                            status[stream] = Some(code);
                            self.wiring.course().stage = Stage::Running(status);
                        }
                    }
                    ending = &mut self.ended => return Some(ending.unwrap_or(Ending::Exited(NEVER_RAN))),
                },
            }
        }
    }

    /// Waits until the readers have taken everything the shell wrote: the agent's own markers follow it.
    async fn last_words(&self) {
        let dead = Scanner::dead(&self.wiring.nonce, 0);
        let seen = async {
            for output in &self.wiring.outputs {
                output.write_all(dead.as_bytes()).await.ok()?;
            }
            let mut missing = [true; 2];
            while missing.contains(&true) {
                if let (stream, Marker::Dead(_)) = self.wiring.markers.next().await {
                    missing[stream] = false;
                }
            }
            Some(())
        };
        // A background job that floods the pipes must not keep the session from ending.
        let _ = tokio::time::timeout(LAST_WORDS, seen).await;
    }
}

/// Moves one stream into the log of the command that runs, or ran last.
async fn read(wiring: Arc<Wiring>, stream: usize, marker: [u8; 3]) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        // A shell that prints faster than a reader of its log takes it waits, as it would for any pipe. Before anything is
        // read, so that nothing is lost if the agent is replaced meanwhile.
        let command = wiring.course().current.clone();
        if let Some(command) = command {
            command.log.wait_for_room().await;
        }
        let Ok(read @ 1..) = wiring.streams[stream].read(&mut buffer).await else { return };
        let command = wiring.course().current.clone();
        wiring.scanner(stream).feed(&buffer[..read], |piece| match (piece, &command) {
            (Piece::Bytes(bytes), Some(command)) => command.write(marker, bytes),
            (Piece::Bytes(_), None) => {}
            (Piece::Marker(found), _) => wiring.markers.push((stream, found)),
        });
        tokio::task::yield_now().await;
    }
}
