//! Who is logged in: random tokens, of which only digests are kept. They end with the server, with time, or when their
//! owner logs out; none of them says anything about the key.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderValue, header};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::CookieTransport;

/// Name of the cookie, as the compatible contract has it.
const COOKIE: &str = "sandkasten_dashboard";

/// Most logins at once; a further one ends the one that was unused for longest.
const LOGINS_MAX: usize = 256;

/// How long a login lasts, used or not.
const LIFE: Duration = Duration::from_hours(7 * 24);

/// How long a login lasts unused.
const IDLE: Duration = Duration::from_hours(12);

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

type TokenDigest = [u8; 32];

/// The logins.
pub(crate) struct Logins {
    by_digest: Mutex<HashMap<TokenDigest, Login>>,
    transport: CookieTransport,
}

struct Login {
    began: Instant,
    used: Instant,
}

impl Login {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= LIFE || now.saturating_duration_since(self.used) >= IDLE
    }
}

impl Logins {
    pub(crate) fn new(transport: CookieTransport) -> Self {
        Self { by_digest: Mutex::default(), transport }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<TokenDigest, Login>> {
        self.by_digest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a login and gives the cookie that carries it.
    pub(crate) fn begin(&self, now: Instant) -> HeaderValue {
        let mut token = [0; TOKEN_BYTES];
        getrandom::fill(&mut token).expect("the kernel has random bytes");
        let token = URL_SAFE_NO_PAD.encode(token);
        let mut table = self.table();
        table.retain(|_, login| !login.is_over(now));
        if table.len() >= LOGINS_MAX {
            let oldest = table.iter().min_by_key(|(_, login)| login.used).map(|(digest, _)| *digest);
            if let Some(oldest) = oldest {
                table.remove(&oldest);
            }
        }
        table.insert(digest(token.as_bytes()), Login { began: now, used: now });
        self.cookie(&token, LIFE)
    }

    /// Whether a request belongs to a login; that counts as use.
    pub(crate) fn recognise(&self, headers: &HeaderMap, now: Instant) -> bool {
        // Looked up by digest, so that the time taken says nothing about any token.
        shown(headers).any(|token| match self.table().get_mut(&digest(token)) {
            Some(login) if !login.is_over(now) => {
                login.used = now;
                true
            }
            Some(_) | None => false,
        })
    }

    /// Ends the login of a request and gives the cookie that takes the old one away.
    pub(crate) fn end(&self, headers: &HeaderMap) -> HeaderValue {
        for token in shown(headers) {
            self.table().remove(&digest(token));
        }
        self.cookie("", Duration::ZERO)
    }

    fn cookie(&self, token: &str, life: Duration) -> HeaderValue {
        let secure = match self.transport {
            CookieTransport::Any => "",
            CookieTransport::Secure => "; Secure",
        };
        let age = life.as_secs();
        let cookie = format!("{COOKIE}={token}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
        let mut value = HeaderValue::from_str(&cookie).expect("base64 makes a header value");
        value.set_sensitive(true);
        value
    }
}

/// The tokens that a request shows; honest ones show one.
fn shown(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let cookies =
        headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b';'));
    cookies
        .filter_map(|cookie| cookie.trim_ascii().strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"="))
        .take(4)
}

fn digest(token: &[u8]) -> TokenDigest {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(cookie: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(cookie).unwrap())])
    }

    fn pair(cookie: &HeaderValue) -> String {
        cookie.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    #[test]
    fn a_login_lasts_until_it_ends() {
        let logins = Logins::new(CookieTransport::Any);
        let now = Instant::now();
        let cookie = logins.begin(now);
        let text = cookie.to_str().unwrap();
        for attribute in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
            assert!(text.contains(attribute), "{text}");
        }
        assert!(!text.contains("Secure"));
        assert!(cookie.is_sensitive());
        let mine = with(&format!("theme=dark; {}", pair(&cookie)));
        assert!(logins.recognise(&mine, now));
        assert!(logins.recognise(&mine, now + IDLE / 2));
        assert!(logins.recognise(&mine, now + IDLE), "use keeps it alive");
        assert!(!logins.recognise(&mine, now + IDLE * 2), "no use ends it");
        assert!(pair(&logins.end(&mine)).ends_with('='));
        assert!(!logins.recognise(&mine, now));
    }

    #[test]
    fn nothing_lasts_longer_than_its_life() {
        let logins = Logins::new(CookieTransport::Secure);
        let begun = Instant::now();
        let cookie = logins.begin(begun);
        assert!(cookie.to_str().unwrap().ends_with("; Secure"));
        let mine = with(&pair(&cookie));
        let mut now = begun;
        while now + IDLE / 2 < begun + LIFE {
            now += IDLE / 2;
            assert!(logins.recognise(&mine, now));
        }
        assert!(!logins.recognise(&mine, begun + LIFE));
    }

    #[test]
    fn invented_tokens_are_nobody() {
        let logins = Logins::new(CookieTransport::Any);
        let now = Instant::now();
        let cookie = pair(&logins.begin(now));
        for wrong in [
            format!("{COOKIE}="),
            format!("{COOKIE}=sk-secret"),
            format!("{cookie}x"),
            format!("x{cookie}"),
            cookie.replace('=', ""),
            cookie[..cookie.len() - 1].to_owned(),
        ] {
            assert!(!logins.recognise(&with(&wrong), now), "{wrong}");
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let logins = Logins::new(CookieTransport::Any);
        let now = Instant::now();
        let first = with(&pair(&logins.begin(now)));
        let second = with(&pair(&logins.begin(now + Duration::from_secs(1))));
        for _ in 2..=LOGINS_MAX {
            logins.begin(now + Duration::from_secs(2));
        }
        assert_eq!(logins.table().len(), LOGINS_MAX);
        assert!(!logins.recognise(&first, now), "the one that was unused for longest");
        assert!(logins.recognise(&second, now + Duration::from_secs(2)));
    }
}
