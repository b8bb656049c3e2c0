//! The way to the agent inside a session: its whole API, streamed both ways, with nothing of it understood here.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header, uri::PathAndQuery},
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sandhaus_client::wire::ErrorBody;
use sandhaus_sandbox::{Kind, toolbox::Toolbox};

use super::{SessionPath, exec::note_use, sessions::session_error};
use crate::{
    body::forward,
    edge::{Edge, REQUEST_ID},
    error::{ApiError, ApiResult, Subject},
};

/// Headers that belong to one connection, never to what is behind it.
const HOP_HEADERS: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers that are for this server alone.
const PRIVATE_HEADERS: [HeaderName; 5] =
    [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE, header::HOST, header::EXPECT];

/// The agent's own API: any method, path and query as they are, streamed both ways; upgrades (WebSocket) pass too.
/// A client that hangs up closes the request inside.
#[utoipa::path(
    method(get, post, put, delete, patch, head, options),
    path = "/v1/sessions/{id}/toolbox/{*path}",
    tag = "toolbox",
    params(("id" = String, Path), ("path" = String, Path, description = "path of the agent's API")),
    responses(
        (status = 200, description = "whatever the agent answers"),
        (status = 404, body = ErrorBody, description = "SESSION_NOT_FOUND"),
        (status = 409, body = ErrorBody, description = "SESSION_NOT_RUNNING"),
    )
)]
pub(super) async fn proxy(
    State(edge): State<Arc<Edge>>,
    SessionPath(id): SessionPath,
    mut request: Request,
) -> ApiResult<Response<Body>> {
    let toolbox: Toolbox = match edge.service.toolbox(&id).await {
        Ok(toolbox) => toolbox,
        Err(error) => return Err(session_error(&edge, &id, error).await),
    };
    note_use(&edge, &id).await;
    let uri = inner_uri(request.uri())?;
    if uri.path() == sandhaus_protocol::hello::PATH {
        let message = "the greeting is for the server alone";
        return Err(ApiError::new(Kind::Forbidden, Subject::Request, message));
    }
    let wanted = upgrade_name(request.headers());
    let near = wanted.is_some().then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut inner = hyper::Request::new(forward(body));
    *inner.method_mut() = parts.method;
    *inner.uri_mut() = uri;
    *inner.headers_mut() = parts.headers;
    strip(inner.headers_mut());
    for name in PRIVATE_HEADERS {
        inner.headers_mut().remove(name);
    }
    if let Some(protocol) = wanted {
        inner.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        inner.headers_mut().insert(header::UPGRADE, protocol);
    }
    let mut answer = match toolbox.send(inner).await {
        Ok(answer) => answer,
        Err(error) => return Err(session_error(&edge, &id, error).await),
    };
    let switched = (answer.status() == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| upgrade_name(answer.headers()))
        .flatten();
    if let (Some(near), Some(_)) = (near, &switched) {
        join(&edge, near, hyper::upgrade::on(&mut answer));
    }
    let (mut parts, body) = answer.into_parts();
    strip(&mut parts.headers);
    parts.headers.remove(REQUEST_ID);
    if let Some(protocol) = switched {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
    }
    // The extensions hold the upgrade of the inner connection; they end here.
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    Ok(response)
}

/// What is behind `/v1/sessions/ID/toolbox`, byte for byte.
fn inner_uri(uri: &Uri) -> ApiResult<Uri> {
    let whole = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    // `/v1/sessions/ID/toolbox` has four slashes; the next one begins the agent's path.
    let begin = whole.match_indices('/').nth(4).map(|(at, _)| at);
    begin
        .and_then(|at| whole[at..].parse().ok())
        .ok_or_else(|| ApiError::invalid("the path cannot be passed on"))
}

/// The protocol that a message asks, or agrees, to change to.
fn upgrade_name(headers: &HeaderMap) -> Option<HeaderValue> {
    let listed = connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    if listed { headers.get(header::UPGRADE).cloned() } else { None }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Takes out what belongs to the connection, and what the connection says belongs to it.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        connection_options(headers).filter_map(|option| option.parse().ok()).collect();
    for name in named.into_iter().chain(HOP_HEADERS) {
        headers.remove(name);
    }
}

/// Joins the two connections once both have changed protocol, until either side closes or the server ends.
fn join(edge: &Arc<Edge>, near: OnUpgrade, far: OnUpgrade) {
    let ending = edge.ending.clone();
    edge.upgraded.spawn(async move {
        let joined = async {
            let (near, far) = tokio::try_join!(near, far).map_err(std::io::Error::other)?;
            tokio::io::copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await
        };
        // Cancel-safe: whichever wins, both connections are dropped with it.
        tokio::select! {
            ended = joined => if let Err(error) = ended {
                tracing::debug!(error = %error, "an upgraded connection ended");
            },
            () = ending.cancelled() => {}
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_pass_verbatim() {
        for (outer, inner) in [
            ("/v1/sessions/0123abcd-012/toolbox/files?path=%2Fa%20b&x", "/files?path=%2Fa%20b&x"),
            ("/v1/sessions/0123abcd-012/toolbox/process/session/a%2Fb/", "/process/session/a%2Fb/"),
            ("http://h/v1/sessions/0123abcd-012/toolbox//x", "//x"),
        ] {
            assert_eq!(inner_uri(&outer.parse().unwrap()).unwrap().to_string(), inner);
        }
    }

    #[test]
    fn headers_of_the_connection_stay() {
        let mut headers = HeaderMap::new();
        headers.append(header::CONNECTION, HeaderValue::from_static("close, X-Secret"));
        headers.append(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert("x-secret", HeaderValue::from_static("1"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        assert_eq!(upgrade_name(&headers).unwrap(), "websocket");
        strip(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [header::ACCEPT]);
    }
}
