//! `/v1` sessions, as a test uses them.

use sandhaus_client::wire::{ExecResult, FsRead, SessionInfo, Stats};
use serde_json::{Value, json};

use crate::http::{Answer, Http};

/// A live session. It is not deleted by itself: what a test leaves, the server's end shows.
#[derive(Debug, Clone)]
pub struct Session {
    http: Http,
    /// Its id.
    pub id: String,
}

impl Session {
    /// Makes one.
    #[track_caller]
    pub fn create(http: &Http, request: &Value) -> Self {
        let info: SessionInfo = http.post("/v1/sessions", request).expect(201).json();
        assert_eq!(info.status, "running");
        Self { http: http.clone(), id: info.id }
    }

    /// Takes up one that is there, perhaps through another server.
    pub fn at(http: &Http, id: &str) -> Self {
        Self { http: http.clone(), id: id.to_owned() }
    }

    /// Path of a route of this session.
    pub fn route(&self, rest: &str) -> String {
        format!("/v1/sessions/{}{rest}", self.id)
    }

    /// As the server sees it.
    pub fn info(&self) -> SessionInfo {
        self.http.get(&self.route("")).expect(200).json()
    }

    /// Runs a command and answers whatever the server says.
    pub fn try_exec(&self, request: &Value) -> Answer {
        self.http.post(&self.route("/exec"), request)
    }

    /// Runs a command.
    #[track_caller]
    pub fn exec(&self, cmd: &str) -> ExecResult {
        self.try_exec(&json!({"cmd": cmd})).expect(200).json()
    }

    /// Runs a command that must end with status 0, and gives its output without the final newline.
    #[track_caller]
    pub fn output(&self, cmd: &str) -> String {
        let result = self.exec(cmd);
        assert_eq!(result.exit_code, 0, "{cmd}: {}", result.output);
        result.output.trim_end_matches('\n').to_owned()
    }

    /// Writes a file.
    #[track_caller]
    pub fn write(&self, path: &str, content: &[u8]) {
        let body = json!({"path": path, "content_base64": base64(content)});
        self.http.post(&self.route("/fs/write"), &body).expect(200);
    }

    /// Reads a file and answers whatever the server says.
    pub fn try_read(&self, path: &str) -> Answer {
        self.http.get(&self.route(&format!("/fs/read?path={path}")))
    }

    /// Reads a file.
    #[track_caller]
    pub fn read(&self, path: &str) -> Vec<u8> {
        let read: FsRead = self.try_read(path).expect(200).json();
        from_base64(&read.content_base64)
    }

    /// Use of resources.
    pub fn stats(&self) -> Stats {
        self.http.get(&self.route("/stats")).expect(200).json()
    }

    /// Deletes it.
    #[track_caller]
    pub fn delete(&self) {
        self.http.delete(&self.route("")).expect(200);
    }

    /// A command's events: name and data, as they come.
    pub fn events(&self, request: &Value) -> impl Iterator<Item = (String, Value)> + use<> {
        let (answer, mut lines) = self.http.stream(&self.route("/exec/stream"), request);
        assert_eq!(answer.status, 200);
        std::iter::from_fn(move || {
            let mut name = String::new();
            loop {
                let line = lines.next()?;
                if let Some(event) = line.strip_prefix("event: ") {
                    event.clone_into(&mut name);
                } else if let Some(data) = line.strip_prefix("data: ") {
                    return Some((name, serde_json::from_str(data).expect("an event's data is JSON")));
                }
            }
        })
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with padding.
pub fn base64(content: &[u8]) -> String {
    let mut text = String::with_capacity(content.len().div_ceil(3) * 4);
    for group in content.chunks(3) {
        let bits =
            group.iter().enumerate().fold(0_u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        for at in 0..4 {
            let sextet = ALPHABET[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= group.len() { char::from(sextet) } else { '=' });
        }
    }
    text
}

/// The inverse; panics on what is no base64.
pub fn from_base64(text: &str) -> Vec<u8> {
    let mut content = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let sextet = ALPHABET.iter().position(|letter| *letter == byte).expect("a letter of base64");
        bits = bits << 6 | u32::try_from(sextet).expect("six bits");
        count += 6;
        if count >= 8 {
            count -= 8;
            content.push(u8::try_from(bits >> count & 255).expect("eight bits"));
        }
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways() {
        for (content, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(content.as_bytes()), text);
            assert_eq!(from_base64(text), content.as_bytes());
        }
        let every: Vec<u8> = (0..=255).collect();
        assert_eq!(from_base64(&base64(&every)), every);
    }
}
