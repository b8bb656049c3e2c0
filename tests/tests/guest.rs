//! The binary on a host with cgroup version 2 alone and the kernel of Debian 12, which is what most users have: by itself,
//! and as a service of systemd with the shipped units.
//!
//! A stock Debian kernel boots under QEMU with a root file system made here, emulated throughout, so that it needs no
//! hardware. The checks inside are `tests/guest/checks.sh` and `tests/guest/service-checks.sh`; this file builds the
//! guests, boots them, and reads their serial consoles.
//!
//! [`agent`] has the agent in machines of its own, with the same kernel.

#[path = "guest/agent.rs"]
mod agent;

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags},
};
use sandhaus_tests::{binary, cache_dir, checkout, skip};

/// The guest ends by itself in a fraction of this; it only bounds a hang.
const BOOT_MAX: Duration = Duration::from_secs(600);

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

/// The same of the guest with systemd.
const SERVICE_CHECKS: &[&str] = &[
    "units-verify",
    "units-confined",
    "service-start",
    "service-create",
    "service-cgroups",
    "service-exec",
    "service-limits",
    "service-memory-bomb",
    "service-many-processes",
    "service-restart",
    "service-reload",
    "service-kill",
    "service-watchdog",
    "service-stop",
    "service-start-again",
    "service-log",
    "service-end-all",
    "service-after-end",
    "container-start",
    "container-health",
    "container-key",
    "container-session",
    "container-restart",
    "container-end",
];

#[test]
fn sessions_run_under_cgroup_v2_on_debians_kernel() {
    if !can_boot("sessions_run_under_cgroup_v2_on_debians_kernel") {
        return;
    }
    passes(CHECKS, |root| run(Command::new(guest("root.sh")).arg(binary::path()).arg(root)));
}

#[test]
fn sessions_outlive_their_server_under_systemd() {
    if !can_boot("sessions_outlive_their_server_under_systemd") {
        return;
    }
    // What Debian's packages hold is kept; a change of the recipe fetches them anew.
    let cache = cached("guest-tree", &["tree.sh"]);
    let recipe = guest("service-root.sh");
    passes(SERVICE_CHECKS, |root| run(Command::new(recipe).arg(cache).arg(binary::path()).arg(root)));
}

fn can_boot(name: &str) -> bool {
    if !has_program("qemu-system-x86_64") {
        skip(name, "qemu-system-x86_64 is not installed");
        return false;
    }
    if std::env::consts::ARCH != "x86_64" {
        skip(name, "the guest is of another architecture than this machine");
        return false;
    }
    true
}

/// Boots a guest from the root that `make_root` makes; each of its checks must pass, and no other be made.
fn passes(checks: &[&str], make_root: impl FnOnce(&Path)) {
    let kernel = kernel();
    let folder = tempfile::Builder::new().prefix("sandhaus-guest-").tempdir().expect("make a folder");
    let root = folder.path().join("root.ext4");
    make_root(&root);

    let console = boot(kernel, &root, &folder.path().join("console"));
    let verdicts = verdicts(&console);
    let wanted: BTreeMap<_, _> = checks.iter().map(|check| (*check, "pass")).collect();
    assert_eq!(verdicts, wanted, "the guest's console:\n{console}");
    assert!(console.contains("GUEST-END 0"), "the checks did not come to their end:\n{console}");
}

/// The folder with kernel and initramfs, made by the first run for all guests.
fn kernel() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = cached("guest-kernel", &["kernel.sh", "initramfs-init"]);
        if !folder.exists() {
            run(Command::new(guest("kernel.sh")).arg(&folder));
        }
        folder
    })
}

/// A folder for what is made by these files of a recipe; a change of them makes it another folder.
fn cached(name: &str, recipe: &[&str]) -> PathBuf {
    let recipe: Vec<u8> =
        recipe.iter().flat_map(|file| fs::read(guest(file)).expect("read the recipe")).collect();
    let checksum = recipe.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    cache_dir().join(format!("{name}-{checksum:016x}"))
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
        // The timer is known to work; a busy host makes the kernel's own test of it fail.
        .args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"])
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
fn the_lists_of_checks_are_those_of_the_guests() {
    for (file, checks) in [("checks.sh", CHECKS), ("service-checks.sh", SERVICE_CHECKS)] {
        let script = fs::read_to_string(guest(file)).expect("read the checks");
        let made: Vec<_> = script
            .lines()
            .filter_map(|line| line.strip_prefix("check "))
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(made, checks, "{file}");
    }
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
