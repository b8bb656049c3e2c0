//! Sandhaus itself, over HTTP as its users see it, and the order in which everything takes its turn.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use sandhaus_client::wire::{ExecResult, SessionInfo};
use sandhaus_tests::{
    binary,
    http::{Connection, Http},
    process,
    server::{DataDir, Server},
};
use serde_json::json;

use crate::{
    Arguments,
    floor::{self, First, Sample},
    peers::{self, Peer},
    pooled,
    report::Report,
};

/// How the report calls us.
pub(crate) const NAME: &str = "sandhaus";

const CREATE: &str = "cold create -> first command's result";
const BARE: &str = "one whole run of `true` from the command line";
const IN_FLIGHT: [usize; 3] = [1, 8, 32];

/// Samples that warm caches and count for nothing.
const WARM_UP: usize = 5;

/// Measures everything there is.
pub(crate) fn measure(
    report: &mut Report,
    arguments: &Arguments,
    root: &Path,
    scratch: &Path,
) -> anyhow::Result<()> {
    let dir = DataDir::in_folder(scratch);
    import(&dir, root)?;
    let server = Server::start(&dir);
    let (mut peers, absent) = peers::find(root, scratch);
    for (name, why) in absent {
        report.absent(&name, &why);
    }
    latencies(report, arguments, root, scratch, &server, &mut peers)?;
    round_trips(report, arguments, &server)?;
    throughput(report, arguments, root, scratch, &server, &peers)?;
    drop(peers);
    pooled::at_once(report, "100 creates at once", &server)?;
    pooled::measure(report, arguments, root, scratch)?;
    alive(report, arguments, &dir, server)?;
    Ok(())
}

/// Gives a data directory the image that everything here is made of.
pub(crate) fn import(dir: &DataDir, root: &Path) -> anyhow::Result<()> {
    let imported = binary::run(binary::command(dir.path()).args(["image", "import", "bench"]).arg(root));
    ensure!(imported.code == 0, "the image is not imported: {}", imported.stderr);
    Ok(())
}

/// Cold creates, the floor's, and the peers' whole runs, one of each in turn.
fn latencies(
    report: &mut Report,
    arguments: &Arguments,
    root: &Path,
    scratch: &Path,
    server: &Server,
    found: &mut [Peer],
) -> anyhow::Result<()> {
    let mut connection = server.http().connect()?;
    let mut floor = Floor::start(root, scratch)?;
    let alone = DataDir::in_folder(scratch);
    import(&alone, root)?;

    let (mut creates, mut firsts, mut programs, mut deletes) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut floor_builtin, mut floor_program): (Vec<Sample>, Vec<Sample>) = (Vec::new(), Vec::new());
    let mut runs = Vec::new();
    let mut peer_runs: Vec<(String, Vec<f64>)> =
        found.iter().map(|peer| (peer.name.clone(), Vec::new())).collect();
    for round in 0..arguments.samples + WARM_UP {
        let (create, first, delete) = one_life(&mut connection, "echo hi")?;
        let (_, program, _) = one_life(&mut connection, "/bin/true")?;
        let builtin = floor.sample(First::Builtin)?;
        let bare = floor.sample(First::Program)?;
        // The slow ones need fewer samples for the same certainty.
        let turn = round % 4 == 0;
        let run = if turn { Some(run_alone(&alone)?) } else { None };
        for (peer, (_, times)) in found.iter_mut().zip(&mut peer_runs).filter(|_| turn) {
            match peer.run() {
                Ok(time) => times.push(time),
                Err(error) => report.absent(&peer.name, &format!("{error:#}")),
            }
        }
        if round < WARM_UP {
            peer_runs.iter_mut().for_each(|(_, times)| times.clear());
            continue;
        }
        creates.push(create);
        firsts.push(first);
        programs.push(program);
        deletes.push(delete);
        floor_builtin.push(builtin);
        floor_program.push(bare);
        runs.extend(run);
    }
    let milliseconds =
        |samples: &[Sample], of: fn(&Sample) -> f64| samples.iter().map(|s| of(s) / 1e3).collect();
    report.add(CREATE, NAME, "ms", firsts);
    report.add(CREATE, "floor, shell builtin", "ms", milliseconds(&floor_builtin, |sample| sample.first));
    report.add(CREATE, "sandhaus, /bin/true", "ms", programs);
    report.add(CREATE, "floor, /bin/true", "ms", milliseconds(&floor_program, |sample| sample.first));
    for (name, times) in &peer_runs {
        report.add(CREATE, &format!("{name}, whole run of true"), "ms", times.clone());
    }
    report.add("create alone", NAME, "ms", creates);
    report.add(
        "create alone",
        "floor, first word",
        "ms",
        milliseconds(&floor_program, |sample| sample.ready),
    );
    report.add("destroy", NAME, "ms", deletes);
    report.add("destroy", "floor", "ms", milliseconds(&floor_program, |sample| sample.destroy));
    report.add(BARE, NAME, "ms", runs);
    for (name, times) in peer_runs {
        report.add(BARE, &name, "ms", times);
    }
    Ok(())
}

