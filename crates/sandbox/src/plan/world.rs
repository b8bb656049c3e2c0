//! A model of everything the policy acts on: the row in the store, the host, and what a process knows; with ghosts that
//! remember what must not be lost. Each step is carried out on it as the actor and an engine would, half-way too, and
//! says when it did what must never happen.

use std::collections::BTreeSet;

use super::*;

/// What must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Violation {
    /// A step changes the host before it was looked at.
    ActsOnUnknown,
    /// A machine is started with a generation that another may carry.
    GenerationReused,
    /// A machine of another generation is used as the sandbox's own.
    OldAdopted,
    /// Something is started, thawed or let in for a goal that does not want it.
    StartedUnwanted,
    /// A machine is captured, frozen or ended while streams into it may be open.
    OpenGate,
    /// The content of the disk is gone, and nobody asked for that.
    DataLost,
    /// An empty disk takes the place of one that was.
    EmptyDisk,
    /// The memory of the machine is gone, and nobody asked for that.
    MemoryLost,
    /// A machine runs although a memory image of it still counts: it could run twice.
    RunsBesideImage,
    /// A memory image or an archive is used, or recorded, that does not fit the disk.
    Mismatch,
    /// What runs as wanted is ended or given up.
    GivesUp,
    /// The row goes while something of the sandbox is left.
    LeftBehind,
    /// The goal is not reached in a bounded number of steps.
    NotReached,
}

/// A machine that really is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Machine {
    pub(super) generation: Generation,
    pub(super) run: RunState,
    /// Which start its memory goes back to.
    pub(super) memory: Generation,
}

/// A memory image that really is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Image {
    /// Which start the memory goes back to.
    pub(super) memory: Generation,
    /// The content of the disk it was captured with.
    pub(super) disk: Generation,
    /// It is whole, and the machine has not run on since.
    pub(super) good: bool,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) wanted: Wanted,
    pub(super) seen: Seen,
    /// The row is in the store.
    pub(super) stored: bool,
    /// The disk, with the generation of the last machine that could write to it; zero: empty.
    pub(super) disk: Option<Generation>,
    /// A disk was half made or half removed.
    pub(super) remains: bool,
    pub(super) machine: Option<Machine>,
    pub(super) image: Option<Image>,
    /// The archive, with the content of the disk it was made of.
    pub(super) archive: Option<Generation>,
    /// Ghost: the newest generation any machine carried.
    pub(super) started: Generation,
    /// Ghost: the newest content a machine wrote.
    pub(super) content: Generation,
    /// Ghost: the one disaster that may happen has.
    pub(super) disaster: Option<Disaster>,
}

/// What may happen once behind everyone's back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Disaster {
    /// The disk or the memory image is taken away.
    DataGone,
    /// A start of the past, long given up, comes to its end: a machine of an older generation appears.
    LateStart,
}

/// How far a step comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// To its end, the durable change included.
    Whole,
    /// What it does on the host is done; the durable change is not.
    Effect,
    /// Half of what it does on the host is done.
    Half,
    /// Nothing is done.
    Nothing,
}

use Violation::*;

impl World {
    pub(super) fn new() -> Self {
        Self {
            wanted: Wanted {
                goal: Goal::Running,
                generation: Generation(0),
                holdings: Holdings::default(),
                life: Life::New,
                lost: false,
                warm: false,
            },
            seen: Seen::fresh(),
            stored: false,
            disk: None,
            remains: false,
            machine: None,
            image: None,
            archive: None,
            started: Generation(0),
            content: Generation(0),
            disaster: None,
        }
    }

    /// One that is made of a snapshot with memory.
    pub(super) fn warm() -> Self {
        let mut world = Self::new();
        world.wanted.warm = true;
        world
    }

    /// What a look at the host shows.
    pub(super) fn truth(&self) -> Host {
        Host {
            disk: self.disk.is_some(),
            remains: self.remains && self.disk.is_none(),
            machine: self
                .machine
                .map(|machine| ObservedMachine { generation: machine.generation, run: machine.run }),
            image: self.image.is_some(),
            archive: self.archive.is_some(),
        }
    }

