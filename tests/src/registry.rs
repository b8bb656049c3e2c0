//! A real registry on loopback, images for it, and a proxy before it.
//!
//! The registry is Debian's `docker-registry`. Images are made here, byte by byte, and pushed over HTTP. The proxy counts
//! what passes, asks for tokens, cuts connections, holds them, and changes bytes, as its [`Rules`] say.

use std::{
    collections::HashMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{PATIENCE, http::Http, settles};

/// A user of a registry that wants one, and the password.
pub const USER: (&str, &str) = ("ci", "secret");

/// Line of a password file for [`USER`].
const HTPASSWD: &str = "ci:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Tries to find a free port that is still free when the registry wants it.
const PORT_TRIES: usize = 5;

/// Who may use a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// [`USER`].
    Password,
}

/// A registry that runs until this is dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: SocketAddr,
    access: Access,
    _folder: tempfile::TempDir,
}

impl Registry {
    /// Starts an empty one.
    pub fn start(access: Access) -> Self {
        for _ in 0..PORT_TRIES {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            let address = free.local_addr().expect("a bound address");
            drop(free);
            if let Some(registry) = Self::start_at(address, access) {
                return registry;
            }
        }
        panic!("docker-registry finds no port");
    }

    fn start_at(address: SocketAddr, access: Access) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {path}/data}}}}\n\
             http: {{addr: '{address}'}}\n"
        );
        if access == Access::Password {
            fs_err::write(folder.path().join("htpasswd"), HTPASSWD).expect("write passwords");
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {path}/htpasswd}}}}\n"));
        }
        let file = folder.path().join("config.yml");
        fs_err::write(&file, config).expect("write a configuration");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed: ./x setup does that");
        settles("the registry answers or ends", || {
            TcpStream::connect(address).is_ok() || child.try_wait().expect("its state").is_some()
        });
        if child.try_wait().expect("its state").is_some() {
            return None;
        }
        Some(Self { child, address, access, _folder: folder })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A reference to an image in it.
    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Pushes an image under `repository:tag` and gives the digest of its manifest.
    pub fn push(&self, repository: &str, tag: &str, image: &OciImage) -> String {
        for blob in image.layers.iter().map(|layer| &layer.blob).chain([&image.config]) {
            self.push_blob(repository, blob);
        }
        self.push_manifest(repository, tag, &image.manifest(), MANIFEST_TYPE)
    }

    /// Pushes images for several machines under one tag: `(architecture, image)`.
    pub fn push_index(&self, repository: &str, tag: &str, images: &[(&str, &OciImage)]) -> String {
        let entries: Vec<Value> = images
            .iter()
            .map(|(architecture, image)| {
                let digest = self.push(repository, architecture, image);
                json!({"mediaType": MANIFEST_TYPE, "digest": digest, "size": image.manifest().len(),
                    "platform": {"os": "linux", "architecture": architecture}})
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries});
        self.push_manifest(repository, tag, index.to_string().as_bytes(), INDEX_TYPE)
    }

    fn push_blob(&self, repository: &str, blob: &[u8]) {
        let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[]);
        assert_eq!(begun.0, 202, "an upload begins");
        let location = begun.1.get("location").expect("an upload has a place");
        let place = location.split_once("/v2/").map_or(location.as_str(), |(_, rest)| rest);
        let joint = if place.contains('?') { '&' } else { '?' };
        let path = format!("/v2/{place}{joint}digest={}", digest(blob));
        let put = self.send("PUT", &path, "application/octet-stream", blob);
        assert_eq!(put.0, 201, "a blob is taken");
    }

    /// Pushes a manifest as it is.
    pub fn push_manifest(&self, repository: &str, tag: &str, manifest: &[u8], kind: &str) -> String {
        let put = self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), kind, manifest);
        assert_eq!(put.0, 201, "a manifest is taken");
        digest(manifest)
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, HashMap<String, String>) {
        let mut stream = TcpStream::connect(self.address).expect("reach the registry");
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        if !kind.is_empty() {
            head.push_str(&format!("Content-Type: {kind}\r\n"));
        }
        if self.access == Access::Password {
            let (user, password) = USER;
            let encoded = crate::session::base64(format!("{user}:{password}").as_bytes());
            head.push_str(&format!("Authorization: Basic {encoded}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).expect("send a request");
        stream.write_all(body).expect("send a body");
        let mut reader = BufReader::new(stream);
        let head = Head::read(&mut reader).expect("an answer").expect("an answer");
        let status = head.first.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head.fields.into_iter().collect())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// By gzip.
    Gzip,
    /// By zstd.
    Zstd,
}

/// A layer, packed.
#[derive(Debug, Clone)]
pub struct Layer {
    kind: String,
    diff: String,
    /// What the registry stores.
    pub blob: Vec<u8>,
}

impl Layer {
    /// Packs an archive.
    pub fn new(archive: &[u8], packing: Packing) -> Self {
        let (ending, blob) = match packing {
            Packing::Plain => ("", archive.to_vec()),
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(archive).expect("packed");
                ("+gzip", encoder.finish().expect("packed"))
            }
            Packing::Zstd => ("+zstd", zstd::encode_all(archive, 1).expect("packed")),
        };
        Self { kind: format!("application/vnd.oci.image.layer.v1.tar{ending}"), diff: digest(archive), blob }
    }

    /// Packs a folder as it is, with owners, links, holes and extended attributes.
    pub fn of_folder(folder: &Path, packing: Packing) -> Self {
        let packed = Command::new("tar")
            .args(["--create", "--format=pax", "--sparse", "--xattrs", "--xattrs-include=*", "--sort=name"])
            .args(["--numeric-owner", "--directory"])
            .arg(folder)
            .arg(".")
            .output()
            .expect("run tar");
        assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
        Self::new(&packed.stdout, packing)
    }

    /// Its digest in a registry.
    pub fn digest(&self) -> String {
        digest(&self.blob)
    }
}

/// An image, ready to be pushed.
#[derive(Debug, Clone)]
pub struct OciImage {
    /// Lowest first.
    pub layers: Vec<Layer>,
    config: Vec<u8>,
}

impl OciImage {
    /// An image for `architecture` with this way to run.
    pub fn new(architecture: &str, layers: Vec<Layer>, run: &Value) -> Self {
        let diffs: Vec<&str> = layers.iter().map(|layer| layer.diff.as_str()).collect();
        let config = json!({"os": "linux", "architecture": architecture, "config": run,
            "rootfs": {"type": "layers", "diff_ids": diffs}});
        Self { layers, config: config.to_string().into_bytes() }
    }

    /// One for this machine.
    pub fn native(layers: Vec<Layer>, run: &Value) -> Self {
        Self::new(native(), layers, run)
    }

    /// Its manifest.
    pub fn manifest(&self) -> Vec<u8> {
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| json!({"mediaType": layer.kind, "digest": layer.digest(), "size": layer.blob.len()}))
            .collect();
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(&self.config), "size": self.config.len()});
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers});
        manifest.to_string().into_bytes()
    }

    /// Bytes of all layers as they are sent.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.blob.len() as u64).sum()
    }

    /// Lays it out as `docker save` did before it knew OCI: into this folder.
    pub fn save(&self, folder: &Path) {
        let mut paths = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let path = format!("{index}/layer.tar");
            fs_err::create_dir_all(folder.join(index.to_string())).expect("made");
            fs_err::write(folder.join(&path), &layer.blob).expect("written");
            paths.push(path);
        }
        fs_err::write(folder.join("config.json"), &self.config).expect("written");
        let manifest = json!([{"Config": "config.json", "RepoTags": ["x:1"], "Layers": paths}]);
        fs_err::write(folder.join("manifest.json"), manifest.to_string()).expect("written");
    }
}

