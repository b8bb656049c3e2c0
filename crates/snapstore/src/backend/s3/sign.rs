//! Signatures of requests: AWS Signature Version 4.

use hyper::{
    HeaderMap, Method,
    header::{HeaderName, HeaderValue},
};
use jiff::Timestamp;
use ring::hmac;

use crate::{config::Credentials, content::Sha256};

/// Name of the algorithm.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The service that requests are for.
const SERVICE: &str = "s3";

const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const CONTENT: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// What of a request is signed, but for its headers.
pub(super) struct Signed<'a> {
    pub(super) method: &'a Method,
    /// As it is sent: encoded.
    pub(super) path: &'a str,
    /// The same, sorted.
    pub(super) query: &'a str,
    pub(super) content: Sha256,
}

/// Adds to `headers`, which has the host already, what proves who asks.
pub(super) fn sign(
    request: &Signed<'_>,
    headers: &mut HeaderMap,
    region: &str,
    credentials: &Credentials,
    now: Timestamp,
) -> Result<(), hyper::header::InvalidHeaderValue> {
    let date_time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let scope = format!("{}/{region}/{SERVICE}/aws4_request", &date_time[..8]);
    let content = request.content.to_string();
    headers.insert(DATE, HeaderValue::from_str(&date_time)?);
    headers.insert(CONTENT, HeaderValue::from_str(&content)?);
    if let Some(token) = &credentials.session_token {
        let mut token = HeaderValue::from_str(token)?;
        token.set_sensitive(true);
        headers.insert(TOKEN, token);
    }
    let mut signed: Vec<(&str, &[u8])> =
        headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    signed.sort_unstable();
    let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = signed
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", String::from_utf8_lossy(value).trim()))
        .collect();
    let canonical =
        format!("{}\n{}\n{}\n{lines}\n{names}\n{content}", request.method, request.path, request.query);
    let text = format!("{ALGORITHM}\n{date_time}\n{scope}\n{}", Sha256::of(canonical.as_bytes()));
    let signature = signature(credentials, &date_time[..8], region, &text);
    let authorization = format!(
        "{ALGORITHM} Credential={}/{scope},SignedHeaders={names},Signature={signature}",
        credentials.access_key_id
    );
    let mut authorization = HeaderValue::from_str(&authorization)?;
    authorization.set_sensitive(true);
    headers.insert(hyper::header::AUTHORIZATION, authorization);
    Ok(())
}

fn signature(credentials: &Credentials, date: &str, region: &str, text: &str) -> String {
    let keyed = |key: &[u8], data: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data.as_bytes()).as_ref().to_vec()
    };
    let start = format!("AWS4{}", credentials.secret_access_key).into_bytes();
    let key = [date, region, SERVICE, "aws4_request"].iter().fold(start, |key, part| keyed(&key, part));
    keyed(&key, text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Encodes a key for a path: everything but letters, digits, `-._~` and slashes.
pub(super) fn encode_path(path: &str) -> String {
    encode(path, b"-._~/")
}

/// Encodes a name or value of a query: everything but letters, digits and `-._~`.
pub(super) fn encode_query(text: &str) -> String {
    encode(text, b"-._~")
}

fn encode(text: &str, plain: &[u8]) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("a string takes everything");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        // The example keys of Amazon's own documentation.
        Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
        }
    }

    fn signed(
        method: Method,
        path: &str,
        query: &str,
        extra: &[(&'static str, &str)],
        body: &[u8],
    ) -> String {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("examplebucket.s3.amazonaws.com"));
        for (name, value) in extra {
            headers.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let request = Signed { method: &method, path, query, content: Sha256::of(body) };
        let now = "2013-05-24T00:00:00Z".parse().unwrap();
        sign(&request, &mut headers, "us-east-1", &credentials(), now).unwrap();
        headers["authorization"].to_str().unwrap().rsplit_once('=').unwrap().1.to_owned()
    }

    #[test]
    fn the_documented_examples_come_out() {
        assert_eq!(
            signed(Method::GET, "/test.txt", "", &[("range", "bytes=0-9")], b""),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(
            signed(
                Method::PUT,
                &encode_path("/test$file.text"),
                "",
                &[("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
                b"Welcome to Amazon S3."
            ),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
        assert_eq!(
            signed(Method::GET, "/", "lifecycle=", &[], b""),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            signed(Method::GET, "/", "max-keys=2&prefix=J", &[], b""),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn what_proves_it_is_not_shown() {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("s3.example"));
        let request = Signed { method: &Method::GET, path: "/", query: "", content: Sha256::of(b"") };
        let keys = Credentials { session_token: Some("a-token".into()), ..credentials() };
        sign(&request, &mut headers, "r", &keys, Timestamp::UNIX_EPOCH).unwrap();
        let shown = format!("{headers:?}");
        assert!(!shown.contains("a-token") && !shown.contains("AKIA"), "{shown}");
    }
}
