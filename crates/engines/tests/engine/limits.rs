//! Limits hold, swap or not, and can change.

use crate::support::{Host, sh};
use sandhaus_sandbox::{
    engine::{Change, Engine, EngineError},
    types::{Resources, SecurityProfile},
};

#[tokio::test]
async fn processes_are_counted() {
    let host = Host::new().await;
    let mut spec = host.spec(SecurityProfile::Strict);
    spec.resources.pids = 32;
    let toolbox = host.up(&spec).await;
    let bomb = "i=0; while [ $i -lt 200 ]; do sleep 60 & i=$((i+1)); done; echo all";
    let done = sh(&toolbox, bomb).await;
    assert!(done.stderr.contains("fork"), "{done:?}");
    let stats = host.engine.stats(&spec.id).await.expect("counted");
    assert!(stats.pids <= 32, "{stats:?}");
    host.end().await;
}

#[tokio::test]
async fn memory_ends_the_greedy_and_not_the_agent() {
    let host = Host::new().await;
    let mut spec = host.spec(SecurityProfile::Strict);
    spec.resources.memory_bytes = 64 << 20;
    let toolbox = host.up(&spec).await;
    let greedy = sh(&toolbox, "x=$(yes | head -c 200000000); echo survived").await;
    assert_ne!(greedy.stdout, "survived\n");
    let stats = host.engine.stats(&spec.id).await.expect("counted");
    assert!(stats.oom_kills > 0, "{stats:?}");
    assert_eq!(stats.memory_limit_bytes, Some(64 << 20));
    assert_eq!(sh(&toolbox, "echo alive").await.stdout, "alive\n");
    // Files in memory count as well.
    sh(&toolbox, "dd if=/dev/zero of=/tmp/file bs=1M count=200").await;
    let stats = host.engine.stats(&spec.id).await.expect("counted");
    assert!(stats.memory_bytes <= 64 << 20, "{stats:?}");
    host.end().await;
}

#[tokio::test]
async fn processor_time_is_throttled() {
    let host = Host::new().await;
    let mut spec = host.spec(SecurityProfile::Container);
    spec.resources.cpu_millis = 100;
    let toolbox = host.up(&spec).await;
    sh(&toolbox, "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done").await;
    assert!(throttled(&host.instance) > 0, "the kernel held it back");
    let stats = host.engine.stats(&spec.id).await.expect("counted");
    assert!(stats.cpu_usage_usec > 0);
    host.end().await;
}

#[tokio::test]
async fn limits_change_while_it_runs() {
    let host = Host::new().await;
    let spec = host.spec(SecurityProfile::Strict);
    let toolbox = host.up(&spec).await;
    let smaller = Resources { memory_bytes: 48 << 20, pids: 20, cpu_millis: 500, disk_bytes: 0 };
    host.engine.update(&spec.id, Change::Resources(smaller)).await.expect("changed");
    assert_eq!(host.engine.stats(&spec.id).await.expect("counted").memory_limit_bytes, Some(48 << 20));
    host.engine.update(&spec.id, Change::Resources(Resources::default())).await.expect("lifted");
    assert_eq!(host.engine.stats(&spec.id).await.expect("counted").memory_limit_bytes, None);
    let limited = Resources { disk_bytes: 1 << 30, ..Resources::default() };
    let refused = host.engine.update(&spec.id, Change::Resources(limited)).await;
    assert!(matches!(refused, Err(EngineError::Unsupported(_))), "{refused:?}");
    assert_eq!(sh(&toolbox, "echo alive").await.stdout, "alive\n");
    host.end().await;
}

#[tokio::test]
async fn a_limited_disk_is_full_when_it_is_full() {
    let mut host = Host::new().await;
    assert!(host.engine.capabilities().disk_limit.is_some(), "this host can");
    let mut spec = host.spec(SecurityProfile::Container);
    spec.resources.disk_bytes = 32 << 20;
    let toolbox = host.up(&spec).await;
    for path in ["/workspace/file", "/file"] {
        let full =
            sh(&toolbox, &format!("dd if=/dev/zero of={path} bs=1M count=100; stat -c %s {path}")).await;
        assert!(full.stderr.contains("No space left"), "{full:?}");
        let size: u64 = full.stdout.trim().parse().expect("a number");
        assert!(size <= 32 << 20, "{full:?}");
        sh(&toolbox, &format!("rm {path}")).await;
    }
    sh(&toolbox, "echo kept > /workspace/kept; echo kept > /kept").await;
    // Disk and loop device last beyond the launcher.
    drop(toolbox);
    host.engine.shutdown().await.expect("shut down");
    host.reopen().await;
    let toolbox = host.greet(&spec).await;
    assert_eq!(sh(&toolbox, "cat /kept").await.stdout, "kept\n");
    host.engine.stop(&spec.id, sandhaus_sandbox::engine::StopMode::Kill).await.expect("stopped");
    spec.generation = spec.generation.next();
    let toolbox = host.start(&spec).await;
    assert_eq!(sh(&toolbox, "cat /workspace/kept /kept").await.stdout, "kept\nkept\n");
    host.end().await;
}

/// How often the kernel held back the only machine of an instance.
fn throttled(instance: &str) -> u64 {
    let mut count = 0;
    for base in ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"] {
        let Ok(machines) = fs_err::read_dir(format!("{base}/sandhaus/{instance}")) else { continue };
        for machine in machines.flatten() {
            let stat = fs_err::read_to_string(machine.path().join("cpu.stat")).unwrap_or_default();
            let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
            count += line.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    count
}
