//! The policy: which step comes next, decided from what is wanted (the row) and what is seen (the engine, the gate).
//! Pure, so that its tests can walk every world that can be reached.
//!
//! ```text
//!            Materialize   Raise    Start    OpenGate  Greet
//!   (no disk) ────────► disk ──► fenced ──► machine ──► … ──► running
//!                                  │ Restore                  │ ▲
//!                                  ▼            Commit, Thaw  │ │
//!                                frozen ──────────────────────┼─┘
//!                                                             │ CloseGate, Freeze
//!   suspended ◄── Stop ◄── RecordMemory ◄── CaptureMemory ◄── frozen = paused
//! ```
//!
//! What holds, and why:
//!
//! - *Unknown is not absent.* As long as the host was not looked at, or a step failed half-way, `host` is `None` and
//!   the only step is [`Step::Observe`].
//! - *The generation is raised durably before each start*, in a step of its own: as part of [`Step::Start`] a crash
//!   between the write and the engine's call could not be told from one after it. The number is used once:
//!   whether it is still unused is known to this process only, so after a crash it is raised again, which costs
//!   nothing. The same transaction writes the disk's new generation when the start is cold. So the first start of a
//!   sandbox costs two writes, the row and this one, and a crash between any two steps of it leaves either a row
//!   without a recorded disk (an empty one is made, or found) or one whose disk is there.
//! - *A memory image counts while its generation equals the disk's.* A restored machine comes up frozen; then
//!   [`Step::Commit`] raises the disk's generation and retires the image; then [`Step::Thaw`]. The same step retires an
//!   image that was captured when its machine is to run on after all. So an image never counts beside a machine that ran.
//! - *A sandbox of a snapshot with memory begins as one that is suspended*: [`Step::Materialize`] makes its disk and its
//!   memory image and records both at once.
//! - *A disk that is recorded and missing is a failure* ([`Step::Lose`]), unless the archive has the same content.
//!   [`Step::Materialize`] is only ever for a sandbox that has no disk recorded.
//! - *Whoever is up and gone ended by itself*: [`Life::Up`] is written once a machine has answered. If it is missing
//!   or dead while it is wanted, the goal is lowered. A machine that never answered is simply started again.
//! - *Nothing is captured, frozen or ended while streams into it are open*: [`Step::CloseGate`] comes first.
//! - *A machine may stand still that nobody asked to*: a capture of it ([`crate::snapshot`]) did not come to its end. Of a disk
//!   alone it leaves the streams as they are, open ones wait. Nothing of it is written down, so it is simply thawed.
//! - *Absent* is reached by ending and removing, from everywhere; nothing is started, thawed or fetched for it.

use crate::{
    engine::{Observed, ObservedMachine, RunState},
    types::{Generation, Goal, Holdings, Life, Phase},
};

/// What is wanted, as far as the policy cares: the durable part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The goal.
    pub goal: Goal,
    /// The newest generation a machine may carry.
    pub generation: Generation,
    /// What lies outside the machine.
    pub holdings: Holdings,
    /// Whether a machine is believed up.
    pub life: Life,
    /// The loss of data is recorded as its failure.
    pub lost: bool,
    /// Its disk is made of a snapshot that has memory too: what is made is a suspended sandbox.
    pub warm: bool,
}

impl Wanted {
    /// The memory image is the disk's.
    pub fn memory_counts(&self) -> bool {
        self.holdings.memory.is_some() && self.holdings.memory == self.holdings.disk
    }

    /// The archive has the disk's content.
    pub fn archive_counts(&self) -> bool {
        self.holdings.archive.is_some() && self.holdings.archive == self.holdings.disk
    }
}

