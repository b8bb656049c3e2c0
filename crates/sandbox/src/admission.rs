//! What is refused, and why: requests are checked whole before anything is written, and what an engine cannot do is
//! refused by name.

use std::{
    path::{Component, Path},
    time::Duration,
};

use crate::{
    engine::{Capabilities, Change, DiskSnapshot},
    error::{Error, Kind, Result},
    handle::{Handle, gone, not_running},
    images::Resolved,
    publish::HOST_PORT_MIN,
    service::{CreateSandbox, Defaults, Shared, snapshots::ForkSandbox},
    snapshot::{CaptureMode, Snapshot, SnapshotKind},
    types::*,
};

/// The row a request leads to, but for its id.
pub(crate) async fn admit(shared: &Shared, request: CreateSandbox) -> Result<Sandbox> {
    let defaults = &shared.config.defaults;
    let engine_name = request.engine.clone().unwrap_or_else(|| defaults.engine.clone());
    let capabilities = check(shared, &engine_name, &request)?;
    let resources = resources(&request.resources, defaults, capabilities)?;
    let deadlines = deadlines(request.ttl.or(defaults.ttl), shared.clock.now_ms())?;
    let (name, image) = image(shared, request.image).await?;
    check_image_user(&name, &image, request.security)?;
    let id = SandboxId::random();
    let workspace = shared.workspaces.admit(request.workspace, &id, capabilities)?;
    let spec = SandboxSpec {
        source: Source::Image { name, digest: image.digest },
        engine: engine_name,
        os: GuestOs::Linux,
        resources,
        network: request.network.unwrap_or_else(|| defaults.network.clone()),
        security: request.security,
        readonly_root: request.readonly_root,
        env: request.env,
        workdir: request.workdir,
        mounts: request.mounts,
        entrypoint: request.entrypoint,
        shell: request.shell,
        warm_shell: request.warm_shell,
        seccomp: request.seccomp,
        workspace,
        publish: request.publish,
    };
    let whose = Whose { name: request.name, owner: request.owner, labels: request.labels };
    Ok(row(id, whose, spec, deadlines, shared.clock.now_ms()))
}

/// The same for one that begins where a snapshot left off. How it is confined is the snapshot's to say; what showed it
/// parts of the host, a workspace or ports stays with the snapshot's sandbox and is asked for anew.
pub(crate) fn admit_from(shared: &Shared, request: CreateSandbox, snapshot: &Snapshot) -> Result<Sandbox> {
    let (defaults, before) = (&shared.config.defaults, &snapshot.spec);
    if request.image.is_some() {
        return Err(invalid("a request names an image or a snapshot, not both"));
    }
    if let Some(asked) = request.engine.as_ref().filter(|asked| **asked != snapshot.engine) {
        let (named, engine) = (shown(snapshot), &snapshot.engine.0);
        return Err(invalid(format!("{named} is of engine {engine:?}, not of {:?}", asked.0)));
    }
    if let Some((image, _)) = snapshot.image.as_ref().filter(|(image, _)| *image != defaults.image) {
        check_allowed(image, defaults)?;
    }
    let capabilities = check(shared, &snapshot.engine, &request)?;
    let resources = resources_from(&request.resources, snapshot)?;
    let deadlines = deadlines(request.ttl.or(defaults.ttl), shared.clock.now_ms())?;
    let id = SandboxId::random();
    let workspace = match request.workspace {
        Some(workspace) => shared.workspaces.admit(Some(workspace), &id, capabilities)?,
        // It has what the snapshot's had of its own.
        None => None,
    };
    let network = request.network.unwrap_or_else(|| match &before.network {
        // The server's owner gives that, as long as the server is configured so.
        NetworkPolicy::Host => defaults.network.clone(),
        network => network.clone(),
    });
    let (asked, entrypoint) = (request.entrypoint, before.entrypoint.clone());
    let spec = SandboxSpec {
        source: snapshot.source(),
        engine: snapshot.engine.clone(),
        resources,
        network,
        env: merged(&before.env, request.env)?,
        workdir: request.workdir.or_else(|| before.workdir.clone()),
        mounts: request.mounts,
        entrypoint: if asked.is_empty() { entrypoint } else { asked },
        workspace,
        publish: request.publish,
        ..before.clone()
    };
    let whose = Whose { name: request.name, owner: request.owner, labels: request.labels };
    Ok(row(id, whose, spec, deadlines, shared.clock.now_ms()))
}

