//! `qemu-img`, for work on whole disks. It is never on the way of a request that somebody waits for in milliseconds.
//!
//! It runs as root, so it opens nothing that a header could name: the chain was followed and checked here, and is given to
//! it whole, with every format pinned.

use std::{
    ffi::OsStr,
    io,
    path::Path,
    process::{Command, Stdio},
};

use sandhaus_sandbox::engine::{EngineError, EngineResult};
use serde_json::{Value, json};

use super::disk::{Chain, PACKED, layer_name};

/// The program.
const PROGRAM: &str = "qemu-img";

/// What `qemu-img check` says of a file that only wastes space.
const CHECK_LEAKS: i32 = 3;

/// Bytes of what it complains about that are kept.
const COMPLAINT_BYTES_MAX: usize = 2000;

/// Threads, in its own words, that compress at a time.
const COROUTINES: &str = "8";

/// Whether it is there.
pub(super) fn is_installed() -> bool {
    let tried = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).output();
    tried.is_ok_and(|output| output.status.success())
}

/// Writes a chain as one file that stands alone, compressed.
pub(super) fn flatten(directory: &Path, chain: &Chain, into: &Path) -> EngineResult<()> {
    let source = format!("json:{}", pinned(&chain.layers));
    let options = "compression_type=zstd,cluster_size=65536";
    let arguments: [&OsStr; 12] = [
        "convert".as_ref(),
        "-c".as_ref(),
        "-W".as_ref(),
        "-m".as_ref(),
        COROUTINES.as_ref(),
        "-O".as_ref(),
        "qcow2".as_ref(),
        "-o".as_ref(),
        options.as_ref(),
        "--".as_ref(),
        source.as_ref(),
        into.as_os_str(),
    ];
    run("flatten disk", directory, &arguments)
}

/// The chain as `qemu-img` takes it, whatever the headers say.
fn pinned(layers: &[u32]) -> Value {
    layers.iter().fold(Value::Null, |below, number| {
        json!({
            "driver": "qcow2",
            "file": { "driver": "file", "filename": layer_name(*number) },
            "backing": below,
        })
    })
}

/// Makes one layer of those above the image's, in a directory that no machine uses.
pub(super) fn merge(directory: &Path, chain: &Chain, image_layers: usize) -> EngineResult<()> {
    let Some(top) = chain.top() else { return Ok(()) };
    let base =
        image_layers.min(chain.layers.len() - 1).checked_sub(1).map(|index| layer_name(chain.layers[index]));
    let (base, top) = (base.unwrap_or_default(), layer_name(top));
    let arguments = ["rebase", "-f", "qcow2", "-F", "qcow2", "-b", &base, "--", &top].map(OsStr::new);
    run("merge layers of disk", directory, &arguments)
}

/// Checks a packed disk as a whole.
pub(super) fn check(directory: &Path) -> EngineResult<()> {
    let arguments = ["check", "-q", "-f", "qcow2", "--", PACKED].map(OsStr::new);
    let (code, complaint) = start("check disk", directory, &arguments)?;
    match code {
        Some(0 | CHECK_LEAKS) => Ok(()),
        _ => {
            tracing::warn!(complaint, "a packed disk is damaged");
            Err(EngineError::Invalid(format!("{PACKED} of the snapshot is damaged")))
        }
    }
}

fn run(what: &'static str, directory: &Path, arguments: &[&OsStr]) -> EngineResult<()> {
    match start(what, directory, arguments)? {
        (Some(0), _) => Ok(()),
        (_, complaint) if complaint.contains("No space left on device") => {
            Err(EngineError::Exhausted("disk space".to_owned()))
        }
        (_, complaint) => Err(EngineError::host(what, io::Error::other(complaint))),
    }
}

/// Runs it to its end; gives its code and what it complained about.
fn start(what: &'static str, directory: &Path, arguments: &[&OsStr]) -> EngineResult<(Option<i32>, String)> {
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(EngineError::Unsupported(format!(
                "this without {PROGRAM} (Debian's package qemu-utils)"
            )));
        }
        Err(error) => return Err(EngineError::host(what, error)),
    };
    let mut complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    complaint.truncate(complaint.floor_char_boundary(COMPLAINT_BYTES_MAX));
    Ok((output.status.code(), complaint))
}
