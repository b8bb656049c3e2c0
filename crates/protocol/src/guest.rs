//! What only the host asks of the agent of a virtual machine, beside the greeting: to bring its disk into order, and to
//! switch the machine off. Agents of sandboxes without a machine of their own have no such routes.

use serde::{Deserialize, Serialize};

/// TCP port of the agent in a virtual machine.
pub const PORT: u16 = 2280;

/// The host's address as every virtual machine sees it: its gateway and its name server.
pub const HOST_ADDRESS: [u8; 4] = [192, 168, 0, 1];

/// A virtual machine's own address.
pub const GUEST_ADDRESS: [u8; 4] = [192, 168, 0, 2];

/// Bits of the network of both.
pub const PREFIX_BITS: u8 = 24;

/// `POST`: everything is told to end, has a moment to do so, then the machine switches itself off. Answered (202) before
/// that begins; the machine's end says that it is done.
pub const POWER_OFF_PATH: &str = "/sandhaus/power-off";

/// `POST` of a [`SyncRequest`], answered with a [`SyncReply`].
pub const SYNC_PATH: &str = "/sandhaus/sync";

/// Longest a root file system stays frozen, whatever is asked for.
pub const FREEZE_MAX_MS: u64 = 60_000;

/// Code of the refusal (503) of an agent that was not greeted yet, or that was started anew and has forgotten it.
pub const NOT_GREETED: &str = "NOT_GREETED";

/// Header of that refusal, with [`NOT_GREETED`] as its value: whoever passes answers on need not read their bodies.
pub const REFUSAL_HEADER: &str = "sandhaus-refusal";

/// What is to happen to the guest's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum SyncRequest {
    /// Everything written so far reaches the disk before the answer.
    Flush,
    /// The same, and from the answer on nothing more is written to the root file system until [`SyncRequest::Thaw`], or
    /// until so many milliseconds have passed (at most [`FREEZE_MAX_MS`]). Asked again, the time counts anew.
    Freeze {
        /// Time limit in milliseconds.
        limit_ms: u64,
    },
    /// Writing goes on. An answer with `frozen: false` says that it had gone on before.
    Thaw,
    /// The disk has become larger: the root file system takes all of it.
    Grow,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReply {
    /// [`SyncRequest::Freeze`]: the root file system stands still now; false where it cannot, as in memory: then it was only
    /// flushed. [`SyncRequest::Thaw`]: it stood still until now. Otherwise false.
    pub frozen: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let parse = |text| serde_json::from_str::<SyncRequest>(text).expect("a request");
        assert_eq!(parse(r#"{"action":"flush"}"#), SyncRequest::Flush);
        assert_eq!(parse(r#"{"action":"freeze","limit_ms":5}"#), SyncRequest::Freeze { limit_ms: 5 });
        assert_eq!(parse(r#"{"action":"thaw"}"#), SyncRequest::Thaw);
        assert_eq!(parse(r#"{"action":"grow"}"#), SyncRequest::Grow);
    }
}
