//! The task that owns one persistent shell: its terminal, its process and the queue of its commands.
//!
//! ```text
//!   queue ──> driver ── begin marker ──> terminal <── output, end marker ── shell <── script pipe ── driver
//!                ^                          │
//!                └────── markers ── reader ─┴──> log
//! ```
//! The terminal outlives the shells in it and is nobody's controlling terminal: a dying shell hangs up nothing, its
//! background jobs live on, and a program that asks for a password on /dev/tty fails at once instead of waiting.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use sandhaus_protocol::{
    process::Resize,
    shell::{COLS, ROWS, ShellExit},
};
use tokio::sync::mpsc;

use super::{
    Exec, Job, LARGE_BYTES, Order, Shell,
    dialect::{Dialect, Plumbing, Wire},
    scanner::{Marker, Piece, Scanner},
};
use crate::{
    agent::Agent,
    error::{Error, Result},
    sys::{
        Birth, Channel, Child, Command, Ending, Family, Script, Session, SpawnError, Terminal, discard,
        random_hex, script_pipe, signal_pids, stop_with_children,
    },
};

/// How long an interrupted command may take to end by itself.
const GRACE: Duration = Duration::from_millis(500);

/// How often the kill is repeated after the grace, and how long each waits for the shell to come back.
const KILL_ROUNDS: u32 = 10;
const KILL_ROUND: Duration = Duration::from_millis(150);

/// Pause between two looks at processes that were killed and are not gone yet.
const KILL_POLL: Duration = Duration::from_millis(10);

/// How long the last words of a dead shell may take through the terminal.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Bytes read from the terminal at once; the kernel gives no more.
const READ_BYTES: usize = 4096;

/// Status of a command for which no shell could be started.
const NO_SHELL_STATUS: i32 = 127;

/// The owner of one shell.
pub(super) struct Driver {
    agent: Arc<Agent>,
    shell: Arc<Shell>,
    queue: mpsc::Receiver<Order>,
    markers: mpsc::UnboundedReceiver<(Marker, u64)>,
    terminal: Terminal,
    slave: Channel,
    nonce: String,
    running: Option<Running>,
    /// The shell that the last command left behind is gone, and nobody has been told yet.
    lost: bool,
}

/// A living shell process.
struct Running {
    child: Child,
    dialect: Dialect,
    script_pipe: Channel,
    script: Option<Script>,
    family: Family,
}

/// How a command's run ended.
enum Outcome {
    /// The shell said so.
    Ended { status: i32, cwd: String, end: u64 },
    /// The shell itself ended.
    Died(Ending),
}

impl Driver {
    /// Makes the terminal and starts its reader. The shell is started by [`Self::run`].
    pub(super) fn start(
        agent: &Arc<Agent>,
        shell: &Arc<Shell>,
        queue: mpsc::Receiver<Order>,
    ) -> Result<Self> {
        let terminal = Terminal::open(Resize { cols: COLS, rows: ROWS }, &agent.workload)?;
        let slave = Channel::writing(terminal.second_slave()?)?;
        let master = Channel::reading(terminal.master.try_clone()?)?;
        let nonce = random_hex(8);
        let (sender, markers) = mpsc::unbounded_channel();
        tokio::spawn(read_terminal(Arc::clone(shell), master, Scanner::new(&nonce), sender));
        Ok(Self {
            agent: Arc::clone(agent),
            shell: Arc::clone(shell),
            queue,
            markers,
            terminal,
            slave,
            nonce,
            running: None,
            lost: false,
        })
    }

