//! Progress for people: only on a terminal, and only for what takes longer than a second.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::{stdio, termios::isatty};

use crate::commands::run::Quiet;

/// What is over sooner shows nothing.
const SHOW_AFTER: Duration = Duration::from_secs(1);

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// A line that appears if the work takes long, and goes with this value.
#[derive(Debug)]
pub(crate) struct Progress {
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Progress {
    /// Shows `what` after a second, unless this value is gone by then.
    pub(crate) fn after_a_second(what: &'static str, quiet: Quiet) -> Self {
        if quiet == Quiet::Yes || !isatty(stdio::stderr()) {
            return Self { task: None };
        }
        let task = tokio::spawn(async move {
            tokio::time::sleep(SHOW_AFTER).await;
            let _bar = spinner(what);
            std::future::pending::<()>().await;
        });
        Self { task: Some(task) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn spinner(what: &'static str) -> Cleared {
    let bar = ProgressBar::new_spinner().with_message(what);
    bar.enable_steady_tick(TICK);
    Cleared(bar)
}

/// A bar that leaves nothing on the terminal.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A count of bytes on a terminal, for blocking work.
pub(crate) struct ByteCount {
    bar: Cleared,
    since: Instant,
}

impl ByteCount {
    /// Nothing is shown before a second has passed.
    pub(crate) fn new(what: &'static str, quiet: Quiet) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_message(what);
        let since = match quiet {
            Quiet::No if isatty(stdio::stderr()) => Instant::now(),
            // Never.
            _ => Instant::now() + Duration::from_secs(u64::from(u32::MAX)),
        };
        Self { bar: Cleared(bar), since }
    }

    /// So much is done.
    pub(crate) fn update(&mut self, done: u64, total: Option<u64>) {
        let bar = &self.bar.0;
        if bar.is_hidden() && Instant::now().saturating_duration_since(self.since) >= SHOW_AFTER {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        if let Some(total) = total
            && bar.length() != Some(total)
        {
            bar.set_length(total);
            let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes}")
                .expect("a constant template that is valid");
            bar.set_style(style);
        }
        bar.set_position(done);
    }
}
