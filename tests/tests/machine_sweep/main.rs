//! Kills the server at every step of a virtual machine's life, then proves that the machine ends in a legal state, that
//! another one beside it never noticed, and that nothing is left once it is deleted.
//!
//! The points are found, not listed: each [`Deed`] is done once while the server notes what it passes, and is then done
//! again for every point that it passed, with that point armed. A point of `sandhaus __fault-points qemu` that no deed
//! passes is a failure, and so is a case whose server does not die. Machines go on from one warm snapshot, which is taken
//! once; few boot.

mod deed;
mod ground;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    process::Command,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sandhaus_tests::{binary, network::Space, vm};

use crate::{
    deed::Deed,
    ground::{Ground, Passage, Template},
};

/// Servers in flight at once, each on a data directory and in a network of its own.
const WORKERS: usize = 3;

/// Points that machines never pass.
const ELSEWHERE: &[(&str, &str)] = &[
    ("workspace_", "machines show no workspace"),
    ("renew_agent.", "an agent is replaced alike on every engine"),
    ("pool.", "what waits in the pool is claimed alike on every engine"),
    ("plan.fetch.", "nothing is archived yet"),
    ("plan.archive.", "nothing is archived yet"),
    ("plan.record_archive.", "nothing is archived yet"),
    ("plan.drop_disk.", "nothing is archived yet"),
    ("plan.drop_archive.", "nothing is archived yet"),
];

/// Points that many deeds pass by chance, since the end of a program is told when it is, and the one that surely does.
const BY_CHANCE: &[(&str, Deed)] = &[("plan.observe.", Deed::Adopt)];

/// Deaths at a random moment of each deed that takes long enough to have one.
const RANDOM_DEATHS: u32 = 3;

/// The deeds that are.
const LONG: &[Deed] = &[Deed::Create, Deed::Suspend, Deed::Start, Deed::Fork, Deed::CaptureMachine];

/// A deed in which the server dies.
#[derive(Debug, Clone)]
struct Case {
    deed: Deed,
    death: Death,
}

/// When it does.
#[derive(Debug, Clone)]
enum Death {
    /// At this point.
    At(String),
    /// So long after it was asked.
    After(Duration),
}

#[test]
fn a_death_at_any_step_of_a_machine_leaves_nothing_behind() {
    if !vm::bootable("a_death_at_any_step_of_a_machine_leaves_nothing_behind") {
        return;
    }
    let template = Template::make();
    let whole: BTreeMap<Deed, Passage> =
        on_every_ground(&template, Deed::ALL, |ground, deed| ground.goes_through(*deed))
            .into_iter()
            .collect();
    let cases = cases(&whole);
    all_are_tried(&cases);
    on_every_ground(&template, &cases, |ground, case| match &case.death {
        Death::At(point) => ground.dies_at(case.deed, point),
        Death::After(moment) => ground.dies_after(case.deed, *moment),
    });
}

/// No point that the binary knows is left out, and it knows all that were found.
#[track_caller]
fn all_are_tried(cases: &[Case]) {
    let listed = binary::run(Command::new(binary::path()).args(["__fault-points", "qemu"]));
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    let known: BTreeSet<&str> = listed.stdout.lines().collect();
    assert_eq!(known.len(), listed.stdout.lines().count(), "two points of one name");
    let tried: BTreeSet<&str> = cases
        .iter()
        .filter_map(|case| match &case.death {
            Death::At(point) => Some(&**point),
            Death::After(_) => None,
        })
        .collect();
    let elsewhere = |point: &str| ELSEWHERE.iter().any(|(area, _)| point.starts_with(area));
    let never: Vec<_> = known.difference(&tried).filter(|point| !elsewhere(point)).collect();
    let unlisted: Vec<_> = tried.difference(&known).collect();
    assert!(
        never.is_empty() && unlisted.is_empty(),
        "passed by no deed: {never:#?}\nnot listed: {unlisted:#?}"
    );
}

/// What is to be tried: every point at least once, those of a deed's own areas again in it, and some moments of no choice.
///
/// Again means before each step alone: nothing happens between the end of a step and the beginning of the next.
fn cases(whole: &BTreeMap<Deed, Passage>) -> Vec<Case> {
    let mut seen = BTreeSet::new();
    let mut cases = Vec::new();
    for (&deed, passage) in whole {
        let by_chance = |point: &&String| {
            BY_CHANCE.iter().any(|(area, certain)| point.starts_with(area) && *certain != deed)
        };
        for point in passage.points.iter().filter(|point| !by_chance(point)) {
            let new = seen.insert(point);
            let again = point.ends_with(".before") && deed.areas().iter().any(|area| point.starts_with(area));
            if new || again {
                cases.push(Case { deed, death: Death::At(point.clone()) });
            }
        }
        if LONG.contains(&deed) {
            let part = passage.time / RANDOM_DEATHS;
            // Spread over the whole of it they are not all the same.
            let moments = (0..RANDOM_DEATHS).map(|number| part * number + random_part_of(part));
            cases.extend(moments.map(|moment| Case { deed, death: Death::After(moment) }));
        }
    }
    cases
}

/// Does `work` for all of `subjects`, several at a time, and gives what came of it. Each worker has a ground of its own, and
/// a new one after a failure: what one case left must not be another's.
fn on_every_ground<S, T>(
    template: &Template,
    subjects: &[S],
    work: impl Fn(&mut Ground, &S) -> T + Sync,
) -> Vec<(S, T)>
where
    S: Clone + std::fmt::Debug + Send + Sync,
    T: Send,
{
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, T)>> = Mutex::default();
    let failed: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(subjects.len()) {
            scope.spawn(|| {
                // A host of its own: machines of this one are bridged.
                Space::new().enter();
                let mut ground = Ground::new(template);
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(subject) = subjects.get(index) else { break };
                    match std::panic::catch_unwind(AssertUnwindSafe(|| work(&mut ground, subject))) {
                        Ok(outcome) => held(&done).push((index, outcome)),
                        Err(panic) => {
                            let panic = told(panic.as_ref());
                            held(&failed).push(format!("{subject:?}: {panic}\n{}", ground.log()));
                            ground = Ground::new(template);
                        }
                    }
                }
                if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| ground.end())) {
                    held(&failed).push(format!("at the end: {}", told(panic.as_ref())));
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no holder panics");
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    let mut done = done.into_inner().expect("no holder panics");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(index, outcome)| (subjects[index].clone(), outcome)).collect()
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

fn told(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Between nothing and all of a time.
fn random_part_of(time: Duration) -> Duration {
    let nanoseconds = u64::try_from(time.as_nanos()).expect("it is short");
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .expect("there are random numbers");
    Duration::from_nanos(u64::from_ne_bytes(random) % nanoseconds.max(1))
}
