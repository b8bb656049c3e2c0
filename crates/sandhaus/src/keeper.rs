//! The process that keeps a cgroup for sandboxes in being.
//!
//! A supervisor removes a unit's cgroup with the unit's last process, and cannot put a new process into one that hands
//! controllers down. So the cgroup of all sandboxes is a unit of its own, apart from the server's, and this process is
//! all there is in it at first: it goes to a leaf, says that the place is ready, and stays.

use std::process::ExitCode;

use crate::{advice, process, supervisor::Supervisor};

/// Internal first argument with which this binary becomes the keeper.
pub(crate) const ARGUMENT: &str = "__keeper";

/// Stays until it is killed: everything in its cgroup would be ended with it, so what asks politely is not heard.
pub(crate) fn main() -> ExitCode {
    process::ignore_requests_to_end();
    if let Err(error) = sandhaus_engines::retire_to_leaf() {
        advice::print_error(&anyhow::Error::from(error).context("keep the cgroup of sandboxes"));
        return ExitCode::FAILURE;
    }
    Supervisor::of_environment().ready();
    loop {
        std::thread::park();
    }
}
