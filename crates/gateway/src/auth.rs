//! Who may ask. With a key: the key, compared in constant time, or the cookie of a login on the web page. Without one
//! the listener is on loopback, and what threatens then is a web page in the user's own browser: its requests carry a
//! foreign Host or Origin.
//!
//! A browser sends a cookie along with whatever any page makes it ask. So a request that only a cookie vouches for must
//! also come from our own page: the browser says so in `Sec-Fetch-Site` or `Origin`, which no page can forge.

use std::{net::IpAddr, sync::Arc};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use sandhaus_sandbox::Kind;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::{
    dashboard::{self, Logins},
    error::{ApiError, Subject},
};

/// Routes that need no key: by route, never by the look of a path.
pub(crate) const PUBLIC_ROUTES: &[&str] = &["/healthz", "/openapi.json"];

/// Where a request comes from, as a browser tells it.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Lets requests in.
pub(crate) struct Guard {
    door: Door,
    /// Logins of the web page, where it is served.
    logins: Option<Arc<Logins>>,
    /// Routes that need no key.
    public: &'static [&'static str],
}

/// What a request must show.
enum Door {
    /// The key with this digest. Digests are compared, so that not even the key's length shows in the time taken.
    Key([u8; 32]),
    /// A loopback Host, and no Origin but a loopback one.
    LoopbackNames,
}

/// Who sent a request, as far as the key tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// No key is needed here.
    Anyone,
    /// Someone with the key.
    KeyHolder,
    /// Someone who did not show it.
    Unknown,
}

