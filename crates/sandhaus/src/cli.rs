//! The command line: definitions only. What a flag means is in `commands/`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

mod image;
mod pool;
mod sandbox;
mod snapshot;
mod workspace;

pub(crate) use image::{
    BuildVmArguments, ExportAs, ImageArguments, ImageCommand, ImportArguments, ImportVmArguments,
    PullArguments,
};
pub(crate) use pool::{PoolArguments, PoolCommand};
pub(crate) use sandbox::{
    ConsoleArguments, CreateArguments, ForkArguments, SandboxOptions, SandboxesArguments, ScreenshotArguments,
};
pub(crate) use snapshot::{SnapshotArguments, SnapshotCommand, Whence};
pub(crate) use workspace::{Place, WorkspaceArguments, WorkspaceCommand, WorkspaceFile};

use crate::{
    spelling::CalledAs,
    values::{EnvironmentEntry, Location, MountPoint},
};

/// Linux sandboxes in milliseconds, through one binary.
#[derive(Debug, Parser)]
#[command(name = "sandhaus", version, propagate_version = false)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
    /// The name that the binary was called by.
    #[arg(skip)]
    pub(crate) called_as: CalledAs,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Configuration file [default: ./sandhaus.yaml, else /etc/sandhaus/sandhaus.yaml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "SANDHAUS_CONFIG",
        hide_env_values = true,
        value_hint = clap::ValueHint::FilePath
    )]
    pub(crate) config: Option<PathBuf>,
    /// Data directory [default: /var/lib/sandhaus]
    #[arg(long, global = true, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(crate) data_dir: Option<PathBuf>,
    /// What to log to standard error: error, warn, info, debug or trace, or a filter as RUST_LOG takes it
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log_level: Option<String>,
    /// Print nothing but results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a configuration with a key of its own, and the data directory
    Init(InitArguments),
    /// Run a command in a fresh sandbox and remove the sandbox afterwards
    Run(RunArguments),
    /// Serve sandboxes over HTTP
    #[command(visible_alias = "daemon")]
    Serve(ServeArguments),
    /// Make a sandbox and print its id; needs a server
    Create(CreateArguments),
    /// Start sandboxes that are stopped, or go on with those that are suspended or paused
    Start(SandboxesArguments),
    /// Stop sandboxes, whose disks stay; without an ID, end the server, whose sandboxes go on
    Stop(StopArguments),
    /// Freeze sandboxes, which keep their memory
    Pause(SandboxesArguments),
    /// Have sandboxes go on that are paused or suspended
    Resume(SandboxesArguments),
    /// Write the memory of sandboxes to disk and let go of it, until they are started
    Suspend(SandboxesArguments),
    /// Copy a sandbox as it stands, with its memory where its engine can, and print the copy's id
    Fork(ForkArguments),
    /// Type into the serial console of a sandbox
    Console(ConsoleArguments),
    /// Save what the display of a sandbox shows as a PNG
    Screenshot(ScreenshotArguments),
    /// Take snapshots of sandboxes, list and remove them, and copy them to a store and back
    Snapshot(SnapshotArguments),
    /// List sandboxes
    Ps(PsArguments),
    /// Run a command in a sandbox that is there
    Exec(ExecArguments),
    /// Copy files and directories into or out of a sandbox
    Cp(CpArguments),
    /// Show what a sandbox has printed, or the log of the server in the background
    Logs(LogsArguments),
    /// Remove sandboxes
    Rm(RmArguments),
    /// Show everything known about a sandbox
    Inspect(InspectArguments),
    /// Manage images
    Image(ImageArguments),
    /// Show, fill and drain the sandboxes that a server keeps ready
    Pool(PoolArguments),
    /// Manage workspaces of a server, and copy files into and out of them
    Workspace(WorkspaceArguments),
    /// Check whether this host can run sandboxes
    Doctor(DoctorArguments),
    /// Check whether the configuration is safe
    Security(SecurityArguments),
    /// Show, check and describe the configuration
    Config(ConfigArguments),
    /// Print a completion script for a shell
    Completions(CompletionsArguments),
    /// Print the manual page, or write every page into a directory
    Man(ManArguments),
    /// Print the version
    Version,
}

