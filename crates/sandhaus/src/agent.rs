//! The agent that every sandbox gets: the one that build.rs built and that is embedded, unless another is configured.

use std::{path::Path, sync::OnceLock};

use anyhow::{Context as _, Result};
use sandhaus_sandbox::renewal::AgentProgram;
use sha2::{Digest as _, Sha256};

use crate::config::{AgentSettings, AgentUpgrade};

/// The executable that this program carries.
pub(crate) const EXECUTABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sandhaus-agent"));

/// SHA-256 of it in hex.
const DIGEST: &str = env!("SANDHAUS_AGENT_DIGEST");

/// An agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agent {
    /// Its executable.
    pub(crate) executable: &'static [u8],
    /// SHA-256 of it in hex.
    pub(crate) digest: &'static str,
}

impl Agent {
    /// The one that is configured.
    pub(crate) fn of(settings: &AgentSettings) -> Result<Self> {
        match &settings.executable {
            None => Ok(Self { executable: EXECUTABLE, digest: DIGEST }),
            Some(path) => read(path),
        }
    }

    /// What takes the place of older agents, if anything is to.
    pub(crate) fn successor(self, settings: &AgentSettings) -> Option<AgentProgram> {
        match settings.upgrade {
            AgentUpgrade::Never => None,
            AgentUpgrade::Auto => {
                let executable = bytes::Bytes::from_static(self.executable);
                AgentProgram::new(executable, self.digest.to_owned(), env!("CARGO_PKG_VERSION"))
            }
        }
    }
}

/// Reads another executable, once: it stays as long as the process.
fn read(path: &Path) -> Result<Agent> {
    static READ: OnceLock<Agent> = OnceLock::new();
    if let Some(agent) = READ.get() {
        return Ok(*agent);
    }
    let executable = fs_err::read(path).context("read the agent")?;
    let digest: String = Sha256::digest(&executable).iter().map(|byte| format!("{byte:02x}")).collect();
    let agent = Agent { executable: executable.leak(), digest: digest.leak() };
    Ok(*READ.get_or_init(|| agent))
}
