//! What is done to a machine while its server dies.

use sandhaus_tests::{files_named, process::Handle, session::Session, settles};
use serde_json::{Value, json};

use crate::ground::{Field, IMAGE, LAYERED, WARM, program};

/// The snapshot that a deed takes.
pub(crate) const TAKEN: &str = "taken";

/// Something that is asked of a server, in the order in which points are counted as new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    /// A machine is made of the warm snapshot.
    Create,
    /// Memory to disk.
    Suspend,
    /// And back.
    Start,
    /// A copy with memory.
    Fork,
    /// A snapshot with memory.
    CaptureMachine,
    /// A snapshot of the disk alone.
    CaptureDisk,
    /// A snapshot of the disk that has so many layers that they become one first.
    CaptureLayers,
    /// A snapshot's end.
    RemoveSnapshot,
    /// A guest switches itself off.
    Stop,
    /// A machine that runs is deleted.
    Delete,
    /// One that is suspended.
    DeleteSuspended,
    /// One that is suspended is to be without memory.
    GiveUpMemory,
    /// Its QEMU ends by itself.
    End,
    /// The memory image of a suspended one is gone.
    Lose,
    /// A snapshot goes to the store.
    Push,
    /// A server finds a machine that an earlier one started.
    Adopt,
    /// A server ends in order.
    Leave,
    /// A machine is made of an image, and boots.
    Boot,
}

/// What the planner, the actor and the catalogue do.
const DOMAIN: &[&str] = &["plan.", "capture.", "snapshot_"];

/// The same, and what a capture consists of.
const CAPTURE: &[&str] = &["plan.", "capture.", "snapshot_", "vm_capture.", "vm_overlay."];

/// How a machine comes.
const START: &[&str] = &["plan.", "vm_start."];

/// How one goes.
const STOP: &[&str] = &["plan.", "vm_stop."];

/// How a sandbox goes.
const DELETE: &[&str] = &["plan.", "vm_stop.", "vm_remove."];

impl Deed {
    pub(crate) const ALL: &[Self] = &[
        Self::Create,
        Self::Suspend,
        Self::Start,
        Self::Fork,
        Self::CaptureMachine,
        Self::CaptureDisk,
        Self::CaptureLayers,
        Self::RemoveSnapshot,
        Self::Stop,
        Self::Delete,
        Self::DeleteSuspended,
        Self::GiveUpMemory,
        Self::End,
        Self::Lose,
        Self::Push,
        Self::Adopt,
        Self::Leave,
        Self::Boot,
    ];

