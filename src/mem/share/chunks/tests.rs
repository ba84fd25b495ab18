use std::collections::HashMap;

use super::super::pace::{BREAKS_MAX, CALM_MAX};
use super::*;
use crate::units::Pages;

const SECOND: Duration = Duration::from_secs(1);

/// A scan without pages: looks at what is due, `rate` pages a second, in steps of 50 ms.
struct Scan {
    chunks: Chunks,
    layout: Layout,
    rate: u32,
    now: Duration,
    looks: HashMap<u32, u32>,
    /// Pages looked at.
    pages: usize,
}

/// What a look is at.
fn pages(chunk: GfnRange, which: Which) -> Vec<Gfn> {
    let starts = chunk.iter().step_by(SLICE_PAGES as usize);
    let parts = starts.filter_map(|start| which.of(slice(chunk, start)));
    parts.flat_map(|part| part.iter()).collect()
}

impl Scan {
    fn new(mib: u64, rate: u32) -> Scan {
        let layout = Layout::new(Pages::mib(mib));
        Scan {
            chunks: Chunks::new(&layout),
            layout,
            rate,
            now: Duration::ZERO,
            looks: HashMap::new(),
            pages: 0,
        }
    }

    /// Until `end`. `content` is what a page holds at a time, if it has memory of its own; returns
    /// when each page was first offered.
    fn until(
        &mut self,
        end: Duration,
        content: impl Fn(Gfn, Duration) -> Option<u64>,
    ) -> HashMap<Gfn, Duration> {
        let mut offered = HashMap::new();
        while self.now < end {
            let mut left = self.rate / 20;
            while left > 0 {
                let Some((first, which)) = self.chunks.begin(self.now) else {
                    break;
                };
                *self.looks.entry(first.0 / CHUNK_PAGES).or_default() += 1;
                let mut tally = Tally::default();
                let all = pages(self.layout.chunk_of(first), which);
                self.pages += all.len();
                for gfn in all {
                    let Some(content) = content(gfn, self.now) else {
                        continue;
                    };
                    tally.own += 1;
                    match self.chunks.note(gfn, Part::of(Key(content))) {
                        Seen::New => tally.new += 1,
                        Seen::Changed => tally.changed += 1,
                        Seen::Same => {
                            offered.entry(gfn).or_insert(self.now);
                        }
                    }
                }
                self.chunks.end(first, which, tally, self.now);
                left = left.saturating_sub(CHUNK_PAGES);
            }
            self.now += SECOND / 20;
        }
        offered
    }

    fn looks_of(&self, chunk: u32) -> u32 {
        self.looks.get(&chunk).copied().unwrap_or(0)
    }
}

/// Of some content, keys whose kept parts differ where the contents do.
fn key(content: u64) -> u64 {
    content * 7 % 60_000 + 5
}

#[test]
fn a_fresh_guest_is_offered_after_two_looks_at_all_of_it() {
    let mut scan = Scan::new(128, 32_768);
    let offered = scan.until(10 * SECOND, |gfn, _| Some(key(gfn.0.into())));
    assert_eq!(offered.len(), 32_768);
    // A second for each look, and the gap between them.
    let last = offered.values().max().unwrap();
    assert!(*last <= 3 * SECOND, "{last:?}");
}

/// Half of each chunk is rewritten all the time, of every second chunk.
#[test]
fn what_changes_is_not_offered_and_looked_at_less_and_less() {
    let mut scan = Scan::new(16, 32_768);
    let restless = |gfn: Gfn| gfn.0 / CHUNK_PAGES % 2 == 1;
    let offered = scan.until(200 * SECOND, |gfn, now| {
        let version = match restless(gfn) && gfn.0 % 2 == 1 {
            true => u64::try_from(now.as_millis()).unwrap(),
            false => 0,
        };
        Some(key(u64::from(gfn.0) + version))
    });
    for gfn in 0..8 * CHUNK_PAGES {
        let gfn = Gfn(gfn);
        let changes = restless(gfn) && gfn.0 % 2 == 1;
        assert_eq!(offered.contains_key(&gfn), !changes, "{gfn}");
    }
    for chunk in 0..8 {
        let looks = scan.looks_of(chunk);
        let expected = match restless(Gfn(chunk * CHUNK_PAGES)) {
            true => 14..=17,
            false => 11..=12,
        };
        assert!(expected.contains(&looks), "{chunk}: {looks}");
    }
}