/// Create, one command, delete: times of the create, of create and command together, and of the delete.
fn one_life(connection: &mut Connection, cmd: &str) -> anyhow::Result<(f64, f64, f64)> {
    let start = Instant::now();
    let id = create(connection)?;
    let created = elapsed(start);
    exec(connection, &id, cmd)?;
    let first = elapsed(start);
    let end = Instant::now();
    delete(connection, &id)?;
    Ok((created, first, elapsed(end)))
}

pub(crate) fn elapsed(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

pub(crate) fn create(connection: &mut Connection) -> anyhow::Result<String> {
    let answer = connection.send("POST", "/v1/sessions", "application/json", b"{\"image\":\"bench\"}")?;
    ensure!(answer.status == 201, "create: {}", answer.text());
    Ok(answer.json::<SessionInfo>().id)
}

pub(crate) fn exec(connection: &mut Connection, id: &str, cmd: &str) -> anyhow::Result<()> {
    let body = json!({"cmd": cmd}).to_string();
    let path = format!("/v1/sessions/{id}/exec");
    let answer = connection.send("POST", &path, "application/json", body.as_bytes())?;
    ensure!(answer.status == 200, "exec: {}", answer.text());
    ensure!(answer.json::<ExecResult>().exit_code == 0, "exec: {}", answer.text());
    Ok(())
}

pub(crate) fn delete(connection: &mut Connection, id: &str) -> anyhow::Result<()> {
    let answer = connection.send("DELETE", &format!("/v1/sessions/{id}"), "", b"")?;
    ensure!(answer.status == 200, "delete: {}", answer.text());
    Ok(())
}

fn run_alone(dir: &DataDir) -> anyhow::Result<f64> {
    let mut command = binary::command(dir.path());
    command.args(["run", "--image", "bench", "--", "true"]);
    let start = Instant::now();
    let ran = binary::run(&mut command);
    ensure!(ran.code == 0, "run: {}", ran.stderr);
    Ok(elapsed(start))
}

/// Commands in a sandbox that lives already.
fn round_trips(report: &mut Report, arguments: &Arguments, server: &Server) -> anyhow::Result<()> {
    let mut connection = server.http().connect()?;
    let id = create(&mut connection)?;
    let mut floor: Vec<f64> = Vec::new();
    for (what, cmd) in [("exec of a shell builtin", ":"), ("exec of /bin/true", "/bin/true")] {
        let mut times = Vec::new();
        for round in 0..(arguments.samples * 5 + WARM_UP) {
            let start = Instant::now();
            exec(&mut connection, &id, cmd)?;
            if round >= WARM_UP {
                times.push(elapsed(start));
            }
        }
        report.add(what, NAME, "ms", times);
    }
    for round in 0..(arguments.samples * 5 + WARM_UP) {
        let start = Instant::now();
        connection.send("GET", "/healthz", "", b"")?;
        if round >= WARM_UP {
            floor.push(elapsed(start));
        }
    }
    report.add("HTTP round trip without a sandbox", NAME, "ms", floor);
    delete(&mut connection, &id)
}

/// Whole lives per second with some in flight.
fn throughput(
    report: &mut Report,
    arguments: &Arguments,
    root: &Path,
    scratch: &Path,
    server: &Server,
    peers: &[Peer],
) -> anyhow::Result<()> {
    let time = Duration::from_secs(arguments.seconds);
    for in_flight in IN_FLIGHT {
        let rate = creates_per_second(server, in_flight, time)?;
        report.add(&format!("create + destroy per second, {in_flight} in flight"), NAME, "/s", vec![rate]);
        let what = format!("create + exec + destroy per second, {in_flight} in flight");
        let http = server.http();
        let rate = per_second(in_flight, time, || {
            let mut connection = connect(&http)?;
            Ok(move || one_life(&mut connection, "echo hi").map(drop))
        })?;
        report.add(&what, NAME, "/s", vec![rate]);
        let rate = per_second(in_flight, time, || {
            let mut floor = Floor::start(root, scratch)?;
            Ok(move || floor.sample(First::Builtin).map(drop))
        })?;
        report.add(&what, "floor", "/s", vec![rate]);
        for peer in peers {
            let rate = per_second(in_flight, time, || {
                let mut worker = peer.another()?;
                Ok(move || worker.run().map(drop))
            });
            match rate {
                Ok(rate) => report.add(&what, &format!("{}, whole run of true", peer.name), "/s", vec![rate]),
                Err(error) => {
                    report.absent(&format!("{}, {in_flight} in flight", peer.name), &format!("{error:#}"))
                }
            }
        }
    }
    Ok(())
}

/// Creates per second, each deleted again, with so many in flight.
pub(crate) fn creates_per_second(server: &Server, in_flight: usize, time: Duration) -> anyhow::Result<f64> {
    let http = server.http();
    per_second(in_flight, time, || {
        let mut connection = connect(&http)?;
        Ok(move || {
            let id = create(&mut connection)?;
            delete(&mut connection, &id)
        })
    })
}

pub(crate) fn connect(http: &Http) -> anyhow::Result<Connection> {
    http.connect().context("connect to the server")
}

pub(crate) fn per_second<W: FnMut() -> anyhow::Result<()> + Send>(
    in_flight: usize,
    time: Duration,
    worker: impl Fn() -> anyhow::Result<W>,
) -> anyhow::Result<f64> {
    let workers = (0..in_flight).map(|_| worker()).collect::<anyhow::Result<Vec<_>>>()?;
    let done = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|mut work| {
                let done = &done;
                scope.spawn(move || {
                    while start.elapsed() < time {
                        work()?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, anyhow::Error>(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a worker panicked"))?)
    })?;
    Ok(done.into_inner() as f64 / start.elapsed().as_secs_f64())
}

/// Memory with many alive, and how long a killed server takes to have them all again.
fn alive(report: &mut Report, arguments: &Arguments, dir: &DataDir, server: Server) -> anyhow::Result<()> {
    let mut connection = server.http().connect()?;
    report.add("resident memory of the idle server", NAME, "MiB", vec![resident(server.handle().pid())]);
    let ids = (0..arguments.alive)
        .map(|_| {
            let id = create(&mut connection)?;
            exec(&mut connection, &id, "echo warm")?;
            Ok(id)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let with = format!("with {} sandboxes alive", arguments.alive);
    report.add(
        &format!("resident memory of the server {with}"),
        NAME,
        "MiB",
        vec![resident(server.handle().pid())],
    );
    if let Some(launcher) = server.launcher() {
        report.add(
            &format!("resident memory of the launcher {with}"),
            NAME,
            "MiB",
            vec![resident(launcher.pid())],
        );
    }
    let (mut agents, mut shells, mut both) = (Vec::new(), Vec::new(), vec![0.0; ids.len()]);
    for process in processes_of(&ids) {
        let own = private(process.pid);
        both[process.sandbox] += own;
        if process.is_agent { agents.push(own) } else { shells.push(own) }
    }
    report.add(&format!("private memory of a sandbox {with}"), NAME, "MiB", both);
    report.add(&format!("private memory of a sandbox {with}"), "sandhaus, agent only", "MiB", agents);
    report.add(&format!("private memory of a sandbox {with}"), "sandhaus, shell only", "MiB", shells);

    drop(connection);
    server.kill();
    let start = Instant::now();
    let server = Server::start(dir);
    report.add(&format!("restart after kill -9 {with}"), "sandhaus, listening", "ms", vec![elapsed(start)]);
    let mut connection = server.http().connect()?;
    for id in &ids {
        exec(&mut connection, id, ":")?;
    }
    report.add(
        &format!("restart after kill -9 {with}"),
        "sandhaus, all have answered",
        "ms",
        vec![elapsed(start)],
    );
    for id in &ids {
        delete(&mut connection, id)?;
    }
    server.stop();
    Ok(())
}

/// A process of a sandbox.
pub(crate) struct Inside {
    /// Place of the sandbox in the list.
    pub(crate) sandbox: usize,
    pub(crate) pid: u32,
    pub(crate) is_agent: bool,
}

/// What runs now in these sandboxes.
pub(crate) fn processes_of(ids: &[String]) -> Vec<Inside> {
    let inside = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let sandbox = ids.iter().position(|id| text.contains(id.as_str()))?;
        let is_agent = process::status(pid, "NSpid").is_some_and(|list| list.ends_with("\t1"));
        Some(Inside { sandbox, pid, is_agent })
    };
    process::all().into_iter().filter_map(inside).collect()
}

/// Resident memory in MiB.
fn resident(pid: u32) -> f64 {
    let text = process::status(pid, "VmRSS").unwrap_or_default();
    text.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

/// Memory in MiB that would be free if the process were not there.
pub(crate) fn private(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = text
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.sum::<f64>() / 1024.0
}

/// The floor probe, a process of its own with one thread.
struct Floor {
    child: Child,
    requests: Option<ChildStdin>,
    samples: BufReader<ChildStdout>,
}

impl Floor {
    fn start(root: &Path, scratch: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(floor::ARGUMENT)
            .args([root, scratch])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = child.stdin.take();
        let samples = BufReader::new(child.stdout.take().expect("the output is piped"));
        Ok(Self { child, requests, samples })
    }

    fn sample(&mut self, first: First) -> anyhow::Result<Sample> {
        let word: &[u8] = if first == First::Builtin { b"builtin\n" } else { b"program\n" };
        self.requests.as_mut().expect("open until dropped").write_all(word)?;
        let mut line = String::new();
        self.samples.read_line(&mut line)?;
        let sample: Result<Sample, String> = serde_json::from_str(&line).context("the floor probe ended")?;
        sample.map_err(|error| anyhow!("floor: {error}"))
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // The end of its input is the probe's end; it removes its own on the way.
        self.requests = None;
        let _ = self.child.wait();
    }
}
