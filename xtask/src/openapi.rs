//! The committed description of the HTTP API, as the built binary gives it.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::{root, said};

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
    let document: serde_json::Value =
        serde_json::from_slice(&said(&["__openapi"])?).context("read the description as JSON")?;
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}
