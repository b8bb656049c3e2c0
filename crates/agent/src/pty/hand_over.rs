//! The terminals as they are told to the agent's successor, and taken over by it. Their clients are not: each comes again
//! and asks for what it has missed.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use sandhaus_protocol::process::Resize;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use super::{CHUNKS_MAX, HISTORY_BYTES_MAX, History, Pty, PtyState, Running, Start, Terminals, follow};
use crate::{
    agent::Agent,
    sys::{Channel, Ending, Family},
    upgrade::{Descriptor, Incoming, LogState, Outgoing},
};

/// The terminals.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Carried(Vec<PtyCarried>);

#[derive(Debug, Serialize, Deserialize)]
struct PtyCarried {
    id: String,
    cwd: String,
    envs: BTreeMap<String, String>,
    created_at: String,
    lazy: bool,
    size: Resize,
    shell: Option<ShellCarried>,
    history: LogState,
    history_seen: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct ShellCarried {
    master: Descriptor,
    pid: i32,
    mark: String,
    ended: Option<Ending>,
}

impl Terminals {
    /// What the successor is told.
    pub(crate) fn describe(&self, out: &mut Outgoing) -> io::Result<Carried> {
        self.by_id().values().map(|pty| pty.carry(out)).collect::<io::Result<_>>().map(Carried)
    }

    /// Takes over what the predecessor told.
    pub(crate) fn restore(&self, agent: &Arc<Agent>, state: Carried, from: &mut Incoming) -> io::Result<()> {
        for pty in state.0 {
            restore(agent, pty, from)?;
        }
        Ok(())
    }
}

impl Pty {
    fn carry(&self, out: &mut Outgoing) -> io::Result<PtyCarried> {
        let state = self.state();
        let (front, back) = state.history.bytes.as_slices();
        Ok(PtyCarried {
            id: self.id.clone(),
            cwd: self.cwd.clone(),
            envs: self.envs.clone(),
            created_at: self.created_at.clone(),
            lazy: self.start == Start::Lazily,
            size: state.size,
            shell: state.running.as_ref().map(|running| {
                out.child(running.family.root);
                ShellCarried {
                    master: out.descriptor(running.master.descriptor()),
                    pid: running.family.root,
                    mark: running.family.mark.clone(),
                    ended: running.ended.known(),
                }
            }),
            history: out.bytes(state.history.start, [front, back])?,
            history_seen: state.history.seen,
        })
    }
}

fn restore(agent: &Arc<Agent>, state: PtyCarried, from: &mut Incoming) -> io::Result<()> {
    let history = History {
        bytes: from.bytes(state.history, HISTORY_BYTES_MAX)?.into(),
        start: state.history.start(),
        seen: state.history_seen,
    };
    let shell = state.shell.map(|shell| {
        let master = from.descriptor(shell.master)?;
        let reading = Channel::reading(master.try_clone()?)?;
        let child = agent.children.adopt(shell.pid, shell.ended);
        let family = Family { root: shell.pid, mark: shell.mark };
        let master = Arc::new(Channel::writing(master)?);
        io::Result::Ok((Running { master, family, ended: child.ended.clone() }, reading, child))
    });
    let shell = shell.transpose()?;
    let pty = Arc::new(Pty {
        id: state.id.clone(),
        cwd: state.cwd,
        envs: state.envs,
        created_at: state.created_at,
        start: if state.lazy { Start::Lazily } else { Start::Now },
        state: Mutex::new(PtyState {
            size: state.size,
            running: shell.as_ref().map(|(running, ..)| running.clone()),
            history,
        }),
        output: broadcast::Sender::new(CHUNKS_MAX),
        ended: watch::Sender::new(None),
    });
    agent.terminals.by_id().insert(state.id, Arc::clone(&pty));
    if let Some((_, reading, child)) = shell {
        tokio::spawn(follow(Arc::clone(agent), pty, reading, child));
    }
    Ok(())
}
