//! `sandhaus run`: a command in a fresh sandbox, which is gone afterwards.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context, Result};
use sandhaus_client::wire::{CreateSession, SessionInfo};
use sandhaus_images::ImageName;
use sandhaus_protocol::process::Spawn;
use sandhaus_sandbox::{
    EngineName, Env, Kind, Mount, OwnerId, Resources, Sandbox, SecurityProfile, Service, Source,
    service::CreateSandbox, toolbox::Toolbox,
};

use crate::{
    advice::{Advice, print_error, print_warning},
    attach::{Ending, Input, attach},
    cli::{RunArguments, SandboxOptions, Security},
    commands::exec::{report_start_failure, spawn_request},
    config::Config,
    interrupt::Signals,
    output::human_bytes,
    private::PrivateInstance,
    progress::Progress,
    server::{Server, explain},
    values::{MountPoint, NetworkChoice},
};

/// Who owns sandboxes made on the local command line.
const LOCAL_OWNER: &str = "local";

/// Label of sandboxes that `run` made; `logs` shows the command's output for them.
pub(crate) const ORIGIN_LABEL: &str = "sandhaus.origin";
pub(crate) const ORIGIN_RUN: &str = "run";

/// Time to live of a sandbox on a server. It is used, and so kept alive, as long as the command runs; should this
/// process be killed, the server removes it soon.
const SERVER_TTL_SECONDS: i64 = 300;

/// How often a sandbox on a server is used at least.
const KEEPALIVE_PERIOD: std::time::Duration = std::time::Duration::from_secs(60);

/// Status of a command that the memory limit may have ended.
const STATUS_KILLED: i32 = 137;

/// Answer status of a server that cannot do it now.
const STATUS_UNAVAILABLE: u16 = 503;

/// What the wire counts memory and disks in.
const MIB: u64 = 1 << 20;

/// Runs the command.
pub(crate) async fn run(arguments: &RunArguments, config: &Config, quiet: Quiet) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let begun = match choose_server(arguments, config)? {
        Some(server) => begin(arguments, &server, quiet).await?.map(|session| (server, session)),
        None => None,
    };
    let status = match begun {
        Some((server, session)) => on_server(arguments, &server, session, &mut signals, quiet).await?,
        None => privately(arguments, config, &mut signals, quiet).await?,
    };
    Ok(ExitCode::from(status))
}

/// Whether only results and errors are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quiet {
    /// Only those.
    Yes,
    /// Also progress and notes.
    No,
}

/// The server to run on, if there is one and the flags allow it.
fn choose_server(arguments: &RunArguments, config: &Config) -> Result<Option<Server>> {
    let named = arguments.server.host.is_some();
    let mounts = !arguments.volumes.is_empty();
    if mounts && arguments.keep {
        return Err(Advice::new(
            "--volume and --keep do not go together: only a sandbox of this process alone can show host files, \
             and such a sandbox ends with this process",
            "leave out one of them, or copy the files with `sandhaus cp`",
        )
        .into());
    }
    if mounts && named {
        return Err(Advice::new(
            "a server shows no host files inside its sandboxes",
            "leave out --host (and SANDHAUS_HOST) to run without a server, or copy the files with `sandhaus cp`",
        )
        .into());
    }
    let server = if mounts { None } else { Server::find_running(&arguments.server, config)? };
    if arguments.keep && server.is_none() {
        return Err(Advice::new(
            "--keep needs a server: without one the sandbox ends with this process",
            "start one with `sandhaus serve` and run this again",
        )
        .into());
    }
    Ok(server)
}

/// A sandbox on a server. `None` from one that nobody named and that is on its way down: nothing was made on it, and
/// what needs no server goes on without.
async fn begin(arguments: &RunArguments, server: &Server, quiet: Quiet) -> Result<Option<SessionInfo>> {
    let request = session_request(arguments)?;
    let _progress = Progress::after_a_second("starting sandbox", quiet);
    match server.client().create(&request).await {
        Err(error) if is_ending(&error) && arguments.server.host.is_none() && !arguments.keep => {
            tracing::debug!(%error, "the server is ending; running without it");
            Ok(None)
        }
        created => created.map(Some).map_err(explain),
    }
}

