//! Model guests under the real rules: does the loop converge?
//!
//! A model guest has allocated its data at once but touches it little by little, then touches what
//! was swapped, then refills its cache. Its balloon takes pages that nobody allocated first, then
//! cache, and has nothing beyond. One round is 100 ms.

use super::*;

/// Pages that a guest touches, a pager moves, or a balloon takes in one round.
const ROUND_PAGES: u64 = 4096;
const BATCH: u64 = 128;

#[derive(Clone)]
struct Guest {
    allocation: Allocation,
    wants_data: u64,
    wants_cache: u64,
    data: u64,
    cache: u64,
    swapped: u64,
    ballooned: u64,
    credit: u64,
    balloon_works: bool,
    run: Run,
}

impl Guest {
    fn new(size_mib: u64, wants_mib: u64, cache_percent: u64) -> Guest {
        let size = Pages::mib(size_mib).0;
        let wants = Pages::mib(wants_mib).0;
        Guest {
            allocation: allocation(size, 0, size, size_mib * 10),
            wants_data: wants - wants * cache_percent / 100,
            wants_cache: wants * cache_percent / 100,
            data: 0,
            cache: 0,
            swapped: 0,
            ballooned: 0,
            credit: 0,
            balloon_works: true,
            run: Run::Go,
        }
    }

    fn private(&self) -> u64 {
        self.data + self.cache
    }

    /// Pages that neither data, cache nor balloon has.
    fn free(&self) -> u64 {
        self.allocation.size.0 - self.wants_data - self.cache - self.ballooned
    }

    /// Touches data, what was swapped, cache, in this order; each page needs credit.
    fn touch(&mut self, ask: &mut impl FnMut(&Guest, u64) -> u64) {
        if self.run == Run::Block {
            return;
        }
        for _ in 0..ROUND_PAGES {
            let data = self.data + self.swapped < self.wants_data;
            let swap_in = self.swapped > 0;
            let cache = self.cache < self.wants_cache && self.free() > 0;
            if !(swap_in || data || cache) {
                return;
            }
            if self.private() == self.credit {
                let granted = ask(self, BATCH);
                self.credit += granted;
                if granted == 0 {
                    return;
                }
            }
            if data {
                self.data += 1;
            } else if swap_in {
                self.swapped -= 1;
                self.data += 1;
            } else {
                self.cache += 1;
            }
        }
    }

    fn obey(&mut self, plan: &VmPlan) {
        self.run = plan.run;
        if let Some(max) = plan.private_max {
            let out = self
                .private()
                .saturating_sub(max.0)
                .min(ROUND_PAGES)
                .min(self.data);
            self.data -= out;
            self.swapped += out;
        }
        if self.balloon_works {
            let more = plan
                .balloon_target
                .0
                .saturating_sub(self.ballooned)
                .min(ROUND_PAGES);
            let free = self.free();
            let dropped = more.saturating_sub(free).min(self.cache);
            self.cache -= dropped;
            self.ballooned += more.min(free + dropped);
            if plan.balloon_target.0 < self.ballooned {
                self.ballooned -= (self.ballooned - plan.balloon_target.0).min(ROUND_PAGES);
            }
        }
        let unused = if plan.private_max.is_some() { 0 } else { BATCH };
        self.credit = self.credit.min(self.private() + unused);
    }
}

struct Host {
    budget: Pages,
    overhead: Pages,
    guests: Vec<Guest>,
    plan: Option<Plan>,
    state: PolicyState,
    now: Duration,
    changes: usize,
    peak: Pages,
}

impl Host {
    fn new(budget: Pages, guests: Vec<Guest>) -> Host {
        Host {
            budget,
            overhead: Pages::mib(6),
            guests,
            plan: None,
            state: esx(),
            now: Duration::ZERO,
            changes: 0,
            peak: Pages::ZERO,
        }
    }

    fn free(&self) -> Pages {
        let credits: u64 = self.guests.iter().map(|g| g.credit).sum();
        self.budget - self.overhead - Pages(credits)
    }

