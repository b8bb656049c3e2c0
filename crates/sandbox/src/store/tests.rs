//! The store on a real database.

use super::*;

/// Keeps paused time from jumping ahead while the writer thread, of which the runtime knows nothing, is at work.
pub(super) struct Still {
    /// The clock stands until this is dropped.
    _over: Sender<()>,
}

pub(super) fn hold_paused_time() -> Still {
    let (still, over) = channel();
    // Paused time stands while a blocking task runs: this one ends with an error when the sender is dropped.
    tokio::task::spawn_blocking(move || over.recv().is_err());
    Still { _over: still }
}

fn sandbox(number: u32) -> Sandbox {
    Sandbox {
        id: SandboxId::parse(&format!("{number:08x}-abc")).expect("valid"),
        name: Some(format!("name-{number}")),
        owner: OwnerId("owner".to_owned()),
        spec: SandboxSpec {
            source: Source::Image {
                name: ImageName::parse("host").expect("valid"),
                digest: "sha256:00".to_owned(),
            },
            engine: EngineName("fake".to_owned()),
            os: GuestOs::Linux,
            resources: Resources { cpu_millis: 1, memory_bytes: u64::MAX / 2, pids: 3, disk_bytes: 4 },
            network: NetworkPolicy::None,
            security: SecurityProfile::Container,
            readonly_root: true,
            env: Env::from([("A".to_owned(), "ü\n".to_owned())]),
            workdir: Some("/w".to_owned()),
            mounts: vec![Mount { source: "/a".into(), target: "/b".to_owned(), access: Access::ReadWrite }],
            entrypoint: vec!["sh".to_owned()],
            shell: sandhaus_protocol::boot::ShellPreference::Sh,
            warm_shell: true,
            seccomp: Seccomp::Mvp,
            workspace: Some(WorkspaceId::parse("shared").expect("valid")),
            publish: vec![PublishedPort { port: 80, host_port: 8080 }],
        },
        goal: Goal::Running,
        generation: Generation(7),
        holdings: Holdings {
            disk: Some(Generation(7)),
            memory: Some(Generation(6)),
            archive: Some(Generation(5)),
        },
        life: Life::Up(Generation(7)),
        deadlines: Deadlines { ttl_ms: 1000, expires_at_ms: Some(12) },
        labels: Labels::from([("k".to_owned(), "v".to_owned())]),
        failure: None,
        created_at_ms: i64::from(number),
        tenancy: Tenancy::Claimed(Generation(7)),
    }
}

fn ended(at_ms: i64) -> Ended {
    Ended { reason: EndReason::Expired, at_ms }
}

fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(&dir.path().join("db")).expect("opens")
}

#[tokio::test]
async fn rows_come_back_as_they_were() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(&dir);
    let mut first = sandbox(1);
    let second = Sandbox {
        name: None,
        life: Life::New,
        holdings: Holdings::default(),
        deadlines: Deadlines::default(),
        ..sandbox(2)
    };
    store.insert(&first).await.expect("inserted");
    store.insert(&second).await.expect("inserted");
    first.goal = Goal::Suspended;
    first.generation = Generation(8);
    first.life = Life::Down;
    first.holdings.archive = None;
    first.deadlines.expires_at_ms = Some(99);
    first.failure = Some(Failure { kind: FailureKind::Crashed, message: "why".to_owned(), at_ms: 3 });
    store.save(&first, Durability::Power).await.expect("saved");
    store.close().await;
    assert_eq!(store.save(&first, Durability::Process).await.expect_err("closed").kind(), Kind::Unavailable);

    let store = open(&dir);
    assert_eq!(store.load().expect("read"), [first, second]);
}

#[tokio::test]
async fn a_store_in_memory_is_one_for_writer_and_readers_and_ends_with_itself() {
    let store = Store::open_in_memory("test").expect("opens");
    let mut row = sandbox(1);
    store.insert(&row).await.expect("inserted");
    row.goal = Goal::Absent;
    store.save(&row, Durability::Power).await.expect("saved");
    assert_eq!(store.load().expect("read"), [row.clone()]);
    let other = Store::open_in_memory("other").expect("opens");
    assert!(other.load().expect("read").is_empty());
    store.end(&row, ended(5)).await.expect("ended");
    assert!(store.load().expect("read").is_empty());
    assert!(store.ended(&row.id).await.expect("read").is_some());
    store.close().await;
    drop(store);
    let again = Store::open_in_memory("test").expect("opens");
    assert!(again.ended(&row.id).await.expect("read").is_none());
}

#[tokio::test]
async fn every_goal_and_life_has_a_word() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(&dir);
    let mut row = sandbox(1);
    store.insert(&row).await.expect("inserted");
    for goal in [Goal::Running, Goal::Paused, Goal::Suspended, Goal::Stopped, Goal::Archived, Goal::Absent] {
        for life in [Life::New, Life::Down, Life::Up(Generation(3))] {
            (row.goal, row.life) = (goal, life);
            store.save(&row, Durability::Process).await.expect("saved");
            assert_eq!(store.load().expect("read"), [row.clone()]);
        }
    }
}