/// This machine's architecture in the words of registries.
pub fn native() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The digest of bytes, as registries write it.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// What a proxy does besides passing on.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// So many answers with a large blob break off after so many bytes of it.
    pub cut: Option<(usize, u64)>,
    /// Answers with a large blob hold after so many bytes of it, until [`Proxy::release`].
    pub hold_after: Option<u64>,
    /// So many requests for blobs are told that there are too many.
    pub too_many: usize,
    /// One byte of this blob is changed.
    pub spoil: Option<String>,
    /// Everybody needs a token; the token server lets only [`USER`] have one.
    pub tokens: bool,
    /// Ranges are not understood.
    pub no_ranges: bool,
}

/// Blobs from so many bytes on are large.
const LARGE: u64 = 64 << 10;

/// A token that the proxy's token server gives out.
const TOKEN: &str = "a-token-of-the-test";

/// What has passed.
#[derive(Debug, Clone, Default)]
pub struct Passed {
    /// Bytes of each blob, by digest.
    pub blob_bytes: HashMap<String, u64>,
    /// Answers that had a part of a blob.
    pub blob_answers: HashMap<String, u64>,
    /// Offsets that were asked for.
    pub ranges: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    rules: Rules,
    passed: Passed,
    released: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    upstream: SocketAddr,
    address: SocketAddr,
}

