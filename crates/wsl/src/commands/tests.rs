use std::{cell::RefCell, io};

use super::*;
use crate::{cli::Arguments, wsl::Output as Called};

/// A machine with WSL whose answers are given.
struct Machine {
    answers: Vec<(&'static str, Called)>,
    calls: RefCell<Vec<String>>,
    has_wsl: bool,
    reached: bool,
}

fn well(text: &str) -> Called {
    Called { succeeded: true, out: text.to_owned(), err: String::new() }
}

fn ill(text: &str) -> Called {
    Called { succeeded: false, out: String::new(), err: text.to_owned() }
}

const LIST: &str = "  NAME    STATE    VERSION\n* Debian  Running  2\n  Old     Stopped  1\n";
const MOUNTS: &str =
    "/dev/sdc / ext4 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nC:\\134 /mnt/c 9p rw,aname=drvfs 0 0\n";
const SETTINGS: &str = r#"{"listen":{"value":"127.0.0.1:8090"},"data_dir":{"value":"/var/lib/sandhaus"}}"#;
const CHECKS: &str = r#"[{"name":"kernel","level":"ok","found":"6.6"},
    {"name":"disk limit","level":"warn","found":"none","remedy":"install e2fsprogs"}]"#;

impl Machine {
    /// All is well, and the server runs.
    fn sound() -> Self {
        let answers = vec![
            ("--list --verbose", well(LIST)),
            ("cat /proc/mounts", well(MOUNTS)),
            ("sandhaus version", well("sandhaus 0.1.0\n")),
            ("sandhaus config show -o json", well(SETTINGS)),
            ("sandhaus ps -o json", well("[{\"id\":\"a\"}]")),
            ("sandhaus daemon -d", well("")),
            ("sandhaus stop", well("stopped the server (process 7)\n")),
            ("sandhaus doctor -o json", well(CHECKS)),
        ];
        Self { answers, calls: RefCell::default(), has_wsl: true, reached: true }
    }

    /// The same, but for one answer.
    fn but(mut self, call: &'static str, answer: Called) -> Self {
        self.answers.retain(|(known, _)| *known != call);
        self.answers.push((call, answer));
        self
    }

    fn run(&self, words: &[&str]) -> Reply {
        let words = ["sandhaus-wsl"].iter().chain(words).map(Into::into);
        run(&Arguments::of(words), self, self)
    }

    /// Whether a call was made whose arguments, put side by side, end so.
    fn was_asked(&self, end: &str) -> bool {
        self.calls.borrow().iter().any(|call| call.ends_with(end))
    }
}

impl Wsl for Machine {
    fn call(&self, arguments: &[&str]) -> io::Result<Called> {
        if !self.has_wsl {
            return Err(io::ErrorKind::NotFound.into());
        }
        let call = arguments.join(" ");
        self.calls.borrow_mut().push(call.clone());
        let inside = call.strip_prefix("-d Debian -u root --exec ").unwrap_or(&call);
        let inside = inside.split(" --config ").next().unwrap_or(inside);
        let answer = self.answers.iter().find(|(known, _)| *known == inside);
        Ok(answer.map_or_else(|| ill("no such call"), |(_, answer)| answer.clone()))
    }
}

impl Reach for Machine {
    fn answers(&self, port: u16) -> bool {
        self.reached && port == 8090
    }

    fn wait(&self) {}
}

/// Something is wrong, and the message has these words.
fn refuses(machine: &Machine, words: &[&str], wanted: &[&str]) {
    let reply = machine.run(words);
    assert_eq!(reply.code, 1, "{reply:?}");
    for wanted in wanted {
        assert!(reply.err.contains(wanted), "{wanted} is not in {}", reply.err);
    }
}

#[test]
fn a_server_is_started_as_root_with_its_configuration() {
    let machine = Machine::sound().but("sandhaus ps -o json", ill("no server answers"));
    let reply = machine.run(&["start", "-c", "/etc/my file.yaml"]);
    assert_eq!(reply.code, 0, "{reply:?}");
    assert_eq!(reply.out, "the server runs in Debian\nAPI  http://localhost:8090/v1\n");
    assert!(machine.was_asked("-d Debian -u root --exec sandhaus daemon -d --config /etc/my file.yaml"));
}

