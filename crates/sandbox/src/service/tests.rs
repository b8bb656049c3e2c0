//! The service and its actors on an engine in memory, with a real store and paused time.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use sandhaus_protocol::hello::HelloRequest;
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
};

use super::*;
use crate::{
    engine::{Capabilities, EngineError, RunState},
    testing::{self, FakeEngine, Op, OutOfMemory, Reach},
};

/// A data directory and the machines of its host; services come and go.
pub(super) struct House {
    pub(super) dir: TempDir,
    pub(super) engine: FakeEngine,
    pub(super) config: ServiceConfig,
    images: Catalogue,
}

impl House {
    pub(super) fn new() -> Self {
        Self::with(FakeEngine::default())
    }

    pub(super) fn with(engine: FakeEngine) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let images = testing::images().expect("opens");
        Self { dir, engine, config: testing::config(), images }
    }

    pub(super) async fn open(&self) -> Service {
        let instance = Instance::acquire(self.dir.path()).expect("free");
        let (config, engine, images) = (self.config.clone(), self.engine.clone(), self.images.clone());
        testing::open_with(instance, config, engine, images).await.expect("opens")
    }

    /// One life of a server, on a runtime of its own: what is left of `life` when it returns is dropped where it is,
    /// as a kill would.
    pub(super) fn life<T>(&self, life: impl AsyncFnOnce(&Service) -> T) -> T {
        let runtime: Runtime =
            Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
        runtime.block_on(async {
            let service = self.open().await;
            life(&service).await
        })
    }

    pub(super) fn machine(&self, id: &SandboxId) -> (Generation, RunState) {
        let machine = self.engine.machine(id).expect("a machine");
        (machine.generation, machine.run)
    }
}

fn host_failure() -> EngineError {
    EngineError::host("start machine", "broken")
}

pub(super) async fn create(service: &Service) -> SandboxId {
    let view = service.create(testing::request()).await.expect("created");
    assert_eq!(view.status.phase, Phase::Running);
    view.sandbox.id
}

pub(super) async fn settled(service: &Service, id: &SandboxId, phase: Phase) -> SandboxView {
    let handle = service.handle(id).expect("live");
    let mut published = handle.published.subscribe();
    published.wait_for(|published| published.phase == phase).await.expect("published");
    handle.view()
}

pub(super) async fn gone_for_good(service: &Service, id: &SandboxId) {
    while let Some(handle) = service.handle(id) {
        let mut published = handle.published.subscribe();
        drop(handle);
        // Ends with an error once the last owner, the actor, is gone.
        while published.changed().await.is_ok() {}
    }
}

pub(super) fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.expect_err("refused").kind()
}

