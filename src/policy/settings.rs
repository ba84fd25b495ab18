//! What the user can set about a policy, and its defaults.

use super::safeguard::Safeguards;

/// Default of [`IdleTax`], percent (ESX `Mem.IdleTax`).
const IDLE_TAX_PERCENT: u8 = 75;
/// A tax of 100 % would make an idle page cost infinitely many active ones.
const IDLE_TAX_PERCENT_MAX: u8 = 99;

/// The idle-memory tax: the part of a VM's idle memory that may be taken from it for others.
///
/// An idle page costs `k = 1 / (1 - tax)` active ones; here as two whole numbers with that ratio.
/// Source: Waldspurger, section 5.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdleTax(u8);

impl IdleTax {
    /// Shares alone decide.
    pub const NONE: IdleTax = IdleTax(0);
    /// The largest tax, percent.
    pub const PERCENT_MAX: u8 = IDLE_TAX_PERCENT_MAX;

    /// A tax of so many percent; `None` above [`IdleTax::PERCENT_MAX`].
    pub fn new(percent: u8) -> Option<IdleTax> {
        (percent <= IDLE_TAX_PERCENT_MAX).then_some(IdleTax(percent))
    }

    /// In percent.
    pub fn percent(self) -> u8 {
        self.0
    }

    /// Price of an active page.
    pub(super) fn active_cost(self) -> u64 {
        100 - u64::from(self.0)
    }

    /// Price of an idle page.
    pub(super) fn idle_cost(self) -> u64 {
        100
    }
}

impl Default for IdleTax {
    fn default() -> IdleTax {
        IdleTax(IDLE_TAX_PERCENT)
    }
}

/// How the free-memory thresholds follow from the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MinFree {
    /// 6/4/2/1 % of the budget (ESX to version 4).
    #[default]
    Percent,
    /// The sliding scale of `Mem.MinFreePct` (ESXi 5): large hosts need not keep 6 % free.
    Sliding,
}

impl MinFree {
    /// Every scale.
    pub const ALL: &[MinFree] = &[MinFree::Percent, MinFree::Sliding];

    /// The name in fleet files.
    pub fn name(self) -> &'static str {
        match self {
            MinFree::Percent => "percent",
            MinFree::Sliding => "sliding",
        }
    }

    /// The scale of that name.
    pub fn named(name: &str) -> Option<MinFree> {
        MinFree::ALL
            .iter()
            .copied()
            .find(|scale| scale.name() == name)
    }
}

/// Everything that can be set about a policy beside its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PolicySettings {
    /// The idle-memory tax; `esx` reads it.
    pub idle_tax: IdleTax,
    /// The scale of the thresholds; every policy keeps them.
    pub min_free: MinFree,
    /// All on, except in a scenario of the simulator that shows what one of them is for.
    pub safeguards: Safeguards,
}
