//! The schedule with tasks that take as long as they say, and a clock that they move.

use super::*;
use crate::mem::tasks::Done;

const MS: Duration = Duration::from_millis(1);

/// Always due since `due`; a run takes `takes`.
struct Fake {
    due: Option<Instant>,
    takes: Duration,
    runs: u32,
}

impl Fake {
    fn new(due: Instant, takes: Duration) -> Fake {
        Fake {
            due: Some(due),
            takes,
            runs: 0,
        }
    }
}

impl Task for Fake {
    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn run(&mut self, until: Instant) -> Result<Done, mem::Error> {
        self.runs += 1;
        if let Some(due) = &mut self.due {
            *due = until;
        }
        Ok(Done {
            pages: 1,
            took: self.takes,
        })
    }
}

/// Turns, each when the one before says, until `end`. Time passes as the tasks take it.
fn run(tasks: &mut [Ranked<'_>], state: MemState, start: Instant, end: Instant) {
    let mut schedule = Schedule::new(start);
    let mut now = start;
    while now < end {
        let before = now;
        schedule.turn(tasks, state, now).unwrap();
        now = match schedule.next(tasks, state, now) {
            Some(next) => next.max(before + MS / 10),
            None => return,
        };
    }
}

#[test]
fn what_is_not_urgent_takes_a_quarter_of_the_time_all_together() {
    let start = Instant::now();
    let (mut scan, mut sample) = (Fake::new(start, 2 * MS), Fake::new(start, MS));
    let tasks: &mut [Ranked<'_>] = &mut [(&mut scan, None), (&mut sample, None)];
    run(tasks, MemState::High, start, start + 1000 * MS);
    let took = scan.runs * scan.takes + sample.runs * sample.takes;
    assert!(took <= 275 * MS, "{took:?}");
    assert!(took >= 200 * MS, "{took:?}");
    assert!(scan.runs > 50 && sample.runs > 50);
}

#[test]
fn urgent_work_never_waits_and_holds_the_others_back() {
    let start = Instant::now();
    let (mut swap, mut scan) = (Fake::new(start, 2 * MS), Fake::new(start, MS));
    let tasks: &mut [Ranked<'_>] = &mut [(&mut swap, Some(MemState::High)), (&mut scan, None)];
    run(tasks, MemState::High, start, start + 10_000 * MS);
    assert!(swap.runs >= 4000, "{}", swap.runs);
    // At the start, and then once for each second that it has waited.
    assert!((9..40).contains(&scan.runs), "{}", scan.runs);
}

#[test]
fn the_memory_state_says_what_is_urgent() {
    let start = Instant::now();
    for (state, least, most) in [
        (MemState::Soft, 100, 140),
        (MemState::Hard, 450, 510),
        (MemState::Low, 450, 510),
    ] {
        let mut census = Fake::new(start, 2 * MS);
        let tasks: &mut [Ranked<'_>] = &mut [(&mut census, Some(MemState::Hard))];
        run(tasks, state, start, start + 1000 * MS);
        assert!(
            (least..=most).contains(&census.runs),
            "{state:?}: {}",
            census.runs
        );
    }
}

#[test]
fn nothing_runs_before_it_is_due_and_nobody_waits_for_nothing() {
    let start = Instant::now();
    let mut schedule = Schedule::new(start);
    let mut later = Fake::new(start + 5 * MS, MS);
    let mut never = Fake::new(start, MS);
    never.due = None;
    let tasks: &mut [Ranked<'_>] = &mut [(&mut later, None), (&mut never, Some(MemState::High))];
    schedule.turn(tasks, MemState::High, start).unwrap();
    assert_eq!(
        schedule.next(tasks, MemState::High, start),
        Some(start + 5 * MS)
    );
    schedule
        .turn(tasks, MemState::High, start + 6 * MS)
        .unwrap();
    assert_eq!((later.runs, never.runs), (1, 0));
    let tasks: &mut [Ranked<'_>] = &mut [(&mut never, None)];
    assert_eq!(schedule.next(tasks, MemState::Low, start), None);
}

#[test]
fn time_saved_up_is_bounded_and_so_is_what_is_owed() {
    let start = Instant::now();
    let mut budget = Budget::new(start);
    budget.refill(start + Duration::from_secs(3600));
    budget.spend(Budget::SAVED_MAX + MS);
    assert_eq!((budget.saved, budget.owed), (Duration::ZERO, MS));
    let now = start + Duration::from_secs(3600);
    assert_eq!(budget.opens(now), now + Budget::PART * MS);
    budget.spend(Duration::from_secs(60));
    assert_eq!(budget.owed, Budget::OWED_MAX);
}
