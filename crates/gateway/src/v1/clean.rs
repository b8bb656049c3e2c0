//! From a terminal's bytes to text: escape sequences and carriage returns out, whatever is not UTF-8 replaced, in one
//! pass over bytes that arrive in any pieces.
//!
//! ```text
//!            ESC          [                 final byte
//!  Ground ─────────▶ Escape ──────▶ Control ───────────▶ Ground
//!    ▲                 │  ] P X ^ _                         BEL or ST
//!    │   final byte    ├──────▶ Text, TextEscape ─────────────▶ Ground
//!    └─────────────────┘
//! ```
//!
//! A sequence that is broken off (a control character or a byte beyond ASCII inside it) ends where it breaks, so a
//! lost terminator costs at most [`SEQUENCE_BYTES_MAX`] bytes of output.

/// Longest escape sequence that is swallowed, in bytes.
const SEQUENCE_BYTES_MAX: u64 = 64 * 1024;

const BELL: u8 = 0x07;
const CANCEL: u8 = 0x18;
const SUBSTITUTE: u8 = 0x1a;
const ESCAPE: u8 = 0x1b;

/// What becomes of escape sequences and carriage returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    /// They are taken out: CRLF becomes LF, a lone CR goes.
    Strip,
    /// They stay.
    Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ground,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate byte: one final byte follows.
    Intermediate,
    /// After `ESC [`.
    Control,
    /// Inside an operating system command, which a newline breaks off.
    Command,
    /// Inside another string sequence, which may span lines.
    Text,
    /// After ESC inside either.
    TextEscape,
}

/// Turns bytes into text, piece by piece.
#[derive(Debug)]
pub(crate) struct Cleaner {
    terminal: Terminal,
    state: State,
    /// Offset of the next byte to come.
    position: u64,
    /// Where the escape sequence in progress began.
    sequence_start: u64,
    /// A character that is not whole yet, and where it began.
    partial: Vec<u8>,
    partial_start: u64,
}

impl Cleaner {
    /// A cleaner whose first byte has this offset.
    pub(crate) fn new(terminal: Terminal, offset: u64) -> Self {
        Self {
            terminal,
            state: State::Ground,
            position: offset,
            sequence_start: offset,
            partial: Vec::new(),
            partial_start: offset,
        }
    }

    /// The offset from which a fresh cleaner would go on exactly after the text given so far.
    pub(crate) fn resume_offset(&self) -> u64 {
        if !self.partial.is_empty() {
            self.partial_start
        } else if self.state == State::Ground {
            self.position
        } else {
            self.sequence_start
        }
    }

    /// Bytes were lost: what was in progress ends here, and the next byte has this offset.
    pub(crate) fn jump(&mut self, offset: u64, out: &mut String) {
        self.finish(out);
        self.state = State::Ground;
        self.position = offset;
    }

