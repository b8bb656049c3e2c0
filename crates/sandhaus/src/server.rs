//! Finding a server and speaking to it.

use std::sync::Arc;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use sandhaus_client::{Client, Endpoint};
use sandhaus_sandbox::{
    Error, Instance, Kind,
    engine::GuestStream,
    toolbox::{Base, Connect, Toolbox},
};

use crate::{advice::Advice, cli::ServerArguments, config::Config};

/// Answer status of a server that wants a key.
const STATUS_UNAUTHORIZED: u16 = 401;

/// A server that was found, not yet spoken to.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    client: Client,
    authorization: Option<String>,
}

impl Server {
    /// The server at `url`.
    fn at(url: &str, config: &Config) -> Result<Self> {
        let key = config.api_key.as_ref().map(|key| key.reveal());
        let client = Client::new(url, key).map_err(explain)?;
        Ok(Self { client, authorization: key.map(|key| format!("Bearer {key}")) })
    }

    /// The server that was named, else the one that holds the data directory, else where one is configured to be.
    pub(crate) fn find(arguments: &ServerArguments, config: &Config) -> Result<Self> {
        match Self::find_running(arguments, config)? {
            Some(server) => Ok(server),
            None => Self::at(&reachable_url(config.listen), config),
        }
    }

    /// The server that was named, else the one that holds the data directory, if there is one and it listens.
    pub(crate) fn find_running(arguments: &ServerArguments, config: &Config) -> Result<Option<Self>> {
        if let Some(url) = &arguments.host {
            let url = if url.contains("://") { url.clone() } else { format!("http://{url}") };
            return Self::at(&url, config).map(Some);
        }
        let holder = match Instance::holder(&config.data_dir) {
            Ok(holder) => holder,
            // An ordinary user cannot look into the data directory, but may speak to the server.
            Err(error) if error.kind() == Kind::Forbidden => None,
            Err(error) => return Err(error).context("look for a server"),
        };
        holder.and_then(|holder| holder.url).map(|url| Self::at(&url, config)).transpose()
    }

    /// Its `/v1`.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The agent inside one of its sandboxes.
    pub(crate) fn toolbox(&self, sandbox: &str) -> Toolbox {
        let endpoint = self.client.endpoint().clone();
        let base = Base {
            path_prefix: format!("{}/v1/sessions/{sandbox}/toolbox", endpoint.path()),
            host: Some(endpoint.authority()),
            authorization: self.authorization.clone(),
        };
        Toolbox::new(Arc::new(Dial(endpoint)), base)
    }
}

/// Where this host reaches a server that listens on `listen`.
pub(crate) fn reachable_url(listen: std::net::SocketAddr) -> String {
    let mut reachable = listen;
    if listen.ip().is_unspecified() {
        reachable.set_ip(match listen {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{reachable}")
}

struct Dial(Endpoint);

impl Connect for Dial {
    fn connect(&self) -> BoxFuture<'_, sandhaus_sandbox::Result<GuestStream>> {
        Box::pin(async {
            let stream = self.0.connect().await.map_err(|error| {
                Error::new(Kind::Unavailable, "the server cannot be reached").with_source(error)
            })?;
            Ok(GuestStream::new(stream))
        })
    }
}

/// Adds what to do about an error of the client, where there is something to do.
pub(crate) fn explain(error: sandhaus_client::Error) -> anyhow::Error {
    match &error {
        sandhaus_client::Error::Connect { address, .. } => Advice::new(
            format!("no server answers at {address}"),
            "start one with `sandhaus serve`, or name another with --host or SANDHAUS_HOST",
        )
        .with_source(error)
        .into(),
        sandhaus_client::Error::Status { status: STATUS_UNAUTHORIZED, .. } => Advice::new(
            "the server wants another API key",
            "set SANDHAUS_API_KEY in the environment or api_key in the configuration",
        )
        .with_source(error)
        .into(),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_are_reached_on_loopback() {
        let url = |listen: &str| reachable_url(listen.parse().unwrap());
        assert_eq!(url("0.0.0.0:8080"), "http://127.0.0.1:8080");
        assert_eq!(url("[::]:8080"), "http://[::1]:8080");
        assert_eq!(url("192.0.2.1:80"), "http://192.0.2.1:80");
    }
}