    /// The machine that is the sandbox's own.
    pub(super) fn own_live(&self) -> Option<Machine> {
        self.machine
            .filter(|machine| machine.generation == self.wanted.generation && machine.run != RunState::Dead)
    }

    /// The process ends and another takes over: what only it knew is gone.
    pub(super) fn process_dies(mut self) -> Option<Self> {
        self.seen = Seen::unknown();
        self.stored.then_some(self)
    }

    /// Carries out a step so far; `None` if the engine refuses, as what the step needs is not there.
    pub(super) fn carry_out(&self, step: Step, reach: Reach) -> Result<Option<Self>, Violation> {
        let mut next = *self;
        if reach != Reach::Nothing {
            self.forbid(step)?;
            if !next.effect(step, reach)? {
                return Ok(None);
            }
        }
        if reach == Reach::Whole {
            if let Some(new) = record(step, &self.wanted, &self.seen) {
                next.wanted = new;
            }
            if step == Step::Observe {
                next.seen.host = Some(self.truth());
            }
            next.seen.succeeded(step, &self.wanted);
        }
        next.invariants()?;
        Ok(Some(next))
    }

    /// Rules about choosing the step at all.
    fn forbid(&self, step: Step) -> Result<(), Violation> {
        let knows_nothing = self.seen.host.is_none();
        let blind = matches!(step, Step::Observe | Step::Enroll | Step::Resolve);
        if knows_nothing && !blind {
            return Err(ActsOnUnknown);
        }
        let open = self.seen.gate == GateState::Open;
        let machine_there = self.machine.is_some_and(|machine| machine.run != RunState::Dead);
        let ends =
            matches!(step, Step::Freeze | Step::CaptureMemory | Step::Stop | Step::Destroy | Step::DropDisk);
        if ends && open && machine_there {
            return Err(OpenGate);
        }
        let starts = matches!(
            step,
            Step::Materialize
                | Step::Fetch
                | Step::Raise
                | Step::Start
                | Step::Restore
                | Step::Thaw
                | Step::OpenGate
                | Step::Greet
        );
        if starts && self.wanted.goal != Goal::Running {
            return Err(StartedUnwanted);
        }
        let uses = matches!(
            step,
            Step::Thaw | Step::OpenGate | Step::Greet | Step::Freeze | Step::CaptureMemory | Step::Commit
        );
        if uses && self.machine.is_some_and(|machine| machine.generation != self.wanted.generation) {
            return Err(OldAdopted);
        }
        if step == Step::Raise && self.wanted.warm && self.wanted.holdings.disk.is_none() {
            // It would start cold, as if its snapshot had no memory.
            return Err(MemoryLost);
        }
        let only_for_absent = matches!(step, Step::Destroy | Step::Forget);
        if only_for_absent && self.wanted.goal != Goal::Absent {
            return Err(DataLost);
        }
        Ok(())
    }