/// A proxy before a registry. It lives as long as the test's process.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts one.
    pub fn start(registry: &Registry, rules: Rules) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let state = Mutex::new(State { rules, ..State::default() });
        let upstream = registry.address();
        let shared = Arc::new(Shared { state, changed: Condvar::new(), upstream, address });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // A broken connection is what these tests are about.
                thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { shared }
    }

    /// A reference to an image behind it.
    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.shared.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// What has passed so far.
    pub fn passed(&self) -> Passed {
        self.state().passed.clone()
    }

    /// Lets everything that is held go on, and holds nothing more.
    pub fn release(&self) {
        let mut state = self.state();
        state.released = true;
        drop(state);
        self.shared.changed.notify_all();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().expect("no holder panics")
    }
}

impl Shared {
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(client.try_clone()?);
        // Whoever tries TLS first speaks no HTTP and is hung up on.
        let Some(request) = Head::read(&mut reader)? else { return client.shutdown(Shutdown::Both) };
        let path = request.first.split(' ').nth(1).unwrap_or_default().to_owned();
        if let Some(refusal) = self.refusal(&path, &request) {
            (&client).write_all(&refusal)?;
            return client.shutdown(Shutdown::Both);
        }
        let rules = self.state.lock().expect("no holder panics").rules.clone();
        let mut upstream = TcpStream::connect(self.upstream)?;
        let mut head = format!("{}\r\nConnection: close\r\n", request.first);
        for (name, value) in &request.fields {
            let hidden = (rules.tokens && name == "authorization") || (rules.no_ranges && name == "range");
            if name != "connection" && !hidden {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        upstream.write_all(format!("{head}\r\n").as_bytes())?;
        let mut answer = BufReader::new(upstream);
        let Some(reply) = Head::read(&mut answer)? else { return client.shutdown(Shutdown::Both) };
        let mut head = format!("{}\r\n", reply.first);
        for (name, value) in &reply.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        (&client).write_all(format!("{head}\r\n").as_bytes())?;
        let blob = path.split_once("/blobs/").map(|(_, digest)| digest.to_owned());
        let good = reply.first.contains(" 200 ") || reply.first.contains(" 206 ");
        match blob {
            Some(digest) if good => {
                let length =
                    reply.field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
                self.pass_blob(&client, &mut answer, &digest, length, &request)?;
            }
            _ => drop(io::copy(&mut answer, &mut &client)?),
        }
        client.shutdown(Shutdown::Both)
    }

    /// What is answered without asking the registry.
    fn refusal(&self, path: &str, request: &Head) -> Option<Vec<u8>> {
        let mut state = self.state.lock().expect("no holder panics");
        if state.rules.tokens {
            if path.starts_with("/token") {
                let (user, password) = USER;
                let encoded = crate::session::base64(format!("{user}:{password}").as_bytes());
                let allowed = request.field("authorization") == Some(&format!("Basic {encoded}"));
                let scoped = path.contains("scope=repository:") && path.contains(":pull");
                return Some(match allowed && scoped {
                    true => answer("200 OK", "", &json!({"token": TOKEN}).to_string()),
                    false => answer("401 Unauthorized", "", "{}"),
                });
            }
            if request.field("authorization") != Some(&format!("Bearer {TOKEN}")) {
                let address = self.address;
                let challenge =
                    format!("WWW-Authenticate: Bearer realm=\"http://{address}/token\",service=\"test\"\r\n");
                return Some(answer("401 Unauthorized", &challenge, "{}"));
            }
        }
        if path.contains("/blobs/") && state.rules.too_many > 0 {
            state.rules.too_many -= 1;
            return Some(answer("429 Too Many Requests", "Retry-After: 0\r\n", "{}"));
        }
        None
    }

    fn pass_blob(
        &self,
        mut client: &TcpStream,
        answer: &mut impl io::Read,
        digest: &str,
        length: u64,
        request: &Head,
    ) -> io::Result<()> {
        let rules = {
            let mut state = self.state.lock().expect("no holder panics");
            *state.passed.blob_answers.entry(digest.to_owned()).or_default() += 1;
            state.passed.ranges.extend(request.field("range").map(str::to_owned));
            let rules = state.rules.clone();
            if let Some((count @ 1.., _)) = state.rules.cut.as_mut().filter(|_| length >= LARGE) {
                *count -= 1;
            }
            rules
        };
        let cut = rules.cut.filter(|(count, _)| *count > 0 && length >= LARGE).map(|(_, bytes)| bytes);
        let hold = rules.hold_after.filter(|_| length >= LARGE);
        let mut spoil = rules.spoil.as_deref() == Some(digest);
        let mut sent = 0;
        let mut piece = [0; 16 << 10];
        loop {
            let mut wanted = piece.len() as u64;
            for limit in [cut, hold].into_iter().flatten().filter(|limit| *limit > sent) {
                wanted = wanted.min(limit - sent);
            }
            let count = answer.read(&mut piece[..usize::try_from(wanted).expect("a small number")])?;
            if count == 0 {
                return Ok(());
            }
            if std::mem::take(&mut spoil) {
                piece[count / 2] ^= 1;
            }
            client.write_all(&piece[..count])?;
            sent += count as u64;
            {
                let mut state = self.state.lock().expect("no holder panics");
                *state.passed.blob_bytes.entry(digest.to_owned()).or_default() += count as u64;
            }
            if cut == Some(sent) {
                return Ok(());
            }
            if hold == Some(sent) {
                self.wait_for_release();
            }
        }
    }

    fn wait_for_release(&self) {
        let state = self.state.lock().expect("no holder panics");
        let limit: Duration = PATIENCE;
        let waiting = self.changed.wait_timeout_while(state, limit, |state| !state.released);
        drop(waiting.expect("no holder panics"));
    }
}

fn answer(status: &str, fields: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n{fields}\r\n{body}"
    )
    .into_bytes()
}

