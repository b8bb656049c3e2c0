//! The committed descriptions of the HTTP APIs: the server's as the built binary gives it, and the toolbox's as its wire
//! types do.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::{root, said};

/// Makes a document.
type Describe = fn() -> anyhow::Result<String>;

/// A committed document, and what makes it.
const DOCUMENTS: [(&str, Describe); 2] =
    [("docs/openapi.json", server), ("docs/openapi-toolbox.json", toolbox)];

fn committed(name: &str) -> PathBuf {
    root().join(name)
}

/// Writes the documents.
pub(crate) fn write() -> anyhow::Result<()> {
    // The toolbox's is a part of what the server's is made with.
    for (name, described) in DOCUMENTS.iter().rev() {
        fs_err::write(committed(name), described()?)?;
        println!("openapi: wrote {name}");
    }
    Ok(())
}

/// Fails if a document is not what is said now.
pub(crate) fn check() -> anyhow::Result<()> {
    for (name, described) in DOCUMENTS {
        let (described, committed) = (described()?, fs_err::read_to_string(committed(name))?);
        if let Some(at) = described.lines().zip(committed.lines()).position(|(is, was)| is != was) {
            eprintln!("openapi: line {} of {name} differs", at + 1);
        }
        ensure!(described == committed, "{name} is stale: run `cargo xtask openapi` and commit it");
        println!("openapi: {name} is what is served");
    }
    Ok(())
}

/// In one stable form: keys as they are given, indented, one final newline.
fn text(document: &serde_json::Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(document)? + "\n")
}

fn server() -> anyhow::Result<String> {
    text(&serde_json::from_slice(&said(&["__openapi"])?).context("read the description as JSON")?)
}

fn toolbox() -> anyhow::Result<String> {
    text(&sandhaus_protocol::openapi::document())
}
