//! Snapshots, forks and sessions that are put aside.

use hyper::{Method, StatusCode};
use sandhaus_client::wire::{CreateSession, CreateSnapshot, ForkSession};
use sandhaus_sandbox::{
    engine::EngineError,
    testing::{Op, Reach},
};

use crate::server::Edge;

fn snapshot(session: &str, name: &str) -> CreateSnapshot {
    CreateSnapshot { session: session.to_owned(), name: name.to_owned(), ..CreateSnapshot::default() }
}

#[tokio::test]
async fn a_snapshot_is_taken_listed_used_and_removed() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let wanted = CreateSnapshot { kind: "machine".to_owned(), ..snapshot(&id, "ready.1") };
    let taken = edge.client.create_snapshot(&wanted).await.unwrap();
    assert_eq!(
        (taken.name.as_str(), taken.kind.as_str(), taken.engine.as_str()),
        ("ready.1", "machine", "fake")
    );
    assert_eq!((taken.session.as_deref(), taken.image.as_deref()), (Some(id.as_str()), Some("host")));
    assert_eq!(edge.client.snapshots().await.unwrap(), std::slice::from_ref(&taken));
    assert_eq!(edge.client.snapshot("ready.1").await.unwrap(), taken);
    let jobs = edge.client.jobs().await.unwrap();
    let job = edge.client.job(&jobs[0].id).await.unwrap();
    assert_eq!(
        (job.kind.as_str(), job.subject.as_str(), job.state.as_str()),
        ("create_snapshot", "ready.1", "succeeded")
    );
    assert_eq!(edge.client.job("0").await.unwrap_err().status(), Some(404));

    let request = CreateSession { snapshot: "ready.1".to_owned(), ..CreateSession::default() };
    let made = edge.client.create(&request).await.unwrap();
    assert_eq!((made.status.as_str(), made.snapshot.as_deref()), ("running", Some("ready.1")));
    assert_eq!(edge.client.get(&made.id).await.unwrap().snapshot.as_deref(), Some("ready.1"));

    edge.client.remove_snapshot("ready.1").await.unwrap();
    assert_eq!(edge.client.snapshots().await.unwrap(), []);
    let listed = edge.client.list(&Default::default()).await.unwrap();
    let listed = listed.into_iter().find(|session| session.id == made.id).unwrap();
    assert_eq!(listed.snapshot.as_deref(), Some(taken.id.as_str()), "what has no name is told by its id");
    let again = edge.client.remove_snapshot("ready.1").await.unwrap_err();
    assert_eq!((again.status(), again.code()), (Some(404), Some("SNAPSHOT_NOT_FOUND")));
}

#[tokio::test]
async fn a_fork_is_another_session() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let request = ForkSession {
        name: "copy".to_owned(),
        labels: [("of".to_owned(), id.clone())].into(),
        ..ForkSession::default()
    };
    let copy = edge.client.fork(&id, &request).await.unwrap();
    assert_ne!(copy.id, id);
    assert_eq!((copy.status.as_str(), copy.name.as_deref()), ("running", Some("copy")));
    assert_eq!(copy.labels["of"], id);
    assert_eq!(edge.client.get(&id).await.unwrap().status, "running");
    let taken = edge.client.fork(&id, &request).await.unwrap_err();
    assert_eq!((taken.status(), taken.code()), (Some(409), Some("ALREADY_EXISTS")));
}

