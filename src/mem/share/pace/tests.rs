use proptest::prelude::*;

use super::*;
use crate::units::CHUNK_PAGES;

fn found(own: u32, new: u32, changed: u32) -> Tally {
    Tally { own, new, changed }
}

fn settling(doublings: u8, unsettled: u32) -> Pace {
    Settling {
        doublings,
        unsettled,
    }
}

fn calm(doublings: u8) -> Pace {
    Calm { doublings }
}

#[test]
fn every_row_of_the_table() {
    let table = [
        // As much changes as before.
        (settling(0, 64), found(512, 0, 32), settling(1, 32)),
        (settling(3, 512), found(512, 10, 256), settling(4, 266)),
        (settling(4, 512), found(512, 0, 512), settling(4, 512)),
        (settling(6, 512), found(512, 0, 512), settling(6, 512)),
        // Less.
        (settling(3, 512), found(512, 0, 255), settling(2, 255)),
        (settling(3, 40), found(512, 0, 31), settling(2, 31)),
        (settling(3, 0), found(512, 400, 0), settling(2, 400)),
        (settling(0, 66), found(512, 0, 32), settling(0, 32)),
        (settling(0, 0), found(512, 32, 0), settling(0, 32)),
        (settling(0, 512), found(512, 31, 0), calm(0)),
        (settling(0, 0), found(512, 0, 0), calm(0)),
        (calm(0), found(512, 15, 16), calm(1)),
        (calm(4), found(512, 0, 0), calm(5)),
        (calm(5), found(512, 0, 0), calm(5)),
        (calm(5), found(512, 16, 16), settling(0, 32)),
        (calm(5), found(512, 0, 512), settling(0, 512)),
        // Nothing of its own.
        (settling(6, 9), found(0, 0, 0), calm(5)),
        (calm(1), found(0, 0, 0), calm(5)),
    ];
    for (before, tally, after) in table {
        assert_eq!(before.looked(tally), after, "{before:?} {tally:?}");
    }
    // Of an eighth.
    let glances = [
        (calm(3), found(64, 0, 0), calm(4)),
        (calm(5), found(0, 0, 0), calm(5)),
        (calm(4), found(64, 1, 2), calm(5)),
        (calm(4), found(64, 2, 2), settling(0, STORM)),
        (calm(5), found(64, 0, 64), settling(0, STORM)),
    ];
    for (before, tally, after) in glances {
        assert!(before.takes_turns());
        assert_eq!(before.glanced(tally), after, "{before:?} {tally:?}");
    }
    assert!(!calm(2).takes_turns() && !settling(3, 0).takes_turns());
    let breaks = [
        (settling(0, 3), 7, settling(0, 3)),
        (calm(5), 7, calm(5)),
        (calm(5), 8, settling(2, STORM)),
        (settling(2, STORM), 512, settling(2, STORM)),
        (settling(0, 3), 8, settling(2, STORM)),
        (settling(3, 3), 512, settling(5, STORM)),
        (settling(5, 3), 512, settling(6, STORM)),
        (settling(6, 3), 512, settling(6, STORM)),
    ];
    for (before, pages, after) in breaks {
        assert_eq!(before.broke(pages), after, "{before:?} {pages}");
    }
}

/// When one chunk is looked at in `time`; `look` says what is found at a time, and how many shared
/// pages were written since the look before.
fn looks(time: Duration, look: impl Fn(Duration) -> (Tally, u32)) -> Vec<u64> {
    let mut at = Vec::new();
    let (mut pace, mut now) = (Pace::NEW, Duration::ZERO);
    while now < time {
        at.push(now.as_secs());
        let (tally, broken) = look(now);
        pace = pace.looked(tally).broke(broken);
        now += pace.gap();
    }
    at
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn an_unchanged_chunk_is_looked_at_every_half_minute() {
    let at = looks(HOUR, |now| {
        let new = if now.is_zero() { 512 } else { 0 };
        (found(512, new, 0), 0)
    });
    // The second look, at which it is offered, comes after a second.
    assert_eq!(at[..8], [0, 1, 2, 4, 8, 16, 32, 64]);
    assert_eq!(at.len(), 7 + 3600 / 32 - 1);
}

/// However little it is that changes all the time, if it is some.
#[test]
fn a_chunk_that_changes_all_the_time_is_looked_at_four_times_a_minute() {
    for changed in [SOME_PAGES, 100, 512] {
        let at = looks(HOUR, |_| (found(512, 0, changed), 0));
        assert!(at.len() <= 6 + 3600 / 16, "{changed}: {}", at.len());
    }
}

#[test]
fn a_chunk_that_calms_down_is_offered_soon() {
    let calms = Duration::from_secs(600);
    let at = looks(HOUR, |now| {
        let changed = if now < calms { 512 } else { 0 };
        (found(512, 0, changed), 0)
    });
    // The last look that finds it changed, and the one at which its pages are offered.
    let after: Vec<u64> = at.iter().copied().filter(|at| *at >= 600).collect();
    assert!(after[0] < 616 && after[1] <= 616 + 16, "{after:?}");
}

#[test]
fn breaks_make_the_gap_longer_than_changes_do() {
    let first = |at: &[u64]| at.iter().filter(|at| **at < 64).count();
    let changes = looks(HOUR, |_| (found(512, 0, 512), 0));
    let breaks = looks(HOUR, |_| (found(512, 0, 512), 100));
    assert!(first(&changes) >= 7 && first(&breaks) <= 4);
    assert!(breaks.len() <= 4 + 3600 / 64, "{}", breaks.len());
}

/// A guest that writes all of a shared chunk once is offered its pages within seconds.
#[test]
fn one_storm_is_no_habit() {
    let storm = calm(CALM_MAX).broke(512);
    let seen = storm.looked(found(512, 0, 512));
    assert!(storm.gap() + seen.gap() <= GAP * 6, "{storm:?} {seen:?}");
}

proptest! {
    /// Whatever happens, a chunk is neither forgotten nor looked at all the time; and once nothing
    /// changes any more, what is in it has been seen twice within the longest gaps.
    #[test]
    fn no_chunk_is_forgotten(
        history in prop::collection::vec(
            (0..=CHUNK_PAGES, 0..=CHUNK_PAGES, 0..=CHUNK_PAGES, 0..=CHUNK_PAGES),
            0..40,
        )
    ) {
        let mut pace = Pace::NEW;
        for (own, new, changed, broken) in history {
            let new = new.min(own);
            pace = pace.looked(found(own, new, changed.min(own - new))).broke(broken);
            let most = match pace {
                Settling { .. } => GAP * (1 << BREAKS_MAX),
                Calm { .. } => GAP * (1 << CALM_MAX),
            };
            prop_assert!((GAP..=most).contains(&pace.gap()));
        }
        // New content comes: seen at the next look, offered at the one after.
        let first = pace;
        pace = pace.looked(found(CHUNK_PAGES, 0, CHUNK_PAGES));
        prop_assert!(pace.gap() <= first.gap().max(GAP * (1 << CHANGES_MAX)));
        if matches!(first, Calm { .. }) {
            prop_assert_eq!(pace.gap(), GAP);
        }
        // And it is calm in the end.
        for _ in 0..BREAKS_MAX + CALM_MAX + 2 {
            pace = pace.looked(found(CHUNK_PAGES, 0, 0));
        }
        prop_assert_eq!(pace, calm(CALM_MAX));
    }
}
