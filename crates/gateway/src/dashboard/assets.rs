//! The page's files as they travel: compressed where the browser can, cached for ever where the name tells the
//! content, and behind a policy that lets the page load and call nothing but this server.

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header},
};
use sandhaus_client::wire::ErrorBody;
use sandhaus_sandbox::Kind;
use sha2::{Digest, Sha256};

use super::Asset;
use crate::{
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// The page itself.
const INDEX: &str = "index.html";

/// Where the files lie whose names tell their content.
const HASHED: &str = "_app/";

/// What the page may do: run its own scripts and styles, call its own server. Nothing inline, nothing from elsewhere,
/// no frame around it, and no text that becomes markup or script.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// Headers of every file of the page.
const PAGE_HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "same-origin"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (
        HeaderName::from_static("permissions-policy"),
        "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
];

/// Headers of every other answer. Much of what `/v1` gives comes from inside sandboxes: a browser that is led there
/// must neither guess a type nor run anything in this server's name.
pub(crate) const FENCE: [(HeaderName, HeaderValue); 2] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox"),
    ),
];

/// Files with hashed names never change; the index is asked for again each time.
const CACHE_FOREVER: &str = "public, max-age=31536000, immutable";
const CACHE_ASK: &str = "no-cache";

/// What `/` says where the page was left out of the build.
const NOT_BUILT: &str = "This build has no web page: it was made with SANDHAUS_DASHBOARD=off.\n\
     Build it without that variable to have one; the API is at /v1.\n";

/// The page's files by path.
pub(crate) struct Files {
    by_path: HashMap<&'static str, (Asset, HeaderValue)>,
}

impl Files {
    pub(crate) fn new(assets: &'static [Asset]) -> Self {
        let by_path = assets.iter().map(|asset| (asset.path, (*asset, entity_tag(asset.content)))).collect();
        Self { by_path }
    }

    /// The file at `path` as an answer to a request with `headers`.
    fn answer(&self, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
        let (asset, tag) = self.by_path.get(path)?;
        let cache = if path.starts_with(HASHED) { CACHE_FOREVER } else { CACHE_ASK };
        let known = headers.get(header::IF_NONE_MATCH).is_some_and(|given| names(given, tag));
        let (content, encoding) = choose(asset, headers);
        let mut response = if known {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            Response::new(Body::from(Bytes::from_static(content)))
        };
        let out = response.headers_mut();
        for (name, value) in PAGE_HEADERS {
            out.insert(name, HeaderValue::from_static(value));
        }
        out.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.media_type));
        out.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
        out.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        out.insert(header::ETAG, tag.clone());
        if let Some(encoding) = encoding.filter(|_| !known) {
            out.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        Some(response)
    }
}

/// A weak tag: the same for every compression of one content.
fn entity_tag(content: &[u8]) -> HeaderValue {
    let mut tag = String::from("W/\"");
    for byte in &Sha256::digest(content)[..16] {
        write!(tag, "{byte:02x}").expect("writing to a string does not fail");
    }
    tag.push('"');
    HeaderValue::from_str(&tag).expect("hex digits make a header value")
}

fn names(given: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(given), Ok(tag)) = (given.to_str(), tag.to_str()) else { return false };
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    given.split(',').any(|one| one.trim() == "*" || opaque(one) == opaque(tag))
}

/// The smallest form that the browser takes.
fn choose(asset: &Asset, headers: &HeaderMap) -> (&'static [u8], Option<&'static str>) {
    let takes = |wanted: &str| {
        let lists = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        lists.flat_map(|list| list.split(',')).any(|entry| {
            let (coding, quality) = entry.split_once(';').unwrap_or((entry, ""));
            let quality = quality.trim().trim_start_matches("q=");
            let refused = !quality.is_empty() && quality.parse::<f32>().is_ok_and(|quality| quality <= 0.0);
            coding.trim().eq_ignore_ascii_case(wanted) && !refused
        })
    };
    match asset {
        Asset { brotli: Some(content), .. } if takes("br") => (content, Some("br")),
        Asset { gzip: Some(content), .. } if takes("gzip") => (content, Some("gzip")),
        Asset { content, .. } => (content, None),
    }
}

