//! The agent as the service of a virtual machine: who may ask for what, and what becomes of it when the machine is a copy.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _};

use sandhaus_protocol::{
    guest::{NOT_GREETED, POWER_OFF_PATH, REFUSAL_HEADER, SYNC_PATH},
    hello::{Feature, Guest as Told, HelloRequest},
};
use serde_json::json;

use crate::{
    machine::{Guest, HOST, STRANGER, TOKEN, hello, process_of, unix_time_ns},
    support::{argv, eventually, find_shell},
};

const HELLO: &str = "/sandhaus/hello";
const JSON: (&str, &str) = ("content-type", "application/json");

/// A greeting with something changed in what the guest is told.
fn told(sandbox_id: &str, generation: u64, change: impl FnOnce(&mut Told)) -> HelloRequest {
    let mut hello = hello(sandbox_id, generation);
    change(hello.guest.as_mut().expect("it tells"));
    hello
}

#[test]
fn nobody_is_served_before_the_host_has_greeted() {
    let Some(guest) = Guest::start() else { return };
    for source in [HOST, STRANGER] {
        assert_eq!(guest.from(source, "GET", "/health", &[]).status, 200);
        assert_eq!(guest.from(source, "GET", "/version", &[]).status, 200);
        for (method, target) in [
            ("GET", "/work-dir"),
            ("GET", "/sandhaus/process"),
            ("POST", "/process/execute"),
            ("GET", "/nowhere"),
            ("POST", SYNC_PATH),
        ] {
            let reply = guest.from(source, method, target, &[]);
            assert_eq!(reply.refusal(), (503, NOT_GREETED.to_owned()), "{target}");
            assert_eq!(reply.headers[REFUSAL_HEADER], NOT_GREETED);
        }
    }
    // The host may end what it never greeted; nobody else may.
    assert_eq!(guest.from(STRANGER, "POST", POWER_OFF_PATH, &[]).refusal().0, 503);
    let body = serde_json::to_vec(&hello("one", 1)).expect("JSON");
    let reply = guest.send_from(STRANGER, "POST", HELLO, &[JSON], &body).finish();
    assert_eq!(reply.refusal(), (403, "FORBIDDEN".to_owned()));
    assert_eq!(guest.from(HOST, "GET", "/work-dir", &[]).refusal().0, 503);
}

#[test]
fn a_greeting_that_cannot_be_meant_changes_nothing() {
    let Some(guest) = Guest::start() else { return };
    let wrong: Vec<HelloRequest> = vec![
        HelloRequest { guest: None, ..hello("one", 1) },
        HelloRequest { generation: 2, ..hello("one", 1) },
        HelloRequest { sandbox_id: "two".to_owned(), ..hello("one", 1) },
        HelloRequest { env: BTreeMap::from([("A=B".to_owned(), String::new())]), ..hello("one", 1) },
        told("one", 1, |told| told.hostname = "a b".to_owned()),
        told("one", 1, |told| told.hostname = String::new()),
        told("one", 1, |told| told.hostname = "x".repeat(65)),
        told("one", 1, |told| told.entropy = "xyz".to_owned()),
        told("one", 1, |told| told.entropy = String::new()),
        told("one", 1, |told| told.token = "short".to_owned()),
        told("one", 1, |told| told.token = format!("{TOKEN}\n")),
        told("one", 1, |told| told.boot.workdir = "relative".to_owned()),
        told("one", 1, |told| drop(told.boot.env.insert("A".to_owned(), "\0".to_owned()))),
    ];
    for hello in wrong {
        assert_eq!(guest.post(HELLO, &hello).refusal().0, 400, "{hello:?}");
    }
    assert_eq!(guest.from(HOST, "POST", HELLO, &[JSON]).refusal().0, 400);
    // Its clock is the host's, which it may not set; and a clock that is wrong is no clock to go on with.
    let late = told("one", 1, |told| told.unix_time_ns -= 3_600_000_000_000);
    let reply = guest.post(HELLO, &late);
    assert_eq!(reply.refusal().0, 500);
    assert!(String::from_utf8_lossy(&reply.body).contains("cannot set the clock"));
    assert_eq!(guest.from(HOST, "GET", "/work-dir", &[]).refusal().0, 503);
    assert_eq!(guest.read("/etc/hostname"), "before\n");
    assert!(!guest.path("/srv/work").exists() && !guest.path("/var/lib/sandhaus").exists());
}