    /// What a step does on the host; false if it cannot be done.
    fn effect(&mut self, step: Step, reach: Reach) -> Result<bool, Violation> {
        let wanted = self.wanted;
        match step {
            Step::Enroll => self.stored = true,
            Step::Resolve | Step::Observe | Step::Raise | Step::OpenGate | Step::CloseGate => {}
            Step::Greet => {
                return Ok(self.own_live().is_some_and(|machine| machine.run == RunState::Running));
            }
            Step::Materialize => {
                if self.content.0 > 0 || wanted.holdings.disk.is_some() {
                    return Err(EmptyDisk);
                }
                if self.disk.is_none() && reach == Reach::Half {
                    self.remains = true;
                } else {
                    self.disk.get_or_insert(Generation(0));
                    self.remains = false;
                }
                if wanted.warm {
                    // The disk comes first, and half of the work is the disk alone.
                    let image = Image { memory: Generation(0), disk: Generation(0), good: true };
                    self.image = (reach != Reach::Half).then_some(image);
                }
            }
            Step::Fetch => {
                if self.archive != Some(self.content) {
                    return Err(Mismatch);
                }
                self.disk = self.archive;
                self.remains = false;
            }
            Step::Start | Step::Restore => return self.start(step),
            Step::Commit => {
                // The image may only be given up while a machine holds what it holds. One that died a moment ago,
                // untold, could as well have died a moment later.
                let told = self.seen.host == Some(self.truth());
                if wanted.memory_counts() && self.own_live().is_none() && self.image.is_some() && told {
                    return Err(MemoryLost);
                }
            }
            Step::Thaw => return self.thaw(),
            Step::Freeze => return Ok(self.set_run(RunState::Frozen)),
            Step::CaptureMemory => return self.capture(reach),
            Step::RecordMemory => {
                let fits = |image: Image| image.good && Some(image.disk) == self.disk;
                if !self.image.is_some_and(fits) {
                    return Err(Mismatch);
                }
            }
            Step::RetireMemory | Step::DropMemory => {
                let given_up = matches!(wanted.goal, Goal::Stopped | Goal::Archived | Goal::Absent);
                let counts = wanted.memory_counts() && self.image.is_some_and(|image| image.good);
                if counts && (!given_up || (step == Step::DropMemory && wanted.goal != Goal::Absent)) {
                    return Err(MemoryLost);
                }
                if step == Step::DropMemory {
                    self.image = None;
                }
            }
            Step::Stop => {
                self.forbid_stop()?;
                self.machine = None;
            }
            Step::Archive => {
                if self.machine.is_some() {
                    return Err(Mismatch);
                }
                let Some(disk) = self.disk else { return Ok(false) };
                self.archive = Some(disk);
            }
            Step::RecordArchive => {
                if self.archive.is_none() || self.archive != self.disk {
                    return Err(Mismatch);
                }
            }
            Step::DropDisk => {
                let kept = self.archive == self.disk || self.disk.is_none();
                if !kept || !wanted.archive_counts() {
                    return Err(DataLost);
                }
                self.disk = None;
                self.remains = reach == Reach::Half;
                self.machine = None;
            }
            Step::Destroy => {
                // A disk is no longer one before its files go.
                self.machine = None;
                self.disk = None;
                self.remains = reach == Reach::Half;
            }
            Step::DropArchive => self.archive = None,
            Step::Lower => self.forbid_lower()?,
            Step::Lose => {
                let disk_is_there =
                    self.disk.is_some() || (wanted.archive_counts() && self.archive.is_some());
                let image_is_there = self.image.is_some() || !wanted.memory_counts();
                if disk_is_there && image_is_there {
                    return Err(GivesUp);
                }
            }
            Step::Forget => {
                let left = self.disk.is_some() || self.remains || self.machine.is_some();
                if left || self.image.is_some() || self.archive.is_some() {
                    return Err(LeftBehind);
                }
                self.stored = false;
            }
        }
        Ok(true)
    }

    fn start(&mut self, step: Step) -> Result<bool, Violation> {
        let wanted = self.wanted;
        let Some(disk) = self.disk else { return Ok(false) };
        if self.machine.is_some() {
            return Ok(false);
        }
        if wanted.generation <= self.started {
            return Err(GenerationReused);
        }
        if wanted.holdings.disk.is_none() {
            // Nobody would know of what it writes.
            return Err(DataLost);
        }
        if step == Step::Start {
            if wanted.memory_counts() && self.image.is_some_and(|image| image.good) {
                return Err(MemoryLost);
            }
            self.machine = Some(Machine {
                generation: wanted.generation,
                run: RunState::Running,
                memory: wanted.generation,
            });
            self.disk = Some(wanted.generation);
            self.content = wanted.generation;
        } else {
            let Some(image) = self.image else { return Ok(false) };
            if !image.good || image.disk != disk {
                return Err(Mismatch);
            }
            self.machine =
                Some(Machine { generation: wanted.generation, run: RunState::Frozen, memory: image.memory });
        }
        self.started = wanted.generation;
        Ok(true)
    }

