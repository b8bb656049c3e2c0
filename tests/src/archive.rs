//! Archives written by hand, as attackers write them.

/// Bytes of a block of an archive.
pub const BLOCK: usize = 512;

/// One entry of an archive.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Its path.
    pub name: &'a str,
    /// What it is, in the letters of tar.
    pub kind: u8,
    /// What a link leads to.
    pub link: &'a str,
    /// Permissions.
    pub mode: u32,
    /// What is in it.
    pub size: Size<'a>,
}

/// What is in an entry.
#[derive(Debug)]
pub enum Size<'a> {
    /// These bytes.
    Content(&'a [u8]),
    /// A length that the archive claims and does not have.
    Claimed(u64),
}

/// An entry with content.
pub fn entry<'a>(name: &'a str, kind: u8, link: &'a str, content: &'a [u8]) -> Entry<'a> {
    Entry { name, kind, link, mode: 0o777, size: Size::Content(content) }
}

/// An archive with its end mark.
pub fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let mut header = [0_u8; BLOCK];
        header[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        let octal = |value: u64, width: usize| format!("{value:0width$o}\0", width = width - 1).into_bytes();
        header[100..108].copy_from_slice(&octal(entry.mode.into(), 8));
        header[108..116].copy_from_slice(&octal(0, 8));
        header[116..124].copy_from_slice(&octal(0, 8));
        match entry.size {
            Size::Content(content) => header[124..136].copy_from_slice(&octal(content.len() as u64, 12)),
            Size::Claimed(length) => {
                // Base 256, for lengths that octal digits cannot say.
                header[124] = 0x80;
                header[128..136].copy_from_slice(&length.to_be_bytes());
            }
        }
        header[136..148].copy_from_slice(&octal(0, 12));
        header[156] = entry.kind;
        header[157..157 + entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].copy_from_slice(b"        ");
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend_from_slice(&header);
        if let Size::Content(content) = entry.size {
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}