    /// Runs the commands of the queue one after another, as long as the agent lives.
    pub(super) async fn run(mut self) {
        loop {
            if self.running.is_none() {
                // A failure is told to the next command, which tries again.
                let _ = self.ensure_shell();
            }
            let order = match &mut self.running {
                Some(running) => tokio::select! {
                    // Cancel-safe: a message is taken only when this arm wins.
                    order = self.queue.recv() => order,
                    // A resolved receiver is dropped with `running` at once, so it is never polled again.
                    _ = &mut running.child.ended => {
                        self.running = None;
                        self.lost = true;
                        // Not started again before it is needed: a shell that ends at once would spin.
                        self.queue.recv().await
                    }
                },
                None => self.queue.recv().await,
            };
            match order {
                Some(Order::Run(job)) => {
                    let (end, exit) = self.execute(&job, Instant::now()).await;
                    self.shell.finish(&job.exec, end, exit);
                }
                Some(Order::Renew) => {
                    if let Some(running) = self.running.take() {
                        signal_pids(&[running.child.pid], libc::SIGKILL);
                    }
                }
                None => return,
            }
        }
    }

    fn ensure_shell(&mut self) -> Result<&mut Running> {
        if self.running.is_none() {
            let home = self.agent.workdir.clone();
            let started = match self.start_shell(&self.shell.cwd()) {
                Err(SpawnError::Directory(_)) => match self.start_shell(&home) {
                    Err(SpawnError::Directory(_)) => self.start_shell("/"),
                    other => other,
                },
                other => other,
            };
            self.running = Some(started.map_err(|error| match Error::from(error) {
                error if error.status.is_server_error() => error,
                error => Error::internal(format_args!("cannot start a shell: {}", error.message)),
            })?);
        }
        Ok(self.running.as_mut().expect("was just made"))
    }

    fn start_shell(&self, cwd: &str) -> std::result::Result<Running, SpawnError> {
        let failed = |_| SpawnError::Exhausted(libc::EMFILE);
        let dialect = Dialect::choose(&self.agent.shell);
        let (script_pipe, script_end) = script_pipe(&self.agent.workload).map_err(failed)?;
        let nowhere = discard().map_err(failed)?;
        let script = dialect.script_fd().map(|_| Script::new()).transpose().map_err(failed)?;
        let family = Family::new_mark();
        let mut env = self.agent.environment();
        env.insert("TERM".to_owned(), "xterm-256color".to_owned());
        env.entry("SHELL".to_owned()).or_insert_with(|| dialect.program().to_owned());
        env.insert(Family::MARK.to_owned(), family.clone());
        use std::os::fd::AsFd as _;
        let mut descriptors = vec![
            (nowhere.as_fd(), 0),
            (script_end.as_fd(), dialect.pipe_fd().into()),
            (nowhere.as_fd(), 1),
            (nowhere.as_fd(), 2),
            (self.terminal.slave.as_fd(), dialect.wire(Wire::Output).into()),
        ];
        if let (Some(script), Some(fd)) = (&script, dialect.script_fd()) {
            descriptors.push((script.descriptor(), fd.into()));
        }
        let child = self.agent.children.spawn(&Command {
            argv: &dialect.argv(),
            env: &env,
            cwd,
            descriptors: &descriptors,
            session: Session::Leaderless,
            workload: self.agent.spawn_identity(),
        })?;
        let family = Family { root: child.pid, mark: family };
        let script_pipe = Channel::writing(script_pipe).map_err(failed)?;
        script_pipe.write_first(dialect.first_line().as_bytes()).map_err(failed)?;
        Ok(Running { child, dialect, script_pipe, script, family })
    }

