//! Programs that attack from inside a sandbox, built from `tests/probes/`.

use std::{path::PathBuf, process::Command, sync::Mutex};

/// A static executable of `probes/NAME.c`, built once for all tests.
pub fn build(name: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _guard = BUILDING.lock().expect("no build panics");
    let source = crate::checkout().join(format!("tests/probes/{name}.c"));
    let built = crate::cache_dir().join(format!("probe-{name}"));
    let fresh = |path: &PathBuf| path.metadata().and_then(|file| file.modified()).ok();
    if fresh(&built) > fresh(&source) {
        return built;
    }
    // Renamed into place, so that a test binary that runs beside never executes half of it.
    let unfinished = built.with_extension(std::process::id().to_string());
    let compiled = Command::new("gcc")
        .args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"])
        .arg(&unfinished)
        .arg(&source)
        .status()
        .expect("start gcc");
    assert!(compiled.success(), "{} does not compile", source.display());
    fs_err::rename(&unfinished, &built).expect("put the probe in place");
    built
}
