//! Snapshots, sandboxes made of them and forks, on an engine in memory.

use std::path::{Path, PathBuf};

use super::{
    super::{
        CreateSandbox,
        tests::{House, create, gone_for_good, kind, settled},
    },
    *,
};
use crate::{
    engine::{Capabilities, DiskSnapshot, Engine, EngineError, GuestPort, RunState},
    testing::{self, FakeEngine, Op, Reach},
};

fn name(text: &str) -> SnapshotName {
    SnapshotName::parse(text).expect("a name")
}

fn of(sandbox: &SandboxId, text: &str, kind: SnapshotKind) -> CreateSnapshot {
    CreateSnapshot { sandbox: sandbox.clone(), name: name(text), kind, mode: CaptureMode::Frozen }
}

fn from(text: &str) -> CreateSandbox {
    CreateSandbox { snapshot: Some(name(text)), ..testing::request() }
}

fn fork() -> ForkSandbox {
    ForkSandbox { owner: OwnerId("test".to_owned()), name: None, env: Env::new(), labels: Labels::new() }
}

/// An engine whose snapshots stand alone, as those of virtual machines do.
fn standalone() -> House {
    let like = FakeEngine::default();
    let capabilities = Capabilities { image_form: ImageForm::Disk, ..like.capabilities().clone() };
    House::with(FakeEngine::new(capabilities))
}

/// Snapshots on disk, and what lies aside.
fn on_disk(house: &House) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let entries = std::fs::read_dir(house.dir.path().join("snapshots")).into_iter().flatten();
    let paths = entries.map(|entry| entry.expect("readable").path());
    paths.partition(|path| !path.file_name().expect("a name").to_string_lossy().starts_with('.'))
}

