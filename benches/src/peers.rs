//! Other ways to run a command in a sandbox, as this machine has them. Each runs `/bin/true` on the shared root file
//! system, with as much of the same confinement as it offers; what a run costs includes its own start and removal.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, anyhow, bail};
use serde_json::{Value, json};

/// First argument with which the benchmark executes itself as the process that starts the peers.
pub(crate) const ARGUMENT: &str = "__peers";

/// Runs each command line that it reads and answers with its time in milliseconds.
///
/// A host with cgroup hierarchies of both versions confuses some peers. They are started from a mount namespace without
/// the unified one; entering it anew for each run would count against them.
pub(crate) fn serve() -> anyhow::Result<()> {
    for line in io::stdin().lock().lines() {
        let arguments: Vec<String> = serde_json::from_str(&line?)?;
        let time = run(&arguments).map_err(|error| format!("{error:#}"));
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, &time)?;
        stdout.write_all(b"\n")?;
        stdout.flush()?;
    }
    Ok(())
}

fn run(arguments: &[String]) -> anyhow::Result<f64> {
    let (program, rest) = arguments.split_first().context("an empty command line")?;
    let start = Instant::now();
    let output = Command::new(program).args(rest).stdin(Stdio::null()).output()?;
    let time = start.elapsed().as_secs_f64() * 1e3;
    if output.status.success() {
        return Ok(time);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("it ended with {}: {}", output.status, said.trim().lines().last().unwrap_or_default())
}

/// A peer that works here.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its name and version.
    pub(crate) name: String,
    kind: Kind,
    root: PathBuf,
    scratch: PathBuf,
    count: u64,
    starter: Child,
    requests: Option<ChildStdin>,
    times: BufReader<ChildStdout>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bubblewrap,
    Runc,
    Crun,
    Podman,
}

const KINDS: &[(Kind, &str)] =
    &[(Kind::Bubblewrap, "bwrap"), (Kind::Runc, "runc"), (Kind::Crun, "crun"), (Kind::Podman, "podman")];

/// Every known peer: those that ran once, and why the others did not.
pub(crate) fn find(root: &Path, scratch: &Path) -> (Vec<Peer>, Vec<(String, String)>) {
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    for (kind, program) in KINDS {
        match Peer::new(*kind, program, root, scratch) {
            Ok(peer) => found.push(peer),
            Err(error) => absent.push(((*program).to_owned(), format!("{error:#}"))),
        }
    }
    (found, absent)
}

impl Peer {
    fn new(kind: Kind, program: &str, root: &Path, scratch: &Path) -> anyhow::Result<Self> {
        let version = Command::new(program).arg("--version").output().context("it is not installed")?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        let name = format!("{program} {}", number.unwrap_or_default());
        let mut peer = Self::start(kind, name, root, scratch)?;
        // A first run that fails says why; one that works has warmed whatever there is to warm.
        peer.run()?;
        Ok(peer)
    }

    fn start(kind: Kind, name: String, root: &Path, parent: &Path) -> anyhow::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("peer-").tempdir_in(parent)?.keep();
        let hide = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
        let mut starter = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", hide, "sh"])
            .arg(std::env::current_exe()?)
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = starter.stdin.take();
        let times = BufReader::new(starter.stdout.take().expect("the output is piped"));
        Ok(Self { name, kind, root: root.to_owned(), scratch, count: 0, starter, requests, times })
    }

    /// One more of the same, to run beside it.
    pub(crate) fn another(&self) -> anyhow::Result<Self> {
        let parent = self.scratch.parent().context("the peer's folder lies in another")?;
        Self::start(self.kind, self.name.clone(), &self.root, parent)
    }

    /// Runs `/bin/true` once and gives the time in milliseconds.
    pub(crate) fn run(&mut self) -> anyhow::Result<f64> {
        self.count += 1;
        let id = format!("bench-{}-{}", self.starter.id(), self.count);
        let arguments = self.command(&id)?;
        let requests = self.requests.as_mut().expect("open until dropped");
        requests.write_all((serde_json::to_string(&arguments)? + "\n").as_bytes())?;
        let mut line = String::new();
        self.times.read_line(&mut line)?;
        let time: Result<f64, String> = serde_json::from_str(&line).context("the starter of peers ended")?;
        if matches!(self.kind, Kind::Runc | Kind::Crun) {
            fs_err::remove_dir_all(self.scratch.join(&id))?;
        }
        time.map_err(|error| anyhow!("{error}"))
    }

    fn command(&self, id: &str) -> anyhow::Result<Vec<String>> {
        let root = self.root.display();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        Ok(match self.kind {
            Kind::Bubblewrap => words(&format!(
                "bwrap --unshare-all --new-session --die-with-parent --cap-drop ALL --ro-bind {root} / --dev /dev \
                 --proc /proc --tmpfs /tmp /bin/true"
            )),
            Kind::Runc | Kind::Crun => {
                let bundle = self.scratch.join(id);
                self.write_bundle(&bundle, id)?;
                let program = if self.kind == Kind::Runc { "runc" } else { "crun" };
                let state = self.scratch.join("state");
                words(&format!("{program} --root {} run --bundle {} {id}", state.display(), bundle.display()))
            }
            Kind::Podman => words(&format!(
                "podman run --rm --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --name {id} \
                 --rootfs {root}:O /bin/true"
            )),
        })
    }

    /// A bundle with a cgroup of its own: one that is shared would make runs wait for each other.
    fn write_bundle(&self, bundle: &Path, id: &str) -> anyhow::Result<()> {
        fs_err::create_dir_all(bundle)?;
        let spec = Command::new("runc").arg("spec").current_dir(bundle).output().context("runc spec")?;
        let path = bundle.join("config.json");
        let mut config: Value = if spec.status.success() {
            serde_json::from_slice(&fs_err::read(&path)?)?
        } else {
            Command::new("crun").arg("spec").current_dir(bundle).output().context("crun spec")?;
            serde_json::from_slice(&fs_err::read(&path)?)?
        };
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/true"]);
        // Raising limits needs a capability that this machine may not give.
        config["process"]["rlimits"] = json!([]);
        config["root"] = json!({"path": self.root, "readonly": true});
        config["linux"]["cgroupsPath"] = json!(format!("/sandhaus-bench-{id}"));
        config["linux"]["resources"]["memory"] = json!({"limit": 512 << 20});
        config["linux"]["resources"]["pids"] = json!({"limit": 256});
        config["linux"]["resources"]["cpu"] = json!({"quota": 100_000, "period": 100_000});
        let mounts = config["mounts"].as_array().cloned().unwrap_or_default();
        config["mounts"] = mounts.into_iter().filter(|mount| mount["type"] != "cgroup").collect();
        fs_err::write(&path, config.to_string())?;
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of its input is its end.
        self.requests = None;
        let _ = self.starter.wait();
        let _ = fs_err::remove_dir_all(&self.scratch);
    }
}
