//! What all WebSocket routes share: the choice of subprotocol, keep-alive, a clean end.

use std::time::Duration;

use axum::{
    extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    http::{HeaderMap, HeaderValue, header},
};

/// Prefixes of subprotocols that carry data, and one that is a wish.
const VERSION_PREFIX: &str = "X-Daytona-SDK-Version~";
const ENVS_PREFIX: &str = "X-Daytona-Pty-Envs~";
pub(crate) const EXIT_CONTROL: &str = "X-Daytona-Pty-Exit-Control";

/// A link that is quiet for so long gets a ping.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long the other side may take to confirm the end.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// The offered subprotocols.
pub(crate) fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|p| !p.is_empty())
}

/// The client's version, if it offers one.
pub(crate) fn offered_version(headers: &HeaderMap) -> Option<&str> {
    offered(headers).find_map(|protocol| protocol.strip_prefix(VERSION_PREFIX))
}

/// The encoded environment, if one is offered.
pub(crate) fn offered_envs(headers: &HeaderMap) -> Option<&str> {
    offered(headers).find_map(|protocol| protocol.strip_prefix(ENVS_PREFIX))
}

/// Answers exactly one of the offered subprotocols, never the one that carries the environment.
pub(crate) fn select_protocol(upgrade: &mut WebSocketUpgrade) {
    let offered: Vec<&HeaderValue> = upgrade.requested_protocols().collect();
    let rank = |value: &&&HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        if text.starts_with(VERSION_PREFIX) {
            0
        } else if text == EXIT_CONTROL {
            1
        } else {
            2
        }
    };
    let secret = |value: &&&HeaderValue| !value.as_bytes().starts_with(ENVS_PREFIX.as_bytes());
    let chosen = offered.iter().filter(secret).min_by_key(rank).map(|value| (*value).clone());
    if let Some(chosen) = chosen {
        upgrade.set_selected_protocol(chosen);
    }
}

/// The next message with content; `None` when the other side is gone. Pings a quiet link. Cancel-safe.
pub(crate) async fn receive(socket: &mut WebSocket) -> Option<axum::body::Bytes> {
    loop {
        match tokio::time::timeout(PING_INTERVAL, socket.recv()).await {
            Err(_quiet) => socket.send(Message::Ping(axum::body::Bytes::new())).await.ok()?,
            Ok(Some(Ok(Message::Text(text)))) => return Some(text.into()),
            Ok(Some(Ok(Message::Binary(bytes)))) => return Some(bytes),
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(None | Some(Err(_) | Ok(Message::Close(_)))) => return None,
        }
    }
}

