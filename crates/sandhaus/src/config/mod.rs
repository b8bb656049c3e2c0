//! Configuration: flags over environment over file over defaults, one table of keys for all of them.
//!
//! Reading order: this file (what can be configured, and how the places where it can be said are combined),
//! [`keys`] (the table), [`value`] (parsing), [`file`] (YAML and its lines), [`describe`] (the JSON schema and the
//! guide's table, made of the same table).
//!
//! Every key has an environment name under `SANDHAUS_` and the same under `SANDKASTEN_`, as the older tool had it. An
//! unknown key is a warning that names it, so that a file written for a newer build still works; a value that does not
//! parse is an error that names the key, the value and where it stands.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use sandhaus_engines::net::NetworkConfig;
use sandhaus_gateway::{CookieTransport, ExecMode};
use sandhaus_protocol::boot::ShellPreference;
use sandhaus_sandbox::{
    ImageName, NetworkPolicy, Resources, Seccomp, SecurityProfile,
    doors::RescueDoor,
    service::{PoolConfig, WorkspaceConfig},
};

use crate::{advice::Advice, domain};

mod describe;
mod file;
mod keys;
mod snapshots;
mod value;

pub(crate) use describe::{guide_table, schema};
pub(crate) use keys::{KEYS, Key, effective, find, nearest};
pub(crate) use snapshots::SnapshotSettings;

use value::Raw;

/// Where a configuration is looked for, in this order, when no file is named.
pub(crate) const SEARCH: &[&str] =
    &["sandhaus.yaml", "/etc/sandhaus/sandhaus.yaml", "sandkasten.yaml", "/etc/sandkasten/sandkasten.yaml"];

/// Prefixes of environment names, the first one wins.
pub(crate) const ENV_PREFIXES: &[&str] = &["SANDHAUS_", "SANDKASTEN_"];

/// Port of the runner's API, as control planes know it.
const RUNNER_PORT: u16 = 3005;

/// Largest configuration file in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is configured of virtual machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QemuSettings {
    /// There are any.
    pub(crate) enabled: bool,
    /// The program, if it is not to be searched for.
    pub(crate) binary: Option<PathBuf>,
    /// Who runs them.
    pub(crate) accelerator: Acceleration,
}

impl Default for QemuSettings {
    fn default() -> Self {
        Self { enabled: true, binary: None, accelerator: Acceleration::Auto }
    }
}

/// Who runs virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acceleration {
    /// The processor, where it does.
    Auto,
    /// The processor.
    Kvm,
    /// QEMU by itself.
    Tcg,
}

impl Acceleration {
    fn of(word: &str) -> Self {
        match word {
            "kvm" => Self::Kvm,
            "tcg" => Self::Tcg,
            _ => Self::Auto,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// Where the server listens.
    pub(crate) listen: SocketAddr,
    /// The key that callers must show.
    pub(crate) api_key: Option<ApiKey>,
    /// The data directory.
    pub(crate) data_dir: PathBuf,
    /// Image of requests that do not say.
    pub(crate) default_image: ImageName,
    /// Engine of requests that do not say.
    pub(crate) default_engine: String,
    /// Images that may be used; empty: all.
    pub(crate) allowed_images: Vec<ImageName>,
    /// Registries that may be spoken to without TLS.
    pub(crate) insecure_registries: Vec<String>,
    /// Time to live of `/v1` sandboxes.
    pub(crate) session_ttl: Duration,
    /// Most live sandboxes.
    pub(crate) sandboxes_max: usize,
    /// Limits of sandboxes that do not say; zero: none.
    pub(crate) resources: Resources,
    /// Longest a `/v1` command may run.
    pub(crate) exec_timeout_max_ms: u64,
    /// Whether `/v1` sandboxes have a read-only root.
    pub(crate) readonly_root: bool,
    /// Shell of persistent sessions.
    pub(crate) shell: ShellPreference,
    /// Confinement of `/v1` sandboxes.
    pub(crate) security: SecurityProfile,
    /// Filter of system calls.
    pub(crate) seccomp: Seccomp,
    /// Whether commands of a `/v1` session share one shell.
    pub(crate) exec_mode: ExecMode,
    /// What sandboxes that do not say may reach.
    pub(crate) network: NetworkPolicy,
    /// The addresses of bridged sandboxes, and what they may reach of private networks.
    pub(crate) net: NetworkConfig,
    /// Virtual machines.
    pub(crate) qemu: QemuSettings,
    /// The agents inside sandboxes.
    pub(crate) agent: AgentSettings,
    /// Sandboxes kept ready: whether, and how many of each image.
    pub(crate) pool: PoolConfig,
    /// Workspaces.
    pub(crate) workspaces: WorkspaceConfig,
    /// Whether the web page is served.
    pub(crate) dashboard: bool,
    /// How the cookie of the web page's login travels.
    pub(crate) dashboard_cookie: CookieTransport,
    /// The cgroup of version 2 that sandboxes go beneath.
    pub(crate) cgroup: Option<PathBuf>,
    /// The snapshot store.
    pub(crate) snapshots: SnapshotSettings,
    /// The API of a runner.
    pub(crate) runner: RunnerSettings,
}

/// The agents inside sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AgentSettings {
    /// What happens to older ones.
    pub(crate) upgrade: AgentUpgrade,
    /// The executable, if not the one that this program carries.
    pub(crate) executable: Option<PathBuf>,
    /// Whether it has another process serve SSH for when it hangs.
    pub(crate) rescue: RescueDoor,
}

/// What happens to agents of an older build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum AgentUpgrade {
    /// They are replaced where they run.
    #[default]
    Auto,
    /// They stay.
    Never,
}

