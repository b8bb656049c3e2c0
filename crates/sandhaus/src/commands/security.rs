//! `sandhaus security`: an audit of the effective configuration. It changes nothing and tries nothing.

use std::{net::SocketAddr, os::unix::fs::MetadataExt, path::Path, process::ExitCode};

use anyhow::Result;
use sandhaus_sandbox::{NetworkPolicy, Seccomp, SecurityProfile};

use crate::{
    background,
    checks::{Check, Subject, report},
    cli::SecurityArguments,
    commands::doctor::check_data_dir,
    config::{ApiKey, Config, Loaded},
    output::human_bytes,
    spelling::CalledAs,
};

/// How the report closes.
const CONFIGURATION: Subject = Subject {
    name: "security",
    good: "The configuration is safe to serve",
    bad: "The configuration is not safe to serve",
    note: Some(
        "Only the configuration was looked at. What sandboxes stop, and what they do not: docs/security.md",
    ),
};

/// Fewest characters of a key that cannot be guessed.
const KEY_CHARACTERS_MIN: usize = 20;

/// Bits of a file's mode that let others do something with it.
const OTHERS: u32 = 0o077;

/// Looks at everything and prints it; status 1 if anything fails.
pub(crate) fn security(
    arguments: &SecurityArguments,
    loaded: &Loaded,
    called_as: CalledAs,
) -> Result<ExitCode> {
    let config = &loaded.config;
    let mut checks = vec![check_key(config), check_listen("listen", config.listen)];
    if config.runner.enabled {
        checks.push(check_listen("runner.listen", config.runner.listen));
    }
    checks.extend(loaded.file.as_deref().map(|file| check_file(file, config.api_key.as_ref())));
    checks.push(check_data_dir(&config.data_dir));
    checks.push(check_log(config));
    checks.extend([check_seccomp(config), check_profile(config), check_root(config)]);
    checks.extend(check_limits(config));
    checks.extend(check_networks(config));
    report(&checks, arguments.output, &CONFIGURATION, called_as)
}

fn check_key(config: &Config) -> Check {
    const NAME: &str = "api key";
    const REMEDY: &str = "set api_key; `sandhaus init` makes a configuration with a random one";
    match &config.api_key {
        None if config.listen.ip().is_loopback() => {
            Check::warn(NAME, "none: every program of this host may use the server", REMEDY)
        }
        None => Check::fail(NAME, "none, beyond loopback: the server refuses to start", REMEDY),
        Some(key) if key.reveal().len() < KEY_CHARACTERS_MIN => {
            let found = format!("set, but shorter than {KEY_CHARACTERS_MIN} characters");
            Check::warn(NAME, found, REMEDY)
        }
        Some(_) => Check::ok(NAME, "set"),
    }
}

fn check_listen(name: &str, listen: SocketAddr) -> Check {
    if listen.ip().is_loopback() {
        return Check::ok(name, format!("{listen}, this host only"));
    }
    Check::warn(
        name,
        format!("{listen}: other hosts reach it, and the key travels in clear text"),
        "listen on 127.0.0.1 behind a proxy that speaks TLS",
    )
}

fn check_file(file: &Path, key: Option<&ApiKey>) -> Check {
    const NAME: &str = "configuration";
    let shown = file.display();
    let metadata = match std::fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) => return Check::fail(NAME, format!("{shown}: {error}"), "name another with --config"),
    };
    let mode = metadata.mode() & 0o7777;
    let us = rustix::process::geteuid().as_raw();
    if ![0, us].contains(&metadata.uid()) {
        let found = format!("{shown} belongs to user {}", metadata.uid());
        return Check::fail(NAME, found, format!("chown {us} {shown}"));
    }
    if mode & 0o022 != 0 {
        let found = format!("{shown} can be written by others (mode {mode:04o})");
        return Check::fail(NAME, found, format!("chmod 600 {shown}"));
    }
    if mode & OTHERS != 0 && key.is_some() {
        let found = format!("{shown} can be read by others (mode {mode:04o}), and with it the key");
        return Check::fail(NAME, found, format!("chmod 600 {shown}"));
    }
    Check::ok(NAME, format!("{shown}, mode {mode:04o}"))
}

