//! The agent as PID 1 of a process namespace: confinement of the workload, zombies, hello, the end.

use std::{collections::BTreeMap, fs, path::Path};

use sandhaus_protocol::{
    hello::{Feature, HelloReply, HelloRequest},
    process::Spawn,
};

use crate::support::{Agent, Who, argv, eventually};

fn hello(generation: u64, sandbox_id: &str) -> HelloRequest {
    HelloRequest {
        protocol: 99,
        sandbox_id: sandbox_id.to_owned(),
        generation,
        env: BTreeMap::new(),
        guest: None,
        ssh: None,
    }
}

#[test]
fn hello_accepts_only_its_own_sandbox_and_generation() {
    let Some(agent) = Agent::init(Who::Unprivileged) else { return };
    let reply: HelloReply = agent.post("/sandhaus/hello", &hello(7, "0123abcd-456")).json();
    assert_eq!((reply.protocol, reply.generation, reply.sandbox_id.as_str()), (1, 7, "0123abcd-456"));
    assert_eq!(Path::new(&reply.cwd), agent.work());
    assert!(reply.features.contains(&Feature::Shell) && reply.features.contains(&Feature::Files));
    assert_eq!(agent.post("/sandhaus/hello", &hello(8, "0123abcd-456")).refusal().0, 409);
    assert_eq!(agent.post("/sandhaus/hello", &hello(7, "0123abcd-457")).refusal().0, 409);
}

#[test]
fn a_greeting_may_bring_variables_once() {
    let Some(agent) = Agent::init(Who::Unprivileged) else { return };
    let with = |name: &str, value: &str| HelloRequest {
        env: BTreeMap::from([(name.to_owned(), value.to_owned())]),
        ..hello(7, "0123abcd-456")
    };
    let value = "it's $HOME \"quoted\"\n`id`\\";
    assert_eq!(agent.post("/sandhaus/hello", &with("1A", "x")).refusal().0, 400);
    assert_eq!(agent.post("/sandhaus/hello", &with("A", "\0")).refusal().0, 400);
    let reply: HelloReply = agent.post("/sandhaus/hello", &with("GIVEN", value)).json();
    assert!(reply.features.contains(&Feature::Env));
    // The shell that was warm already, and whatever is started from now on.
    assert_eq!(agent.shell("printf '%s' \"$GIVEN\"").0, value);
    let (output, _) = agent.run(&argv(&["printenv", "GIVEN"]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{value}\n"));
    // A repeat is no change, and keeps the shell; other variables come too late.
    agent.shell("kept=yes");
    agent.post("/sandhaus/hello", &with("GIVEN", value)).json::<HelloReply>();
    assert_eq!(agent.shell("echo $kept").0, "yes\n");
    assert_eq!(agent.post("/sandhaus/hello", &with("GIVEN", "other")).refusal().0, 409);
    assert_eq!(agent.post("/sandhaus/hello", &with("MORE", value)).refusal().0, 409);
    assert_eq!(agent.shell("echo \"$MORE\"").0, "\n");
}

#[test]
fn the_unprivileged_workload_has_nothing_and_sees_nothing_of_the_agent() {
    let Some(agent) = Agent::init(Who::Unprivileged) else { return };
    let facts =
        "id -u; id -g; id -G; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; cat /proc/self/oom_score_adj";
    let none = "0000000000000000";
    let expected = format!(
        "1000\n1000\n1000\nCapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t{none}\nCapAmb:\t{none}\nNoNewPrivs:\t1\n500\n"
    );
    assert_eq!(agent.shell(facts).0, expected);
    let (all, _) = agent.run(&argv(&["sh", "-c", facts]));
    assert_eq!(String::from_utf8_lossy(&all.stdout), expected);
    for secret in [
        "cat /proc/1/environ",
        "cat /proc/1/mem",
        "ls /proc/1/fd",
        "ls /proc/1/root/",
        "readlink /proc/1/exe",
    ] {
        let (output, code) = agent.shell(secret);
        assert_ne!(code, 0, "{secret}: {output}");
        assert!(!output.contains("not-for-proc-1"), "{secret}");
    }
    for attack in ["kill -9 1", "kill -TERM 1", "kill -INT 1", "kill -9 -1"] {
        agent.shell_limited(attack, 0);
        assert_eq!(agent.shell("echo alive").0, "alive\n", "{attack}");
    }
}

#[test]
fn signals_from_inside_do_not_end_pid_1_even_as_root() {
    let Some(agent) = Agent::init(Who::Root) else { return };
    agent.shell("kill -TERM 1; kill -INT 1; kill -HUP 1; kill -9 1");
    assert_eq!(agent.shell("id -u; echo alive").0, "0\nalive\n");
}

#[test]
fn orphans_are_reaped_and_own_children_are_not_lost() {
    let Some(agent) = Agent::init(Who::Unprivileged) else { return };
    // Ten thousand orphans in the end, while statuses of own children must all be right.
    for n in 0..100 {
        let status = n % 100;
        let script = format!("for i in 1 2 3 4 5 6 7 8 9 10; do (true & true &) ; done; exit {status}");
        let (_, exit) = agent.run(&argv(&["sh", "-c", &script]));
        assert_eq!(exit.exit_code, status);
        assert_eq!(agent.shell(&format!("(exit {status})")).1, status);
    }
    let children = format!("/proc/{0}/task/{0}/children", agent.pid);
    let zombies = || {
        let children = fs::read_to_string(&children).expect("read the children");
        let zombie = |pid: &&str| {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
        };
        children.split_whitespace().filter(zombie).count()
    };
    eventually("no zombies", || zombies() == 0);
}

#[test]
fn families_end_though_orphans_belong_to_pid_1() {
    let Some(agent) = Agent::init(Who::Unprivileged) else { return };
    let script = "(setsid sleep 1234 &); (setsid setsid sleep 1234 &); sleep 1234 & sleep 1234";
    let (_, exit) = agent.run(&Spawn { timeout_ms: 200, ..argv(&["sh", "-c", script]) });
    assert!(exit.timed_out);
    assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0]);
    agent.shell("(setsid sleep 4321 &)");
    let (_, exit) = agent.shell_limited(script, 200);
    assert!(exit.timed_out && !exit.shell_replaced);
    assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0]);
    assert_eq!(agent.descendants_with("sleep 4321").len(), 1);
}