/// What is seen, as far as the policy cares: known to this process only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Whether the row is in the store.
    pub row: Row,
    /// A goal that was asked for and is not written down yet.
    pub asked: Option<Goal>,
    /// What the host has of it; `None`: not known.
    pub host: Option<Host>,
    /// Whether streams into it may be open.
    pub gate: GateState,
    /// The agent of the machine that is there answered this process.
    pub greeted: bool,
    /// The row's generation was raised by this process and not used yet.
    pub raised: bool,
    /// The frozen machine's memory was captured for the disk of this generation.
    pub captured: Option<Generation>,
    /// The disk of this generation was archived.
    pub archived: Option<Generation>,
}

impl Seen {
    /// A sandbox that was just thought of: surely nothing of it exists.
    pub fn fresh() -> Self {
        Self { row: Row::New, host: Some(Host::default()), ..Self::unknown() }
    }

    /// A row found at start-up.
    pub fn unknown() -> Self {
        Self {
            row: Row::Kept,
            asked: None,
            host: None,
            gate: GateState::Closed,
            greeted: false,
            raised: false,
            captured: None,
            archived: None,
        }
    }
}

/// Where the row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Row {
    /// Not in the store yet.
    New,
    /// In the store.
    Kept,
    /// No longer there; all is done.
    Gone,
}

/// What the host has of a sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Host {
    /// Its disk is there.
    pub disk: bool,
    /// What a disk leaves that was half made or half removed. It is none and holds nothing that counts.
    pub remains: bool,
    /// Its machine, or remains of one.
    pub machine: Option<ObservedMachine>,
    /// A file with a memory image is there, whether it counts or not.
    pub image: bool,
    /// An archive is there, whether it counts or not.
    pub archive: bool,
}

impl Host {
    /// What an engine sees of a sandbox; files of ours beside it are not the engine's affair.
    pub fn seen_by_engine(observed: Option<&Observed>) -> Self {
        let Some(observed) = observed else { return Self::default() };
        let disk = observed.disk.is_some();
        Self { disk, remains: !disk, machine: observed.machine, ..Self::default() }
    }
}

/// Whether streams into a sandbox may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GateState {
    /// They may.
    Open,
    /// There are none and there will be none.
    Closed,
}

/// One thing to do. Each is idempotent: done again after a crash within it, it brings the same end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Write the row.
    Enroll,
    /// Write down the goal that was asked for.
    Resolve,
    /// Look at what the host has.
    Observe,
    /// Make the disk that it begins with: empty above the image, or what its snapshot has, the memory image too.
    Materialize,
    /// Get the disk back from the archive; it appears whole or not at all.
    Fetch,
    /// Write a new generation, the disk's too unless a memory image of it is to be restored.
    Raise,
    /// Start the machine from its disk.
    Start,
    /// Start the machine from its memory image, frozen.
    Restore,
    /// Write that the disk belongs to the machine that is there and that no memory image counts any more.
    Commit,
    /// Thaw the machine.
    Thaw,
    /// Let streams in.
    OpenGate,
    /// Greet the agent, and write that the machine is up.
    Greet,
    /// Let no stream in, end those that are.
    CloseGate,
    /// Freeze the machine.
    Freeze,
    /// Write the memory of the frozen machine to a file.
    CaptureMemory,
    /// Write down that the file counts.
    RecordMemory,
    /// Write down that no memory image counts any more.
    RetireMemory,
    /// Remove a memory image that does not count.
    DropMemory,
    /// End the machine and what remains of it.
    Stop,
    /// Copy the disk to the archive.
    Archive,
    /// Write down that the archive has the disk's content.
    RecordArchive,
    /// Remove the disk that the archive has.
    DropDisk,
    /// End the machine and remove the disk.
    Destroy,
    /// Remove the archive.
    DropArchive,
    /// Write that the machine ended by itself and that less is wanted now.
    Lower,
    /// Write that recorded data is missing.
    Lose,
    /// Move the row to the history.
    Forget,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 27] = [
        Self::Enroll,
        Self::Resolve,
        Self::Observe,
        Self::Materialize,
        Self::Fetch,
        Self::Raise,
        Self::Start,
        Self::Restore,
        Self::Commit,
        Self::Thaw,
        Self::OpenGate,
        Self::Greet,
        Self::CloseGate,
        Self::Freeze,
        Self::CaptureMemory,
        Self::RecordMemory,
        Self::RetireMemory,
        Self::DropMemory,
        Self::Stop,
        Self::Archive,
        Self::RecordArchive,
        Self::DropDisk,
        Self::Destroy,
        Self::DropArchive,
        Self::Lower,
        Self::Lose,
        Self::Forget,
    ];

    /// Its name, as in fault points and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enroll => "enroll",
            Self::Resolve => "resolve",
            Self::Observe => "observe",
            Self::Materialize => "materialize",
            Self::Fetch => "fetch",
            Self::Raise => "raise",
            Self::Start => "start",
            Self::Restore => "restore",
            Self::Commit => "commit",
            Self::Thaw => "thaw",
            Self::OpenGate => "open_gate",
            Self::Greet => "greet",
            Self::CloseGate => "close_gate",
            Self::Freeze => "freeze",
            Self::CaptureMemory => "capture_memory",
            Self::RecordMemory => "record_memory",
            Self::RetireMemory => "retire_memory",
            Self::DropMemory => "drop_memory",
            Self::Stop => "stop",
            Self::Archive => "archive",
            Self::RecordArchive => "record_archive",
            Self::DropDisk => "drop_disk",
            Self::Destroy => "destroy",
            Self::DropArchive => "drop_archive",
            Self::Lower => "lower",
            Self::Lose => "lose",
            Self::Forget => "forget",
        }
    }
}

