//! `sandhaus snapshot …`.

use clap::{Args, Subcommand};
use sandhaus_sandbox::SnapshotName;

use super::{Output, ServerArguments};

#[derive(Debug, Args)]
pub(crate) struct SnapshotArguments {
    #[command(subcommand)]
    pub(crate) command: SnapshotCommand,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT", global = true)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

/// Which snapshots are meant.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Whence {
    /// Those in the store, not those of the server
    #[arg(long = "remote")]
    pub(crate) in_store: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Take a snapshot of a sandbox
    Create {
        /// Take its memory too: sandboxes made of the snapshot go on where this one was
        #[arg(long, conflicts_with = "live")]
        memory: bool,
        /// Let it run on meanwhile: the disk is then as after a power cut
        #[arg(long)]
        live: bool,
        /// Id of the sandbox
        #[arg(value_name = "ID")]
        sandbox: String,
        /// What the snapshot is called
        #[arg(value_name = "NAME")]
        name: SnapshotName,
    },
    /// List snapshots
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        whence: Whence,
    },
    /// Show everything known about snapshots
    Inspect {
        #[command(flatten)]
        whence: Whence,
        /// Names of the snapshots
        #[arg(required = true, value_name = "NAME")]
        names: Vec<SnapshotName>,
    },
    /// Copy snapshots to the store
    Push {
        /// Names of the snapshots
        #[arg(required = true, value_name = "NAME")]
        names: Vec<SnapshotName>,
    },
    /// Copy snapshots from the store; one that is here and whole is left alone, one that is broken is fetched again
    Pull {
        /// Names of the snapshots
        #[arg(required = true, value_name = "NAME")]
        names: Vec<SnapshotName>,
    },
    /// Remove snapshots; sandboxes that were made of them go on
    #[command(visible_alias = "delete")]
    Rm {
        #[command(flatten)]
        whence: Whence,
        /// Names of the snapshots
        #[arg(required = true, value_name = "NAME")]
        names: Vec<SnapshotName>,
    },
}