/// The first line and the fields of a request or an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) first: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// Reads one; `None` if what comes is no HTTP.
    pub(crate) fn read(reader: &mut impl io::BufRead) -> io::Result<Option<Self>> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            if reader.take(16 << 10).read_until(b'\n', &mut line)? == 0 {
                return Ok(None);
            }
            let Ok(line) = String::from_utf8(line) else { return Ok(None) };
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            if lines.is_empty() && !line.contains("HTTP/1.") {
                return Ok(None);
            }
            lines.push(line);
        }
        let mut lines = lines.into_iter();
        let Some(first) = lines.next() else { return Ok(None) };
        let fields = lines
            .filter_map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_ascii_lowercase(), value.trim().to_owned()))
            })
            .collect();
        Ok(Some(Self { first, fields }))
    }

    /// How long the body is that follows.
    pub(crate) fn length(&self) -> u64 {
        self.field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)
    }

    /// As it is sent, with other values for some fields.
    pub(crate) fn text(&self, instead: &[(&str, &str)]) -> String {
        let kept = self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let kept = kept.filter(|(name, _)| instead.iter().all(|(other, _)| other != name));
        let fields: String =
            kept.chain(instead.iter().copied()).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{}\r\n{fields}\r\n", self.first)
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

/// A client of a server's pulls: every event of it.
pub fn pull_events(http: &Http, request: &Value) -> Vec<(String, Value)> {
    let answer = http.post("/v1/images/pull", request).expect(200);
    let text = answer.text();
    let mut events = Vec::new();
    for block in text.split("\n\n").filter(|block| block.starts_with("event: ")) {
        let (event, data) = block.split_once('\n').expect("an event has data");
        let data = data.strip_prefix("data: ").expect("one line of data");
        events.push((
            event.trim_start_matches("event: ").to_owned(),
            serde_json::from_str(data).expect("data is JSON"),
        ));
    }
    events
}