/// The API of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunnerSettings {
    /// Whether it is served.
    pub(crate) enabled: bool,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            api_key: None,
            data_dir: PathBuf::from("/var/lib/sandhaus"),
            default_image: ImageName::parse("host").expect("a valid name"),
            default_engine: domain::NAMESPACE.to_owned(),
            allowed_images: Vec::new(),
            insecure_registries: Vec::new(),
            session_ttl: Duration::from_secs(1800),
            sandboxes_max: 1024,
            resources: Resources { cpu_millis: 1000, memory_bytes: 512 << 20, pids: 256, disk_bytes: 0 },
            exec_timeout_max_ms: 120_000,
            readonly_root: true,
            shell: ShellPreference::Bash,
            security: SecurityProfile::Strict,
            seccomp: Seccomp::Strict,
            exec_mode: ExecMode::Stateful,
            network: NetworkPolicy::None,
            net: NetworkConfig::default(),
            qemu: QemuSettings::default(),
            agent: AgentSettings::default(),
            pool: PoolConfig::default(),
            workspaces: WorkspaceConfig::default(),
            dashboard: true,
            dashboard_cookie: CookieTransport::Any,
            cgroup: None,
            snapshots: SnapshotSettings::default(),
            runner: RunnerSettings {
                enabled: false,
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, RUNNER_PORT)),
            },
        }
    }
}

impl Config {
    /// The secret of this key, if it is set.
    pub(crate) fn secret(&self, name: &str) -> Option<&ApiKey> {
        match name {
            "api_key" => self.api_key.as_ref(),
            "snapshots.access_key_id" => self.snapshots.access_key_id.as_ref(),
            "snapshots.secret_access_key" => self.snapshots.secret_access_key.as_ref(),
            _ => None,
        }
    }
}

/// A secret that no message and no log shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ApiKey(String);

impl ApiKey {
    /// Takes a key that can stand in a header field; an empty one is none.
    pub(crate) fn parse(key: &str) -> Result<Option<Self>, String> {
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("must be printable ASCII without blanks".to_owned());
        }
        Ok((!key.is_empty()).then(|| Self(key.to_owned())))
    }

    /// The key itself, for the one place that sends or compares it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody said anything else.
    Default,
    /// The configuration file, at this place.
    File(String),
    /// The environment, by this variable.
    Environment(String),
    /// The command line, by this flag.
    Flag(&'static str),
}

