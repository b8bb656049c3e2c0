//! Who may ask. With a key: the key, compared in constant time. Without one the listener is on loopback, and what
//! threatens then is a web page in the user's own browser: its requests carry a foreign Host or Origin.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use sandhaus_sandbox::Kind;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::{ApiError, Subject};

/// Routes that need no key: by route, never by the look of a path.
const PUBLIC_ROUTES: &[&str] = &["/healthz", "/openapi.json"];

/// What a request must show.
pub(crate) enum Guard {
    /// The key with this digest. Digests are compared, so that not even the key's length shows in the time taken.
    Key([u8; 32]),
    /// A loopback Host, and no Origin but a loopback one.
    LoopbackNames,
}

impl Guard {
    pub(crate) fn new(api_key: Option<&str>) -> Self {
        match api_key {
            Some(key) => Self::Key(digest(key.as_bytes())),
            None => Self::LoopbackNames,
        }
    }

    /// Lets a request to `route` (none: an unknown path) pass, or says why not.
    pub(crate) fn admit(&self, route: Option<&str>, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        match self {
            Self::Key(expected) => {
                if route.is_some_and(|route| PUBLIC_ROUTES.contains(&route)) || shows_key(headers, expected) {
                    Ok(())
                } else {
                    let message = "missing or invalid authorization";
                    Err(ApiError::new(Kind::Unauthenticated, Subject::Request, message))
                }
            }
            Self::LoopbackNames => {
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

    fn headers(entries: &[(header::HeaderName, &str)]) -> HeaderMap {
        entries.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn admits(guard: &Guard, route: Option<&str>, entries: &[(header::HeaderName, &str)]) -> bool {
        guard.admit(route, &Uri::from_static("/"), &headers(entries)).is_ok()
    }

    #[test]
    fn the_key_opens_and_nothing_like_it() {
        let guard = Guard::new(Some("sk-secret"));
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
        let guard = Guard::new(None);
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
}