    /// Runs one command to its end: where its output ends in the log, and how it ended.
    async fn execute(&mut self, job: &Job, started: Instant) -> (u64, ShellExit) {
        let mut exit = ShellExit {
            exit_code: NO_SHELL_STATUS,
            cwd: self.shell.cwd(),
            duration_ms: 0,
            timed_out: false,
            shell_replaced: std::mem::take(&mut self.lost),
        };
        if let Err(error) = self.ensure_shell() {
            let end = self.shell.report(&job.exec, &error.message);
            return (end, exit);
        }
        let birth = job.timeout.map(|_| Birth::now());
        let mut outcome = self.converse(job).await;
        if outcome.is_none() {
            exit.timed_out = true;
            let birth = birth.unwrap_or_else(Birth::now);
            outcome = Some(self.end_command(&job.exec, birth).await);
        }
        let end = match outcome.expect("set when it was absent") {
            Outcome::Ended { status, cwd, end } => {
                exit.exit_code = status;
                if !cwd.is_empty() {
                    self.shell.set_cwd(&cwd);
                    exit.cwd = cwd;
                }
                end
            }
            Outcome::Died(ending) => {
                self.running = None;
                exit.exit_code = ending.code();
                exit.shell_replaced = true;
                let end = self.last_words(job.exec.id).await;
                // Started now, so that the next command finds it waiting; a failure is told to that one.
                let _ = self.ensure_shell();
                end
            }
        };
        if job.cmd.len() >= LARGE_BYTES
            && let Some(Running { script: Some(script), .. }) = &self.running
        {
            // Gives the memory of a long command back; what cannot be emptied now is replaced later.
            let _ = script.replace(&[]);
        }
        exit.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        (end, exit)
    }

    /// Hands the command to the shell and waits for its end; `None` when the time is over.
    async fn converse(&mut self, job: &Job) -> Option<Outcome> {
        let Some(running) = &mut self.running else {
            return Some(Outcome::Died(Ending::Exited(NO_SHELL_STATUS)));
        };
        let begin = Scanner::begin(&self.nonce, job.exec.id);
        let lines = running.dialect.run_line(&job.cmd, Plumbing::Terminal)
            + &running.dialect.end_lines(&self.nonce, job.exec.id);
        let sending = async {
            self.slave.write_all(begin.as_bytes()).await?;
            if let (Some(script), Some(parts)) = (&running.script, running.dialect.file_parts(&job.cmd)) {
                script.replace(&parts)?;
            }
            running.script_pipe.write_all(lines.as_bytes()).await
        };
        let outcome = wait(&mut self.markers, &mut running.child, job.exec.id);
        let both = async {
            let mut outcome = std::pin::pin!(outcome);
            tokio::select! {
                biased;
                sent = sending => match sent {
                    // A shell that is gone closes its pipe: its end is on the way.
                    Ok(()) | Err(_) => outcome.await,
                },
                // Dropping a half-sent command is harmless: the shell has ended.
                outcome = &mut outcome => outcome,
            }
        };
        match job.timeout {
            None => Some(both.await),
            Some(limit) => tokio::time::timeout(limit, both).await.ok(),
        }
    }

    /// Interrupts what the command started and the shell itself, then kills, until the shell is back; as a last resort
    /// the shell is killed too. Afterwards nothing that the command started is alive.
    async fn end_command(&mut self, exec: &Exec, birth: Birth) -> Outcome {
        let outcome = self.bring_back(exec, birth).await;
        if let Outcome::Ended { .. } = outcome
            && let Some(running) = &self.running
        {
            let deadline = Instant::now() + GRACE;
            let family = running.family.clone();
            while let young = young_members(&self.agent, &family, birth).await
                && !young.is_empty()
            {
                signal_pids(&young, libc::SIGKILL);
                if Instant::now() > deadline {
                    break;
                }
                tokio::time::sleep(KILL_POLL).await;
            }
        }
        outcome
    }

