//! The sessions as they are told to the agent's successor, and taken over by it.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use super::{
    InputEcho, LOG_BYTES, Plain, QUEUE_MAX, Session, SessionCommand, Sessions, State,
    driver::{self, Course, Stage, Wiring},
    follow_plain,
};
use crate::{
    agent::Agent,
    shell::{
        dialect::{Dialect, Input},
        inbox::Inbox,
        scanner::{Marker, Scanner},
    },
    sys::{Channel, Ending, Family, Script},
    upgrade::{Descriptor, Incoming, LogState, Outgoing},
};

/// Longest text on its way to a shell: a command with every byte quoted, and some room.
const LINES_BYTES_MAX: usize = 64 << 20;

/// The sessions.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Carried(Vec<SessionCarried>);

#[derive(Debug, Serialize, Deserialize)]
struct SessionCarried {
    id: String,
    family: Family,
    /// It takes commands, unless it has ended.
    takes_commands: bool,
    ended: bool,
    next_marker: u64,
    input: Option<Descriptor>,
    commands: Vec<CommandCarried>,
    wiring: Option<WiringCarried>,
    plain: Option<PlainCarried>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CommandCarried {
    id: String,
    text: String,
    echo: InputEcho,
    marker: u64,
    reads: bool,
    exit_code: Option<i32>,
    log: LogState,
}

#[derive(Debug, Serialize, Deserialize)]
struct WiringCarried {
    ended: Option<Ending>,
    dialect: Dialect,
    script_pipe: Descriptor,
    script: Option<Descriptor>,
    leftovers: Descriptor,
    outputs: [Descriptor; 2],
    streams: [Descriptor; 2],
    held: [Vec<u8>; 2],
    markers: VecDeque<(usize, Marker)>,
    nonce: String,
    /// Place of the present command among the session's.
    current: Option<usize>,
    stage: StageCarried,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StageCarried {
    Idle,
    Sending(LogState),
    Running([Option<i32>; 2]),
}

#[derive(Debug, Serialize, Deserialize)]
struct PlainCarried {
    ended: Option<Ending>,
    streams: [Option<Descriptor>; 2],
}

impl Sessions {
    /// What the successor is told.
    pub(crate) fn describe(&self, out: &mut Outgoing) -> io::Result<Carried> {
        self.by_id().values().map(|session| session.carry(out)).collect::<io::Result<_>>().map(Carried)
    }

