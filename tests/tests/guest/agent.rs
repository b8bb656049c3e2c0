//! The agent in virtual machines: as the first process of one that lives in its initramfs, of one with a root on a disk, and
//! as a service of another init system. Each machine has a network of its own, in which the test is its host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use sandhaus_tests::{
    PATIENCE, cache_dir,
    http::{Answer, Http},
    network::{self, Space},
    process, runnable,
    server::{DataDir, Server},
    settles,
};
use serde_json::{Value, json};

use super::{can_boot, guest, kernel, run};

/// A token.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// 2031-02-03T04:05:06Z.
const LATER_S: i64 = 1_927_857_906;

#[test]
fn a_machine_in_its_initramfs_is_told_who_it_is() {
    let name = "a_machine_in_its_initramfs_is_told_who_it_is";
    let Some(machine) = Machine::boot(name, "null", "", Disk::None) else { return };
    let refused = machine.get("/work-dir");
    assert_eq!((refused.status, refused.json::<Value>()["code"].as_str()), (503, Some("NOT_GREETED")));
    // The clock is the machine's own: it goes where the host says, here into another decade, before anything runs.
    let reply = machine.greet("one", 1, LATER_S);
    assert!(reply["clock_skew_ns"].as_i64().expect("told") > 0);
    assert_eq!(machine.execute("date -u +%Y-%m-%d"), "2031-02-03\n");
    assert_eq!(machine.execute("uname -n; cat /etc/hostname; id -u; echo $WHO"), "one\none\n0\none.1\n");
    assert_eq!(machine.execute("cat /etc/resolv.conf"), "# sandhaus\nnameserver 192.168.0.1\n");
    assert_eq!(machine.execute("ping -c1 -q 192.168.0.1 >/dev/null && echo there"), "there\n");
    let mounted = machine.execute("cat /proc/mounts");
    for path in ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/sys/fs/cgroup"] {
        assert!(mounted.contains(&format!(" {path} ")), "{path} is not mounted:\n{mounted}");
    }
    let machine_id = machine.execute("cat /etc/machine-id");
    machine.spawn("echo $$ >/run/sleeper; exec sleep 1234");
    settles("a process", || !machine.execute("cat /run/sleeper 2>/dev/null; true").is_empty());

    // As a copy: another name, id and clock, while what ran goes on.
    let reply = machine.greet("two", 1, now_s());
    assert!(reply["clock_skew_ns"].as_i64().expect("told") < 0);
    assert_eq!(machine.execute("uname -n; echo $WHO"), "two\ntwo.1\n");
    assert_ne!(machine.execute("date -u +%Y"), "2031\n");
    assert_ne!(machine.execute("cat /etc/machine-id"), machine_id);
    assert_eq!(machine.execute("grep -c sleep /proc/$(cat /run/sleeper)/cmdline"), "1\n");
    let past = machine.hello("two", 0, now_s());
    assert_eq!(past.status, 409, "{}", past.text());

    // Whoever is inside shows the token, and never is the host.
    let ask = |header: &str, path: &str| {
        let ask = format!(
            "wget -q -O - {header} http://127.0.0.1:2280{path} >/dev/null 2>&1 && echo yes || echo no"
        );
        machine.execute(&ask)
    };
    let shown = format!("--header 'Authorization: Bearer {TOKEN}'");
    assert_eq!((ask("", "/work-dir"), ask(&shown, "/work-dir")), ("no\n".to_owned(), "yes\n".to_owned()));
    assert_eq!(ask(&format!("{shown} --post-data x"), "/sandhaus/power-off"), "no\n");
    assert_eq!(machine.sync("freeze"), json!({ "frozen": false }), "a root in memory cannot stand still");
    machine.post("/sandhaus/power-off", &Value::Null).expect(202);
    machine.ends();
}

