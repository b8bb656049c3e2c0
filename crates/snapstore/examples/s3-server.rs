//! A real S3 server on loopback for tests, as a process of its own that can be killed: `s3-server DIRECTORY PORT`.
//!
//! It keeps objects in the directory, knows one pair of keys, and makes the bucket if it is not there. It prints its
//! address when it listens.

use std::{error::Error, io::Write as _, net::Ipv4Addr, path::PathBuf};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

/// The keys that it knows, and the bucket that it has.
const ACCESS_KEY_ID: &str = "test-access";
const SECRET_ACCESS_KEY: &str = "test-secret";
const BUCKET: &str = "daytona";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: s3-server DIRECTORY PORT";
    let root = PathBuf::from(arguments.next().ok_or(usage)?);
    let port: u16 = arguments.next().and_then(|port| port.to_str()?.parse().ok()).ok_or(usage)?;
    fs_err::create_dir_all(root.join(BUCKET))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let files = FileSystem::new(root).map_err(|error| format!("{error:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        let service = builder.build();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{}", listener.local_addr()?)?;
        stdout.flush()?;
        loop {
            let (stream, _) = listener.accept().await?;
            let service = service.clone();
            tokio::spawn(async move {
                // A client that goes away is its own affair.
                let _ = Builder::new(TokioExecutor::new())
                    .http1_only()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}
