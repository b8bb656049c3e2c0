//! Why a connection ended.

use crate::wire::Malformed;

/// Why a connection ended otherwise than by its client's wish.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream failed.
    #[error("the connection failed")]
    Stream(#[from] std::io::Error),
    /// A message is not what it should be.
    #[error("a message is malformed")]
    Malformed(#[from] Malformed),
    /// The client did what the protocol does not allow.
    #[error("the client broke the protocol: {0}")]
    Protocol(&'static str),
    /// Client and server have no algorithm in common.
    #[error("no {0} in common")]
    NothingInCommon(&'static str),
    /// A packet is not of this connection.
    #[error("a packet was tampered with")]
    Tampered,
    /// The client had too many tries.
    #[error("too many attempts to log in")]
    TooManyAttempts,
    /// The client took too long to log in.
    #[error("not logged in in time")]
    TooSlow,
    /// The client does not answer any more.
    #[error("the client is gone")]
    Silent,
    /// The client's side has ended the connection.
    #[error("the client has hung up")]
    HungUp,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
