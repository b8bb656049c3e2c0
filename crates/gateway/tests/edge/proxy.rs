//! The way to the agent.

use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::Edge;

#[tokio::test]
async fn requests_pass_as_they_are_but_for_what_is_private() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let path = format!("/v1/sessions/{id}/toolbox/process/a%2Fb//c?x=%20&y=1+2");
    let headers = [
        ("cookie", "secret=1"),
        ("connection", "x-private"),
        ("x-private", "1"),
        ("te", "trailers"),
        ("x-daytona-source", "sdk"),
    ];
    let response = edge.send(Method::PATCH, &path, &headers, "the body").await;
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(response.headers()["x-inside"], "kept");
    assert!(!response.headers().contains_key("x-hop"));
    assert!(response.headers().contains_key("x-request-id"));
    let echo = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        std::str::from_utf8(&echo).unwrap(),
        "PATCH /process/a%2Fb//c?x=%20&y=1+2\ncontent-length: 8\nhost: sandbox\nx-daytona-source: sdk\n\nthe body"
    );
    for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::HEAD] {
        let answer = edge.call(method.clone(), &path, "").await;
        assert_eq!(answer.status, StatusCode::IM_A_TEAPOT, "{method}");
    }
}

#[tokio::test]
async fn upgrades_pass() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let path = format!("/v1/sessions/{id}/toolbox/upgrade");
    let headers = [("connection", "Upgrade"), ("upgrade", "reverse")];
    let mut response = edge.send(Method::GET, &path, &headers, "").await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "reverse");
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    stream.write_all(b"abcde").await.unwrap();
    let mut word = String::new();
    stream.read_to_string(&mut word).await.unwrap();
    assert_eq!(word, "edcba");
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_the_request_inside() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let mut dropped = edge.script.dropped.subscribe();
    let mut response = edge.send(Method::GET, &format!("/v1/sessions/{id}/toolbox/endless"), &[], "").await;
    assert_eq!(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    assert_eq!(*dropped.borrow(), 0);
    drop(response);
    dropped.wait_for(|count| *count == 1).await.unwrap();
}

#[tokio::test]
async fn nothing_passes_without_a_running_session() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    edge.client.delete(&id).await.unwrap();
    for (id, status) in [(id.as_str(), 409), ("00000000-000", 404), ("..", 400)] {
        let answer = edge.call(Method::GET, &format!("/v1/sessions/{id}/toolbox/version"), "").await;
        assert_eq!(answer.status.as_u16(), status, "{id}");
    }
}

#[tokio::test]
async fn where_compatible_clients_look_for_it_it_is_the_same_in_their_words() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let inner = "process/a%2Fb//c?x=%20&y=1+2";
    let response = edge.send(Method::PATCH, &format!("/toolbox/{id}/{inner}"), &[], "the body").await;
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    let echo = response.into_body().collect().await.unwrap().to_bytes();
    let head = format!("PATCH /{inner}\n");
    assert!(echo.starts_with(head.as_bytes()), "{echo:?}");

    for (path, status, code) in [
        ("/toolbox/00000000-000/version".to_owned(), 404, "NOT_FOUND"),
        ("/toolbox/../version".to_owned(), 400, "BAD_REQUEST"),
        (format!("/toolbox/{id}/proxy/0/"), 400, "BAD_REQUEST"),
        (format!("/toolbox/{id}/sandhaus/hello"), 403, "FORBIDDEN"),
    ] {
        let answer = edge.call(Method::GET, &path, "").await;
        let body = answer.json();
        assert_eq!((answer.status.as_u16(), body["code"].as_str()), (status, Some(code)), "{path}");
        assert_eq!(
            (body["statusCode"].as_u64(), body["method"].as_str()),
            (Some(status.into()), Some("GET"))
        );
        assert_eq!(body["path"], path.as_str());
    }
}

#[tokio::test]
async fn a_suspended_session_wakes_up_for_its_toolbox() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    edge.client.suspend(&id).await.unwrap();
    let native = edge.call(Method::GET, &format!("/v1/sessions/{id}/toolbox/version"), "").await;
    assert_eq!(native.status, StatusCode::CONFLICT);
    let answer = edge.call(Method::GET, &format!("/toolbox/{id}/version"), "").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(edge.client.get(&id).await.unwrap().status, "running");
    // What was stopped on purpose stays so.
    edge.client.stop(&id).await.unwrap();
    let answer = edge.call(Method::GET, &format!("/toolbox/{id}/version"), "").await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
}
