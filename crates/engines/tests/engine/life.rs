//! The life of machines: made, seen, stopped, adopted, ended, and nothing left of them.

use std::{sync::Arc, time::Duration};

use crate::support::{Host, left_behind, sh};
use sandhaus_engines::namespace::NamespaceEngine;
use sandhaus_protocol::ssh;
use sandhaus_sandbox::{
    engine::{Boot, Engine, EngineError, GuestPort, Observed, ObservedMachine, RunState, StopMode},
    types::{Access, Generation, Mount, SandboxId, SecurityProfile},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn observed(id: &SandboxId, generation: u64, run: Option<RunState>) -> Observed {
    Observed {
        id: id.clone(),
        disk: Some(Generation(1)),
        machine: run.map(|run| ObservedMachine { generation: Generation(generation), run }),
    }
}

#[tokio::test]
async fn a_machine_comes_up_keeps_its_disk_and_goes() {
    let host = Host::new().await;
    for security in [SecurityProfile::Strict, SecurityProfile::Container] {
        let mut spec = host.spec(security);
        let toolbox = host.up(&spec).await;
        let user = if security == SecurityProfile::Strict { "1000" } else { "0" };
        assert_eq!(
            sh(&toolbox, "id -u; hostname; pwd").await.stdout,
            format!("{user}\ntested\n/workspace\n")
        );
        assert_eq!(sh(&toolbox, "echo kept > /workspace/file; echo $?").await.stdout, "0\n");
        assert_eq!(
            host.engine.observe(&spec.id).await.expect("observed"),
            Some(observed(&spec.id, 1, Some(RunState::Running)))
        );
        // Again is no error and no second machine.
        host.engine.start(&spec, Boot::Cold).await.expect("it runs already");

        host.engine.stop(&spec.id, StopMode::Graceful).await.expect("stopped");
        assert_eq!(host.engine.observe(&spec.id).await.expect("observed"), Some(observed(&spec.id, 1, None)));
        assert!(matches!(host.engine.dial(&spec.id, GuestPort::Agent).await, Err(EngineError::NotFound)));

        spec.generation = Generation(2);
        let toolbox = host.start(&spec).await;
        assert_eq!(sh(&toolbox, "cat /workspace/file /etc/hostname").await.stdout, "kept\ntested\n");
        assert_eq!(
            host.engine.survey().await.expect("surveyed"),
            [observed(&spec.id, 2, Some(RunState::Running))]
        );

        host.engine.destroy(&spec.id).await.expect("destroyed");
        assert_eq!(host.engine.observe(&spec.id).await.expect("observed"), None);
        host.engine.destroy(&spec.id).await.expect("absent is success");
    }
    host.end().await;
}

#[tokio::test]
async fn machines_outlive_the_engine_and_are_adopted() {
    let mut host = Host::new().await;
    let spec = host.spec(SecurityProfile::Strict);
    let toolbox = host.up(&spec).await;
    sh(&toolbox, "echo here > /tmp/mark").await;
    drop(toolbox);
    host.engine.shutdown().await.expect("shut down");
    host.reopen().await;
    assert_eq!(
        host.engine.survey().await.expect("surveyed"),
        [observed(&spec.id, 1, Some(RunState::Running))]
    );
    let toolbox = host.greet(&spec).await;
    assert_eq!(sh(&toolbox, "cat /tmp/mark").await.stdout, "here\n", "it is the same machine");

    // The end of an adopted machine is seen as it happens.
    let mut ends = host.engine.watch();
    let victim = first_process(&host.instance);
    assert_eq!(ends.borrow_and_update().count, 0);
    kill(victim);
    ends.changed().await.expect("told");
    let log = ends.borrow_and_update().clone();
    assert_eq!((log.count, &log.recent[0].id, log.recent[0].out_of_memory), (1, &spec.id, false));
    assert_eq!(
        host.engine.observe(&spec.id).await.expect("observed"),
        Some(observed(&spec.id, 1, Some(RunState::Dead)))
    );
    // Remains of a dead machine are in nobody's way.
    let toolbox = host.start(&spec).await;
    assert_eq!(sh(&toolbox, "cat /tmp/mark").await.code, 1, "it is another machine");
    host.end().await;
}

#[tokio::test]
async fn an_older_machine_is_cleared_and_a_newer_one_is_kept() {
    let host = Host::new().await;
    let mut spec = host.spec(SecurityProfile::Container);
    spec.generation = Generation(5);
    host.up(&spec).await;
    spec.generation = Generation(4);
    assert!(matches!(host.engine.start(&spec, Boot::Cold).await, Err(EngineError::Invalid(_))));
    spec.generation = Generation(6);
    host.start(&spec).await;
    let machine =
        host.engine.observe(&spec.id).await.expect("observed").expect("there").machine.expect("there");
    assert_eq!(machine.generation, Generation(6));
    host.end().await;
}

#[tokio::test]
async fn a_frozen_machine_stands_still_and_can_be_ended() {
    let host = Host::new().await;
    let spec = host.spec(SecurityProfile::Strict);
    let toolbox = host.up(&spec).await;
    host.engine.freeze(&spec.id).await.expect("frozen");
    host.engine.freeze(&spec.id).await.expect("frozen already");
    let before = host.engine.stats(&spec.id).await.expect("counted").cpu_usage_usec;
    assert_eq!(
        host.engine.observe(&spec.id).await.expect("observed"),
        Some(observed(&spec.id, 1, Some(RunState::Frozen)))
    );
    let pending = tokio::spawn({
        let toolbox = toolbox.clone();
        async move { sh(&toolbox, "echo thawed").await }
    });
    let after = host.engine.stats(&spec.id).await.expect("counted").cpu_usage_usec;
    assert_eq!(before, after, "nothing runs");
    host.engine.thaw(&spec.id).await.expect("thawed");
    assert_eq!(pending.await.expect("answered").stdout, "thawed\n");
    host.engine.freeze(&spec.id).await.expect("frozen");
    host.engine.destroy(&spec.id).await.expect("destroyed without a thaw");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once() {
    const MACHINES: usize = 32;
    let host = Arc::new(Host::new().await);
    let lives: Vec<_> = (0..MACHINES)
        .map(|_| {
            let host = Arc::clone(&host);
            tokio::spawn(async move {
                let spec = host.spec(SecurityProfile::Strict);
                let toolbox = host.up(&spec).await;
                assert_eq!(sh(&toolbox, "cat /etc/hostname").await.stdout, "tested\n");
                spec.id
            })
        })
        .collect();
    let mut ids = Vec::new();
    for life in lives {
        ids.push(life.await.expect("it lived"));
    }
    ids.sort();
    let seen = host.engine.survey().await.expect("surveyed");
    assert_eq!(seen, ids.iter().map(|id| observed(id, 1, Some(RunState::Running))).collect::<Vec<_>>());
    let ends: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let engine = Arc::clone(&host.engine);
            tokio::spawn(async move { engine.destroy(&id).await })
        })
        .collect();
    for end in ends {
        end.await.expect("it ran").expect("destroyed");
    }
    Arc::into_inner(host).expect("nobody else").end().await;
}

