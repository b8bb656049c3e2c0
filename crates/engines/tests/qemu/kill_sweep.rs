//! The server is killed at every step of a machine's life, on every point that the engine names. What is found afterwards
//! can be ended without going on with it, and then nothing is left.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use sandhaus_engines::qemu::fault_points;
use sandhaus_sandbox::{
    engine::{Capture, Engine, RunState},
    types::SandboxId,
};

use crate::support::{Host, qemu};

/// The helper of this crate's tests.
const HELPER: &str = env!("CARGO_BIN_EXE_engine-test-helper");

/// Machines in flight at once: they wait for the kernel as much as they work.
const WORKERS: usize = 3;

const TEST: &str = "a_death_at_any_step_of_a_machine_leaves_nothing_behind";

/// Points that only a machine passes that starts from its disk; all others are swept with one that goes on from memory,
/// which is there at once.
fn is_of_a_cold_start(point: &str) -> bool {
    point.starts_with("vm_start.answer.")
}

/// Captures of a disk after which its layers have become one: more than any disk may have.
const DISK_CAPTURES_MANY: u32 = 26;

/// Points that only a machine passes whose disk was captured often.
fn is_of_many_captures(point: &str) -> bool {
    point.starts_with("vm_capture.merge.")
}

/// Takes a machine through its life in another process, which dies at `point`; says how that ended.
fn drive(host: &Host, id: &SandboxId, snapshot: Option<&Path>, point: Option<&str>) -> (bool, String) {
    let drive = serde_json::json!({
        "data_dir": host.directory.path(),
        "instance": host.instance,
        "binary": qemu(),
        "tree": host.tree,
        "id": id,
        "snapshot": snapshot,
        "disk_captures": if point.is_some_and(is_of_many_captures) { DISK_CAPTURES_MANY } else { 1 },
    });
    let mut command = Command::new(HELPER);
    command.arg("drive-machine").arg(drive.to_string()).stdin(Stdio::null()).stderr(Stdio::null());
    if let Some(point) = point {
        command.env("SANDHAUS_FAULT", format!("{point}=self"));
    }
    let output = command.output().expect("the helper runs");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One death, and what comes of it; whether there was one.
async fn dies_at(point: &str, snapshot: PathBuf, tree: sandhaus_sandbox::types::Tree) -> bool {
    let mut host = Host::new(TEST).await.expect("the first one was possible");
    host.tree = tree;
    let id = SandboxId::random();
    let snapshot = (!is_of_a_cold_start(point)).then_some(snapshot);
    let (whole, log) = {
        let (id, point) = (id.clone(), point.to_owned());
        let driven = tokio::task::spawn_blocking(move || {
            let ended = drive(&host, &id, snapshot.as_deref(), Some(&point));
            (host, ended)
        });
        let (back, ended) = driven.await.expect("no panic");
        host = back;
        ended
    };
    assert!(!log.contains("failed"), "{point}: {log}");
    let survey = host.engine.survey().await.unwrap_or_else(|error| panic!("{point}: {error:?}"));
    for observed in &survey {
        assert_eq!(observed.id, id, "{point}");
        if let Some(machine) = observed.machine {
            // Half of a memory image is not a machine that somebody may let run.
            let loaded = !point.starts_with("vm_start.spawn.") && !point.starts_with("vm_start.watch.");
            let before = point == "vm_start.load.before";
            assert!(machine.run == RunState::Dead || (loaded && !before), "{point}: {machine:?}");
        }
    }
    host.engine.destroy(&id).await.unwrap_or_else(|error| panic!("{point}: {error:?}"));
    assert_eq!(host.engine.survey().await.expect("surveyed"), [], "{point}");
    host.engine.shutdown().await.expect("shut down");
    assert_eq!(host.left_behind(), Vec::<String>::new(), "{point}");
    !whole
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_at_any_step_of_a_machine_leaves_nothing_behind() {
    let Some(host) = Host::new(TEST).await else { return };
    // One machine whose memory all others go on from.
    let spec = crate::snapshot::with_disk(&host);
    host.up(&spec).await;
    host.engine.freeze(&spec.id).await.expect("frozen");
    let snapshot = host.directory.path().join("snapshot");
    fs_err::create_dir(&snapshot).expect("made");
    host.engine.capture(&spec.id, Capture::Machine, snapshot.clone()).await.expect("captured");
    host.engine.destroy(&spec.id).await.expect("destroyed");

    // Without a death it goes through, from memory.
    let mut through = Host::new(TEST).await.expect("possible");
    through.tree = spec.tree.clone();
    let (whole, log) = drive(&through, &SandboxId::random(), Some(&snapshot), None);
    assert!(whole, "{log}");
    assert_eq!(through.left_behind(), Vec::<String>::new());

    let ours = |point: &String| point.starts_with("vm_") || point.starts_with("guest_network.");
    let points: Vec<String> = fault_points().into_iter().filter(ours).collect();
    assert!(points.len() > 60, "{points:?}");
    let left = Arc::new(Mutex::new(points));
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (left, snapshot, tree) = (Arc::clone(&left), snapshot.clone(), spec.tree.clone());
            tokio::spawn(async move {
                let mut passed_by_none = Vec::new();
                loop {
                    let Some(point) = left.lock().expect("no holder panics").pop() else { break };
                    if !dies_at(&point, snapshot.clone(), tree.clone()).await {
                        passed_by_none.push(point);
                    }
                }
                passed_by_none
            })
        })
        .collect();
    let mut passed_by_none = Vec::new();
    for worker in workers {
        passed_by_none.extend(worker.await.expect("every case passes"));
    }
    assert_eq!(passed_by_none, Vec::<String>::new());
    host.end().await;
}
