//! The table of keys. Parsing, `config show`, the JSON schema, the guide's table and the hints for misspelt keys all
//! come from it; a further key is one more entry here and a field of [`Config`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sandhaus_gateway::{CookieTransport, ExecMode};
use sandhaus_protocol::boot::ShellPreference;
use sandhaus_sandbox::{NetworkPolicy, Seccomp, SecurityProfile, doors::RescueDoor};
use serde_json::{Value, json};

use super::{
    Acceleration, AgentUpgrade, ApiKey, Config, parse_listen,
    snapshots::{StoreSetting, parse_mode, parse_owner},
    value::Raw,
};
use crate::{domain, values::Cores};

/// Longest time to live in seconds that may be configured.
const TTL_SECONDS_MAX: u64 = 86_400;

/// Longest command time in milliseconds that may be configured.
const EXEC_TIMEOUT_MS_MAX: u64 = 600_000;

/// Most sandboxes kept ready of one image that may be configured.
const POOL_PER_IMAGE_MAX: u64 = 1000;

/// Most sandboxes that may be configured.
const SANDBOXES_MAX: u64 = 100_000;

/// Most processes of a sandbox: the kernel's own limit.
const PIDS_MAX: u64 = 1 << 22;

/// Most connections that the older tool's file may name.
const CONNECTIONS_MAX: u64 = 1 << 16;

/// Variables under our prefixes that are no keys.
pub(super) const OTHER_VARIABLES: &[&str] = &["CONFIG", "HOST", "LOG"];

/// How far a word may be from a known one and still count as a slip of the keyboard.
const SLIPS_MAX: usize = 2;

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// A secret: text that nothing shows.
    Secret,
    /// An address and a port.
    Listen,
    /// An absolute path.
    Path,
    /// An absolute path, or nothing.
    PathOrNothing,
    /// Text, and what it must be in words.
    Text(&'static str),
    /// One of these words; the first one is the default.
    Choice(&'static [&'static str]),
    /// A whole number.
    Number { least: u64, most: u64 },
    /// A number of processor cores; zero for no limit.
    Cores,
    /// A number of MiB or a size with its unit; zero for no limit.
    Mebibytes,
    /// True or false.
    Truth,
    /// Name of an image.
    Image,
    /// Names of images.
    Images,
    /// Hosts of registries, perhaps with a port.
    Registries,
    /// Names of images, each with a count.
    ImageCounts { most: u64 },
    /// An IPv4 network.
    Network,
    /// Networks.
    Networks,
    /// IP addresses.
    Addresses,
}

/// One key of the configuration.
pub(crate) struct Key {
    /// In the file; the part before a dot is a group.
    pub(crate) name: &'static str,
    /// In the environment, after the prefix.
    pub(crate) env: &'static str,
    /// What it decides, in one line.
    pub(crate) about: &'static str,
    /// What its value may be.
    pub(crate) kind: Kind,
    /// Why it is accepted but has no effect, for keys that only the older tool knows a meaning of.
    pub(crate) ignored: Option<&'static str>,
    apply: fn(&mut Config, &Raw<'_>) -> Result<(), String>,
    show: fn(&Config) -> Value,
}

impl Key {
    /// Parses a value and stores it.
    pub(super) fn set(&self, config: &mut Config, raw: &Raw<'_>) -> Result<(), String> {
        (self.apply)(config, raw)
    }

    /// The value in a configuration, in the form that the file takes; of a secret, whether it is set.
    pub(crate) fn shown(&self, config: &Config) -> Value {
        (self.show)(config)
    }

    /// Whether its value must not be shown.
    pub(crate) fn is_secret(&self) -> bool {
        self.kind == Kind::Secret
    }
}

/// The keys that have an effect, in the order of a file: those without a group first, since none can follow a group
/// without seeming to belong to it.
pub(crate) fn effective() -> impl Iterator<Item = &'static Key> {
    let of = |grouped: bool| {
        KEYS.iter().filter(move |key| key.ignored.is_none() && key.name.contains('.') == grouped)
    };
    of(false).chain(of(true))
}

/// The key of this name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether keys are grouped under this word.
pub(super) fn is_group(word: &str) -> bool {
    KEYS.iter().any(|key| key.name.split_once('.').is_some_and(|(group, _)| group == word))
}