    /// Takes over what the predecessor told.
    pub(crate) fn restore(&self, agent: &Arc<Agent>, state: Carried, from: &mut Incoming) -> io::Result<()> {
        for session in state.0 {
            let session = restore(agent, session, from)?;
            self.by_id().insert(session.id.clone(), session);
        }
        Ok(())
    }
}

impl Session {
    fn carry(&self, out: &mut Outgoing) -> io::Result<SessionCarried> {
        let state = self.state();
        if state.wiring.is_some() || state.plain.is_some() {
            out.child(self.family.root);
        }
        let input = self.input.as_ref().filter(|_| state.wiring.is_some());
        Ok(SessionCarried {
            id: self.id.clone(),
            family: self.family.clone(),
            takes_commands: self.queue.is_some(),
            ended: state.ended,
            next_marker: state.next_marker,
            input: input.map(|channel| out.descriptor(channel.descriptor())),
            commands: state.commands.iter().map(|c| c.carry(out)).collect::<io::Result<_>>()?,
            wiring: state.wiring.as_ref().map(|wiring| wiring.carry(&state, out)).transpose()?,
            plain: state.plain.as_ref().map(|plain| PlainCarried {
                ended: plain.ended.known(),
                streams: [0, 1].map(|index| {
                    plain.stream(index).as_ref().map(|channel| out.descriptor(channel.descriptor()))
                }),
            }),
        })
    }
}

impl SessionCommand {
    fn carry(&self, out: &mut Outgoing) -> io::Result<CommandCarried> {
        Ok(CommandCarried {
            id: self.id.clone(),
            text: self.text.clone(),
            echo: self.echo,
            marker: self.marker,
            reads: self.reads() == Input::Open,
            exit_code: self.exit_code(),
            log: out.log(&self.log)?,
        })
    }
}

impl Wiring {
    fn carry(&self, state: &State, out: &mut Outgoing) -> io::Result<WiringCarried> {
        let course = self.course();
        let place =
            |command: &Arc<SessionCommand>| state.commands.iter().position(|c| Arc::ptr_eq(c, command));
        let stage = match &course.stage {
            Stage::Idle => StageCarried::Idle,
            Stage::Sending(rest) => StageCarried::Sending(out.text(rest)?),
            Stage::Running(status) => StageCarried::Running(*status),
        };
        let mut number = |channel: &Channel| out.descriptor(channel.descriptor());
        Ok(WiringCarried {
            ended: self.ended.known(),
            dialect: self.dialect.clone(),
            script_pipe: number(&self.script_pipe),
            leftovers: number(&self.leftovers),
            outputs: [number(&self.outputs[0]), number(&self.outputs[1])],
            streams: [number(&self.streams[0]), number(&self.streams[1])],
            script: self.script.as_ref().map(|script| out.descriptor(script.descriptor())),
            held: [0, 1].map(|stream| self.scanner(stream).held().to_vec()),
            markers: self.markers.waiting(),
            nonce: self.nonce.clone(),
            current: course.current.as_ref().and_then(place),
            stage,
        })
    }
}

fn restore(agent: &Arc<Agent>, state: SessionCarried, from: &mut Incoming) -> io::Result<Arc<Session>> {
    let input = match state.input {
        Some(number) => Some(Arc::new(Channel::writing(from.descriptor(number)?)?)),
        None => None,
    };
    let commands = state.commands.into_iter().map(|command| restore_command(command, input.as_ref(), from));
    let commands = commands.collect::<io::Result<Vec<_>>>()?;
    let (queue, receiver) = mpsc::channel(QUEUE_MAX);
    let wiring = match state.wiring {
        Some(wiring) => Some(restore_wiring(agent, state.family.root, wiring, &commands, from)?),
        None => None,
    };
    if let Some(wiring) = &wiring {
        let present = wiring.course().current.clone();
        let waits = |command: &&Arc<SessionCommand>| {
            command.exit_code().is_none()
                && !present.as_ref().is_some_and(|present| Arc::ptr_eq(present, command))
        };
        for command in commands.iter().filter(waits) {
            queue.try_send(Arc::clone(command)).map_err(|_| io::Error::other("too many commands wait"))?;
        }
    }
    let session = Arc::new(Session {
        id: state.id,
        family: state.family,
        queue: state.takes_commands.then_some(queue),
        input,
        state: Mutex::new(State {
            ended: state.ended,
            next_marker: state.next_marker,
            commands,
            wiring: None,
            plain: None,
        }),
    });
    if let Some(wiring) = wiring {
        driver::drive(&session, wiring, receiver);
    }
    if let Some(plain) = state.plain {
        let mut stream = |number: Option<Descriptor>| {
            let opened = number.map(|number| Channel::reading(from.descriptor(number)?).map(Arc::new));
            opened.transpose().map(Mutex::new)
        };
        let streams = [stream(plain.streams[0])?, stream(plain.streams[1])?];
        let child = agent.children.adopt(session.family.root, plain.ended);
        let command = session.state().commands.first().cloned();
        if let Some(command) = command {
            follow_plain(&session, &command, Plain { ended: child.ended, streams });
        }
    }
    Ok(session)
}

fn restore_command(
    state: CommandCarried,
    input: Option<&Arc<Channel>>,
    from: &mut Incoming,
) -> io::Result<Arc<SessionCommand>> {
    Ok(Arc::new(SessionCommand {
        id: state.id,
        text: state.text,
        echo: state.echo,
        marker: state.marker,
        log: from.log(state.log, LOG_BYTES, Arc::new(Notify::new()))?,
        input: input.filter(|_| state.reads).cloned(),
        exit_code: Mutex::new(state.exit_code),
    }))
}

fn restore_wiring(
    agent: &Arc<Agent>,
    pid: i32,
    state: WiringCarried,
    commands: &[Arc<SessionCommand>],
    from: &mut Incoming,
) -> io::Result<Wiring> {
    let stage = match state.stage {
        StageCarried::Idle => Stage::Idle,
        StageCarried::Sending(rest) => Stage::Sending(from.bytes(rest, LINES_BYTES_MAX)?.into()),
        StageCarried::Running(status) => Stage::Running(status),
    };
    let script = state.script.map(|number| from.descriptor(number).map(Script::of)).transpose()?;
    let mut writing = |number| Channel::writing(from.descriptor(number)?);
    let (script_pipe, outputs) =
        (writing(state.script_pipe)?, [writing(state.outputs[0])?, writing(state.outputs[1])?]);
    let mut reading = |number| Channel::reading(from.descriptor(number)?);
    let [held_out, held_err] = state.held;
    Ok(Wiring {
        ended: agent.children.adopt(pid, state.ended).ended,
        dialect: state.dialect,
        script_pipe,
        script,
        leftovers: reading(state.leftovers)?,
        outputs,
        streams: [reading(state.streams[0])?, reading(state.streams[1])?],
        scanners: [
            Mutex::new(Scanner::holding(&state.nonce, held_out)),
            Mutex::new(Scanner::holding(&state.nonce, held_err)),
        ],
        markers: Inbox::of(state.markers),
        nonce: state.nonce,
        course: Mutex::new(Course {
            current: state.current.and_then(|place| commands.get(place)).cloned(),
            stage,
        }),
    })
}
