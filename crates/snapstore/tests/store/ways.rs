//! There and back, and what the store has then.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use sandhaus_snapstore::{Error, Landing, Listed, Pull, Store, StoreConfig};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    content::{assert_only, assert_same, disk, machine, name, pull, push, quiet, small, to_pull, write},
    server::{Server, bucket, directory},
};

/// Runs a body on a bucket and on a directory; it is given the place where objects are files.
async fn on_both(body: impl AsyncFn(Store, &Path)) {
    let server = Server::start();
    let open = async |config: &StoreConfig| Store::open(config).await.expect("opens");
    body(open(&bucket(server.address)).await, &server.object("")).await;
    let folder = tempfile::tempdir().expect("a folder");
    body(open(&directory(folder.path())).await, &folder.path().join("snapshots")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_one_object_that_others_can_read() {
    on_both(async |store, objects| {
        let place = crate::content::Place::new();
        let source = place.folder("source");
        disk(&source, 1);
        let pushed = push(&store, &source, "cold").await.expect("pushed");
        assert_eq!(pushed.path, "snapshots/cold.qcow2");
        assert!(
            fs_err::read(objects.join("cold.qcow2")).unwrap()
                == fs_err::read(source.join("disk.qcow2")).unwrap()
        );
        assert!(!place.path("source.journal").exists());

        let into = place.path("into");
        assert_eq!(pull(&store, "cold", &into).await.expect("pulled"), pushed);
        assert_same(&source, &into);
        assert_only(&place.path(""), &["into", "source"]);
        assert_eq!(store.info(&name("cold")).await.expect("there"), pushed);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_a_folder_with_its_files() {
    on_both(async |store, objects| {
        let place = crate::content::Place::new();
        let source = place.folder("source");
        machine(&source, 1);
        let pushed = push(&store, &source, "warm").await.expect("pushed");
        assert_eq!((pushed.path.as_str(), &pushed.metadata), ("snapshots/warm", &json!({"kind": "machine"})));
        assert_only(
            &objects.join("warm"),
            &["config.json", "disk.qcow2", "memory", "snapshot.json", "state"],
        );
        for file in ["disk.qcow2", "config.json"] {
            assert!(
                fs_err::read(objects.join("warm").join(file)).unwrap()
                    == fs_err::read(source.join(file)).unwrap()
            );
        }
        // Of 100 MiB of memory 20 are noise, and the rest is holes and text.
        let memory = fs_err::metadata(objects.join("warm/memory")).unwrap().len();
        assert!((20 << 20..22 << 20).contains(&memory), "{memory}");

        pull(&store, "warm", &place.path("into")).await.expect("pulled");
        assert_same(&source, &place.path("into"));

        let cold = place.folder("other");
        disk(&cold, 2);
        push(&store, &cold, "cold").await.expect("pushed");
        let listed: Vec<String> =
            store.list().await.expect("listed").iter().map(|listed| listed.name().to_string()).collect();
        assert_eq!(listed, ["cold", "warm"]);
        store.remove(&name("warm")).await.expect("removed");
        assert!(
            !store.exists(&name("warm")).await.expect("asked")
                && store.exists(&name("cold")).await.expect("asked")
        );
        assert!(matches!(store.info(&name("warm")).await, Err(Error::NotFound(_))));
        assert!(matches!(store.remove(&name("warm")).await, Err(Error::NotFound(_))));
        let pulled = pull(&store, "warm", &place.path("again")).await;
        assert_eq!(pulled.unwrap_err().to_string(), "snapshot warm is not in the store");
        assert!(!place.path("again").exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_replaces_whatever_has_the_name() {
    on_both(async |store, objects| {
        let place = crate::content::Place::new();
        let (first, second, third) = (place.folder("first"), place.folder("second"), place.folder("third"));
        small(&first, 1);
        small(&second, 2);
        disk(&third, 3);
        for (step, source) in [&first, &second, &third, &first, &third].into_iter().enumerate() {
            push(&store, source, "x").await.expect("pushed");
            let into = place.path(&format!("into-{step}"));
            pull(&store, "x", &into).await.expect("pulled");
            assert_same(source, &into);
            // Files are where those who know only the layout look for them, and nothing else is left.
            if source == &third {
                assert_only(objects, &["x.qcow2", "x.qcow2.json"]);
            } else {
                assert_only(&objects.join("x"), &["disk.qcow2", "memory", "snapshot.json", "state"]);
                assert!(!objects.join("x.qcow2").exists() && !objects.join("x.qcow2.json").exists());
                let stored = fs_err::read(objects.join("x/disk.qcow2")).unwrap();
                assert!(stored == fs_err::read(source.join("disk.qcow2")).unwrap());
                fs_err::remove_dir(objects.join("none")).ok();
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_tool_put_there_can_be_pulled() {
    on_both(async |store, objects| {
        let place = crate::content::Place::new();
        let source = place.folder("source");
        disk(&source, 1);
        fs_err::create_dir_all(objects).unwrap();
        fs_err::copy(source.join("disk.qcow2"), objects.join("golden.qcow2")).unwrap();
        fs_err::write(objects.join("no snapshot"), "x").unwrap();
        let info = store.info(&name("golden")).await.expect("there");
        assert_eq!((info.metadata, info.created_at_ms), (serde_json::Value::Null, 0));
        let landing = Landing { mode: Some(0o640), owner: None };
        let into = place.path("into");
        let wanted = Pull { landing, ..to_pull(&into, "golden") };
        store.pull(&wanted, quiet(), &CancellationToken::new()).await.expect("pulled");
        assert_same(&source, &into);

        // A disk that was replaced under a manifest's eyes is what it is now.
        push(&store, &source, "mine").await.expect("pushed");
        write(&objects.join("mine.qcow2"), 70_000, &[(0, vec![7; 70_000])]);
        let into = place.path("replaced");
        pull(&store, "mine", &into).await.expect("pulled");
        assert!(fs_err::read(into.join("disk.qcow2")).unwrap() == vec![7; 70_000]);
        let Listed::Whole(info) = &store.list().await.expect("listed")[1] else { panic!("it is whole") };
        assert_eq!((info.name.as_str(), &info.metadata), ("mine", &serde_json::Value::Null));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_files_and_zeros_are_files_too() {
    on_both(async |store, _| {
        let place = crate::content::Place::new();
        let source = place.folder("source");
        write(&source.join("disk.qcow2"), 20 << 20, &[]);
        write(&source.join("memory"), 40 << 20, &[]);
        write(&source.join("tail"), 40 << 20, &[(0, crate::content::noise(1, 9 << 20))]);
        write(&source.join("empty"), 0, &[]);
        push(&store, &source, "zeros").await.expect("pushed");
        let into = place.path("into");
        pull(&store, "zeros", &into).await.expect("pulled");
        assert_same(&source, &into);
        assert_eq!(fs_err::metadata(into.join("memory")).unwrap().blocks(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_snapshot_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&directory(folder.path())).await.expect("opens");
    let place = crate::content::Place::new();
    let empty = place.folder("empty");
    assert!(push(&store, &empty, "a").await.unwrap_err().to_string().contains("it has 0 files"));
    let nested = place.folder("nested");
    fs_err::create_dir(nested.join("within")).unwrap();
    assert!(push(&store, &nested, "a").await.unwrap_err().to_string().contains("is no file"));
    let linked = place.folder("linked");
    std::os::unix::fs::symlink("/etc/passwd", linked.join("disk.qcow2")).unwrap();
    assert!(push(&store, &linked, "a").await.unwrap_err().to_string().contains("is no file"));
    assert!(store.list().await.expect("listed").is_empty());
    // Nothing beneath the directory is followed out of it.
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("snapshots/evil.qcow2")).unwrap();
    assert!(pull(&store, "evil", &place.path("into")).await.is_err());
}
