//! Blocking commands.

use std::time::Duration;

use hyper::{Method, StatusCode};
use sandhaus_client::wire::{CreateSession, ExecRequest};
use sandhaus_gateway::{ExecMode, V1Config};
use sandhaus_sandbox::{Stats, testing::config};
use serde_json::json;

use crate::server::{Answer, Edge};

fn command(cmd: &str) -> ExecRequest {
    ExecRequest { cmd: cmd.to_owned(), ..ExecRequest::default() }
}

async fn refused(edge: &Edge, id: &str, cmd: &str) -> Answer {
    edge.call(Method::POST, &format!("/v1/sessions/{id}/exec"), &json!({ "cmd": cmd }).to_string()).await
}

#[tokio::test]
async fn output_and_exit_status() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let result = edge.client.exec(&id, &command("print:\\e[1ma\\u\\r\\n print:b exit:7")).await.unwrap();
    assert_eq!((result.output.as_str(), result.exit_code, result.truncated), ("a€\nb", 7, false));
    let raw = ExecRequest { raw_output: true, ..command("print:\\e[1ma\\u\\r\\n") };
    assert_eq!(edge.client.exec(&id, &raw).await.unwrap().output, "\x1b[1ma€\r\n");
}

#[tokio::test]
async fn a_broken_stream_is_taken_up_where_it_broke() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let result = edge.client.exec(&id, &command("print:one\\u break print:two\\u exit:3")).await.unwrap();
    assert_eq!((result.output.as_str(), result.exit_code, result.truncated), ("one€two€", 3, false));
    assert_eq!(edge.script.commands(), 1, "the command ran once");
}

#[tokio::test]
async fn connections_to_the_agent_are_used_again() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    edge.client.exec(&id, &command("print:x")).await.unwrap();
    let before = edge.script.connections();
    for _ in 0..20 {
        edge.client.exec(&id, &command("print:x")).await.unwrap();
    }
    assert_eq!(edge.script.connections(), before);
}

#[tokio::test]
async fn lost_output_is_told() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let result = edge.client.exec(&id, &command("print:kept lose:1000 print:rest")).await.unwrap();
    assert_eq!((result.output.as_str(), result.truncated), ("kept", true));
}

#[tokio::test]
async fn output_is_bounded() {
    let v1 = V1Config { output_bytes_max: 5, ..V1Config::default() };
    let edge = Edge::start_with(config(), v1).await;
    let id = edge.session().await;
    let result = edge.client.exec(&id, &command("print:123\\u print:more exit:1")).await.unwrap();
    assert_eq!((result.output.as_str(), result.truncated, result.exit_code), ("123", true, 1));
}

#[tokio::test]
async fn a_timeout_has_the_output_so_far() {
    let v1 = V1Config { exec_timeout_max_ms: 90_000, ..V1Config::default() };
    let edge = Edge::start_with(config(), v1).await;
    let id = edge.session().await;
    let answer = refused(&edge, &id, "print:partial timeout").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    insta::assert_json_snapshot!("timeout", answer.json());
}

#[tokio::test]
async fn refusals_of_the_agent_keep_their_kind() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let answer = refused(&edge, &id, "refuse:429").await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["error_code"].as_str()),
        (429, Some("RESOURCE_EXHAUSTED"))
    );
    assert_eq!(answer.headers["retry-after"], "1");
    let answer = refused(&edge, &id, "refuse:503").await;
    assert_eq!((answer.status.as_u16(), answer.json()["error_code"].as_str()), (503, Some("UNAVAILABLE")));
    let answer = refused(&edge, &id, "refuse:500").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    insta::assert_json_snapshot!("internal", answer.json());
}

#[tokio::test]
async fn the_memory_limit_is_told() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    edge.engine.set_stats(Stats { oom_kills: 3, ..Stats::default() });
    let waiting = tokio::spawn({
        let (client, id) = (edge.client.clone(), id.clone());
        async move { client.exec(&id, &command("park exit:137")).await }
    });
    // The count before is read while the command is parked.
    while !edge.engine.calls().contains(&sandhaus_sandbox::testing::Op::Stats) {
        tokio::task::yield_now().await;
    }
    edge.engine.set_stats(Stats { oom_kills: 4, ..Stats::default() });
    edge.script.release();
    let result = waiting.await.unwrap().unwrap();
    assert_eq!((result.exit_code, result.oom), (137, true));
    assert!(!edge.client.exec(&id, &command("exit:137")).await.unwrap().oom);
}

#[tokio::test]
async fn a_kill_before_the_first_look_is_told_too() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    let kills = |oom_kills| Stats { oom_kills, memory_limit_bytes: Some(64 << 20), ..Stats::default() };
    // Both have ended before anybody looks at the count.
    edge.engine.set_stats(kills(1));
    let killed = edge.client.exec(&id, &command("exit:137")).await.unwrap();
    let reason = "the memory limit of 64 MiB ended a process of the session";
    assert_eq!((killed.oom, killed.reason.as_deref()), (true, Some(reason)));
    // Killed by something else.
    let killed = edge.client.exec(&id, &command("exit:137")).await.unwrap();
    assert_eq!((killed.oom, killed.reason), (false, None));
}

