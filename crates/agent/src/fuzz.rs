//! Bytes as nobody means to send them, for the tests of whatever takes bytes apart: good examples, damaged. The same in every
//! run; `SANDHAUS_FUZZ_ROUNDS` multiplies how many there are.

/// What damage puts in, beside what the target names: ends of number ranges, and what many formats are made of.
const PIECES: &[&[u8]] =
    &[b"\0", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\r\n", b"--", b"\""];

/// Most damages to one example.
const DAMAGES_MAX: usize = 6;

/// Numbers that look random and are the same in every run (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One below this, which is at least one.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a length");
        usize::try_from((self.next() >> 16) % end).expect("below a length")
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    pub(crate) fn one_of<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// A part of these bytes, perhaps none.
    fn part<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let begin = self.below(bytes.len() + 1);
        let length = self.below(bytes.len() - begin + 1);
        &bytes[begin..begin + length]
    }

    /// These bytes in pieces, most of them short.
    pub(crate) fn cut(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let longest = [1, 3, 40, 4000][self.below(4)];
            let (piece, after) = rest.split_at(1 + self.below(longest.min(rest.len())));
            pieces.push(piece.to_vec());
            rest = after;
        }
        pieces
    }
}

/// How often a target is tried.
pub(crate) fn rounds(usual: usize) -> usize {
    let factor = std::env::var("SANDHAUS_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok());
    usual * factor.unwrap_or(1)
}

/// One of the examples, damaged. `words` are what the format has a meaning for.
pub(crate) fn damaged(random: &mut Random, examples: &[&[u8]], words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = random.one_of(examples).to_vec();
    for _ in 0..=random.below(DAMAGES_MAX) {
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.byte(),
            2 => bytes.truncate(at),
            3 => drop(bytes.splice(at..at, random.one_of(PIECES).iter().copied())),
            4 | 5 => drop(bytes.splice(at..at, random.one_of(words).iter().copied())),
            6 => {
                let end = at + random.below(bytes.len() - at + 1);
                bytes.drain(at..end);
            }
            _ => {
                let other = random.one_of(examples);
                let part = random.part(other).to_vec();
                drop(bytes.splice(at..at, part));
            }
        }
    }
    bytes
}
