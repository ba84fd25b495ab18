//! The host manager's orders and a VM's credit account mean the same by "private": what is swapped is
//! what was asked for, whatever the compressed store holds.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

use std::time::Duration;

use tidemark::host::manager::{Manager, Outgoing, Settings};
use tidemark::host::process::ProcessId;
use tidemark::host::registration::Registration;
use tidemark::link::message::{ToHost, ToVm};
use tidemark::mem::credit::{CreditBook, CreditMove};
use tidemark::policy::PolicyKind;
use tidemark::policy::settings::PolicySettings;
use tidemark::policy::types::VmId;
use tidemark::units::Pages;
use tidemark::words::{
    Allocation, AllocationKeys, Gauges, Holding, Measured, Report, Sampling, Sharing,
};

/// Pages that a VM process takes out in one go.
const BATCH: u64 = 32;
const SIZE: Pages = Pages::mib(64);

/// A VM process without a guest: its books, and how much of it the pager would have compressed.
struct Vm {
    id: VmId,
    account: CreditBook,
    most: Option<Pages>,
    private: u64,
    /// Compressed pages, four to a page of the store.
    compressed: u64,
    swapped: u64,
    taken: u64,
}

impl Vm {
    fn store(&self) -> Pages {
        Pages(self.compressed.div_ceil(4))
    }

    fn measure(&mut self) {
        let used = Pages(self.private) + self.store();
        self.account.measured(used);
    }

    /// Swaps until the orders are met: one turn of the agent.
    fn reclaim(&mut self) {
        for _ in 0..16 {
            let Some(most) = self.most else { return };
            let excess = self.account.excess(most, Pages::ZERO);
            let store_max = (SIZE.0 / 10).min(most.0 / 4);
            if excess > Pages::ZERO && self.store().0 > store_max {
                // The store takes more than its part: it is written first.
                let spilled = excess.0.min(BATCH).min(self.compressed);
                self.compressed -= spilled;
                self.swapped += spilled;
                self.measure();
                continue;
            }
            let pages = excess.0.min(BATCH).min(self.private);
            self.private -= pages;
            self.taken += pages;
            // Compressed first, as far as the store may grow.
            let room = store_max.saturating_sub(self.store().0) * 4;
            let small = pages.min(room);
            self.compressed += small;
            self.swapped += pages - small;
            self.measure();
        }
    }

    fn report(&self) -> ToHost {
        ToHost::Report(Box::new(Report {
            holding: Holding {
                private: Pages(self.private),
                compressed_store: self.store(),
                orphaned: Pages(0),
            },
            overhead: Pages::mib(1),
            measured: Measured {
                gauges: Gauges {
                    compressed: Pages(self.compressed),
                    swapped: Pages(self.swapped),
                    ..Gauges::default()
                },
                ..Measured::default()
            },
        }))
    }

    fn hear(&mut self, message: ToVm) {
        match message {
            ToVm::Credit { pages } => self.account.grant(pages),
            ToVm::Orders(orders) => self.most = orders.private_max,
            _ => {}
        }
    }
}

/// A host with memory to spare, and a VM on it with so many private and compressed pages.
fn start(private: u64, compressed: u64) -> (Manager, Vm) {
    let mut manager = Manager::new(Settings {
        budget: Pages::mib(256),
        policy: PolicyKind::Esx,
        policy_settings: PolicySettings::default(),
        sampling: Sampling::default(),
        seed: 1,
    });
    let mut vm = Vm {
        id: VmId(0),
        account: CreditBook::new(Pages::ZERO, Pages(64)),
        most: None,
        private,
        compressed,
        swapped: 0,
        taken: 0,
    };
    let registration = Registration {
        name: "vm".to_owned(),
        allocation: Allocation {
            dynamic_min: Pages::ZERO,
            ..Allocation::of(SIZE)
        },
        share_group: None,
        sharing: Sharing::default(),
        managed: true,
        lease: None,
    };
    let process = ProcessId { pid: 2, started: 1 };
    vm.id = manager.admit(registration, process, None).unwrap();
    for out in manager.take_outgoing() {
        if let Outgoing::Welcome(_, welcome) = out {
            vm.account = CreditBook::new(welcome.credit, welcome.credit_batch);
        }
    }
    vm.measure();
    let pages = Pages(private) + vm.store();
    let ask = ToHost::CreditRequest { pages };
    manager.message(vm.id, ask, Duration::ZERO).unwrap();
    for out in manager.take_outgoing() {
        if let Outgoing::Send(_, message) = out {
            vm.hear(message);
        }
    }
    (manager, vm)
}

/// One second: a decision every 100 ms, a turn of the agent every 10 ms.
fn second(manager: &mut Manager, vm: &mut Vm, second: u64, mut guest: impl FnMut(&mut Vm)) {
    for turn in 0..100 {
        guest(vm);
        vm.measure();
        vm.reclaim();
        while let Some(step) = vm.account.settle(vm.most) {
            let message = match step {
                CreditMove::Request(pages) => ToHost::CreditRequest { pages },
                CreditMove::Return(pages) => ToHost::CreditReturn { pages },
            };
            let now = Duration::from_millis(1000 * second + 10 * turn);
            manager.message(vm.id, message, now).unwrap();
        }
        if turn % 10 == 9 {
            let now = Duration::from_millis(1000 * second + 10 * turn);
            manager.message(vm.id, vm.report(), now).unwrap();
            manager.tick(now);
        }
        for out in manager.take_outgoing() {
            if let Outgoing::Send(_, message) = out {
                vm.hear(message);
            }
        }
    }
    manager.audit();
}

fn limit(manager: &mut Manager, vm: &Vm, pages: u64) {
    let keys = AllocationKeys {
        limit: Some(Pages(pages).into()),
        ..AllocationKeys::default()
    };
    manager.set(vm.id, &keys).unwrap();
}

/// A limit a little below what the VM holds costs it a little, not its store's worth more.
#[test]
fn a_vm_with_a_compressed_store_is_swapped_as_far_as_asked() {
    let (mut manager, mut vm) = start(8000, 4000);
    second(&mut manager, &mut vm, 0, |_| {});
    assert_eq!(vm.taken, 0);
    limit(&mut manager, &vm, 8900);
    for n in 1..5 {
        second(&mut manager, &mut vm, n, |_| {});
    }
    let holds = vm.private + vm.store().0;
    assert!(holds <= 8900, "{holds}");
    // Down to the limit and two batches of credit, which a VM at its limit makes room for; each page
    // taken frees three quarters of a page while it is compressed.
    assert!(holds >= 8900 - 192, "{holds}");
    assert!(vm.taken < 400, "{} pages taken for 100", vm.taken);
}

/// A limit that the store alone exceeds is met, and the guest keeps pages to work on.
#[test]
fn a_limit_below_the_store_is_met_and_leaves_pages_to_work_on() {
    let (mut manager, mut vm) = start(500, 6000);
    limit(&mut manager, &vm, 400);
    for n in 0..5 {
        second(&mut manager, &mut vm, n, |_| {});
    }
    let holds = vm.private + vm.store().0;
    assert!(holds <= 400, "{holds}");
    let before = vm.taken;
    second(&mut manager, &mut vm, 5, |vm| {
        // It works on a hundred pages: whichever are out come back.
        let back = 100_u64.saturating_sub(vm.private).min(vm.swapped);
        vm.private += back;
        vm.swapped -= back;
    });
    assert_eq!(vm.taken, before, "pages taken again and again");
}
