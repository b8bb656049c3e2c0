//! Request bodies that are read, chunk by chunk, by a thread of their own: files and standard input cannot be waited
//! for without blocking.

use std::{
    io::{self, Read},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use sandhaus_sandbox::toolbox::Body;
use tokio::sync::mpsc;

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks on their way.
const CHUNKS_MAX: usize = 4;

/// Everything that `reader` gives, as a request body. The thread ends with the reader, or at the first read after the
/// body is dropped.
pub(crate) fn stream(mut reader: impl Read + Send + 'static) -> io::Result<Body> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    std::thread::Builder::new().name("body".to_owned()).spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let chunk = match reader.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = chunk.is_err();
            if sender.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    })?;
    Ok(Chunks(receiver).map_err(Into::into).boxed())
}

struct Chunks(mpsc::Receiver<io::Result<Bytes>>);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_arrives_and_errors_too() {
        let content: Vec<u8> = (0..CHUNK_BYTES * 9 + 5).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let body = stream(io::Cursor::new(content.clone())).unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), content);

        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        assert!(stream(Broken).unwrap().collect().await.is_err());
    }
}
