//! Lines that one of our own programs inside the sandbox sends through a pipe. The user's code runs in the same process
//! and may write there as well, so nothing of them is believed and all of it is bounded.

use crate::sys::Channel;

/// Bytes read at once.
const READ_BYTES: usize = 4096;

/// The lines of a pipe.
pub(crate) struct Lines {
    channel: Channel,
    bytes: Vec<u8>,
    /// How much of them holds no end of a line.
    searched: usize,
    /// The rest of a line that was too long is thrown away.
    skipping: bool,
    most: usize,
}

impl Lines {
    /// The lines of at most `most` bytes each; longer ones are left out.
    pub(crate) fn new(channel: Channel, most: usize) -> Self {
        Self { channel, bytes: Vec::new(), searched: 0, skipping: false, most }
    }

    /// The next line without its end; `None` when nobody can send any more. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; READ_BYTES];
        loop {
            if let Some(line) = self.cut() {
                return Some(line);
            }
            match self.channel.read(&mut buffer).await {
                Ok(read @ 1..) => self.bytes.extend_from_slice(&buffer[..read]),
                Ok(_) | Err(_) => return None,
            }
            tokio::task::yield_now().await;
        }
    }

    /// The next line that was sent already.
    pub(crate) fn try_next(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; READ_BYTES];
        loop {
            if let Some(line) = self.cut() {
                return Some(line);
            }
            match self.channel.try_read(&mut buffer) {
                Ok(Some(read @ 1..)) => self.bytes.extend_from_slice(&buffer[..read]),
                Ok(_) | Err(_) => return None,
            }
        }
    }

    fn cut(&mut self) -> Option<Vec<u8>> {
        loop {
            let Some(end) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.bytes.len();
                if self.searched > self.most {
                    self.skipping = true;
                    self.bytes = Vec::new();
                    self.searched = 0;
                }
                return None;
            };
            let rest = self.bytes.split_off(self.searched + end + 1);
            let mut line = std::mem::replace(&mut self.bytes, rest);
            self.searched = 0;
            line.pop();
            if !std::mem::take(&mut self.skipping) && line.len() <= self.most {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::output_pipe;

    #[tokio::test]
    async fn long_lines_are_left_out() {
        let (ours, theirs) = output_pipe().expect("a pipe");
        let mut lines = Lines::new(Channel::reading(ours).expect("a channel"), 4);
        assert_eq!(lines.try_next(), None);
        for text in ["one\nfar too long", " still\nfive5\n\ntwo", "\nrest"] {
            rustix::io::write(&theirs, text.as_bytes()).expect("room");
            if text.starts_with("one") {
                assert_eq!(lines.next().await.as_deref(), Some(&b"one"[..]));
                assert_eq!(lines.try_next(), None);
            }
        }
        assert_eq!(lines.next().await.as_deref(), Some(&b""[..]));
        assert_eq!(lines.next().await.as_deref(), Some(&b"two"[..]));
        assert_eq!(lines.try_next(), None);
        drop(theirs);
        assert_eq!(lines.next().await, None);
    }
}