    fn thaw(&mut self) -> Result<bool, Violation> {
        let Some(machine) = self.own_live() else { return Ok(false) };
        if self.wanted.memory_counts() {
            return Err(RunsBesideImage);
        }
        if self.wanted.holdings.disk != Some(self.wanted.generation) {
            // It would write to a disk whose old archive still counts.
            return Err(Mismatch);
        }
        self.set_run(RunState::Running);
        self.disk = self.disk.map(|_| machine.generation);
        self.content = machine.generation;
        if let Some(image) = &mut self.image {
            image.good = false;
        }
        Ok(true)
    }

    fn capture(&mut self, reach: Reach) -> Result<bool, Violation> {
        let Some(machine) = self.own_live() else { return Ok(false) };
        if machine.run != RunState::Frozen {
            return Ok(false);
        }
        if self.wanted.memory_counts() && self.image.is_some() {
            // A crash while it is overwritten would lose it.
            return Err(MemoryLost);
        }
        let disk = self.disk.unwrap_or_default();
        self.image = Some(Image { memory: machine.memory, disk, good: reach != Reach::Half });
        Ok(true)
    }

    fn forbid_stop(&self) -> Result<(), Violation> {
        let Some(machine) = self.own_live() else { return Ok(()) };
        match self.wanted.goal {
            Goal::Running | Goal::Paused => Err(GivesUp),
            Goal::Suspended => {
                let holds = |image: Image| image.good && image.memory == machine.memory;
                if self.wanted.memory_counts() && self.image.is_some_and(holds) {
                    Ok(())
                } else {
                    Err(MemoryLost)
                }
            }
            Goal::Stopped | Goal::Archived | Goal::Absent => Ok(()),
        }
    }

    fn forbid_lower(&self) -> Result<(), Violation> {
        let memory_is_there = self.wanted.memory_counts() && self.image.is_some();
        match self.wanted.goal {
            Goal::Running | Goal::Paused if self.own_live().is_some() => Err(GivesUp),
            Goal::Suspended if self.own_live().is_some() || memory_is_there => Err(GivesUp),
            Goal::Archived if self.content.0 > 0 => Err(GivesUp),
            Goal::Stopped | Goal::Absent => Err(GivesUp),
            Goal::Running | Goal::Paused | Goal::Suspended | Goal::Archived => Ok(()),
        }
    }

    fn set_run(&mut self, run: RunState) -> bool {
        match &mut self.machine {
            Some(machine) if machine.run != RunState::Dead => {
                machine.run = run;
                true
            }
            _ => false,
        }
    }

    fn invariants(&self) -> Result<(), Violation> {
        let gone = self.wanted.goal == Goal::Absent || self.disaster == Some(Disaster::DataGone);
        let on_disk = self.disk == Some(self.content);
        let in_archive = self.archive == Some(self.content) && self.wanted.archive_counts();
        if !gone && self.content.0 > 0 && !on_disk && !in_archive {
            return Err(DataLost);
        }
        let runs = self.own_live().is_some_and(|machine| machine.run == RunState::Running);
        if runs && self.wanted.memory_counts() && self.image.is_some_and(|image| image.good) {
            return Err(RunsBesideImage);
        }
        Ok(())
    }