/// The same for a copy of a sandbox, but for where its root comes from: that is not made yet.
pub(crate) fn admit_fork(shared: &Shared, original: &Sandbox, request: ForkSandbox) -> Result<Sandbox> {
    check_name(request.name.as_deref())?;
    check_labels(&request.labels)?;
    check_env(&request.env)?;
    let env = merged(&original.spec.env, request.env)?;
    // A port of the host leads into one sandbox.
    let spec = SandboxSpec { env, publish: Vec::new(), ..original.spec.clone() };
    let now_ms = shared.clock.now_ms();
    let deadlines = deadlines(Some(Duration::from_millis(original.deadlines.ttl_ms)), now_ms)?;
    let whose = Whose { name: request.name, owner: request.owner, labels: request.labels };
    Ok(row(SandboxId::random(), whose, spec, deadlines, now_ms))
}

/// Whether an engine can capture so.
pub(crate) fn admit_capture(
    capabilities: &Capabilities,
    kind: SnapshotKind,
    mode: CaptureMode,
) -> Result<()> {
    let refuse = |message| Err(Error::new(Kind::Unsupported, message));
    match (kind, mode) {
        (SnapshotKind::Machine, _) if !capabilities.memory_snapshot => {
            refuse("a snapshot with memory is not supported by this sandbox's engine: take one of its disk")
        }
        (SnapshotKind::Machine, CaptureMode::Live) => {
            Err(invalid("a snapshot with memory freezes its sandbox: it cannot be live"))
        }
        (SnapshotKind::Machine, CaptureMode::Frozen) => Ok(()),
        (SnapshotKind::Disk, _) if capabilities.disk_snapshot == DiskSnapshot::None => {
            refuse("a snapshot is not supported by this sandbox's engine")
        }
        (SnapshotKind::Disk, CaptureMode::Live) if capabilities.disk_snapshot != DiskSnapshot::Live => {
            refuse(
                "a live snapshot is not supported by this sandbox's engine: take one that freezes it for a moment",
            )
        }
        (SnapshotKind::Disk, _) => Ok(()),
    }
}

/// Checks all of a request that needs no looking up.
fn check<'a>(shared: &'a Shared, name: &EngineName, request: &CreateSandbox) -> Result<&'a Capabilities> {
    let engine = shared.engines.get(name).ok_or_else(|| no_engine(name))?;
    let capabilities = engine.capabilities();
    check_name(request.name.as_deref())?;
    check_labels(&request.labels)?;
    check_env(&request.env)?;
    check_entrypoint(&request.entrypoint)?;
    if let Some(workdir) = &request.workdir {
        check_inner_path("workdir", workdir)?;
    }
    check_mounts(&request.mounts)?;
    check_publish(&request.publish)?;
    check_networks(request.network.as_ref())?;
    check_capabilities(name, capabilities, request)?;
    Ok(capabilities)
}

/// What of a row is its owner's alone.
struct Whose {
    name: Option<String>,
    owner: OwnerId,
    labels: Labels,
}

fn row(id: SandboxId, whose: Whose, spec: SandboxSpec, deadlines: Deadlines, now_ms: i64) -> Sandbox {
    Sandbox {
        id,
        name: whose.name,
        owner: whose.owner,
        spec,
        goal: Goal::Running,
        generation: Generation::default(),
        holdings: Holdings::default(),
        life: Life::New,
        deadlines,
        labels: whose.labels,
        failure: None,
        created_at_ms: now_ms,
        tenancy: Tenancy::Own,
    }
}

fn merged(before: &Env, asked: Env) -> Result<Env> {
    let mut env = before.clone();
    env.extend(asked);
    check_env(&env)?;
    Ok(env)
}

fn shown(snapshot: &Snapshot) -> String {
    snapshot.name.as_ref().map_or_else(|| "the snapshot".to_owned(), |name| format!("snapshot {name}"))
}

