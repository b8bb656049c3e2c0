//! A terminal in a browser, on a port of its own: a page, and a WebSocket behind which a login shell runs as long as the
//! socket is open.
//!
//! The page and the socket show nothing to whoever does not know the secret, wherever they come from: as the password of any
//! user, as a bearer token, or once in the address (`?token=`), which leaves a cookie that only this page sends back.

mod text;

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{
        Query, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::{
        HeaderMap, HeaderValue,
        header::{self, HeaderName},
    },
    response::{IntoResponse as _, Response},
    routing::get,
};
use base64::Engine as _;
use sandhaus_protocol::process::Resize;
use sandhaus_ssh::Authority as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;

use self::text::Decoder;
use crate::{
    agent::Agent,
    error::{Error, Result},
    execute::login_shell,
    http::{self, Door, Listener},
    ssh::Keeper,
    sys::{Channel, Child, Command, Family, Session, Terminal, signal_group},
    websocket,
};

/// Most terminals at once.
const TERMINALS_MAX: usize = 32;

/// Largest message of a client, and the largest that may be a size.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
const SIZE_BYTES_MAX: usize = 64;

/// Size before the page has told its own, and the largest side.
const COLS: u16 = 80;
const ROWS: u16 = 24;
const SIDE_MAX: u16 = 1000;

/// Bytes read from the terminal at once; the kernel gives no more.
const READ_BYTES: usize = 4096;

/// How long the terminal may stay quiet after its shell has ended before its output counts as complete.
const QUIET: Duration = Duration::from_millis(100);

/// Pause before somebody who guesses is refused.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// Where shells start.
const CWD: &str = "/";

const COOKIE: &str = "sandhaus-terminal";

/// What the page may do: run its own script, look as it does, talk to where it comes from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The page's files as the build made them, compressed.
const PAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/terminal.html.gz"));
const SCRIPT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/terminal.js.gz"));
const STYLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/terminal.css.gz"));

/// What the requests share.
struct Front {
    agent: Arc<Agent>,
    open: AtomicUsize,
}

/// Serves on this port for ever.
pub(crate) async fn serve(agent: Arc<Agent>, listener: TcpListener) {
    let front = Arc::new(Front { agent: Arc::clone(&agent), open: AtomicUsize::new(0) });
    let router = Router::new()
        .route("/", get(page))
        .route("/terminal.js", get(script))
        .route("/terminal.css", get(style))
        .route("/ws", get(connect))
        .with_state(front);
    // It ends with the agent.
    let (_end, ending) = tokio::sync::watch::channel(());
    http::serve(Door::Open { agent, router }, Listener::Tcp(listener), ending).await;
}

/// Query of the page.
#[derive(Deserialize)]
struct Shown {
    token: Option<String>,
}

/// `GET /`.
async fn page(State(front): State<Arc<Front>>, Query(shown): Query<Shown>, headers: HeaderMap) -> Response {
    if let Err(refusal) = front.admit(&headers, shown.token.as_deref()).await {
        return refusal;
    }
    let mut response = file(PAGE, "text/html; charset=utf-8");
    if let (Some(_), Some(keeper)) = (shown.token, front.agent.doors.keeper()) {
        let cookie = format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict", mark(&keeper));
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
        }
    }
    response
}

/// `GET /terminal.js`: no secret, but nobody's business either.
async fn script(State(front): State<Arc<Front>>, headers: HeaderMap) -> Response {
    match front.admit(&headers, None).await {
        Ok(()) => file(SCRIPT, "text/javascript; charset=utf-8"),
        Err(refusal) => refusal,
    }
}

/// `GET /terminal.css`.
async fn style(State(front): State<Arc<Front>>, headers: HeaderMap) -> Response {
    match front.admit(&headers, None).await {
        Ok(()) => file(STYLE, "text/css; charset=utf-8"),
        Err(refusal) => refusal,
    }
}

fn file(content: &'static [u8], media_type: &'static str) -> Response {
    let headers: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_ENCODING, "gzip"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The address may hold the secret.
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Bytes::from_static(content)).into_response()
}