fn check_log(config: &Config) -> Check {
    const NAME: &str = "daemon log";
    let path = background::log_path(config);
    let shown = path.display();
    match std::fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.mode() & OTHERS == 0 => Check::ok(NAME, format!("{shown}, ours alone")),
        Ok(metadata) => {
            let found = format!("{shown} is open to others (mode {:04o})", metadata.mode() & 0o7777);
            Check::warn(NAME, found, format!("chmod 600 {shown}"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Check::ok(NAME, "none yet"),
        Err(error) => Check::warn(NAME, format!("{shown}: {error}"), "run as root"),
    }
}

fn check_seccomp(config: &Config) -> Check {
    const NAME: &str = "seccomp";
    const REMEDY: &str = "leave out security.seccomp, or set it to strict";
    match config.seccomp {
        Seccomp::Strict => Check::ok(NAME, "strict"),
        Seccomp::Mvp => Check::warn(NAME, "mvp: sandboxes may make namespaces of their own", REMEDY),
        Seccomp::Off => Check::fail(NAME, "off: every system call reaches the kernel", REMEDY),
    }
}

fn check_profile(config: &Config) -> Check {
    const NAME: &str = "profile";
    match config.security {
        SecurityProfile::Strict => Check::ok(NAME, "strict: an unprivileged user without capabilities"),
        SecurityProfile::Container => Check::warn(
            NAME,
            "container: commands are root of their sandbox",
            "set defaults.security_profile to strict unless commands must install packages",
        ),
    }
}

fn check_root(config: &Config) -> Check {
    const NAME: &str = "readonly rootfs";
    if config.readonly_root {
        return Check::ok(NAME, "yes");
    }
    Check::warn(
        NAME,
        "no: commands may change the system they run in",
        "set defaults.readonly_rootfs to true",
    )
}

/// Without a limit one sandbox can take the whole host.
fn check_limits(config: &Config) -> Vec<Check> {
    let resources = config.resources;
    let none = |name, key| Check::fail(name, "none", format!("set {key} above 0"));
    vec![
        match resources.pids {
            0 => none("pid limit", "defaults.pids_limit"),
            pids => Check::ok("pid limit", pids.to_string()),
        },
        match resources.memory_bytes {
            0 => none("memory limit", "defaults.mem_limit_mb"),
            bytes => Check::ok("memory limit", human_bytes(bytes)),
        },
        match resources.cpu_millis {
            0 => Check::warn("cpu limit", "none", "set defaults.cpu_limit above 0"),
            millis => Check::ok("cpu limit", format!("{} cores", f64::from(millis) / 1000.0)),
        },
        match resources.disk_bytes {
            0 => Check::warn(
                "disk limit",
                "none: a sandbox can fill the data directory's file system",
                "set defaults.disk_limit_mb above 0",
            ),
            bytes => Check::ok("disk limit", human_bytes(bytes)),
        },
    ]
}

fn check_networks(config: &Config) -> Vec<Check> {
    const NAME: &str = "network mode";
    const PRIVATE: &str = "private networks";
    let mode = match &config.network {
        NetworkPolicy::None => Check::ok(NAME, "none"),
        NetworkPolicy::Bridge => Check::warn(
            NAME,
            "bridge: sandboxes that do not say reach the internet",
            "set defaults.network_mode to none and let requests ask for more",
        ),
        NetworkPolicy::Allow(networks) => {
            Check::warn(NAME, format!("{} networks", networks.len()), "set defaults.network_mode to none")
        }
        NetworkPolicy::Host => Check::fail(
            NAME,
            "host: sandboxes reach everything that this host reaches, and its own services",
            "set defaults.network_mode to none or bridge",
        ),
    };
    let private = &config.net.allow_private;
    let private = if private.is_empty() {
        Check::ok(PRIVATE, "none")
    } else {
        let networks = private.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Check::warn(PRIVATE, networks, "leave out what sandboxes need not reach of network.allow_private")
    };
    vec![mode, private]
}
