//! What the command line refuses and says, without any sandbox.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by failing")]

use std::{
    io::Read,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
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

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn usage_errors_end_with_2_and_our_own_failures_of_run_with_125() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        &["run", "--pids", "0", "--", "true"][..],
        &["run", "--network", "tunnel", "--", "true"],
        &["frobnicate"],
        &["cp", "a"],
        &[],
    ] {
        assert_eq!(run(dir.path(), arguments).status.code(), Some(2), "{arguments:?}");
    }
    let refused = run(dir.path(), &["run", "--keep", "--", "true"]);
    assert_eq!(refused.status.code(), Some(125));
    insta::assert_snapshot!(stderr(&refused), @r#"
    error: --keep needs a server: without one the sandbox ends with this process
    hint: start one with `sandhaus serve` and run this again
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
    let output = run(dir.path(), &["run", "--keep", "--", "true"]);
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

/// A configuration made by `init`, with what it says replaced where it differs from run to run.
fn initialised(dir: &Path) -> (std::path::PathBuf, String) {
    let file = dir.join("conf/sandhaus.yaml");
    let output = sandhaus(&dir.join("data"))
        .args(["init", "--listen", "127.0.0.1:9999", "--config", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    (file, text.replace(dir.to_str().unwrap(), "DIR"))
}

#[test]
fn init_makes_a_private_configuration_that_passes_every_check() {
    let dir = tempfile::tempdir().unwrap();
    let (file, said) = initialised(dir.path());
    insta::assert_snapshot!(said);
    assert_eq!(fs_err::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(fs_err::metadata(dir.path().join("data")).unwrap().permissions().mode() & 0o7777, 0o700);
    let written = fs_err::read_to_string(&file).unwrap();
    let key = written.lines().find_map(|line| line.strip_prefix("api_key: ")).unwrap();
    assert!(key.starts_with("sk-") && key.len() == 51, "{key}");
    assert!(!said.contains(key), "the key is shown");
    // What is not set stands there as a comment, and means what it says without the mark.
    let uncommented = dir.path().join("uncommented.yaml");
    let is_prose = |line: &str| {
        line.trim_start().strip_prefix("# ").is_some_and(|text| text.starts_with(char::is_uppercase))
    };
    let lines = written.lines().filter(|line| !is_prose(line)).map(|line| line.replacen("# ", "", 1));
    fs_err::write(&uncommented, lines.collect::<Vec<_>>().join("\n")).unwrap();

    let named = ["--config", file.to_str().unwrap()];
    let data = dir.path().join("data");
    let run = |arguments: &[&str]| sandhaus(&data).args(named).args(arguments).output().unwrap();
    let checked = run(&["config", "check", "--strict", file.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", stderr(&checked));
    let checked = run(&["config", "check", "--strict", uncommented.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", stderr(&checked));
    // A second one is refused, and with --force it has another key.
    let again = run(&["init"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("is there already"), "{}", stderr(&again));
    assert_eq!(fs_err::read_to_string(&file).unwrap(), written);
    assert!(run(&["init", "--force"]).status.success());
    assert_ne!(fs_err::read_to_string(&file).unwrap(), written);
    // Beyond loopback there is a key, so nothing is refused.
    assert!(run(&["init", "--force", "--listen", ":9999"]).status.success());
}

#[test]
fn the_effective_configuration_is_shown_with_its_sources() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("test.yaml");
    fs_err::write(&file, "api_key: hunter2hunter2\ndefaults:\n  cpu_limit: 0.5\n").unwrap();
    let show = |format: &str| {
        let output = sandhaus(Path::new("/data"))
            .args(["--config", file.to_str().unwrap(), "config", "show", "-o", format])
            .env("SANDKASTEN_PIDS_LIMIT", "7")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().replace(file.to_str().unwrap(), "FILE")
    };
    let table = show("table");
    let row = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("api_key "), "set file FILE:1");
    assert_eq!(row("defaults.cpu_limit "), "0.5 file FILE:3");
    assert_eq!(row("defaults.pids_limit "), "7 environment SANDKASTEN_PIDS_LIMIT");
    assert_eq!(row("data_dir "), "/data flag --data-dir");
    assert_eq!(row("listen "), "127.0.0.1:8080 default");
    let json: serde_json::Value = serde_json::from_str(&show("json")).unwrap();
    assert_eq!(json["defaults.pids_limit"]["value"], 7);
    assert_eq!(json["defaults.pids_limit"]["source"], "environment");
    assert_eq!(json["defaults.pids_limit"]["from"], "SANDKASTEN_PIDS_LIMIT");
    assert_eq!(json["api_key"]["value"], "set");
    // What is shown as a file is one.
    let get = |key: &str| {
        let arguments = ["--config", file.to_str().unwrap(), "config", "get", key];
        run(Path::new("/data"), &arguments)
    };
    assert_eq!(stdout(&get("api_key")), "hunter2hunter2\n");
    assert_eq!(stdout(&get("defaults.cpu_limit")), "0.5\n");
    assert_eq!(stdout(&get("allowed_images")), "[]\n");
    let unknown = get("cpu_limit");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("did you mean defaults.cpu_limit?"), "{}", stderr(&unknown));
    let yaml = show("yaml");
    let copy = dir.path().join("copy.yaml");
    fs_err::write(&copy, &yaml).unwrap();
    let checked = run(Path::new("/data"), &["config", "check", "--strict", copy.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", stderr(&checked));
    for shown in [table, yaml] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn everything_wrong_with_a_file_is_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("test.yaml");
    fs_err::write(&file, "listen: here\nlisten_on: x\ndefaults:\n  cpu_limit: many\ndb_path: /x\n").unwrap();
    let check = |arguments: &[&str]| {
        let output = run(dir.path(), &[&["config", "check"], arguments].concat());
        (output.status.code(), stderr(&output).replace(file.to_str().unwrap(), "FILE"))
    };
    let (status, said) = check(&[file.to_str().unwrap()]);
    assert_eq!(status, Some(1));
    insta::assert_snapshot!(said);
    fs_err::write(&file, "listen_on: x\n").unwrap();
    assert_eq!(check(&[file.to_str().unwrap()]).0, Some(0));
    assert_eq!(check(&["--strict", file.to_str().unwrap()]).0, Some(1));
}

#[test]
fn the_audit_fails_for_what_is_dangerous() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("test.yaml");
    let audit = |content: &str, mode: u32| {
        fs_err::write(&file, content).unwrap();
        fs_err::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let arguments = ["--config", file.to_str().unwrap(), "security", "-o", "json"];
        let output = sandhaus(&dir.path().join("data")).args(arguments).output().unwrap();
        let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        let failed: Vec<String> = checks
            .iter()
            .filter(|check| check["level"] == "fail")
            .map(|check| check["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(output.status.code(), Some(i32::from(!failed.is_empty())));
        assert!(
            checks.iter().all(|check| check["level"] == "ok" || check["remedy"].is_string()),
            "{checks:?}"
        );
        failed
    };
    let key = "api_key: sk-0123456789abcdef0123456789abcdef\n";
    assert_eq!(audit(key, 0o600), Vec::<String>::new());
    assert_eq!(audit(key, 0o644), ["configuration"]);
    assert_eq!(audit("", 0o644), Vec::<String>::new());
    assert_eq!(audit("", 0o666), ["configuration"]);
    let bad = "listen: :80\nsecurity: {seccomp: 'off'}\ndefaults: {pids_limit: 0, mem_limit_mb: 0, network_mode: host}\n";
    assert_eq!(audit(bad, 0o600), ["api key", "seccomp", "pid limit", "memory limit", "network mode"]);
    // The same in the table, with the key nowhere.
    fs_err::write(&file, key).unwrap();
    let table = run(&dir.path().join("data"), &["--config", file.to_str().unwrap(), "security"]);
    assert!(!String::from_utf8_lossy(&table.stdout).contains("0123456789"));
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man");
    let output = run(dir.path(), &["man", "--dir", pages.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    for page in ["sandhaus.1", "sandhaus-run.1", "sandhaus-serve.1", "sandhaus-image-import.1"] {
        let text = fs_err::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    let main = run(dir.path(), &["man"]);
    assert_eq!(stdout(&main), fs_err::read_to_string(pages.join("sandhaus.1")).unwrap());
}
