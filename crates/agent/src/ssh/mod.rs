//! SSH into the sandbox: a shell, commands, files, ports and sockets, as the workload and wherever it may go itself. Any user
//! name will do; who may come in is told by the host ([`sandhaus_protocol::ssh`]), and before that nothing listens.
//!
//! ```text
//!  greeting, POST /sandhaus/ssh ──> Doors ──> listeners ──> connection (client) ──> process · sftp · forward
//!                                     └─────> supervisor ──> another process: the rescue door (rescue)
//! ```
//! Host key and everything that encrypts come with the first connection. [`sandhaus_ssh`] has the protocol; here is what
//! happens in the channels.

mod client;
mod forward;
mod process;
mod rescue;
mod sftp;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use sandhaus_protocol::ssh::{Access, KEYS_MAX, PATH, PORT, RESCUE_PORT, SECRET_BYTES, TERMINAL_PORT};
use sandhaus_ssh::{
    Authority, Settings,
    keys::{HostKey, PublicKey, SEED_BYTES},
};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use tokio::{net::TcpListener, sync::Semaphore, task::AbortHandle};

pub(crate) use self::rescue::run as run_rescue;
use crate::{
    agent::Agent,
    error::{Error, Result},
    sys, terminal,
};

/// Most connections at once, and most of them that nobody has logged in on yet.
const CONNECTIONS_MAX: usize = 32;
const STRANGERS_MAX: usize = 8;

/// Pause after a failed accept: out of descriptors or memory, so others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route(PATH, post(change))
}

/// The doors of an agent.
#[derive(Default)]
pub(crate) struct Doors {
    state: Mutex<Told>,
    places: OnceLock<Places>,
    rescue: rescue::Supervisor,
}

/// What was told, and what listens since.
#[derive(Default)]
struct Told {
    access: Access,
    keeper: Option<Arc<Keeper>>,
    ssh: Option<AbortHandle>,
    terminal: Option<AbortHandle>,
}

/// What part of SSH a connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// All of it.
    Whole,
    /// Shell and commands.
    Rescue,
}

/// Knows who may come in.
pub(crate) struct Keeper {
    secret: Option<String>,
    keys: Vec<PublicKey>,
    seed: Option<[u8; SEED_BYTES]>,
    settings: OnceLock<Arc<Settings>>,
}

impl Keeper {
    /// Of this secret alone; the host's key is made of the seed, if there is one.
    fn of_secret(secret: String, seed: Option<[u8; SEED_BYTES]>) -> Self {
        Self { secret: Some(secret), keys: Vec::new(), seed, settings: OnceLock::new() }
    }

    /// Checks what was told. `None`: nobody may come in.
    fn new(access: &Access) -> Result<Option<Self>> {
        check_secret(access.secret.as_deref())?;
        check_secret(access.rescue_secret.as_deref())?;
        if access.authorized_keys.len() > KEYS_MAX {
            return Err(Error::invalid(format_args!("at most {KEYS_MAX} keys")));
        }
        let key = |(at, line): (usize, &String)| {
            PublicKey::from_openssh(line)
                .map_err(|error| Error::invalid(format_args!("authorized key {}: {error}", at + 1)))
        };
        let keys = access.authorized_keys.iter().enumerate().map(key).collect::<Result<Vec<_>>>()?;
        let seed = access.host_key.as_deref().map(seed).transpose()?;
        if access.secret.is_none() && keys.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { secret: access.secret.clone(), keys, seed, settings: OnceLock::new() }))
    }

    /// The secret, if there is one.
    pub(crate) fn secret(&self) -> Option<&str> {
        self.secret.as_deref()
    }

    /// Made with the first connection.
    fn settings(&self) -> Arc<Settings> {
        let make = || {
            let host = self.seed.as_ref().map_or_else(HostKey::random, HostKey::from_seed);
            Arc::new(Settings::new(Arc::new(host)))
        };
        Arc::clone(self.settings.get_or_init(make))
    }
}

impl Authority for Keeper {
    fn is_password(&self, password: &[u8]) -> bool {
        self.secret.as_ref().is_some_and(|secret| secret.as_bytes().ct_eq(password).into())
    }

