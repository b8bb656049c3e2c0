//! Asking S3: addresses, signatures, patience, and what its refusals mean.

use std::{fmt, sync::atomic::Ordering, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
    http::uri::{Authority, Scheme},
};
use jiff::Timestamp;

use super::{
    super::{Fault, Payload},
    DOCUMENT_BYTES_MAX,
    connect::{self, HttpClient, Outgoing},
    sign::{self, Signed},
    xml,
};
use crate::{
    Error, Result,
    config::{Bucket, Credentials, Patience, PlainHttp},
    content::Sha256,
};

/// Most characters of a store's own words that are shown.
const SHOWN_CHARACTERS_MAX: usize = 200;

/// Refusals that a second try may turn: the request was damaged or too slow on its way.
const PASSING_CODES: &[&str] = &[
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "XAmzContentSHA256Mismatch",
];

/// A request.
pub(super) struct Call {
    method: Method,
    key: String,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Payload,
    answer_bytes_max: u64,
}

impl Call {
    pub(super) fn new(method: Method, key: String) -> Self {
        Self {
            method,
            key,
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Payload::new(Vec::new()),
            answer_bytes_max: DOCUMENT_BYTES_MAX,
        }
    }

    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push((sign::encode_query(name), sign::encode_query(value)));
        self
    }

    pub(super) fn with_body(mut self, body: Payload) -> Self {
        self.body = body;
        self
    }

    /// The answer may have so many bytes.
    pub(super) fn at_most(mut self, bytes_max: u64) -> Self {
        self.answer_bytes_max = bytes_max;
        self
    }

    pub(super) fn header(&mut self, name: HeaderName, value: &str) -> Result<()> {
        let value = HeaderValue::from_str(value)
            .map_err(|_| Error::Configuration(format!("{name} cannot be {value:?}")))?;
        self.headers.insert(name, value);
        Ok(())
    }

    /// The request in words.
    fn what(&self) -> String {
        let verb = match self.method {
            Method::GET | Method::HEAD => "reading",
            Method::DELETE => "removing",
            _ => "writing",
        };
        let key = if self.key.is_empty() { "its list" } else { self.key.as_str() };
        format!("{verb} {key}")
    }
}

