//! Attacks from inside a sandbox against what lies outside: each is contained, and the server still answers.
//!
//! Canaries lie on the host where a leak would show them; their content is random, so that nothing but a leak can
//! bring it inside.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::BTreeSet,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use sandhaus_client::wire::{ExecResult, SessionInfo};
use sandhaus_tests::{
    binary, probe, process,
    server::{DataDir, Server, with_server},
    session::Session,
    skip,
};
use serde_json::{Value, json};

/// Both confinements: everything here holds under each.
const PROFILES: [&str; 2] = ["strict", "container"];

/// How often names are exchanged under the host's feet, at the least.
const SWAPS: usize = 100_000;

/// How many operations the host does meanwhile, of each kind, at the least.
const RACES: usize = 60;

fn create(server: &Server, profile: &str) -> Session {
    Session::create(&server.http(), &json!({"security": profile}))
}

/// Puts a program inside, ready to run.
fn install(session: &Session, name: &str) {
    let program = fs_err::read(probe::build(name)).expect("read the probe");
    session.write(name, &program);
    session.output(&format!("chmod +x {name}"));
}

/// Secrets of the host in places that a sandbox's view might reach.
struct Canaries {
    secret: String,
    folders: Vec<tempfile::TempDir>,
}

impl Canaries {
    fn plant() -> Self {
        let mut random = [0_u8; 16];
        let mut source = fs_err::File::open("/dev/urandom").unwrap();
        std::io::Read::read_exact(&mut source, &mut random).unwrap();
        let secret = format!("canary-{:032x}", u128::from_ne_bytes(random));
        let folders: Vec<_> =
            ["/tmp", "/var/tmp", "/root", "/home", "/opt", "/srv", "/etc", "/run", "/dev/shm"]
                .into_iter()
                .filter_map(|parent| tempfile::Builder::new().prefix("canary-").tempdir_in(parent).ok())
                .collect();
        let canaries = Self { secret, folders };
        for file in canaries.files() {
            fs_err::write(&file, &canaries.secret).unwrap();
            // Open to everyone on the host: only the sandbox's walls protect it.
            fs_err::set_permissions(file.parent().unwrap(), std::fs::Permissions::from_mode(0o777)).unwrap();
            fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        }
        canaries
    }

    fn files(&self) -> Vec<PathBuf> {
        self.folders.iter().map(|folder| folder.path().join("secret")).collect()
    }

    #[track_caller]
    fn assert_untouched(&self) {
        for folder in &self.folders {
            let names: Vec<_> =
                fs_err::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["secret"], "{}", folder.path().display());
        }
        for file in self.files() {
            assert_eq!(fs_err::read_to_string(&file).unwrap(), self.secret, "{}", file.display());
        }
    }
}

#[test]
fn the_kernel_is_out_of_reach() {
    with_server("the_kernel_is_out_of_reach", |server| {
        for profile in PROFILES {
            let session = create(server, profile);
            install(&session, "attack");
            let said = session.exec("./attack");
            assert_eq!(
                (said.exit_code, said.output.trim_end().lines().last()),
                (0, Some("end")),
                "{}",
                said.output
            );
            let open: Vec<_> = said.output.lines().filter_map(|line| line.strip_prefix("open ")).collect();
            assert!(open.is_empty(), "{profile}: {open:#?}");
            let blocked = said.output.lines().filter(|line| line.starts_with("blocked ")).count();
            assert!(blocked > 100, "{profile}: only {blocked} attempts were made");
            // clone3 hides its flags from the filter: it must look absent, so that libraries fall back to clone.
            assert!(
                said.output.contains(&format!("blocked clone3-user {}\n", libc_enosys())),
                "{}",
                said.output
            );
            for line in said.output.lines().filter_map(|line| line.strip_prefix("holds ")) {
                assert_innocent(profile, line);
            }
            assert_eq!(session.output("awk '/^Seccomp:/ {print $2}' /proc/self/status"), "2");
            session.delete();
        }
    });
}

