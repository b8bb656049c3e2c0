//! The life of a machine, as an engine has it and as the kernel sees it.

use sandhaus_sandbox::{
    engine::{Boot, Engine, GuestPort, ObservedMachine, RunState, StopMode},
    types::Generation,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, command, sh};

fn machine(run: RunState) -> Option<ObservedMachine> {
    Some(ObservedMachine { generation: Generation(1), run })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_starts_is_frozen_goes_on_is_adopted_and_ends() {
    let Some(mut host) = Host::new("a_machine_starts_is_frozen_goes_on_is_adopted_and_ends").await else {
        return;
    };
    let spec = host.spec();
    let id = &spec.id;
    let toolbox = host.up(&spec).await;
    assert_eq!(sh(&toolbox, "uname -s; hostname").await, "Linux\ntested\n");
    let observed = host.engine.observe(id).await.expect("observed").expect("there");
    assert_eq!((observed.disk, observed.machine), (Some(Generation(1)), machine(RunState::Running)));

    // It is a process without any right, in a network of its own.
    let [process] = host.processes()[..] else { panic!("one process: {:?}", host.processes()) };
    let status = fs_err::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells");
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_ne!(line("Uid:").split(' ').next(), Some("0"), "{status}");
    assert_eq!(line("Groups:"), "", "{status}");
    assert_eq!(line("CapEff:"), "0000000000000000", "{status}");
    assert_eq!(line("NoNewPrivs:"), "1", "{status}");
    assert_eq!(line("Seccomp:"), "2", "{status}");
    let network = |process: &str| fs_err::read_link(format!("/proc/{process}/ns/net")).expect("readable");
    assert_ne!(network(&process.to_string()), network("self"));
    assert!(
        command(process).iter().all(|word| !word.contains(host.directory.path().to_str().expect("text")))
    );

    // Frozen, nothing in it happens; twice is as good as once.
    host.engine.freeze(id).await.expect("frozen");
    host.engine.freeze(id).await.expect("frozen still");
    let observed = host.engine.observe(id).await.expect("observed").expect("there");
    assert_eq!(observed.machine, machine(RunState::Frozen));
    host.engine.thaw(id).await.expect("thawed");
    host.engine.thaw(id).await.expect("thawed still");
    assert_eq!(sh(&toolbox, "echo kept >/tmp/file; cat /tmp/file").await, "kept\n");

    let stats = host.engine.stats(id).await.expect("counted");
    assert_eq!(stats.memory_limit_bytes, Some(256 << 20));
    assert!(stats.memory_bytes > 32 << 20 && stats.cpu_usage_usec > 0, "{stats:?}");

    // Another server finds the same machine, not another one like it.
    host.reopen().await;
    let survey = host.engine.survey().await.expect("surveyed");
    assert_eq!(survey.len(), 1);
    assert_eq!((&survey[0].id, survey[0].machine), (id, machine(RunState::Running)));
    host.engine.start(&spec, Boot::Cold).await.expect("it is started already");
    assert_eq!(host.processes(), [process]);
    let (toolbox, reply) = host.greet(&spec).await;
    assert_eq!(reply.generation, 1);
    assert_eq!(sh(&toolbox, "cat /tmp/file").await, "kept\n");

    // It is told to end, and ends; its disk stays.
    host.engine.stop(id, StopMode::Graceful).await.expect("stopped");
    let observed = host.engine.observe(id).await.expect("observed").expect("there");
    assert_eq!((observed.disk, observed.machine), (Some(Generation(1)), None));
    host.engine.destroy(id).await.expect("destroyed");
    assert_eq!(host.engine.observe(id).await.expect("observed"), None);
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn console_and_display_are_there_and_the_end_of_qemu_is_seen() {
    let Some(host) = Host::new("console_and_display_are_there_and_the_end_of_qemu_is_seen").await else {
        return;
    };
    let spec = host.spec();
    let id = &spec.id;
    let toolbox = host.up(&spec).await;

    sh(&toolbox, "echo seen-before >/dev/console").await;
    let mut console = host.engine.dial(id, GuestPort::Console).await.expect("dialled");
    sh(&toolbox, "echo seen-after >/dev/console").await;
    let mut said = Vec::new();
    let mut piece = [0; 1024];
    while !String::from_utf8_lossy(&said).contains("seen-after") {
        let count = console.read(&mut piece).await.expect("it goes on");
        assert_ne!(count, 0, "{}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&piece[..count]);
    }
    assert!(String::from_utf8_lossy(&said).contains("seen-before"));

    // Two who look at the same screen.
    for _ in 0..2 {
        let mut display = host.engine.dial(id, GuestPort::Display).await.expect("dialled");
        let mut greeting = [0; 12];
        display.read_exact(&mut greeting).await.expect("it greets");
        assert_eq!(&greeting, b"RFB 003.008\n");
        display.write_all(&greeting).await.expect("it listens");
    }

    let mut exits = host.engine.watch();
    exits.mark_unchanged();
    let [process] = host.processes()[..] else { panic!("one process: {:?}", host.processes()) };
    let pid = rustix::process::Pid::from_raw(process).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    exits.changed().await.expect("the engine is there");
    let exit = exits.borrow().recent.last().cloned().expect("an exit");
    assert_eq!((&exit.id, exit.generation, exit.out_of_memory), (id, Generation(1), false));
    let observed = host.engine.observe(id).await.expect("observed").expect("there");
    assert_eq!(observed.machine, machine(RunState::Dead));
    assert!(host.engine.dial(id, GuestPort::Agent).await.is_err());
    host.end().await;
}
