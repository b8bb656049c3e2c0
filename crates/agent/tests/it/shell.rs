//! Persistent shells, as users see them, in every shell that images have.

use std::{fs, io::Write as _};

use sandhaus_protocol::{
    frame::Kind,
    shell::{ShellInfo, ShellStarted},
};

use crate::support::{Agent, Frames, eventually};

/// Runs the same behaviours in each shell.
macro_rules! in_every_shell {
    ($($behaviour:ident),* $(,)?) => {
        in_every_shell!(@one bash "bash": $($behaviour),*);
        in_every_shell!(@one dash "dash": $($behaviour),*);
        in_every_shell!(@one busybox_ash "busybox": $($behaviour),*);
    };
    (@one $module:ident $shell:literal: $($behaviour:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $behaviour() {
                    let Some(shell) = crate::support::find_shell($shell) else { return };
                    super::$behaviour(&crate::support::Agent::start(Some(&shell)));
                }
            )*
        }
    };
}

in_every_shell!(
    state_persists,
    errors_do_not_end_the_shell,
    commands_have_a_terminal_and_no_input,
    a_shell_that_ends_is_replaced_where_it_was,
    background_jobs_live_and_keep_out_of_later_output,
    time_limits_end_the_whole_tree_and_nothing_else,
    nothing_after_a_time_limit_runs,
    output_is_exact,
    large_commands_work,
    nothing_leaks_into_commands,
    streams_resume_anywhere,
);

fn state_persists(agent: &Agent) {
    let (output, code) =
        agent.shell("cd /usr; plain=1; export EXPORTED=2; f() { echo function $1; }; umask 027; set -f");
    assert_eq!((output.as_str(), code), ("", 0));
    let (output, _) = agent.shell("pwd; echo $plain; sh -c 'echo $EXPORTED'; f 3; umask; echo *; set +f");
    assert_eq!(output, "/usr\n1\n2\nfunction 3\n0027\n*\n");
    agent.shell("alias greet='echo greeted'");
    assert_eq!(agent.shell("greet").0, "greeted\n");
    let info: ShellInfo = agent.get("/sandhaus/shell/default").json();
    assert_eq!((info.cwd.as_str(), info.running), ("/usr", None));
    agent.shell("set -x");
    assert_eq!(agent.shell("echo traced").0.replace("++ ", "+ "), "+ echo traced\ntraced\n");
    agent.shell("set +x");
}

fn errors_do_not_end_the_shell(agent: &Agent) {
    agent.shell("kept=yes");
    for (command, status) in [
        ("(exit 7)", 7),
        ("false", 1),
        ("nosuchcommand", 127),
        ("sh -c 'kill -9 $$'", 137),
        ("echo \"unclosed", 2),
        ("for i in", 2),
        ("f() { return 3; }; f", 3),
    ] {
        assert_eq!(agent.shell(command).1, status, "{command}");
    }
    for command in
        ["readonly r=1; r=2", "echo ${unset:?bad}", ". /nonexistent", "echo $((1/0))", "set -u; echo $nosuch"]
    {
        let (output, exit) = agent.shell_limited(command, 0);
        assert_ne!(exit.exit_code, 0, "{command}");
        assert!(!exit.shell_replaced, "{command}: {}", String::from_utf8_lossy(&output));
        agent.shell("set +u");
    }
    assert_eq!(agent.shell("echo $kept"), ("yes\n".to_owned(), 0));
}

fn commands_have_a_terminal_and_no_input(agent: &Agent) {
    let (output, _) =
        agent.shell("cat; read line; echo $?; test -t 1 && test -t 2 && ! test -t 0 && echo terminal");
    assert_eq!(output, "1\nterminal\n");
    assert_eq!(agent.shell("stty size <&1; echo $TERM").0, "40 120\nxterm-256color\n");
    assert_eq!(agent.shell("cat <<EOF\nheredoc\nEOF\necho 'two\nlines'").0, "heredoc\ntwo\nlines\n");
    // A program that asks the user fails at once instead of waiting for an answer that cannot come.
    assert_ne!(agent.shell("sh -c 'read x </dev/tty'").1, 0);
    assert_eq!(agent.shell("# only a comment"), (String::new(), 0));
    assert_eq!(agent.shell(""), (String::new(), 0));
    assert_eq!(agent.shell("echo last # comment\n\n").0, "last\n");
}

fn a_shell_that_ends_is_replaced_where_it_was(agent: &Agent) {
    for (command, output, status) in [
        ("echo bye; exit 3", "bye\n", 3),
        ("kill -9 $$", "", 137),
        ("exec echo replaced", "replaced\n", 0),
        ("trap 'echo trapped' EXIT; exit", "trapped\n", 0),
        ("set -e; false", "", 1),
    ] {
        agent.shell("cd /usr/bin; lost=1");
        let (printed, exit) = agent.shell_limited(command, 0);
        assert_eq!(String::from_utf8_lossy(&printed).replace("\r\n", "\n"), output, "{command}");
        assert_eq!((exit.exit_code, exit.shell_replaced), (status, true), "{command}");
        let (printed, exit) = agent.shell_limited("echo \"$lost\"; pwd", 0);
        assert_eq!(printed, b"\r\n/usr/bin\r\n", "{command}");
        assert!(!exit.shell_replaced, "{command}");
    }
}