fn libc_enosys() -> i32 {
    rustix::io::Errno::NOSYS.raw_os_error()
}

/// A descriptor that a visible process holds must lead nowhere outside: pipes, sockets, the sandbox's own terminal,
/// null, and its own files.
#[track_caller]
fn assert_innocent(profile: &str, line: &str) {
    let [process, number, target] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    assert_ne!(process, "1", "{profile}: the descriptors of the agent show: {line}");
    let own =
        ["pipe:[", "/memfd:sandhaus-script", "/dev/null", "/dev/pts/", "/dev/tty", "/proc", "/workspace/"];
    assert!(
        own.iter().any(|start| target.starts_with(start)),
        "{profile}: {process} holds {number}: {target}"
    );
}

#[test]
fn no_file_of_the_host_is_read_or_changed() {
    with_server("no_file_of_the_host_is_read_or_changed", |server| {
        let canaries = Canaries::plant();
        for profile in PROFILES {
            let session = create(server, profile);
            let mut script = String::from("exec 2>/dev/null\n");
            for file in canaries.files() {
                let path = file.display();
                script.push_str(&format!(
                    "for root in '' /proc/1/root /proc/self/root /proc/1/cwd/../../.. /proc/$PPID/root; do \
                     cat \"$root{path}\"; echo spoiled >> \"$root{path}\"; rm -f \"$root{path}\"; done\n"
                ));
            }
            // Anything else that could show the content: by search, by open descriptors, by device, by kernel memory.
            script.push_str(&format!(
                "for fd in /proc/[0-9]*/fd/*; do [ -d $fd ] && find $fd/ -maxdepth 4 -name secret -exec cat {{}} +; done\n\
                 find / -xdev -path /proc -prune -o -name secret -type f -exec cat {{}} +\n\
                 grep -a {} /proc/kcore /dev/mem /dev/vda /dev/sda /proc/1/environ /proc/1/mem; true\n",
                &canaries.secret[..12]
            ));
            session.write("search", script.as_bytes());
            let found = session.output("sh search; true");
            assert!(!found.contains(&canaries.secret), "{profile}: {found}");
            canaries.assert_untouched();

            // What only root may read stays unreadable in the view of the host, for root inside too.
            let secrets =
                session.exec("cat /etc/shadow /etc/gshadow /etc/ssh/ssh_host_* /root/.ssh/* 2>/dev/null");
            let shadow = fs_err::read_to_string("/etc/shadow").unwrap_or_default();
            for line in shadow.lines().filter(|line| line.contains('$')) {
                assert!(!secrets.output.contains(line), "{profile}: the host's password hashes show");
            }
            let changed =
                session.output("touch /usr/bin/sandhaus-was-here 2>/dev/null && echo changed; true");
            assert!(!Path::new("/usr/bin/sandhaus-was-here").exists(), "{profile}");
            assert!(profile == "container" || changed.is_empty(), "strict has a read-only root");
            session.delete();
        }
    });
}

#[test]
fn exchanged_links_lead_the_host_nowhere() {
    with_server("exchanged_links_lead_the_host_nowhere", |server| {
        let canaries = Canaries::plant();
        let canary = canaries.files()[0].parent().unwrap().display().to_string();
        // Of the host, of the agent, and of the sandbox itself but beyond the folder that files are served from. The
        // profiles differ in what a workload may do, not in how the agent resolves paths: the second takes two.
        let targets = [canary.as_str(), "/tmp/beyond", "../tmp/beyond", "/proc/1/root/tmp", "/proc/self/cwd"];
        for (profile, targets) in [("strict", &targets[..]), ("container", &targets[..2])] {
            for target in targets {
                let session = create(server, profile);
                install(&session, "swap");
                session.output(
                    "mkdir -p /tmp/beyond d; echo beyond > /tmp/beyond/secret; echo inside > d/secret",
                );
                session.output(&format!("ln -s {target} l; ./swap d l {SWAPS} > swaps 2>&1 & true"));
                hammer(server, &session, &canaries);
                session.write("stop", b"");
                let swaps: usize = session.output("wait; cat swaps").parse().unwrap();
                assert!(swaps >= SWAPS, "{swaps}");
                assert_eq!(
                    session.output("rm -f /tmp/beyond/copied; ls -A /tmp/beyond; cat /tmp/beyond/secret"),
                    "secret\nbeyond",
                    "{profile} {target}"
                );
                canaries.assert_untouched();
                session.delete();
            }
        }
    });
}

