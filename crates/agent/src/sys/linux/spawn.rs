//! Starting a process: everything is prepared beforehand, then a child that shares the agent's memory (as in vfork)
//! does a fixed series of system calls and becomes the program. No page tables are copied, so a start costs the same
//! however large the agent is, and a failure in the child comes back by plain memory.
//!
//! ```text
//!  agent ── clone(VM|VFORK) ──> child: session, terminal, descriptors, identity, directory, mask ── execve
//!  agent ── clone(VM|VFORK) ──> leader: setsid ── clone(VM|VFORK|PARENT) ──> child … execve;  leader exits
//! ```
//! The second form leaves the child in a session without a leader: it can never get a controlling terminal by
//! opening one, and its end hangs up nobody. Persistent shells are started so.

#![expect(unsafe_code, reason = "between clone and exec only bare system calls are allowed")]

use std::{
    collections::BTreeMap,
    ffi::{CString, c_char, c_int, c_void},
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use sandhaus_protocol::boot::Workload;

use super::succession;

/// Where a process stands towards sessions and terminals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    /// A session of its own, without a terminal.
    Own,
    /// A session of its own with the terminal on this descriptor of the agent as its controlling one.
    Terminal(RawFd),
    /// A session of its own that has no leader.
    Leaderless,
}

/// A process to start.
pub(crate) struct Command<'a> {
    /// Program and arguments.
    pub(crate) argv: &'a [String],
    /// The whole environment.
    pub(crate) env: &'a BTreeMap<String, String>,
    /// Where it starts.
    pub(crate) cwd: &'a str,
    /// Descriptors of the agent and the numbers they get.
    pub(crate) descriptors: &'a [(BorrowedFd<'a>, RawFd)],
    /// Session and terminal.
    pub(crate) session: Session,
    /// Whom it runs as; `None` is the agent's own user.
    pub(crate) workload: Option<&'a Workload>,
}

/// Why a process did not start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SpawnError {
    /// An argument, a variable or the directory holds a NUL byte, or there is no program.
    Invalid(&'static str),
    /// No such program.
    NotFound,
    /// It is there but cannot be executed.
    NotExecutable(i32),
    /// The directory cannot be entered.
    Directory(i32),
    /// The machine has no room for another process now.
    Exhausted(i32),
    /// Something in between failed.
    Failed(&'static str, i32),
}

impl std::fmt::Display for SpawnError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |errno: &i32| {
            let text = io::Error::from_raw_os_error(*errno).to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        };
        match self {
            Self::Invalid(what) => write!(f, "{what}"),
            Self::NotFound => write!(f, "command not found"),
            Self::NotExecutable(errno) => write!(f, "cannot execute: {}", text(errno)),
            Self::Directory(errno) => write!(f, "cannot enter the working directory: {}", text(errno)),
            Self::Exhausted(errno) => write!(f, "no room for another process: {}", text(errno)),
            Self::Failed(step, errno) => write!(f, "cannot {step}: {}", text(errno)),
        }
    }
}

/// Open-file limits that children get: those the agent was started with, not its own raised ones.
static OPEN_FILES_SOFT: AtomicU64 = AtomicU64::new(0);
static OPEN_FILES_HARD: AtomicU64 = AtomicU64::new(0);

/// The limits that children get, soft and hard.
pub(crate) fn open_files() -> (u64, u64) {
    (OPEN_FILES_SOFT.load(Ordering::Relaxed), OPEN_FILES_HARD.load(Ordering::Relaxed))
}

pub(super) fn remember_open_files(soft: u64, hard: u64) {
    OPEN_FILES_SOFT.store(soft, Ordering::Relaxed);
    OPEN_FILES_HARD.store(hard, Ordering::Relaxed);
}

/// Search path where the environment names none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs scripts that have no interpreter line, as execvp does.
const SCRIPT_SHELL: &std::ffi::CStr = c"/bin/sh";

/// Bytes of stack for each of the two short-lived children.
const STACK_BYTES: usize = 32 * 1024;

/// First number that descriptors are parked at before they move to their places.
const PARKING: RawFd = 512;

/// The last capability number that any kernel may know.
const CAPABILITY_LAST: libc::c_ulong = 63;

/// Raised after start, so that the kernel ends the workload before the agent when memory runs out.
const WORKLOAD_OOM_SCORE: &str = "500";

