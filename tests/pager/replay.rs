//! What an observer of the pager hears, replayed: every step must be one that its page can take, and
//! all of them together must lead to where the pages are.

use std::sync::Mutex;

use tidemark::mem::Pager;
use tidemark::mem::observe::{Observer, Step};
use tidemark::page::state::PageState;

/// The states that the steps heard so far lead to, by gfn.
#[derive(Debug)]
pub struct Replay(Mutex<Vec<PageState>>);

impl Replay {
    /// Of a guest of `pages` that nobody has touched.
    pub fn new(pages: u32) -> Replay {
        Replay(Mutex::new(vec![PageState::Unbacked; pages as usize]))
    }

    /// Compares with what the pager says; nothing may be under way.
    ///
    /// # Panics
    /// When a step was not heard.
    pub fn check(&self, pager: &Pager) {
        let report = pager.report().unwrap();
        let states = self.0.lock().unwrap();
        let count =
            |which: fn(&PageState) -> bool| states.iter().filter(|s| which(s)).count() as u64;
        let heard = (
            count(|state| matches!(state, PageState::Shared(_))),
            count(|state| matches!(state, PageState::Compressed(_))),
            count(|state| matches!(state, PageState::Swapped(_))),
        );
        let said = (
            report.measured.shared.0 + report.holding.orphaned.0,
            report.measured.gauges.compressed.0,
            report.measured.gauges.swapped.0,
        );
        assert_eq!(heard, said, "shared, compressed and swapped pages");
        assert_eq!(count(|state| matches!(state, PageState::Busy)), 0);
    }
}

impl Observer for Replay {
    fn step(&self, step: &Step) {
        let mut states = self.0.lock().unwrap();
        for gfn in step.pages.iter() {
            let state = &mut states[gfn.0 as usize];
            // The slots and frames of a run are not told one by one; the kinds are.
            let after = state.after(step.event);
            *state = after.unwrap_or_else(|| panic!("{gfn} is {state:?}: {step:?}"));
        }
    }
}
