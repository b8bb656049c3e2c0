//! Progress for people: only on a terminal, and only for what takes longer than a second.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::{stdio, termios::isatty};
use sandhaus_images::{
    LayerSize, LayerState, PullProgress,
    vm::{BuildProgress, Stage},
};

use crate::{advice::print_note, commands::run::Quiet, output::human_bytes};

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

/// How far long work of a server is: a bar on a terminal, a line for each stage otherwise.
pub(crate) struct JobBar {
    bar: Option<Cleared>,
    stage: String,
    quiet: Quiet,
}

impl JobBar {
    pub(crate) fn new(quiet: Quiet) -> Self {
        let bar = match quiet {
            Quiet::No if isatty(stdio::stderr()) => {
                let target = ProgressDrawTarget::stderr();
                let style =
                    ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
                        .expect("a constant template that is valid");
                Some(Cleared(ProgressBar::with_draw_target(None, target).with_style(style)))
            }
            _ => None,
        };
        Self { bar, stage: String::new(), quiet }
    }

    /// So much of this stage is done.
    pub(crate) fn show(&mut self, stage: &str, done: u64, total: Option<u64>) {
        let is_new = self.stage != stage;
        if is_new {
            stage.clone_into(&mut self.stage);
        }
        match &self.bar {
            Some(Cleared(bar)) => {
                if is_new {
                    bar.reset_eta();
                    bar.set_message(stage.to_owned());
                }
                if let Some(total) = total {
                    bar.set_length(total);
                }
                bar.set_position(done);
            }
            None if is_new && self.quiet == Quiet::No && !stage.is_empty() => {
                let of = total.map_or_else(String::new, |total| format!(": {}", human_bytes(total)));
                print_note(&format!("{stage}{of}"));
            }
            None => {}
        }
    }

    /// Takes the bar off the terminal.
    pub(crate) fn finish(self) {}
}

/// How far the making of an image is, stage after stage: a line that changes on a terminal, a line for each otherwise.
pub(crate) struct StageBar {
    bar: Cleared,
    stage: Option<Stage>,
    shape: StageShape,
}

/// Where the stages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StageShape {
    Bar,
    Lines,
    Nothing,
}

impl StageBar {
    pub(crate) fn new(quiet: Quiet) -> Self {
        let shape = match quiet {
            Quiet::Yes => StageShape::Nothing,
            Quiet::No if isatty(stdio::stderr()) => StageShape::Bar,
            Quiet::No => StageShape::Lines,
        };
        let target = match shape {
            StageShape::Bar => ProgressDrawTarget::stderr(),
            StageShape::Lines | StageShape::Nothing => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.enable_steady_tick(TICK);
        Self { bar: Cleared(bar), stage: None, shape }
    }

    /// Takes a report in.
    pub(crate) fn note(&mut self, progress: BuildProgress) {
        let bar = &self.bar.0;
        if self.stage != Some(progress.stage) {
            self.stage = Some(progress.stage);
            let words = match progress.stage {
                Stage::Install => "installing packages",
                Stage::Copy => "copying files",
                Stage::Kernel => "finding a kernel",
                Stage::FileSystem => "making the file system",
                Stage::Disk => "writing the disk",
                Stage::Store => "storing the image",
            };
            if self.shape == StageShape::Lines {
                print_note(words);
            }
            bar.set_message(words);
            bar.set_style(ProgressStyle::default_spinner());
        }
        if let Some(total) = progress.total {
            let style = ProgressStyle::with_template("{msg} {bar:30} {percent}%")
                .expect("a constant template that is valid");
            bar.set_style(style);
            bar.set_length(total);
            bar.set_position(progress.done);
        }
    }
}

/// How far the layers of an image are that is pulled: a bar for each on a terminal, a line for each otherwise.
pub(crate) struct LayerBars {
    shape: Shape,
    layers: Mutex<Vec<LayerBar>>,
}

/// Where progress goes.
enum Shape {
    Bars(MultiProgress),
    Lines,
    Nothing,
}

struct LayerBar {
    digest: String,
    size_bytes: u64,
    bar: ProgressBar,
    ended: bool,
}

/// Characters of a digest that a bar shows.
const DIGEST_SHOWN: usize = 12;

impl LayerBars {
    pub(crate) fn new(quiet: Quiet) -> Self {
        let shape = match quiet {
            Quiet::Yes => Shape::Nothing,
            Quiet::No if isatty(stdio::stderr()) => {
                Shape::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
            }
            Quiet::No => Shape::Lines,
        };
        Self { shape, layers: Mutex::default() }
    }

    /// Takes a report in, from whatever thread.
    pub(crate) fn note(&self, event: PullProgress) {
        // Bars are whole between any two statements.
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            PullProgress::Found { manifest, layers: found } => {
                let total = found.iter().map(|layer| layer.size_bytes).sum();
                if let Shape::Lines = self.shape {
                    print_note(&format!("{manifest}: {} layers, {}", found.len(), human_bytes(total)));
                }
                layers.extend(found.into_iter().map(|layer| self.bar(layer)));
            }
            PullProgress::Layer { index, state } => {
                let Some(layer) = layers.get_mut(index) else { return };
                self.show(layer, state);
            }
        }
    }

    /// Takes all bars off the terminal.
    pub(crate) fn finish(&self) {
        if let Shape::Bars(bars) = &self.shape
            && let Err(error) = bars.clear()
        {
            tracing::debug!(%error, "progress bars stay on the terminal");
        }
    }

    fn bar(&self, layer: LayerSize) -> LayerBar {
        let digest =
            layer.digest.trim_start_matches("sha256:").chars().take(DIGEST_SHOWN).collect::<String>();
        let bar = match &self.shape {
            Shape::Bars(bars) => {
                let style =
                    ProgressStyle::with_template("{prefix} {bar:30} {bytes:>10}/{total_bytes:10} {msg}")
                        .expect("a constant template that is valid");
                let bar = ProgressBar::new(layer.size_bytes).with_style(style).with_prefix(digest.clone());
                bars.add(bar)
            }
            Shape::Lines | Shape::Nothing => ProgressBar::hidden(),
        };
        LayerBar { digest, size_bytes: layer.size_bytes, bar, ended: false }
    }

    fn show(&self, layer: &mut LayerBar, state: LayerState) {
        let words = match state {
            LayerState::Waiting => "waits for another pull",
            LayerState::Fetching { done_bytes } => {
                layer.bar.set_position(done_bytes);
                layer.bar.set_message(if done_bytes == layer.size_bytes { "unpacking" } else { "" });
                return;
            }
            LayerState::Done => "done",
            LayerState::Present => "is here",
        };
        layer.bar.set_message(words);
        if matches!(state, LayerState::Waiting) || std::mem::replace(&mut layer.ended, true) {
            return;
        }
        layer.bar.set_position(layer.size_bytes);
        if let Shape::Lines = self.shape {
            print_note(&format!("layer {} {words}: {}", layer.digest, human_bytes(layer.size_bytes)));
        }
    }
}
