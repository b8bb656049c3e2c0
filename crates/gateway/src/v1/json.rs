//! How this dialect reads JSON: as leniently as the clients expect. The content type is ignored, keys are matched
//! without regard to case, unknown keys and whatever follows the first value are ignored, `null` is `{}`.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use sandhaus_client::wire::JSON_BYTES_MAX;
use serde::{Deserialize, Deserializer, de, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};

/// How long a JSON body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        parse(&read_body(request).await?).map(Self)
    }
}

/// A body that says nothing. It is read all the same: what is left of it on the connection would end that without a word.
pub(crate) struct Ignored;

impl<S: Send + Sync> FromRequest<S> for Ignored {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        read_body(request).await.map(|_| Self)
    }
}

/// The whole body, at most [`JSON_BYTES_MAX`].
pub(crate) async fn read_body(request: Request) -> ApiResult<Bytes> {
    let body = Limited::new(request.into_body(), JSON_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::invalid("invalid json: http: request body too large"))
        }
        Ok(Err(_)) => Err(ApiError::invalid("invalid json: unexpected EOF")),
        Err(_) => Err(ApiError::invalid("invalid json: the request body did not arrive in time")),
    }
}

/// Reads the first JSON value of `body`.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    let text = String::from_utf8_lossy(body);
    if text.trim_ascii().is_empty() {
        return Err(ApiError::invalid("invalid json: EOF"));
    }
    let refuse = |error: serde_json::Error| ApiError::invalid(format!("invalid json: {error}"));
    let Folded(object) =
        Folded::deserialize(&mut serde_json::Deserializer::from_str(&text)).map_err(refuse)?;
    T::deserialize(Value::Object(object)).map_err(refuse)
}

/// An object whose own keys are in lower case and whose nulls are gone, as absent keys are.
struct Folded(Map<String, Value>);

impl<'de> Deserialize<'de> for Folded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Folded;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<Folded, E> {
                Ok(Folded(Map::new()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Folded, A::Error> {
                let mut folded = Map::new();
                while let Some((mut key, value)) = map.next_entry::<String, Value>()? {
                    key.make_ascii_lowercase();
                    if !value.is_null() {
                        folded.insert(key, value);
                    }
                }
                Ok(Folded(folded))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use sandhaus_client::wire::{CreateSession, ExecRequest, FsWrite};

    use super::*;

    fn refusal<T: DeserializeOwned + std::fmt::Debug>(body: &[u8]) -> String {
        parse::<T>(body).unwrap_err().public_message("")
    }

    #[test]
    fn leniency() {
        let expected =
            ExecRequest { cmd: "true".into(), timeout_ms: 5, raw_output: true, mode: String::new() };
        for body in [
            r#"{"cmd":"true","timeout_ms":5,"raw_output":true}"#,
            r#"{"CMD":"true","Timeout_MS":5,"raw_OUTPUT":true}"#,
            r#"{"cmd":"true","timeout_ms":5,"raw_output":true,"future":{"a":[1]}}"#,
            r#"{"cmd":"true","timeout_ms":5,"raw_output":true} trailing garbage"#,
            r#"{"cmd":"true","timeout_ms":5,"raw_output":true}{"cmd":"false"}"#,
            r#" {"cmd":"false","Cmd":"true","timeout_ms":5,"raw_output":true}"#,
        ] {
            assert_eq!(parse::<ExecRequest>(body.as_bytes()).unwrap(), expected, "{body}");
        }
        assert_eq!(parse::<ExecRequest>(b"null").unwrap(), ExecRequest::default());
        assert_eq!(parse::<ExecRequest>(b"{}").unwrap(), ExecRequest::default());
        assert_eq!(parse::<ExecRequest>(br#"{"cmd":null}"#).unwrap(), ExecRequest::default());
        assert_eq!(parse::<ExecRequest>(b"{\"cmd\":\"a\xffb\"}").unwrap().cmd, "a\u{fffd}b");
    }

    #[test]
    fn keys_inside_keep_their_case() {
        let create = parse::<CreateSession>(br#"{"ENV":{"Path":"x","path":"y"}}"#).unwrap();
        assert_eq!(create.env.len(), 2);
    }

    #[test]
    fn present_but_empty_content_is_content() {
        assert_eq!(parse::<FsWrite>(br#"{"text":""}"#).unwrap().text.as_deref(), Some(""));
        assert_eq!(parse::<FsWrite>(br#"{"text":null}"#).unwrap().text, None);
    }

    #[test]
    fn refusals() {
        assert_eq!(refusal::<ExecRequest>(b""), "invalid json: EOF");
        assert_eq!(refusal::<ExecRequest>(b" \n"), "invalid json: EOF");
        for wrong in
            ["{", "[]", "7", "\"x\"", "{\"cmd\":7}", "{\"timeout_ms\":\"5\"}", "{\"timeout_ms\":1.5}", "nul"]
        {
            assert!(refusal::<ExecRequest>(wrong.as_bytes()).starts_with("invalid json: "), "{wrong}");
        }
        let deep = "[".repeat(100_000);
        assert!(refusal::<ExecRequest>(format!("{{\"x\":{deep}").as_bytes()).starts_with("invalid json: "));
    }
}
