//! Virtual machines: cold boots, ways back into a machine's memory, clones, forks.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use sandhaus_client::wire::{ExecResult, SessionInfo};
use sandhaus_tests::{
    binary,
    http::Connection,
    server::{DataDir, Options, Server},
};
use serde_json::json;

use crate::{
    loadvm::{Hardware, Loadvm, PROGRAMS, process_of},
    ours::{NAME, connect, delete, elapsed, exec, private},
    report::Report,
    transfers,
};

/// How every server here is configured, besides.
pub(crate) const CONFIG: &str = "default_engine: qemu\ndefault_image: bench-vm\n";

/// The peer that is compared with.
const PEER: &str = "QEMU, savevm and -loadvm";

const IMAGE: &str = "bench-vm";

/// Programs of the guest.
const APPLETS: [&str; 7] = ["sh", "cat", "head", "true", "yes", "sleep", "adjtimex"];

/// Memory of the guest that much of is written to.
const LARGE_MIB: u64 = 2560;

/// Writes an eighth of 1 GiB into the memory that all of this guest's files are in, and leaves it written: half of it noise,
/// since memory is no text alone.
const TOUCH: &str = "cd /tmp && { [ -f text ] || head -c 16777216 /dev/urandom > noise; } && \
                     { [ -f text ] || yes 0123456789abcde | head -c 16777216 > text; } && \
                     cat noise text noise text noise text noise text >> touched";
const TOUCHES: usize = 8;

/// Memory of the guests that are many.
const SMALL_MIB: u64 = 256;

/// Cold boots, which take long and differ little.
const BOOTS: usize = 3;

/// Starts of a QEMU that does nothing.
const STARTS: usize = 10;

/// Samples of the slow way back.
const RETURNS: usize = 3;

/// Samples of the quick way back to each of the slow.
const RETURNS_OURS: usize = 3;

/// Captures of each kind.
const CAPTURES: usize = 3;

const CLONES_IN_FLIGHT: [usize; 3] = [1, 4, 8];

/// Clones of each throughput, alive together at its end.
const CLONES: usize = 8;

/// Samples of each throughput, in turns.
const ROUNDS: usize = 3;

/// Looks at a clock, of which the quickest says most.
const LOOKS: usize = 5;

/// How long the server may take to write a line of its log.
const LOG_MAX: Duration = Duration::from_secs(10);

const BOOT: &str = "cold boot of 256 MiB -> first command's result";
const BACK: &str = "1 GiB of touched memory: snapshot -> first command's result";
const CLOCK: &str = "clock of a restored machine, off by";
const STILL_LARGE: &str = "1 GiB of touched memory: the machine stands still for a snapshot";
const STILL_SMALL: &str = "machine of 256 MiB: it stands still for a fork";

/// Tells the time to the microsecond.
const NOW: &str = "adjtimex";

/// Measures everything about virtual machines, if this machine has what they need.
pub(crate) fn measure(report: &mut Report, scratch: &Path) -> anyhow::Result<()> {
    const WHAT: &str = "virtual machines";
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let installed =
        |program: &&str| std::env::split_paths(&paths).any(|folder| folder.join(program).exists());
    if let Some(missing) = PROGRAMS.iter().find(|program| !installed(program)) {
        report.absent(WHAT, &format!("{missing} is not installed"));
        return Ok(());
    }
    let dir = DataDir::in_folder(scratch);
    let root = scratch.join("guest");
    if let Err(error) = guest(&root) {
        report.absent(WHAT, &format!("{error:#}"));
        return Ok(());
    }
    let mut build = binary::command(dir.path());
    build.args(["image", "build-vm", "--initramfs-only", "--name", IMAGE, "--from"]).arg(&root);
    let built = binary::run(&mut build);
    if built.code != 0 {
        report.absent(WHAT, built.stderr.trim());
        return Ok(());
    }
    let kernel = (
        find(dir.path(), "kernel").context("the image has no kernel")?,
        find(dir.path(), "initramfs").context("the image has no initial file system")?,
    );
    let server = Server::start_with(&dir, &Options { config: Some(CONFIG.to_owned()), ..Options::default() });
    let mut connection = connect(&server.http())?;
    // The first one brings everything into memory, and shows what a machine is made of.
    let first = match create(&mut connection, &json!({"memory_mb": SMALL_MIB})) {
        Ok(first) => first,
        Err(error) => {
            report.absent(WHAT, &format!("{error:#}"));
            return Ok(());
        }
    };
    let hardware = Hardware::of(&first).context("a machine does not show what it is made of")?;
    delete(&mut connection, &first)?;
    let small = Loadvm::new(hardware.clone(), &kernel, &scratch.join("loadvm-small"), SMALL_MIB)?;
    let large = Loadvm::new(hardware, &kernel, &scratch.join("loadvm-large"), LARGE_MIB)?;
    boots(report, &small, &mut connection)?;
    ways_back(report, &large, &server, &mut connection)?;
    clones(report, &small, &server, &mut connection)?;
    forks(report, &small, &server, &mut connection)?;
    server.delete_all();
    drop(connection);
    server.stop();
    transfers::measure(report, &dir, scratch, LARGE)
}