/// A configuration, where it came from, and what was odd about it.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The effective values.
    pub(crate) config: Config,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// Sentences to show once.
    pub(crate) warnings: Vec<String>,
    /// Where each key's value comes from, for those that somebody has set.
    origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// Where a key's value comes from.
    pub(crate) fn origin(&self, key: &Key) -> &Origin {
        self.origins.get(key.name).unwrap_or(&Origin::Default)
    }

    /// A flag sets a key as the file would.
    pub(crate) fn set_by_flag(&mut self, key: &str, flag: &'static str, value: &str) -> Result<()> {
        let key = find(key).expect("a flag names a key of the table");
        key.set(&mut self.config, &Raw::text(key, value))
            .map_err(|problem| malformed(key, &format!("{value:?}"), flag, &problem))?;
        self.origins.insert(key.name, Origin::Flag(flag));
        Ok(())
    }

    fn set(&mut self, key: &'static Key, raw: &Raw<'_>, origin: Origin, place: &str) -> Result<()> {
        key.set(&mut self.config, raw).map_err(|problem| malformed(key, &raw.shown(), place, &problem))?;
        if let Some(reason) = key.ignored {
            self.warnings.push(format!("key {} {place} has no effect: {reason}", key.name));
        }
        self.origins.insert(key.name, origin);
        Ok(())
    }
}

/// Reads the file `named` (or the first one found) and the environment of this process.
pub(crate) fn load(named: Option<&Path>) -> Result<Loaded> {
    let environment = environment();
    let mut warnings = Vec::new();
    let path = match named {
        Some(path) => Some(path.to_owned()),
        None => find_file(&mut warnings),
    };
    let file = path.map(|path| read_file(&path).map(|text| (path, text))).transpose()?;
    let mut loaded = match &file {
        Some((path, text)) => combine(Some((&path.display().to_string(), text)), &environment)?,
        None => combine(None, &environment)?,
    };
    warnings.append(&mut loaded.warnings);
    Ok(Loaded { file: file.map(|(path, _)| path), warnings, ..loaded })
}

/// The environment of this process over the defaults, without any file.
pub(crate) fn load_environment() -> Result<Loaded> {
    combine(None, &environment())
}

/// Everything wrong with a file, for `config check`: errors and warnings. The environment plays no part.
pub(crate) fn check(path: &Path) -> Result<(Vec<anyhow::Error>, Vec<String>)> {
    let text = read_file(path)?;
    let name = path.display().to_string();
    let mut loaded = unset();
    let mut errors = Vec::new();
    match file::entries(&name, &text) {
        Ok(entries) => {
            errors.extend(entries.iter().filter_map(|entry| apply_entry(&mut loaded, entry).err()));
        }
        Err(error) => errors.push(error),
    }
    if errors.is_empty() && check_exposure(&loaded.config).is_err() {
        loaded.warnings.push(format!(
            "{name}: listens on {} without api_key: the server starts only if the environment has SANDHAUS_API_KEY",
            loaded.config.listen
        ));
    }
    Ok((errors, loaded.warnings))
}

/// The first file of the search that may be trusted. One that another user could have left in the working directory is
/// passed over: it could tell a server of root's where to write.
fn find_file(warnings: &mut Vec<String>) -> Option<PathBuf> {
    SEARCH.iter().map(Path::new).find(|path| path.exists() && is_trusted(path, warnings)).map(Path::to_owned)
}

fn is_trusted(path: &Path, warnings: &mut Vec<String>) -> bool {
    use std::os::unix::fs::MetadataExt;
    /// Others may write.
    const WRITABLE_BY_OTHERS: u32 = 0o002;
    // What cannot be looked at is not passed over silently: reading it tells why.
    let Ok(metadata) = std::fs::metadata(path) else { return true };
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
    let trusted = ours && metadata.mode() & WRITABLE_BY_OTHERS == 0;
    if !trusted {
        warnings.push(format!(
            "{} is ignored: another user can write it; name it with --config to use it",
            path.display()
        ));
    }
    trusted
}

fn read_file(path: &Path) -> Result<String> {
    let length = fs_err::metadata(path)?.len();
    anyhow::ensure!(
        length <= FILE_BYTES_MAX,
        "configuration {} is {length} bytes, the most is {FILE_BYTES_MAX}",
        path.display()
    );
    Ok(fs_err::read_to_string(path)?)
}

