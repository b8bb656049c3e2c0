//! The side-by-side benchmark: Sandhaus, the floor beneath it, and the peers that this machine has, on the same root
//! file system in the same run.
//!
//! Whatever is compared is measured in turns, one sample of each and then the next round, so that a disturbance of the
//! machine strikes all alike. Nothing here passes or fails: it measures. Called by `cargo xtask bench`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool speaks on its streams")]

mod agent;
mod floor;
mod loadvm;
mod machines;
mod ours;
mod peers;
mod pooled;
mod report;
mod rootfs;
mod transfers;

use std::{ffi::OsStr, path::PathBuf};

use anyhow::Context as _;
use clap::Parser;

use crate::report::Report;

#[derive(Parser)]
#[command(name = "sandhaus-bench", about = "Measure Sandhaus beside the floor and its peers")]
struct Arguments {
    /// Folder for the table and the JSON.
    #[arg(long, value_name = "DIR")]
    report: PathBuf,
    /// Samples of each latency.
    #[arg(long, default_value_t = 200, value_name = "N")]
    samples: usize,
    /// Seconds of each throughput.
    #[arg(long, default_value_t = 5, value_name = "N")]
    seconds: u64,
    /// Sandboxes alive while memory and recovery are measured.
    #[arg(long, default_value_t = 300, value_name = "N")]
    alive: usize,
    /// Measure only this part.
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
}

/// A part of what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Sandboxes of namespaces, and their peers
    Namespaces,
    /// Virtual machines
    Machines,
    /// The agent in a sandbox
    Agent,
}

impl Arguments {
    fn measures(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

fn main() -> anyhow::Result<()> {
    let mut given = std::env::args_os().skip(1);
    match given.next().as_deref().and_then(OsStr::to_str) {
        Some(floor::ARGUMENT) => {
            let root = given.next().context("the probe's root is missing")?;
            let scratch = given.next().context("the probe's folder is missing")?;
            return floor::serve(root.as_ref(), scratch.as_ref());
        }
        Some(peers::ARGUMENT) => return peers::serve(),
        _ => {}
    }
    let arguments = Arguments::parse();
    fs_err::create_dir_all(&arguments.report)?;
    // On the disk that the report lies on: temporary file systems often live in memory, which would flatter everyone.
    let scratch = tempfile::Builder::new().prefix("scratch-").tempdir_in(&arguments.report)?;
    let mut report = Report::new(arguments.samples);
    if arguments.measures(Part::Namespaces) || arguments.measures(Part::Agent) {
        let root = rootfs::prepare(&arguments.report)?;
        if arguments.measures(Part::Namespaces) {
            ours::measure(&mut report, &arguments, &root, scratch.path())?;
        }
        if arguments.measures(Part::Agent) {
            agent::measure(&mut report, &arguments, &root, scratch.path())?;
        }
    }
    if arguments.measures(Part::Machines) {
        machines::measure(&mut report, scratch.path())?;
    }
    report.write(&arguments.report)?;
    println!("{}", report.table());
    Ok(())
}
