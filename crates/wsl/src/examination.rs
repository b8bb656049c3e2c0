//! What can be wrong between Windows and a server inside of WSL, looked at in the order in which one thing stands on the
//! other, each with what to do about it.

use std::io;

use serde_json::Value;

use crate::{
    cli::Place,
    distributions::{self, Distribution},
    mounts::{Cgroups, Mounts},
    text::visible,
    wsl::{Output, Wsl},
};

/// How a thing that was looked at stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) name: String,
    pub(crate) level: Level,
    pub(crate) found: String,
    pub(crate) remedy: Option<String>,
}

impl Finding {
    pub(crate) fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Ok, found: found.into(), remedy: None }
    }

    pub(crate) fn warn(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    pub(crate) fn fail(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Fail, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// What the server is configured to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) port: u16,
    data_dir: String,
}

/// A distribution that can be asked, with everything found on the way.
#[derive(Debug)]
pub(crate) struct Examination<'a, W: Wsl> {
    wsl: &'a W,
    place: &'a Place,
    pub(crate) findings: Vec<Finding>,
    pub(crate) distribution: Option<String>,
    pub(crate) settings: Option<Settings>,
}

impl<'a, W: Wsl> Examination<'a, W> {
    /// Looks at everything that the server stands on. What stands on a thing that failed is not looked at.
    pub(crate) fn of(wsl: &'a W, place: &'a Place) -> Self {
        let mut examination = Self { wsl, place, findings: Vec::new(), distribution: None, settings: None };
        // Whichever step fails has noted why.
        let _: Option<()> = examination.examine();
        examination
    }

    /// Whether anything stands in the server's way.
    pub(crate) fn failed(&self) -> bool {
        self.findings.iter().any(|finding| finding.level == Level::Fail)
    }

    /// Runs our program inside as root, with the configuration that was named.
    pub(crate) fn sandhaus(&self, words: &[&str]) -> io::Result<Output> {
        let mut all = vec![self.place.binary.as_str()];
        all.extend(words);
        if let Some(config) = &self.place.config {
            all.extend(["--config", config]);
        }
        self.inside(&all)
    }

    fn inside(&self, words: &[&str]) -> io::Result<Output> {
        let name = self.distribution.as_deref().unwrap_or_default();
        let mut all = vec!["-d", name, "-u", "root", "--exec"];
        all.extend(words);
        self.wsl.call(&all)
    }

    fn note(&mut self, finding: Finding) -> Option<()> {
        let go_on = finding.level != Level::Fail;
        self.findings.push(finding);
        go_on.then_some(())
    }

    fn examine(&mut self) -> Option<()> {
        let distributions = self.examine_wsl()?;
        let finding = choose(&distributions, self.place.distro.as_deref());
        let chosen = match finding {
            Ok(chosen) => chosen,
            Err(finding) => return self.note(finding),
        };
        self.distribution = Some(chosen.name.clone());
        self.note(Finding::ok("distribution", format!("{}, WSL {}", chosen.name, chosen.version)))?;
        let mounts = self.examine_mounts(&chosen.name)?;
        self.examine_program()?;
        self.examine_settings(&mounts)
    }

