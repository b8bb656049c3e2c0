//! The agent of a virtual machine. It starts without a boot document, so it knows nobody until the host greets it; and
//! since the machine can be photographed and go on as a copy, the host may greet it again and tell it that it is another
//! now.
//!
//! ```text
//!             first greeting                  another sandbox, or a newer generation
//!  nobody ───────────────────> a sandbox's ─────────────────────────────────────────> a copy, or resumed
//!  503 but for the reception   ^         │   clock, random numbers, names, token,
//!                              └─────────┘   variables; what runs goes on
//!                        the same again: clock, random numbers, token
//! ```
//! The host is who comes from [`HOST_ADDRESS`]: only root of the machine could pretend to. It needs no token and alone may
//! greet, switch off and freeze; everyone else needs the token of the last greeting.

mod disks;
mod names;
mod start;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::RawFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension, Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    routing::{get, post},
};
use sandhaus_protocol::{
    boot::{BootConfig, Workload},
    guest::{HOST_ADDRESS, POWER_OFF_PATH, SYNC_PATH},
    hello::{self, Guest as Told, HelloReply, HelloRequest},
    ssh, upgrade,
};
use subtle::ConstantTimeEq as _;
use tokio::sync::Notify;

use self::start::Place;
pub(crate) use self::start::{Network, resume, run, run_first};
use crate::{
    agent::{self, Agent},
    boot,
    error::{Error, Result},
    execute::check_variable,
    http,
    ssh::Doors,
    sys, system,
    upgrade::Replaceable,
};

/// The machine's clock may be so far off where the agent may not set it, as in tests without a machine of their own.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);

/// Most bytes of entropy in a greeting.
const ENTROPY_BYTES_MAX: usize = 512;

/// Longest host name the kernel takes, in bytes.
const HOSTNAME_BYTES_MAX: usize = 64;

/// Fewest and most bytes of a token.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=512;

/// The agent of a virtual machine, before and after it was greeted.
pub(crate) struct Guest {
    /// Who it is, once it was told.
    identity: Mutex<Option<Identity>>,
    /// What was made with the first greeting.
    life: OnceLock<Life>,
    /// As whom threads that touch files work; known from the first greeting on.
    workload: Arc<OnceLock<Workload>>,
    /// The machine is to be switched off.
    power_off: Notify,
    /// The root file system, while it stands still.
    freezer: disks::Freezer,
    /// Its listening socket, and what the agent is to the machine.
    place: OnceLock<(RawFd, Place)>,
}

/// When a request came, before anything of it was looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrived(pub(crate) Instant);

/// Whom the machine serves at present.
struct Identity {
    sandbox_id: String,
    generation: u64,
    token: String,
}

/// The agent proper and its routes.
struct Life {
    agent: Arc<Agent>,
    routes: Router,
}

/// What a greeting is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// The first since the agent was started.
    Boot,
    /// The same again.
    Repeat,
    /// The machine is a copy of another sandbox's, or its own, gone on from a memory image.
    Restored,
}

impl Identity {
    fn occasion(known: Option<&Self>, sandbox_id: &str, generation: u64) -> Result<Occasion> {
        match known {
            None => Ok(Occasion::Boot),
            Some(known) if known.sandbox_id != sandbox_id => Ok(Occasion::Restored),
            Some(known) if known.generation < generation => Ok(Occasion::Restored),
            Some(known) if known.generation == generation => Ok(Occasion::Repeat),
            Some(known) => Err(Error::conflict(format_args!(
                "this is sandbox {sandbox_id} in generation {}; {generation} is over",
                known.generation
            ))),
        }
    }
}

