//! A seccomp filter of the size that a real sandbox has: a deny list as a binary search over ranges of numbers.

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};

/// System calls that answer "not permitted".
const DENIED: &[libc::c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_syslog,
    libc::SYS_pivot_root,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_init_module,
    libc::SYS_delete_module,
    libc::SYS_quotactl,
    libc::SYS_clock_settime,
    libc::SYS_kexec_load,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_unshare,
    libc::SYS_perf_event_open,
    libc::SYS_open_by_handle_at,
    libc::SYS_setns,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_finit_module,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
];

/// Offset of the architecture in what a filter sees.
const ARCHITECTURE_OFFSET: u32 = 4;

/// `AUDIT_ARCH_X86_64` or `AUDIT_ARCH_AARCH64`.
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

/// The program.
pub(super) fn program() -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE_OFFSET),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, ARCHITECTURE),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(0),
    ];
    let denied: Vec<u32> = DENIED.iter().filter_map(|number| u32::try_from(*number).ok()).collect();
    let last = denied.iter().max().copied().unwrap_or_default();
    // Where the answer changes from one number to the next.
    let mut edges = vec![(0, ALLOW)];
    for number in 0..=last + 1 {
        let answer = if denied.contains(&number) { DENY } else { ALLOW };
        if edges.last().is_some_and(|(_, before)| *before != answer) {
            edges.push((number, answer));
        }
    }
    search(&edges, &mut program);
    program
}

fn search(edges: &[(u32, u32)], program: &mut Vec<sock_filter>) {
    let [(_, answer)] = edges else {
        let (low, high) = edges.split_at(edges.len() / 2);
        let jump = program.len();
        program.push(give(ALLOW));
        search(low, program);
        let distance = u8::try_from(program.len() - jump - 1).expect("the list is short enough for one jump");
        program[jump] = instruction(BPF_JMP | BPF_JGE | BPF_K, distance, 0, high[0].0);
        search(high, program);
        return;
    };
    program.push(give(*answer));
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset)
}

fn give(answer: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, 0, 0, answer)
}

fn instruction(code: u32, yes: u8, no: u8, value: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("codes are small"), jt: yes, jf: no, k: value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn answer(program: &[sock_filter], architecture: u32, number: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let step = &program[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { step.jt } else { step.jf });
            match u32::from(step.code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => {
                    value = if step.k == 0 { number } else { architecture }
                }
                code if code == BPF_JMP | BPF_JEQ | BPF_K => at += jump(value == step.k),
                code if code == BPF_JMP | BPF_JGE | BPF_K => at += jump(value >= step.k),
                _ => return step.k,
            }
        }
    }

    #[test]
    fn every_number_gets_its_answer() {
        let program = program();
        for number in 0..600 {
            let expected = if DENIED.contains(&libc::c_long::from(number)) { DENY } else { ALLOW };
            assert_eq!(answer(&program, ARCHITECTURE, number), expected, "{number}");
        }
        assert_eq!(answer(&program, 3, 0), libc::SECCOMP_RET_KILL_PROCESS);
    }
}