/// The limits of the snapshot's sandbox, but for what is asked for. A memory image fits the machine it was taken of only.
fn resources_from(asked: &Resources, snapshot: &Snapshot) -> Result<Resources> {
    let before = &snapshot.spec.resources;
    if snapshot.kind == SnapshotKind::Machine {
        let pinned = [
            ("memory", asked.memory_bytes, before.memory_bytes),
            ("processors", u64::from(asked.cpu_millis), u64::from(before.cpu_millis)),
            ("disk", asked.disk_bytes, before.disk_bytes),
        ];
        let other = pinned.iter().find(|(_, asked, before)| *asked != 0 && asked != before);
        if let Some((what, asked, before)) = other {
            return Err(invalid(format!(
                "{} has the memory of its machine: {what} cannot be {asked} instead of {before}; leave it out, or \
                 take a snapshot of the disk alone",
                shown(snapshot)
            )));
        }
    }
    let or = |asked: u64, before: u64| if asked == 0 { before } else { asked };
    let or_short = |asked: u32, before: u32| if asked == 0 { before } else { asked };
    let resources = Resources {
        cpu_millis: or_short(asked.cpu_millis, before.cpu_millis),
        memory_bytes: or(asked.memory_bytes, before.memory_bytes),
        pids: or_short(asked.pids, before.pids),
        disk_bytes: or(asked.disk_bytes, before.disk_bytes),
    };
    check_resources(&resources)?;
    Ok(resources)
}

/// Whether another goal can be asked for now.
pub(crate) fn admit_goal(handle: &Handle, goal: Goal) -> Result<()> {
    let capabilities = handle.engine.capabilities();
    let phase = handle.phase();
    if matches!(phase, Phase::Deleting | Phase::Deleted) && goal != Goal::Absent {
        return Err(gone(&handle.id));
    }
    let needs_machine = || match phase {
        Phase::Running | Phase::Paused | Phase::Starting => Ok(()),
        Phase::Suspended if goal == Goal::Suspended => Ok(()),
        _ => Err(not_running(&handle.id)),
    };
    match goal {
        Goal::Running | Goal::Stopped | Goal::Absent => Ok(()),
        Goal::Paused if capabilities.freeze => needs_machine(),
        Goal::Paused => Err(unsupported("pausing")),
        Goal::Suspended if capabilities.memory_snapshot => needs_machine(),
        Goal::Suspended => Err(unsupported("suspending to disk")),
        Goal::Archived => {
            Err(Error::new(Kind::Unsupported, "archiving is not supported: no snapshot store is configured"))
        }
    }
}

/// Whether limits or network can be changed now.
pub(crate) fn admit_change(handle: &Handle, change: &Change) -> Result<()> {
    let capabilities = handle.engine.capabilities();
    if matches!(handle.phase(), Phase::Deleting | Phase::Deleted) {
        return Err(gone(&handle.id));
    }
    match change {
        Change::Resources(_) if !capabilities.resize => Err(unsupported("changing limits")),
        Change::Resources(resources) => check_resources(resources),
        Change::Network(policy) => {
            check_networks(Some(policy))?;
            let allowed = match policy {
                NetworkPolicy::None => true,
                NetworkPolicy::Bridge | NetworkPolicy::Allow(_) => capabilities.bridge,
                NetworkPolicy::Host => capabilities.host_network,
            };
            if allowed { Ok(()) } else { Err(unsupported("this network policy")) }
        }
    }
}

pub(crate) fn no_engine(name: &EngineName) -> Error {
    Error::new(Kind::Unsupported, format!("there is no engine {:?} on this server", name.0))
}

fn unsupported(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{what} is not supported by this sandbox's engine"))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, message)
}

fn check_name(name: Option<&str>) -> Result<()> {
    let Some(name) = name else { return Ok(()) };
    let shape = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(shape) {
        return Err(invalid(format!(
            "name must be 1 to {NAME_BYTES_MAX} letters, digits, dots, hyphens and underscores"
        )));
    }
    Ok(())
}

fn check_labels(labels: &Labels) -> Result<()> {
    if labels.len() > LABELS_MAX {
        return Err(invalid(format!("there are {} labels, the most is {LABELS_MAX}", labels.len())));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() > LABEL_KEY_BYTES_MAX || key.contains(char::is_control) {
            return Err(invalid(format!(
                "a label's key must be 1 to {LABEL_KEY_BYTES_MAX} bytes of plain text"
            )));
        }
        if value.len() > LABEL_VALUE_BYTES_MAX || value.contains(char::is_control) {
            return Err(invalid(format!(
                "the value of label {key:?} must be at most {LABEL_VALUE_BYTES_MAX} bytes of plain text"
            )));
        }
    }
    Ok(())
}

