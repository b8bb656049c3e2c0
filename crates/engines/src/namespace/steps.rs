//! The sequences of this engine, step by step.

pub(super) use crate::steps::{Moment, Step, hit, pass};
use crate::steps::{points_of, sequence};

sequence! {
    /// Making a disk, in the server.
    MaterializeStep in "materialize" {
        Clear = "clear",
        Directory = "directory",
        Layer = "layer",
        Identity = "identity",
        Snapshot = "snapshot",
        Record = "record",
    }
}

sequence! {
    /// Capturing a disk, in the server.
    CaptureStep in "capture_disk" {
        Below = "below",
        Layer = "layer",
        Workspace = "workspace",
    }
}

sequence! {
    /// Starting a machine, in the server.
    StartStep in "start" {
        Clear = "clear",
        Directory = "directory",
        Socket = "socket",
        Cgroups = "cgroups",
        Network = "network",
        Workspace = "workspace",
        Launch = "launch",
        Watch = "watch",
    }
}

sequence! {
    /// Ending a machine, in the server.
    StopStep in "stop" {
        Terminate = "terminate",
        Kill = "kill",
        Cgroups = "cgroups",
        Directory = "directory",
    }
}

sequence! {
    /// Removing what a machine leaves, in the server.
    DestroyStep in "destroy" {
        Doom = "doom",
        Machine = "machine",
        Disk = "disk",
    }
}

sequence! {
    /// Making a machine's first process, in the launcher.
    LaunchStep in "launcher" {
        Disk = "disk",
        Clone = "clone",
        Map = "map",
        Layers = "layers",
        Overlay = "overlay",
        Workspace = "workspace",
        Binds = "binds",
        Mounts = "mounts",
        Send = "send",
        Reply = "reply",
    }
}

sequence! {
    /// What the first process does to itself before it becomes the agent.
    ChildStep in "child" {
        Cgroups = "cgroups",
        CgroupNamespace = "cgroup_namespace",
        Hostname = "hostname",
        Proc = "proc",
        Receive = "receive",
        Identity = "identity",
        Root = "root",
        Binds = "binds",
        Devices = "devices",
        Scratch = "scratch",
        Workspace = "workspace",
        Masks = "masks",
        Mounts = "mounts",
        ReadOnly = "read_only",
        Descriptors = "descriptors",
        Limits = "limits",
        Filter = "filter",
        Capabilities = "capabilities",
        Execute = "execute",
    }
}

/// All fault points of this engine and its launcher.
pub(super) fn fault_points() -> Vec<String> {
    points_of(MaterializeStep::ALL)
        .chain(points_of(CaptureStep::ALL))
        .chain(points_of(StartStep::ALL))
        .chain(points_of(LaunchStep::ALL))
        .chain(points_of(ChildStep::ALL))
        .chain(points_of(StopStep::ALL))
        .chain(points_of(DestroyStep::ALL))
        .chain(crate::net::fault_points())
        .collect()
}
