//! Pushes and pulls on an engine in memory and a store in a directory.

use super::{
    super::{
        CreateSandbox, ServiceConfig,
        tests::{House, create, kind},
    },
    *,
};
use crate::{
    engine::{Capabilities, EngineError},
    snapshot::{CaptureMode, CreateSnapshot},
    testing::{self, FakeEngine, Op, Reach},
};

fn name(text: &str) -> SnapshotName {
    SnapshotName::parse(text).expect("a name")
}

/// A house whose engine's snapshots stand alone, as those of virtual machines do, and whose store is this directory.
fn house(store: &Path) -> House {
    let like = FakeEngine::default();
    let capabilities = Capabilities { image_form: ImageForm::Disk, ..like.capabilities().clone() };
    let mut house = House::with(FakeEngine::new(capabilities));
    let store = StoreConfig::at(StoreLocation::Directory(store.to_owned()));
    house.config = ServiceConfig {
        snapshot_store: Some(SnapshotStore { store, landing: Landing::default() }),
        ..house.config
    };
    house
}

async fn take(service: &Service, house: &House, text: &str, kind: SnapshotKind) -> SandboxId {
    let id = create(service).await;
    house.engine.write(&id, "disk", "memory");
    let request = CreateSnapshot { sandbox: id.clone(), name: name(text), kind, mode: CaptureMode::Frozen };
    service.create_snapshot(request).await.expect("taken");
    id
}

/// How a transfer ended.
async fn ended(mut job: watch::Receiver<Job>) -> Job {
    job.wait_for(|job| job.state != JobState::Running).await.expect("it says how it ended").clone()
}

async fn succeeded(job: Result<watch::Receiver<Job>>) -> Job {
    let job = ended(job.expect("begun")).await;
    assert_eq!((job.state, job.error.as_deref()), (JobState::Succeeded, None));
    job
}