fn check_env(env: &Env) -> Result<()> {
    if env.len() > ENV_MAX {
        return Err(invalid(format!("there are {} environment variables, the most is {ENV_MAX}", env.len())));
    }
    let mut total = 0;
    for (name, value) in env {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        if !first || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(invalid(format!("environment variable name {name:?} is not valid")));
        }
        if value.contains('\0') {
            return Err(invalid(format!("environment variable {name} contains a zero byte")));
        }
        let bytes = name.len() + value.len();
        if bytes > ENV_BYTES_MAX {
            return Err(invalid(format!("environment variable {name} is over {ENV_BYTES_MAX} bytes")));
        }
        total += bytes;
    }
    if total > ENV_TOTAL_BYTES_MAX {
        return Err(invalid(format!("the environment has {total} bytes, the most is {ENV_TOTAL_BYTES_MAX}")));
    }
    Ok(())
}

fn check_entrypoint(words: &[String]) -> Result<()> {
    if words.len() > ENTRYPOINT_WORDS_MAX {
        return Err(invalid(format!(
            "the entrypoint has {} words, the most is {ENTRYPOINT_WORDS_MAX}",
            words.len()
        )));
    }
    let bytes: usize = words.iter().map(String::len).sum();
    if bytes > ENTRYPOINT_BYTES_MAX {
        return Err(invalid(format!("the entrypoint has {bytes} bytes, the most is {ENTRYPOINT_BYTES_MAX}")));
    }
    if words.first().is_some_and(String::is_empty) || words.iter().any(|word| word.contains('\0')) {
        return Err(invalid("the entrypoint needs a program, and no word of it may contain a zero byte"));
    }
    Ok(())
}

fn check_inner_path(what: &str, path: &str) -> Result<()> {
    let parts_are_plain =
        Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.starts_with('/') || path.len() > PATH_BYTES_MAX || path.contains('\0') || !parts_are_plain {
        return Err(invalid(format!("{what} {path:?} must be an absolute path without `..`")));
    }
    Ok(())
}

fn check_mounts(mounts: &[Mount]) -> Result<()> {
    if mounts.len() > MOUNTS_MAX {
        return Err(invalid(format!("there are {} mounts, the most is {MOUNTS_MAX}", mounts.len())));
    }
    for (index, mount) in mounts.iter().enumerate() {
        if !mount.source.is_absolute() {
            return Err(invalid(format!("mount source {} must be an absolute path", mount.source.display())));
        }
        check_inner_path("mount target", &mount.target)?;
        let target = mount.target.trim_end_matches('/');
        if target.is_empty() {
            return Err(invalid("a mount cannot replace the root"));
        }
        if mounts[..index].iter().any(|other| other.target.trim_end_matches('/') == target) {
            return Err(invalid(format!("mount target {target} is named twice")));
        }
    }
    Ok(())
}

fn check_publish(ports: &[PublishedPort]) -> Result<()> {
    if ports.len() > PUBLISHED_PORTS_MAX {
        return Err(invalid(format!(
            "there are {} published ports, the most is {PUBLISHED_PORTS_MAX}",
            ports.len()
        )));
    }
    for (index, port) in ports.iter().enumerate() {
        if port.port == 0 {
            return Err(invalid("a published port must be 1 to 65535"));
        }
        if port.host_port == 0 {
            continue;
        }
        if port.host_port < HOST_PORT_MIN {
            return Err(invalid(format!(
                "port {} of the host cannot be published on: use 0 for any that is free, or {HOST_PORT_MIN} or above",
                port.host_port
            )));
        }
        if ports[..index].iter().any(|other| other.host_port == port.host_port) {
            return Err(invalid(format!("port {} of the host is named twice", port.host_port)));
        }
    }
    Ok(())
}

/// Which networks can be reached is the engine's to say.
fn check_networks(policy: Option<&NetworkPolicy>) -> Result<()> {
    match policy {
        Some(NetworkPolicy::Allow(networks)) if networks.len() > ALLOWED_NETWORKS_MAX => Err(invalid(
            format!("the allow list has {} networks, the most is {ALLOWED_NETWORKS_MAX}", networks.len()),
        )),
        _ => Ok(()),
    }
}

