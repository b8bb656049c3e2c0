//! Interpreter contexts (`/process/interpreter`): a Python each that keeps its state from one piece of code to the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of the context that is used where none is named.
pub const DEFAULT: &str = "default";

/// A context to create.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateContextRequest {
    /// Where it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Only `python`, which is also meant where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

/// A context as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InterpreterContext {
    /// Its name.
    pub id: String,
    /// Where it started.
    pub cwd: String,
    /// RFC 3339.
    pub created_at: String,
    /// Its interpreter runs. One that has ended is started again by the next code.
    pub active: bool,
    /// Always `python`.
    pub language: String,
}

/// All contexts but the default one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListContextsReply {
    /// Each of them, oldest first.
    pub contexts: Vec<InterpreterContext>,
}

/// The one message of a client that has code executed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecuteCode {
    /// The code.
    pub code: String,
    /// Which context; [`DEFAULT`] where absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_id: Option<String>,
    /// Variables of the environment for this code alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Seconds; absent: ten minutes; zero: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    /// The client takes [`Frame::Chart`].
    #[serde(default)]
    pub charts: bool,
}

/// What a client gets, one message each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Frame {
    /// Standard output.
    Stdout {
        /// A piece of it.
        text: String,
    },
    /// Standard error.
    Stderr {
        /// A piece of it.
        text: String,
    },
    /// The code ended with an exception.
    Error {
        /// Its class.
        name: String,
        /// Its text.
        value: String,
        /// Where it came from, without the interpreter's own frames.
        traceback: String,
    },
    /// A figure that was shown; only for clients that ask.
    Chart {
        /// The figure.
        chart: Box<crate::code::Chart>,
    },
    /// The end.
    Control {
        /// `completed` or `interrupted`.
        text: String,
    },
}
