//! The ledger: who holds how much of the budget. Plain data, no I/O.
//!
//! ```text
//! budget = charges of the VMs + frames in use + overheads + free
//! ```
//!
//! A VM process is charged the overhead that it was admitted with until it is measured to need more:
//! a process that has just started needs little, and what it will need is nobody else's.
//!
//! What the host manager itself keeps for a VM is that VM's overhead, not the host manager's: hints and
//! references, which it makes as many of as it likes within its size, and messages that it does not read.
//!
//! A VM's charge is its credit, the private pages it may hold; should it report that it holds more
//! (it breaks the protocol, or joined again after the host manager was restarted), it is charged
//! what it holds. What its process has beyond both, by the kernel's word, is overhead too. Credit and
//! frames are only handed out of free memory, so that they never exceed the budget; measured overheads
//! are facts and can push `free` to zero and the ledger into deficit, which the policy then works off.

use std::collections::BTreeMap;

use crate::policy::types::VmId;
use crate::units::Pages;
use crate::words::Holding;

/// A VM gave back more credit than it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("returned {} pages of credit and has {}", returned.0, credit.0)]
pub struct Overdrawn {
    /// Pages it wanted to return.
    pub returned: Pages,
    /// Pages it has.
    pub credit: Pages,
}

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    credit: Pages,
    /// What the VM has, by its last report and what it has returned since.
    holding: Holding,
    /// As it reports.
    overhead_told: Pages,
    /// What the kernel says that its process has altogether, less what it has returned since; zero while
    /// nobody has asked.
    measured: Pages,
    /// Of the host manager's memory, what is kept for it.
    kept: Pages,
    /// Estimated when it was admitted.
    overhead_expected: Pages,
}

impl Account {
    fn charge(&self) -> Pages {
        self.credit.max(self.holding.total())
    }

    /// What it says, and at least what its process has beyond the charge and what it was expected to
    /// need: a guest writes some pages before its VM process hears of it, and one look at that would count
    /// until the next.
    fn overhead(&self) -> Pages {
        let covered = self.charge() + self.overhead_expected;
        let beyond = self.measured.saturating_sub(covered);
        self.overhead_told.max(beyond) + self.kept
    }

    fn overhead_to_come(&self) -> Pages {
        self.overhead_expected.saturating_sub(self.overhead())
    }
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Ledger {
    budget: Pages,
    frames: Pages,
    host_overhead: Pages,
    /// What the host manager is expected to need beyond that.
    host_overhead_to_come: Pages,
    vms: BTreeMap<VmId, Account>,
    /// Sums over `vms`, kept up to date because they are asked for at every message.
    charged: Pages,
    held: Pages,
    vm_overhead: Pages,
    overhead_to_come: Pages,
}

impl Ledger {
    /// An empty ledger over `budget`.
    pub fn new(budget: Pages) -> Ledger {
        Ledger {
            budget,
            frames: Pages::ZERO,
            host_overhead: Pages::ZERO,
            host_overhead_to_come: Pages::ZERO,
            vms: BTreeMap::new(),
            charged: Pages::ZERO,
            held: Pages::ZERO,
            vm_overhead: Pages::ZERO,
            overhead_to_come: Pages::ZERO,
        }
    }

    /// Memory that may be handed out altogether.
    pub fn budget(&self) -> Pages {
        self.budget
    }

    /// Changes the budget; with less than is in use the ledger is in deficit until reclaimed.
    pub fn set_budget(&mut self, budget: Pages) {
        self.budget = budget;
    }

    /// Memory that nobody holds; zero when in deficit.
    pub fn free(&self) -> Pages {
        self.budget.saturating_sub(self.in_use())
    }

    /// Charges, frames and overheads together, those to come included.
    pub fn in_use(&self) -> Pages {
        self.charged + self.frames + self.overhead() + self.overhead_to_come()
    }

    /// Overhead that the processes are expected to need beyond what is measured.
    pub fn overhead_to_come(&self) -> Pages {
        self.host_overhead_to_come + self.overhead_to_come
    }

    /// Overhead of the host manager and all VM processes.
    pub fn overhead(&self) -> Pages {
        self.host_overhead + self.vm_overhead
    }

    /// Frames in use.
    pub fn frames(&self) -> Pages {
        self.frames
    }

    /// What all VMs hold out of their credit.
    pub fn held(&self) -> Pages {
        self.held
    }