/// The names at which the runner of the steps calls [`crate::fault::hit`].
pub fn fault_points() -> Vec<String> {
    Step::ALL
        .iter()
        .flat_map(|step| ["before", "after"].map(|side| format!("plan.{}.{side}", step.name())))
        .collect()
}

/// The next step towards the goal; `None` when it is reached.
pub fn plan(wanted: &Wanted, seen: &Seen) -> Option<Step> {
    match seen.row {
        Row::New => return Some(Step::Enroll),
        Row::Gone => return None,
        Row::Kept => {}
    }
    if seen.asked.is_some() {
        return Some(Step::Resolve);
    }
    let Some(host) = seen.host else { return Some(Step::Observe) };
    if wanted.goal == Goal::Absent {
        return Some(towards_absent(seen, host));
    }
    if host.machine.is_some_and(|machine| machine.generation != wanted.generation) {
        // It belongs to the past, or to a store that was put back: nobody may speak to it, nothing of it counts.
        return Some(end_machine(seen));
    }
    match wanted.goal {
        Goal::Running => towards_running(wanted, seen, host),
        Goal::Paused => towards_paused(seen, host),
        Goal::Suspended => towards_suspended(wanted, seen, host),
        Goal::Stopped => towards_stopped(wanted, seen, host),
        Goal::Archived => towards_archived(wanted, seen, host),
        Goal::Absent => unreachable!("handled above"),
    }
}

fn end_machine(seen: &Seen) -> Step {
    if seen.gate == GateState::Open { Step::CloseGate } else { Step::Stop }
}

fn live(host: Host) -> Option<RunState> {
    host.machine.map(|machine| machine.run).filter(|run| *run != RunState::Dead)
}

fn towards_running(wanted: &Wanted, seen: &Seen, host: Host) -> Option<Step> {
    let committed = !wanted.memory_counts() && wanted.holdings.disk == Some(wanted.generation);
    match live(host) {
        Some(_) if !committed => Some(Step::Commit),
        Some(RunState::Frozen) => Some(Step::Thaw),
        Some(RunState::Running) if seen.gate == GateState::Closed => Some(Step::OpenGate),
        Some(RunState::Running) if !seen.greeted || wanted.life != Life::Up(wanted.generation) => {
            Some(Step::Greet)
        }
        Some(RunState::Running) => leftovers(wanted, host),
        Some(RunState::Dead) | None => Some(match wanted.life {
            Life::Up(_) => Step::Lower,
            Life::New | Life::Down => start(wanted, seen, host),
        }),
    }
}