/// The key that was probably meant by a name that is none.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    // Within its group first, then by its own name in another group, where it may have been put by mistake.
    let own = |key: &'static str| key.rsplit('.').next().unwrap_or(key);
    nearest_of(name, KEYS.iter().map(|key| (key.name, key.name)))
        .or_else(|| nearest_of(own_name(name), KEYS.iter().map(|key| (own(key.name), key.name))))
}

/// The variable, without its prefix, that was probably meant.
pub(super) fn nearest_variable(name: &str) -> Option<&'static str> {
    nearest_of(name, KEYS.iter().map(|key| (key.env, key.env)))
}

fn own_name(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn nearest_of(name: &str, known: impl Iterator<Item = (&'static str, &'static str)>) -> Option<&'static str> {
    known
        .map(|(word, meant)| (strsim::damerau_levenshtein(name, word), meant))
        // Of a short word two slips leave nothing.
        .filter(|(slips, _)| *slips <= SLIPS_MAX && slips * 2 < name.chars().count())
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, meant)| meant)
}

/// Bytes as the file takes them: a number of MiB where they are whole ones.
fn mebibytes(bytes: u64) -> Value {
    const MIB: u64 = 1 << 20;
    if bytes.is_multiple_of(MIB) { json!(bytes / MIB) } else { json!(format!("{bytes}b")) }
}

fn shown_all(items: impl IntoIterator<Item = impl ToString>) -> Value {
    items.into_iter().map(|item| Value::String(item.to_string())).collect()
}

/// Name of the key that holds the secret.
const API_KEY: &str = "api_key";

