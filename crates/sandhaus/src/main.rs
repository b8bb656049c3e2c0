//! `sandhaus`: the one binary. A server, the command line towards it, and (re-executed with an internal first
//! argument) the engine's launcher.
//!
//! Reading order: [`cli`] (what can be asked for), [`config`], `commands/` (one file each), [`domain`] (putting the
//! parts together), [`attach`] (a process inside, attached to this one). The only crate that knows both engines and
//! gateway.

use std::{ffi::OsStr, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

mod advice;
mod agent;
mod attach;
mod background;
mod body;
mod checks;
mod cli;
mod commands;
mod config;
mod domain;
mod holder;
mod interrupt;
mod keeper;
mod kvm;
mod output;
mod page;
mod private;
mod process;
mod progress;
mod runner;
mod server;
mod spelling;
mod supervisor;
mod terminal;
mod toolbox;
mod tree;
mod values;

use background::Side;
use cli::{Cli, Command, ConfigArguments, ConfigCommand, LogFormat, SandboxesArguments, ServeArguments};
use commands::{change::Change, run::Quiet};
use config::Loaded;
use spelling::CalledAs;

/// Internal first argument: prints every point at which a test may let this binary die.
const FAULT_POINTS_ARGUMENT: &str = "__fault-points";

/// Internal first argument: prints the OpenAPI document of the HTTP edge.
const OPENAPI_ARGUMENT: &str = "__openapi";

/// Status of `run` and `exec` when it is sandhaus that failed, not the command.
const STATUS_OWN_FAILURE: u8 = 125;

/// Status of a process whose output nobody reads, as a shell gives it.
const STATUS_OUTPUT_CLOSED: u8 = 141;

/// Fewest worker threads of a server.
const SERVER_WORKERS_MIN: usize = 2;

/// Variables that say what to log, the first one wins.
const LOG_VARIABLES: &[&str] = &["SANDHAUS_LOG", "SANDKASTEN_LOG", "RUST_LOG"];

fn main() -> ExitCode {
    // Before anything else, and before any thread: the launcher makes namespaces, which threads forbid.
    process::reset_signals();
    match std::env::args_os().nth(1).as_deref().and_then(OsStr::to_str) {
        Some(sandhaus_engines::namespace::LAUNCHER_ARGUMENT) => {
            return sandhaus_engines::namespace::launcher_main();
        }
        Some(kvm::PROBE_ARGUMENT) => return kvm::probe_main(),
        Some(keeper::ARGUMENT) => return keeper::main(),
        Some(FAULT_POINTS_ARGUMENT) => return fault_points(),
        Some(OPENAPI_ARGUMENT) => return openapi(),
        _ => {}
    }
    let cli = match parse() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let own_failure = match &cli.command {
        Command::Run(_) | Command::Exec(_) => STATUS_OWN_FAILURE,
        _ => 1,
    };
    execute(&cli).unwrap_or_else(|error| {
        if is_closed_output(&error) {
            return ExitCode::from(STATUS_OUTPUT_CLOSED);
        }
        advice::print_error(&error);
        ExitCode::from(own_failure)
    })
}

/// The command line, in whichever spelling; of one that asks for help or makes no sense, the status to end with.
fn parse() -> Result<Cli, ExitCode> {
    let (called_as, arguments) = spelling::settle(std::env::args_os());
    let mut cli = Cli::try_parse_from(arguments).map_err(|error| {
        // Help that nobody reads is no failure.
        let _ = error.print();
        match called_as {
            // The older tool has one status for everything that is wrong.
            CalledAs::Sandkasten if error.use_stderr() => ExitCode::FAILURE,
            _ => u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
        }
    })?;
    cli.called_as = called_as;
    Ok(cli)
}

/// Prints every fault point there is, of the engine that is named or else of the first.
fn fault_points() -> ExitCode {
    let mut points = match std::env::args().nth(2).as_deref() {
        Some(domain::QEMU) => sandhaus_engines::qemu::fault_points(),
        _ => sandhaus_engines::namespace::fault_points(),
    };
    points.extend(sandhaus_sandbox::plan::fault_points());
    points.extend(sandhaus_sandbox::workspace::fault_points());
    points.extend(sandhaus_sandbox::pool::fault_points());
    points.extend(sandhaus_sandbox::snapshot::fault_points());
    points.extend(sandhaus_sandbox::renewal::fault_points());
    let text: String = points.iter().map(|point| format!("{point}\n")).collect();
    match output::print(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Prints the description of the HTTP API, for the committed copy in docs/.
fn openapi() -> ExitCode {
    match output::print(&sandhaus_gateway::openapi()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn execute(cli: &Cli) -> Result<ExitCode> {
    // What needs neither configuration nor runtime comes first.
    match &cli.command {
        Command::Version => return commands::version::version(cli.called_as),
        Command::Man(arguments) => return commands::man::man(arguments),
        Command::Completions(arguments) => return commands::completions::completions(arguments),
        Command::Config(ConfigArguments { command: ConfigCommand::Schema }) => {
            return commands::config::print_schema();
        }
        Command::Config(ConfigArguments { command: ConfigCommand::Keys }) => {
            return commands::config::print_keys();
        }
        Command::Config(ConfigArguments { command: ConfigCommand::Check { file, strict } }) => {
            return commands::config::check(file, *strict);
        }
        _ => {}
    }
    let loaded = match &cli.command {
        // It makes the file that all others read.
        Command::Init(arguments) => commands::init::settle(arguments, &cli.global)?,
        _ => settle_config(cli)?,
    };
    let mut background = None;
    if let Command::Serve(ServeArguments { detach: true, .. }) = &cli.command {
        match commands::serve::detach(&loaded.config)? {
            Side::Starter(starter) => return starter.wait(cli.called_as),
            Side::Server(server) => background = Some(server),
        }
    }
    start_logging(cli, background.as_ref())?;
    let runtime = match &cli.command {
        Command::Serve(_) => {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(processors.max(SERVER_WORKERS_MIN))
                .enable_all()
                .build()?
        }
        // One client needs one thread; making more would only cost time.
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
    };
    let result = runtime.block_on(dispatch(cli, &loaded, background.as_mut()));
    // Reads of standard input and writes to a full pipe cannot be cancelled; nobody waits for them.
    runtime.shutdown_background();
    result
}

async fn dispatch(
    cli: &Cli,
    loaded: &Loaded,
    background: Option<&mut background::Server>,
) -> Result<ExitCode> {
    let (config, called_as) = (&loaded.config, cli.called_as);
    let quiet = if cli.global.quiet { Quiet::Yes } else { Quiet::No };
    match &cli.command {
        Command::Run(arguments) => commands::run::run(arguments, config, quiet).await,
        Command::Serve(_) => commands::serve::serve(config, loaded.file.as_deref(), background).await,
        Command::Create(arguments) => commands::create::create(arguments, config, quiet).await,
        Command::Fork(arguments) => commands::create::fork(arguments, config, quiet).await,
        Command::Start(arguments) => change(arguments, config, Change::Start).await,
        Command::Pause(arguments) => change(arguments, config, Change::Pause).await,
        Command::Resume(arguments) => change(arguments, config, Change::Resume).await,
        Command::Suspend(arguments) => change(arguments, config, Change::Suspend).await,
        Command::Console(arguments) => commands::console::console(arguments, config, quiet).await,
        Command::Screenshot(arguments) => commands::screenshot::screenshot(arguments, config, quiet).await,
        Command::Snapshot(arguments) => commands::snapshot::snapshot(arguments, config, quiet).await,
        Command::Ps(arguments) => commands::ps::ps(arguments, config, called_as).await,
        Command::Exec(arguments) => commands::exec::exec(arguments, config).await,
        Command::Cp(arguments) => commands::cp::cp(arguments, config, quiet).await,
        Command::Logs(arguments) => commands::logs::logs(arguments, config, called_as).await,
        Command::Rm(arguments) => commands::rm::rm(arguments, config, called_as).await,
        Command::Inspect(arguments) => commands::inspect::inspect(arguments, config).await,
        Command::Image(arguments) => commands::image::image(arguments, config, quiet, called_as).await,
        Command::Pool(arguments) => commands::pool::pool(arguments, config).await,
        Command::Workspace(arguments) => commands::workspace::workspace(arguments, config).await,
        Command::Doctor(arguments) => commands::doctor::doctor(arguments, config, called_as).await,
        Command::Config(arguments) => commands::config::config(arguments, loaded),
        Command::Security(arguments) => commands::security::security(arguments, loaded, called_as),
        Command::Stop(arguments) => commands::stop::stop(arguments, config, quiet, called_as).await,
        Command::Init(arguments) => {
            commands::init::init(arguments, loaded, cli.global.config.as_deref(), quiet, called_as).await
        }
        Command::Completions(_) | Command::Man(_) | Command::Version => {
            unreachable!("handled before the runtime was made")
        }
    }
}

async fn change(arguments: &SandboxesArguments, config: &config::Config, change: Change) -> Result<ExitCode> {
    commands::change::each(&arguments.server, &arguments.sandboxes, config, change).await
}

/// Flags over environment over file over defaults.
fn settle_config(cli: &Cli) -> Result<Loaded> {
    let mut loaded = config::load(cli.global.config.as_deref())?;
    for warning in &loaded.warnings {
        advice::print_warning(warning);
    }
    if let Some(data_dir) = &cli.global.data_dir {
        let data_dir = std::path::absolute(data_dir)?;
        let text = data_dir.to_str().context("--data-dir is not UTF-8")?;
        loaded.set_by_flag("data_dir", "--data-dir", text)?;
    }
    if let Command::Serve(ServeArguments { listen: Some(listen), .. }) = &cli.command {
        loaded.set_by_flag("listen", "--listen", listen)?;
    }
    Ok(loaded)
}

/// Logs go to standard error. A server logs what it does; other commands only if asked, since their errors are printed
/// anyway.
fn start_logging(cli: &Cli, background: Option<&background::Server>) -> Result<()> {
    use tracing_subscriber::{EnvFilter, fmt::writer::BoxMakeWriter};
    let variable = |name: &&str| std::env::var(name).ok().filter(|filter| !filter.is_empty());
    let asked = cli.global.log_level.clone().or_else(|| LOG_VARIABLES.iter().find_map(variable));
    let (filter, format) = match (&cli.command, asked) {
        (Command::Serve(arguments), asked) => {
            (asked.unwrap_or_else(|| "info".to_owned()), arguments.log_format)
        }
        (_, Some(asked)) => (asked, LogFormat::Text),
        (_, None) => return Ok(()),
    };
    let filter =
        EnvFilter::try_new(&filter).map_err(|error| anyhow::anyhow!("log filter {filter:?}: {error}"))?;
    let writer = match background.map(background::Server::log) {
        Some(log) => BoxMakeWriter::new(move || log.clone()),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => subscriber.with_ansi(advice::stderr_has_colours()).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

fn is_closed_output(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