fn check_capabilities(name: &EngineName, capabilities: &Capabilities, request: &CreateSandbox) -> Result<()> {
    let refuse = |what: &str| {
        Err(Error::new(
            Kind::Unsupported,
            format!("{what} is not supported by engine {:?} on this host", name.0),
        ))
    };
    if !capabilities.guest_os.contains(&GuestOs::Linux) {
        return refuse("a Linux guest");
    }
    if !request.mounts.is_empty() && !capabilities.mounts {
        return refuse("showing host directories inside");
    }
    let allowed = match request.network.as_ref() {
        None | Some(NetworkPolicy::None) => true,
        Some(NetworkPolicy::Bridge | NetworkPolicy::Allow(_)) => capabilities.bridge,
        Some(NetworkPolicy::Host) => capabilities.host_network,
    };
    if !allowed {
        return refuse("this network policy");
    }
    if request.seccomp != Seccomp::default() && !capabilities.seccomp {
        return refuse("choosing the system call filter");
    }
    if request.resources.disk_bytes > 0 && capabilities.disk_limit.is_none() {
        return refuse("a disk limit");
    }
    Ok(())
}

fn resources(asked: &Resources, defaults: &Defaults, capabilities: &Capabilities) -> Result<Resources> {
    let or = |asked: u64, default: u64| if asked == 0 { default } else { asked };
    let or_short = |asked: u32, default: u32| if asked == 0 { default } else { asked };
    // A default is a wish of the server's owner for hosts that can; what a request asks for is checked by name.
    let disk_default = if capabilities.disk_limit.is_some() { defaults.resources.disk_bytes } else { 0 };
    let resources = Resources {
        cpu_millis: or_short(asked.cpu_millis, defaults.resources.cpu_millis),
        memory_bytes: or(asked.memory_bytes, defaults.resources.memory_bytes),
        pids: or_short(asked.pids, defaults.resources.pids),
        disk_bytes: or(asked.disk_bytes, disk_default),
    };
    check_resources(&resources)?;
    Ok(resources)
}

fn check_resources(resources: &Resources) -> Result<()> {
    if (1..MEMORY_BYTES_MIN).contains(&resources.memory_bytes) {
        return Err(invalid(format!("a memory limit must be at least {MEMORY_BYTES_MIN} bytes")));
    }
    if (1..PIDS_MIN).contains(&resources.pids) {
        return Err(invalid(format!("a limit of processes must be at least {PIDS_MIN}")));
    }
    Ok(())
}

fn deadlines(ttl: Option<Duration>, now_ms: i64) -> Result<Deadlines> {
    let ttl = ttl.unwrap_or_default();
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    if ttl_ms > TTL_MS_MAX {
        return Err(invalid("the time to live is too long; zero means for ever"));
    }
    let expires_at_ms = (ttl_ms > 0).then(|| now_ms.saturating_add_unsigned(ttl_ms));
    Ok(Deadlines { ttl_ms, expires_at_ms })
}

fn image_name(asked: Option<ImageName>, defaults: &Defaults) -> Result<ImageName> {
    let Some(name) = asked else { return Ok(defaults.image.clone()) };
    check_allowed(&name, defaults)?;
    Ok(name)
}

fn check_allowed(name: &ImageName, defaults: &Defaults) -> Result<()> {
    let allowed = &defaults.allowed_images;
    if !allowed.is_empty() && !allowed.contains(name) {
        return Err(Error::new(Kind::Forbidden, format!("image not allowed: {name}")));
    }
    Ok(())
}

/// The image that is meant: an image of the name, else, where the name is an alias, the default one.
async fn image(shared: &Shared, asked: Option<ImageName>) -> Result<(ImageName, Resolved)> {
    let defaults = &shared.config.defaults;
    let name = image_name(asked, defaults)?;
    match shared.images.resolve(&name).await {
        Err(error) if error.kind() == Kind::NotFound && defaults.image_aliases.contains(&name) => {
            let name = defaults.image.clone();
            let image = shared.images.resolve(&name).await?;
            Ok((name, image))
        }
        outcome => Ok((name, outcome?)),
    }
}

