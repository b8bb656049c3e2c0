//! Asking a registry: authentication, redirects, patience.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    header::{self, HeaderMap, HeaderValue},
};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{
    challenge::{self, Challenge},
    connect::{self, HttpClient},
    credentials::{Credentials, Found},
    manifest::{ACCEPT, DOCUMENT_BYTES_MAX},
    reference::{Reference, is_loopback},
};
use crate::{Error, Result, blob::BlobDigest};

/// How often a request that failed for a reason that may pass is made again.
const RETRIES_MAX: u32 = 5;

/// How long to wait before the first of them; each further one waits twice as long.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Longest wait between two tries, also where a registry asks for a longer one.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// How long a registry may take to begin an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it may take to find out whether a registry that needs no TLS has it all the same.
const TLS_PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a document may take to arrive.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Most redirects of one request.
const REDIRECTS_MAX: usize = 5;

/// Largest answer of a token server.
const TOKEN_BYTES_MAX: usize = 1 << 20;

/// Digits of an error's text that are shown.
const SHOWN_CHARACTERS_MAX: usize = 300;

/// Whether a registry may be spoken to without TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// Only on this very machine.
    #[default]
    Loopback,
    /// Anywhere; others may then read and change what is sent.
    Anywhere,
}

/// One repository of a registry, for one pull. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    http: HttpClient,
    name: String,
    repository: String,
    base: String,
    plain: PlainHttp,
    found: Found,
    authorization: Mutex<Option<HeaderValue>>,
}

/// What a token server answers.
#[derive(Deserialize)]
struct TokenReply {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// Errors as registries word them.
#[derive(Deserialize)]
struct ErrorReply {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Why one try failed, and whether another is worth it.
pub(crate) enum Attempt {
    /// It may pass; after so long, if the registry says.
    Passing(Error, Option<Duration>),
    /// It will not.
    Lasting(Error),
}

/// Waits grow with each failure; progress starts them anew.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    failures: u32,
}

impl Patience {
    /// Something was achieved.
    pub(crate) fn renew(&mut self) {
        self.failures = 0;
    }

