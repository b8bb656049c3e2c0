//! A small blocking HTTP/1.1 client that hides nothing: one connection, kept alive, bytes in and out.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longest header section of an answer in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header fields in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics with the whole answer if it is none.
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {} {}", self.status, self.text()))
    }

    /// Panics with the whole answer unless it has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// The error code of a refusal in `/v1`.
    pub fn error_code(&self) -> String {
        self.json::<Value>()["error_code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Where a server listens, and the key it wants.
#[derive(Debug, Clone)]
pub struct Http {
    address: SocketAddr,
    key: Option<String>,
}

impl Http {
    /// A client without a key.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, key: None }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { address: self.address, key: Some(key.to_owned()) }
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A fresh connection.
    pub fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(crate::PATIENCE * 2))?;
        stream.set_write_timeout(Some(crate::PATIENCE * 2))?;
        let key = self.key.as_ref().map_or(String::new(), |key| format!("Authorization: Bearer {key}\r\n"));
        Ok(Connection::new(format!("Host: {}\r\n{key}", self.address), stream))
    }

    /// One request on a connection of its own.
    pub fn try_send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> io::Result<Answer> {
        self.connect()?.send(method, path, content_type, body)
    }

    /// The same; panics if the server does not answer.
    pub fn send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Answer {
        self.try_send(method, path, content_type, body)
            .unwrap_or_else(|error| panic!("{method} {path} was not answered: {error}"))
    }

    /// GET.
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", b"")
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, "", b"")
    }

    /// POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "application/json", body.to_string().as_bytes())
    }

    /// POST of JSON whose answer is read as it comes; the status and header are read already.
    pub fn stream(&self, path: &str, body: &Value) -> (Answer, Lines) {
        let mut connection = self.connect().expect("connect to the server");
        let request = body.to_string();
        connection.write("POST", path, "application/json", request.as_bytes()).expect("send the request");
        let (answer, length) = connection.read_head().expect("read the answer's head");
        (answer, Lines { connection, length, chunk: 0, pending: Vec::new(), ended: false })
    }
}

/// What a connection is made of.
trait Stream: Read + Write + Send + std::fmt::Debug {}

impl<T: Read + Write + Send + std::fmt::Debug> Stream for T {}

/// A kept-alive connection.
#[derive(Debug)]
pub struct Connection {
    head: String,
    stream: BufReader<Box<dyn Stream>>,
}

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Exactly(usize),
    Chunked,
    UntilClose,
}

impl Connection {
    fn new(head: String, stream: impl Stream + 'static) -> Self {
        Self { head, stream: BufReader::new(Box::new(stream)) }
    }

    /// A connection to who listens on the socket at this path.
    pub fn at_socket(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(crate::PATIENCE * 2))?;
        stream.set_write_timeout(Some(crate::PATIENCE * 2))?;
        Ok(Self::new("Host: localhost\r\n".to_owned(), stream))
    }

    /// Sends a request and reads the whole answer.
    pub fn send(&mut self, method: &str, path: &str, content_type: &str, body: &[u8]) -> io::Result<Answer> {
        self.write(method, path, content_type, body)?;
        if method == "HEAD" {
            return Ok(self.read_head()?.0);
        }
        self.read_answer()
    }

    /// Reads a whole answer to a request that is sent already.
    pub fn read_answer(&mut self) -> io::Result<Answer> {
        let (mut answer, length) = self.read_head()?;
        match length {
            Length::Exactly(bytes) => {
                answer.body.resize(bytes, 0);
                self.stream.read_exact(&mut answer.body)?;
            }
            Length::Chunked => while self.read_chunk(&mut answer.body)? {},
            Length::UntilClose => {
                self.stream.read_to_end(&mut answer.body)?;
            }
        }
        Ok(answer)
    }

    /// Asks for another protocol on this connection, with these fields; gives the answer's head.
    pub(crate) fn upgrade(&mut self, path: &str, fields: &str) -> io::Result<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\n{}{fields}\r\n", self.head);
        self.write_raw(request.as_bytes())?;
        let (answer, _) = self.read_head()?;
        Ok(answer)
    }

    /// The next bytes of what comes after an upgrade.
    pub(crate) fn read_array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    /// The same into a buffer.
    pub(crate) fn read_into(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(bytes)
    }

    /// Sends raw bytes, for requests that no client would make.
    pub fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    fn write(&mut self, method: &str, path: &str, content_type: &str, body: &[u8]) -> io::Result<()> {
        let mut request = format!("{method} {path} HTTP/1.1\r\n{}", self.head);
        if !content_type.is_empty() {
            request.push_str(&format!("Content-Type: {content_type}\r\n"));
        }
        if method != "GET" || !body.is_empty() {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        // One write for a small request: the measurements count round trips.
        if body.len() <= 16 * 1024 {
            bytes.extend_from_slice(body);
            self.stream.get_mut().write_all(&bytes)
        } else {
            self.stream.get_mut().write_all(&bytes)?;
            self.stream.get_mut().write_all(body)
        }
    }

    fn read_head(&mut self) -> io::Result<(Answer, Length)> {
        let mut answer = Answer { status: 0, headers: Vec::new(), body: Vec::new() };
        let status = self.read_line()?;
        let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        answer.status = code.ok_or_else(|| io::Error::other(format!("not a status line: {status:?}")))?;
        let mut bytes = status.len();
        loop {
            let line = self.read_line()?;
            bytes += line.len();
            if line.is_empty() {
                break;
            }
            if bytes > HEAD_BYTES_MAX {
                return Err(io::Error::other("the answer's head is too long"));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other("not a header field"))?;
            answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = if answer.header("transfer-encoding") == Some("chunked") {
            Length::Chunked
        } else if let Some(length) = answer.header("content-length") {
            Length::Exactly(length.parse().map_err(io::Error::other)?)
        } else if matches!(answer.status, 204 | 304) {
            Length::Exactly(0)
        } else {
            Length::UntilClose
        };
        Ok((answer, length))
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        if self.stream.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8(line).map_err(io::Error::other)?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Appends the next chunk to `body`; false at the end.
    fn read_chunk(&mut self, body: &mut Vec<u8>) -> io::Result<bool> {
        let size = self.read_line()?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16);
        let size = size.map_err(io::Error::other)?;
        let start = body.len();
        body.resize(start + size, 0);
        self.stream.read_exact(&mut body[start..])?;
        self.read_line()?;
        Ok(size > 0)
    }
}

/// An answer's body as it comes, line by line.
#[derive(Debug)]
pub struct Lines {
    connection: Connection,
    length: Length,
    chunk: usize,
    pending: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// How many pieces the server has sent so far.
    pub fn pieces(&self) -> usize {
        self.chunk
    }
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Some(String::from_utf8(line).expect("events are text").trim_end().to_owned());
            }
            if self.ended {
                return None;
            }
            self.chunk += 1;
            match self.length {
                Length::Chunked => {
                    self.ended =
                        !self.connection.read_chunk(&mut self.pending).expect("read a piece of the answer");
                }
                Length::Exactly(bytes) => {
                    self.pending.resize(bytes, 0);
                    self.connection.stream.read_exact(&mut self.pending).expect("read the answer");
                    self.ended = true;
                }
                Length::UntilClose => {
                    self.connection.stream.read_to_end(&mut self.pending).expect("read the answer");
                    self.ended = true;
                }
            }
        }
    }
}