    fn snapshot(&self) -> Snapshot {
        let vms = (0..)
            .zip(&self.guests)
            .map(|(id, guest)| {
                let mut vm = vm(id, guest.private(), guest.allocation);
                vm.ballooned = Pages(guest.ballooned);
                vm.swapped = Pages(guest.swapped);
                vm
            })
            .collect();
        Snapshot {
            now: self.now,
            budget: self.budget,
            free: self.free(),
            overhead: self.overhead,
            vms,
        }
    }

    fn round(&mut self) {
        let before = self.state.mem_state();
        let plan = decide(&self.snapshot(), &mut self.state);
        self.changes += usize::from(plan.state != before);
        for (guest, order) in self.guests.iter_mut().zip(&plan.vms) {
            guest.obey(order);
        }
        let thresholds = Thresholds::of_budget(self.budget);
        // Whoever asked first in the last round asks last in this one.
        let count = self.guests.len();
        let first = usize::try_from(self.now.as_millis() / 100).expect("a short test");
        for index in (0..count).map(|index| (first + index) % count) {
            let mut free = self.free();
            let order = &plan.vms[index];
            self.guests[index].touch(&mut |guest, asked| {
                let request = CreditRequest {
                    asked: Pages(asked),
                    held: Pages(guest.credit),
                    allocation: &guest.allocation,
                    plan: Some(order),
                };
                let granted = grant(&request, free, &thresholds, plan.state);
                free -= granted;
                granted.0
            });
        }
        let consumed: u64 = self.guests.iter().map(Guest::private).sum();
        self.peak = self.peak.max(Pages(consumed) + self.overhead);
        assert!(self.peak <= self.budget, "{} of {}", self.peak, self.budget);
        self.plan = Some(plan);
        self.now += Duration::from_millis(100);
    }

    fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.round();
        }
    }
}

fn demo(budget_mib: u64) -> Host {
    Host::new(Pages::mib(budget_mib), vec![Guest::new(256, 217, 20); 4])
}

#[test]
fn the_demo_fits_half_its_memory() {
    let mut host = demo(512);
    host.rounds(600);
    let settled = host.changes;
    host.rounds(600);
    for guest in &host.guests {
        assert!(guest.ballooned > 0 && guest.swapped > 0);
        assert!(guest.private() >= Pages::mib(100).0, "{}", guest.private());
    }
    // 1200 rounds of guests that want everything back at once: at most one change a second.
    assert!(host.changes - settled <= 60, "{}", host.changes - settled);
}

#[test]
fn with_room_for_all_nothing_is_taken() {
    let mut host = demo(2048);
    for _ in 0..600 {
        host.round();
        for plan in &host.plan.as_ref().expect("a round was played").vms {
            assert_eq!(plan.balloon_target, Pages::ZERO);
            assert_eq!(plan.private_max, None);
            assert_eq!(plan.run, Run::Go);
        }
    }
    assert_eq!(host.changes, 0);
    assert!(
        host.guests
            .iter()
            .all(|g| g.private() == g.wants_data + g.wants_cache)
    );
}

#[test]
fn a_stuck_balloon_costs_its_own_guest() {
    let mut host = demo(512);
    host.guests[0].balloon_works = false;
    host.rounds(1200);
    let stuck = &host.guests[0];
    assert_eq!(stuck.ballooned, 0);
    assert!(stuck.swapped > 0);
    // Refusal gains nothing: it never holds more than its target and the band of soft.
    assert!(
        stuck.private() <= Pages::mib(119 + 26).0,
        "{}",
        stuck.private()
    );
    assert!(host.guests.iter().all(|g| g.private() >= Pages::mib(100).0));
}

#[test]
fn balloons_go_back_when_a_neighbour_ends() {
    let mut host = demo(512);
    host.rounds(300);
    host.guests.truncate(1);
    host.rounds(300);
    let guest = &host.guests[0];
    assert_eq!((guest.ballooned, guest.swapped), (0, 0));
    assert_eq!(guest.private(), guest.wants_data + guest.wants_cache);
    assert_eq!(host.state.mem_state(), MemState::High);
}

#[test]
fn cache_alone_is_enough_to_stay_out_of_hard() {
    // 4 x 217 MiB wanted, a fifth of it cache: 90 % of that fits without the cache.
    let mut host = demo(800);
    host.rounds(600);
    assert!(host.guests.iter().all(|g| g.swapped == 0));
    assert!(host.state.mem_state() <= MemState::Soft);
}
