//! Free page hinting: what is dropped, and above all what is not.

use super::driver::{ALL, Bench, Call, Driver, HINTS, LIST, REPORTING, VERSION_1, WRITE};
use crate::units::{Gfn, GfnRange, Pages};

/// Where the mock driver has its queue of hints, with all features.
const QUEUE: usize = 3;
/// A block, and what is called when it is dropped.
const BLOCK: (u64, u32, u16) = (0x20_0000, 0x4000, WRITE);
const DROPPED: Call = Call::ReportFree(GfnRange {
    start: Gfn(0x200),
    count: 4,
});

fn say(driver: &mut Driver<'_>, word: u32) {
    let word = driver.bytes(LIST, &word.to_le_bytes());
    driver.send(QUEUE, &[word]);
}

/// What the driver reads as the number of the round.
fn round(bench: &Bench) -> u32 {
    bench.read(0x108)
}

#[test]
fn a_round_drops_each_block_and_ends_by_itself() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    assert_eq!(round(&bench), 0);
    bench.balloon.begin_hints();
    assert_eq!((bench.edges.count(), bench.read(0x60)), (1, 2));
    assert!(bench.balloon.hints_are_on());
    let number = round(&bench);
    say(&mut driver, number);
    for sent in 1..=3 {
        driver.send(QUEUE, &[BLOCK]);
        assert_eq!(bench.calls(), [DROPPED]);
        assert_eq!(driver.returned(QUEUE), 1 + sent);
    }
    bench.write(0x64, 3);
    say(&mut driver, 0);
    assert_eq!(
        (round(&bench), bench.read(0x60)),
        (1, 3),
        "done, said at once"
    );
    assert!(!bench.balloon.hints_are_on());
    assert_eq!(bench.balloon.hinted(), Pages(12));
    assert_eq!(driver.returned(QUEUE), 5);
    // The next round has another number, and the same is done again.
    bench.balloon.begin_hints();
    assert_ne!(round(&bench), number);
    let number = round(&bench);
    say(&mut driver, number);
    driver.send(QUEUE, &[BLOCK]);
    assert_eq!(bench.calls(), [DROPPED]);
}

/// The kick of some of them is past: the guest may have given that block to somebody.
#[test]
fn of_several_blocks_in_one_notification_none_is_dropped() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    bench.balloon.begin_hints();
    say(&mut driver, round(&bench));
    driver.add(QUEUE, &[BLOCK]);
    driver.add(QUEUE, &[BLOCK]);
    driver.notify(QUEUE);
    assert_eq!((bench.calls(), driver.returned(QUEUE)), (vec![], 3));
    driver.send(QUEUE, &[BLOCK]);
    assert_eq!(bench.calls(), [DROPPED]);
}

#[test]
fn nothing_is_dropped_outside_of_a_round() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    let kept = |driver: &mut Driver<'_>, when: &str| {
        driver.send(QUEUE, &[BLOCK]);
        assert_eq!(bench.calls(), [], "{when}");
    };
    kept(&mut driver, "before any round");
    say(&mut driver, 2);
    kept(&mut driver, "in a round of the driver's own");
    bench.balloon.begin_hints();
    let number = round(&bench);
    say(&mut driver, number + 1);
    kept(&mut driver, "in another round");
    for word in [0, 1] {
        say(&mut driver, word);
        kept(&mut driver, "in none");
    }
    say(&mut driver, number);
    say(&mut driver, 0);
    kept(&mut driver, "when it is over");
    say(&mut driver, number);
    kept(&mut driver, "when it is over, whatever the driver says");
    bench.balloon.begin_hints();
    let mut driver = Driver::start(&bench, ALL);
    kept(&mut driver, "after a reset");
    assert_eq!((round(&bench), bench.balloon.hinted()), (0, Pages::ZERO));
}

#[test]
fn a_round_that_another_one_replaced_does_not_end_that() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    bench.balloon.begin_hints();
    say(&mut driver, round(&bench));
    bench.balloon.begin_hints();
    let number = round(&bench);
    driver.send(QUEUE, &[BLOCK]);
    assert_eq!(bench.calls(), [], "of the old round");
    say(&mut driver, 0);
    assert_eq!(round(&bench), number);
    say(&mut driver, number);
    driver.send(QUEUE, &[BLOCK]);
    assert_eq!(bench.calls(), [DROPPED]);
    say(&mut driver, 0);
    assert!(!bench.balloon.hints_are_on());
}

#[test]
fn queues_move_up_where_a_feature_is_refused() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, VERSION_1 | HINTS | REPORTING);
    driver.send(3, &[BLOCK]);
    assert_eq!(bench.calls(), [DROPPED], "reported");
    driver.send(2, &[BLOCK]);
    assert_eq!(bench.calls(), [], "hinted at in no round");
    let edges = bench.edges.count();
    let _driver = Driver::start(&bench, VERSION_1 | REPORTING);
    bench.balloon.begin_hints();
    assert!(!bench.balloon.hints_are_on(), "nobody to ask");
    assert_eq!(bench.edges.count(), edges);
}

#[test]
fn bad_hints_stop_the_device() {
    for buffer in [
        (0x3f_f000, 0x2000, WRITE),
        (0x40_0000, 4, 0),
        (u64::MAX, 2, 0),
    ] {
        let bench = Bench::new();
        let mut driver = Driver::start(&bench, ALL);
        bench.balloon.begin_hints();
        say(&mut driver, round(&bench));
        driver.send(QUEUE, &[buffer]);
        assert!(bench.failed(), "{buffer:?}");
        assert_eq!(bench.calls(), []);
    }
}
