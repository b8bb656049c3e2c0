//! The task behind a session: its shell on pipes, fed one command at a time.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle};

use super::{Job, QUEUE_MAX, READ_BYTES, STDERR_MARKER, STDOUT_MARKER, Session, SessionCommand, State};
use crate::{
    agent::Agent,
    error::Result,
    shell::{
        dialect::{Dialect, Plumbing, Wire},
        scanner::{Marker, Piece, Scanner},
    },
    sys::{
        Channel, Child, Command, Ending, Family, Script, Session as ProcessSession, discard, input_pipe,
        output_pipe, random_hex, script_pipe, second_reader, second_writer,
    },
};

/// How long the last words of an ended shell may take through its pipes.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Status of a command that never ran because its session ended.
const NEVER_RAN: i32 = -1;

/// The command whose output the readers are taking in, which is also the last one when none runs.
type Current = Arc<Mutex<Option<Arc<SessionCommand>>>>;

struct Driver {
    session: Arc<Session>,
    queue: mpsc::Receiver<Job>,
    child: Child,
    dialect: Dialect,
    script_pipe: Channel,
    script: Option<Script>,
    /// Where leftover input is taken out.
    leftovers: Channel,
    /// The agent's own ends of the output pipes.
    outputs: [Channel; 2],
    nonce: String,
    current: Current,
    markers: mpsc::UnboundedReceiver<(usize, Marker)>,
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
    let (sender, markers) = mpsc::unbounded_channel();
    let current = Current::default();
    let reader = |index, fd, marker| -> Result<JoinHandle<()>> {
        let channel = Channel::reading(fd)?;
        let scanner = Scanner::new(&nonce);
        Ok(tokio::spawn(read(channel, scanner, index, marker, Arc::clone(&current), sender.clone())))
    };
    let readers = [reader(0, stdout, STDOUT_MARKER)?, reader(1, stderr, STDERR_MARKER)?];
    let (queue, receiver) = mpsc::channel(QUEUE_MAX);
    let session = Arc::new(Session {
        id: id.to_owned(),
        family: Family { root: child.pid, mark },
        queue: Some(queue),
        input: Some(Arc::new(Channel::writing(input)?)),
        state: Mutex::new(State::default()),
    });
    let driver = Driver {
        session: Arc::clone(&session),
        queue: receiver,
        child,
        dialect,
        script_pipe,
        script,
        leftovers: Channel::reading(second_reader(&input_end)?)?,
        outputs: [
            Channel::writing(second_writer(&stdout_end)?)?,
            Channel::writing(second_writer(&stderr_end)?)?,
        ],
        nonce,
        current,
        markers,
        readers,
    };
    tokio::spawn(driver.run());
    Ok(session)
}

impl Driver {
    async fn run(mut self) {
        let ending = loop {
            tokio::select! {
                // Both arms are cancel-safe.
                job = self.queue.recv() => match job {
                    Some(job) => if let Some(ending) = self.execute(&job).await { break ending },
                    None => return,
                },
                ending = &mut self.child.ended => break ending.unwrap_or(Ending::Exited(NEVER_RAN)),
            }
        };
        // In this order: whoever waits for a command then sees that its session is gone.
        self.session.state().ended = true;
        self.queue.close();
        self.last_words().await;
        if let Some(command) = self.current.lock().unwrap_or_else(PoisonError::into_inner).take() {
            command.finish(ending.code());
        }
        while let Some(job) = self.queue.recv().await {
            job.command.finish(NEVER_RAN);
        }
        for reader in &self.readers {
            reader.abort();
        }
    }

    /// Runs one command; answers the shell's end if it came to that.
    async fn execute(&mut self, job: &Job) -> Option<Ending> {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&job.command));
        // What an earlier command was sent and did not read is not for this one.
        let mut sink = [0; 4096];
        while let Ok(Some(1..)) = self.leftovers.try_read(&mut sink) {}
        let mut lines = self.dialect.run_line(&job.command.text, Plumbing::Pipes { input: job.input });
        lines.push('\n');
        for wire in [Wire::Output, Wire::Errors] {
            lines.push_str(&Scanner::end_command(&self.nonce, job.marker, self.dialect.wire(wire)));
        }
        let text = &job.command.text;
        let sent = async {
            if let (Some(script), Some(parts)) = (&self.script, self.dialect.file_parts(text)) {
                script.replace(&parts)?;
            }
            self.script_pipe.write_all(lines.as_bytes()).await
        };
        tokio::select! {
            // A shell that is gone closes its pipe: its end is on the way.
            _ = sent => {}
            // Dropping a half-sent command is harmless: the shell has ended.
            ending = &mut self.child.ended => return Some(ending.unwrap_or(Ending::Exited(NEVER_RAN))),
        }
        let mut status = [None; 2];
        while status.iter().any(Option::is_none) {
            tokio::select! {
                // Both arms are cancel-safe. The markers first: a shell may end right after them.
                biased;
                marker = self.markers.recv() => {
                    if let Some((stream, Marker::End { exec_id, status: code, .. })) = marker
                        && exec_id == job.marker
                    {
                        status[stream] = Some(code);
                    }
                }
                ending = &mut self.child.ended => return Some(ending.unwrap_or(Ending::Exited(NEVER_RAN))),
            }
        }
        // The first one printed says how the command ended, the second how printing the first went.
        job.command.finish(status[0].unwrap_or(NEVER_RAN));
        None
    }

    /// Waits until the readers have taken everything the shell wrote: the agent's own markers follow it.
    async fn last_words(&mut self) {
        let dead = Scanner::dead(&self.nonce, 0);
        let seen = async {
            for output in &self.outputs {
                output.write_all(dead.as_bytes()).await.ok()?;
            }
            let mut missing = self.outputs.len();
            while missing > 0 {
                if let (_, Marker::Dead(_)) = self.markers.recv().await? {
                    missing -= 1;
                }
            }
            Some(())
        };
        // A background job that floods the pipes must not keep the session from ending.
        let _ = tokio::time::timeout(LAST_WORDS, seen).await;
    }
}

/// Moves one stream into the log of the command that runs, or ran last.
async fn read(
    channel: Channel,
    mut scanner: Scanner,
    index: usize,
    marker: [u8; 3],
    current: Current,
    markers: mpsc::UnboundedSender<(usize, Marker)>,
) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(read @ 1..) = channel.read(&mut buffer).await {
        let command = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        scanner.feed(&buffer[..read], |piece| match (piece, &command) {
            (Piece::Bytes(bytes), Some(command)) => command.write(marker, bytes),
            (Piece::Bytes(_), None) => {}
            // A driver that is gone needs no markers.
            (Piece::Marker(found), _) => drop(markers.send((index, found))),
        });
        tokio::task::yield_now().await;
    }
}