/// Says the end and waits a moment for its echo, so that the reason arrives.
pub(crate) async fn close(mut socket: WebSocket, frame: CloseFrame) {
    let said = async {
        if socket.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    // A side that takes nothing, or does not answer, is gone.
    let _ = tokio::time::timeout(CLOSE_WAIT, said).await;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::{
        Router,
        body::{Body, Bytes},
        routing::get,
    };
    use hyper::{server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::mpsc,
    };
    use tower::Service as _;

    use super::*;
    use crate::fuzz::{Random, damaged, rounds};

    const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nhost: agent\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    /// Largest message here.
    const MESSAGE_BYTES_MAX: usize = 1 << 16;

    /// How long a link may take to be done with bytes that have all come.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// What arrives when these pieces are sent, and then nothing more.
    async fn received(pieces: Vec<Vec<u8>>) -> Vec<Bytes> {
        let (sender, mut messages) = mpsc::unbounded_channel();
        let answer = move |upgrade: WebSocketUpgrade| async move {
            upgrade.max_message_size(MESSAGE_BYTES_MAX).on_upgrade(async move |mut socket| {
                while let Some(message) = receive(&mut socket).await {
                    sender.send(message).expect("somebody listens");
                }
            })
        };
        let router = Router::new().route("/", get(answer));
        let (mut client, server) = tokio::io::duplex(1 << 14);
        tokio::spawn(async move {
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let mut router = router.clone();
                async move { Ok::<_, Infallible>(router.call(request.map(Body::new)).await.expect("infallible")) }
            });
            drop(http1::Builder::new().serve_connection(TokioIo::new(server), service).with_upgrades().await);
        });
        client.write_all(UPGRADE).await.expect("send");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.expect("an answer"));
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
        let (mut reading, mut writing) = tokio::io::split(client);
        tokio::spawn(async move { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
        for piece in pieces {
            // The other side hangs up when it has seen enough.
            if writing.write_all(&piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = writing.shutdown().await;
        let mut all = Vec::new();
        let whole = async {
            while let Some(message) = messages.recv().await {
                all.push(message);
            }
        };
        tokio::time::timeout(PATIENCE, whole).await.expect("the link ends with what was sent");
        all
    }

    /// A frame as a client sends it.
    fn frame(random: &mut Random, first: u8, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match content.len() {
            length @ ..126 => frame.push(0x80 | u8::try_from(length).expect("small")),
            length @ ..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&u16::try_from(length).expect("small").to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&u64::try_from(length).expect("a length").to_be_bytes());
            }
        }
        let key: [u8; 4] = std::array::from_fn(|_| random.byte());
        frame.extend_from_slice(&key);
        frame.extend(content.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    /// A message in frames, with pings between them.
    fn message(random: &mut Random, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = content;
        let mut first = kind;
        for _ in 0..random.below(3) {
            let (piece, after) = rest.split_at(random.below(rest.len() + 1));
            bytes.extend(frame(random, first, piece));
            bytes.extend(frame(random, 0x89, b"still there?"));
            (rest, first) = (after, 0);
        }
        bytes.extend(frame(random, 0x80 | first, rest));
        bytes
    }

    #[tokio::test]
    async fn messages_arrive_as_they_were_sent() {
        let mut random = Random::new(1);
        for _ in 0..rounds(60) {
            let contents: Vec<Vec<u8>> = (0..random.below(5))
                .map(|_| {
                    let length = [0, 5, 125, 126, 300, MESSAGE_BYTES_MAX][random.below(6)];
                    (0..length).map(|_| random.byte() & 0x7f).collect()
                })
                .collect();
            let sent: Vec<u8> = contents
                .iter()
                .flat_map(|content| {
                    let kind = 1 + u8::try_from(random.below(2)).expect("small");
                    message(&mut random, kind, content)
                })
                .collect();
            assert_eq!(received(random.cut(&sent)).await, contents);
        }
    }

    #[tokio::test]
    async fn damaged_frames_mean_the_same_in_any_pieces() {
        let mut random = Random::new(2);
        let large = vec![b'x'; 70_000];
        let examples = [
            message(&mut random, 1, "{\"cols\":80,\"rows\":24} ü".as_bytes()),
            [message(&mut random, 2, &[0; 300]), frame(&mut random, 0x88, &[3, 232])].concat(),
            [message(&mut random, 1, b"one"), message(&mut random, 2, b"two")].concat(),
            frame(&mut random, 0x82, &large),
        ];
        let examples: Vec<&[u8]> = examples.iter().map(Vec::as_slice).collect();
        let words: [&[u8]; 8] = [
            b"\x81\x80\0\0\0\0",
            b"\x01\x81\0\0\0\0x",
            b"\x80\x80\0\0\0\0",
            b"\x89\x80\0\0\0\0",
            b"\x88\x80\0\0\0\0",
            b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x82\xfe\xff\xff\0\0\0\0",
            b"\xf2",
        ];
        for _ in 0..rounds(400) {
            let bytes = damaged(&mut random, &examples, &words);
            let whole = received(vec![bytes.clone()]).await;
            assert!(whole.iter().all(|message| message.len() <= MESSAGE_BYTES_MAX));
            assert_eq!(received(random.cut(&bytes)).await, whole, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn any_offer_of_subprotocols_is_understood() {
        let examples: [&[u8]; 2] = [
            b"X-Daytona-SDK-Version~0.226.1, X-Daytona-Pty-Envs~e30, X-Daytona-Pty-Exit-Control",
            b" ,, X-Daytona-SDK-Version~",
        ];
        let words: [&[u8]; 4] = [b",", b"~", b"X-Daytona-Pty-Envs~", b"X-Daytona-SDK-Version~"];
        let mut random = Random::new(3);
        for _ in 0..rounds(2000) {
            let Ok(value) = HeaderValue::from_bytes(&damaged(&mut random, &examples, &words)) else {
                continue;
            };
            let mut headers = HeaderMap::new();
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
            let all: Vec<&str> = offered(&headers).collect();
            assert!(all.iter().all(|offer| !offer.is_empty() && !offer.contains(',')));
            assert_eq!(
                offered_version(&headers).is_some(),
                all.iter().any(|offer| offer.starts_with(VERSION_PREFIX))
            );
            assert_eq!(
                offered_envs(&headers).is_some(),
                all.iter().any(|offer| offer.starts_with(ENVS_PREFIX))
            );
        }
    }
}
