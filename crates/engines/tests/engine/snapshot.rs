//! Disks are captured, and machines begin with what was: the same to look at, and nobody's business but their own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::support::{Host, config, sh};
use sandhaus_engines::namespace::NamespaceEngine;
use sandhaus_sandbox::{
    engine::{Capture, Engine, EngineError, MachineSpec, StopMode},
    types::{Generation, SandboxId, SecurityProfile},
};

/// Everything that a layer can hold that is not just a file.
const WRITE: &str = "
    echo new > /etc/new; echo more >> /etc/passwd; rm /etc/group
    rm -r /srv/full; mkdir /srv/full; echo only > /srv/full/only
    mkdir -p /data/deep; echo one > /data/one; ln /data/one /data/deep/two; ln -s ../nowhere /data/link
    mkfifo /data/pipe; chown 1000:33 /data/one; chmod 4751 /data/one
    dd if=/dev/zero of=/data/holes bs=1 count=1 seek=64M 2>/dev/null
    touch -d '2001-02-03 04:05:06' /data/deep
    echo work > /workspace/file; chown 1000:1000 /workspace/file; echo home > /root/file";

/// What it looks like from inside, in words.
const LOOK: &str = "
    cat /etc/new; tail -n 1 /etc/passwd; ls /etc/group 2>&1; ls /srv/full
    cat /data/deep/two; stat -c '%u:%g %a %h' /data/one; readlink /data/link; stat -c %F /data/pipe
    stat -c '%s' /data/holes; test $(stat -c %b /data/holes) -lt 64 && echo sparse
    stat -c %Y /data/deep; cat /workspace/file /root/file; stat -c '%u %a' /workspace/file";

async fn capture(host: &Host, id: &SandboxId, name: &str) -> PathBuf {
    let into = host.directory.path().join("snapshots").join(name);
    fs_err::create_dir_all(&into).expect("made");
    host.engine.freeze(id).await.expect("frozen");
    host.engine.capture(id, Capture::Disk, into.clone()).await.unwrap_or_else(|error| panic!("{error:?}"));
    host.engine.thaw(id).await.expect("thawed");
    into
}

fn from(host: &Host, snapshot: &Path) -> MachineSpec {
    let mut spec = host.spec(SecurityProfile::Container);
    spec.snapshot = Some(snapshot.to_owned());
    spec.hostname = "another".to_owned();
    spec
}

/// An image with a directory that has something to hide.
async fn host() -> Host {
    let host = Host::new().await;
    let full = host.directory.path().join("image/base/srv/full");
    fs_err::create_dir_all(&full).expect("made");
    fs_err::write(full.join("hidden"), "").expect("written");
    host
}

#[tokio::test]
async fn a_copy_is_what_its_original_was() {
    let host = host().await;
    for disk_bytes in [0, 128 << 20] {
        let mut spec = host.spec(SecurityProfile::Container);
        spec.resources.disk_bytes = disk_bytes;
        let toolbox = host.up(&spec).await;
        let wrote = sh(&toolbox, WRITE).await;
        assert_eq!(wrote.stderr, "", "{disk_bytes}");
        let was = sh(&toolbox, LOOK).await.stdout;
        assert!(was.contains("only\n") && !was.contains("hidden") && was.contains("sparse"), "{was}");
        assert!(was.contains("1000:33 4751 2"), "{was}");
        let first = capture(&host, &spec.id, &format!("first-{disk_bytes}")).await;
        assert_eq!(sh(&toolbox, "echo on; echo later > /data/later").await.stdout, "on\n");

        let mut copy = from(&host, &first);
        copy.resources.disk_bytes = disk_bytes;
        let inside = host.up(&copy).await;
        assert_eq!(sh(&inside, LOOK).await.stdout, was, "{disk_bytes}");
        assert_eq!(
            sh(&inside, "hostname; cat /etc/hostname; ls /data/later 2>&1").await.stdout.lines().count(),
            3
        );
        assert!(sh(&inside, "grep another /etc/hosts").await.code == 0);
        sh(&inside, "rm /data/one; rm /etc/new; echo changed > /workspace/file; mkdir /own").await;
        assert_eq!(sh(&toolbox, LOOK).await.stdout, was, "the original has its own");

        // It starts again, and a copy of it stands on nothing that was before.
        host.engine.stop(&copy.id, StopMode::Graceful).await.expect("stopped");
        copy.generation = Generation(2);
        let inside = host.start(&copy).await;
        assert_eq!(sh(&inside, "cat /workspace/file; ls -d /own /etc/new 2>&1").await.code, 1);
        let second = capture(&host, &copy.id, &format!("second-{disk_bytes}")).await;
        for id in [&spec.id, &copy.id] {
            host.engine.destroy(id).await.expect("destroyed");
        }
        fs_err::remove_dir_all(&first).expect("nothing needs it");
        let inside = host.up(&from(&host, &second)).await;
        let seen =
            sh(&inside, "cat /workspace/file /data/deep/two /srv/full/only; ls /data/one /etc/new 2>&1")
                .await;
        assert!(seen.stdout.starts_with("changed\none\nonly\n"), "{seen:?}");
        assert_eq!(seen.stdout.matches("No such file").count(), 2, "{seen:?}");
    }
    host.end().await;
}

