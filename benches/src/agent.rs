//! The agent: the size of its executable, what it keeps while nobody asks anything, and what a command costs on its way
//! through it.

use std::{
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use sandhaus_tests::{
    http::Connection,
    server::{DataDir, Server},
};
use serde_json::{Value, json};

use crate::{
    Arguments,
    ours::{self, NAME, connect, create, delete, elapsed, exec, private, processes_of},
    report::Report,
};

/// Sandboxes whose agents are idle together: what they all map of one file belongs to none of them.
const IDLE: usize = 8;

/// How long they have been idle when they are looked at.
const REST: Duration = Duration::from_secs(5);

/// Samples to each of the slower measurements' ones.
const SAMPLES_TIMES: usize = 5;

/// Samples that warm caches and count for nothing.
const WARM_UP: usize = 20;

/// What is run. The shell becomes it.
const COMMAND: &str = "exec true";

/// The shells that an agent takes for a single command, best first, and what is in every system.
const SHELLS: [&str; 3] = ["/usr/bin/zsh", "/usr/bin/bash", "/bin/sh"];

const SIZE: &str = "size of the agent's executable";
const MEMORY: &str = "private memory of an agent, idle for 5 s after its first command";
const EXECUTE: &str = "exec true in a sandbox";
const ADDED: &str = "exec true in a sandbox, above the same on the host";

/// Measures everything about the agent.
pub(crate) fn measure(
    report: &mut Report,
    arguments: &Arguments,
    root: &Path,
    scratch: &Path,
) -> anyhow::Result<()> {
    let dir = DataDir::in_folder(scratch);
    ours::import(&dir, root)?;
    let server = Server::start(&dir);
    let mut connection = connect(&server.http())?;
    memory(report, &mut connection)?;
    report.add(SIZE, NAME, "MiB", vec![executable_mib(dir.path())?]);
    round_trips(report, arguments, &dir, root, &mut connection)?;
    server.stop();
    Ok(())
}

/// Size of the one executable that the server has put down for all sandboxes.
fn executable_mib(data_dir: &Path) -> anyhow::Result<f64> {
    let mut files = fs_err::read_dir(data_dir.join("agent"))?;
    let file = files.next().context("the server has put down no agent")??;
    #[expect(clippy::cast_precision_loss, reason = "a few million")]
    let bytes = file.metadata()?.len() as f64;
    Ok(bytes / f64::from(1 << 20))
}

/// Private memory, clean and dirty: what would be free without this agent. Of half of the sandboxes the first command is one
/// of the compatible contract, of the others one in a persistent shell.
///
/// One that is alone is the only one to map its executable, whose pages then count as its own, though the kernel may drop
/// them at any time.
fn memory(report: &mut Report, connection: &mut Connection) -> anyhow::Result<()> {
    let lone = [create(connection)?];
    execute(connection, &through_gateway(&lone[0]))?;
    std::thread::sleep(REST);
    let agents = processes_of(&lone).into_iter().filter(|process| process.is_agent);
    let lone_memory: Vec<f64> = agents.map(|process| private(process.pid)).collect();
    delete(connection, &lone[0])?;

    let ids = (0..IDLE).map(|_| create(connection)).collect::<anyhow::Result<Vec<_>>>()?;
    let is_single = |sandbox: usize| sandbox.is_multiple_of(2);
    for (sandbox, id) in ids.iter().enumerate() {
        if is_single(sandbox) {
            execute(connection, &through_gateway(id))?
        } else {
            exec(connection, id, ":")?
        }
    }
    std::thread::sleep(REST);
    let (mut single, mut shell, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    for process in processes_of(&ids) {
        let own = private(process.pid);
        match (process.is_agent, is_single(process.sandbox)) {
            (true, true) => single.push(own),
            (true, false) => shell.push(own),
            (false, _) => beside.push(own),
        }
    }
    report.add(MEMORY, NAME, "MiB", single);
    report.add(MEMORY, "sandhaus, with a persistent shell", "MiB", shell);
    report.add(MEMORY, "that shell itself", "MiB", beside);
    report.add(MEMORY, "sandhaus, the only sandbox, with its executable", "MiB", lone_memory);
    ids.iter().try_for_each(|id| delete(connection, id))
}

/// The same command on all its ways, one after the other in each round.
fn round_trips(
    report: &mut Report,
    arguments: &Arguments,
    dir: &DataDir,
    root: &Path,
    connection: &mut Connection,
) -> anyhow::Result<()> {
    let id = create(connection)?;
    let mut direct = agent_of(dir.path(), &id)?;
    let inside = |shell: &&str| root.join(&shell[1..]).exists() && Path::new(shell).exists();
    let shell = SHELLS.into_iter().find(inside).context("no shell is both here and in the sandbox")?;
    let path = through_gateway(&id);
    let (mut ours, mut agents, mut shells, mut programs, mut added) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..arguments.samples * SAMPLES_TIMES + WARM_UP {
        let gateway = timed(|| execute(connection, &path))?;
        let agent = timed(|| execute(&mut direct, "/process/execute"))?;
        let by_shell = timed(|| by_hand(Command::new(shell).args(["-c", COMMAND])))?;
        let program = timed(|| by_hand(&mut Command::new("/bin/true")))?;
        if round < WARM_UP {
            continue;
        }
        ours.push(gateway);
        agents.push(agent);
        shells.push(by_shell);
        programs.push(program);
        added.push(gateway - by_shell);
    }
    report.add(EXECUTE, NAME, "ms", ours);
    report.add(EXECUTE, "the agent's own socket", "ms", agents);
    report.add(EXECUTE, "on the host: the same shell and command", "ms", shells);
    report.add(EXECUTE, "on the host: /bin/true alone", "ms", programs);
    report.add(ADDED, NAME, "ms", added);
    delete(connection, &id)
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(elapsed(start))
}

fn through_gateway(id: &str) -> String {
    format!("/toolbox/{id}/process/execute")
}

fn execute(connection: &mut Connection, path: &str) -> anyhow::Result<()> {
    let body = json!({"command": COMMAND}).to_string();
    let answer = connection.send("POST", path, "application/json", body.as_bytes())?;
    ensure!(answer.status == 200, "execute: {}", answer.text());
    ensure!(answer.json::<Value>()["exitCode"] == 0, "execute: {}", answer.text());
    Ok(())
}

/// Without descriptors of its own and with its output read to the end, as the agent runs it.
fn by_hand(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{command:?} fails");
    Ok(())
}

/// A connection to a sandbox's agent past the server.
fn agent_of(data_dir: &Path, id: &str) -> anyhow::Result<Connection> {
    let folder = machine(data_dir, id).context("the sandbox has no machine")?;
    // The path of a socket has to be short.
    let folder = fs_err::File::open(folder)?;
    let path = format!("/proc/self/fd/{}/agent.sock", folder.as_raw_fd());
    Connection::at_socket(path.as_ref()).context("reach the agent")
}

fn machine(data_dir: &Path, id: &str) -> Option<PathBuf> {
    let mut machines = fs_err::read_dir(data_dir.join("machines")).ok()?.flatten();
    machines.find_map(|entry| entry.file_name().to_string_lossy().starts_with(id).then(|| entry.path()))
}