#[test]
fn a_server_that_runs_is_not_started_twice() {
    let machine = Machine::sound();
    let reply = machine.run(&["start"]);
    assert_eq!((reply.code, reply.err.as_str()), (0, ""));
    assert!(reply.out.starts_with("the server already runs in Debian\n"), "{reply:?}");
    assert!(!machine.was_asked("daemon -d"));
}

#[test]
fn a_start_that_fails_tells_why() {
    let machine = Machine::sound()
        .but("sandhaus ps -o json", ill("no server answers"))
        .but("sandhaus daemon -d", ill("error: cannot listen on 127.0.0.1:8090"));
    refuses(&machine, &["start"], &["does not start in Debian", "cannot listen", "sandhaus-wsl doctor"]);
}

#[test]
fn without_wsl_the_remedy_is_to_install_it() {
    let mut machine = Machine::sound();
    machine.has_wsl = false;
    refuses(&machine, &["start"], &["WSL: is not installed", "wsl --install -d Debian"]);
    // The program that Windows has in its place says so in the user's language.
    let machine = Machine::sound().but("--list --verbose", ill("Das Subsystem ist nicht installiert."));
    refuses(&machine, &["start"], &["WSL: is not installed: Das Subsystem", "as administrator"]);
    let machine = Machine::sound()
        .but("--list --verbose", ill("There are no installed distributions."))
        .but("--version", well("WSL version: 2.3.24.0\n"));
    refuses(&machine, &["start"], &["distribution: there is none", "wsl --install -d Debian"]);
}

#[test]
fn a_distribution_that_will_not_do_is_refused_by_name() {
    refuses(&Machine::sound(), &["start", "-d", "Ubuntu"], &["there is no Ubuntu", "Debian, Old"]);
    refuses(&Machine::sound(), &["start", "-d", "old"], &["Old is of WSL 1", "wsl --set-version Old 2"]);
    let machine = Machine::sound()
        .but("--list --verbose", well("* docker-desktop  Running  2\n  Debian  Stopped  2\n"));
    refuses(&machine, &["start"], &["docker-desktop, belongs to another program"]);
    let machine = Machine::sound().but("cat /proc/mounts", ill("The virtual disk is gone."));
    refuses(&machine, &["start"], &["Debian does not start: The virtual disk is gone.", "wsl --shutdown"]);
    // Named in other letters it is the same one, called by its own name.
    let machine = Machine::sound();
    assert_eq!(machine.run(&["start", "-d", "DEBIAN"]).code, 0);
    assert!(machine.was_asked("-d Debian -u root --exec sandhaus version"));
}

#[test]
fn cgroups_of_version_1_warn_and_none_stop() {
    let legacy = "cgroup /sys/fs/cgroup/memory cgroup rw 0 0\n";
    let reply = Machine::sound().but("cat /proc/mounts", well(legacy)).run(&["start"]);
    assert_eq!(reply.code, 0);
    assert!(
        reply.err.contains("warning: cgroups: version 1") && reply.err.contains("cgroup_no_v1=all"),
        "{reply:?}"
    );
    refuses(
        &Machine::sound().but("cat /proc/mounts", well("")),
        &["start"],
        &["cgroups: none", "wsl --update"],
    );
}

#[test]
fn a_program_that_is_missing_or_another_one_is_told() {
    let missing =
        "<3>WSL (9) ERROR: CreateProcessCommon:800: execvpe(sandhaus) failed: No such file or directory";
    for answer in [ill(missing), well("GNU bash, version 5\n")] {
        let machine = Machine::sound().but("sandhaus version", answer);
        refuses(
            &machine,
            &["start"],
            &["sandhaus does not run inside", "/usr/local/bin/sandhaus", "--binary"],
        );
    }
}

