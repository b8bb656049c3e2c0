//! `POST /process/code-run`: a piece of Python, JavaScript or TypeScript to its end, and the figures that it shows.
//!
//! ```text
//!   python       code ──> stdin of `python3 -u -`
//!   with figures code ──> stdin of `python3 -u <python.py>` ── a line per figure ──> charts
//!   javascript   code ──> stdin of `node -`
//!   typescript   code ──> descriptor 9 of `node -`, whose stdin is <typescript.js>
//! ```
//! Figures travel over a pipe of their own, so nothing of them is in the output, and no output can be taken for one.
//! Our own programs are files in memory that only the interpreter sees.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd},
    sync::Arc,
};

use axum::{Json, Router, extract::State, routing::post};
use sandhaus_protocol::{
    code::{Chart, CodeRunArtifacts, CodeRunReply, CodeRunRequest},
    process::ARGS_MAX,
};

use crate::{
    agent::Agent,
    error::{Error, Result},
    execute::{ARGUMENT_BYTES_MAX, NOT_STARTED, Outcome, Shot, check_variables, time_limit},
    lines::Lines,
    sys::{Channel, Script, SpawnError, output_pipe},
};

/// The program that runs Python code with figures, in two parts. The interpreter contexts use the first one, too.
pub(crate) const CHARTS_PROGRAM: &str = include_str!("charts.py");
const PYTHON_PROGRAM: &str = include_str!("python.py");

/// The program that translates TypeScript and runs it.
const TYPESCRIPT_PROGRAM: &str = include_str!("typescript.js");

/// Descriptor of our own program or, for TypeScript, of the code; the figures of Python go to the one before.
pub(crate) const PROGRAM_FD: RawFd = 9;
const CHARTS_FD: RawFd = 8;

/// Where Python finds the program.
pub(crate) const PROGRAM_PATH: &str = "/proc/self/fd/9";

/// Words in Python code that may come to show a figure.
const FIGURE_WORDS: [&str; 5] = ["matplotlib", "pylab", "seaborn", "pandas", "plotnine"];

/// Most figures of one run, most bytes of one, and of all.
const CHARTS_MAX: usize = 64;
const CHART_BYTES_MAX: usize = 16 << 20;
const CHARTS_BYTES_MAX: usize = 48 << 20;

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route("/process/code-run", post(code_run))
}

/// What code is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Python,
    JavaScript,
    TypeScript,
}

impl Language {
    fn parse(name: &str) -> Result<Self> {
        match name {
            "python" => Ok(Self::Python),
            "javascript" => Ok(Self::JavaScript),
            "typescript" => Ok(Self::TypeScript),
            other => Err(Error::invalid(format_args!(
                "unsupported language {other:?}: python, javascript or typescript"
            ))),
        }
    }

    /// What to say where its interpreter is missing.
    fn remedy(self, error: &SpawnError) -> String {
        match (self, error) {
            (Self::Python, SpawnError::NotFound) => {
                "no python3 on the PATH: install Python 3, for example with apt-get install python3\n"
                    .to_owned()
            }
            (Self::JavaScript | Self::TypeScript, SpawnError::NotFound) => {
                "no node on the PATH: install Node.js, for example with apt-get install nodejs\n".to_owned()
            }
            (Self::Python, other) => format!("python3: {other}\n"),
            (Self::JavaScript | Self::TypeScript, other) => format!("node: {other}\n"),
        }
    }
}

/// What an interpreter is started with.
struct Start {
    argv: Vec<String>,
    stdin: OwnedFd,
    program: Option<Script>,
    charts: Option<(Channel, OwnedFd)>,
}

impl Start {
    fn prepare(language: Language, code: &str) -> Result<Self> {
        let argv = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let in_memory = |parts: &[&[u8]]| Script::new()?.into_readable(parts);
        let plain = |words, parts: &[&[u8]]| -> Result<Self> {
            Ok(Self { argv: argv(words), stdin: in_memory(parts)?, program: None, charts: None })
        };
        match language {
            Language::Python if FIGURE_WORDS.iter().any(|word| code.contains(word)) => {
                let program = Script::new()?;
                program.replace(&[CHARTS_PROGRAM.as_bytes(), PYTHON_PROGRAM.as_bytes()])?;
                let (ours, theirs) = output_pipe()?;
                Ok(Self {
                    argv: argv(&["python3", "-u", PROGRAM_PATH]),
                    stdin: in_memory(&[code.as_bytes()])?,
                    program: Some(program),
                    charts: Some((Channel::reading(ours)?, theirs)),
                })
            }
            Language::Python => plain(&["python3", "-u", "-"], &[code.as_bytes()]),
            Language::JavaScript => plain(&["node", "-"], &[javascript_prefix(code), code.as_bytes()]),
            Language::TypeScript => {
                let program = Script::new()?;
                program.replace(&[code.as_bytes()])?;
                let stdin = in_memory(&[TYPESCRIPT_PROGRAM.as_bytes()])?;
                Ok(Self { argv: argv(&["node", "-"]), stdin, program: Some(program), charts: None })
            }
        }
    }
}

