//! `sandhaus pool`.

use clap::{Args, Subcommand};

use super::{Output, ServerArguments};

#[derive(Debug, Args)]
pub(crate) struct PoolArguments {
    #[command(subcommand)]
    pub(crate) command: PoolCommand,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT", global = true)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// List what is kept ready
    #[command(visible_alias = "ls")]
    List,
    /// Keep the pool filled again after it was drained, and wait until it is
    Fill,
    /// Let everything in the pool go, and keep it empty until it is filled again or the server starts anew
    Drain,
}