/// Every key there is.
pub(crate) const KEYS: &[Key] = &[
    Key {
        name: "listen",
        env: "LISTEN",
        about: "Address and port of the API. Beyond loopback only with `api_key`.",
        kind: Kind::Listen,
        ignored: None,
        apply: |config, raw| {
            config.listen = parse_listen(raw.words()?)?;
            Ok(())
        },
        show: |config| json!(config.listen.to_string()),
    },
    Key {
        name: API_KEY,
        env: "API_KEY",
        about: "Key that every request must show as `Authorization: Bearer KEY`. Empty: none.",
        kind: Kind::Secret,
        ignored: None,
        apply: |config, raw| {
            config.api_key = ApiKey::parse(raw.words()?)?;
            Ok(())
        },
        show: |config| json!(if config.api_key.is_some() { "set" } else { "unset" }),
    },
    Key {
        name: "data_dir",
        env: "DATA_DIR",
        about: "Directory of everything that is kept: images, disks, workspaces, the store.",
        kind: Kind::Path,
        ignored: None,
        apply: |config, raw| {
            let path = PathBuf::from(raw.words()?);
            if !path.is_absolute() {
                return Err("must be an absolute path".to_owned());
            }
            config.data_dir = path;
            Ok(())
        },
        show: |config| json!(config.data_dir.display().to_string()),
    },
    Key {
        name: "default_image",
        env: "DEFAULT_IMAGE",
        about: "Image of requests that name none; `base` stands for it too.",
        kind: Kind::Image,
        ignored: None,
        apply: |config, raw| {
            config.default_image = raw.image()?;
            Ok(())
        },
        show: |config| json!(config.default_image.as_str()),
    },
    Key {
        name: "default_engine",
        env: "DEFAULT_ENGINE",
        about: "What runs sandboxes whose request does not say: namespaces of this host, or virtual machines.",
        kind: Kind::Choice(&[domain::NAMESPACE, domain::QEMU]),
        ignored: None,
        apply: |config, raw| {
            config.default_engine = raw.choice()?.to_owned();
            Ok(())
        },
        show: |config| json!(config.default_engine),
    },
    Key {
        name: "allowed_images",
        env: "ALLOWED_IMAGES",
        about: "Images that requests may name. Empty: all.",
        kind: Kind::Images,
        ignored: None,
        apply: |config, raw| {
            config.allowed_images = raw.images()?;
            Ok(())
        },
        show: |config| shown_all(&config.allowed_images),
    },
    Key {
        name: "insecure_registries",
        env: "INSECURE_REGISTRIES",
        about: "Registries, HOST or HOST:PORT, that images may be pulled from without TLS. Those on this host always may.",
        kind: Kind::Registries,
        ignored: None,
        apply: |config, raw| {
            config.insecure_registries = raw.list()?;
            Ok(())
        },
        show: |config| shown_all(&config.insecure_registries),
    },
    Key {
        name: "session_ttl_seconds",
        env: "SESSION_TTL_SECONDS",
        about: "Time to live of sessions that ask for none; use extends it.",
        kind: Kind::Number { least: 1, most: TTL_SECONDS_MAX },
        ignored: None,
        apply: |config, raw| {
            config.session_ttl = Duration::from_secs(raw.number()?);
            Ok(())
        },
        show: |config| json!(config.session_ttl.as_secs()),
    },
    Key {
        name: "sandboxes_max",
        env: "SANDBOXES_MAX",
        about: "Most sandboxes at a time; further creates are refused.",
        kind: Kind::Number { least: 0, most: SANDBOXES_MAX },
        ignored: None,
        apply: |config, raw| {
            config.sandboxes_max = usize::try_from(raw.number()?).map_err(|_| "is too large".to_owned())?;
            Ok(())
        },
        show: |config| json!(config.sandboxes_max),
    },
    Key {
        name: "defaults.cpu_limit",
        env: "CPU_LIMIT",
        about: "Processor cores of a sandbox that asks for none. 0: no limit.",
        kind: Kind::Cores,
        ignored: None,
        apply: |config, raw| {
            let cores = raw.decimal()?;
            config.resources.cpu_millis = if cores == 0.0 { 0 } else { Cores::new(cores)?.millis };
            Ok(())
        },
        show: |config| json!(f64::from(config.resources.cpu_millis) / 1000.0),
    },
    Key {
        name: "defaults.mem_limit_mb",
        env: "MEM_LIMIT_MB",
        about: "Memory of a sandbox that asks for none. 0: no limit.",
        kind: Kind::Mebibytes,
        ignored: None,
        apply: |config, raw| {
            config.resources.memory_bytes = raw.mebibytes()?;
            Ok(())
        },
        show: |config| mebibytes(config.resources.memory_bytes),
    },
    Key {
        name: "defaults.pids_limit",
        env: "PIDS_LIMIT",
        about: "Processes and threads of a sandbox that asks for none. 0: no limit.",
        kind: Kind::Number { least: 0, most: PIDS_MAX },
        ignored: None,
        apply: |config, raw| {
            config.resources.pids = u32::try_from(raw.number()?).map_err(|_| "is too large".to_owned())?;
            Ok(())
        },
        show: |config| json!(config.resources.pids),
    },
    Key {
        name: "defaults.disk_limit_mb",
        env: "DISK_LIMIT_MB",
        about: "Size of the writable layer of a sandbox that asks for none. 0: no limit.",
        kind: Kind::Mebibytes,
        ignored: None,
        apply: |config, raw| {
            config.resources.disk_bytes = raw.mebibytes()?;
            Ok(())
        },
        show: |config| mebibytes(config.resources.disk_bytes),
    },
    Key {
        name: "defaults.max_exec_timeout_ms",
        env: "MAX_EXEC_TIMEOUT_MS",
        about: "Longest time of a command, and the time of one that asks for none.",
        kind: Kind::Number { least: 1, most: EXEC_TIMEOUT_MS_MAX },
        ignored: None,
        apply: |config, raw| {
            config.exec_timeout_max_ms = raw.number()?;
            Ok(())
        },
        show: |config| json!(config.exec_timeout_max_ms),
    },
    Key {
        name: "defaults.network_mode",
        env: "NETWORK_MODE",
        about: "What sandboxes that do not say may reach: nothing but themselves, the internet through NAT, or the \
                host's own network without isolation.",
        kind: Kind::Choice(&["none", "bridge", "host"]),
        ignored: None,
        apply: |config, raw| {
            config.network = match raw.choice()? {
                "bridge" => NetworkPolicy::Bridge,
                "host" => NetworkPolicy::Host,
                _ => NetworkPolicy::None,
            };
            Ok(())
        },
        show: |config| match &config.network {
            NetworkPolicy::None => json!("none"),
            NetworkPolicy::Bridge => json!("bridge"),
            NetworkPolicy::Allow(networks) => shown_all(networks),
            NetworkPolicy::Host => json!("host"),
        },
    },
    Key {
        name: "defaults.readonly_rootfs",
        env: "READONLY_ROOTFS",
        about: "Whether the root file system of sessions is read-only; `/workspace`, `/tmp` and the home stay writable.",
        kind: Kind::Truth,
        ignored: None,
        apply: |config, raw| {
            config.readonly_root = raw.truth()?;
            Ok(())
        },
        show: |config| json!(config.readonly_root),
    },
    Key {
        name: "defaults.exec_mode",
        env: "EXEC_MODE",
        about: "Whether the commands of a session share one shell, or each gets a fresh one.",
        kind: Kind::Choice(&["stateful", "stateless"]),
        ignored: None,
        apply: |config, raw| {
            config.exec_mode = match raw.choice()? {
                "stateless" => ExecMode::Stateless,
                _ => ExecMode::Stateful,
            };
            Ok(())
        },
        show: |config| match config.exec_mode {
            ExecMode::Stateful => json!("stateful"),
            ExecMode::Stateless => json!("stateless"),
        },
    },
    Key {
        name: "defaults.shell_prefer",
        env: "SHELL_PREFER",
        about: "Shell of sessions, where the image has it.",
        kind: Kind::Choice(&["bash", "sh"]),
        ignored: None,
        apply: |config, raw| {
            config.shell = match raw.choice()? {
                "sh" => ShellPreference::Sh,
                _ => ShellPreference::Bash,
            };
            Ok(())
        },
        show: |config| match config.shell {
            ShellPreference::Bash => json!("bash"),
            ShellPreference::Sh => json!("sh"),
        },
    },
    Key {
        name: "defaults.security_profile",
        env: "SECURITY_PROFILE",
        about: "Who commands are: an unprivileged user without capabilities, or root of the sandbox with a \
                container's usual ones.",
        kind: Kind::Choice(&["strict", "container"]),
        ignored: None,
        apply: |config, raw| {
            config.security = match raw.choice()? {
                "container" => SecurityProfile::Container,
                _ => SecurityProfile::Strict,
            };
            Ok(())
        },
        show: |config| match config.security {
            SecurityProfile::Strict => json!("strict"),
            SecurityProfile::Container => json!("container"),
        },
    },
    Key {
        name: "security.seccomp",
        env: "SECCOMP",
        about: "Filter of system calls: `mvp` refuses what reaches the kernel itself, `strict` also namespaces and \
                other rarely needed calls.",
        kind: Kind::Choice(&["strict", "mvp", "off"]),
        ignored: None,
        apply: |config, raw| {
            config.seccomp = match raw.choice()? {
                "off" => Seccomp::Off,
                "mvp" => Seccomp::Mvp,
                _ => Seccomp::Strict,
            };
            Ok(())
        },
        show: |config| match config.seccomp {
            Seccomp::Off => json!("off"),
            Seccomp::Mvp => json!("mvp"),
            Seccomp::Strict => json!("strict"),
        },
    },
    Key {
        name: "network.subnet",
        env: "NETWORK_SUBNET",
        about: "Private network from which bridged sandboxes get their addresses.",
        kind: Kind::Network,
        ignored: None,
        apply: |config, raw| {
            config.net.subnet =
                raw.words()?.parse().map_err(|_| "must be an IPv4 network as ADDRESS/BITS".to_owned())?;
            Ok(())
        },
        show: |config| json!(config.net.subnet.to_string()),
    },
    Key {
        name: "network.allow_private",
        env: "NETWORK_ALLOW_PRIVATE",
        about: "Private networks that bridged sandboxes may reach besides the internet.",
        kind: Kind::Networks,
        ignored: None,
        apply: |config, raw| {
            config.net.allow_private = raw.list_of("a network as ADDRESS/BITS")?;
            Ok(())
        },
        show: |config| shown_all(&config.net.allow_private),
    },
    Key {
        name: "network.resolvers",
        env: "NETWORK_RESOLVERS",
        about: "Name servers of bridged sandboxes. Empty: the host's own, where sandboxes can reach them.",
        kind: Kind::Addresses,
        ignored: None,
        apply: |config, raw| {
            config.net.resolvers = raw.list_of("an IP address")?;
            Ok(())
        },
        show: |config| shown_all(&config.net.resolvers),
    },
    Key {
        name: "pool.enabled",
        env: "POOL_ENABLED",
        about: "Whether sandboxes are kept ready, so that a create takes one of them.",
        kind: Kind::Truth,
        ignored: None,
        apply: |config, raw| {
            config.pool.enabled = raw.truth()?;
            Ok(())
        },
        show: |config| json!(config.pool.enabled),
    },
    Key {
        name: "pool.images",
        env: "POOL_IMAGES",
        about: "How many are kept ready of each image, as a mapping of names to counts.",
        kind: Kind::ImageCounts { most: POOL_PER_IMAGE_MAX },
        ignored: None,
        apply: |config, raw| {
            config.pool.images = raw.image_counts()?;
            Ok(())
        },
        show: |config| {
            config.pool.images.iter().map(|(name, count)| (name.to_string(), json!(count))).collect()
        },
    },
    Key {
        name: "workspace.enabled",
        env: "WORKSPACE_ENABLED",
        about: "Whether there are workspaces: directories that outlive sessions and can be shared by them.",
        kind: Kind::Truth,
        ignored: None,
        apply: |config, raw| {
            config.workspaces.enabled = raw.truth()?;
            Ok(())
        },
        show: |config| json!(config.workspaces.enabled),
    },
    Key {
        name: "workspace.persist_by_default",
        env: "WORKSPACE_PERSIST_BY_DEFAULT",
        about: "Whether a session that names no workspace gets one of its own that outlives it.",
        kind: Kind::Truth,
        ignored: None,
        apply: |config, raw| {
            config.workspaces.persist_by_default = raw.truth()?;
            Ok(())
        },
        show: |config| json!(config.workspaces.persist_by_default),
    },
    Key {
        name: "workspace.quota_mb",
        env: "WORKSPACE_QUOTA_MB",
        about: "Size of each workspace. 0: no limit.",
        kind: Kind::Mebibytes,
        ignored: None,
        apply: |config, raw| {
            config.workspaces.quota_bytes = raw.mebibytes()?;
            Ok(())
        },
        show: |config| mebibytes(config.workspaces.quota_bytes),
    },
    Key {
        name: "dashboard.enabled",
        env: "DASHBOARD_ENABLED",
        about: "Whether the web page is served at `/`.",
        kind: Kind::Truth,
        ignored: None,
        apply: |config, raw| {
            config.dashboard = raw.truth()?;
            Ok(())
        },
        show: |config| json!(config.dashboard),
    },
    Key {
        name: "dashboard.secure_cookie",
        env: "DASHBOARD_SECURE_COOKIE",
        about: "Send the web page's login cookie over TLS only: for a server behind a proxy that speaks TLS.",
        kind: Kind::Truth,
        ignored: None,
        apply: |config, raw| {
            config.dashboard_cookie =
                if raw.truth()? { CookieTransport::Secure } else { CookieTransport::Any };
            Ok(())
        },
        show: |config| json!(config.dashboard_cookie == CookieTransport::Secure),
    },
    Key {
        name: "cgroup",
        env: "CGROUP",
        about: "Cgroup (version 2) beneath which sandboxes get theirs. Empty: the one delegated to the server, else the top.",
        kind: Kind::PathOrNothing,
        ignored: None,
        apply: |config, raw| {
            let text = raw.words()?;
            if !text.is_empty() && !text.starts_with('/') {
                return Err("must be an absolute path within the cgroup hierarchy".to_owned());
            }
            config.cgroup = (!text.is_empty()).then(|| PathBuf::from(text));
            Ok(())
        },
        show: |config| json!(config.cgroup.as_deref().unwrap_or(Path::new(""))),
    },
    Key {
        name: "runner.enabled",
        env: "RUNNER_ENABLED",
        about: "Whether the API of a runner is served, for control planes, on a listener of its own; it wants the same `api_key`.",
        kind: Kind::Truth,
        ignored: None,
        apply: |config, raw| {
            config.runner.enabled = raw.truth()?;
            Ok(())
        },
        show: |config| json!(config.runner.enabled),
    },
    Key {
        name: "runner.listen",
        env: "RUNNER_LISTEN",
        about: "Address and port of the runner's API. Beyond loopback only with `api_key`.",
        kind: Kind::Listen,
        ignored: None,
        apply: |config, raw| {
            config.runner.listen = parse_listen(raw.words()?)?;
            Ok(())
        },
        show: |config| json!(config.runner.listen.to_string()),
    },
    Key {
        name: "qemu.enabled",
        env: "QEMU_ENABLED",
        about: "Whether there are virtual machines, on a host that has QEMU.",
        kind: Kind::Truth,
        ignored: None,
        apply: |config, raw| {
            config.qemu.enabled = raw.truth()?;
            Ok(())
        },
        show: |config| json!(config.qemu.enabled),
    },
    Key {
        name: "qemu.binary",
        env: "QEMU_BINARY",
        about: "The QEMU that runs virtual machines. Empty: qemu-system-x86_64, wherever the server's PATH finds it.",
        kind: Kind::PathOrNothing,
        ignored: None,
        apply: |config, raw| {
            let text = raw.words()?;
            if !text.is_empty() && !text.starts_with('/') {
                return Err("must be an absolute path".to_owned());
            }
            config.qemu.binary = (!text.is_empty()).then(|| PathBuf::from(text));
            Ok(())
        },
        show: |config| json!(config.qemu.binary.as_deref().unwrap_or(Path::new(""))),
    },
    Key {
        name: "qemu.accelerator",
        env: "QEMU_ACCELERATOR",
        about: "Who runs virtual machines: the processor (`kvm`), QEMU by itself, slowly (`tcg`), or the processor where a test guest runs and QEMU elsewhere (`auto`).",
        kind: Kind::Choice(&["auto", "kvm", "tcg"]),
        ignored: None,
        apply: |config, raw| {
            config.qemu.accelerator = Acceleration::of(raw.choice()?);
            Ok(())
        },
        show: |config| json!(config.qemu.accelerator.word()),
    },
    Key {
        name: "agent.upgrade",
        env: "AGENT_UPGRADE",
        about: "Whether an older agent in a sandbox that runs or is restored is replaced by this server's own (`auto`), with everything that it has started, or stays (`never`).",
        kind: Kind::Choice(&["auto", "never"]),
        ignored: None,
        apply: |config, raw| {
            config.agent.upgrade = match raw.choice()? {
                "never" => AgentUpgrade::Never,
                _ => AgentUpgrade::Auto,
            };
            Ok(())
        },
        show: |config| match config.agent.upgrade {
            AgentUpgrade::Auto => json!("auto"),
            AgentUpgrade::Never => json!("never"),
        },
    },
    Key {
        name: "agent.rescue",
        env: "AGENT_RESCUE",
        about: "Whether sandboxes have a rescue door (`on`): SSH on port 2222, served by another process than the agent and with a secret of its own, for when the agent hangs.",
        kind: Kind::Choice(&["off", "on"]),
        ignored: None,
        apply: |config, raw| {
            config.agent.rescue = match raw.choice()? {
                "on" => RescueDoor::Open,
                _ => RescueDoor::Closed,
            };
            Ok(())
        },
        show: |config| match config.agent.rescue {
            RescueDoor::Open => json!("on"),
            RescueDoor::Closed => json!("off"),
        },
    },
    Key {
        name: "agent.executable",
        env: "AGENT_EXECUTABLE",
        about: "The agent that sandboxes get, for whoever works on it. Empty: the one that this program carries.",
        kind: Kind::PathOrNothing,
        ignored: None,
        apply: |config, raw| {
            let text = raw.words()?;
            if !text.is_empty() && !text.starts_with('/') {
                return Err("must be an absolute path".to_owned());
            }
            config.agent.executable = (!text.is_empty()).then(|| PathBuf::from(text));
            Ok(())
        },
        show: |config| json!(config.agent.executable.as_deref().unwrap_or(Path::new(""))),
    },
    Key {
        name: "snapshots.store",
        env: "SNAPSHOTS_STORE",
        about: "Where snapshots are pushed to and pulled from. Empty: a bucket, if AWS_ENDPOINT_URL is set; of S3, AWS_DEFAULT_BUCKET or else daytona is the bucket that none names.",
        kind: Kind::Text("`s3://BUCKET[/PREFIX]`, absolute path, `off`"),
        ignored: None,
        apply: |config, raw| {
            config.snapshots.store = StoreSetting::parse(raw.words()?)?;
            Ok(())
        },
        show: |config| json!(config.snapshots.store.shown()),
    },
    Key {
        name: "snapshots.endpoint",
        env: "SNAPSHOTS_ENDPOINT",
        about: "Address of the S3-compatible service. Empty: AWS_ENDPOINT_URL, else Amazon's own.",
        kind: Kind::Text("`https://HOST[:PORT]`"),
        ignored: None,
        apply: |config, raw| {
            config.snapshots.endpoint = raw.endpoint()?;
            Ok(())
        },
        show: |config| json!(config.snapshots.endpoint.as_deref().unwrap_or_default()),
    },
    Key {
        name: "snapshots.region",
        env: "SNAPSHOTS_REGION",
        about: "Region of the bucket. Empty: AWS_REGION, AWS_DEFAULT_REGION, else us-east-1.",
        kind: Kind::Text("region name"),
        ignored: None,
        apply: |config, raw| {
            config.snapshots.region = raw.region()?;
            Ok(())
        },
        show: |config| json!(config.snapshots.region.as_deref().unwrap_or_default()),
    },
    Key {
        name: "snapshots.access_key_id",
        env: "SNAPSHOTS_ACCESS_KEY_ID",
        about: "Key to the bucket. With neither of the two set: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.",
        kind: Kind::Secret,
        ignored: None,
        apply: |config, raw| {
            config.snapshots.access_key_id = ApiKey::parse(raw.words()?)?;
            Ok(())
        },
        show: |config| json!(config.snapshots.access_key_id.is_some()),
    },
    Key {
        name: "snapshots.secret_access_key",
        env: "SNAPSHOTS_SECRET_ACCESS_KEY",
        about: "Goes with it.",
        kind: Kind::Secret,
        ignored: None,
        apply: |config, raw| {
            config.snapshots.secret_access_key = ApiKey::parse(raw.words()?)?;
            Ok(())
        },
        show: |config| json!(config.snapshots.secret_access_key.is_some()),
    },
    Key {
        name: "snapshots.plain_http",
        env: "SNAPSHOTS_PLAIN_HTTP",
        about: "Speak to the service without TLS if its address begins with http://. On this host that is always possible; elsewhere others could read snapshots on their way.",
        kind: Kind::Truth,
        ignored: None,
        apply: |config, raw| {
            config.snapshots.plain_http = raw.truth()?;
            Ok(())
        },
        show: |config| json!(config.snapshots.plain_http),
    },
    Key {
        name: "snapshots.owner",
        env: "SNAPSHOTS_OWNER",
        about: "Who owns the files of snapshots that are pulled. Empty: the server's user.",
        kind: Kind::Text("`USER[:GROUP]`, names or numbers"),
        ignored: None,
        apply: |config, raw| {
            config.snapshots.owner = parse_owner(raw.words()?)?;
            Ok(())
        },
        show: |config| json!(config.snapshots.owner.as_deref().unwrap_or_default()),
    },
    Key {
        name: "snapshots.mode",
        env: "SNAPSHOTS_MODE",
        about: "Permissions of files of snapshots that are pulled. Empty: as they were where they were pushed.",
        kind: Kind::Text("octal digits in quotes such as `\"0640\"`"),
        ignored: None,
        apply: |config, raw| {
            config.snapshots.mode = parse_mode(raw.words()?)?;
            Ok(())
        },
        show: |config| json!(config.snapshots.mode.map_or(String::new(), |mode| format!("{mode:04o}"))),
    },
    Key {
        name: "db_path",
        env: "DB_PATH",
        about: "Accepted from configurations of the older tool.",
        kind: Kind::Path,
        ignored: Some("the store lies in data_dir, under the same lock as the sandboxes it knows"),
        apply: |_, raw| raw.words().map(drop),
        show: |_| Value::Null,
    },
    Key {
        name: "db_max_open_conns",
        env: "DB_MAX_OPEN_CONNS",
        about: "Accepted from configurations of the older tool.",
        kind: Kind::Number { least: 0, most: CONNECTIONS_MAX },
        ignored: Some("the store has one writer and keeps what it needs in memory"),
        apply: |_, raw| raw.number().map(drop),
        show: |_| Value::Null,
    },
    Key {
        name: "playground_config_path",
        env: "PLAYGROUND_CONFIG_PATH",
        about: "Accepted from configurations of the older tool.",
        kind: Kind::Path,
        ignored: Some("the web page needs no file of its own"),
        apply: |_, raw| raw.words().map(drop),
        show: |_| Value::Null,
    },
];
