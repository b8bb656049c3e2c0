//! What a session has beside its processes: a serial console, and a picture of its display.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{
        State,
        ws::{
            CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code,
            rejection::WebSocketUpgradeRejection,
        },
    },
    http::{HeaderValue, Response, StatusCode, header},
};
use sandhaus_client::wire::ErrorBody;
use sandhaus_sandbox::{Kind, SandboxId, engine::GuestPort, toolbox::Lease};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{SessionPath, exec::note_use, sessions::session_error};
use crate::{
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
    screen::{ScreenError, screenshot as take_screenshot},
};

/// Bytes of a console that one message carries at most, and of one that is taken.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// A console that is quiet for so long gets a ping.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// The serial console of a session as a WebSocket: what it prints as binary messages; what is sent, binary or text, goes
/// in. It ends with the session's machine.
#[utoipa::path(get, path = "/v1/sessions/{id}/console", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 101, description = "a WebSocket"),
    (status = 400, body = ErrorBody, description = "UNSUPPORTED: sandboxes of this engine have no console"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
))]
pub(super) async fn console(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> ApiResult<Response<Body>> {
    let upgrade = upgrade.map_err(|error| ApiError::invalid(error.body_text()))?;
    let stream = dial(&edge, &id, GuestPort::Console).await?;
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    let held = edge.upgraded.token();
    Ok(upgrade.on_upgrade(async move |socket| {
        join(&edge, socket, stream).await;
        drop(held);
    }))
}

/// What the display of a session shows, as a PNG.
#[utoipa::path(get, path = "/v1/sessions/{id}/screenshot", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, content_type = "image/png", body = Vec<u8>),
    (status = 400, body = ErrorBody, description = "UNSUPPORTED: sandboxes of this engine have no display"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
    (status = 503, body = ErrorBody, description = "UNAVAILABLE: the display gives no picture"),
))]
pub(super) async fn screenshot(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
) -> ApiResult<Response<Body>> {
    let stream = dial(&edge, &id, GuestPort::Display).await?;
    let picture = take_screenshot(stream).await.map_err(|error| {
        let message = match error {
            ScreenError::Silent(error) => {
                tracing::debug!(sandbox = %id, %error, "a display gave no picture");
                "the display of the session does not answer".to_owned()
            }
            ScreenError::Odd(what) => format!("the display of the session cannot be understood: {what}"),
        };
        ApiError::new(Kind::Unavailable, Subject::Machine, message)
    })?;
    let mut response = Response::new(Body::from(picture));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/png"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn dial(edge: &Edge, id: &SandboxId, port: GuestPort) -> ApiResult<Lease> {
    match edge.service.dial(id, port).await {
        Ok(stream) => {
            note_use(edge, id).await;
            Ok(stream)
        }
        Err(error) => Err(session_error(edge, id, error).await),
    }
}

/// Carries bytes both ways until either side closes or the server ends.
async fn join(edge: &Edge, mut socket: WebSocket, stream: impl AsyncRead + AsyncWrite) {
    let (mut output, mut input) = tokio::io::split(stream);
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let mut quiet = tokio::time::interval(PING_INTERVAL);
    quiet.reset();
    let reason = loop {
        // Every arm is cancel-safe: a read that has not returned has taken nothing, a message is taken whole.
        tokio::select! {
            read = output.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break "the console has ended",
                Ok(count) => {
                    let message = Message::binary(buffer[..count].to_vec());
                    if socket.send(message).await.is_err() {
                        return;
                    }
                    quiet.reset();
                }
            },
            message = socket.recv() => {
                let bytes = match message {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => text.into(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if input.write_all(&bytes).await.is_err() || input.flush().await.is_err() {
                    break "the console takes no input";
                }
            }
            _ = quiet.tick() => if socket.send(Message::Ping(Vec::new().into())).await.is_err() {
                return;
            },
            () = edge.ending.cancelled() => break "the server is shutting down",
        }
    };
    let close = CloseFrame { code: close_code::NORMAL, reason: reason.into() };
    // A client that has gone needs no farewell.
    let _ = socket.send(Message::Close(Some(close))).await;
}
