//! The serial console of a session: a WebSocket.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper::{
    Request, StatusCode,
    header::{CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::client::generate_key, protocol::Role},
};

use crate::{
    client::{Body, Client, successful},
    error::{Error, Result},
};

/// An open console. What is typed goes in as it is; what it prints comes out as it is.
#[derive(Debug)]
pub struct Console {
    socket: WebSocketStream<TokioIo<Upgraded>>,
}

impl Console {
    pub(crate) async fn open(mut request: Request<Body>, client: &Client) -> Result<Self> {
        let key = generate_key();
        let value = |text: &str| HeaderValue::from_str(text).expect("plain ASCII");
        let headers: [(HeaderName, HeaderValue); 4] = [
            (CONNECTION, value("Upgrade")),
            (UPGRADE, value("websocket")),
            (SEC_WEBSOCKET_VERSION, value("13")),
            (SEC_WEBSOCKET_KEY, value(&key)),
        ];
        request.headers_mut().extend(headers);
        let response = client.upgrade(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            successful(response).await?;
            return Err(Error::Answer("the server does not change to a WebSocket".into()));
        }
        let stream = hyper::upgrade::on(response).await.map_err(Error::Transport)?;
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Client, None).await;
        Ok(Self { socket })
    }

    /// Types.
    pub async fn send(&mut self, bytes: Bytes) -> Result<()> {
        self.socket.send(Message::Binary(bytes)).await.map_err(broken)
    }

    /// What it printed next; `None` at its end. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(error)),
            }
        }
    }

    /// Says that nothing more will be typed, and lets it go. The session goes on.
    pub async fn close(mut self) {
        // A server that has gone needs no farewell.
        let _ = self.socket.close(None).await;
    }
}

fn broken(error: tokio_tungstenite::tungstenite::Error) -> Error {
    Error::Answer(error.to_string())
}
