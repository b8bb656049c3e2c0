//! `sandhaus serve` on a data directory of its own.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
};

use rustix::process::Signal;
use sandhaus_client::wire::SessionInfo;

use crate::{
    PATIENCE, binary,
    http::Http,
    kernel::{self, KernelObjects},
    process::{self, Handle},
    session::Session,
};

/// A data directory that is removed with all that its instance left, whatever the test did.
#[derive(Debug)]
pub struct DataDir {
    /// Made by the binary, with the access that it chooses.
    data: PathBuf,
    _folder: tempfile::TempDir,
}

impl Default for DataDir {
    fn default() -> Self {
        Self::new()
    }
}

impl DataDir {
    /// An empty one.
    pub fn new() -> Self {
        Self::in_folder(&std::env::temp_dir())
    }

    /// An empty one in a folder of the caller's.
    pub fn in_folder(parent: &Path) -> Self {
        let folder =
            tempfile::Builder::new().prefix("sandhaus-test-").tempdir_in(parent).expect("make a folder");
        Self { data: folder.path().join("data"), _folder: folder }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.data
    }

    /// The instance's id, once the binary has used the directory.
    pub fn instance(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.path().join("instance")).ok()?;
        Some(text.trim().to_owned())
    }

    /// What this instance has of the host's network, for sandboxes or for its server.
    pub fn network(&self) -> std::collections::BTreeSet<String> {
        self.instance().map(|instance| kernel::network_of(&instance)).unwrap_or_default()
    }

    /// Everything of this instance that exists now.
    pub fn objects(&self) -> KernelObjects {
        KernelObjects::of(self.path(), self.instance().as_deref())
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        kernel::sweep(self.path(), self.instance().as_deref());
    }
}

/// How to start a server.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Environment variables, also those that arm fault points.
    pub env: Vec<(String, String)>,
    /// Content of a configuration file.
    pub config: Option<String>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    handle: Handle,
    address: SocketAddr,
    log: Arc<Log>,
    data_dir: PathBuf,
}

/// Starts a server of its own for the test `name`, and proves after `body` that nothing is left and nothing was odd.
pub fn with_server(name: &str, body: impl FnOnce(&Server)) {
    with_configured_server(name, &Options::default(), body);
}

/// The same with options.
pub fn with_configured_server(name: &str, options: &Options, body: impl FnOnce(&Server)) {
    if !crate::runnable(name) {
        return;
    }
    with_server_on(&DataDir::new(), options, body);
}

/// The same on a data directory that something was put into.
pub fn with_server_on(dir: &DataDir, options: &Options, body: impl FnOnce(&Server)) {
    let server = Server::start_with(dir, options);
    body(&server);
    server.delete_all();
    let (status, log) = server.stop();
    assert!(status.success(), "{status}\n{log}");
    let expected = |line: &str| line.contains("emulat");
    let odd = |line: &&str| (line.contains("WARN") && !expected(line)) || line.contains("ERROR");
    let odd: Vec<_> = log.lines().filter(odd).collect();
    assert!(odd.is_empty(), "{odd:#?}");
    let left = dir.objects();
    assert!(left.is_empty(), "something is left: {left:#?}");
}

