//! The agent that every sandbox carries, built by build.rs and embedded.

/// Its executable.
pub(crate) const EXECUTABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sandhaus-agent"));

/// SHA-256 of it in hex.
pub(crate) const DIGEST: &str = env!("SANDHAUS_AGENT_DIGEST");