    async fn bring_back(&mut self, exec: &Exec, birth: Birth) -> Outcome {
        let Some(running) = &mut self.running else { return Outcome::Died(Ending::Exited(NO_SHELL_STATUS)) };
        let end_lines = running.dialect.end_lines(&self.nonce, exec.id);
        let root = [running.child.pid];
        let mut asked = HashSet::new();
        for round in 0..=KILL_ROUNDS {
            // Standing still, the shell starts nothing between the look and the signals, and finds its own interrupt
            // together with its child's death: a shell that sees a child end otherwise takes no notice of it.
            let stopped = stop_with_children(running.child.pid);
            let young = young_members(&self.agent, &running.family, birth).await;
            let (again, first): (Vec<i32>, Vec<i32>) = young.into_iter().partition(|pid| asked.contains(pid));
            signal_pids(&again, libc::SIGKILL);
            signal_pids(&first, libc::SIGINT);
            signal_pids(&first, libc::SIGCONT);
            asked.extend(first);
            signal_pids(&root, libc::SIGINT);
            if round > 0
                && let Some(stop) = running.dialect.stop_signal()
            {
                signal_pids(&root, stop);
            }
            signal_pids(&stopped, libc::SIGCONT);
            signal_pids(&root, libc::SIGCONT);
            let patience = if round == 0 { GRACE } else { KILL_ROUND };
            let answer = async {
                let _ = running.script_pipe.write_all(end_lines.as_bytes()).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                outcome = wait(&mut self.markers, &mut running.child, exec.id) => return outcome,
                // Dropped half-written only when the pipe is full of lines that the shell does not read.
                () = answer => {}
                () = tokio::time::sleep(patience) => {}
            }
        }
        signal_pids(&root, libc::SIGKILL);
        let outcome = wait(&mut self.markers, &mut running.child, exec.id).await;
        let young = young_members(&self.agent, &running.family, birth).await;
        signal_pids(&young, libc::SIGKILL);
        outcome
    }

    /// Where the output of a dead shell ends in the log: the agent's own marker follows it through the terminal.
    async fn last_words(&mut self, exec_id: u64) -> u64 {
        let dead = Scanner::dead(&self.nonce, exec_id);
        let seen = async {
            self.slave.write_all(dead.as_bytes()).await.ok()?;
            while let Some((marker, at)) = self.markers.recv().await {
                if marker == Marker::Dead(exec_id) {
                    return Some(at);
                }
            }
            None
        };
        tokio::time::timeout(LAST_WORDS, seen).await.ok().flatten().unwrap_or_else(|| self.shell.log.end())
    }
}

/// What a command has started and is alive, found on a thread that may look into the workload's processes.
async fn young_members(agent: &Agent, family: &Family, birth: Birth) -> Vec<i32> {
    let family = family.clone();
    agent.on_file_thread(move || family.members_since(&birth)).await
}

/// The end of command `exec_id`, or of the shell. Cancel-safe.
async fn wait(
    markers: &mut mpsc::UnboundedReceiver<(Marker, u64)>,
    child: &mut Child,
    exec_id: u64,
) -> Outcome {
    loop {
        tokio::select! {
            // The marker first: a shell may end right after it, which is the next command's affair.
            biased;
            marker = markers.recv() => match marker {
                Some((Marker::End { exec_id: ended, status, cwd }, end)) if ended == exec_id => {
                    return Outcome::Ended { status, cwd, end };
                }
                // The end of an earlier command, printed twice after an interrupt.
                Some(_) => {}
                None => return Outcome::Died(Ending::Exited(NO_SHELL_STATUS)),
            },
            ending = &mut child.ended => return Outcome::Died(ending.unwrap_or(Ending::Exited(NO_SHELL_STATUS))),
        }
    }
}

/// Moves the terminal's output into the log, without the markers, as long as the agent lives.
async fn read_terminal(
    shell: Arc<Shell>,
    master: Channel,
    mut scanner: Scanner,
    markers: mpsc::UnboundedSender<(Marker, u64)>,
) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let room = shell.log.wait_for_room().await.min(READ_BYTES);
        let Ok(read @ 1..) = master.read(&mut buffer[..room]).await else { return };
        scanner.feed(&buffer[..read], |piece| match piece {
            Piece::Bytes(bytes) => shell.log.append(bytes),
            Piece::Marker(Marker::Begin(exec_id)) => shell.begin(exec_id, shell.log.end()),
            // A driver that is gone needs no markers.
            Piece::Marker(marker) => drop(markers.send((marker, shell.log.end()))),
        });
        if read == room || read >= READ_BYTES - 1 {
            // There is more: let the readers take what they have been given first.
            tokio::task::yield_now().await;
        }
    }
}