/// Takes away the argument that stands for the code, on the code's own first line so that lines keep their numbers.
fn javascript_prefix(code: &str) -> &'static [u8] {
    let start = code.trim_start();
    if start.starts_with("#!") {
        // Such a line is only one at the very beginning.
        b"process.argv.splice(1,1);//"
    } else if start.starts_with("\"use strict\"") || start.starts_with("'use strict'") {
        b"'use strict';process.argv.splice(1,1);"
    } else {
        b"process.argv.splice(1,1);"
    }
}

/// `POST /process/code-run`.
pub(crate) async fn code_run(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<CodeRunRequest>,
) -> Result<Json<CodeRunReply>> {
    let language = Language::parse(&request.language)?;
    if request.code.trim().is_empty() {
        return Err(Error::invalid("code is required"));
    }
    let limit = time_limit(request.timeout)?;
    check_variables(request.envs.as_ref())?;
    let arguments = request.argv.unwrap_or_default();
    if arguments.len() > ARGS_MAX || arguments.iter().any(|argument| argument.len() > ARGUMENT_BYTES_MAX) {
        return Err(Error::invalid(format_args!(
            "at most {ARGS_MAX} arguments of at most {ARGUMENT_BYTES_MAX} bytes"
        )));
    }
    let Start { mut argv, stdin, program, charts } = Start::prepare(language, &request.code)?;
    argv.extend(arguments);
    let (ours, theirs) = charts.map_or((None, None), |(ours, theirs)| (Some(ours), Some(theirs)));
    let mut descriptors: Vec<(BorrowedFd<'_>, RawFd)> = Vec::new();
    descriptors.extend(program.as_ref().map(|program| (program.descriptor(), PROGRAM_FD)));
    descriptors.extend(theirs.as_ref().map(|theirs| (theirs.as_fd(), CHARTS_FD)));
    let mut figures = ours.map(Figures::new);
    let shot = Shot {
        argv: &argv,
        envs: request.envs,
        cwd: &agent.workdir,
        stdin: stdin.as_fd(),
        descriptors: &descriptors,
        limit,
    };
    let beside = async {
        match &mut figures {
            Some(figures) => figures.follow().await,
            None => std::future::pending().await,
        }
    };
    Ok(Json(match shot.run(&agent, beside).await? {
        Outcome::Ended { exit_code, output } => CodeRunReply {
            exit_code,
            result: output,
            artifacts: figures.map(|figures| CodeRunArtifacts { charts: figures.finish() }),
        },
        Outcome::NotStarted(error) => {
            CodeRunReply { exit_code: NOT_STARTED, result: language.remedy(&error), artifacts: None }
        }
    }))
}

/// The figures of one run.
struct Figures {
    lines: Lines,
    charts: Vec<Chart>,
    bytes: usize,
}

impl Figures {
    fn new(channel: Channel) -> Self {
        Self { lines: Lines::new(channel, CHART_BYTES_MAX), charts: Vec::new(), bytes: 0 }
    }

    /// Takes figures as they come. Cancel-safe.
    async fn follow(&mut self) {
        while let Some(line) = self.lines.next().await {
            self.add(&line);
        }
    }

    /// All of them, once the code has ended.
    fn finish(mut self) -> Vec<Chart> {
        while let Some(line) = self.lines.try_next() {
            self.add(&line);
        }
        self.charts
    }

    fn add(&mut self, line: &[u8]) {
        if self.charts.len() >= CHARTS_MAX || self.bytes + line.len() > CHARTS_BYTES_MAX {
            return;
        }
        if let Ok(chart) = serde_json::from_slice(line) {
            self.bytes += line.len();
            self.charts.push(chart);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_for_the_code_is_taken_away() {
        assert_eq!(javascript_prefix("#!/usr/bin/env node\n1"), b"process.argv.splice(1,1);//");
        assert!(javascript_prefix(" 'use strict'; x").starts_with(b"'use strict'"));
        assert_eq!(javascript_prefix("x"), b"process.argv.splice(1,1);");
    }
}