#[test]
fn what_lies_on_a_drive_of_windows_is_told() {
    let settings = SETTINGS.replace("/var/lib", "/mnt/c/Users/me");
    let machine = Machine::sound().but("sandhaus config show -o json", well(&settings));
    refuses(&machine, &["start"], &["/mnt/c/Users/me/sandhaus lies on a drive of Windows", "set data_dir"]);
    assert!(!machine.was_asked("daemon -d"));
    let reply = Machine::sound().run(&["start", "-c", "/mnt/c/sandhaus.yaml"]);
    assert_eq!(reply.code, 0);
    assert!(reply.err.contains("warning: configuration: /mnt/c/sandhaus.yaml lies on a drive"), "{reply:?}");
}

#[test]
fn a_configuration_that_is_wrong_is_told_as_the_program_tells_it() {
    let machine =
        Machine::sound().but("sandhaus config show -o json", ill("error: configuration key listen …"));
    refuses(&machine, &["start"], &["configuration: error: configuration key listen", "--config"]);
    let machine = Machine::sound().but("sandhaus config show -o json", well("{}"));
    refuses(&machine, &["start"], &["error: configuration"]);
}

#[test]
fn status_is_the_servers_own() {
    let machine = Machine::sound();
    let reply = machine.run(&["status"]);
    assert_eq!((reply.code, reply.err.as_str()), (0, ""));
    assert_eq!(reply.out, "the server runs in Debian\nAPI        http://localhost:8090/v1\nsandboxes  1\n");
    let reply = machine.run(&["status", "-o", "json"]);
    let facts: Value = serde_json::from_str(&reply.out).expect("JSON");
    assert_eq!((&facts["running"], &facts["sandboxes"][0]["id"]), (&json!(true), &json!("a")));
    assert_eq!(facts["problems"], json!([]));

    let machine = Machine::sound().but("sandhaus ps -o json", ill("error: no server answers"));
    let reply = machine.run(&["status"]);
    assert_eq!((reply.code, reply.out.as_str()), (3, "the server does not run\n"));
    assert!(reply.err.contains("no server answers"));

    let mut machine = Machine::sound();
    machine.reached = false;
    refuses(&machine, &["status"], &["localhost:8090 does not answer from Windows", "localhostForwarding"]);
    refuses(&machine, &["start"], &["does not answer from Windows"]);

    let reply = Machine::sound().run(&["status", "-d", "Old", "-o", "json"]);
    assert_eq!(reply.code, 1);
    let facts: Value = serde_json::from_str(&reply.out).expect("JSON");
    assert_eq!(facts["problems"][0]["remedy"], "wsl --set-version Old 2");
}

#[test]
fn the_server_is_stopped_by_our_own_program() {
    let machine = Machine::sound();
    let reply = machine.run(&["stop", "-b", "sandhaus"]);
    assert_eq!((reply.code, reply.out.as_str()), (0, "stopped the server (process 7)\n"));
    assert!(machine.was_asked("--exec sandhaus stop"));
    let machine = Machine::sound().but("sandhaus stop", ill("error: no server runs"));
    refuses(&machine, &["stop"], &["was not stopped: error: no server runs"]);
}

#[test]
fn doctor_tells_what_is_found_on_both_sides() {
    let reply = Machine::sound().run(&["doctor"]);
    assert_eq!(reply.code, 0, "{reply:?}");
    for line in [
        "ok    distribution",
        "ok    kernel",
        "warn  disk limit",
        "-> install e2fsprogs",
        "A server can run.",
    ] {
        assert!(reply.out.contains(line), "{line} is not in {}", reply.out);
    }
    let broken = CHECKS.replace("warn", "fail");
    let reply = Machine::sound()
        .but("sandhaus doctor -o json", Called { succeeded: false, ..well(&broken) })
        .run(&["doctor", "-o", "json"]);
    assert_eq!(reply.code, 1);
    let findings: Value = serde_json::from_str(&reply.out).expect("JSON");
    assert!(findings.as_array().expect("a list").iter().any(|finding| finding["level"] == "fail"));
    assert_eq!(Machine::sound().but("sandhaus doctor -o json", ill("killed")).run(&["doctor"]).code, 1);
}