    /// Whether all is as the row wants it.
    pub(super) fn is_reached(&self) -> bool {
        let open = self.seen.gate == GateState::Open;
        let empty = self.machine.is_none() && !open;
        match self.wanted.goal {
            Goal::Running => {
                let runs = self.own_live().is_some_and(|machine| machine.run == RunState::Running);
                let up = self.seen.greeted && self.wanted.life == Life::Up(self.wanted.generation);
                runs && open && up && self.image.is_none()
            }
            Goal::Paused => self.own_live().is_some_and(|machine| machine.run == RunState::Frozen) && !open,
            Goal::Suspended => {
                let good = |image: Image| image.good && Some(image.disk) == self.disk;
                empty && self.wanted.memory_counts() && self.image.is_some_and(good)
            }
            Goal::Stopped => {
                let kept = self.wanted.holdings.disk.is_none()
                    || self.disk.is_some()
                    || self.wanted.archive_counts()
                    || self.wanted.lost;
                empty && kept && self.image.is_none() && self.wanted.holdings.memory.is_none()
            }
            Goal::Archived => {
                empty
                    && self.disk.is_none()
                    && !self.remains
                    && self.wanted.archive_counts()
                    && self.archive == Some(self.content)
            }
            Goal::Absent => self.seen.row == Row::Gone && !self.stored,
        }
    }

    /// The world that stands for all that differ from this one in nothing that matters: generations that are equal to
    /// nothing they could be compared with become one value, and the rest are numbered densely.
    pub(super) fn normal(mut self) -> Self {
        const OTHER: Generation = Generation(0);
        let newest = self.wanted.generation;
        let distinct = |generation: &mut Generation| {
            if *generation != newest {
                *generation = OTHER;
            }
        };
        if let Life::Up(generation) = &mut self.wanted.life {
            distinct(generation);
        }
        if let Some(Host { machine: Some(machine), .. }) = &mut self.seen.host {
            distinct(&mut machine.generation);
        }
        if let Some(machine) = &mut self.machine {
            distinct(&mut machine.generation);
        }
        distinct(&mut self.started);
        let disk = self.wanted.holdings.disk;
        for generation in
            [&mut self.seen.captured, &mut self.seen.archived, &mut self.wanted.holdings.archive]
        {
            *generation = generation.filter(|_| *generation == disk);
        }
        if self.wanted.holdings.memory != disk {
            self.wanted.holdings.memory = self.wanted.holdings.memory.map(|_| OTHER);
        }
        self.merge_contents();
        let mut used = BTreeSet::from([OTHER]);
        self.each_generation(&mut |generation| {
            used.insert(*generation);
        });
        let used: Vec<Generation> = used.into_iter().collect();
        self.each_generation(&mut |generation| {
            let rank = used.binary_search(generation).expect("collected above");
            *generation = Generation(rank as u64);
        });
        self
    }

    /// Of contents and memories only which are the same matters.
    fn merge_contents(&mut self) {
        if let Some(image) = self.image.as_mut().filter(|image| !image.good) {
            (image.memory, image.disk) = (Generation(0), Generation(0));
        }
        match (&mut self.machine, &mut self.image) {
            (Some(machine), Some(image)) => {
                let same = machine.memory == image.memory;
                machine.memory = Generation(0);
                image.memory = Generation(u64::from(!same));
            }
            (Some(Machine { memory, .. }), None) | (None, Some(Image { memory, .. })) => {
                *memory = Generation(0)
            }
            (None, None) => {}
        }
    }

    fn each_generation(&mut self, visit: &mut dyn FnMut(&mut Generation)) {
        visit(&mut self.wanted.generation);
        let holdings = &mut self.wanted.holdings;
        for generation in
            [&mut holdings.disk, &mut holdings.memory, &mut holdings.archive].into_iter().flatten()
        {
            visit(generation);
        }
        if let Life::Up(generation) = &mut self.wanted.life {
            visit(generation);
        }
        let seen = &mut self.seen;
        for generation in [&mut seen.captured, &mut seen.archived].into_iter().flatten() {
            visit(generation);
        }
        if let Some(Host { machine: Some(machine), .. }) = &mut seen.host {
            visit(&mut machine.generation);
        }
        for generation in [&mut self.disk, &mut self.archive].into_iter().flatten() {
            visit(generation);
        }
        if let Some(machine) = &mut self.machine {
            visit(&mut machine.generation);
            visit(&mut machine.memory);
        }
        if let Some(image) = &mut self.image {
            visit(&mut image.memory);
            visit(&mut image.disk);
        }
        visit(&mut self.started);
        visit(&mut self.content);
    }
}