/// How often the score is tried while the child is between two programs. A child that stays refused (one that runs a
/// program it may not read) keeps the agent's score.
const OOM_SCORE_TRIES: u32 = 20;

/// What the child reads and where it reports. It lives on the agent's stack while the agent is suspended.
struct Orders {
    candidates: Vec<CString>,
    argv: Vec<*const c_char>,
    script_argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    cwd: CString,
    descriptors: Vec<(RawFd, RawFd)>,
    session: Session,
    /// The program itself, instead of the candidates; else -1.
    executable: RawFd,
    identity: Option<Identity>,
    second_stack: *mut c_void,
    pid: c_int,
    failed_step: Step,
    errno: c_int,
}

#[derive(Clone, Copy)]
struct Identity {
    uid: u32,
    gid: u32,
    unprivileged: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    None,
    Clone,
    Session,
    Terminal,
    Descriptors,
    Identity,
    Directory,
    Execute,
}

/// Starts the process and gives its id. The caller reaps it.
pub(super) fn start(command: &Command<'_>) -> Result<i32, SpawnError> {
    start_from(-1, command)
}

/// The same with the program behind this descriptor. Whoever may not read its file finds nothing of the process either.
pub(super) fn start_executable(executable: BorrowedFd<'_>, command: &Command<'_>) -> Result<i32, SpawnError> {
    start_from(executable.as_raw_fd(), command)
}

fn start_from(executable: RawFd, command: &Command<'_>) -> Result<i32, SpawnError> {
    let strings = Strings::new(command)?;
    let mut stacks: Vec<u64> = Vec::with_capacity(2 * STACK_BYTES / size_of::<u64>());
    let base: *mut c_void = stacks.as_mut_ptr().cast();
    // SAFETY: both pointers stay within or at the end of the reserved block.
    let (second_stack, first_stack) = unsafe { (base.byte_add(STACK_BYTES), base.byte_add(2 * STACK_BYTES)) };
    let mut orders = Orders {
        candidates: strings.candidates,
        argv: pointers(&strings.argv, None),
        script_argv: pointers(strings.argv.get(1..).unwrap_or_default(), Some(SCRIPT_SHELL.as_ptr())),
        env: pointers(&strings.env, None),
        cwd: strings.cwd,
        descriptors: command.descriptors.iter().map(|(from, to)| (from.as_raw_fd(), *to)).collect(),
        session: command.session,
        executable,
        identity: command.workload.map(|w| Identity { uid: w.uid, gid: w.gid, unprivileged: w.unprivileged }),
        second_stack,
        pid: 0,
        failed_step: Step::None,
        errno: 0,
    };
    let entry = if command.session == Session::Leaderless { leader_main } else { child_main };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs on its own stack, makes only bare system calls, and the agent's thread is suspended until
    // the child has executed or exited, so `orders`, the strings and the stacks outlive every use. All signals are
    // blocked, so no handler can run in the child.
    let pid = unsafe { libc::clone(entry, first_stack, flags, ptr::from_mut(&mut orders).cast()) };
    // SAFETY: reads a value that the child may have written before it ended.
    let failed = unsafe { ptr::read_volatile(&raw const orders.failed_step) };
    if pid < 0 {
        return Err(clone_error(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN)));
    }
    // SAFETY: as above.
    let (errno, second) =
        unsafe { (ptr::read_volatile(&raw const orders.errno), ptr::read_volatile(&raw const orders.pid)) };
    drop(strings.argv);
    drop(strings.env);
    match failed {
        Step::None => {
            let pid = if command.session == Session::Leaderless { second } else { pid };
            prefer_as_victim(pid);
            Ok(pid)
        }
        Step::Clone => Err(clone_error(errno)),
        Step::Session => Err(SpawnError::Failed("start a session", errno)),
        Step::Terminal => Err(SpawnError::Failed("take the terminal", errno)),
        Step::Descriptors => Err(SpawnError::Failed("pass descriptors", errno)),
        Step::Identity => Err(SpawnError::Failed("become the workload's user", errno)),
        Step::Directory => Err(SpawnError::Directory(errno)),
        Step::Execute if errno == libc::ENOENT || errno == libc::ENOTDIR => Err(SpawnError::NotFound),
        Step::Execute if errno == libc::EAGAIN || errno == libc::ENOMEM => Err(SpawnError::Exhausted(errno)),
        Step::Execute => Err(SpawnError::NotExecutable(errno)),
    }
}

