//! The framing of output streams: a fixed header, then the payload.
//!
//! ```text
//!  0        1        4                 8                                 16
//!  +--------+--------+-----------------+---------------------------------+---------
//!  | kind   | zero   | length, u32 BE  | offset, u64 BE                  | payload…
//!  +--------+--------+-----------------+---------------------------------+---------
//! ```
//!
//! `offset` is the position of the payload's first byte in its stream (stdout and stderr count apart), so a reader
//! that lost its connection asks for the rest from where it stood. A stream ends with exactly one [`Kind::Exit`].

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 16;

/// Largest payload of one frame, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Media type of a framed stream.
pub const CONTENT_TYPE: &str = "application/vnd.sandhaus.frames";

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing: keeps an idle connection alive.
    Ping = 0,
    /// JSON `Started` of the process or shell command; always the first frame.
    Started = 1,
    /// Bytes of standard output, or of the terminal where there is one.
    Stdout = 2,
    /// Bytes of standard error.
    Stderr = 3,
    /// JSON exit record of the process or shell command; always the last frame.
    Exit = 4,
    /// Bytes of standard output from the frame's offset up to the next one were dropped from the ring.
    GapStdout = 5,
    /// The same for standard error.
    GapStderr = 6,
}

impl TryFrom<u8> for Kind {
    type Error = FrameError;

    fn try_from(byte: u8) -> Result<Self, FrameError> {
        Ok(match byte {
            0 => Self::Ping,
            1 => Self::Started,
            2 => Self::Stdout,
            3 => Self::Stderr,
            4 => Self::Exit,
            5 => Self::GapStdout,
            6 => Self::GapStderr,
            other => return Err(FrameError::Kind(other)),
        })
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// Position of the payload in its stream; zero where there is none.
    pub offset: u64,
    /// At most [`PAYLOAD_BYTES_MAX`] bytes.
    pub payload: Vec<u8>,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// An unknown kind.
    Kind(u8),
    /// A payload longer than [`PAYLOAD_BYTES_MAX`].
    TooLong(u32),
    /// The reserved bytes were not zero.
    Reserved,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "unknown frame kind {kind}"),
            Self::TooLong(length) => {
                write!(f, "frame payload of {length} bytes, the most is {PAYLOAD_BYTES_MAX}")
            }
            Self::Reserved => write!(f, "reserved bytes of a frame header are not zero"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Appends a frame to `out`. The payload must fit in [`PAYLOAD_BYTES_MAX`].
pub fn encode(kind: Kind, offset: u64, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= PAYLOAD_BYTES_MAX, "the caller splits payloads");
    let length = u32::try_from(payload.len()).expect("PAYLOAD_BYTES_MAX fits u32");
    out.reserve(HEADER_BYTES + payload.len());
    out.push(kind as u8);
    out.extend_from_slice(&[0; 3]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Takes frames out of a byte stream that arrives in arbitrary pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    taken: usize,
}

impl Decoder {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 && (self.taken == self.buffer.len() || self.taken > PAYLOAD_BYTES_MAX) {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes arrive. After an error the stream is unusable.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.buffer[self.taken..];
        let Some((header, rest)) = rest.split_at_checked(HEADER_BYTES) else { return Ok(None) };
        let kind = Kind::try_from(header[0])?;
        if header[1..4] != [0; 3] {
            return Err(FrameError::Reserved);
        }
        let length = u32::from_be_bytes(header[4..8].try_into().expect("four bytes"));
        if length as usize > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let offset = u64::from_be_bytes(header[8..16].try_into().expect("eight bytes"));
        let Some(payload) = rest.get(..length as usize) else { return Ok(None) };
        let frame = Frame { kind, offset, payload: payload.to_vec() };
        self.taken += HEADER_BYTES + length as usize;
        Ok(Some(frame))
    }

    /// True when the stream stopped between two frames, as a whole one does.
    pub fn is_empty(&self) -> bool {
        self.taken == self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything that bytes say, in pieces of these lengths.
    fn decode(mut bytes: &[u8], lengths: &[usize]) -> (Vec<Frame>, Result<bool, FrameError>) {
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        let mut lengths = lengths.iter().copied().cycle();
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) if bytes.is_empty() => return (frames, Ok(decoder.is_empty())),
                Ok(None) => {
                    let (piece, rest) = bytes.split_at(lengths.next().unwrap_or(1).clamp(1, bytes.len()));
                    decoder.push(piece);
                    bytes = rest;
                }
                Err(error) => return (frames, Err(error)),
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_mean_the_same_in_any_pieces(
            pieces in prop::collection::vec(prop_oneof![
                3 => (1_u8..=7, any::<u64>(), prop::collection::vec(any::<u8>(), 0..80)).prop_map(|(kind, offset, payload)| {
                    let mut wire = Vec::new();
                    encode(Kind::try_from(kind).unwrap_or(Kind::Ping), offset, &payload, &mut wire);
                    wire
                }),
                1 => prop::collection::vec(any::<u8>(), 0..20),
            ], 0..12),
            lengths in prop::collection::vec(1_usize..60, 1..8),
        ) {
            let bytes = pieces.concat();
            prop_assert_eq!(decode(&bytes, &lengths), decode(&bytes, &[usize::MAX]));
        }
    }

    #[test]
    fn frames_survive_any_split() {
        let mut wire = Vec::new();
        encode(Kind::Started, 0, b"{}", &mut wire);
        encode(Kind::Stdout, 7, b"hello", &mut wire);
        encode(Kind::Exit, 0, b"", &mut wire);
        for cut in 0..=wire.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in [&wire[..cut], &wire[cut..]] {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().expect("valid frames") {
                    seen.push(frame);
                }
            }
            assert!(decoder.is_empty());
            assert_eq!(
                seen.iter().map(|f| f.kind).collect::<Vec<_>>(),
                [Kind::Started, Kind::Stdout, Kind::Exit]
            );
            assert_eq!((seen[1].offset, seen[1].payload.as_slice()), (7, b"hello".as_slice()));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let mut header = [0_u8; HEADER_BYTES];
        header[0] = 9;
        let mut decoder = Decoder::default();
        decoder.push(&header);
        assert_eq!(decoder.next_frame(), Err(FrameError::Kind(9)));

        header[0] = 2;
        header[4] = 0xff;
        let mut decoder = Decoder::default();
        decoder.push(&header);
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong(_))));
    }
}
