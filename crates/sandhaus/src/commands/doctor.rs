//! `sandhaus doctor`: whether this host can run sandboxes, found out by trying.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use owo_colors::{OwoColorize, Stream};
use sandhaus_engines::namespace::{CheckLevel, HostCheck, check_host};
use sandhaus_sandbox::Instance;
use serde::Serialize;

use crate::{
    cli::{DoctorArguments, Output},
    config::Config,
    kvm::{self, Verdict},
    output::{human_bytes, print, print_json, visible},
};

/// Available memory below which it is a warning.
const MEMORY_WARN_BYTES: u64 = 512 << 20;

/// What was looked at, and how it stands.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    level: &'static str,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

const OK: &str = "ok";
const WARN: &str = "warn";
const FAIL: &str = "fail";

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: OK, found: found.into(), remedy: None }
    }

    fn warn(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: WARN, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn fail(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: FAIL, found: found.into(), remedy: Some(remedy.into()) }
    }
}

impl From<HostCheck> for Check {
    fn from(check: HostCheck) -> Self {
        let level = match check.level {
            CheckLevel::Ok => OK,
            CheckLevel::Warn => WARN,
            CheckLevel::Fail => FAIL,
        };
        Self { name: check.name.to_owned(), level, found: check.found, remedy: check.remedy }
    }
}

/// Looks at everything and prints it; status 1 if anything fails.
pub(crate) async fn doctor(arguments: &DoctorArguments, config: &Config) -> Result<ExitCode> {
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
    checks.push(data_dir);
    checks.push(check_memory());
    checks.push(check_port(config));
    checks.push(check_kvm());
    match arguments.output {
        Output::Json => print_json(&checks)?,
        Output::Table => print(&render(&checks))?,
    }
    let failed = checks.iter().any(|check| check.level == FAIL);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn render(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let level = match check.level {
            OK => "ok  ".if_supports_color(Stream::Stdout, |text| text.green()).to_string(),
            WARN => "warn".if_supports_color(Stream::Stdout, |text| text.yellow()).to_string(),
            _ => "fail".if_supports_color(Stream::Stdout, |text| text.red()).to_string(),
        };
        text.push_str(&format!("{level}  {:width$}  {}\n", check.name, visible(&check.found)));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("      {:width$}  → {}\n", "", visible(remedy)));
        }
    }
    let count = |level| checks.iter().filter(|check| check.level == level).count();
    text.push_str(&match (count(FAIL), count(WARN)) {
        (0, 0) => "\nThis host can run sandboxes.\n".to_owned(),
        (0, warnings) => format!("\nThis host can run sandboxes; warnings: {warnings}.\n"),
        (failures, _) => format!("\nThis host cannot run sandboxes; failures: {failures}.\n"),
    });
    text
}

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

const DATA_DIR_CHECK: &str = "data directory";

fn check_data_dir(dir: &Path) -> Check {
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

fn check_kvm() -> Check {
    const NAME: &str = "kvm";
    match kvm::probe() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_align_and_the_end_sums_up() {
        let checks = [
            Check::ok("kernel", "6.18"),
            Check::warn("disk space", "1 GiB free", "free space"),
            Check::fail("seccomp", "missing\u{1b}[2J", "another kernel"),
        ];
        insta::assert_snapshot!(render(&checks), @r"
        ok    kernel      6.18
        warn  disk space  1 GiB free
                          → free space
        fail  seccomp     missing\u{1b}[2J
                          → another kernel

        This host cannot run sandboxes; failures: 1.
        ");
    }
}
