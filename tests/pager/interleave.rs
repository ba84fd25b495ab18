//! Every operation of the pager in a random order, beside two threads that play vCPUs and know what
//! each page must hold.
//!
//! **The bound is work, not time**: the worker does a given number of operations, whose kinds follow
//! from the seed, and each vCPU makes [`ACCESSES`] accesses for each of them, give or take
//! [`SLACK`] operations. So two runs do the same work however fast the take path or the machine is,
//! and their counts can be compared.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidemark::mem::reclaim::Reclaimer;
use tidemark::mem::returns::Prefetch;
use tidemark::mem::share::{Scanned, Scanner};
use tidemark::sys::pool_view::PoolView;
use tidemark::sys::space::PageBuf;
use tidemark::units::{CHUNK_PAGES, Gfn, GfnRange, PAGE_SIZE, Pages};
use tidemark::words::TakePath;

use super::chunks::{CHUNKS, Chunks};
use super::os::has_large_pages;
use super::pool::{KEY_SEED, Pool};
use super::rig::{Rig, merge};

/// Pages that the vCPUs own.
pub const PAGES: u32 = 1024;
/// Pages of the guest: behind those of the vCPUs are the worker's own.
pub const GUEST_PAGES: u32 = PAGES + CHUNKS * CHUNK_PAGES;
/// Accesses of each vCPU for each operation of the worker.
const ACCESSES: u64 = 24;
/// How many operations the vCPUs and the worker may be apart.
const SLACK: u64 = 16;
/// The vCPUs own alternate blocks of this many pages, so that runs of one border on the other's.
const BLOCK_PAGES: u32 = 16;
const VCPUS: u32 = 2;
/// Far above what a run takes: beyond it something hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// What an interleaving does.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub path: TakePath,
    pub seed: u64,
    /// Operations of the worker.
    pub operations: u64,
    /// Whether the swap store is encrypted.
    pub encrypted: bool,
}

/// What it came to.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Pages mapped over a frame.
    pub merged: u64,
    /// Pages that a vCPU read and found right.
    pub checked: u64,
    /// Pages that were read from swap together with others.
    pub read_ahead: u64,
    /// Pages that the worker brought back before anybody asked for them.
    pub prefetched: u32,
    /// Large pages that untouched chunks were filled with.
    pub large_fills: u64,
}

impl Outcome {
    /// Nothing of what the worker can do was missing. Beside a host that swaps or moves pages all the
    /// time that is not certain: pages that are not present are passed over.
    ///
    /// # Panics
    /// When something was.
    pub fn assert_complete(&self, plan: Plan) {
        assert!(self.merged > 0, "{plan:?}: nothing was ever merged");
        assert!(self.read_ahead > 0, "{plan:?}: nothing was ever read ahead");
        assert!(self.prefetched > 0, "{plan:?}: nothing was ever prefetched");
        if has_large_pages() {
            assert!(self.large_fills > 0, "{plan:?}: no large page");
        }
    }
}

/// What the threads share.
struct Shared {
    plan: Plan,
    rig: Rig,
    /// Operations that the worker has done.
    operations: AtomicU64,
    accesses: [AtomicU64; VCPUS as usize],
    checked: AtomicU64,
    /// The worker is done.
    end: AtomicBool,
    /// A thread panicked: the others stop.
    panicked: AtomicBool,
}

/// Runs it, with `beside` in a thread of its own until the worker is done.
///
/// # Panics
/// When a page is corrupt, the books disagree with the page tables or the pool, batches cannot be
/// taken any more, or something hangs.
pub fn run(plan: Plan, beside: impl FnOnce(&Rig, &AtomicBool) + Send + 'static) -> Outcome {
    let (rig, replay) = Rig::replayed(plan.path, GUEST_PAGES, plan.encrypted);
    let shared = Arc::new(Shared {
        plan,
        rig,
        operations: AtomicU64::new(0),
        accesses: Default::default(),
        checked: AtomicU64::new(0),
        end: AtomicBool::new(false),
        panicked: AtomicBool::new(false),
    });
    let mut others = vec![shared.spawn(|shared| beside(&shared.rig, &shared.end))];
    others.extend((0..VCPUS).map(|vcpu| shared.spawn(move |shared| play_vcpu(shared, vcpu))));
    let worker = shared.spawn(work);
    let (merged, prefetched, mut pool) = shared.join(worker);
    others.into_iter().for_each(|thread| shared.join(thread));

    let (rig, seed) = (&shared.rig, plan.seed);
    let checked = shared.checked.load(Ordering::Relaxed);
    assert!(checked > 1000, "seed {seed}: only {checked} pages checked");
    rig.pager.audit().unwrap();
    rig.pager.census().unwrap();
    pool.release(&rig.pager.take_released());
    let report = rig.pager.report().unwrap();
    let counters = report.measured.counters;
    assert!(counters.swap_in_pages > 0 && counters.swap_out_pages > 0);
    // A reference for each page that maps a frame, and no other.
    assert_eq!(Pages(pool.lent()), report.measured.shared, "seed {seed}");
    replay.check(&rig.pager);
    assert_eq!(rig.six_batches(seed), [32; 6], "seed {seed}: {plan:?}");
    rig.pager.audit().unwrap();
    replay.check(&rig.pager);
    assert!(rig.failure().is_none(), "{:?}", rig.failure());
    let outcome = Outcome {
        merged,
        checked,
        read_ahead: rig.store.run_pages(),
        prefetched,
        large_fills: counters.large_fills,
    };
    println!("seed {seed}, {}: {outcome:?}", plan.path.name());
    outcome
}