/// The variables of this process whose names are ours.
fn environment() -> BTreeMap<String, OsString> {
    let ours = |name: &String| ENV_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    std::env::vars_os()
        .filter_map(|(name, value)| name.into_string().ok().filter(ours).map(|name| (name, value)))
        .collect()
}

fn unset() -> Loaded {
    Loaded { config: Config::default(), file: None, warnings: Vec::new(), origins: BTreeMap::new() }
}

/// Environment over file over defaults.
fn combine(file: Option<(&str, &str)>, environment: &BTreeMap<String, OsString>) -> Result<Loaded> {
    let mut loaded = unset();
    if let Some((name, text)) = file {
        for entry in file::entries(name, text)? {
            apply_entry(&mut loaded, &entry)?;
        }
    }
    for key in KEYS {
        let Some((variable, value)) = ENV_PREFIXES.iter().find_map(|prefix| {
            let variable = format!("{prefix}{}", key.env);
            environment.get(&variable).map(|value| (variable, value))
        }) else {
            continue;
        };
        let place = format!("in the environment ({variable})");
        let value = value.to_str().ok_or_else(|| malformed(key, "…", &place, "is not UTF-8"))?;
        loaded.set(key, &Raw::text(key, value), Origin::Environment(variable), &place)?;
    }
    for variable in environment.keys() {
        if let Some(meant) = misspelt_variable(variable) {
            loaded.warnings.push(format!("{variable} is no variable of ours; did you mean {meant}?"));
        }
    }
    Ok(loaded)
}

/// One line of a file: a key that is known is set, one that is not is named.
fn apply_entry(loaded: &mut Loaded, entry: &file::Entry) -> Result<()> {
    let Some(key) = find(&entry.name) else {
        let meant = nearest(&entry.name).map_or(String::new(), |key| format!("; did you mean {key}?"));
        loaded
            .warnings
            .push(format!("{}: key {} is not known and has no effect{meant}", entry.place, entry.name));
        return Ok(());
    };
    // A key with nothing behind it is not set.
    if entry.value.is_null() {
        return Ok(());
    }
    let raw = Raw::yaml(key, &entry.value);
    loaded.set(key, &raw, Origin::File(entry.place.clone()), &format!("in {}", entry.place))
}

/// The variable that was probably meant by one that is not ours but almost. Others under our prefixes are let be:
/// container platforms make such names from the names of services.
fn misspelt_variable(variable: &str) -> Option<String> {
    let (prefix, name) =
        ENV_PREFIXES.iter().find_map(|prefix| Some((prefix, variable.strip_prefix(prefix)?)))?;
    let known = KEYS.iter().any(|key| key.env == name) || keys::OTHER_VARIABLES.contains(&name);
    let meant = if known { None } else { keys::nearest_variable(name) };
    meant.map(|meant| format!("{prefix}{meant}"))
}

/// An error that names key, value and place; a secret's value stays out of it.
fn malformed(key: &Key, value: &str, place: &str, problem: &str) -> anyhow::Error {
    let value = if key.is_secret() { "…" } else { value };
    anyhow::anyhow!("configuration key {} {place} cannot be {value}: {problem}", key.name)
}

/// `IP:PORT`, `localhost:PORT`, or `:PORT` for every address.
pub(crate) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let problem = || "must be an address and a port such as 127.0.0.1:8080".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(problem)?;
    let port: u16 = port.parse().map_err(|_| problem())?;
    let address: IpAddr = match host {
        "" => Ipv4Addr::UNSPECIFIED.into(),
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        _ => return Err(problem()),
    };
    Ok(SocketAddr::new(address, port))
}

/// Refuses to listen beyond this host without a key.
pub(crate) fn check_exposure(config: &Config) -> Result<()> {
    let runner = config.runner.enabled.then_some(config.runner.listen);
    let exposed =
        [Some(config.listen), runner].into_iter().flatten().find(|listen| !listen.ip().is_loopback());
    let Some(listen) = exposed.filter(|_| config.api_key.is_none()) else { return Ok(()) };
    Err(Advice::new(
        format!(
            "refusing to listen on {listen} without an API key: anyone who reaches it could run commands"
        ),
        "set api_key in the configuration or SANDHAUS_API_KEY in the environment, or listen on 127.0.0.1",
    )
    .into())
}

#[cfg(test)]
mod tests;
