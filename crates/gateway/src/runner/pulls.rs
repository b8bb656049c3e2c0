//! What a caller can hear of a pull later: that it is under way, or why it failed. A pull that succeeded needs no note: what
//! it brought is here.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Most notes; beyond them a failure is forgotten.
const NOTES_MAX: usize = 1000;

/// Notes, by what was asked for.
#[derive(Debug, Default)]
pub(super) struct Pulls(Mutex<HashMap<String, Note>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Note {
    /// So many pulls of it are under way.
    Running(usize),
    /// The last one failed, in these words.
    Failed(String),
}

impl Pulls {
    /// One begins.
    pub(super) fn begin(&self, what: &str) {
        let mut notes = self.notes();
        if notes.len() >= NOTES_MAX
            && let Some(forgotten) =
                notes.iter().find(|(_, note)| matches!(note, Note::Failed(_))).map(|(what, _)| what.clone())
        {
            notes.remove(&forgotten);
        }
        let others = match notes.get(what) {
            Some(Note::Running(others)) => *others,
            Some(Note::Failed(_)) | None => 0,
        };
        notes.insert(what.to_owned(), Note::Running(others + 1));
    }

    /// One ended.
    pub(super) fn end(&self, what: &str, outcome: Result<(), String>) {
        let mut notes = self.notes();
        match (notes.get(what), outcome) {
            (Some(Note::Running(others)), _) if *others > 1 => {
                let others = others - 1;
                notes.insert(what.to_owned(), Note::Running(others));
            }
            (_, Ok(())) => {
                notes.remove(what);
            }
            (_, Err(words)) => {
                notes.insert(what.to_owned(), Note::Failed(words));
            }
        }
    }

    /// Why the last pull of it failed.
    pub(super) fn failure(&self, what: &str) -> Option<String> {
        match self.notes().get(what) {
            Some(Note::Failed(words)) => Some(words.clone()),
            Some(Note::Running(_)) | None => None,
        }
    }

    /// Whether one of it is under way.
    pub(super) fn is_under_way(&self, what: &str) -> bool {
        matches!(self.notes().get(what), Some(Note::Running(_)))
    }

    /// Nobody asks for it any more.
    pub(super) fn forget(&self, what: &str) {
        let mut notes = self.notes();
        if matches!(notes.get(what), Some(Note::Failed(_))) {
            notes.remove(what);
        }
    }

    fn notes(&self) -> MutexGuard<'_, HashMap<String, Note>> {
        // Whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_end_counts() {
        let pulls = Pulls::default();
        pulls.begin("a");
        pulls.begin("a");
        pulls.end("a", Err("one".to_owned()));
        assert!(pulls.is_under_way("a"));
        assert_eq!(pulls.failure("a"), None, "the other may succeed");
        pulls.end("a", Err("two".to_owned()));
        assert_eq!(pulls.failure("a").as_deref(), Some("two"));
        pulls.begin("a");
        assert_eq!(pulls.failure("a"), None);
        pulls.end("a", Ok(()));
        assert!(pulls.failure("a").is_none() && !pulls.is_under_way("a"));
    }

    #[test]
    fn notes_are_bounded() {
        let pulls = Pulls::default();
        for index in 0..NOTES_MAX + 5 {
            let what = index.to_string();
            pulls.begin(&what);
            pulls.end(&what, Err(String::new()));
        }
        assert_eq!(pulls.notes().len(), NOTES_MAX);
    }
}
