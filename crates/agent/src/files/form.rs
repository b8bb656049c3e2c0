//! Forms with files, read from a request's body: only as far as somebody takes what was read.

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use sandhaus_protocol::multipart::{self, Decoder, Event, Malformed};

use crate::{
    error::{Error, Result},
    http,
};

/// Most bytes that are taken of a body of which nothing is wanted any more, so that its writer gets to read the answer.
const DRAIN_BYTES_MAX: u64 = 1 << 30;

/// The boundary of a form, if the request is one.
pub(super) fn boundary(headers: &HeaderMap) -> Option<String> {
    multipart::boundary(headers.get(header::CONTENT_TYPE)?.to_str().ok()?)
}

/// A form that is read from the body of a request.
pub(super) struct Form {
    body: Body,
    decoder: Decoder,
    /// The part at hand has more content.
    in_part: bool,
}

impl Form {
    pub(super) fn new(body: Body, boundary: &str) -> Self {
        Self { body, decoder: Decoder::new(boundary), in_part: false }
    }

    /// The name of the next part's field. What is left of the part at hand is passed over.
    pub(super) async fn next_part(&mut self) -> Result<Option<String>> {
        while self.in_part {
            self.next_content().await?;
        }
        match self.event().await? {
            Event::Part(part) => {
                self.in_part = true;
                Ok(Some(part.name.unwrap_or_default()))
            }
            Event::Content(_) | Event::End => Ok(None),
        }
    }

    /// The next piece of the part's content; `None` at its end.
    pub(super) async fn next_content(&mut self) -> Result<Option<Bytes>> {
        if !self.in_part {
            return Ok(None);
        }
        match self.event().await? {
            Event::Content(bytes) if !bytes.is_empty() => Ok(Some(bytes)),
            Event::Content(_) | Event::Part(_) | Event::End => {
                self.in_part = false;
                Ok(None)
            }
        }
    }

    async fn event(&mut self) -> Result<Event> {
        let malformed = |error: Malformed| Error::invalid(format_args!("the form is malformed: {error}"));
        loop {
            if let Some(event) = self.decoder.next_event().map_err(malformed)? {
                return Ok(event);
            }
            let broken = |error| Error::invalid(format_args!("the upload broke off: {error}"));
            match http::next_chunk(&mut self.body).await.map_err(broken)? {
                Some(chunk) => self.decoder.push(&chunk),
                None => return Err(malformed(Malformed::Cut)),
            }
        }
    }

    /// Reads what is left, wanted or not: a client that still writes would not read the answer.
    pub(super) async fn drain(mut self) {
        drain(&mut self.body).await;
    }
}

/// Reads the rest of a body and drops it, as far as that makes sense.
pub(super) async fn drain(body: &mut Body) {
    let mut left = DRAIN_BYTES_MAX;
    while let Ok(Some(chunk)) = http::next_chunk(body).await {
        left = left.saturating_sub(chunk.len() as u64);
        if left == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{Random, damaged, rounds};

    /// Names and contents of a form that comes in these pieces, and what was wrong with it.
    async fn read(pieces: Vec<Vec<u8>>) -> (Vec<(String, Vec<u8>)>, Option<String>) {
        let pieces = pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let mut form = Form::new(Body::from_stream(futures::stream::iter(pieces)), "B");
        let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
        let ended = async {
            while let Some(name) = form.next_part().await? {
                parts.push((name, Vec::new()));
                while let Some(piece) = form.next_content().await? {
                    assert!(!piece.is_empty(), "a piece without bytes would be an end");
                    parts.last_mut().expect("just pushed").1.extend_from_slice(&piece);
                }
            }
            Ok::<_, Error>(())
        };
        let trouble = ended.await.err().map(|error| error.message.into_owned());
        (parts, trouble)
    }

    #[tokio::test]
    async fn damaged_forms_mean_the_same_in_any_pieces() {
        let examples: [&[u8]; 4] = [
            b"--B\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\n/a\r\n--B\r\n\
              content-disposition: form-data; name=\"file\"; filename=\"a \\\"b\\\".txt\"\r\nContent-Type: a/b\r\n\r\n\
              content\r\n--\r\n-B\r\n--B--\r\n",
            b"preamble\r\n--B \t\r\n\r\nno head\r\n--B--epilogue",
            b"--B\r\nContent-Disposition: form-data; name=files[0].file\r\n\r\n\r\n--B\r\n\r\n\r\n--B--",
            b"--B--",
        ];
        let words: [&[u8]; 9] = [
            b"\r\n--B",
            b"--B",
            b"\r\n\r\n",
            b"\r\n--",
            b"name=\"",
            b"; ",
            b"\\\"",
            b"Content-Disposition:",
            &[b'x'; 9000],
        ];
        let mut random = Random::new(1);
        for _ in 0..rounds(2000) {
            let bytes = damaged(&mut random, &examples, &words);
            let whole = read(vec![bytes.clone()]).await;
            let contents: usize = whole.0.iter().map(|(_, content)| content.len()).sum();
            assert!(contents <= bytes.len(), "more came out than went in");
            assert_eq!(read(random.cut(&bytes)).await, whole, "{}", bytes.escape_ascii());
        }
    }

    /// With a look at each byte from each of those before it, this would take days.
    #[tokio::test]
    async fn near_boundaries_take_no_more_than_others() {
        const WHOLE: usize = 16 << 20;
        let near: Vec<u8> = b"\r\n--\r\n--b\r\r\n-".iter().copied().cycle().take(WHOLE).collect();
        let mut pieces = vec![b"--B\r\n\r\n".to_vec()];
        let (large, small) = near.split_at(WHOLE - (WHOLE >> 6));
        pieces.extend(large.chunks(1 << 16).map(<[u8]>::to_vec));
        pieces.extend(small.iter().map(|byte| vec![*byte]));
        pieces.push(b"\r\n--B--".to_vec());
        let (parts, trouble) = read(pieces).await;
        assert_eq!((trouble, parts.len()), (None, 1));
        assert!(parts[0].1 == near, "the content is what was sent");
    }
}
