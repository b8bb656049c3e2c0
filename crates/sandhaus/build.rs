//! Builds the web page, see `build/page.rs`; then the agent, which carries a page of its own, with its own flags in its own
//! target folder, and leaves it where `src/agent.rs` embeds it.
//!
//! The agent runs inside every sandbox, whatever root file system that has: it must be static. Its flags must not
//! reach the rest of the build, hence a cargo of its own. `SANDHAUS_AGENT_BIN` names a ready executable to embed
//! instead.

use std::{
    env,
    error::Error,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use sha2::{Digest, Sha256};

#[path = "build/page.rs"]
mod page;

/// Package and executable name of the agent.
const AGENT: &str = "sandhaus-agent";

/// Cargo profile of the agent, defined in the workspace manifest.
const PROFILE: &str = "agent";

/// Flags of the agent: static, and not position independent, so that it starts without relocating itself.
const FLAGS: &[&str] = &["-Ctarget-feature=+crt-static", "-Crelocation-model=static"];

/// Separator of `CARGO_ENCODED_RUSTFLAGS`.
const FLAG_SEPARATOR: &str = "\u{1f}";

/// What the agent is built from, relative to the workspace.
const SOURCES: &[&str] = &["crates/agent", "crates/protocol", "crates/ssh", "Cargo.toml", "Cargo.lock"];

/// Tells the agent's build where the page of its terminal is.
const TERMINAL_PAGE: &str = "SANDHAUS_TERMINAL_PAGE";

/// Variables of the outer cargo that the inner one may see; every other `CARGO_…` one would change its build.
const CARGO_KEPT: &[&str] = &["CARGO", "CARGO_HOME", "CARGO_MAKEFLAGS"];

/// The same by prefix: how to reach registries.
const CARGO_KEPT_PREFIXES: &[&str] = &["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];

#[expect(clippy::print_stderr, reason = "cargo shows it when the script fails")]
fn main() -> ExitCode {
    // Cargo shows these lines only if the script fails.
    let terminal = match page::embed() {
        Ok(terminal) => terminal,
        Err(error) => {
            eprintln!("error: the web page could not be built: {error}");
            eprintln!(
                "hint: it needs Node.js 18.18 or newer with npm; SANDHAUS_DASHBOARD_DIST=<folder> embeds a ready build,"
            );
            eprintln!("hint: SANDHAUS_DASHBOARD=off builds without the page");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = embed(terminal.as_deref()) {
        eprintln!("error: the agent that every sandbox carries could not be built: {error}");
        eprintln!("hint: SANDHAUS_AGENT_BIN=<path> embeds a ready executable instead");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn embed(terminal: Option<&Path>) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=SANDHAUS_AGENT_BIN");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let agent = match env::var_os("SANDHAUS_AGENT_BIN").filter(|path| !path.is_empty()) {
        Some(ready) => {
            println!("cargo::rerun-if-changed={}", Path::new(&ready).display());
            PathBuf::from(ready)
        }
        None => build(&out, terminal)?,
    };
    let bytes = fs::read(&agent).map_err(|error| format!("read {}: {error}", agent.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err(format!("{} is not an executable of Linux", agent.display()).into());
    }
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(out.join(AGENT), &bytes).map_err(|error| format!("write {}: {error}", out.display()))?;
    println!("cargo::rustc-env=SANDHAUS_AGENT_DIGEST={digest}");
    println!("cargo::rustc-env=SANDHAUS_TARGET={}", variable("TARGET")?.to_string_lossy());
    Ok(())
}

/// Builds the agent with this page of its terminal, and answers where it lies.
fn build(out: &Path, terminal: Option<&Path>) -> Result<PathBuf, Box<dyn Error>> {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
    let target = variable("TARGET")?;
    let folder = outer_folder(out)?.join("agent-build");
    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os() {
        if !reaches_inner_build(&name) {
            cargo.env_remove(name);
        }
    }
    let output = cargo
        .current_dir(&workspace)
        // The outer cargo has settled the lock file; the inner one downloads nothing that the outer one had not.
        .args(["build", "--locked", "--profile", PROFILE, "--package", AGENT, "--target"])
        .arg(&target)
        // Beside the outer folder: the outer cargo holds the lock of its own until this script is done.
        .env("CARGO_TARGET_DIR", &folder)
        // Nothing stands for no page.
        .env(TERMINAL_PAGE, terminal.unwrap_or(Path::new("")))
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join(FLAG_SEPARATOR))
        .output()
        .map_err(|error| format!("start cargo: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cargo ended with {}\n{said}", output.status).into());
    }
    Ok(folder.join(&target).join(PROFILE).join(AGENT))
}

/// The folder of everything the outer cargo writes for this target: `OUT_DIR` is
/// `<target>/<profile>/build/<package>/out`.
fn outer_folder(out: &Path) -> Result<&Path, Box<dyn Error>> {
    Ok(out.ancestors().nth(4).ok_or("OUT_DIR is not inside a target folder")?)
}

/// Whether the inner build may see a variable of the outer one. A wrapper such as clippy's would make it check only;
/// the outer flags and profile settings are not the agent's.
fn reaches_inner_build(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return true };
    if name.starts_with("CARGO") {
        return CARGO_KEPT.contains(&name) || CARGO_KEPT_PREFIXES.iter().any(|kept| name.starts_with(kept));
    }
    !matches!(
        name,
        "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER" | "RUSTFLAGS" | "CLIPPY_ARGS" | "CLIPPY_CONF_DIR"
    )
}

fn variable(name: &str) -> Result<OsString, Box<dyn Error>> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set: run this through cargo").into())
}
