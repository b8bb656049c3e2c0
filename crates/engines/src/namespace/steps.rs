//! The sequences of this engine, step by step, and the fault points that follow from them.
//!
//! Each sequence is an enum whose `ALL` is its list. Its runner passes every step through [`pass`] (or, where the two
//! sides of a step lie apart, [`hit`] twice), so a step cannot be run without its points.

use sandhaus_sandbox::fault;

/// A step of a sequence.
pub(super) trait Step: Copy {
    /// The sequence.
    const AREA: &'static str;

    /// The step in words that are safe to show.
    fn name(self) -> &'static str;
}

macro_rules! sequence {
    ($(#[$about:meta])* $name:ident in $area:literal { $($(#[$note:meta])* $step:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum $name { $($(#[$note])* $step,)+ }

        impl $name {
            /// All steps in order.
            pub(super) const ALL: &'static [Self] = &[$(Self::$step,)+];
        }

        impl Step for $name {
            const AREA: &'static str = $area;
            fn name(self) -> &'static str {
                match self { $(Self::$step => $text,)+ }
            }
        }
    };
}

sequence! {
    /// Making a disk, in the server.
    MaterializeStep in "materialize" {
        Clear = "clear",
        Directory = "directory",
        Layer = "layer",
        Identity = "identity",
        Record = "record",
    }
}

sequence! {
    /// Starting a machine, in the server.
    StartStep in "start" {
        Clear = "clear",
        Directory = "directory",
        Socket = "socket",
        Cgroups = "cgroups",
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
        Loopback = "loopback",
        Proc = "proc",
        Sys = "sys",
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

/// A moment at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Nothing of the step is done.
    Before,
    /// All of it is done.
    After,
}

/// The name of the fault point at a moment of a step.
pub(super) fn point<S: Step>(step: S, moment: Moment) -> String {
    let moment = match moment {
        Moment::Before => "before",
        Moment::After => "after",
    };
    format!("{}.{}.{moment}", S::AREA, step.name())
}

/// Passes the fault point at a moment of a step.
pub(super) fn hit<S: Step>(step: S, moment: Moment) {
    if fault::is_armed() {
        fault::hit(&point(step, moment));
    }
}

/// Does a step between its fault points.
pub(super) fn pass<S: Step, T, E>(step: S, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    hit(step, Moment::Before);
    let done = act()?;
    hit(step, Moment::After);
    Ok(done)
}

/// All fault points of this engine and its launcher.
pub(super) fn fault_points() -> Vec<String> {
    fn of<S: Step>(steps: &[S], points: &mut Vec<String>) {
        for &step in steps {
            points.push(point(step, Moment::Before));
            points.push(point(step, Moment::After));
        }
    }
    let mut points = Vec::new();
    of(MaterializeStep::ALL, &mut points);
    of(StartStep::ALL, &mut points);
    of(LaunchStep::ALL, &mut points);
    of(ChildStep::ALL, &mut points);
    of(StopStep::ALL, &mut points);
    of(DestroyStep::ALL, &mut points);
    points
}
