//! Consoles, displays and ports.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use sandhaus_client::wire::Doors;
use sandhaus_gateway::{GatewayConfig, V1Config};
use sandhaus_sandbox::{
    NetworkPolicy,
    doors::RescueDoor,
    engine::GuestPort,
    service::ServiceConfig,
    testing::{FakeEngine, Ports, config, read_request, write_response},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::{
    agent::Script,
    server::{Edge, KEY},
};

/// A console that says hello and then what it is told, in capitals; a display of one pixel; a web server.
fn ports() -> Ports {
    Arc::new(|stream, port| match port {
        GuestPort::Console => console(stream).map(drop).boxed(),
        GuestPort::Display => display(stream).map(drop).boxed(),
        GuestPort::Tcp(80) => async move {
            // Hangs up without a word.
            drop(stream);
        }
        .boxed(),
        _ => web(stream).boxed(),
    })
}

async fn console(mut stream: DuplexStream) -> std::io::Result<()> {
    stream.write_all(b"login: ").await?;
    let mut typed = [0; 64];
    loop {
        let count = stream.read(&mut typed).await?;
        if count == 0 || typed[..count].contains(&4) {
            return Ok(());
        }
        stream.write_all(&typed[..count].to_ascii_uppercase()).await?;
    }
}

async fn display(mut stream: DuplexStream) -> std::io::Result<()> {
    stream.write_all(b"RFB 003.008\n\x01\x01").await?;
    let mut said = [0; 12 + 1];
    stream.read_exact(&mut said).await?;
    stream.write_all(&[0; 4]).await?;
    stream.read_u8().await?;
    stream.write_all(&[0, 1, 0, 1]).await?;
    stream.write_all(&[0; 16 + 4]).await?;
    let mut asked = [0; 20 + 8 + 10];
    stream.read_exact(&mut asked).await?;
    stream.write_all(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 2, 3, 0]).await?;
    stream.read_u8().await.map(drop)
}

async fn web(mut stream: DuplexStream) {
    while let Some((head, body)) = read_request(&mut stream).await {
        let mut lines: Vec<&str> = head.lines().filter(|line| !line.is_empty()).collect();
        lines[1..].sort_unstable();
        let echo = format!("{}\n\n{}", lines.join("\n"), String::from_utf8_lossy(&body));
        if write_response(&mut stream, "201 Created", echo.as_bytes()).await.is_none() {
            return;
        }
    }
}

async fn start() -> Edge {
    let script = Script::new();
    let engine = FakeEngine::default().with_agent(script.agent()).with_ports(ports());
    let gateway = GatewayConfig { api_key: Some(KEY.to_owned()), dashboard: None, v1: V1Config::default() };
    Edge::start_engine(engine, script, config(), gateway).await
}

#[tokio::test]
async fn a_console_is_typed_into_and_ends_with_itself() {
    let edge = start().await;
    let id = edge.session().await;
    let mut console = edge.client.console(&id).await.unwrap();
    assert_eq!(console.next().await.unwrap().unwrap(), "login: ");
    console.send(Bytes::from_static(b"root")).await.unwrap();
    assert_eq!(console.next().await.unwrap().unwrap(), "ROOT");
    console.send(Bytes::from_static(b"\x04")).await.unwrap();
    assert_eq!(console.next().await.unwrap(), None);

    let mut console = edge.client.console(&id).await.unwrap();
    assert_eq!(console.next().await.unwrap().unwrap(), "login: ");
    edge.client.stop(&id).await.unwrap();
    assert_eq!(console.next().await.unwrap(), None, "the machine took it along");
    let refused = edge.client.console(&id).await.unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(409), Some("SESSION_NOT_RUNNING")));
}

