//! The web page: its files, which arrive as data, and its login. The page itself is a program in the browser that
//! speaks `/v1` like any other client; nothing it shows is rendered here.
//!
//! Reading order: `assets` (files and the headers that fence them in), `login` (the key once, then a cookie),
//! `logins` (who is logged in), `attempts` (how often one may try).

use std::sync::Arc;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::edge::Edge;

mod assets;
mod attempts;
mod login;
mod logins;

pub(crate) use assets::{FENCE, Files};
pub(crate) use attempts::Attempts;
pub(crate) use logins::Logins;

/// Routes that need no key, since they show nothing but the page's own program and ask for the key.
pub(crate) const PUBLIC_ROUTES: &[&str] =
    &["/", "/_app/{*path}", "/dashboard", "/dashboard/login", "/dashboard/session"];

/// The web page.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dashboard {
    /// Its files; none: this build has no page, and `/` says so.
    pub assets: &'static [Asset],
    /// How the login's cookie travels.
    pub cookie: CookieTransport,
}

/// How the login's cookie may travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CookieTransport {
    /// As the page does, also over plain HTTP.
    #[default]
    Any,
    /// Over TLS only: for a server behind a proxy that speaks TLS.
    Secure,
}

/// A file of the web page.
#[derive(Debug, Clone, Copy)]
pub struct Asset {
    /// Path without the leading slash: `index.html`, `_app/index-3f2a.js`.
    pub path: &'static str,
    /// Media type.
    pub media_type: &'static str,
    /// The file.
    pub content: &'static [u8],
    /// The same, compressed with gzip.
    pub gzip: Option<&'static [u8]>,
    /// The same, compressed with brotli.
    pub brotli: Option<&'static [u8]>,
}

/// What the page's handlers share.
pub(crate) struct Page {
    pub(crate) files: Files,
    pub(crate) attempts: Attempts,
    pub(crate) logins: Arc<Logins>,
}

impl Page {
    pub(crate) fn new(dashboard: Dashboard) -> Self {
        Self {
            files: Files::new(dashboard.assets),
            attempts: Attempts::default(),
            logins: Arc::new(Logins::new(dashboard.cookie)),
        }
    }
}

/// All routes of the page.
pub(crate) fn routes() -> OpenApiRouter<Arc<Edge>> {
    OpenApiRouter::new()
        .routes(routes!(assets::index))
        .routes(routes!(assets::old_address))
        .routes(routes!(assets::file))
        .routes(routes!(login::login))
        .routes(routes!(login::logout))
        .routes(routes!(login::session))
}
