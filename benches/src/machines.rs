//! Virtual machines: cold boots, ways back into a machine's memory, clones, forks.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use sandhaus_client::wire::SessionInfo;
use sandhaus_tests::{
    binary,
    http::Connection,
    process,
    server::{DataDir, Options, Server},
};
use serde_json::json;

use crate::{
    loadvm::Loadvm,
    ours::{NAME, connect, delete, elapsed, exec},
    report::Report,
};

const IMAGE: &str = "bench-vm";

/// Memory of the guest that much of is written to.
const LARGE_MIB: u64 = 2560;

/// Writes 1 GiB of memory, and leaves it written.
const TOUCH: &str = "mkdir -p /bench && mount -t tmpfs -o size=1200m bench /bench && \
                     yes 0123456789abcde | head -c 1073741824 > /bench/touched && sync";

/// Memory of the guests that are many.
const SMALL_MIB: u64 = 256;

/// Cold boots, which take long and differ little.
const BOOTS: usize = 3;

/// Samples of each way back, taken in turns.
const RETURNS: usize = 8;

const CLONES_IN_FLIGHT: [usize; 3] = [1, 4, 8];

/// Clones of each throughput.
const CLONES: usize = 16;

const BACK: &str = "1 GiB of touched memory: snapshot -> first command's result";

/// Measures everything about virtual machines, if this machine has what they need.
pub(crate) fn measure(report: &mut Report, scratch: &Path) -> anyhow::Result<()> {
    let dir = DataDir::in_folder(scratch);
    let root = scratch.join("guest");
    guest(&root)?;
    let mut build = binary::command(dir.path());
    build.args(["image", "build-vm", "--initramfs-only", "--name", IMAGE, "--from"]).arg(&root);
    let built = binary::run(&mut build);
    if built.code != 0 {
        report.absent("virtual machines", built.stderr.trim());
        return Ok(());
    }
    let config = "default_engine: qemu\ndefault_image: bench-vm\nsecurity: container\nlog_level: info\n";
    let server = Server::start_with(&dir, &Options { config: Some(config.to_owned()), ..Options::default() });
    let mut connection = connect(&server.http())?;
    boots(report, &mut connection)?;
    ways_back(report, &dir, scratch, &mut connection)?;
    clones(report, &server, &mut connection)?;
    forks(report, &server, &mut connection)?;
    server.delete_all();
    server.stop();
    Ok(())
}

