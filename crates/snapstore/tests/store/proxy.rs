//! A proxy before the server: one connection for each request, so that what passes can be counted and harmed as bytes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Largest head that is read.
const HEAD_BYTES_MAX: usize = 64 << 10;

const PIECE_BYTES: usize = 64 << 10;

/// What is done to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    /// It is answered that the server is busy.
    Busy,
    /// It is not answered at all.
    Silence,
    /// The connection breaks after so many bytes of its body.
    CutRequest(usize),
    /// The connection breaks after so many bytes of the answer's body.
    CutAnswer(usize),
    /// It is passed on, and its answer is not.
    LoseAnswer,
    /// A bit of its body is flipped.
    FlipRequest(usize),
    /// A bit of the answer's body is flipped.
    FlipAnswer(usize),
    /// It stays where it is after so many bytes of its body, until the client goes away or [`Proxy::release`].
    Hold(usize),
    /// The same before anything of it is passed on.
    HoldAll,
}

#[derive(Debug)]
struct Rule {
    pattern: &'static str,
    skip: usize,
    times: usize,
    harm: Harm,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    rules: Mutex<Vec<Rule>>,
    sent: AtomicU64,
    received: AtomicU64,
    requests: AtomicU64,
    /// From this request on, counted from one, none is passed on.
    limit: AtomicU64,
    held: watch::Sender<usize>,
    released: watch::Sender<bool>,
}

/// The proxy, until the runtime ends.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            upstream,
            rules: Mutex::default(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            held: watch::Sender::new(0),
            released: watch::Sender::new(false),
        });
        let accepting = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = accepting.clone();
                // A connection that breaks is what this is for.
                tokio::spawn(async move { Box::pin(shared.serve(stream)).await.ok() });
            }
        });
        Self { shared, address }
    }

    /// Harms requests whose head has the pattern: so many, after so many others.
    pub(crate) fn harm(&self, pattern: &'static str, skip: usize, times: usize, harm: Harm) {
        self.shared.rules.lock().expect("no test panicked here").push(Rule { pattern, skip, times, harm });
    }

    /// All harm that was asked for has been done.
    pub(crate) fn is_done(&self) -> bool {
        self.shared.rules.lock().expect("no test panicked here").iter().all(|rule| rule.times == 0)
    }

    pub(crate) fn heal(&self) {
        self.shared.rules.lock().expect("no test panicked here").clear();
        self.shared.limit.store(u64::MAX, Ordering::SeqCst);
    }

    /// Waits until a request is held.
    pub(crate) async fn held(&self) {
        self.shared.held.subscribe().wait_for(|held| *held > 0).await.expect("the proxy lives");
    }

    pub(crate) fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// Bytes of bodies passed on to the server since the last time.
    pub(crate) fn take_sent(&self) -> u64 {
        self.shared.sent.swap(0, Ordering::SeqCst)
    }

    /// Bytes of answers passed back since the last time.
    pub(crate) fn take_received(&self) -> u64 {
        self.shared.received.swap(0, Ordering::SeqCst)
    }

    /// Requests since the last time.
    pub(crate) fn take_requests(&self) -> u64 {
        self.shared.requests.swap(0, Ordering::SeqCst)
    }

    /// Passes on so many requests more, and none after them.
    pub(crate) fn pass_only(&self, requests: u64) {
        self.take_requests();
        self.shared.limit.store(requests, Ordering::SeqCst);
    }
}