#[test]
fn a_calm_guest_costs_little_and_its_new_content_is_found() {
    let mut scan = Scan::new(64, 32_768);
    let changes = 1000 * SECOND;
    let content = |gfn: Gfn, now| Some(key(u64::from(gfn.0) + u64::from(now >= changes)));
    scan.until(changes, content);
    let before: u32 = scan.looks.values().sum();
    // 32 chunks, each every 32 s: 512 pages a second of 16384.
    assert!(before <= 32 * (7 + 1000 / 32), "{before}");
    // All of it changes at once: each chunk is seen in the calm gap at most, and again a second later.
    let offered = scan.until(changes + 200 * SECOND, content);
    assert_eq!(offered.len(), 16_384);
    let late = changes + GAP * (1 << CALM_MAX) + 3 * SECOND;
    assert!(offered.values().all(|at| *at <= late));
}

/// The looks of a calm chunk are at each of its pages once in eight, also where it is short.
#[test]
fn turns_make_up_the_chunk() {
    for count in [1, 7, 8, 9, 63, 64, 65, 188, CHUNK_PAGES] {
        let chunk = GfnRange::new(Gfn(CHUNK_PAGES), count);
        let turns = (0..TURNS).flat_map(|turn| pages(chunk, Which::Turn(turn)));
        let mut seen: Vec<Gfn> = turns.collect();
        seen.sort_unstable();
        assert_eq!(seen, pages(chunk, Which::All), "{count}");
    }
}

/// A page that changes alone in a calm chunk is found in its turn, wherever it is, and offered at the
/// look after. While nothing changes an eighth is looked at.
#[test]
fn a_change_in_a_calm_chunk_is_found_in_its_turn() {
    const CALM: Duration = SECOND.saturating_mul(1 << CALM_MAX);
    let changes = 200 * SECOND;
    for changed in [0, 8, 63, 200, 511].map(Gfn) {
        let mut scan = Scan::new(2, 32_768);
        let content = |gfn: Gfn, now| {
            let version = u64::from(gfn == changed && now >= changes);
            Some(key(u64::from(gfn.0) + 1000 * version))
        };
        scan.until(changes - 8 * CALM / 2, content);
        let (pages, looks) = (scan.pages, scan.looks_of(0));
        scan.until(changes, content);
        let looks = (scan.looks_of(0) - looks) as usize;
        assert_eq!(scan.pages - pages, looks * 64, "{looks} looks");
        // The first look at it finds another key; what is offered from now on is the new one.
        let offered = scan.until(changes + 12 * CALM, content);
        let late = changes + (u32::from(TURNS) + 1) * CALM + SECOND;
        assert!(
            offered[&changed] <= late,
            "{changed}: {:?}",
            offered[&changed]
        );
    }
}

