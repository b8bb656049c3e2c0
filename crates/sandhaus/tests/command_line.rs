//! What the command line refuses and says, without any sandbox.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by failing")]

use std::{
    io::Read,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Output, Stdio},
};

fn sandhaus(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandhaus"));
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").stdin(Stdio::null());
    command.arg("--data-dir").arg(data_dir);
    command
}

fn run(data_dir: &Path, arguments: &[&str]) -> Output {
    sandhaus(data_dir).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn usage_errors_end_with_2_and_our_own_failures_of_run_with_125() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["run"][..], &["run", "--pids", "0", "--", "true"], &["frobnicate"], &["cp", "a"], &[]]
    {
        assert_eq!(run(dir.path(), arguments).status.code(), Some(2), "{arguments:?}");
    }
    let refused = run(dir.path(), &["run", "--network", "bridge", "--", "true"]);
    assert_eq!(refused.status.code(), Some(125));
    insta::assert_snapshot!(stderr(&refused), @r#"
    error: network policy "bridge" is not supported
    hint: use --network none: a loopback interface of its own and nothing else
    "#);
    let refused = run(dir.path(), &["ps", "--host", "http://127.0.0.1:1"]);
    assert_eq!(refused.status.code(), Some(1));
    insta::assert_snapshot!(stderr(&refused), @r"
    error: no server answers at 127.0.0.1:1
      because: cannot reach the server at 127.0.0.1:1
      because: Connection refused (os error 111)
    hint: start one with `sandhaus serve`, or name another with --host or SANDHAUS_HOST
    ");
    assert!(dir.path().read_dir().unwrap().next().is_none(), "a refused command changes nothing");
}

#[test]
fn keep_and_volumes_are_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 3] = [
        (&["--keep", "--", "true"], "start one with `sandhaus serve`"),
        (&["--keep", "-v", "/tmp:/x", "--", "true"], "leave out one of them"),
        (&["-v", "/tmp:/x", "--host", "http://127.0.0.1:1", "--", "true"], "leave out --host"),
    ];
    for (arguments, remedy) in cases {
        let output = sandhaus(dir.path()).arg("run").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        let said = stderr(&output);
        assert!(said.contains("hint: ") && said.contains(remedy), "{arguments:?}: {said}");
    }
    assert!(dir.path().read_dir().unwrap().next().is_none(), "a refused command changes nothing");
}

#[test]
fn the_configuration_is_checked_before_anything_happens() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("test.yaml");
    let data = dir.path().join("data");
    let said = |content: &str, environment: &[(&str, &str)]| {
        fs_err::write(&file, content).unwrap();
        let output = sandhaus(&data)
            .args(["--config", file.to_str().unwrap(), "serve"])
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{content}");
        stderr(&output).replace(file.to_str().unwrap(), "FILE")
    };
    insta::assert_snapshot!(said("listen: 0.0.0.0:8080\nliste: x\n", &[]), @r"
    warning: FILE:2: key liste is not known and has no effect; did you mean listen?
    error: refusing to listen on 0.0.0.0:8080 without an API key: anyone who reaches it could run commands
    hint: set api_key in the configuration or SANDHAUS_API_KEY in the environment, or listen on 127.0.0.1
    ");
    insta::assert_snapshot!(said("session_ttl_seconds: soon\n", &[]), @"error: configuration key session_ttl_seconds in FILE:1 cannot be soon: must be a whole number from 1 to 86400");
    insta::assert_snapshot!(said("", &[("SANDHAUS_CPU_LIMIT", "many")]), @r#"error: configuration key defaults.cpu_limit in the environment (SANDHAUS_CPU_LIMIT) cannot be "many": must be a number"#);
    let secret = said("api_key: ['s3cret']\n", &[]);
    assert!(!secret.contains("s3cret"), "{secret}");
    assert!(!data.exists());
    let missing = sandhaus(&data).args(["--config", "/no/such/file", "ps"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("/no/such/file"));
}

#[test]
fn a_reader_that_goes_is_no_failure_to_report() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = sandhaus(dir.path())
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(said, "");
    assert_eq!(status.code(), Some(141));
    assert_eq!(status.signal(), None);
}

#[test]
fn removal_tells_of_each_id() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["rm", "--host", "http://127.0.0.1:1", "../../etc", "0123abcd-ef0"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("cannot remove ../../etc") && said.contains("cannot remove 0123abcd-ef0"),
        "{said}"
    );
}

#[test]
fn colours_only_on_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["run", "--network", "host", "--", "true"]);
    assert!(!output.stderr.contains(&0x1b));
}

#[test]
fn hostile_arguments_do_not_steer_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["rm", "--host", "http://127.0.0.1:1", "a\u{1b}[2Jb"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stderr.contains(&0x1b), "{:?}", stderr(&output));
}

#[test]
fn every_fault_point_is_named_once() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sandhaus")).arg("__fault-points").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let points: Vec<&str> = text.lines().collect();
    let unique: std::collections::BTreeSet<&str> = points.iter().copied().collect();
    assert_eq!(points.len(), unique.len());
    for area in ["plan.", "start.", "launcher.", "child.", "destroy."] {
        assert!(points.iter().any(|point| point.starts_with(area)), "no point of {area} in {points:?}");
    }
    assert!(dir.path().read_dir().unwrap().next().is_none());
}

#[test]
fn the_version_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["version"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with(concat!("sandhaus ", env!("CARGO_PKG_VERSION"))), "{text}");
}