/// Raises a fresh child's score. The kernel lets the agent go on a moment before the child has left its memory, and so
/// long the child's files in `/proc` belong to nobody here: then the write is refused and tried again.
fn prefer_as_victim(pid: i32) {
    let path = format!("/proc/{pid}/oom_score_adj");
    for _ in 0..OOM_SCORE_TRIES {
        match std::fs::write(&path, WORKLOAD_OOM_SCORE) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => std::thread::yield_now(),
            // Written, or the child is gone.
            _ => return,
        }
    }
}

fn clone_error(errno: i32) -> SpawnError {
    match errno {
        libc::EAGAIN | libc::ENOMEM | libc::ENOSPC => SpawnError::Exhausted(errno),
        other => SpawnError::Failed("make a process", other),
    }
}

/// The texts that the child's pointers point to.
struct Strings {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
}

impl Strings {
    fn new(command: &Command<'_>) -> Result<Self, SpawnError> {
        let text = |text: &str, what| CString::new(text).map_err(|_| SpawnError::Invalid(what));
        let program =
            command.argv.first().filter(|p| !p.is_empty()).ok_or(SpawnError::Invalid("no program given"))?;
        let argument = "an argument holds a NUL byte";
        let candidates = if program.contains('/') {
            vec![text(program, argument)?]
        } else {
            let path = command.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
            let folders = path.split(':').map(|folder| if folder.is_empty() { "." } else { folder });
            folders.map(|folder| text(&format!("{folder}/{program}"), argument)).collect::<Result<_, _>>()?
        };
        let argv = command.argv.iter().map(|a| text(a, argument)).collect::<Result<_, _>>()?;
        let variable = |(name, value): (&String, &String)| {
            text(&format!("{name}={value}"), "an environment variable holds a NUL byte")
        };
        let env = command.env.iter().map(variable).collect::<Result<_, _>>()?;
        Ok(Self { candidates, argv, env, cwd: text(command.cwd, "the working directory holds a NUL byte")? })
    }
}

/// A NULL-terminated array. With `script_shell` it starts with that and leaves a place for the script's path.
fn pointers(texts: &[CString], script_shell: Option<*const c_char>) -> Vec<*const c_char> {
    let mut array = Vec::with_capacity(texts.len() + 3);
    if let Some(shell) = script_shell {
        array.push(shell);
        array.push(ptr::null());
    }
    array.extend(texts.iter().map(|text| text.as_ptr()));
    array.push(ptr::null());
    array
}

/// Entry of the leader that makes a session, starts the child in it as the agent's own, and leaves.
extern "C" fn leader_main(orders: *mut c_void) -> c_int {
    // SAFETY: the agent passed this pointer and is suspended; see `start`.
    unsafe {
        let orders = orders.cast::<Orders>();
        if libc::setsid() < 0 {
            fail(orders, Step::Session);
        }
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT | libc::SIGCHLD;
        let pid = libc::clone(child_main, (*orders).second_stack, flags, orders.cast());
        if pid < 0 {
            fail(orders, Step::Clone);
        }
        (*orders).pid = pid;
        libc::_exit(0)
    }
}

/// Entry of the child that becomes the program.
extern "C" fn child_main(orders: *mut c_void) -> c_int {
    // SAFETY: the agent passed this pointer and is suspended; see `start`.
    unsafe {
        let orders = orders.cast::<Orders>();
        enter_session(orders);
        place_descriptors(orders);
        restore_limits_and_signals();
        become_workload(orders);
        if libc::chdir((*orders).cwd.as_ptr()) < 0 {
            fail(orders, Step::Directory);
        }
        execute(orders)
    }
}

/// Reports the failed step with errno and ends this child.
unsafe fn fail(orders: *mut Orders, step: Step) -> ! {
    // SAFETY: the callers pass the pointer that `start` made; errno's place is this suspended thread's own.
    unsafe {
        (*orders).errno = *libc::__errno_location();
        (*orders).failed_step = step;
        libc::_exit(127)
    }
}

