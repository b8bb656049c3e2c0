//! The binary on a host with cgroup version 2 alone and the kernel of Debian 12, which is what most users have.
//!
//! A stock Debian kernel boots under QEMU with a root file system made here, emulated throughout, so that it needs no
//! hardware. The checks inside are `tests/guest/checks.sh`; this file builds the guest, boots it, and reads the serial
//! console.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags},
};
use sandhaus_tests::{binary, cache_dir, checkout, skip};

/// The guest ends by itself in a fraction of this; it only bounds a hang.
const BOOT_MAX: Duration = Duration::from_secs(300);

/// Every check that the guest makes. One that is missing from the console has not passed.
const CHECKS: &[&str] = &[
    "cgroup-version-2-only",
    "doctor",
    "run",
    "run-limits",
    "run-leaves-nothing",
    "serve",
    "create",
    "exec",
    "exec-keeps-state",
    "limits",
    "memory-bomb",
    "many-processes",
    "kill-and-adopt",
    "command-line",
    "delete",
    "stop",
    "leaves-nothing",
    "log",
];

#[test]
fn sessions_run_under_cgroup_v2_on_debians_kernel() {
    let name = "sessions_run_under_cgroup_v2_on_debians_kernel";
    if !has_program("qemu-system-x86_64") {
        return skip(name, "qemu-system-x86_64 is not installed");
    }
    if std::env::consts::ARCH != "x86_64" {
        return skip(name, "the guest is of another architecture than this machine");
    }
    let kernel = kernel();
    let folder = tempfile::Builder::new().prefix("sandhaus-guest-").tempdir().expect("make a folder");
    let root = folder.path().join("root.ext4");
    run(Command::new(guest("root.sh")).arg(binary::path()).arg(&root));

    let console = boot(&kernel, &root, &folder.path().join("console"));
    let verdicts = verdicts(&console);
    let wanted: BTreeMap<_, _> = CHECKS.iter().map(|check| (*check, "pass")).collect();
    assert_eq!(verdicts, wanted, "the guest's console:\n{console}");
    assert!(console.contains("GUEST-END 0"), "the checks did not come to their end:\n{console}");
}

/// The folder with kernel and initramfs, made by the first run.
fn kernel() -> PathBuf {
    // A change of the recipe makes another folder.
    let recipe: Vec<u8> = ["kernel.sh", "initramfs-init"]
        .iter()
        .flat_map(|file| fs::read(guest(file)).expect("read the recipe"))
        .collect();
    let checksum = recipe.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let folder = cache_dir().join(format!("guest-kernel-{checksum:016x}"));
    if !folder.exists() {
        run(Command::new(guest("kernel.sh")).arg(&folder));
    }
    folder
}

/// Boots the guest and returns what it printed, once it has switched itself off.
fn boot(kernel: &Path, root: &Path, console: &Path) -> String {
    let mut machine = Command::new("qemu-system-x86_64")
        // Never the processor's own virtualisation: that a device file opens does not mean that guests run.
        .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .arg("-kernel")
        .arg(kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(kernel.join("initramfs.cpio"))
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .arg("-drive")
        .arg(format!("file={},format=raw,if=none,id=root,cache=unsafe", root.display()))
        .args(["-device", "virtio-blk-pci,drive=root"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start QEMU");
    let pid = Pid::from_child(&machine);
    let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("watch QEMU");
    let patience = Timespec::try_from(BOOT_MAX).expect("a time that fits");
    let count = rustix::event::poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&patience));
    if count.expect("wait for QEMU") == 0 {
        machine.kill().expect("end QEMU");
    }
    let status = machine.wait().expect("reap QEMU");
    let mut errors = String::new();
    machine.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("read QEMU's errors");
    let printed = String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).replace('\r', "");
    assert!(status.success(), "QEMU ended with {status}: {errors}\nthe guest's console:\n{printed}");
    printed
}

/// What each check came to.
fn verdicts(console: &str) -> BTreeMap<&str, &str> {
    let lines = console.lines().filter_map(|line| line.strip_prefix("GUEST-CHECK "));
    lines.filter_map(|line| line.split_once(' ')).map(|(verdict, check)| (check, verdict)).collect()
}

#[test]
fn a_check_that_failed_or_is_missing_shows() {
    let console = "noise\nGUEST-CHECK pass one\nGUEST-CHECK fail two\n GUEST-CHECK pass three\n";
    assert_eq!(verdicts(console), BTreeMap::from([("one", "pass"), ("two", "fail")]));
}

#[test]
fn the_list_of_checks_is_that_of_the_guest() {
    let script = fs::read_to_string(guest("checks.sh")).expect("read the checks");
    let made: Vec<_> = script
        .lines()
        .filter_map(|line| line.strip_prefix("check "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(made, CHECKS);
}

fn guest(file: &str) -> PathBuf {
    checkout().join("tests/guest").join(file)
}

fn has_program(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(name).exists())
}

/// Runs a recipe; its errors are the test's.
#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}:\n{errors}", output.status);
}
