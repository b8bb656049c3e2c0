//! The filter, run instruction by instruction over every call, and once by the kernel.

use super::*;

const LEVELS: [Level; 2] = [Level::Mvp, Level::Strict];

/// What the kernel hands to the filter.
struct Call {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

/// Runs classic BPF as the kernel does.
fn run(program: &[Instruction], call: &Call) -> u32 {
    let word = |offset: u32| match offset {
        OFFSET_NUMBER => call.number,
        OFFSET_ARCHITECTURE => call.architecture,
        _ => {
            let at = offset - OFFSET_ARGUMENTS;
            let argument = call.arguments[(at / 8) as usize];
            if at.is_multiple_of(8) { (argument & 0xffff_ffff) as u32 } else { (argument >> 32) as u32 }
        }
    };
    let mut accumulator = 0;
    let mut counter = 0;
    loop {
        let Instruction { code, jump_true, jump_false, operand } = program[counter];
        counter += 1;
        let mut branch = |holds: bool| counter += usize::from(if holds { jump_true } else { jump_false });
        match code {
            LOAD => accumulator = word(operand),
            JUMP => counter += operand as usize,
            JUMP_IF_EQUAL => branch(accumulator == operand),
            JUMP_IF_AT_LEAST => branch(accumulator >= operand),
            JUMP_IF_ANY_BIT => branch(accumulator & operand != 0),
            RETURN => return operand,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn call(number: libc::c_long, arguments: &[u64]) -> u32 {
    call_under(Level::Strict, number, arguments)
}

fn call_under(level: Level, number: libc::c_long, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let number = u32::try_from(number).expect("numbers are small");
    run(&filter(level), &Call { architecture: AUDIT_ARCH_X86_64, number, arguments: all })
}

fn errno(errno: i32) -> u32 {
    RETURN_ERRNO | errno.cast_unsigned()
}

#[test]
fn every_number_gets_the_verdict_of_the_table() {
    for level in LEVELS {
        let program = filter(level);
        for number in (0..2048).chain([0x3fff_ffff, 0x4000_0000, 0x4000_0014, 0x7fff_ffff, 0xffff_ffff]) {
            let result = run(&program, &Call { architecture: AUDIT_ARCH_X86_64, number, arguments: [0; 6] });
            let expected = match verdict(level, number) {
                Verdict::Refuse(code) => errno(code),
                // With arguments of zero these are allowed, but for a socket of no family.
                Verdict::Allow | Verdict::Flags(_) | Verdict::Ioctl | Verdict::Personality => RETURN_ALLOW,
                Verdict::Socket => errno(libc::EAFNOSUPPORT),
            };
            assert_eq!(result, expected, "{level:?}: call {number}");
        }
    }
}

#[test]
fn other_architectures_and_the_x32_abi_do_not_exist() {
    const AUDIT_ARCH_I386: u32 = 0x4000_0003;
    for level in LEVELS {
        let program = filter(level);
        for number in 0..=NEWEST {
            let foreign = Call { architecture: AUDIT_ARCH_I386, number, arguments: [0; 6] };
            assert_eq!(run(&program, &foreign), errno(libc::ENOSYS), "{level:?}: i386 call {number}");
            let number = number | 0x4000_0000;
            let x32 = Call { architecture: AUDIT_ARCH_X86_64, number, arguments: [0; 6] };
            assert_eq!(run(&program, &x32), errno(libc::ENOSYS), "{level:?}: x32 call {number}");
        }
    }
}

#[test]
fn the_calls_of_the_contract_are_refused() {
    for number in [
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_ptrace,
        libc::SYS_kexec_load,
        libc::SYS_open_by_handle_at,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_setns,
        libc::SYS_unshare,
    ] {
        assert_eq!(call(number, &[]), errno(libc::EPERM), "call {number}");
    }
    assert_eq!(call(libc::SYS_clone3, &[]), errno(libc::ENOSYS));
}

#[test]
fn the_middle_level_allows_tracing_and_nesting_but_nothing_of_the_kernel_s_own() {
    let mvp = |number, arguments: &[u64]| call_under(Level::Mvp, number, arguments);
    for number in NESTING {
        assert_eq!(call(*number, &[]), errno(libc::EPERM), "strict: call {number}");
        assert_eq!(mvp(*number, &[]), RETURN_ALLOW, "mvp: call {number}");
    }
    for number in [
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_open_by_handle_at,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_fsconfig,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_mount_setattr,
        libc::SYS_swapon,
        libc::SYS_reboot,
        libc::SYS_syslog,
    ] {
        assert_eq!(mvp(number, &[]), errno(libc::EPERM), "call {number}");
    }
    for number in [libc::SYS_clone3, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter] {
        assert_eq!(mvp(number, &[]), errno(libc::ENOSYS), "call {number}");
    }
    for bit in 0..32 {
        let flag = 1_u32 << bit;
        let refused = |flags: u32| if flag & flags == 0 { RETURN_ALLOW } else { errno(libc::EPERM) };
        assert_eq!(mvp(libc::SYS_clone, &[u64::from(flag)]), refused(0x4000_0000), "clone {flag:#x}");
        assert_eq!(mvp(libc::SYS_unshare, &[u64::from(flag)]), refused(0x4000_0080), "unshare {flag:#x}");
    }
    // What is refused by its arguments stays refused.
    assert_eq!(mvp(libc::SYS_socket, &[libc::AF_VSOCK as u64, 1, 0]), errno(libc::EAFNOSUPPORT));
    assert_eq!(mvp(libc::SYS_socket, &[libc::AF_NETLINK as u64, 3, 12]), errno(libc::EPROTONOSUPPORT));
    assert_eq!(mvp(libc::SYS_ioctl, &[0, 0x5412]), errno(libc::EPERM));
}

#[test]
fn each_level_has_its_filter() {
    let filters = Filters::compile();
    assert_eq!(filters.of(Seccomp::Off), None);
    assert_eq!(filters.of(Seccomp::Mvp), Some(&*filter(Level::Mvp)));
    assert_eq!(filters.of(Seccomp::Strict), Some(&*filter(Level::Strict)));
}

#[test]
fn clone_makes_threads_and_processes_but_no_namespaces() {
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_FS) as u64;
    assert_eq!(call(libc::SYS_clone, &[thread]), RETURN_ALLOW);
    assert_eq!(call(libc::SYS_clone, &[libc::SIGCHLD as u64]), RETURN_ALLOW);
    for bit in 0..32 {
        let flag = 1_u32 << bit;
        let expected = if flag & CLONE_NAMESPACES == 0 { RETURN_ALLOW } else { errno(libc::EPERM) };
        assert_eq!(call(libc::SYS_clone, &[u64::from(flag | 17)]), expected, "flag {flag:#x}");
    }
    assert_eq!(CLONE_NAMESPACES, 0x7e02_0000);
}

#[test]
fn sockets_of_known_families_only() {
    for family in 0..64_u64 {
        let expected = match family {
            1 | 2 | 10 | 16 => RETURN_ALLOW,
            _ => errno(libc::EAFNOSUPPORT),
        };
        assert_eq!(call(libc::SYS_socket, &[family, 1, 0]), expected, "family {family}");
        // The kernel reads an int: what stands above it must not slip a family past.
        assert_eq!(
            call(libc::SYS_socket, &[family | 1 << 32, 1, 0]),
            expected,
            "family {family} with high bits"
        );
    }
    for protocol in 0..32_u64 {
        let expected = match protocol {
            0 | 4 | 15 => RETURN_ALLOW,
            _ => errno(libc::EPROTONOSUPPORT),
        };
        assert_eq!(call(libc::SYS_socket, &[16, 3, protocol]), expected, "netlink protocol {protocol}");
    }
}

#[test]
fn terminal_injection_and_odd_personalities_are_refused() {
    for request in [0x5412_u64, 0x541c, 0xdead_0000_5412] {
        assert_eq!(call(libc::SYS_ioctl, &[0, request]), errno(libc::EPERM), "request {request:#x}");
    }
    assert_eq!(call(libc::SYS_ioctl, &[0, 0x5413]), RETURN_ALLOW);
    assert_eq!(call(libc::SYS_personality, &[0xffff_ffff]), RETURN_ALLOW);
    assert_eq!(call(libc::SYS_personality, &[0x0004_0000]), RETURN_ALLOW);
    assert_eq!(call(libc::SYS_personality, &[0x0040_0000 /* READ_IMPLIES_EXEC */]), errno(libc::EPERM));
}

#[test]
fn every_path_of_the_program_ends_in_a_return() {
    for level in LEVELS {
        check_paths(&filter(level));
    }
}

fn check_paths(program: &[Instruction]) {
    assert!(program.len() <= 512, "{} instructions are checked by the kernel at each start", program.len());
    for (at, instruction) in program.iter().enumerate() {
        let targets: Vec<usize> = match instruction.code {
            RETURN => vec![],
            JUMP => vec![at + 1 + instruction.operand as usize],
            LOAD => vec![at + 1],
            _ => vec![
                at + 1 + usize::from(instruction.jump_true),
                at + 1 + usize::from(instruction.jump_false),
            ],
        };
        assert!(targets.iter().all(|&target| target < program.len()), "instruction {at} leaves the program");
    }
}
