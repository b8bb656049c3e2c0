//! Error bodies, all in one table, and what never shows in them.

use hyper::{Method, StatusCode};
use sandhaus_client::wire::CreateSession;
use sandhaus_gateway::V1Config;
use sandhaus_sandbox::{
    engine::EngineError,
    testing::{Op, Reach, config},
};

use crate::server::Edge;

#[tokio::test]
async fn the_table_of_refusals() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let gone = edge.session().await;
    edge.client.delete(&gone).await.unwrap();
    let paused = edge.session().await;
    edge.client.pause(&paused).await.unwrap();
    let requests = [
        (Method::POST, "/v1/sessions".to_owned(), ""),
        (Method::POST, "/v1/sessions".to_owned(), "[]"),
        (Method::POST, "/v1/sessions".to_owned(), r#"{"image":"../x"}"#),
        (Method::POST, "/v1/sessions".to_owned(), r#"{"image":"missing"}"#),
        (Method::POST, "/v1/sessions".to_owned(), r#"{"engine":"none"}"#),
        (Method::POST, "/v1/sessions".to_owned(), r#"{"workspace_id":"ab"}"#),
        (Method::GET, "/v1/sessions/x".to_owned(), ""),
        (Method::GET, "/v1/sessions/00000000-000".to_owned(), ""),
        (Method::GET, format!("/v1/sessions/{gone}/stats"), ""),
        (Method::POST, format!("/v1/sessions/{gone}/exec"), r#"{"cmd":"x"}"#),
        (Method::POST, format!("/v1/sessions/{paused}/exec"), r#"{"cmd":"x"}"#),
        (Method::POST, format!("/v1/sessions/{gone}/pause"), ""),
        (Method::POST, format!("/v1/sessions/{id}/exec"), "{}"),
        (Method::GET, format!("/v1/sessions/{id}/fs/read"), ""),
        (Method::GET, format!("/v1/sessions/{id}/fs/read?path=/etc/x"), ""),
        (Method::GET, format!("/v1/sessions/{id}/fs/read?path=status-404"), ""),
        (Method::GET, format!("/v1/sessions/{id}/fs/read?path=status-403"), ""),
        (Method::GET, format!("/v1/sessions/{id}/fs/read?path=status-413"), ""),
        (Method::GET, format!("/v1/sessions/{id}/fs/read?path=status-507"), ""),
        (Method::GET, format!("/v1/sessions/{id}/fs/read?path=status-500"), ""),
        (Method::POST, format!("/v1/sessions/{id}/fs/upload"), ""),
        (Method::DELETE, "/v1/images/missing".to_owned(), ""),
        (Method::POST, "/v1/images/host/tag".to_owned(), r#"{"tag":"a/../b"}"#),
    ];
    let mut table = String::new();
    for (method, path, body) in requests {
        let answer = edge.call(method.clone(), &path, body).await;
        assert_eq!(answer.headers["content-type"], "application/json");
        let line = format!(
            "{}\n  {} {}\n",
            format!("{method} {path} {body}").trim_end(),
            answer.status,
            String::from_utf8_lossy(&answer.body).trim()
        );
        table.push_str(&line.replace(&id, "LIVE").replace(&gone, "GONE").replace(&paused, "PAUSED"));
    }
    insta::assert_snapshot!("refusals", table);
}

#[tokio::test]
async fn what_failed_on_the_host_stays_in_the_log() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let failure = || EngineError::host("read counters", std::io::Error::other("EIO at /var/lib/sandhaus/x"));
    edge.engine.fail(Op::Stats, Reach::Nothing, failure);
    let answer = edge.call(Method::GET, &format!("/v1/sessions/{id}/stats"), "").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.json()["message"], "internal error (request test)");
    assert!(!String::from_utf8_lossy(&answer.body).contains("/var/lib"));

    // Again and again: a start that fails once is tried again.
    for _ in 0..100 {
        edge.engine.fail(Op::Start, Reach::Nothing, failure);
    }
    let answer = edge.call(Method::POST, "/v1/sessions", "{}").await;
    assert!(answer.status.is_server_error(), "{}", answer.status);
    assert!(!String::from_utf8_lossy(&answer.body).contains("/var/lib"));
    assert_eq!(edge.engine.counts(), (1, 1), "only the first session is there");
}

#[tokio::test]
async fn a_full_house_says_when_to_come_back() {
    let mut small = config();
    small.sandboxes_max = 1;
    let edge = Edge::start_with(small, V1Config::default()).await;
    let id = edge.session().await;
    let answer = edge.call(Method::POST, "/v1/sessions", "{}").await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["error_code"].as_str()),
        (429, Some("RESOURCE_EXHAUSTED"))
    );
    assert_eq!(answer.headers["retry-after"], "1");
    edge.client.delete(&id).await.unwrap();
    edge.session().await;
}

#[tokio::test]
async fn a_session_past_its_time_is_410() {
    let edge = Edge::start().await;
    let request = CreateSession { ttl_seconds: 3600, ..CreateSession::default() };
    let id = edge.client.create(&request).await.unwrap().id;
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(3601)).await;
    tokio::time::resume();
    while edge.client.get(&id).await.unwrap().status != "expired" {
        tokio::task::yield_now().await;
    }
    let answer = edge.call(Method::POST, &format!("/v1/sessions/{id}/exec"), r#"{"cmd":"x"}"#).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["error_code"].as_str()),
        (410, Some("SESSION_EXPIRED"))
    );
    assert_eq!(answer.json()["message"], format!("session expired: {id}"));
}