/// Reads, writes, uploads and copies through a name that changes all the time. Each may fail; none may go astray.
fn hammer(server: &Server, session: &Session, canaries: &Canaries) {
    let http = server.http();
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("source");
    fs_err::write(&source, "copied").unwrap();
    let mut served = BTreeSet::new();
    for round in 0..RACES {
        let answer = session.try_read("d/secret");
        if answer.status == 200 {
            let content = sandhaus_tests::session::from_base64(
                answer.json::<Value>()["content_base64"].as_str().expect("content"),
            );
            served.insert(String::from_utf8_lossy(&content).into_owned());
        }
        http.post(&session.route("/fs/write"), &json!({"path": "d/written", "text": "from the host"}));
        http.post(
            &session.route("/fs/write"),
            &json!({"path": format!("d/new-{round}/deep/file"), "text": "x"}),
        );
        let form = "--e\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\n/workspace/d\r\n--e\r\n\
                    Content-Disposition: form-data; name=\"file\"; filename=\"uploaded\"\r\n\r\nup\r\n--e--\r\n";
        let media = "multipart/form-data; boundary=e";
        http.send("POST", &session.route("/fs/upload"), media, form.as_bytes());
        if round % 20 == 0 {
            let inside = format!("{}:/workspace/d/copied", session.id);
            binary::run(server.cli().arg("cp").arg(&source).arg(&inside));
            let back = scratch.path().join("back");
            let secret = format!("{}:/workspace/d/secret", session.id);
            if binary::run(server.cli().arg("cp").arg(&secret).arg(&back)).code == 0 {
                served.insert(fs_err::read_to_string(&back).unwrap());
            }
        }
    }
    served.remove("inside\n");
    // `cp` may name any path of the sandbox, so the sandbox's own link may lead it to the sandbox's own file.
    served.remove("beyond\n");
    assert!(served.is_empty(), "{served:?}");
    canaries.assert_untouched();
}

#[test]
fn planted_links_lead_the_host_nowhere() {
    with_server("planted_links_lead_the_host_nowhere", |server| {
        let canaries = Canaries::plant();
        let session = create(server, "strict");
        session.output("mkdir -p /tmp/beyond; echo beyond > /tmp/beyond/secret; mkfifo pipe");
        let targets = [
            "/tmp/beyond/secret",
            "/etc/passwd",
            "/proc/self/environ",
            "/proc/1/root/etc/passwd",
            "/dev/zero",
        ];
        for target in targets
            .iter()
            .map(|target| (*target).to_owned())
            .chain([canaries.files()[0].display().to_string()])
        {
            session.output(&format!("ln -sfn {target} link"));
            let answer = session.try_read("link");
            assert!((400..500).contains(&answer.status), "{target}: {} {}", answer.status, answer.text());
            server.http().post(&session.route("/fs/write"), &json!({"path": "link", "text": "spoiled"}));
            server.http().post(&session.route("/fs/write"), &json!({"path": "link/x", "text": "spoiled"}));
            assert_eq!(session.output("cat /tmp/beyond/secret"), "beyond");
        }
        canaries.assert_untouched();
        // A pipe that nobody writes blocks nobody.
        let answer = session.try_read("pipe");
        assert!((400..500).contains(&answer.status), "{}", answer.text());
        assert_eq!(session.output("echo alive"), "alive");
    });
}

