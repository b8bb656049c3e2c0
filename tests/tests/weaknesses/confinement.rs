//! What a sandbox is shut in by.

use std::collections::BTreeSet;

use sandhaus_client::wire::{ExecResult, SessionInfo};
use sandhaus_tests::{
    binary, probe, process, runnable,
    server::{DataDir, Options, Server, with_server},
    session::Session,
    settles, skip,
    tree::busybox_tree,
};
use serde_json::json;

use super::{agent_of, processes_of};

/// Both confinements.
const PROFILES: [&str; 2] = ["strict", "container"];

/// Runs a probe inside and gives its lines.
fn probed(session: &Session, name: &str) -> Vec<String> {
    let program = fs_err::read(probe::build(name)).expect("read the probe");
    session.write(name, &program);
    let said = session.exec(&format!("chmod +x {name}; ./{name}"));
    assert_eq!((said.exit_code, said.output.trim_end().lines().last()), (0, Some("end")), "{}", said.output);
    said.output.lines().map(str::to_owned).collect()
}

fn open(lines: &[String]) -> BTreeSet<&str> {
    lines.iter().filter_map(|line| line.strip_prefix("open ")).collect()
}

#[test]
fn w01_proc_is_mounted_while_the_old_root_still_shows_one() {
    with_server("w01_proc_is_mounted_while_the_old_root_still_shows_one", |server| {
        for profile in PROFILES {
            let session = Session::create(&server.http(), &json!({"security": profile}));
            // Its own processes and nobody else's.
            assert_eq!(session.output("awk '$2 == \"/proc\" {print $3}' /proc/mounts"), "proc");
            assert_eq!(
                session.output("tr '\\0' ' ' < /proc/1/cmdline; cat /proc/$$/comm"),
                "sandhaus-agent --init bash"
            );
            let seen: usize = session.output("ls -d /proc/[0-9]* | wc -l").parse().unwrap();
            assert!(seen < process::all().len(), "{seen} processes show");
        }
    });
}

/// A server whose owner has turned the filter off, so that requests can ask for any level.
fn unfiltered(dir: &DataDir) -> Server {
    let config = Some("security: {seccomp: off}\n".to_owned());
    Server::start_with(dir, &Options { config, ..Options::default() })
}

#[test]
fn w04_each_level_of_the_filter_refuses_what_it_says() {
    if !runnable("w04_each_level_of_the_filter_refuses_what_it_says") {
        return;
    }
    let dir = DataDir::new();
    let server = unfiltered(&dir);
    settles("a warning to its owner", || server.log().contains("security.seccomp is off"));
    for profile in PROFILES {
        let create = |level: &str| {
            let session = Session::create(&server.http(), &json!({"security": profile, "seccomp": level}));
            assert_eq!(session.info().seccomp, if level.is_empty() { "off" } else { level });
            session
        };
        let strict = create("strict");
        assert_eq!(open(&probed(&strict, "attack")), BTreeSet::new(), "{profile}");
        assert_eq!(strict.output("awk '/^Seccomp:/ {print $2}' /proc/self/status"), "2");
        strict.delete();

        // Tracing and nesting are allowed, and nothing of it reaches further than the sandbox.
        let mvp = create("mvp");
        let lines = probed(&mvp, "attack");
        assert_eq!(open(&lines), BTreeSet::from(["unshare-user", "clone-user"]), "{profile}");
        for name in ["i386-getpid", "x32-getpid", "clone3-user", "ptrace-init", "clone-net", "fsopen"] {
            assert!(
                lines.iter().any(|line| line.starts_with(&format!("blocked {name} "))),
                "{profile}: {name}"
            );
        }
        let nested = probed(&mvp, "nested");
        assert!(nested.contains(&"nested".to_owned()), "{nested:#?}");
        assert_eq!(open(&nested), BTreeSet::new(), "{profile}: {nested:#?}");
        mvp.delete();

        // Without a filter the kernel's own rules remain, and the agent stays out of reach.
        let off = create("");
        let lines = probed(&off, "attack");
        let open = open(&lines);
        assert!(open.contains("clone3-user") && open.contains("i386-getpid"), "{profile}: {open:?}");
        for name in ["ptrace-init", "pidfd-getfd-init", "process-vm-readv-init", "mount-proc", "kexec-load"] {
            assert!(!open.contains(name), "{profile}: {name}");
        }
        assert_eq!(off.output("awk '/^Seccomp:/ {print $2}' /proc/self/status"), "0");
        off.delete();
    }
    server.stop();
}

