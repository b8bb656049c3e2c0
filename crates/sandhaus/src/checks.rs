//! What `doctor` and `security` found, and how it is printed.

use std::process::ExitCode;

use anyhow::Result;
use owo_colors::{OwoColorize, Stream};
use serde::Serialize;

use crate::{
    cli::Output,
    output::{print, print_json, visible},
    spelling::CalledAs,
};

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Works, but could be better.
    Warn,
    /// Does not do.
    Fail,
}

/// What was looked at, and how it stands.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) level: Level,
    pub(crate) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

impl Check {
    /// All is well.
    pub(crate) fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Ok, found: found.into(), remedy: None }
    }

    /// Odd, with what to do about it.
    pub(crate) fn warn(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    /// Wrong, with what to do about it.
    pub(crate) fn fail(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Fail, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// What was checked, and how its report closes.
pub(crate) struct Subject {
    /// Name of the command.
    pub(crate) name: &'static str,
    /// Nothing failed.
    pub(crate) good: &'static str,
    /// Something did.
    pub(crate) bad: &'static str,
    /// What else a reader should know.
    pub(crate) note: Option<&'static str>,
}

/// Prints the report; status 1 if anything failed.
pub(crate) fn report(
    checks: &[Check],
    output: Output,
    subject: &Subject,
    called_as: CalledAs,
) -> Result<ExitCode> {
    match (output, called_as) {
        (Output::Json, _) => print_json(&checks)?,
        (Output::Table, CalledAs::Sandhaus) => print(&render(checks, subject))?,
        (Output::Table, CalledAs::Sandkasten) => print(&render_as_sandkasten(checks, subject))?,
    }
    let failed = checks.iter().any(|check| check.level == Level::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn count(checks: &[Check], level: Level) -> usize {
    checks.iter().filter(|check| check.level == level).count()
}

fn render(checks: &[Check], subject: &Subject) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let level = match check.level {
            Level::Ok => "ok  ".if_supports_color(Stream::Stdout, |text| text.green()).to_string(),
            Level::Warn => "warn".if_supports_color(Stream::Stdout, |text| text.yellow()).to_string(),
            Level::Fail => "fail".if_supports_color(Stream::Stdout, |text| text.red()).to_string(),
        };
        text.push_str(&format!("{level}  {:width$}  {}\n", check.name, visible(&check.found)));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("      {:width$}  → {}\n", "", visible(remedy)));
        }
    }
    text.push_str(&match (count(checks, Level::Fail), count(checks, Level::Warn)) {
        (0, 0) => format!("\n{}.\n", subject.good),
        (0, warnings) => format!("\n{}; warnings: {warnings}.\n", subject.good),
        (failures, _) => format!("\n{}; failures: {failures}.\n", subject.bad),
    });
    if let Some(note) = subject.note {
        text.push_str(&format!("{note}\n"));
    }
    text
}

/// In the shape that scripts around the older tool read.
fn render_as_sandkasten(checks: &[Check], subject: &Subject) -> String {
    let mut text = format!("Sandkasten {}\n", subject.name);
    for check in checks {
        let level = match check.level {
            Level::Ok => "OK",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        let remedy = check.remedy.as_ref().map_or(String::new(), |remedy| format!(": {}", visible(remedy)));
        text.push_str(&format!("[{level}] {:16} {}{remedy}\n", check.name, visible(&check.found)));
    }
    let mut name = subject.name.to_owned();
    name[..1].make_ascii_uppercase();
    text.push_str(&match count(checks, Level::Fail) {
        0 => format!("{name} checks passed.\n"),
        failures => format!("{name} found {failures} blocking issue(s).\n"),
    });
    if let Some(note) = subject.note {
        text.push_str(&format!("{note}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_align_and_the_end_sums_up() {
        let checks = [
            Check::ok("kernel", "6.18"),
            Check::warn("disk space", "1 GiB free", "free space"),
            Check::fail("seccomp", "missing\u{1b}[2J", "another kernel"),
        ];
        let subject = Subject { name: "doctor", good: "good", bad: "bad", note: None };
        insta::assert_snapshot!(render(&checks, &subject), @r"
        ok    kernel      6.18
        warn  disk space  1 GiB free
                          → free space
        fail  seccomp     missing\u{1b}[2J
                          → another kernel

        bad; failures: 1.
        ");
        insta::assert_snapshot!(render_as_sandkasten(&checks, &subject), @r"
        Sandkasten doctor
        [OK] kernel           6.18
        [WARN] disk space       1 GiB free: free space
        [FAIL] seccomp          missing\u{1b}[2J: another kernel
        Doctor found 1 blocking issue(s).
        ");
        let subject = Subject { note: Some("a note"), ..subject };
        assert!(render(&checks[..2], &subject).ends_with("\ngood; warnings: 1.\na note\n"));
        assert!(render_as_sandkasten(&checks[..2], &subject).ends_with("Doctor checks passed.\na note\n"));
    }
}