/// Where the server is.
#[derive(Debug, Args)]
pub(crate) struct ServerArguments {
    /// Address of the server [default: the one that holds the data directory, else the configured one]
    #[arg(long, value_name = "URL", env = "SANDHAUS_HOST", hide_env_values = true)]
    pub(crate) host: Option<String>,
}

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What a sandbox may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Security {
    /// An unprivileged user without capabilities; read-only root
    Strict,
    /// Root inside with a container's usual capabilities
    Container,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
    /// Show a host file or directory inside; needs a sandbox without a server, and gets one
    #[arg(short = 'v', long = "volume", value_name = "SRC:DST[:ro]")]
    pub(crate) volumes: Vec<MountPoint>,
    /// Kill the command after so long, such as 30s or 5m, and exit with 124
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Keep the sandbox; needs a server
    #[arg(long)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Command and its arguments [default: the image's own entry point and command]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// Address to listen on, such as 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Serve in the background; this command ends once the server answers, and prints its address
    #[arg(
        short,
        long,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_default_value = true,
        value_parser = parse_truth,
        value_name = "BOOL"
    )]
    pub(crate) detach: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct InitArguments {
    /// Address to listen on, such as 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Key that callers must show [default: a random one]
    #[arg(long, value_name = "KEY", env = "SANDHAUS_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// Image of requests that name none [default: host, which needs no download]
    #[arg(long, value_name = "NAME")]
    pub(crate) default_image: Option<String>,
    /// Also pull this image, such as python:3.12-slim
    #[arg(long, value_name = "REFERENCE", conflicts_with = "skip_pull")]
    pub(crate) pull: Option<String>,
    /// Replace a configuration that is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Pull nothing, as is the case anyway: the older tool pulled an image unless told not to
    #[arg(long, hide = true)]
    pub(crate) skip_pull: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopArguments {
    /// Without ID: how long to wait for the end of the server, such as 30s
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration, conflicts_with = "sandboxes")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Ids of the sandboxes to stop [default: none of them, but the server of the data directory]
    #[arg(value_name = "ID")]
    pub(crate) sandboxes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SecurityArguments {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// Directory to write the pages into
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PsArguments {
    /// Also sandboxes that have ended
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only sandboxes with this label
    #[arg(long = "label", value_name = "K=V")]
    pub(crate) labels: Vec<EnvironmentEntry>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArguments {
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable, or pass one on
    #[arg(short, long = "env", value_name = "K=V|K")]
    pub(crate) env: Vec<EnvironmentEntry>,
    /// Directory to start in
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Kill the command after so long, such as 30s or 5m, and exit with 124
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Id of the sandbox
    #[arg(value_name = "ID")]
    pub(crate) sandbox: String,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CpArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// What to copy: a path, or ID:PATH inside a sandbox
    #[arg(value_name = "SRC")]
    pub(crate) source: Location,
    /// Where to: a path, or ID:PATH inside a sandbox
    #[arg(value_name = "DST")]
    pub(crate) destination: Location,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArguments {
    /// Go on until the source ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The terminal of this persistent shell [default: `default`, or the command of `run`]
    #[arg(long, value_name = "NAME", conflicts_with = "process", requires = "sandbox")]
    pub(crate) shell: Option<String>,
    /// The process with this number, as `inspect` lists them
    #[arg(long, value_name = "N", requires = "sandbox")]
    pub(crate) process: Option<u64>,
    /// Of the server's log, only so many last lines
    #[arg(short = 'n', long, value_name = "N", conflicts_with_all = ["sandbox", "shell", "process"])]
    pub(crate) tail: Option<usize>,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Id of the sandbox [default: the server's own log]
    #[arg(value_name = "ID")]
    pub(crate) sandbox: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArguments {
    /// No error for a sandbox that is not there
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Ids of the sandboxes
    #[arg(required = true, value_name = "ID")]
    pub(crate) sandboxes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Json, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Id of the sandbox
    #[arg(value_name = "ID")]
    pub(crate) sandbox: String,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArguments {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every effective value and where it comes from
    Show {
        /// How to print
        #[arg(short, long, value_enum, default_value_t = ConfigOutput::Table, value_name = "FORMAT")]
        output: ConfigOutput,
    },
    /// Print one effective value by itself, also that of a secret
    Get {
        /// Name of the key, such as api_key or defaults.cpu_limit
        #[arg(value_name = "KEY")]
        key: String,
    },
    /// Check a configuration file and name everything wrong with it
    Check {
        /// Warnings fail too
        #[arg(long)]
        strict: bool,
        /// The file
        #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Print a JSON schema of configuration files, for editors
    Schema,
    /// Print a Markdown table of every key
    Keys,
}

/// How a configuration is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConfigOutput {
    /// For people
    Table,
    /// For programs
    Json,
    /// A configuration file, with comments that tell where values come from
    Yaml,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

/// The words for true and false that the older tool took.
fn parse_truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// A time as people write it; a bare number counts seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| "not a time".to_owned())?,
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string())?,
    };
    if duration.as_millis() == 0 {
        return Err("must be above zero".to_owned());
    }
    Ok(duration)
}
