//! The server and the launcher are killed at every step of a sandbox's life, on every point that the engine names. What
//! is found afterwards can be used or ended, and then nothing is left.

use std::process::{Command, Stdio};

use crate::support::{HELPER, Host, leave_the_network, left_behind, sh};
use sandhaus_engines::namespace::fault_points;
use sandhaus_sandbox::{
    engine::{Engine, RunState},
    types::{Generation, SandboxId, SecurityProfile},
};

/// Whether the launcher passes a point, for itself or for a child.
fn is_launchers(point: &str) -> bool {
    point.starts_with("launcher.") || point.starts_with("child.")
}

/// A point of the launcher's has the server as its parent: one dies, or the other, or both. The parent of the server is
/// this test.
fn victims(point: &str) -> &'static [&'static str] {
    if is_launchers(point) { &["self", "parent", "both"] } else { &["self"] }
}

/// Takes one sandbox through its life in another process, which dies at `point`; says how that ended.
fn drive(host: &Host, id: &SandboxId, fault: Option<String>, disk_bytes: u64) -> (bool, String) {
    let drive = serde_json::json!({
        "data_dir": host.directory.path(),
        "instance": host.instance,
        "agent": crate::support::agent(),
        "tree": host.tree,
        "id": id,
        "disk_bytes": disk_bytes,
    });
    let mut command = Command::new(HELPER);
    command.arg("drive").arg(drive.to_string()).stdin(Stdio::null()).stderr(Stdio::null());
    if let Some(fault) = &fault {
        command.env("SANDHAUS_FAULT", fault);
    }
    let output = command.output().expect("the helper runs");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// After the fact: an engine on the same instance finds what is there, can use it, and can end it.
async fn settle(host: &mut Host, id: &SandboxId, fault: &str) {
    host.reopen().await;
    for observed in host.engine.survey().await.expect("surveyed") {
        assert_eq!(&observed.id, id, "{fault}");
        let running = observed.machine.is_some_and(|machine| machine.run == RunState::Running);
        if running && observed.disk.is_some() {
            let mut spec = host.spec(SecurityProfile::Strict);
            spec.id = id.clone();
            spec.generation = Generation(1);
            let toolbox = host.greet(&spec).await;
            assert_eq!(sh(&toolbox, "echo usable").await.stdout, "usable\n", "{fault}");
        }
        host.engine.destroy(id).await.unwrap_or_else(|error| panic!("{fault}: {error:?}"));
    }
    assert_eq!(host.engine.survey().await.expect("surveyed"), [], "{fault}");
    host.engine.shutdown().await.expect("shut down");
    assert_eq!(left_behind(host.directory.path(), &host.instance), Vec::<String>::new(), "{fault}");
}

#[tokio::test]
async fn every_step_may_be_the_last() {
    // Its machines are bridged.
    leave_the_network();
    let mut host = Host::new().await;
    host.engine.shutdown().await.expect("shut down");
    let (whole, log) = drive(&host, &SandboxId::random(), None, 0);
    assert!(whole, "without a fault it goes through: {log}");
    assert_eq!(left_behind(host.directory.path(), &host.instance), Vec::<String>::new());

    let points = fault_points();
    assert!(points.len() > 80, "{points:?}");
    for point in &points {
        let launchers = is_launchers(point);
        for victim in victims(point) {
            let fault = format!("{point}={victim}");
            let id = SandboxId::random();
            let (whole, log) = drive(&host, &id, Some(fault.clone()), 0);
            // Only a server that lost its launcher can go through.
            assert_eq!(whole, launchers && *victim == "self" && log.contains("gone"), "{fault}: {log}");
            settle(&mut host, &id, &fault).await;
        }
    }
}

#[tokio::test]
async fn so_it_is_with_a_limited_disk() {
    // Its machines are bridged.
    leave_the_network();
    let mut host = Host::new().await;
    host.engine.shutdown().await.expect("shut down");
    let points = fault_points();
    let chosen = [
        "materialize.layer.",
        "launcher.disk.",
        "launcher.binds.",
        "child.root.",
        "stop.kill.",
        "destroy.disk.",
    ];
    for point in points.iter().filter(|point| chosen.iter().any(|prefix| point.starts_with(prefix))) {
        for victim in victims(point) {
            let fault = format!("{point}={victim}");
            let id = SandboxId::random();
            drive(&host, &id, Some(fault.clone()), 32 << 20);
            settle(&mut host, &id, &fault).await;
        }
    }
}