impl Shared {
    fn spawn<T: Send + 'static>(
        self: &Arc<Shared>,
        work: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let shared = self.clone();
        std::thread::spawn(move || {
            let guard = PanicGuard(&shared.panicked);
            let result = work(&shared);
            drop(guard);
            result
        })
    }

    /// The thread's result. A thread that waits for a page for ever is left behind: nothing ends it
    /// but the process's end.
    fn join<T>(&self, thread: JoinHandle<T>) -> T {
        let start = Instant::now();
        while !thread.is_finished() {
            let failed = self.rig.failure();
            let panicked = self.panicked.load(Ordering::Relaxed);
            let seed = self.plan.seed;
            assert!(failed.is_none(), "seed {seed}: {failed:?}");
            assert!(!panicked, "seed {seed}: see the panic above");
            assert!(start.elapsed() < DEADLINE, "seed {seed}: a thread hangs");
            std::thread::sleep(Duration::from_millis(5));
        }
        let result = thread.join();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn stops(&self) -> bool {
        self.end.load(Ordering::Relaxed) || self.panicked.load(Ordering::Relaxed)
    }

    /// Waits until this vCPU may make its next access.
    fn pace_vcpu(&self, vcpu: u32) {
        let mine = &self.accesses[vcpu as usize];
        let allowed = || (self.operations.load(Ordering::Relaxed) + SLACK) * ACCESSES;
        while mine.load(Ordering::Relaxed) >= allowed() && !self.stops() {
            std::thread::yield_now();
        }
        mine.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until the vCPUs are near enough for the worker's next operation.
    fn pace_worker(&self) {
        let done = self.operations.load(Ordering::Relaxed);
        let wanted = done.saturating_sub(SLACK) * ACCESSES;
        let behind = |one: &AtomicU64| one.load(Ordering::Relaxed) < wanted;
        while self.accesses.iter().any(behind) && !self.stops() {
            std::thread::yield_now();
        }
    }
}

/// Tells the other threads of a panic.
struct PanicGuard<'a>(&'a AtomicBool);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// What a page holds, by kind: zero, common to many pages, hard or easy to compress.
pub fn content(rng: &mut fastrand::Rng) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    match rng.u32(0..10) {
        0 | 1 => {}
        2..=5 => fastrand::Rng::with_seed(rng.u64(0..40)).fill(&mut page),
        6 | 7 => page[..64].fill(rng.u8(1..)),
        _ => rng.fill(&mut page),
    }
    page
}

/// A page of the vCPU's own: the one behind `last`, or a random one. Half of the accesses go through
/// memory in order, so that pages are read ahead of them.
fn next_page(rng: &mut fastrand::Rng, vcpu: u32, last: u32) -> u32 {
    let next = last + 1;
    if rng.bool() && !next.is_multiple_of(BLOCK_PAGES) {
        return next;
    }
    let block = rng.u32(0..PAGES / BLOCK_PAGES / VCPUS) * VCPUS + vcpu;
    block * BLOCK_PAGES + rng.u32(0..BLOCK_PAGES)
}