    /// What a VM holds out of its credit.
    pub fn holding(&self, vm: VmId) -> Holding {
        self.vms
            .get(&vm)
            .map_or(Holding::default(), |account| account.holding)
    }

    /// What a VM is charged: its credit or what it holds, whichever is more.
    pub fn charge(&self, vm: VmId) -> Pages {
        self.vms.get(&vm).map_or(Pages::ZERO, Account::charge)
    }

    /// Private pages that a VM may hold.
    pub fn credit(&self, vm: VmId) -> Pages {
        self.vms
            .get(&vm)
            .map_or(Pages::ZERO, |account| account.credit)
    }

    /// Overhead a VM is charged.
    pub fn vm_overhead(&self, vm: VmId) -> Pages {
        self.vms.get(&vm).map_or(Pages::ZERO, Account::overhead)
    }

    /// Opens an account for a VM that holds `private` pages already (none for a new VM).
    ///
    /// # Panics
    /// When the VM has one.
    pub fn open(&mut self, vm: VmId, private: Pages, overhead: Pages) {
        let account = Account {
            credit: private,
            holding: Holding::private(private),
            overhead_told: overhead,
            measured: Pages::ZERO,
            kept: Pages::ZERO,
            overhead_expected: overhead,
        };
        let before = self.vms.insert(vm, account);
        assert!(before.is_none(), "{vm:?} has an account");
        self.count_in(&account);
    }

    /// A VM has joined again: it holds `private` pages, and that is its credit; what it was granted
    /// before may never have reached it.
    ///
    /// # Panics
    /// When the VM has no account.
    pub fn restart(&mut self, vm: VmId, private: Pages) {
        self.change(vm, |account| {
            account.credit = private;
            account.holding = Holding::private(private);
            account.measured = Pages::ZERO;
        });
    }

    /// Closes a VM's account: all it held is free again.
    pub fn close(&mut self, vm: VmId) {
        if let Some(account) = self.vms.remove(&vm) {
            self.count_out(&account);
        }
    }

    /// Hands out credit.
    ///
    /// # Panics
    /// When `pages` exceeds what is free, or the VM has no account.
    pub fn grant(&mut self, vm: VmId, pages: Pages) {
        assert!(
            pages <= self.free(),
            "{} of {} free",
            pages.0,
            self.free().0
        );
        self.change(vm, |account| account.credit += pages);
    }

    /// Takes credit back.
    ///
    /// # Errors
    /// When the VM has less; nothing is changed.
    pub fn give_back(&mut self, vm: VmId, pages: Pages) -> Result<(), Overdrawn> {
        let credit = self
            .vms
            .get(&vm)
            .map_or(Pages::ZERO, |account| account.credit);
        if pages > credit {
            return Err(Overdrawn {
                returned: pages,
                credit,
            });
        }
        self.change(vm, |account| {
            account.credit -= pages;
            // What it gave up others may have in a moment, and its last report may say otherwise:
            // both would count. It uses no more than the credit that it keeps.
            account.holding = account.holding.at_most(account.credit);
            account.measured = account.measured.saturating_sub(pages);
        });
        Ok(())
    }

    /// Notes what a VM reports to hold out of its credit, and as the overhead of its process.
    pub fn report(&mut self, vm: VmId, holding: Holding, overhead: Pages) {
        self.change(vm, |account| {
            account.holding = holding;
            account.overhead_told = overhead;
        });
    }

    /// Notes what the kernel says that a VM's process has, all of it.
    pub fn measured(&mut self, vm: VmId, memory: Pages) {
        self.change(vm, |account| account.measured = memory);
    }

    /// Notes what of the host manager's memory is kept for a VM. The rest is to be noted too.
    pub fn set_kept(&mut self, vm: VmId, kept: Pages) {
        self.change(vm, |account| account.kept = kept);
    }

    /// What of the host manager's memory is kept for a VM.
    pub fn kept(&self, vm: VmId) -> Pages {
        self.vms
            .get(&vm)
            .map_or(Pages::ZERO, |account| account.kept)
    }

    /// Notes the measured overhead of the host manager without what it keeps for VMs, and what it may
    /// need yet.
    pub fn set_host_overhead(&mut self, overhead: Pages, to_come: Pages) {
        self.host_overhead = overhead;
        self.host_overhead_to_come = to_come;
    }

