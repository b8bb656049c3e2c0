//! What can go wrong between this client and a server.

use crate::wire::ErrorBody;

/// Result of a client call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a client call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base URL is not one this client can use.
    #[error("server url {url:?} is not usable: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nobody answered at the server's address.
    #[error("cannot reach the server at {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke before the answer was whole.
    #[error("connection to the server broke")]
    Transport(#[source] hyper::Error),
    /// The server refused, or failed.
    #[error("{message}")]
    Status {
        /// HTTP status code.
        status: u16,
        /// The machine-readable code; empty if the answer was not one of this API.
        code: String,
        /// What the server says.
        message: String,
        /// More about it, as the code defines.
        details: Option<serde_json::Value>,
    },
    /// The answer is not what this API answers.
    #[error("server sent an answer that is not understood: {0}")]
    Answer(String),
    /// A command's stream ended with an error event.
    #[error("{0}")]
    Stream(String),
}

impl Error {
    /// The HTTP status code, if the server answered with an error.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The server's machine-readable code, if it gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Status { code, .. } if !code.is_empty() => Some(code),
            _ => None,
        }
    }

    /// Longest piece of a foreign answer that is shown, in characters.
    const SHOWN_MAX: usize = 200;

    /// Reads an error answer; one that is not of this API keeps its text.
    pub(crate) fn from_answer(status: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => {
                Self::Status { status, code: body.error_code, message: body.message, details: body.details }
            }
            Err(_) => {
                let text: String =
                    String::from_utf8_lossy(body).trim().chars().take(Self::SHOWN_MAX).collect();
                let message = if text.is_empty() {
                    format!("server answered {status}")
                } else {
                    format!("{status}: {text}")
                };
                Self::Status { status, code: String::new(), message, details: None }
            }
        }
    }
}