#[test]
fn floods_of_processes_memory_and_descriptors_are_contained() {
    with_server("floods_of_processes_memory_and_descriptors_are_contained", |server| {
        let neighbour = create(server, "strict");
        let floods = [
            // Processes that make processes; the shell function's name is as good as any.
            "bomb() { bomb | bomb & }; bomb; sleep 1; echo done",
            "python3 -c \"exec('import os\\nwhile 1:\\n try: os.fork()\\n except OSError: pass')\"",
            // Memory, in one process and in many, and in file systems that live in memory.
            "python3 -c 'b = []\nwhile 1: b.append(bytearray(1 << 20))'",
            "for i in $(seq 30); do python3 -c 'b = bytearray(64 << 20); import time; time.sleep(5)' & done; wait",
            "for place in /tmp /dev/shm /run; do dd if=/dev/zero of=$place/fill bs=1M count=400; done",
            // Descriptors.
            "python3 -c 'import os\nkept = []\nwhile 1:\n try: kept.append(os.open(\"/dev/null\", 0))\n except OSError: break\nprint(len(kept))'",
            "python3 -c 'import socket\nkept = []\nwhile 1:\n try: kept.append(socket.socketpair())\n except OSError: break\nprint(len(kept))'",
        ];
        for (profile, flood) in PROFILES.iter().flat_map(|profile| floods.map(|flood| (profile, flood))) {
            let limits = json!({"security": profile, "pids": 64, "memory_mb": 128});
            let session = Session::create(&server.http(), &limits);
            session.try_exec(&json!({"cmd": flood, "timeout_ms": 2000}));
            assert_eq!(neighbour.output("echo alive"), "alive", "{profile}: {flood}");
            let stats = session.stats();
            assert!(stats.pids <= 64 && stats.memory_bytes <= 128 << 20, "{profile}: {flood}: {stats:?}");
            // The sandbox itself may be full, and processes complain into its terminal: a file system full of its own
            // memory lets even a shell die. Its agent answers all the same.
            let answer: ExecResult = session.try_exec(&json!({"cmd": "echo alive"})).expect(200).json();
            let alive = answer.output.lines().any(|line| line.ends_with("alive"));
            assert!(alive || answer.exit_code == 137, "{profile}: {flood}: {answer:?}");
            session.write("file", b"still served");
            session.delete();
        }
        assert_eq!(neighbour.output("echo alive"), "alive");
    });
}

#[test]
fn the_agent_outlives_whatever_the_workload_kills() {
    with_server("the_agent_outlives_whatever_the_workload_kills", |server| {
        for profile in PROFILES {
            let session = create(server, profile);
            for attack in [
                "kill -9 1; kill -TERM 1; kill -STOP 1; kill -SEGV 1",
                "kill -9 -1",
                "kill -STOP -1",
                "kill -9 $PPID",
                "echo 1000 > /proc/1/oom_score_adj",
                "for fd in /proc/1/fd/*; do : > $fd; done",
                "rm -rf /run/* /tmp/* /dev/shm/* /dev/* 2>/dev/null",
            ] {
                session.try_exec(&json!({"cmd": attack, "timeout_ms": 3000}));
                assert_eq!(session.output("echo alive"), "alive", "{profile}: {attack}");
            }
            session.delete();
        }
    });
}

