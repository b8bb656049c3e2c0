//! A session's channel: what the client wants for it is noted, then a shell, a command or the file service runs in it.
//!
//! A process has ended when it has, whatever it left running in the background: what its streams held at that moment is
//! still delivered, then its status. A client that goes away before hangs up on it, as a terminal would.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use sandhaus_protocol::process::Resize;
use sandhaus_ssh::{Channel, ChannelEvent, Ending as Said, Request, Sender, TerminalRequest};
use tokio::{sync::watch, task::JoinSet};

use super::{Service, client::Client, forward::AgentSocket, sftp};
use crate::{
    execute::{check_variable, login_shell},
    sys::{
        self, Channel as Pipe, Child, Command, Ending, Family, Session, SpawnError, Terminal, input_pipe,
        output_pipe, signal_group,
    },
};

/// Bytes read from a process at once.
const READ_BYTES: usize = 32 * 1024;

/// The same where nobody wants them.
const DRAIN_BYTES: usize = 1024;

/// Most variables that a client may set.
const VARIABLES_MAX: usize = 128;

/// Longest name of a kind of terminal.
const TERM_BYTES_MAX: usize = 64;

/// Largest side of a terminal, and what one has that says nothing.
const SIDE_MAX: u32 = 1000;
const COLS: u16 = 80;
const ROWS: u16 = 24;

/// Longest command: the kernel takes no longer argument.
const COMMAND_BYTES_MAX: usize = 128 * 1024 - 1;

/// How long a terminal may stay quiet after its process has ended before its output counts as complete.
const TERMINAL_QUIET: Duration = Duration::from_millis(100);

/// What a terminal takes for the end of its input.
const END_OF_TRANSMISSION: &[u8] = b"\x04";

/// Statuses that shells give to what cannot be started.
const STATUS_NOT_FOUND: u32 = 127;
const STATUS_NOT_EXECUTABLE: u32 = 126;

/// Signals that have a name in the protocol.
const SIGNALS: [(&str, i32); 13] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("TERM", libc::SIGTERM),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
];

/// What a client wants for what will run.
#[derive(Default)]
struct Wanted {
    terminal: Option<TerminalRequest>,
    variables: BTreeMap<String, String>,
    agent: Option<AgentSocket>,
}

/// Serves a session's channel to its end.
pub(super) async fn serve(client: Arc<Client>, mut channel: Channel) {
    let mut wanted = Wanted::default();
    while let Some(event) = channel.receive().await {
        // What is said before anything runs is said to nobody.
        let ChannelEvent::Request(request, question) = event else { continue };
        match request {
            Request::Terminal(terminal) => {
                if terminal.term.len() <= TERM_BYTES_MAX && !terminal.term.contains('\0') {
                    wanted.terminal = Some(terminal);
                    question.agree();
                }
            }
            Request::Variable { name, value } => {
                let right = check_variable(&name).is_ok() && !value.contains('\0') && name != Family::MARK;
                if right && wanted.variables.len() < VARIABLES_MAX {
                    wanted.variables.insert(name, value);
                    question.agree();
                }
            }
            Request::ForwardAgent if client.service == Service::Whole => {
                if let Ok(socket) = AgentSocket::open(&client).await {
                    wanted.agent = Some(socket);
                    question.agree();
                }
            }
            Request::Shell => {
                question.agree();
                return run(&client, channel, wanted, None).await;
            }
            Request::Execute(command) => {
                let command = String::from_utf8(command).ok();
                let command = command.filter(|text| text.len() <= COMMAND_BYTES_MAX && !text.contains('\0'));
                if let Some(command) = command {
                    question.agree();
                    return run(&client, channel, wanted, Some(command)).await;
                }
            }
            Request::Subsystem(name) if name == "sftp" && client.service == Service::Whole => {
                question.agree();
                return sftp::serve(&client.agent, channel).await;
            }
            Request::Subsystem(_)
            | Request::ForwardAgent
            | Request::Resize { .. }
            | Request::Signal(_)
            | Request::Other => {}
        }
    }
}

async fn run(client: &Client, channel: Channel, wanted: Wanted, command: Option<String>) {
    match Running::start(client, &wanted, command) {
        Ok((running, pipes)) => running.see_to_end(channel, pipes).await,
        Err(error) => {
            // Whoever asked may be gone.
            let _ = channel.sender().error(format!("sandhaus-agent: {error}\n").as_bytes()).await;
            let status = match error {
                SpawnError::NotFound => STATUS_NOT_FOUND,
                SpawnError::Invalid(_)
                | SpawnError::NotExecutable(_)
                | SpawnError::Directory(_)
                | SpawnError::Exhausted(_)
                | SpawnError::Failed(..) => STATUS_NOT_EXECUTABLE,
            };
            channel.finish(Some(Said::Status(status)));
        }
    }
    // Its agent of keys was there as long as it was.
    drop(wanted);
}