    /// Appends the text of `bytes` to `out`.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut String) {
        let start = self.position;
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = start + (bytes.len() - rest.len()) as u64;
            if self.state == State::Ground {
                let plain = match self.terminal {
                    Terminal::Keep => rest.len(),
                    Terminal::Strip => {
                        rest.iter().position(|byte| matches!(byte, b'\r' | &ESCAPE)).unwrap_or(rest.len())
                    }
                };
                self.decode(&rest[..plain], at, out);
                if let Some(special) = rest.get(plain) {
                    if *special == ESCAPE {
                        self.state = State::Escape;
                        self.sequence_start = at + plain as u64;
                    }
                    rest = &rest[plain + 1..];
                } else {
                    rest = &[];
                }
            } else if self.step(rest[0], at) {
                rest = &rest[1..];
            }
        }
        self.position = start + bytes.len() as u64;
    }

    /// Ends the text: a character that never became whole is replaced.
    pub(crate) fn finish(&mut self, out: &mut String) {
        if !self.partial.is_empty() {
            self.partial.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// One byte of an escape sequence; false if it is no part of it and the state has changed.
    fn step(&mut self, byte: u8, at: u64) -> bool {
        if at - self.sequence_start >= SEQUENCE_BYTES_MAX {
            self.state = State::Ground;
            return false;
        }
        let (next, taken) = match (self.state, byte) {
            (State::Ground, _) => (State::Ground, false),
            (_, CANCEL | SUBSTITUTE) => (State::Ground, true),
            (State::Escape, b'[') => (State::Control, true),
            (State::Escape, b']') => (State::Command, true),
            (State::Escape, b'P' | b'X' | b'^' | b'_') => (State::Text, true),
            (State::Escape | State::Intermediate, 0x20..=0x2f) => (State::Intermediate, true),
            (State::Escape | State::Intermediate, 0x30..=0x7e) => (State::Ground, true),
            (State::Control, 0x20..=0x3f) => (State::Control, true),
            (State::Control, 0x40..=0x7e) => (State::Ground, true),
            (State::Command | State::Text, BELL) => (State::Ground, true),
            (State::Command | State::Text, ESCAPE) => (State::TextEscape, true),
            (State::Command, b'\n') => (State::Ground, false),
            (State::Command | State::Text, _) => (self.state, true),
            (State::TextEscape, b'\\') => (State::Ground, true),
            // The escape character of a string sequence's end was the beginning of the next sequence.
            (State::TextEscape, _) => (State::Escape, false),
            // A new sequence breaks off the old one; so does whatever cannot be a part of it.
            (State::Escape | State::Intermediate | State::Control, ESCAPE) => {
                self.sequence_start = at;
                (State::Escape, true)
            }
            (State::Escape | State::Intermediate | State::Control, _) => (State::Ground, false),
        };
        self.state = next;
        taken
    }

    /// Appends bytes as UTF-8, keeping back a character that is cut at their end.
    fn decode(&mut self, mut bytes: &[u8], at: u64, out: &mut String) {
        let mut start = at;
        while !self.partial.is_empty() && !bytes.is_empty() {
            self.partial.push(bytes[0]);
            bytes = &bytes[1..];
            start += 1;
            while !self.partial.is_empty() {
                match std::str::from_utf8(&self.partial) {
                    Ok(whole) => {
                        out.push_str(whole);
                        self.partial.clear();
                    }
                    Err(error) => match error.error_len() {
                        None => break,
                        Some(wrong) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            self.partial.drain(..wrong);
                            self.partial_start = start - self.partial.len() as u64;
                        }
                    },
                }
            }
        }
        while !bytes.is_empty() {
            match std::str::from_utf8(bytes) {
                Ok(text) => {
                    out.push_str(text);
                    return;
                }
                Err(error) => {
                    let (valid, rest) = bytes.split_at(error.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).expect("checked just above"));
                    start += valid.len() as u64;
                    match error.error_len() {
                        Some(wrong) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            bytes = &rest[wrong..];
                            start += wrong as u64;
                        }
                        None => {
                            self.partial.extend_from_slice(rest);
                            self.partial_start = start;
                            return;
                        }
                    }
                }
            }
        }
    }
}

/// The beginning of a command's output, bounded whatever the command prints.
#[derive(Debug)]
pub(crate) struct Collector {
    cleaner: Cleaner,
    text: String,
    bytes_max: usize,
    truncated: bool,
}

impl Collector {
    /// Keeps at most `bytes_max` bytes of text.
    pub(crate) fn new(terminal: Terminal, bytes_max: usize) -> Self {
        Self { cleaner: Cleaner::new(terminal, 0), text: String::new(), bytes_max, truncated: false }
    }