    fn examine_wsl(&mut self) -> Option<Vec<Distribution>> {
        const NAME: &str = "WSL";
        let install =
            "in a PowerShell that runs as administrator: wsl --install -d Debian; then restart Windows";
        let listed = match self.wsl.call(&["--list", "--verbose"]) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.note(Finding::fail(NAME, "is not installed: Windows has no wsl.exe", install));
                return None;
            }
            Err(error) => {
                self.note(Finding::fail(NAME, format!("wsl.exe does not run: {error}"), "wsl --update"));
                return None;
            }
        };
        let distributions = distributions::parse(&listed.out);
        if !distributions.is_empty() {
            self.note(Finding::ok(NAME, "is installed"));
            return Some(distributions);
        }
        // With WSL but no distribution its version is told; without WSL there is only a program that offers to get it.
        let installed = self.wsl.call(&["--version"]).is_ok_and(|output| output.succeeded);
        let said = visible(listed.message());
        self.note(if installed {
            Finding::fail("distribution", format!("there is none: {said}"), "wsl --install -d Debian")
        } else {
            Finding::fail(NAME, format!("is not installed: {said}"), install)
        });
        None
    }

    fn examine_mounts(&mut self, name: &str) -> Option<Mounts> {
        let mounts = match self.inside(&["cat", "/proc/mounts"]) {
            Ok(output) if output.succeeded => Mounts::parse(&output.out),
            failed => {
                let said = said(&failed);
                let remedy = format!(
                    "see whether `wsl -d {name}` gives a shell; if not: wsl --update, wsl --shutdown"
                );
                self.note(Finding::fail("distribution", format!("{name} does not start: {said}"), remedy));
                return None;
            }
        };
        let unified = "wsl --update; if that does not help, put `kernelCommandLine = cgroup_no_v1=all` under [wsl2] \
                       in %UserProfile%\\.wslconfig; then wsl --shutdown";
        self.note(match mounts.cgroups() {
            Cgroups::Unified => Finding::ok("cgroups", "version 2"),
            Cgroups::Legacy => {
                Finding::warn("cgroups", "version 1: limits work, other programs may want version 2", unified)
            }
            Cgroups::Missing => Finding::fail("cgroups", "none: sandboxes cannot be limited", unified),
        })?;
        Some(mounts)
    }

    fn examine_program(&mut self) -> Option<()> {
        let program = &self.place.binary;
        let version = self.inside(&[program, "version"]);
        self.note(match &version {
            Ok(output) if output.succeeded && output.out.starts_with("sandhaus") => {
                Finding::ok("program", visible(&output.out))
            }
            other => Finding::fail(
                "program",
                format!("{program} does not run inside: {}", said(other)),
                "put the Linux program `sandhaus` into the distribution as /usr/local/bin/sandhaus (mode 755), or name \
                 its place with --binary",
            ),
        })
    }

    fn examine_settings(&mut self, mounts: &Mounts) -> Option<()> {
        const NAME: &str = "configuration";
        let shown = self.sandhaus(&["config", "show", "-o", "json"]);
        let settings = match &shown {
            Ok(output) if output.succeeded => parse_settings(&output.out),
            _ => None,
        };
        let Some(settings) = settings else {
            let remedy = "correct the file, or name another with --config; `sandhaus init` inside makes one";
            return self.note(Finding::fail(NAME, said(&shown), remedy));
        };
        let named = self.place.config.as_deref();
        self.note(match named {
            Some(file) if mounts.is_windows(file) => Finding::warn(
                NAME,
                format!("{file} lies on a drive of Windows, where every user inside can read the key"),
                "copy it to /etc/sandhaus/sandhaus.yaml inside, with mode 600",
            ),
            Some(file) => Finding::ok(NAME, file),
            None => Finding::ok(NAME, "the default one"),
        })?;
        let data_dir = &settings.data_dir;
        let finding = if mounts.is_windows(data_dir) {
            Finding::fail(
                "data directory",
                format!(
                    "{data_dir} lies on a drive of Windows, which has no owners, no overlay and no speed"
                ),
                "set data_dir to a directory of the distribution's own, such as /var/lib/sandhaus",
            )
        } else {
            Finding::ok("data directory", data_dir)
        };
        self.settings = Some(settings);
        self.note(finding)
    }
}

/// The distribution that is meant, if it can have sandboxes.
fn choose<'a>(all: &'a [Distribution], named: Option<&str>) -> Result<&'a Distribution, Finding> {
    const NAME: &str = "distribution";
    let names = || all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    let chosen = match named {
        Some(named) => all.iter().find(|one| one.name.eq_ignore_ascii_case(named)).ok_or_else(|| {
            let remedy =
                format!("wsl --install -d {named}, or name one that is there with --distro: {}", names());
            Finding::fail(NAME, format!("there is no {named}"), remedy)
        })?,
        None => all.iter().find(|one| one.is_default).ok_or_else(|| {
            Finding::fail(NAME, "none is the default", format!("name one with --distro: {}", names()))
        })?,
    };
    let name = &chosen.name;
    if chosen.is_of_others() && named.is_none() {
        let found = format!("the default, {name}, belongs to another program");
        return Err(Finding::fail(NAME, found, "wsl --install -d Debian, then use --distro Debian"));
    }
    if chosen.version == 1 {
        let found = format!("{name} is of WSL 1, which has no Linux kernel");
        return Err(Finding::fail(NAME, found, format!("wsl --set-version {name} 2")));
    }
    Ok(chosen)
}

/// What `config show -o json` says, as far as it matters here.
fn parse_settings(text: &str) -> Option<Settings> {
    let all: Value = serde_json::from_str(text).ok()?;
    let value = |key: &str| all.get(key)?.get("value")?.as_str().map(str::to_owned);
    let port = value("listen")?.rsplit(':').next()?.parse().ok()?;
    Some(Settings { port, data_dir: value("data_dir")? })
}

/// Why a call failed, to be shown.
pub(crate) fn said(result: &io::Result<Output>) -> String {
    match result {
        Ok(output) if output.message().trim().is_empty() => "it says nothing".to_owned(),
        Ok(output) => visible(output.message()),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => "wsl.exe does not come to an end".to_owned(),
        Err(error) => error.to_string(),
    }
}
