//! The usual way back into a machine, as a peer: QEMU's own snapshot inside of a disk image (`savevm`, `-loadvm`), the guest
//! reached through QEMU's user-space network. Kernel, initial file system and agent are those of the image that Sandhaus
//! itself starts, and what is asked of the guest is the same.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use sandhaus_tests::http::Http;
use serde_json::{Value, json};

use crate::ours::elapsed;

/// How long anything of QEMU may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

const TAG: &str = "bench";

/// Where a machine comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// Its kernel.
    Cold,
    /// The snapshot in its disk image.
    Snapshot,
}

/// QEMU, a guest, and the disk image that its snapshots lie in.
pub(crate) struct Loadvm {
    kernel: PathBuf,
    initramfs: PathBuf,
    folder: PathBuf,
    memory_mib: u64,
}

/// One that runs.
pub(crate) struct Running {
    child: Child,
    folder: PathBuf,
    http: Http,
}

impl Loadvm {
    /// With the kernel and the initial file system of an image.
    pub(crate) fn new(
        kernel: &Path,
        initramfs: &Path,
        folder: &Path,
        memory_mib: u64,
    ) -> anyhow::Result<Self> {
        let disk = folder.join("loadvm.qcow2");
        let made =
            Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&disk).arg("64M").status()?;
        ensure!(made.success(), "qemu-img cannot make a disk");
        Ok(Self {
            kernel: kernel.to_owned(),
            initramfs: initramfs.to_owned(),
            folder: folder.to_owned(),
            memory_mib,
        })
    }

    /// Starts it.
    pub(crate) fn start(&self, begin: Begin) -> anyhow::Result<Running> {
        // Free a moment ago, which is as good as it gets for a program that only takes numbers.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let forward = format!("hostfwd=tcp:127.0.0.1:{port}-192.168.0.2:2280");
        let monitor = self.folder.join("loadvm.qmp");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-nodefaults"]);
        command.args([
            "-no-user-config",
            "-display",
            "none",
            "-m",
            &self.memory_mib.to_string(),
            "-smp",
            "1",
        ]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        command.args(["-append", "console=ttyS0 quiet"]);
        command.args(["-netdev", &format!("user,id=net0,net=192.168.0.0/24,host=192.168.0.1,{forward}")]);
        command.args(["-device", "virtio-net-pci,netdev=net0,romfile="]);
        command.args(["-device", "virtio-rng-pci", "-serial", "null"]);
        command
            .arg("-drive")
            .arg(format!("if=virtio,format=qcow2,file={}", self.folder.join("loadvm.qcow2").display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
        if begin == Begin::Snapshot {
            command.args(["-loadvm", TAG]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Running {
            child: child.context("start QEMU")?,
            folder: self.folder.clone(),
            http: Http::new(address),
        })
    }

    /// Boots it, tells its agent who it is, lets `prepare` work in it and takes the snapshot.
    pub(crate) fn take(&self, prepare: &str) -> anyhow::Result<()> {
        let running = self.start(Begin::Cold)?;
        let mut hello = String::new();
        write!(hello, "{}", greeting())?;
        running.until_answered("/sandhaus/hello", hello.as_bytes())?;
        let (status, output) = running.execute(prepare)?;
        ensure!(status == 0, "the guest cannot be prepared: {output}");
        running.monitor(&format!("savevm {TAG}"))
    }

    /// From nothing to the result of `true`, out of the snapshot, in milliseconds.
    pub(crate) fn sample(&self) -> anyhow::Result<f64> {
        let start = Instant::now();
        let running = self.start(Begin::Snapshot)?;
        let (status, output) = running.execute("true")?;
        let time = elapsed(start);
        ensure!(status == 0, "true failed: {output}");
        Ok(time)
    }
}

impl Running {
    fn execute(&self, command: &str) -> anyhow::Result<(i64, String)> {
        let body = json!({"command": command}).to_string();
        let answer: Value = serde_json::from_str(&self.until_answered("/process/execute", body.as_bytes())?)?;
        let text = answer["result"].as_str().unwrap_or_default().to_owned();
        Ok((answer["exitCode"].as_i64().context("no exit code")?, text))
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

    /// A command of QEMU's monitor.
    fn monitor(&self, line: &str) -> anyhow::Result<()> {
        let mut stream = UnixStream::connect(self.folder.join("loadvm.qmp"))?;
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
        let said = answer["return"].as_str().unwrap_or("no answer").trim().to_owned();
        ensure!(said.is_empty(), "{line}: {said}");
        Ok(())
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
        "boot": boot, "hostname": "bench", "unix_time_ns": now, "entropy": "00".repeat(64), "token": "bench",
    });
    json!({"protocol": 1, "sandbox_id": "00000000-000", "generation": 1, "guest": guest})
}