impl Guest {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            identity: Mutex::new(None),
            life: OnceLock::new(),
            workload: Arc::default(),
            power_off: Notify::new(),
            freezer: disks::Freezer::default(),
            place: OnceLock::new(),
        })
    }

    /// What answers before the agent proper is there, and afterwards what is the host's alone.
    pub(crate) fn reception(self: &Arc<Self>) -> Router {
        let own = Router::new()
            .route(hello::PATH, post(greet))
            .route(POWER_OFF_PATH, post(power_off))
            .route(SYNC_PATH, post(disks::sync))
            .with_state(Arc::clone(self));
        let open =
            Router::new().route("/health", get(system::health)).route("/version", get(system::version));
        own.merge(open).layer(http::body_limit())
    }

    /// Which routes a request of this peer meets.
    pub(crate) fn admit(
        &self,
        peer: SocketAddr,
        path: &str,
        headers: &HeaderMap,
        reception: &Router,
    ) -> Result<Router> {
        let from_host = peer.ip().to_canonical() == IpAddr::V4(Ipv4Addr::from(HOST_ADDRESS));
        if matches!(path, "/health" | "/version") {
            return Ok(reception.clone());
        }
        let of_host = || match from_host {
            true => Ok(reception.clone()),
            false => Err(Error::forbidden(format_args!("{path} is for the host alone"))),
        };
        if path == hello::PATH {
            return of_host();
        }
        // A machine that nobody ever greeted is to end in order too.
        if path == POWER_OFF_PATH && from_host {
            return of_host();
        }
        let Some(life) = self.life.get() else { return Err(Error::not_greeted()) };
        match path {
            POWER_OFF_PATH | SYNC_PATH => of_host(),
            ssh::PATH => of_host().map(|_| life.routes.clone()),
            upgrade::PATH => of_host().map(|_| life.routes.clone()),
            _ if from_host || self.shows_token(headers) => Ok(life.routes.clone()),
            _ => Err(Error::unauthorized("show the token of this machine: Authorization: Bearer TOKEN")),
        }
    }

    fn shows_token(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
        });
        let identity = self.identity();
        match (shown, identity.as_ref()) {
            (Some(shown), Some(identity)) => shown.ct_eq(identity.token.as_bytes()).into(),
            _ => false,
        }
    }

    /// The agent proper, once there is one.
    pub(crate) fn agent(&self) -> Option<&Arc<Agent>> {
        self.life.get().map(|life| &life.agent)
    }

    fn identity(&self) -> MutexGuard<'_, Option<Identity>> {
        // Replaced as a whole.
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom the last greeting named, and the token that it brought.
    pub(crate) fn told(&self) -> Option<(String, u64, String)> {
        let identity = self.identity();
        let identity = identity.as_ref()?;
        Some((identity.sandbox_id.clone(), identity.generation, identity.token.clone()))
    }

    /// Everything is checked before anything is changed. The clock comes before all else: from then on times are right.
    fn greet(
        self: &Arc<Self>,
        peer: SocketAddr,
        Arrived(arrived): Arrived,
        request: HelloRequest,
    ) -> Result<HelloReply> {
        let mut identity = self.identity();
        let occasion = Identity::occasion(identity.as_ref(), &request.sandbox_id, request.generation)?;
        let HelloRequest { protocol, sandbox_id, generation, env, guest, ssh } = request;
        let Some(told) = guest else {
            return Err(Error::invalid("the greeting of a virtual machine says what it is to be (guest)"));
        };
        let told = *told;
        let entropy = check(&told, &sandbox_id, generation, &env)?;
        if let Some(access) = &ssh {
            Doors::check(access)?;
        }
        if let Some(agent) = self.agent()
            && !same_rights(&agent.workload, &told.boot.user)
        {
            return Err(Error::conflict(format_args!(
                "what runs in this machine is of user {} and stays so; user {} needs a machine of its own, not a copy",
                agent.workload.uid, told.boot.user.uid
            )));
        }
        // An emulated processor needs long for its first look at code that it has not run yet.
        let since = i64::try_from(arrived.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let skew = set_clock(told.unix_time_ns.saturating_add(since))?;
        sys::seed_random(&entropy)
            .map_err(|error| Error::internal(format_args!("cannot seed the random numbers: {error}")))?;
        if occasion == Occasion::Restored {
            // Whoever was connected was so to another machine.
            sys::sever_connections(peer);
            // The image may be one of a disk that stood still; nothing could be written in here.
            self.freezer.thaw()?;
        }
        if occasion != Occasion::Repeat {
            names::take(&told.hostname, &sandbox_id)?;
        }
        *identity = Some(Identity { sandbox_id: sandbox_id.clone(), generation, token: told.token });
        drop(identity);
        let agent = match self.agent() {
            None => self.begin(told.boot, env),
            Some(agent) => {
                match occasion {
                    Occasion::Restored => agent.replace_variables(told.boot.env, env)?,
                    Occasion::Boot | Occasion::Repeat => agent.adopt_variables(env)?,
                }
                agent
            }
        };
        if let Some(access) = ssh {
            agent.doors.tell(agent, *access)?;
        }
        let reply = agent::reply(agent, protocol, sandbox_id, generation);
        Ok(HelloReply { clock_skew_ns: Some(skew), ..reply })
    }

    /// Serves with this agent from now on.
    fn live(self: &Arc<Self>, agent: Arc<Agent>) -> &Life {
        self.life.get_or_init(|| {
            if let Some((listener, place)) = self.place.get() {
                let guest = Some((Arc::downgrade(self), *place == Place::First));
                let replaceable = Replaceable::Yes;
                agent.upgrades.serve(crate::upgrade::Place { listener: *listener, replaceable, guest });
            }
            let routes = http::routes().with_state(Arc::clone(&agent));
            Life { agent, routes }
        })
    }

    /// Does with the first greeting what the boot document of a container says.
    fn begin(self: &Arc<Self>, boot: BootConfig, env: BTreeMap<String, String>) -> &Arc<Agent> {
        let (warm_shell, entrypoint) = (boot.warm_shell, boot.entrypoint.clone());
        names::make_directories(&boot.user, &boot.workdir);
        // Told only now, so that no thread began as someone else.
        let _ = self.workload.set(boot.user.clone());
        let life = self.live(Agent::guest(boot, env));
        boot::make_file_thread();
        if warm_shell {
            life.agent.warm_shell();
        }
        if !entrypoint.is_empty() {
            life.agent.sessions.start_entrypoint(&life.agent, &entrypoint);
        }
        &life.agent
    }
}

