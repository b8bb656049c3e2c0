//! What the runner's API needs to know of this host: which engine runs which class of sandboxes, and how busy it is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use sandhaus_gateway::{HostLoad, Origin, RunnerConfig, SandboxClass};
use sandhaus_sandbox::EngineName;

use crate::{config::Config, domain};

/// Classes of sandboxes, as control planes name them.
const CONTAINER: &str = "container";
const MACHINE_CLASSES: [&str; 2] = ["linux-vm", "vm"];

/// Where the kernel tells how busy it is.
const LOAD: &str = "/proc/loadavg";
const TIMES: &str = "/proc/stat";
const MEMORY: &str = "/proc/meminfo";

/// What the runner's API is told.
pub(crate) fn config(config: &Config) -> RunnerConfig {
    let class = |engine: &str, origin| SandboxClass { engine: EngineName(engine.to_owned()), origin };
    let mut classes = BTreeMap::from([(CONTAINER.to_owned(), class(domain::NAMESPACE, Origin::Registry))]);
    classes.extend(MACHINE_CLASSES.map(|name| (name.to_owned(), class(domain::QEMU, Origin::Store))));
    let host = Host { data_dir: config.data_dir.clone(), last: Mutex::default() };
    RunnerConfig {
        api_key: config.api_key.as_ref().map(|key| key.reveal().to_owned()),
        classes,
        shell: config.shell,
        seccomp: config.seccomp,
        load: Arc::new(move || host.load()),
    }
}

/// A host that is looked at from time to time.
struct Host {
    data_dir: PathBuf,
    /// Processor times at the last look, or since the host started.
    last: Mutex<ProcessorTimes>,
}

/// Time that processors have spent, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ProcessorTimes {
    busy: u64,
    all: u64,
}

impl Host {
    /// How busy it is; zero for what cannot be read.
    fn load(&self) -> HostLoad {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        HostLoad {
            cpu_load_average: first_number(&read(LOAD)),
            cpu_percent: processor_times(&read(TIMES)).map_or(0.0, |times| self.since_last(times)),
            memory_percent: memory_percent(&read(MEMORY)),
            disk_percent: disk_percent(&self.data_dir),
        }
    }

    fn since_last(&self, now: ProcessorTimes) -> f64 {
        // One value, always whole.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *last, now);
        percent(now.busy.saturating_sub(before.busy), now.all.saturating_sub(before.all))
    }
}

fn first_number(text: &str) -> f64 {
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// Of the line of all processors: user, nice, system, idle, waiting, interrupts, soft interrupts, stolen.
fn processor_times(text: &str) -> Option<ProcessorTimes> {
    const COUNTED: usize = 8;
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u64> =
        line.split_whitespace().take(COUNTED).filter_map(|word| word.parse().ok()).collect();
    let [_, _, _, idle, waiting, ..] = times.as_slice() else { return None };
    let all = times.iter().sum();
    Some(ProcessorTimes { busy: all - idle - waiting, all })
}

fn memory_percent(text: &str) -> f64 {
    let kibibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    match (kibibytes("MemTotal:"), kibibytes("MemAvailable:")) {
        (Some(total), Some(available)) => percent(total.saturating_sub(available), total),
        _ => 0.0,
    }
}

fn disk_percent(path: &Path) -> f64 {
    rustix::fs::statvfs(path)
        .map_or(0.0, |disk| percent(disk.f_blocks.saturating_sub(disk.f_bavail), disk.f_blocks))
}

#[expect(clippy::cast_precision_loss, reason = "for people, and far from the limit")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_is_understood() {
        assert_eq!(first_number("0.25 0.5 1.0 1/2 3\n"), 0.25);
        let times = processor_times("cpu  10 0 20 60 10 0 0 0 5 5\ncpu0 1\n");
        assert_eq!(times, Some(ProcessorTimes { busy: 30, all: 100 }));
        assert_eq!(processor_times("odd"), None);
        let memory = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    250 kB\n";
        assert_eq!(memory_percent(memory), 75.0);
        assert_eq!(memory_percent(""), 0.0);
    }

    #[test]
    fn a_host_that_is_there_can_be_looked_at() {
        let host = Host { data_dir: "/".into(), last: Mutex::default() };
        let load = host.load();
        for percent in [load.cpu_percent, load.memory_percent, load.disk_percent] {
            assert!((0.0..=100.0).contains(&percent), "{load:?}");
        }
        assert!(load.memory_percent > 0.0);
    }
}
