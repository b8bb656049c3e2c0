//! Login and logout. The key is shown once, in a body; what comes back is a random cookie.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::{Extension, State},
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header},
};
use http_body_util::{BodyExt, Limited};
use sandhaus_client::wire::{ErrorBody, Okay, PageLogin, PageSession};
use sandhaus_sandbox::{Kind, Service};
use serde::Deserialize;
use tokio::time::Instant;

use crate::{
    auth::{Who, from_our_page},
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
    server::Peer,
    v1::json,
};

/// Largest login request.
const LOGIN_BYTES_MAX: usize = 16 * 1024;

/// How a login came, and so how it is answered.
#[derive(Clone, Copy)]
enum Form {
    /// From the page's program: JSON both ways.
    Json,
    /// From a form, without any program: it is sent on to the page.
    Form,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FormFields {
    api_key: String,
}

/// Gives the key and gets a cookie. A form (`api_key=…`) is answered with 303 to the page. Needs no key.
#[utoipa::path(post, path = "/dashboard/login", tag = "page", security(()), request_body = PageLogin, responses(
    (status = 200, body = Okay, description = "logged in; the cookie is set"),
    (status = 303, description = "the same for a form, whether it worked or not"),
    (status = 401, body = ErrorBody, description = "UNAUTHORIZED"),
    (status = 429, body = ErrorBody, description = "too many wrong keys; Retry-After says when to try again"),
))]
pub(super) async fn login(
    State(edge): State<Arc<Edge>>,
    Extension(Peer(peer)): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response<Body>> {
    let page = edge.page()?;
    // Nothing is known of a caller yet; one that names no origin is no page.
    from_our_page(&Method::GET, &uri, &headers)?;
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let form = if kind.starts_with(b"application/x-www-form-urlencoded") { Form::Form } else { Form::Json };
    let now = Instant::now();
    if let Err(wait) = page.attempts.admit(peer, now) {
        let seconds = wait.as_secs() + 1;
        let message = format!("too many wrong keys from this address; try again in {seconds} s");
        return Err(ApiError::new(Kind::Exhausted, Subject::Request, message).with_retry_after(seconds));
    }
    let key = read_key(form, body).await?;
    if !edge.guard.is_key(key.as_bytes()) {
        page.attempts.failed(peer, now);
        tracing::info!(%peer, "a login with a wrong key was refused");
        return match form {
            Form::Json => Err(ApiError::new(Kind::Unauthenticated, Subject::Request, "this is not the key")),
            Form::Form => Ok(see_other("/?login=refused")),
        };
    }
    let mut response = match form {
        Form::Json => json(StatusCode::OK, &Okay { ok: true }),
        Form::Form => see_other("/"),
    };
    response.headers_mut().insert(header::SET_COOKIE, page.logins.begin(now));
    Ok(response)
}

/// Ends the login.
#[utoipa::path(post, path = "/dashboard/logout", tag = "page", responses(
    (status = 200, body = Okay, description = "the cookie is worth nothing any more"),
))]
pub(super) async fn logout(State(edge): State<Arc<Edge>>, headers: HeaderMap) -> ApiResult<Response<Body>> {
    let gone = edge.page()?.logins.end(&headers);
    let mut response = json(StatusCode::OK, &Okay { ok: true });
    response.headers_mut().insert(header::SET_COOKIE, gone);
    Ok(response)
}

/// What the page needs to know before anything else: whether it has to ask for the key. Needs no key.
#[utoipa::path(get, path = "/dashboard/session", tag = "page", security(()), responses((status = 200, body = PageSession)))]
pub(super) async fn session(State(edge): State<Arc<Edge>>, headers: HeaderMap) -> ApiResult<Response<Body>> {
    let page = edge.page()?;
    let authenticated = match edge.guard.who(&headers) {
        Who::Anyone | Who::KeyHolder => true,
        Who::Unknown => page.logins.recognise(&headers, Instant::now()),
    };
    let answer = PageSession {
        authenticated,
        needs_key: edge.guard.needs_key(),
        features: if authenticated { features(&edge.service) } else { Vec::new() },
        version: authenticated.then(|| env!("CARGO_PKG_VERSION").to_owned()),
    };
    let mut response = json(StatusCode::OK, &answer);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What the page offers only where it is there.
fn features(service: &Service) -> Vec<String> {
    let bridge = service.capabilities().is_some_and(|capabilities| capabilities.bridge);
    let workspaces = service.check_workspaces().is_ok();
    let known = [("bridge", bridge), ("workspaces", workspaces)];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()).collect()
}

async fn read_key(form: Form, body: Body) -> ApiResult<String> {
    let whole = Limited::new(body, LOGIN_BYTES_MAX).collect().await;
    let whole: Bytes =
        whole.map_err(|_| ApiError::invalid("the login is too large or was cut off"))?.to_bytes();
    let malformed = || ApiError::invalid("a login is {\"api_key\": \"…\"} or a form with api_key");
    match form {
        Form::Json => {
            serde_json::from_slice(&whole).map(|login: PageLogin| login.api_key).map_err(|_| malformed())
        }
        Form::Form => {
            // A query is encoded like a form.
            let query = std::str::from_utf8(&whole).ok().and_then(|text| format!("/?{text}").parse().ok());
            let fields =
                query.as_ref().and_then(|uri| axum::extract::Query::<FormFields>::try_from_uri(uri).ok());
            fields.map(|fields| fields.0.api_key).ok_or_else(malformed)
        }
    }
}

/// Sends the browser on to `place`.
pub(super) fn see_other(place: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static(place));
    response
}
