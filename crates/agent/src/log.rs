//! The agent's own log: what it did and what went wrong, in a file of the sandbox that keeps its share. Nothing of a
//! request but its method and path is in it: queries and bodies may hold secrets.
//!
//! Nobody waits for the log. Lines go through a bounded queue to a thread for files; those that find it full are counted.

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;

use crate::{
    agent::Agent,
    clock,
    sys::{Keep, RotatingFile},
};

/// Where the log is unless the environment says otherwise.
const DEFAULT_PATH: &str = "/tmp/daytona-daemon.log";

/// What is kept unless the environment says otherwise: so many MiB in one file, so many files put aside, for so many days.
const DEFAULT_KEEP: [u64; 3] = [100, 5, 14];

/// The most of each that can be asked for.
const KEEP_MAX: [u64; 3] = [10_000, 100, 3650];

/// Lines that wait to be written.
const WAITING_MAX: usize = 256;

/// Longest line.
const LINE_BYTES_MAX: usize = 4096;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Something went wrong that is the agent's affair.
    Error,
    /// Something odd that it went on from.
    Warn,
    /// What it does.
    Info,
    /// Every request.
    Debug,
}

impl Level {
    /// By the names that programs of this kind use.
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "error" | "fatal" | "panic" => Some(Self::Error),
            "warn" | "warning" => Some(Self::Warn),
            "info" => Some(Self::Info),
            "debug" | "trace" => Some(Self::Debug),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
        }
    }
}

/// What the environment says of the log.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    path: PathBuf,
    keep: Keep,
    level: Level,
}

impl Settings {
    fn of(env: &BTreeMap<String, String>, default_level: Level) -> Self {
        let value = |name: &str| env.get(name).filter(|value| !value.is_empty());
        let path = value("DAYTONA_DAEMON_LOG_FILE_PATH").map_or(DEFAULT_PATH, String::as_str);
        let names = ["SIZE_MB", "BACKUPS", "AGE_DAYS"];
        let number = |index: usize| {
            let said = value(&format!("DAYTONA_DAEMON_LOG_MAX_{}", names[index]));
            said.and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_KEEP[index]).min(KEEP_MAX[index])
        };
        let keep = Keep {
            bytes_max: number(0).max(1) << 20,
            files_max: u32::try_from(number(1)).unwrap_or(u32::MAX),
            age_max: Duration::from_secs(number(2) * 24 * 3600),
        };
        let level = value("LOG_LEVEL").and_then(|text| Level::parse(text)).unwrap_or(default_level);
        Self { path: PathBuf::from(path), keep, level }
    }
}

/// The log. Nothing exists of it before the first line that counts.
#[derive(Default)]
pub(crate) struct Log {
    level: OnceLock<Level>,
    lines: OnceLock<mpsc::Sender<String>>,
    lost: AtomicU64,
}

impl Agent {
    /// Writes a line to the log, if such lines are wanted. Within the runtime.
    pub(crate) fn log(self: &Arc<Self>, level: Level, text: impl Display) {
        let log = &self.log;
        let wanted =
            *log.level.get_or_init(|| Settings::of(&self.environment(), self.default_log_level()).level);
        if level > wanted {
            return;
        }
        let lines = log.lines.get_or_init(|| {
            let (sender, lines) = mpsc::channel(WAITING_MAX);
            let settings = Settings::of(&self.environment(), wanted);
            tokio::spawn(write(Arc::clone(self), RotatingFile::new(settings.path, settings.keep), lines));
            sender
        });
        let mut line = format!("{} {:5} {text}", clock::now_rfc3339(), level.word());
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        // One line is one line, whatever is in it.
        let mut line = line.replace(|character: char| character.is_control(), " ");
        line.push('\n');
        if lines.try_send(line).is_err() {
            log.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn write(agent: Arc<Agent>, mut file: RotatingFile, mut lines: mpsc::Receiver<String>) {
    let mut waiting = Vec::new();
    while lines.recv_many(&mut waiting, WAITING_MAX).await > 0 {
        let lost = agent.log.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            waiting.push(format!("{} WARN  {lost} lines found no room\n", clock::now_rfc3339()));
        }
        let text = waiting.drain(..).collect::<String>();
        // A log that cannot be written is nobody's reason to stop; the next line tries again.
        file = agent
            .on_file_thread(move || {
                let _ = file.append(text.as_bytes());
                file
            })
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_its_say() {
        let env = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let plain = Settings::of(&env(&[]), Level::Warn);
        assert_eq!((plain.path.to_str(), plain.level), (Some("/tmp/daytona-daemon.log"), Level::Warn));
        assert_eq!((plain.keep.bytes_max, plain.keep.files_max), (100 << 20, 5));
        let said = Settings::of(
            &env(&[
                ("DAYTONA_DAEMON_LOG_FILE_PATH", "/var/log/x"),
                ("DAYTONA_DAEMON_LOG_MAX_SIZE_MB", "1"),
                ("DAYTONA_DAEMON_LOG_MAX_BACKUPS", "0"),
                ("DAYTONA_DAEMON_LOG_MAX_AGE_DAYS", "no number"),
                ("LOG_LEVEL", "Debug"),
            ]),
            Level::Info,
        );
        assert_eq!((said.path.to_str(), said.level), (Some("/var/log/x"), Level::Debug));
        let days = Duration::from_secs(14 * 24 * 3600);
        assert_eq!(said.keep, Keep { bytes_max: 1 << 20, files_max: 0, age_max: days });
    }
}