fn play_vcpu(shared: &Shared, vcpu: u32) {
    let (rig, seed) = (&shared.rig, shared.plan.seed);
    let mut rng = fastrand::Rng::with_seed(seed ^ u64::from(vcpu));
    let mut expected: HashMap<u32, [u8; PAGE_SIZE]> = HashMap::new();
    let mut gfn = vcpu * BLOCK_PAGES;
    while !shared.stops() {
        shared.pace_vcpu(vcpu);
        gfn = next_page(&mut rng, vcpu, gfn);
        match rng.u32(0..40) {
            0..=17 => {
                let page = content(&mut rng);
                rig.write(Gfn(gfn), &page);
                expected.insert(gfn, page);
            }
            dead @ 18..=20 => {
                // To the end of the block at most: what lies behind it is the other vCPU's.
                let run = GfnRange::new(Gfn(gfn), rng.u32(1..=BLOCK_PAGES - gfn % BLOCK_PAGES));
                for gfn in run.iter() {
                    expected.remove(&gfn.0);
                }
                if dead == 20 {
                    rig.pager.report_free(run).unwrap();
                    continue;
                }
                let gfns: Vec<Gfn> = run.iter().collect();
                rig.pager.inflate(&gfns).unwrap();
                // Some are touched while the balloon holds them.
                if rng.bool() {
                    rig.pager.deflate(&gfns);
                }
            }
            _ => {
                if let Some(page) = expected.get(&gfn) {
                    let found = rig.read(Gfn(gfn));
                    assert!(found == *page, "seed {seed}: page {gfn} is corrupt");
                    shared.checked.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
    for (gfn, page) in expected {
        let found = rig.read(Gfn(gfn));
        assert!(found == page, "seed {seed}: page {gfn} is corrupt");
    }
}

/// The worker's operations; returns the pages merged, those prefetched, and the pool.
fn work(shared: &Shared) -> (u64, u32, Pool) {
    let (rig, seed) = (&shared.rig, shared.plan.seed);
    // The kinds come from a generator of their own: the others are drawn from as often as pages
    // happen to be found.
    let mut kinds = fastrand::Rng::with_seed(seed);
    let mut rng = fastrand::Rng::with_seed(!seed);
    let mut reclaimer = Reclaimer::new(seed);
    // With every second seed victims are offered before they are taken.
    reclaimer.offer_with(seed.is_multiple_of(2).then_some(KEY_SEED));
    let mut scanner = Scanner::new(rig.pager.ram().layout(), KEY_SEED);
    let mut now = Duration::ZERO;
    let mut pool = Pool::new(GUEST_PAGES);
    let view = pool.view();
    let mut chunks = Chunks::new(PAGES, seed);
    let (mut merged, mut prefetched) = (0, 0);
    rig.pager.allow_prefetch(Prefetch::Allowed);
    for done in 1..=shared.plan.operations {
        shared.pace_worker();
        if shared.stops() {
            break;
        }
        match kinds.u32(0..13) {
            0..=2 => {
                reclaimer.step(&rig.pager, kinds.usize(1..=32)).unwrap();
            }
            3..=7 => {
                // So fast that a chunk is due nearly always, however much it changes.
                now += Duration::from_secs(5);
                let mut found = scanner.step(&rig.pager, 64, now).unwrap();
                found.offers.extend(reclaimer.take_offers());
                merged += share(rig, found, &mut pool, &view, &mut rng);
            }
            8 if kinds.bool() => {
                rig.pager.census().unwrap();
            }
            8 => {
                let drawn: Vec<Gfn> = (0..40).map(|_| Gfn(kinds.u32(0..GUEST_PAGES))).collect();
                rig.pager.begin_sample(&drawn).unwrap();
                rig.pager.touched_in_sample().unwrap();
            }
            9 => {
                rig.store.fail_writes(kinds.u32(0..4) == 0);
                prefetched += prefetch(rig);
            }
            10 => rig.pager.set_plenty(kinds.u32(0..3) > 0).unwrap(),
            11 => chunks.step(rig),
            _ => replace_link(rig, &mut reclaimer, &mut pool),
        }
        pool.release(&rig.pager.take_released());
        shared.operations.store(done, Ordering::Relaxed);
    }
    chunks.check_all(rig);
    shared.end.store(true, Ordering::Relaxed);
    (merged, prefetched, pool)
}

/// Brings back some of what the vCPUs come back to.
fn prefetch(rig: &Rig) -> u32 {
    let mut buffer = Vec::new();
    (0..4)
        .map(|_| rig.pager.prefetch(&mut buffer).unwrap())
        .sum()
}

/// Tells the host manager anew of all frames, a part at a time and with other work between, as after
/// the loss of a link. What it knows then replaces what the pool knew: a reference too few lets a
/// mapped frame be punched, one too many is found at the end.
fn replace_link(rig: &Rig, reclaimer: &mut Reclaimer, pool: &mut Pool) {
    rig.pager.begin_claims();
    let mut references = HashMap::new();
    loop {
        let claims = rig.pager.next_claims(1);
        for frame in claims.iter().flatten() {
            *references.entry(*frame).or_insert(0_u64) += 1;
        }
        reclaimer.step(&rig.pager, 8).unwrap();
        rig.pager.census().unwrap();
        for frame in rig.pager.take_released() {
            let known = references.get_mut(&frame).filter(|known| **known > 0);
            *known.expect("a frame is claimed before it is released") -= 1;
        }
        if claims.is_none() {
            break;
        }
    }
    pool.replace(&references);
}

/// Merges what a scan found.
fn share(
    rig: &Rig,
    found: Scanned,
    pool: &mut Pool,
    view: &PoolView,
    rng: &mut fastrand::Rng,
) -> u64 {
    let mut candidates = Vec::new();
    for (gfn, _key) in found.offers {
        // A lying or late host manager: now and then a wrong frame.
        let mut page = PageBuf::ZERO;
        page.0 = match rng.u32(0..10) {
            0 => content(rng),
            _ => rig.read(gfn),
        };
        candidates.extend(pool.lend(&page.0).map(|frame| (gfn, frame)));
    }
    let done = merge(&rig.pager, view, &mut candidates);
    pool.release(&done.rejected);
    u64::from(done.pages)
}