#[tokio::test]
async fn instances_do_not_see_each_other() {
    let (one, other) = (Host::new().await, Host::new().await);
    let (a, b) = (one.spec(SecurityProfile::Strict), other.spec(SecurityProfile::Strict));
    one.up(&a).await;
    let toolbox = other.up(&b).await;
    assert_eq!(one.engine.survey().await.expect("surveyed"), [observed(&a.id, 1, Some(RunState::Running))]);
    one.engine.destroy(&b.id).await.expect("absent is success");
    one.end().await;
    assert_eq!(sh(&toolbox, "echo alive").await.stdout, "alive\n");
    other.end().await;
}

#[tokio::test]
async fn a_killed_launcher_is_replaced_and_machines_live_on() {
    let host = Host::new().await;
    let first = host.spec(SecurityProfile::Strict);
    let toolbox = host.up(&first).await;
    let launcher = launcher_of(&host);
    kill(launcher);
    // Killed is not gone: the next start may still meet it. It fails by name then, and again is enough.
    let second = host.spec(SecurityProfile::Strict);
    host.engine.materialize(&second).await.expect("the disk is made");
    let mut started = host.engine.start(&second, Boot::Cold).await;
    if started.is_err() {
        started = host.engine.start(&second, Boot::Cold).await;
    }
    started.expect("another launcher starts it");
    assert_ne!(launcher_of(&host), launcher);
    assert_eq!(sh(&toolbox, "echo alive").await.stdout, "alive\n");
    host.end().await;
}