#[test]
fn the_first_greeting_makes_what_a_boot_document_makes() {
    let Some(guest) = Guest::start() else { return };
    let hello = HelloRequest {
        env: BTreeMap::from([("OF_OWNER".to_owned(), "owner".to_owned())]),
        ..told("one", 3, |told| told.boot.entrypoint = vec!["sh".into(), "-c".into(), "echo entered".into()])
    };
    let before = unix_time_ns();
    let reply = guest.greet(&hello);
    assert_eq!((reply.sandbox_id.as_str(), reply.generation, reply.protocol), ("one", 3, 1));
    assert!(reply.features.contains(&Feature::Guest) && reply.features.contains(&Feature::Shell));
    assert_eq!(reply.cwd, "/srv/work");
    // What it was told was a moment old by then, so its clock seemed to be ahead.
    let skew = reply.clock_skew_ns.expect("told");
    assert!(skew <= 0 && skew > before - unix_time_ns(), "{skew}");

    for path in ["/srv/work", "/home/sandbox"] {
        let metadata = std::fs::metadata(guest.path(path)).expect("made");
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1000), "{path}");
    }
    assert_eq!(std::fs::metadata(guest.path("/srv")).expect("made").uid(), 0);
    let script = "id -u; id -G; pwd; echo $HOME $USER; echo $OF_BOOT $OF_OWNER; grep CapEff /proc/self/status; uname -n";
    let expected =
        "1000\n1000\n/srv/work\n/home/sandbox sandbox\none.3 owner\nCapEff:\t0000000000000000\nhost-one\n";
    assert_eq!(guest.output(&["sh", "-c", script]), expected);
    assert_eq!(guest.shell(script), expected);
    let logs = || guest.from(HOST, "GET", "/process/session/entrypoint/logs", &[]);
    eventually("the entry point has run", || String::from_utf8_lossy(&logs().body).contains("entered"));

    assert_eq!(guest.read("/etc/hostname"), "host-one\n");
    assert_eq!(guest.read("/etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 host-one # sandhaus\n");
    assert_eq!(guest.read("/etc/resolv.conf"), "# sandhaus\nnameserver 192.168.0.1\n");
    let machine_id = guest.read("/etc/machine-id");
    assert!(machine_id.len() == 33 && machine_id != format!("{}\n", "0".repeat(32)), "{machine_id}");
    assert_eq!(guest.read("/var/lib/dbus/machine-id"), machine_id);
    assert_eq!(
        guest.post(SYNC_PATH, &json!({ "action": "flush" })).json::<serde_json::Value>()["frozen"],
        false
    );
    for limit_ms in [0, 60_001] {
        let freeze = json!({ "action": "freeze", "limit_ms": limit_ms });
        assert_eq!(guest.post(SYNC_PATH, &freeze).refusal().0, 400);
    }
    // This root is one in memory, which cannot stand still.
    let freeze = json!({ "action": "freeze", "limit_ms": 60_000 });
    assert_eq!(guest.post(SYNC_PATH, &freeze).json::<serde_json::Value>()["frozen"], false);
}