    /// Takes output.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if !self.truncated {
            self.cleaner.push(bytes, &mut self.text);
            self.cut();
        }
    }

    /// Output was lost before it could be taken: the text ends here.
    pub(crate) fn lose_rest(&mut self) {
        self.truncated = true;
    }

    /// The text, and whether the output went on beyond it.
    pub(crate) fn finish(mut self) -> (String, bool) {
        if !self.truncated {
            self.cleaner.finish(&mut self.text);
            self.cut();
        }
        (self.text, self.truncated)
    }

    fn cut(&mut self) {
        if self.text.len() > self.bytes_max {
            self.text.truncate(self.text.floor_char_boundary(self.bytes_max));
            self.truncated = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cleaned(terminal: Terminal, pieces: &[&[u8]]) -> String {
        let mut collector = Collector::new(terminal, usize::MAX);
        for piece in pieces {
            collector.push(piece);
        }
        collector.finish().0
    }

    #[test]
    fn what_goes_and_what_stays() {
        for (input, expected) in [
            (&b"42\r\n"[..], "42\n"),
            (b"a\rb\r\r\n", "ab\n"),
            (b"\x1b[1;31mred\x1b[0m\n", "red\n"),
            (b"\x1b[?2004h\x1b[38;5;196mx\x1b[K", "x"),
            (b"\x1b]0;title\x07text", "text"),
            (b"\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\!", "link!"),
            (b"\x1bP1;2|sixel\nmore\x1b\\after", "after"),
            (b"\x1b(Bplain\x1b=\x1b>\x1bM", "plain"),
            (b"\x1b]unterminated\nnext line", "\nnext line"),
            (b"\x1b[12\nx", "\nx"),
            (b"\x1b\x1b[31mx", "x"),
            (b"\x1b]0;t\x1b[31mx", "x"),
            (b"\x1b[\xc3\xa9t\xc3\xa9", "\u{e9}t\u{e9}"),
            (b"\x1b]0;t\x18x", "x"),
            (b"bell\x07 back\x08 tab\t nul\0", "bell\x07 back\x08 tab\t nul\0"),
            (b"\xff\xfe\x80", "\u{fffd}\u{fffd}\u{fffd}"),
            (b"\xe2\x82", "\u{fffd}"),
            (b"\xe2\x1b[0m\x82\xac", "\u{20ac}"),
            (b"end\x1b[3", "end"),
        ] {
            assert_eq!(cleaned(Terminal::Strip, &[input]), expected, "{}", input.escape_ascii());
        }
        assert_eq!(cleaned(Terminal::Keep, &[b"\x1b[1mx\r\n"]), "\x1b[1mx\r\n");
    }

    #[test]
    fn a_lost_terminator_costs_a_bounded_part() {
        let mut input = b"\x1bPnever ended ".to_vec();
        input.extend(std::iter::repeat_n(b'x', 100_000));
        input.extend(b"\nafter");
        let text = cleaned(Terminal::Strip, &[&input]);
        assert!(text.ends_with("x\nafter"));
        assert_eq!(text.len(), input.len() - usize::try_from(SEQUENCE_BYTES_MAX).unwrap());
    }

    #[test]
    fn the_beginning_is_kept() {
        let mut collector = Collector::new(Terminal::Strip, 5);
        collector.push("ab\u{20ac}\u{20ac}".as_bytes());
        collector.push(b"more");
        assert_eq!(collector.finish(), ("ab\u{20ac}".to_owned(), true));
        let mut collector = Collector::new(Terminal::Strip, 5);
        collector.push(b"12345");
        assert_eq!(collector.finish(), ("12345".to_owned(), false));
    }

    /// Bytes among which sequences, their parts and broken characters are likely.
    fn terminal_bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(vec![ESCAPE]),
            Just(b"\x1b[".to_vec()),
            Just(b"\x1b]".to_vec()),
            Just(b"\x1b\\".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(vec![BELL]),
            Just("\u{20ac}\u{1f600}".as_bytes().to_vec()),
            proptest::collection::vec(any::<u8>(), 1..4),
            "[a-z0-9;]{1,4}".prop_map(String::into_bytes),
        ];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(input in terminal_bytes(), cuts in proptest::collection::vec(0_usize..64, 0..6)) {
            for terminal in [Terminal::Strip, Terminal::Keep] {
                let whole = cleaned(terminal, &[&input]);
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| (*cut).min(input.len())).collect();
                cuts.sort_unstable();
                let mut pieces = Vec::new();
                let mut from = 0;
                for cut in cuts {
                    pieces.push(&input[from..cut]);
                    from = cut;
                }
                pieces.push(&input[from..]);
                prop_assert_eq!(&cleaned(terminal, &pieces), &whole);
            }
        }

        #[test]
        fn kept_text_is_what_the_standard_library_makes(input in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(cleaned(Terminal::Keep, &[&input]), String::from_utf8_lossy(&input).into_owned());
        }

        #[test]
        fn a_fresh_cleaner_goes_on_from_the_resume_offset(input in terminal_bytes(), cut in 0_usize..64) {
            let cut = cut.min(input.len());
            let whole = cleaned(Terminal::Strip, &[&input]);
            let mut text = String::new();
            let mut first = Cleaner::new(Terminal::Strip, 0);
            first.push(&input[..cut], &mut text);
            let from = first.resume_offset();
            let mut second = Cleaner::new(Terminal::Strip, from);
            second.push(&input[usize::try_from(from).unwrap()..], &mut text);
            second.finish(&mut text);
            prop_assert_eq!(text, whole);
        }
    }
}
