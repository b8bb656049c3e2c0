//! `sandhaus doctor`: whether this host can run sandboxes, found out by trying.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use sandhaus_engines::{
    namespace::{CheckLevel, HostCheck, check_host},
    net::{NetworkCheck, check_guest_network, check_network},
    qemu::check_machines,
};
use sandhaus_sandbox::Instance;

use crate::{
    agent,
    checks::{Check, Level, Subject, report},
    cli::DoctorArguments,
    config::Config,
    domain,
    kvm::{self, Verdict},
    output::human_bytes,
    spelling::CalledAs,
};

/// Available memory below which it is a warning.
const MEMORY_WARN_BYTES: u64 = 512 << 20;

impl From<HostCheck> for Check {
    fn from(check: HostCheck) -> Self {
        let level = match check.level {
            CheckLevel::Ok => Level::Ok,
            CheckLevel::Warn => Level::Warn,
            CheckLevel::Fail => Level::Fail,
        };
        Self { name: check.name.to_owned(), level, found: check.found, remedy: check.remedy }
    }
}

/// Looks at everything and prints it; status 1 if anything fails.
pub(crate) async fn doctor(
    arguments: &DoctorArguments,
    config: &Config,
    called_as: CalledAs,
) -> Result<ExitCode> {
    let data_dir = check_data_dir(&config.data_dir);
    let mut checks = Vec::new();
    match Scratch::new(&config.data_dir) {
        Ok(scratch) => {
            checks.extend(check_host(scratch.path(), config.cgroup.as_deref()).into_iter().map(Check::from))
        }
        Err(error) => checks.push(Check::fail(
            "sandboxes",
            format!("no place to try in: {error}"),
            "run as root, or give a --data-dir that you own",
        )),
    }
    checks.push(check_networks(config));
    checks.push(data_dir);
    checks.push(check_agent());
    checks.push(check_memory());
    checks.push(check_port(config));
    checks.push(check_kvm());
    checks.push(check_virtual_machines(config).await);
    report(&checks, arguments.output, &HOST, called_as)
}

/// How the report on a host closes.
const HOST: Subject = Subject {
    name: "doctor",
    good: "This host can run sandboxes",
    bad: "This host cannot run sandboxes",
    note: None,
};

/// A directory for probes inside of the data directory, so that they meet its file system; else of the temporary one.
struct Scratch {
    path: PathBuf,
    /// The data directory, where this made it and nothing else has used it since.
    made: Option<PathBuf>,
}

impl Scratch {
    fn new(data_dir: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let made = if data_dir.exists() {
            None
        } else {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
            Some(data_dir.to_owned())
        };
        let path = data_dir.join(format!("doctor.{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path, made })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What a probe could not remove is not forced away: it may be mounted.
        let _ = std::fs::remove_dir(&self.path);
        if let Some(made) = &self.made {
            let _ = std::fs::remove_dir(made);
        }
    }
}

/// Name of the check of the data directory.
fn check_networks(config: &Config) -> Check {
    const NAME: &str = "network";
    let NetworkCheck { found, remedy } = check_network(&config.net);
    match remedy {
        None => Check::ok(NAME, found),
        Some(remedy) => Check::warn(NAME, found, remedy),
    }
}

const DATA_DIR_CHECK: &str = "data directory";

/// Whether the data directory is ours alone, and who holds it.
pub(crate) fn check_data_dir(dir: &Path) -> Check {
    let shown = dir.display();
    let metadata = match fs_err::metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Check::ok(DATA_DIR_CHECK, format!("{shown} will be made on first use"));
        }
        Err(error) => return Check::fail(DATA_DIR_CHECK, error.to_string(), "run as root"),
    };
    if !metadata.is_dir() {
        return Check::fail(
            DATA_DIR_CHECK,
            format!("{shown} is not a directory"),
            "choose another --data-dir",
        );
    }
    let owner = metadata.uid();
    let us = rustix::process::geteuid().as_raw();
    if owner != us {
        let found = format!("{shown} belongs to user {owner}, not to {us}");
        return Check::fail(DATA_DIR_CHECK, found, format!("chown {us} {shown}"));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let found = format!("{shown} is open to other users (mode {mode:04o})");
        return Check::warn(DATA_DIR_CHECK, found, format!("chmod 700 {shown}"));
    }
    match Instance::holder(dir) {
        Ok(Some(holder)) => Check::ok(DATA_DIR_CHECK, format!("{shown}, held by process {}", holder.pid)),
        Ok(None) => Check::ok(DATA_DIR_CHECK, format!("{shown}, free")),
        Err(error) => Check::fail(DATA_DIR_CHECK, error.to_string(), "run as root"),
    }
}

fn check_agent() -> Check {
    let size = human_bytes(agent::EXECUTABLE.len() as u64);
    Check::ok("agent", format!("carried by this binary, {size}"))
}

fn check_memory() -> Check {
    const NAME: &str = "memory";
    let available = fs_err::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    match available.map(|kibibytes| kibibytes << 10) {
        Some(bytes) if bytes < MEMORY_WARN_BYTES => Check::warn(
            NAME,
            format!("{} available", human_bytes(bytes)),
            "end other programs, or add memory",
        ),
        Some(bytes) => Check::ok(NAME, format!("{} available", human_bytes(bytes))),
        None => Check::warn(NAME, "/proc/meminfo does not tell", "mount /proc"),
    }
}

fn check_port(config: &Config) -> Check {
    const NAME: &str = "port";
    let listen = config.listen;
    match std::net::TcpListener::bind(listen) {
        Ok(_) => Check::ok(NAME, format!("{listen} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            match Instance::holder(&config.data_dir) {
                Ok(Some(holder)) if holder.url.as_deref() == Some(&crate::server::reachable_url(listen)) => {
                    Check::ok(NAME, format!("{listen} is our own server's"))
                }
                _ => Check::warn(
                    NAME,
                    format!("{listen} is taken by another program"),
                    "stop that program, or give `sandhaus serve` another --listen address",
                ),
            }
        }
        Err(error) => {
            Check::warn(NAME, format!("{listen} cannot be used: {error}"), "choose another listen address")
        }
    }
}

async fn check_virtual_machines(config: &Config) -> Check {
    const NAME: &str = "virtual machines";
    if !config.qemu.enabled {
        return Check::ok(NAME, "turned off by qemu.enabled");
    }
    match domain::find_qemu(config) {
        Some(binary) => match check_guest_network(&config.net) {
            Some(NetworkCheck { found, remedy: Some(remedy) }) => Check::warn(NAME, found, remedy),
            Some(_) | None => check_machines(&binary, domain::accelerator(config)).await.into(),
        },
        None => Check::warn(
            NAME,
            "there is no QEMU",
            "install qemu-system-x86 and qemu-utils; sandboxes of namespaces do not need them",
        ),
    }
}

fn check_kvm() -> Check {
    const NAME: &str = "kvm";
    match kvm::verdict() {
        Verdict::Works => Check::ok(NAME, "a test guest ran"),
        Verdict::Absent(why) => Check::warn(
            NAME,
            format!("{why}; virtual machines will use emulation, which is slow"),
            "turn on virtualisation in the firmware or the hypervisor; sandboxes of namespaces do not need it",
        ),
        Verdict::Broken(why) => Check::warn(
            NAME,
            format!("{why}; virtual machines will use emulation, which is slow"),
            "use a host with hardware virtualisation; sandboxes of namespaces do not need it",
        ),
    }
}
