//! Ports and sockets, both ways: a channel at one end, a stream at the other. Names are looked up in `/etc/hosts` alone, and
//! everything is opened with the workload's rights.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use sandhaus_protocol::boot::Workload;
use sandhaus_ssh::{Channel, ChannelEvent, Forward, Opening, OpeningKind, Refusal};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
};

use super::client::Client;
use crate::{error::reason, sys};

/// Bytes read from a stream at once.
const READ_BYTES: usize = 32 * 1024;

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// Connections of one listener at once.
const CONNECTIONS_MAX: usize = 64;

/// Connections that wait to be accepted.
const WAITING_MAX: i32 = 64;

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Ports below are for those who may have them.
const UNPRIVILEGED_PORT: u16 = 1024;

/// Largest `/etc/hosts` that is read.
const HOSTS_BYTES_MAX: u64 = 1 << 20;

/// Folder of the sockets that lead to clients' agents of keys.
const AGENT_FOLDER: &str = "/tmp";

/// Connects the channel to what it is for.
pub(super) async fn connect(client: Arc<Client>, opening: Opening) {
    let connected = tokio::time::timeout(CONNECT_MAX, async {
        match &opening.kind {
            OpeningKind::Tcp { host, port } => {
                let stream = connect_tcp(&client, host, *port).await?;
                let _ = stream.set_nodelay(true);
                Ok(Either::Tcp(stream))
            }
            OpeningKind::Local { path } => connect_local(&client, path.clone()).await.map(Either::Local),
            OpeningKind::Session => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    });
    match connected.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
        Ok(Either::Tcp(stream)) => relay(opening.accept(), stream).await,
        Ok(Either::Local(stream)) => relay(opening.accept(), stream).await,
        Err(error) => opening.refuse(Refusal::ConnectFailed, &reason(&error)),
    }
}

enum Either {
    Tcp(TcpStream),
    Local(UnixStream),
}

async fn connect_tcp(client: &Client, host: &str, port: u16) -> std::io::Result<TcpStream> {
    let name = host.to_owned();
    let addresses = client.agent.on_file_thread(move || addresses(&name)).await;
    let mut last =
        std::io::Error::new(std::io::ErrorKind::NotFound, "no such name in /etc/hosts; give an address");
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The addresses of a name, in the order in which they are tried.
fn addresses(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return vec![address];
    }
    let small = std::fs::metadata("/etc/hosts").is_ok_and(|hosts| hosts.len() <= HOSTS_BYTES_MAX);
    let hosts = if small { std::fs::read_to_string("/etc/hosts").unwrap_or_default() } else { String::new() };
    let mut found = addresses_in(&hosts, host);
    if host.eq_ignore_ascii_case("localhost") {
        found.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    }
    // Programs listen there by far most often.
    found.sort_by_key(IpAddr::is_ipv6);
    found.dedup();
    found
}

fn addresses_in(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .collect()
}

async fn connect_local(client: &Client, path: String) -> std::io::Result<UnixStream> {
    let workload = workload(client);
    let connected = client.agent.on_file_thread(move || sys::connect_local(&path, workload.as_ref())).await;
    UnixStream::from_std(connected?)
}

/// Whom the other side of a socket is to see; `None`: the agent's own user.
fn workload(client: &Client) -> Option<Workload> {
    client.agent.spawn_identity().cloned()
}

/// A place that a client listens at.
pub(super) enum Listener {
    Tcp(TcpListener),
    Local(UnixListener),
}

impl Listener {
    /// Opens it, and says which one it is: any port has a number then.
    pub(super) async fn open(client: &Client, forward: Forward) -> std::io::Result<(Self, Forward)> {
        match forward {
            Forward::Tcp { address, port } => {
                let ip = listening_address(&address).ok_or(std::io::ErrorKind::InvalidInput)?;
                let confined = client.agent.spawn_identity().is_some_and(|workload| workload.unprivileged);
                if confined && (1..UNPRIVILEGED_PORT).contains(&port) {
                    return Err(std::io::ErrorKind::PermissionDenied.into());
                }
                let workload = workload(client);
                let place = SocketAddr::new(ip, port);
                let open = move || sys::listen_tcp_as(place, WAITING_MAX, workload.as_ref());
                let listener = TcpListener::from_std(client.agent.on_file_thread(open).await?)?;
                let port = listener.local_addr()?.port();
                Ok((Self::Tcp(listener), Forward::Tcp { address, port }))
            }
            Forward::Local { path } => {
                let (workload, place) = (workload(client), path.clone());
                let open = move || sys::listen_local(&place, WAITING_MAX, workload.as_ref());
                let listener = client.agent.on_file_thread(open).await?;
                Ok((Self::Local(UnixListener::from_std(listener)?), Forward::Local { path }))
            }
        }
    }

