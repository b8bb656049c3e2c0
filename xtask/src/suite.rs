//! Everything CI runs, in the order that fails soonest, counted over all suites.
//!
//! Each check counts as one test. A test that cannot run where it stands says so by appending one line, its name and
//! the reason, to the file that [`SKIPS`] names; such a test counts as skipped, though its harness saw it pass.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail};

use crate::{arch, cargo, configuration, openapi, root, target_dir};

/// Environment variable with the file to which tests append what they skipped.
const SKIPS: &str = "SANDHAUS_TEST_SKIPS";

/// Environment variable with the binary that end-to-end tests run.
const BINARY: &str = "SANDHAUS_BIN";

/// Every shell script of the project that is no input of a test.
const SHELL_SCRIPTS: &[&str] = &[
    "x",
    ".ci/run",
    "images/toolbox/build",
    "packaging/docker/entrypoint",
    "packaging/docker/healthcheck",
    "tests/page/run",
    "tests/python/run",
    "tests/toolbox/run",
    "tests/guest/asking.sh",
    "tests/guest/checks.sh",
    "tests/guest/kernel.sh",
    "tests/guest/root.sh",
    "tests/guest/service-checks.sh",
    "tests/guest/service-root.sh",
    "tests/guest/init",
    "tests/guest/initramfs-init",
];

/// What came out of some tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// How one check went.
enum Verdict {
    Passed,
    Skipped(String),
}

/// Results so far.
struct Report {
    skips: PathBuf,
    total: Tally,
    failures: Vec<String>,
    skipped: Vec<String>,
    started: Instant,
}

/// The checks alone.
pub(crate) fn checks() -> anyhow::Result<()> {
    let mut report = Report::new()?;
    report.run_checks();
    report.close()
}

/// The checks and every test; with `only`, just the test packages and files whose name contains it.
pub(crate) fn everything(only: Option<&str>) -> anyhow::Result<()> {
    let mut report = Report::new()?;
    if only.is_none() {
        report.run_checks();
    }
    report.check("build", || {
        succeed(cargo().args(["build", "--package", "sandhaus"]))?;
        // Kept apart: cargo puts the one it builds for its own tests, with features that only tests need, in its place.
        fs_err::create_dir_all(shipped().parent().expect("a file in a folder"))?;
        fs_err::copy(target_dir().join("debug/sandhaus"), shipped())?;
        Ok(Verdict::Passed)
    });
    let python = root().join("tests/python/run");
    let wanted = |name: &str| only.is_none_or(|only| name.contains(only));
    if only.is_none() {
        report.tests("cargo test", cargo().args(["test", "--workspace", "--no-fail-fast"]));
    } else {
        for name in test_files()?.iter().filter(|name| wanted(name)) {
            report.tests(name, cargo().args(["test", "--package", "sandhaus-tests", "--test", name]));
        }
    }
    if wanted("python") && python.exists() {
        report.tests("python client", &mut Command::new(python));
    }
    if wanted("toolbox") {
        report.tests("toolbox clients", &mut Command::new(root().join("tests/toolbox/run")));
    }
    if wanted("page") {
        report.tests("web page", &mut Command::new(root().join("tests/page/run")));
    }
    report.close()
}

/// The binary as it is shipped, for the end-to-end tests.
fn shipped() -> PathBuf {
    target_dir().join("shipped/sandhaus")
}