#[tokio::test]
async fn ports_inside_can_be_dialled() {
    let host = Host::new().await;
    let spec = host.spec(SecurityProfile::Strict);
    let toolbox = host.up(&spec).await;
    assert!(matches!(host.engine.dial(&spec.id, GuestPort::Tcp(8000)).await, Err(EngineError::NotFound)));
    let listening = tokio::spawn(async move { sh(&toolbox, "nc -l -p 8000 -e cat").await });
    let mut stream = loop {
        match host.engine.dial(&spec.id, GuestPort::Tcp(8000)).await {
            Ok(stream) => break stream,
            Err(EngineError::NotFound) => assert!(!listening.is_finished(), "it listens until it is dialled"),
            Err(error) => panic!("{error:?}"),
        }
    };
    stream.write_all(b"echo").await.expect("written");
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).await.expect("echoed");
    assert_eq!(&echoed, b"echo");
    drop(stream);
    listening.await.expect("it ended");
    for port in [GuestPort::Display, GuestPort::Console] {
        assert!(matches!(host.engine.dial(&spec.id, port).await, Err(EngineError::Unsupported(_))));
    }
    host.end().await;
}

#[tokio::test]
async fn host_directories_show_with_their_owner_as_the_user() {
    let host = Host::new().await;
    let shown = host.directory.path().join("shown");
    fs_err::create_dir(&shown).expect("made");
    fs_err::write(shown.join("file"), "content").expect("written");
    for path in [&shown, &shown.join("file")] {
        std::os::unix::fs::chown(path, Some(4321), Some(4322)).expect("given");
    }
    fs_err::write(shown.join("foreign"), "").expect("written");
    for security in [SecurityProfile::Strict, SecurityProfile::Container] {
        let mut spec = host.spec(security);
        let mount = |target: &str, access| Mount { source: shown.clone(), target: target.to_owned(), access };
        spec.mounts = vec![mount("/deep/down/rw", Access::ReadWrite), mount("/ro", Access::ReadOnly)];
        spec.mounts.push(Mount {
            source: shown.join("file"),
            target: "/workspace/single".to_owned(),
            access: Access::ReadOnly,
        });
        let toolbox = host.up(&spec).await;
        let id = if security == SecurityProfile::Strict { 1000 } else { 0 };
        let owners = sh(&toolbox, "stat -c %u:%g /ro /ro/file /ro/foreign; cat /workspace/single").await;
        assert_eq!(owners.stdout, format!("{id}:{id}\n{id}:{id}\n65534:65534\ncontent"));
        assert_ne!(sh(&toolbox, "echo x > /ro/made").await.code, 0);
        let written = sh(
            &toolbox,
            "echo x > /deep/down/rw/made && rm /deep/down/rw/file && echo y > /deep/down/rw/file",
        )
        .await;
        assert_eq!(written.code, 0, "{written:?}");
        let status = fs_err::metadata(shown.join("made")).expect("made on the host");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&status), 4321);
        fs_err::write(shown.join("file"), "content").expect("written");
        std::os::unix::fs::chown(shown.join("file"), Some(4321), Some(4322)).expect("given");
        host.engine.destroy(&spec.id).await.expect("destroyed");
    }
    assert!(shown.join("foreign").exists(), "a shown directory is not the sandbox's to remove");

    let mut spec = host.spec(SecurityProfile::Strict);
    spec.mounts =
        vec![Mount { source: shown.join("absent"), target: "/x".to_owned(), access: Access::ReadOnly }];
    host.engine.materialize(&spec).await.expect("the disk is made");
    let refused = host.engine.start(&spec, Boot::Cold).await;
    assert!(
        matches!(&refused, Err(EngineError::Invalid(message)) if message.contains("absent")),
        "{refused:?}"
    );
    for target in ["/proc/x", "/", "relative", "/dev"] {
        spec.mounts =
            vec![Mount { source: shown.clone(), target: target.to_owned(), access: Access::ReadOnly }];
        assert!(
            matches!(host.engine.start(&spec, Boot::Cold).await, Err(EngineError::Invalid(_))),
            "{target}"
        );
    }
    host.end().await;
}

