//! The server's side of SSH 2 (RFC 4251 to 4254 and what OpenSSH added): packets, key exchange, authentication, channels.
//! It knows no process, no file and no address: whoever uses it says who may come in ([`Authority`]) and what happens in
//! each channel.
//!
//! ```text
//!  socket ──> transport (packets, keys) ──> login (who) ──> connection (channels) ──> Incoming ──> the user of this crate
//!         <──────────────────────────────────────────────── queue of packets <── Channel, Answer
//! ```
//! The primitives are ring's; everything else is here, and only what today's clients want: one key exchange, one kind of
//! host key, ciphers that authenticate what they encrypt, no compression.
//!
//! Nothing a client sends makes memory grow without bound: what it may send on a channel is what was taken out of it
//! before, so that a program that reads slowly holds up its own channel and no other.
//!
//! Read in this order: [`wire`] (how values are written), [`keys`] (host key and clients' keys), `cipher`, `exchange` and
//! `transport` (the encrypted stream), `login`, `channel` and [`connection`].

mod channel;
mod cipher;
pub mod connection;
mod error;
mod exchange;
pub mod keys;
mod login;
mod message;
mod transport;
pub mod wire;

pub use self::{
    channel::{Channel, ChannelEvent, Ending, Request, Sender, TerminalRequest},
    connection::{Connection, Control, Forward, Incoming, Opening, OpeningKind, Question, Refusal, Settings},
    error::{Error, Result},
    login::Authority,
};