    /// Waits before the next try, or gives up with the error.
    pub(crate) async fn wait(&mut self, attempt: Attempt) -> Result<()> {
        let (error, asked) = match attempt {
            Attempt::Lasting(error) => return Err(error),
            Attempt::Passing(error, asked) => (error, asked),
        };
        if self.failures >= RETRIES_MAX {
            return Err(error);
        }
        let grown = RETRY_DELAY * 2_u32.pow(self.failures);
        self.failures += 1;
        let delay = asked.unwrap_or_default().max(grown).min(RETRY_DELAY_MAX);
        tracing::info!(%error, ?delay, "trying again");
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

impl Registry {
    /// Finds out how the registry of a reference is to be spoken to.
    pub(crate) async fn open(reference: &Reference, plain: PlainHttp, found: Found) -> Result<Self> {
        let failed = |source| Error::Registry {
            registry: reference.registry().to_owned(),
            problem: "cannot be spoken to: TLS cannot be set up".to_owned(),
            source: Some(source),
        };
        let http = connect::client().map_err(failed)?;
        let plain_allowed = reference.is_loopback() || plain == PlainHttp::Anywhere;
        let mut scheme = "https";
        if plain_allowed && !answers_tls(&http, reference.authority()).await {
            scheme = "http";
        }
        let base = format!("{scheme}://{}/v2/{}", reference.authority(), reference.repository());
        Ok(Self {
            shared: Arc::new(Shared {
                http,
                name: reference.registry().to_owned(),
                repository: reference.repository().to_owned(),
                base,
                plain: if plain_allowed { PlainHttp::Anywhere } else { PlainHttp::Loopback },
                found,
                authorization: Mutex::new(None),
            }),
        })
    }

    /// A manifest or index with its digest: the one that its bytes have.
    pub(crate) async fn document(&self, reference: &Reference, name: &str) -> Result<(Bytes, BlobDigest)> {
        let url = format!("{}/manifests/{name}", self.shared.base);
        let bytes = self.fetch(&url, Some(ACCEPT)).await.map_err(|error| match error {
            Error::NotFound(_) => Error::NotInRegistry(reference.to_string()),
            error => error,
        })?;
        let digest = BlobDigest::of(&bytes);
        if let Some(wanted) = BlobDigest::parse(name) {
            wanted.equals(&format!("the manifest of {reference}"), &digest)?;
        }
        Ok((bytes, digest))
    }

    /// A small blob, whole and checked.
    pub(crate) async fn small_blob(&self, what: &str, digest: &BlobDigest) -> Result<Bytes> {
        let url = format!("{}/blobs/{digest}", self.shared.base);
        let bytes = self.fetch(&url, None).await.map_err(|error| match error {
            Error::NotFound(_) => self.error(format!("does not have {what}, {digest}"), None),
            error => error,
        })?;
        digest.check(what, &bytes)?;
        Ok(bytes)
    }

    /// A blob from `offset` on. The answer tells whether it begins there (206) or at the start (200).
    pub(crate) async fn blob(
        &self,
        digest: &BlobDigest,
        offset: u64,
    ) -> std::result::Result<Response<Incoming>, Attempt> {
        let url = format!("{}/blobs/{digest}", self.shared.base);
        let range = (offset > 0).then(|| format!("bytes={offset}-"));
        self.get(&url, None, range.as_deref()).await.map_err(|attempt| match attempt {
            Attempt::Lasting(Error::NotFound(_)) => {
                Attempt::Lasting(self.error(format!("does not have layer {digest}"), None))
            }
            attempt => attempt,
        })
    }

    /// A failure of the registry.
    pub(crate) fn error(
        &self,
        problem: impl Into<String>,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Registry { registry: self.shared.name.clone(), problem: problem.into(), source }
    }

    /// A whole document, however often it takes.
    async fn fetch(&self, url: &str, accept: Option<&str>) -> Result<Bytes> {
        let mut patience = Patience::default();
        loop {
            let attempt = match self.get(url, accept, None).await {
                Ok(response) => match self.collect(response).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(attempt) => attempt,
                },
                Err(attempt) => attempt,
            };
            patience.wait(attempt).await?;
        }
    }

    async fn collect(&self, response: Response<Incoming>) -> std::result::Result<Bytes, Attempt> {
        let limit = usize::try_from(DOCUMENT_BYTES_MAX).unwrap_or(usize::MAX);
        let body = Limited::new(response.into_body(), limit).collect();
        match tokio::time::timeout(DOCUMENT_TIMEOUT, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Attempt::Lasting(Error::TooLarge {
                what: "size of a document",
                limit: DOCUMENT_BYTES_MAX,
            })),
            Ok(Err(error)) => Err(Attempt::Passing(self.error("broke off its answer", Some(error)), None)),
            Err(_) => Err(Attempt::Passing(self.error("takes too long to answer", None), None)),
        }
    }

    /// One request, with what authentication it takes.
    async fn get(
        &self,
        url: &str,
        accept: Option<&str>,
        range: Option<&str>,
    ) -> std::result::Result<Response<Incoming>, Attempt> {
        let mut authorization = self.shared.authorization.lock().await.clone();
        let mut renewed = false;
        loop {
            let response = self.follow(url, accept, range, authorization.as_ref()).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return self.check(response).await;
            }
            if renewed {
                return Err(Attempt::Lasting(self.refused(response).await));
            }
            renewed = true;
            let challenge = challenge::read(response.headers());
            authorization = Some(self.answer(challenge, authorization.as_ref()).await?);
        }
    }

    /// Turns a challenge into what is to be sent. One request does it for all that wait.
    async fn answer(
        &self,
        challenge: Option<Challenge>,
        refused: Option<&HeaderValue>,
    ) -> std::result::Result<HeaderValue, Attempt> {
        let mut known = self.shared.authorization.lock().await;
        if let Some(newer) = known.as_ref().filter(|newer| Some(*newer) != refused) {
            return Ok(newer.clone());
        }
        let value = match challenge {
            Some(Challenge::Basic) => {
                let credentials = self.shared.found.credentials.as_ref().and_then(Credentials::basic);
                let credentials =
                    credentials.ok_or_else(|| Attempt::Lasting(self.no_access(self.advice())))?;
                if refused == Some(&credentials) {
                    return Err(Attempt::Lasting(self.no_access("it does not accept the credentials")));
                }
                credentials
            }
            Some(Challenge::Bearer { realm, service, scope }) => self.token(&realm, service, scope).await?,
            None => {
                let problem = "it asks for a kind of authentication that is not supported";
                return Err(Attempt::Lasting(self.no_access(problem)));
            }
        };
        *known = Some(value.clone());
        Ok(value)
    }