/// Under `container` commands run as whom the image says, so it has to be somebody. Under `strict` they are always the
/// workload's user.
fn check_image_user(name: &ImageName, image: &Resolved, security: SecurityProfile) -> Result<()> {
    let config = &image.tree.config;
    match (&config.user, &config.account, security) {
        (Some(user), None, SecurityProfile::Container) => Err(invalid(format!(
            "image {name} runs as user {user:?}, which its /etc/passwd and /etc/group do not have"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(result: Result<()>) -> String {
        let error = result.expect_err("refused");
        assert_eq!(error.kind(), Kind::Invalid);
        error.message().to_owned()
    }

    #[test]
    fn names_and_labels() {
        assert!(check_name(None).is_ok());
        assert!(check_name(Some("web-1.prod_2")).is_ok());
        for name in ["", "a b", "é", &"x".repeat(NAME_BYTES_MAX + 1), "a/b", "a\n"] {
            assert!(refused(check_name(Some(name))).contains("name must be"));
        }
        let labels = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
        assert!(check_labels(&labels("team", "ünïcode is fine")).is_ok());
        assert!(refused(check_labels(&labels("", "x"))).contains("key"));
        assert!(refused(check_labels(&labels("a", "x\u{1b}[2J"))).contains("\"a\""));
        assert!(
            refused(check_labels(&labels("a", &"x".repeat(LABEL_VALUE_BYTES_MAX + 1)))).contains("at most")
        );
        let many = (0..=LABELS_MAX).map(|index| (index.to_string(), String::new())).collect();
        assert!(refused(check_labels(&many)).contains("the most is"));
    }

    #[test]
    fn environments() {
        let env = |name: &str, value: &str| Env::from([(name.to_owned(), value.to_owned())]);
        assert!(check_env(&env("_A1", "any\ntext")).is_ok());
        for name in ["", "1A", "A-B", "A=B", "A B", "Ä"] {
            assert!(refused(check_env(&env(name, ""))).contains("not valid"));
        }
        assert!(refused(check_env(&env("A", "a\0b"))).contains("zero byte"));
        assert!(refused(check_env(&env("A", &"x".repeat(ENV_BYTES_MAX)))).contains("is over"));
        let many: Env = (0..5).map(|index| (format!("A{index}"), "x".repeat(ENV_BYTES_MAX - 2))).collect();
        assert!(refused(check_env(&many)).contains("the environment has"));
        let many: Env = (0..=ENV_MAX).map(|index| (format!("A{index}"), String::new())).collect();
        assert!(refused(check_env(&many)).contains("the most is"));
    }

    #[test]
    fn entry_points_and_paths() {
        assert!(check_entrypoint(&[]).is_ok());
        assert!(check_entrypoint(&["sh".into(), String::new()]).is_ok());
        refused(check_entrypoint(&[String::new()]));
        refused(check_entrypoint(&["a\0".into()]));
        refused(check_entrypoint(&vec!["a".into(); ENTRYPOINT_WORDS_MAX + 1]));
        refused(check_entrypoint(&["x".repeat(ENTRYPOINT_BYTES_MAX + 1)]));
        assert!(check_inner_path("workdir", "/a/b").is_ok());
        for path in ["", "a", "/a/../b", "/a\0", &format!("/{}", "x".repeat(PATH_BYTES_MAX))] {
            assert!(refused(check_inner_path("workdir", path)).starts_with("workdir"));
        }
    }

    #[test]
    fn published_ports() {
        let port = |port: u16, host_port: u16| PublishedPort { port, host_port };
        assert!(check_publish(&[port(80, 0), port(80, 0), port(80, 1024), port(81, 65535)]).is_ok());
        assert!(refused(check_publish(&[port(0, 0)])).contains("1 to 65535"));
        assert!(refused(check_publish(&[port(80, 80)])).contains("port 80"));
        assert!(refused(check_publish(&[port(80, 8080), port(81, 8080)])).contains("twice"));
        refused(check_publish(&[port(80, 0); PUBLISHED_PORTS_MAX + 1]));
    }

    #[test]
    fn mounts() {
        let mount = |source: &str, target: &str| Mount {
            source: source.into(),
            target: target.into(),
            access: Access::ReadOnly,
        };
        assert!(check_mounts(&[mount("/a", "/x"), mount("/a", "/y")]).is_ok());
        assert!(refused(check_mounts(&[mount("a", "/x")])).contains("absolute"));
        assert!(refused(check_mounts(&[mount("/a", "/")])).contains("root"));
        assert!(refused(check_mounts(&[mount("/a", "/x"), mount("/b", "/x/")])).contains("twice"));
        refused(check_mounts(&vec![mount("/a", "/x"); MOUNTS_MAX + 1]));
    }
}