#[test]
fn a_root_without_an_init_system_has_the_agent_as_its_first_process() {
    let name = "a_root_without_an_init_system_has_the_agent_as_its_first_process";
    let root = r#"{"device":"LABEL=machine","init":"agent"}"#;
    let Some(machine) = Machine::boot(name, root, "", Disk::Made) else { return };
    machine.greet("one", 1, now_s());
    assert_eq!(
        machine.execute("cat /proc/1/comm; grep ' / ' /proc/mounts | grep -c '^/dev/vda / ext4 rw'"),
        "init\n1\n"
    );
    assert_eq!(machine.execute("ls -d /modules /sandhaus-initramfs 2>&1 | grep -c 'No such'"), "2\n");
    let machine_id = machine.execute("cat /etc/machine-id");

    // Standing still, nothing is written: the process ends only after the thaw, by whichever way it comes.
    assert_eq!(machine.sync("freeze"), json!({ "frozen": true }));
    let process = machine.spawn("touch /root/one");
    let process = process.as_str();
    assert_eq!(machine.sync("freeze"), json!({ "frozen": true }));
    assert!(machine.is_running(process));
    assert_eq!(machine.sync("thaw"), json!({ "frozen": true }));
    settles("the file", || !machine.is_running(process));
    assert_eq!(machine.sync("thaw"), json!({ "frozen": false }));
    machine.post("/sandhaus/sync", &json!({ "action": "freeze", "limit_ms": 300 })).expect(200);
    assert_eq!(machine.execute("touch /root/two; ls /root"), "one\ntwo\n", "its time was over");

    // Root of the machine may switch it off as anywhere.
    machine.spawn("poweroff");
    let disk = machine.ends();
    run(Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(disk.path().join("disk")));

    // The same disk again: the same sandbox keeps its id, another one gets its own.
    let machine = Machine::launch(disk, "");
    machine.wait();
    machine.greet("one", 2, now_s());
    assert_eq!(machine.execute("cat /etc/machine-id; ls /root"), format!("{machine_id}one\ntwo\n"));
    machine.greet("two", 1, now_s());
    assert_ne!(machine.execute("cat /etc/machine-id"), machine_id);
}

#[test]
fn the_agent_is_a_service_of_another_init_system() {
    let name = "the_agent_is_a_service_of_another_init_system";
    let root = r#"{"device":"/dev/nowhere","filesystem":"ext4","init":{"program":["/sbin/nothing"]}}"#;
    // The kernel's command line goes over the document.
    let words = "root=/dev/vda rw init=/sbin/init";
    let Some(machine) = Machine::boot(name, root, words, Disk::Made) else { return };
    machine.greet("one", 1, now_s());
    assert_eq!(machine.execute("cat /proc/1/comm; uname -n"), "init\none\n");
    machine.execute("echo kept >/root/kept");
    // A supervisor starts it anew; until it is greeted again it knows nobody.
    machine.spawn("kill -9 $(cat /proc/[0-9]*/stat | grep '(sandhaus-agent)' | cut -d' ' -f1)");
    settles("another agent", || machine.try_get("/work-dir").is_some_and(|answer| answer.status == 503));
    machine.greet("one", 1, now_s());
    assert_eq!(machine.execute("cat /root/kept"), "kept\n");
    machine.post("/sandhaus/power-off", &Value::Null).expect(202);
    machine.ends();
}

#[test]
fn a_machine_that_cannot_go_on_says_why_and_ends() {
    let name = "a_machine_that_cannot_go_on_says_why_and_ends";
    let root = r#"{"device":"LABEL=machine","init":"agent"}"#;
    let Some(machine) = Machine::start(name, root, "rootfstype=btrfs", Disk::Made) else { return };
    let printed = console(machine.ends().path());
    assert!(printed.contains("the root LABEL=machine cannot be mounted as btrfs"), "{printed}");
}

/// A virtual machine. Dropping it ends it.
struct Machine {
    process: Child,
    space: Space,
    folder: Option<tempfile::TempDir>,
    http: Http,
}

/// Whether a machine gets a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    None,
    Made,
}

impl Machine {
    /// One that answers. `None`, said aloud, where there cannot be one.
    fn boot(name: &str, root: &str, words: &str, disk: Disk) -> Option<Self> {
        Self::start(name, root, words, disk).inspect(Self::wait)
    }

    /// One whose agent's document says this of the root, and its kernel's command line these words.
    fn start(name: &str, root: &str, words: &str, disk: Disk) -> Option<Self> {
        if !can_boot(name) || !runnable(name) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("sandhaus-machine-").tempdir().expect("make a folder");
        let mut pack = Command::new(guest("agent-machine.sh"));
        pack.arg(kernel()).arg(agent()).arg(root).arg(folder.path().join("initramfs"));
        if disk == Disk::Made {
            pack.arg(folder.path().join("disk"));
        }
        run(&mut pack);
        Some(Self::launch(folder, words))
    }

