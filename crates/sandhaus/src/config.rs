//! Configuration: environment over file over defaults, one table of keys for all three.
//!
//! Every key has an environment name under `SANDHAUS_` and, where the older tool had the key, the same under
//! `SANDKASTEN_`. An unknown key is a warning that names it, so that a file written for a newer build still works; a
//! value that does not parse is an error that names the key, the value and where it stands.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use sandhaus_engines::net::NetworkConfig;
use sandhaus_gateway::ExecMode;
use sandhaus_protocol::boot::ShellPreference;
use sandhaus_sandbox::{
    ImageName, NetworkPolicy, Resources, Seccomp, SecurityProfile,
    service::{PoolConfig, WorkspaceConfig},
};
use serde_yaml_ng::Value;

use crate::{
    advice::Advice,
    values::{Bytes, Cores},
};

/// Where a configuration is looked for, in this order, when no file is named.
const SEARCH: &[&str] =
    &["sandhaus.yaml", "/etc/sandhaus/sandhaus.yaml", "sandkasten.yaml", "/etc/sandkasten/sandkasten.yaml"];

/// Prefixes of environment names, the first one wins.
const ENV_PREFIXES: &[&str] = &["SANDHAUS_", "SANDKASTEN_"];

/// Largest configuration file in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Longest time to live in seconds that may be configured.
const TTL_SECONDS_MAX: u64 = 86_400;

/// Longest command time in milliseconds that may be configured.
const EXEC_TIMEOUT_MS_MAX: u64 = 600_000;

/// Most sandboxes kept ready of one image that may be configured.
const POOL_PER_IMAGE_MAX: u64 = 1000;

/// Most sandboxes that may be configured.
const SANDBOXES_MAX: u64 = 100_000;

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
    /// Images that may be used; empty: all.
    pub(crate) allowed_images: Vec<ImageName>,
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
    /// Sandboxes kept ready: whether, and how many of each image.
    pub(crate) pool: PoolConfig,
    /// Workspaces.
    pub(crate) workspaces: WorkspaceConfig,
    /// Whether the web page is served.
    pub(crate) dashboard: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            api_key: None,
            data_dir: PathBuf::from("/var/lib/sandhaus"),
            default_image: ImageName::parse("host").expect("a valid name"),
            allowed_images: Vec::new(),
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
            pool: PoolConfig::default(),
            workspaces: WorkspaceConfig::default(),
            dashboard: false,
        }
    }
}

/// A secret that no message and no log shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ApiKey(String);

impl ApiKey {
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

/// A configuration, where it came from, and what was odd about it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// Sentences to show once.
    pub(crate) warnings: Vec<String>,
}

