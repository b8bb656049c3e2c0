//! The store against a real S3 server process, with a proxy between that does harm, and against a directory.
//!
//! - `server`: the server, its deaths and its second lives;
//! - `proxy`: counts what passes, and cuts, holds, changes and refuses as it is told;
//! - `content`: snapshots to push, and looking at what was pulled;
//! - `ways`: there and back, and what the store has then;
//! - `harm`: all that can go wrong on the way.

mod content;
mod harm;
mod proxy;
mod server;
mod ways;