#[test]
fn a_full_disk_is_the_sandbox_s_own() {
    with_server("a_full_disk_is_the_sandbox_s_own", |server| {
        let asked = json!({"disk_mb": 32, "readonly_root": false, "security": "container"});
        let answer = server.http().post("/v1/sessions", &asked);
        if answer.status == 400 && answer.text().contains("disk") {
            skip(
                "a_full_disk_is_the_sandbox_s_own",
                &format!("no disk limit on this host: {}", answer.text().trim()),
            );
            return;
        }
        let session = Session::at(&server.http(), &answer.expect(201).json::<SessionInfo>().id);
        for place in ["/workspace", "/root", "/var"] {
            let said = session.exec(&format!("mkdir -p {place}; dd if=/dev/zero of={place}/fill bs=1M count=200 2>&1; stat -c %s {place}/fill; rm {place}/fill"));
            assert!(
                said.output.contains("No space left") || said.output.contains("quota"),
                "{place}: {}",
                said.output
            );
            let size: u64 = said.output.trim_end().lines().last().unwrap().parse().unwrap();
            assert!(size <= 32 << 20, "{place} took {size} bytes");
        }
        let crowd = session.exec("mkdir many; i=0; while [ $i -lt 200000 ] && : > many/$i; do i=$((i+1)); done 2>/dev/null; echo $i; rm -rf many");
        let made: u32 = crowd.output.trim().parse().unwrap();
        assert!(made < 200_000, "no limit of files");
        assert_eq!(session.output("echo fits > file; cat file"), "fits");
        let neighbour = create(server, "strict");
        assert_eq!(neighbour.output("echo fits > file; cat file"), "fits");
    });
}

#[test]
fn output_of_any_kind_passes_or_is_cut() {
    with_server("output_of_any_kind_passes_or_is_cut", |server| {
        let session = create(server, "strict");
        let line = "head -c 67108864 /dev/zero | tr '\\0' x; echo; echo end";
        let cut = session.exec(line);
        assert_eq!((cut.exit_code, cut.truncated), (0, true));
        assert!(cut.output.bytes().all(|byte| byte == b'x'));
        let binary_output = session.exec("head -c 3000000 /dev/urandom");
        assert_eq!(binary_output.exit_code, 0);
        session.exec("head -c 1000000 /dev/urandom | base64 -w0; printf '\\033]0;title\\007\\033[2J\\0\\0'");
        let events: Vec<_> = session.events(&json!({"cmd": line})).collect();
        assert!(matches!(events.last(), Some((name, _)) if name == "done"), "{:?}", events.last());
        let whole = binary::run(server.cli().args([
            "exec",
            &session.id,
            "--",
            "sh",
            "-c",
            "head -c 67108864 /dev/zero",
        ]));
        assert_eq!((whole.code, whole.stdout.len()), (0, 67_108_864));
        assert_eq!(session.output("echo alive"), "alive");
    });
}

#[test]
fn listings_carry_no_terminal_commands() {
    with_server("listings_carry_no_terminal_commands", |server| {
        let escape = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\r\n";
        let session = create(server, "strict");
        session.output("d=$(printf 'x\\033]0;owned\\007\\033[2Jy'); mkdir \"$d\"; cd \"$d\"");
        for request in [
            json!({"name": format!("n{escape}")}),
            json!({"labels": {format!("k{escape}"): format!("v{escape}")}}),
            json!({"env": {"A": escape}}),
            json!({"entrypoint": ["echo", escape]}),
            json!({"workdir": format!("/tmp/{escape}")}),
            json!({"image": format!("host{escape}")}),
        ] {
            let answer = server.http().post("/v1/sessions", &request);
            assert!(matches!(answer.status, 201 | 400), "{}", answer.text());
        }
        for arguments in
            [&["ps"][..], &["ps", "-a"], &["inspect", "-o", "table", &session.id], &["image", "list"]]
        {
            let ran = binary::run(server.cli().args(arguments));
            assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
            for text in [&ran.stdout, &ran.stderr] {
                let control = text.chars().find(|c| c.is_control() && *c != '\n');
                assert_eq!(control, None, "{arguments:?}: {text:?}");
            }
        }
        let refused = binary::run(server.cli().args(["rm", "no\u{1b}[2Jsuch"]));
        assert!(refused.code != 0 && !refused.stderr.contains('\u{1b}'), "{:?}", refused.stderr);
    });
}