    fn knows(&self, key: &PublicKey) -> bool {
        self.keys.contains(key)
    }

    fn takes_passwords(&self) -> bool {
        self.secret.is_some()
    }
}

fn check_secret(secret: Option<&str>) -> Result<()> {
    let right = |secret: &str| {
        SECRET_BYTES.contains(&secret.len()) && secret.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if secret.is_none_or(right) {
        return Ok(());
    }
    Err(Error::invalid(format_args!(
        "a secret has {} to {} printable characters",
        SECRET_BYTES.start(),
        SECRET_BYTES.end()
    )))
}

fn seed(digits: &str) -> Result<[u8; SEED_BYTES]> {
    let wrong =
        || Error::invalid(format_args!("a host key is made of {} hexadecimal digits", 2 * SEED_BYTES));
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return Err(wrong()) };
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)
}

/// Where the doors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Places {
    /// SSH.
    pub(crate) ssh: SocketAddr,
    /// The terminal in a browser.
    pub(crate) terminal: SocketAddr,
    /// The rescue door.
    pub(crate) rescue: SocketAddr,
}

/// The doors that were opened just now, and why others were not.
#[derive(Default)]
pub(crate) struct Opened {
    /// Port of SSH.
    pub(crate) ssh: Option<u16>,
    /// Port of the terminal in a browser.
    pub(crate) terminal: Option<u16>,
    /// Why a door stays shut.
    pub(crate) failures: Vec<std::io::Error>,
}

impl Places {
    /// In a sandbox: every address of it, of which only the host's side and the sandbox itself have any.
    const SANDBOX: Self =
        Self { ssh: Self::of(PORT), terminal: Self::of(TERMINAL_PORT), rescue: Self::of(RESCUE_PORT) };

    const fn of(port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
    }
}

impl Doors {
    fn state(&self) -> MutexGuard<'_, Told> {
        // Each field is replaced as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who may come in now.
    pub(crate) fn keeper(&self) -> Option<Arc<Keeper>> {
        self.state().keeper.clone()
    }

    /// What the agent's successor is told: who may come in, and where the doors are if not where a sandbox has them.
    pub(crate) fn told(&self) -> (Access, Option<Places>) {
        (self.state().access.clone(), self.places.get().copied())
    }

    /// Whether this process is started by itself and can be ended at any time.
    pub(crate) fn is_rescue(&self, pid: i32) -> bool {
        self.rescue.is(pid)
    }

    /// Whether what is told can be taken.
    pub(crate) fn check(access: &Access) -> Result<()> {
        Keeper::new(access).map(drop)
    }

    /// Takes what the host tells, in a sandbox. A port that is taken already keeps its door shut until the next greeting.
    pub(crate) fn tell(&self, agent: &Arc<Agent>, access: Access) -> Result<()> {
        for error in self.take(agent, access)?.failures {
            sys::say(format_args!("a door stays shut: {error}"));
        }
        Ok(())
    }

    /// Where the doors are from now on, if not where a sandbox has them. Only before the first is opened.
    pub(crate) fn place(&self, places: Places) {
        // Told once.
        let _ = self.places.set(places);
    }

    /// The same, and says what came of it.
    pub(crate) fn take(&self, agent: &Arc<Agent>, access: Access) -> Result<Opened> {
        let keeper = Keeper::new(&access)?.map(Arc::new);
        let places = self.places.get().copied().unwrap_or(Places::SANDBOX);
        self.rescue.tell(agent, places.rescue, rescue::Wanted::by(&access)?);
        let mut state = self.state();
        let unchanged = state.access == access;
        state.access = access;
        if !unchanged || state.keeper.is_none() {
            // Only then: the host's key stays the same as long as nothing else changes.
            state.keeper = keeper;
        }
        let mut opened = Opened::default();
        let Told { keeper, ssh, terminal, .. } = &mut *state;
        if keeper.is_none() {
            for door in [ssh, terminal] {
                if let Some(task) = door.take() {
                    task.abort();
                }
            }
            return Ok(opened);
        }
        let has_secret = keeper.as_ref().is_some_and(|keeper| keeper.secret.is_some());
        if ssh.is_none() {
            match listen(places.ssh) {
                Ok((listener, port)) => {
                    opened.ssh = Some(port);
                    let door = Door { keeper: None, service: Service::Whole, agent: Arc::clone(agent) };
                    *ssh = Some(tokio::spawn(door.open(listener)).abort_handle());
                }
                Err(error) => opened.failures.push(error),
            }
        }
        // A browser has no key to show.
        match (has_secret, terminal.is_some()) {
            (true, false) => match listen(places.terminal) {
                Ok((listener, port)) => {
                    opened.terminal = Some(port);
                    *terminal =
                        Some(tokio::spawn(terminal::serve(Arc::clone(agent), listener)).abort_handle());
                }
                Err(error) => opened.failures.push(error),
            },
            (false, true) => {
                if let Some(task) = terminal.take() {
                    task.abort();
                }
            }
            (true, true) | (false, false) => {}
        }
        Ok(opened)
    }
}

fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, u16)> {
    const WAITING_MAX: i32 = 64;
    let named = |error: std::io::Error| std::io::Error::new(error.kind(), format!("{address}: {error}"));
    let listener = sys::listen_tcp(address, WAITING_MAX).map_err(named)?;
    let listener = TcpListener::from_std(listener)?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// What listens for SSH.
struct Door {
    /// Who may come in; `None`: whoever the agent's doors know at that moment.
    keeper: Option<Arc<Keeper>>,
    service: Service,
    agent: Arc<Agent>,
}

impl Door {
    /// Accepts connections for ever. Beyond the bounds they are closed at once, which costs nothing.
    async fn open(self, listener: TcpListener) {
        let all = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let keeper = self.keeper.clone().or_else(|| self.agent.doors.keeper());
            let places = (Arc::clone(&all).try_acquire_owned(), Arc::clone(&strangers).try_acquire_owned());
            let (Some(keeper), (Ok(place), Ok(stranger))) = (keeper, places) else { continue };
            // What is typed is small and wanted at once.
            let _ = stream.set_nodelay(true);
            let visit = client::Visit { agent: Arc::clone(&self.agent), keeper, service: self.service, peer };
            tokio::spawn(async move {
                visit.receive(stream, stranger).await;
                drop(place);
            });
        }
    }
}

/// `POST /sandhaus/ssh`.
async fn change(State(agent): State<Arc<Agent>>, Json(access): Json<Access>) -> Result<StatusCode> {
    agent.doors.tell(&agent, access)?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_checked() {
        let refused = |access: Access| Keeper::new(&access).err().map(|error| error.message.into_owned());
        assert!(Keeper::new(&Access::default()).expect("nothing is fine").is_none());
        let secret = |secret: &str| Access { secret: Some(secret.to_owned()), ..Access::default() };
        assert_eq!(refused(secret("0123456789abcdef")), None);
        for wrong in ["", "short", "0123456789 abcdef", "0123456789äbcdef"] {
            let message = refused(secret(wrong)).expect("refused");
            assert!(wrong.is_empty() || !message.contains(wrong), "{message}");
        }
        let key = Access { authorized_keys: vec!["ssh-dss AAAA".to_owned()], ..Access::default() };
        assert!(refused(key).is_some_and(|message| message.contains("authorized key 1")));
        for (digits, right) in
            [("00".repeat(SEED_BYTES), true), ("00".to_owned(), false), ("x".repeat(64), false)]
        {
            let access = Access { host_key: Some(digits), ..secret("0123456789abcdef") };
            assert_eq!(refused(access).is_none(), right);
        }
    }

    #[test]
    fn the_host_key_is_what_it_is_made_of() {
        let keeper = |host_key: Option<String>| {
            let secret = Some("0123456789abcdef".to_owned());
            Keeper::new(&Access { secret, host_key, ..Access::default() }).expect("right").expect("somebody")
        };
        let told = || Some("07".repeat(SEED_BYTES));
        let shown = |keeper: &Keeper| keeper.settings().host.to_openssh();
        assert_eq!(shown(&keeper(told())), shown(&keeper(told())));
        assert_ne!(shown(&keeper(None)), shown(&keeper(None)));
    }
}