fn test_files() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(root().join("tests/tests"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn succeed(command: &mut Command) -> anyhow::Result<Verdict> {
    let status = command.status().with_context(|| format!("start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("ended with {status}");
    }
    Ok(Verdict::Passed)
}

/// Runs a tool that a machine may lack; lacking it is a loud skip.
fn with_tool(probe: &mut Command, command: &mut Command, lacking: &str) -> anyhow::Result<Verdict> {
    let there =
        probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if there { succeed(command) } else { Ok(Verdict::Skipped(lacking.to_owned())) }
}

impl Report {
    fn new() -> anyhow::Result<Self> {
        let skips = target_dir().join("skipped-tests.txt");
        fs_err::create_dir_all(target_dir())?;
        fs_err::write(&skips, "")?;
        Ok(Self {
            skips,
            total: Tally::default(),
            failures: Vec::new(),
            skipped: Vec::new(),
            started: Instant::now(),
        })
    }

    fn run_checks(&mut self) {
        self.check("format", || succeed(cargo().args(["fmt", "--all", "--check"])));
        self.check("architecture", || arch::run().map(|()| Verdict::Passed));
        self.check("shell scripts", || {
            let mut shellcheck = Command::new("shellcheck");
            shellcheck.args(SHELL_SCRIPTS).current_dir(root());
            with_tool(
                Command::new("shellcheck").arg("--version"),
                &mut shellcheck,
                "shellcheck is not installed",
            )
        });
        self.check("lints", || {
            succeed(cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
        });
        self.check("dependencies", || {
            let mut deny = cargo();
            deny.args(["deny", "--offline", "check", "bans", "licenses", "sources"]);
            with_tool(cargo().args(["deny", "--version"]), &mut deny, "cargo-deny is not installed")
        });
        self.check("openapi", || openapi::check().map(|()| Verdict::Passed));
        self.check("configuration", || configuration::check().map(|()| Verdict::Passed));
    }

    fn check(&mut self, name: &str, work: impl FnOnce() -> anyhow::Result<Verdict>) {
        let started = Instant::now();
        let verdict = work();
        let seconds = started.elapsed().as_secs_f64();
        match verdict {
            Ok(Verdict::Passed) => {
                self.total.passed += 1;
                println!("== {name}: passed in {seconds:.1} s");
            }
            Ok(Verdict::Skipped(reason)) => {
                self.total.skipped += 1;
                println!("== {name}: SKIPPED, {reason}");
                self.skipped.push(format!("{name}: {reason}"));
            }
            Err(error) => {
                self.total.failed += 1;
                println!("== {name}: FAILED after {seconds:.1} s: {error:#}");
                self.failures.push(name.to_owned());
            }
        }
    }

    /// Runs a test command, shows its output as it comes, and counts what it says.
    fn tests(&mut self, name: &str, command: &mut Command) {
        let started = Instant::now();
        command.current_dir(root());
        command
            .env(SKIPS, &self.skips)
            .env(BINARY, target_dir().join("debug/sandhaus"))
            .stdout(Stdio::piped());
        let outcome = command.spawn().and_then(|mut child| {
            let output = child.stdout.take().expect("the output is piped");
            let mut reader = Counts::default();
            for line in BufReader::new(output).split(b'\n') {
                let line = String::from_utf8_lossy(&line?).into_owned();
                reader.line(&line);
                writeln!(std::io::stdout(), "{line}")?;
            }
            Ok((child.wait()?, reader))
        });
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok((status, mut counts)) => {
                if !status.success() && counts.tally.failed == 0 {
                    counts.tally.failed = 1;
                    counts.failures.push(format!("{name} ended with {status}"));
                }
                if counts.tally == Tally::default() {
                    counts.tally.failed = 1;
                    counts.failures.push(format!("{name} ran no test"));
                }
                let Tally { passed, failed, skipped } = counts.tally;
                println!("== {name}: {passed} passed, {failed} failed, {skipped} ignored in {seconds:.1} s");
                self.total.passed += passed;
                self.total.failed += failed;
                self.total.skipped += skipped;
                self.failures.append(&mut counts.failures);
            }
            Err(error) => {
                self.total.failed += 1;
                self.failures.push(format!("{name} could not be started: {error}"));
            }
        }
    }

    fn close(mut self) -> anyhow::Result<()> {
        let said = fs_err::read_to_string(&self.skips)?;
        // A test counts once, however often it says so.
        let reasons: BTreeMap<_, _> = said.lines().filter_map(|line| line.split_once(": ")).collect();
        for (name, reason) in reasons {
            self.skipped.push(format!("{name}: {reason}"));
            self.total.passed = self.total.passed.saturating_sub(1);
            self.total.skipped += 1;
        }
        println!();
        for skipped in &self.skipped {
            println!("SKIPPED {skipped}");
        }
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
        println!("whole run: {:.0} s", self.started.elapsed().as_secs_f64());
        let Tally { passed, failed, skipped } = self.total;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        if failed > 0 {
            bail!("{failed} failed");
        }
        Ok(())
    }
}

/// Reads test harnesses' output line by line: libtest's, pytest's and unittest's closing lines.
#[derive(Debug, Default)]
struct Counts {
    tally: Tally,
    failures: Vec<String>,
}

impl Counts {
    fn line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.add(counts.split_once(". ").map_or("", |(_, counts)| counts).split("; "));
        } else if let Some(counts) = line.strip_prefix('=').and_then(|line| line.split(" in ").next()) {
            // pytest: `===== 3 passed, 1 skipped in 0.12s =====`
            self.add(counts.trim_matches(['=', ' ']).split(", "));
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        } else if let Some(name) = line.strip_prefix("FAILED ") {
            self.failures.push(name.to_owned());
        }
    }

    fn add<'a>(&mut self, counts: impl Iterator<Item = &'a str>) {
        for (number, what) in counts.filter_map(|count| count.trim().split_once(' ')) {
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.tally.passed += number,
                "failed" | "error" | "errors" => self.tally.failed += number,
                "ignored" | "skipped" => self.tally.skipped += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(lines: &[&str]) -> Counts {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.line(line));
        counts
    }

    #[test]
    fn closing_lines_of_both_harnesses_are_counted() {
        let counts = count(&[
            "running 3 tests",
            "test a ... ok",
            "test b::c ... FAILED",
            "test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "FAILED tests/python/test_a.py::test_b - AssertionError",
            "======= 1 failed, 7 passed, 3 skipped in 0.12s =======",
        ]);
        assert_eq!(counts.tally, Tally { passed: 24, failed: 2, skipped: 5 });
        assert_eq!(counts.failures, ["b::c", "tests/python/test_a.py::test_b - AssertionError"]);
    }

    #[test]
    fn other_lines_count_nothing() {
        let counts = count(&["5 passed", "==== test session starts ====", "test result", "= = =", ""]);
        assert_eq!(counts.tally, Tally::default());
    }
}
