//! One decision of the host manager, by policy and number of VMs.
//!
//! Cases: every policy with 10, 100, 1,000 and 10,000 VMs on a host that is short of memory, half of
//! the guests with statistics. Unit: VMs decided about a second (goal: 1 us a VM or less, the same
//! at every size).

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidemark::policy::types::{Snapshot, VmId, VmSnapshot};
use tidemark::policy::{PolicyKind, PolicyState, decide};
use tidemark::units::Pages;
use tidemark::words::{Allocation, GuestMemoryStats};

fn host(vms: u32) -> Snapshot {
    let mut random = fastrand::Rng::with_seed(1);
    let vms: Vec<VmSnapshot> = (0..vms).map(|id| vm(id, &mut random)).collect();
    let consumed: Pages = vms.iter().map(|vm| vm.consumed).sum();
    let overhead: Pages = vms.iter().map(|vm| vm.overhead).sum();
    // Three percent are free: between hard and soft.
    let free = Pages(consumed.0 * 3 / 97);
    Snapshot {
        now: Duration::ZERO,
        budget: consumed + overhead + free,
        free,
        overhead,
        vms,
    }
}

fn vm(id: u32, random: &mut fastrand::Rng) -> VmSnapshot {
    let size = Pages::mib(random.u64(64..2048));
    let consumed = Pages(random.u64(size.0 / 4..size.0));
    let reports = random.bool().then_some(());
    VmSnapshot {
        id: VmId(id),
        allocation: Allocation {
            size,
            reservation: Pages(size.0 / 16),
            limit: size,
            shares: (size.bytes() >> 20) * [5, 10, 20][random.usize(0..3)],
            dynamic_min: Pages(size.0 / 8),
            dynamic_max: size,
        },
        consumed,
        frames: Pages::ZERO,
        private: consumed,
        ballooned: Pages(random.u64(0..=(size - consumed).0)),
        swapped: Pages::ZERO,
        asked: Pages::ZERO,
        swap_in_pages: 0,
        balloon_driver: true,
        active: Some(Pages(consumed.0 * random.u64(0..=100) / 100)),
        overhead: Pages::mib(4),
        guest: GuestMemoryStats {
            total_bytes: reports.map(|()| size.bytes()),
            available_bytes: reports.map(|()| size.bytes() / 4),
            ..GuestMemoryStats::default()
        },
    }
}

fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    for &kind in PolicyKind::ALL {
        for vms in [10, 100, 1000, 10_000] {
            let mut snapshot = host(vms);
            let mut state = PolicyState::new(kind);
            group.throughput(Throughput::Elements(u64::from(vms)));
            let id = BenchmarkId::new(kind.name(), vms);
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    snapshot.now += Duration::from_millis(100);
                    black_box(decide(black_box(&snapshot), &mut state))
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
