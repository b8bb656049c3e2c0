//! Developer commands, called as `cargo xtask COMMAND`.
//!
//! - [`arch`]: who may depend on whom, and what the sources of a crate may name;
//! - [`openapi`]: the committed description of the HTTP API;
//! - [`configuration`]: the committed JSON schema and the guide's table of configuration keys;
//! - [`suite`]: everything CI runs, counted, and closed with one line;
//! - `bench`: the side-by-side benchmark of `benches/`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool speaks on its streams")]

mod arch;
mod configuration;
mod lexer;
mod openapi;
mod source;
mod suite;
mod weaknesses;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Sandhaus")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check the dependency rules and what the sources may name.
    Arch,
    /// Write docs/openapi.json from the running binary.
    Openapi {
        /// Compare with the committed file instead of writing it.
        #[arg(long)]
        check: bool,
    },
    /// Write docs/config.schema.json and the table of docs/guides/configuration.md from the running binary.
    Configuration {
        /// Compare with the committed files instead of writing them.
        #[arg(long)]
        check: bool,
    },
    /// Run the checks: formatting, lints, architecture, OpenAPI, dependencies.
    Ci,
    /// Run the checks and every test suite, and close with one line of counts.
    Test {
        /// Only the suites whose name contains this.
        only: Option<String>,
    },
    /// Measure Sandhaus, the floor and the peers side by side; needs root and a quiet machine.
    Bench {
        /// Handed to the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Arch => arch::run(),
        Task::Openapi { check: true } => openapi::check(),
        Task::Openapi { check: false } => openapi::write(),
        Task::Configuration { check: true } => configuration::check(),
        Task::Configuration { check: false } => configuration::write(),
        Task::Ci => suite::checks(),
        Task::Test { only } => suite::everything(only.as_deref()),
        Task::Bench { arguments } => bench(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The checkout's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ lies in the checkout").to_owned()
}

/// The cargo that started this process, in the checkout.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Where cargo puts what it builds.
fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// What the binary prints on standard output, which is built first.
fn said(arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let built = cargo().args(["build", "--package", "sandhaus"]).status().context("start cargo")?;
    ensure!(built.success(), "the binary does not build");
    let output = Command::new(target_dir().join("debug/sandhaus"))
        .args(arguments)
        .output()
        .context("start the binary")?;
    ensure!(
        output.status.success(),
        "{arguments:?} of the binary failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

fn bench(arguments: &[String]) -> anyhow::Result<()> {
    let store = ["sandhaus-snapstore", "--example", "s3-server"];
    for package in [&["sandhaus"][..], &["sandhaus-bench"], &store] {
        let built = cargo()
            .args(["build", "--release", "--package"])
            .args(package)
            .status()
            .context("start cargo")?;
        ensure!(built.success(), "{} does not build", package[0]);
    }
    let release = target_dir().join("release");
    let measured = Command::new(release.join("sandhaus-bench"))
        .env("SANDHAUS_BIN", release.join("sandhaus"))
        .arg("--report")
        .arg(target_dir().join("bench"))
        .args(arguments)
        .current_dir(root())
        .status()
        .context("start the benchmark")?;
    ensure!(measured.success(), "the benchmark failed");
    Ok(())
}