fn start(wanted: &Wanted, seen: &Seen, host: Host) -> Step {
    if host.machine.is_some() || seen.gate == GateState::Open {
        return end_machine(seen);
    }
    match wanted.holdings.disk {
        // A disk without the memory that goes with it, of which nothing was recorded, was made half-way.
        None if !host.disk || wanted.warm => Step::Materialize,
        Some(_) if !host.disk && wanted.archive_counts() && host.archive => Step::Fetch,
        Some(_) if !host.disk => Step::Lose,
        // A cold start would throw away what the image held without anybody having asked for it.
        _ if wanted.memory_counts() && !host.image => Step::Lose,
        _ if !seen.raised => Step::Raise,
        _ if wanted.memory_counts() => Step::Restore,
        _ => Step::Start,
    }
}

fn towards_paused(seen: &Seen, host: Host) -> Option<Step> {
    match live(host) {
        Some(_) if seen.gate == GateState::Open => Some(Step::CloseGate),
        Some(RunState::Frozen) => None,
        Some(RunState::Running) => Some(Step::Freeze),
        Some(RunState::Dead) | None => Some(Step::Lower),
    }
}

fn towards_suspended(wanted: &Wanted, seen: &Seen, host: Host) -> Option<Step> {
    match live(host) {
        Some(_) if seen.gate == GateState::Open => Some(Step::CloseGate),
        // Memory alone is worth nothing.
        Some(_) if !host.disk => Some(Step::Lose),
        Some(RunState::Running) => Some(Step::Freeze),
        // Captured already, or restored and never thawed: the image holds all that the machine does.
        Some(_) if wanted.memory_counts() && host.image => Some(Step::Stop),
        Some(_) if wanted.holdings.disk != Some(wanted.generation) || wanted.memory_counts() => {
            Some(Step::Commit)
        }
        Some(_) if seen.captured.is_some() && seen.captured == wanted.holdings.disk => {
            Some(Step::RecordMemory)
        }
        Some(_) => Some(Step::CaptureMemory),
        None if !wanted.memory_counts() => Some(Step::Lower),
        None if host.machine.is_some() || seen.gate == GateState::Open => Some(end_machine(seen)),
        None if !host.image || !host.disk => Some(Step::Lose),
        None => None,
    }
}

fn towards_stopped(wanted: &Wanted, seen: &Seen, host: Host) -> Option<Step> {
    let archived = wanted.archive_counts() && host.archive;
    let missing = wanted.holdings.disk.is_some() && !host.disk && !archived;
    without_machine(wanted, seen, host)
        .or_else(|| leftovers(wanted, host))
        .or((missing && !wanted.lost).then_some(Step::Lose))
}

/// What was made and never counted, or no longer does.
fn leftovers(wanted: &Wanted, host: Host) -> Option<Step> {
    if host.image && !wanted.memory_counts() {
        return Some(Step::DropMemory);
    }
    (host.archive && !wanted.archive_counts()).then_some(Step::DropArchive)
}

fn towards_archived(wanted: &Wanted, seen: &Seen, host: Host) -> Option<Step> {
    if let Some(step) = without_machine(wanted, seen, host) {
        return Some(step);
    }
    match wanted.holdings.disk {
        // There was never anything to keep.
        None => Some(Step::Lower),
        Some(_) if wanted.archive_counts() && host.archive => {
            (host.disk || host.remains).then_some(Step::DropDisk)
        }
        Some(_) if !host.disk => Some(Step::Lose),
        disk if seen.archived == disk => Some(Step::RecordArchive),
        Some(_) => Some(Step::Archive),
    }
}

/// For goals that keep the disk alone: no machine, and memory is given up as asked.
fn without_machine(wanted: &Wanted, seen: &Seen, host: Host) -> Option<Step> {
    if host.machine.is_some() || seen.gate == GateState::Open {
        return Some(end_machine(seen));
    }
    if wanted.holdings.memory.is_some() {
        return Some(Step::RetireMemory);
    }
    host.image.then_some(Step::DropMemory)
}