    /// Passes whatever connects on to the client, for ever.
    pub(super) async fn run(self, client: Arc<Client>, forward: Forward) {
        // The path goes with the listener, as its socket does.
        let _path = match &forward {
            Forward::Local { path } => Some(RemoveOnDrop { client: Arc::clone(&client), path: path.clone() }),
            Forward::Tcp { .. } => None,
        };
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() >= CONNECTIONS_MAX {
                tasks.join_next().await;
            }
            while tasks.try_join_next().is_some() {}
            let (client, forward) = (Arc::clone(&client), forward.clone());
            match &self {
                Self::Tcp(listener) => match listener.accept().await {
                    Ok((stream, peer)) => drop(tasks.spawn(async move {
                        let _ = stream.set_nodelay(true);
                        let from = Some((peer.ip(), peer.port()));
                        if let Some(channel) = client.control.open_forwarded(&forward, from).await {
                            relay(channel, stream).await;
                        }
                    })),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                Self::Local(listener) => match listener.accept().await {
                    Ok((stream, _)) => drop(tasks.spawn(async move {
                        if let Some(channel) = client.control.open_forwarded(&forward, None).await {
                            relay(channel, stream).await;
                        }
                    })),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
    }
}

/// An address to listen at, as clients write it.
fn listening_address(address: &str) -> Option<IpAddr> {
    match address {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        "" | "*" => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        _ => address.parse().ok(),
    }
}

struct RemoveOnDrop {
    client: Arc<Client>,
    path: String,
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        let agent = Arc::clone(&self.client.agent);
        // Without a runtime the whole agent is ending.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { agent.on_file_thread(move || sys::remove_socket(&path)).await });
        }
    }
}

/// A socket through which what runs reaches the client's agent of keys. Dropping it removes it.
pub(super) struct AgentSocket {
    /// Its path.
    pub(super) path: String,
    _tasks: JoinSet<()>,
    _folder: RemoveOnDrop,
}

impl AgentSocket {
    /// Opens one that only the workload can reach.
    pub(super) async fn open(client: &Arc<Client>) -> std::io::Result<Self> {
        let folder = format!("{AGENT_FOLDER}/ssh-{}", sys::random_hex(8));
        let path = format!("{folder}/agent");
        let (workload, place) = (workload(client), folder.clone());
        let open = move || sys::listen_in_folder(&place, "agent", WAITING_MAX, workload.as_ref());
        let listener = UnixListener::from_std(client.agent.on_file_thread(open).await?)?;
        let mut tasks = JoinSet::new();
        let serving = Arc::clone(client);
        tasks.spawn(async move {
            let mut relays = JoinSet::new();
            loop {
                while relays.len() >= CONNECTIONS_MAX {
                    relays.join_next().await;
                }
                while relays.try_join_next().is_some() {}
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                let client = Arc::clone(&serving);
                relays.spawn(async move {
                    if let Some(channel) = client.control.open_agent().await {
                        relay(channel, stream).await;
                    }
                });
            }
        });
        let folder = RemoveOnDrop { client: Arc::clone(client), path: folder };
        Ok(Self { path, _tasks: tasks, _folder: folder })
    }
}

/// Passes bytes both ways until both sides have said that there will be no more, or either is gone.
async fn relay(mut channel: Channel, stream: impl AsyncRead + AsyncWrite + Send + 'static) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sender = channel.sender();
    // Of its own: either direction goes on while the other waits.
    let mut down = JoinSet::new();
    down.spawn(async move {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(read @ 1..) = reader.read(&mut buffer).await {
            if sender.data(&buffer[..read]).await.is_err() {
                return;
            }
        }
        sender.eof();
    });
    let mut ended = false;
    while !(ended && down.is_empty()) {
        tokio::select! {
            // Both arms are cancel-safe.
            event = channel.receive() => match event {
                Some(ChannelEvent::Data(bytes)) => {
                    if writer.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Some(ChannelEvent::Eof) => {
                    ended = true;
                    // It may be gone already.
                    let _ = writer.shutdown().await;
                }
                Some(ChannelEvent::Request(..)) => {}
                None => return,
            },
            _ = down.join_next(), if !down.is_empty() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_whole() {
        let hosts = "127.0.0.1 localhost\n10.0.0.1 box box.local # other\n::1 Box\nbroken\n";
        let found = |name| addresses_in(hosts, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("box"), ["10.0.0.1", "::1"]);
        assert_eq!(found("other"), [""; 0]);
        assert_eq!(found("bo"), [""; 0]);
        assert_eq!(addresses("[::1]"), [IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        assert_eq!(addresses("localhost").first(), Some(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }

    #[test]
    fn listening_addresses() {
        assert_eq!(listening_address("localhost"), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert_eq!(listening_address(""), Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        assert_eq!(listening_address("::1"), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        assert_eq!(listening_address("example.org"), None);
    }
}