#[test]
fn w04_the_filter_is_strict_unless_its_owner_says_otherwise() {
    with_server("w04_the_filter_is_strict_unless_its_owner_says_otherwise", |server| {
        let session = Session::create(&server.http(), &json!({}));
        assert_eq!(session.info().seccomp, "strict");
        for weaker in ["mvp", "off"] {
            let refused = server.http().post("/v1/sessions", &json!({"seccomp": weaker})).expect(403);
            assert!(refused.text().contains("weaker than the server's default"), "{}", refused.text());
        }
        server.http().post("/v1/sessions", &json!({"seccomp": "none"})).expect(400);
    });
}

#[test]
fn w04_debuggers_and_nested_sandboxes_work_under_mvp() {
    let name = "w04_debuggers_and_nested_sandboxes_work_under_mvp";
    if !runnable(name) {
        return;
    }
    let dir = DataDir::new();
    let server = unfiltered(&dir);
    let session = Session::create(&server.http(), &json!({"seccomp": "mvp"}));
    let has = |program: &str| {
        let there = session.exec(&format!("command -v {program}")).exit_code == 0;
        if !there {
            skip(name, &format!("{program} is not installed"));
        }
        there
    };
    if has("strace") {
        assert_eq!(
            session.output("strace -fo trace sh -c 'echo traced' && grep -c execve trace"),
            "traced\n1"
        );
    }
    if has("bwrap") {
        let nested = "bwrap --ro-bind / / --dev-bind /dev /dev --tmpfs /tmp --unshare-user --unshare-pid \
                      --unshare-ipc --unshare-uts sh -c 'echo nested; touch /workspace/x; ls -A /tmp | wc -l'";
        let said = session.exec(nested);
        assert!(said.output.starts_with("nested\n") && said.output.ends_with("0\n"), "{}", said.output);
        assert_eq!(session.output("ls -A /workspace | grep -c x; true"), "0", "the nested root is read-only");
    }
    server.stop();
}

#[test]
fn w06_no_group_of_the_server_comes_along() {
    if !runnable("w06_no_group_of_the_server_comes_along") {
        return;
    }
    let dir = DataDir::new();
    // The groups of the thread that starts the server become the server's.
    let server = std::thread::scope(|scope| {
        let start = scope.spawn(|| {
            let groups = [4, 27, 1000].map(rustix::process::Gid::from_raw);
            rustix::thread::set_thread_groups(&groups).unwrap();
            Server::start(&dir)
        });
        start.join().unwrap()
    });
    assert_eq!(process::status(server.handle().pid(), "Groups").unwrap().trim(), "4 27 1000");
    for profile in PROFILES {
        let session = Session::create(&server.http(), &json!({"security": profile}));
        assert_eq!(
            session.output("awk '/^Groups:/ {print NF - 1}' /proc/self/status /proc/1/status"),
            "0\n0"
        );
        session.output("sleep 1000 & true");
        for pid in processes_of(&session) {
            assert_eq!(process::status(pid, "Groups").unwrap().trim(), "", "{profile}: {pid}");
        }
        session.delete();
    }
    server.stop();
}

#[test]
fn w10_the_agent_s_socket_lies_where_no_sandbox_reaches() {
    with_server("w10_the_agent_s_socket_lies_where_no_sandbox_reaches", |server| {
        let host = std::os::unix::net::UnixListener::bind(
            std::env::temp_dir().join(format!("sandhaus-w10-{}", std::process::id())),
        )
        .unwrap();
        host.set_nonblocking(true).unwrap();
        let path = host.local_addr().unwrap().as_pathname().unwrap().to_owned();
        for profile in PROFILES {
            let session = Session::create(&server.http(), &json!({"security": profile}));
            assert_eq!(
                session.output("find / -xdev -type s 2>/dev/null; cat /proc/net/unix | grep -c / ; true"),
                "0"
            );
            // Whatever is put where such a socket might be looked for changes nothing.
            session.exec(&format!(
                "for p in /run/sandkasten /run/sandhaus /run /tmp /workspace; do mkdir -p $p; \
                 ln -sfn {0} $p/runner.sock; ln -sfn {0} $p/agent.sock; ln -sfn {0} $p/agent; done 2>/dev/null",
                path.display()
            ));
            assert_eq!(session.output("echo alive"), "alive");
            session.delete();
        }
        let spoken_to = host.accept().map(drop).map_err(|error| error.kind());
        assert_eq!(spoken_to, Err(std::io::ErrorKind::WouldBlock), "the host spoke to a socket of its own");
        fs_err::remove_file(path).unwrap();
    });
}

