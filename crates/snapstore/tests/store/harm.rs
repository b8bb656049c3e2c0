//! All that can go wrong on the way.

use std::{
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sandhaus_snapstore::{Error, Location, Observer, Patience, Progress, Pull, Store, StoreConfig};
use tokio_util::sync::CancellationToken;

use crate::{
    content::{Place, assert_only, assert_same, disk, machine, name, pull, push, small, to_pull, to_push},
    proxy::{Harm, Proxy},
    server::{CHUNK_BYTES, Server, bucket, directory},
};

/// A server, a proxy before it, and a store that knows only the proxy.
async fn through_proxy() -> (Server, Proxy, Store) {
    let server = Server::start();
    let proxy = Proxy::start(server.address).await;
    let store = Store::open(&bucket(proxy.address)).await.expect("opens");
    (server, proxy, store)
}

/// The same store for somebody who does not wait for what may pass.
async fn hasty(proxy: &Proxy) -> Store {
    let config = bucket(proxy.address);
    let patience = Patience { retries_max: 0, ..config.patience.clone() };
    Store::open(&StoreConfig { patience, ..config }).await.expect("opens")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_survives_what_passes() {
    let (_server, proxy, store) = through_proxy().await;
    let place = Place::new();
    let source = place.folder("source");
    disk(&source, 1);
    proxy.harm("uploads=", 0, 1, Harm::Busy);
    proxy.harm("partNumber=1&", 0, 2, Harm::Busy);
    proxy.harm("partNumber=2&", 0, 1, Harm::CutRequest(1_000_000));
    proxy.harm("partNumber=3&", 0, 1, Harm::FlipRequest(2_000_000));
    proxy.harm("partNumber=4&", 0, 1, Harm::Silence);
    proxy.harm("partNumber=5&", 0, 1, Harm::LoseAnswer);
    proxy.harm("POST /daytona/snapshots/x.qcow2?uploadId=", 0, 1, Harm::LoseAnswer);
    proxy.harm("PUT /daytona/snapshots/x.qcow2.json", 0, 1, Harm::LoseAnswer);
    push(&store, &source, "x").await.expect("pushed");
    assert!(proxy.is_done());
    pull(&store, "x", &place.path("into")).await.expect("pulled");
    assert_same(&source, &place.path("into"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_survives_what_passes() {
    let (_server, proxy, store) = through_proxy().await;
    let place = Place::new();
    let source = place.folder("source");
    machine(&source, 1);
    push(&store, &source, "x").await.expect("pushed");
    proxy.harm("GET /daytona/snapshots/x/snapshot.json", 0, 1, Harm::Busy);
    proxy.harm("GET /daytona/snapshots/x/disk.qcow2", 0, 2, Harm::Busy);
    proxy.harm("GET /daytona/snapshots/x/disk.qcow2", 0, 1, Harm::FlipAnswer(3_000_000));
    proxy.harm("GET /daytona/snapshots/x/disk.qcow2", 0, 1, Harm::CutAnswer(4_000_000));
    proxy.harm("GET /daytona/snapshots/x/memory", 0, 1, Harm::FlipAnswer(1000));
    proxy.harm("GET /daytona/snapshots/x/memory", 0, 1, Harm::Silence);
    proxy.harm("GET /daytona/snapshots/x/state", 0, 1, Harm::CutAnswer(0));
    pull(&store, "x", &place.path("into")).await.expect("pulled");
    assert!(proxy.is_done());
    assert_same(&source, &place.path("into"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_pass_is_told_and_nothing_is_done_twice() {
    let (_server, proxy, _) = through_proxy().await;
    let store = hasty(&proxy).await;
    let place = Place::new();
    let source = place.folder("source");
    disk(&source, 1);
    proxy.harm("partNumber=4&", 0, usize::MAX, Harm::Busy);
    let error = push(&store, &source, "x").await.expect_err("refused");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("writing snapshots/x.qcow2") && text.contains("too much to do"), "{text}");
    assert!(!store.exists(&name("x")).await.expect("asked"));
    proxy.heal();
    proxy.take_sent();
    push(&store, &source, "x").await.expect("pushed");
    let sent = proxy.take_sent();
    assert!((CHUNK_BYTES..CHUNK_BYTES + 20_000).contains(&sent), "all but one part had arrived: {sent}");

    // The same for the way back.
    // The piece after the hole.
    proxy.harm("range: bytes=25165824-", 0, usize::MAX, Harm::FlipAnswer(500));
    let into = place.path("into");
    let error = pull(&store, "x", &into).await.expect_err("refused");
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("disk.qcow2 has other content at byte"), "{error}");
    assert!(!into.exists());
    proxy.heal();
    proxy.take_received();
    pull(&store, "x", &into).await.expect("pulled");
    assert_same(&source, &into);
    let received = proxy.take_received();
    assert!(
        (CHUNK_BYTES..CHUNK_BYTES + 20_000).contains(&received),
        "all but one piece had arrived: {received}"
    );
    assert_only(&place.path(""), &["into", "source"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_middle_of_a_part_is_waited_for() {
    let (mut server, proxy, store) = through_proxy().await;
    let place = Place::new();
    let source = place.folder("source");
    machine(&source, 1);
    proxy.harm("partNumber=2&", 0, 1, Harm::Hold(1_000_000));
    let pushing = tokio::spawn({
        let (store, source) = (store.clone(), source.clone());
        async move { push(&store, &source, "x").await }
    });
    proxy.held().await;
    server.kill();
    proxy.release();
    server.restart();
    pushing.await.expect("no panic").expect("pushed");
    pull(&store, "x", &place.path("into")).await.expect("pulled");
    assert_same(&source, &place.path("into"));
}

/// Tells [`pushes_when_it_is_told_to`] what to push where.
const PUSH: &str = "SNAPSTORE_TEST_PUSH";

/// The process that the next test kills; by itself it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn pushes_when_it_is_told_to() {
    let Some(told) = std::env::var_os(PUSH) else { return };
    let told = told.into_string().expect("text");
    let (address, source) = told.split_once(' ').expect("an address and a path");
    let store = Store::open(&bucket(address.parse().expect("an address"))).await.expect("opens");
    push(&store, Path::new(source), "x").await.expect("pushed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_killed_goes_on_from_its_parts() {
    let (_server, proxy, store) = through_proxy().await;
    let place = Place::new();
    let source = place.folder("source");
    disk(&source, 1);
    // The second part stays in the middle; the others arrive.
    proxy.harm("partNumber=2&", 0, 1, Harm::Hold(1_000_000));
    let mut pusher = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "harm::pushes_when_it_is_told_to"])
        .env(PUSH, format!("{} {}", proxy.address, source.display()))
        .stdout(Stdio::null())
        .spawn()
        .expect("start the pusher");
    proxy.held().await;
    let journal = place.path("source.journal");
    let done = || fs_err::read_to_string(&journal).expect("a journal").matches("\"done\"").count();
    while done() < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pusher.kill().expect("kill the pusher");
    pusher.wait().expect("it ends");
    proxy.take_sent();
    push(&store, &source, "x").await.expect("pushed");
    let sent = proxy.take_sent();
    assert!(
        (CHUNK_BYTES..CHUNK_BYTES + 20_000).contains(&sent),
        "one part, the list of parts, the manifest: {sent}"
    );
    pull(&store, "x", &place.path("into")).await.expect("pulled");
    assert_same(&source, &place.path("into"));
}

/// Cancels a transfer once so many bytes are done.
fn canceller(after_bytes: u64) -> (Observer, CancellationToken) {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    let observer = move |progress: Progress| {
        if progress.done_bytes >= after_bytes {
            cancelled.cancel();
        }
    };
    (Arc::new(observer), token)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_interrupted_goes_on() {
    let server = Server::start();
    let folder = tempfile::tempdir().expect("a folder");
    for config in [bucket(server.address), directory(folder.path())] {
        let store = Store::open(&config).await.expect("opens");
        let place = Place::new();
        let (source, into) = (place.folder("source"), place.path("into"));
        machine(&source, 1);
        for after_bytes in [0, CHUNK_BYTES, 5 * CHUNK_BYTES, 10 * CHUNK_BYTES] {
            let (observer, token) = canceller(after_bytes);
            let outcome = store.push(&to_push(&source, "x"), observer, &token).await;
            assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
            assert!(!store.exists(&name("x")).await.expect("asked"));
        }
        push(&store, &source, "x").await.expect("pushed");
        for after_bytes in [0, CHUNK_BYTES, 3 * CHUNK_BYTES] {
            let (observer, token) = canceller(after_bytes);
            let outcome = store.pull(&to_pull(&into, "x"), observer, &token).await;
            assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
            assert!(!into.exists());
        }
        pull(&store, "x", &into).await.expect("pulled");
        assert_same(&source, &into);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_broken_is_fetched_again() {
    let (_server, proxy, store) = through_proxy().await;
    let place = Place::new();
    let (source, into) = (place.folder("source"), place.path("into"));
    disk(&source, 1);
    push(&store, &source, "x").await.expect("pushed");
    pull(&store, "x", &into).await.expect("pulled");
    proxy.take_received();
    pull(&store, "x", &into).await.expect("it is whole");
    assert!(proxy.take_received() < 20_000);
    let file = fs_err::OpenOptions::new().write(true).open(into.join("disk.qcow2")).unwrap();
    file.file().write_all_at(&[1, 2, 3], CHUNK_BYTES + 77).unwrap();
    pull(&store, "x", &into).await.expect("mended");
    assert_same(&source, &into);
    let received = proxy.take_received();
    assert!((CHUNK_BYTES..CHUNK_BYTES + 20_000).contains(&received), "{received}");
    assert_only(&place.path(""), &["into", "source"]);
    // The same of one that lies elsewhere, which stays as it is.
    let elsewhere = into.join("disk.qcow2");
    let file = fs_err::OpenOptions::new().write(true).open(&elsewhere).unwrap();
    file.file().write_all_at(&[1, 2, 3], CHUNK_BYTES + 77).unwrap();
    let broken = fs_err::read(&elsewhere).unwrap();
    let other = place.path("other");
    let wanted = Pull { copy: Some(into.clone()), ..to_pull(&other, "x") };
    store.pull(&wanted, Arc::new(|_| {}), &CancellationToken::new()).await.expect("pulled");
    assert_same(&source, &other);
    let received = proxy.take_received();
    assert!((CHUNK_BYTES..CHUNK_BYTES + 20_000).contains(&received), "{received}");
    assert!(fs_err::read(&elsewhere).unwrap() == broken, "it stays as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_a_push_ends_others_find_the_old_or_the_new() {
    let (_server, proxy, store) = through_proxy().await;
    let store_in_haste = hasty(&proxy).await;
    let place = Place::new();
    let (old, new) = (place.folder("old"), place.folder("new"));
    small(&old, 1);
    small(&new, 2);
    let whole = |into: &Path, source: &Path| {
        fs_err::read_dir(source).unwrap().all(|entry| {
            let entry = entry.unwrap();
            fs_err::read(into.join(entry.file_name())).unwrap() == fs_err::read(entry.path()).unwrap()
        })
    };
    let (mut olds, mut news, mut step) = (0, 0, 0);
    loop {
        push(&store, &old, "x").await.expect("pushed");
        proxy.pass_only(step);
        let pushed = push(&store_in_haste, &new, "x").await;
        proxy.heal();
        let into: PathBuf = place.path(&format!("into-{step}"));
        pull(&store, "x", &into).await.unwrap_or_else(|error| panic!("after {step} requests: {error}"));
        match (whole(&into, &old), whole(&into, &new)) {
            (true, false) => olds += 1,
            (false, true) => news += 1,
            other => panic!("a mixture after {step} requests: {other:?}"),
        }
        if pushed.is_ok() {
            break;
        }
        push(&store, &new, "x").await.expect("it goes on");
        let into = place.path(&format!("after-{step}"));
        pull(&store, "x", &into).await.expect("pulled");
        assert!(whole(&into, &new), "after {step} requests and another push");
        step += 1;
    }
    assert!(olds > 3 && news > 3, "{olds} {news}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_do_not_mix() {
    let (_server, proxy, store) = through_proxy().await;
    let place = Place::new();
    let (one, other) = (place.folder("one"), place.folder("other"));
    small(&one, 1);
    small(&other, 2);
    push(&store, &one, "x").await.expect("pushed");
    fs_err::write(one.join("state"), "changed").unwrap();
    proxy.harm("PUT /daytona/snapshots/x/snapshot.json", 0, 1, Harm::HoldAll);
    let pushing = tokio::spawn({
        let (store, one) = (store.clone(), one.clone());
        async move { push(&store, &one, "x").await }
    });
    proxy.held().await;
    push(&store, &other, "x").await.expect("pushed");
    proxy.release();
    let outcome = pushing.await.expect("no panic");
    assert!(matches!(outcome, Err(Error::Conflict(_))), "{outcome:?}");
    pull(&store, "x", &place.path("into")).await.expect("pulled");
    assert_same(&other, &place.path("into"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_why() {
    let server = Server::start();
    let config = bucket(server.address);
    let Location::Bucket(bucket) = &config.location else { panic!("it is a bucket") };
    let mut wrong_key = bucket.clone();
    wrong_key.credentials.as_mut().unwrap().secret_access_key = "wrong-key-1".to_owned();
    let mut no_bucket = bucket.clone();
    no_bucket.name = "elsewhere".to_owned();
    let mut nobody = bucket.clone();
    nobody.credentials = None;
    for (bucket, expected) in [
        (wrong_key, "check AWS_SECRET_ACCESS_KEY"),
        (no_bucket, "there is no such bucket"),
        (nobody, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ] {
        let config = StoreConfig { location: Location::Bucket(bucket), ..config.clone() };
        let store = Store::open(&config).await.expect("opens");
        let error = store.list().await.expect_err("refused").to_string();
        assert!(error.contains(expected) && !error.contains("wrong-key-1"), "{error}");
    }
    let gone = crate::server::bucket(server.address);
    let patience = Patience { retries_max: 1, ..gone.patience.clone() };
    drop(server);
    let store = Store::open(&StoreConfig { patience, ..gone }).await.expect("opens");
    let error = store.list().await.expect_err("nobody answers").to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_only_grows_and_ends_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&directory(folder.path())).await.expect("opens");
    let place = Place::new();
    let source = place.folder("source");
    machine(&source, 1);
    let (last, total) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let observer = |last: &Arc<AtomicU64>, total: &Arc<AtomicU64>| -> Observer {
        let (last, total) = (last.clone(), total.clone());
        Arc::new(move |progress: Progress| {
            let before = last.swap(progress.done_bytes, Ordering::SeqCst);
            assert!(before <= progress.done_bytes && progress.done_bytes <= progress.total_bytes);
            total.store(progress.total_bytes, Ordering::SeqCst);
        })
    };
    store
        .push(&to_push(&source, "x"), observer(&last, &total), &CancellationToken::new())
        .await
        .expect("pushed");
    assert_eq!(last.load(Ordering::SeqCst), total.load(Ordering::SeqCst));
    last.store(0, Ordering::SeqCst);
    let wanted = to_pull(&place.path("into"), "x");
    store.pull(&wanted, observer(&last, &total), &CancellationToken::new()).await.expect("pulled");
    assert_eq!(last.load(Ordering::SeqCst), total.load(Ordering::SeqCst));
}