fn towards_absent(seen: &Seen, host: Host) -> Step {
    if seen.gate == GateState::Open {
        Step::CloseGate
    } else if host.machine.is_some() || host.disk || host.remains {
        Step::Destroy
    } else if host.image {
        Step::DropMemory
    } else if host.archive {
        Step::DropArchive
    } else {
        Step::Forget
    }
}

/// The durable change a step makes once the rest of it is done, if it makes one.
pub fn record(step: Step, wanted: &Wanted, seen: &Seen) -> Option<Wanted> {
    let mut new = *wanted;
    match step {
        Step::Materialize if wanted.warm => {
            new.generation = wanted.generation.next();
            new.holdings.disk = Some(new.generation);
            new.holdings.memory = Some(new.generation);
        }
        Step::Resolve => {
            // Nothing leads back from absent.
            let goal = seen.asked.filter(|_| wanted.goal != Goal::Absent)?;
            new.life = match (goal, wanted.life) {
                (Goal::Suspended | Goal::Stopped | Goal::Archived, _) | (Goal::Paused, Life::New) => {
                    Life::Down
                }
                (Goal::Running | Goal::Paused | Goal::Absent, life) => life,
            };
            new.goal = goal;
            new.lost = false;
        }
        Step::Raise => {
            new.generation = wanted.generation.next();
            if !wanted.memory_counts() {
                new.holdings.disk = Some(new.generation);
                new.holdings.memory = None;
            }
        }
        Step::Commit => {
            new.holdings.disk = Some(wanted.generation);
            new.holdings.memory = None;
        }
        Step::Greet => new.life = Life::Up(wanted.generation),
        Step::RecordMemory => new.holdings.memory = wanted.holdings.disk,
        Step::RetireMemory => new.holdings.memory = None,
        Step::RecordArchive => new.holdings.archive = wanted.holdings.disk,
        Step::DropArchive => new.holdings.archive = None,
        Step::Lower => {
            new.goal = if wanted.memory_counts() { Goal::Suspended } else { Goal::Stopped };
            new.life = Life::Down;
        }
        Step::Lose => {
            new.goal = Goal::Stopped;
            new.life = Life::Down;
            new.lost = true;
            new.holdings.memory = None;
        }
        Step::Enroll
        | Step::Observe
        | Step::Materialize
        | Step::Fetch
        | Step::Start
        | Step::Restore
        | Step::Thaw
        | Step::OpenGate
        | Step::CloseGate
        | Step::Freeze
        | Step::CaptureMemory
        | Step::DropMemory
        | Step::Stop
        | Step::Archive
        | Step::DropDisk
        | Step::Destroy
        | Step::Forget => return None,
    }
    Some(new)
}