#[tokio::test]
async fn commands_without_state_have_a_shell_of_their_own() {
    let v1 = V1Config { exec_mode: ExecMode::Stateless, ..V1Config::default() };
    let edge = Edge::start_with(config(), v1).await;
    let id = edge.session().await;
    let result = edge.client.exec(&id, &command("print:one\\u break print:two exit:3")).await.unwrap();
    assert_eq!((result.output.as_str(), result.exit_code), ("one€two", 3), "taken up where it broke");
    assert_eq!(edge.script.alone(), [1]);
    let stateful = ExecRequest { mode: "stateful".into(), ..command("print:x") };
    edge.client.exec(&id, &stateful).await.unwrap();
    assert_eq!(edge.script.alone(), [1]);
    // No shell is asked where it stands: that would start one.
    assert_eq!(edge.client.get(&id).await.unwrap().cwd, "/workspace");

    let edge = Edge::start().await;
    let id = edge.session().await;
    let stateless = ExecRequest { mode: "stateless".into(), ..command("print:x") };
    edge.client.exec(&id, &stateless).await.unwrap();
    edge.client.exec(&id, &command("print:x")).await.unwrap();
    assert_eq!(edge.script.alone(), [1]);
    assert_eq!(edge.client.get(&id).await.unwrap().cwd, "/where");
    let path = format!("/v1/sessions/{id}/exec");
    let answer = edge.call(Method::POST, &path, &json!({ "cmd": "true", "mode": "x" }).to_string()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.json()["message"], "mode must be \"stateful\" or \"stateless\"");
}

#[tokio::test]
async fn a_session_is_extended_and_never_cut_short() {
    let edge = Edge::start().await;
    let request = CreateSession { ttl_seconds: 60, ..CreateSession::default() };
    let id = edge.client.create(&request).await.unwrap().id;
    let before = edge.client.get(&id).await.unwrap().expires_at;
    let extend = async |body: &str| edge.call(Method::POST, &format!("/v1/sessions/{id}/extend"), body).await;
    let far = extend("{\"ttl_seconds\": 86400}").await;
    assert_eq!(far.status, StatusCode::OK);
    let far = far.json()["expires_at"].as_str().unwrap().to_owned();
    assert!(far > before, "{far} {before}");
    for shorter in ["{\"ttl_seconds\": 1}", "{}"] {
        assert_eq!(extend(shorter).await.json()["expires_at"], far);
    }
    for wrong in ["{\"ttl_seconds\": -1}", "{\"ttl_seconds\": 86401}", "{\"ttl_seconds\": \"x\"}"] {
        assert_eq!(extend(wrong).await.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
    edge.client.delete(&id).await.unwrap();
    assert!(extend("{}").await.status.is_client_error());
}

#[tokio::test]
async fn w28_an_answer_may_take_as_long_as_a_command() {
    let v1 = V1Config { exec_timeout_max_ms: 600_000, ..V1Config::default() };
    let edge = Edge::start_with(config(), v1).await;
    let id = edge.session().await;
    let (path, stream) = (format!("/v1/sessions/{id}/exec"), format!("/v1/sessions/{id}/exec/stream"));
    let body = json!({ "cmd": "print:begun park print:done", "timeout_ms": 600_000 }).to_string();
    let answers = async {
        tokio::join!(edge.call(Method::POST, &path, &body), edge.call(Method::POST, &stream, &body))
    };
    let clock = async {
        while edge.script.commands() < 2 {
            tokio::task::yield_now().await;
        }
        // No limit of the connection may be shorter than the command's own.
        tokio::time::pause();
        for _ in 0..599 {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        tokio::time::resume();
        edge.script.release();
    };
    let ((whole, followed), ()) = tokio::join!(answers, clock);
    assert_eq!((whole.status, whole.json()["output"].as_str()), (StatusCode::OK, Some("begundone")));
    let events = String::from_utf8(followed.body.to_vec()).unwrap();
    assert!(events.contains("event: done") && events.matches(": ping").count() > 5, "{events}");
}

#[tokio::test]
async fn files_stream_through() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    for size in [0, 1, 2, 3, 4, 999, 1000, 1001, 100_000] {
        let answer = edge.call(Method::GET, &format!("/v1/sessions/{id}/fs/read?path=size-{size}"), "").await;
        assert_eq!(answer.headers["content-length"], answer.body.len().to_string());
        let body = answer.json();
        let content: Vec<u8> = (0..size).map(|index| u8::try_from(index % 251).unwrap()).collect();
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::STANDARD.encode(content);
        assert_eq!(
            body,
            json!({ "path": format!("size-{size}"), "content_base64": encoded, "truncated": false })
        );
    }
    let cut = edge
        .call(Method::GET, &format!("/v1/sessions/{id}/fs/read?path=size-5000&max_bytes=10"), "")
        .await
        .json();
    assert_eq!((cut["truncated"].as_bool(), cut["content_base64"].as_str().unwrap().len()), (Some(true), 16));
}

#[tokio::test]
async fn a_file_that_breaks_off_is_no_whole_answer() {
    use http_body_util::BodyExt;
    let edge = Edge::start().await;
    let id = edge.session().await;
    let response =
        edge.send(Method::GET, &format!("/v1/sessions/{id}/fs/read?path=short-9000"), &[], "").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.into_body().collect().await.is_err());
}
