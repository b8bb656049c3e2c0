//! What a machine may do and see, as tables: capabilities, masked and read-only paths, sizes.

use rustix::thread::CapabilitySet;
use sandhaus_sandbox::types::SecurityProfile;

/// Hidden below `/proc` and `/sys`: what anybody could read or write there that is the host's business alone. Files that
/// only the host's root may open, and the mount points of other kernel file systems (empty in a fresh `/sys`), need no
/// hiding. What a host does not have is left out when the launcher starts.
pub(super) const MASKED: &[&str] = &[
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/sysrq-trigger",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
];

/// Read-only below `/proc`; all of `/sys` is.
pub(super) const READ_ONLY: &[&str] = &["proc/bus", "proc/fs", "proc/irq", "proc/sys"];

/// Most bytes that the writable places of a read-only root (`/tmp`, `/run`, the homes, `/dev/shm`) hold together.
const SCRATCH_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Most bytes of `/dev/shm` under a writable root.
const SHARED_MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Most files in either.
const INODES_MAX: u64 = 256 * 1024;

/// Of the memory limit, this part may lie in files.
const MEMORY_PART: u64 = 2;

/// Bytes of the memory limit for each file.
const MEMORY_BYTES_PER_INODE: u64 = 8 * 1024;

/// How much a file system that lives in memory may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scratch {
    /// Bytes.
    pub(super) bytes: u64,
    /// Files.
    pub(super) inodes: u64,
}

impl Scratch {
    /// The writable places of a read-only root.
    pub(super) fn of_root(memory_bytes: u64) -> Self {
        Self::within(SCRATCH_BYTES_MAX, memory_bytes)
    }

    /// Shared memory, under a writable root.
    pub(super) fn of_shared_memory(memory_bytes: u64) -> Self {
        Self::within(SHARED_MEMORY_BYTES_MAX, memory_bytes)
    }

    /// Such files count against the memory limit (zero: none) and outlive the processes that fill them: a part of the
    /// limit is out of their reach, so that whoever fills them is told, and the machine does not end of it.
    fn within(bytes_max: u64, memory_bytes: u64) -> Self {
        match memory_bytes {
            0 => Self { bytes: bytes_max, inodes: INODES_MAX },
            limit => Self {
                bytes: bytes_max.min(limit / MEMORY_PART),
                inodes: INODES_MAX.min(limit / MEMORY_BYTES_PER_INODE),
            },
        }
    }
}

/// Soft limit of open files, where the host's hard limit allows it.
pub(super) const OPEN_FILES_MAX: u64 = 1 << 20;

/// Group of terminals, by the custom of all distributions.
pub(super) const TTY_GROUP: u32 = 5;

/// The highest number a capability can have: each that this kernel knows and that is not kept is dropped by number.
pub(super) const CAPABILITY_MAX: u32 = 63;

/// The most that any process of a machine can have, within its own user namespace only. `strict`: what the agent
/// needs to become the workload and to serve its files; the workload itself has none. `container`: what container
/// engines usually give, without making device nodes, and never CAP_SYS_PTRACE or CAP_SYS_ADMIN.
pub(super) fn bounding_set(security: SecurityProfile) -> CapabilitySet {
    let agent = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::KILL
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETPCAP;
    match security {
        SecurityProfile::Strict => agent,
        SecurityProfile::Container => {
            agent
                | CapabilitySet::SETFCAP
                | CapabilitySet::SYS_CHROOT
                | CapabilitySet::NET_BIND_SERVICE
                | CapabilitySet::NET_RAW
                | CapabilitySet::AUDIT_WRITE
        }
    }
}