    /// Gets a token from the server that the registry named.
    async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> std::result::Result<HeaderValue, Attempt> {
        let broken = || Attempt::Lasting(self.error("names a token server that cannot be asked", None));
        let uri: Uri = realm.parse().map_err(|_| broken())?;
        if !self.may_ask(&uri) {
            return Err(broken());
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.shared.repository));
        let mut parameters = vec![("scope", scope)];
        parameters.extend(service.map(|service| ("service", service)));
        let request = match &self.shared.found.credentials {
            Some(Credentials::IdentityToken(token)) => {
                parameters.push(("grant_type", "refresh_token".to_owned()));
                parameters.push(("client_id", "sandhaus".to_owned()));
                parameters.push(("refresh_token", token.clone()));
                Request::post(uri)
                    .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(Full::new(Bytes::from(form(&parameters))))
            }
            credentials => {
                let joint = if uri.query().is_some() { '&' } else { '?' };
                let mut request = Request::get(format!("{uri}{joint}{}", form(&parameters)));
                if let Some(basic) = credentials.as_ref().and_then(Credentials::basic) {
                    request = request.header(header::AUTHORIZATION, basic);
                }
                request.body(Full::default())
            }
        };
        let response = self.send(request.map_err(|_| broken())?).await?;
        if matches!(
            response.status(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
        ) {
            let reason = match self.shared.found.credentials {
                Some(_) => "its token server does not accept the credentials".to_owned(),
                None => self.advice(),
            };
            return Err(Attempt::Lasting(self.no_access(reason)));
        }
        let response = self.check(response).await?;
        let body = Limited::new(response.into_body(), TOKEN_BYTES_MAX).collect();
        let body = tokio::time::timeout(DOCUMENT_TIMEOUT, body).await;
        let reply = body
            .ok()
            .and_then(|body| body.ok())
            .and_then(|body| serde_json::from_slice::<TokenReply>(&body.to_bytes()).ok())
            .map(|reply| if reply.token.is_empty() { reply.access_token } else { reply.token })
            .filter(|token| !token.is_empty());
        let reply = reply.ok_or_else(|| {
            Attempt::Passing(self.error("has a token server that does not answer as one", None), None)
        })?;
        let mut value = HeaderValue::from_str(&format!("Bearer {reply}")).map_err(|_| broken())?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Follows redirects. Who we are is told to the registry only, never to where it sends us.
    async fn follow(
        &self,
        url: &str,
        accept: Option<&str>,
        range: Option<&str>,
        authorization: Option<&HeaderValue>,
    ) -> std::result::Result<Response<Incoming>, Attempt> {
        let broken = || Attempt::Lasting(self.error("sends us where we cannot go", None));
        let mut uri: Uri = url.parse().map_err(|_| broken())?;
        let home = uri.authority().cloned();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::get(uri.clone());
            let headers = [(header::ACCEPT, accept), (header::RANGE, range)];
            for (name, value) in headers {
                if let Some(value) = value {
                    request = request.header(name, value);
                }
            }
            if let Some(authorization) = authorization.filter(|_| uri.authority() == home.as_ref()) {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let response = self.send(request.body(Full::default()).map_err(|_| broken())?).await?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            uri = resolve(&uri, location.ok_or_else(broken)?).ok_or_else(broken)?;
            if !self.may_ask(&uri) {
                return Err(broken());
            }
        }
        Err(Attempt::Lasting(self.error("sends us from place to place", None)))
    }

    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> std::result::Result<Response<Incoming>, Attempt> {
        let agent = HeaderValue::from_static(concat!("sandhaus/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::USER_AGENT, agent);
        debug_assert!(matches!(*request.method(), Method::GET | Method::POST));
        match tokio::time::timeout(ANSWER_TIMEOUT, self.shared.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let problem =
                    if error.is_connect() { "cannot be reached" } else { "broke off the connection" };
                Err(Attempt::Passing(self.error(problem, Some(Box::new(error))), None))
            }
            Err(_) => Err(Attempt::Passing(self.error("does not answer", None), None)),
        }
    }

    /// Tells good answers from bad ones.
    async fn check(&self, response: Response<Incoming>) -> std::result::Result<Response<Incoming>, Attempt> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let passing = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::REQUEST_TIMEOUT
                | StatusCode::INTERNAL_SERVER_ERROR
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        if passing {
            let asked = retry_after(response.headers());
            let mut problem = format!("answers with status {}", status.as_u16());
            if status == StatusCode::TOO_MANY_REQUESTS {
                problem.push_str(": too many requests; log in with `docker login` for more, or wait");
            }
            return Err(Attempt::Passing(self.error(problem, None), asked));
        }
        Err(Attempt::Lasting(match status {
            StatusCode::NOT_FOUND => Error::NotFound(self.shared.repository.clone()),
            StatusCode::FORBIDDEN => self.refused(response).await,
            _ => {
                let said = said(response).await;
                self.error(format!("answers with status {}{said}", status.as_u16()), None)
            }
        }))
    }

    async fn refused(&self, response: Response<Incoming>) -> Error {
        let said = said(response).await;
        let known = self.shared.found.credentials.is_some();
        let reason = if known { "it does not accept the credentials".to_owned() } else { self.advice() };
        self.no_access(format!("{reason}{said}"))
    }

    fn no_access(&self, reason: impl Into<String>) -> Error {
        Error::Refused {
            registry: self.shared.name.clone(),
            repository: self.shared.repository.clone(),
            reason: reason.into(),
        }
    }

    /// What to do about missing credentials.
    fn advice(&self) -> String {
        let registry = &self.shared.name;
        match &self.shared.found.helper {
            Some(helper) => format!(
                "its credentials are kept by the helper program docker-credential-{}, which is not run; put them \
                 into \"auths\" of Docker's config.json",
                crate::root::escaped(helper.as_bytes())
            ),
            None => format!(
                "it needs credentials, or the image is not there; `docker login {registry}` or \
                 $DOCKER_CONFIG/config.json gives them"
            ),
        }
    }

    /// TLS, unless plain HTTP is allowed or stays on this machine.
    fn may_ask(&self, uri: &Uri) -> bool {
        match uri.scheme_str() {
            Some("https") => uri.host().is_some(),
            Some("http") => self.shared.plain == PlainHttp::Anywhere || uri.host().is_some_and(is_loopback),
            _ => false,
        }
    }
}

/// Whether something at `authority` speaks TLS.
async fn answers_tls(http: &HttpClient, authority: &str) -> bool {
    let Ok(request) = Request::get(format!("https://{authority}/v2/")).body(Full::default()) else {
        return false;
    };
    matches!(tokio::time::timeout(TLS_PROBE_TIMEOUT, http.request(request)).await, Ok(Ok(_)))
}

/// The words of a registry about an error, after a colon; empty if it has none.
async fn said(response: Response<Incoming>) -> String {
    let body = Limited::new(response.into_body(), TOKEN_BYTES_MAX).collect();
    let Ok(Ok(body)) = tokio::time::timeout(DOCUMENT_TIMEOUT, body).await else { return String::new() };
    let Ok(ErrorReply { errors }) = serde_json::from_slice(&body.to_bytes()) else { return String::new() };
    let Some(ErrorEntry { code, message }) = errors.into_iter().next() else { return String::new() };
    let text = if message.is_empty() { code } else { message };
    let text: String = text.chars().take(SHOWN_CHARACTERS_MAX).collect();
    format!(": {}", crate::root::escaped(text.as_bytes()))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Where a redirect leads.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = base.clone().into_parts();
        parts.path_and_query = Some(location.parse().ok()?);
        return Uri::from_parts(parts).ok();
    }
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{}://{rest}", base.scheme_str()?).parse().ok();
    }
    location.parse().ok()
}

/// Parameters as forms and queries have them.
fn form(parameters: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, value) in parameters {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_somewhere() {
        let base: Uri = "https://r.io/v2/x/blobs/y".parse().unwrap();
        for (location, target) in [
            ("/other?a=b", "https://r.io/other?a=b"),
            ("//cdn.io/x", "https://cdn.io/x"),
            ("http://cdn.io:81/x", "http://cdn.io:81/x"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), target);
        }
    }

    #[test]
    fn forms_hold_any_text() {
        let parameters = [("scope", "repository:a/b:pull".to_owned()), ("service", "x y&z".to_owned())];
        assert_eq!(form(&parameters), "scope=repository:a/b:pull&service=x%20y%26z");
    }
}
