//! Texts of other programs.

use std::fmt::Write as _;

/// Most characters of another program's message that are shown.
const MESSAGE_CHARS_MAX: usize = 2000;

/// What a program wrote: `wsl.exe` itself writes UTF-16, Linux UTF-8.
pub(crate) fn decode(bytes: &[u8]) -> String {
    let bytes = bytes.strip_prefix(&[0xff, 0xfe]).unwrap_or(bytes);
    // Every message has some ASCII in it, whose other half is zero; no UTF-8 text of these programs has a zero.
    if !bytes.contains(&0) {
        return String::from_utf8_lossy(bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes))
            .into_owned();
    }
    let (units, _) = bytes.as_chunks::<2>();
    String::from_utf16_lossy(&units.iter().map(|pair| u16::from_le_bytes(*pair)).collect::<Vec<_>>())
}

/// Text as it can be shown on a terminal: lines stay, other control characters become visible, and it has an end.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.trim().chars().filter(|letter| *letter != '\r').take(MESSAGE_CHARS_MAX) {
        match letter {
            '\n' => shown.push('\n'),
            letter if letter.is_control() => {
                let _ = write!(shown, "{}", letter.escape_default());
            }
            letter => shown.push(letter),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn both_encodings_are_read() {
        let text = "NAME  STATE\r\nDebian  Wird ausgeführt 中\r\n";
        assert_eq!(decode(&utf16(text)), text);
        assert_eq!(decode(&[&[0xff, 0xfe], &utf16(text)[..]].concat()), text);
        assert_eq!(decode(text.as_bytes()), text);
        assert_eq!(decode(format!("\u{feff}{text}").as_bytes()), text);
        assert_eq!(decode(b""), "");
        // Half a character at the end, and bytes that are no text, lose nothing else.
        assert_eq!(decode(&utf16("ab")[..3]), "a");
        assert_eq!(decode(b"a\xff"), "a\u{fffd}");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(visible(" a\u{1b}[2J\r\nb\u{7} "), "a\\u{1b}[2J\nb\\u{7}");
        assert_eq!(visible(&"x".repeat(9999)).len(), MESSAGE_CHARS_MAX);
    }
}
