//! How much of the machine is used, and how much there is: by the cgroup that limits the agent where one can be seen, by
//! the processes it can see as the first of its own kind, else of the whole machine.
//!
//! ```text
//!   own cgroup, then those above it, up to the mount: the nearest with a limit      version 1 or 2
//!   else, as PID 1 of a process namespace: the sum over all processes               limits from the boot document
//!   else: /proc/stat, /proc/meminfo
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sandhaus_protocol::{boot::Limits, system::MemoryStats};

/// No limit of version 1 is near this: it says "none" with the greatest multiple of a page.
const UNLIMITED: u64 = 1 << 60;

/// Whose use is counted where no cgroup tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All processes that can be seen: they are those of the sandbox.
    Processes,
    /// The machine.
    Machine,
}

/// Where use is read.
#[derive(Debug)]
pub(crate) struct Gauge {
    memory: Option<Group>,
    processor: Option<Group>,
    scope: Scope,
    limits: Limits,
}

/// A cgroup that limits something.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Space of a file system in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// All of it.
    pub(crate) total: u64,
    /// What is written.
    pub(crate) used: u64,
    /// What an ordinary user can still write.
    pub(crate) free: u64,
}

impl Gauge {
    /// Finds the cgroups that count here.
    pub(crate) fn find(scope: Scope, limits: Limits) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let nearest = |controller, limited: fn(&Group) -> bool| {
            chains(&mounts, &own, controller).into_iter().flatten().find(limited)
        };
        Self {
            memory: nearest("memory", |group| group.memory_limit().is_some()),
            processor: nearest("cpu", |group| group.processors().is_some()),
            scope,
            limits,
        }
    }

    /// Processors that may be used, in parts of one too.
    pub(crate) fn processors(&self) -> f64 {
        let machine = std::thread::available_parallelism()
            .map_or(1.0, |count| f64::from(u32::try_from(count.get()).unwrap_or(u32::MAX)));
        let told = self.limits.cpu_millis.map(|millis| f64::from(millis) / 1000.0);
        let limit = self.processor.as_ref().and_then(Group::processors).or(told);
        limit.filter(|limit| *limit > 0.0).map_or(machine, |limit| limit.min(machine))
    }

    /// Processor time used so far.
    pub(crate) fn processor_time(&self) -> Duration {
        let of_group = self.processor.as_ref().and_then(Group::processor_time);
        of_group.unwrap_or_else(|| match self.scope {
            Scope::Processes => ticks(processes().map(|process| process.ticks).sum()),
            Scope::Machine => {
                ticks(busy_ticks(&fs::read_to_string("/proc/stat").unwrap_or_default()).unwrap_or(0))
            }
        })
    }

    /// Memory as it stands.
    pub(crate) fn memory(&self) -> MemoryStats {
        let machine = machine_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
        if let Some(stats) = self.memory.as_ref().and_then(|group| group.memory(&machine)) {
            return stats;
        }
        match self.scope {
            Scope::Machine => machine,
            Scope::Processes => {
                let (mut used, mut swap) = (0, 0);
                for process in processes() {
                    let status =
                        fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
                    let amount = |name| amount(&status, name);
                    // What is not of files; without these lines, all that is there.
                    used += match amount("RssAnon:") {
                        Some(anonymous) => anonymous + amount("RssShmem:").unwrap_or(0),
                        None => amount("VmRSS:").unwrap_or(0),
                    };
                    swap += amount("VmSwap:").unwrap_or(0);
                }
                let total = self.limits.memory_bytes.map_or(machine.total, |limit| limit.min(machine.total));
                within(total, used.min(total), 0, swap, &machine)
            }
        }
    }
}

/// Memory with a limit: never more available than the machine itself has.
fn within(total: u64, used: u64, cached: u64, swap: u64, machine: &MemoryStats) -> MemoryStats {
    let rest = total.saturating_sub(used);
    MemoryStats {
        total,
        free: rest.saturating_sub(cached).min(machine.free),
        available: rest.min(machine.available),
        used,
        cached,
        swap,
    }
}

