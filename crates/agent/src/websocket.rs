//! What all WebSocket routes share: the choice of subprotocol, keep-alive, a clean end.

use std::time::Duration;

use axum::{
    extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    http::{HeaderMap, HeaderValue, header},
};

/// Prefixes of subprotocols that carry data, and one that is a wish.
const VERSION_PREFIX: &str = "X-Daytona-SDK-Version~";
const ENVS_PREFIX: &str = "X-Daytona-Pty-Envs~";
pub(crate) const EXIT_CONTROL: &str = "X-Daytona-Pty-Exit-Control";

/// A link that is quiet for so long gets a ping.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long the other side may take to confirm the end.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// The offered subprotocols.
pub(crate) fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|p| !p.is_empty())
}

/// The client's version, if it offers one.
pub(crate) fn offered_version(headers: &HeaderMap) -> Option<&str> {
    offered(headers).find_map(|protocol| protocol.strip_prefix(VERSION_PREFIX))
}

/// The encoded environment, if one is offered.
pub(crate) fn offered_envs(headers: &HeaderMap) -> Option<&str> {
    offered(headers).find_map(|protocol| protocol.strip_prefix(ENVS_PREFIX))
}

/// Answers exactly one of the offered subprotocols, never the one that carries the environment.
pub(crate) fn select_protocol(upgrade: &mut WebSocketUpgrade) {
    let offered: Vec<&HeaderValue> = upgrade.requested_protocols().collect();
    let rank = |value: &&&HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        if text.starts_with(VERSION_PREFIX) {
            0
        } else if text == EXIT_CONTROL {
            1
        } else {
            2
        }
    };
    let secret = |value: &&&HeaderValue| !value.as_bytes().starts_with(ENVS_PREFIX.as_bytes());
    let chosen = offered.iter().filter(secret).min_by_key(rank).map(|value| (*value).clone());
    if let Some(chosen) = chosen {
        upgrade.set_selected_protocol(chosen);
    }
}

/// The next message with content; `None` when the other side is gone. Pings a quiet link. Cancel-safe.
pub(crate) async fn receive(socket: &mut WebSocket) -> Option<axum::body::Bytes> {
    loop {
        match tokio::time::timeout(PING_INTERVAL, socket.recv()).await {
            Err(_quiet) => socket.send(Message::Ping(axum::body::Bytes::new())).await.ok()?,
            Ok(Some(Ok(Message::Text(text)))) => return Some(text.into()),
            Ok(Some(Ok(Message::Binary(bytes)))) => return Some(bytes),
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(None | Some(Err(_) | Ok(Message::Close(_)))) => return None,
        }
    }
}

/// Says the end and waits a moment for its echo, so that the reason arrives.
pub(crate) async fn close(mut socket: WebSocket, frame: CloseFrame) {
    let said = async {
        if socket.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    // A side that takes nothing, or does not answer, is gone.
    let _ = tokio::time::timeout(CLOSE_WAIT, said).await;
}
