//! How messages of the language server protocol follow each other on a stream: a head of lines, an empty line, and as many
//! bytes as the head says. The decoder takes bytes as they come and knows nothing but bytes.

/// Longest head of a message.
const HEAD_BYTES_MAX: usize = 4096;

/// Largest message that is taken.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What ends a head.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Why what comes is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FramingError {
    /// The head does not end.
    HeadTooLong,
    /// The head does not say how long the message is, or not in a number.
    NoLength,
    /// The message is larger than [`MESSAGE_BYTES_MAX`].
    MessageTooLarge,
}

impl std::fmt::Display for FramingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::HeadTooLong => write!(f, "a message's head has more than {HEAD_BYTES_MAX} bytes"),
            Self::NoLength => write!(f, "a message does not say how long it is"),
            Self::MessageTooLarge => write!(f, "a message has more than {MESSAGE_BYTES_MAX} bytes"),
        }
    }
}

/// Takes messages out of a stream. After an error it gives that error for ever.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the start of the buffer that were given out.
    taken: usize,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a head, of which so many bytes were searched for its end.
    #[default]
    Head,
    /// In a message of so many bytes.
    Body(usize),
    Broken(FramingError),
}

impl Decoder {
    /// Adds what has come.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Broken(_)) {
            return;
        }
        // What was given out is dropped only here, so that many small messages in one piece cost one move.
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub(super) fn next_message(&mut self) -> Result<Option<&[u8]>, FramingError> {
        let length = match self.state {
            State::Broken(error) => return Err(error),
            State::Body(length) => length,
            State::Head => match self.read_head() {
                Ok(Some(length)) => length,
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.state = State::Broken(error);
                    self.buffer = Vec::new();
                    self.taken = 0;
                    return Err(error);
                }
            },
        };
        if self.buffer.len() - self.taken < length {
            self.state = State::Body(length);
            return Ok(None);
        }
        self.state = State::Head;
        let start = self.taken;
        self.taken += length;
        Ok(Some(&self.buffer[start..self.taken]))
    }

    /// Takes a head, if it is whole: how long its message is.
    fn read_head(&mut self) -> Result<Option<usize>, FramingError> {
        let rest = &self.buffer[self.taken..];
        let searched = &rest[..rest.len().min(HEAD_BYTES_MAX)];
        let Some(end) = searched.windows(HEAD_END.len()).position(|window| window == HEAD_END) else {
            let full = searched.len() == HEAD_BYTES_MAX;
            return if full { Err(FramingError::HeadTooLong) } else { Ok(None) };
        };
        let length = length(&searched[..end])?;
        self.taken += end + HEAD_END.len();
        Ok(Some(length))
    }
}

/// The length in a head. Other lines of it do not matter.
fn length(head: &[u8]) -> Result<usize, FramingError> {
    const NAME: &[u8] = b"content-length";
    let value = head.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        line[..colon].trim_ascii().eq_ignore_ascii_case(NAME).then(|| line[colon + 1..].trim_ascii())
    });
    let value = value.filter(|value| !value.is_empty() && value.iter().all(u8::is_ascii_digit));
    let value = value.and_then(|value| std::str::from_utf8(value).ok()).ok_or(FramingError::NoLength)?;
    // Only digits: what is no number is too large a one.
    match value.parse() {
        Ok(length) if length <= MESSAGE_BYTES_MAX => Ok(length),
        _ => Err(FramingError::MessageTooLarge),
    }
}

/// A message with its head.
pub(super) fn encode(message: &[u8]) -> Vec<u8> {
    let mut framed = format!("Content-Length: {}\r\n\r\n", message.len()).into_bytes();
    framed.extend_from_slice(message);
    framed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(pieces: &[&[u8]]) -> Result<Vec<Vec<u8>>, FramingError> {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(message) = decoder.next_message()? {
                messages.push(message.to_vec());
            }
        }
        Ok(messages)
    }

    #[test]
    fn heads_may_say_more() {
        let stream =
            b"Content-Type: x; charset=utf-8\r\ncontent-LENGTH :  2 \r\n\r\n{}Content-Length: 0\r\n\r\n";
        assert_eq!(all(&[stream]), Ok(vec![b"{}".to_vec(), Vec::new()]));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let cases: [(&[u8], FramingError); 7] = [
            (b"\r\n\r\n", FramingError::NoLength),
            (b"Length: 2\r\n\r\n{}", FramingError::NoLength),
            (b"Content-Length: \r\n\r\n", FramingError::NoLength),
            (b"Content-Length: -1\r\n\r\n", FramingError::NoLength),
            (b"Content-Length: +1\r\n\r\n", FramingError::NoLength),
            (b"Content-Length: 16777217\r\n\r\n", FramingError::MessageTooLarge),
            (b"Content-Length: 99999999999999999999999999\r\n\r\n", FramingError::MessageTooLarge),
        ];
        for (stream, error) in cases {
            assert_eq!(all(&[stream]), Err(error), "{}", String::from_utf8_lossy(stream));
        }
        assert_eq!(all(&[&[b'x'; HEAD_BYTES_MAX]]), Err(FramingError::HeadTooLong));
        let mut broken = Decoder::default();
        broken.push(b"\r\n\r\n");
        assert_eq!(broken.next_message(), Err(FramingError::NoLength));
        broken.push(&encode(b"{}"));
        assert_eq!(broken.next_message(), Err(FramingError::NoLength));
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
            cut in 1_usize..64,
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| encode(message)).collect();
            let pieces: Vec<&[u8]> = stream.chunks(cut).collect();
            prop_assert_eq!(all(&pieces), Ok(messages));
        }

        #[test]
        fn any_bytes_are_survived(pieces in proptest::collection::vec("(Content-Length: [0-9]{1,3}\r\n)?(\r\n)?[ -~]{0,40}", 0..12)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(String::as_bytes).collect();
            let _ = all(&pieces);
        }
    }
}