impl Seen {
    /// What is known once a step succeeded, without looking again. `wanted` is as it was when the step was chosen.
    pub fn succeeded(&mut self, step: Step, wanted: &Wanted) {
        let machine = |run| Some(ObservedMachine { generation: wanted.generation, run });
        match step {
            Step::Enroll => self.row = Row::Kept,
            Step::Resolve => self.asked = None,
            Step::Forget => self.row = Row::Gone,
            Step::Raise => self.raised = true,
            Step::OpenGate => self.gate = GateState::Open,
            Step::CloseGate => self.gate = GateState::Closed,
            Step::Greet => self.greeted = true,
            Step::Archive => {
                self.archived = wanted.holdings.disk;
                // The number has been used after all: an archive has it.
                self.raised = false;
            }
            Step::RecordArchive | Step::DropArchive => self.archived = None,
            Step::RecordMemory | Step::DropMemory => self.captured = None,
            Step::Start | Step::Restore => {
                self.raised = false;
                self.greeted = false;
                self.captured = None;
                self.archived = None;
            }
            Step::Thaw | Step::Stop => {
                self.greeted = false;
                self.captured = None;
            }
            Step::Freeze => self.greeted = false,
            Step::CaptureMemory => self.captured = wanted.holdings.disk,
            Step::Observe
            | Step::Materialize
            | Step::Fetch
            | Step::Commit
            | Step::RetireMemory
            | Step::DropDisk
            | Step::Destroy
            | Step::Lower
            | Step::Lose => {}
        }
        let Some(host) = &mut self.host else { return };
        match step {
            Step::Materialize => {
                (host.disk, host.remains) = (true, false);
                host.image |= wanted.warm;
            }
            Step::Fetch => (host.disk, host.remains) = (true, false),
            Step::Start | Step::Thaw => host.machine = machine(RunState::Running),
            Step::Restore | Step::Freeze => host.machine = machine(RunState::Frozen),
            Step::CaptureMemory => host.image = true,
            Step::DropMemory => host.image = false,
            Step::Archive => host.archive = true,
            Step::DropArchive => host.archive = false,
            Step::Stop => host.machine = None,
            Step::DropDisk | Step::Destroy => {
                (host.disk, host.remains) = (false, false);
                host.machine = None;
            }
            Step::Enroll
            | Step::Resolve
            | Step::Observe
            | Step::Raise
            | Step::Commit
            | Step::OpenGate
            | Step::Greet
            | Step::CloseGate
            | Step::RecordMemory
            | Step::RetireMemory
            | Step::RecordArchive
            | Step::Lower
            | Step::Lose
            | Step::Forget => {}
        }
    }

    /// What is known once a step failed: it may have done its work or not, so the host is looked at again.
    pub fn failed(&mut self) {
        self.host = None;
        self.captured = None;
        self.archived = None;
        self.greeted = false;
        self.raised = false;
    }
}

/// The goal to fall back to when a step has failed for good; `None`: it is tried for ever, with growing pauses.
pub fn fall_back(step: Step, wanted: &Wanted) -> Option<Goal> {
    match step {
        Step::Materialize | Step::Fetch | Step::Raise | Step::Start | Step::Restore | Step::Greet => {
            Some(match wanted.life {
                Life::New => Goal::Absent,
                _ if wanted.memory_counts() => Goal::Suspended,
                _ if step == Step::Fetch => Goal::Archived,
                Life::Up(_) | Life::Down => Goal::Stopped,
            })
        }
        Step::Thaw => Some(Goal::Paused),
        Step::Freeze | Step::CaptureMemory => Some(Goal::Running),
        Step::Archive => Some(Goal::Stopped),
        // A row that cannot be written ends the sandbox at once: there is nothing to undo.
        Step::Enroll
        | Step::Resolve
        | Step::Observe
        | Step::Commit
        | Step::OpenGate
        | Step::CloseGate
        | Step::RecordMemory
        | Step::RetireMemory
        | Step::DropMemory
        | Step::Stop
        | Step::RecordArchive
        | Step::DropDisk
        | Step::Destroy
        | Step::DropArchive
        | Step::Lower
        | Step::Lose
        | Step::Forget => None,
    }
}

/// The state in one word. `failed`: a failure is recorded.
pub fn phase(wanted: &Wanted, seen: &Seen, failed: Failed) -> Phase {
    if seen.row == Row::Gone {
        return Phase::Deleted;
    }
    let reached = plan(wanted, seen).is_none();
    match wanted.goal {
        Goal::Absent => Phase::Deleting,
        Goal::Running if reached => Phase::Running,
        Goal::Running => Phase::Starting,
        _ if !reached => Phase::Stopping,
        Goal::Paused => Phase::Paused,
        Goal::Suspended => Phase::Suspended,
        Goal::Archived => Phase::Archived,
        Goal::Stopped if failed == Failed::Yes => Phase::Failed,
        Goal::Stopped => Phase::Stopped,
    }
}

/// Whether a failure is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// One is.
    Yes,
    /// None is.
    No,
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