#[tokio::test(start_paused = true)]
async fn create_takes_the_shortest_path() {
    let house = House::new();
    let service = house.open().await;
    house.engine.forget_calls();
    let mut request = testing::request();
    request.env.insert("A".to_owned(), "b".to_owned());
    let view = service.create(request).await.expect("created");
    assert_eq!(house.engine.calls(), [Op::Materialize, Op::Start, Op::Dial], "nothing is looked at twice");
    let sandbox = &view.sandbox;
    assert_eq!((view.status.phase, sandbox.generation), (Phase::Running, Generation(1)));
    assert_eq!((sandbox.holdings.disk, sandbox.life), (Some(Generation(1)), Life::Up(Generation(1))));
    let spec = house.engine.spec(&sandbox.id).expect("started");
    assert_eq!((spec.env["A"].as_str(), spec.env["LANG"].as_str()), ("b", "C.UTF-8"));
    assert_eq!((spec.hostname.as_str(), spec.workdir.as_str()), (sandbox.id.as_str(), "/workspace"));
    assert_eq!(spec.resources.memory_bytes, house.config.defaults.resources.memory_bytes);

    // The greeting's connection serves the first request.
    let hello = HelloRequest {
        protocol: 1,
        sandbox_id: sandbox.id.to_string(),
        generation: 1,
        env: Env::new(),
        guest: None,
        ssh: None,
    };
    service.toolbox(&sandbox.id).await.expect("runs").hello(&hello).await.expect("answered");
    assert_eq!(house.engine.calls().iter().filter(|op| **op == Op::Dial).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn delete_leaves_nothing_but_history() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    service.delete(&id).await.expect("deleted");
    assert_eq!(house.engine.counts(), (0, 0));
    assert!(service.shared.store.load().expect("read").is_empty());
    assert!(service.list(ListFilter::default()).await.expect("listed").is_empty());

    let view = service.get(&id).await.expect("known");
    assert_eq!((view.status.phase, view.ended.expect("ended").reason), (Phase::Deleted, EndReason::Deleted));
    let all = service.list(ListFilter { with_ended: true, ..ListFilter::default() }).await.expect("listed");
    assert_eq!(all.iter().map(|view| &view.sandbox.id).collect::<Vec<_>>(), [&id]);
    service.delete(&id).await.expect("again is success");
    assert_eq!(kind(service.touch(&id).await), Kind::Gone);
    assert_eq!(kind(service.toolbox(&id).await.map(drop)), Kind::Gone);
    assert_eq!(kind(service.set_goal(&id, Goal::Running).await), Kind::Gone);
    let never = SandboxId::random();
    assert_eq!(kind(service.delete(&never).await), Kind::NotFound);
    assert_eq!(kind(service.get(&never).await), Kind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn stop_keeps_the_disk_and_a_start_raises_the_generation() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    let view = service.set_goal(&id, Goal::Stopped).await.expect("stopped");
    assert_eq!((view.status.phase, view.sandbox.life), (Phase::Stopped, Life::Down));
    assert_eq!(house.engine.counts(), (0, 1));
    assert_eq!(kind(service.toolbox(&id).await.map(drop)), Kind::Conflict);
    assert_eq!(kind(service.set_goal(&id, Goal::Paused).await), Kind::Conflict);
    assert_eq!(kind(service.stats(&id).await), Kind::Conflict);

    let view = service.set_goal(&id, Goal::Running).await.expect("runs");
    assert_eq!((view.status.phase, view.sandbox.generation), (Phase::Running, Generation(2)));
    assert_eq!(house.machine(&id), (Generation(2), RunState::Running));
    service.stats(&id).await.expect("answered");
}

#[tokio::test(start_paused = true)]
async fn pause_and_suspend_come_back() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    let image = house.dir.path().join("memory").join(id.as_str());

    let view = service.set_goal(&id, Goal::Paused).await.expect("paused");
    assert_eq!(view.status.phase, Phase::Paused);
    assert_eq!(house.machine(&id), (Generation(1), RunState::Frozen));
    assert_eq!(kind(service.toolbox(&id).await.map(drop)), Kind::Conflict);
    service.set_goal(&id, Goal::Running).await.expect("runs on");
    assert_eq!(house.machine(&id), (Generation(1), RunState::Running));

    let view = service.set_goal(&id, Goal::Suspended).await.expect("suspended");
    assert_eq!((view.status.phase, view.sandbox.holdings.memory), (Phase::Suspended, Some(Generation(1))));
    assert_eq!(house.engine.counts(), (0, 1));
    assert!(image.join("1/memory").exists());

    let view = service.set_goal(&id, Goal::Running).await.expect("restored");
    assert_eq!(view.sandbox.generation, Generation(2));
    assert_eq!(view.sandbox.holdings, Holdings { disk: Some(Generation(2)), ..Holdings::default() });
    assert!(!image.exists(), "a retired image goes");

    service.wake(&id).await.expect("it runs as it is");
    service.set_goal(&id, Goal::Suspended).await.expect("suspended");
    service.wake(&id).await.expect("restored");
    service.toolbox(&id).await.expect("it runs");
    service.set_goal(&id, Goal::Stopped).await.expect("stopped");
    service.wake(&id).await.expect("nothing to do");
    assert_eq!(service.get(&id).await.expect("there").status.phase, Phase::Stopped);
    service.set_goal(&id, Goal::Running).await.expect("runs");

    service.set_goal(&id, Goal::Suspended).await.expect("suspended");
    service.delete(&id).await.expect("deleted");
    assert!(!image.exists());
    assert_eq!(house.engine.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_an_engine_cannot_do_is_refused_by_name() {
    let can = FakeEngine::default();
    let capabilities = Capabilities {
        freeze: false,
        memory_snapshot: false,
        mounts: false,
        disk_limit: None,
        ..can.capabilities().clone()
    };
    let house = House::with(FakeEngine::new(capabilities));
    let service = house.open().await;
    let id = create(&service).await;
    for (goal, what) in
        [(Goal::Paused, "pausing"), (Goal::Suspended, "suspending"), (Goal::Archived, "archiving")]
    {
        let error = service.set_goal(&id, goal).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().starts_with(what), "{error}");
    }
    let mount = Mount { source: "/tmp".into(), target: "/x".to_owned(), access: Access::ReadOnly };
    let mounts = CreateSandbox { mounts: vec![mount], ..testing::request() };
    assert_eq!(kind(service.create(mounts).await), Kind::Unsupported);
    let resources = Resources { disk_bytes: 1 << 20, ..Resources::default() };
    let disk = CreateSandbox { resources, ..testing::request() };
    assert_eq!(kind(service.create(disk).await), Kind::Unsupported);
    let engine = CreateSandbox { engine: Some(EngineName("other".to_owned())), ..testing::request() };
    assert_eq!(kind(service.create(engine).await), Kind::Unsupported);
    assert_eq!(house.engine.counts(), (1, 1), "nothing of what was refused came to be");
}

#[tokio::test(start_paused = true)]
async fn images_are_resolved_and_limited() {
    let mut house = House::new();
    let name = |name: &str| ImageName::parse(name).expect("valid");
    house.config.defaults.allowed_images = vec![name("host"), name("base"), name("missing")];
    let service = house.open().await;
    let with = |image: &str| CreateSandbox { image: Some(name(image)), ..testing::request() };
    let view = service.create(with("base")).await.expect("an alias");
    let Source::Image { name: used, digest } = &view.sandbox.spec.source else { panic!("made of an image") };
    assert_eq!(used.as_str(), "host");
    assert!(!digest.is_empty());
    assert_eq!(kind(service.create(with("other")).await), Kind::Forbidden);
    assert_eq!(kind(service.create(with("missing")).await), Kind::NotFound);
    assert_eq!(service.list(ListFilter::default()).await.expect("listed").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_first_start_that_fails_leaves_nothing() {
    let house = House::new();
    let service = house.open().await;
    house.engine.forget_calls();
    house
        .engine
        .fail(Op::Start, Reach::Nothing, || EngineError::Invalid("mount source /x is missing".to_owned()));
    let error = service.create(testing::request()).await.expect_err("refused");
    assert_eq!((error.kind(), error.message()), (Kind::Invalid, "mount source /x is missing"));
    assert_eq!(
        house.engine.calls().iter().filter(|op| **op == Op::Start).count(),
        1,
        "hopeless is not retried"
    );

    for reach in [Reach::Nothing, Reach::Everything] {
        for op in [Op::Materialize, Op::Start, Op::Dial] {
            for _ in 0..crate::actor::ATTEMPTS_MAX {
                house.engine.fail(op, reach, host_failure);
            }
            let outcome = service.create(testing::request()).await;
            let found = reach == Reach::Everything && op != Op::Dial;
            if found {
                // The answer was lost, but the work was done, and a look finds it.
                let id = outcome.expect("created").sandbox.id;
                service.delete(&id).await.expect("deleted");
            } else {
                assert_eq!(kind(outcome), Kind::Internal);
            }
            assert_eq!(house.engine.counts(), (0, 0), "after {op:?} {reach:?}");
            assert!(service.shared.store.load().expect("read").is_empty());
            drop(
                service.list(ListFilter { with_ended: true, ..ListFilter::default() }).await.expect("listed"),
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_passing_failure_is_retried_with_a_new_generation() {
    let house = House::new();
    let service = house.open().await;
    let before = tokio::time::Instant::now();
    house.engine.fail(Op::Start, Reach::Nothing, || EngineError::Exhausted("memory".to_owned()));
    let view = service.create(testing::request()).await.expect("created");
    assert_eq!(view.sandbox.generation, Generation(2), "a number is used once");
    assert!(before.elapsed() >= Duration::from_millis(50), "after a pause");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ends_by_itself_lowers_the_goal() {
    let house = House::new();
    let service = house.open().await;
    for (out_of_memory, expected) in
        [(OutOfMemory::No, FailureKind::Crashed), (OutOfMemory::Yes, FailureKind::OutOfMemory)]
    {
        let id = create(&service).await;
        house.engine.crash(&id, out_of_memory);
        let view = settled(&service, &id, Phase::Failed).await;
        assert_eq!(view.sandbox.goal, Goal::Stopped);
        assert_eq!(view.status.failure.expect("recorded").kind, expected);
        assert_eq!(house.engine.counts(), (0, 1), "remains are cleaned, the disk stays");
        assert_eq!(kind(service.toolbox(&id).await.map(drop)), Kind::Conflict);
        // Asked for, it runs again, and the failure is history.
        let view = service.set_goal(&id, Goal::Running).await.expect("runs");
        assert_eq!((view.status.phase, view.status.failure), (Phase::Running, None));
        service.delete(&id).await.expect("deleted");
    }
    let id = create(&service).await;
    service.set_goal(&id, Goal::Paused).await.expect("paused");
    house.engine.crash(&id, OutOfMemory::No);
    let view = settled(&service, &id, Phase::Failed).await;
    assert_eq!(view.sandbox.goal, Goal::Stopped);
}

#[tokio::test(start_paused = true)]
async fn more_ends_than_the_log_keeps_are_all_seen() {
    let house = House::new();
    let service = house.open().await;
    let ids: Vec<_> = join_all((0..40).map(|_| create(&service))).await;
    for id in &ids {
        house.engine.crash(id, OutOfMemory::No);
    }
    for id in &ids {
        settled(&service, id, Phase::Failed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_disk_is_a_failure_and_never_an_empty_one() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    service.set_goal(&id, Goal::Stopped).await.expect("stopped");
    house.engine.lose_disk(&id);
    service.shutdown().await;
    drop(service);
    house.engine.forget_calls();

    let service = house.open().await;
    let view = settled(&service, &id, Phase::Failed).await;
    assert_eq!(view.status.failure.expect("recorded").kind, FailureKind::DataLost);
    let error = service.set_goal(&id, Goal::Running).await.expect_err("nothing to start");
    assert_eq!(error.message(), "its data is missing on the host");
    assert!(!house.engine.calls().contains(&Op::Materialize));
    service.delete(&id).await.expect("deleted");
}

#[test]
fn a_new_server_adopts_ends_and_removes() {
    let house = House::new();
    let stranger = SandboxId::random();
    let (kept, older, reborn) = house.life(async |service| {
        let ids = (create(service).await, create(service).await, create(service).await);
        service.set_goal(&ids.2, Goal::Stopped).await.expect("stopped");
        service.shutdown().await;
        ids
    });
    house.engine.plant(&older, Generation(0), RunState::Running);
    house.engine.plant(&stranger, Generation(5), RunState::Running);
    house.engine.plant(&reborn, Generation(0), RunState::Frozen);
    house.engine.forget_calls();
    house.life(async |service| {
        assert_eq!(house.engine.machine(&stranger), None, "what belongs to no row is removed before serving");
        service.toolbox(&kept).await.expect("adopted");
        assert_eq!(house.machine(&kept), (Generation(1), RunState::Running));
        assert!(!house.engine.calls().contains(&Op::Start), "nothing is started to adopt");
        let view = settled(service, &older, Phase::Failed).await;
        assert_eq!(
            view.status.failure.expect("recorded").kind,
            FailureKind::Crashed,
            "its own machine is gone"
        );
        settled(service, &reborn, Phase::Stopped).await;
        assert_eq!((house.engine.machine(&older), house.engine.machine(&reborn)), (None, None));
    });
}

#[test]
fn a_host_that_rebooted_stops_what_ran() {
    let house = House::new();
    let (ran, slept) = house.life(async |service| {
        let ids = (create(service).await, create(service).await);
        service.set_goal(&ids.1, Goal::Suspended).await.expect("suspended");
        ids
    });
    house.engine.reboot_host();
    house.life(async |service| {
        settled(service, &ran, Phase::Failed).await;
        settled(service, &slept, Phase::Suspended).await;
        let view = service.set_goal(&slept, Goal::Running).await.expect("restored");
        assert_eq!(view.status.phase, Phase::Running);
    });
}

/// The server dies inside each engine call of a create and of a delete; the next one settles everything, and nothing
/// is left that belongs to no row.
#[test]
fn a_server_that_dies_inside_a_call_is_recovered() {
    for op in [Op::Materialize, Op::Start, Op::Dial] {
        let house = House::new();
        house.life(async |service| {
            let mut held = house.engine.hold(op);
            let creating = tokio::spawn({
                let service = service.clone();
                async move { service.create(testing::request()).await }
            });
            held.arrived(1).await;
            assert!(!creating.is_finished());
        });
        house.life(async |service| {
            let views = service.list(ListFilter::default()).await.expect("listed");
            let [view] = views.as_slice() else { panic!("one sandbox after {op:?}, not {views:?}") };
            service.toolbox(&view.sandbox.id).await.expect("it runs in the end");
            assert_eq!(house.engine.counts(), (1, 1));
        });
    }
    let house = House::new();
    let id = house.life(async |service| {
        let id = create(service).await;
        let mut held = house.engine.hold(Op::Destroy);
        let deleting = tokio::spawn({
            let (service, id) = (service.clone(), id.clone());
            async move { service.delete(&id).await }
        });
        held.arrived(1).await;
        assert!(!deleting.is_finished());
        id
    });
    house.life(async |service| {
        gone_for_good(service, &id).await;
        assert_eq!(house.engine.counts(), (0, 0));
        assert_eq!(service.get(&id).await.expect("known").status.phase, Phase::Deleted);
    });
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_drops_only_its_wait() {
    let house = House::new();
    let service = house.open().await;
    let mut held = house.engine.hold(Op::Start);
    let creating = tokio::spawn({
        let service = service.clone();
        async move { service.create(testing::request()).await }
    });
    held.arrived(1).await;
    creating.abort();
    assert!(creating.await.expect_err("aborted").is_cancelled());
    drop(held);
    let views = service.list(ListFilter::default()).await.expect("listed");
    let id = views[0].sandbox.id.clone();
    settled(&service, &id, Phase::Running).await;

    let mut held = house.engine.hold(Op::Destroy);
    let deleting = tokio::spawn({
        let (service, id) = (service.clone(), id.clone());
        async move { service.delete(&id).await }
    });
    held.arrived(1).await;
    deleting.abort();
    drop(held);
    gone_for_good(&service, &id).await;
    assert_eq!(house.engine.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_delete_during_a_create_ends_it() {
    let house = House::new();
    let service = house.open().await;
    let mut held = house.engine.hold(Op::Materialize);
    let creating = tokio::spawn({
        let service = service.clone();
        async move { service.create(testing::request()).await }
    });
    held.arrived(1).await;
    let id = service.list(ListFilter::default()).await.expect("listed")[0].sandbox.id.clone();
    let deleting = tokio::spawn({
        let (service, id) = (service.clone(), id.clone());
        async move { service.delete(&id).await }
    });
    // The actor is inside the call; the wish waits in its mailbox.
    while service.handle(&id).expect("live").inbox.capacity() == crate::handle::MAILBOX_MAX {
        tokio::task::yield_now().await;
    }
    drop(held);
    deleting.await.expect("joined").expect("deleted");
    assert_eq!(kind(creating.await.expect("joined")), Kind::Gone);
    assert_eq!(house.engine.counts(), (0, 0));
    assert!(!house.engine.calls().contains(&Op::Start), "nothing is started for what is to go");
}

#[tokio::test(start_paused = true)]
async fn two_hundred_at_once() {
    let house = House::new();
    let service = house.open().await;
    let ids = join_all((0..200).map(|_| create(&service))).await;
    let unique: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), 200);
    assert_eq!(house.engine.counts(), (200, 200));
    let newest = service.list(ListFilter { limit: 50, ..ListFilter::default() }).await.expect("listed");
    let after = newest[49].sandbox.id.clone();
    let rest =
        service.list(ListFilter { after: Some(after), ..ListFilter::default() }).await.expect("listed");
    assert_eq!((newest.len(), rest.len()), (50, 150));
    for outcome in join_all(ids.iter().map(|id| service.delete(id))).await {
        outcome.expect("deleted");
    }
    assert_eq!(house.engine.counts(), (0, 0));
    assert!(service.shared.store.load().expect("read").is_empty());
}

#[tokio::test(start_paused = true)]
async fn limits_on_count_and_names() {
    let mut house = House::new();
    house.config.sandboxes_max = 2;
    let service = house.open().await;
    let named = |name: &str, owner: &str| CreateSandbox {
        name: Some(name.to_owned()),
        owner: OwnerId(owner.to_owned()),
        ..testing::request()
    };
    let first = service.create(named("web", "a")).await.expect("created").sandbox.id;
    assert_eq!(kind(service.create(named("web", "a")).await), Kind::Exists);
    service.create(named("web", "b")).await.expect("another owner's");
    assert_eq!(kind(service.create(testing::request()).await), Kind::Exhausted);
    service.delete(&first).await.expect("deleted");
    service.create(named("web", "a")).await.expect("the name and the place are free");

    let marked = CreateSandbox { labels: Labels::from([("a".into(), "\0".into())]), ..testing::request() };
    assert_eq!(kind(service.create(marked).await), Kind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn time_runs_out_unless_it_is_used() {
    let house = House::new();
    let service = house.open().await;
    let lasting = CreateSandbox { ttl: Some(Duration::from_secs(60)), ..testing::request() };
    let view = service.create(lasting).await.expect("created");
    let id = view.sandbox.id;
    let first = view.sandbox.deadlines.expires_at_ms.expect("a deadline");
    assert_eq!(first - view.sandbox.created_at_ms, 60_000);

    tokio::time::sleep(Duration::from_secs(40)).await;
    service.touch(&id).await.expect("in time");
    let moved = service.get(&id).await.expect("live").sandbox.deadlines.expires_at_ms.expect("a deadline");
    assert!(moved >= first + 40_000, "{first} {moved}");
    tokio::time::sleep(Duration::from_secs(40)).await;
    service.get(&id).await.expect("live");
    assert_eq!(house.engine.counts(), (1, 1));

    gone_for_good(&service, &id).await;
    let view = service.get(&id).await.expect("known");
    assert_eq!(view.ended.expect("ended").reason, EndReason::Expired);
    assert!(view.ended.expect("ended").at_ms >= moved);
    assert_eq!(house.engine.counts(), (0, 0));
    assert_eq!(kind(service.touch(&id).await), Kind::Gone);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_moves_away_on_request_and_never_back() {
    let house = House::new();
    let service = house.open().await;
    let lasting = CreateSandbox { ttl: Some(Duration::from_secs(60)), ..testing::request() };
    let view = service.create(lasting).await.expect("created");
    let (id, created) = (view.sandbox.id, view.sandbox.created_at_ms);
    let until = |view: SandboxView| view.sandbox.deadlines.expires_at_ms.expect("a deadline") - created;
    let view = service.extend(&id, Some(Duration::from_secs(3600))).await.expect("live");
    assert_eq!(until(view), 3_600_000);
    for shorter in [Some(Duration::from_secs(10)), None] {
        assert_eq!(until(service.extend(&id, shorter).await.expect("live")), 3_600_000);
    }
    service.touch(&id).await.expect("live");
    assert_eq!(until(service.get(&id).await.expect("live")), 3_600_000);
    // It lives on beyond its own time to live, and a new server knows.
    tokio::time::sleep(Duration::from_secs(1800)).await;
    service.set_goal(&id, Goal::Stopped).await.expect("stopped");
    service.shutdown().await;
    drop(service);
    let service = house.open().await;
    let kept = until(service.get(&id).await.expect("live"));
    assert!((3_600_000..=3_601_000).contains(&kept), "{kept}");
    gone_for_good(&service, &id).await;
    assert_eq!(kind(service.extend(&id, None).await), Kind::Gone);

    let forever = CreateSandbox { ttl: Some(Duration::ZERO), ..testing::request() };
    let id = service.create(forever).await.expect("created").sandbox.id;
    let view = service.extend(&id, Some(Duration::from_secs(1))).await.expect("live");
    assert_eq!(view.sandbox.deadlines.expires_at_ms, None);
}

#[tokio::test(start_paused = true)]
async fn looks_at_the_memory_limit_know_of_the_look_before() {
    let house = House::new();
    let service = house.open().await;
    let id = service.create(testing::request()).await.expect("created").sandbox.id;
    let kills = |oom_kills| Stats { oom_kills, memory_limit_bytes: Some(64 << 20), ..Stats::default() };
    for (now, before) in [(0, 0), (2, 0), (2, 2)] {
        house.engine.set_stats(kills(now));
        let look = service.memory_kills(&id).await.expect("runs");
        assert_eq!(look, MemoryKills { now, before: Some(before), limit_bytes: Some(64 << 20) });
    }
    service.shutdown().await;
    drop(service);
    let service = house.open().await;
    settled(&service, &id, Phase::Running).await;
    assert_eq!(service.memory_kills(&id).await.expect("runs").before, None, "nobody has looked yet");
    assert_eq!(service.memory_kills(&id).await.expect("runs").before, Some(2));
}

#[tokio::test(start_paused = true)]
async fn use_holds_the_deadline_open() {
    let house = House::new();
    let service = house.open().await;
    let lasting = CreateSandbox { ttl: Some(Duration::from_secs(10)), ..testing::request() };
    let id = service.create(lasting).await.expect("created").sandbox.id;
    let stream = service.dial(&id, GuestPort::Tcp(80)).await.expect("dialled");
    tokio::time::sleep(Duration::from_secs(35)).await;
    service.toolbox(&id).await.expect("in use, so not expired");
    drop(stream);
    gone_for_good(&service, &id).await;
    assert_eq!(service.get(&id).await.expect("known").ended.expect("ended").reason, EndReason::Expired);
}

#[test]
fn a_deadline_that_was_moved_survives_a_kill() {
    let house = House::new();
    let (id, moved) = house.life(async |service| {
        let lasting = CreateSandbox { ttl: Some(Duration::from_secs(60)), ..testing::request() };
        let id = service.create(lasting).await.expect("created").sandbox.id;
        tokio::time::sleep(Duration::from_secs(30)).await;
        service.touch(&id).await.expect("in time");
        // The actor has written it down once it has read its mailbox and the store another write after it.
        service.set_goal(&id, Goal::Stopped).await.expect("stopped");
        (
            id.clone(),
            service.get(&id).await.expect("live").sandbox.deadlines.expires_at_ms.expect("a deadline"),
        )
    });
    house.life(async |service| {
        let kept = service.get(&id).await.expect("live").sandbox.deadlines.expires_at_ms.expect("a deadline");
        assert!(kept >= moved, "never shorter");
        assert!(kept <= moved + 1_000, "and hardly longer");
    });
}

#[tokio::test(start_paused = true)]
async fn one_server_per_data_directory() {
    let house = House::new();
    let service = house.open().await;
    assert_eq!(kind(Instance::acquire(house.dir.path())), Kind::Conflict);
    service.shutdown().await;
    assert_eq!(kind(service.create(testing::request()).await), Kind::Unavailable);
    drop(service);
    house.open().await;
}

#[tokio::test(start_paused = true)]
async fn shutting_down_leaves_sandboxes_alone() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    house.engine.forget_calls();
    service.shutdown().await;
    assert!(house.engine.calls().is_empty());
    assert_eq!(house.machine(&id), (Generation(1), RunState::Running));
}

#[tokio::test(start_paused = true)]
async fn an_end_is_tried_for_ever_with_growing_pauses() {
    let mut house = House::new();
    house.config.settle_timeout = Duration::from_secs(5);
    let service = house.open().await;
    let id = create(&service).await;
    for _ in 0..12 {
        house.engine.fail(Op::Destroy, Reach::Nothing, || EngineError::host("remove cgroup", "busy"));
    }
    assert_eq!(kind(service.delete(&id).await), Kind::Timeout);
    assert_eq!(service.get(&id).await.expect("live").status.phase, Phase::Deleting);
    assert_eq!(kind(service.toolbox(&id).await.map(drop)), Kind::Gone);
    let before = tokio::time::Instant::now();
    gone_for_good(&service, &id).await;
    assert!(before.elapsed() >= Duration::from_secs(120), "{:?}", before.elapsed());
    assert_eq!(house.engine.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_new_wish_does_not_wait_for_a_pause() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    for _ in 0..6 {
        house.engine.fail(Op::Stop, Reach::Nothing, || EngineError::host("kill machine", "busy"));
    }
    let stopping = tokio::spawn({
        let (service, id) = (service.clone(), id.clone());
        async move { service.set_goal(&id, Goal::Stopped).await }
    });
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!stopping.is_finished(), "it is in a long pause");
    let before = tokio::time::Instant::now();
    service.delete(&id).await.expect("deleted");
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    assert_eq!(kind(stopping.await.expect("joined")), Kind::Gone);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_later_keeps_the_disk() {
    let house = House::new();
    let service = house.open().await;
    let id = create(&service).await;
    service.set_goal(&id, Goal::Stopped).await.expect("stopped");
    for _ in 0..crate::actor::ATTEMPTS_MAX {
        house.engine.fail(Op::Start, Reach::Nothing, host_failure);
    }
    let error = service.set_goal(&id, Goal::Running).await.expect_err("failed");
    assert_eq!((error.kind(), error.message()), (Kind::Internal, "start machine failed"));
    let view = service.get(&id).await.expect("live");
    assert_eq!(view.status.phase, Phase::Failed);
    assert_eq!(view.status.failure.expect("recorded").kind, FailureKind::StartFailed);
    assert_eq!(house.engine.counts(), (0, 1));
    service.set_goal(&id, Goal::Running).await.expect("runs now");
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_requests_end_for_a_while_and_then_cuts_them() {
    // An agent that answers its n-th request after so many seconds.
    let requests = Arc::new(AtomicUsize::new(0));
    let arrived = Arc::new(Semaphore::new(0));
    let agent: testing::Agent = Arc::new({
        let (requests, arrived) = (requests.clone(), arrived.clone());
        move |mut stream, identity| {
            let (requests, arrived) = (requests.clone(), arrived.clone());
            Box::pin(async move {
                while let Some((head, body)) = testing::read_request(&mut stream).await {
                    if head.contains("/sandhaus/hello") {
                        let reply: HelloRequest = serde_json::from_slice(&body).expect("a greeting");
                        assert_eq!(reply.sandbox_id, identity.id.as_str());
                        let reply = format!(
                            r#"{{"protocol":1,"version":"1","sandbox_id":"{}","generation":{},"features":[],"cwd":"/"}}"#,
                            identity.id, identity.generation
                        );
                        testing::write_response(&mut stream, "200 OK", reply.as_bytes()).await;
                        continue;
                    }
                    let seconds = if requests.fetch_add(1, Ordering::SeqCst) == 0 { 1 } else { 60 };
                    arrived.add_permits(1);
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    let info = r#"{"name":"default","cwd":"/","running":null,"output_bytes":0}"#;
                    testing::write_response(&mut stream, "200 OK", info.as_bytes()).await;
                }
            })
        }
    });
    let house = House::with(FakeEngine::default().with_agent(agent));
    let service = house.open().await;
    let id = create(&service).await;
    let toolbox = service.toolbox(&id).await.expect("runs");
    let ask = |toolbox: &Toolbox| {
        let toolbox = toolbox.clone();
        tokio::spawn(async move { toolbox.shell_info("default").await })
    };
    let short = ask(&toolbox);
    arrived.acquire().await.expect("open").forget();
    let long = ask(&toolbox);
    arrived.acquire().await.expect("open").forget();

    let before = tokio::time::Instant::now();
    service.set_goal(&id, Goal::Stopped).await.expect("stopped");
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    short.await.expect("joined").expect("it had time to end");
    assert_eq!(kind(long.await.expect("joined")), Kind::Unavailable);
    assert_eq!(kind(toolbox.shell_info("default").await), Kind::Conflict, "the gate is closed");

    service.set_goal(&id, Goal::Running).await.expect("runs");
    assert_eq!(
        service.handle(&id).expect("live").gate.leases(),
        1,
        "the greeting's, kept for the next request"
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_was_started_anew_is_greeted_again() {
    // It forgets with its second request, and then knows nobody until it is greeted.
    let greetings = Arc::new(AtomicUsize::new(0));
    let requests = Arc::new(AtomicUsize::new(0));
    let agent: testing::Agent = Arc::new({
        let (greetings, requests) = (greetings.clone(), requests.clone());
        move |mut stream, identity| {
            let (greetings, requests) = (greetings.clone(), requests.clone());
            Box::pin(async move {
                while let Some((head, body)) = testing::read_request(&mut stream).await {
                    let refusal = "503 Service Unavailable\r\nsandhaus-refusal: NOT_GREETED";
                    let (status, reply) = if head.contains("/sandhaus/hello") {
                        greetings.fetch_add(1, Ordering::SeqCst);
                        testing::hello_reply(&body, &identity)
                    } else if requests.fetch_add(1, Ordering::SeqCst) == 1 {
                        (refusal, r#"{"message":"not greeted"}"#.to_owned())
                    } else {
                        let info = r#"{"name":"default","cwd":"/","running":null,"output_bytes":0}"#;
                        ("200 OK", info.to_owned())
                    };
                    testing::write_response(&mut stream, status, reply.as_bytes()).await;
                }
            })
        }
    });
    let house = House::with(FakeEngine::default().with_agent(agent));
    let service = house.open().await;
    let id = create(&service).await;
    let toolbox = service.toolbox(&id).await.expect("runs");
    toolbox.shell_info("default").await.expect("it knows its host");
    assert_eq!(greetings.load(Ordering::SeqCst), 1);
    assert_eq!(kind(toolbox.shell_info("default").await), Kind::Unavailable);
    let view = service.set_goal(&id, Goal::Running).await.expect("greeted");
    assert_eq!((view.status.phase, view.sandbox.generation), (Phase::Running, Generation(1)));
    assert_eq!(greetings.load(Ordering::SeqCst), 2, "the same machine, told once more");
    service.toolbox(&id).await.expect("runs").shell_info("default").await.expect("it knows its host again");
    assert_eq!(greetings.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn use_of_resources_and_images_come_through() {
    let mut house = House::new();
    // It changes the catalogue.
    house.images = Catalogue::open(&house.dir.path().join("images")).expect("opens");
    let service = house.open().await;
    let id = create(&service).await;
    let stats = Stats { memory_bytes: 5, pids: 2, ..Stats::default() };
    house.engine.set_stats(stats);
    assert_eq!(service.stats(&id).await.expect("answered"), stats);

    let tree = tempfile::tempdir().expect("temporary directory");
    std::fs::create_dir(tree.path().join("etc")).expect("made");
    let name = ImageName::parse("small").expect("valid");
    let image = service.import_image(name.clone(), tree.path().to_owned(), false).await.expect("imported");
    let used = CreateSandbox { image: Some(name.clone()), ..testing::request() };
    let user = service.create(used.clone()).await.expect("created").sandbox.id;
    let other = ImageName::parse("other").expect("valid");
    assert_eq!(service.tag_image(name.clone(), other.clone()).await.expect("tagged").digest, image.digest);
    service.remove_image(name).await.expect("removed");
    assert_eq!(kind(service.create(used).await), Kind::NotFound, "the name is forgotten at once");
    service.remove_image(other).await.expect("removed");
    assert!(service.images().await.expect("listed").iter().all(|listed| listed.digest != image.digest));
    service.set_goal(&user, Goal::Stopped).await.expect("stopped");
    service.set_goal(&user, Goal::Running).await.expect("its content is still there");
}

/// What a published port says to a request.
async fn ask(host_port: u16) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", host_port)).await?;
    stream.write_all(b"GET /there HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    // The other side goes on answering after this one has said all.
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[test]
fn published_ports_lead_inside_as_long_as_the_sandbox_is_there() {
    let house = House::new();
    let published = |host_port: u16| CreateSandbox {
        publish: vec![PublishedPort { port: 80, host_port }],
        ..testing::request()
    };
    let (id, host_port) = house.life(async |service| {
        let view = service.create(published(0)).await.expect("created");
        let host_port = view.sandbox.spec.publish[0].host_port;
        assert_ne!(host_port, 0);
        assert!(ask(host_port).await.expect("answered").starts_with("HTTP/1.1 404"));
        let refused = service.create(published(host_port)).await.expect_err("taken");
        assert_eq!(refused.kind(), Kind::Conflict);
        assert!(refused.message().contains(&host_port.to_string()), "{refused}");
        assert_eq!(service.list(ListFilter::default()).await.expect("a list").len(), 1);
        (view.sandbox.id, host_port)
    });
    house.life(async |service| {
        settled(service, &id, Phase::Running).await;
        let answer = loop {
            match ask(host_port).await {
                Ok(answer) => break answer,
                // The clock stands still while somebody runs, so this also lets the next attempt to bind come.
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        };
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        service.set_goal(&id, Goal::Stopped).await.expect("stopped");
        assert_eq!(ask(host_port).await.unwrap_or_default(), "", "nothing answers");
        service.delete(&id).await.expect("deleted");
        assert!(ask(host_port).await.is_err(), "the port is closed");
        let again = service.create(published(host_port)).await.expect("the port is free at once");
        service.delete(&again.sandbox.id).await.expect("deleted");
    });
}