impl Guard {
    pub(crate) fn new(
        api_key: Option<&str>,
        logins: Option<Arc<Logins>>,
        public: &'static [&'static str],
    ) -> Self {
        let door = match api_key {
            Some(key) => Door::Key(digest(key.as_bytes())),
            None => Door::LoopbackNames,
        };
        Self { door, logins, public }
    }

    /// Whether requests may carry a cookie of the web page.
    pub(crate) fn has_logins(&self) -> bool {
        self.logins.is_some()
    }

    /// Whether there is a key to show.
    pub(crate) fn needs_key(&self) -> bool {
        matches!(self.door, Door::Key(_))
    }

    /// Whether `text` is the key; where none is needed, any text is.
    pub(crate) fn is_key(&self, text: &[u8]) -> bool {
        match &self.door {
            Door::Key(expected) => digest(text).ct_eq(expected).into(),
            Door::LoopbackNames => true,
        }
    }

    /// Who asks, by the key alone.
    pub(crate) fn who(&self, headers: &HeaderMap) -> Who {
        match &self.door {
            Door::LoopbackNames => Who::Anyone,
            Door::Key(expected) if shows_key(headers, expected) => Who::KeyHolder,
            Door::Key(_) => Who::Unknown,
        }
    }

    /// Lets a request to `route` (none: an unknown path) pass, or says why not.
    pub(crate) fn admit(
        &self,
        route: Option<&str>,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), ApiError> {
        match &self.door {
            Door::Key(expected) => {
                let page = |route: &str| self.logins.is_some() && dashboard::PUBLIC_ROUTES.contains(&route);
                let public = |route: &str| self.public.contains(&route) || page(route);
                if route.is_some_and(public) || shows_key(headers, expected) {
                    return Ok(());
                }
                let logged_in = |logins: &Arc<Logins>| logins.recognise(headers, Instant::now());
                if self.logins.as_ref().is_some_and(logged_in) {
                    return from_our_page(method, uri, headers);
                }
                let message = "missing or invalid authorization";
                Err(ApiError::new(Kind::Unauthenticated, Subject::Request, message))
            }
            Door::LoopbackNames => {
                let host = uri.authority().map(|authority| authority.as_str());
                let named = headers.get(header::HOST).map(|value| value.to_str().unwrap_or_default());
                if let Some(foreign) = host.into_iter().chain(named).find(|name| !is_loopback_authority(name))
                {
                    return Err(foreign_name("host", foreign));
                }
                match headers.get(header::ORIGIN).map(|value| value.to_str().unwrap_or_default()) {
                    Some(origin) if !is_loopback_origin(origin) => Err(foreign_name("origin", origin)),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Refuses what another site's page makes a browser send. A request that says nothing of where it comes from is no
/// browser's, or harmless: reading, where the reader cannot see the answer.
pub(crate) fn from_our_page(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let reads = matches!(*method, Method::GET | Method::HEAD) && !headers.contains_key(header::UPGRADE);
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let ours = match (text(&SEC_FETCH_SITE), text(&header::ORIGIN)) {
        (Some("same-origin"), _) => true,
        // Typed in, or from a bookmark.
        (Some("none"), _) => reads,
        (Some(_), _) => false,
        (None, Some(origin)) => {
            let host = uri.authority().map(|authority| authority.as_str()).or(text(&header::HOST));
            let named = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            named.is_some_and(|named| host.is_some_and(|host| named.eq_ignore_ascii_case(host)))
        }
        (None, None) => reads,
    };
    if ours {
        return Ok(());
    }
    let message =
        "the request does not come from this server's own page; programs send the key instead of a cookie";
    Err(ApiError::new(Kind::Forbidden, Subject::Request, message))
}

fn foreign_name(what: &str, name: &str) -> ApiError {
    let message =
        format!("{what} {name:?} is not this machine's loopback name; set an API key to be reached by it");
    ApiError::new(Kind::Forbidden, Subject::Request, message)
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn shows_key(headers: &HeaderMap, expected: &[u8; 32]) -> bool {
    let shown = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    shown
        .and_then(|value| value.strip_prefix(b"Bearer "))
        .is_some_and(|key| digest(key).ct_eq(expected).into())
}

fn is_loopback_origin(origin: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .find_map(|scheme| origin.strip_prefix(scheme))
        .is_some_and(|authority| !authority.is_empty() && is_loopback_authority(authority))
}

/// `NAME[:PORT]` with a name that always means this machine.
fn is_loopback_authority(authority: &str) -> bool {
    let name = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if port.is_empty() || is_port(port) => address,
            _ => return false,
        },
        None => match authority.split_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) => return false,
            None => authority,
        },
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':')
        .is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(entries: &[(HeaderName, &str)]) -> HeaderMap {
        entries.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn admits(guard: &Guard, route: Option<&str>, entries: &[(HeaderName, &str)]) -> bool {
        guard.admit(route, &Method::GET, &Uri::from_static("/"), &headers(entries)).is_ok()
    }

    #[test]
    fn the_key_opens_and_nothing_like_it() {
        let guard = Guard::new(Some("sk-secret"), None, PUBLIC_ROUTES);
        let sessions = Some("/v1/sessions");
        assert!(admits(&guard, sessions, &[(header::AUTHORIZATION, "Bearer sk-secret")]));
        for wrong in [
            "",
            "sk-secret",
            "bearer sk-secret",
            "Bearer sk-secre",
            "Bearer sk-secrets",
            "Bearer  sk-secret",
            "Bearer ",
        ] {
            assert!(!admits(&guard, sessions, &[(header::AUTHORIZATION, wrong)]), "{wrong:?}");
        }
        assert!(!admits(&guard, sessions, &[]));
        assert!(!admits(&guard, None, &[]), "an unknown path tells nothing without the key");
        assert!(!admits(&guard, Some("/metrics"), &[]));
        assert!(admits(&guard, Some("/healthz"), &[]));
        assert!(admits(&guard, Some("/openapi.json"), &[]));
    }

    #[test]
    fn without_a_key_only_loopback_names_pass() {
        let guard = Guard::new(None, None, PUBLIC_ROUTES);
        for good in ["localhost", "LocalHost:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:80", "[::1]"] {
            assert!(admits(&guard, None, &[(header::HOST, good)]), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8080",
            "192.168.0.1",
            "0.0.0.0:8080",
            "[::1",
            "[::1]evil",
            "localhost:x",
            "",
        ] {
            assert!(!admits(&guard, Some("/healthz"), &[(header::HOST, bad)]), "{bad}");
        }
        let host = (header::HOST, "localhost:8080");
        assert!(admits(&guard, None, &[host.clone(), (header::ORIGIN, "http://127.0.0.1:3000")]));
        for bad in ["http://evil.example", "null", "http://", "file://", "https://localhost@evil.example"] {
            assert!(!admits(&guard, None, &[host.clone(), (header::ORIGIN, bad)]), "{bad}");
        }
    }
    fn logged_in() -> (Guard, (HeaderName, String)) {
        let logins = Arc::new(Logins::new(dashboard::CookieTransport::Any));
        let cookie = logins.begin(Instant::now());
        let pair = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        (Guard::new(Some("sk-secret"), Some(logins), PUBLIC_ROUTES), (header::COOKIE, pair))
    }

    #[test]
    fn w02_public_paths_are_routes_never_suffixes() {
        let (guard, _) = logged_in();
        for public in
            ["/", "/_app/{*path}", "/dashboard", "/dashboard/login", "/dashboard/session", "/healthz"]
        {
            assert!(admits(&guard, Some(public), &[]), "{public}");
        }
        for closed in [
            None,
            Some("/v1/sessions"),
            Some("/v1/sessions/{id}"),
            Some("/v1/sessions/{id}/toolbox/{*path}"),
            Some("/dashboard/logout"),
            Some("/metrics"),
        ] {
            for path in
                ["/v1/sessions/x.js", "/sessions/x", "/_app/../v1/sessions", "/v1/sessions/a.css?x=.png"]
            {
                let uri: Uri = path.parse().unwrap();
                assert!(
                    guard.admit(closed, &Method::GET, &uri, &HeaderMap::new()).is_err(),
                    "{closed:?} {path}"
                );
            }
        }
    }

    #[test]
    fn w03_the_cookie_is_not_the_key_and_the_key_is_no_cookie() {
        let (guard, (name, pair)) = logged_in();
        let sessions = Some("/v1/sessions");
        assert!(admits(&guard, sessions, &[(name.clone(), &pair)]));
        let token = pair.split_once('=').unwrap().1;
        assert!(!admits(&guard, sessions, &[(header::AUTHORIZATION, &format!("Bearer {token}"))]));
        assert!(!admits(&guard, sessions, &[(name.clone(), "sandkasten_dashboard=sk-secret")]));
        assert!(!pair.contains("sk-secret"));
        let uri = Uri::from_static("/v1/sessions?api_key=sk-secret");
        assert!(
            guard.admit(sessions, &Method::GET, &uri, &HeaderMap::new()).is_err(),
            "no key in an address"
        );
    }

    #[test]
    fn a_cookie_alone_does_nothing_for_other_pages() {
        let (guard, (name, pair)) = logged_in();
        let asked = |method: &Method, entries: &[(HeaderName, &str)]| {
            let mut headers = headers(entries);
            headers.insert(name.clone(), HeaderValue::from_str(&pair).unwrap());
            headers.insert(header::HOST, HeaderValue::from_static("box.example:8080"));
            guard.admit(Some("/v1/sessions"), method, &Uri::from_static("/v1/sessions"), &headers).is_ok()
        };
        let (site, origin, upgrade) = (SEC_FETCH_SITE, header::ORIGIN, header::UPGRADE);
        assert!(asked(&Method::GET, &[]));
        assert!(!asked(&Method::POST, &[]));
        assert!(!asked(&Method::GET, &[(upgrade.clone(), "websocket")]));
        assert!(asked(&Method::POST, &[(site.clone(), "same-origin")]));
        assert!(asked(&Method::POST, &[(origin.clone(), "http://box.example:8080")]));
        assert!(asked(
            &Method::GET,
            &[(origin.clone(), "https://BOX.example:8080"), (upgrade.clone(), "websocket")]
        ));
        assert!(asked(&Method::GET, &[(site.clone(), "none")]));
        assert!(!asked(&Method::DELETE, &[(site.clone(), "none")]));
        for foreign in ["cross-site", "same-site", ""] {
            assert!(!asked(&Method::GET, &[(site.clone(), foreign)]), "{foreign}");
            assert!(!asked(&Method::POST, &[(site.clone(), foreign)]), "{foreign}");
        }
        for foreign in
            ["http://evil.example", "http://box.example", "null", "http://box.example:8080.evil.example", ""]
        {
            assert!(!asked(&Method::POST, &[(origin.clone(), foreign)]), "{foreign}");
            assert!(
                !asked(&Method::GET, &[(origin.clone(), foreign), (upgrade.clone(), "websocket")]),
                "{foreign}"
            );
        }
    }
}