    /// The areas whose points are swept in this deed though an earlier one passes them too. What is left out does the same
    /// there.
    pub(crate) fn areas(self) -> &'static [&'static str] {
        match self {
            Self::Create | Self::Suspend => &[""],
            Self::Start => START,
            Self::Fork => CAPTURE,
            Self::CaptureMachine | Self::CaptureDisk | Self::RemoveSnapshot | Self::Adopt | Self::Leave => {
                DOMAIN
            }
            Self::Stop => STOP,
            Self::Delete | Self::DeleteSuspended => DELETE,
            Self::CaptureLayers | Self::GiveUpMemory | Self::End | Self::Lose | Self::Push | Self::Boot => {
                &[]
            }
        }
    }

    /// What has to be there before; gives the machine that the deed is about, if there is one yet.
    pub(crate) fn prepare(self, field: &Field<'_>) -> Option<Session> {
        let made_of = |snapshot: &str| Session::create(&field.http(), &json!({"snapshot": snapshot}));
        let told = |session: &Session, verb: &str| {
            field.http().post(&session.route(verb), &json!({})).expect(200);
        };
        let session = match self {
            Self::Create | Self::Boot => return None,
            Self::CaptureLayers => made_of(LAYERED),
            _ => made_of(WARM),
        };
        match self {
            Self::Start | Self::DeleteSuspended | Self::GiveUpMemory => told(&session, "/suspend"),
            Self::Lose => {
                told(&session, "/suspend");
                let memory = field.data().join("memory").join(&session.id);
                fs_err::remove_dir_all(memory).expect("it has memory on disk");
            }
            Self::RemoveSnapshot | Self::Push => {
                let request = json!({"session": session.id, "name": TAKEN, "kind": "disk"});
                field.http().post("/v1/snapshots", &request).expect(201);
            }
            Self::Create
            | Self::Suspend
            | Self::Fork
            | Self::CaptureMachine
            | Self::CaptureDisk
            | Self::CaptureLayers
            | Self::Stop
            | Self::Delete
            | Self::End
            | Self::Adopt
            | Self::Leave
            | Self::Boot => {}
        }
        Some(session)
    }

    /// Asks for it, and waits for an answer or the server's end.
    pub(crate) fn perform(self, field: &Field<'_>, subject: Option<&Session>) {
        let http = field.http();
        // Whether it went well is not asked here: what is there afterwards tells.
        let ask = |method: &str, path: &str, body: &Value| {
            drop(http.try_send(method, path, "application/json", body.to_string().as_bytes()));
        };
        let on = |verb: &str| subject.expect("a deed on a machine").route(verb);
        let capture = |kind: &str, live: bool| {
            let id = &subject.expect("a deed on a machine").id;
            ask("POST", "/v1/snapshots", &json!({"session": id, "name": TAKEN, "kind": kind, "live": live}));
        };
        match self {
            Self::Create => ask("POST", "/v1/sessions", &json!({"snapshot": WARM})),
            Self::Boot => ask("POST", "/v1/sessions", &json!({"image": IMAGE, "network": "bridge"})),
            Self::Suspend => ask("POST", &on("/suspend"), &json!({})),
            Self::Start | Self::Lose => ask("POST", &on("/start"), &json!({})),
            Self::Fork => ask("POST", &on("/fork"), &json!({})),
            Self::CaptureMachine => capture("machine", false),
            Self::CaptureDisk => capture("disk", false),
            Self::CaptureLayers => capture("disk", true),
            Self::RemoveSnapshot => ask("DELETE", &format!("/v1/snapshots/{TAKEN}"), &json!({})),
            Self::Stop | Self::GiveUpMemory => ask("POST", &on("/stop"), &json!({})),
            Self::Delete | Self::DeleteSuspended => ask("DELETE", &on(""), &json!({})),
            Self::End => {
                let session = subject.expect("a deed on a machine");
                Handle::open(program(&session.id)).expect("it runs").signal(rustix::process::Signal::KILL);
                settles("the end of its program is told, or that of the server", || {
                    http.try_send("GET", &session.route(""), "", b"")
                        .map_or(true, |answer| answer.json::<Value>()["status"] != "running")
                });
            }
            Self::Push => drop(field.cli(&["snapshot", "push", TAKEN])),
            // The server's own start and end are all there is.
            Self::Adopt | Self::Leave => {}
        }
    }

    /// States that the machine may be in afterwards; of several, every one of them may be in any.
    pub(crate) fn legal(self) -> &'static [&'static str] {
        match self {
            Self::Create | Self::Boot => &["running"],
            Self::Suspend | Self::Start => &["running", "suspended"],
            Self::Fork
            | Self::CaptureMachine
            | Self::CaptureDisk
            | Self::CaptureLayers
            | Self::RemoveSnapshot
            | Self::Push
            | Self::Adopt
            | Self::Leave
            | Self::Delete => &["running"],
            Self::Stop => &["running", "stopped"],
            Self::DeleteSuspended => &["suspended"],
            Self::GiveUpMemory => &["suspended", "stopped"],
            Self::End => &["crashed"],
            Self::Lose => &["suspended", "crashed"],
        }
    }

    /// Whether the machine may be gone, or may not have come to be.
    pub(crate) fn may_be_gone(self) -> bool {
        matches!(self, Self::Create | Self::Boot | Self::Delete | Self::DeleteSuspended)
    }

    /// Makes good what a death may leave for whoever asks again.
    pub(crate) fn repeat(self, field: &Field<'_>) {
        if self == Self::Push {
            let (code, complaint) = field.cli(&["snapshot", "push", TAKEN]);
            assert_eq!(code, 0, "pushed again: {complaint}");
            let packed = files_named(&field.data().join("transfers"), "packed");
            assert!(packed.is_empty(), "a push that came to its end leaves nothing: {packed:?}");
        }
    }
}