/// A guest of busybox alone.
fn guest(root: &Path) -> anyhow::Result<()> {
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    for folder in ["bin", "etc", "root", "tmp", "proc", "sys", "dev", "run", "workspace"] {
        fs_err::create_dir_all(root.join(folder))?;
    }
    fs_err::copy(busybox.context("busybox is not installed")?, root.join("bin/busybox"))?;
    for name in ["sh", "cat", "echo", "head", "mkdir", "mount", "sync", "true", "yes", "sleep"] {
        fs_err::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    fs_err::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    Ok(fs_err::write(root.join("etc/group"), "root:x:0:\n")?)
}

fn boots(report: &mut Report, connection: &mut Connection) -> anyhow::Result<()> {
    let (mut ups, mut firsts) = (Vec::new(), Vec::new());
    for _ in 0..BOOTS {
        let start = Instant::now();
        let id = create(connection, &json!({"memory_mb": SMALL_MIB}))?;
        ups.push(elapsed(start));
        exec(connection, &id, "true")?;
        firsts.push(elapsed(start));
        delete(connection, &id)?;
    }
    report.add("virtual machine, cold boot -> agent", NAME, "ms", ups);
    report.add("virtual machine, cold boot -> first command's result", NAME, "ms", firsts);
    Ok(())
}

/// Ours, `-loadvm`, and a cold boot of the same guest that writes its memory again.
fn ways_back(
    report: &mut Report,
    dir: &DataDir,
    scratch: &Path,
    connection: &mut Connection,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let id = create(connection, &json!({"memory_mb": LARGE_MIB}))?;
    let booted = elapsed(start);
    let touched = Instant::now();
    exec(connection, &id, TOUCH)?;
    report.add(
        "the same memory, written anew after a cold boot",
        NAME,
        "ms",
        vec![booted + elapsed(touched)],
    );
    let captured = Instant::now();
    snapshot(connection, &id, "large")?;
    report.add("1 GiB of touched memory: snapshot taken", NAME, "ms", vec![elapsed(captured)]);
    delete(connection, &id)?;

    let kernel = find(dir.path(), "kernel").context("the image has no kernel")?;
    let initramfs = find(dir.path(), "initramfs").context("the image has no initial file system")?;
    let peer = Loadvm::new(&kernel, &initramfs, scratch, LARGE_MIB)?;
    peer.take(TOUCH)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=RETURNS {
        let start = Instant::now();
        let id = create(connection, &json!({"snapshot": "large"}))?;
        exec(connection, &id, "true")?;
        let time = elapsed(start);
        delete(connection, &id)?;
        let other = peer.sample()?;
        // The first round warms caches.
        if round > 0 {
            ours.push(time);
            theirs.push(other);
        }
    }
    report.add(BACK, NAME, "ms", ours);
    report.add(BACK, "QEMU, -loadvm", "ms", theirs);
    Ok(())
}

fn clones(report: &mut Report, server: &Server, connection: &mut Connection) -> anyhow::Result<()> {
    let id = create(connection, &json!({"memory_mb": SMALL_MIB}))?;
    exec(connection, &id, "true")?;
    snapshot(connection, &id, "small")?;
    delete(connection, &id)?;
    for in_flight in CLONES_IN_FLIGHT {
        let start = Instant::now();
        let made = at_once(server, in_flight)?;
        let rate = made.len() as f64 / start.elapsed().as_secs_f64();
        report.add(&format!("clones of 256 MiB per second, {in_flight} in flight"), NAME, "/s", vec![rate]);
        if in_flight == *CLONES_IN_FLIGHT.last().expect("there are some") {
            let private = made.iter().filter_map(|id| private(id)).collect();
            report.add("private memory of a clone of 256 MiB, others alive", NAME, "MiB", private);
        }
        for id in made {
            delete(connection, &id)?;
        }
    }
    Ok(())
}

/// Makes clones, so many at a time, each with its first command.
fn at_once(server: &Server, in_flight: usize) -> anyhow::Result<Vec<String>> {
    let per_worker = CLONES / in_flight;
    std::thread::scope(|scope| {
        let worker = || -> anyhow::Result<Vec<String>> {
            let mut connection = connect(&server.http())?;
            let one = |connection: &mut Connection| {
                let id = create(connection, &json!({"snapshot": "small"}))?;
                exec(connection, &id, "true")?;
                Ok(id)
            };
            (0..per_worker).map(|_| one(&mut connection)).collect()
        };
        let workers: Vec<_> = (0..in_flight).map(|_| scope.spawn(worker)).collect();
        let made = workers.into_iter().map(|worker| worker.join().expect("a worker does not panic"));
        Ok(made.collect::<anyhow::Result<Vec<_>>>()?.concat())
    })
}

fn forks(report: &mut Report, server: &Server, connection: &mut Connection) -> anyhow::Result<()> {
    let id = create(connection, &json!({"memory_mb": SMALL_MIB}))?;
    exec(connection, &id, "true")?;
    let mut times = Vec::new();
    for _ in 0..BOOTS {
        let start = Instant::now();
        let answer = post(connection, &format!("/v1/sessions/{id}/fork"), &json!({}))?;
        let copy: SessionInfo = serde_json::from_str(&answer)?;
        exec(connection, &copy.id, "true")?;
        times.push(elapsed(start));
        delete(connection, &copy.id)?;
    }
    delete(connection, &id)?;
    report.add("fork of a running machine of 256 MiB -> first command's result", NAME, "ms", times);
    // The server alone knows how long the original stood still.
    let log = server.log();
    let of = |line: &str| line.split("still_ms=").nth(1)?.split_whitespace().next()?.parse::<f64>().ok();
    let still: Vec<f64> = log.lines().filter(|line| line.contains(&id)).filter_map(of).collect();
    report.add("fork: the original stands still", NAME, "ms", still);
    Ok(())
}

fn create(connection: &mut Connection, request: &serde_json::Value) -> anyhow::Result<String> {
    Ok(serde_json::from_str::<SessionInfo>(&post(connection, "/v1/sessions", request)?)?.id)
}

fn snapshot(connection: &mut Connection, session: &str, name: &str) -> anyhow::Result<()> {
    let request = json!({"session": session, "name": name, "kind": "machine"});
    post(connection, "/v1/snapshots", &request).map(drop)
}

fn post(connection: &mut Connection, path: &str, body: &serde_json::Value) -> anyhow::Result<String> {
    let answer = connection.send("POST", path, "application/json", body.to_string().as_bytes())?;
    ensure!(answer.status == 201, "{path}: {} {}", answer.status, answer.text());
    Ok(answer.text())
}

/// The file of this name that lies highest in a folder.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while !folders.is_empty() {
        let entries: Vec<PathBuf> = folders
            .iter()
            .filter_map(|folder| fs_err::read_dir(folder).ok())
            .flat_map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())))
            .collect();
        if let Some(found) =
            entries.iter().find(|path| path.is_file() && path.file_name().is_some_and(|n| n == name))
        {
            return Some(found.clone());
        }
        folders = entries.into_iter().filter(|path| path.is_dir() && !path.is_symlink()).collect();
    }
    None
}

/// Private memory of a sandbox's QEMU in MiB.
fn private(id: &str) -> Option<f64> {
    let of_it = |pid: &u32| {
        let arguments = process::arguments(*pid);
        arguments.first().is_some_and(|program| program.contains("qemu-system"))
            && arguments.iter().any(|argument| argument.contains(id))
    };
    let pid = process::all().into_iter().find(of_it)?;
    let text = fs_err::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<f64>().ok();
    Some(text.lines().filter(|line| line.starts_with("Private_")).filter_map(kib).sum::<f64>() / 1024.0)
}
