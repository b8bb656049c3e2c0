//! Streamed commands.

use http_body_util::BodyExt;
use hyper::{Method, StatusCode, body::Incoming};
use sandhaus_client::{
    ExecEvent,
    wire::{ExecDone, ExecRequest},
};
use sandhaus_gateway::{ExecMode, V1Config};
use sandhaus_sandbox::testing::config;
use serde_json::json;

use crate::server::Edge;

fn command(cmd: &str) -> ExecRequest {
    ExecRequest { cmd: cmd.to_owned(), ..ExecRequest::default() }
}

async fn collect(stream: &mut sandhaus_client::ExecStream) -> (String, ExecDone) {
    let mut output = String::new();
    loop {
        match stream.next().await.unwrap().unwrap() {
            ExecEvent::Chunk(chunk) => output.push_str(&chunk.chunk),
            ExecEvent::Done(done) => return (output, done),
        }
    }
}

async fn body_of(edge: &Edge, id: &str, cmd: &str, headers: &[(&str, &str)]) -> Incoming {
    let path = format!("/v1/sessions/{id}/exec/stream");
    let response = edge.send(Method::POST, &path, headers, &json!({ "cmd": cmd }).to_string()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    response.into_body()
}

async fn next_piece(body: &mut Incoming) -> String {
    let frame = body.frame().await.unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn events_come_as_they_happen() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let mut stream =
        edge.client.exec_stream(&id, &command("print:first\\n park print:second exit:4")).await.unwrap();
    let mut seen = String::new();
    while !seen.ends_with('\n') {
        match stream.next().await.unwrap().unwrap() {
            ExecEvent::Chunk(chunk) => seen.push_str(&chunk.chunk),
            ExecEvent::Done(done) => panic!("{done:?} before the release"),
        }
    }
    assert_eq!(seen, "first\n");
    edge.script.release();
    let (rest, done) = collect(&mut stream).await;
    assert_eq!((rest.as_str(), done.exit_code), ("second", 4));
    assert!(stream.next().await.unwrap().is_none());
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let mut body = body_of(&edge, &id, "park print:x", &[]).await;
    // Paused time moves on its own when everybody waits.
    tokio::time::pause();
    for _ in 0..3 {
        assert_eq!(next_piece(&mut body).await, ": ping\n\n");
    }
    tokio::time::resume();
    edge.script.release();
    let mut rest = String::new();
    while let Some(frame) = body.frame().await {
        rest.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
    }
    assert!(rest.contains("event: chunk\ndata: {\"chunk\":\"x\"") && rest.contains("event: done"), "{rest}");
}

#[tokio::test]
async fn every_event_is_a_piece_of_its_own() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let mut body = body_of(&edge, &id, "print:one print:two print:\\u\\u", &[]).await;
    let mut kinds = Vec::new();
    while let Some(frame) = body.frame().await {
        let event = String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap();
        assert!(event.is_ascii() && event.ends_with("\n\n"), "{event:?}");
        assert_eq!(event.matches("event: ").count(), 1, "{event:?}");
        kinds.push(event.contains("event: done"));
    }
    assert_eq!(kinds.iter().filter(|done| **done).count(), 1);
    assert!(kinds.len() > 3 && *kinds.last().unwrap());
}

#[tokio::test]
async fn a_stream_resumes_after_any_event() {
    resumes_after_any_event(&Edge::start().await).await;
    let stateless = V1Config { exec_mode: ExecMode::Stateless, ..V1Config::default() };
    resumes_after_any_event(&Edge::start_with(config(), stateless).await).await;
}

async fn resumes_after_any_event(edge: &Edge) {
    let id = edge.session().await;
    let cmd = "print:a\\u\\e[1mb print:\\u\\uc\\e]0;t";
    let mut whole = Vec::new();
    let mut body = body_of(edge, &id, cmd, &[]).await;
    while let Some(frame) = body.frame().await {
        whole.push(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap());
    }
    let text = |events: &[String]| -> String {
        events
            .iter()
            .filter(|event| event.contains("event: chunk"))
            .map(|event| {
                let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
                serde_json::from_str::<serde_json::Value>(data).unwrap()["chunk"].as_str().unwrap().to_owned()
            })
            .collect()
    };
    assert_eq!(text(&whole), "a€b€€c");
    for seen in 1..whole.len() {
        let last = whole[seen - 1].lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
        let mut body = body_of(edge, &id, "print:not-run", &[("last-event-id", &last)]).await;
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            rest.push(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap());
        }
        assert_eq!(text(&whole[..seen]) + &text(&rest), "a€b€€c", "after event {seen}");
        assert!(rest.last().unwrap().contains("event: done"));
    }
    assert_eq!(edge.script.commands(), 1);
}

#[tokio::test]
async fn a_break_between_server_and_agent_does_not_show() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let mut stream = edge.client.exec_stream(&id, &command("print:one\\u break print:two")).await.unwrap();
    assert_eq!(collect(&mut stream).await.0, "one€two");
}

#[tokio::test]
async fn lost_output_is_told_at_the_end() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let mut stream = edge.client.exec_stream(&id, &command("print:one lose:5000 print:two")).await.unwrap();
    let (output, done) = collect(&mut stream).await;
    assert_eq!((output.as_str(), done.truncated), ("onetwo", true));
}

#[tokio::test]
async fn what_fails_is_an_event() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let mut body = body_of(&edge, "00000000-000", "print:x", &[]).await;
    assert_eq!(
        next_piece(&mut body).await,
        "event: error\ndata: {\"error\":\"session not found: 00000000-000\",\"error_code\":\"SESSION_NOT_FOUND\"}\n\n"
    );
    let mut stream = edge.client.exec_stream(&id, &command("print:x timeout")).await.unwrap();
    let error = loop {
        match stream.next().await {
            Ok(Some(ExecEvent::Chunk(_))) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.to_string(), "command timeout: timeout: command exceeded 2m0s");
}

#[tokio::test]
async fn the_servers_end_is_told() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let mut body = body_of(&edge, &id, "print:x park", &[]).await;
    let mut seen = next_piece(&mut body).await;
    edge.ending.cancel();
    while let Some(frame) = body.frame().await {
        seen.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
    }
    assert!(
        seen.contains("event: error\ndata: {\"error\":\"the server is ending; the command goes on\""),
        "{seen}"
    );
    drop(edge.client);
    edge.served.await.unwrap().unwrap();
}
