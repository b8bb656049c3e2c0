//! Creates that find a sandbox waiting, and many at once.

use std::{
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use sandhaus_client::wire::{PoolInfo, SessionInfo};
use sandhaus_tests::{
    http::Connection,
    server::{DataDir, Options, Server},
};

use crate::{
    Arguments,
    ours::{NAME, connect, create, creates_per_second, delete, elapsed, exec, import},
    report::Report,
};

/// Sandboxes kept ready. The next sample waits until there are so many again, so that each meets a full pool; what it
/// takes is replaced while it is measured, as in real life.
const WAITING: usize = 4;

/// Creates that begin at the same moment.
const AT_ONCE: usize = 100;

/// Samples that warm caches and count for nothing.
const WARM_UP: usize = 5;

/// Measures a server with a pool.
pub(crate) fn measure(
    report: &mut Report,
    arguments: &Arguments,
    root: &Path,
    scratch: &Path,
) -> anyhow::Result<()> {
    let dir = DataDir::in_folder(scratch);
    import(&dir, root)?;
    let config = format!("pool:\n  enabled: true\n  images: {{bench: {WAITING}}}\n");
    let server = Server::start_with(&dir, &Options { config: Some(config), ..Options::default() });
    let mut connection = server.http().connect()?;
    let (mut creates, mut firsts) = (Vec::new(), Vec::new());
    for round in 0..arguments.samples + WARM_UP {
        fill(&mut connection)?;
        let start = Instant::now();
        let body = b"{\"image\":\"bench\"}";
        let answer = connection.send("POST", "/v1/sessions", "application/json", body)?;
        let created = elapsed(start);
        ensure!(answer.status == 201, "create: {}", answer.text());
        let session: SessionInfo = answer.json();
        exec(&mut connection, &session.id, "echo hi")?;
        let first = elapsed(start);
        ensure!(session.acquire_source.as_deref() == Some("pool"), "the pool was empty");
        delete(&mut connection, &session.id)?;
        if round >= WARM_UP {
            creates.push(created);
            firsts.push(first);
        }
    }
    report.add("create from a pool", NAME, "ms", creates);
    report.add("create from a pool -> first command's result", NAME, "ms", firsts);
    for in_flight in [8, 32] {
        let rate = creates_per_second(&server, in_flight, Duration::from_secs(arguments.seconds))?;
        let what = format!("create + destroy per second, {in_flight} in flight, beside a pool");
        report.add(&what, NAME, "/s", vec![rate]);
    }
    fill(&mut connection)?;
    at_once(report, "100 creates at once, beside a pool", &server)?;
    let drained = connection.send("POST", "/v1/pool/drain", "application/json", b"{}")?;
    ensure!(drained.status == 200, "drain: {}", drained.text());
    server.stop();
    Ok(())
}

fn fill(connection: &mut Connection) -> anyhow::Result<()> {
    let answer = connection.send("POST", "/v1/pool/fill", "application/json", b"{}")?;
    let pool: PoolInfo = answer.json();
    ensure!(pool.images.iter().all(|image| image.idle >= image.wanted), "the pool is not filled: {pool:?}");
    Ok(())
}

/// Many creates that begin at the same moment: how long until the last is answered, and how many fail.
pub(crate) fn at_once(report: &mut Report, what: &str, server: &Server) -> anyhow::Result<()> {
    let http = server.http();
    let connections = (0..AT_ONCE).map(|_| connect(&http)).collect::<anyhow::Result<Vec<_>>>()?;
    let (begin, failed) = (Barrier::new(AT_ONCE + 1), AtomicUsize::new(0));
    let start = std::thread::scope(|scope| {
        for mut connection in connections {
            let (begin, failed) = (&begin, &failed);
            scope.spawn(move || {
                begin.wait();
                let created = create(&mut connection);
                if created.is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        begin.wait();
        Instant::now()
    });
    report.add(&format!("{what}, until the last is there"), NAME, "ms", vec![elapsed(start)]);
    #[expect(clippy::cast_precision_loss, reason = "at most a hundred")]
    let failed = failed.into_inner() as f64;
    report.add(&format!("{what}, failures"), NAME, "", vec![failed]);
    server.delete_all();
    Ok(())
}