#[tokio::test]
async fn only_what_stands_still_is_captured() {
    let host = host().await;
    let spec = host.spec(SecurityProfile::Strict);
    let toolbox = host.up(&spec).await;
    assert_eq!(
        sh(&toolbox, "echo mine > /workspace/file; stat -c %u /workspace/file").await.stdout,
        "1000\n"
    );
    let into = host.directory.path().join("refused");
    fs_err::create_dir(&into).expect("made");
    let running = host.engine.capture(&spec.id, Capture::Disk, into.clone()).await;
    assert!(matches!(running, Err(EngineError::Invalid(_))), "{running:?}");
    for what in [Capture::Memory, Capture::Machine] {
        let refused = host.engine.capture(&spec.id, what, into.clone()).await;
        assert!(matches!(refused, Err(EngineError::Unsupported(_))), "{refused:?}");
    }
    let nobody = host.engine.capture(&SandboxId::random(), Capture::Disk, into.clone()).await;
    assert!(matches!(nobody, Err(EngineError::Invalid(_))), "{nobody:?}");
    assert_eq!(fs_err::read_dir(&into).expect("readable").count(), 0);
    host.engine.stop(&spec.id, StopMode::Kill).await.expect("stopped");
    host.engine.capture(&spec.id, Capture::Disk, into.clone()).await.expect("nobody writes");

    // Under the other profile its owner is the same.
    let copy = from(&host, &into);
    let inside = host.up(&copy).await;
    assert_eq!(sh(&inside, "cat /workspace/file; stat -c %u /workspace/file").await.stdout, "mine\n1000\n");
    // A machine cannot lie over what is not there.
    let missing = from(&host, &host.directory.path().join("nowhere"));
    assert!(host.engine.materialize(&missing).await.is_err());
    host.end().await;
}

#[tokio::test]
async fn kernels_that_map_ids_otherwise_show_the_same() {
    let mut host = host().await;
    let spec = host.spec(SecurityProfile::Container);
    let toolbox = host.up(&spec).await;
    sh(&toolbox, WRITE).await;
    let was = sh(&toolbox, LOOK).await.stdout;
    let snapshot = capture(&host, &spec.id, "it").await;
    host.engine.destroy(&spec.id).await.expect("destroyed");
    for kernel in [(6, 1), (5, 15)] {
        host.engine.shutdown().await.expect("shut down");
        let config = config(host.directory.path(), &host.instance);
        host.engine = Arc::new(NamespaceEngine::open_on(config, kernel).await.expect("opened"));
        let copy = from(&host, &snapshot);
        let inside = host.up(&copy).await;
        assert_eq!(sh(&inside, LOOK).await.stdout, was, "{kernel:?}");
        host.engine.destroy(&copy.id).await.expect("destroyed");
    }
    host.end().await;
}