/// What a server has logged so far.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Server {
    /// Starts a server and waits until it listens.
    #[track_caller]
    pub fn start(data_dir: &DataDir) -> Self {
        Self::start_with(data_dir, &Options::default())
    }

    /// The same with options.
    #[track_caller]
    pub fn start_with(data_dir: &DataDir, options: &Options) -> Self {
        Self::try_start(data_dir, options).unwrap_or_else(|log| panic!("the server does not start:\n{log}"))
    }

    /// The same; the error is what it logged before it ended, and how it did.
    pub fn try_start(data_dir: &DataDir, options: &Options) -> Result<Self, String> {
        let mut command = Self::command(data_dir.path(), options);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("start the binary");
        let handle = Handle::open(child.id()).expect("a child that is not reaped exists");
        let log = Arc::new(Log::default());
        let writer = Arc::clone(&log);
        let stderr = BufReader::new(child.stderr.take().expect("standard error is piped"));
        std::thread::spawn(move || {
            for line in stderr.split(b'\n').map_while(Result::ok) {
                writer.add(String::from_utf8_lossy(&line).into_owned());
            }
            writer.end();
        });
        match log.find(address_in) {
            Some(address) => Ok(Self { child, handle, address, log, data_dir: data_dir.path().to_owned() }),
            None => {
                let status = child.wait().expect("reap the server");
                Err(format!("{}\n{status}", log.text()))
            }
        }
    }

    fn command(data_dir: &Path, options: &Options) -> Command {
        let mut command = binary::command(data_dir);
        if let Some(config) = &options.config {
            let path = data_dir.with_file_name("config.yaml");
            fs_err::write(&path, config).expect("write the configuration");
            command.arg("--config").arg(path);
        }
        command.args(["serve", "--listen", "127.0.0.1:0"]).stdout(Stdio::null());
        command.envs(options.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A client of it.
    pub fn http(&self) -> Http {
        Http::new(self.address)
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its process.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Its launcher's process, if it has one now.
    pub fn launcher(&self) -> Option<Handle> {
        let children = process::children(self.child.id());
        let launcher =
            children.into_iter().find(|pid| process::arguments(*pid).iter().any(|arg| arg == "__launcher"));
        launcher.and_then(Handle::open)
    }

    /// Deletes every session that lives.
    #[track_caller]
    pub fn delete_all(&self) {
        let live: Vec<SessionInfo> = self.http().get("/v1/sessions").expect(200).json();
        for session in live {
            Session::at(&self.http(), &session.id).delete();
        }
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// A command line of the binary that speaks to this server.
    pub fn cli(&self) -> Command {
        let mut command = binary::command(&self.data_dir);
        command.env("SANDHAUS_HOST", self.url());
        command
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(mut self) {
        self.end(Signal::KILL);
    }

    /// Asks it to end and waits; gives its status and its log.
    pub fn stop(mut self) -> (ExitStatus, String) {
        let status = self.end(Signal::TERM);
        (status, self.log.text())
    }

    /// Reaps a server that has died by itself.
    pub fn reap(mut self) -> (ExitStatus, String) {
        self.handle.wait();
        let status = self.child.wait().expect("reap the server");
        (status, self.log.text())
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        self.handle.signal(signal);
        assert!(self.handle.ends_within(PATIENCE), "the server does not end:\n{}", self.log.text());
        self.child.wait().expect("reap the server")
    }
}

impl Drop for Server {
    #[expect(
        clippy::print_stderr,
        reason = "a failed test shows the log; the test harness captures this macro"
    )]
    fn drop(&mut self) {
        // A test that failed midway: the log tells why, the data directory's own end clears the rest.
        if std::thread::panicking() {
            eprintln!("log of the server on {}:\n{}", self.data_dir.display(), self.log.text());
        }
        self.handle.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Log {
    fn add(&self, line: String) {
        self.state.lock().expect("no reader panics").lines.push(line);
        self.changed.notify_all();
    }

    fn end(&self) {
        self.state.lock().expect("no reader panics").ended = true;
        self.changed.notify_all();
    }

    fn text(&self) -> String {
        self.state.lock().expect("no reader panics").lines.join("\n")
    }

    /// Waits for a line of which `look` makes something; `None` when the log ended without one.
    fn find<T>(&self, look: impl Fn(&str) -> Option<T>) -> Option<T> {
        let mut state = self.state.lock().expect("no writer panics");
        let mut read = 0;
        loop {
            while let Some(line) = state.lines.get(read) {
                if let Some(found) = look(line) {
                    return Some(found);
                }
                read += 1;
            }
            if state.ended {
                return None;
            }
            let (next, timeout) = self.changed.wait_timeout(state, PATIENCE).expect("no writer panics");
            state = next;
            if timeout.timed_out() {
                return None;
            }
        }
    }
}

/// The address in a line that tells where the server listens.
fn address_in(line: &str) -> Option<SocketAddr> {
    let start = line.find("127.0.0.1:")?;
    let rest = &line[start..];
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(rest.len());
    rest[..end].parse().ok().filter(|address: &SocketAddr| address.port() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_a_log_line() {
        let found =
            address_in("2026 INFO listening on http://127.0.0.1:41234/ now").map(|address| address.port());
        assert_eq!(found, Some(41234));
        assert_eq!(address_in("will listen on 127.0.0.1:0"), None);
        assert_eq!(address_in("no address"), None);
    }
}
