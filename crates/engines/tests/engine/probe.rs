//! Tries, from inside a sandbox, what must not work. Prints `NAME ERRNO` per attempt; 0 means that it worked.
//! Compiled by the tests on its own, static, without dependencies.

use std::{
    ffi::{CString, c_long},
    io::{Read, Write},
};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

fn report(name: &str, result: c_long) {
    let errno = if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 };
    println!("{name} {errno}");
}

macro_rules! attempt {
    ($name:literal, $number:expr $(, $argument:expr)*) => {
        // SAFETY: pointers given are valid or null; the calls are expected to be refused.
        report($name, unsafe { syscall($number as c_long $(, $argument as c_long)*) })
    };
}

fn open(path: &str, write: bool) {
    let opened = std::fs::OpenOptions::new().read(!write).write(write).open(path);
    let errno = match opened {
        // Some files open, but have nothing to say.
        Ok(mut file) if !write => match file.read(&mut [0; 16]) {
            Ok(0) => 61,
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        },
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    };
    println!("{}:{path} {errno}", if write { "write" } else { "read" });
}

fn main() {
    let root = CString::new("/").expect("no zero");
    let root = root.as_ptr();
    let block = [0_u64; 16];
    let null = 0;
    attempt!("mount", 165, root, root, root, 0, null);
    attempt!("umount2", 166, root, 0);
    attempt!("pivot_root", 155, root, root);
    attempt!("unshare_user", 272, 0x1000_0000);
    attempt!("unshare_mount", 272, 0x2_0000);
    attempt!("setns", 308, 0, 0);
    attempt!("clone_user", 56, 0x1000_0000 | 17, 0, 0, 0, 0);
    attempt!("clone3", 435, block.as_ptr(), 88);
    attempt!("ptrace", 101, 0, 0, 0, 0);
    attempt!("process_vm_readv", 310, 1, block.as_ptr(), 1, block.as_ptr(), 1, 0);
    attempt!("pidfd_getfd", 438, 0, 0, 0);
    attempt!("bpf", 321, 0, block.as_ptr(), 120);
    attempt!("userfaultfd", 323, 1);
    attempt!("perf_event_open", 298, block.as_ptr(), 0, -1, -1, 0);
    attempt!("io_uring_setup", 425, 8, block.as_ptr());
    attempt!("keyctl", 250, 0, -3, 1);
    attempt!("add_key", 248, root, root, root, 1, -3);
    attempt!("open_by_handle_at", 304, -100, block.as_ptr(), 0);
    attempt!("name_to_handle_at", 303, -100, root, block.as_ptr(), block.as_ptr(), 0);
    attempt!("kexec_load", 246, 0, 0, null, 0);
    attempt!("init_module", 175, null, 0, root);
    attempt!("fsopen", 430, root, 0);
    attempt!("open_tree", 428, -100, root, 1);
    attempt!("mount_setattr", 442, -100, root, 0, block.as_ptr(), 32);
    attempt!("statmount", 457, block.as_ptr(), block.as_ptr(), 0, 0);
    attempt!("syslog", 103, 3, block.as_ptr(), 8);
    attempt!("reboot", 169, 0, 0, 0, null);
    attempt!("vsock", 41, 40, 1, 0);
    attempt!("packet", 41, 17, 3, 0);
    attempt!("alg", 41, 38, 5, 0);
    attempt!("netfilter", 41, 16, 3, 12);
    attempt!("tiocsti", 16, 0, 0x5412, root);
    attempt!("unknown", 9999);
    attempt!("x32_getpid", 0x4000_0000 + 39);
    let block_device = CString::new("/tmp/block").expect("no zero");
    attempt!("mknod_block", 133, block_device.as_ptr(), 0o060_666, 0xfe00);
    for path in ["/proc/1/mem", "/proc/1/environ", "/proc/1/maps", "/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        open(path, false);
    }
    for path in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/dev/kmsg"] {
        open(path, true);
    }
    for link in ["/proc/1/root", "/proc/1/cwd", "/proc/1/exe", "/proc/1/fd"] {
        let errno = match std::fs::read_dir(link) {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        };
        println!("enter:{link} {errno}");
    }
    let _ = std::io::stdout().flush();
}
