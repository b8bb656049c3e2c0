//! One program after another in the same process: files in memory for the next program and for what it is told, who the
//! present one is, and the moment between them.
//!
//! A program whose file its own user may not read starts as a process that nobody of that user can look into; for root
//! that means: without the rights that override the file's permissions. So the agent goes without them for that call.

#![expect(unsafe_code, reason = "exec by descriptor, capabilities and program headers have no safe wrapper")]

use std::{
    ffi::{CStr, CString, c_int, c_void},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt as _,
    },
    ptr,
};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

/// Version 3 of the kernel's calls about capabilities, for this thread.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

/// `CAP_DAC_OVERRIDE` and `CAP_DAC_READ_SEARCH`.
const READING: u32 = 1 << 1 | 1 << 2;

/// Executable by everyone, readable by nobody.
const EXECUTABLE_MODE: Mode = Mode::from_raw_mode(0o111);

/// First number of descriptors that are not the standard streams.
const FIRST_DESCRIPTOR: RawFd = 3;

/// What an executable of this machine begins with: 64 bits, little endian.
const ELF_BEGINNING: &[u8] = b"\x7fELF\x02\x01\x01";

/// Bytes of a header as far as it is looked at.
pub(crate) const ELF_HEADER_BYTES: usize = 20;

/// Why bytes are no program for this machine; `None` if they may be one.
pub(crate) fn foreign_program(header: &[u8]) -> Option<&'static str> {
    let number = |at: usize| Some(u16::from_le_bytes([*header.get(at)?, *header.get(at + 1)?]));
    let (Some(kind), Some(machine)) = (number(16), number(18)) else { return Some("it is no executable") };
    let own = match std::env::consts::ARCH {
        "x86_64" => 62,
        "aarch64" => 183,
        _ => return Some("this machine's executables are not known"),
    };
    if !header.starts_with(ELF_BEGINNING) || !matches!(kind, 2 | 3) {
        return Some("it is no executable of Linux");
    }
    (machine != own).then_some("it is an executable of another kind of machine")
}

/// An empty file in memory that can become a program.
pub(crate) fn executable_file() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag, and need none.
    let file = match rustix::fs::memfd_create("sandhaus-agent", flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("sandhaus-agent", flags),
        other => other,
    }?;
    Ok(File::from(file))
}

/// From now on nobody changes the program, and nobody but root reads it.
pub(crate) fn seal_executable(file: &File) -> io::Result<()> {
    rustix::fs::fchmod(file, EXECUTABLE_MODE)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    Ok(rustix::fs::fcntl_add_seals(file, seals)?)
}

/// An empty file in memory.
pub(crate) fn memory_file() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("sandhaus-state", MemfdFlags::CLOEXEC)?))
}

/// The program that this process runs, for [`become_program`].
pub(crate) fn own_program() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// A second number for what an open descriptor leads to; the first one stays as it is.
pub(crate) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST_DESCRIPTOR {
        return Err(io::Error::other(format!("descriptor {number} cannot have been handed over")));
    }
    // SAFETY: a number that is no descriptor answers an error; the new one belongs to nobody else.
    unsafe {
        let copy = libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR);
        if copy < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(copy)) }
    }
}

/// Closes descriptors that were handed over and are not needed any more under these numbers.
pub(crate) fn close_numbers(numbers: &[RawFd]) {
    for number in numbers.iter().filter(|number| **number >= FIRST_DESCRIPTOR) {
        // SAFETY: handed over to this program for it to close, which nothing else does.
        unsafe { libc::close(*number) };
    }
}

