//! The filters over system calls: one per level, the same for both security profiles.
//!
//! - `strict`: everything that a usual workload does not need is refused.
//! - `mvp`: what acts on the kernel itself stays refused, but debuggers and nested sandboxes work: tracing, and user,
//!   mount, process, IPC, host name and cgroup namespaces with mounts of their own in them. No further network
//!   namespace: the owner of one may configure packet filters, traffic control and devices, by far the largest part of
//!   the kernel that anybody inside could reach. What the machine hides or seals stays so, because the kernel locks
//!   inherited mounts together in a namespace of less privilege. The newer mount calls stay refused, as nothing depends
//!   on them.
//! - `off`: no filter at all, not even for foreign architectures.
//!
//! A verdict per call number is compiled into classic BPF as a binary search over ranges of equal verdicts: about
//! seven comparisons per call, and few instructions for the kernel to check at each start. Calls whose arguments
//! matter have a small block of their own. Whatever is newer than this table, of another architecture or of the x32
//! ABI does not exist (`ENOSYS`), so that libraries fall back; what exists but is refused says `EPERM`.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the system call table of the filter is written for x86_64 only");

use sandhaus_sandbox::types::Seccomp;

/// One instruction, laid out as the kernel's `sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    operand: u32,
}

/// The newest system call this table knows (`file_setattr`, Linux 6.17).
const NEWEST: u32 = 469;

/// Numbers 336 to 423 were never given out on this architecture.
const UNASSIGNED: std::ops::RangeInclusive<u32> = 336..=423;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;

// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

// Classic BPF.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const JUMP_IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Namespace flags of clone(2). CLONE_NEWTIME lies within its signal bits and is not a flag there.
const CLONE_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();

/// Namespaces that nobody makes under `mvp` either.
const NETWORK_NAMESPACE: u32 = libc::CLONE_NEWNET.cast_unsigned();

/// CLONE_NEWTIME, which unshare(2) knows. Nothing inside needs another clock.
const TIME_NAMESPACE: u32 = 0x80;

/// Terminal requests that put words into somebody else's mouth.
const REFUSED_REQUESTS: &[u32] = &[0x5412 /* TIOCSTI */, 0x541c /* TIOCLINUX */];

/// Socket families that exist inside; netlink is looked at closer.
const FAMILIES: &[u32] = &[libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32];

/// Netlink protocols that exist inside: routes, socket diagnosis, device events.
const NETLINK_PROTOCOLS: &[u32] = &[0, 4, 15];

/// Execution domains: Linux, its 32-bit shape, without address randomisation, and the question which one it is.
const PERSONALITIES: &[u32] = &[0, 0x0008, 0x0004_0000, 0x0004_0008, 0xffff_ffff];

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Refuse(i32),
    /// clone and unshare: the first argument holds flags, and none of these may be among them.
    Flags(u32),
    /// ioctl: not the terminal's keyboard.
    Ioctl,
    /// socket and socketpair: known families only.
    Socket,
    /// personality: the harmless ones.
    Personality,
}

/// System calls that reach into another process or make and shape namespaces: refused under `strict`, while under `mvp`
/// the kernel's own rules decide who may trace whom and who may mount where.
const NESTING: &[libc::c_long] = &[
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
];

/// System calls that are refused by every filter: what loads code into the kernel, configures mounts piece by piece,
/// opens by handle, keeps keys, watches the machine or sets the clock.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    457, // statmount
    458, // listmount
    467, // open_tree_attr
];

/// System calls that do not exist inside, so that libraries take their older way.
const ABSENT: &[libc::c_long] = &[
    libc::SYS_clone3, // its flags lie in memory, where a filter cannot look
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_uselib,
    libc::SYS__sysctl,
    174, // create_module
    177, // get_kernel_syms
    178, // query_module
    libc::SYS_sysfs,
    libc::SYS_ustat,
];

fn verdict(level: Level, number: u32) -> Verdict {
    let is = |calls: &[libc::c_long]| calls.contains(&libc::c_long::from(number));
    if number > NEWEST || UNASSIGNED.contains(&number) || is(ABSENT) {
        Verdict::Refuse(libc::ENOSYS)
    } else if is(REFUSED) || level == Level::Strict && is(NESTING) {
        Verdict::Refuse(libc::EPERM)
    } else if is(&[libc::SYS_clone]) {
        Verdict::Flags(match level {
            Level::Strict => CLONE_NAMESPACES,
            Level::Mvp => NETWORK_NAMESPACE,
        })
    } else if is(&[libc::SYS_unshare]) {
        Verdict::Flags(NETWORK_NAMESPACE | TIME_NAMESPACE)
    } else if is(&[libc::SYS_ioctl]) {
        Verdict::Ioctl
    } else if is(&[libc::SYS_socket, libc::SYS_socketpair]) {
        Verdict::Socket
    } else if is(&[libc::SYS_personality]) {
        Verdict::Personality
    } else {
        Verdict::Allow
    }
}

