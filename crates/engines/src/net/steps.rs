//! What happens to the host's network, step by step.

use crate::steps::{points_of, sequence};

sequence! {
    /// Networks of machines, on the network thread.
    NetworkStep in "network" {
        Adopt = "adopt",
        Table = "table",
        Namespace = "namespace",
        Pair = "pair",
        Route = "route",
        Inside = "inside",
        Rules = "rules",
        Claim = "claim",
        Release = "release",
        Close = "close",
    }
}

sequence! {
    /// What guests have beside.
    GuestStep in "guest_network" {
        Tap = "tap",
        Guard = "guard",
        Record = "record",
        Name = "name",
        Unname = "unname",
    }
}

/// The fault points that networks of guests have beside those of all networks.
pub(crate) fn guest_fault_points() -> impl Iterator<Item = String> {
    points_of(GuestStep::ALL)
}

/// All fault points of networks.
pub(crate) fn fault_points() -> impl Iterator<Item = String> {
    points_of(NetworkStep::ALL)
}
