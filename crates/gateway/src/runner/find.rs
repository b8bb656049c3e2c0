//! From what callers call things to what they are here.

use std::collections::BTreeMap;

use sandhaus_sandbox::{
    Error, Kind, OwnerId, SandboxId, SandboxView, SnapshotName,
    service::{ListFilter, images::Reference},
    types::{ImageName, NAME_BYTES_MAX},
};

use super::Runner;
use crate::error::{ApiError, ApiResult, Subject};

/// Who owns the sandboxes of this dialect.
pub(super) const OWNER: &str = "runner";

/// Where the ids of callers have no form of ours, they are the sandboxes' names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RunnerId {
    /// An id as sandboxes have it here.
    Own(SandboxId),
    /// Another word.
    Name(String),
}

impl RunnerId {
    /// Checks an id.
    pub(super) fn parse(text: &str) -> ApiResult<Self> {
        if let Ok(id) = SandboxId::parse(text) {
            return Ok(Self::Own(id));
        }
        let shape = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(shape) {
            return Err(ApiError::invalid(format!(
                "bad request: a sandbox id must be a UUID, or 1 to {NAME_BYTES_MAX} letters, digits, dots, hyphens and \
                 underscores"
            )));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl Runner {
    /// The sandbox that a caller means; `None` where there is none any more, or never was.
    pub(super) async fn find(&self, id: &RunnerId) -> ApiResult<Option<SandboxView>> {
        let view = match id {
            RunnerId::Own(id) => match self.service().get(id).await {
                Ok(view) => Some(view),
                Err(error) if error.kind() == Kind::NotFound => None,
                Err(error) => return Err(problem(error)),
            },
            RunnerId::Name(name) => {
                let owner = OwnerId(OWNER.to_owned());
                let live = self.service().list(ListFilter::default()).await.map_err(problem)?;
                live.into_iter().find(|view| {
                    view.sandbox.owner == owner && view.sandbox.name.as_deref() == Some(name.as_str())
                })
            }
        };
        // What waits for an owner is nobody's.
        Ok(view.filter(|view| view.ended.is_none() && !view.is_idle()))
    }

    /// The same, where there must be one.
    pub(super) async fn live(&self, text: &str) -> ApiResult<SandboxView> {
        let found = self.find(&RunnerId::parse(text)?).await?;
        found.ok_or_else(|| {
            ApiError::new(Kind::NotFound, Subject::Session, format!("not found: there is no sandbox {text}"))
        })
    }
}

/// An error of the domain about a sandbox.
pub(super) fn problem(error: Error) -> ApiError {
    match error.kind() {
        // What has ended is not there.
        Kind::Gone => {
            let message = format!("not found: {}", error.message());
            ApiError::new(Kind::NotFound, Subject::Session, message)
        }
        _ => ApiError::of(Subject::Session, error),
    }
}

/// A text that must be there.
pub(super) fn required(name: &str, value: Option<String>) -> ApiResult<String> {
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| ApiError::invalid(format!("bad request: {name} is required")))
}

/// A text that may be there.
pub(super) fn given(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

/// A wish that cannot be granted.
pub(super) fn unsupported(what: &str) -> ApiError {
    ApiError::new(Kind::Unsupported, Subject::Request, format!("bad request: {what} is not supported"))
}

/// The name of a snapshot as callers write it: of a reference such as `HOST/PROJECT/NAME:TAG` the last part, with a hyphen
/// before the tag.
pub(super) fn snapshot_name(text: &str) -> ApiResult<SnapshotName> {
    let last = text.rsplit('/').next().unwrap_or(text).replace([':', '@'], "-");
    SnapshotName::parse(&last).map_err(|error| ApiError::of(Subject::Snapshot, error))
}

/// The name that an image has here: as it was pulled, but for a digest, which no name can hold.
pub(super) fn image_name(text: &str) -> Option<ImageName> {
    match ImageName::parse(text) {
        Ok(name) => Some(name),
        Err(_) => Reference::parse(text).ok()?.default_name().ok(),
    }
}

/// Text values as labels.
pub(super) fn labels(
    metadata: Option<BTreeMap<String, String>>,
    own: [(&str, Option<String>); 4],
) -> BTreeMap<String, String> {
    let own = own.into_iter().filter_map(|(key, value)| Some((format!("runner.{key}"), given(value)?)));
    metadata.unwrap_or_default().into_iter().chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_callers() {
        let own = |text: &str| RunnerId::Own(SandboxId::parse(text).unwrap());
        let parse = |text: &str| RunnerId::parse(text).unwrap();
        assert_eq!(
            parse("0123ABCD-0123-4567-89AB-0123456789AB"),
            own("0123abcd-0123-4567-89ab-0123456789ab")
        );
        assert_eq!(parse("0123abcd-012"), own("0123abcd-012"));
        assert_eq!(parse("my-test_1.x"), RunnerId::Name("my-test_1.x".to_owned()));
        for wrong in ["", "a/b", "a b", "ä", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(RunnerId::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_of_snapshots_and_images() {
        assert_eq!(snapshot_name("win-base").unwrap().as_str(), "win-base");
        assert_eq!(snapshot_name("reg:5000/team/backup-1:2026").unwrap().as_str(), "backup-1-2026");
        assert!(snapshot_name("a/..").is_err());
        assert!(snapshot_name("").is_err());
        assert_eq!(image_name("docker.io/library/alpine:3").unwrap().as_str(), "docker.io/library/alpine:3");
        let digest = format!("alpine@sha256:{}", "0".repeat(64));
        assert!(image_name(&digest).is_some());
        assert!(image_name("a b").is_none());
    }
}
