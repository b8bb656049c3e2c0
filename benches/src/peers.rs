//! Other ways to run a command in a sandbox, as this machine has them. Each runs `/bin/true` on the shared root file
//! system, with as much of the same confinement as it offers; what a run costs includes its own start and removal.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// A peer that works here.
pub(crate) struct Peer {
    /// Its name and version.
    pub(crate) name: String,
    kind: Kind,
    root: PathBuf,
    scratch: PathBuf,
    count: u64,
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
        let mut peer = Self {
            name,
            kind,
            root: root.to_owned(),
            scratch: scratch.join(format!("peer-{program}")),
            count: 0,
        };
        fs_err::create_dir_all(&peer.scratch)?;
        // A first run that fails says why; one that works has warmed whatever there is to warm.
        peer.run()?;
        Ok(peer)
    }

    /// Runs `/bin/true` once and gives the time in milliseconds.
    pub(crate) fn run(&mut self) -> anyhow::Result<f64> {
        self.count += 1;
        let id = format!("bench-{}-{}", std::process::id(), self.count);
        let mut command = self.command(&id)?;
        let start = Instant::now();
        let output = command.output()?;
        let time = start.elapsed().as_secs_f64() * 1e3;
        self.check(&output)?;
        if matches!(self.kind, Kind::Runc | Kind::Crun) {
            fs_err::remove_dir_all(self.scratch.join(&id))?;
        }
        Ok(time)
    }

    fn check(&self, output: &Output) -> anyhow::Result<()> {
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} ended with {}: {}",
            self.name,
            output.status,
            said.trim().lines().last().unwrap_or_default()
        )
    }

    fn command(&self, id: &str) -> anyhow::Result<Command> {
        Ok(match self.kind {
            Kind::Bubblewrap => {
                let mut command = Command::new("bwrap");
                command.args(["--unshare-all", "--new-session", "--die-with-parent", "--cap-drop", "ALL"]);
                command.arg("--ro-bind").arg(&self.root).args(["/", "--dev", "/dev", "--proc", "/proc"]);
                command.args(["--tmpfs", "/tmp", "/bin/true"]);
                command
            }
            Kind::Runc | Kind::Crun => {
                let bundle = self.scratch.join(id);
                self.write_bundle(&bundle, id)?;
                let program = if self.kind == Kind::Runc { "runc" } else { "crun" };
                // A host with hierarchies of both versions confuses these; they see those of version 1 only, by a
                // mount namespace of their own.
                let mut command = Command::new("unshare");
                let hide = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
                command.args(["--mount", "--propagation", "private", "sh", "-c", hide, "sh", program]);
                command
                    .arg("--root")
                    .arg(self.scratch.join("state"))
                    .args(["run", "--bundle"])
                    .arg(&bundle)
                    .arg(id);
                command
            }
            Kind::Podman => {
                let mut command = Command::new("podman");
                command.args(["run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024"]);
                command.args([
                    "--ulimit",
                    "nproc=1024:1024",
                    "--cgroups",
                    "enabled",
                    "--name",
                    id,
                    "--rootfs",
                ]);
                command.arg(format!("{}:O", self.root.display())).arg("/bin/true");
                command
            }
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