#[test]
fn files_are_the_workloads() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(agent) = Agent::init(Who::Unprivileged) else { return };
    assert_eq!(agent.request("POST", "/files/upload-v2?path=a/b", &[], b"mine").status, 200);
    let metadata = fs::metadata(agent.work().join("a/b")).expect("the file is there");
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (1000, 1000, 0o644));
    // What only root may read or change stays so.
    let kept = agent.work().join("kept");
    fs::write(&kept, "root's").expect("write as root");
    fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    assert_eq!(agent.get("/files/download?path=kept").refusal(), (403, "FILE_ACCESS_DENIED".to_owned()));
    assert_eq!(agent.request("POST", "/files/upload-v2?path=/etc/new", &[], b"").refusal().0, 403);
    assert_eq!(agent.get("/files?path=/root").refusal().0, 403);
    assert!(!Path::new("/etc/new").exists());
}

#[test]
fn the_entrypoint_runs_in_its_own_session() {
    let Some(agent) = Agent::init(Who::Unprivileged) else { return };
    let ended = || {
        let session: serde_json::Value = agent.get("/process/session/entrypoint").json();
        session["commands"][0]["exitCode"] == 5
    };
    eventually("the entrypoint has ended", ended);
    let headers = [("x-daytona-sdk-version", "0.226.1")];
    let logs: serde_json::Value =
        agent.request("GET", "/process/session/entrypoint/logs", &headers, b"").json();
    assert_eq!((logs["stdout"].as_str(), logs["stderr"].as_str()), (Some("entry\n"), Some("point\n")));
    assert_eq!(agent.get("/process/session").json::<Vec<serde_json::Value>>().len(), 0);
    assert_eq!(agent.delete("/process/session/entrypoint").refusal().0, 400);
}

#[test]
fn a_request_from_outside_ends_everything() {
    let Some(agent) = Agent::init(Who::Unprivileged) else { return };
    agent.shell("sleep 4321 & (setsid sleep 4321 &)");
    let pid = i32::try_from(agent.pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("ask it to end");
    eventually("PID 1 has ended", || !Path::new(&format!("/proc/{}/cmdline", agent.pid)).exists());
}
