//! Takes marked output apart: three equal bytes say which stream the bytes after them belong to. The output arrives in
//! pieces that may cut a marker; each byte is looked at once, whatever it looks like.

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stream {
    /// Standard output, which bytes before the first marker count as, too: a full log may have lost theirs.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn of(byte: u8) -> Option<Self> {
        match byte {
            STDOUT => Some(Self::Stdout),
            STDERR => Some(Self::Stderr),
            _ => None,
        }
    }
}

const STDOUT: u8 = super::STDOUT_MARKER[0];
const STDERR: u8 = super::STDERR_MARKER[0];
const MARKER_BYTES: usize = super::STDOUT_MARKER.len();

/// What the beginnings of markers are made of.
const HELD: [[u8; MARKER_BYTES]; 2] = [super::STDOUT_MARKER, super::STDERR_MARKER];

/// How far marked output was taken apart.
#[derive(Debug, Default)]
pub(super) struct Demux {
    stream: Stream,
    /// The marker whose beginning was the last thing seen, and how much of it.
    begun: Option<(Stream, usize)>,
}

impl Demux {
    /// Passes the next piece on to `sink`, without its markers.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut sink: impl FnMut(Stream, &[u8])) {
        while let Some(first) = bytes.first() {
            let (marker, held) = match self.begun.take() {
                Some((marker, held)) if Stream::of(*first) == Some(marker) => (marker, held),
                Some((marker, held)) => {
                    sink(self.stream, &HELD[marker as usize][..held]);
                    continue;
                }
                None => match Stream::of(*first) {
                    Some(marker) => (marker, 0),
                    None => {
                        let end = bytes.iter().position(|byte| Stream::of(*byte).is_some());
                        let (plain, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
                        sink(self.stream, plain);
                        bytes = rest;
                        continue;
                    }
                },
            };
            bytes = &bytes[1..];
            match held + 1 {
                MARKER_BYTES => self.stream = marker,
                held => self.begun = Some((marker, held)),
            }
        }
    }

    /// Passes on what might have become a marker.
    pub(super) fn finish(&mut self, mut sink: impl FnMut(Stream, &[u8])) {
        if let Some((marker, held)) = self.begun.take() {
            sink(self.stream, &HELD[marker as usize][..held]);
        }
    }
}

/// Both streams of whole marked output.
pub(super) fn split(marked: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut sink = |stream, bytes: &[u8]| match stream {
        Stream::Stdout => stdout.extend_from_slice(bytes),
        Stream::Stderr => stderr.extend_from_slice(bytes),
    };
    let mut demux = Demux::default();
    demux.feed(marked, &mut sink);
    demux.finish(&mut sink);
    (stdout, stderr)
}

/// The same without taking apart.
pub(super) fn strip(marked: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(marked.len());
    let mut demux = Demux::default();
    demux.feed(marked, |_, bytes| plain.extend_from_slice(bytes));
    demux.finish(|_, bytes| plain.extend_from_slice(bytes));
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{Random, damaged, rounds};

    /// What marked output means, byte by byte.
    fn meant(marked: &[u8]) -> Vec<(Stream, u8)> {
        let (mut stream, mut meant, mut rest) = (Stream::Stdout, Vec::new(), marked);
        while let [first, after @ ..] = rest {
            match Stream::of(*first).filter(|marker| rest.starts_with(&HELD[*marker as usize])) {
                Some(marker) => {
                    stream = marker;
                    rest = &rest[MARKER_BYTES..];
                }
                None => {
                    meant.push((stream, *first));
                    rest = after;
                }
            }
        }
        meant
    }

    #[test]
    fn damaged_output_means_the_same_in_any_pieces() {
        let examples: [&[u8]; 3] = [
            b"\x01\x01\x01out\n\x02\x02\x02err\n\x01\x01\x01\x01\x01",
            b"\x02\x02\x02\x01\x01\x02\x02\x01\x01\x01\x02\x02",
            b"no marker at all\n",
        ];
        let words: [&[u8]; 5] = [b"\x01", b"\x01\x01", b"\x02\x02", b"\x01\x01\x01", b"\x02\x02\x02"];
        let mut random = Random::new(1);
        for _ in 0..rounds(4000) {
            let marked = damaged(&mut random, &examples, &words);
            let (mut demux, mut found) = (Demux::default(), Vec::new());
            let mut sink = |stream, bytes: &[u8]| found.extend(bytes.iter().map(|byte| (stream, *byte)));
            for piece in random.cut(&marked) {
                demux.feed(&piece, &mut sink);
            }
            demux.finish(&mut sink);
            assert_eq!(found, meant(&marked), "{}", marked.escape_ascii());
        }
    }

    #[test]
    fn marked_output_comes_apart() {
        let marked = b"lost\x01\x01\x01out\x02\x02\x02err\x01\x01\x01more\x01\x02\x02\x01";
        assert_eq!(split(marked), (b"lostoutmore\x01\x02\x02\x01".to_vec(), b"err".to_vec()));
        assert_eq!(strip(marked), b"lostouterrmore\x01\x02\x02\x01");
        assert_eq!(split(b"\x02\x02\x02\x02\x02\x02\x02"), (Vec::new(), b"\x02".to_vec()));
    }

    /// With a look at each byte from each of those before it, this would take days.
    #[test]
    fn near_markers_take_no_more_than_others() {
        const WHOLE: usize = 64 << 20;
        const PIECE: usize = 1 << 16;
        let pattern = b"\x01\x01\x02\x02\x01\x01\x01\x01\x02";
        let piece: Vec<u8> = pattern.iter().copied().cycle().take(PIECE).collect();
        let mut demux = Demux::default();
        let mut seen = 0;
        for _ in 0..WHOLE / PIECE {
            demux.feed(&piece, |_, bytes| seen += bytes.len());
        }
        demux.finish(|_, bytes| seen += bytes.len());
        assert_eq!((WHOLE - seen) % MARKER_BYTES, 0, "only markers are missing");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            marked in prop::collection::vec(prop_oneof![Just(1_u8), Just(2), Just(b'x')], 0..200),
            cuts in prop::collection::vec(0_usize..200, 0..6),
        ) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (mut demux, mut at) = (Demux::default(), 0);
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let mut sink = |stream, bytes: &[u8]| match stream {
                Stream::Stdout => stdout.extend_from_slice(bytes),
                Stream::Stderr => stderr.extend_from_slice(bytes),
            };
            for cut in cuts.into_iter().map(|cut| cut.min(marked.len())).chain([marked.len()]) {
                demux.feed(&marked[at..cut], &mut sink);
                at = cut;
            }
            demux.finish(&mut sink);
            prop_assert_eq!((stdout, stderr), split(&marked));
        }
    }
}