/// Waits until nothing is left that nobody needs.
async fn collected(service: &Service) {
    service.shared.collect_snapshots().await.expect("collected");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_what_its_sandbox_was() {
    let house = House::new();
    let service = house.open().await;
    let request = CreateSandbox {
        env: Env::from([("A".into(), "old".into()), ("B".into(), "kept".into())]),
        ..testing::request()
    };
    let id = service.create(request).await.expect("created").sandbox.id;
    house.engine.write(&id, "disk", "memory");
    let snapshot = service.create_snapshot(of(&id, "warm", SnapshotKind::Machine)).await.expect("taken");
    assert_eq!((snapshot.name.clone(), snapshot.kind), (Some(name("warm")), SnapshotKind::Machine));
    assert_eq!((snapshot.sandbox.as_ref(), snapshot.engine.0.as_str()), (Some(&id), testing::ENGINE));
    assert!(snapshot.size_bytes > 0 && snapshot.image.is_some());
    let (there, aside) = on_disk(&house);
    assert_eq!((there.len(), aside.len()), (1, 0));
    assert_eq!(service.snapshots().await.expect("listed"), std::slice::from_ref(&snapshot));
    assert_eq!(service.snapshot(&name("warm")).await.expect("there"), snapshot);

    // The original goes on, and what it does is its own.
    service.toolbox(&id).await.expect("it runs");
    assert_eq!(house.machine(&id), (Generation(1), RunState::Running));
    house.engine.write(&id, "later", "later");
    service.delete(&id).await.expect("deleted");

    let env = Env::from([("A".into(), "new".into())]);
    let copy = service.create(CreateSandbox { env, ..from("warm") }).await.expect("created").sandbox;
    assert_eq!(house.engine.content(&copy.id), ("disk".to_owned(), "memory".to_owned()));
    let machine = house.engine.spec(&copy.id).expect("started");
    assert_eq!((machine.env["A"].as_str(), machine.env["B"].as_str()), ("new", "kept"));
    assert_eq!(machine.snapshot, Some(there[0].join("machine")));
    let memory = house.dir.path().join("memory").join(copy.id.as_str());
    assert!(!memory.exists(), "its memory image has served");
    assert_eq!(copy.holdings, Holdings { disk: Some(copy.generation), ..Holdings::default() });

    // Suspended and restored like any other.
    house.engine.write(&copy.id, "own", "own");
    service.set_goal(&copy.id, Goal::Suspended).await.expect("suspended");
    service.set_goal(&copy.id, Goal::Running).await.expect("restored");
    assert_eq!(house.engine.content(&copy.id), ("own".to_owned(), "own".to_owned()));
    let again = service.create(from("warm")).await.expect("created").sandbox.id;
    assert_eq!(house.engine.content(&again), ("disk".to_owned(), "memory".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_disk_alone_starts_cold() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    house.engine.write(&id, "disk", "memory");
    service.create_snapshot(of(&id, "cold", SnapshotKind::Disk)).await.expect("taken");
    let bigger = Resources { memory_bytes: 64 << 20, ..Resources::default() };
    let request = CreateSandbox { resources: bigger, ..from("cold") };
    let copy = service.create(request).await.expect("created").sandbox;
    assert_eq!(house.engine.content(&copy.id), ("disk".to_owned(), String::new()));
    assert_eq!(copy.spec.resources.memory_bytes, 64 << 20);
    assert_eq!(copy.spec.resources.pids, house.config.defaults.resources.pids);
    service.set_goal(&copy.id, Goal::Stopped).await.expect("stopped");
    service.set_goal(&copy.id, Goal::Running).await.expect("starts again");
}

#[tokio::test(start_paused = true)]
async fn streams_are_cut_only_where_memory_is_captured() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    let leases = || service.handle(&id).expect("live").gate.leases();
    let stream = service.dial(&id, GuestPort::Tcp(80)).await.expect("dialled");
    let before = leases();
    house.engine.forget_calls();
    service.create_snapshot(of(&id, "frozen", SnapshotKind::Disk)).await.expect("taken");
    let calls = house.engine.calls();
    let order: Vec<_> =
        calls.iter().filter(|op| matches!(op, Op::Freeze | Op::Capture | Op::Thaw)).copied().collect();
    assert_eq!(order, [Op::Freeze, Op::Capture, Op::Thaw]);
    assert_eq!(leases(), before, "who speaks to it only waits");

    house.engine.forget_calls();
    let live = CreateSnapshot { mode: CaptureMode::Live, ..of(&id, "live", SnapshotKind::Disk) };
    service.create_snapshot(live).await.expect("taken");
    assert!(!house.engine.calls().contains(&Op::Freeze));
    assert_eq!(leases(), before);

    service.create_snapshot(of(&id, "memory", SnapshotKind::Machine)).await.expect("taken");
    settled(&service, &id, Phase::Running).await;
    let mut stream = stream;
    let read = tokio::io::AsyncReadExt::read_u8(&mut stream).await;
    assert_eq!(read.expect_err("cut").kind(), std::io::ErrorKind::ConnectionAborted);
    service.toolbox(&id).await.expect("it is open again");
}

#[tokio::test(start_paused = true)]
async fn what_there_is_decides_what_can_be_captured() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    house.engine.write(&id, "disk", "memory");
    let take = async |text: &str, kind| service.create_snapshot(of(&id, text, kind)).await;

    service.set_goal(&id, Goal::Paused).await.expect("paused");
    take("paused", SnapshotKind::Machine).await.expect("taken");
    assert_eq!(house.machine(&id), (Generation(1), RunState::Frozen), "it stays as it was");
    let paused = service.create(from("paused")).await.expect("created").sandbox.id;
    assert_eq!(house.engine.content(&paused), ("disk".to_owned(), "memory".to_owned()));

    service.set_goal(&id, Goal::Running).await.expect("resumed");
    service.set_goal(&id, Goal::Suspended).await.expect("suspended");
    take("suspended", SnapshotKind::Disk).await.expect("taken");
    house.engine.forget_calls();
    take("asleep", SnapshotKind::Machine).await.expect("taken");
    let asleep = service.create(from("asleep")).await.expect("created").sandbox.id;
    let twin = service.fork(&id, fork()).await.expect("forked").sandbox.id;
    for copy in [&asleep, &twin] {
        assert_eq!(house.engine.content(copy), ("disk".to_owned(), "memory".to_owned()));
    }
    let woken = |op: &Op| matches!(op, Op::Freeze | Op::Stop);
    assert!(!house.engine.calls().iter().any(woken), "nobody disturbed it: {:?}", house.engine.calls());
    assert!(service.toolbox(&id).await.is_err(), "it stays suspended");
    service.set_goal(&id, Goal::Running).await.expect("resumed");
    assert_eq!(house.engine.content(&id), ("disk".to_owned(), "memory".to_owned()));

    service.set_goal(&id, Goal::Stopped).await.expect("stopped");
    take("stopped", SnapshotKind::Disk).await.expect("taken");
    assert_eq!(kind(take("memory", SnapshotKind::Machine).await), Kind::Conflict);
    assert_eq!(kind(service.fork(&id, fork()).await), Kind::Conflict, "only what is up is copied");
    service.delete(&id).await.expect("deleted");
    assert_eq!(kind(take("memory", SnapshotKind::Disk).await), Kind::Gone);
    let (there, aside) = on_disk(&house);
    assert_eq!((there.len(), aside.len()), (5, 0), "nothing is left of what was refused");
}

#[tokio::test(start_paused = true)]
async fn a_name_means_one_snapshot() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    house.engine.write(&id, "first", "");
    let first = service.create_snapshot(of(&id, "it", SnapshotKind::Disk)).await.expect("taken");
    house.engine.write(&id, "second", "");
    assert_eq!(kind(service.create_snapshot(of(&id, "it", SnapshotKind::Disk)).await), Kind::Exists);

    // While one is being made its name is taken, and the old one is still there.
    let mut held = house.engine.hold(Op::Capture);
    let making = tokio::spawn({
        let (service, request) = (service.clone(), of(&id, "it", SnapshotKind::Disk));
        async move { service.replace_snapshot(request).await }
    });
    held.arrived(1).await;
    assert_eq!(kind(service.replace_snapshot(of(&id, "it", SnapshotKind::Disk)).await), Kind::Exists);
    assert_eq!(service.snapshot(&name("it")).await.expect("there").id, first.id);
    drop(held);
    let second = making.await.expect("joined").expect("taken");
    assert_eq!(service.snapshots().await.expect("listed"), std::slice::from_ref(&second));
    collected(&service).await;
    assert_eq!(on_disk(&house).0.len(), 1, "what was replaced goes");
    let copy = service.create(from("it")).await.expect("created").sandbox.id;
    assert_eq!(house.engine.content(&copy).0, "second");

    // And the names outlive the server.
    service.shutdown().await;
    drop(service);
    let service = house.open().await;
    assert_eq!(service.snapshots().await.expect("listed"), [second]);
    assert_eq!(kind(service.create(from("other")).await), Kind::NotFound);
    assert_eq!(kind(service.remove_snapshot(&name("other")).await), Kind::NotFound);
    assert_eq!(kind(service.snapshot(&name("other")).await), Kind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_refused_by_name() {
    let mut house = House::new();
    house.config.defaults.resources.memory_bytes = 128 << 20;
    let service = house.open().await;
    let id = create(&service).await;
    service.create_snapshot(of(&id, "warm", SnapshotKind::Machine)).await.expect("taken");
    let refused = async |request: CreateSandbox| service.create(request).await.expect_err("refused");
    let memory = Resources { memory_bytes: 64 << 20, ..Resources::default() };
    let error = refused(CreateSandbox { resources: memory, ..from("warm") }).await;
    assert!(error.kind() == Kind::Invalid && error.message().contains("memory"), "{error}");
    let same = Resources { memory_bytes: 128 << 20, pids: 64, ..Resources::default() };
    service.create(CreateSandbox { resources: same, ..from("warm") }).await.expect("created");
    let image = ImageName::parse("host").expect("valid");
    let error = refused(CreateSandbox { image: Some(image), ..from("warm") }).await;
    assert_eq!(error.kind(), Kind::Invalid);
    let engine = EngineName("other".to_owned());
    let error = refused(CreateSandbox { engine: Some(engine), ..from("warm") }).await;
    assert!(error.kind() == Kind::Invalid && error.message().contains("\"fake\""), "{error}");
    let live = CreateSnapshot { mode: CaptureMode::Live, ..of(&id, "live", SnapshotKind::Machine) };
    assert_eq!(kind(service.create_snapshot(live).await), Kind::Invalid);
    service.shutdown().await;
    drop(service);

    let like = FakeEngine::default();
    let poor = Capabilities {
        memory_snapshot: false,
        disk_snapshot: DiskSnapshot::Frozen,
        ..like.capabilities().clone()
    };
    let house = House::with(FakeEngine::new(poor));
    let service = house.open().await;
    let id = create(&service).await;
    for request in [
        of(&id, "x", SnapshotKind::Machine),
        CreateSnapshot { mode: CaptureMode::Live, ..of(&id, "x", SnapshotKind::Disk) },
    ] {
        let error = service.create_snapshot(request).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().contains("not supported"), "{error}");
    }
    house.engine.write(&id, "disk", "memory");
    let copy = service.fork(&id, fork()).await.expect("its disk alone").sandbox.id;
    assert_eq!(house.engine.content(&copy), ("disk".to_owned(), String::new()));
}

#[tokio::test(start_paused = true)]
async fn a_fork_goes_its_own_way() {
    let house = House::new();
    let service = house.open().await;
    let request = CreateSandbox {
        name: Some("original".to_owned()),
        publish: vec![PublishedPort { port: 80, host_port: 0 }],
        env: Env::from([("A".into(), "old".into())]),
        ttl: Some(Duration::from_secs(3600)),
        ..testing::request()
    };
    let original = service.create(request).await.expect("created").sandbox;
    house.engine.write(&original.id, "disk", "memory");
    let request = ForkSandbox {
        name: Some("copy".to_owned()),
        env: Env::from([("B".into(), "new".into())]),
        labels: Labels::from([("of".into(), original.id.to_string())]),
        ..fork()
    };
    let copy = service.fork(&original.id, request.clone()).await.expect("copied");
    assert_eq!(copy.status.phase, Phase::Running);
    let copy = copy.sandbox;
    assert_ne!(copy.id, original.id);
    assert_eq!(house.engine.content(&copy.id), ("disk".to_owned(), "memory".to_owned()));
    assert_eq!((copy.name.as_deref(), copy.spec.publish.len()), (Some("copy"), 0));
    assert_eq!((copy.spec.env["A"].as_str(), copy.spec.env["B"].as_str()), ("old", "new"));
    assert_eq!(copy.deadlines.ttl_ms, 3_600_000);
    assert_eq!(copy.labels, request.labels);
    house.engine.write(&copy.id, "its own", "its own");
    assert_eq!(house.engine.content(&original.id), ("disk".to_owned(), "memory".to_owned()));
    service.toolbox(&original.id).await.expect("the original runs");
    assert!(service.snapshots().await.expect("listed").is_empty(), "it has no name");

    // What is wrong is told before the original stands still.
    house.engine.forget_calls();
    assert_eq!(kind(service.fork(&original.id, request).await), Kind::Exists);
    assert!(!house.engine.calls().contains(&Op::Freeze));

    // A copy of a copy; what stands behind goes with whom it was made for.
    let second = service.fork(&copy.id, fork()).await.expect("copied").sandbox.id;
    assert_eq!(house.engine.content(&second).0, "its own");
    assert_eq!(on_disk(&house).0.len(), 2);
    for (id, left) in [(copy.id, 1), (original.id, 1), (second, 0)] {
        service.delete(&id).await.expect("deleted");
        gone_for_good(&service, &id).await;
        collected(&service).await;
        assert_eq!(on_disk(&house).0.len(), left);
    }

    // One that cannot be made leaves nothing.
    let id = create(&service).await;
    house.engine.fail(Op::Materialize, Reach::Nothing, || EngineError::Invalid("no".to_owned()));
    assert_eq!(kind(service.fork(&id, fork()).await), Kind::Invalid);
    collected(&service).await;
    assert_eq!(on_disk(&house), (Vec::new(), Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn what_sandboxes_stand_on_goes_with_the_last_of_them() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    service.create_snapshot(of(&id, "base", SnapshotKind::Disk)).await.expect("taken");
    let digest = service.get(&id).await.expect("live").sandbox.spec.source.digest().map(str::to_owned);
    service.delete(&id).await.expect("deleted");
    gone_for_good(&service, &id).await;
    assert!(service.shared.uses_image(&digest.expect("of an image")), "the snapshot lies over it");
    assert_eq!(crate::snapshot::images_of(house.dir.path()).expect("read").len(), 1);

    let user = service.create(from("base")).await.expect("created").sandbox.id;
    service.remove_snapshot(&name("base")).await.expect("removed");
    assert!(service.snapshots().await.expect("listed").is_empty());
    assert_eq!(kind(service.create(from("base")).await), Kind::NotFound);
    service.set_goal(&user, Goal::Stopped).await.expect("stopped");
    service.shutdown().await;
    drop(service);
    // Neither a new server nor a start of its own takes it away.
    let service = house.open().await;
    service.set_goal(&user, Goal::Running).await.expect("starts");
    collected(&service).await;
    assert_eq!(on_disk(&house).0.len(), 1);
    service.delete(&user).await.expect("deleted");
    gone_for_good(&service, &user).await;
    collected(&service).await;
    assert_eq!(on_disk(&house), (Vec::new(), Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn what_stands_alone_goes_when_its_name_does() {
    let house = standalone();
    let service = house.open().await;
    let id = create(&service).await;
    house.engine.write(&id, "disk", "memory");
    let snapshot = service.create_snapshot(of(&id, "base", SnapshotKind::Machine)).await.expect("taken");
    assert_eq!(snapshot.image, None);
    let user = service.create(from("base")).await.expect("created").sandbox.id;
    service.remove_snapshot(&name("base")).await.expect("removed");
    let dir = house.dir.path().join("snapshots").join(snapshot.id.as_str());
    assert!(!dir.join("machine").exists() && dir.join("snapshot.json").exists());
    for goal in [Goal::Stopped, Goal::Running, Goal::Suspended, Goal::Running] {
        service.set_goal(&user, goal).await.expect("it has all it needs");
    }
    let copy = service.fork(&user, fork()).await.expect("copied").sandbox.id;
    assert_eq!(house.engine.content(&copy).0, "disk");
    for id in [&user, &copy] {
        service.delete(id).await.expect("deleted");
        gone_for_good(&service, id).await;
    }
    collected(&service).await;
    assert_eq!(on_disk(&house), (Vec::new(), Vec::new()));
}

#[test]
fn a_server_that_dies_while_it_captures_leaves_nothing_standing_still() {
    for op in [Op::Freeze, Op::Capture, Op::Thaw] {
        for memory in [SnapshotKind::Disk, SnapshotKind::Machine] {
            let house = House::new();
            let id = house.life(async |service| {
                let id = create(service).await;
                let mut held = house.engine.hold(op);
                let taking = tokio::spawn({
                    let (service, request) = (service.clone(), of(&id, "it", memory));
                    async move { service.create_snapshot(request).await }
                });
                held.arrived(1).await;
                assert!(!taking.is_finished());
                id
            });
            assert_eq!(on_disk(&house).0.len(), 0, "{op:?}");
            house.life(async |service| {
                service.toolbox(&id).await.expect("it runs again");
                assert_eq!(house.machine(&id), (Generation(1), RunState::Running), "{op:?}");
                assert_eq!(on_disk(&house), (Vec::new(), Vec::new()), "{op:?}");
                service.create_snapshot(of(&id, "it", memory)).await.expect("the name is free");
                service.shutdown().await;
            });
        }
    }
}

#[test]
fn a_server_that_dies_while_a_copy_comes_up_loses_no_memory() {
    for op in [Op::Materialize, Op::Start, Op::Thaw, Op::Dial] {
        let house = House::new();
        house.life(async |service| {
            let id = create(service).await;
            house.engine.write(&id, "disk", "memory");
            service.create_snapshot(of(&id, "warm", SnapshotKind::Machine)).await.expect("taken");
            service.delete(&id).await.expect("deleted");
            service.shutdown().await;
        });
        house.life(async |service| {
            let mut held = house.engine.hold(op);
            let creating = tokio::spawn({
                let service = service.clone();
                async move { service.create(from("warm")).await }
            });
            held.arrived(1).await;
            assert!(!creating.is_finished());
        });
        house.life(async |service| {
            let views = service.list(super::super::ListFilter::default()).await.expect("listed");
            let [view] = views.as_slice() else { panic!("one sandbox after {op:?}, not {views:?}") };
            let id = &view.sandbox.id;
            service.toolbox(id).await.expect("it runs in the end");
            assert_eq!(house.engine.content(id), ("disk".to_owned(), "memory".to_owned()), "{op:?}");
            service.delete(id).await.expect("deleted");
            assert_eq!(house.engine.counts(), (0, 0));
            assert!(!house.dir.path().join("memory").join(id.as_str()).exists());
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_drops_only_its_wait() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    house.engine.write(&id, "disk", "memory");
    let mut held = house.engine.hold(Op::Capture);
    let taking = tokio::spawn({
        let (service, request) = (service.clone(), of(&id, "it", SnapshotKind::Machine));
        async move { service.create_snapshot(request).await }
    });
    held.arrived(1).await;
    taking.abort();
    assert!(taking.await.expect_err("aborted").is_cancelled());
    // What was asked meanwhile comes after.
    let deleting = tokio::spawn({
        let (service, id) = (service.clone(), id.clone());
        async move { service.delete(&id).await }
    });
    tokio::task::yield_now().await;
    drop(held);
    deleting.await.expect("joined").expect("deleted");
    service.shutdown().await;
    drop(service);
    let service = house.open().await;
    let copy = service.create(from("it")).await.expect("created").sandbox.id;
    assert_eq!(house.engine.content(&copy), ("disk".to_owned(), "memory".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_capture_that_fails_leaves_the_sandbox_as_it_was() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    for (op, reach) in [
        (Op::Freeze, Reach::Nothing),
        (Op::Freeze, Reach::Everything),
        (Op::Capture, Reach::Nothing),
        (Op::Capture, Reach::Everything),
    ] {
        house.engine.fail(op, reach, || EngineError::Exhausted("disk space".to_owned()));
        let refused = service.create_snapshot(of(&id, "it", SnapshotKind::Machine)).await;
        assert_eq!(kind(refused), Kind::Exhausted, "{op:?} {reach:?}");
        service.toolbox(&id).await.expect("it runs");
        assert_eq!(house.machine(&id), (Generation(1), RunState::Running), "{op:?} {reach:?}");
        assert_eq!(on_disk(&house), (Vec::new(), Vec::new()));
    }
    // A thaw whose answer was lost is made sure of.
    house.engine.fail(Op::Thaw, Reach::Nothing, || EngineError::host("thaw machine", "busy"));
    service.create_snapshot(of(&id, "it", SnapshotKind::Disk)).await.expect("taken");
    settled(&service, &id, Phase::Running).await;
    service.set_goal(&id, Goal::Running).await.expect("it runs");
    assert_eq!(house.machine(&id), (Generation(1), RunState::Running));
}

/// What crashes leave aside goes at the next start, and of two with one name the newer has it.
#[tokio::test(start_paused = true)]
async fn a_catalogue_is_put_in_order_when_it_is_opened() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    let first = service.create_snapshot(of(&id, "it", SnapshotKind::Disk)).await.expect("taken");
    let second = service.replace_snapshot(of(&id, "it", SnapshotKind::Disk)).await.expect("taken");
    assert!(second.created_at_ms > first.created_at_ms);
    service.shutdown().await;
    drop(service);
    let dir = house.dir.path().join("snapshots");
    let plant = |snapshot: &Snapshot| {
        let dir = dir.join(snapshot.id.as_str());
        std::fs::create_dir_all(dir.join("machine")).expect("made");
        std::fs::write(dir.join("machine/disk"), "").expect("written");
        std::fs::write(dir.join("snapshot.json"), serde_json::to_vec(snapshot).expect("plain"))
            .expect("written");
    };
    plant(&first);
    plant(&Snapshot { id: SnapshotId::random(), name: None, ..first.clone() });
    for aside in [".new-0123456789abcdef/machine", ".gone-0123456789abcdef"] {
        std::fs::create_dir_all(dir.join(aside)).expect("made");
    }
    let broken = dir.join(SnapshotId::random().as_str());
    std::fs::create_dir(&broken).expect("made");
    let service = house.open().await;
    assert_eq!(service.snapshots().await.expect("listed"), [second]);
    collected(&service).await;
    let (mut there, aside) = on_disk(&house);
    there.retain(|path: &PathBuf| path != Path::new(&broken));
    assert_eq!((there.len(), aside.len()), (1, 0));
    assert!(broken.exists(), "what cannot be read is left to people");
}