    /// Counts frames that were taken into use.
    ///
    /// # Panics
    /// When they exceed what is free.
    pub fn add_frames(&mut self, frames: Pages) {
        assert!(
            frames <= self.free(),
            "{} of {} free",
            frames.0,
            self.free().0
        );
        self.frames += frames;
    }

    /// Counts frames that came with a pool of an earlier host manager: a fact, like an overhead, that
    /// can push the ledger into deficit.
    pub fn adopt_frames(&mut self, frames: Pages) {
        self.frames += frames;
    }

    /// Counts frames that went back to the host.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn drop_frames(&mut self, frames: Pages) {
        assert!(frames <= self.frames, "{} of {}", frames.0, self.frames.0);
        self.frames -= frames;
    }

    fn change(&mut self, vm: VmId, change: impl FnOnce(&mut Account)) {
        let account = self
            .vms
            .get_mut(&vm)
            .expect("every admitted VM has an account");
        let before = *account;
        change(account);
        let after = *account;
        self.count_out(&before);
        self.count_in(&after);
    }

    fn count_in(&mut self, account: &Account) {
        self.charged += account.charge();
        self.held += account.holding.total();
        self.vm_overhead += account.overhead();
        self.overhead_to_come += account.overhead_to_come();
    }

    fn count_out(&mut self, account: &Account) {
        self.charged -= account.charge();
        self.held -= account.holding.total();
        self.vm_overhead -= account.overhead();
        self.overhead_to_come -= account.overhead_to_come();
    }

