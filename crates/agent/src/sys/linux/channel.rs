//! Descriptors that tasks wait for.

#![expect(unsafe_code, reason = "registering a descriptor with the reactor asks for a promise about it")]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a descriptor with the runtime.
pub(super) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open and the same until the registration that owns it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// One non-blocking descriptor that tasks read and write.
pub(crate) struct Channel {
    fd: AsyncFd<OwnedFd>,
}

impl Channel {
    /// Watches for input.
    pub(crate) fn reading(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: watch(fd, Interest::READABLE)? })
    }

    /// Watches for room to write.
    pub(crate) fn writing(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: watch(fd, Interest::WRITABLE)? })
    }

    /// Reads what there is; zero at the end. A terminal whose processes are gone has ended. Cancel-safe.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| read_now(fd.get_ref(), buffer)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Reads what there is without waiting; `None` when there is nothing now.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match read_now(self.fd.get_ref(), buffer) {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes all of it, waiting for room as often as needed. Not cancel-safe: a part may be written.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            // Usually there is room at once, so ask the kernel before the reactor.
            match rustix::io::write(self.fd.get_ref(), bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(rustix::io::Errno::AGAIN) => {
                    let mut ready = self.fd.writable().await?;
                    let attempt = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?));
                    if let Ok(result) = attempt {
                        bytes = &bytes[result?..];
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes what there is room for now, or once there is some. Cancel-safe: nothing is written unless its length is
    /// returned.
    pub(crate) async fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(self.fd.get_ref(), bytes) {
                Ok(written) => return Ok(written),
                Err(rustix::io::Errno::AGAIN) => {
                    let mut ready = self.fd.writable().await?;
                    if let Ok(result) = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                        return result;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes a few bytes into a pipe that is still empty, without waiting.
    pub(crate) fn write_first(&self, bytes: &[u8]) -> io::Result<()> {
        match bytes.is_empty() {
            true => Ok(()),
            false => Ok(rustix::io::write(self.fd.get_ref(), bytes).map(drop)?),
        }
    }

    /// Bytes that wait to be read.
    pub(crate) fn available(&self) -> usize {
        rustix::io::ioctl_fionread(self.fd.get_ref()).ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
    }

    /// The descriptor.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

fn read_now(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(fd, &mut *buffer) {
            Ok(read) => return Ok(read),
            Err(rustix::io::Errno::INTR) => {}
            // A terminal without any process on its other side.
            Err(rustix::io::Errno::IO) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
    }
}