/// A server that does not listen any more, or says that it takes no more sandboxes.
fn is_ending(error: &sandhaus_client::Error) -> bool {
    matches!(error, sandhaus_client::Error::Connect { .. }) || error.status() == Some(STATUS_UNAVAILABLE)
}

/// Runs on a server, by its public interface only.
async fn on_server(
    arguments: &RunArguments,
    server: &Server,
    session: SessionInfo,
    signals: &mut Signals,
    quiet: Quiet,
) -> Result<u8> {
    if arguments.keep && quiet == Quiet::No {
        crate::advice::print_note(&format!("sandbox {}", session.id));
    }
    let ending = attached_to_server(arguments, server, &session, signals, quiet).await;
    let keep = arguments.keep && matches!(ending, Ok(Ending::Exited(_)));
    let removed = if keep { Ok(()) } else { server.client().delete(&session.id).await.map_err(explain) };
    finish(ending, removed.with_context(|| format!("remove sandbox {}", session.id)))
}

async fn attached_to_server(
    arguments: &RunArguments,
    server: &Server,
    session: &SessionInfo,
    signals: &mut Signals,
    quiet: Quiet,
) -> Result<Ending> {
    let command = match arguments.command.as_slice() {
        [] if session.snapshot.is_some() => return Err(nothing_to_run("a snapshot")),
        [] => {
            let image = server.client().image(&session.image).await.map_err(explain)?;
            image_command(&session.image, image.entrypoint, image.cmd)?
        }
        given => given.to_vec(),
    };
    note_ports(session.ports.iter().map(|port| (port.port, port.host_port)), quiet);
    let toolbox = server.toolbox(&session.id);
    let input = Input::choose(arguments.interactive, arguments.tty);
    let spawn = spawn(arguments, &command, input)?;
    let keepalive = tokio::spawn(keep_alive(server.clone(), session.id.clone()));
    let ending = attach(&toolbox, &spawn, input, signals).await;
    keepalive.abort();
    let ending = ending?;
    if let Ending::Exited(exit) = &ending
        && exit.exit_code == STATUS_KILLED
        && quiet == Quiet::No
        && let Ok(stats) = server.client().stats(&session.id).await
    {
        note_memory_limit(stats.oom_kills, stats.memory_limit);
    }
    report_start_failure(&command, &ending);
    Ok(ending)
}

/// What runs in an image when nothing is named: its entry point with its command.
fn image_command(image: &str, entrypoint: Vec<String>, cmd: Vec<String>) -> Result<Vec<String>> {
    let command: Vec<String> = entrypoint.into_iter().chain(cmd).collect();
    if command.is_empty() {
        return Err(nothing_to_run(&format!("image {image}")));
    }
    Ok(command)
}

fn nothing_to_run(what: &str) -> anyhow::Error {
    Advice::new(
        format!("{what} says nothing about what to run"),
        "name a command: `sandhaus run … -- COMMAND`",
    )
    .into()
}

/// Uses a sandbox from time to time, so that its time to live does not run out under a long command.
async fn keep_alive(server: Server, sandbox: String) {
    let toolbox = server.toolbox(&sandbox);
    loop {
        tokio::time::sleep(KEEPALIVE_PERIOD).await;
        if let Err(error) = crate::toolbox::touch(&toolbox).await {
            tracing::debug!(%error, "sandbox was not kept alive");
        }
    }
}

/// Runs in an instance of this process alone.
async fn privately(
    arguments: &RunArguments,
    config: &Config,
    signals: &mut Signals,
    quiet: Quiet,
) -> Result<u8> {
    let request = sandbox_request(arguments, config)?;
    let progress = Progress::after_a_second("starting sandbox", quiet);
    crate::process::reset_file_mask();
    let instance = PrivateInstance::open(config, arguments.sandbox.snapshot.as_ref()).await?;
    let created = tokio::select! {
        created = instance.service().create(request) => Ok(created),
        // Dropping the wait is harmless: closing the instance removes what was on its way.
        signal = signals.end() => Err(Ending::Interrupted(signal)),
    };
    drop(progress);
    let ending = match created {
        Ok(Ok(view)) => attached(arguments, instance.service(), &view.sandbox, signals, quiet).await,
        Ok(Err(error)) => Err(refused(error)),
        Err(interrupted) => Ok(interrupted),
    };
    let closed = instance.close().await;
    finish(ending, closed)
}

