//! The executable under test.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

/// Environment variable that names a ready binary.
pub const BINARY: &str = "SANDHAUS_BIN";

/// Path of `sandhaus`: [`BINARY`], else it is built once.
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = std::env::var_os(BINARY) {
            let path = crate::checkout().join(path);
            assert!(path.exists(), "{BINARY} names {}, which is not there", path.display());
            return path;
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--package", "sandhaus"])
            .current_dir(crate::checkout())
            .status()
            .expect("start cargo");
        assert!(built.success(), "sandhaus does not build");
        crate::cache_dir().parent().expect("the cache lies in the target folder").join("debug/sandhaus")
    })
}

/// A command line of the binary on a data directory, shielded from the caller's own settings.
pub fn command(data_dir: &Path) -> Command {
    let mut command = Command::new(path());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SANDHAUS_")
            || name.to_string_lossy().starts_with("SANDKASTEN_")
        {
            command.env_remove(name);
        }
    }
    command.arg("--data-dir").arg(data_dir).stdin(Stdio::null()).current_dir("/");
    command
}

/// What a finished command line gave.
#[derive(Debug)]
pub struct Ran {
    /// Exit status; 128 + N for death by signal N.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command line to its end.
pub fn run(command: &mut Command) -> Ran {
    ran(command.output().expect("start the binary"))
}

/// The same of an output that is there already.
pub fn ran(output: Output) -> Ran {
    use std::os::unix::process::ExitStatusExt as _;
    let code = output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal));
    Ran {
        code: code.expect("a process ends by exit or by signal"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
