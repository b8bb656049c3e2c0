//! A real S3 server.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use sandhaus_snapstore::{Bucket, Credentials, Location, Patience, PlainHttp, StoreConfig};

/// What the server is built of, and what it knows: see `examples/s3-server.rs`.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/s3-server.rs");
const EXAMPLE: &str = "s3-server";
const BUCKET: &str = "daytona";

/// Pieces of the tests' snapshots; also the least that S3 takes as a part.
pub(crate) const CHUNK_BYTES: u64 = 8 << 20;

/// The server until it is killed or dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (child, address) = spawn(folder.path(), 0);
        Self { child, folder, address }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("kill the server");
        self.child.wait().expect("the server ends");
    }

    /// The same objects at the same address.
    pub(crate) fn restart(&mut self) {
        (self.child, self.address) = spawn(self.folder.path(), self.address.port());
    }

    /// The file that an object is in.
    pub(crate) fn object(&self, key: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join("snapshots").join(key)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test may have killed it already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, port: u16) -> (Child, SocketAddr) {
    let mut child = Command::new(executable())
        .arg(folder)
        .arg(port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the server");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("its output is ours");
    BufReader::new(stdout).read_line(&mut line).expect("it tells its address");
    let address = line.trim().parse().expect("an address");
    (child, address)
}

/// The server's executable: `cargo test` has built it along with the tests, unless it was told to build one test alone.
fn executable() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let own = std::env::current_exe().expect("the test has an executable");
        let profile = own.ancestors().nth(2).expect("<profile>/deps/<test>");
        let path = profile.join("examples").join(EXAMPLE);
        let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
        let fresh = matches!((modified(&path), modified(Path::new(SOURCE))), (Ok(built), Ok(written)) if built > written);
        if !fresh {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = Command::new(cargo)
                .args(["build", "--package", "sandhaus-snapstore", "--example", EXAMPLE])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .expect("start cargo");
            assert!(built.success(), "the server does not build");
        }
        path
    })
}

/// The bucket behind an address, for those who do not wait long.
pub(crate) fn bucket(address: SocketAddr) -> StoreConfig {
    let credentials = Credentials {
        access_key_id: "test-access".to_owned(),
        secret_access_key: "test-secret".to_owned(),
        session_token: None,
    };
    let bucket = Bucket {
        name: BUCKET.to_owned(),
        prefix: String::new(),
        endpoint: Some(format!("http://{address}")),
        region: "us-east-1".to_owned(),
        credentials: Some(credentials),
        plain_http: PlainHttp::Loopback,
    };
    let patience = Patience {
        delay: Duration::from_millis(20),
        delay_max: Duration::from_millis(500),
        // Long for a server on a busy machine, short for one that is silent.
        stall: Duration::from_secs(10),
        ..Patience::default()
    };
    StoreConfig { location: Location::Bucket(bucket), patience, chunk_bytes: CHUNK_BYTES }
}

/// A directory.
pub(crate) fn directory(path: &Path) -> StoreConfig {
    StoreConfig { chunk_bytes: CHUNK_BYTES, ..StoreConfig::at(Location::Directory(path.to_owned())) }
}
