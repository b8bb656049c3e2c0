//! A command's output as it happens, and long work as it goes on: server-sent events, decoded.

use std::collections::VecDeque;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::{
    error::{Error, Result},
    wire::{ExecChunk, ExecDone, ExecFailed, JobInfo, PullFailed},
};

/// Longest line of an event stream in bytes. The server's events are far smaller.
const LINE_BYTES_MAX: usize = 1 << 20;

/// What a command's stream yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Output.
    Chunk(ExecChunk),
    /// The command ended; nothing follows.
    Done(ExecDone),
}

/// A running command's stream. Dropping it leaves the command running.
#[derive(Debug)]
pub struct ExecStream {
    events: Events,
    ended: bool,
}

impl ExecStream {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { events: Events::new(body), ended: false }
    }

    /// The next event; `None` after [`ExecEvent::Done`]. A stream that stops without it is an error.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>> {
        while !self.ended {
            let Some(event) = self.events.next().await? else {
                return Err(Error::Answer("the stream stopped before the command's end".into()));
            };
            match event.kind.as_str() {
                "chunk" => return Ok(Some(ExecEvent::Chunk(decode(&event.data)?))),
                "done" => {
                    self.ended = true;
                    return Ok(Some(ExecEvent::Done(decode(&event.data)?)));
                }
                "error" => {
                    self.ended = true;
                    return Err(Error::Stream(decode::<ExecFailed>(&event.data)?.error));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Offset in the command's output up to which events were taken: what `Last-Event-ID` resumes from.
    pub fn last_event_id(&self) -> Option<&str> {
        self.events.parser.last_id.as_deref()
    }
}

/// Long work of a server as it goes on. Dropping it leaves the work to go on.
#[derive(Debug)]
pub struct JobStream {
    events: Events,
    ended: bool,
}

impl JobStream {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { events: Events::new(body), ended: false }
    }

    /// How it stands, whenever that changes; `None` after its end. Work that fails is an error, as is a stream that stops.
    pub async fn next(&mut self) -> Result<Option<JobInfo>> {
        while !self.ended {
            let Some(event) = self.events.next().await? else {
                return Err(Error::Answer("the stream stopped before the end of the work".into()));
            };
            match event.kind.as_str() {
                "progress" => return decode(&event.data).map(Some),
                "done" => {
                    self.ended = true;
                    return decode(&event.data).map(Some);
                }
                "error" => {
                    self.ended = true;
                    return Err(Error::Stream(decode::<PullFailed>(&event.data)?.error));
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

/// The events of an answer.
#[derive(Debug)]
struct Events {
    body: Incoming,
    parser: Parser,
}

impl Events {
    fn new(body: Incoming) -> Self {
        Self { body, parser: Parser::default() }
    }

    /// The next event; `None` where the answer ends.
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.parser.events.pop_front() {
                return Ok(Some(event));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.parser.push(&data)?;
                    }
                }
                Some(Err(error)) => return Err(Error::Transport(error)),
                None => return Ok(None),
            }
        }
    }
}

fn decode<T: DeserializeOwned>(data: &str) -> Result<T> {
    serde_json::from_str(data).map_err(|error| Error::Answer(error.to_string()))
}

#[derive(Debug)]
struct Event {
    kind: String,
    data: String,
}

/// Splits bytes into events, whatever pieces they arrive in.
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    kind: String,
    data: String,
    last_id: Option<String>,
    events: VecDeque<Event>,
}

impl Parser {
    fn push(&mut self, bytes: &Bytes) -> Result<()> {
        let mut rest: &[u8] = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.line(&String::from_utf8_lossy(&line));
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > LINE_BYTES_MAX {
            return Err(Error::Answer(format!("an event line is longer than {LINE_BYTES_MAX} bytes")));
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            if !self.data.is_empty() {
                self.events.push_back(Event {
                    kind: std::mem::take(&mut self.kind),
                    data: std::mem::take(&mut self.data),
                });
            }
            self.kind.clear();
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            "id" => self.last_id = Some(value.to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_split() {
        let text = b": ping\n\nid: 5\nevent: chunk\ndata: {\"chunk\":\"hi\",\"timestamp\":1}\n\nevent: done\ndata: {}\n\n";
        for cut in 0..=text.len() {
            let mut parser = Parser::default();
            parser.push(&Bytes::copy_from_slice(&text[..cut])).unwrap();
            parser.push(&Bytes::copy_from_slice(&text[cut..])).unwrap();
            let kinds: Vec<&str> = parser.events.iter().map(|event| event.kind.as_str()).collect();
            assert_eq!(kinds, ["chunk", "done"], "cut at {cut}");
            assert_eq!(parser.events[0].data, "{\"chunk\":\"hi\",\"timestamp\":1}");
            assert_eq!(parser.last_id.as_deref(), Some("5"));
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        let piece = Bytes::from(vec![b'x'; LINE_BYTES_MAX]);
        parser.push(&piece).unwrap();
        assert!(parser.push(&piece).is_err());
    }
}