impl Group {
    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(name)).ok()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.read(name)?.trim().parse().ok()
    }

    fn memory_limit(&self) -> Option<u64> {
        let name = match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        self.number(name).filter(|limit| *limit < UNLIMITED)
    }

    fn memory(&self, machine: &MemoryStats) -> Option<MemoryStats> {
        let total = self.memory_limit()?.min(machine.total);
        let stat = self.read("memory.stat")?;
        let field = |name| field(&stat, name).unwrap_or(0);
        let (charged, cached, idle, swap) = match self.version {
            Version::One => (
                self.number("memory.usage_in_bytes")?,
                field("total_cache").saturating_sub(field("total_shmem")),
                field("total_inactive_file"),
                field("total_swap"),
            ),
            Version::Two => (
                self.number("memory.current")?,
                field("file").saturating_sub(field("shmem")),
                field("inactive_file"),
                self.number("memory.swap.current").unwrap_or(0),
            ),
        };
        Some(within(total, charged.saturating_sub(idle).min(total), cached, swap, machine))
    }

    /// How many processors its limit allows.
    fn processors(&self) -> Option<f64> {
        let (quota, period): (u64, u64) = match self.version {
            Version::One => {
                let period = self.number("cpu.cfs_period_us")?;
                // It says -1 for none.
                (self.number("cpu.cfs_quota_us")?, period)
            }
            Version::Two => {
                let text = self.read("cpu.max")?;
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.parse().ok()?, period.parse().ok()?)
            }
        };
        let thousandths = quota.checked_mul(1000)?.checked_div(period)?;
        u32::try_from(thousandths).ok().filter(|count| *count > 0).map(|count| f64::from(count) / 1000.0)
    }

    fn processor_time(&self) -> Option<Duration> {
        match self.version {
            Version::One => self.number("cpuacct.usage").map(Duration::from_nanos),
            Version::Two => field(&self.read("cpu.stat")?, "usage_usec").map(Duration::from_micros),
        }
    }
}

/// The agent's cgroups of each hierarchy with this controller, from its own upwards.
fn chains(mounts: &str, own: &str, controller: &str) -> Vec<Vec<Group>> {
    let mut chains = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<&str>, Vec<&str>) = (left.split(' ').collect(), right.split(' ').collect());
        let ([_, _, _, root, mount, ..], [kind, _, options]) = (left.as_slice(), right.as_slice()) else {
            continue;
        };
        let version = match *kind {
            "cgroup2" => Version::Two,
            "cgroup" if options.split(',').any(|option| option == controller) => Version::One,
            _ => continue,
        };
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let is_it = match version {
                Version::One => controllers.split(',').any(|name| name == controller),
                Version::Two => controllers.is_empty(),
            };
            is_it.then_some(path)
        });
        let Some(path) = path else { continue };
        // What is mounted may begin below the top, as in containers; what leads out of it is not to be seen here.
        let below = match *root {
            "/" => path,
            root => path.strip_prefix(root).unwrap_or("/"),
        };
        let mount = Path::new(*mount);
        let leaf = mount.join(below.trim_start_matches('/').trim_start_matches("../"));
        let chain = leaf.ancestors().take_while(|folder| folder.starts_with(mount));
        chains.push(chain.map(|folder| Group { folder: folder.to_owned(), version }).collect());
    }
    chains
}

/// The number after a name and a blank at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// An amount in KiB after a name that ends with a colon, in bytes.
fn amount(text: &str, name: &str) -> Option<u64> {
    let number = |line: &str| line.split_ascii_whitespace().next()?.parse::<u64>().ok();
    text.lines().find_map(|line| number(line.strip_prefix(name)?)).map(|kib| kib * 1024)
}

fn machine_memory(meminfo: &str) -> MemoryStats {
    let amount = |name| amount(meminfo, name).unwrap_or(0);
    let (total, free) = (amount("MemTotal:"), amount("MemFree:"));
    let available = amount("MemAvailable:").max(free).min(total);
    MemoryStats {
        total,
        free,
        available,
        used: total - available,
        cached: (amount("Cached:") + amount("Buffers:") + amount("SReclaimable:"))
            .saturating_sub(amount("Shmem:")),
        swap: amount("SwapTotal:").saturating_sub(amount("SwapFree:")),
    }
}

/// Ticks of a second, as the kernel tells them to programs on every architecture that an agent is built for. It is not asked: a
/// kernel before 6.4 answers by a file that a process without rights cannot open, if that is as closed as the agent.
const TICKS_PER_SECOND: u64 = 100;

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count.saturating_mul(1000 / TICKS_PER_SECOND))
}

/// Ticks of all processors that were not idle: user, nice, system, irq, softirq and stolen by no one here.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _wait, irq, soft, ..] = fields.as_slice() else { return None };
    Some(user + nice + system + irq + soft)
}

struct Process {
    pid: u32,
    /// Its own and those of children it has waited for.
    ticks: u64,
}

fn processes() -> impl Iterator<Item = Process> {
    let folder = fs::read_dir("/proc").into_iter().flatten().flatten();
    folder.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        parse_process(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    })
}

/// Reads the fields after the name, which is in parentheses and may hold anything.
fn parse_process(pid: u32, text: &str) -> Option<Process> {
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = (11..=14).map(number).sum::<Option<u64>>()?;
    Some(Process { pid, ticks })
}