#[tokio::test]
async fn a_suspended_session_is_copied_as_it_is_and_goes_on_when_it_is_started() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    assert_eq!(edge.client.suspend(&id).await.unwrap().status, "suspended");
    let copy = edge.client.fork(&id, &ForkSession::default()).await.unwrap();
    assert_eq!(copy.status, "running");
    assert_eq!(edge.client.get(&id).await.unwrap().status, "suspended");
    assert_eq!(edge.client.start(&id).await.unwrap().status, "running");
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    edge.client.create_snapshot(&snapshot(&id, "taken")).await.unwrap();
    for (body, status, code) in [
        (format!(r#"{{"session":"{id}","name":"taken"}}"#), 409, "ALREADY_EXISTS"),
        (format!(r#"{{"session":"{id}","name":"../x"}}"#), 400, "INVALID_REQUEST"),
        (format!(r#"{{"session":"{id}","name":""}}"#), 400, "INVALID_REQUEST"),
        (format!(r#"{{"session":"{id}","name":"x","kind":"tape"}}"#), 400, "INVALID_REQUEST"),
        (format!(r#"{{"session":"{id}","name":"x","kind":"machine","live":true}}"#), 400, "INVALID_REQUEST"),
        (r#"{"session":"..","name":"x"}"#.to_owned(), 400, "INVALID_REQUEST"),
        (r#"{"session":"00000000-000","name":"x"}"#.to_owned(), 404, "SESSION_NOT_FOUND"),
    ] {
        let answer = edge.call(Method::POST, "/v1/snapshots", &body).await;
        assert_eq!(answer.status.as_u16(), status, "{body}");
        assert_eq!(answer.json()["error_code"], code, "{body}");
    }
    for (path, status) in [("/v1/snapshots/missing", 404), ("/v1/snapshots/..%2Fx", 400)] {
        for method in [Method::GET, Method::DELETE] {
            assert_eq!(edge.call(method, path, "").await.status.as_u16(), status, "{path}");
        }
    }
    for body in
        [r#"{"snapshot":"missing"}"#, r#"{"snapshot":"taken","image":"host"}"#, r#"{"snapshot":"../x"}"#]
    {
        let answer = edge.call(Method::POST, "/v1/sessions", body).await;
        assert!(answer.status.is_client_error(), "{body}: {}", answer.status);
    }
    let listed = edge.client.snapshots().await.unwrap();
    assert_eq!(listed.len(), 1, "nothing was left by what was refused");
    edge.engine.fail(Op::Capture, Reach::Nothing, || EngineError::Unsupported("that".to_owned()));
    let refused = edge.client.create_snapshot(&snapshot(&id, "never")).await.unwrap_err();
    assert_eq!(refused.code(), Some("UNSUPPORTED"));
    assert_eq!(edge.client.get(&id).await.unwrap().status, "running");
}

#[tokio::test]
async fn a_snapshot_goes_to_a_store_and_comes_back() {
    let store = tempfile::tempdir().unwrap();
    let edge = Edge::start_stored(store.path()).await;
    let id = edge.session().await;
    edge.client.create_snapshot(&snapshot(&id, "kept")).await.unwrap();
    let ends = async |mut job: sandhaus_client::JobStream| {
        let mut last = None;
        while let Some(state) = job.next().await? {
            last = Some(state);
        }
        Ok::<_, sandhaus_client::Error>(last.unwrap())
    };
    let pushed = ends(edge.client.push_snapshot("kept").await.unwrap()).await.unwrap();
    assert_eq!((pushed.kind.as_str(), pushed.state.as_str()), ("push_snapshot", "succeeded"));
    let stored = edge.client.stored_snapshots().await.unwrap();
    assert_eq!((stored.len(), stored[0].name.as_str()), (1, "kept"));
    assert_eq!(edge.client.stored_snapshot("kept").await.unwrap(), stored[0]);

    edge.client.remove_snapshot("kept").await.unwrap();
    let pulled = ends(edge.client.pull_snapshot("kept").await.unwrap()).await.unwrap();
    assert_eq!((pulled.kind.as_str(), pulled.state.as_str()), ("pull_snapshot", "succeeded"));
    let back = edge.client.snapshot("kept").await.unwrap();
    assert_eq!((back.name.as_str(), back.session), ("kept", None));

    edge.client.remove_stored_snapshot("kept").await.unwrap();
    let missing = edge.client.stored_snapshot("kept").await.unwrap_err();
    assert_eq!(missing.code(), Some("SNAPSHOT_NOT_FOUND"));
    let missing = match edge.client.pull_snapshot("gone").await {
        Err(error) => error,
        Ok(job) => ends(job).await.unwrap_err(),
    };
    assert!(missing.to_string().contains("gone"), "{missing}");
}

#[tokio::test]
async fn transfers_of_what_is_not_there_are_refused_before_a_stream_begins() {
    let edge = Edge::start().await;
    for way in ["push", "pull"] {
        let answer = edge.call(Method::POST, &format!("/v1/snapshots/missing/{way}"), "").await;
        assert!(answer.status.is_client_error(), "{way}: {}", answer.status);
        let answer = edge.call(Method::POST, &format!("/v1/snapshots/..%2Fx/{way}"), "").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{way}");
    }
}
