//! The real agent, for the tests of every engine.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The real agent: the one that SANDHAUS_AGENT_BIN names, else built here, static as it has to be.
pub(crate) fn agent() -> PathBuf {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        if let Some(ready) = std::env::var_os("SANDHAUS_AGENT_BIN").filter(|path| !path.is_empty()) {
            return PathBuf::from(ready);
        }
        // With a target named, build scripts and macros are spared the flags of the agent.
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "sandhaus-agent", "--target", &target, "--target-dir"])
            .arg(&folder)
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the agent does not build");
        folder.join(target).join("debug/sandhaus-agent")
    };
    AGENT.get_or_init(build).clone()
}