#[tokio::test]
async fn older_kernels_get_the_same_root() {
    for kernel in [(6, 1), (5, 15)] {
        let mut host = Host::new().await;
        host.engine.shutdown().await.expect("shut down");
        let config = crate::support::config(host.directory.path(), &host.instance);
        host.engine = Arc::new(NamespaceEngine::open_on(config, kernel).await.expect("opened"));
        for disk_bytes in [0, 32 << 20] {
            let mut spec = host.spec(SecurityProfile::Container);
            spec.resources.disk_bytes = disk_bytes;
            let toolbox = host.up(&spec).await;
            let seen =
                sh(&toolbox, "stat -c %u:%g / /bin/busybox /etc/passwd /home/sandbox /workspace").await;
            assert_eq!(seen.stdout, "0:0\n0:0\n0:0\n1000:1000\n0:0\n", "{kernel:?} {seen:?}");
            assert_eq!(
                sh(&toolbox, "touch /bin/busybox /new && rm /bin/ls && test ! -e /bin/ls").await.code,
                0
            );
            let mounts = sh(&toolbox, "cat /proc/mounts").await.stdout;
            assert!(!mounts.contains(&*host.directory.path().to_string_lossy()), "{mounts}");
            spec.generation = Generation(2);
            let toolbox = host.start(&spec).await;
            assert_eq!(sh(&toolbox, "test -e /new && test ! -e /bin/ls").await.code, 0);
        }
        host.end().await;
    }
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing() {
    let host = Host::new().await;
    let mut spec = host.spec(SecurityProfile::Strict);
    spec.tree.layers.push(host.directory.path().join("absent"));
    host.engine.materialize(&spec).await.expect("the disk is made");
    host.engine.start(&spec, Boot::Cold).await.expect_err("a layer is missing");
    assert_eq!(host.engine.survey().await.expect("surveyed"), [observed(&spec.id, 1, None)]);
    host.engine.destroy(&spec.id).await.expect("destroyed");
    host.engine.start(&spec, Boot::Cold).await.expect_err("no disk");
    let left: Vec<String> = left_behind(host.directory.path(), &host.instance)
        .into_iter()
        .filter(|line| line.starts_with("file"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
    host.end().await;
}

#[tokio::test]
async fn an_agent_that_somebody_has_open_for_writing_is_waited_for() {
    // Longer than a start takes otherwise.
    const HELD: Duration = Duration::from_millis(200);
    let host = Host::new().await;
    let spec = host.spec(SecurityProfile::Strict);
    host.engine.materialize(&spec).await.expect("the disk is made");
    let mut agents = fs_err::read_dir(host.directory.path().join("agent")).expect("list agents");
    let agent = agents.next().expect("one").expect("an entry").path();
    let writer = fs_err::OpenOptions::new().write(true).open(agent).expect("nobody executes it yet");
    let closes = async {
        tokio::time::sleep(HELD).await;
        drop(writer);
    };
    let (toolbox, ()) = tokio::join!(host.start(&spec), closes);
    assert_eq!(sh(&toolbox, "echo up").await.stdout, "up\n");
    host.end().await;
}

/// The first process of the only machine of an instance, as the host sees it.
fn first_process(instance: &str) -> u32 {
    let is_first = |process: &u32| {
        let read = |file: &str| fs_err::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
        read("cgroup").contains(instance)
            && read("status").lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
    };
    crate::support::processes().into_iter().find(is_first).expect("it runs")
}

fn launcher_of(host: &Host) -> u32 {
    let directory = host.directory.path().to_string_lossy().into_owned();
    let is_launcher = |process: &u32| {
        let command = fs_err::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        command.contains("__launcher") && command.contains(&directory)
    };
    crate::support::processes().into_iter().find(is_launcher).expect("it runs")
}

fn kill(process: u32) {
    let process = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("killed");
}

#[tokio::test]
async fn a_sandboxs_own_doors_are_open_to_who_is_told_of_them() {
    const SECRET: &str = "secret-of-the-sandbox-0123456789";
    let host = Host::new().await;
    let spec = host.spec(SecurityProfile::Strict);
    host.up(&spec).await;
    let ports = [ssh::PORT, ssh::TERMINAL_PORT, ssh::RESCUE_PORT];
    for port in ports {
        let dialled = host.engine.dial(&spec.id, GuestPort::Tcp(port)).await;
        assert!(matches!(dialled, Err(EngineError::NotFound)), "nobody was told of {port}");
    }
    let secret = || Some(SECRET.to_owned());
    let access = ssh::Access { secret: secret(), rescue_secret: secret(), ..ssh::Access::default() };
    host.greet_with(&spec, Some(access)).await;
    for port in [ssh::PORT, ssh::RESCUE_PORT] {
        // The rescue door's process starts when it does.
        let mut stream = loop {
            match host.engine.dial(&spec.id, GuestPort::Tcp(port)).await {
                Ok(stream) => break stream,
                Err(EngineError::NotFound) => assert_eq!(port, ssh::RESCUE_PORT),
                Err(error) => panic!("{error:?}"),
            }
        };
        let mut version = [0; 17];
        stream.read_exact(&mut version).await.expect("a version");
        assert_eq!(&version, b"SSH-2.0-sandhaus_");
    }
    let mut stream =
        host.engine.dial(&spec.id, GuestPort::Tcp(ssh::TERMINAL_PORT)).await.expect("it listens");
    let request =
        format!("GET / HTTP/1.1\r\nhost: it\r\nauthorization: Bearer {SECRET}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    host.end().await;
}
