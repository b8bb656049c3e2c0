//! The agent's state: who it serves, as whom, and everything it has started.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{Json, extract::State};
use sandhaus_protocol::{
    PROTOCOL_VERSION,
    boot::{BootConfig, Limits, Workload},
    hello::{Feature, HelloReply, HelloRequest},
    shell::DEFAULT,
    system::{ENVIRONMENT_BYTES_MAX, UpdateEnv, VALUE_BYTES_MAX, VARIABLES_MAX},
};
use tokio::sync::Semaphore;

use crate::{
    error::{Error, Result},
    execute::check_variable,
    files::Streams,
    git::Git,
    interpreter::Contexts,
    log::{Level, Log},
    lsp::Servers,
    process::Processes,
    proxy::Proxy,
    pty::Terminals,
    session::Sessions,
    shell::{Shells, dialect::ShellChoice},
    ssh::Doors,
    sys::{self, Children, Scope},
    system::Usage,
    upgrade::Upgrades,
};

/// Work on files that may take long and is done at once.
const LONG_FILE_WORK_MAX: usize = 2;

/// Search path of processes whose sandbox names none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What this agent can do.
const FEATURES: &[Feature] = &[
    Feature::Shell,
    Feature::Process,
    Feature::Execute,
    Feature::Session,
    Feature::Pty,
    Feature::Files,
    Feature::Watch,
    Feature::System,
    Feature::Proxy,
    Feature::Env,
    Feature::CodeRun,
    Feature::Interpreter,
    Feature::Git,
    Feature::Lsp,
    Feature::Ssh,
];

/// How the agent was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// PID 1 of a sandbox: it knows whom it serves and starts processes as the workload.
    Init {
        /// The sandbox.
        sandbox_id: String,
        /// Its generation.
        generation: u64,
    },
    /// In a virtual machine: whom it serves can change, which [`crate::guest`] keeps; it starts processes as the workload.
    Guest,
    /// By hand, as the current user.
    ByHand,
}

/// What new processes find in their environment.
struct Environment {
    variables: BTreeMap<String, String>,
    /// A greeting has brought some of them.
    greeted_with: bool,
}

impl Environment {
    /// Puts the variables of a greeting over the others.
    fn adopt(&mut self, given: BTreeMap<String, String>) {
        self.greeted_with |= !given.is_empty();
        self.variables.extend(given);
    }
}

/// The agent.
pub(crate) struct Agent {
    pub(crate) standing: Standing,
    environment: Mutex<Environment>,
    /// Where shells and processes start, and relative paths too.
    pub(crate) workdir: String,
    /// As whom they run.
    pub(crate) workload: Workload,
    /// Which shell persistent sessions run.
    pub(crate) shell: ShellChoice,
    /// What its machine may use, as it was told.
    pub(crate) limits: Limits,
    /// What it has started.
    pub(crate) children: Children,
    /// Persistent shells.
    pub(crate) shells: Shells,
    /// One-shot processes.
    pub(crate) processes: Processes,
    /// Sessions of the compatible contract.
    pub(crate) sessions: Sessions,
    /// What the git routes remember.
    pub(crate) git: Git,
    /// Language servers of the compatible contract.
    pub(crate) servers: Servers,
    /// Terminals of the compatible contract.
    pub(crate) terminals: Terminals,
    /// Interpreter contexts of the compatible contract.
    pub(crate) contexts: Contexts,
    /// What it writes about itself.
    pub(crate) log: Log,
    /// Who looks on as files change.
    pub(crate) watches: Streams,
    /// Room for work on files that may take long: fewer at once than there are threads for files.
    pub(crate) long_file_work: Semaphore,
    /// What it knows of the use of its machine.
    pub(crate) usage: Usage,
    /// What is passed on to ports.
    pub(crate) proxy: Proxy,
    /// SSH and the terminal in a browser.
    pub(crate) doors: Doors,
    /// What it knows about being replaced.
    pub(crate) upgrades: Upgrades,
}

impl Agent {
    /// The agent of this boot document.
    pub(crate) fn init(config: BootConfig) -> Arc<Self> {
        let standing = Standing::Init { sandbox_id: config.sandbox_id, generation: config.generation };
        let shell = ShellChoice::Preferred(config.shell);
        Self::new(standing, config.env, config.workdir, config.user, shell, config.limits)
    }

    /// The agent of a virtual machine that was just told this.
    pub(crate) fn guest(config: BootConfig, greeting: BTreeMap<String, String>) -> Arc<Self> {
        let agent = Self::new(
            Standing::Guest,
            config.env,
            config.workdir,
            config.user,
            ShellChoice::Preferred(config.shell),
            config.limits,
        );
        agent.variables().adopt(greeting);
        agent
    }

