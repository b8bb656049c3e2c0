//! The usual way back into a machine, as a peer: QEMU's own snapshot inside of a disk image (`savevm`, `-loadvm`), the guest
//! reached through QEMU's user-space network. Kernel, initial file system, hardware and agent are those of a machine that
//! Sandhaus itself has started, and what is asked of the guest is the same.

use std::{
    cell::Cell,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use sandhaus_tests::{http::Http, process};
use serde_json::{Value, json};

use crate::ours::elapsed;

/// How long anything of QEMU may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// How long a guest that is up may take to answer, else it is asked again.
const LOOK_MAX: Duration = Duration::from_millis(200);

/// The tools that the peer needs; those of Sandhaus are among them.
pub(crate) const PROGRAMS: [&str; 2] = [QEMU, "qemu-img"];

const QEMU: &str = "qemu-system-x86_64";
const MONITOR: &str = "loadvm.qmp";
const DISK: &str = "loadvm.qcow2";

/// Where a machine comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// Its kernel.
    Cold,
    /// The last snapshot in its disk image.
    Snapshot,
    /// Nowhere: it never runs.
    Halted,
}

/// What of a machine of Sandhaus's the peer's has as well.
#[derive(Debug, Clone)]
pub(crate) struct Hardware {
    /// Options of QEMU and their values.
    options: Vec<(&'static str, String)>,
    /// The kernel's command line.
    append: String,
}

impl Hardware {
    /// Reads it off the process of a sandbox that was booted.
    pub(crate) fn of(id: &str) -> Option<Self> {
        let arguments = process::arguments(process_of(id)?);
        let value = |option: &str| {
            let at = arguments.iter().position(|argument| argument == option)?;
            arguments.get(at + 1).cloned()
        };
        // The machine's type alone: how its memory is held is what differs.
        let machine = value("-machine")?.split(',').next()?.to_owned();
        let mut options = vec![("-machine", machine)];
        for option in ["-accel", "-cpu", "-smp"] {
            options.push((option, value(option)?));
        }
        Some(Self { options, append: value("-append")? })
    }
}

/// The QEMU of a sandbox.
pub(crate) fn process_of(id: &str) -> Option<u32> {
    let of_it = |pid: &u32| {
        let arguments = process::arguments(*pid);
        arguments.first().is_some_and(|program| program.contains("qemu-system"))
            && arguments.iter().any(|argument| argument.contains(id))
    };
    process::all().into_iter().find(of_it)
}

/// QEMU, a guest, and the disk image that its snapshots lie in.
pub(crate) struct Loadvm {
    hardware: Hardware,
    kernel: PathBuf,
    initramfs: PathBuf,
    folder: PathBuf,
    memory_mib: u64,
    /// The snapshots that were taken.
    taken: Cell<usize>,
}

/// One that runs.
pub(crate) struct Running {
    child: Child,
    folder: PathBuf,
    http: Http,
}

impl Loadvm {
    /// With the kernel and the initial file system of an image, in an empty folder.
    pub(crate) fn new(
        hardware: Hardware,
        (kernel, initramfs): &(PathBuf, PathBuf),
        folder: &Path,
        memory_mib: u64,
    ) -> anyhow::Result<Self> {
        fs_err::create_dir_all(folder)?;
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=128k,extended_l2=on"])
            .arg(folder.join(DISK))
            .arg("64M")
            .status()?;
        ensure!(made.success(), "qemu-img cannot make a disk");
        let (kernel, initramfs, folder) = (kernel.clone(), initramfs.clone(), folder.to_owned());
        Ok(Self { hardware, kernel, initramfs, folder, memory_mib, taken: Cell::default() })
    }

