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
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes};
use sandhaus_protocol::{
    boot::Workload,
    process::Resize,
    shell::{COLS, ROWS, ShellExit},
};
use tokio::sync::mpsc;

use super::{
    Exec, LARGE_BYTES, Order, Shell,
    dialect::{Dialect, Plumbing, Wire},
    inbox::Inbox,
    scanner::{Marker, Piece, Scanner},
};
use crate::{
    agent::Agent,
    error::{Error, Result},
    sys::{
        Birth, Channel, Command, Ended, Ending, Family, Script, Session, SpawnError, Terminal, discard,
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

/// How the agent and the shell of one name are connected, and how far they are. It changes only between two waits of
/// the tasks that use it: so the agent's successor can be told of it at any moment, and goes on from there.
pub(super) struct Wiring {
    pub(super) terminal: Terminal,
    pub(super) slave: Channel,
    pub(super) master: Channel,
    pub(super) scanner: Mutex<Scanner>,
    pub(super) markers: Inbox<(Marker, u64)>,
    pub(super) nonce: String,
    pub(super) course: Mutex<Course>,
}

/// How far a shell is.
#[derive(Default)]
pub(super) struct Course {
    pub(super) running: Option<Arc<Running>>,
    /// The shell that the last command left behind is gone, and nobody has been told yet.
    pub(super) lost: bool,
    pub(super) work: Option<Work>,
}

/// A living shell process.
pub(super) struct Running {
    pub(super) ended: Ended,
    pub(super) dialect: Dialect,
    pub(super) script_pipe: Channel,
    pub(super) script: Option<Script>,
    pub(super) family: Family,
}

/// The present command.
#[derive(Clone)]
pub(super) struct Work {
    pub(super) exec: Arc<Exec>,
    pub(super) started: Instant,
    /// When that was, where what it starts may have to be told from what was there.
    pub(super) birth: Option<Birth>,
    /// Its shell is another one than the last command's.
    pub(super) replaced: bool,
    pub(super) stage: Stage,
}

/// How far it is.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    /// This is still to be written: the begin marker into the terminal, lines for the shell.
    Sending(Bytes, Bytes),
    /// The shell has it.
    Running,
    /// It is being ended, or its shell has died: over in a moment, and not to be told to anybody.
    Ending,
}

/// How a command's run ended.
enum Outcome {
    /// The shell said so.
    Ended { status: i32, cwd: String, end: u64 },
    /// The shell itself ended.
    Died(Ending),
}

impl Wiring {
    /// A terminal without a shell.
    pub(super) fn new(workload: &Workload) -> Result<Self> {
        let terminal = Terminal::open(Resize { cols: COLS, rows: ROWS }, workload)?;
        let nonce = random_hex(8);
        Ok(Self {
            slave: Channel::writing(terminal.second_slave()?)?,
            master: Channel::reading(terminal.master.try_clone()?)?,
            terminal,
            scanner: Mutex::new(Scanner::new(&nonce)),
            markers: Inbox::default(),
            nonce,
            course: Mutex::default(),
        })
    }

    pub(super) fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn scanner(&self) -> MutexGuard<'_, Scanner> {
        self.scanner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> Option<Arc<Running>> {
        self.course().running.clone()
    }

    fn work(&self) -> Option<Work> {
        self.course().work.clone()
    }

    fn reach(&self, stage: Stage) {
        if let Some(work) = &mut self.course().work {
            work.stage = stage;
        }
    }
}

/// The owner of one shell.
pub(super) struct Driver {
    agent: Arc<Agent>,
    shell: Arc<Shell>,
    queue: mpsc::Receiver<Order>,
}

impl Driver {
    /// Starts the tasks of a shell, whose process they start too.
    pub(super) fn start(agent: &Arc<Agent>, shell: &Arc<Shell>, queue: mpsc::Receiver<Order>) {
        tokio::spawn(read_terminal(Arc::clone(shell)));
        let driver = Self { agent: Arc::clone(agent), shell: Arc::clone(shell), queue };
        tokio::spawn(driver.run());
    }

    fn wiring(&self) -> &Wiring {
        &self.shell.wiring
    }

    /// Runs the commands of the queue one after another, as long as the agent lives.
    async fn run(mut self) {
        self.see_through().await;
        loop {
            // A failure is told to the next command, which tries again.
            let running = self.ensure_shell().ok();
            let order = match running {
                Some(running) => tokio::select! {
                    // Cancel-safe: a message is taken only when this arm wins.
                    order = self.queue.recv() => order,
                    _ = running.ended.clone() => {
                        {
                            let mut course = self.wiring().course();
                            course.running = None;
                            course.lost = true;
                        }
                        // Not started again before it is needed: a shell that ends at once would spin.
                        self.queue.recv().await
                    }
                },
                None => self.queue.recv().await,
            };
            match order {
                Some(Order::Run(exec)) => {
                    self.begin(exec);
                    self.see_through().await;
                }
                Some(Order::Renew) => {
                    let running = self.wiring().course().running.take();
                    if let Some(running) = running {
                        signal_pids(&[running.family.root], libc::SIGKILL);
                    }
                    self.shell.state().renewing = false;
                }
                None => return,
            }
        }
    }

    fn ensure_shell(&self) -> Result<Arc<Running>> {
        if let Some(running) = self.wiring().running() {
            return Ok(running);
        }
        let home = self.agent.workdir.clone();
        let started = match self.start_shell(&self.shell.cwd()) {
            Err(SpawnError::Directory(_)) => match self.start_shell(&home) {
                Err(SpawnError::Directory(_)) => self.start_shell("/"),
                other => other,
            },
            other => other,
        };
        let running = started.map_err(|error| match Error::from(error) {
            error if error.status.is_server_error() => error,
            error => Error::internal(format_args!("cannot start a shell: {}", error.message)),
        })?;
        let running = Arc::new(running);
        self.wiring().course().running = Some(Arc::clone(&running));
        Ok(running)
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
            (self.wiring().terminal.slave.as_fd(), dialect.wire(Wire::Output).into()),
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
        Ok(Running { ended: child.ended, dialect, script_pipe, script, family })
    }

    /// Makes a command the present one, unless it has ended with that.
    fn begin(&self, exec: Arc<Exec>) {
        let started = Instant::now();
        let replaced = std::mem::take(&mut self.wiring().course().lost);
        let ready = self.ensure_shell().and_then(|running| self.prepare(&running, &exec));
        match ready {
            Ok(stage) => {
                let birth = exec.timeout.map(|_| Birth::now());
                self.wiring().course().work = Some(Work { exec, started, birth, replaced, stage });
            }
            Err(error) => {
                let end = self.shell.report(&exec, &error.message);
                let exit = ShellExit {
                    exit_code: NO_SHELL_STATUS,
                    cwd: self.shell.cwd(),
                    duration_ms: 0,
                    timed_out: false,
                    shell_replaced: replaced,
                };
                self.shell.finish(&exec, end, exit);
            }
        }
    }

    /// What is to be sent for a command.
    fn prepare(&self, running: &Running, exec: &Exec) -> Result<Stage> {
        let (cmd, nonce) = (exec.cmd(), &self.wiring().nonce);
        if let (Some(script), Some(parts)) = (&running.script, running.dialect.file_parts(&cmd)) {
            script.replace(&parts)?;
        }
        let lines =
            running.dialect.run_line(&cmd, Plumbing::Terminal) + &running.dialect.end_lines(nonce, exec.id);
        Ok(Stage::Sending(Scanner::begin(nonce, exec.id).into(), lines.into()))
    }

    /// Takes the present command, if there is one, to its end.
    async fn see_through(&mut self) {
        let (Some(work), Some(running)) = (self.wiring().work(), self.wiring().running()) else { return };
        let mut outcome = self.converse(&work, &running).await;
        self.wiring().reach(Stage::Ending);
        let timed_out = outcome.is_none();
        if outcome.is_none() {
            let birth = work.birth.unwrap_or_else(Birth::now);
            outcome = Some(self.end_command(&work.exec, &running, birth).await);
        }
        let mut exit = ShellExit {
            exit_code: NO_SHELL_STATUS,
            cwd: self.shell.cwd(),
            duration_ms: 0,
            timed_out,
            shell_replaced: work.replaced,
        };
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
                self.wiring().course().running = None;
                exit.exit_code = ending.code();
                exit.shell_replaced = true;
                let end = self.last_words(work.exec.id).await;
                // Started now, so that the next command finds it waiting; a failure is told to that one.
                let _ = self.ensure_shell();
                end
            }
        };
        let large = work.exec.cmd().len() >= LARGE_BYTES;
        if large && let Some(Running { script: Some(script), .. }) = self.wiring().running().as_deref() {
            // Gives the memory of a long command back; what cannot be emptied now is replaced later.
            let _ = script.replace(&[]);
        }
        exit.duration_ms = u64::try_from(work.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.wiring().course().work = None;
        self.shell.finish(&work.exec, end, exit);
    }

    /// Hands the command to the shell and waits for its end; `None` when the time is over.
    async fn converse(&self, work: &Work, running: &Running) -> Option<Outcome> {
        let wiring = self.wiring();
        let conversation = async {
            loop {
                let outcome = wait(&wiring.markers, running.ended.clone(), work.exec.id);
                let (mut begin, mut lines) = match wiring.work().map(|work| work.stage) {
                    Some(Stage::Sending(begin, lines)) => (begin, lines),
                    Some(Stage::Running | Stage::Ending) | None => return outcome.await,
                };
                let (channel, rest) = match begin.is_empty() {
                    false => (&wiring.slave, &mut begin),
                    true => (&running.script_pipe, &mut lines),
                };
                tokio::select! {
                    // Both arms are cancel-safe.
                    biased;
                    written = channel.write_some(rest) => {
                        // A shell that is gone closes its pipe: its end is on the way.
                        rest.advance(written.unwrap_or(rest.len()));
                    }
                    // Dropping a half-sent command is harmless: the shell has ended.
                    outcome = outcome => return outcome,
                }
                wiring.reach(match begin.is_empty() && lines.is_empty() {
                    true => Stage::Running,
                    false => Stage::Sending(begin, lines),
                });
            }
        };
        match work.exec.timeout {
            None => Some(conversation.await),
            Some(limit) => {
                tokio::time::timeout(limit.saturating_sub(work.started.elapsed()), conversation).await.ok()
            }
        }
    }

    /// Interrupts what the command started and the shell itself, then kills, until the shell is back; as a last resort
    /// the shell is killed too. Afterwards nothing that the command started is alive.
    async fn end_command(&self, exec: &Exec, running: &Running, birth: Birth) -> Outcome {
        let outcome = self.bring_back(exec, running, birth).await;
        if let Outcome::Ended { .. } = outcome {
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

    async fn bring_back(&self, exec: &Exec, running: &Running, birth: Birth) -> Outcome {
        let wiring = self.wiring();
        let end_lines = running.dialect.end_lines(&wiring.nonce, exec.id);
        let root = [running.family.root];
        let mut asked = HashSet::new();
        for round in 0..=KILL_ROUNDS {
            // Standing still, the shell starts nothing between the look and the signals, and finds its own interrupt
            // together with its child's death: a shell that sees a child end otherwise takes no notice of it.
            let stopped = stop_with_children(running.family.root);
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
                outcome = wait(&wiring.markers, running.ended.clone(), exec.id) => return outcome,
                // Dropped half-written only when the pipe is full of lines that the shell does not read.
                () = answer => {}
                () = tokio::time::sleep(patience) => {}
            }
        }
        signal_pids(&root, libc::SIGKILL);
        let outcome = wait(&wiring.markers, running.ended.clone(), exec.id).await;
        let young = young_members(&self.agent, &running.family, birth).await;
        signal_pids(&young, libc::SIGKILL);
        outcome
    }

    /// Where the output of a dead shell ends in the log: the agent's own marker follows it through the terminal.
    async fn last_words(&self, exec_id: u64) -> u64 {
        let wiring = self.wiring();
        let dead = Scanner::dead(&wiring.nonce, exec_id);
        let seen = async {
            wiring.slave.write_all(dead.as_bytes()).await.ok()?;
            loop {
                if let (Marker::Dead(dead), at) = wiring.markers.next().await
                    && dead == exec_id
                {
                    return Some(at);
                }
            }
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
async fn wait(markers: &Inbox<(Marker, u64)>, mut ended: Ended, exec_id: u64) -> Outcome {
    loop {
        tokio::select! {
            // The marker first: a shell may end right after it, which is the next command's affair.
            biased;
            (marker, end) = markers.next() => match marker {
                Marker::End { exec_id: ended, status, cwd } if ended == exec_id => {
                    return Outcome::Ended { status, cwd, end };
                }
                // The end of an earlier command, printed twice after an interrupt.
                _ => {}
            },
            ending = &mut ended => return Outcome::Died(ending.unwrap_or(Ending::Exited(NO_SHELL_STATUS))),
        }
    }
}

/// Moves the terminal's output into the log, without the markers, as long as the agent lives.
async fn read_terminal(shell: Arc<Shell>) {
    let wiring = &shell.wiring;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let room = shell.log.wait_for_room().await.min(READ_BYTES);
        let Ok(read @ 1..) = wiring.master.read(&mut buffer[..room]).await else { return };
        wiring.scanner().feed(&buffer[..read], |piece| match piece {
            Piece::Bytes(bytes) => shell.log.append(bytes),
            Piece::Marker(Marker::Begin(exec_id)) => shell.begin(exec_id, shell.log.end()),
            Piece::Marker(marker) => wiring.markers.push((marker, shell.log.end())),
        });
        if read == room || read >= READ_BYTES - 1 {
            // There is more: let the readers take what they have been given first.
            tokio::task::yield_now().await;
        }
    }
}