    /// An agent of the current user.
    pub(crate) fn by_hand(
        env: BTreeMap<String, String>,
        workdir: String,
        user: Workload,
        shell: ShellChoice,
    ) -> Arc<Self> {
        Self::new(Standing::ByHand, env, workdir, user, shell, Limits::default())
    }

    /// An agent in the place of another one, with its variables (and whether a greeting has brought some).
    pub(crate) fn restored(
        standing: Standing,
        (variables, greeted_with): (BTreeMap<String, String>, bool),
        workdir: String,
        workload: Workload,
        shell: ShellChoice,
        limits: Limits,
    ) -> Arc<Self> {
        let agent = Self::new(standing, BTreeMap::new(), workdir, workload, shell, limits);
        *agent.variables() = Environment { variables, greeted_with };
        agent
    }

    /// What new processes find, and whether a greeting has brought some of it.
    pub(crate) fn told_variables(&self) -> (BTreeMap<String, String>, bool) {
        let environment = self.variables();
        (environment.variables.clone(), environment.greeted_with)
    }

    fn new(
        standing: Standing,
        mut env: BTreeMap<String, String>,
        workdir: String,
        workload: Workload,
        shell: ShellChoice,
        limits: Limits,
    ) -> Arc<Self> {
        fill_in(&mut env, &workload);
        let usage = match standing {
            // The first process of its kind sees those of its sandbox alone.
            Standing::Init { .. } => Usage::new(Scope::Processes, limits),
            Standing::Guest | Standing::ByHand => Usage::new(Scope::Machine, limits),
        };
        Arc::new(Self {
            standing,
            environment: Mutex::new(Environment { variables: env, greeted_with: false }),
            workdir,
            workload,
            shell,
            limits,
            children: Children::default(),
            shells: Shells::default(),
            processes: Processes::default(),
            sessions: Sessions::default(),
            git: Git::default(),
            servers: Servers::default(),
            terminals: Terminals::default(),
            contexts: Contexts::default(),
            log: Log::default(),
            watches: Streams::default(),
            long_file_work: Semaphore::new(LONG_FILE_WORK_MAX),
            usage,
            proxy: Proxy::default(),
            doors: Doors::default(),
            upgrades: Upgrades::default(),
        })
    }

    /// What is logged unless the environment says otherwise. In a sandbox of namespaces a log exists only if something is
    /// wrong: it would be a file in each of very many.
    pub(crate) fn default_log_level(&self) -> Level {
        match self.standing {
            Standing::Init { .. } => Level::Warn,
            Standing::Guest | Standing::ByHand => Level::Info,
        }
    }

