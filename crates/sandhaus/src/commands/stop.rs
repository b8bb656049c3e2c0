//! `sandhaus stop`: stops sandboxes; without any named, ends the server of a data directory, whose sandboxes go on.

use std::process::ExitCode;

use anyhow::Result;
use rustix::process::Signal;
use sandhaus_sandbox::Instance;

use crate::{
    advice::Advice,
    cli::StopArguments,
    commands::{
        change::{self, Change},
        run::Quiet,
    },
    config::Config,
    holder::HoldingProcess,
    output::print,
    progress::Progress,
    spelling::CalledAs,
};

/// Stops the sandboxes that are named; else asks the server to end and waits for it.
pub(crate) async fn stop(
    arguments: &StopArguments,
    config: &Config,
    quiet: Quiet,
    called_as: CalledAs,
) -> Result<ExitCode> {
    if !arguments.sandboxes.is_empty() {
        return change::each(&arguments.server, &arguments.sandboxes, config, Change::Stop).await;
    }
    // What the environment says of a server is meant for what speaks to one.
    let named = arguments.server.host.as_deref();
    if named.is_some() && named != std::env::var("SANDHAUS_HOST").ok().as_deref() {
        return Err(Advice::new(
            "a server is only ended on its own host",
            "name sandboxes to stop, or leave out --host",
        )
        .into());
    }
    let dir = config.data_dir.display();
    let Some(holder) = Instance::holder(&config.data_dir)? else {
        return Err(Advice::new(
            format!("no server runs on data directory {dir}"),
            "name the server's own with --data-dir or --config",
        )
        .into());
    };
    // Whoever has not announced an address is not a server, or not yet.
    let process = if holder.url.is_some() { HoldingProcess::find(&config.data_dir)? } else { None };
    let Some(process) = process else {
        return Err(Advice::new(
            format!("data directory {dir} is in use, but not by a server that can be stopped from here"),
            "it may be just starting or ending: try again; or run this as the user of the server, on its own host",
        )
        .into());
    };
    process.signal(Signal::TERM)?;
    let pid = process.pid();
    let (limit, progress) = (arguments.timeout, Progress::after_a_second("stopping the server", quiet));
    let ended = tokio::task::spawn_blocking(move || process.ends_within(limit)).await?;
    drop(progress);
    if !ended {
        return Err(Advice::new(
            format!("the server, process {pid}, has not ended yet"),
            "it was asked to and may still be serving a request: wait, or look at `sandhaus logs`",
        )
        .into());
    }
    match called_as {
        CalledAs::Sandkasten => print(&format!("stopped daemon (PID {pid})\n"))?,
        CalledAs::Sandhaus if quiet == Quiet::No => {
            print(&format!("stopped the server, process {pid}; its sandboxes go on\n"))?;
        }
        CalledAs::Sandhaus => {}
    }
    Ok(ExitCode::SUCCESS)
}
