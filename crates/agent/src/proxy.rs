//! `/proxy/PORT/…`: the way to a port of this machine, streamed both ways, with nothing of it understood here. Path and
//! query go on byte for byte.
//!
//! Each request has a connection of its own: one to the same machine costs less than to keep it and to find out that it
//! went stale.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, HttpBody as _},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header},
    routing::any,
};
use hyper::{body::Incoming, client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    agent::Agent,
    error::{Error, Result},
    ports,
};

/// Headers that belong to one connection, never to what is behind it.
const HOP_HEADERS: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The host by which the caller knows the port's server.
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// How long a port may take to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Most connections that have changed their protocol and are passed on at once.
const JOINED_MAX: usize = 512;

/// Bytes passed on at once each way of those.
const JOINED_BYTES: usize = 16 * 1024;

/// What all passed requests share.
pub(crate) struct Proxy {
    places: Arc<Semaphore>,
}

impl Default for Proxy {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(JOINED_MAX)) }
    }
}

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    // Bodies of whatever size pass: none is gathered here.
    Router::new()
        .route("/proxy/{port}", any(pass))
        .route("/proxy/{port}/{*rest}", any(pass))
        .route("/proxy/{port}/", any(pass))
}

/// The last part of the path that is ours.
fn behind(uri: &Uri) -> Result<Uri> {
    let whole = uri.path_and_query().map_or("/", |whole| whole.as_str());
    let path_end = whole.find('?').unwrap_or(whole.len());
    let begin = whole[..path_end].match_indices('/').nth(2).map(|(at, _)| at);
    let inner = begin.map_or_else(|| format!("/{}", &whole[path_end..]), |at| whole[at..].to_owned());
    inner.parse().map_err(|_| Error::invalid("the path cannot be passed on"))
}

/// Any method of `/proxy/{port}/…`.
async fn pass(State(agent): State<Arc<Agent>>, request: Request) -> Result<Response<Body>> {
    let port = request.uri().path().split('/').nth(2).and_then(|port| port.parse().ok());
    let port: u16 = port
        .filter(|port| *port > 0)
        .ok_or_else(|| Error::invalid("the port must be a number from 1 to 65535"))?;
    let inner = behind(request.uri())?;
    let (request, near) = inward(port, inner, request);
    let place = match near {
        Some(_) => Some(Arc::clone(&agent.proxy.places).try_acquire_owned().map_err(|_| {
            Error::too_many(format_args!(
                "{JOINED_MAX} connections with a protocol of their own are passed on already"
            ))
        })?),
        None => None,
    };
    let answer = match again(&request) {
        None => send(port, request).await,
        // A server that was just about to close the connection it took, or to end.
        Some(second) => match send(port, request).await {
            Err(Failure::NoAnswer) => send(port, second).await,
            other => other,
        },
    };
    match answer {
        Ok(answer) => Ok(outward(near, place, answer)),
        Err(failure) => Err(failure.of(port)),
    }
}

/// Why a port gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Refused,
    TooSlow,
    NoAnswer,
}

impl Failure {
    fn of(self, port: u16) -> Error {
        let what = match self {
            Self::Refused => "takes no connection: nothing listens there",
            Self::TooSlow => "takes no connection in time",
            Self::NoAnswer => "gives no answer that is HTTP",
        };
        Error::bad_gateway(format_args!("port {port} {what}"))
    }
}

async fn send(port: u16, request: hyper::Request<Body>) -> std::result::Result<Response<Incoming>, Failure> {
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, ports::dial(port)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(_)) => return Err(Failure::Refused),
        Err(_) => return Err(Failure::TooSlow),
    };
    // What is small is wanted at once.
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|_| Failure::NoAnswer)?;
    tokio::spawn(async move {
        // What fails on it shows in the answer.
        drop(connection.with_upgrades().await);
    });
    sender.send_request(request).await.map_err(|_| Failure::NoAnswer)
}

/// The same request once more, if it may be sent twice: it only asks, and its body is nothing.
fn again(request: &hyper::Request<Body>) -> Option<hyper::Request<Body>> {
    let only_asks = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    (only_asks && request.body().is_end_stream()).then(|| {
        let mut second = hyper::Request::new(Body::empty());
        *second.method_mut() = request.method().clone();
        *second.uri_mut() = request.uri().clone();
        *second.headers_mut() = request.headers().clone();
        second
    })
}

/// The request as it goes on, and the connection on which a change of protocol was asked for.
fn inward(port: u16, uri: Uri, mut request: Request) -> (hyper::Request<Body>, Option<OnUpgrade>) {
    let wanted = upgrade_name(request.headers());
    let near = wanted.is_some().then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut inner = hyper::Request::new(body);
    *inner.method_mut() = parts.method;
    *inner.uri_mut() = uri;
    *inner.headers_mut() = parts.headers;
    let headers = inner.headers_mut();
    strip(headers);
    if let Some(protocol) = wanted {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    if let Some(host) = headers.remove(header::HOST) {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    // The expectation was met here.
    headers.remove(header::EXPECT);
    let host = format!("localhost:{port}");
    headers.insert(header::HOST, HeaderValue::from_str(&host).expect("a name and digits"));
    (inner, near)
}

/// The answer as it goes back.
fn outward(
    near: Option<OnUpgrade>,
    place: Option<OwnedSemaphorePermit>,
    mut answer: Response<Incoming>,
) -> Response<Body> {
    let switched = (answer.status() == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| upgrade_name(answer.headers()))
        .flatten();
    if let (Some(near), Some(_)) = (near, &switched) {
        tokio::spawn(join(near, hyper::upgrade::on(&mut answer), place));
    }
    let (mut parts, body) = answer.into_parts();
    strip(&mut parts.headers);
    if let Some(protocol) = switched {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
    }
    // The extensions hold the upgrade of the inner connection; they end here.
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response.extensions_mut().insert(crate::http::OwnBody);
    response
}

/// Passes on what both sides say once they have changed protocol, until both have closed or one has broken.
async fn join(near: OnUpgrade, far: OnUpgrade, _place: Option<OwnedSemaphorePermit>) {
    let Ok((near, far)) = tokio::try_join!(near, far) else { return };
    let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
    // A connection that breaks is the affair of its two sides.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, JOINED_BYTES, JOINED_BYTES).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_go_on_verbatim() {
        for (outer, inner) in [
            ("/proxy/3000", "/"),
            ("/proxy/3000/", "/"),
            ("/proxy/3000?a=/b", "/?a=/b"),
            ("/proxy/3000/a%2Fb//c/?x=%20&y", "/a%2Fb//c/?x=%20&y"),
        ] {
            let uri = behind(&outer.parse().expect("a path")).expect("goes on");
            assert_eq!(uri.to_string(), inner, "{outer}");
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
        assert_eq!(upgrade_name(&headers).expect("asks for it"), "websocket");
        strip(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [header::ACCEPT]);
    }

    #[test]
    fn only_what_asks_is_sent_twice() {
        let request = |method: Method, body: Body| {
            hyper::Request::builder().method(method).uri("/").body(body).expect("a request")
        };
        assert!(again(&request(Method::GET, Body::empty())).is_some());
        assert!(again(&request(Method::GET, Body::from("x"))).is_none());
        assert!(again(&request(Method::POST, Body::empty())).is_none());
        assert!(again(&request(Method::DELETE, Body::empty())).is_none());
    }
}
