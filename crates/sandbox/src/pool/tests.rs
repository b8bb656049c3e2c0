//! The pool on an engine in memory, with a real store and paused time.

use std::collections::BTreeSet;

use futures::future::join_all;
use sandhaus_images::Catalogue;
use sandhaus_protocol::hello::{self, HelloRequest};
use tempfile::TempDir;
use tokio::runtime::Builder;

use super::*;
use crate::{
    Instance, Service,
    engine::EngineError,
    service::{CreateSandbox, ListFilter},
    testing::{self, FakeEngine, Op, OutOfMemory, Reach},
};

/// Greetings that brought variables, as their agents heard them.
type Told = Arc<Mutex<Vec<(String, Env)>>>;

/// A data directory and the machines of its host; services come and go.
struct House {
    dir: TempDir,
    engine: FakeEngine,
    config: crate::service::ServiceConfig,
    images: Catalogue,
    told: Told,
}

impl House {
    fn new(wanted: usize) -> Self {
        let told = Told::default();
        let heard = told.clone();
        let agent: testing::Agent = Arc::new(move |mut stream, identity| {
            let heard = heard.clone();
            Box::pin(async move {
                while let Some((head, body)) = testing::read_request(&mut stream).await {
                    assert!(head.starts_with(&format!("POST {} ", hello::PATH)), "{head}");
                    let hello: HelloRequest = serde_json::from_slice(&body).expect("a greeting");
                    if !hello.env.is_empty() {
                        heard.lock().expect("whole").push((hello.sandbox_id.clone(), hello.env));
                    }
                    let (status, reply) = testing::hello_reply(&body, &identity);
                    if testing::write_response(&mut stream, status, reply.as_bytes()).await.is_none() {
                        return;
                    }
                }
            })
        });
        let mut config = testing::config();
        config.pool = pool(&[("host", wanted)]);
        Self {
            dir: tempfile::tempdir().expect("temporary directory"),
            engine: FakeEngine::default().with_agent(agent),
            config,
            images: testing::images().expect("opens"),
            told,
        }
    }

    async fn open(&self) -> Service {
        let instance = Instance::acquire(self.dir.path()).expect("free");
        let (config, engine, images) = (self.config.clone(), self.engine.clone(), self.images.clone());
        testing::open_with(instance, config, engine, images).await.expect("opens")
    }

    /// One life of a server, on a runtime of its own: what is left of `life` is dropped where it is, as a kill would.
    fn life<T>(&self, life: impl AsyncFnOnce(&Service) -> T) -> T {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
        runtime.block_on(async {
            let service = self.open().await;
            life(&service).await
        })
    }

    fn starts(&self) -> usize {
        self.engine.calls().iter().filter(|op| **op == Op::Start).count()
    }
}

fn name(name: &str) -> ImageName {
    ImageName::parse(name).expect("valid")
}

fn pool(images: &[(&str, usize)]) -> PoolConfig {
    let images = images.iter().map(|(image, wanted)| (name(image), *wanted)).collect();
    PoolConfig { enabled: true, images }
}

fn host_failure() -> EngineError {
    EngineError::host("start machine", "broken")
}

/// Waits until the pool looks so.
async fn until(service: &Service, reached: impl Fn(&PoolStatus) -> bool) -> PoolStatus {
    let mut changes = service.shared().pool.changes.subscribe();
    loop {
        let status = service.pool();
        if reached(&status) {
            return status;
        }
        // Paused time moves on when nothing else does: pauses of the keeper pass at once.
        changes.changed().await.expect("the pool outlives its service");
    }
}

async fn filled(service: &Service) -> PoolStatus {
    until(service, |status| {
        status.images.iter().all(|image| image.idle == image.wanted && image.warming == 0)
            && service.shared().pool.len() == status.images.iter().map(|image| image.wanted).sum::<usize>()
    })
    .await
}

async fn idle(service: &Service) -> BTreeSet<SandboxId> {
    let views = service.list(ListFilter::default()).await.expect("listed");
    views.into_iter().filter(SandboxView::is_idle).map(|view| view.sandbox.id).collect()
}