#[test]
fn outside_every_sandbox_is_nobody_in_particular() {
    with_server("outside_every_sandbox_is_nobody_in_particular", |server| {
        let mut seen = BTreeSet::new();
        for profile in ["strict", "container", "strict", "container"] {
            let session = create(server, profile);
            session.output("sleep 1000 & (id; touch /tmp/made) > /dev/null");
            let processes: Vec<u32> = process::all()
                .into_iter()
                .filter(|pid| {
                    std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
                        .is_ok_and(|text| text.contains(&session.id))
                })
                .collect();
            assert!(processes.len() >= 3, "agent, shell and sleep: {processes:?}");
            let mut own = BTreeSet::new();
            for pid in processes {
                for key in ["Uid", "Gid"] {
                    let ids = process::status(pid, key).expect("a live process");
                    own.extend(ids.split_whitespace().map(|id| id.parse::<u32>().unwrap()));
                }
                let groups = process::status(pid, "Groups").unwrap_or_default();
                own.extend(groups.split_whitespace().map(|id| id.parse::<u32>().unwrap()));
            }
            assert!(own.iter().all(|id| *id >= 65_536 && *id != u32::MAX), "{profile}: {own:?}");
            assert!(own.is_disjoint(&seen), "{profile}: {own:?} were used before: {seen:?}");
            seen.extend(own);
        }
    });
}

#[test]
fn a_setuid_file_made_inside_is_powerless_outside() {
    if !sandhaus_tests::runnable("a_setuid_file_made_inside_is_powerless_outside") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let session = Session::create(&server.http(), &json!({"security": "container", "readonly_root": false}));
    session.output("for place in /root /workspace /tmp /var; do cp /bin/sh $place/planted-suid && chmod 6755 $place/planted-suid; done");
    let mut folders = vec![dir.path().to_owned()];
    let mut found = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() == "planted-suid" {
                found += 1;
                assert!(metadata.uid() >= 65_536 && metadata.gid() >= 65_536, "{:?}", entry.path());
            }
        }
    }
    assert!(found > 0, "the sandbox's files are not where the test looks");
    // And nobody on the host but root gets that far.
    assert_eq!(fs_err::metadata(dir.path()).unwrap().permissions().mode() & 0o077, 0);
    session.delete();
    server.stop();
}

#[test]
fn odd_requests_do_not_stop_the_server() {
    with_server("odd_requests_do_not_stop_the_server", |server| {
        let session = create(server, "strict");
        let head = "Host: x\r\nConnection: close\r\n";
        for request in [
            "\r\n\r\n".to_owned(),
            "GET\r\n\r\n".to_owned(),
            format!("GET /{} HTTP/1.1\r\n{head}\r\n", "a".repeat(100_000)),
            format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(5000)),
            format!("POST /v1/sessions HTTP/1.1\r\n{head}Content-Length: 99999999999999999999\r\n\r\n{{}}"),
            format!("POST /v1/sessions HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
            format!(
                "POST /v1/sessions HTTP/1.1\r\n{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            format!("GET /v1/sessions/{}/fs/read?path=%00%ff%2e%2e%2f HTTP/1.1\r\n{head}\r\n", session.id),
            format!("GET /v1/sessions/..%2f..%2fetc/stats HTTP/1.1\r\n{head}\r\n"),
            format!("CONNECT x:1 HTTP/1.1\r\n{head}\r\n"),
        ] {
            let mut connection = server.http().connect().unwrap();
            // The server may answer or hang up at any time.
            let _ = connection.write_raw(request.as_bytes());
            drop(connection);
            server.http().get("/healthz").expect(200);
        }
        let huge = "x".repeat(3 << 20);
        let answer = session.try_exec(&json!({"cmd": huge}));
        assert!(matches!(answer.status, 400 | 413), "{}", answer.status);
        assert_eq!(session.output("echo alive"), "alive");
    });
}