#[test]
fn everyone_but_the_host_shows_the_token() {
    let Some(guest) = Guest::start() else { return };
    guest.greet(&hello("one", 1));
    let bearer = |token: &str| format!("Bearer {token}");
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let terminal = "/process/pty/create-connect?id=t";
    assert_eq!(guest.from(HOST, "GET", "/work-dir", &[]).status, 200);
    let wrong = [
        None,
        Some(String::new()),
        Some(TOKEN.to_owned()),
        Some("Bearer ".to_owned()),
        Some(bearer(&TOKEN[1..])),
        Some(bearer(&format!("{TOKEN}x"))),
        Some(format!("Basic {TOKEN}")),
    ];
    for shown in &wrong {
        let headers: Vec<_> = shown.iter().map(|shown| ("authorization", shown.as_str())).collect();
        let reply = guest.from(STRANGER, "GET", "/work-dir", &headers);
        assert_eq!(reply.refusal(), (401, "UNAUTHORIZED".to_owned()), "{shown:?}");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
        assert_eq!(guest.from(STRANGER, "GET", "/nowhere", &headers).refusal().0, 401);
        let headers = [headers.as_slice(), &upgrade].concat();
        assert_eq!(guest.from(STRANGER, "GET", terminal, &headers).refusal().0, 401);
    }
    let right = bearer(TOKEN);
    let shown = [("authorization", right.as_str())];
    assert_eq!(guest.from(STRANGER, "GET", "/work-dir", &shown).status, 200);
    assert_eq!(
        guest.from(STRANGER, "GET", "/work-dir", &[("authorization", &format!("bearer {TOKEN}"))]).status,
        200
    );
    let headers = [&shown[..], &upgrade].concat();
    assert_eq!(guest.send_from(STRANGER, "GET", terminal, &headers, b"").status, 101);
    // The token is no leave to be the host.
    for target in [HELLO, POWER_OFF_PATH, SYNC_PATH] {
        assert_eq!(guest.from(STRANGER, "POST", target, &shown).refusal().0, 403, "{target}");
    }
    // Nor is being inside: neither by the loopback nor by its own address.
    if find_shell("bash").is_none() {
        return;
    }
    for (address, header, status) in [
        ("127.0.0.1", "", "401"),
        ("192.168.0.2", "", "401"),
        ("127.0.0.1", "authorization: Bearer 0123456789abcdef0123456789abcdef\\r\\n", "200"),
    ] {
        let ask = format!(
            "exec 3<>/dev/tcp/{address}/2280; printf 'GET /work-dir HTTP/1.1\\r\\nhost: a\\r\\nconnection: close\\r\\n{header}\\r\\n' >&3; head -n1 <&3"
        );
        assert_eq!(guest.output(&["bash", "-c", &ask]).split(' ').nth(1), Some(status), "{address} {header}");
    }
}

#[test]
fn nobody_inside_but_root_passes_for_the_host() {
    let Some(guest) = Guest::start() else { return };
    if !std::path::Path::new("/usr/bin/python3").exists() {
        eprintln!("SKIPPED: this machine has no /usr/bin/python3");
        return;
    }
    guest.greet(&hello("one", 1));
    // IP_FREEBIND lets anyone have the address, but not speak from it.
    let pretend = "
import socket
s = socket.socket()
s.setsockopt(socket.IPPROTO_IP, 15, 1)
s.bind(('192.168.0.1', 0))
try:
    s.connect(('192.168.0.2', 2280))
    print('connected')
except OSError as error:
    print('refused')
";
    assert_eq!(guest.output(&["/usr/bin/python3", "-c", pretend]), "refused\n");
}

#[test]
fn the_same_greeting_again_keeps_everything_but_the_token() {
    let Some(guest) = Guest::start() else { return };
    guest.greet(&hello("one", 1));
    let machine_id = guest.read("/etc/machine-id");
    guest.shell("kept=yes");
    let again = told("one", 1, |told| told.token = "another-token-0123456789".to_owned());
    guest.greet(&again);
    assert_eq!(guest.shell("echo $kept"), "yes\n");
    assert_eq!(guest.read("/etc/machine-id"), machine_id);
    let status = |token: &str| {
        guest.from(STRANGER, "GET", "/work-dir", &[("authorization", &format!("Bearer {token}"))]).status
    };
    assert_eq!((status(TOKEN), status("another-token-0123456789")), (401, 200));
    // As for every agent, an owner's variables come once and stay.
    let with = |value: &str| HelloRequest {
        env: BTreeMap::from([("OWNER".to_owned(), value.to_owned())]),
        ..hello("one", 1)
    };
    guest.greet(&with("first"));
    guest.greet(&with("first"));
    assert_eq!(guest.output(&["printenv", "OWNER"]), "first\n");
    assert_eq!(guest.post(HELLO, &with("second")).refusal().0, 409);
}

