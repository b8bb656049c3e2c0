//! How a sandbox is captured while it goes on: between two steps, when there is nothing to do.
//!
//! A machine that is captured with its memory is hung up and stands still; the planner opens it and greets it again. For
//! its disk alone it only stands still, if even that: who speaks to it waits. A guest with a kernel of its own keeps in its
//! memory what was written to files a moment ago: it is asked to write that down and not to go on with its files meanwhile.
//! One that is suspended stays so: its memory image and its disk are the snapshot's as well. A server that dies in between
//! leaves a machine that stands still; the next one's planner thaws it, for nothing about it is written down. Guests go on
//! with their files by themselves after a while.

use std::sync::Arc;

use sandhaus_protocol::guest::{FREEZE_MAX_MS, SyncReply, SyncRequest};
use tokio::time::Instant;

use super::{Actor, answer, steps};
use crate::{
    engine::{Capture, RunState},
    error::{Error, Kind, Result},
    fault,
    handle::{Captured, Capturing, gone},
    plan::{GateState, Row, Step},
    snapshot::{CaptureMode, CaptureStep, SnapshotKind, Step as _},
    types::*,
};

/// Most captures of one sandbox that wait for their turn.
const WAITING_MAX: usize = 8;

/// What a capture does about the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stillness {
    /// It runs on, or there is none, or it stands still anyway.
    AsIs,
    /// Its file systems stand still meanwhile.
    Quiet,
    /// It stands still meanwhile.
    Frozen,
    /// Nobody speaks to it either.
    HungUp,
}

impl Actor {
    /// Notes that somebody wants it captured.
    pub(super) fn await_capture(&mut self, capture: Capturing) {
        self.captures.retain(|waiting| !waiting.reply.is_closed());
        if self.captures.len() >= WAITING_MAX {
            let message = format!("sandbox {} has too many captures waiting", self.handle.id);
            return answer(capture.reply, Err(Error::new(Kind::Exhausted, message)));
        }
        self.captures.push_back(capture);
    }

    /// Makes the next capture, if somebody waits for one: true if the planner is to look again. Only called when there is
    /// no step to do, so that a machine is there or is not.
    pub(super) async fn make_capture(&mut self) -> bool {
        let Some(capture) = self.captures.pop_front() else { return false };
        // Whoever asked has given up, and with that the directory.
        if !capture.reply.is_closed() {
            let outcome = self.capture(&capture).await;
            answer(capture.reply, outcome);
        }
        true
    }

    /// The snapshot it was made of may be of no use to anybody any more.
    pub(super) fn release_snapshot(&self) {
        if self.sandbox.spec.source.snapshot().is_some() {
            self.shared.collect_snapshots_soon();
        }
    }

    async fn capture(&mut self, capture: &Capturing) -> Result<Captured> {
        let stillness = self.stillness(capture)?;
        // Before it stands still: it may have to be looked up.
        let config = self.tree().await?.config.clone();
        let mut still_since = None;
        let captured = self.write_still(capture, stillness, &mut still_since).await;
        if captured.is_err() {
            self.seen.failed();
        }
        if matches!(stillness, Stillness::Frozen | Stillness::HungUp) {
            // Not left to the planner, which ends with the server: a sandbox is not to stand still until the next one.
            let wanted = self.wanted();
            match self.act(Step::Thaw, &wanted).await {
                Ok(()) => self.seen.succeeded(Step::Thaw, &wanted),
                Err(error) => {
                    tracing::warn!(sandbox = %self.handle.id, %error, "cannot thaw at once");
                    self.seen.failed();
                }
            }
        }
        captured?;
        let still_ms = still_since.map(|since| since.elapsed().as_millis());
        tracing::info!(sandbox = %self.handle.id, kind = ?capture.kind, still_ms, "captured");
        Ok(Captured { sandbox: Arc::clone(&self.sandbox), config })
    }

