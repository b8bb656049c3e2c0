//! How values are written in messages (RFC 4251, section 5): a reader that never looks beyond what is there, and a writer.

/// A value ends beyond its message, or is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cut short or not a value")]
pub struct Malformed;

/// Takes values from the front of a message.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Of this message.
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(Malformed)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed)
    }

    /// A byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A truth value; anything but zero is true.
    pub fn boolean(&mut self) -> Result<bool, Malformed> {
        Ok(self.byte()? != 0)
    }

    /// A number of 32 bits.
    pub fn number(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// A number of 64 bits.
    pub fn long(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// Bytes with their length before them.
    pub fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        self.bytes(length)
    }

    /// The same as text.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.string()?).map_err(|_| Malformed)
    }

    /// A list of names.
    pub fn names(&mut self) -> Result<Vec<&'a str>, Malformed> {
        let text = self.text()?;
        Ok(if text.is_empty() { Vec::new() } else { text.split(',').collect() })
    }

    /// A number of any length that is not negative, without leading zeros.
    pub fn big(&mut self) -> Result<&'a [u8], Malformed> {
        let bytes = self.string()?;
        if bytes.first().is_some_and(|first| first & 0x80 != 0) {
            return Err(Malformed);
        }
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Ok(&bytes[zeros..])
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Writes values one after another.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// A message of this kind.
    pub fn message(kind: u8) -> Self {
        Self { bytes: vec![kind] }
    }

    /// A byte.
    #[must_use]
    pub fn byte(mut self, byte: u8) -> Self {
        self.bytes.push(byte);
        self
    }

    /// A truth value.
    #[must_use]
    pub fn boolean(self, value: bool) -> Self {
        self.byte(u8::from(value))
    }

    /// A number of 32 bits.
    #[must_use]
    pub fn number(mut self, number: u32) -> Self {
        self.bytes.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// A number of 64 bits.
    #[must_use]
    pub fn long(mut self, number: u64) -> Self {
        self.bytes.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// Bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Bytes with their length before them.
    ///
    /// # Panics
    ///
    /// If there are more than a length can say, which no message of ours has.
    #[must_use]
    pub fn string(self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let length = u32::try_from(bytes.len()).expect("messages are far below 4 GiB");
        self.number(length).raw(bytes)
    }

    /// A number of any length that is not negative.
    #[must_use]
    pub fn big(self, bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let bytes = &bytes[zeros..];
        match bytes.first() {
            Some(first) if first & 0x80 != 0 => self.string([&[0], bytes].concat()),
            Some(_) | None => self.string(bytes),
        }
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn big_numbers_are_written_as_the_standard_shows() {
        let written = |bytes: &[u8]| Writer::default().big(bytes).finish();
        assert_eq!(written(&[]), [0, 0, 0, 0]);
        assert_eq!(written(&[0, 0]), [0, 0, 0, 0]);
        assert_eq!(
            written(&[0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7]),
            [0, 0, 0, 8, 9, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7]
        );
        assert_eq!(written(&[0x80]), [0, 0, 0, 2, 0, 0x80]);
        assert!(Reader::new(&[0, 0, 0, 1, 0x80]).big().is_err(), "negative");
        assert_eq!(Reader::new(&[0, 0, 0, 2, 0, 0x80]).big(), Ok(&[0x80][..]));
    }

    #[test]
    fn lists_of_names() {
        let list = |text: &str| {
            let bytes = Writer::default().string(text).finish();
            Reader::new(&bytes).names().map(|names| names.join("|"))
        };
        assert_eq!(list("").as_deref(), Ok(""));
        assert_eq!(list("a,b").as_deref(), Ok("a|b"));
    }

    proptest! {
        #[test]
        fn nothing_reads_beyond_its_message(bytes in prop::collection::vec(any::<u8>(), 0..64), kinds in prop::collection::vec(0_u8..7, 0..16)) {
            let mut reader = Reader::new(&bytes);
            for kind in kinds {
                let before = reader.rest().len();
                let read = match kind {
                    0 => reader.byte().map(drop),
                    1 => reader.boolean().map(drop),
                    2 => reader.number().map(drop),
                    3 => reader.string().map(drop),
                    4 => reader.text().map(drop),
                    5 => reader.names().map(drop),
                    _ => reader.big().map(drop),
                };
                prop_assert!(reader.rest().len() <= before);
                if read.is_err() { break; }
            }
        }

        #[test]
        fn what_is_written_is_read(number: u32, long: u64, text in ".{0,20}", flag: bool) {
            let bytes = Writer::message(7).number(number).long(long).string(&text).boolean(flag).finish();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.byte(), Ok(7));
            prop_assert_eq!(reader.number(), Ok(number));
            prop_assert_eq!(reader.long(), Ok(long));
            prop_assert_eq!(reader.text(), Ok(text.as_str()));
            prop_assert_eq!(reader.boolean(), Ok(flag));
            prop_assert!(reader.is_empty());
        }
    }
}
