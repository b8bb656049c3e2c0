//! What opens a session's own doors: SSH, the terminal in a browser, and the rescue door where there is one.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, Response, StatusCode, header},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sandhaus_client::wire::{Door, Doors, ErrorBody, Port};
use sandhaus_protocol::ssh::{PORT, RESCUE_PORT, TERMINAL_PORT};
use sandhaus_sandbox::doors::DoorKeys;

use super::{SessionPath, json, sessions::session_error, wire::session_info};
use crate::{edge::Edge, error::ApiResult};

/// What SSH calls the kind of key that doors show.
const KEY_TYPE: &str = "ssh-ed25519";

/// The ports and secrets of a session's doors. They are the same for as long as the session is there.
#[utoipa::path(get, path = "/v1/sessions/{id}/doors", tag = "sessions", params(("id" = String, Path)), responses(
    (status = 200, body = Doors),
    (status = 400, body = ErrorBody, description = "UNSUPPORTED: the session uses the host's network"),
    (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING: it has ended"),
))]
pub(super) async fn doors(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
) -> ApiResult<Response<Body>> {
    let found = async { Ok((edge.service.get(&id).await?, edge.service.doors(&id).await?)) };
    match found.await {
        Ok((view, keys)) => {
            let mut response = json(StatusCode::OK, &wire(&session_info(&view).ports, keys));
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            Ok(response)
        }
        Err(error) => Err(session_error(&edge, &id, error).await),
    }
}

fn wire(published: &[Port], keys: DoorKeys) -> Doors {
    let host_key = known_key(&keys.host_key);
    let door = |port: u16, secret: String, host_key: Option<&String>| Door {
        port,
        host_port: published.iter().find(|published| published.port == port).map(|found| found.host_port),
        secret,
        host_key: host_key.cloned(),
    };
    Doors {
        ssh: door(PORT, keys.secret.clone(), Some(&host_key)),
        terminal: door(TERMINAL_PORT, keys.secret, None),
        rescue: keys.rescue_secret.map(|secret| door(RESCUE_PORT, secret, Some(&host_key))),
    }
}

/// A public key as a line of `known_hosts` has it behind the names.
fn known_key(key: &[u8]) -> String {
    let mut blob = Vec::new();
    for part in [KEY_TYPE.as_bytes(), key] {
        blob.extend(u32::try_from(part.len()).expect("a short text").to_be_bytes());
        blob.extend(part);
    }
    format!("{KEY_TYPE} {}", STANDARD.encode(blob))
}
