//! Sequences of steps, and the fault points that follow from them.
//!
//! Each sequence is an enum whose `ALL` is its list. Its runner passes every step through [`pass`] (or, where the two
//! sides of a step lie apart, [`hit`] twice), so a step cannot be run without its points.

use sandhaus_sandbox::fault;

/// A step of a sequence.
pub(crate) trait Step: Copy {
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
        pub(crate) enum $name { $($(#[$note])* $step,)+ }

        impl $name {
            /// All steps in order.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$step,)+];
        }

        impl $crate::steps::Step for $name {
            const AREA: &'static str = $area;
            fn name(self) -> &'static str {
                match self { $(Self::$step => $text,)+ }
            }
        }
    };
}

pub(crate) use sequence;

/// A moment at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Nothing of the step is done.
    Before,
    /// All of it is done.
    After,
}

/// The name of the fault point at a moment of a step.
pub(crate) fn point<S: Step>(step: S, moment: Moment) -> String {
    let moment = match moment {
        Moment::Before => "before",
        Moment::After => "after",
    };
    format!("{}.{}.{moment}", S::AREA, step.name())
}

/// Passes the fault point at a moment of a step.
pub(crate) fn hit<S: Step>(step: S, moment: Moment) {
    if fault::is_armed() {
        fault::hit(&point(step, moment));
    }
}

/// Does a step between its fault points.
pub(crate) fn pass<S: Step, T, E>(step: S, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    hit(step, Moment::Before);
    let done = act()?;
    hit(step, Moment::After);
    Ok(done)
}

/// The fault points of a sequence.
pub(crate) fn points_of<S: Step>(steps: &[S]) -> impl Iterator<Item = String> {
    steps.iter().flat_map(|&step| [point(step, Moment::Before), point(step, Moment::After)])
}