    /// Captures it; the moment from which on it stands still is told in `still_since`.
    async fn write_still(
        &mut self,
        capture: &Capturing,
        stillness: Stillness,
        still_since: &mut Option<Instant>,
    ) -> Result<()> {
        let wanted = self.wanted();
        if stillness == Stillness::HungUp && self.seen.gate == GateState::Open {
            self.act(Step::CloseGate, &wanted).await?;
            self.seen.succeeded(Step::CloseGate, &wanted);
            // Whoever comes now waits until it is open again.
            self.publish();
        }
        if stillness == Stillness::Quiet {
            return self.write_quiet(capture).await;
        }
        if stillness != Stillness::AsIs {
            *still_since = Some(Instant::now());
            fault::pass_async(CaptureStep::Freeze.name(), self.act(Step::Freeze, &wanted)).await?;
            self.seen.succeeded(Step::Freeze, &wanted);
        }
        let what = match (capture.kind, self.sandbox.goal) {
            (SnapshotKind::Disk, _) => Capture::Disk,
            (SnapshotKind::Machine, Goal::Suspended) => Capture::Suspended(self.memory_image(&wanted)?),
            (SnapshotKind::Machine, _) => Capture::Machine,
        };
        self.photograph(what, capture).await
    }

    /// Captures the disk of a machine that runs on, with all that its guest has written to files.
    async fn write_quiet(&self, capture: &Capturing) -> Result<()> {
        let (id, toolbox) = (&self.handle.id, &self.handle.toolbox);
        let freeze = SyncRequest::Freeze { limit_ms: FREEZE_MAX_MS };
        // What is in memory alone cannot stand still, and need not.
        let SyncReply { frozen } =
            fault::pass_async(CaptureStep::Freeze.name(), toolbox.sync(&freeze)).await?;
        let written = self.photograph(Capture::Disk, capture).await;
        let thawed = toolbox.sync(&SyncRequest::Thaw).await;
        written?;
        if frozen && !thawed?.frozen {
            let message = format!(
                "the disk of sandbox {id} did not stand still until all was captured: try again, or take it live"
            );
            return Err(Error::new(Kind::Unavailable, message));
        }
        Ok(())
    }

    async fn photograph(&self, what: Capture, capture: &Capturing) -> Result<()> {
        let written = self.handle.engine.capture(&self.handle.id, what, capture.into.clone());
        let written = steps::within(steps::CAPTURE_MAX, "capture sandbox", written);
        fault::pass_async(CaptureStep::Write.name(), written).await
    }

    /// What is to be done about the machine, if it can be captured at all as it is.
    fn stillness(&self, capture: &Capturing) -> Result<Stillness> {
        let id = &self.handle.id;
        if self.seen.row == Row::Gone {
            return Err(gone(id));
        }
        let conflict = |message: String| Err(Error::new(Kind::Conflict, message));
        let machine = self.seen.host.and_then(|host| host.machine).map(|machine| machine.run);
        match (self.sandbox.goal, capture.kind) {
            (Goal::Absent, _) => Err(gone(id)),
            (Goal::Running, _) if machine != Some(RunState::Running) => {
                conflict(format!("sandbox {id} is not running"))
            }
            (Goal::Running, SnapshotKind::Disk) if capture.mode == CaptureMode::Live => Ok(Stillness::AsIs),
            (Goal::Running, SnapshotKind::Disk) if self.handle.engine.capabilities().boots_by_greeting => {
                Ok(Stillness::Quiet)
            }
            (Goal::Running, SnapshotKind::Disk) => Ok(Stillness::Frozen),
            (Goal::Running, SnapshotKind::Machine) => Ok(Stillness::HungUp),
            (Goal::Paused, _) => Ok(Stillness::AsIs),
            (Goal::Stopped, SnapshotKind::Machine) => conflict(format!(
                "sandbox {id} is stopped and has no memory: take a snapshot of its disk, or start it first"
            )),
            (Goal::Suspended, SnapshotKind::Machine) => {
                let whole = self.seen.host.is_some_and(|host| host.disk && host.image);
                // The image has its memory as long as no machine has gone on from it.
                if whole && machine.is_none() && self.wanted().memory_counts() {
                    Ok(Stillness::AsIs)
                } else {
                    conflict(format!("sandbox {id} is not suspended yet"))
                }
            }
            (Goal::Archived, _) => conflict(format!("sandbox {id} is archived: start it first")),
            (Goal::Stopped | Goal::Suspended, SnapshotKind::Disk) => {
                let disk = self.seen.host.is_some_and(|host| host.disk);
                if disk { Ok(Stillness::AsIs) } else { conflict(format!("sandbox {id} has no disk")) }
            }
        }
    }
}
