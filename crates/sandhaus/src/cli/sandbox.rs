//! What sandboxes are made like, and what is done to those that are there.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use sandhaus_sandbox::{SnapshotName, WorkspaceId};

use super::{Output, Security, ServerArguments, parse_duration};
use crate::values::{Bytes, Cores, EnvironmentEntry, NetworkChoice, PortMapping};

/// What a sandbox is made like.
#[derive(Debug, Args)]
pub(crate) struct SandboxOptions {
    /// Image of the root file system [default: the configured one, `host`]
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Snapshot to begin from in place of an image
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    pub(crate) snapshot: Option<SnapshotName>,
    /// What runs it: namespace, or qemu for a virtual machine [default: the configured one, or the snapshot's]
    #[arg(long, value_name = "ENGINE")]
    pub(crate) engine: Option<String>,
    /// Processor cores, such as 0.5
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<Cores>,
    /// Memory, such as 512MiB or 2g
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Bytes>,
    /// Processes and threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pids: Option<u32>,
    /// Size of the writable layer, such as 1GiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<Bytes>,
    /// What the sandbox may reach: none, bridge (the internet), or allow=CIDR,CIDR,... [default: the configured one]
    #[arg(long, value_name = "POLICY")]
    pub(crate) network: Option<NetworkChoice>,
    /// Show a TCP port of the sandbox on the host's loopback, on a port that is free or on HOST
    #[arg(short, long = "publish", value_name = "[HOST:]PORT")]
    pub(crate) publish: Vec<PortMapping>,
    /// Show this workspace at /workspace; it is made if need be, and stays
    #[arg(long, value_name = "NAME")]
    pub(crate) workspace: Option<WorkspaceId>,
    /// Set a variable, or pass one on
    #[arg(short, long = "env", value_name = "K=V|K")]
    pub(crate) env: Vec<EnvironmentEntry>,
    /// Directory to start in
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// How commands are confined
    #[arg(long, value_enum, default_value_t = Security::Container, value_name = "PROFILE")]
    pub(crate) security: Security,
    /// Name of the sandbox
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
    /// Remove it so long after its last use, such as 30m [default: the configured time]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// Mark the sandbox
    #[arg(long = "label", value_name = "K=V")]
    pub(crate) labels: Vec<EnvironmentEntry>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Command that is started beside whatever is run in it later
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub(crate) entrypoint: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SandboxesArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Ids of the sandboxes
    #[arg(required = true, value_name = "ID")]
    pub(crate) sandboxes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ForkArguments {
    /// Name of the copy
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Set a variable of the copy, or pass one on
    #[arg(short, long = "env", value_name = "K=V|K")]
    pub(crate) env: Vec<EnvironmentEntry>,
    /// Mark the copy
    #[arg(long = "label", value_name = "K=V")]
    pub(crate) labels: Vec<EnvironmentEntry>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Id of the sandbox
    #[arg(value_name = "ID")]
    pub(crate) sandbox: String,
}

#[derive(Debug, Args)]
pub(crate) struct ConsoleArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Id of the sandbox
    #[arg(value_name = "ID")]
    pub(crate) sandbox: String,
}

#[derive(Debug, Args)]
pub(crate) struct ScreenshotArguments {
    /// Where to; - for standard output [default: the id with .png in this directory]
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Id of the sandbox
    #[arg(value_name = "ID")]
    pub(crate) sandbox: String,
}