/// A whole answer.
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Speaks to one bucket.
pub(super) struct Client {
    http: HttpClient,
    name: String,
    scheme: Scheme,
    authority: Authority,
    /// What paths begin with: of the endpoint, and of the bucket where it is not part of the host's name.
    path: String,
    bucket: String,
    region: String,
    credentials: Option<Credentials>,
    patience: Patience,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why one try failed, and whether another is worth it.
enum Attempt {
    /// It may pass; after so long, if the store says.
    Passing(Error, Option<Duration>),
    /// It will not.
    Lasting(Fault),
}

impl Client {
    pub(super) fn open(bucket: &Bucket, patience: &Patience) -> Result<Self> {
        let (scheme, authority, path) = address(bucket)?;
        let name = format!("s3://{} at {authority}", bucket.name);
        let failed = |source| Error::Store {
            store: name.clone(),
            problem: "cannot be spoken to".to_owned(),
            source: Some(source),
        };
        let http = connect::client(patience.connect).map_err(failed)?;
        Ok(Self {
            http,
            scheme,
            authority,
            path,
            bucket: bucket.name.clone(),
            region: bucket.region.clone(),
            credentials: bucket.credentials.clone(),
            patience: patience.clone(),
            name,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The store answers what it should not.
    pub(super) fn odd(&self, problem: &str) -> Error {
        Error::Store { store: self.name.clone(), problem: problem.to_owned(), source: None }
    }

    /// Sends a request until it is answered, and reads the answer.
    pub(super) async fn send(&self, call: &Call) -> Result<Answer, Fault> {
        let mut tries = Tries::default();
        loop {
            let attempt = match self.try_send(call).await {
                Ok(answer) => return Ok(answer),
                Err(attempt) => attempt,
            };
            tries.wait(attempt, &self.patience).await?;
        }
    }

    async fn try_send(&self, call: &Call) -> Result<Answer, Attempt> {
        let (parts, mut incoming) = self.begin(call).await?.into_parts();
        let mut body = BytesMut::new();
        while let Some(piece) = self.next(&mut incoming).await? {
            if (body.len() + piece.len()) as u64 > call.answer_bytes_max {
                return Err(Attempt::Lasting(self.odd("answers more than is taken").into()));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Answer { headers: parts.headers, body: body.freeze() })
    }

    /// Fetches a stretch of an object. A connection that breaks costs only what had not arrived yet.
    pub(super) async fn fetch(
        &self,
        call: &mut Call,
        version: Option<&str>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Fault> {
        let length = usize::try_from(length).map_err(|_| self.odd("has more in one piece than is taken"))?;
        let mut body = BytesMut::with_capacity(length);
        let mut tries = Tries::default();
        while body.len() < length {
            let start = offset + body.len() as u64;
            call.header(header::RANGE, &format!("bytes={start}-{}", offset + length as u64 - 1))?;
            let before = body.len();
            if let Err(attempt) = self.try_fetch(call, version, length, &mut body).await {
                if body.len() > before {
                    tries = Tries::default();
                }
                tries.wait(attempt, &self.patience).await?;
            }
        }
        Ok(body.freeze())
    }

    async fn try_fetch(
        &self,
        call: &Call,
        version: Option<&str>,
        length: usize,
        body: &mut BytesMut,
    ) -> Result<(), Attempt> {
        let (parts, mut incoming) = self.begin(call).await?.into_parts();
        // Not every store minds the condition.
        if version.is_some() && super::etag(&parts.headers).as_deref() != version {
            return Err(Attempt::Lasting(Fault::Changed));
        }
        if parts.status != StatusCode::PARTIAL_CONTENT {
            return Err(Attempt::Lasting(self.odd("does not send parts of objects").into()));
        }
        while let Some(piece) = self.next(&mut incoming).await? {
            if body.len() + piece.len() > length {
                return Err(Attempt::Lasting(self.odd("sends more than was asked for").into()));
            }
            body.extend_from_slice(&piece);
        }
        if body.len() < length {
            return Err(Attempt::Passing(self.odd("ended an answer early"), None));
        }
        Ok(())
    }

    async fn next(&self, incoming: &mut Incoming) -> Result<Option<Bytes>, Attempt> {
        loop {
            let frame = tokio::time::timeout(self.patience.stall, incoming.frame()).await;
            let broken = |problem: &str, source: Option<hyper::Error>| {
                let source = source.map(Into::into);
                let store = self.name.clone();
                Attempt::Passing(Error::Store { store, problem: problem.to_owned(), source }, None)
            };
            match frame {
                Err(_) => return Err(broken("stopped in the middle of an answer", None)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(broken("broke off an answer", Some(error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Sends a request, and waits for the beginning of an answer that is no refusal.
    async fn begin(&self, call: &Call) -> Result<Response<Incoming>, Attempt> {
        let body = Outgoing::new(call.body.pieces.clone());
        let moved = body.moved();
        let request = self.request(call, body).map_err(|error| Attempt::Lasting(error.into()))?;
        let mut answer = std::pin::pin!(self.http.request(request));
        let mut seen = 0;
        let response = loop {
            match tokio::time::timeout(self.patience.stall, &mut answer).await {
                Ok(response) => break response,
                // While something moves it is only slow.
                Err(_) if moved.load(Ordering::Relaxed) > seen => seen = moved.load(Ordering::Relaxed),
                Err(_) => return Err(Attempt::Passing(self.odd("does not answer"), None)),
            }
        };
        let response = response.map_err(|source| {
            let problem = if source.is_connect() { "cannot be reached" } else { "broke off a request" };
            let (store, problem) = (self.name.clone(), problem.to_owned());
            Attempt::Passing(Error::Store { store, problem, source: Some(source.into()) }, None)
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(call, response).await)
    }

    fn request(&self, call: &Call, body: Outgoing) -> Result<Request<Outgoing>> {
        let failed = |source: hyper::http::Error| Error::Store {
            store: self.name.clone(),
            problem: "cannot be asked".to_owned(),
            source: Some(source.into()),
        };
        let path = format!("{}/{}", self.path, sign::encode_path(&call.key));
        let mut query = call.query.clone();
        query.sort_unstable();
        let query = query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
        let target = if query.is_empty() { path.clone() } else { format!("{path}?{query}") };
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(target)
            .build()
            .map_err(failed)?;
        let mut headers = call.headers.clone();
        let host = HeaderValue::from_str(self.authority.as_str()).map_err(|error| failed(error.into()))?;
        headers.insert(header::HOST, host);
        if let Some(credentials) = &self.credentials {
            let content = if call.body.pieces.is_empty() { Sha256::of(b"") } else { call.body.digest };
            let signed = Signed { method: &call.method, path: &path, query: &query, content };
            sign::sign(&signed, &mut headers, &self.region, credentials, Timestamp::now())
                .map_err(|_| Error::Configuration("a key has characters that no key has".to_owned()))?;
        }
        let mut request = Request::new(body);
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(request)
    }

    async fn refused(&self, call: &Call, response: Response<Incoming>) -> Attempt {
        let (parts, mut incoming) = response.into_parts();
        let mut body = BytesMut::new();
        while let Ok(Some(piece)) = self.next(&mut incoming).await {
            if (body.len() + piece.len()) as u64 > DOCUMENT_BYTES_MAX {
                break;
            }
            body.extend_from_slice(&piece);
        }
        let asked = parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let asked = asked.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        let code = code(&body);
        let passing = parts.status.is_server_error() && parts.status != StatusCode::NOT_IMPLEMENTED
            || parts.status == StatusCode::TOO_MANY_REQUESTS
            || parts.status == StatusCode::REQUEST_TIMEOUT;
        if passing || code.as_deref().is_some_and(|code| PASSING_CODES.contains(&code)) {
            return Attempt::Passing(self.refusal(call, parts.status, &body), asked);
        }
        let upload = code.as_deref() == Some("NoSuchUpload");
        let bucket = code.as_deref() == Some("NoSuchBucket");
        Attempt::Lasting(match parts.status {
            StatusCode::NOT_FOUND if upload => Fault::NoUpload,
            StatusCode::NOT_FOUND if !bucket => Fault::Absent,
            StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => Fault::Changed,
            // Two conditional writes at once: one of them won.
            StatusCode::CONFLICT => Fault::Changed,
            status => self.refusal(call, status, &body).into(),
        })
    }

    /// What a refusal means, and what to do.
    pub(super) fn refusal(&self, call: &Call, status: StatusCode, body: &[u8]) -> Error {
        let code = code(body).unwrap_or_default();
        let advice = match (code.as_str(), status) {
            ("NoSuchBucket", _) => "there is no such bucket: make it, or name another in snapshots.store",
            ("SignatureDoesNotMatch", _) => "the secret key is wrong: check AWS_SECRET_ACCESS_KEY",
            ("InvalidAccessKeyId", _) => "it does not know the access key: check AWS_ACCESS_KEY_ID",
            ("ExpiredToken" | "InvalidToken", _) => "the session token is not valid any more: get new keys",
            ("RequestTimeTooSkewed", _) => "the clock of this host is wrong: set it",
            ("AuthorizationHeaderMalformed" | "PermanentRedirect", _)
            | (_, StatusCode::MOVED_PERMANENTLY) => "the bucket is in another region: set snapshots.region",
            ("QuotaExceeded" | "InsufficientStorage", _) | (_, StatusCode::INSUFFICIENT_STORAGE) => {
                "it is full: make room in it"
            }
            ("SlowDown" | "ServiceUnavailable", _) | (_, StatusCode::TOO_MANY_REQUESTS) => {
                "it has too much to do: try again later"
            }
            (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if self.credentials.is_none() => {
                "it wants to know who asks: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            }
            (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => "these keys may not do that",
            _ => "it says so itself",
        };
        let said = if code.is_empty() { String::new() } else { format!(" {}", printable(&code)) };
        Error::Refused {
            store: self.name.clone(),
            what: call.what(),
            reason: format!("{advice} (status {}{said})", status.as_u16()),
        }
    }
}

/// Whether an error says that the store does not know such a request.
pub(super) fn is_not_implemented(error: &Error) -> bool {
    matches!(error, Error::Refused { reason, .. } if reason.contains("(status 501"))
}

/// How often something was tried.
#[derive(Default)]
struct Tries {
    failures: u32,
}

impl Tries {
    /// Waits before the next try, or gives up.
    async fn wait(&mut self, attempt: Attempt, patience: &Patience) -> Result<(), Fault> {
        let (error, asked) = match attempt {
            Attempt::Lasting(fault) => return Err(fault),
            Attempt::Passing(error, asked) => (error, asked),
        };
        if self.failures >= patience.retries_max {
            return Err(error.into());
        }
        let grown = patience.delay.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures += 1;
        let delay = asked.unwrap_or_default().max(jitter(grown)).min(patience.delay_max);
        tracing::info!(%error, ?delay, "trying again");
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

/// Half as long up to one and a half times as long: those who failed together do not come back together.
fn jitter(delay: Duration) -> Duration {
    let mut byte = [128_u8];
    // Without random bytes it is only less spread.
    let _ = getrandom::fill(&mut byte);
    delay / 2 + delay * u32::from(byte[0]) / 256
}

fn code(body: &[u8]) -> Option<String> {
    let elements = xml::elements(body).ok()?;
    xml::text(&elements, "Error/Code").map(str::to_owned)
}

fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(SHOWN_CHARACTERS_MAX).collect()
}

/// Where a bucket is: scheme, authority, and what paths begin with.
fn address(bucket: &Bucket) -> Result<(Scheme, Authority, String)> {
    let invalid = |text: &str, problem: &str| Error::Configuration(format!("endpoint {text:?} {problem}"));
    let Some(endpoint) = &bucket.endpoint else {
        // With a dot in it, the name would not be covered by Amazon's certificate.
        let (host, path) = if bucket.name.contains('.') {
            (format!("s3.{}.amazonaws.com", bucket.region), format!("/{}", bucket.name))
        } else {
            (format!("{}.s3.{}.amazonaws.com", bucket.name, bucket.region), String::new())
        };
        let authority = host
            .parse()
            .map_err(|_| Error::Configuration(format!("no region is called {:?}", bucket.region)))?;
        return Ok((Scheme::HTTPS, authority, path));
    };
    let uri: Uri = endpoint.parse().map_err(|_| invalid(endpoint, "is no address"))?;
    let parts = uri.into_parts();
    let scheme = parts.scheme.filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
    let (Some(scheme), Some(authority)) = (scheme, parts.authority) else {
        return Err(invalid(endpoint, "must be http://HOST[:PORT] or https://HOST[:PORT]"));
    };
    if authority.as_str().contains('@') {
        return Err(Error::Configuration(
            "an endpoint has no user in it: keys have settings of their own".to_owned(),
        ));
    }
    let path = parts.path_and_query.map_or(String::new(), |path| path.to_string());
    if path.contains('?') {
        return Err(invalid(endpoint, "has a query"));
    }
    let plain = scheme == Scheme::HTTP;
    if plain && bucket.plain_http == PlainHttp::Loopback && !is_loopback(authority.host()) {
        return Err(invalid(
            endpoint,
            "has no TLS, so others could read snapshots on their way: use https, or set snapshots.plain_http",
        ));
    }
    Ok((scheme, authority, format!("{}/{}", path.trim_end_matches('/'), bucket.name)))
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(endpoint: Option<&str>, plain_http: PlainHttp) -> Bucket {
        Bucket {
            name: "images".into(),
            prefix: String::new(),
            endpoint: endpoint.map(str::to_owned),
            region: "eu-west-3".into(),
            credentials: None,
            plain_http,
        }
    }

    #[test]
    fn addresses_are_made_of_what_is_configured() {
        let shown = |bucket: &Bucket| {
            address(bucket).map(|(scheme, authority, path)| format!("{scheme}://{authority}{path}"))
        };
        let (local, open) = (PlainHttp::Loopback, PlainHttp::Anywhere);
        for (endpoint, plain, expected) in [
            (None, local, "https://images.s3.eu-west-3.amazonaws.com"),
            (Some("https://s3.example/base/"), local, "https://s3.example/base/images"),
            (Some("http://127.0.0.1:9000"), local, "http://127.0.0.1:9000/images"),
            (Some("http://[::1]:9000"), local, "http://[::1]:9000/images"),
            (Some("http://localhost"), local, "http://localhost/images"),
            (Some("http://s3.example"), open, "http://s3.example/images"),
        ] {
            assert_eq!(shown(&bucket(endpoint, plain)).unwrap(), expected);
        }
        let dotted = Bucket { name: "a.b".into(), ..bucket(None, local) };
        assert_eq!(shown(&dotted).unwrap(), "https://s3.eu-west-3.amazonaws.com/a.b");
        for bad in ["http://s3.example", "ftp://x", "s3.example", "https://u:secret@x", "https://x/?a=b", ""]
        {
            let error = address(&bucket(Some(bad), local)).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let client =
            Client::open(&bucket(Some("http://localhost:1"), PlainHttp::Loopback), &Patience::default())
                .unwrap();
        let call = Call::new(Method::PUT, "snapshots/x.qcow2".into());
        let body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>m</Message></Error>";
        assert_eq!(
            client.refusal(&call, StatusCode::FORBIDDEN, body).to_string(),
            "store s3://images at localhost:1 refuses writing snapshots/x.qcow2: the secret key is wrong: check \
             AWS_SECRET_ACCESS_KEY (status 403 SignatureDoesNotMatch)"
        );
        assert!(is_not_implemented(&client.refusal(&call, StatusCode::NOT_IMPLEMENTED, b"")));
    }

    #[test]
    fn delays_are_spread() {
        let delay = Duration::from_secs(1);
        for _ in 0..100 {
            assert!((delay / 2..=delay * 3 / 2).contains(&jitter(delay)));
        }
    }
}
