//! The harness of the end-to-end tests: they run the real binary on real data directories, speak HTTP to it, and look
//! at the kernel with their own eyes.
//!
//! - [`binary`]: the executable under test;
//! - [`server`]: `sandhaus serve` on a data directory of its own, its log, its deaths;
//! - [`http`]: a small blocking HTTP/1.1 client that hides nothing (the benchmark uses it too);
//! - [`websocket`]: WebSockets on the same connections;
//! - [`session`]: `/v1` sessions on top of it;
//! - [`kernel`]: everything of an instance that the kernel and the disk hold;
//! - [`network`]: a host and an internet of a test's own;
//! - [`process`]: waiting for processes by file descriptor, never by time;
//! - [`terminal`]: a terminal for a command line;
//! - [`tree`]: root file systems for images;
//! - [`vm`]: images of virtual machines, built once for all tests;
//! - [`registry`]: a real registry, images for it, and a proxy before it that counts and does harm;
//! - [`s3`]: a real S3 server, and a proxy before it that holds what passes;
//! - [`engine`]: one body of a test on every engine;
//! - [`archive`]: archives written by hand;
//! - [`probe`]: programs that attack from inside, built from `probes/`.
//!
//! A test that cannot run on this machine calls [`skip`]; nothing is skipped silently.

pub mod archive;
pub mod binary;
pub mod engine;
pub mod http;
pub mod kernel;
pub mod network;
pub mod probe;
pub mod process;
pub mod registry;
pub mod s3;
pub mod server;
pub mod session;
pub mod terminal;
pub mod tree;
pub mod vm;
pub mod websocket;

use std::{
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// No single wait of a test takes longer than this; it only bounds a hang, no test measures against it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Environment variable with the file that collects what was skipped; `cargo xtask test` reads it.
pub const SKIPS: &str = "SANDHAUS_TEST_SKIPS";

/// Says loudly that the test `name` did not run, and why. The caller returns after this.
pub fn skip(name: &str, reason: &str) {
    let line = format!("{name}: {reason}\n");
    // Written to the stream itself, since the test harness hides what a passing test prints.
    std::io::stderr().write_all(format!("SKIPPED {line}").as_bytes()).expect("standard error takes lines");
    if let Some(path) = std::env::var_os(SKIPS) {
        let mut file =
            fs_err::OpenOptions::new().create(true).append(true).open(path).expect("open the skip list");
        file.write_all(line.as_bytes()).expect("write the skip list");
    }
}

/// True where sandboxes can be made at all; otherwise the test is skipped aloud.
pub fn runnable(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(name, "sandboxes need root");
    }
    root
}

/// Waits until `condition` holds, for kernel state that announces nothing (a process list, a directory). Looks again
/// at once, then ever more rarely; panics with `what` when [`PATIENCE`] is over.
pub fn settles(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(200);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Files of this name beneath a folder.
pub fn files_named(folder: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_named(&path, name));
        } else if entry.file_name() == name {
            found.push(path);
        }
    }
    found
}

/// Flips a bit near the middle of a file, and not in a hole, whatever its permissions; the same again makes it whole.
pub fn flip_bit(path: &Path) {
    let file = fs_err::OpenOptions::new().read(true).write(true).open(path).expect("open the file");
    let middle = file.metadata().expect("look at the file").len() / 2;
    let at = rustix::fs::seek(file.file(), rustix::fs::SeekFrom::Data(middle)).unwrap_or(middle);
    let mut byte = [0];
    file.file().read_exact_at(&mut byte, at).expect("read the byte");
    file.file().write_all_at(&[byte[0] ^ 1], at).expect("write the byte");
}

/// The checkout's root.
pub fn checkout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the checkout").to_owned()
}

/// A folder beneath cargo's target folder for what is costly to make and the same every time.
pub fn cache_dir() -> PathBuf {
    let executable = std::env::current_exe().expect("the test has an executable");
    // <target>/<profile>/deps/<test> or <target>/<profile>/<bench>.
    let target = executable
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists())
        .unwrap_or_else(|| panic!("{} is not in a target folder", executable.display()));
    let dir = target.join("test-cache");
    fs_err::create_dir_all(&dir).expect("make the cache folder");
    dir
}