#[test]
fn w10_an_agent_that_does_not_answer_holds_up_nobody_else() {
    with_server("w10_an_agent_that_does_not_answer_holds_up_nobody_else", |server| {
        let (mute, other) =
            (Session::create(&server.http(), &json!({})), Session::create(&server.http(), &json!({})));
        let agent = process::Handle::open(agent_of(&mute)).unwrap();
        agent.signal(rustix::process::Signal::STOP);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| mute.try_exec(&json!({"cmd": "echo never"})).status);
            assert_eq!(other.output("echo alive"), "alive");
            let listed: Vec<SessionInfo> = server.http().get("/v1/sessions").expect(200).json();
            assert_eq!(listed.len(), 2);
            mute.delete();
            assert!(waiting.join().unwrap() >= 400, "whoever waited is told");
        });
    });
}

#[test]
fn w11_links_of_an_image_lead_the_host_nowhere() {
    if !runnable("w11_links_of_an_image_lead_the_host_nowhere") {
        return;
    }
    let dir = DataDir::new();
    let canary = tempfile::tempdir().unwrap();
    // Open to everyone: only the sandbox's walls protect it.
    fs_err::set_permissions(canary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let all: &[&str] = &["tmp", "workspace", "dev", "proc", "sys", "run", "home", "root", "etc"];
    for (number, places) in
        [all, &["tmp", "home", "root"], &["workspace"], &["dev"], &["etc"], &["proc", "run"]]
            .into_iter()
            .enumerate()
    {
        let tree = busybox_tree();
        for place in places {
            let target = tree.path().join(place);
            let _ = std::fs::remove_dir_all(&target);
            std::os::unix::fs::symlink(canary.path(), &target).unwrap();
        }
        let name = format!("linked-{number}");
        let import = ["image", "import", &name, tree.path().to_str().unwrap()];
        let imported = binary::run(binary::command(dir.path()).args(import));
        if imported.code != 0 {
            assert!(!imported.stderr.is_empty());
            continue;
        }
        for profile in PROFILES {
            let inside = "echo w > /tmp/w; echo w > /workspace/w; echo w > /dev/shm/w; echo w > /etc/w; mkdir /run/w /home/w; true";
            let flags = ["run", "--image", &name, "--security", profile, "--", "/bin/sh", "-c", inside];
            // It may run or be refused.
            binary::run(binary::command(dir.path()).args(flags));
            let left: Vec<_> = fs_err::read_dir(canary.path()).unwrap().collect();
            assert!(left.is_empty(), "{places:?} under {profile}: {left:?}");
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(canary.path().to_str().unwrap()), "{places:?} under {profile}");
        }
    }
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn w15_nothing_of_the_host_shows_in_proc_hosts_and_mounts() {
    with_server("w15_nothing_of_the_host_shows_in_proc_hosts_and_mounts", |server| {
        for profile in PROFILES {
            let session = Session::create(&server.http(), &json!({"security": profile}));
            // The host's names stay the host's.
            let host = rustix::system::uname();
            let host = host.nodename().to_str().unwrap();
            let own = session.output("hostname");
            assert_ne!(own, host);
            let hosts = session.output("cat /etc/hosts /etc/hostname");
            assert!(hosts.contains(&own) && !hosts.contains(host), "{profile}: {hosts}");
            // Every cgroup is the root of what shows.
            assert_eq!(session.output("cut -d: -f3 /proc/self/cgroup | sort -u"), "/");
            // What lives in memory gives no power to files.
            let loose =
                "awk '$3 == \"tmpfs\" && !($4 ~ /nosuid/ && $4 ~ /nodev|noexec/) {print $2}' /proc/mounts";
            assert_eq!(session.output(loose), "", "{profile}");
            let workspace = "awk '$2 == \"/workspace\" {print ($4 ~ /nosuid/), ($4 ~ /nodev/)}' /proc/mounts";
            assert_eq!(session.output(workspace), "1 1", "{profile}");
            for hidden in ["kcore", "keys", "timer_list", "interrupts"] {
                let size = session.output(&format!("cat /proc/{hidden} 2>/dev/null | head -c 1 | wc -c"));
                assert_eq!(size, "0", "{profile}: {hidden}");
            }
            assert_ne!(session.exec("echo x > /proc/sys/kernel/hostname").exit_code, 0);
            assert_ne!(session.exec("dmesg").exit_code, 0);
            session.delete();
        }
    });
}

#[test]
fn w30_shared_memory_and_the_usual_devices_are_there() {
    with_server("w30_shared_memory_and_the_usual_devices_are_there", |server| {
        for profile in PROFILES {
            let session = Session::create(&server.http(), &json!({"security": profile}));
            let locks = "import multiprocessing as m\nq = m.Queue(); p = m.Process(target=q.put, args=(42,)); \
                         p.start(); print(q.get()); p.join()\nl = m.Lock()\nwith l: print('locked')\n\
                         from multiprocessing import shared_memory as s\nb = s.SharedMemory(create=True, size=1 << 20); \
                         print(len(b.buf)); b.close(); b.unlink()";
            session.write("locks.py", locks.as_bytes());
            assert_eq!(session.output("python3 locks.py"), "42\nlocked\n1048576", "{profile}");
            assert_eq!(session.output("stat -c %a /dev/shm /tmp"), "1777\n1777");
            let full = session.exec("echo x > /dev/full");
            assert!(full.exit_code != 0 && full.output.contains("No space left"), "{}", full.output);
            let devices = "for d in null zero full random urandom tty ptmx pts shm fd stdin stdout stderr; do \
                           test -e /dev/$d -o -L /dev/$d || echo $d; done";
            assert_eq!(session.output(devices), "");
            assert_eq!(
                session.output("head -c 4 /dev/urandom | wc -c; head -c 4 /dev/zero | tr '\\0' z"),
                "4\nzzzz"
            );
            session.delete();
        }
    });
}

#[test]
fn w36_limits_are_the_kernel_s_own_or_there_is_no_sandbox() {
    if !runnable("w36_limits_are_the_kernel_s_own_or_there_is_no_sandbox") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let wanted = json!({"memory_mb": 96, "pids": 33, "cpus": 0.25});
    let session = Session::create(&server.http(), &wanted);
    let mut found = BTreeSet::new();
    for cgroup in dir.objects().cgroups {
        // Nobody of the sandbox is outside of it.
        let members = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        for pid in processes_of(&session) {
            assert!(
                members.lines().any(|line| line == pid.to_string()),
                "{pid} is not in {}",
                cgroup.display()
            );
        }
        for (file, value) in [
            ("memory.limit_in_bytes", "100663296"),
            ("memory.max", "100663296"),
            ("pids.max", "33"),
            ("cpu.cfs_quota_us", "25000"),
            ("cpu.max", "25000 100000"),
        ] {
            if let Ok(text) = std::fs::read_to_string(cgroup.join(file)) {
                assert_eq!(text.trim(), value, "{file}");
                found.insert(&file[..3]);
            }
        }
    }
    assert_eq!(found, BTreeSet::from(["cpu", "mem", "pid"]), "each limit is somewhere");
    let crowd: ExecResult = session
        .try_exec(&json!({"cmd": "for i in $(seq 100); do sleep 1000 & done 2>/dev/null; jobs -r | wc -l"}))
        .expect(200)
        .json();
    assert!(session.stats().pids <= 33, "{}", crowd.output);

    // A host that takes no further cgroup, or none with this limit, gets no sandbox: never one without the limit.
    for cgroup in dir.objects().cgroups {
        let _ = std::fs::write(cgroup.parent().unwrap().join("cgroup.max.descendants"), "0");
        let _ = std::fs::write(cgroup.parent().unwrap().join("cpu.cfs_quota_us"), "1000");
    }
    let refused = server.http().post("/v1/sessions", &wanted);
    assert!(refused.status >= 500 || refused.status == 429, "{} {}", refused.status, refused.text());
    let listed: Vec<SessionInfo> = server.http().get("/v1/sessions").expect(200).json();
    assert_eq!(listed.iter().map(|info| info.id.as_str()).collect::<Vec<_>>(), [&session.id]);
    session.delete();
    server.stop();
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}
