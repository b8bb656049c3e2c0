//! What is done: start, status, stop, doctor.

use serde_json::{Value, json};

use crate::{
    cli::{Arguments, Command, Output, Place},
    examination::{Examination, Finding, Level, said},
    reach::Reach,
    text::visible,
    wsl::Wsl,
};

/// Exit status when something is wrong.
const FAILED: u8 = 1;

/// Exit status of `status` when the server does not run.
const NOT_RUNNING: u8 = 3;

/// How often Windows is asked for a server that has just started.
const REACH_ATTEMPTS: usize = 50;

/// Name of the finding about the way from Windows.
const ACCESS: &str = "Windows access";

/// What is printed, and the exit status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) code: u8,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Reply {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: FAILED, err: message.into(), ..Self::default() }
    }
}

/// Does what was asked for.
pub(crate) fn run(arguments: &Arguments, wsl: &impl Wsl, reach: &impl Reach) -> Reply {
    let place = &arguments.place;
    match arguments.command {
        Command::Start => start(place, wsl, reach),
        Command::Stop => stop(place, wsl),
        Command::Status { output } => status(place, output, wsl, reach),
        Command::Doctor { output } => doctor(place, output, wsl, reach),
    }
}

fn start(place: &Place, wsl: &impl Wsl, reach: &impl Reach) -> Reply {
    let examination = Examination::of(wsl, place);
    let mut err = complaints(&examination.findings);
    let (false, Some(settings)) = (examination.failed(), &examination.settings) else {
        return Reply::failed(err);
    };
    let name = examination.distribution.as_deref().unwrap_or_default();
    let port = settings.port;
    let word = if sandboxes(&examination).is_ok() {
        "already runs"
    } else {
        let started = examination.sandhaus(&["daemon", "-d"]);
        if !started.as_ref().is_ok_and(|output| output.succeeded) {
            err += &format!("error: the server does not start in {name}: {}\n", said(&started));
            err += "hint: sandhaus-wsl doctor\n";
            return Reply::failed(err);
        }
        "runs"
    };
    // It takes Windows a moment to notice a new listener.
    let reached = (0..REACH_ATTEMPTS).any(|attempt| {
        if attempt > 0 {
            reach.wait();
        }
        reach.answers(port)
    });
    let out = format!("the server {word} in {name}\n");
    if !reached {
        err += &complaints(&[access(port, false)]);
        return Reply { code: FAILED, out, err };
    }
    Reply { code: 0, out: format!("{out}API  http://localhost:{port}/v1\n"), err }
}

fn stop(place: &Place, wsl: &impl Wsl) -> Reply {
    let examination = Examination::of(wsl, place);
    let err = complaints(&examination.findings);
    if examination.failed() {
        return Reply::failed(err);
    }
    let stopped = examination.sandhaus(&["stop"]);
    match &stopped {
        Ok(output) if output.succeeded => Reply { code: 0, out: format!("{}\n", visible(&output.out)), err },
        _ => Reply::failed(format!("{err}error: the server was not stopped: {}\n", said(&stopped))),
    }
}

fn status(place: &Place, output: Output, wsl: &impl Wsl, reach: &impl Reach) -> Reply {
    let examination = Examination::of(wsl, place);
    let mut findings = examination.findings.clone();
    let (false, Some(settings)) = (examination.failed(), &examination.settings) else {
        return Reply { code: FAILED, ..show(output, &findings, &json!({ "running": false }), "") };
    };
    let port = settings.port;
    match sandboxes(&examination) {
        Ok(list) => {
            let reached = reach.answers(port);
            findings.push(access(port, reached));
            let count = list.as_array().map_or(0, Vec::len);
            let url = format!("http://localhost:{port}");
            let name = examination.distribution.as_deref().unwrap_or_default();
            let text = format!("the server runs in {name}\nAPI        {url}/v1\nsandboxes  {count}\n");
            let facts = json!({ "running": true, "distribution": name, "url": url, "reachable": reached,
                                "sandboxes": list });
            let code = if reached { 0 } else { FAILED };
            Reply { code, ..show(output, &findings, &facts, &text) }
        }
        Err(why) => {
            let facts = json!({ "running": false, "distribution": examination.distribution, "reason": why });
            let reply = show(output, &findings, &facts, "the server does not run\n");
            Reply { code: NOT_RUNNING, err: format!("{}{why}\n", reply.err), ..reply }
        }
    }
}