/// The web page. It shows nothing before it has the key. Needs no key.
#[utoipa::path(get, path = "/", tag = "page", security(()), responses(
    (status = 200, content_type = "text/html", body = String),
))]
pub(super) async fn index(State(edge): State<Arc<Edge>>, headers: HeaderMap) -> ApiResult<Response<Body>> {
    let page = edge.page()?;
    Ok(page.files.answer(INDEX, &headers).unwrap_or_else(|| {
        let mut response = Response::new(Body::from(NOT_BUILT));
        *response.status_mut() = StatusCode::NOT_FOUND;
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }))
}

/// Where the page of the compatible contract was; leads to `/`. Needs no key.
#[utoipa::path(get, path = "/dashboard", tag = "page", security(()), responses(
    (status = 303, description = "the page is at `/`"),
))]
pub(super) async fn old_address() -> Response<Body> {
    super::login::see_other("/")
}

/// A file of the web page. Needs no key.
#[utoipa::path(get, path = "/_app/{*path}", tag = "page", params(("path" = String, Path)), security(()), responses(
    (status = 200, description = "the file"),
    (status = 404, body = ErrorBody, description = "NOT_FOUND"),
))]
pub(super) async fn file(
    State(edge): State<Arc<Edge>>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> ApiResult<Response<Body>> {
    let page = edge.page()?;
    let answer = page.files.answer(&format!("{HASHED}{path}"), &headers);
    answer.ok_or_else(|| ApiError::new(Kind::NotFound, Subject::Request, "the page has no such file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSETS: &[Asset] = &[
        Asset {
            path: "index.html",
            media_type: "text/html; charset=utf-8",
            content: b"<!doctype html>",
            gzip: Some(b"gz"),
            brotli: None,
        },
        Asset {
            path: "_app/a-1.js",
            media_type: "text/javascript; charset=utf-8",
            content: b"1",
            gzip: Some(b"gz"),
            brotli: Some(b"br"),
        },
    ];

    fn answer(path: &str, entries: &[(HeaderName, &str)]) -> Response<Body> {
        let headers = entries
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect();
        Files::new(ASSETS).answer(path, &headers).unwrap()
    }

    #[test]
    fn the_smallest_form_that_is_taken() {
        for (accepted, path, encoding) in [
            ("gzip, deflate, br", "_app/a-1.js", Some("br")),
            ("gzip;q=1.0, br;q=0", "_app/a-1.js", Some("gzip")),
            ("GZIP", "index.html", Some("gzip")),
            ("br", "index.html", None),
            ("identity", "_app/a-1.js", None),
            ("gzipped", "_app/a-1.js", None),
            ("", "_app/a-1.js", None),
        ] {
            let response = answer(path, &[(header::ACCEPT_ENCODING, accepted)]);
            let given = response.headers().get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap());
            assert_eq!(given, encoding, "{accepted} of {path}");
            assert_eq!(response.headers()[header::VARY], "Accept-Encoding");
        }
    }

    #[test]
    fn hashed_names_are_kept_and_the_index_is_asked_for_again() {
        assert_eq!(answer("_app/a-1.js", &[]).headers()[header::CACHE_CONTROL], CACHE_FOREVER);
        let first = answer("index.html", &[]);
        assert_eq!(first.headers()[header::CACHE_CONTROL], CACHE_ASK);
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        for given in [tag.clone(), format!("\"x\", {tag}"), tag.replace("W/", ""), "*".to_owned()] {
            let again = answer("index.html", &[(header::IF_NONE_MATCH, &given)]);
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{given}");
            assert!(again.headers().contains_key(header::CONTENT_SECURITY_POLICY));
        }
        let changed = answer("index.html", &[(header::IF_NONE_MATCH, "W/\"other\"")]);
        assert_eq!(changed.status(), StatusCode::OK);
    }

    #[test]
    fn nothing_but_the_listed_files_is_found() {
        let files = Files::new(ASSETS);
        for path in ["", "_app/", "_app/../index.html", "/index.html", "_app/a-1.js/", "_APP/a-1.js"] {
            assert!(files.answer(path, &HeaderMap::new()).is_none(), "{path}");
        }
    }

    #[test]
    fn the_policy_allows_nothing_inline_and_nothing_from_elsewhere() {
        for word in ["unsafe", "http", "*", "blob:"] {
            assert!(!PAGE_POLICY.contains(word), "{word}");
        }
    }
}
