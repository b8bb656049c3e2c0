//! A workspace in machines: the same files, owned by whoever the workload is.

use std::{
    os::unix::fs::{MetadataExt, chown},
    sync::Arc,
};

use sandhaus_engines::namespace::NamespaceEngine;
use sandhaus_sandbox::{
    engine::{Boot, Engine},
    types::{SecurityProfile, WORKLOAD_ID, WORKSPACE_ID_BASE},
};

use crate::support::{Host, sh};

#[tokio::test]
async fn machines_of_both_profiles_share_a_workspace_on_every_kernel_that_maps_ids() {
    for kernel in [(6, 18), (6, 1)] {
        let mut host = Host::new().await;
        host.engine.shutdown().await.expect("shut down");
        let config = crate::support::config(host.directory.path(), &host.instance);
        host.engine = Arc::new(NamespaceEngine::open_on(config, kernel).await.expect("opened"));
        assert!(host.engine.capabilities().workspaces);
        let workspace = host.directory.path().join("workspaces/shared");
        let files = workspace.join("files");
        fs_err::create_dir_all(&files).expect("made");
        let owner = WORKSPACE_ID_BASE + WORKLOAD_ID;
        chown(&files, Some(owner), Some(owner)).expect("given");

        let mut strict = host.spec(SecurityProfile::Strict);
        strict.workspace = Some(workspace.clone());
        let mut container = host.spec(SecurityProfile::Container);
        container.workspace = Some(workspace.clone());
        let (inside, other) = (host.up(&strict).await, host.up(&container).await);
        let said = sh(&inside, "echo one > one; stat -c %u:%g . one").await.stdout;
        assert_eq!(said, "1000:1000\n1000:1000\n", "{kernel:?}");
        let said = sh(&other, "echo two >> one; touch root; chown 7:8 root; stat -c %u:%g . one root").await;
        assert_eq!(said.stdout, "0:0\n0:0\n7:8\n", "{kernel:?} {said:?}");
        assert_eq!(sh(&inside, "cat one; stat -c %u:%g root").await.stdout, "one\ntwo\n7:8\n");
        let status = |name: &str| fs_err::metadata(files.join(name)).expect("there");
        assert_eq!((status("one").uid(), status("one").gid()), (owner, owner));
        assert_eq!(
            (status("root").uid(), status("root").gid()),
            (WORKSPACE_ID_BASE + 7, WORKSPACE_ID_BASE + 8)
        );
        // What belongs to the host is nobody's inside, and nobody there can touch it.
        fs_err::write(files.join("host"), "of the host").expect("written");
        let tried = sh(&other, "stat -c %u host; echo x >> host; chmod 777 host; chown 0 host").await;
        assert!(tried.stdout.starts_with("65534") && tried.code != 0, "{tried:?}");
        assert_eq!(fs_err::read_to_string(files.join("host")).expect("there"), "of the host");
        for spec in [&strict, &container] {
            host.engine.destroy(&spec.id).await.expect("destroyed");
        }
        assert!(files.join("one").exists(), "it outlives its machines");
        host.end().await;
    }
}

#[tokio::test]
async fn a_kernel_that_maps_no_ids_has_none_and_a_missing_one_fails_the_start() {
    let mut host = Host::new().await;
    let mut spec = host.spec(SecurityProfile::Strict);
    spec.workspace = Some(host.directory.path().join("workspaces/absent"));
    host.engine.materialize(&spec).await.expect("the disk is made");
    host.engine.start(&spec, Boot::Cold).await.expect_err("there is no such workspace");
    host.engine.shutdown().await.expect("shut down");
    let config = crate::support::config(host.directory.path(), &host.instance);
    host.engine = Arc::new(NamespaceEngine::open_on(config, (5, 15)).await.expect("opened"));
    assert!(!host.engine.capabilities().workspaces);
    host.end().await;
}