fn size(cols: u32, rows: u32) -> Resize {
    let side = |side: u32, default| match u16::try_from(side.min(SIDE_MAX)) {
        Ok(0) | Err(_) => default,
        Ok(side) => side,
    };
    Resize { cols: side(cols, COLS), rows: side(rows, ROWS) }
}

/// A process in a channel.
struct Running {
    child: Child,
    input: Option<Pipe>,
    terminal: Option<Pipe>,
}

/// Where one stream of a process goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Output,
    Error,
    Terminal,
}

impl Running {
    fn start(
        client: &Client,
        wanted: &Wanted,
        command: Option<String>,
    ) -> Result<(Self, Vec<(Pipe, Stream)>), SpawnError> {
        let agent = &client.agent;
        let argv = match command {
            Some(command) => vec!["/bin/sh".to_owned(), "-c".to_owned(), command],
            None if wanted.terminal.is_some() => vec![login_shell(agent), "-i".to_owned(), "-l".to_owned()],
            None => vec![login_shell(agent), "-l".to_owned()],
        };
        let mut env = agent.environment();
        env.extend(wanted.variables.clone());
        if let (peer, Some(own)) = (client.peer, client.own) {
            let connection = format!("{} {} {} {}", peer.ip(), peer.port(), own.ip(), own.port());
            env.insert("SSH_CONNECTION".to_owned(), connection);
        }
        if let Some(agent) = &wanted.agent {
            env.insert("SSH_AUTH_SOCK".to_owned(), agent.path.clone());
        }
        env.insert(Family::MARK.to_owned(), Family::new_mark());
        let failed = |error: std::io::Error| {
            SpawnError::Failed("make its streams", error.raw_os_error().unwrap_or(libc::EIO))
        };
        let spawn = |env, descriptors: &[_], session| {
            let workload = agent.spawn_identity();
            let cwd = &agent.workdir;
            agent.children.spawn(&Command { argv: &argv, env, cwd, descriptors, session, workload })
        };
        if let Some(wanted) = &wanted.terminal {
            let terminal = Terminal::open(size(wanted.cols, wanted.rows), &agent.workload).map_err(failed)?;
            // A terminal as it comes will do; some clients send what they do not mean.
            let _ = sys::set_terminal_modes(&terminal.slave, &wanted.modes);
            env.insert("TERM".to_owned(), wanted.term.clone());
            let slave = terminal.slave.as_fd();
            let session = Session::Terminal(terminal.slave.as_raw_fd());
            let child = spawn(&env, &[(slave, 0), (slave, 1), (slave, 2)], session)?;
            let (reading, writing) = terminal
                .master
                .try_clone()
                .and_then(|master| Ok((Pipe::reading(master.try_clone()?)?, Pipe::writing(master)?)))
                .map_err(failed)?;
            let master = Pipe::writing(terminal.master).map_err(failed)?;
            let running = Self { child, input: Some(writing), terminal: Some(master) };
            return Ok((running, vec![(reading, Stream::Terminal)]));
        }
        let pipes = || -> std::io::Result<_> {
            let (input, stdin) = input_pipe()?;
            let ((output, stdout), (error, stderr)) = (output_pipe()?, output_pipe()?);
            let outputs =
                vec![(Pipe::reading(output)?, Stream::Output), (Pipe::reading(error)?, Stream::Error)];
            Ok((Pipe::writing(input)?, outputs, [stdin, stdout, stderr]))
        };
        let (input, outputs, theirs) = pipes().map_err(failed)?;
        let descriptors = [(theirs[0].as_fd(), 0), (theirs[1].as_fd(), 1), (theirs[2].as_fd(), 2)];
        let child = spawn(&env, &descriptors, Session::Own)?;
        Ok((Self { child, input: Some(input), terminal: None }, outputs))
    }

    async fn see_to_end(mut self, mut channel: Channel, pipes: Vec<(Pipe, Stream)>) {
        let (finish, _) = watch::channel(());
        let mut pumps = JoinSet::new();
        for (pipe, stream) in pipes {
            pumps.spawn(pump(pipe, channel.sender(), stream, finish.subscribe()));
        }
        let Some(ending) = self.attend(&mut channel).await else {
            // Whatever shares its group hears that its terminal or client is gone.
            let _ = signal_group(self.child.pid, libc::SIGHUP);
            return;
        };
        // Nobody listens when the streams have ended already.
        let _ = finish.send(());
        while let Some(rest) = pumps.join_next().await {
            if let Ok(Some(pipe)) = rest {
                tokio::spawn(drain(pipe));
            }
        }
        channel.finish(Some(said(ending)));
    }

