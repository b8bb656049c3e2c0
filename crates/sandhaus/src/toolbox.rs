//! Routes of the toolbox API that the domain's client has no method for.

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE};
use sandhaus_protocol::process::Process;
use sandhaus_sandbox::toolbox::{Body, Toolbox};

/// Largest answer that is held in memory.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Processes that were started through the server and are still known.
pub(crate) async fn processes(toolbox: &Toolbox) -> Result<Vec<Process>> {
    let body = get(toolbox, &format!("{}/process", sandhaus_protocol::PREFIX)).await?;
    serde_json::from_slice(&whole(body).await?).context("the list of processes is not understood")
}

/// What a request carries.
pub(crate) enum Content {
    /// Nothing.
    Nothing,
    /// A JSON document.
    Json(Vec<u8>),
    /// Bytes that mean nothing on the way.
    Bytes(Body),
}

/// Uses the sandbox, and nothing more: a server counts every call as a use.
pub(crate) async fn touch(toolbox: &Toolbox) -> Result<()> {
    whole(get(toolbox, "/version").await?).await.map(drop)
}

/// Asks the agent; an answer that is not a success is an error.
pub(crate) async fn get(toolbox: &Toolbox, path_and_query: &str) -> Result<Incoming> {
    call(toolbox, Method::GET, path_and_query, Content::Nothing).await
}

/// Tells the agent to do something; an answer that is not a success is an error.
pub(crate) async fn post(toolbox: &Toolbox, path_and_query: &str, content: Content) -> Result<()> {
    let answer = call(toolbox, Method::POST, path_and_query, content).await?;
    // Read to its end, so that the connection serves the next call.
    whole(answer).await.map(drop)
}

async fn call(toolbox: &Toolbox, method: Method, path_and_query: &str, content: Content) -> Result<Incoming> {
    let request = Request::builder().method(method).uri(path_and_query);
    let request = match content {
        Content::Nothing => request.body(Toolbox::body(Bytes::new())),
        Content::Json(json) => request.header(CONTENT_TYPE, "application/json").body(Toolbox::body(json)),
        Content::Bytes(body) => request.header(CONTENT_TYPE, "application/octet-stream").body(body),
    };
    successful(toolbox.send(request?).await?).await
}

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    message: String,
}

impl Refused {
    /// There is no such thing inside.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

/// The body of a successful answer, else the error that it tells of.
async fn successful(response: Response<Incoming>) -> Result<Incoming> {
    let status = response.status();
    if status.is_success() {
        return Ok(response.into_body());
    }
    let body = whole(response.into_body()).await.unwrap_or_default();
    let message = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|body| body.get("message").and_then(|message| message.as_str()).map(str::to_owned))
        .unwrap_or_else(|| format!("the sandbox answered {status}"));
    Err(Refused { status, message }.into())
}

/// A whole body of bounded size.
pub(crate) async fn whole(body: Incoming) -> Result<Bytes> {
    let limited = Limited::new(body, ANSWER_BYTES_MAX);
    Ok(limited.collect().await.map_err(|error| anyhow::anyhow!(error))?.to_bytes())
}

/// A word as one segment of a path.
pub(crate) fn percent_encoded(word: &str) -> String {
    let mut encoded = String::with_capacity(word.len());
    for byte in word.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => encoded.push(char::from(byte)),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
