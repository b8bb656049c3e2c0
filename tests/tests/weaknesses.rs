//! The weaknesses that the older tool has, one by one: a test for each number shows that this one does not have it. The
//! numbers are those of the contract between the two; tests of numbers that are not here lie beside what they are about,
//! and `cargo xtask arch` looks that every number has one.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "weaknesses/confinement.rs"]
mod confinement;
#[path = "weaknesses/host.rs"]
mod host;
#[path = "weaknesses/sessions.rs"]
mod sessions;

use sandhaus_tests::{process, session::Session};

/// The processes of a session as the host sees them.
fn processes_of(session: &Session) -> Vec<u32> {
    let found: Vec<u32> = process::all()
        .into_iter()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|text| text.contains(&session.id))
        })
        .collect();
    assert!(!found.is_empty(), "{} has no process", session.id);
    found
}

/// The first process of a session as the host sees it.
fn agent_of(session: &Session) -> u32 {
    let is_agent = |pid: &u32| process::arguments(*pid).first().is_some_and(|name| name == "sandhaus-agent");
    processes_of(session).into_iter().find(is_agent).expect("the session has an agent")
}