async fn attached(
    arguments: &RunArguments,
    service: &Service,
    sandbox: &Sandbox,
    signals: &mut Signals,
    quiet: Quiet,
) -> Result<Ending> {
    let id = &sandbox.id;
    let command = match (arguments.command.as_slice(), &sandbox.spec.source) {
        ([], Source::Image { name, .. }) => {
            let config = service.image(name.clone()).await?.config;
            image_command(name.as_str(), config.entrypoint, config.cmd)?
        }
        ([], Source::Snapshot { .. }) => return Err(nothing_to_run("a snapshot")),
        (given, _) => given.to_vec(),
    };
    note_ports(sandbox.spec.publish.iter().map(|port| (port.port, port.host_port)), quiet);
    let toolbox: Toolbox = service.toolbox(id).await?;
    let input = Input::choose(arguments.interactive, arguments.tty);
    let spawn = spawn(arguments, &command, input)?;
    let ending = attach(&toolbox, &spawn, input, signals).await?;
    if let Ending::Exited(exit) = &ending
        && exit.exit_code == STATUS_KILLED
        && quiet == Quiet::No
        && let Ok(stats) = service.stats(id).await
    {
        note_memory_limit(stats.oom_kills, stats.memory_limit_bytes);
    }
    report_start_failure(&command, &ending);
    Ok(ending)
}

/// Why a sandbox could not be made, with what to do about it.
fn refused(error: sandhaus_sandbox::Error) -> anyhow::Error {
    match error.kind() {
        Kind::Internal | Kind::Unsupported => {
            Advice::new("the sandbox could not be started", "`sandhaus doctor` checks what this host lacks")
                .with_source(error)
                .into()
        }
        Kind::NotFound => {
            let remedy =
                "`sandhaus image list` tells which there are, `sandhaus image pull` gets one from a registry";
            Advice::new(error.message(), remedy).into()
        }
        _ => error.into(),
    }
}

/// The command's status comes first; what went wrong while cleaning up is an error of its own.
fn finish(ending: Result<Ending>, removed: Result<()>) -> Result<u8> {
    match (ending, removed) {
        (Ok(ending), Ok(())) => Ok(ending.status()),
        (Ok(_), Err(removal)) => Err(removal),
        (Err(failure), Ok(())) => Err(failure),
        (Err(failure), Err(removal)) => {
            print_error(&removal);
            Err(failure)
        }
    }
}

/// Where published ports are, which may have been chosen just now.
fn note_ports(ports: impl Iterator<Item = (u16, u16)>, quiet: Quiet) {
    if quiet == Quiet::No {
        for (port, host_port) in ports {
            crate::advice::print_note(&format!("port {port} is on 127.0.0.1:{host_port}"));
        }
    }
}

fn note_memory_limit(kills: u64, limit: Option<u64>) {
    if kills > 0 {
        let limit = limit.map_or_else(String::new, |bytes| format!(" of {}", human_bytes(bytes)));
        print_warning(&format!("the memory limit{limit} ended a process; --memory raises it"));
    }
}

fn spawn(arguments: &RunArguments, command: &[String], input: Input) -> Result<Spawn> {
    // Variables and directory are the sandbox's already.
    spawn_request(command, BTreeMap::new(), None, arguments.tty, input, arguments.timeout)
}