fn handle(service: &Service, id: &SandboxId) -> Option<Arc<Handle>> {
    service.shared().sandboxes().get(id).cloned()
}

async fn gone(service: &Service, id: &SandboxId) {
    while let Some(handle) = handle(service, id) {
        let mut published = handle.published.subscribe();
        drop(handle);
        // Ends with an error once the last owner, the actor, is gone.
        while published.changed().await.is_ok() {}
    }
}

fn personal() -> CreateSandbox {
    CreateSandbox {
        name: Some("web".to_owned()),
        owner: OwnerId("somebody".to_owned()),
        env: Env::from([("A".to_owned(), "b".to_owned())]),
        labels: Labels::from([("team".to_owned(), "red".to_owned())]),
        ttl: Some(Duration::from_secs(60)),
        ..testing::request()
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_a_row_and_a_greeting() {
    let house = House::new(2);
    let service = house.open().await;
    filled(&service).await;
    let waiting = idle(&service).await;
    assert_eq!(waiting.len(), 2);
    tokio::time::sleep(Duration::from_secs(20)).await;
    house.engine.forget_calls();
    let held = house.engine.hold(Op::Materialize);

    let Acquired { view, source } = service.acquire(personal()).await.expect("claimed");
    assert_eq!((source, house.starts()), (Acquisition::Pool, 0));
    let sandbox = &view.sandbox;
    assert!(waiting.contains(&sandbox.id), "it had its id before");
    assert_eq!((view.status.phase, sandbox.tenancy), (Phase::Running, Tenancy::Claimed(Generation(1))));
    assert_eq!((sandbox.owner.0.as_str(), sandbox.name.as_deref()), ("somebody", Some("web")));
    assert_eq!((&sandbox.labels, &sandbox.spec.env), (&personal().labels, &personal().env));
    let now_ms = service.shared().clock.now_ms();
    assert_eq!(sandbox.created_at_ms, now_ms, "its time begins with its owner");
    assert_eq!(sandbox.deadlines.expires_at_ms, Some(now_ms + 60_000));
    assert_eq!(*house.told.lock().expect("whole"), [(sandbox.id.to_string(), personal().env)]);
    let rows = service.shared().store.load().expect("read");
    assert!(rows.iter().any(|row| row == sandbox), "the row says so too");
    service.toolbox(&sandbox.id).await.expect("it is its owner's");

    // Its deadline is its owner's, and the pool fills again behind it.
    drop(held);
    filled(&service).await;
    gone(&service, &sandbox.id).await;
    let ended = service.get(&sandbox.id).await.expect("known").ended.expect("ended");
    assert_eq!(ended.reason, EndReason::Expired);
    let status = service.pool();
    assert_eq!((status.images[0].hits, status.images[0].misses), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn another_policy_never_gets_a_pooled_one() {
    let house = House::new(1);
    let service = house.open().await;
    filled(&service).await;
    let waiting = idle(&service).await;
    let plain = testing::request;
    let resources = |resources: Resources| CreateSandbox { resources, ..plain() };
    let network = |network: NetworkPolicy| CreateSandbox { network: Some(network), ..plain() };
    let mount = Mount { source: "/tmp".into(), target: "/x".to_owned(), access: Access::ReadOnly };
    let others = [
        resources(Resources { cpu_millis: 500, ..Resources::default() }),
        resources(Resources { memory_bytes: 64 << 20, ..Resources::default() }),
        resources(Resources { pids: 64, ..Resources::default() }),
        resources(Resources { disk_bytes: 64 << 20, ..Resources::default() }),
        network(NetworkPolicy::Bridge),
        network(NetworkPolicy::Allow(vec!["10.0.0.0/8".parse().expect("a network")])),
        CreateSandbox { security: SecurityProfile::Container, ..plain() },
        CreateSandbox { readonly_root: false, ..plain() },
        CreateSandbox { workdir: Some("/tmp".to_owned()), ..plain() },
        CreateSandbox { mounts: vec![mount], ..plain() },
        CreateSandbox { entrypoint: vec!["true".to_owned()], ..plain() },
        CreateSandbox { shell: sandhaus_protocol::boot::ShellPreference::Sh, ..plain() },
        CreateSandbox { warm_shell: true, ..plain() },
        CreateSandbox { seccomp: Seccomp::Mvp, ..plain() },
    ];
    for other in others {
        let shown = format!("{other:?}");
        let Acquired { view, source } = service.acquire(other).await.expect("created");
        assert_eq!((source, view.sandbox.tenancy), (Acquisition::Cold, Tenancy::Own), "{shown}");
        assert!(!waiting.contains(&view.sandbox.id), "{shown}");
    }
    assert_eq!(idle(&service).await, waiting, "the one that waits has not been touched");
    // What says the defaults is the same as what says nothing.
    let defaults = house.config.defaults.clone();
    let told = CreateSandbox {
        image: Some(name("base")),
        snapshot: None,
        resources: defaults.resources,
        network: Some(NetworkPolicy::None),
        ..plain()
    };
    let Acquired { view, source } = service.acquire(told).await.expect("created");
    assert_eq!(source, Acquisition::Pool);
    assert!(waiting.contains(&view.sandbox.id));
}

#[tokio::test(start_paused = true)]
async fn published_ports_come_with_the_claim() {
    let house = House::new(1);
    let service = house.open().await;
    filled(&service).await;
    let published = |host_port| CreateSandbox {
        publish: vec![PublishedPort { port: 80, host_port }],
        ..testing::request()
    };
    let Acquired { view, source } = service.acquire(published(0)).await.expect("claimed");
    assert_eq!(source, Acquisition::Pool);
    let [port] = view.sandbox.spec.publish[..] else { panic!("one port: {view:?}") };
    assert_eq!(port.port, 80);
    let reach = || std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port.host_port));
    reach().expect("the host shows it");
    // A port that is taken costs nobody who waits.
    filled(&service).await;
    let waiting = idle(&service).await;
    let error = service.acquire(published(port.host_port)).await.expect_err("taken");
    assert_eq!(error.kind(), Kind::Conflict);
    assert_eq!(idle(&service).await, waiting);
    service.delete(&view.sandbox.id).await.expect("deleted");
    assert!(reach().is_err(), "it ends with its owner");
}

#[tokio::test(start_paused = true)]
async fn each_is_given_away_once() {
    let house = House::new(20);
    let service = house.open().await;
    filled(&service).await;
    let waiting = idle(&service).await;
    let acquired = join_all((0..60).map(|_| service.acquire(testing::request()))).await;
    let acquired: Vec<Acquired> = acquired.into_iter().map(|outcome| outcome.expect("created")).collect();
    let ids: BTreeSet<_> = acquired.iter().map(|acquired| acquired.view.sandbox.id.clone()).collect();
    assert_eq!(ids.len(), 60, "no two got the same");
    let pooled = acquired.iter().filter(|acquired| acquired.source == Acquisition::Pool);
    assert!(pooled.clone().count() >= 20);
    assert!(waiting.is_subset(&ids));
    assert!(acquired.iter().any(|acquired| acquired.source == Acquisition::PoolEmpty));
    let status = filled(&service).await;
    let image = &status.images[0];
    assert_eq!((image.hits + image.misses, image.idle), (60, 20));
    assert_eq!(house.engine.counts(), (80, 80));
}

#[tokio::test(start_paused = true)]
async fn what_waits_meets_nobody() {
    let house = House::new(1);
    let service = house.open().await;
    filled(&service).await;
    let id = idle(&service).await.into_iter().next().expect("one waits");
    let refused = |outcome: Result<()>| {
        let error = outcome.expect_err("refused");
        assert_eq!(error.kind(), Kind::Conflict, "{error}");
    };
    refused(service.toolbox(&id).await.map(drop));
    refused(service.dial(&id, crate::engine::GuestPort::Tcp(80)).await.map(drop));
    refused(service.touch(&id).await);
    refused(service.set_goal(&id, Goal::Paused).await.map(drop));
    refused(service.set_goal(&id, Goal::Stopped).await.map(drop));
    service.stats(&id).await.expect("what it uses may be asked");
    assert_eq!(service.get(&id).await.expect("known").status.phase, Phase::Running);
    // It can be deleted; another takes its place, and nobody pauses for it.
    service.delete(&id).await.expect("deleted");
    filled(&service).await;
    assert!(!idle(&service).await.contains(&id));
    assert_eq!(service.pool().images[0].problem, None);
}

#[tokio::test(start_paused = true)]
async fn what_ended_is_not_handed_out_and_is_replaced() {
    let house = House::new(2);
    let service = house.open().await;
    filled(&service).await;
    for id in idle(&service).await {
        house.engine.crash(&id, OutOfMemory::No);
    }
    let Acquired { view, .. } = service.acquire(testing::request()).await.expect("created");
    assert!(house.engine.machine(&view.sandbox.id).is_some());
    filled(&service).await;
    assert_eq!(house.engine.counts(), (3, 3), "nothing is left of those that ended");
    let all = ListFilter { with_ended: true, ..ListFilter::default() };
    assert_eq!(service.list(all).await.expect("listed").len(), 3, "the history does not know them");
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_answer_its_claim_is_passed_over() {
    let mut house = House::new(2);
    let deaf = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ears = deaf.clone();
    house.engine = house.engine.with_agent(Arc::new(move |mut stream, identity| {
        let ears = ears.clone();
        Box::pin(async move {
            while let Some((_, body)) = testing::read_request(&mut stream).await {
                if ears.load(Ordering::SeqCst) && identity.generation == Generation(1) {
                    return;
                }
                let (status, reply) = testing::hello_reply(&body, &identity);
                testing::write_response(&mut stream, status, reply.as_bytes()).await;
            }
        })
    }));
    let service = house.open().await;
    filled(&service).await;
    let waiting = idle(&service).await;
    // From now on no machine of a first generation answers, and the engine makes no new ones for a while.
    deaf.store(true, Ordering::SeqCst);
    let outcome = service.acquire(testing::request()).await;
    assert_eq!(outcome.expect_err("nobody answers").kind(), Kind::Unavailable);
    for id in &waiting {
        gone(&service, id).await;
    }
    deaf.store(false, Ordering::SeqCst);
    let acquired = service.acquire(testing::request()).await.expect("created");
    assert!(!waiting.contains(&acquired.view.sandbox.id));
    filled(&service).await;
    assert_eq!(house.engine.counts(), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn names_are_taken_before_a_member_is() {
    let house = House::new(2);
    let service = house.open().await;
    filled(&service).await;
    let first = service.acquire(personal()).await.expect("claimed").view.sandbox.id;
    filled(&service).await;
    let hits = service.pool().images[0].hits;
    let error = service.acquire(personal()).await.expect_err("taken");
    assert_eq!((error.kind(), error.message()), (Kind::Exists, "there is a sandbox named web"));
    assert_eq!(service.pool().images[0].hits, hits, "nobody was woken for it");
    // Two at once: one gets it.
    service.delete(&first).await.expect("deleted");
    let outcomes = join_all([service.acquire(personal()), service.acquire(personal())]).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    filled(&service).await;
    assert_eq!(house.engine.counts(), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_give_way() {
    let mut house = House::new(2);
    house.config.sandboxes_max = 3;
    let service = house.open().await;
    filled(&service).await;
    // Of another kind, so that nobody who waits is of use.
    let other = || CreateSandbox { readonly_root: false, ..testing::request() };
    let first = service.create(other()).await.expect("there is room").sandbox.id;
    filled(&service).await;
    service.create(other()).await.expect("one gives way");
    until(&service, |status| status.images[0].idle == 1 && service.shared().pool.len() == 1).await;
    service.create(other()).await.expect("the last gives way");
    until(&service, |_| service.shared().pool.len() == 0).await;
    assert_eq!(service.create(other()).await.expect_err("full").kind(), Kind::Exhausted);
    assert_eq!(service.create(testing::request()).await.expect_err("full").kind(), Kind::Exhausted);
    assert_eq!(house.engine.counts(), (3, 3));
    service.delete(&first).await.expect("deleted");
    until(&service, |status| status.images[0].idle == 1).await;
    // The place is theirs only as long as nobody wants it.
    let acquired = service.acquire(testing::request()).await.expect("claimed");
    assert_eq!(acquired.source, Acquisition::Pool);
    assert_eq!(service.create(other()).await.expect_err("full").kind(), Kind::Exhausted);
}

#[tokio::test(start_paused = true)]
async fn failures_are_told_and_tried_again_with_pauses() {
    let house = House::new(1);
    for _ in 0..4 * crate::actor::ATTEMPTS_MAX {
        house.engine.fail(Op::Start, Reach::Nothing, host_failure);
    }
    let service = house.open().await;
    let before = Instant::now();
    let status = until(&service, |status| status.images[0].problem.is_some()).await;
    assert_eq!(status.images[0].problem.as_deref(), Some("start machine failed"));
    let status = filled(&service).await;
    assert_eq!(status.images[0].problem, None);
    // Four members failed: pauses of one, two, four and eight seconds.
    assert!(before.elapsed() >= Duration::from_secs(15), "{:?}", before.elapsed());
    assert_eq!(house.engine.counts(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn it_can_be_drained_and_filled() {
    let house = House::new(3);
    let service = house.open().await;
    let status = service.fill_pool().await;
    assert_eq!((status.keeping, status.images[0].idle), (Keeping::Filled, 3));
    let status = service.drain_pool().await;
    assert_eq!((status.keeping, status.images[0].idle), (Keeping::Drained, 0));
    assert_eq!(house.engine.counts(), (0, 0));
    let acquired = service.acquire(testing::request()).await.expect("created");
    assert_eq!(acquired.source, Acquisition::PoolEmpty);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(house.engine.counts(), (1, 1), "it stays empty");
    assert_eq!(service.fill_pool().await.images[0].idle, 3);
}

#[tokio::test(start_paused = true)]
async fn names_that_cannot_be_kept_are_told() {
    let mut house = House::new(0);
    house.config.pool = pool(&[("base", 1), ("host", 1), ("missing", 1)]);
    let service = house.open().await;
    let status = service.fill_pool().await;
    let problems: Vec<_> =
        status.images.iter().map(|image| (image.image.as_str(), image.problem.as_deref())).collect();
    assert_eq!(problems[..2], [("base", None), ("host", Some("it is the same as base"))]);
    assert!(problems[2].1.is_some_and(|problem| problem.contains("missing")), "{problems:?}");
    assert_eq!(house.engine.counts(), (1, 1));

    let mut house = House::new(1);
    house.config.defaults.allowed_images = vec![name("other")];
    let status = house.open().await.fill_pool().await;
    assert_eq!(status.images[0].problem.as_deref(), Some("image not allowed: host"));
    assert_eq!(house.engine.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn members_follow_the_image() {
    let mut house = House::new(0);
    house.images = Catalogue::open(&house.dir.path().join("images")).expect("opens");
    house.config.pool = pool(&[("small", 2)]);
    let tree = |marker: &str| {
        let tree = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(tree.path().join(marker)).expect("made");
        tree
    };
    let (first, second) = (tree("first"), tree("second"));
    let service = house.open().await;
    let problem = |status: &PoolStatus| status.images[0].problem.is_some();
    until(&service, problem).await;
    let small = name("small");
    service.import_image(small.clone(), first.path().to_owned(), false).await.expect("imported");
    let status = filled(&service).await;
    let before = idle(&service).await;
    let old = status.images[0].digest.clone().expect("known");

    // The name moves: nobody gets the old content under it, and the old members go.
    let moved = service.import_image(small.clone(), second.path().to_owned(), true).await.expect("imported");
    assert_ne!(moved.digest, old);
    let asked = || CreateSandbox { image: Some(small.clone()), ..testing::request() };
    let view = service.create(asked()).await.expect("created");
    assert!(view.sandbox.spec.source.is(&moved.digest));
    for id in &before {
        gone(&service, id).await;
    }
    filled(&service).await;
    service.delete(&view.sandbox.id).await.expect("deleted");

    // What only the pool uses can be removed, content and all.
    service.remove_image(small.clone()).await.expect("removed");
    assert_eq!(service.shared().pool.len(), 0);
    let left = service.images().await.expect("listed");
    assert!(left.iter().all(|image| image.digest != moved.digest));
    assert!(until(&service, problem).await.images[0].digest.is_none());
    assert_eq!(house.engine.counts(), (0, 0));
}

#[test]
fn w26_a_restart_adopts_those_who_wait_and_leaks_nobody() {
    let mut house = House::new(3);
    let waiting = house.life(async |service| {
        filled(service).await;
        idle(service).await
    });
    house.engine.forget_calls();
    house.life(async |service| {
        filled(service).await;
        assert_eq!(idle(service).await, waiting, "they are members again");
        assert_eq!(house.starts(), 0);
        let acquired = service.acquire(testing::request()).await.expect("claimed");
        assert_eq!(acquired.source, Acquisition::Pool);
        service.delete(&acquired.view.sandbox.id).await.expect("deleted");
        filled(service).await;
    });
    // Fewer are wanted now, and one of those who wait has ended meanwhile.
    house.config.pool = pool(&[("host", 2)]);
    house.life(async |service| {
        filled(service).await;
        assert_eq!(house.engine.counts(), (2, 2));
    });
    house.engine.reboot_host();
    house.life(async |service| {
        filled(service).await;
        assert_eq!(house.engine.counts(), (2, 2), "the dead are replaced");
    });
    // Another policy is the default now: nobody who waits has it.
    house.config.defaults.resources.pids = 77;
    house.life(async |service| {
        let before = idle(service).await;
        filled(service).await;
        assert!(idle(service).await.is_disjoint(&before));
        let spec = house.engine.spec(idle(service).await.first().expect("one waits")).expect("started");
        assert_eq!(spec.resources.pids, 77);
        assert_eq!(house.engine.counts(), (2, 2));
    });
    house.config.pool.enabled = false;
    house.life(async |service| {
        until(service, |_| service.shared().pool.len() == 0).await;
        assert_eq!(house.engine.counts(), (0, 0));
        assert!(service.shared().store.load().expect("read").is_empty());
        assert_eq!(service.pool(), PoolStatus { keeping: Keeping::Off, images: Vec::new() });
    });
}

/// The server dies at each point of a warm-up: a later one makes a member of what is there, or removes it.
#[test]
fn a_server_that_dies_while_it_warms_leaks_nobody() {
    for op in [Op::Materialize, Op::Start, Op::Dial] {
        let house = House::new(1);
        house.life(async |service| {
            let mut held = house.engine.hold(op);
            held.arrived(1).await;
            assert!(idle(service).await.is_empty(), "it does not wait yet");
        });
        house.life(async |service| {
            filled(service).await;
            assert_eq!(house.engine.counts(), (1, 1), "after {op:?}");
        });
    }
}

/// The server dies between the row and the greeting of a claim: the next one finds a sandbox that is somebody's, and
/// tells it what its owner brought.
#[test]
fn a_claim_that_was_written_down_is_completed() {
    let mut house = House::new(1);
    let (reached, mut reaches) = watch::channel(false);
    let deaf = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (ears, told) = (deaf.clone(), house.told.clone());
    house.engine = house.engine.with_agent(Arc::new(move |mut stream, identity| {
        let (ears, told, reached) = (ears.clone(), told.clone(), reached.clone());
        Box::pin(async move {
            while let Some((_, body)) = testing::read_request(&mut stream).await {
                let hello: HelloRequest = serde_json::from_slice(&body).expect("a greeting");
                if !hello.env.is_empty() {
                    if ears.load(Ordering::SeqCst) {
                        reached.send_replace(true);
                        return std::future::pending().await;
                    }
                    told.lock().expect("whole").push((hello.sandbox_id.clone(), hello.env));
                }
                let (status, reply) = testing::hello_reply(&body, &identity);
                testing::write_response(&mut stream, status, reply.as_bytes()).await;
            }
        })
    }));
    let id = house.life(async |service| {
        filled(service).await;
        let id = idle(service).await.into_iter().next().expect("one waits");
        let claiming = tokio::spawn({
            let service = service.clone();
            async move { service.acquire(personal()).await }
        });
        reaches.wait_for(|reached| *reached).await.expect("the agent lives");
        assert!(!claiming.is_finished());
        assert!(idle(service).await.is_disjoint(&BTreeSet::from([id.clone()])) || !claiming.is_finished());
        id
    });
    deaf.store(false, Ordering::SeqCst);
    house.life(async |service| {
        service.toolbox(&id).await.expect("it runs");
        let view = service.get(&id).await.expect("known");
        assert_eq!(view.sandbox.owner.0, "somebody");
        assert!(view.sandbox.deadlines.expires_at_ms.is_some(), "and ends by itself");
        assert_eq!(*house.told.lock().expect("whole"), [(id.to_string(), personal().env)]);
        filled(service).await;
        assert_eq!(house.engine.counts(), (2, 2));
        // A fresh machine of it starts with them, and is told nothing.
        service.set_goal(&id, Goal::Stopped).await.expect("stopped");
        service.set_goal(&id, Goal::Running).await.expect("runs");
        assert_eq!(house.engine.spec(&id).expect("started").env["A"], "b");
        assert_eq!(house.told.lock().expect("whole").len(), 1);
    });
}

#[tokio::test(start_paused = true)]
async fn whoever_hangs_up_leaves_a_sandbox_that_ends_by_itself() {
    let house = House::new(1);
    let service = house.open().await;
    filled(&service).await;
    let id = idle(&service).await.into_iter().next().expect("one waits");
    let claiming = tokio::spawn({
        let service = service.clone();
        async move { service.acquire(personal()).await }
    });
    // The member has been taken and its actor told: the caller goes away now.
    until(&service, |status| status.images[0].hits == 1).await;
    claiming.abort();
    let mut published = handle(&service, &id).expect("live").published.subscribe();
    let claimed = |published: &crate::handle::Published| published.sandbox.tenancy != Tenancy::Idle;
    published.wait_for(claimed).await.expect("published");
    gone(&service, &id).await;
    assert_eq!(
        service.get(&id).await.expect("known").ended.expect("ended").reason,
        EndReason::Expired,
        "nobody used it"
    );
    filled(&service).await;
    assert_eq!(house.engine.counts(), (1, 1));
}

/// What is compared is all of a spec but the variables: here, that a member with another policy does not fit, whoever
/// offers it.
#[tokio::test(start_paused = true)]
async fn the_actor_gives_itself_away_to_its_like_alone() {
    let house = House::new(1);
    let service = house.open().await;
    filled(&service).await;
    let id = idle(&service).await.into_iter().next().expect("one waits");
    let handle = handle(&service, &id).expect("live");
    let mut asked = Sandbox::clone(&handle.published.borrow().sandbox);
    asked.spec.network = NetworkPolicy::Bridge;
    let (reply, answer) = oneshot::channel();
    handle.tell(Message::Claim { asked: Box::new(asked), bound: Bound::default(), reply }).expect("told");
    assert_eq!(answer.await.expect("answered").expect_err("refused").kind(), Kind::Internal);
    drop(handle);
    gone(&service, &id).await;
    filled(&service).await;
}
