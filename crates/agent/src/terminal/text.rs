//! Text of bytes that come in pieces: a character is never cut in two.

/// Longest character less one.
const KEPT_BYTES_MAX: usize = 3;

/// Makes text of bytes. What is no text becomes U+FFFD.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The beginning of a character.
    kept: Vec<u8>,
}

impl Decoder {
    /// The text so far, but for a character whose rest is yet to come.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.kept);
        all.extend_from_slice(bytes);
        let whole = all.len() - unfinished(&all);
        self.kept = all.split_off(whole);
        String::from_utf8_lossy(&all).into_owned()
    }

    /// What is left at the end.
    pub(super) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.kept)).into_owned()
    }
}

/// Bytes at the end that may be the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    let longest = bytes.len().min(KEPT_BYTES_MAX);
    let starts = |count: &usize| match std::str::from_utf8(&bytes[bytes.len() - count..]) {
        Ok(_) => false,
        Err(error) => error.valid_up_to() == 0 && error.error_len().is_none(),
    };
    (1..=longest).rev().find(starts).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_waits_for_what_cannot_come() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"a\xff"), "a\u{fffd}");
        assert_eq!(decoder.decode("ä".as_bytes()), "ä");
        assert_eq!(decoder.decode(b"\xc3"), "");
        assert_eq!(decoder.decode(b"x"), "\u{fffd}x");
        assert_eq!(decoder.decode(b"\xf0\x9f"), "");
        assert_eq!(decoder.finish(), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn text_in_pieces_is_the_same_text(text in any::<String>(), size in 1_usize..5) {
            let mut decoder = Decoder::default();
            let mut decoded: String = text.as_bytes().chunks(size).map(|piece| decoder.decode(piece)).collect();
            decoded.push_str(&decoder.finish());
            prop_assert_eq!(decoded, text);
        }

        #[test]
        fn no_more_than_a_character_is_kept(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            let mut decoder = Decoder::default();
            decoder.decode(&bytes);
            prop_assert!(decoder.kept.len() <= KEPT_BYTES_MAX);
        }
    }
}
