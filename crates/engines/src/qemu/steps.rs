//! The sequences of this engine, step by step; those of disks and snapshots stand where they are done.

use super::{
    capture::CaptureStep,
    disk::{MaterializeStep, OverlayStep, RemoveStep},
    pack::PackStep,
};
pub(super) use crate::steps::{Moment, hit, pass};
use crate::steps::{points_of, sequence};

sequence! {
    /// Starting a machine.
    StartStep in "vm_start" {
        Clear = "clear",
        Directory = "directory",
        Sockets = "sockets",
        Cgroups = "cgroups",
        Network = "network",
        Spawn = "spawn",
        Watch = "watch",
        Load = "load",
        Answer = "answer",
    }
}

sequence! {
    /// Ending one.
    StopStep in "vm_stop" {
        PowerOff = "power_off",
        Kill = "kill",
        Cgroups = "cgroups",
        Network = "network",
        Directory = "directory",
    }
}

/// All fault points of this engine.
pub(super) fn fault_points() -> impl Iterator<Item = String> {
    points_of(StartStep::ALL)
        .chain(points_of(StopStep::ALL))
        .chain(points_of(MaterializeStep::ALL))
        .chain(points_of(RemoveStep::ALL))
        .chain(points_of(OverlayStep::ALL))
        .chain(points_of(CaptureStep::ALL))
        .chain(points_of(PackStep::ALL))
        .chain(crate::net::guest_fault_points())
        .chain(crate::net::fault_points())
}
