//! The wire types of `/v1` and a small client on them.
//!
//! [`wire`] holds what travels: the gateway writes these types, the command line and the end-to-end tests read them,
//! so both sides are the same source. [`Client`] speaks plain HTTP/1.1 over TCP to a server on this host or behind a
//! tunnel. This crate knows no sandbox, no engine and no agent.
//!
//! Fields are only ever added to the wire types, and readers ignore fields they do not know.

mod client;
mod console;
mod error;
mod stream;
pub mod wire;

pub use client::{Body, Client, Download, Endpoint, full_body};
pub use console::Console;
pub use error::{Error, Result};
pub use stream::{ExecEvent, ExecStream, JobStream};
