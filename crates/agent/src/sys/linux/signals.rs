//! Signals arrive through a signalfd: the agent installs no handlers, so none can run in the wrong place.

#![expect(unsafe_code, reason = "signal masks, dispositions and signalfd have no safe wrapper")]

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use tokio::io::unix::AsyncFd;

use super::{channel, tree};

/// The last signal number.
const SIGNAL_MAX: libc::c_int = 64;

/// The signal that systemd as the first process understands as "switch off": `SIGRTMIN+4`. That of busybox and others is
/// SIGUSR2.
pub(super) const SYSTEMD_POWER_OFF: libc::c_int = 38;

/// What the agent reacts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    /// A child changed state.
    Child,
    /// Someone who may asks the agent to end.
    End,
}

/// The stream of signals.
pub(crate) struct Signals {
    fd: AsyncFd<OwnedFd>,
    ends: Ends,
}

/// Whose request to end counts.
#[derive(Debug, Clone, Copy)]
enum Ends {
    /// Only one from outside the sandbox: what runs inside may not end PID 1.
    FromOutside,
    /// Anyone's.
    FromAnyone,
}

/// Gives every signal its default disposition and blocks them all, so that they only ever arrive through [`Signals`].
pub(super) fn reset() {
    // By raw calls, since the C library keeps two numbers to itself and leaves them as they were inherited. A zeroed
    // action of the kernel's own layout is the default one.
    let default = [0_u64; 4];
    for number in 1..=SIGNAL_MAX {
        // SAFETY: setting a default disposition runs no code of ours; numbers that cannot be set just fail.
        unsafe {
            let old = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), old, size_of::<u64>());
        }
    }
    // Writes to a closed pipe answer EPIPE instead of ending the agent; children get the default back.
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set that sigprocmask then reads. This runs before any other thread exists.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
    }
}

impl Signals {
    /// Listens. Needs the runtime, and all signals blocked.
    pub(crate) fn new() -> io::Result<Self> {
        let ends = if rustix::process::getpid().is_init() { Ends::FromOutside } else { Ends::FromAnyone };
        Self::of(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT], ends)
    }

    /// The same for the first process of a machine. Only its root can send it signals, and could as well switch the machine
    /// off itself.
    pub(crate) fn of_machine() -> io::Result<Self> {
        Self::of(
            &[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGUSR2, SYSTEMD_POWER_OFF],
            Ends::FromAnyone,
        )
    }

    fn of(numbers: &[libc::c_int], ends: Ends) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set; the others only add to it. signalfd gives a new descriptor.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for number in numbers.iter().copied() {
                libc::sigaddset(set.as_mut_ptr(), number);
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = channel::watch(unsafe { OwnedFd::from_raw_fd(fd) }, tokio::io::Interest::READABLE)?;
        Ok(Self { fd, ends })
    }

    /// The next signal of interest. Cancel-safe: a signal is consumed only when it is returned.
    pub(crate) async fn next(&self) -> io::Result<Interest> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| read_one(fd.get_ref())) {
                Ok(Ok(info)) => {
                    if let Some(interest) = self.interpret(&info) {
                        return Ok(interest);
                    }
                }
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    fn interpret(&self, info: &libc::signalfd_siginfo) -> Option<Interest> {
        if info.ssi_signo == libc::SIGCHLD.unsigned_abs() {
            return Some(Interest::Child);
        }
        match self.ends {
            Ends::FromAnyone => Some(Interest::End),
            // A sender outside of this process namespace has no number in it.
            Ends::FromOutside => (info.ssi_pid == 0).then_some(Interest::End),
        }
    }
}

fn read_one(fd: &OwnedFd) -> io::Result<libc::signalfd_siginfo> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is as long as said, and any bytes are a valid value of this plain structure.
    let read = unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    match usize::try_from(read) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(read) if read < size => Err(io::ErrorKind::UnexpectedEof.into()),
        // SAFETY: zeroed above and fully written.
        Ok(_) => Ok(unsafe { info.assume_init() }),
    }
}

/// Ends every other process that the agent can see as PID 1: TERM, a short grace, KILL.
pub(crate) async fn terminate_everything(grace: Duration) {
    const POLL: Duration = Duration::from_millis(10);
    if !rustix::process::getpid().is_init() {
        return;
    }
    signal_all(libc::SIGTERM);
    let deadline = tokio::time::Instant::now() + grace;
    while tokio::time::Instant::now() < deadline && tree::others_alive() {
        tokio::time::sleep(POLL).await;
    }
    signal_all(libc::SIGKILL);
}

fn signal_all(number: i32) {
    // SAFETY: -1 addresses everything but the caller and PID 1, and the caller is PID 1 of its own namespace here.
    unsafe { libc::kill(-1, number) };
}

/// Sends a signal to each; those that are gone meanwhile do not matter. Never to PID 1, never to a group.
pub(crate) fn signal_pids(pids: &[i32], number: i32) {
    for pid in pids.iter().filter(|pid| **pid > 1) {
        // SAFETY: plain numbers.
        unsafe { libc::kill(*pid, number) };
    }
}

/// Sends a signal to a process group; false when there is none.
pub(crate) fn signal_group(group: i32, number: i32) -> bool {
    // SAFETY: plain numbers.
    group > 1 && unsafe { libc::kill(-group, number) } == 0
}

/// Stops a process, waits until it stands still, then stops its children, which are answered: the caller lets them go
/// on. What the process would have started meanwhile is then either there or not yet asked for, and no child ends
/// between being seen and being signalled. A process that is busy in the kernel is waited for only a moment.
pub(crate) fn stop_with_children(pid: i32) -> Vec<i32> {
    const LOOKS: u32 = 100;
    const PAUSE: Duration = Duration::from_micros(50);
    signal_pids(&[pid], libc::SIGSTOP);
    for _ in 0..LOOKS {
        if tree::has_stopped(pid) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    let children = tree::children(pid);
    signal_pids(&children, libc::SIGSTOP);
    children
}