    /// Checks the sums against the accounts.
    ///
    /// # Panics
    /// When they differ: a bug.
    pub fn audit(&self) {
        let charged = self.vms.values().map(Account::charge).sum::<Pages>();
        assert_eq!(self.charged, charged, "sum of the charges");
        let held = self.vms.values().map(|account| account.holding.total());
        assert_eq!(self.held, held.sum(), "sum of what the VMs hold");
        let overhead = self.vms.values().map(Account::overhead).sum::<Pages>();
        assert_eq!(self.vm_overhead, overhead, "sum of the overheads");
        let to_come = self.vms.values().map(Account::overhead_to_come);
        assert_eq!(self.overhead_to_come, to_come.sum(), "overheads to come");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Debug, Clone)]
    enum Step {
        Open(u32),
        Close(u32),
        Grant(u32, u64),
        GiveBack(u32, u64),
        Restart(u32, u64),
        AddFrames(u64),
        AdoptFrames(u64),
        DropFrames(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let vm = 0..6_u32;
        let pages = 0..400_u64;
        prop_oneof![
            vm.clone().prop_map(Step::Open),
            vm.clone().prop_map(Step::Close),
            (vm.clone(), pages.clone()).prop_map(|(vm, n)| Step::Grant(vm, n)),
            (vm.clone(), pages.clone()).prop_map(|(vm, n)| Step::GiveBack(vm, n)),
            (vm, pages.clone()).prop_map(|(vm, n)| Step::Restart(vm, n)),
            pages.clone().prop_map(Step::AddFrames),
            pages.clone().prop_map(Step::AdoptFrames),
            pages.prop_map(Step::DropFrames),
        ]
    }

    proptest! {
        /// Against a plain map: what is handed out never exceeds what is free, and a death returns all.
        /// What VMs bring with them may exceed the budget: nothing is free then.
        #[test]
        fn the_accounts_balance(steps in prop::collection::vec(step(), 0..200)) {
            let budget = Pages(1000);
            let mut ledger = Ledger::new(budget);
            let mut credit: HashMap<u32, u64> = HashMap::new();
            let mut frames = 0;
            for step in steps {
                let free = ledger.free().0;
                match step {
                    Step::Open(vm) if !credit.contains_key(&vm) => {
                        ledger.open(VmId(vm), Pages::ZERO, Pages::ZERO);
                        credit.insert(vm, 0);
                    }
                    Step::Close(vm) => {
                        ledger.close(VmId(vm));
                        credit.remove(&vm);
                    }
                    Step::Restart(vm, n) => {
                        if let Some(credit) = credit.get_mut(&vm) {
                            ledger.restart(VmId(vm), Pages(n));
                            *credit = n;
                        }
                    }
                    Step::Grant(vm, n) => {
                        if let Some(credit) = credit.get_mut(&vm) {
                            let n = n.min(free);
                            ledger.grant(VmId(vm), Pages(n));
                            *credit += n;
                        }
                    }
                    Step::GiveBack(vm, n) => {
                        if let Some(credit) = credit.get_mut(&vm) {
                            let answer = ledger.give_back(VmId(vm), Pages(n));
                            prop_assert_eq!(answer.is_ok(), n <= *credit);
                            *credit -= if answer.is_ok() { n } else { 0 };
                        }
                    }
                    Step::AddFrames(n) => {
                        let n = n.min(free);
                        ledger.add_frames(Pages(n));
                        frames += n;
                    }
                    Step::AdoptFrames(n) => {
                        ledger.adopt_frames(Pages(n));
                        frames += n;
                    }
                    Step::DropFrames(n) => {
                        let n = n.min(frames);
                        ledger.drop_frames(Pages(n));
                        frames -= n;
                    }
                    Step::Open(_) => {}
                }
                ledger.audit();
                let used = credit.values().sum::<u64>() + frames;
                prop_assert_eq!(ledger.in_use().0, used);
                prop_assert_eq!(ledger.free().0, budget.0.saturating_sub(used));
            }
        }
    }

    #[test]
    fn who_holds_more_than_its_credit_is_charged_for_it() {
        let mut ledger = Ledger::new(Pages(100));
        ledger.open(VmId(1), Pages::ZERO, Pages(5));
        ledger.grant(VmId(1), Pages(20));
        ledger.report(VmId(1), Holding::private(Pages(30)), Pages(5));
        assert_eq!(ledger.free(), Pages(65));
        ledger.report(VmId(1), Holding::private(Pages(10)), Pages(5));
        assert_eq!(ledger.free(), Pages(75));
        ledger.set_host_overhead(Pages(500), Pages::ZERO);
        assert_eq!(ledger.free(), Pages(0));
        ledger.set_host_overhead(Pages(0), Pages::ZERO);
        ledger.close(VmId(1));
        assert_eq!(ledger.free(), Pages(100));
    }

    #[test]
    fn who_returns_credit_holds_no_more_than_it_keeps() {
        let mut ledger = Ledger::new(Pages(100));
        ledger.open(VmId(1), Pages::ZERO, Pages::ZERO);
        ledger.grant(VmId(1), Pages(40));
        ledger.report(VmId(1), Holding::private(Pages(30)), Pages::ZERO);
        // Unused credit: the pages are still there.
        ledger.give_back(VmId(1), Pages(5)).unwrap();
        assert_eq!(ledger.held(), Pages(30));
        ledger.give_back(VmId(1), Pages(15)).unwrap();
        assert_eq!((ledger.held(), ledger.free()), (Pages(20), Pages(80)));
        assert_eq!(ledger.holding(VmId(1)), Holding::private(Pages(20)));
        ledger.audit();
    }

    #[test]
    fn a_process_is_charged_at_least_what_it_was_measured_to_have() {
        let mut ledger = Ledger::new(Pages(1000));
        ledger.open(VmId(1), Pages::ZERO, Pages(10));
        ledger.grant(VmId(1), Pages(100));
        ledger.report(VmId(1), Holding::private(Pages(0)), Pages(10));
        ledger.measured(VmId(1), Pages(80));
        assert_eq!(ledger.free(), Pages(890));
        ledger.measured(VmId(1), Pages(400));
        assert_eq!((ledger.free(), ledger.overhead()), (Pages(610), Pages(290)));
        // What it has returned since was measured with the rest.
        ledger.give_back(VmId(1), Pages(100)).unwrap();
        assert_eq!((ledger.free(), ledger.overhead()), (Pages(710), Pages(290)));
        ledger.audit();
    }

    #[test]
    fn what_a_process_will_need_is_not_free() {
        let mut ledger = Ledger::new(Pages(1000));
        ledger.open(VmId(1), Pages::ZERO, Pages(300));
        ledger.report(VmId(1), Holding::default(), Pages(200));
        assert_eq!((ledger.overhead(), ledger.free()), (Pages(200), Pages(700)));
        ledger.report(VmId(1), Holding::default(), Pages(350));
        assert_eq!((ledger.overhead(), ledger.free()), (Pages(350), Pages(650)));
        ledger.close(VmId(1));
        assert_eq!(ledger.free(), Pages(1000));
        ledger.audit();
    }
}