#[tokio::test]
async fn an_id_is_used_once_and_a_name_by_one_at_a_time() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(&dir);
    let first = sandbox(1);
    store.insert(&first).await.expect("inserted");
    let same_id = Sandbox { name: None, ..first.clone() };
    assert_eq!(store.insert(&same_id).await.expect_err("refused").kind(), Kind::Exists);
    let same_name = Sandbox { id: sandbox(2).id, ..first.clone() };
    assert_eq!(store.insert(&same_name).await.expect_err("refused").kind(), Kind::Exists);

    store.end(&first, ended(5)).await.expect("ended");
    assert_eq!(store.insert(&first).await.expect_err("its id is in the history").kind(), Kind::Exists);
    store.insert(&same_name).await.expect("the name is free again");
    assert_eq!(store.ended(&first.id).await.expect("read"), Some((first, ended(5))));
    assert_eq!(store.ended(&sandbox(9).id).await.expect("read"), None);
    store.forget(&same_name.id).await.expect("forgotten");
    store.insert(&same_name).await.expect("one that never came to be leaves no trace");
}

#[tokio::test]
async fn a_failing_command_does_not_take_its_batch_with_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(&dir);
    let taken = sandbox(0);
    store.insert(&taken).await.expect("inserted");
    let rows: Vec<Sandbox> = (1..=100).map(sandbox).collect();
    let writes = rows.iter().enumerate().map(async |(index, row)| {
        // Every tenth collides.
        if index % 10 == 0 { store.insert(&taken).await } else { store.insert(row).await }
    });
    let outcomes = futures::future::join_all(writes).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), 10);
    assert_eq!(store.load().expect("read").len(), 91);
    let unknown = sandbox(1000);
    assert!(store.save(&unknown, Durability::Process).await.is_err(), "a row that is not there is not saved");
}

#[tokio::test]
async fn the_history_is_bounded_by_time_and_count() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(&dir);
    for number in 1..=6 {
        let row = Sandbox { name: None, ..sandbox(number) };
        store.insert(&row).await.expect("inserted");
        store.end(&row, ended(i64::from(number))).await.expect("ended");
    }
    store.prune(3).await.expect("pruned");
    let left = store.history().await.expect("read");
    assert_eq!(left.iter().map(|(_, ended)| ended.at_ms).collect::<Vec<_>>(), [6, 5, 4, 3]);

    // As if there were as many as may stay, with numbers that go on.
    let connection = Connection::open(dir.path().join("db")).expect("opens");
    connection
        .execute("UPDATE ended SET number = number + ?1 WHERE at_ms = 6", [HISTORY_ROWS_MAX - 1])
        .expect("moved");
    store.prune(0).await.expect("pruned");
    let left = store.history().await.expect("read");
    assert_eq!(left.iter().map(|(_, ended)| ended.at_ms).collect::<Vec<_>>(), [6]);
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    open(&dir).close().await;
    let newer = MIGRATIONS.len() + 1;
    let connection = Connection::open(dir.path().join("db")).expect("opens");
    connection.execute_batch(&format!("PRAGMA user_version = {newer}")).expect("set");
    let error = Store::open(&dir.path().join("db")).expect_err("refused");
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.message().contains(&format!("schema {newer}")), "{error}");
    let version: usize = connection
        .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
        .expect("read")
        .try_into()
        .expect("small");
    assert_eq!(version, newer);
}

#[tokio::test]
async fn a_job_of_the_last_run_has_failed() {
    use crate::job::{Job, JobHandle, JobKind, JobState};
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(&dir);
    let left = JobHandle::begin(&store, JobKind::ImportImage, "a".to_owned(), 1).await.expect("begun");
    let done = JobHandle::begin(&store, JobKind::ImportImage, "b".to_owned(), 2).await.expect("begun");
    let watch = done.watch();
    done.progress("import", 3, Some(4));
    assert_eq!((watch.borrow().progress.done, watch.borrow().progress.total), (3, Some(4)));
    done.end(&store, &Ok(())).await.expect("ended");
    let of = |job: &JobHandle| job.watch().borrow().id.clone();
    store.close().await;

    let store = open(&dir);
    let job = store.job(&of(&left)).await.expect("read").expect("there");
    assert_eq!((job.state, job.error.as_deref()), (JobState::Failed, Some("the server ended")));
    let job: Job = store.job(&of(&done)).await.expect("read").expect("there");
    assert_eq!((job.state, job.error), (JobState::Succeeded, None));
}

/// A process that is killed in the middle of writing loses nothing that was acknowledged, and the store opens again.
#[test]
fn a_kill_loses_nothing_that_was_acknowledged() {
    use std::io::{BufRead, BufReader};
    const CHILD: &str = "SANDHAUS_TEST_STORE";
    if let Ok(path) = std::env::var(CHILD) {
        write_until_killed(Path::new(&path));
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("db");
    for round in 0..5 {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "store::tests::a_kill_loses_nothing_that_was_acknowledged", "--nocapture"])
            .env(CHILD, &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("started");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut acknowledged = Vec::new();
        for line in lines {
            let line = line.expect("text");
            if let Some(id) = line.strip_prefix("row ") {
                acknowledged.push(id.to_owned());
            }
            if acknowledged.len() == 20 + round * 7 {
                child.kill().expect("killed");
            }
        }
        child.wait().expect("reaped");
        let store = Store::open(&path).expect("opens after a kill");
        let rows = store.load().expect("read");
        for id in &acknowledged {
            assert!(rows.iter().any(|row| row.id.as_str() == id), "{id} was acknowledged and is gone");
        }
        let check: String =
            lock(&store.reader).query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checked");
        assert_eq!(check, "ok");
    }
}

fn write_until_killed(path: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(async {
        let store = Store::open(path).expect("opens");
        loop {
            let row = Sandbox { id: SandboxId::random(), name: None, ..sandbox(1) };
            store.insert(&row).await.expect("inserted");
            println!("row {}", row.id);
        }
    });
}
