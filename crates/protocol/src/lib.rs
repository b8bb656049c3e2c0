//! The wire types of the toolbox API: what the host and the users say to the agent inside a sandbox.
//!
//! The agent serves one HTTP API (docs: `daytona.md` section 1 for the compatible routes). The routes under
//! [`PREFIX`] are our own additions: greeting, persistent shells, process streams that resume by offset.
//! This crate knows no HTTP library, no runtime and no operating system: shapes, limits and the frame codec.
//!
//! Read in this order: [`hello`] (who is there), [`frame`] (how streams are framed), [`shell`] and [`process`]
//! (what runs), [`files`] and [`multipart`] (forms), [`watch`], [`system`], [`toolbox`], [`git`], [`lsp`], [`code`] and [`interpreter`] (the compatible types), [`boot`] (what
//! the host hands to PID 1), [`guest`] and [`initramfs`] (virtual machines), [`upgrade`] (another agent in the place of this one).

pub mod boot;
pub mod code;
pub mod files;
pub mod frame;
pub mod git;
pub mod guest;
pub mod hello;
pub mod initramfs;
pub mod interpreter;
pub mod lsp;
pub mod multipart;
#[cfg(feature = "openapi")]
pub mod openapi;
pub mod process;
pub mod shell;
pub mod ssh;
pub mod system;
pub mod toolbox;
pub mod upgrade;
pub mod watch;

/// Path prefix of the routes that are ours alone, beside the compatible ones.
pub const PREFIX: &str = "/sandhaus";

/// Version of the routes under [`PREFIX`], agreed in hello: the lower of both sides wins, the host adapts, and
/// fields are only ever added.
pub const PROTOCOL_VERSION: u32 = 1;
