//! `sandhaus serve`: the server.

use std::{net::SocketAddr, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use owo_colors::{OwoColorize, Stream};
use sandhaus_client::Client;
use sandhaus_gateway::GatewayConfig;
use sandhaus_sandbox::{Instance, Kind, NetworkPolicy, Seccomp, Service, service::ListFilter};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    advice::{Advice, print_warning},
    background::{self, Side},
    config::{self, Config},
    domain::{self, Lifetime},
    interrupt::Signals,
    page,
    server::reachable_url,
    supervisor::Supervisor,
};

/// Leaves for the background, unless it is clear already that the server could not start.
pub(crate) fn detach(config: &Config) -> Result<Side> {
    config::check_exposure(config)?;
    if Instance::holder(&config.data_dir)?.is_some() {
        let held = sandhaus_sandbox::Error::new(Kind::Conflict, "another process holds its lock");
        return Err(domain::explain_refusal(held, &config.data_dir));
    }
    background::enter(config)
}

/// Serves until a signal asks to end. Sandboxes go on.
pub(crate) async fn serve(
    config: &Config,
    file: Option<&Path>,
    background: Option<&mut background::Server>,
) -> Result<ExitCode> {
    config::check_exposure(config)?;
    crate::process::raise_open_files_limit();
    crate::process::reset_file_mask();
    let mut signals = Signals::listen()?;

    let instance = Instance::acquire(&config.data_dir)
        .map_err(|error| domain::explain_refusal(error, &config.data_dir))?;
    let listener = listen(config.listen, "--listen").await?;
    let runner = match config.runner.enabled {
        true => Some(listen(config.runner.listen, "runner.listen").await?),
        false => None,
    };
    let address = listener.local_addr().context("read the listener's address")?;
    let url = reachable_url(address);
    // The address is written down before the service takes the instance; until it answers, connections wait.
    instance.announce(&url).context("announce the address")?;
    domain::sweep_dead_runs(config).await;
    let service = domain::open_service(instance, config, Lifetime::Configured).await?;

    let stop = CancellationToken::new();
    let gateway = gateway_config(config);
    let mut served = tokio::spawn(sandhaus_gateway::serve(listener, service.clone(), gateway, stop.clone()));
    let runner_address =
        runner.as_ref().map(TcpListener::local_addr).transpose().context("read the runner's address")?;
    // Without one there is nothing to wait for.
    let runner = runner.map(|listener| {
        let served = sandhaus_gateway::serve_runner(
            listener,
            service.clone(),
            crate::runner::config(config),
            stop.clone(),
        );
        tokio::spawn(served)
    });
    banner(&url, runner_address, config, file);
    if let Some(background) = background
        && let Err(error) = background.answers(&url)
    {
        tracing::error!(error = format!("{error:#}"), "stopping");
        stop.cancel();
    }
    let supervisor = Supervisor::of_environment();
    supervisor.ready();
    let client = Client::new(&url, None).context("reach this server")?;
    let served = tokio::select! {
        // It ends by itself only if it fails.
        served = &mut served => served,
        () = supervisor.keep_alive(async || answers(&client, &service).await) => unreachable!("it never ends"),
        signal = signals.end() => {
            tracing::info!(signal, "stopping; sandboxes go on");
            supervisor.stopping();
            stop.cancel();
            served.await
        }
    };
    stop.cancel();
    if let Some(runner) = runner {
        runner.await.context("the runner's task failed")?.context("serve the runner's API")?;
    }
    let served = served.context("the listener's task failed")?;
    service.shutdown().await;
    served.context("serve")?;
    Ok(ExitCode::SUCCESS)
}

/// Whether this server does its work: connections are taken and answered, and the sandboxes can be asked for.
async fn answers(client: &Client, service: &Service) -> Result<()> {
    client.healthz().await.context("ask over HTTP")?;
    service.list(ListFilter::default()).await.context("list sandboxes")?;
    Ok(())
}

async fn listen(address: SocketAddr, chosen_by: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let message = format!("cannot listen on {address}");
        match error.kind() {
            std::io::ErrorKind::AddrInUse => Advice::new(
                message,
                format!("another program listens there: stop it, or choose another address with {chosen_by}"),
            )
            .with_source(error)
            .into(),
            _ => anyhow::Error::from(error).context(message),
        }
    })
}

fn gateway_config(config: &Config) -> GatewayConfig {
    GatewayConfig {
        api_key: config.api_key.as_ref().map(|key| key.reveal().to_owned()),
        dashboard: config.dashboard.then(|| page::dashboard(config.dashboard_cookie)),
        v1: domain::v1_config(config),
    }
}

#[expect(clippy::print_stderr, reason = "the banner is for the person who starts the server")]
fn banner(url: &str, runner: Option<SocketAddr>, config: &Config, file: Option<&Path>) {
    let name = "sandhaus".if_supports_color(Stream::Stderr, |text| text.bold()).to_string();
    eprintln!("{name} {} is ready", env!("CARGO_PKG_VERSION"));
    if config.dashboard && page::is_built() {
        eprintln!("  page    {url}/");
    }
    eprintln!("  API     {url}/v1");
    eprintln!("  docs    {url}/openapi.json");
    if let Some(runner) = runner {
        eprintln!("  runner  {}/", reachable_url(runner));
    }
    eprintln!("  data    {}", config.data_dir.display());
    if let Some(file) = file {
        eprintln!("  config  {}", file.display());
    }
    if config.api_key.is_none() {
        print_warning("no API key is set: every program on this host may use the server");
    }
    if config.network == NetworkPolicy::Host {
        print_warning(
            "defaults.network_mode is host: sandboxes use this host's own network without any isolation and reach all its \
             services; set it to none or bridge for code that you do not trust",
        );
    }
    if config.seccomp == Seccomp::Off {
        print_warning(
            "security.seccomp is off: what runs in a sandbox reaches every system call of this host's kernel, old and \
             foreign ones too; set it to strict, or to mvp for debuggers and nested sandboxes",
        );
    }
}