/// Reads the file `named` (or the first one found) and the environment of this process.
pub(crate) fn load(named: Option<&Path>) -> Result<Loaded> {
    let file = match named {
        Some(path) => Some((path.to_owned(), read_file(path)?)),
        None => SEARCH
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .map_or(Ok(None), |path| read_file(path).map(|text| Some((path.to_owned(), text))))?,
    };
    let text = file.as_ref().map(|(path, text)| (path.display().to_string(), text.as_str()));
    let (config, warnings) =
        combine(text.as_ref().map(|(name, text)| (name.as_str(), *text)), |name| std::env::var_os(name))?;
    Ok(Loaded { config, file: file.map(|(path, _)| path), warnings })
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

/// Environment over file over defaults.
fn combine(
    file: Option<(&str, &str)>,
    environment: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<(Config, Vec<String>)> {
    let mut config = Config::default();
    let mut warnings = Vec::new();
    if let Some((name, text)) = file {
        let document: Value = serde_yaml_ng::from_str(text)
            .with_context(|| format!("configuration {name} is not valid YAML"))?;
        for (key, value) in flatten(name, document)? {
            match KEYS.iter().find(|known| known.name == key) {
                Some(known) => (known.apply)(&mut config, &Raw::Yaml(&value))
                    .map_err(|problem| malformed(known, &shown(&value), &format!("in {name}"), &problem))?,
                None => warnings.push(format!("{name}: key {key} is not known and has no effect")),
            }
        }
    }
    for key in KEYS {
        let Some((variable, value)) = ENV_PREFIXES.iter().find_map(|prefix| {
            let variable = format!("{prefix}{}", key.env);
            environment(&variable).map(|value| (variable, value))
        }) else {
            continue;
        };
        let place = format!("in the environment ({variable})");
        let value = value.into_string().map_err(|_| malformed(key, "…", &place, "is not UTF-8"))?;
        (key.apply)(&mut config, &Raw::Text(&value))
            .map_err(|problem| malformed(key, &format!("{value:?}"), &place, &problem))?;
    }
    Ok((config, warnings))
}

/// An error that names key, value and place; a secret's value stays out of it.
fn malformed(key: &Key, value: &str, place: &str, problem: &str) -> anyhow::Error {
    let value = if key.name == API_KEY { "…" } else { value };
    anyhow::anyhow!("configuration key {} {place} cannot be {value}: {problem}", key.name)
}

/// A value as a message shows it.
fn shown(value: &Value) -> String {
    serde_yaml_ng::to_string(value).map_or_else(|_| "…".to_owned(), |text| text.trim_end().to_owned())
}

/// `defaults: {cpu_limit: 1}` becomes `defaults.cpu_limit: 1`. Only mappings that group known keys are opened.
fn flatten(name: &str, document: Value) -> Result<BTreeMap<String, Value>> {
    let mut flat = BTreeMap::new();
    let mapping = match document {
        Value::Null => return Ok(flat),
        Value::Mapping(mapping) => mapping,
        _ => anyhow::bail!("configuration {name} must be a list of `key: value` lines"),
    };
    for (key, value) in mapping {
        let Value::String(key) = key else {
            anyhow::bail!("configuration {name} has the key {}, which is not a word", shown(&key));
        };
        let group = format!("{key}.");
        match value {
            Value::Mapping(inner) if KEYS.iter().any(|known| known.name.starts_with(&group)) => {
                for (inner_key, inner_value) in inner {
                    let inner_key = match inner_key {
                        Value::String(word) => word,
                        other => shown(&other),
                    };
                    flat.insert(format!("{group}{inner_key}"), inner_value);
                }
            }
            // An empty group, as a file with every line commented out has.
            Value::Null if KEYS.iter().any(|known| known.name.starts_with(&group)) => {}
            value => {
                flat.insert(key, value);
            }
        }
    }
    Ok(flat)
}

/// A value before it is parsed.
enum Raw<'a> {
    Yaml(&'a Value),
    Text(&'a str),
}

impl Raw<'_> {
    fn text(&self) -> Result<&str, String> {
        match self {
            Self::Yaml(Value::String(text)) => Ok(text),
            Self::Yaml(_) => Err("must be text".to_owned()),
            Self::Text(text) => Ok(text),
        }
    }

    fn number(&self, max: u64) -> Result<u64, String> {
        let number = match self {
            Self::Yaml(value) => value.as_u64(),
            Self::Text(text) => text.trim().parse().ok(),
        };
        match number {
            Some(number) if number <= max => Ok(number),
            _ => Err(format!("must be a whole number from 0 to {max}")),
        }
    }

    fn decimal(&self) -> Result<f64, String> {
        let number = match self {
            Self::Yaml(value) => value.as_f64(),
            Self::Text(text) => text.trim().parse().ok(),
        };
        number.ok_or_else(|| "must be a number".to_owned())
    }

    fn truth(&self) -> Result<bool, String> {
        let truth = match self {
            Self::Yaml(value) => value.as_bool(),
            Self::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => None,
            },
        };
        truth.ok_or_else(|| "must be true or false".to_owned())
    }

    /// A mapping of words to counts, or text as `word=count,word=count`.
    fn counts(&self, max: u64) -> Result<BTreeMap<String, usize>, String> {
        let problem = || format!("must map names to whole numbers from 0 to {max}");
        let pairs: Vec<(String, Option<u64>)> = match self {
            Self::Yaml(Value::Null) => Vec::new(),
            Self::Yaml(Value::Mapping(mapping)) => mapping
                .iter()
                .map(|(name, count)| Some((name.as_str()?.to_owned(), count.as_u64())))
                .collect::<Option<_>>()
                .ok_or_else(problem)?,
            Self::Yaml(_) => return Err(problem()),
            Self::Text(_) => self
                .list()?
                .iter()
                .map(|item| item.split_once('=').map(|(name, count)| (name.to_owned(), count.parse().ok())))
                .collect::<Option<_>>()
                .ok_or_else(problem)?,
        };
        pairs
            .into_iter()
            .map(|(name, count)| {
                let count = count.filter(|count| *count <= max).and_then(|count| usize::try_from(count).ok());
                Ok((name, count.ok_or_else(problem)?))
            })
            .collect()
    }

    /// A YAML list, or text separated by commas.
    fn list(&self) -> Result<Vec<String>, String> {
        match self {
            Self::Yaml(Value::Null) => Ok(Vec::new()),
            Self::Yaml(Value::Sequence(items)) => items
                .iter()
                .map(|item| {
                    item.as_str().map(str::to_owned).ok_or_else(|| "must be a list of words".to_owned())
                })
                .collect(),
            Self::Yaml(_) => Err("must be a list of words".to_owned()),
            Self::Text(text) => Ok(text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(str::to_owned)
                .collect()),
        }
    }
}

/// One key of the configuration.
struct Key {
    /// In the file.
    name: &'static str,
    /// In the environment, after the prefix.
    env: &'static str,
    /// Parses and stores.
    apply: fn(&mut Config, &Raw<'_>) -> Result<(), String>,
}

const API_KEY: &str = "api_key";

/// Every key there is.
const KEYS: &[Key] = &[
    Key {
        name: "listen",
        env: "LISTEN",
        apply: |config, raw| {
            config.listen = parse_listen(raw.text()?)?;
            Ok(())
        },
    },
    Key {
        name: API_KEY,
        env: "API_KEY",
        apply: |config, raw| {
            let key = raw.text()?;
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err("must be printable ASCII without blanks".to_owned());
            }
            config.api_key = (!key.is_empty()).then(|| ApiKey(key.to_owned()));
            Ok(())
        },
    },
    Key {
        name: "data_dir",
        env: "DATA_DIR",
        apply: |config, raw| {
            let path = PathBuf::from(raw.text()?);
            if !path.is_absolute() {
                return Err("must be an absolute path".to_owned());
            }
            config.data_dir = path;
            Ok(())
        },
    },
    Key {
        name: "default_image",
        env: "DEFAULT_IMAGE",
        apply: |config, raw| {
            config.default_image = parse_image(raw.text()?)?;
            Ok(())
        },
    },
    Key {
        name: "allowed_images",
        env: "ALLOWED_IMAGES",
        apply: |config, raw| {
            config.allowed_images =
                raw.list()?.iter().map(|name| parse_image(name)).collect::<Result<_, _>>()?;
            Ok(())
        },
    },
    Key {
        name: "session_ttl_seconds",
        env: "SESSION_TTL_SECONDS",
        apply: |config, raw| {
            let seconds = raw.number(TTL_SECONDS_MAX)?;
            if seconds == 0 {
                return Err(format!("must be from 1 to {TTL_SECONDS_MAX}"));
            }
            config.session_ttl = Duration::from_secs(seconds);
            Ok(())
        },
    },
    Key {
        name: "sandboxes_max",
        env: "SANDBOXES_MAX",
        apply: |config, raw| {
            let most = raw.number(SANDBOXES_MAX)?;
            config.sandboxes_max = usize::try_from(most).map_err(|_| "is too large".to_owned())?;
            Ok(())
        },
    },
    Key {
        name: "defaults.cpu_limit",
        env: "CPU_LIMIT",
        apply: |config, raw| {
            let cores = raw.decimal()?;
            config.resources.cpu_millis = if cores == 0.0 { 0 } else { Cores::new(cores)?.millis };
            Ok(())
        },
    },
    Key {
        name: "defaults.mem_limit_mb",
        env: "MEM_LIMIT_MB",
        apply: |config, raw| {
            config.resources.memory_bytes = mebibytes(raw)?;
            Ok(())
        },
    },
    Key {
        name: "defaults.pids_limit",
        env: "PIDS_LIMIT",
        apply: |config, raw| {
            config.resources.pids =
                u32::try_from(raw.number(1 << 22)?).map_err(|_| "is too large".to_owned())?;
            Ok(())
        },
    },
    Key {
        name: "defaults.disk_limit_mb",
        env: "DISK_LIMIT_MB",
        apply: |config, raw| {
            config.resources.disk_bytes = mebibytes(raw)?;
            Ok(())
        },
    },
    Key {
        name: "defaults.max_exec_timeout_ms",
        env: "MAX_EXEC_TIMEOUT_MS",
        apply: |config, raw| {
            let milliseconds = raw.number(EXEC_TIMEOUT_MS_MAX)?;
            if milliseconds == 0 {
                return Err(format!("must be from 1 to {EXEC_TIMEOUT_MS_MAX}"));
            }
            config.exec_timeout_max_ms = milliseconds;
            Ok(())
        },
    },
    Key {
        name: "defaults.readonly_rootfs",
        env: "READONLY_ROOTFS",
        apply: |config, raw| {
            config.readonly_root = raw.truth()?;
            Ok(())
        },
    },
    Key {
        name: "defaults.shell_prefer",
        env: "SHELL_PREFER",
        apply: |config, raw| {
            config.shell = match raw.text()? {
                "" | "bash" => ShellPreference::Bash,
                "sh" => ShellPreference::Sh,
                _ => return Err("must be bash or sh".to_owned()),
            };
            Ok(())
        },
    },
    Key {
        name: "defaults.security_profile",
        env: "SECURITY_PROFILE",
        apply: |config, raw| {
            config.security = match raw.text()? {
                "strict" => SecurityProfile::Strict,
                "container" => SecurityProfile::Container,
                _ => return Err("must be strict or container".to_owned()),
            };
            Ok(())
        },
    },
    Key {
        name: "security.seccomp",
        env: "SECCOMP",
        apply: |config, raw| {
            config.seccomp = match raw.text()? {
                "off" => Seccomp::Off,
                "mvp" => Seccomp::Mvp,
                "" | "strict" => Seccomp::Strict,
                _ => return Err("must be off, mvp or strict".to_owned()),
            };
            Ok(())
        },
    },
    Key {
        name: "defaults.exec_mode",
        env: "EXEC_MODE",
        apply: |config, raw| {
            config.exec_mode = match raw.text()? {
                "" | "stateful" => ExecMode::Stateful,
                "stateless" => ExecMode::Stateless,
                _ => return Err("must be stateful or stateless".to_owned()),
            };
            Ok(())
        },
    },
    Key {
        name: "defaults.network_mode",
        env: "NETWORK_MODE",
        apply: |config, raw| {
            config.network = match raw.text()? {
                "" | "none" => NetworkPolicy::None,
                "bridge" => NetworkPolicy::Bridge,
                "host" => NetworkPolicy::Host,
                _ => return Err("must be none, bridge or host".to_owned()),
            };
            Ok(())
        },
    },
    Key {
        name: "network.subnet",
        env: "NETWORK_SUBNET",
        apply: |config, raw| {
            config.net.subnet =
                raw.text()?.parse().map_err(|_| "must be an IPv4 network as ADDRESS/BITS".to_owned())?;
            Ok(())
        },
    },
    Key {
        name: "network.allow_private",
        env: "NETWORK_ALLOW_PRIVATE",
        apply: |config, raw| {
            let networks = raw.list()?;
            let parse = |text: &String| {
                text.parse().map_err(|_| format!("{text:?} must be a network as ADDRESS/BITS"))
            };
            config.net.allow_private = networks.iter().map(parse).collect::<Result<_, _>>()?;
            Ok(())
        },
    },
    Key {
        name: "network.resolvers",
        env: "NETWORK_RESOLVERS",
        apply: |config, raw| {
            let addresses = raw.list()?;
            let parse = |text: &String| text.parse().map_err(|_| format!("{text:?} must be an IP address"));
            config.net.resolvers = addresses.iter().map(parse).collect::<Result<_, _>>()?;
            Ok(())
        },
    },
    Key {
        name: "pool.enabled",
        env: "POOL_ENABLED",
        apply: |config, raw| {
            config.pool.enabled = raw.truth()?;
            Ok(())
        },
    },
    Key {
        name: "pool.images",
        env: "POOL_IMAGES",
        apply: |config, raw| {
            config.pool.images = raw
                .counts(POOL_PER_IMAGE_MAX)?
                .into_iter()
                .map(|(name, count)| Ok((parse_image(&name)?, count)))
                .collect::<Result<_, String>>()?;
            Ok(())
        },
    },
    Key {
        name: "workspace.enabled",
        env: "WORKSPACE_ENABLED",
        apply: |config, raw| {
            config.workspaces.enabled = raw.truth()?;
            Ok(())
        },
    },
    Key {
        name: "workspace.persist_by_default",
        env: "WORKSPACE_PERSIST_BY_DEFAULT",
        apply: |config, raw| {
            config.workspaces.persist_by_default = raw.truth()?;
            Ok(())
        },
    },
    Key {
        name: "workspace.quota_mb",
        env: "WORKSPACE_QUOTA_MB",
        apply: |config, raw| {
            config.workspaces.quota_bytes = mebibytes(raw)?;
            Ok(())
        },
    },
    Key {
        name: "dashboard.enabled",
        env: "DASHBOARD_ENABLED",
        apply: |config, raw| {
            config.dashboard = raw.truth()?;
            Ok(())
        },
    },
];

/// A number of MiB, or a size with its unit; zero is no limit.
fn mebibytes(raw: &Raw<'_>) -> Result<u64, String> {
    /// Most MiB: a limit that no file system or memory reaches.
    const MIB_MAX: u64 = 1 << 30;
    match raw.number(MIB_MAX) {
        Ok(number) => Ok(number << 20),
        Err(problem) => match raw.text() {
            Ok(text) if text.ends_with(|c: char| c.is_ascii_alphabetic()) => {
                Ok(text.parse::<Bytes>().map(|bytes| bytes.0)?)
            }
            _ => Err(problem),
        },
    }
}

fn parse_image(name: &str) -> Result<ImageName, String> {
    ImageName::parse(name).map_err(|error| error.to_string())
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
    if config.listen.ip().is_loopback() || config.api_key.is_some() {
        return Ok(());
    }
    Err(Advice::new(
        format!(
            "refusing to listen on {} without an API key: anyone who reaches it could run commands",
            config.listen
        ),
        "set api_key in the configuration or SANDHAUS_API_KEY in the environment, or listen on 127.0.0.1",
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(file: &str, environment: &[(&str, &str)]) -> Result<(Config, Vec<String>)> {
        combine(Some(("test.yaml", file)), |name| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn nothing_configured_gives_the_documented_figures() {
        let (config, warnings) = with("", &[]).unwrap();
        assert_eq!(config, Config::default());
        assert!(warnings.is_empty());
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.resources.cpu_millis, 1000);
        assert_eq!(config.resources.memory_bytes, 512 << 20);
        assert_eq!(config.resources.pids, 256);
        assert_eq!(config.session_ttl.as_secs(), 1800);
        assert_eq!(config.exec_timeout_max_ms, 120_000);
        assert!(config.readonly_root);
        assert_eq!(config.security, SecurityProfile::Strict);
    }

    #[test]
    fn every_key_is_read_from_the_file() {
        let (config, warnings) = with(
            "listen: '0.0.0.0:9000'\napi_key: secret\ndata_dir: /data\ndefault_image: python\n\
             allowed_images: [python, base]\nsession_ttl_seconds: 60\nsandboxes_max: 7\ndefaults:\n  cpu_limit: 0.5\n  \
             mem_limit_mb: 64\n  pids_limit: 32\n  disk_limit_mb: 128\n  max_exec_timeout_ms: 1000\n  \
             readonly_rootfs: false\n  shell_prefer: sh\n  security_profile: container\n  exec_mode: stateless\n  \
             network_mode: bridge\nsecurity: {seccomp: mvp}\nnetwork:\n  subnet: 10.9.0.0/16\n  \
             allow_private: [10.1.0.0/16]\n  resolvers: [10.1.0.1]\npool:\n  enabled: true\n  images: {python: 3}\n\
             workspace: {enabled: true, persist_by_default: true, quota_mb: 5}\ndashboard: {enabled: true}\n",
            &[],
        )
        .unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let name = |text: &str| ImageName::parse(text).unwrap();
        let wanted = Config {
            listen: "0.0.0.0:9000".parse().unwrap(),
            api_key: Some(ApiKey("secret".to_owned())),
            data_dir: "/data".into(),
            default_image: name("python"),
            allowed_images: vec![name("python"), name("base")],
            session_ttl: Duration::from_secs(60),
            sandboxes_max: 7,
            resources: Resources { cpu_millis: 500, memory_bytes: 64 << 20, pids: 32, disk_bytes: 128 << 20 },
            exec_timeout_max_ms: 1000,
            readonly_root: false,
            shell: ShellPreference::Sh,
            security: SecurityProfile::Container,
            seccomp: Seccomp::Mvp,
            exec_mode: ExecMode::Stateless,
            network: NetworkPolicy::Bridge,
            net: NetworkConfig {
                subnet: "10.9.0.0/16".parse().unwrap(),
                allow_private: vec!["10.1.0.0/16".parse().unwrap()],
                resolvers: vec!["10.1.0.1".parse().unwrap()],
            },
            pool: PoolConfig { enabled: true, images: BTreeMap::from([(name("python"), 3)]) },
            workspaces: WorkspaceConfig { enabled: true, persist_by_default: true, quota_bytes: 5 << 20 },
            dashboard: true,
        };
        assert_eq!(config, wanted);
    }

    #[test]
    fn every_key_is_read_from_the_environment_under_both_names() {
        let values = [
            ("LISTEN", "127.0.0.1:1"),
            ("API_KEY", "k"),
            ("DATA_DIR", "/d"),
            ("DEFAULT_IMAGE", "i"),
            ("ALLOWED_IMAGES", "i, j"),
            ("SESSION_TTL_SECONDS", "5"),
            ("SANDBOXES_MAX", "6"),
            ("CPU_LIMIT", "2"),
            ("MEM_LIMIT_MB", "8"),
            ("PIDS_LIMIT", "9"),
            ("DISK_LIMIT_MB", "10"),
            ("MAX_EXEC_TIMEOUT_MS", "11"),
            ("READONLY_ROOTFS", "false"),
            ("SHELL_PREFER", "sh"),
            ("SECURITY_PROFILE", "container"),
            ("SECCOMP", "off"),
            ("EXEC_MODE", "stateless"),
            ("NETWORK_MODE", "bridge"),
            ("NETWORK_SUBNET", "10.9.0.0/16"),
            ("NETWORK_ALLOW_PRIVATE", "10.1.0.0/16,10.2.0.0/16"),
            ("NETWORK_RESOLVERS", "10.1.0.1"),
            ("POOL_ENABLED", "true"),
            ("POOL_IMAGES", "python=2,base=1"),
            ("WORKSPACE_ENABLED", "true"),
            ("WORKSPACE_PERSIST_BY_DEFAULT", "true"),
            ("WORKSPACE_QUOTA_MB", "5"),
            ("DASHBOARD_ENABLED", "true"),
        ];
        assert_eq!(values.len(), KEYS.len(), "a key without a test");
        for prefix in ENV_PREFIXES {
            for (env, value) in values {
                let variable = format!("{prefix}{env}");
                let (config, _) = with("", &[(&variable, value)]).unwrap();
                assert_ne!(config, Config::default(), "{variable} has no effect");
            }
        }
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_new_name_over_the_old() {
        let environment = [("SANDKASTEN_SESSION_TTL_SECONDS", "20"), ("SANDHAUS_SESSION_TTL_SECONDS", "30")];
        let (config, _) = with("session_ttl_seconds: 10", &environment).unwrap();
        assert_eq!(config.session_ttl.as_secs(), 30);
        let (config, _) = with("session_ttl_seconds: 10", &environment[..1]).unwrap();
        assert_eq!(config.session_ttl.as_secs(), 20);
    }

    #[test]
    fn unknown_keys_are_named() {
        let (_, warnings) = with("listne: x\ndefaults:\n  cpu: 1\nzoo:\n  enabled: true\n", &[]).unwrap();
        assert_eq!(
            warnings,
            [
                "test.yaml: key defaults.cpu is not known and has no effect",
                "test.yaml: key listne is not known and has no effect",
                "test.yaml: key zoo is not known and has no effect",
            ]
        );
    }

    #[test]
    fn malformed_values_name_key_value_and_place() {
        let cases = [
            ("session_ttl_seconds: soon", "session_ttl_seconds in test.yaml cannot be soon: must be a whole"),
            ("session_ttl_seconds: -1", "session_ttl_seconds in test.yaml cannot be -1"),
            ("session_ttl_seconds: 0", "session_ttl_seconds in test.yaml cannot be 0"),
            ("listen: here", "listen in test.yaml cannot be here: must be an address"),
            ("defaults:\n  cpu_limit: -1", "defaults.cpu_limit in test.yaml cannot be -1"),
            ("defaults:\n  readonly_rootfs: maybe", "defaults.readonly_rootfs in test.yaml cannot be maybe"),
            ("defaults:\n  security_profile: off", "defaults.security_profile in test.yaml cannot be"),
            ("data_dir: here", "data_dir in test.yaml cannot be here: must be an absolute path"),
            ("allowed_images: 5", "allowed_images in test.yaml cannot be 5"),
            ("- a", "must be a list of `key: value` lines"),
            ("a: [", "is not valid YAML"),
        ];
        for (file, expected) in cases {
            let error = format!("{:#}", with(file, &[]).unwrap_err());
            assert!(error.contains(expected), "{file}: {error}");
        }
        let error = with("", &[("SANDHAUS_PIDS_LIMIT", "many")]).unwrap_err().to_string();
        assert!(
            error.contains("defaults.pids_limit in the environment (SANDHAUS_PIDS_LIMIT) cannot be \"many\"")
        );
    }

    #[test]
    fn the_key_is_never_shown() {
        let (config, _) = with("api_key: hunter2", &[]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        let error = with("api_key: [hunter2]", &[]).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        let error = with("", &[("SANDHAUS_API_KEY", "hunter 2")]).unwrap_err().to_string();
        assert!(!error.contains("hunter"), "{error}");
    }

    #[test]
    fn listening_beyond_loopback_needs_a_key() {
        let exposed = |listen: &str, key: Option<&str>| {
            let config = Config {
                listen: parse_listen(listen).unwrap(),
                api_key: key.map(|key| ApiKey(key.to_owned())),
                ..Config::default()
            };
            check_exposure(&config).is_err()
        };
        for loopback in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "localhost:80"] {
            assert!(!exposed(loopback, None), "{loopback}");
        }
        for open in ["0.0.0.0:80", ":80", "[::]:80", "192.0.2.1:80", "[::ffff:127.0.0.1]:80"] {
            assert!(exposed(open, None), "{open}");
            assert!(!exposed(open, Some("key")), "{open}");
        }
        for bad in ["", "80", "host:80", "127.0.0.1", "127.0.0.1:99999"] {
            assert!(parse_listen(bad).is_err(), "{bad}");
        }
    }
}
