//! Snapshots in a store that others share: S3-compatible, or a directory. It knows no sandbox and no engine: a snapshot
//! here is a name, a few files, and what whoever pushed it says of it.
//!
//! - [`StoreConfig`]: where a store is;
//! - [`Store`]: push, pull, and what else can be done with what it has;
//! - [`Name`]: what a snapshot can be called there.
//!
//! A snapshot is there as a whole or not at all, on both sides, whenever anybody is killed; what was interrupted goes on
//! from where it was. Content is hashed chunk by chunk where it comes from and checked where it arrives. Where things lie
//! is told in `layout.rs`.

use std::{fmt, sync::Arc};

mod backend;
mod config;
mod content;
mod error;
mod journal;
mod layout;
mod manifest;
mod name;
mod pull;
mod push;
mod store;

pub use config::{
    Bucket, Credentials, DEFAULT_BUCKET, DEFAULT_REGION, Location, Patience, Place, PlainHttp, StoreConfig,
    is_bucket,
};
pub use error::{Error, Result};
pub use name::Name;
pub use pull::{DISK_FILE, Landing, Pull};
pub use push::Push;
pub use store::{Info, Listed, Store};

/// What a transfer is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What is there already is looked at.
    Checking,
    /// On its way to the store.
    Sending,
    /// On its way from the store.
    Receiving,
    /// Made visible.
    Finishing,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checking => "checking",
            Self::Sending => "sending",
            Self::Receiving => "receiving",
            Self::Finishing => "finishing",
        })
    }
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is at.
    pub stage: Stage,
    /// So many bytes of content are done.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
}

/// Is told how far a transfer is. Called often, so it should do little.
pub type Observer = Arc<dyn Fn(Progress) + Send + Sync>;

/// Sixteen random hexadecimal digits.
fn random_hex() -> String {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