    fn launch(folder: tempfile::TempDir, words: &str) -> Self {
        let space = Space::new();
        let path = folder.path();
        let process = space.within(|| {
            network::run("ip", &["tuntap", "add", "dev", "tap0", "mode", "tap"]);
            network::run("ip", &["address", "add", "192.168.0.1/24", "dev", "tap0"]);
            network::run("ip", &["link", "set", "tap0", "up"]);
            let mut machine = Command::new("qemu-system-x86_64");
            machine
                .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "256"])
                .args(["-nodefaults", "-no-reboot", "-display", "none"])
                .arg("-kernel")
                .arg(kernel().join("vmlinuz"))
                .arg("-initrd")
                .arg(path.join("initramfs"))
                .arg("-append")
                .arg(format!("console=ttyS0 quiet panic=-1 no_timer_check {words}"))
                .args(["-netdev", "tap,id=network,ifname=tap0,script=no,downscript=no"])
                .args(["-device", "virtio-net-pci,netdev=network", "-device", "virtio-rng-pci"])
                .arg("-serial")
                .arg(format!("file:{}", path.join("console").display()));
            let disk = path.join("disk");
            if disk.exists() {
                let drive = format!("file={},format=raw,if=none,id=disk,cache=unsafe", disk.display());
                machine.arg("-drive").arg(drive).args(["-device", "virtio-blk-pci,drive=disk"]);
            }
            machine.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("start QEMU")
        });
        let http = Http::new(([192, 168, 0, 2], 2280).into());
        Self { process, space, folder: Some(folder), http }
    }

    /// Until its agent answers.
    fn wait(&self) {
        settles("an answer of the agent", || self.try_get("/health").is_some());
    }

    /// Waits until it has switched itself off; answers the folder with its console and disk.
    fn ends(mut self) -> tempfile::TempDir {
        let handle = process::Handle::open(self.process.id()).expect("it is not reaped yet");
        let ended = handle.ends_within(PATIENCE);
        assert!(ended, "the machine has not switched itself off:\n{}", self.console());
        let status = self.process.wait().expect("reap QEMU");
        assert!(status.success(), "QEMU ended with {status}");
        assert!(self.console().contains("reboot: Power down"), "{}", self.console());
        self.folder.take().expect("there until now")
    }

    fn console(&self) -> String {
        let folder = self.folder.as_ref().expect("there until the end");
        console(folder.path())
    }

    fn try_get(&self, path: &str) -> Option<Answer> {
        self.space.within(|| self.http.try_send("GET", path, "", b"").ok())
    }

    fn get(&self, path: &str) -> Answer {
        self.space.within(|| self.http.get(path))
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.space.within(|| self.http.post(path, body))
    }

    fn hello(&self, sandbox_id: &str, generation: u64, unix_time_s: i64) -> Answer {
        let user = json!({ "uid": 0, "gid": 0, "name": "root", "home": "/root", "unprivileged": false });
        let boot = json!({
            "sandbox_id": sandbox_id, "generation": generation, "user": user, "workdir": "/work",
            "env": { "WHO": format!("{sandbox_id}.{generation}"), "PATH": "/bin" },
        });
        let told = json!({
            "boot": boot, "hostname": sandbox_id, "unix_time_ns": unix_time_s * 1_000_000_000,
            "entropy": "5a".repeat(64), "token": TOKEN,
        });
        let hello =
            json!({ "protocol": 1, "sandbox_id": sandbox_id, "generation": generation, "guest": told });
        self.post("/sandhaus/hello", &hello)
    }

    fn greet(&self, sandbox_id: &str, generation: u64, unix_time_s: i64) -> Value {
        self.hello(sandbox_id, generation, unix_time_s).expect(200).json()
    }

    /// What a command prints.
    fn execute(&self, command: &str) -> String {
        let answer =
            self.post("/process/execute", &json!({ "command": format!("sh -c {}", quoted(command)) }));
        answer.expect(200).json::<Value>()["result"].as_str().expect("what it printed").to_owned()
    }

    /// Starts a command that may take its time.
    fn spawn(&self, command: &str) -> String {
        // There may be the session of a former command.
        self.post("/process/session", &json!({ "sessionId": "background" }));
        let order = json!({ "command": command, "runAsync": true });
        let answer = self.post("/process/session/background/exec", &order);
        answer.expect(202).json::<Value>()["cmdId"].as_str().expect("an id").to_owned()
    }

    fn is_running(&self, command: &str) -> bool {
        let answer = self.get(&format!("/process/session/background/command/{command}")).expect(200);
        answer.json::<Value>()["exitCode"].is_null()
    }

    fn sync(&self, action: &str) -> Value {
        self.post("/sandhaus/sync", &json!({ "action": action, "limit_ms": 60_000 })).expect(200).json()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, and been reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn console(folder: &Path) -> String {
    String::from_utf8_lossy(&fs::read(folder.join("console")).unwrap_or_default()).replace('\r', "")
}

/// The agent that the binary under test carries, as a server lays it down.
fn agent() -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| {
        let data_dir = DataDir::new();
        let server = Server::start(&data_dir);
        let mut laid_down = fs::read_dir(data_dir.path().join("agent")).expect("it lays down its agent");
        let agent = laid_down.next().expect("one agent").expect("list").path();
        let copy = cache_dir().join("agent-under-test");
        fs::copy(agent, &copy).expect("copy the agent");
        server.stop();
        copy
    })
}

/// A word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("before long")
}