/// Space of the file system with this directory.
pub(crate) fn space(path: &str) -> std::io::Result<Space> {
    let stat = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space {
        total: bytes(stat.f_blocks),
        used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        free: bytes(stat.f_bavail),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(files: &[(&str, &str)], version: Version) -> (tempfile::TempDir, Group) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("write");
        }
        let group = Group { folder: folder.path().to_owned(), version };
        (folder, group)
    }

    #[test]
    fn own_cgroups_are_found_from_the_inside_out() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
                      31 23 0:27 /docker/x /sys/fs/cgroup/memory rw master:1 - cgroup cgroup rw,memory\n\
                      32 23 0:28 / /proc rw - proc proc rw\n";
        let own = "5:cpu,cpuacct:/\n4:memory:/docker/x/inner\n0::/a/b\n";
        let chains = chains(mounts, own, "memory");
        let folders: Vec<Vec<&str>> = chains
            .iter()
            .map(|chain| chain.iter().filter_map(|group| group.folder.to_str()).collect())
            .collect();
        let unified = "/sys/fs/cgroup/unified";
        assert_eq!(
            folders,
            [
                vec![&*format!("{unified}/a/b"), &format!("{unified}/a"), unified],
                vec!["/sys/fs/cgroup/memory/inner", "/sys/fs/cgroup/memory"],
            ]
        );
        assert_eq!((chains[0][0].version, chains[1][0].version), (Version::Two, Version::One));
    }

    #[test]
    fn groups_of_both_versions_are_read() {
        let machine =
            MemoryStats { total: 1 << 40, free: 1 << 39, available: 1 << 39, ..MemoryStats::default() };
        let (_kept, two) = group(
            &[
                ("memory.max", "1000000\n"),
                ("memory.current", "600000\n"),
                ("memory.stat", "anon 1\nfile 300000\nshmem 100000\ninactive_file 150000\n"),
                ("memory.swap.current", "7\n"),
                ("cpu.max", "150000 100000\n"),
                ("cpu.stat", "usage_usec 2500000\nuser_usec 1\n"),
            ],
            Version::Two,
        );
        let expected = MemoryStats {
            total: 1_000_000,
            free: 350_000,
            available: 550_000,
            used: 450_000,
            cached: 200_000,
            swap: 7,
        };
        assert_eq!(two.memory(&machine), Some(expected));
        assert_eq!(two.processors(), Some(1.5));
        assert_eq!(two.processor_time(), Some(Duration::from_millis(2500)));
        let (_kept, one) = group(
            &[
                ("memory.limit_in_bytes", "1000000\n"),
                ("memory.usage_in_bytes", "600000\n"),
                (
                    "memory.stat",
                    "cache 0\ntotal_cache 300000\ntotal_shmem 100000\ntotal_inactive_file 150000\ntotal_swap 7\n",
                ),
                ("cpu.cfs_quota_us", "150000\n"),
                ("cpu.cfs_period_us", "100000\n"),
                ("cpuacct.usage", "2500000000\n"),
            ],
            Version::One,
        );
        assert_eq!(one.memory(&machine), Some(expected));
        assert_eq!((one.processors(), one.processor_time()), (Some(1.5), Some(Duration::from_millis(2500))));
    }

    #[test]
    fn groups_without_limits_are_passed_over() {
        let (_kept, two) = group(&[("memory.max", "max\n"), ("cpu.max", "max 100000\n")], Version::Two);
        assert_eq!((two.memory_limit(), two.processors()), (None, None));
        let files = [
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("cpu.cfs_quota_us", "-1\n"),
            ("cpu.cfs_period_us", "100000\n"),
        ];
        let (_kept, one) = group(&files, Version::One);
        assert_eq!((one.memory_limit(), one.processors()), (None, None));
    }

    #[test]
    fn the_machine_and_its_processes_are_read() {
        let text = "MemTotal: 1000 kB\nMemFree: 200 kB\nMemAvailable: 600 kB\nBuffers: 10 kB\nCached: 300 kB\n\
                    SwapCached: 5 kB\nShmem: 20 kB\nSReclaimable: 30 kB\nSwapTotal: 50 kB\nSwapFree: 40 kB\n";
        let memory = machine_memory(text);
        assert_eq!((memory.total, memory.used, memory.available), (1000 << 10, 400 << 10, 600 << 10));
        assert_eq!((memory.cached, memory.swap), (320 << 10, 10 << 10));
        assert_eq!(busy_ticks("cpu  1 2 4 1000 1000 8 16 5 0 0\ncpu0 1"), Some(31));
        let line = "42 (a) R 1 (b) S 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let process = parse_process(42, line).expect("a valid line");
        assert_eq!(process.ticks, 5 + 6 + 7 + 8);
        assert_eq!(ticks(process.ticks), Duration::from_millis(260));
        let gauge = Gauge::find(Scope::Processes, Limits::default());
        assert!(gauge.memory().used > 0 && gauge.memory().used <= gauge.memory().total);
        assert!(gauge.processors() > 0.0);
    }
}
