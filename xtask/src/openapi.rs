//! The committed description of the HTTP API, as the built binary gives it.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, ensure};

use crate::{cargo, root, target_dir};

fn committed() -> PathBuf {
    root().join("docs/openapi.json")
}

/// Writes `docs/openapi.json`.
pub(crate) fn write() -> anyhow::Result<()> {
    let path = committed();
    fs_err::write(&path, described()?)?;
    println!("openapi: wrote {}", path.display());
    Ok(())
}

/// Fails if `docs/openapi.json` is not what the binary says.
pub(crate) fn check() -> anyhow::Result<()> {
    let described = described()?;
    let committed = fs_err::read_to_string(committed())?;
    if let Some(at) = described.lines().zip(committed.lines()).position(|(is, was)| is != was) {
        eprintln!("openapi: line {} differs", at + 1);
    }
    ensure!(described == committed, "docs/openapi.json is stale: run `cargo xtask openapi` and commit it");
    println!("openapi: docs/openapi.json is what the binary says");
    Ok(())
}

/// The document, in one stable form: keys as the binary orders them, indented, one final newline.
fn described() -> anyhow::Result<String> {
    let built = cargo().args(["build", "--package", "sandhaus"]).status().context("start cargo")?;
    ensure!(built.success(), "the binary does not build");
    let said = Command::new(target_dir().join("debug/sandhaus"))
        .arg("__openapi")
        .output()
        .context("start the binary")?;
    ensure!(
        said.status.success(),
        "the binary gave no description: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    let document: serde_json::Value =
        serde_json::from_slice(&said.stdout).context("read the description as JSON")?;
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}