/// A guest of busybox alone.
fn guest(root: &Path) -> anyhow::Result<()> {
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let busybox = busybox.context("busybox is not installed")?;
    for folder in ["bin", "etc", "root", "tmp", "proc", "sys", "dev", "run", "workspace"] {
        fs_err::create_dir_all(root.join(folder))?;
    }
    fs_err::copy(busybox, root.join("bin/busybox"))?;
    for name in APPLETS {
        fs_err::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    fs_err::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    Ok(fs_err::write(root.join("etc/group"), "root:x:0:\n")?)
}

/// Cold boots, beside the same without anything around it, and what a QEMU costs that runs nothing.
fn boots(report: &mut Report, peer: &Loadvm, connection: &mut Connection) -> anyhow::Result<()> {
    let (mut ups, mut firsts, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..BOOTS {
        let start = Instant::now();
        let id = create(connection, &json!({"memory_mb": SMALL_MIB}))?;
        ups.push(elapsed(start));
        exec(connection, &id, "true")?;
        firsts.push(elapsed(start));
        delete(connection, &id)?;
        let start = Instant::now();
        peer.boot()?.execute("true")?;
        theirs.push(elapsed(start));
    }
    report.add(BOOT, NAME, "ms", firsts);
    report.add(BOOT, "sandhaus, agent greeted", "ms", ups);
    report.add(BOOT, "QEMU and the agent alone", "ms", theirs);
    let bare = (0..STARTS).map(|_| peer.bare()).collect::<anyhow::Result<Vec<_>>>()?;
    report.add(BOOT, "QEMU alone, its monitor answers", "ms", bare);
    Ok(())
}

/// The snapshot of the machine with much memory written to.
const LARGE: &str = "large";

/// Ours, `-loadvm`, and cold boots of the same guest.
fn ways_back(
    report: &mut Report,
    peer: &Loadvm,
    server: &Server,
    connection: &mut Connection,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let id = create(connection, &json!({"memory_mb": LARGE_MIB}))?;
    (0..TOUCHES).try_for_each(|_| exec(connection, &id, TOUCH))?;
    report.add(BACK, "sandhaus, cold boot that writes it all anew", "ms", vec![elapsed(start)]);
    let running = peer.boot()?;
    (0..TOUCHES).try_for_each(|_| running.execute(TOUCH).map(drop))?;
    let mut theirs_still = Vec::new();
    for round in 0..CAPTURES {
        if round > 0 {
            forget(connection, LARGE)?;
        }
        snapshot(connection, &id, LARGE)?;
        theirs_still.push(peer.save(&running)?);
    }
    report.add(STILL_LARGE, NAME, "ms", still(server, &id, CAPTURES)?);
    report.add(STILL_LARGE, PEER, "ms", theirs_still);
    drop(running);
    delete(connection, &id)?;

    let (mut ours, mut theirs, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    let (mut our_clocks, mut their_clocks) = (Vec::new(), Vec::new());
    for round in 0..=RETURNS {
        for _ in 0..RETURNS_OURS {
            let start = Instant::now();
            let id = create(connection, &json!({"snapshot": LARGE}))?;
            said(connection, &id, NOW)?;
            // The first round warms caches.
            if round > 0 {
                ours.push(elapsed(start));
                our_clocks.push(clock_error(|| said(connection, &id, NOW))?);
            }
            delete(connection, &id)?;
        }
        let start = Instant::now();
        let running = peer.back()?;
        running.execute(NOW)?;
        if round > 0 {
            theirs.push(elapsed(start));
            their_clocks.push(clock_error(|| running.execute(NOW))?);
        }
        drop(running);
        let start = Instant::now();
        let id = create(connection, &json!({"memory_mb": LARGE_MIB}))?;
        exec(connection, &id, "true")?;
        cold.push(elapsed(start));
        delete(connection, &id)?;
    }
    report.add(BACK, NAME, "ms", ours);
    report.add(BACK, PEER, "ms", theirs);
    report.add(BACK, "sandhaus, cold boot with nothing in memory", "ms", cold);
    report.add(CLOCK, NAME, "ms", our_clocks);
    report.add(CLOCK, PEER, "ms", their_clocks);
    Ok(())
}

/// How far a guest's clock is from the host's, in milliseconds, by the look at it that took least.
fn clock_error(mut look: impl FnMut() -> anyhow::Result<String>) -> anyhow::Result<f64> {
    let mut best: Option<(f64, f64)> = None;
    for _ in 0..LOOKS {
        let (before, text, after) = (host_seconds(), look()?, host_seconds());
        let value = |name: &str| {
            text.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().parse::<f64>().ok())
        };
        let (seconds, micros) = (value("time.tv_sec:"), value("time.tv_usec:"));
        let guest = seconds.zip(micros).map(|(seconds, micros)| seconds + micros / 1e6);
        let guest = guest.with_context(|| format!("no time in: {text}"))?;
        let (took, off) = (after - before, (guest - f64::midpoint(before, after)).abs());
        if best.is_none_or(|(least, _)| took < least) {
            best = Some((took, off));
        }
    }
    best.map(|(_, off)| off * 1e3).context("nobody looked")
}

fn host_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn clones(
    report: &mut Report,
    peer: &Loadvm,
    server: &Server,
    connection: &mut Connection,
) -> anyhow::Result<()> {
    const SMALL: &str = "small";
    let id = create(connection, &json!({"memory_mb": SMALL_MIB}))?;
    exec(connection, &id, "true")?;
    snapshot(connection, &id, SMALL)?;
    delete(connection, &id)?;
    let (mut rates, mut bare, mut memory) =
        (vec![Vec::new(); CLONES_IN_FLIGHT.len()], Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (place, in_flight) in CLONES_IN_FLIGHT.into_iter().enumerate() {
            let start = Instant::now();
            let made = at_once(server, in_flight, SMALL)?;
            rates[place].push(made.len() as f64 / start.elapsed().as_secs_f64());
            if place + 1 == CLONES_IN_FLIGHT.len() {
                memory.extend(made.iter().filter_map(|id| process_of(id)).map(private));
            }
            for id in made {
                delete(connection, &id)?;
            }
        }
        bare.push(1e3 / peer.bare()?);
    }
    for (in_flight, rates) in CLONES_IN_FLIGHT.into_iter().zip(rates) {
        let what = format!("clones of 256 MiB with a command's result per second, {in_flight} in flight");
        report.add(&what, NAME, "/s", rates);
        report.add(&what, "QEMU alone, its monitor answers", "/s", bare.clone());
    }
    report.add("private memory of a clone of 256 MiB, 8 alive", NAME, "MiB", memory);
    forget(connection, SMALL)
}

/// Makes clones, so many at a time, each with its first command.
fn at_once(server: &Server, in_flight: usize, snapshot: &str) -> anyhow::Result<Vec<String>> {
    let per_worker = CLONES / in_flight;
    std::thread::scope(|scope| {
        let worker = || -> anyhow::Result<Vec<String>> {
            let mut connection = connect(&server.http())?;
            let one = |connection: &mut Connection| {
                let id = create(connection, &json!({"snapshot": snapshot}))?;
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

fn forks(
    report: &mut Report,
    peer: &Loadvm,
    server: &Server,
    connection: &mut Connection,
) -> anyhow::Result<()> {
    const WHAT: &str = "fork of a running machine of 256 MiB -> first command's result";
    let id = create(connection, &json!({"memory_mb": SMALL_MIB}))?;
    exec(connection, &id, "true")?;
    let running = peer.boot()?;
    let (mut times, mut savings, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..CAPTURES {
        let start = Instant::now();
        let answer = post(connection, &format!("/v1/sessions/{id}/fork"), &json!({}))?;
        let copy: SessionInfo = serde_json::from_str(&answer)?;
        exec(connection, &copy.id, "true")?;
        times.push(elapsed(start));
        delete(connection, &copy.id)?;
        savings.push(peer.save(&running)?);
    }
    drop(running);
    // What the usual way needs a second disk image for, which is left out of the sum.
    for saving in &savings {
        let start = Instant::now();
        peer.back()?.execute("true")?;
        theirs.push(saving + elapsed(start));
    }
    report.add(WHAT, NAME, "ms", times);
    report.add(WHAT, PEER, "ms", theirs);
    report.add(STILL_SMALL, NAME, "ms", still(server, &id, CAPTURES)?);
    report.add(STILL_SMALL, PEER, "ms", savings);
    delete(connection, &id)
}

/// How long a machine stood still for each of its captures, which the server alone knows.
fn still(server: &Server, id: &str, captures: usize) -> anyhow::Result<Vec<f64>> {
    let deadline = Instant::now() + LOG_MAX;
    loop {
        let log = server.log();
        let of = |line: &str| line.split("still_ms=").nth(1)?.split_whitespace().next()?.parse::<f64>().ok();
        let found: Vec<f64> = log.lines().filter(|line| line.contains(id)).filter_map(of).collect();
        if found.len() >= captures {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "the server does not say how long a machine stood still");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn create(connection: &mut Connection, request: &serde_json::Value) -> anyhow::Result<String> {
    Ok(serde_json::from_str::<SessionInfo>(&post(connection, "/v1/sessions", request)?)?.id)
}

fn snapshot(connection: &mut Connection, session: &str, name: &str) -> anyhow::Result<()> {
    let request = json!({"session": session, "name": name, "kind": "machine"});
    post(connection, "/v1/snapshots", &request).map(drop)
}

fn forget(connection: &mut Connection, name: &str) -> anyhow::Result<()> {
    let answer = connection.send("DELETE", &format!("/v1/snapshots/{name}"), "", b"")?;
    ensure!(answer.status == 200, "remove snapshot: {}", answer.text());
    Ok(())
}

/// What a command says.
fn said(connection: &mut Connection, id: &str, cmd: &str) -> anyhow::Result<String> {
    let body = json!({"cmd": cmd}).to_string();
    let path = format!("/v1/sessions/{id}/exec");
    let answer = connection.send("POST", &path, "application/json", body.as_bytes())?;
    ensure!(answer.status == 200, "exec: {}", answer.text());
    Ok(answer.json::<ExecResult>().output)
}

fn post(connection: &mut Connection, path: &str, body: &serde_json::Value) -> anyhow::Result<String> {
    let answer = connection.send("POST", path, "application/json", body.to_string().as_bytes())?;
    ensure!(answer.status == 201, "{path}: {} {}", answer.status, answer.text());
    Ok(answer.text())
}

/// The first file of this name somewhere in a folder.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut folders = BTreeSet::from([folder.to_owned()]);
    while let Some(folder) = folders.pop_first() {
        for entry in fs_err::read_dir(&folder).ok()?.filter_map(Result::ok) {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => drop(folders.insert(path)),
                Ok(kind) if kind.is_file() && entry.file_name() == name => return Some(path),
                _ => {}
            }
        }
    }
    None
}
