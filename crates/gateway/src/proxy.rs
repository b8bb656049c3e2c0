//! The way to the agent inside a sandbox, for every dialect: its whole API, and any port of the sandbox, streamed both
//! ways, with nothing of it understood here. A dialect finds the sandbox and says where in its own paths the inner path
//! begins; the rest is the same for all.
//!
//! `/proxy/PORT/…` is the one part of the agent's API that the host serves itself: it connects to the port through the
//! engine, so it works for whatever agent is inside. What listens on the loopback of a virtual machine alone is out of its reach;
//! there the agent connects.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header, uri::PathAndQuery},
};
use hyper::{body::Incoming, client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use sandhaus_sandbox::{Error, Kind, SandboxId, engine::GuestPort, toolbox::Toolbox};
use tokio_util::io::InspectReader;

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

/// The host by which the caller knows a port's web server.
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// First part of the paths that lead to a port.
const PORT_PREFIX: &str = "/proxy/";

/// How long a port may take to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often what was said on a connection is noted as use of the sandbox.
const USE_INTERVAL: Duration = Duration::from_secs(10);

/// Code of an answer that a port of a sandbox does not give.
const BAD_GATEWAY: &str = "BAD_GATEWAY";

/// Where a request goes inside.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// To the agent, with this path and query.
    Agent(Uri),
    /// To a port, with this path and query.
    Port(u16, Uri),
}

impl Target {
    /// What is behind the first `slashes` slashes and parts of a path, byte for byte.
    pub(crate) fn behind(uri: &Uri, slashes: usize) -> ApiResult<Self> {
        let whole = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let path_end = whole.find('?').unwrap_or(whole.len());
        let begin = whole[..path_end].match_indices('/').nth(slashes).map(|(at, _)| at);
        let inner = begin.map_or_else(|| format!("/{}", &whole[path_end..]), |at| whole[at..].to_owned());
        let uri =
            |text: &str| text.parse::<Uri>().map_err(|_| ApiError::invalid("the path cannot be passed on"));
        let Some(rest) = inner.strip_prefix(PORT_PREFIX) else {
            let inner = uri(&inner)?;
            if [sandhaus_protocol::hello::PATH, sandhaus_protocol::upgrade::PATH].contains(&inner.path()) {
                let message = "greeting and replacing the agent are for the server alone";
                return Err(ApiError::new(Kind::Forbidden, Subject::Request, message));
            }
            return Ok(Self::Agent(inner));
        };
        let (port, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let port = port.parse().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| ApiError::invalid("the port must be a number from 1 to 65535"))?;
        let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
        Ok(Self::Port(port, uri(&rest)?))
    }
}

/// Whether a request counts as use of the sandbox, which then lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// It does, and so does what is said on a connection that comes of it.
    Counted,
    /// It does not.
    Uncounted,
}

/// The sandbox that a request is for.
struct Way<'a> {
    edge: &'a Arc<Edge>,
    id: &'a SandboxId,
    counted: Use,
}

/// Passes a request on, and its answer back. The error is the domain's: the dialect says it in its own words.
pub(crate) async fn pass(
    edge: &Arc<Edge>,
    id: &SandboxId,
    target: Target,
    request: Request,
    counted: Use,
) -> Result<ApiResult<Response<Body>>, Error> {
    // A port is reached where the agent is: both want a sandbox that runs.
    let toolbox = edge.service.toolbox(id).await?;
    if counted == Use::Counted {
        note_use(edge, id).await;
    }
    let way = Way { edge, id, counted };
    match target {
        Target::Agent(uri) => to_agent(&way, &toolbox, uri, request).await.map(Ok),
        Target::Port(port, uri) => to_port(&way, &toolbox, port, uri, request).await,
    }
}

/// Moves the sandbox's deadline. It may end while it is used; whoever uses it learns that from the use itself.
async fn note_use(edge: &Edge, id: &SandboxId) {
    if let Err(error) = edge.service.touch(id).await {
        tracing::debug!(sandbox = %id, error = %error, "use of a sandbox was not noted");
    }
}

