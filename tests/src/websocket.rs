//! A small blocking WebSocket client on a connection of [`crate::http`].

use std::io;

use crate::http::{Connection, Http};

/// Longest message that a test reads.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Masks what a client sends; any will do.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A message of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
    /// The end: its code and its reason.
    Close(u16, String),
}

/// A WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    connection: Connection,
}

impl WebSocket {
    /// Opens one.
    #[track_caller]
    pub fn open(http: &Http, path: &str) -> Self {
        let mut connection = http.connect().expect("connect to the server");
        let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                      Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
        let answer = connection.upgrade(path, fields).expect("an answer");
        assert_eq!(answer.status, 101, "{path}: {}", answer.text());
        Self { connection }
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.write(BINARY, bytes).expect("send a message");
    }

    /// The next message; pings are answered by the way.
    pub fn read(&mut self) -> Message {
        loop {
            let (kind, content) = self.read_frame().expect("read a message");
            match kind {
                TEXT => return Message::Text(String::from_utf8(content).expect("text")),
                BINARY => return Message::Binary(content),
                CLOSE => {
                    let code = content.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                    let reason = content.get(2..).unwrap_or_default();
                    return Message::Close(code, String::from_utf8_lossy(reason).into_owned());
                }
                PING => self.write(PONG, &content).expect("answer a ping"),
                _ => {}
            }
        }
    }

    /// Reads messages until their bytes contain `text`; gives all of them.
    #[track_caller]
    pub fn read_until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.read() {
                Message::Binary(bytes) => seen.extend(bytes),
                Message::Text(_) => {}
                Message::Close(code, reason) => {
                    panic!("{code} {reason} before {text:?}: {}", String::from_utf8_lossy(&seen))
                }
            }
            let shown = String::from_utf8_lossy(&seen);
            if shown.contains(text) {
                return shown.into_owned();
            }
        }
    }

    fn write(&mut self, kind: u8, content: &[u8]) -> io::Result<()> {
        let length = u8::try_from(content.len()).ok().filter(|length| *length < 126);
        let length = length.expect("tests send short messages");
        let mut frame = vec![0x80 | kind, 0x80 | length];
        frame.extend(MASK);
        frame.extend(content.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.connection.write_raw(&frame)
    }

    fn read_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let [first, second] = self.connection.read_array()?;
        assert!(first & 0x80 != 0, "messages come whole");
        let length = match second {
            126 => u64::from(u16::from_be_bytes(self.connection.read_array()?)),
            127 => u64::from_be_bytes(self.connection.read_array()?),
            length => u64::from(length),
        };
        assert!(length <= MESSAGE_BYTES_MAX, "a message of a reasonable size");
        let mut content = vec![0; usize::try_from(length).expect("small")];
        self.connection.read_into(&mut content)?;
        Ok((first & 0x0f, content))
    }
}
