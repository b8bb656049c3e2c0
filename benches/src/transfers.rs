//! Snapshots on their way to a store and back, beside a plain copy of the same bytes.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use sandhaus_tests::{
    binary,
    server::{DataDir, Options, Server},
};

use crate::{
    machines::CONFIG,
    ours::{NAME, connect},
    report::Report,
};

/// Ways to a store and back, each beside copies.
const ROUNDS: usize = 3;

/// The S3 server of the snapshot store's tests, beside this executable, and the keys that it knows.
const S3_SERVER: &str = "examples/s3-server";
const S3_KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "test-access"), ("AWS_SECRET_ACCESS_KEY", "test-secret")];

/// The bucket that it has.
const BUCKET: &str = "daytona";

const BYTES_PER_BLOCK: u64 = 512;

/// Measures how fast a snapshot that the data directory has goes to stores and comes back.
pub(crate) fn measure(
    report: &mut Report,
    dir: &DataDir,
    scratch: &Path,
    snapshot: &str,
) -> anyhow::Result<()> {
    let folder = scratch.join("store");
    fs_err::create_dir_all(&folder)?;
    let config = format!("{CONFIG}snapshots:\n  store: {}\n", folder.display());
    measure_store(report, dir, scratch, snapshot, "a directory", config, &[])?;
    // Its place on the disk is the next one's.
    fs_err::remove_dir_all(&folder)?;
    let beside = std::env::current_exe()?;
    let program = beside.parent().context("an executable lies in a folder")?.join(S3_SERVER);
    if !program.exists() {
        report.absent("an S3 store", &format!("{} is not built", program.display()));
        return Ok(());
    }
    let s3 = S3::start(&program, &scratch.join("bucket"))?;
    let config = format!("{CONFIG}snapshots:\n  store: s3://{BUCKET}\n  endpoint: http://{}\n", s3.address);
    measure_store(report, dir, scratch, snapshot, "an S3 server on this machine", config, &S3_KEYS)
}

fn measure_store(
    report: &mut Report,
    dir: &DataDir,
    scratch: &Path,
    snapshot: &str,
    store: &str,
    config: String,
    env: &[(&str, &str)],
) -> anyhow::Result<()> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let server = Server::start_with(dir, &Options { config: Some(config), env });
    let cli = |arguments: &[&str]| -> anyhow::Result<f64> {
        let start = Instant::now();
        let ran = binary::run(server.cli().args(["snapshot"]).args(arguments));
        let seconds = start.elapsed().as_secs_f64();
        ensure!(ran.code == 0, "snapshot {arguments:?}: {}", ran.stderr);
        Ok(seconds)
    };
    let (mut pushes, mut pulls, mut copies, mut kept) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let files = files_of(dir, &server, snapshot)?;
        let mebibytes = mebibytes(&files)?;
        let (copied, synced) = copy(&files, &scratch.join("copy"))?;
        copies.push(mebibytes / copied);
        kept.push(mebibytes / (copied + synced));
        pushes.push(mebibytes / cli(&["push", snapshot])?);
        cli(&["rm", snapshot])?;
        pulls.push(mebibytes / cli(&["pull", snapshot])?);
        cli(&["rm", "--remote", snapshot])?;
    }
    server.stop();
    for (what, own) in [("push to", pushes), ("pull from", pulls)] {
        let what = format!("{what} {store} of a snapshot with 1 GiB of touched memory");
        report.add(&what, NAME, "MiB/s", own);
        report.add(&what, "cp", "MiB/s", copies.clone());
        report.add(&what, "cp, then sync", "MiB/s", kept.clone());
    }
    Ok(())
}

/// The files that a snapshot is made of.
fn files_of(dir: &DataDir, server: &Server, snapshot: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut connection = connect(&server.http())?;
    let answer = connection.send("GET", &format!("/v1/snapshots/{snapshot}"), "", b"")?;
    ensure!(answer.status == 200, "snapshot {snapshot}: {}", answer.text());
    let id = answer.json::<sandhaus_client::wire::SnapshotInfo>().id;
    let folder = dir.path().join("snapshots").join(id).join("machine");
    let entries = fs_err::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    entries.collect()
}

/// What they take on the disk: holes are copied by nobody.
fn mebibytes(files: &[PathBuf]) -> anyhow::Result<f64> {
    let mut bytes = 0;
    for file in files {
        bytes += fs_err::metadata(file)?.blocks() * BYTES_PER_BLOCK;
    }
    Ok(bytes as f64 / f64::from(1 << 20))
}

/// Copies files with `cp`, then has them on the disk: the seconds that each took.
fn copy(files: &[PathBuf], into: &Path) -> anyhow::Result<(f64, f64)> {
    fs_err::create_dir_all(into)?;
    let start = Instant::now();
    let copied = Command::new("cp").arg("--reflink=never").args(files).arg(into).status()?;
    let took = start.elapsed().as_secs_f64();
    ensure!(copied.success(), "cp failed");
    let start = Instant::now();
    for entry in fs_err::read_dir(into)? {
        fs_err::File::open(entry?.path())?.sync_all()?;
    }
    let synced = start.elapsed().as_secs_f64();
    fs_err::remove_dir_all(into)?;
    Ok((took, synced))
}

/// A real S3 server, a process of its own.
struct S3 {
    child: Child,
    address: String,
}

impl S3 {
    fn start(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .arg(folder)
            .arg("0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the S3 server")?;
        let mut address = String::new();
        let stdout = child.stdout.take().expect("its output is piped");
        BufReader::new(stdout).read_line(&mut address)?;
        ensure!(!address.is_empty(), "the S3 server ended");
        Ok(Self { child, address: address.trim().to_owned() })
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
