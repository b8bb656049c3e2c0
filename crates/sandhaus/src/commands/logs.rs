//! `sandhaus logs`: what a sandbox has printed, as far as it is kept.

use std::{
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use fs_err::File;
use http_body_util::BodyExt;
use sandhaus_protocol::{
    frame::{Decoder, Kind},
    process::Process,
    shell,
};
use sandhaus_sandbox::{
    SandboxId,
    toolbox::{Event, Toolbox},
};
use tokio::io::AsyncWriteExt;

use crate::{
    advice::Advice,
    attach::Ending,
    background,
    cli::LogsArguments,
    commands::run::{ORIGIN_LABEL, ORIGIN_RUN},
    config::Config,
    interrupt::Signals,
    server::{Server, explain},
    spelling::CalledAs,
    toolbox::{get, percent_encoded, processes, whole},
};

/// What is shown.
enum Source {
    Shell(String),
    Process(u64),
}

/// Prints it.
pub(crate) async fn logs(
    arguments: &LogsArguments,
    config: &Config,
    called_as: CalledAs,
) -> Result<ExitCode> {
    let Some(sandbox) = &arguments.sandbox else { return server_log(arguments, config, called_as).await };
    let id = SandboxId::parse(sandbox)?;
    let server = Server::find(&arguments.server, config)?;
    let toolbox = server.toolbox(id.as_str());
    let source = choose(arguments, &server, &toolbox, &id).await?;
    let mut signals = Signals::listen()?;
    tokio::select! {
        shown = show(&toolbox, &source, arguments) => shown.map(|()| ExitCode::SUCCESS),
        // Dropping the stream harms nothing: it only reads.
        signal = signals.end() => Ok(ExitCode::from(Ending::Interrupted(signal).status())),
    }
}

/// The log of the server in the background. The older tool's name shows its end and goes on, as `tail -f` does.
async fn server_log(arguments: &LogsArguments, config: &Config, called_as: CalledAs) -> Result<ExitCode> {
    const TAIL_LINES: usize = 10;
    let (follow, tail) = match called_as {
        CalledAs::Sandhaus => (arguments.follow, arguments.tail),
        CalledAs::Sandkasten => (true, arguments.tail.or(Some(TAIL_LINES))),
    };
    let mut log = LogReader::open(&background::log_path(config), tail)?;
    let mut signals = Signals::listen()?;
    let shown = async {
        let mut stdout = tokio::io::stdout();
        loop {
            let bytes = log.read()?;
            if !bytes.is_empty() {
                stdout.write_all(&bytes).await?;
                stdout.flush().await?;
            } else if follow {
                tokio::time::sleep(LOG_LOOK_PERIOD).await;
            } else {
                return Ok(ExitCode::SUCCESS);
            }
        }
    };
    tokio::select! {
        shown = shown => shown,
        // Dropping the reader harms nothing: it only reads.
        signal = signals.end() => Ok(ExitCode::from(Ending::Interrupted(signal).status())),
    }
}

/// How often a log that is followed is looked at.
const LOG_LOOK_PERIOD: Duration = Duration::from_millis(200);

/// Most bytes of a log that are read at once.
const LOG_CHUNK_BYTES_MAX: u64 = 64 << 10;

/// A log that grows, and that another one may take the place of.
struct LogReader {
    path: PathBuf,
    file: File,
}

impl LogReader {
    /// From the beginning, or from so many lines before the end.
    fn open(path: &Path, tail: Option<usize>) -> Result<Self> {
        let mut file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => anyhow::Error::from(Advice::new(
                format!("there is no log at {}", path.display()),
                "`sandhaus serve --detach` keeps one; name a sandbox to see what that has printed",
            )),
            _ => error.into(),
        })?;
        if let Some(lines) = tail {
            let start = start_of_last_lines(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// What has come since; empty if nothing has.
    fn read(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&mut self.file).take(LOG_CHUNK_BYTES_MAX).read_to_end(&mut bytes)?;
        if bytes.is_empty() && self.is_replaced() {
            self.file = File::open(&self.path)?;
            (&mut self.file).take(LOG_CHUNK_BYTES_MAX).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    fn is_replaced(&self) -> bool {
        let (Ok(named), Ok(opened)) = (std::fs::metadata(&self.path), self.file.metadata()) else {
            return false;
        };
        (named.dev(), named.ino()) != (opened.dev(), opened.ino())
    }
}

/// Where the last lines of a file begin.
fn start_of_last_lines(file: &mut File, lines: usize) -> Result<u64> {
    let mut end = file.metadata()?.len();
    let mut left = lines + 1;
    while end > 0 {
        let start = end.saturating_sub(LOG_CHUNK_BYTES_MAX);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(end - start).read_to_end(&mut bytes)?;
        // The last line's own end counts as well.
        for (index, _) in bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            left -= 1;
            if left == 0 {
                return Ok(start + index as u64 + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

/// What was asked for; else the command of `run`; else the default shell.
async fn choose(
    arguments: &LogsArguments,
    server: &Server,
    toolbox: &Toolbox,
    id: &SandboxId,
) -> Result<Source> {
    if let Some(process) = arguments.process {
        return Ok(Source::Process(process));
    }
    if let Some(name) = &arguments.shell {
        return Ok(Source::Shell(name.clone()));
    }
    let session = server.client().get(id.as_str()).await.map_err(explain)?;
    if session.labels.get(ORIGIN_LABEL).is_some_and(|origin| origin == ORIGIN_RUN) {
        let first = processes(toolbox).await?.into_iter().map(|process| process.id).min();
        if let Some(first) = first {
            return Ok(Source::Process(first));
        }
    }
    Ok(Source::Shell(shell::DEFAULT.to_owned()))
}

async fn show(toolbox: &Toolbox, source: &Source, arguments: &LogsArguments) -> Result<()> {
    match source {
        Source::Shell(name) => show_shell(toolbox, name, arguments).await,
        Source::Process(id) => show_process(toolbox, *id, arguments).await,
    }
}

async fn show_shell(toolbox: &Toolbox, name: &str, arguments: &LogsArguments) -> Result<()> {
    let name = percent_encoded(name);
    let path = format!("{}/shell/{name}/log?offset=0&follow={}", sandhaus_protocol::PREFIX, arguments.follow);
    let mut body = get(toolbox, &path).await?;
    let mut decoder = Decoder::default();
    let mut stdout = tokio::io::stdout();
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame.context("the connection broke")?.into_data() else { continue };
        decoder.push(&bytes);
        while let Some(frame) = decoder.next_frame().map_err(|error| anyhow::anyhow!("{error}"))? {
            if frame.kind == Kind::Stdout {
                stdout.write_all(&frame.payload).await?;
            }
        }
        stdout.flush().await?;
    }
    Ok(())
}

async fn show_process(toolbox: &Toolbox, id: u64, arguments: &LogsArguments) -> Result<()> {
    // Without following, only what had been printed when we asked is shown.
    let until = match arguments.follow {
        true => None,
        false => {
            let path = format!("{}/process/{id}", sandhaus_protocol::PREFIX);
            Some(serde_json::from_slice::<Process>(&whole(get(toolbox, &path).await?).await?)?)
        }
    };
    let mut events = toolbox.process_output(id, 0, 0).await?;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let (mut stdout_end, mut stderr_end) = (0, 0);
    loop {
        if let Some(until) = &until
            && stdout_end >= until.stdout_bytes
            && stderr_end >= until.stderr_bytes
        {
            return Ok(());
        }
        match events.next().await? {
            Some(Event::Stdout(offset, bytes)) => {
                stdout.write_all(&bytes).await?;
                stdout.flush().await?;
                stdout_end = offset + bytes.len() as u64;
            }
            Some(Event::Stderr(offset, bytes)) => {
                stderr.write_all(&bytes).await?;
                stderr.flush().await?;
                stderr_end = offset + bytes.len() as u64;
            }
            Some(Event::Started(_) | Event::Gap(_) | Event::Ping | Event::Exit(_)) => {}
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_begin_where_they_should() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let start = |text: &str, lines| {
            fs_err::write(&path, text).unwrap();
            start_of_last_lines(&mut File::open(&path).unwrap(), lines).unwrap()
        };
        assert_eq!(start("", 1), 0);
        assert_eq!(start("a\nb\nc\n", 1), 4);
        assert_eq!(start("a\nb\nc\n", 2), 2);
        assert_eq!(start("a\nb\nc\n", 9), 0);
        assert_eq!(start("a\n", 0), 2);
        let long = "line\n".repeat(40_000);
        assert_eq!(start(&long, 39_999), 5);
    }

    #[test]
    fn a_log_that_was_replaced_is_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs_err::write(&path, "one\n").unwrap();
        let mut log = LogReader::open(&path, None).unwrap();
        assert_eq!(log.read().unwrap(), b"one\n");
        assert_eq!(log.read().unwrap(), b"");
        fs_err::rename(&path, dir.path().join("old")).unwrap();
        fs_err::write(&path, "two\n").unwrap();
        assert_eq!(log.read().unwrap(), b"two\n");
    }
}