fn background_jobs_live_and_keep_out_of_later_output(agent: &Agent) {
    let gate = agent.work().join("gate");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &gate,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("make a named pipe");
    let (output, _) = agent.shell("(read line <gate; echo late $line) & echo at once");
    assert_eq!(output, "at once\n");
    assert_eq!(agent.shell("kill -0 $! && echo alive").0, "alive\n");
    // Let it speak while no command runs, and see that it has.
    fs::OpenOptions::new()
        .write(true)
        .open(&gate)
        .and_then(|mut gate| gate.write_all(b"word\n"))
        .expect("open the gate");
    let mut log = Frames::new(agent.send("GET", "/sandhaus/shell/default/log?follow=true", &[], b""));
    log.until("late word");
    assert_eq!(agent.shell("wait; echo next").0, "next\n");
}

fn time_limits_end_the_whole_tree_and_nothing_else(agent: &Agent) {
    agent.shell("kept=yes; cd /usr; sleep 4321 &");
    for command in [
        "sleep 1234",
        "while :; do :; done",
        "while :; do sleep 0.01; done",
        "sh -c 'trap \"\" INT; while :; do sleep 1234; done'; echo later",
        "setsid sleep 1234 & (setsid sleep 1234 &); sleep 1234",
        "sleep 1234 | sleep 1234 | cat",
        "kill -STOP $$",
    ] {
        let (_, exit) = agent.shell_limited(command, 150);
        assert!(exit.timed_out, "{command}");
        if exit.shell_replaced {
            // An interrupt that meets busybox's shell at the wrong moment of a loop of built-ins leaves it deaf to all
            // later ones. Then it is replaced, which the rest of the list must not notice.
            assert_eq!(command, "while :; do :; done");
            assert!(agent.shell("readlink /proc/$$/exe").0.ends_with("busybox\n"), "only that shell does");
            agent.shell("kept=yes; cd /usr");
        }
        assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0], "{command}");
        assert_eq!(agent.shell("echo $kept; pwd").0, "yes\n/usr\n", "{command}");
    }
    assert_eq!(agent.descendants_with("sleep 4321").len(), 1, "the job of an earlier command is untouched");
    // A shell that cannot be brought back is replaced.
    let (_, exit) = agent.shell_limited("trap '' INT; while :; do :; done", 150);
    assert!(exit.timed_out && exit.shell_replaced);
    assert_eq!(agent.shell("pwd").0, "/usr\n");
    assert_eq!(agent.descendants_with("sleep 4321").len(), 1);
    // What was printed before the limit is there.
    let (output, exit) = agent.shell_limited("echo before; sleep 1234", 300);
    assert_eq!((output.as_slice(), exit.timed_out), (b"before\r\n".as_slice(), true));
}

fn nothing_after_a_time_limit_runs(agent: &Agent) {
    agent.shell("kept=yes");
    for deaf in [
        "sh -c 'trap \"\" INT TERM; while :; do sleep 1234; done'",
        "f() { sh -c 'trap \"\" INT TERM; sleep 1234; sleep 1234'; echo in f > ran; }; f",
        "for i in 1 2 3; do sh -c 'trap \"\" INT TERM; sleep 1234; sleep 1234'; echo $i > ran; done",
    ] {
        let (_, exit) = agent.shell_limited(&format!("{deaf}; echo after > ran"), 100);
        assert!(exit.timed_out && !exit.shell_replaced, "{deaf}");
        let (output, exit) = agent.shell_limited("ls; echo $kept", 0);
        assert_eq!(String::from_utf8_lossy(&output), "yes\r\n", "{deaf}");
        assert!(!exit.shell_replaced, "{deaf}");
        assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0], "{deaf}");
    }
}

fn output_is_exact(agent: &Agent) {
    // Every byte value, raw: markers start with one of them and end with another.
    let all: Vec<u8> = (0..=255).collect();
    fs::write(agent.work().join("bytes"), &all).expect("write the bytes");
    let (output, _) = agent.shell_limited("stty -opost <&1; cat bytes; stty opost <&1", 0);
    assert_eq!(output, all);
    let (output, _) = agent.shell_limited("printf '\\001'; printf '\\0010123:e1.0:0:/\\000'; printf end", 0);
    assert_eq!(output, b"\x01\x010123:e1.0:0:/\0end");
    assert_eq!(agent.shell_limited("printf 'no newline'", 0).0, b"no newline");
    let (output, exit) = agent.shell_limited("yes 0123456789abcde | head -n 375000", 0);
    assert_eq!((output.len(), exit.exit_code), (375_000 * 17, 0));
    assert!(output.chunks(17).all(|line| line == b"0123456789abcde\r\n"));
}

