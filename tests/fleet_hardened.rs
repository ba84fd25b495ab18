//! The side channel of sharing, as a guest measures it, and `sharing = "hardened"` beside it.

mod common;

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, Folder, SOON, alone, number};
use common::require;

/// Guesses of the guest `spy`: of which half are pages of its victim.
const GUESSES: u64 = 2048;

/// What a spy saw: for each guess whether the victim has that page, and the ticks that its touch took.
struct Seen {
    touches: Vec<(bool, u64)>,
    merged_pages: u64,
}

impl Seen {
    fn median(&self, equal: bool) -> u64 {
        let of_kind = self.touches.iter().filter(|touch| touch.0 == equal);
        let mut ticks: Vec<u64> = of_kind.map(|touch| touch.1).collect();
        ticks.sort_unstable();
        ticks[ticks.len() / 2]
    }

    /// How often a guesser is wrong who has learnt on half of the touches, in per cent of the others: by
    /// the number of ticks, above or below which it says "equal", with which it would have erred least.
    fn errors_percent(&self) -> u64 {
        let half = |rest| {
            let numbered = self.touches.iter().enumerate();
            let of_half = numbered.filter(move |(number, _)| number % 2 == rest);
            of_half.map(|(_, touch)| *touch)
        };
        let wrong = |touches: &[(bool, u64)], bound: u64, above: bool| {
            let is_wrong = |&&(equal, ticks): &&(bool, u64)| ((ticks > bound) == above) != equal;
            touches.iter().filter(is_wrong).count()
        };
        let (known, other): (Vec<_>, Vec<_>) = (half(0).collect(), half(1).collect());
        let bounds = known.iter().map(|touch| touch.1);
        let rules = bounds.flat_map(|bound| [(bound, true), (bound, false)]);
        let (bound, above) = rules
            .min_by_key(|&(bound, above)| wrong(&known, bound, above))
            .expect("there are touches");
        (wrong(&other, bound, above) * 100 / other.len()) as u64
    }
}

/// A spy beside a victim, each with these lines about its share group.
fn spied(victim: &str, spy: &str, touch: &str) -> Seen {
    let toml = format!(
        "[host]\nmemory = \"256M\"\nswap_dir = \".\"\n\
         [[vm]]\nname = \"victim\"\nmemory = \"48M\"\nguest = \"duplicate\"\n\
         cmdline = \"fill=8M pause_ms=300\"\n{victim}\n\
         [[vm]]\nname = \"spy\"\nmemory = \"48M\"\nguest = \"spy\"\nconsole = \"spy.log\"\n\
         cmdline = \"guesses={GUESSES} touch={touch}\"\n{spy}\n"
    );
    let mut fleet = Fleet::start(&toml, &[]);
    let said = |folder: &Folder| folder.read("spy.log").contains("spy: end");
    let deadline = std::time::Instant::now() + 4 * SOON;
    while !said(&fleet.folder) {
        assert!(
            std::time::Instant::now() < deadline && fleet.process.status().is_none(),
            "the spy does not end: {}",
            fleet.folder.read("spy.log")
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let log = fleet.folder.read("spy.log");
    fleet.process.signal(rustix::process::Signal::INT);
    let end = fleet.end(SOON);
    end.check_sums();
    end.check_guest(end.vm("victim"));
    let lines = log
        .lines()
        .filter_map(|line| line.strip_prefix("spy: ticks "));
    let touches = lines.flat_map(str::split_whitespace).map(|touch| {
        let (equal, ticks) = touch.split_once(':').expect("a pair");
        (equal == "1", ticks.parse().expect("ticks"))
    });
    let seen = Seen {
        touches: touches.collect(),
        merged_pages: number(end.vm("spy"), "merged_pages"),
    };
    assert_eq!(seen.touches.len() as u64, GUESSES, "{log}");
    eprintln!(
        "{spy:?}: {} ticks where equal, {} where not, {} % wrong; {} merged",
        seen.median(true),
        seen.median(false),
        seen.errors_percent(),
        seen.merged_pages
    );
    seen
}

const PLAIN: &str = "share_group = \"g\"";
const HARDENED: &str = "share_group = \"g\"\nsharing = \"hardened\"";

/// Nobody claims that the channel is not there: it is what `hardened` is measured against.
#[test]
fn a_guest_can_time_what_others_of_its_plain_group_have() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let seen = spied(PLAIN, PLAIN, "write");
    assert!(seen.median(true) > 2 * seen.median(false));
    assert!(seen.errors_percent() < 20);
}

#[test]
fn a_guest_times_nothing_of_another_group() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let seen = spied(PLAIN, "share_group = \"h\"", "write");
    assert!(seen.errors_percent() > 35);
}

/// By a write, and by one more when frames that nobody has any more are gone.
#[test]
fn a_guest_times_next_to_nothing_of_its_hardened_group() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    for touch in ["write", "again"] {
        let seen = spied(HARDENED, HARDENED, touch);
        assert!(
            seen.merged_pages > GUESSES * 9 / 10,
            "{}",
            seen.merged_pages
        );
        assert!(seen.errors_percent() > 35);
    }
}

/// What is in frames alone is swapped like all else, comes back as it was, and equal pages are shared.
#[test]
fn a_hardened_fleet_keeps_its_data_in_half_of_its_memory() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let toml = format!(
        "[host]\nmemory = \"128M\"\nswap_dir = \".\"\nseed = 7\n\
         [[vm]]\nname = \"verify\"\ncount = 4\nmemory = \"64M\"\nguest = \"verify\"\n\
         cmdline = \"fill=85\"\n{HARDENED}\n"
    );
    let end = Fleet::start(&toml, &["--for", "14s"]).end(SOON);
    end.check();
    for figure in ["peak.saved_bytes", "swap_in_pages", "cow_breaks"] {
        assert!(end.sum(figure) > 0, "{figure}: {}", end.figures);
    }
    assert_eq!(end.sum("swap_errors"), 0, "{}", end.figures);
}