/// `GET /ws`.
async fn connect(State(front): State<Arc<Front>>, headers: HeaderMap, upgrade: WebSocketUpgrade) -> Response {
    if let Err(refusal) = front.admit(&headers, None).await {
        return refusal;
    }
    if !is_of_this_page(&headers) {
        return Error::forbidden("another site's page cannot open a terminal here").into_response();
    }
    let place = match Place::take(&front) {
        Ok(place) => place,
        Err(error) => return error.into_response(),
    };
    let shell = match Shell::start(&front.agent) {
        Ok(shell) => shell,
        Err(error) => return error.into_response(),
    };
    let mut upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX);
    websocket::select_protocol(&mut upgrade);
    upgrade.on_upgrade(move |socket| async move {
        shell.serve(socket).await;
        drop(place);
    })
}

impl Front {
    /// Lets in who knows the secret.
    async fn admit(&self, headers: &HeaderMap, token: Option<&str>) -> std::result::Result<(), Response> {
        let keeper = self.agent.doors.keeper();
        let shown = token.map(|token| token.as_bytes().to_vec()).or_else(|| authorization(headers));
        let known = keeper.as_ref().is_some_and(|keeper| match &shown {
            Some(secret) => keeper.is_password(secret),
            None => cookie(headers).is_some_and(|cookie| {
                keeper.takes_passwords() && bool::from(mark(keeper).as_bytes().ct_eq(cookie.as_bytes()))
            }),
        });
        if known {
            return Ok(());
        }
        if shown.is_some() {
            tokio::time::sleep(REFUSAL_PAUSE).await;
        }
        let mut refusal =
            Error::unauthorized("show the secret of this sandbox as a password").into_response();
        let challenge = HeaderValue::from_static("Basic realm=\"terminal\", charset=\"UTF-8\"");
        refusal.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        Err(refusal)
    }
}

/// The password or token of a request.
fn authorization(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, shown) = value.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(shown.trim().as_bytes().to_vec()),
        "basic" => {
            let pair = base64::engine::general_purpose::STANDARD.decode(shown.trim()).ok()?;
            let colon = pair.iter().position(|byte| *byte == b':')?;
            Some(pair[colon + 1..].to_vec())
        }
        _ => None,
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(header::COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(name, value)| (name == COOKIE).then_some(value))
}