#[test]
fn a_chunk_that_fills_late_is_looked_at_soon() {
    let mut scan = Scan::new(4, 32_768);
    let fills = 100 * SECOND;
    let content = |gfn: Gfn, now| {
        let there = gfn.0 < CHUNK_PAGES || now >= fills;
        there.then(|| key(gfn.0.into()))
    };
    scan.until(fills, content);
    let few = Stir {
        chunk: Gfn(CHUNK_PAGES),
        filled: FILLED_PAGES - 1,
        broken: 0,
        ripe: false,
    };
    let due = scan.chunks.of_chunk[1].due;
    scan.chunks.stir(few, scan.now);
    assert_eq!(scan.chunks.of_chunk[1].due, due);
    let many = Stir {
        filled: FILLED_PAGES,
        ..few
    };
    scan.chunks.stir(many, scan.now);
    let offered = scan.until(fills + 3 * SECOND, content);
    assert!(offered.contains_key(&Gfn(CHUNK_PAGES)));
    // While it is looked at, the same holds for the next look.
    scan.until(fills + 50 * SECOND, |_, _| None);
    while scan.chunks.begin(scan.now) != Some((Gfn(CHUNK_PAGES), Which::All)) {
        scan.now += SECOND;
    }
    scan.chunks.stir(many, scan.now);
    let (chunk, nothing) = (Gfn(CHUNK_PAGES), Tally::default());
    scan.chunks.end(chunk, Which::All, nothing, scan.now);
    assert_eq!(scan.chunks.of_chunk[1].due, Some(scan.now + GAP));
}

#[test]
fn breaks_put_the_next_look_off_and_bring_a_far_one_near() {
    let mut scan = Scan::new(2, 32_768);
    let calm = |gfn: Gfn, _| Some(key(gfn.0.into()));
    scan.until(100 * SECOND, calm);
    let broken = Stir {
        chunk: Gfn(0),
        filled: 0,
        broken: 20,
        ripe: false,
    };
    let due = |scan: &Scan| scan.chunks.of_chunk[0].due.unwrap() - scan.now;
    scan.chunks.stir(broken, scan.now);
    assert_eq!(due(&scan), 4 * SECOND);
    // Further ones do not put it off.
    scan.now += SECOND;
    scan.chunks.stir(broken, scan.now);
    assert_eq!(due(&scan), 3 * SECOND);
    assert_eq!(scan.chunks.next_due(), Some(scan.now + due(&scan)));
    // What is broken again and again is looked at a minute later.
    for _ in 0..20 {
        scan.now += due(&scan);
        scan.until(scan.now + SECOND / 20, calm);
        scan.chunks.stir(broken, scan.now);
    }
    assert!(
        due(&scan) >= GAP * (1 << (BREAKS_MAX - 1)),
        "{:?}",
        due(&scan)
    );
}

#[test]
fn nothing_is_remembered_of_a_chunk_without_pages() {
    let mut scan = Scan::new(2, 32_768);
    scan.until(SECOND, |gfn, _| Some(key(gfn.0.into())));
    assert!(scan.chunks.of_chunk[0].parts.is_some());
    let offered = scan.until(100 * SECOND, |_, _| None);
    assert!(scan.chunks.of_chunk[0].parts.is_none() && offered.is_empty());
    assert_eq!(scan.chunks.note(Gfn(3), Part::ZERO), Seen::New);
    assert_eq!(scan.chunks.note(Gfn(3), Part::ZERO), Seen::Same);
}

/// The hole below 4 GiB is never looked at, and a last chunk may be short.
#[test]
fn exactly_the_chunks_with_ram_are_looked_at() {
    let layout = Layout::new(Pages::mib(3 * 1024) + Pages(700));
    let mut chunks = Chunks::new(&layout);
    let mut begun = 0;
    while let Some((first, _)) = chunks.begin(Duration::ZERO) {
        assert!(layout.contains_gfn(first));
        begun += 1;
    }
    assert_eq!(begun, 3 * 512 + 2);
    assert_eq!(chunks.next_due(), None);
}

#[test]
fn what_it_takes_a_chunk_is_what_the_documentation_says() {
    let entry = size_of::<Reverse<(Duration, u32)>>();
    assert!(size_of::<Chunk>() + entry <= 64);
    assert_eq!(size_of::<[Part; CHUNK_PAGES as usize]>(), 1024);
}

#[test]
fn a_part_tells_zero_and_unknown_from_any_key() {
    for key in [0, 1, 2, 1 << 48, u64::MAX] {
        let part = Part::of(Key(key));
        assert!(part != Part::NONE && part != Part::ZERO, "{key:#x}");
    }
}