    /// Environment of a new process.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        self.variables().variables.clone()
    }

    fn variables(&self) -> MutexGuard<'_, Environment> {
        // Whole between any two statements.
        self.environment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the variables of a greeting. A default shell that waits already was started without them, and nothing has
    /// run in it yet: another takes its place.
    pub(crate) fn adopt_variables(&self, given: BTreeMap<String, String>) -> Result<()> {
        if given.is_empty() {
            return Ok(());
        }
        for (name, value) in &given {
            check_variable(name)?;
            if value.contains('\0') {
                return Err(Error::invalid(format_args!("environment variable {name} holds a NUL byte")));
            }
        }
        let mut environment = self.variables();
        if environment.greeted_with {
            let known = |(name, value)| environment.variables.get(name) == Some(value);
            return match given.iter().all(known) {
                true => Ok(()),
                false => Err(Error::conflict("this sandbox has its variables already")),
            };
        }
        environment.adopt(given);
        drop(environment);
        self.shells.renew_default()
    }

    /// Takes the variables of a machine that is another now. What runs goes on with its own, and so does the default shell,
    /// unless nothing has run in it yet.
    pub(crate) fn replace_variables(
        &self,
        mut boot: BTreeMap<String, String>,
        greeting: BTreeMap<String, String>,
    ) -> Result<()> {
        fill_in(&mut boot, &self.workload);
        let mut new = Environment { variables: boot, greeted_with: false };
        new.adopt(greeting);
        let mut environment = self.variables();
        let changed = environment.variables != new.variables;
        *environment = new;
        drop(environment);
        if changed { self.shells.renew_unused_default() } else { Ok(()) }
    }

    /// Changes what processes started from now on find. All of it is checked before any of it counts. A default shell in
    /// which nothing has run yet is replaced by one with the new environment.
    pub(crate) fn change_variables(&self, change: UpdateEnv) -> Result<()> {
        let set = change.set.unwrap_or_default();
        let unset = change.unset.unwrap_or_default();
        if set.len() + unset.len() > VARIABLES_MAX {
            return Err(Error::invalid(format_args!("at most {VARIABLES_MAX} variables at once")));
        }
        for name in set.keys().chain(&unset) {
            check_variable(name)?;
        }
        for (name, value) in &set {
            if value.contains('\0') || value.len() > VALUE_BYTES_MAX {
                return Err(Error::invalid(format_args!(
                    "the value of {name} holds a NUL byte or more than {VALUE_BYTES_MAX} bytes"
                )));
            }
        }
        let prefix = change.unset_value_prefix.filter(|prefix| !prefix.is_empty());
        let mut environment = self.variables();
        let mut new = environment.variables.clone();
        for name in &unset {
            new.remove(name);
        }
        if let Some(prefix) = prefix {
            new.retain(|name, value| set.contains_key(name) || !value.starts_with(&prefix));
        }
        new.extend(set);
        let bytes: usize = new.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if bytes > ENVIRONMENT_BYTES_MAX {
            return Err(Error::invalid(format_args!(
                "the environment would have {bytes} bytes; a process takes {ENVIRONMENT_BYTES_MAX}"
            )));
        }
        let changed = environment.variables != new;
        environment.variables = new;
        drop(environment);
        if changed { self.shells.renew_unused_default() } else { Ok(()) }
    }

    /// The directory that a request names, from the work directory on; that itself where it names none.
    pub(crate) fn directory(&self, named: Option<&str>) -> String {
        match named.filter(|named| !named.is_empty()) {
            None => self.workdir.clone(),
            Some(named) if named.starts_with('/') => named.to_owned(),
            Some(named) => format!("{}/{named}", self.workdir),
        }
    }

    /// Whom a new process must become; `None` by hand.
    pub(crate) fn spawn_identity(&self) -> Option<&Workload> {
        match self.standing {
            Standing::Init { .. } | Standing::Guest => Some(&self.workload),
            Standing::ByHand => None,
        }
    }

    /// Runs blocking work on a thread that has the workload's rights over files.
    pub(crate) async fn on_file_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only while the runtime is being torn down: nobody waits for an answer then.
                Err(_cancelled) => std::future::pending().await,
            },
        }
    }

    /// Makes the default shell, so that the first command finds it waiting.
    pub(crate) fn warm_shell(self: &Arc<Self>) {
        // A failure is told to the first command, which tries again.
        let _ = self.shells.open(self, DEFAULT);
    }
}

/// `POST /sandhaus/hello`.
pub(crate) async fn hello(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<HelloRequest>,
) -> Result<Json<HelloReply>> {
    let (sandbox_id, generation) = match &agent.standing {
        Standing::Init { sandbox_id, generation } => (sandbox_id.clone(), *generation),
        // A guest's greetings never come here.
        Standing::Guest | Standing::ByHand => (request.sandbox_id.clone(), request.generation),
    };
    if request.sandbox_id != sandbox_id || request.generation != generation {
        return Err(Error::conflict(format_args!(
            "this is sandbox {sandbox_id} in generation {generation}, not {} in {}",
            request.sandbox_id, request.generation
        )));
    }
    if let Some(access) = &request.ssh {
        Doors::check(access)?;
    }
    if agent.standing != Standing::ByHand {
        agent.adopt_variables(request.env)?;
    }
    if let Some(access) = request.ssh {
        agent.doors.tell(&agent, *access)?;
    }
    Ok(Json(reply(&agent, request.protocol, sandbox_id, generation)))
}

/// What a greeting is answered with.
pub(crate) fn reply(agent: &Agent, protocol: u32, sandbox_id: String, generation: u64) -> HelloReply {
    let mut features = FEATURES.to_vec();
    if agent.upgrades.is_offered() {
        features.push(Feature::Upgrade);
    }
    if agent.standing == Standing::Guest {
        features.push(Feature::Guest);
    }
    HelloReply {
        protocol: protocol.min(PROTOCOL_VERSION),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build: Some(sys::own_build()).filter(|build| !build.is_empty()),
        sandbox_id,
        generation,
        features,
        cwd: agent.shells.default_cwd().unwrap_or_else(|| agent.workdir.clone()),
        clock_skew_ns: None,
    }
}

/// What every process finds, whatever its sandbox says nothing about.
fn fill_in(env: &mut BTreeMap<String, String>, workload: &Workload) {
    let defaults = [
        ("PATH", DEFAULT_PATH),
        ("HOME", &workload.home),
        ("USER", &workload.name),
        ("LOGNAME", &workload.name),
        ("LANG", "C.UTF-8"),
    ];
    for (name, value) in defaults {
        env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
}

/// Removes what a process must not inherit from the agent's own environment when it runs by hand.
pub(crate) fn current_environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name != sys::Family::MARK)
        .collect()
}
