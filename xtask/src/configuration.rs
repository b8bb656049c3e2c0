//! What the documents say about configuration keys, as the built binary gives it: the JSON schema, and the table in the
//! guide.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::{root, said};

/// Where the guide's table begins and ends.
const BEGIN: &str = "<!-- keys: begin, written by `cargo xtask configuration` -->\n";
const END: &str = "<!-- keys: end -->\n";

fn schema_path() -> PathBuf {
    root().join("docs/config.schema.json")
}

fn guide_path() -> PathBuf {
    root().join("docs/guides/configuration.md")
}

/// Writes both.
pub(crate) fn write() -> anyhow::Result<()> {
    for (path, text) in described()? {
        fs_err::write(&path, text)?;
        println!("configuration: wrote {}", path.display());
    }
    Ok(())
}

/// Fails if a committed file is not what the binary says.
pub(crate) fn check() -> anyhow::Result<()> {
    for (path, text) in described()? {
        ensure!(
            fs_err::read_to_string(&path)? == text,
            "{} is stale: run `cargo xtask configuration` and commit it",
            path.display()
        );
    }
    println!("configuration: schema and guide are what the binary says");
    Ok(())
}

/// Both files as they should be.
fn described() -> anyhow::Result<[(PathBuf, String); 2]> {
    let schema = String::from_utf8(said(&["config", "schema"])?)?;
    let table = String::from_utf8(said(&["config", "keys"])?)?;
    let guide = fs_err::read_to_string(guide_path())?;
    let (before, rest) = guide.split_once(BEGIN).context("the guide has no place for the table")?;
    let (_, after) = rest.split_once(END).context("the guide's table has no end")?;
    Ok([(schema_path(), schema), (guide_path(), format!("{before}{BEGIN}\n{table}\n{END}{after}"))])
}