/// `POST /sandhaus/hello`.
async fn greet(
    State(guest): State<Arc<Guest>>,
    Extension(peer): Extension<SocketAddr>,
    Extension(arrived): Extension<Arrived>,
    Json(request): Json<HelloRequest>,
) -> Result<Json<HelloReply>> {
    guest.greet(peer, arrived, request).map(Json)
}

/// `POST /sandhaus/power-off`.
async fn power_off(State(guest): State<Arc<Guest>>) -> StatusCode {
    guest.power_off.notify_one();
    StatusCode::ACCEPTED
}

/// Refuses what cannot be meant, and gives the entropy as bytes.
fn check(told: &Told, sandbox_id: &str, generation: u64, env: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    if told.boot.sandbox_id != sandbox_id || told.boot.generation != generation {
        return Err(Error::invalid("greeting and boot document are not of the same sandbox and generation"));
    }
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let hostname = told.hostname.as_bytes();
    if hostname.is_empty() || hostname.len() > HOSTNAME_BYTES_MAX || !hostname.iter().copied().all(letter) {
        return Err(Error::invalid(format_args!(
            "a host name has 1 to {HOSTNAME_BYTES_MAX} letters, digits, dots, dashes and underscores"
        )));
    }
    if !TOKEN_BYTES.contains(&told.token.len()) || !told.token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(format_args!(
            "a token has {} to {} printable characters",
            TOKEN_BYTES.start(),
            TOKEN_BYTES.end()
        )));
    }
    for (name, value) in env.iter().chain(&told.boot.env) {
        check_variable(name)?;
        if value.contains('\0') {
            return Err(Error::invalid(format_args!("environment variable {name} holds a NUL byte")));
        }
    }
    for path in [&told.boot.workdir, &told.boot.user.home] {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(Error::invalid("work directory and home are absolute paths"));
        }
    }
    entropy(&told.entropy).ok_or_else(|| {
        Error::invalid(format_args!("entropy is 1 to {ENTROPY_BYTES_MAX} bytes in hexadecimal"))
    })
}

fn entropy(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    if pairs.is_empty() || pairs.len() > ENTROPY_BYTES_MAX {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

fn same_rights(one: &Workload, other: &Workload) -> bool {
    (one.uid, one.gid, one.unprivileged) == (other.uid, other.gid, other.unprivileged)
}

/// Sets the clock and tells how far it was off in nanoseconds; positive: it was behind.
fn set_clock(unix_time_ns: i64) -> Result<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let skew = unix_time_ns.saturating_sub(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
    match sys::set_clock(unix_time_ns) {
        Ok(()) => Ok(skew),
        // Where the clock is not the machine's own, it must be right already.
        Err(_) if Duration::from_nanos(skew.unsigned_abs()) < CLOCK_TOLERANCE => Ok(skew),
        Err(error) => Err(Error::internal(format_args!("cannot set the clock: {error}"))),
    }
}

#[cfg(test)]
mod tests;