fn doctor(place: &Place, output: Output, wsl: &impl Wsl, reach: &impl Reach) -> Reply {
    let examination = Examination::of(wsl, place);
    let mut findings = examination.findings.clone();
    if let (false, Some(settings)) = (examination.failed(), &examination.settings) {
        let inside = examination.sandhaus(&["doctor", "-o", "json"]);
        match inside.as_ref().ok().and_then(|output| parse_checks(&output.out)) {
            Some(checks) => findings.extend(checks),
            None => findings.push(Finding::fail("sandboxes", said(&inside), "run `sandhaus doctor` inside")),
        }
        findings.push(match sandboxes(&examination) {
            Ok(_) => access(settings.port, reach.answers(settings.port)),
            Err(_) => Finding::ok("server", "does not run; sandhaus-wsl start"),
        });
    }
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    let out = match output {
        Output::Json => format!("{:#}\n", Value::from_iter(findings.iter().map(as_json))),
        Output::Table => {
            let end = if failed { "Something is in the way." } else { "A server can run." };
            format!("{}\n{end}\n", table(&findings))
        }
    };
    Reply { code: if failed { FAILED } else { 0 }, out, err: String::new() }
}

/// The server's own list of its sandboxes, or why there is none.
fn sandboxes(examination: &Examination<'_, impl Wsl>) -> Result<Value, String> {
    let listed = examination.sandhaus(&["ps", "-o", "json"]);
    let list = listed.as_ref().ok().filter(|output| output.succeeded);
    let list =
        list.and_then(|output| serde_json::from_str::<Value>(&output.out).ok()).filter(Value::is_array);
    list.ok_or_else(|| said(&listed))
}

fn access(port: u16, reached: bool) -> Finding {
    if reached {
        return Finding::ok(ACCESS, format!("http://localhost:{port} answers"));
    }
    Finding::fail(
        ACCESS,
        format!("the server runs, but http://localhost:{port} does not answer from Windows"),
        "see that no program of Windows has the port, and that %UserProfile%\\.wslconfig does not turn off \
         localhostForwarding; then wsl --shutdown and start again",
    )
}

/// What the program inside found.
fn parse_checks(text: &str) -> Option<Vec<Finding>> {
    let checks: Value = serde_json::from_str(text).ok()?;
    let finding = |check: &Value| {
        let word = |key: &str| check.get(key)?.as_str().map(visible);
        let level = match check.get("level")?.as_str()? {
            "ok" => Level::Ok,
            "warn" => Level::Warn,
            _ => Level::Fail,
        };
        Some(Finding { name: word("name")?, level, found: word("found")?, remedy: word("remedy") })
    };
    checks.as_array()?.iter().map(finding).collect()
}

/// Facts for programs or text for people, and what is odd.
fn show(output: Output, findings: &[Finding], facts: &Value, text: &str) -> Reply {
    match output {
        Output::Table => Reply { code: 0, out: text.to_owned(), err: complaints(findings) },
        Output::Json => {
            let mut facts = facts.clone();
            let odd = findings.iter().filter(|finding| finding.level != Level::Ok).map(as_json);
            facts["problems"] = odd.collect();
            Reply { code: 0, out: format!("{facts:#}\n"), err: String::new() }
        }
    }
}

fn as_json(finding: &Finding) -> Value {
    json!({ "name": finding.name, "level": word(finding.level), "found": finding.found, "remedy": finding.remedy })
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warn => "warn",
        Level::Fail => "fail",
    }
}

/// Everything that is not well, as errors and warnings.
fn complaints(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let word = match finding.level {
            Level::Ok => continue,
            Level::Warn => "warning",
            Level::Fail => "error",
        };
        text += &format!("{word}: {}: {}\n", finding.name, finding.found);
        if let Some(remedy) = &finding.remedy {
            text += &format!("hint: {remedy}\n");
        }
    }
    text
}

fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        text += &format!("{:4}  {:width$}  {}\n", word(finding.level), finding.name, finding.found);
        if let Some(remedy) = &finding.remedy {
            text += &format!("      {:width$}  -> {remedy}\n", "");
        }
    }
    text
}

#[cfg(test)]
mod tests;
