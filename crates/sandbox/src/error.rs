//! One error type by kind. The edges turn the kind into their own codes in one table each.

use std::error::Error as StdError;

use crate::engine::EngineError;

/// Result of the domain.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by what a caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is wrong and will stay wrong.
    Invalid,
    /// Who is asking is not known.
    Unauthenticated,
    /// Who is asking may not.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// There is such a thing already.
    Exists,
    /// The thing is in a state that does not allow it.
    Conflict,
    /// The thing was there and has ended.
    Gone,
    /// The engine, image or host cannot do it.
    Unsupported,
    /// A limit or quota was reached; later may do.
    Exhausted,
    /// Something needed is not there right now; later may do.
    Unavailable,
    /// The time allowed ran out.
    Timeout,
    /// A defect or a failing host; the cause is in the log, never in the message.
    Internal,
}

/// An error of the domain: a message that is safe to show, and a cause that only the log sees.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` whose message may be shown to anyone.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same with a cause for the log.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A defect or a failing host while doing `what` (verb + noun); the cause goes to the log only.
    pub fn internal(what: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Kind::Internal, what).with_source(source)
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message, safe to show.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// There was no machine any more when its engine was asked, whether or not anybody has been told of its end.
    pub fn is_of_lost_machine(&self) -> bool {
        let cause = self.source.as_deref().and_then(|source| source.downcast_ref::<EngineError>());
        matches!(cause, Some(EngineError::NotFound))
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
