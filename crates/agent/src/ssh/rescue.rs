//! The rescue door: SSH that another process serves, with a secret of its own, for when the agent does not answer any more.
//! Shell and commands are all it has. The agent starts that process when the host tells it a secret, and anew when it ends.

use std::{
    io::{self, Read as _},
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use sandhaus_protocol::{
    boot::{BootConfig, Limits, ShellPreference, Workload},
    ssh::Access,
};
use sandhaus_ssh::keys::SEED_BYTES;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::watch};

use super::{Door, Keeper, Service, seed};
use crate::{
    agent::Agent,
    boot,
    error::Result,
    sys::{self, Command, Interest, Script, Session, Signals},
};

/// Descriptor from which the process reads what it must know.
const DOCUMENT: i32 = 3;

/// Largest document in bytes.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;

/// Pause before the process is started anew.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// How long what runs may take to end by itself.
const END_GRACE: Duration = Duration::from_secs(1);

/// What the process must know.
#[derive(Serialize, Deserialize)]
struct Document {
    wanted: Wanted,
    address: SocketAddr,
    workdir: String,
    env: std::collections::BTreeMap<String, String>,
    user: Workload,
    /// It starts what runs as that user.
    becomes_user: bool,
}

/// A rescue door that the host wants.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    secret: String,
    /// What the host's key is made of: the same as that of SSH, so that a client can check both. Without it each start of the
    /// process has a key of its own.
    seed: Option<[u8; SEED_BYTES]>,
}

impl Wanted {
    /// The one that was told, if any was.
    pub(super) fn by(access: &Access) -> Result<Option<Self>> {
        let seed = access.host_key.as_deref().map(seed).transpose()?;
        Ok(access.rescue_secret.clone().map(|secret| Self { secret, seed }))
    }
}

/// Sees to it that the process runs while there is a secret.
#[derive(Default)]
pub(super) struct Supervisor {
    wanted: Mutex<Option<watch::Sender<Option<Wanted>>>>,
    /// The process, or the one before it; zero before the first.
    pid: AtomicI32,
}

impl Supervisor {
    /// Whether this is the process.
    pub(super) fn is(&self, pid: i32) -> bool {
        self.pid.load(Ordering::Relaxed) == pid
    }

    /// Takes what holds from now on.
    pub(super) fn tell(&self, agent: &Arc<Agent>, address: SocketAddr, told: Option<Wanted>) {
        // A whole value or none.
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        match &*wanted {
            Some(sender) => {
                sender.send_if_modified(|known| {
                    let changed = *known != told;
                    *known = told;
                    changed
                });
            }
            // It was never wanted.
            None if told.is_none() => {}
            None => {
                let (sender, receiver) = watch::channel(told);
                *wanted = Some(sender);
                tokio::spawn(keep(Arc::clone(agent), address, receiver));
            }
        }
    }
}

async fn keep(agent: Arc<Agent>, address: SocketAddr, mut wanted: watch::Receiver<Option<Wanted>>) {
    loop {
        let Some(door) = wanted.borrow_and_update().clone() else {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        match start(&agent, address, door) {
            Ok(mut child) => {
                agent.doors.rescue.pid.store(child.pid, Ordering::Relaxed);
                tokio::select! {
                    // Both arms are cancel-safe.
                    _ = &mut child.ended => {}
                    changed = wanted.changed() => {
                        sys::signal_pids(&[child.pid], libc::SIGKILL);
                        // Its port is free from then on.
                        let _ = (&mut child.ended).await;
                        if changed.is_err() {
                            return;
                        }
                        continue;
                    }
                }
            }
            Err(error) => sys::say(format_args!("no rescue door: {error}")),
        }
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

fn start(agent: &Agent, address: SocketAddr, wanted: Wanted) -> io::Result<sys::Child> {
    let document = Document {
        wanted,
        address,
        workdir: agent.workdir.clone(),
        env: agent.environment(),
        user: agent.workload.clone(),
        becomes_user: agent.spawn_identity().is_some(),
    };
    let text = serde_json::to_vec(&document)?;
    let document = Script::new()?.into_readable(&[&text])?;
    let null = sys::discard()?;
    let argv = ["/proc/self/exe".to_owned(), "--rescue".to_owned()];
    let descriptors = [(null.as_fd(), 0), (null.as_fd(), 1), (null.as_fd(), 2), (document.as_fd(), DOCUMENT)];
    agent
        .children
        .spawn(&Command {
            argv: &argv,
            env: &std::collections::BTreeMap::new(),
            cwd: "/",
            descriptors: &descriptors,
            session: Session::Own,
            workload: None,
        })
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Serves as the rescue door: as the agent has told on descriptor 3.
pub(crate) fn run() -> io::Result<()> {
    let document = sys::take_descriptor(DOCUMENT)?;
    let mut text = Vec::new();
    std::fs::File::from(document).take(DOCUMENT_BYTES_MAX).read_to_end(&mut text)?;
    let document: Document = serde_json::from_slice(&text)
        .map_err(|error| io::Error::other(format!("what the rescue door must know is not valid: {error}")))?;
    sys::prepare_guest()?;
    let Document { wanted, address, workdir, env, user, becomes_user } = document;
    let agent = match becomes_user {
        true => Agent::init(BootConfig {
            sandbox_id: String::new(),
            generation: 0,
            user,
            env,
            workdir,
            shell: ShellPreference::default(),
            entrypoint: Vec::new(),
            warm_shell: false,
            limits: Limits::default(),
        }),
        false => {
            let shell = crate::shell::dialect::ShellChoice::Preferred(ShellPreference::default());
            Agent::by_hand(env, workdir, user, shell)
        }
    };
    let workload = agent.workload.clone();
    boot::runtime(move || sys::enter_workload_thread(&workload))?.block_on(async {
        let listener = TcpListener::bind(address).await?;
        let signals = Signals::new()?;
        let keeper = Some(Arc::new(Keeper::of_secret(wanted.secret, wanted.seed)));
        let door = Door { keeper, service: Service::Rescue, agent: Arc::clone(&agent) };
        tokio::spawn(door.open(listener));
        while signals.next().await? == Interest::Child {
            agent.children.reap();
        }
        agent.children.hang_up();
        sys::terminate_everything(END_GRACE).await;
        Ok(())
    })
}