    /// Starts it.
    fn start(&self, begin: Begin) -> anyhow::Result<Running> {
        // Free a moment ago, which is as good as it gets for a program that only takes numbers.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let forward = format!("hostfwd=tcp:127.0.0.1:{port}-192.168.0.2:2280");
        let monitor = self.folder.join(MONITOR);
        // That of the one before.
        let _ = fs_err::remove_file(&monitor);
        let mut command = Command::new(QEMU);
        for (option, value) in &self.hardware.options {
            command.arg(option).arg(value);
        }
        command.args(["-no-user-config", "-nodefaults", "-display", "none"]);
        command.args(["-m", &self.memory_mib.to_string()]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        command.args(["-append", &self.hardware.append]);
        command.args(["-netdev", &format!("user,id=net0,net=192.168.0.0/24,host=192.168.0.1,{forward}")]);
        command.args(["-device", "virtio-net-pci,netdev=net0,romfile="]);
        command.args(["-device", "virtio-rng-pci", "-serial", "null"]);
        let disk = self.folder.join(DISK);
        command.arg("-drive").arg(format!("if=virtio,format=qcow2,cache=unsafe,file={}", disk.display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
        match begin {
            Begin::Cold => {}
            Begin::Snapshot => drop(command.args(["-loadvm", &self.taken.get().to_string()])),
            Begin::Halted => drop(command.arg("-S")),
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Running {
            child: child.context("start QEMU")?,
            folder: self.folder.clone(),
            http: Http::new(address),
        })
    }

    /// From nothing to a QEMU whose monitor answers, without its machine running, in milliseconds.
    pub(crate) fn bare(&self) -> anyhow::Result<f64> {
        let start = Instant::now();
        let running = self.start(Begin::Halted)?;
        running.monitor("info version")?;
        Ok(elapsed(start))
    }

    /// From nothing, by its kernel, to one that knows who it is.
    pub(crate) fn boot(&self) -> anyhow::Result<Running> {
        let running = self.start(Begin::Cold)?;
        running.until_up()?;
        running.until_answered("/sandhaus/hello", greeting().to_string().as_bytes())?;
        Ok(running)
    }

    /// From nothing, out of the last snapshot.
    pub(crate) fn back(&self) -> anyhow::Result<Running> {
        self.start(Begin::Snapshot)
    }

    /// Takes one more snapshot of the machine that runs, and gives the milliseconds that it stood still for it.
    pub(crate) fn save(&self, running: &Running) -> anyhow::Result<f64> {
        let tag = self.taken.get() + 1;
        let start = Instant::now();
        let said = running.monitor(&format!("savevm {tag}"))?;
        ensure!(said.is_empty(), "savevm: {said}");
        self.taken.set(tag);
        Ok(elapsed(start))
    }
}

impl Running {
    /// Runs a command to its end and gives what it said.
    pub(crate) fn execute(&self, command: &str) -> anyhow::Result<String> {
        let body = json!({"command": command}).to_string();
        let answer: Value = serde_json::from_str(&self.until_answered("/process/execute", body.as_bytes())?)?;
        let text = answer["result"].as_str().unwrap_or_default().to_owned();
        ensure!(answer["exitCode"] == 0, "{command}: {answer}");
        Ok(text)
    }

    /// Waits until the agent answers. QEMU's network tries again after seconds only if a guest does not listen yet, so
    /// each look is a connection of its own.
    fn until_up(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let look = || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(self.http.address())?;
            stream.set_read_timeout(Some(LOOK_MAX))?;
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n")?;
            stream.read_exact(&mut [0])
        };
        while let Err(error) = look() {
            ensure!(Instant::now() < deadline, "the guest does not answer: {error}");
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// QEMU's network accepts before the guest does, so only an answer counts.
    fn until_answered(&self, path: &str, body: &[u8]) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.http.try_send("POST", path, "application/json", body) {
                Ok(answer) if answer.status < 300 => return Ok(answer.text()),
                Ok(answer) => anyhow::bail!("{path}: {} {}", answer.status, answer.text()),
                Err(error) => ensure!(Instant::now() < deadline, "{path}: {error}"),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// A command of QEMU's monitor, and what it says.
    fn monitor(&self, line: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            match UnixStream::connect(self.folder.join(MONITOR)) {
                Ok(stream) => break stream,
                Err(error) => ensure!(Instant::now() < deadline, "the monitor of QEMU: {error}"),
            }
            std::thread::sleep(PAUSE);
        };
        let mut answers = BufReader::new(stream.try_clone()?).lines();
        let mut call = |command: Value| -> anyhow::Result<Value> {
            writeln!(stream, "{command}")?;
            loop {
                let line = answers.next().context("QEMU ended")??;
                let answer: Value = serde_json::from_str(&line)?;
                if answer.get("return").is_some() || answer.get("error").is_some() {
                    return Ok(answer);
                }
            }
        };
        call(json!({"execute": "qmp_capabilities"}))?;
        let arguments = json!({"command-line": line});
        let answer = call(json!({"execute": "human-monitor-command", "arguments": arguments}))?;
        Ok(answer["return"].as_str().with_context(|| format!("{line}: {answer}"))?.trim().to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an agent in a virtual machine is told first.
fn greeting() -> Value {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
    let boot = json!({
        "sandbox_id": "00000000-000", "generation": 1, "workdir": "/", "env": {},
        "user": {"uid": 0, "gid": 0, "name": "root", "home": "/root", "unprivileged": false},
    });
    let guest = json!({
        "boot": boot, "hostname": "bench", "unix_time_ns": now, "entropy": "00".repeat(64), "token": "bench-of-virtual-machines",
    });
    json!({"protocol": 1, "sandbox_id": "00000000-000", "generation": 1, "guest": guest})
}