/// What the cookie holds: it opens this page and nothing else, and ends with the secret.
fn mark(keeper: &Keeper) -> String {
    let digest =
        Sha256::new_with_prefix(b"sandhaus terminal\0").chain_update(keeper.secret().unwrap_or_default());
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a browser opens the socket for this very page; what is no browser does not say.
fn is_of_this_page(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = text(header::ORIGIN) else { return true };
    let host = origin.split_once("://").map(|(_, host)| host);
    let passed_on = text(HeaderName::from_static("x-forwarded-host"));
    host.is_some() && (host == text(header::HOST) || host == passed_on)
}

/// One of the terminals that there may be.
struct Place(Arc<Front>);

impl Place {
    fn take(front: &Arc<Front>) -> Result<Self> {
        if front.open.fetch_add(1, Ordering::Relaxed) < TERMINALS_MAX {
            return Ok(Self(Arc::clone(front)));
        }
        front.open.fetch_sub(1, Ordering::Relaxed);
        Err(Error::too_many(format_args!("there are {TERMINALS_MAX} terminals already")))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A login shell in a terminal. Dropping it hangs up.
struct Shell {
    child: Child,
    output: Channel,
    input: Channel,
}

impl Drop for Shell {
    fn drop(&mut self) {
        // The terminal's end tells those in its foreground; this one the shell, if it has not ended.
        if self.child.ended.known().is_none() {
            let _ = signal_group(self.child.pid, libc::SIGHUP);
        }
    }
}

impl Shell {
    fn start(agent: &Agent) -> Result<Self> {
        let terminal = Terminal::open(Resize { cols: COLS, rows: ROWS }, &agent.workload)?;
        let mut env: BTreeMap<String, String> = agent.environment();
        env.insert("TERM".to_owned(), "xterm-256color".to_owned());
        env.insert(Family::MARK.to_owned(), Family::new_mark());
        let slave = terminal.slave.as_fd();
        let child = agent.children.spawn(&Command {
            argv: &[login_shell(agent), "-i".to_owned(), "-l".to_owned()],
            env: &env,
            cwd: CWD,
            descriptors: &[(slave, 0), (slave, 1), (slave, 2)],
            session: Session::Terminal(terminal.slave.as_raw_fd()),
            workload: agent.spawn_identity(),
        })?;
        let output = Channel::reading(terminal.master.try_clone()?)?;
        Ok(Self { child, output, input: Channel::writing(terminal.master)? })
    }

    async fn serve(mut self, mut socket: WebSocket) {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; READ_BYTES];
        let mut pending = Bytes::new();
        loop {
            tokio::select! {
                // All arms are cancel-safe.
                read = self.output.read(&mut buffer) => match read {
                    Ok(read @ 1..) => {
                        if !say(&mut socket, decoder.decode(&buffer[..read])).await {
                            return;
                        }
                    }
                    Ok(_) | Err(_) => break,
                },
                _ = &mut self.child.ended => {
                    while let Ok(Ok(read @ 1..)) = tokio::time::timeout(QUIET, self.output.read(&mut buffer)).await {
                        if !say(&mut socket, decoder.decode(&buffer[..read])).await {
                            return;
                        }
                    }
                    break;
                }
                written = self.input.write_some(&pending), if !pending.is_empty() => match written {
                    Ok(written) => drop(pending.split_to(written)),
                    Err(_) => pending.clear(),
                },
                message = websocket::receive(&mut socket), if pending.is_empty() => match message {
                    None => return,
                    Some(message) => match size(&message) {
                        // A terminal that has ended has no size.
                        Some(size) => drop(Terminal::resize(self.input.descriptor(), size)),
                        None => pending = message,
                    },
                },
            }
            tokio::task::yield_now().await;
        }
        if say(&mut socket, decoder.finish()).await {
            websocket::close(socket, CloseFrame { code: close_code::NORMAL, reason: "".into() }).await;
        }
    }
}

async fn say(socket: &mut WebSocket, text: String) -> bool {
    text.is_empty() || socket.send(Message::Text(text.into())).await.is_ok()
}

/// The size that a message tells, if it does.
fn size(message: &[u8]) -> Option<Resize> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Told {
        cols: u16,
        rows: u16,
    }
    if message.len() > SIZE_BYTES_MAX || message.first() != Some(&b'{') {
        return None;
    }
    let Told { cols, rows } = serde_json::from_slice(message).ok()?;
    let side = |side: u16| side.clamp(1, SIDE_MAX);
    Some(Resize { cols: side(cols), rows: side(rows) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_from_input() {
        assert_eq!(size(br#"{"rows":40,"cols":100}"#), Some(Resize { cols: 100, rows: 40 }));
        assert_eq!(size(br#"{"rows":0,"cols":5000}"#), Some(Resize { cols: 1000, rows: 1 }));
        for input in ["{", "ls\r", r#"{"rows":40}"#, r#"{"rows":1,"cols":1,"x":1}"#, "1"] {
            assert_eq!(size(input.as_bytes()), None, "{input}");
        }
    }

    #[test]
    fn secrets_are_found_where_they_may_be() {
        let headers = |name: HeaderName, value: &'static str| {
            HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
        };
        let shown = |value| authorization(&headers(header::AUTHORIZATION, value));
        assert_eq!(shown("Bearer abc").as_deref(), Some(&b"abc"[..]));
        assert_eq!(shown("Basic dTpwOnc=").as_deref(), Some(&b"p:w"[..]));
        assert_eq!(shown("Basic !"), None);
        assert_eq!(shown("Other abc"), None);
        let cookies = headers(header::COOKIE, "a=b; sandhaus-terminal=c; d=e");
        assert_eq!(cookie(&cookies), Some("c"));
    }

    #[test]
    fn other_sites_are_told_apart() {
        let request = |pairs: &[(&'static str, &'static str)]| {
            let pair = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            is_of_this_page(&pairs.iter().map(pair).collect())
        };
        assert!(request(&[("host", "a:1")]));
        assert!(request(&[("host", "a:1"), ("origin", "http://a:1")]));
        assert!(request(&[("host", "inner"), ("x-forwarded-host", "a"), ("origin", "https://a")]));
        assert!(!request(&[("host", "a:1"), ("origin", "http://b:1")]));
        assert!(!request(&[("host", "a:1"), ("origin", "null")]));
    }

    #[test]
    fn the_page_is_compressed() {
        for file in [PAGE, SCRIPT, STYLE] {
            assert!(file.starts_with(&[0x1f, 0x8b]));
        }
    }
}
