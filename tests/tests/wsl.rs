//! `sandhaus-wsl.exe`, built for Windows and run under Wine.
//!
//! Windows' `wsl.exe` has a stand-in that hands what it was called with to this test, which plays the distribution: it
//! answers for WSL itself and runs what is meant for the inside, the real `sandhaus`, right here. So a server is started,
//! asked and stopped from "Windows", and reached over its `localhost`.

use std::{
    collections::VecDeque,
    fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use sandhaus_tests::{
    binary, cache_dir, checkout, http::Http, runnable, server::DataDir, session::Session, skip,
};
use serde_json::{Value, json};

const TARGET: &str = "x86_64-pc-windows-gnu";

/// The compiler that Debian has the standard library's source for, beside the one of this project.
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const LIBRARY_SOURCE: &str = "/usr/lib/rustlib/src/rust/library";
const LINKER: &str = "x86_64-w64-mingw32-gcc";

/// Called directly: the script around it wants a screen and the 32-bit half.
const WINE: &str = "/usr/lib/wine/wine64";
const WINE_SERVER: &str = "/usr/lib/wine/wineserver64";

/// What a sound distribution has mounted.
const MOUNTS: &str = "/dev/sdc / ext4 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n\
                      C:\\134 /mnt/c 9p rw,aname=drvfs;path=C:\\134 0 0\n";

/// Longest argument that the stand-in may have been called with.
const ARGUMENT_BYTES_MAX: usize = 4096;

#[test]
fn a_server_inside_of_wsl_is_looked_after_from_windows() {
    let name = "a_server_inside_of_wsl_is_looked_after_from_windows";
    if !runnable(name) {
        return;
    }
    if let Some(missing) = missing() {
        return skip(name, &format!("{missing} is not installed"));
    }
    let windows = Windows::new();
    let dir = DataDir::new();
    let port = free_port();
    // Blanks and letters beyond ASCII must survive two command lines.
    let folder = tempfile::Builder::new().prefix("sandhaus ü ").tempdir().expect("make a folder");
    let config = folder.path().join("my config.yaml");
    let text = format!("listen: 127.0.0.1:{port}\ndata_dir: {}\n", dir.path().display());
    fs::write(&config, text).expect("write the configuration");
    let config = config.to_str().expect("a path in UTF-8");
    let http = Http::new(format!("127.0.0.1:{port}").parse().expect("an address"));

    let status = windows.run(&["status", "-config", config]);
    assert_eq!(status.status.code(), Some(3), "{status:?}");

    let started = windows.run(&["start", "-d", "debian", "--config", config]);
    assert_eq!(started.status.code(), Some(0), "{started:?}");
    let told = format!("the server runs in Debian\nAPI  http://localhost:{port}/v1\n");
    assert_eq!(String::from_utf8_lossy(&started.stdout).replace('\r', ""), told);
    let program = binary::path().to_str().expect("a path in UTF-8");
    windows
        .was_called(&["-d", "Debian", "-u", "root", "--exec", program, "daemon", "-d", "--config", config]);

    let session = Session::create(&http, &json!({}));
    let again = windows.run(&["start", "-c", config]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("the server already runs"), "{again:?}");
    let status = windows.run(&["status", "-c", config, "-o", "json"]);
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    let facts: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(facts["running"], true);
    assert_eq!(facts["reachable"], true);
    assert_eq!(facts["sandboxes"].as_array().map(Vec::len), Some(1), "{facts}");
    session.delete();

    let stopped = windows.run(&["stop", "-c", config]);
    assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
    assert_eq!(windows.run(&["status", "-c", config]).status.code(), Some(3));
    assert!(http.try_send("GET", "/healthz", "", b"").is_err(), "nobody listens any more");

    for words in [&[][..], &["restart"], &["start", "-c", "C:\\sandhaus.yaml"]] {
        assert_eq!(windows.run(words).status.code(), Some(2), "{words:?}");
    }
    windows.set_list("  NAME    STATUS     VERSION\r\n* Debian  Läuft      1\r\n");
    let refused = windows.run(&["start", "-c", config]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("Debian is of WSL 1") && said.contains("wsl --set-version Debian 2"), "{said}");
    windows.remove_wsl();
    let refused = windows.run(&["doctor"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(said.contains("Windows has no wsl.exe") && said.contains("wsl --install"), "{said}");
}

/// What this machine lacks for it.
fn missing() -> Option<&'static str> {
    let linker = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join(LINKER).exists());
    if !linker {
        return Some(LINKER);
    }
    [CARGO, RUSTC, LIBRARY_SOURCE, WINE, WINE_SERVER].into_iter().find(|path| !Path::new(path).exists())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Builds program and stand-in for Windows; gives the folder of the program. The standard library is built with them the
/// first time: Debian has none for Windows that is new enough.
fn build() -> PathBuf {
    let target = cache_dir().join("windows");
    let mut cargo = Command::new(CARGO);
    for variable in ["RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(variable);
    }
    // Nobody debugs these, and they abort where they panic: less to build.
    for (setting, value) in [("DEBUG", "0"), ("PANIC", "abort"), ("INCREMENTAL", "false")] {
        cargo.env(format!("CARGO_PROFILE_DEV_{setting}"), value);
    }
    cargo.env("RUSTC", RUSTC).env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER", LINKER);
    cargo.args([
        "build",
        "--locked",
        "--package",
        "sandhaus-wsl",
        "--bin",
        "sandhaus-wsl",
        "--example",
        "wsl",
    ]);
    cargo.args(["--target", TARGET, "-Zbuild-std=std,panic_abort", "-Zbuild-std-features="]);
    cargo.arg("--target-dir").arg(&target).current_dir(checkout());
    succeeds(&mut cargo);
    target.join(TARGET).join("debug")
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}:\n{errors}", output.status);
}

/// A Windows of its own, with the stand-in where Windows has `wsl.exe`.
struct Windows {
    folder: tempfile::TempDir,
    program: PathBuf,
    address: String,
    distribution: Arc<Mutex<Distribution>>,
}

/// What the test plays.
struct Distribution {
    list: String,
    calls: VecDeque<Vec<String>>,
}

impl Windows {
    fn new() -> Self {
        let built = build();
        let folder = tempfile::Builder::new().prefix("sandhaus-wine-").tempdir().expect("make a folder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let list =
            "  NAME    STATE    VERSION\r\n* Debian  Running  2\r\n  Alt     Stopped  1\r\n".to_owned();
        let distribution = Arc::new(Mutex::new(Distribution { list, calls: VecDeque::new() }));
        let played = Arc::clone(&distribution);
        std::thread::spawn(move || {
            for call in listener.incoming() {
                play(call.expect("a call"), &played).expect("the stand-in listens");
            }
        });
        let windows = Self { folder, program: built.join("sandhaus-wsl.exe"), address, distribution };
        succeeds(windows.wine().args(["wineboot", "--init"]));
        let system = windows.system();
        let mut random = Command::new(LINKER);
        random.args(["-shared", "-O1", "-o"]).arg(system.join("bcryptprimitives.dll"));
        succeeds(random.arg(checkout().join("tests/wine/bcryptprimitives.c")).arg("-ladvapi32"));
        fs::copy(built.join("examples/wsl.exe"), system.join("wsl.exe")).expect("put the stand-in in place");
        windows
    }

    fn system(&self) -> PathBuf {
        self.folder.path().join("drive_c/windows/system32")
    }

    fn wine(&self) -> Command {
        let mut command = Command::new(WINE);
        command.env("WINEPREFIX", self.folder.path()).env("WINEDEBUG", "-all").env_remove("DISPLAY");
        command.env("WINEDLLOVERRIDES", "mscoree,mshtml=;winemenubuilder.exe=");
        command.env("SANDHAUS_STAND_IN", &self.address).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        // By default the program inside is the one under test.
        let mut all: Vec<&str> = words.to_vec();
        if !words.is_empty() {
            all.extend(["-b", binary::path().to_str().expect("a path in UTF-8")]);
        }
        self.wine().arg(&self.program).args(all).output().expect("start Wine")
    }

    fn set_list(&self, list: &str) {
        list.clone_into(&mut self.distribution.lock().expect("no player panics").list);
    }

    fn remove_wsl(&self) {
        fs::remove_file(self.system().join("wsl.exe")).expect("remove the stand-in");
    }

    #[track_caller]
    fn was_called(&self, with: &[&str]) {
        let calls = &self.distribution.lock().expect("no player panics").calls;
        assert!(calls.iter().any(|call| call == with), "{with:?} is not among {calls:#?}");
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        let mut end = Command::new(WINE_SERVER);
        let _ = end.env("WINEPREFIX", self.folder.path()).arg("--kill").status();
        let _ = end.args(["--wait"]).status();
    }
}

/// Answers one call of the stand-in.
fn play(mut call: TcpStream, distribution: &Mutex<Distribution>) -> io::Result<()> {
    let mut arguments = Vec::new();
    for _ in 0..read_number(&mut call)? {
        let length = read_number(&mut call)?;
        assert!(length <= ARGUMENT_BYTES_MAX, "an argument of {length} bytes");
        let mut argument = vec![0; length];
        call.read_exact(&mut argument)?;
        arguments.push(String::from_utf8(argument).expect("arguments in UTF-8"));
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (status, out, err) = match words.as_slice() {
        ["--list", "--verbose"] => {
            let list = &distribution.lock().expect("no player panics").list;
            (0, list.encode_utf16().flat_map(u16::to_le_bytes).collect(), Vec::new())
        }
        ["-d", "Debian", "-u", "root", "--exec", "cat", "/proc/mounts"] => (0, MOUNTS.into(), Vec::new()),
        ["-d", "Debian", "-u", "root", "--exec", program, rest @ ..]
            if Path::new(program) == binary::path() =>
        {
            let mut inside = Command::new(program);
            inside.args(rest).env_clear().env("PATH", "/usr/sbin:/usr/bin").current_dir("/");
            let output = inside.stdin(Stdio::null()).output()?;
            (
                output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
                output.stdout,
                output.stderr,
            )
        }
        _ => (1, Vec::new(), format!("no such call: {words:?}").into_bytes()),
    };
    distribution.lock().expect("no player panics").calls.push_back(arguments);
    call.write_all(&[status])?;
    for stream in [out, err] {
        let length = u32::try_from(stream.len()).expect("a short output");
        call.write_all(&length.to_le_bytes())?;
        call.write_all(&stream)?;
    }
    Ok(())
}

fn read_number(stream: &mut impl Read) -> io::Result<usize> {
    let mut number = [0; 4];
    stream.read_exact(&mut number)?;
    Ok(u32::from_le_bytes(number) as usize)
}
