//! The persistent shells as they are told to the agent's successor, and taken over by it.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sandhaus_protocol::{
    process::RING_BYTES,
    shell::{CMD_BYTES_MAX, QUEUE_MAX, ShellExit},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use super::{
    Exec, Order, Progress, Shell, ShellState, Shells,
    dialect::Dialect,
    driver::{Course, Driver, Running, Stage, Wiring, Work},
    inbox::Inbox,
    scanner::{Marker, Scanner},
};
use crate::{
    agent::Agent,
    sys::{Birth, Channel, Ending, Family, Script, Terminal},
    upgrade::{Descriptor, Incoming, LogState, Outgoing},
};

/// Longest text on its way to a shell: a command with every byte quoted, and some room.
const LINES_BYTES_MAX: usize = 4 * CMD_BYTES_MAX + 4096;

/// The shells.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Carried(Vec<ShellCarried>);

#[derive(Debug, Serialize, Deserialize)]
struct ShellCarried {
    name: String,
    cwd: String,
    next_exec: u64,
    /// The command whose output the terminal shows.
    shown: Option<u64>,
    renewing: bool,
    execs: Vec<ExecCarried>,
    log: LogState,
    terminal: [Descriptor; 2],
    slave: Descriptor,
    held: Vec<u8>,
    markers: VecDeque<(Marker, u64)>,
    nonce: String,
    running: Option<RunningCarried>,
    lost: bool,
    work: Option<WorkCarried>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ExecCarried {
    id: u64,
    cmd: String,
    timeout_ms: Option<u64>,
    begin: Option<u64>,
    ended: Option<(u64, ShellExit)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RunningCarried {
    family: Family,
    ended: Option<Ending>,
    dialect: Dialect,
    script_pipe: Descriptor,
    script: Option<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WorkCarried {
    exec: u64,
    elapsed_ms: u64,
    birth: Option<Birth>,
    replaced: bool,
    /// What is still to be written into the terminal and for the shell.
    sending: Option<[LogState; 2]>,
}

impl Shells {
    /// What is only for a moment, and cannot be told.
    pub(crate) fn obstacles(&self) -> Vec<String> {
        let shells = self.all();
        let ending = |shell: &&Arc<Shell>| {
            matches!(shell.wiring.course().work, Some(Work { stage: Stage::Ending, .. }))
        };
        shells
            .iter()
            .filter(ending)
            .map(|shell| format!("a command that ends in shell {}", shell.name))
            .collect()
    }

    /// What the successor is told.
    pub(crate) fn describe(&self, out: &mut Outgoing) -> io::Result<Carried> {
        self.all().iter().map(|shell| shell.carry(out)).collect::<io::Result<_>>().map(Carried)
    }

    /// Takes over what the predecessor told.
    pub(crate) fn restore(&self, agent: &Arc<Agent>, state: Carried, from: &mut Incoming) -> io::Result<()> {
        for shell in state.0 {
            let shell = restore(agent, shell, from)?;
            self.insert(shell);
        }
        Ok(())
    }
}

impl Shell {
    fn carry(&self, out: &mut Outgoing) -> io::Result<ShellCarried> {
        let (state, course) = (self.state(), self.wiring.course());
        let work = course.work.as_ref().map(|work| {
            let sending = match &work.stage {
                Stage::Sending(begin, lines) => Some([out.text(begin)?, out.text(lines)?]),
                Stage::Running | Stage::Ending => None,
            };
            io::Result::Ok(WorkCarried {
                exec: work.exec.id,
                elapsed_ms: milliseconds(work.started.elapsed()),
                birth: work.birth,
                replaced: work.replaced,
                sending,
            })
        });
        let Wiring { terminal, slave, .. } = &self.wiring;
        Ok(ShellCarried {
            name: self.name.clone(),
            cwd: state.cwd.clone(),
            next_exec: state.next_exec,
            shown: state.running,
            renewing: state.renewing,
            execs: state.execs.iter().map(|exec| exec.carry()).collect(),
            log: out.log(&self.log)?,
            terminal: [out.descriptor(&terminal.master), out.descriptor(&terminal.slave)],
            slave: out.descriptor(slave.descriptor()),
            held: self.wiring.scanner().held().to_vec(),
            markers: self.wiring.markers.waiting(),
            nonce: self.wiring.nonce.clone(),
            running: course.running.as_ref().map(|running| running.carry(out)),
            lost: course.lost,
            work: work.transpose()?,
        })
    }
}

impl Exec {
    fn carry(&self) -> ExecCarried {
        let Progress { begin, ended } = self.progress().clone();
        let timeout_ms = self.timeout.map(milliseconds);
        ExecCarried { id: self.id, cmd: self.cmd().clone(), timeout_ms, begin, ended }
    }
}

impl Running {
    fn carry(&self, out: &mut Outgoing) -> RunningCarried {
        out.child(self.family.root);
        RunningCarried {
            family: self.family.clone(),
            ended: self.ended.known(),
            dialect: self.dialect.clone(),
            script_pipe: out.descriptor(self.script_pipe.descriptor()),
            script: self.script.as_ref().map(|script| out.descriptor(script.descriptor())),
        }
    }
}

fn restore(agent: &Arc<Agent>, state: ShellCarried, from: &mut Incoming) -> io::Result<Arc<Shell>> {
    let execs: VecDeque<_> = state.execs.into_iter().map(restore_exec).collect();
    let work = state.work.map(|work| restore_work(&work, &execs, from)).transpose()?;
    let [master, slave] = [from.descriptor(state.terminal[0])?, from.descriptor(state.terminal[1])?];
    let running = state.running.map(|running| {
        io::Result::Ok(Arc::new(Running {
            ended: agent.children.adopt(running.family.root, running.ended).ended,
            dialect: running.dialect,
            script_pipe: Channel::writing(from.descriptor(running.script_pipe)?)?,
            script: running.script.map(|number| from.descriptor(number).map(Script::of)).transpose()?,
            family: running.family,
        }))
    });
    let (queue, receiver) = mpsc::channel(QUEUE_MAX + 1);
    let present = work.as_ref().map(|work| work.exec.id);
    let waits = |exec: &&Arc<Exec>| exec.progress().ended.is_none() && Some(exec.id) != present;
    let renewal = state.renewing.then_some(Order::Renew);
    for order in renewal.into_iter().chain(execs.iter().filter(waits).cloned().map(Order::Run)) {
        queue.try_send(order).map_err(|_| io::Error::other("too many commands wait"))?;
    }
    let wiring = Wiring {
        slave: Channel::writing(from.descriptor(state.slave)?)?,
        master: Channel::reading(master.try_clone()?)?,
        terminal: Terminal { master, slave },
        scanner: Mutex::new(Scanner::holding(&state.nonce, state.held)),
        markers: Inbox::of(state.markers),
        nonce: state.nonce,
        course: Mutex::new(Course { running: running.transpose()?, lost: state.lost, work }),
    };
    let shell = Arc::new(Shell {
        name: state.name,
        log: from.log(state.log, RING_BYTES, Arc::new(Notify::new()))?,
        queue,
        state: Mutex::new(ShellState {
            cwd: state.cwd,
            next_exec: state.next_exec,
            running: state.shown,
            execs,
            renewing: state.renewing,
        }),
        wiring,
    });
    Driver::start(agent, &shell, receiver);
    Ok(shell)
}

fn restore_exec(state: ExecCarried) -> Arc<Exec> {
    Arc::new(Exec {
        id: state.id,
        cmd: Mutex::new(state.cmd),
        timeout: state.timeout_ms.map(Duration::from_millis),
        progress: Mutex::new(Progress { begin: state.begin, ended: state.ended }),
    })
}

fn restore_work(state: &WorkCarried, execs: &VecDeque<Arc<Exec>>, from: &mut Incoming) -> io::Result<Work> {
    let exec = execs.iter().find(|exec| exec.id == state.exec).cloned();
    let now = Instant::now();
    let stage = match state.sending {
        Some([begin, lines]) => Stage::Sending(
            from.bytes(begin, LINES_BYTES_MAX)?.into(),
            from.bytes(lines, LINES_BYTES_MAX)?.into(),
        ),
        None => Stage::Running,
    };
    Ok(Work {
        exec: exec.ok_or_else(|| io::Error::other("the state is not usable: a command is missing"))?,
        started: now.checked_sub(Duration::from_millis(state.elapsed_ms)).unwrap_or(now),
        birth: state.birth,
        replaced: state.replaced,
        stage,
    })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