async fn to_agent(
    way: &Way<'_>,
    toolbox: &Toolbox,
    uri: Uri,
    request: Request,
) -> Result<Response<Body>, Error> {
    let (mut inner, near) = inward(uri, request);
    for name in PRIVATE_HEADERS {
        inner.headers_mut().remove(name);
    }
    let answer = toolbox.send(inner).await?;
    Ok(outward(way, near, answer))
}

async fn to_port(
    way: &Way<'_>,
    toolbox: &Toolbox,
    port: u16,
    uri: Uri,
    request: Request,
) -> Result<ApiResult<Response<Body>>, Error> {
    let Way { edge, id, .. } = *way;
    let refused = |what: &str| {
        let message = format!("port {port} of the sandbox {what}");
        Ok(Err(ApiError::new(Kind::Unavailable, Subject::Request, message)
            .with_status(StatusCode::BAD_GATEWAY, BAD_GATEWAY)))
    };
    let dialled = tokio::time::timeout(CONNECT_TIMEOUT, edge.service.dial(id, GuestPort::Tcp(port))).await;
    let stream = match dialled {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if matches!(error.kind(), Kind::Gone | Kind::NotFound) => return Err(error),
        Ok(Err(error))
            if error.kind() != Kind::Forbidden && edge.service.is_dialled_from_outside(id).await? =>
        {
            tracing::debug!(sandbox = %id, port, %error, "a port is left to the agent");
            return by_agent(way, toolbox, port, &uri, request).await.map(Ok);
        }
        Ok(Err(error)) => {
            tracing::debug!(sandbox = %id, port, %error, "a port could not be reached");
            return refused("takes no connection");
        }
        Err(_) => return refused("takes no connection in time"),
    };
    let (mut inner, near) = inward(uri, request);
    let headers = inner.headers_mut();
    for_application(edge, headers);
    let host = format!("localhost:{port}");
    headers.insert(header::HOST, HeaderValue::from_str(&host).expect("a name and digits"));
    let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
        return refused("does not speak HTTP");
    };
    tokio::spawn(async move {
        // What fails on it shows in the answer.
        drop(connection.with_upgrades().await);
    });
    match sender.send_request(inner).await {
        Ok(answer) => Ok(Ok(outward(way, near, answer))),
        Err(error) => {
            tracing::debug!(sandbox = %id, port, %error, "a port gave no answer");
            refused("gives no answer")
        }
    }
}

/// The same by the agent, which calls the port as it is called there.
async fn by_agent(
    way: &Way<'_>,
    toolbox: &Toolbox,
    port: u16,
    uri: &Uri,
    request: Request,
) -> Result<Response<Body>, Error> {
    let inner = format!("{PORT_PREFIX}{port}{uri}");
    let inner = inner.parse().map_err(|error| Error::internal("write a path of the agent's", error))?;
    let (mut inner, near) = inward(inner, request);
    for_application(way.edge, inner.headers_mut());
    let answer = toolbox.send(inner).await?;
    Ok(outward(way, near, answer))
}

/// Takes out what an application in the sandbox is not to know, and tells it by which host it was asked for.
fn for_application(edge: &Edge, headers: &mut HeaderMap) {
    if let Some(host) = headers.remove(header::HOST) {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    // The key is this server's; an application's own cookies are its own, but for that of the web page.
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::PROXY_AUTHORIZATION);
    headers.remove(header::EXPECT);
    if edge.guard.has_logins() {
        headers.remove(header::COOKIE);
    }
}

/// The connection on which a change of protocol was asked for, and which.
type Near = Option<OnUpgrade>;

/// The request as it goes on.
fn inward(uri: Uri, mut request: Request) -> (hyper::Request<sandhaus_sandbox::toolbox::Body>, Near) {
    let wanted = upgrade_name(request.headers());
    let near = wanted.is_some().then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut inner = hyper::Request::new(forward(body));
    *inner.method_mut() = parts.method;
    *inner.uri_mut() = uri;
    *inner.headers_mut() = parts.headers;
    strip(inner.headers_mut());
    if let Some(protocol) = wanted {
        inner.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        inner.headers_mut().insert(header::UPGRADE, protocol);
    }
    (inner, near)
}

