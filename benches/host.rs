//! What the host manager does again and again, by number of frames and of VMs.
//!
//! | case | unit |
//! |---|---|
//! | `frames/split` | dividing all frames among their holders: 262,144 frames (1 GiB) of 2 VMs and 1,048,576 (4 GiB) of 4 |
//! | `frames/reference` | one reference taken and given back: frames of 2, 4 and 32 holders |
//! | `index/offer` | one message of pages that nobody else has, until the index has 1 Mi hints |
//! | `index/slowest` | the slowest of those messages |
//! | `index/gone` | a VM with 1 Mi hints has ended |
//! | `manager/report` | one VM's report, on a host of 100, 1,000 and 4,000 VMs |
//! | `manager/tick` | one decision, every VM having reported since the last |
//!
//! Goal: a decision takes less than a tenth of a tick (10 ms) at 1,000 VMs, however many frames.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tidemark::host::manager::{Manager, Settings};
use tidemark::host::process::ProcessId;
use tidemark::host::registration::Registration;
use tidemark::host::split::FrameSplit;
use tidemark::link::message::{OFFER_PAGES_MAX, ToHost};
use tidemark::policy::PolicyKind;
use tidemark::policy::settings::PolicySettings;
use tidemark::policy::types::VmId;
use tidemark::units::{Gfn, Pages};
use tidemark::words::{Allocation, Holding, Key, Measured, Report, Sampling, Sharing};

type Holders = Vec<(VmId, u32)>;

/// Sister VMs: most frames are held by all, some by fewer.
fn holders(frames: u32, vms: u32) -> Vec<Holders> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..frames)
        .map(|_| {
            let count = if random.u8(0..4) > 0 {
                vms
            } else {
                random.u32(1..=vms)
            };
            (0..count).map(|vm| (VmId(vm), 1)).collect()
        })
        .collect()
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    for (frames, vms) in [(262_144, 2), (1_048_576, 4)] {
        let all = holders(frames, vms);
        let mut split = FrameSplit::default();
        all.iter().for_each(|holders| split.add(holders));
        group.bench_function(BenchmarkId::new("split", frames), |bencher| {
            bencher.iter(|| black_box(split.parts()));
        });
    }
    for vms in [2, 4, 32] {
        let mut split = FrameSplit::default();
        let all = holders(1000, vms);
        all.iter().for_each(|holders| split.add(holders));
        let before: Holders = (1..vms).map(|vm| (VmId(vm), 1)).collect();
        let after: Holders = (0..vms).map(|vm| (VmId(vm), 1)).collect();
        split.add(&before);
        group.bench_function(BenchmarkId::new("reference", vms), |bencher| {
            bencher.iter(|| {
                split.remove(black_box(&before));
                split.add(black_box(&after));
                split.remove(black_box(&after));
                split.add(black_box(&before));
            });
        });
    }
    group.finish();
}

/// A host of so many VMs of 64 MiB that have all reported.
fn host(vms: u32) -> (Manager, Vec<VmId>) {
    host_of(vms, Pages::mib(64))
}

fn host_of(vms: u32, size: Pages) -> (Manager, Vec<VmId>) {
    let mut manager = Manager::new(Settings {
        budget: Pages(size.0 * u64::from(vms)),
        policy: PolicyKind::Esx,
        policy_settings: PolicySettings::default(),
        sampling: Sampling::default(),
        seed: 1,
    });
    let join = |number: u32, manager: &mut Manager| {
        let registration = Registration {
            name: format!("vm-{number}"),
            allocation: Allocation {
                shares: 640,
                dynamic_min: Pages::ZERO,
                ..Allocation::of(size)
            },
            share_group: Some("all".to_owned()),
            sharing: Sharing::default(),
            managed: true,
            lease: None,
        };
        let process = ProcessId {
            pid: i32::try_from(number).expect("a few VMs") + 2,
            started: 1,
        };
        manager
            .admit(registration, process, None)
            .expect("there is room")
    };
    let ids: Vec<VmId> = (0..vms).map(|n| join(n, &mut manager)).collect();
    ids.iter().for_each(|&id| report(&mut manager, id));
    (manager, ids)
}

fn report(manager: &mut Manager, id: VmId) {
    let report = Report {
        holding: Holding::private(Pages(30 + u64::from(id.0 % 7))),
        overhead: Pages(256),
        measured: Measured {
            active: Some(Pages(8000)),
            balloon_driver: true,
            ..Measured::default()
        },
    };
    let report = ToHost::Report(Box::new(report));
    manager
        .message(id, report, Duration::ZERO)
        .expect("a good report");
}

fn manager(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("manager");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    for vms in [100, 1000, 4000] {
        let (mut manager, ids) = host(vms);
        let mut turn = ids.iter().cycle();
        group.bench_function(BenchmarkId::new("report", vms), |bencher| {
            bencher.iter(|| report(&mut manager, *turn.next().expect("it never ends")));
        });
        let mut now = Duration::ZERO;
        group.bench_function(BenchmarkId::new("tick", vms), |bencher| {
            bencher.iter(|| {
                now += Duration::from_millis(100);
                manager.tick(now);
                black_box(manager.take_outgoing())
            });
        });
    }
    group.finish();
}

/// A VM of 4 GiB offers all its pages: the host, the VM, and how long each message took.
fn offered() -> (Manager, VmId, Vec<Duration>) {
    let size = Pages::mib(4 << 10);
    let (mut manager, ids) = host_of(1, size);
    let mut random = fastrand::Rng::with_seed(2);
    let mut times = Vec::new();
    for first in (0..u32::try_from(size.0).expect("4 GiB")).step_by(OFFER_PAGES_MAX) {
        let gfns = (first..).take(OFFER_PAGES_MAX).map(Gfn);
        let pages = gfns.map(|gfn| (gfn, Key(random.u64(..)))).collect();
        let offer = ToHost::Offer { pages };
        let start = Instant::now();
        let heard = manager.message(ids[0], offer, Duration::ZERO);
        times.push(start.elapsed());
        heard.expect("a good offer");
    }
    (manager, ids[0], times)
}

fn index(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("index");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(1));
    // Each figure is of one filling, however often it is asked for.
    let of_one = |figure: fn() -> Duration| {
        move |iterations: u64| {
            let once = figure();
            once * u32::try_from(iterations).expect("a few")
        }
    };
    let mean = || {
        let (_, _, times) = offered();
        times.iter().sum::<Duration>() / u32::try_from(times.len()).expect("a few")
    };
    let slowest = || offered().2.into_iter().max().unwrap_or_default();
    let gone = || {
        let (mut manager, id, _) = offered();
        let start = Instant::now();
        manager.gone(id);
        start.elapsed()
    };
    group.bench_function("offer", |bencher| bencher.iter_custom(of_one(mean)));
    group.bench_function("slowest", |bencher| bencher.iter_custom(of_one(slowest)));
    group.bench_function("gone", |bencher| bencher.iter_custom(of_one(gone)));
    group.finish();
}

criterion_group!(benches, frames, index, manager);
criterion_main!(benches);
