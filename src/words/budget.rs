//! The memory that a host may have for its VMs.

use std::ops::RangeInclusive;

use crate::units::Pages;

/// From 16 MiB to 64 TiB. Chosen: less starts nothing, and more than any machine has.
pub const BUDGETS: RangeInclusive<Pages> = Pages::mib(16)..=Pages::mib(64 << 20);
/// The same as users write it.
pub const BUDGET_FORMS: &str = "16M to 64T";