/// The answer as it goes back.
fn outward(way: &Way<'_>, near: Near, mut answer: Response<Incoming>) -> Response<Body> {
    let switched = (answer.status() == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| upgrade_name(answer.headers()))
        .flatten();
    if let (Some(near), Some(_)) = (near, &switched) {
        join(way, near, hyper::upgrade::on(&mut answer));
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
    response
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

/// Joins the two connections once both have changed protocol, until either side closes or the server ends. What is said
/// on them is use of the sandbox, if the request was.
fn join(way: &Way<'_>, near: OnUpgrade, far: OnUpgrade) {
    let (edge, id, counted) = (Arc::clone(way.edge), way.id.clone(), way.counted);
    let ending = edge.ending.clone();
    way.edge.upgraded.spawn(async move {
        let spoken = AtomicBool::new(false);
        let noted = |stream| InspectReader::new(stream, |_: &[u8]| spoken.store(true, Ordering::Relaxed));
        let joined = async {
            let (near, far) = tokio::try_join!(near, far).map_err(std::io::Error::other)?;
            let (mut near, mut far) = (noted(TokioIo::new(near)), noted(TokioIo::new(far)));
            tokio::io::copy_bidirectional(&mut near, &mut far).await
        };
        let counting = async {
            let mut ticks = tokio::time::interval(USE_INTERVAL);
            loop {
                ticks.tick().await;
                if counted == Use::Counted && spoken.swap(false, Ordering::Relaxed) {
                    note_use(&edge, &id).await;
                }
            }
        };
        // Cancel-safe: whichever wins, both connections are dropped with it.
        tokio::select! {
            ended = joined => if let Err(error) = ended {
                tracing::debug!(error = %error, "an upgraded connection ended");
            },
            () = ending.cancelled() => {}
            () = counting => {}
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(path: &str) -> Target {
        Target::Agent(path.parse().unwrap())
    }

    #[test]
    fn path_and_query_pass_verbatim() {
        for (outer, slashes, inner) in [
            ("/v1/sessions/0123abcd-012/toolbox/files?path=%2Fa%20b&x", 4, "/files?path=%2Fa%20b&x"),
            ("/v1/sessions/0123abcd-012/toolbox/process/session/a%2Fb/", 4, "/process/session/a%2Fb/"),
            ("http://h/v1/sessions/0123abcd-012/toolbox//x", 4, "//x"),
            ("/sandboxes/0123/toolbox/files?path=/a/b", 3, "/files?path=/a/b"),
            ("/sandboxes/0123/toolbox?a=/b/c", 3, "/?a=/b/c"),
            ("/sandboxes/0123/toolbox/proxyx", 3, "/proxyx"),
        ] {
            assert_eq!(Target::behind(&outer.parse().unwrap(), slashes).unwrap(), agent(inner), "{outer}");
        }
    }

    #[test]
    fn ports_are_told_apart() {
        let target = |path: &str| Target::behind(&format!("/s/1/toolbox{path}").parse().unwrap(), 3);
        let port = |number, path: &str| Target::Port(number, path.parse().unwrap());
        assert_eq!(target("/proxy/3000/a%2Fb/?x=1").unwrap(), port(3000, "/a%2Fb/?x=1"));
        assert_eq!(target("/proxy/3000").unwrap(), port(3000, "/"));
        assert_eq!(target("/proxy/3000?x").unwrap(), port(3000, "/?x"));
        for wrong in ["/proxy/0/", "/proxy/65536/", "/proxy/x/", "/proxy//", "/proxy/-1"] {
            assert_eq!(target(wrong).unwrap_err().status(), StatusCode::BAD_REQUEST, "{wrong}");
        }
        for private in [sandhaus_protocol::hello::PATH, sandhaus_protocol::upgrade::PATH] {
            assert_eq!(target(private).unwrap_err().status(), StatusCode::FORBIDDEN);
            assert_eq!(target(&format!("{private}?force=true")).unwrap_err().status(), StatusCode::FORBIDDEN);
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
