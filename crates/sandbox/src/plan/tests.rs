//! The policy, proven by walking every world that can be reached from a creation: goals change at any time; a step
//! fails or the process dies before, within and after it; machines end, noticed or not; the host reboots; disks and
//! images are lost. And the proof, proven by policies with one flaw each, all of which it must catch.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use super::{
    world::{Disaster, Reach, Violation, World},
    *,
};

const GOALS: [Goal; 6] =
    [Goal::Running, Goal::Paused, Goal::Suspended, Goal::Stopped, Goal::Archived, Goal::Absent];

/// Steps within which every goal is reached when nothing disturbs.
const STEPS_MAX: usize = 16;

/// What happened, for the trace of a violation.
#[derive(Debug, Clone, Copy)]
#[expect(dead_code, reason = "read through Debug, by whoever reads a trace")]
enum Event {
    Did(Step, Reach, Then),
    Asked(Goal),
    Happened(&'static str),
}

/// What came of a step.
#[derive(Debug, Clone, Copy)]
enum Then {
    WentOn,
    Died,
    Refused,
    Failed,
    FailedForGood,
}

type Policy<'a> = &'a dyn Fn(&Wanted, &Seen) -> Option<Step>;

/// What was walked.
#[derive(Debug, Default)]
struct Walk {
    worlds: usize,
    steps_max: usize,
    taken: std::collections::BTreeSet<&'static str>,
}

/// Walks every world; the error tells how a violation came about.
fn walk(policy: Policy<'_>) -> Result<Walk, (Violation, Vec<String>)> {
    let starts = [World::new(), World::warm()];
    let mut from: HashMap<World, Option<(World, Event)>> = starts.map(|start| (start, None)).into();
    let mut queue = VecDeque::from(starts);
    let mut walk = Walk::default();
    while let Some(world) = queue.pop_front() {
        let trace = |last: String| {
            let mut trace = vec![last];
            let mut at = world;
            while let Some((before, event)) = &from[&at] {
                trace.push(format!("{event:?}"));
                at = *before;
            }
            trace.reverse();
            trace
        };
        let next =
            events(policy, &world).map_err(|(violation, event)| (violation, trace(format!("{event:?}"))))?;
        let steps = settle(policy, world, &mut walk)
            .map_err(|(violation, way)| (violation, trace(format!("undisturbed: {way:?}"))))?;
        walk.steps_max = walk.steps_max.max(steps);
        for (event, next) in next {
            let next = next.normal();
            if let Entry::Vacant(new) = from.entry(next) {
                new.insert(Some((world, event)));
                queue.push_back(next);
            }
        }
        walk.worlds += 1;
    }
    Ok(walk)
}

/// Everything that can happen next.
fn events(policy: Policy<'_>, world: &World) -> Result<Vec<(Event, World)>, (Violation, Event)> {
    let mut events = Vec::new();
    if let Some(step) = policy(&world.wanted, &world.seen) {
        for reach in [Reach::Nothing, Reach::Half, Reach::Effect, Reach::Whole] {
            let event = |then| Event::Did(step, reach, then);
            let outcome =
                world.carry_out(step, reach).map_err(|violation| (violation, event(Then::WentOn)))?;
            let Some(next) = outcome else {
                events.push((event(Then::Refused), failed(*world)));
                continue;
            };
            if let Some(next) = next.process_dies() {
                events.push((event(Then::Died), next));
            }
            if reach == Reach::Whole {
                events.push((event(Then::WentOn), next));
                continue;
            }
            // A row that could not be written ends the sandbox at once.
            if step == Step::Enroll {
                continue;
            }
            let next = failed(next);
            if let Some(goal) = fall_back(step, &world.wanted)
                && next.seen.asked.is_none()
            {
                let mut given_up = next;
                given_up.seen.asked = Some(goal);
                events.push((event(Then::FailedForGood), given_up));
            }
            events.push((event(Then::Failed), next));
        }
    }
    // A wish that is not written down yet is either written next or lost: what else happens could as well have
    // happened before it.
    if world.seen.row == Row::Gone || world.seen.asked.is_some() {
        return Ok(events);
    }
    if world.wanted.goal != Goal::Absent {
        events.extend(GOALS.map(|goal| {
            let mut next = *world;
            next.seen.asked = Some(goal);
            (Event::Asked(goal), next)
        }));
    }
    if let Some(machine) = world.machine {
        let mut dead = *world;
        dead.machine = Some(world::Machine { run: RunState::Dead, ..machine });
        let mut vanished = *world;
        vanished.machine = None;
        for (noticed, unnoticed, mut next) in [
            ("the machine dies", "the machine dies unnoticed", dead),
            ("the machine vanishes", "the machine vanishes unnoticed", vanished),
        ] {
            events.push((Event::Happened(unnoticed), next));
            next.seen.host = None;
            events.push((Event::Happened(noticed), next));
        }
    }
    if policy(&world.wanted, &world.seen).is_none() {
        events.extend(captures(world));
    }
    let mut reboot = *world;
    reboot.machine = None;
    events.extend(reboot.process_dies().map(|next| (Event::Happened("the host reboots"), next)));
    if world.disaster.is_none() {
        events.extend(disasters(world));
    }
    Ok(events)
}

/// A capture of what runs, which comes between two steps, does not come to its end: with its memory or without.
fn captures(world: &World) -> Vec<(Event, World)> {
    let mut events = Vec::new();
    let running = world.own_live().filter(|machine| machine.run == RunState::Running);
    let Some(machine) = running.filter(|_| world.wanted.goal == Goal::Running) else { return events };
    let frozen = Some(world::Machine { run: RunState::Frozen, ..machine });
    for gate in [GateState::Open, GateState::Closed] {
        let mut next = World { machine: frozen, ..*world };
        next.seen.gate = gate;
        events
            .extend(next.process_dies().map(|next| (Event::Happened("the server dies in a capture"), next)));
        events.push((Event::Happened("a capture fails"), failed(next)));
    }
    events
}

fn disasters(world: &World) -> Vec<(Event, World)> {
    let gone = World { disaster: Some(Disaster::DataGone), ..*world };
    let late = World { disaster: Some(Disaster::LateStart), ..*world };
    let mut disasters = Vec::new();
    disasters.extend(
        World { disk: None, ..gone }.process_dies().map(|next| (Event::Happened("the disk is lost"), next)),
    );
    disasters.extend(
        World { image: None, ..gone }.process_dies().map(|next| (Event::Happened("the image is lost"), next)),
    );
    if world.machine.is_none() && world.wanted.generation > Generation(0) && world.disk.is_some() {
        for run in [RunState::Running, RunState::Frozen] {
            let machine = world::Machine { generation: Generation(0), run, memory: Generation(0) };
            let mut next = World { machine: Some(machine), ..late };
            next.seen.host = None;
            disasters.push((Event::Happened("a machine of the past appears"), next));
        }
    }
    disasters
}

fn failed(mut world: World) -> World {
    world.seen.failed();
    world
}

/// Follows the policy until it has nothing left to do, and checks that all is as wanted then.
fn settle(
    policy: Policy<'_>,
    mut world: World,
    walk: &mut Walk,
) -> Result<usize, (Violation, Vec<&'static str>)> {
    // Ends of machines are told sooner or later.
    if world.seen.host.is_some_and(|host| host != world.truth()) && world.seen.row == Row::Kept {
        world.seen.host = None;
    }
    let meant = world.seen.asked.filter(|_| world.wanted.goal != Goal::Absent).unwrap_or(world.wanted.goal);
    let mut way = Vec::new();
    while let Some(step) = policy(&world.wanted, &world.seen) {
        way.push(step.name());
        if way.len() > STEPS_MAX {
            return Err((Violation::NotReached, way));
        }
        match world.carry_out(step, Reach::Whole) {
            Ok(Some(next)) => world = next,
            Ok(None) => world = failed(world),
            Err(violation) => return Err((violation, way)),
        }
    }
    // Giving up is a step of its own, with rules of its own.
    let gave_up = way.iter().any(|name| [Step::Lower.name(), Step::Lose.name()].contains(name));
    if !world.is_reached() || (world.wanted.goal != meant && !gave_up) {
        return Err((Violation::NotReached, way));
    }
    walk.taken.extend(&way);
    Ok(way.len())
}

#[test]
fn every_goal_is_reached_from_every_world_and_nothing_is_lost() {
    let walk = walk(&plan).unwrap_or_else(|(violation, trace)| panic!("{violation:?} by {trace:#?}"));
    let never: Vec<_> =
        Step::ALL.iter().map(|step| step.name()).filter(|name| !walk.taken.contains(name)).collect();
    assert!(never.is_empty(), "steps that are never taken undisturbed: {never:?}");
    assert!(walk.worlds > 1_000, "{walk:?}");
    assert!(walk.steps_max <= STEPS_MAX, "{walk:?}");
    println!("{} worlds, at most {} steps to the goal", walk.worlds, walk.steps_max);
}

/// A policy with one flaw, and what must catch it.
type Flaw = (&'static str, Violation, fn(&Wanted, &Seen) -> Option<Step>);

fn instead(wanted: &Wanted, seen: &Seen, right: Step, wrong: Step) -> Option<Step> {
    plan(wanted, seen).map(|step| if step == right { wrong } else { step })
}

const FLAWS: &[Flaw] = &[
    ("takes unknown for absent", Violation::ActsOnUnknown, |wanted, seen| {
        let host = seen.host.or(Some(Host::default()));
        plan(wanted, &Seen { host, ..*seen })
    }),
    ("starts without a new generation", Violation::GenerationReused, |wanted, seen| {
        let first = wanted.generation == Generation(0);
        plan(wanted, &Seen { raised: seen.raised || !first, ..*seen })
    }),
    ("adopts a machine of another generation", Violation::OldAdopted, |wanted, seen| {
        let mut seen = *seen;
        if let Some(Host { machine: Some(machine), .. }) = &mut seen.host {
            machine.generation = wanted.generation;
        }
        plan(wanted, &seen)
    }),
    ("starts a machine to delete it in order", Violation::StartedUnwanted, |wanted, seen| {
        let gone = seen.host.is_some_and(|host| host.machine.is_none() && host.disk);
        let asked = wanted.goal == Goal::Absent && seen.asked.is_none() && seen.row == Row::Kept;
        if asked && gone && wanted.holdings.disk.is_some() { Some(Step::Raise) } else { plan(wanted, seen) }
    }),
    ("captures with open streams", Violation::OpenGate, |wanted, seen| {
        let suspending = wanted.goal == Goal::Suspended;
        let gate = if suspending { GateState::Closed } else { seen.gate };
        plan(wanted, &Seen { gate, ..*seen })
    }),
    ("ends a machine with open streams", Violation::OpenGate, |wanted, seen| {
        let stopping = wanted.goal == Goal::Stopped && seen.host.is_some_and(|host| host.machine.is_some());
        let gate = if stopping { GateState::Closed } else { seen.gate };
        plan(wanted, &Seen { gate, ..*seen })
    }),
    ("drops the disk before it is archived", Violation::DataLost, |wanted, seen| {
        instead(wanted, seen, Step::Archive, Step::DropDisk)
    }),
    ("records an archive that was not made", Violation::Mismatch, |wanted, seen| {
        instead(wanted, seen, Step::Archive, Step::RecordArchive)
    }),
    ("makes an empty disk where one is missing", Violation::EmptyDisk, |wanted, seen| {
        instead(wanted, seen, Step::Lose, Step::Materialize)
    }),
    ("thaws before the image is retired", Violation::RunsBesideImage, |wanted, seen| {
        instead(wanted, seen, Step::Commit, Step::Thaw)
    }),
    ("ends the machine before the image is recorded", Violation::MemoryLost, |wanted, seen| {
        instead(wanted, seen, Step::RecordMemory, Step::Stop)
    }),
    ("retires the image before it is restored", Violation::MemoryLost, |wanted, seen| {
        instead(wanted, seen, Step::Restore, Step::RetireMemory)
    }),
    ("records an image after it ran on", Violation::Mismatch, |wanted, seen| {
        let image = seen.host.is_some_and(|host| host.image);
        let step = plan(wanted, seen);
        if image && step == Some(Step::CaptureMemory) { Some(Step::RecordMemory) } else { step }
    }),
    ("keeps the goal of a machine that ended", Violation::NotReached, |wanted, seen| {
        plan(wanted, seen).filter(|step| *step != Step::Lower)
    }),
    ("starts again what ended by itself, for ever", Violation::NotReached, |wanted, seen| {
        instead(wanted, seen, Step::Lower, Step::CloseGate)
    }),
    ("stops what is to be paused", Violation::GivesUp, |wanted, seen| {
        instead(wanted, seen, Step::Freeze, Step::Stop)
    }),
    ("forgets the row first", Violation::LeftBehind, |wanted, seen| {
        instead(wanted, seen, Step::Destroy, Step::Forget)
    }),
    ("takes what a half-removed disk leaves for nothing", Violation::LeftBehind, |wanted, seen| {
        let host = seen.host.map(|host| Host { remains: false, ..host });
        plan(wanted, &Seen { host, ..*seen })
    }),
    ("leaves the memory image behind", Violation::LeftBehind, |wanted, seen| {
        let mut seen = *seen;
        if let Some(host) = seen.host.as_mut().filter(|_| wanted.goal == Goal::Absent) {
            host.image = false;
        }
        plan(wanted, &seen)
    }),
    ("forgets the memory that a snapshot has", Violation::MemoryLost, |wanted, seen| {
        plan(&Wanted { warm: false, ..*wanted }, seen)
    }),
    ("leaves a machine still that a capture froze", Violation::NotReached, |wanted, seen| {
        plan(wanted, seen).filter(|step| *step != Step::Thaw || seen.gate == GateState::Closed)
    }),
    ("never greets again", Violation::NotReached, |wanted, seen| {
        plan(wanted, &Seen { greeted: seen.greeted || matches!(wanted.life, Life::Up(_)), ..*seen })
    }),
];

#[test]
fn a_policy_with_a_flaw_is_caught_for_what_it_does() {
    for (name, expected, flawed) in FLAWS {
        match walk(flawed) {
            Ok(walk) => panic!("a policy that {name} passes: {walk:?}"),
            Err((violation, trace)) => {
                assert_eq!(
                    violation, *expected,
                    "a policy that {name} is caught for something else: {trace:#?}"
                );
                println!("a policy that {name}: {violation:?} after {} events", trace.len());
            }
        }
    }
}

#[test]
fn fault_points_name_every_step_twice() {
    let points = fault_points();
    let distinct: std::collections::BTreeSet<_> = points.iter().collect();
    assert_eq!((points.len(), distinct.len()), (2 * Step::ALL.len(), 2 * Step::ALL.len()));
    assert!(points.contains(&"plan.start.before".to_owned()));
    assert!(points.contains(&"plan.start.after".to_owned()));
}

#[test]
fn phases_say_what_it_does() {
    let mut wanted = World::new().wanted;
    let mut seen = Seen::fresh();
    assert_eq!(phase(&wanted, &seen, Failed::No), Phase::Starting);
    seen.row = Row::Kept;
    wanted.goal = Goal::Stopped;
    assert_eq!(phase(&wanted, &seen, Failed::No), Phase::Stopped);
    assert_eq!(phase(&wanted, &seen, Failed::Yes), Phase::Failed);
    seen.host = None;
    assert_eq!(phase(&wanted, &seen, Failed::No), Phase::Stopping);
    wanted.goal = Goal::Absent;
    assert_eq!(phase(&wanted, &seen, Failed::No), Phase::Deleting);
    seen.row = Row::Gone;
    assert_eq!(phase(&wanted, &seen, Failed::No), Phase::Deleted);
}
