//! A real S3 server as a process of its own, and a proxy before it that tells what passed and holds what it is told to.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock},
    thread,
};

use crate::{PATIENCE, registry::Head};

/// What the server is built of, and what it knows.
const SOURCE: &str = "crates/snapstore/examples/s3-server.rs";
const EXAMPLE: &str = "s3-server";

/// Its bucket.
pub const BUCKET: &str = "daytona";

/// The keys that it knows: who asks, and what proves it.
pub const KEYS: (&str, &str) = ("test-access", "test-secret");

/// Bytes of a body that pass before it is held.
const HELD_AFTER_BYTES: u64 = 1_000_000;

/// The server, until it is dropped.
#[derive(Debug)]
pub struct S3 {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl S3 {
    /// Starts an empty one.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = Command::new(executable())
            .arg(folder.path())
            .arg("0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the S3 server");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output is ours");
        BufReader::new(stdout).read_line(&mut line).expect("it tells its address");
        let address = line.trim().parse().expect("an address");
        Self { child, address, _folder: folder }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's executable: `cargo test` builds it along with all tests, but not with one alone.
fn executable() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let own = std::env::current_exe().expect("the test has an executable");
        let profile = own.ancestors().nth(2).expect("<profile>/deps/<test>");
        let path = profile.join("examples").join(EXAMPLE);
        let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
        let source = crate::checkout().join(SOURCE);
        let fresh =
            matches!((modified(&path), modified(&source)), (Ok(built), Ok(written)) if built > written);
        if !fresh {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = Command::new(cargo)
                .args(["build", "--package", "sandhaus-snapstore", "--example", EXAMPLE])
                .current_dir(crate::checkout())
                .status()
                .expect("start cargo");
            assert!(built.success(), "the S3 server does not build");
        }
        path
    })
}

/// Where a request is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// In the middle of its body.
    Request,
    /// In the middle of its answer's body.
    Answer,
}

/// A request that has reached the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method, path and query.
    pub line: String,
    /// Which bytes it asks for, if it asks for some only.
    pub range: String,
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<Request>,
    hold: Option<(String, Held)>,
    is_held: bool,
    /// How often everything that was held was let go.
    let_go: u64,
}

/// The proxy: one connection for each request. It lives as long as the test's process.
#[derive(Debug, Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

impl Proxy {
    /// Starts one.
    pub fn start(server: &S3) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let shared =
            Arc::new(Shared { upstream: server.address, state: Mutex::default(), changed: Condvar::new() });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // A client that is killed breaks its connections.
                thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { shared, address }
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Holds the next request whose line has the pattern in the middle, until [`Self::let_go`].
    pub fn hold(&self, pattern: &str, held: Held) {
        let mut state = self.shared.state();
        (state.hold, state.is_held) = (Some((pattern.to_owned(), held)), false);
    }

    /// Whether a request is held.
    pub fn holds(&self) -> bool {
        self.shared.state().is_held
    }

    /// Breaks the connection that is held.
    pub fn let_go(&self) {
        let mut state = self.shared.state();
        (state.hold, state.is_held) = (None, false);
        state.let_go += 1;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Requests whose line has the pattern, since the last [`Self::forget`].
    pub fn requests(&self, pattern: &str) -> Vec<Request> {
        let state = self.shared.state();
        state.requests.iter().filter(|request| request.line.contains(pattern)).cloned().collect()
    }

    /// Forgets all requests so far.
    pub fn forget(&self) {
        self.shared.state().requests.clear();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn serve(&self, client: TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(client.try_clone()?);
        let Some(request) = Head::read(&mut reader)? else { return client.shutdown(Shutdown::Both) };
        let held = self.note(&request);
        let mut server = TcpStream::connect(self.upstream)?;
        // The answer ends where the connection does.
        server.write_all(request.text(&[("connection", "close")]).as_bytes())?;
        let hold_here = |which| (held == Some(which)).then_some(HELD_AFTER_BYTES);
        let passed = self.pass(&mut reader, &mut server, request.length(), hold_here(Held::Request))?;
        if !passed {
            return client.shutdown(Shutdown::Both);
        }
        let mut answer = BufReader::new(server);
        let Some(reply) = Head::read(&mut answer)? else { return client.shutdown(Shutdown::Both) };
        let mut to = &client;
        to.write_all(reply.text(&[]).as_bytes())?;
        self.pass(&mut answer, &mut to, u64::MAX, hold_here(Held::Answer))?;
        client.shutdown(Shutdown::Both)
    }

    /// Notes a request, and whether it is the one to hold.
    fn note(&self, request: &Head) -> Option<Held> {
        let line = request.first.trim_end_matches(" HTTP/1.1").to_owned();
        let range = request.field("range").unwrap_or_default().to_owned();
        let mut state = self.state();
        let held = state.hold.take_if(|(pattern, _)| line.contains(pattern.as_str()));
        state.requests.push(Request { line, range });
        held.map(|(_, held)| held)
    }

    /// Passes bytes on; false: it was held on the way, and let go since.
    fn pass(
        &self,
        from: &mut impl Read,
        to: &mut impl io::Write,
        length: u64,
        held_after: Option<u64>,
    ) -> io::Result<bool> {
        let Some(first) = held_after else {
            io::copy(&mut from.take(length), to)?;
            return Ok(true);
        };
        let count = io::copy(&mut from.take(first.min(length)), to)?;
        assert_eq!(count, first, "what is to be held in the middle is longer than this");
        let mut state = self.state();
        state.is_held = true;
        let before = state.let_go;
        let waited = self.changed.wait_timeout_while(state, PATIENCE, |state| state.let_go == before);
        drop(waited.expect("no holder panics"));
        Ok(false)
    }
}