fn instruction(code: u16, jump_true: u8, jump_false: u8, operand: u32) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

fn load(offset: u32) -> Instruction {
    instruction(LOAD, 0, 0, offset)
}

/// Loads the lower half of an argument. All arguments looked at are 32 bits wide for the kernel.
fn load_argument(index: u32) -> Instruction {
    load(OFFSET_ARGUMENTS + index * 8)
}

fn allow() -> Instruction {
    instruction(RETURN, 0, 0, RETURN_ALLOW)
}

fn refuse(errno: i32) -> Instruction {
    instruction(RETURN, 0, 0, RETURN_ERRNO | errno.cast_unsigned())
}

/// Compares the loaded word with each of `values`; ends with `on_match` if one is equal and else falls off the end.
fn match_any(values: &[u32], on_match: Instruction, program: &mut Vec<Instruction>) {
    for &value in values {
        program.push(instruction(JUMP_IF_EQUAL, 0, 1, value));
        program.push(on_match);
    }
}

/// The instructions that end in the verdict.
fn block(verdict: Verdict) -> Vec<Instruction> {
    let mut program = Vec::new();
    match verdict {
        Verdict::Allow => program.push(allow()),
        Verdict::Refuse(errno) => program.push(refuse(errno)),
        Verdict::Flags(refused) => program.extend([
            load_argument(0),
            instruction(JUMP_IF_ANY_BIT, 0, 1, refused),
            refuse(libc::EPERM),
            allow(),
        ]),
        Verdict::Ioctl => {
            program.push(load_argument(1));
            match_any(REFUSED_REQUESTS, refuse(libc::EPERM), &mut program);
            program.push(allow());
        }
        Verdict::Socket => {
            program.push(load_argument(0));
            match_any(FAMILIES, allow(), &mut program);
            program.push(instruction(JUMP_IF_EQUAL, 1, 0, libc::AF_NETLINK.cast_unsigned()));
            program.push(refuse(libc::EAFNOSUPPORT));
            program.push(load_argument(2));
            match_any(NETLINK_PROTOCOLS, allow(), &mut program);
            program.push(refuse(libc::EPROTONOSUPPORT));
        }
        Verdict::Personality => {
            program.push(load_argument(0));
            match_any(PERSONALITIES, allow(), &mut program);
            program.push(refuse(libc::EPERM));
        }
    }
    program
}

/// Where the verdict changes: each entry holds from its number up to the next entry.
fn ranges(level: Level) -> Vec<(u32, Verdict)> {
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    for number in 0..=NEWEST + 1 {
        let verdict = verdict(level, number);
        if ranges.last().is_none_or(|&(_, last)| last != verdict) {
            ranges.push((number, verdict));
        }
    }
    ranges
}

/// Binary search over the ranges.
fn search(ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    if let [(_, verdict)] = ranges {
        return block(*verdict);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let pivot = high[0].0;
    let low = search(low);
    let mut program = Vec::new();
    // A conditional jump reaches 255 instructions, an unconditional one any number.
    if let Ok(distance) = u8::try_from(low.len()) {
        program.push(instruction(JUMP_IF_AT_LEAST, distance, 0, pivot));
    } else {
        let distance = u32::try_from(low.len()).expect("the program is shorter than 4096 instructions");
        program.push(instruction(JUMP_IF_AT_LEAST, 0, 1, pivot));
        program.push(instruction(JUMP, 0, 0, distance));
    }
    program.extend(low);
    program.extend(search(high));
    program
}

/// How much a filter refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Mvp,
    Strict,
}

/// The filters, compiled once for all machines.
#[derive(Debug)]
pub(super) struct Filters {
    mvp: Vec<Instruction>,
    strict: Vec<Instruction>,
}

impl Filters {
    /// Compiles them.
    pub(super) fn compile() -> Self {
        Self { mvp: filter(Level::Mvp), strict: filter(Level::Strict) }
    }

    /// The one for a machine; `None` where nothing is filtered.
    pub(super) fn of(&self, seccomp: Seccomp) -> Option<&[Instruction]> {
        match seccomp {
            Seccomp::Off => None,
            Seccomp::Mvp => Some(&self.mvp),
            Seccomp::Strict => Some(&self.strict),
        }
    }
}

/// A whole filter.
fn filter(level: Level) -> Vec<Instruction> {
    let mut program = vec![
        load(OFFSET_ARCHITECTURE),
        instruction(JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        refuse(libc::ENOSYS),
        load(OFFSET_NUMBER),
    ];
    program.extend(search(&ranges(level)));
    program
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