unsafe fn enter_session(orders: *mut Orders) {
    // SAFETY: bare system calls on plain numbers; the pointer is `start`'s.
    unsafe {
        match (*orders).session {
            Session::Own => {
                if libc::setsid() < 0 {
                    fail(orders, Step::Session);
                }
            }
            Session::Terminal(terminal) => {
                if libc::setsid() < 0 {
                    fail(orders, Step::Session);
                }
                if libc::ioctl(terminal, libc::TIOCSCTTY, 0) < 0 {
                    fail(orders, Step::Terminal);
                }
            }
            Session::Leaderless => {
                if libc::setpgid(0, 0) < 0 {
                    fail(orders, Step::Session);
                }
            }
        }
    }
}

unsafe fn place_descriptors(orders: *mut Orders) {
    // SAFETY: bare system calls on plain numbers; the vector is only read and changed in place.
    unsafe {
        for pair in &mut (*orders).descriptors {
            // Parked first, so that no source is overwritten by another's target.
            pair.0 = libc::fcntl(pair.0, libc::F_DUPFD_CLOEXEC, PARKING);
            if pair.0 < 0 {
                fail(orders, Step::Descriptors);
            }
        }
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for pair in &(*orders).descriptors {
            if libc::dup2(pair.0, pair.1) < 0 {
                fail(orders, Step::Descriptors);
            }
        }
    }
}

unsafe fn restore_limits_and_signals() {
    let soft = OPEN_FILES_SOFT.load(Ordering::Relaxed);
    let hard = OPEN_FILES_HARD.load(Ordering::Relaxed);
    // SAFETY: bare system calls on values of this stack. Every other disposition is the default already.
    unsafe {
        if hard > 0 {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::umask(0o022);
    }
}

/// Takes the workload's ids by raw calls: the C library's would change every thread that shares this memory.
unsafe fn become_workload(orders: *mut Orders) {
    // SAFETY: bare system calls on plain numbers and values of this stack.
    unsafe {
        let Some(identity) = (*orders).identity else { return };
        if identity.unprivileged {
            for capability in 0..=CAPABILITY_LAST {
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0
                    && *libc::__errno_location() != libc::EINVAL
                {
                    fail(orders, Step::Identity);
                }
            }
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        }
        libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>());
        if libc::syscall(libc::SYS_setresgid, identity.gid, identity.gid, identity.gid) < 0
            || libc::syscall(libc::SYS_setresuid, identity.uid, identity.uid, identity.uid) < 0
        {
            fail(orders, Step::Identity);
        }
        if identity.unprivileged {
            // Version 3 of the call, this thread, all three sets empty: also for a workload whose id is 0.
            let header: [u32; 2] = [0x2008_0522, 0];
            let none = [0_u32; 6];
            if libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) < 0
                || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0
            {
                fail(orders, Step::Identity);
            }
        }
    }
}

unsafe fn execute(orders: *mut Orders) -> ! {
    // SAFETY: the arrays are NULL-terminated and their texts outlive the call; the mask is a zeroed value here.
    unsafe {
        let none: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        if (*orders).executable >= 0 {
            succession::forgo_reading();
            let (argv, env) = ((*orders).argv.as_ptr(), (*orders).env.as_ptr());
            libc::syscall(
                libc::SYS_execveat,
                (*orders).executable,
                c"".as_ptr(),
                argv,
                env,
                libc::AT_EMPTY_PATH,
            );
            fail(orders, Step::Execute)
        }
        let mut denied = 0;
        for candidate in &(*orders).candidates {
            libc::execve(candidate.as_ptr(), (*orders).argv.as_ptr(), (*orders).env.as_ptr());
            match *libc::__errno_location() {
                libc::ENOEXEC => {
                    let script_argv = &mut (*orders).script_argv;
                    if let Some(place) = script_argv.get_mut(1) {
                        *place = candidate.as_ptr();
                    }
                    libc::execve(
                        SCRIPT_SHELL.as_ptr(),
                        (*orders).script_argv.as_ptr(),
                        (*orders).env.as_ptr(),
                    );
                    denied = libc::ENOEXEC;
                }
                libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::ELOOP => {}
                errno => denied = errno,
            }
        }
        *libc::__errno_location() = if denied == 0 { libc::ENOENT } else { denied };
        fail(orders, Step::Execute)
    }
}