#[tokio::test]
async fn a_server_that_ends_says_goodbye_to_consoles() {
    let edge = start().await;
    let id = edge.session().await;
    let mut console = edge.client.console(&id).await.unwrap();
    assert_eq!(console.next().await.unwrap().unwrap(), "login: ");
    edge.ending.cancel();
    assert_eq!(console.next().await.unwrap(), None);
    edge.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_screenshot_is_a_png() {
    let edge = start().await;
    let id = edge.session().await;
    let answer = edge.call(Method::GET, &format!("/v1/sessions/{id}/screenshot"), "").await;
    assert_eq!(
        (answer.status, &answer.headers["content-type"]),
        (StatusCode::OK, &"image/png".parse().unwrap())
    );
    assert!(answer.body.starts_with(b"\x89PNG\r\n\x1a\n"));
    assert_eq!(answer.body, edge.client.screenshot(&id).await.unwrap());
}

#[tokio::test]
async fn what_an_engine_does_not_have_is_refused_by_name() {
    let edge = Edge::start().await;
    let id = edge.session().await;
    for device in ["console", "screenshot"] {
        let headers = [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ];
        let path = format!("/v1/sessions/{id}/{device}");
        let answer = edge.send(Method::GET, &path, &headers, "").await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{device}");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error_code"], "UNSUPPORTED", "{device}");
    }
    let plain = edge.call(Method::GET, &format!("/v1/sessions/{id}/console"), "").await;
    assert_eq!(plain.status, StatusCode::BAD_REQUEST, "it is a WebSocket or nothing");
}

#[tokio::test]
async fn doors_are_told_to_who_has_the_key() {
    let config = ServiceConfig { rescue_door: RescueDoor::Open, ..config() };
    let edge = Edge::start_with(config, V1Config::default()).await;
    let (one, other) = (edge.session().await, edge.session().await);
    let doors = async |id: &str| {
        let answer = edge.call(Method::GET, &format!("/v1/sessions/{id}/doors"), "").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers["cache-control"], "no-store");
        serde_json::from_value::<Doors>(answer.json()).unwrap()
    };
    let (mine, theirs) = (doors(&one).await, doors(&other).await);
    assert_eq!(mine, doors(&one).await);
    assert_eq!((mine.ssh.port, mine.terminal.port), (22220, 22222));
    assert_eq!((mine.ssh.host_port, &mine.terminal.host_key), (None, &None), "none is published");
    // The length of the type's name, the name, the length of the key.
    assert!(mine.ssh.host_key.as_ref().unwrap().starts_with("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI"));
    let rescue = mine.rescue.as_ref().unwrap();
    assert_eq!((rescue.port, &rescue.host_key), (2222, &mine.ssh.host_key));
    let secrets =
        [&mine.ssh.secret, &rescue.secret, &theirs.ssh.secret, &theirs.rescue.as_ref().unwrap().secret];
    assert_eq!(secrets.iter().collect::<std::collections::BTreeSet<_>>().len(), secrets.len());

    edge.client.delete(&one).await.unwrap();
    let gone = edge.call(Method::GET, &format!("/v1/sessions/{one}/doors"), "").await;
    assert_eq!(gone.status, StatusCode::CONFLICT);
    let unknown = edge.call(Method::GET, "/v1/sessions/0123abcd-456/doors", "").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn who_uses_the_hosts_network_has_no_doors() {
    let mut config = config();
    config.defaults.network = NetworkPolicy::Host;
    let edge = Edge::start_with(config, V1Config::default()).await;
    let id = edge.session().await;
    let answer = edge.call(Method::GET, &format!("/v1/sessions/{id}/doors"), "").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.json()["error_code"], "UNSUPPORTED");
}

#[tokio::test]
async fn a_port_is_a_web_server_of_its_own() {
    let edge = start().await;
    let id = edge.session().await;
    let path = format!("/v1/sessions/{id}/toolbox/proxy/3000/a%2Fb//c?x=%20&y=1+2");
    let headers = [("cookie", "own=1"), ("te", "trailers"), ("x-mine", "1")];
    let answer = edge.send(Method::POST, &path, &headers, "the body").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let echo = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        std::str::from_utf8(&echo).unwrap(),
        "POST /a%2Fb//c?x=%20&y=1+2 HTTP/1.1\ncontent-length: 8\ncookie: own=1\nhost: localhost:3000\n\
         x-forwarded-host: localhost\nx-mine: 1\n\nthe body"
    );
    for (path, status) in [("proxy/80/", 502), ("proxy/0/", 400), ("proxy/x", 400), ("proxy/99999/", 400)] {
        let answer = edge.call(Method::GET, &format!("/v1/sessions/{id}/toolbox/{path}"), "").await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
    }
    edge.client.pause(&id).await.unwrap();
    let answer = edge.call(Method::GET, &format!("/v1/sessions/{id}/toolbox/proxy/3000/"), "").await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
}
