//! Hexadecimal digits, of which ids and secrets are made.

use std::fmt::Write as _;

/// The bytes as lower-case digits, two each.
pub(crate) fn of(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(digits, "{byte:02x}").expect("a String takes everything");
    }
    digits
}

/// The digits of so many random bytes.
pub(crate) fn random<const BYTES: usize>() -> String {
    let mut bytes = [0_u8; BYTES];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    of(&bytes)
}