    /// Passes on what the client sends until the process has ended; `None` when the client is gone before.
    async fn attend(&mut self, channel: &mut Channel) -> Option<Ending> {
        let mut pending = Bytes::new();
        let mut ended = false;
        loop {
            if pending.is_empty() && ended {
                // A pipe says it by being closed, a terminal by a character.
                if self.terminal.is_none() {
                    self.input = None;
                }
            }
            let event = async {
                // While it does not read, only what is not meant for it.
                if pending.is_empty() { channel.receive().await } else { channel.receive_request().await }
            };
            tokio::select! {
                // The end first. All arms are cancel-safe.
                biased;
                ending = &mut self.child.ended => return Some(ending.unwrap_or(Ending::Exited(1))),
                written = write_some(&mut self.input, &pending), if !pending.is_empty() => match written {
                    Ok(written) => pending.advance(written),
                    // It reads no more: what else comes is dropped.
                    Err(_) => {
                        pending.clear();
                        self.input = None;
                    }
                },
                event = event => match event {
                    Some(ChannelEvent::Data(bytes)) if self.input.is_some() => pending = bytes,
                    Some(ChannelEvent::Data(_)) => {}
                    Some(ChannelEvent::Eof) => {
                        ended = true;
                        if self.terminal.is_some() {
                            pending = Bytes::from_static(END_OF_TRANSMISSION);
                        }
                    }
                    Some(ChannelEvent::Request(request, _question)) => self.act(request),
                    None => return None,
                },
            }
        }
    }

    fn act(&self, request: Request) {
        match request {
            Request::Resize { cols, rows } => {
                if let Some(terminal) = &self.terminal {
                    // A terminal that has ended has no size.
                    let _ = Terminal::resize(terminal.descriptor(), size(cols, rows));
                }
            }
            Request::Signal(name) => {
                if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
                    let foreground = self
                        .terminal
                        .as_ref()
                        .and_then(|terminal| Terminal::foreground(terminal.descriptor()));
                    let _ = signal_group(foreground.unwrap_or(self.child.pid), *number);
                }
            }
            Request::Terminal(_)
            | Request::Variable { .. }
            | Request::Shell
            | Request::Execute(_)
            | Request::Subsystem(_)
            | Request::ForwardAgent
            | Request::Other => {}
        }
    }
}

async fn write_some(input: &mut Option<Pipe>, bytes: &[u8]) -> std::io::Result<usize> {
    match input {
        Some(input) => input.write_some(bytes).await,
        None => Err(std::io::ErrorKind::BrokenPipe.into()),
    }
}

fn said(ending: Ending) -> Said {
    let code = u32::try_from(ending.code()).unwrap_or(u32::MAX);
    let name = ending.signal().and_then(|number| SIGNALS.iter().find(|(_, known)| *known == number));
    name.map_or(Said::Status(code), |(name, _)| Said::Signal(name))
}

/// Moves a stream to the client until its end, or until the process has ended and its last words are taken: then a pipe to
/// which somebody may still write is given back.
async fn pump(pipe: Pipe, sender: Sender, stream: Stream, mut finish: watch::Receiver<()>) -> Option<Pipe> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        tokio::select! {
            // Both arms are cancel-safe.
            read = pipe.read(&mut buffer) => match read {
                Ok(read @ 1..) => send(&sender, stream, &buffer[..read]).await.ok()?,
                Ok(_) | Err(_) => return None,
            },
            _ = finish.changed() => break,
        }
        tokio::task::yield_now().await;
    }
    let mut rest = match stream {
        Stream::Output | Stream::Error => pipe.available(),
        Stream::Terminal => usize::MAX,
    };
    while rest > 0 {
        let most = READ_BYTES.min(rest);
        let read = match stream {
            Stream::Output | Stream::Error => pipe.try_read(&mut buffer[..most]).ok().flatten(),
            Stream::Terminal => tokio::time::timeout(TERMINAL_QUIET, pipe.read(&mut buffer[..most]))
                .await
                .ok()
                .and_then(Result::ok),
        };
        let Some(read @ 1..) = read else { break };
        send(&sender, stream, &buffer[..read]).await.ok()?;
        rest -= read;
    }
    (stream != Stream::Terminal).then_some(pipe)
}

async fn send(sender: &Sender, stream: Stream, bytes: &[u8]) -> sandhaus_ssh::Result<()> {
    match stream {
        Stream::Output | Stream::Terminal => sender.data(bytes).await,
        Stream::Error => sender.error(bytes).await,
    }
}

/// Takes what the background jobs of an ended process print, so that none dies of a closed pipe.
async fn drain(pipe: Pipe) {
    let mut buffer = [0; DRAIN_BYTES];
    while let Ok(1..) = pipe.read(&mut buffer).await {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_told_by_name_where_there_is_one() {
        assert_eq!(said(Ending::Exited(3)), Said::Status(3));
        assert_eq!(said(Ending::Signalled(libc::SIGTERM)), Said::Signal("TERM"));
        assert_eq!(said(Ending::Signalled(libc::SIGXCPU)), Said::Status(128 + 24));
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(size(0, 0), Resize { cols: COLS, rows: ROWS });
        assert_eq!(size(u32::MAX, 7), Resize { cols: 1000, rows: 7 });
    }
}
