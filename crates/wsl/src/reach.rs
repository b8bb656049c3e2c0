//! Asking the server from Windows, over `localhost`, which WSL2 passes on.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    time::Duration,
};

/// How long each step of one attempt may take.
const STEP_MAX: Duration = Duration::from_secs(3);

/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// Asks a port of this machine whether a Sandhaus server answers there.
pub(crate) trait Reach {
    fn answers(&self, port: u16) -> bool;

    /// Waits a moment between two attempts.
    fn wait(&self);
}

/// Over the network.
#[derive(Debug)]
pub(crate) struct System;

impl Reach for System {
    fn answers(&self, port: u16) -> bool {
        let Ok(addresses) = ("localhost", port).to_socket_addrs() else { return false };
        addresses.into_iter().any(|address| ask(address).is_some_and(|answer| is_healthy(&answer)))
    }

    fn wait(&self) {
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn ask(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, STEP_MAX).ok()?;
    stream.set_read_timeout(Some(STEP_MAX)).ok()?;
    stream.set_write_timeout(Some(STEP_MAX)).ok()?;
    let port = address.port();
    let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

fn is_healthy(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    head.split(' ').nth(1) == Some("200") && body.contains("\"status\":\"ok\"")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that gives one answer to one request.
    fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a request");
            let mut request = [0; 1024];
            let length = stream.read(&mut request).expect("a request");
            assert!(request[..length].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).expect("the answer is taken");
        });
        port
    }

    #[test]
    fn only_our_own_answer_counts() {
        assert!(System.answers(server("HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":\"ok\"}")));
        assert!(!System.answers(server("HTTP/1.1 200 OK\r\n\r\n<html>")));
        assert!(!System.answers(server("HTTP/1.1 503 Busy\r\n\r\n{\"status\":\"ok\"}")));
        assert!(!System.answers(server("SSH-2.0-x\r\n")));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        assert!(!System.answers(port));
    }
}