/// What transfers have left in a data directory.
fn left(house: &House) -> Vec<String> {
    let entries = std::fs::read_dir(house.dir.path().join(DIR)).into_iter().flatten();
    entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn a_snapshot_goes_to_another_server() {
    let store = tempfile::tempdir().expect("a store");
    let (here, there) = (house(store.path()), house(store.path()));
    let (service, other) = (here.open().await, there.open().await);
    take(&service, &here, "warm", SnapshotKind::Machine).await;
    let job = succeeded(service.push_snapshot(&name("warm")).await).await;
    assert_eq!((job.kind, job.subject.as_str()), (JobKind::PushSnapshot, "warm"));
    assert!(job.progress.done > 0 && Some(job.progress.done) == job.progress.total);
    assert_eq!(left(&here), Vec::<String>::new());

    let stored = other.stored_snapshot(&name("warm")).await.expect("asked").expect("there");
    assert_eq!((stored.kind, stored.path.as_str()), (SnapshotKind::Machine, "snapshots/warm"));
    assert_eq!(other.stored_snapshots().await.expect("listed"), [stored]);
    let job = succeeded(other.pull_snapshot(&name("warm")).await).await;
    assert_eq!(other.job(&job.id).await.expect("asked").as_ref(), Some(&job));
    assert_eq!(other.jobs().await.expect("listed"), [job]);
    assert_eq!(left(&there), Vec::<String>::new());
    let pulled = other.snapshot(&name("warm")).await.expect("here");
    assert_eq!(
        (pulled.kind, pulled.sandbox.as_ref(), pulled.image.as_ref()),
        (SnapshotKind::Machine, None, None)
    );
    let request = CreateSandbox { snapshot: Some(name("warm")), ..testing::request() };
    let copy = other.create(request).await.expect("created").sandbox.id;
    assert_eq!(there.engine.content(&copy), ("disk".to_owned(), "memory".to_owned()));

    other.remove_stored_snapshot(&name("warm")).await.expect("removed");
    assert_eq!(service.stored_snapshot(&name("warm")).await.expect("asked"), None);
    assert_eq!(kind(other.remove_stored_snapshot(&name("warm")).await), Kind::NotFound);
    // What was pulled stays.
    other.snapshot(&name("warm")).await.expect("here");
}

#[tokio::test]
async fn nothing_of_a_host_travels() {
    let store = tempfile::tempdir().expect("a store");
    let house = house(store.path());
    let service = house.open().await;
    take(&service, &house, "a", SnapshotKind::Disk).await;
    let snapshot = service.shared.snapshots.find(&name("a")).expect("there");
    let spec = SandboxSpec {
        network: NetworkPolicy::Host,
        seccomp: Seccomp::Off,
        mounts: vec![Mount { source: "/".into(), target: "/host".into(), access: Access::ReadWrite }],
        publish: vec![PublishedPort { port: 80, host_port: 80 }],
        ..snapshot.spec.clone()
    };
    let spec = Metadata::of(&Snapshot { spec, ..Snapshot::clone(&snapshot) }).spec;
    assert_eq!((spec.network, spec.seccomp), (NetworkPolicy::None, Seccomp::Strict));
    assert!(spec.mounts.is_empty() && spec.publish.is_empty() && spec.workspace.is_none());
}

#[tokio::test]
async fn a_second_one_joins_and_one_that_fails_goes_on_later() {
    let store = tempfile::tempdir().expect("a store");
    let house = house(store.path());
    let service = house.open().await;
    take(&service, &house, "a", SnapshotKind::Disk).await;
    house.engine.fail(Op::Pack, Reach::Nothing, || EngineError::host("write disk", "broken"));
    let job = ended(service.push_snapshot(&name("a")).await.expect("begun")).await;
    assert_eq!((job.state, job.error.as_deref()), (JobState::Failed, Some("write disk failed")));

    let mut held = house.engine.hold(Op::Pack);
    let first = service.push_snapshot(&name("a")).await.expect("begun");
    held.arrived(1).await;
    let second = service.push_snapshot(&name("a")).await.expect("joined");
    assert_eq!(first.borrow().id, second.borrow().id);
    drop(held);
    assert_eq!(ended(first).await, ended(second).await);
    // Another one begins anew, in place of what is there.
    succeeded(service.push_snapshot(&name("a")).await).await;
    assert_eq!(left(&house), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_here_and_whole_is_not_fetched_and_what_is_broken_is() {
    let store = tempfile::tempdir().expect("a store");
    let house = house(store.path());
    let service = house.open().await;
    take(&service, &house, "a", SnapshotKind::Disk).await;
    succeeded(service.push_snapshot(&name("a")).await).await;
    let before = service.snapshot(&name("a")).await.expect("here");
    succeeded(service.pull_snapshot(&name("a")).await).await;
    assert_eq!(service.snapshot(&name("a")).await.expect("here"), before);

    let machine = service.shared.snapshots.machine(&before.id).expect("there");
    std::fs::remove_dir_all(&machine).expect("broken");
    std::fs::create_dir(&machine).expect("broken");
    succeeded(service.pull_snapshot(&name("a")).await).await;
    let after = service.snapshot(&name("a")).await.expect("here");
    assert_ne!(after.id, before.id);
    let request = CreateSandbox { snapshot: Some(name("a")), ..testing::request() };
    let copy = service.create(request).await.expect("created").sandbox.id;
    assert_eq!(house.engine.content(&copy).0, "disk");
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_moves() {
    let store = tempfile::tempdir().expect("a store");
    let house = house(store.path());
    let service = house.open().await;
    assert_eq!(kind(service.push_snapshot(&name("a")).await), Kind::NotFound);
    assert_eq!(kind(service.push_snapshot(&name("a.qcow2")).await), Kind::Invalid);
    let job = ended(service.pull_snapshot(&name("a")).await.expect("begun")).await;
    assert_eq!(job.error.as_deref(), Some("snapshot a is not in the store"));
    let remedy = service.snapshot(&name("a")).await.expect_err("not here");
    assert!(remedy.message().contains("sandhaus snapshot pull a"), "{remedy}");

    let storeless = House::new();
    let service = storeless.open().await;
    for refused in [
        kind(service.push_snapshot(&name("a")).await),
        kind(service.pull_snapshot(&name("a")).await),
        kind(service.stored_snapshots().await),
        kind(service.remove_stored_snapshot(&name("a")).await),
    ] {
        assert_eq!(refused, Kind::Unsupported);
    }

    let rooted = Capabilities { portable_snapshots: false, ..FakeEngine::default().capabilities().clone() };
    let mut rooted_house = House::with(FakeEngine::new(rooted));
    rooted_house.config.snapshot_store = house.config.snapshot_store.clone();
    let service = rooted_house.open().await;
    take(&service, &rooted_house, "a", SnapshotKind::Disk).await;
    let refused = service.push_snapshot(&name("a")).await.expect_err("refused");
    assert_eq!(refused.kind(), Kind::Unsupported);
    assert!(refused.message().contains(testing::ENGINE), "{refused}");
}

#[tokio::test]
async fn what_the_engine_does_not_take_leaves_nothing() {
    let store = tempfile::tempdir().expect("a store");
    let (here, there) = (house(store.path()), house(store.path()));
    let (service, other) = (here.open().await, there.open().await);
    take(&service, &here, "a", SnapshotKind::Disk).await;
    succeeded(service.push_snapshot(&name("a")).await).await;
    there
        .engine
        .fail(Op::Verify, Reach::Nothing, || EngineError::Invalid("it was made for another machine".into()));
    let job = ended(other.pull_snapshot(&name("a")).await.expect("begun")).await;
    let error = job.error.expect("refused");
    assert!(error.contains("snapshot a") && error.contains("another machine"), "{error}");
    assert_eq!(kind(other.snapshot(&name("a")).await), Kind::NotFound);
    assert_eq!(left(&there), Vec::<String>::new());
}

#[tokio::test]
async fn what_nobody_will_go_on_with_is_swept() {
    let house = House::new();
    let dir = house.dir.path().join(DIR);
    for name in ["push-0123456789abcdef", "push-x", "pull-kept", "other"] {
        std::fs::create_dir_all(dir.join(name).join("machine")).expect("made");
    }
    let service = house.open().await;
    // The service does the same by itself; here it is waited for.
    let shared = service.shared.clone();
    sweep(&dir, &|name| is_of_use(&shared, name)).expect("swept");
    assert_eq!(left(&house), ["pull-kept"]);
}

#[tokio::test]
async fn a_disk_of_another_tool_gets_what_a_plain_request_would() {
    let store = tempfile::tempdir().expect("a store");
    let house = house(store.path());
    std::fs::create_dir(store.path().join("snapshots")).expect("made");
    std::fs::write(store.path().join("snapshots/golden.qcow2"), "a disk").expect("written");
    let service = house.open().await;
    let stored = service.stored_snapshot(&name("golden")).await.expect("asked").expect("there");
    assert_eq!((stored.kind, stored.size_bytes), (SnapshotKind::Disk, 6));
    house.engine.fail(Op::Verify, Reach::Nothing, || EngineError::Invalid("no disk".into()));
    let job = ended(service.pull_snapshot(&name("golden")).await.expect("begun")).await;
    assert!(job.error.expect("the fake engine knows other disks only").contains("no disk"));
}