fn large_commands_work(agent: &Agent) {
    let text = "x'\"$`\\".repeat((1 << 20) / 6 - 20);
    let quoted = text.replace('\'', "'\\''");
    let command = format!("v='{quoted}'; echo ${{#v}}");
    // Quoting makes it longer: what counts is the command as sent.
    let command = if command.len() <= 1 << 20 {
        command
    } else {
        format!("v='{}'; echo ${{#v}}", "x".repeat(1_000_000))
    };
    let expected = if command.contains('\\') { text.len() } else { 1_000_000 };
    assert_eq!(agent.shell(&command).0, format!("{expected}\n"));
    let body = serde_json::json!({ "cmd": "#".repeat((1 << 20) + 1) });
    assert_eq!(agent.post("/sandhaus/shell/default/exec", &body).refusal().0, 413);
    assert_eq!(
        agent.post("/sandhaus/shell/default/exec", &serde_json::json!({ "cmd": "a\0b" })).refusal().0,
        400
    );
    assert_eq!(agent.shell("echo ${#v}").1, 0);
}

fn nothing_leaks_into_commands(agent: &Agent) {
    let (output, _) = agent.shell("/bin/ls /proc/self/fd");
    // ls itself has one open: the directory.
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    let (output, _) = agent.shell("grep -E 'SigBlk|SigIgn' /proc/self/status");
    assert_eq!(output, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    assert_eq!(agent.shell("ls -A").0, "", "nothing is left in the work directory");
}

fn streams_resume_anywhere(agent: &Agent) {
    let mut stream = agent.shell_stream("seq 1 20000; echo done", 0);
    let first = stream.next().expect("a first frame");
    assert_eq!(first.kind, Kind::Started);
    let started: ShellStarted = serde_json::from_slice(&first.payload).expect("a started record");
    stream.until("1\r\n");
    stream.hang_up();
    let mut whole: Vec<u8> = (1..=20_000).flat_map(|n| format!("{n}\r\n").into_bytes()).collect();
    whole.extend_from_slice(b"done\r\n");
    for offset in [0, 1, whole.len() / 2, whole.len() - 1, whole.len(), whole.len() + 10] {
        let target = format!("/sandhaus/shell/default/exec/{}?offset={offset}", started.exec_id);
        let all = Frames::new(agent.send("GET", &target, &[], b"")).collect();
        assert_eq!(all.stdout, whole.get(offset..).unwrap_or_default(), "from {offset}");
    }
    assert_eq!(
        agent.get("/sandhaus/shell/default/exec/999").refusal(),
        (404, "PROCESS_NOT_FOUND".to_owned())
    );
    assert_eq!(agent.get("/sandhaus/shell/nosuch").refusal().0, 404);
}

#[test]
fn shells_of_different_names_are_apart() {
    let agent = Agent::start(None);
    let run = |shell: &str, cmd: &str| {
        let body = serde_json::to_vec(&serde_json::json!({ "cmd": cmd })).expect("JSON");
        let target = format!("/sandhaus/shell/{shell}/exec");
        Frames::new(agent.send("POST", &target, &[("content-type", "application/json")], &body))
            .collect()
            .stdout
    };
    run("one", "x=1");
    run("two", "x=2");
    assert_eq!(run("one", "echo $x"), b"1\r\n");
    assert_eq!(run("two", "echo $x"), b"2\r\n");
}

#[test]
fn commands_of_one_shell_run_in_order() {
    let agent = Agent::start(None);
    let streams: Vec<Frames> =
        (0..20).map(|n| agent.shell_stream(&format!("order=\"$order {n}\""), 0)).collect();
    for stream in streams {
        stream.collect();
    }
    let expected: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    assert_eq!(agent.shell("echo $order").0, format!("{}\n", expected.join(" ")));
}

#[test]
fn a_killed_idle_shell_is_started_again() {
    let agent = Agent::start(None);
    let (pid, _) = agent.shell("cd /usr; echo $$");
    let pid: i32 = pid.trim().parse().expect("a number");
    let process = rustix::process::Pid::from_raw(pid).expect("a process");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("kill the shell");
    eventually("the dead shell is reaped", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    let (output, exit) = agent.shell_limited("pwd", 0);
    assert_eq!(output, b"/usr\r\n");
    assert!(exit.shell_replaced, "the client is told that its variables are gone");
}

#[test]
fn a_slow_reader_gets_everything_and_memory_stays() {
    let agent = Agent::start(None);
    agent.shell("true");
    let before = agent.private_kib();
    let mut stream = agent.shell_stream("head -c 67108864 /dev/zero | tr '\\0' x", 0);
    let mut bytes = 0;
    let mut most = 0;
    while let Some(frame) = stream.next() {
        assert_ne!(frame.kind, Kind::GapStdout);
        if frame.kind == Kind::Stdout {
            assert_eq!(frame.offset, bytes);
            bytes += frame.payload.len() as u64;
        }
        if bytes % (1 << 22) < (1 << 16) {
            most = most.max(agent.private_kib());
        }
    }
    assert_eq!(bytes, 64 << 20);
    assert!(most < before + 4096, "private memory grew from {before} to {most} KiB");
}