/// Has this process run another program, which finds these descriptors under the same numbers. Returns only what went
/// wrong; then everything is as before.
pub(crate) fn become_program(program: BorrowedFd<'_>, arguments: &[String], kept: &[RawFd]) -> io::Error {
    let texts = |texts: Vec<Vec<u8>>| texts.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let variables =
        std::env::vars_os().map(|(name, value)| [name.into_vec(), b"=".to_vec(), value.into_vec()].concat());
    let (Ok(arguments), Ok(variables)) = (
        texts(arguments.iter().map(|argument| argument.clone().into_bytes()).collect()),
        texts(variables.collect()),
    ) else {
        return io::Error::from(io::ErrorKind::InvalidInput);
    };
    let pointers =
        |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
    let (argument_pointers, variable_pointers) = (pointers(&arguments), pointers(&variables));
    keep(kept, 0);
    let capabilities = forgo_reading();
    // SAFETY: both arrays end with NULL and their texts live until after the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argument_pointers.as_ptr(),
            variable_pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    let error = io::Error::last_os_error();
    if let Some(capabilities) = capabilities {
        set_capabilities(&capabilities);
    }
    keep(kept, libc::FD_CLOEXEC);
    error
}

fn keep(numbers: &[RawFd], flags: c_int) {
    for number in numbers {
        // SAFETY: changes a flag; a number that is no descriptor answers an error.
        unsafe { libc::fcntl(*number, libc::F_SETFD, flags) };
    }
}

/// Gives up, on this thread and until the next program starts as root, the rights to read what only others may read.
/// What it had before, if it had that. Makes bare system calls only.
pub(super) fn forgo_reading() -> Option<[u32; 6]> {
    let mut had = [0_u32; 6];
    // SAFETY: the kernel writes as many values as version 3 has.
    if unsafe { libc::syscall(libc::SYS_capget, CAPABILITY_HEADER.as_ptr(), had.as_mut_ptr()) } < 0 {
        return None;
    }
    let mut without = had;
    without[0] &= !READING;
    set_capabilities(&without);
    Some(had)
}

fn set_capabilities(sets: &[u32; 6]) {
    // SAFETY: the kernel reads as many values as version 3 has. A smaller set is never refused, nor is the former one.
    unsafe { libc::syscall(libc::SYS_capset, CAPABILITY_HEADER.as_ptr(), sets.as_ptr()) };
}

/// What tells this build of the agent from every other, in hexadecimal; empty if its linker left no such note.
pub(crate) fn own_build() -> String {
    let mut build = String::new();
    // SAFETY: the callback gets this pointer back before the call returns.
    unsafe { libc::dl_iterate_phdr(Some(find_build), ptr::from_mut(&mut build).cast()) };
    build
}

/// Looks at the first object, which is the program itself.
unsafe extern "C" fn find_build(info: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> c_int {
    // SAFETY: the C library describes what is mapped, and `found` is `own_build`'s text.
    unsafe {
        let (info, found) = (&*info, &mut *found.cast::<String>());
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        for header in headers.iter().filter(|header| header.p_type == libc::PT_NOTE) {
            let (Ok(start), Ok(length)) =
                (usize::try_from(info.dlpi_addr + header.p_vaddr), usize::try_from(header.p_memsz))
            else {
                continue;
            };
            let notes = std::slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(start), length);
            if let Some(build) = sandhaus_protocol::upgrade::build_in_notes(notes) {
                *found = build;
            }
        }
    }
    1
}

/// Gives this process the name that its program is known by.
pub(crate) fn take_name(name: &CStr) {
    // A name that cannot be taken is a name in lists only.
    let _ = rustix::thread::set_name(name);
}

/// From now on nobody of the workload can look into this process.
pub(crate) fn hide() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// Whether so many descriptors can be open.
pub(crate) fn has_room_for_descriptors(count: u64) -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.is_none_or(|limit| count <= limit)
}

/// Whether something was received on a socket that nobody has read.
pub(crate) fn has_unread(number: RawFd) -> bool {
    // SAFETY: only asks; a number that is no descriptor answers an error.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::ioctl_fionread(socket).is_ok_and(|bytes| bytes > 0)
}

/// The number that a descriptor has.
pub(crate) fn number(descriptor: impl AsFd) -> RawFd {
    descriptor.as_fd().as_raw_fd()
}