impl Shared {
    fn choose(&self, head: &str) -> Option<Harm> {
        let mut rules = self.rules.lock().expect("no test panicked here");
        let rule = rules.iter_mut().find(|rule| rule.times > 0 && head.contains(rule.pattern))?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.harm)
    }

    async fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let (head, body) = read_head(&mut client).await?;
        let text = String::from_utf8_lossy(&head).into_owned();
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        if number > self.limit.load(Ordering::SeqCst) {
            return Ok(());
        }
        let harm = self.choose(&text);
        if harm == Some(Harm::Busy) {
            return refuse(&mut client, content_length(&text) - body.len()).await;
        }
        if harm == Some(Harm::Silence) {
            // Until the client has had enough.
            while client.read(&mut [0; PIECE_BYTES]).await? > 0 {}
            return Ok(());
        }
        if harm == Some(Harm::HoldAll) {
            self.hold(&client).await?;
        }
        let mut server = TcpStream::connect(self.upstream).await?;
        // The answer ends where the connection does.
        let head = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        server.write_all(head.as_bytes()).await?;
        self.pass_request(&mut client, &mut server, body, content_length(&text), harm).await?;
        self.pass_answer(&mut server, &mut client, harm).await
    }

    async fn pass_request(
        &self,
        client: &mut TcpStream,
        server: &mut TcpStream,
        begun: Vec<u8>,
        length: usize,
        harm: Option<Harm>,
    ) -> io::Result<()> {
        let (mut at, mut piece) = (0, begun);
        while at < length {
            if piece.is_empty() {
                piece = read_piece(client).await?;
            }
            match harm {
                Some(Harm::CutRequest(cut)) if at + piece.len() > cut => {
                    return Err(io::ErrorKind::Other.into());
                }
                Some(Harm::FlipRequest(flip)) if (at..at + piece.len()).contains(&flip) => {
                    piece[flip - at] ^= 1
                }
                Some(Harm::Hold(hold)) if at + piece.len() > hold && !*self.released.borrow() => {
                    self.hold(client).await?;
                }
                _ => {}
            }
            server.write_all(&piece).await?;
            self.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
            at += piece.len();
            piece.clear();
        }
        Ok(())
    }

    async fn hold(&self, client: &TcpStream) -> io::Result<()> {
        self.held.send_modify(|held| *held += 1);
        let mut released = self.released.subscribe();
        tokio::select! {
            _ = released.wait_for(|released| *released) => Ok(()),
            gone = wait_gone(client) => gone,
        }
    }

    async fn pass_answer(
        &self,
        server: &mut TcpStream,
        client: &mut TcpStream,
        harm: Option<Harm>,
    ) -> io::Result<()> {
        let (head, mut piece) = read_head(server).await?;
        if harm == Some(Harm::LoseAnswer) {
            return Ok(());
        }
        client.write_all(&head).await?;
        let mut at = 0;
        loop {
            match harm {
                Some(Harm::CutAnswer(cut)) if at + piece.len() > cut => {
                    client.write_all(&piece[..cut.saturating_sub(at)]).await?;
                    return Ok(());
                }
                Some(Harm::FlipAnswer(flip)) if (at..at + piece.len()).contains(&flip) => {
                    piece[flip - at] ^= 1
                }
                _ => {}
            }
            client.write_all(&piece).await?;
            self.received.fetch_add(piece.len() as u64, Ordering::SeqCst);
            at += piece.len();
            piece = match read_piece(server).await {
                Ok(piece) => piece,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            };
        }
    }
}

async fn wait_gone(client: &TcpStream) -> io::Result<()> {
    // What it has sent stays unread; only its end is of interest.
    client.ready(tokio::io::Interest::ERROR).await?;
    Err(io::ErrorKind::ConnectionAborted.into())
}

async fn read_piece(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut piece = vec![0; PIECE_BYTES];
    let read = stream.read(&mut piece).await?;
    piece.truncate(read);
    if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(piece) }
}

/// A head with its end, and what came after it.
async fn read_head(stream: &mut TcpStream) -> io::Result<(Vec<u8>, Vec<u8>)> {
    const END: &[u8] = b"\r\n\r\n";
    let mut bytes = Vec::new();
    loop {
        bytes.extend(read_piece(stream).await?);
        if let Some(at) = bytes.windows(END.len()).position(|window| window == END) {
            let rest = bytes.split_off(at + END.len());
            return Ok((bytes, rest));
        }
        assert!(bytes.len() <= HEAD_BYTES_MAX, "a head of a reasonable size");
    }
}

fn content_length(head: &str) -> usize {
    let line = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().expect("a length"))
    });
    line.unwrap_or(0)
}

async fn refuse(client: &mut TcpStream, mut left: usize) -> io::Result<()> {
    // Read first: an answer that comes before its request is at an end would be lost with the connection.
    while left > 0 {
        left -= read_piece(client).await?.len();
    }
    let body = "<Error><Code>SlowDown</Code></Error>";
    let head = format!(
        "HTTP/1.1 503 Slow Down\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    client.write_all(head.as_bytes()).await
}
