//! The web page's edge: who may see what without the key, and what a cookie is good for.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use sandhaus_gateway::{Asset, CookieTransport, Dashboard, GatewayConfig, V1Config};
use sandhaus_sandbox::testing::config;

use crate::server::{Edge, KEY};

const ASSETS: &[Asset] = &[
    Asset {
        path: "index.html",
        media_type: "text/html; charset=utf-8",
        content: b"<!doctype html><title>Sandhaus</title>",
        gzip: None,
        brotli: None,
    },
    Asset {
        path: "_app/index-1.js",
        media_type: "text/javascript; charset=utf-8",
        content: b"1",
        gzip: None,
        brotli: None,
    },
];

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const SAME: (&str, &str) = ("sec-fetch-site", "same-origin");

async fn served(api_key: Option<&str>, assets: &'static [Asset]) -> Edge {
    let dashboard = Some(Dashboard { assets, cookie: CookieTransport::Any });
    let gateway = GatewayConfig { api_key: api_key.map(str::to_owned), dashboard, v1: V1Config::default() };
    Edge::start_gateway(config(), gateway).await
}

/// A request with these headers and no key, as a browser sends it.
async fn browse(
    edge: &Edge,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response<Incoming> {
    let stream = tokio::net::TcpStream::connect(edge.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
    sender.send_request(request.body(body).unwrap()).await.unwrap()
}

async fn status(edge: &Edge, method: Method, path: &str, headers: &[(&str, &str)]) -> StatusCode {
    browse(edge, method, path, headers, "").await.status()
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn login_body(key: &str) -> String {
    serde_json::json!({ "api_key": key }).to_string()
}

/// Logs in and gives the cookie as a browser sends it back.
async fn log_in(edge: &Edge) -> String {
    let answer = browse(edge, Method::POST, "/dashboard/login", &[SAME], &login_body(KEY)).await;
    assert_eq!(answer.status(), StatusCode::OK);
    cookie(answer.headers())
}

fn cookie(headers: &HeaderMap) -> String {
    headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn w02_without_the_key_there_is_a_page_and_no_data() {
    let edge = served(Some(KEY), ASSETS).await;
    let id = edge.session().await;
    let index = browse(&edge, Method::GET, "/", &[], "").await;
    assert_eq!(index.status(), StatusCode::OK);
    let policy = index.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    assert!(!text(index).await.contains(&id));
    let session = browse(&edge, Method::GET, "/dashboard/session", &[], "").await;
    assert_eq!(text(session).await, "{\"authenticated\":false,\"needs_key\":true}\n");
    assert_eq!(status(&edge, Method::GET, "/_app/index-1.js", &[]).await, StatusCode::OK);
    assert_eq!(status(&edge, Method::HEAD, "/", &[]).await, StatusCode::OK);
    // What lies beneath the page's own folder is looked up by name, and never leads out of it.
    for path in ["/_app/../v1/sessions", "/_app/%2e%2e/index.html", "/_app/x.js"] {
        assert_eq!(status(&edge, Method::GET, path, &[]).await, StatusCode::NOT_FOUND, "{path}");
    }
    for path in [
        "/v1/sessions",
        &format!("/v1/sessions/{id}"),
        &format!("/v1/sessions/{id}.js"),
        &format!("/v1/sessions/{id}/toolbox/files/download?path=/x.css"),
        &format!("/v1/sessions/{id}/toolbox/x.js"),
        "/v1/stats",
        "/v1/x.png",
        "/sessions/x",
        "/settings",
        "/workspaces/a.ico",
        "/metrics",
        "/index.html",
        "/dashboard/playground/x.js",
    ] {
        for method in [Method::GET, Method::HEAD, Method::DELETE, Method::POST] {
            assert_eq!(
                status(&edge, method.clone(), path, &[]).await,
                StatusCode::UNAUTHORIZED,
                "{method} {path}"
            );
        }
    }
}

#[tokio::test]
async fn w03_the_cookie_is_random_and_worth_nothing_once_it_is_given_back() {
    let edge = served(Some(KEY), ASSETS).await;
    let (mine, other) = (log_in(&edge).await, log_in(&edge).await);
    assert_ne!(mine, other);
    assert!(mine.starts_with("sandkasten_dashboard=") && !mine.contains(KEY));
    assert_eq!(status(&edge, Method::GET, "/v1/sessions", &[("cookie", &mine)]).await, StatusCode::OK);
    let session = browse(&edge, Method::GET, "/dashboard/session", &[("cookie", &mine)], "").await;
    assert!(text(session).await.contains("\"authenticated\":true"));
    let out = browse(&edge, Method::POST, "/dashboard/logout", &[("cookie", &mine), SAME], "").await;
    assert_eq!(cookie(out.headers()), "sandkasten_dashboard=");
    assert_eq!(
        status(&edge, Method::GET, "/v1/sessions", &[("cookie", &mine)]).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(status(&edge, Method::GET, "/v1/sessions", &[("cookie", &other)]).await, StatusCode::OK);
}

#[tokio::test]
async fn w03_the_key_is_no_cookie_and_no_part_of_an_address() {
    let edge = served(Some(KEY), ASSETS).await;
    let as_cookie = format!("sandkasten_dashboard={KEY}");
    let refused = StatusCode::UNAUTHORIZED;
    assert_eq!(status(&edge, Method::GET, "/v1/sessions", &[("cookie", &as_cookie)]).await, refused);
    assert_eq!(status(&edge, Method::GET, &format!("/v1/sessions?api_key={KEY}"), &[]).await, refused);
    let index = browse(&edge, Method::GET, &format!("/?api_key={KEY}"), &[], "").await;
    assert!(!index.headers().contains_key("set-cookie"));
}

#[tokio::test]
async fn a_cookie_does_nothing_for_other_sites() {
    let edge = served(Some(KEY), ASSETS).await;
    let mine = log_in(&edge).await;
    let id = edge.session().await;
    let one = format!("/v1/sessions/{id}");
    for foreign in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "http://evil.example"),
        ("origin", "http://localhost:1"),
        ("origin", "null"),
        ("x-nothing", "said"),
    ] {
        for (method, path) in [
            (Method::DELETE, one.as_str()),
            (Method::POST, "/v1/sessions"),
            (Method::POST, "/dashboard/logout"),
        ] {
            let refused = status(&edge, method, path, &[("cookie", &mine), foreign]).await;
            assert_eq!(refused, StatusCode::FORBIDDEN, "{path} {foreign:?}");
        }
        let terminal = format!("{one}/toolbox/process/pty/x/connect");
        let upgrade =
            [("connection", "upgrade"), ("upgrade", "websocket"), ("cookie", mine.as_str()), foreign];
        assert_eq!(
            status(&edge, Method::GET, &terminal, &upgrade).await,
            StatusCode::FORBIDDEN,
            "{foreign:?}"
        );
    }
    let own = [("cookie", mine.as_str()), ("origin", "http://localhost")];
    assert_eq!(status(&edge, Method::DELETE, &one, &own).await, StatusCode::OK);
}

#[tokio::test]
async fn forms_log_in_too() {
    let edge = served(Some(KEY), ASSETS).await;
    let good =
        browse(&edge, Method::POST, "/dashboard/login", &[FORM, SAME], &format!("api_key={KEY}")).await;
    assert_eq!((good.status(), &good.headers()["location"]), (StatusCode::SEE_OTHER, &"/".parse().unwrap()));
    let mine = cookie(good.headers());
    assert_eq!(status(&edge, Method::GET, "/v1/sessions", &[("cookie", &mine)]).await, StatusCode::OK);
    let wrong = browse(&edge, Method::POST, "/dashboard/login", &[FORM], "api_key=sk%2Dwrong").await;
    assert_eq!(wrong.headers()["location"], "/?login=refused");
    assert!(!wrong.headers().contains_key("set-cookie"));
    let foreign = [FORM, ("origin", "http://evil.example")];
    assert_eq!(status(&edge, Method::POST, "/dashboard/login", &foreign).await, StatusCode::FORBIDDEN);
    assert_eq!(status(&edge, Method::GET, "/dashboard", &[]).await, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn guessing_is_slowed_down() {
    let edge = served(Some(KEY), ASSETS).await;
    let mut refusals = 0;
    let last = loop {
        let answer = browse(&edge, Method::POST, "/dashboard/login", &[], &login_body("sk-guess")).await;
        if answer.status() != StatusCode::UNAUTHORIZED {
            break answer;
        }
        refusals += 1;
        assert!(refusals < 100, "nobody may guess for ever");
    };
    assert_eq!(last.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(last.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    let right = browse(&edge, Method::POST, "/dashboard/login", &[], &login_body(KEY)).await;
    assert_eq!(right.status(), StatusCode::TOO_MANY_REQUESTS, "the right guess waits like the others");
    for wrong in ["", "{}", "[]", "{\"api_key\":1}", &"x".repeat(20_000)] {
        let answer = browse(&edge, Method::POST, "/dashboard/login", &[], wrong).await;
        assert!(answer.status().is_client_error());
    }
}

#[tokio::test]
async fn malformed_logins_are_the_callers_fault() {
    let edge = served(Some(KEY), ASSETS).await;
    for (header, body) in [
        (SAME, ""),
        (SAME, "{}"),
        (SAME, "{\"api_key\":1}"),
        (FORM, "api_key=%zz%"),
        (SAME, &format!("\"{}\"", "x".repeat(20_000))),
    ] {
        let answer = browse(&edge, Method::POST, "/dashboard/login", &[header], body).await;
        let status = answer.status();
        assert!(status == StatusCode::BAD_REQUEST || header == FORM, "{status} {body}");
        assert!(!answer.headers().contains_key("set-cookie"));
    }
}

#[tokio::test]
async fn without_a_key_nobody_logs_in() {
    let edge = served(None, ASSETS).await;
    let session = browse(&edge, Method::GET, "/dashboard/session", &[], "").await;
    assert!(text(session).await.starts_with("{\"authenticated\":true,\"needs_key\":false"));
    assert_eq!(status(&edge, Method::GET, "/v1/sessions", &[]).await, StatusCode::OK);
    assert_eq!(
        status(&edge, Method::GET, "/", &[("origin", "http://evil.example")]).await,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test]
async fn a_server_without_the_page_says_so() {
    let without = Edge::start().await;
    for path in ["/", "/dashboard", "/dashboard/session", "/_app/index-1.js"] {
        assert_eq!(without.call(Method::GET, path, "").await.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(status(&without, Method::GET, path, &[]).await, StatusCode::UNAUTHORIZED, "{path}");
    }
    let unbuilt = served(Some(KEY), &[]).await;
    let index = browse(&unbuilt, Method::GET, "/", &[], "").await;
    assert_eq!(index.status(), StatusCode::NOT_FOUND);
    assert!(text(index).await.contains("SANDHAUS_DASHBOARD=off"));
}

#[tokio::test]
async fn what_is_not_the_page_is_fenced_in() {
    let edge = served(Some(KEY), ASSETS).await;
    for path in ["/v1/sessions", "/healthz", "/openapi.json", "/v1/nothing", "/dashboard/session"] {
        let headers = edge.call(Method::GET, path, "").await.headers;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("sandbox"), "{path}: {policy}");
    }
}

#[tokio::test]
async fn statistics_of_all_come_at_once() {
    let edge = Edge::start().await;
    let (running, stopped) = (edge.session().await, edge.session().await);
    edge.call(Method::POST, &format!("/v1/sessions/{stopped}/stop"), "").await;
    let all = edge.call(Method::GET, "/v1/stats", "").await.json();
    let sessions = all["sessions"].as_object().unwrap();
    assert_eq!(sessions.keys().collect::<Vec<_>>(), [&running]);
    assert!(sessions[&running]["memory_bytes"].is_u64());
}