/// The sandbox that the flags describe.
fn sandbox_request(arguments: &RunArguments, config: &Config) -> Result<CreateSandbox> {
    let options = &arguments.sandbox;
    let image = options.image.as_deref().map(ImageName::parse).transpose()?;
    let mounts = arguments.volumes.iter().map(mount).collect::<Result<_>>()?;
    Ok(CreateSandbox {
        owner: OwnerId(LOCAL_OWNER.to_owned()),
        id: None,
        name: options.name.clone(),
        image,
        snapshot: options.snapshot.clone(),
        engine: options.engine.clone().map(EngineName),
        resources: resources(options),
        network: options.network.as_ref().map(|choice| choice.0.clone()),
        security: match options.security {
            Security::Strict => SecurityProfile::Strict,
            Security::Container => SecurityProfile::Container,
        },
        readonly_root: options.security == Security::Strict,
        env: environment(&options.env)?,
        workdir: options.workdir.clone(),
        mounts,
        entrypoint: Vec::new(),
        ttl: None,
        labels: labels(),
        shell: config.shell,
        warm_shell: false,
        seccomp: config.seccomp,
        workspace: options.workspace.clone(),
        publish: options.publish.iter().map(|mapping| mapping.0).collect(),
    })
}

/// The same for a server.
fn session_request(arguments: &RunArguments) -> Result<CreateSession> {
    Ok(CreateSession {
        ttl_seconds: if arguments.keep { 0 } else { SERVER_TTL_SECONDS },
        labels: labels(),
        warm_shell: Some(false),
        ..described(&arguments.sandbox)?
    })
}

/// What the flags describe, for a server.
pub(crate) fn described(options: &SandboxOptions) -> Result<CreateSession> {
    let resources = resources(options);
    let mebibytes = |bytes: u64| i64::try_from(bytes.div_ceil(MIB)).context("the size is too large");
    Ok(CreateSession {
        image: options.image.clone().unwrap_or_default(),
        snapshot: options.snapshot.as_ref().map(ToString::to_string).unwrap_or_default(),
        engine: options.engine.clone().unwrap_or_default(),
        name: options.name.clone().unwrap_or_default(),
        workspace_id: options.workspace.as_ref().map(ToString::to_string).unwrap_or_default(),
        env: environment(&options.env)?,
        cpus: f64::from(resources.cpu_millis) / 1000.0,
        memory_mb: mebibytes(resources.memory_bytes)?,
        pids: i64::from(resources.pids),
        disk_mb: mebibytes(resources.disk_bytes)?,
        network: options.network.as_ref().map(NetworkChoice::to_wire),
        ports: options.publish.iter().map(|mapping| mapping.to_wire()).collect(),
        security: match options.security {
            Security::Strict => "strict".to_owned(),
            Security::Container => "container".to_owned(),
        },
        readonly_root: Some(options.security == Security::Strict),
        workdir: options.workdir.clone().unwrap_or_default(),
        ..CreateSession::default()
    })
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([(ORIGIN_LABEL.to_owned(), ORIGIN_RUN.to_owned())])
}

/// Limits, zero where the default is wanted.
fn resources(options: &SandboxOptions) -> Resources {
    Resources {
        cpu_millis: options.cpus.map_or(0, |cores| cores.millis),
        memory_bytes: options.memory.map_or(0, |bytes| bytes.0),
        pids: options.pids.unwrap_or(0),
        disk_bytes: options.disk.map_or(0, |bytes| bytes.0),
    }
}

/// Variables with their values; those without come from our own environment, and are left out if it has none.
pub(crate) fn environment(entries: &[crate::values::EnvironmentEntry]) -> Result<Env> {
    let mut env = Env::new();
    for entry in entries {
        let value = match &entry.value {
            Some(value) => Some(value.clone()),
            None => std::env::var_os(&entry.name)
                .map(|value| value.into_string())
                .transpose()
                .map_err(|_| anyhow::anyhow!("variable {} is not UTF-8", entry.name))?,
        };
        if let Some(value) = value {
            env.insert(entry.name.clone(), value);
        }
    }
    Ok(env)
}

/// A mount with its source resolved: the sandbox must show what the name means now.
fn mount(point: &MountPoint) -> Result<Mount> {
    let source = fs_err::canonicalize(&point.source).context("look at the source of a --volume")?;
    Ok(Mount { source, target: point.target.clone(), access: point.access })
}
