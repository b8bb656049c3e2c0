//! The processes as they are told to the agent's successor, and taken over by it.

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sandhaus_protocol::process::{Exit, RING_BYTES};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{Fate, Processes, Tracked, supervise};
use crate::{
    agent::Agent,
    sys::{Channel, Ended, Ending, Family},
    upgrade::{Descriptor, Incoming, LogState, Outgoing},
};

/// How long the reader of a process that is killed with it may take to come again.
const RECLAIM_MAX: Duration = Duration::from_secs(30);

/// The processes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Carried {
    next_id: u64,
    processes: Vec<ProcessState>,
    drains: Vec<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ProcessState {
    id: u64,
    argv: Vec<String>,
    pid: i32,
    mark: String,
    terminal: Option<Descriptor>,
    outputs: [Option<Descriptor>; 2],
    input: Option<Descriptor>,
    logs: [LogState; 2],
    elapsed_ms: u64,
    limit_ms: Option<u64>,
    doomed: bool,
    timed_out: bool,
    tethered: bool,
    /// It was reaped so.
    ended: Option<Ending>,
    /// That was told.
    exit: Option<Exit>,
}

impl Processes {
    /// What the successor is told.
    pub(crate) fn describe(&self, out: &mut Outgoing) -> io::Result<Carried> {
        let table = self.table();
        Ok(Carried {
            next_id: table.next_id,
            processes: table.by_id.values().map(|p| describe(p, out)).collect::<io::Result<_>>()?,
            drains: table.drains.iter().map(|channel| out.descriptor(channel.descriptor())).collect(),
        })
    }

    /// Takes over what the predecessor told.
    pub(crate) fn restore(&self, agent: &Arc<Agent>, state: Carried, from: &mut Incoming) -> io::Result<()> {
        self.table().next_id = state.next_id;
        for process in state.processes {
            restore(agent, process, from)?;
        }
        for number in state.drains {
            let channel = Channel::reading(from.descriptor(number)?)?;
            self.drain(agent, Arc::new(channel));
        }
        Ok(())
    }
}

fn describe(tracked: &Tracked, out: &mut Outgoing) -> io::Result<ProcessState> {
    let exit = tracked.exit().clone();
    if exit.is_none() {
        out.child(tracked.family.root);
    }
    let fate = *tracked.fate();
    let mut number =
        |channel: &Option<Arc<Channel>>| channel.as_ref().map(|channel| out.descriptor(channel.descriptor()));
    let terminal = number(&tracked.terminal);
    let outputs = tracked.outputs().clone();
    let outputs = outputs.each_ref().map(&mut number);
    // Where there is a terminal, it is the input too.
    let input = tracked.input().clone();
    let input = number(&input);
    Ok(ProcessState {
        id: tracked.id,
        argv: tracked.argv.clone(),
        pid: tracked.family.root,
        mark: tracked.family.mark.clone(),
        terminal,
        outputs,
        input,
        logs: [out.log(&tracked.logs[0])?, out.log(&tracked.logs[1])?],
        elapsed_ms: u64::try_from(tracked.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        limit_ms: tracked.limit.and_then(|limit| u64::try_from(limit.as_millis()).ok()),
        doomed: fate.doomed,
        timed_out: fate.timed_out,
        tethered: fate.tethered,
        ended: tracked.ended.as_ref().and_then(Ended::known),
        exit,
    })
}

fn restore(agent: &Arc<Agent>, state: ProcessState, from: &mut Incoming) -> io::Result<()> {
    let changed = Arc::new(Notify::new());
    let mut channel = |number: Option<Descriptor>, open: fn(std::os::fd::OwnedFd) -> io::Result<Channel>| {
        number.map(|number| open(from.descriptor(number)?).map(Arc::new)).transpose()
    };
    let terminal = channel(state.terminal, Channel::writing)?;
    let outputs =
        [channel(state.outputs[0], Channel::reading)?, channel(state.outputs[1], Channel::reading)?];
    let input = match &terminal {
        // Nobody reads it any more.
        _ if state.exit.is_some() => None,
        Some(master) if state.input.is_some() => Some(Arc::clone(master)),
        _ => channel(state.input, Channel::writing)?,
    };
    let logs = [
        from.log(state.logs[0], RING_BYTES, Arc::clone(&changed))?,
        from.log(state.logs[1], RING_BYTES, Arc::clone(&changed))?,
    ];
    let now = Instant::now();
    let child = state.exit.is_none().then(|| agent.children.adopt(state.pid, state.ended));
    let loose = state.tethered && child.is_some();
    let tracked = Arc::new(Tracked {
        id: state.id,
        argv: state.argv,
        family: Family { root: state.pid, mark: state.mark },
        changed,
        logs,
        outputs: Mutex::new(outputs),
        turn: tokio::sync::Mutex::default(),
        input: Mutex::new(input),
        terminal,
        kill: Notify::new(),
        started: now.checked_sub(Duration::from_millis(state.elapsed_ms)).unwrap_or(now),
        limit: state.limit_ms.map(Duration::from_millis),
        ended: child.as_ref().map(|child| child.ended.clone()),
        fate: Mutex::new(Fate {
            doomed: state.doomed,
            timed_out: state.timed_out,
            tethered: state.tethered,
            loose,
        }),
        exit: Mutex::new(state.exit),
    });
    agent.processes.table().by_id.insert(state.id, Arc::clone(&tracked));
    if let Some(child) = child {
        supervise(agent, &tracked, child);
    }
    if loose {
        tokio::spawn(async move {
            tokio::time::sleep(RECLAIM_MAX).await;
            if std::mem::take(&mut tracked.fate().loose) {
                tracked.kill.notify_one();
            }
        });
    }
    Ok(())
}