#[test]
fn a_copy_takes_another_identity_and_what_runs_goes_on() {
    let Some(guest) = Guest::start() else { return };
    guest.greet(&hello("one", 5));
    let machine_id = guest.read("/etc/machine-id");
    guest.shell("kept=yes; cd /tmp");
    let mut counter = guest.spawn(&argv(&[
        "sh",
        "-c",
        "echo $OF_BOOT; until [ -e /tmp/go ]; do sleep 0.01; done; echo $OF_BOOT",
    ]));
    let process = process_of(&mut counter);
    counter.until("one.5");

    let copy = told("two", 1, |told| told.token = "another-token-0123456789".to_owned());
    let reply = guest.greet(&copy);
    assert_eq!((reply.sandbox_id.as_str(), reply.generation, reply.cwd.as_str()), ("two", 1, "/tmp"));
    // Whoever was connected before the photograph is connected no more, and hears so.
    assert!(counter.breaks_off());

    assert_eq!(guest.read("/etc/hostname"), "host-two\n");
    assert_eq!(guest.output(&["uname", "-n"]), "host-two\n");
    assert_eq!(guest.read("/etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 host-two # sandhaus\n");
    let renewed = guest.read("/etc/machine-id");
    assert_ne!(renewed, machine_id);
    assert_eq!(guest.read("/var/lib/dbus/machine-id"), renewed);
    let old = [("authorization", format!("Bearer {TOKEN}"))];
    let old: Vec<_> = old.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(guest.from(STRANGER, "GET", "/work-dir", &old).refusal().0, 401);

    // A new process has the new variables; the shell and the process that ran keep theirs.
    assert_eq!(guest.output(&["printenv", "OF_BOOT"]), "two.1\n");
    assert_eq!(guest.shell("echo $kept $OF_BOOT $PWD"), "yes one.5 /tmp\n");
    guest.output(&["touch", "/tmp/go"]);
    assert_eq!(guest.output_of(process), "one.5\none.5\n");

    // Its own machine goes on from a memory image: a newer generation, and still the same machine.
    guest.greet(&hello("two", 4));
    assert_eq!(guest.read("/etc/machine-id"), renewed);
    assert_eq!(guest.output(&["printenv", "OF_BOOT"]), "two.4\n");
    let past = guest.post(HELLO, &hello("two", 3));
    assert_eq!(past.refusal().0, 409);
    assert_eq!(guest.output(&["printenv", "OF_BOOT"]), "two.4\n");
}

#[test]
fn a_shell_that_nobody_has_used_takes_the_variables_of_a_copy() {
    let Some(guest) = Guest::start() else { return };
    guest.greet(&hello("one", 1));
    guest.greet(&hello("two", 1));
    assert_eq!(guest.shell("echo $OF_BOOT"), "two.1\n");
}

#[test]
fn a_copy_cannot_become_another_user() {
    let Some(guest) = Guest::start() else { return };
    guest.greet(&hello("one", 1));
    let machine_id = guest.read("/etc/machine-id");
    for change in [
        (|told| told.boot.user.uid = 0) as fn(&mut Told),
        |told| told.boot.user.gid = 0,
        |told| told.boot.user.unprivileged = false,
    ] {
        assert_eq!(guest.post(HELLO, &told("two", 1, change)).refusal().0, 409);
    }
    assert_eq!(guest.read("/etc/machine-id"), machine_id);
    assert_eq!(guest.output(&["uname", "-n"]), "host-one\n");
    assert_eq!(guest.output(&["printenv", "OF_BOOT"]), "one.1\n");
}

#[test]
fn an_agent_that_was_started_anew_waits_to_be_greeted() {
    let Some(mut guest) = Guest::start() else { return };
    guest.greet(&hello("one", 1));
    let machine_id = guest.read("/etc/machine-id");
    // The shell is there: a child that is just being made has the agent's listener until it is a program of its own.
    assert_eq!(guest.shell("echo $OF_BOOT"), "one.1\n");
    guest.restart_agent();
    assert_eq!(guest.from(HOST, "GET", "/work-dir", &[]).refusal(), (503, NOT_GREETED.to_owned()));
    let shown = [("authorization", "Bearer 0123456789abcdef0123456789abcdef")];
    assert_eq!(guest.from(STRANGER, "GET", "/work-dir", &shown).refusal().0, 503);
    guest.greet(&hello("one", 1));
    assert_eq!(guest.shell("echo $OF_BOOT"), "one.1\n");
    assert_eq!(guest.read("/etc/machine-id"), machine_id, "the same sandbox's disk");
    // The disk of another sandbox now, started cold.
    guest.restart_agent();
    guest.greet(&hello("two", 1));
    assert_ne!(guest.read("/etc/machine-id"), machine_id);
}
