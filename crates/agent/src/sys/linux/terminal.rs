//! Pseudo-terminals, pipes and the other descriptors that processes are given.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{MemfdFlags, Mode, OFlags},
    pipe::PipeFlags,
    pty::OpenptFlags,
    rand::GetRandomFlags,
    termios::Winsize,
};
use sandhaus_protocol::{boot::Workload, process::Resize};

use super::identity::as_workload;

/// A pseudo-terminal: the agent's side and, until the process has it, the process's.
pub(crate) struct Terminal {
    /// The agent's side, non-blocking.
    pub(crate) master: OwnedFd,
    /// The process's side.
    pub(crate) slave: OwnedFd,
}

impl Terminal {
    /// A new terminal that belongs to the workload.
    pub(crate) fn open(size: Resize, workload: &Workload) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = as_workload(workload, || rustix::pty::openpt(flags))?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        set_nonblocking(&master)?;
        resize(&master, size)?;
        Ok(Self { master, slave })
    }

    /// A second description of the process's side, non-blocking, for writing into the terminal's output in order
    /// with what the processes write.
    pub(crate) fn second_slave(&self) -> io::Result<OwnedFd> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&self.master, flags)?;
        set_nonblocking(&slave)?;
        Ok(slave)
    }

    /// Changes the size; the foreground processes hear of it.
    pub(crate) fn resize(master: impl AsFd, size: Resize) -> io::Result<()> {
        resize(master, size)
    }

    /// The foreground process group.
    pub(crate) fn foreground(master: impl AsFd) -> Option<i32> {
        rustix::termios::tcgetpgrp(master).ok().map(|pid| pid.as_raw_nonzero().get())
    }
}

fn resize(master: impl AsFd, size: Resize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

/// A pipe from a process: (the agent's non-blocking end, the process's end).
pub(crate) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(&read)?;
    Ok((read, write))
}

/// A pipe to a process: (the agent's non-blocking end, the process's end).
pub(crate) fn input_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(&write)?;
    Ok((write, read))
}

/// A second, non-blocking description of a pipe's reading end, for taking out what nobody wants any more.
pub(crate) fn second_reader(pipe: impl AsFd) -> io::Result<OwnedFd> {
    reopen(pipe, OFlags::RDONLY)
}

/// A second, non-blocking description of a pipe's writing end.
pub(crate) fn second_writer(pipe: impl AsFd) -> io::Result<OwnedFd> {
    reopen(pipe, OFlags::WRONLY)
}

fn reopen(fd: impl AsFd, access: OFlags) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    Ok(rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

/// An input pipe that the workload may also open by its name under `/proc`.
pub(crate) fn script_pipe(workload: &Workload) -> io::Result<(OwnedFd, OwnedFd)> {
    as_workload(workload, input_pipe)
}

/// Something that reads as empty and swallows what is written.
pub(crate) fn discard() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// `bytes` random bytes in lower-case hexadecimal.
pub(crate) fn random_hex(bytes: usize) -> String {
    use std::fmt::Write as _;
    let mut raw = vec![0_u8; bytes];
    // The pool is always ready by the time a process runs; without it names would only be less surprising.
    let _ = rustix::rand::getrandom(raw.as_mut_slice(), GetRandomFlags::empty());
    let mut text = String::with_capacity(bytes * 2);
    for byte in raw {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A file in memory whose content the agent replaces and a process reads under a descriptor of its own.
pub(crate) struct Script {
    file: OwnedFd,
}

impl Script {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { file: rustix::fs::memfd_create("sandhaus-script", MemfdFlags::CLOEXEC)? })
    }

    /// The one behind this descriptor.
    pub(crate) fn of(file: OwnedFd) -> Self {
        Self { file }
    }

    /// Replaces the content by `parts`, one after another.
    pub(crate) fn replace(&self, parts: &[&[u8]]) -> io::Result<()> {
        rustix::fs::ftruncate(&self.file, 0)?;
        let mut offset = 0;
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                let written = rustix::io::pwrite(&self.file, rest, offset)?;
                offset += written as u64;
                rest = &rest[written..];
            }
        }
        Ok(())
    }

    /// Fills it and turns it into something that reads from its start.
    pub(crate) fn into_readable(self, parts: &[&[u8]]) -> io::Result<OwnedFd> {
        self.replace(parts)?;
        Ok(self.file)
    }

    /// What the process gets.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
