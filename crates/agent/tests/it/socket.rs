//! WebSockets as far as these tests need them.

use std::io::{BufReader, Read as _, Write as _};

use serde_json::Value;

use crate::support::{Agent, Wire, exchange};

/// A WebSocket as far as these tests need one.
pub(crate) struct Socket(BufReader<Wire>);

impl Socket {
    pub(crate) fn connect(
        agent: &Agent,
        target: &str,
        protocols: &str,
    ) -> Result<(Self, Option<String>), u16> {
        let headers = if protocols.is_empty() { vec![] } else { vec![("sec-websocket-protocol", protocols)] };
        Self::open(Wire::Unix(agent.connect()), target, &headers)
    }

    /// The same over any connection, with these headers besides.
    pub(crate) fn open(
        wire: Wire,
        target: &str,
        besides: &[(&str, &str)],
    ) -> Result<(Self, Option<String>), u16> {
        let mut headers = vec![
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        headers.extend(besides);
        let answer = exchange(wire, "GET", target, &headers, b"");
        if answer.status != 101 {
            return Err(answer.status);
        }
        assert_eq!(answer.headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let protocol = answer.headers.get("sec-websocket-protocol").cloned();
        Ok((Self(answer.into_stream()), protocol))
    }

    pub(crate) fn send(&mut self, text: &str) {
        let length = u16::try_from(text.len()).expect("short");
        let mut frame = vec![0x81];
        match u8::try_from(length) {
            Ok(length @ ..126) => frame.push(0x80 | length),
            _ => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&length.to_be_bytes());
            }
        }
        // The key is all zeros.
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(text.as_bytes());
        self.0.get_mut().write_all(&frame).expect("send a frame");
    }

    /// Kind and content of the next frame.
    pub(crate) fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).expect("a frame");
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).expect("a length");
                usize::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.0.read_exact(&mut length).expect("a length");
                usize::try_from(u64::from_be_bytes(length)).expect("fits")
            }
            length => usize::from(length),
        };
        let mut content = vec![0; length];
        self.0.read_exact(&mut content).expect("the content");
        (head[0] & 0x0f, content)
    }

    /// Everything binary until the close frame: that, the texts, and the close frame's content.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<Value>, Vec<u8>) {
        let (mut bytes, mut texts) = (Vec::new(), Vec::new());
        loop {
            match self.receive() {
                (1, text) => texts.push(serde_json::from_slice(&text).expect("JSON")),
                (2, content) => bytes.extend_from_slice(&content),
                (8, content) => return (bytes, texts, content),
                _ => {}
            }
        }
    }
}
