//! Why a VM has its target: kept as numbers, and made a line of text only when somebody asks. A
//! decision is made ten times a second for every VM; its lines are read now and then.

use std::fmt;

use super::ceiling::Refusal;
use super::pressure;
use crate::units::Pages;

/// The rule that set a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// `esx`: no more is allowed.
    Ceiling(Pages),
    /// `esx`: no less is allowed.
    Reservation(Pages),
    /// `esx`: its part by shares.
    Share {
        pages: Pages,
        total: Pages,
        shares: u64,
        weights: u128,
        /// Sampled working set and idle tax in percent; without a tax it is not looked at.
        taxed: Taxed,
    },
    /// `proportional`.
    Range {
        percent: u64,
        floor: Pages,
        ceiling: Pages,
    },
    /// `proportional`, where the minimums do not fit.
    DynamicMinimum,
    /// `self`.
    Committed {
        committed: Pages,
        source: &'static str,
        floor: Pages,
    },
    /// `pref`.
    Preferred { used: Pages, source: &'static str },
    /// `pressure`.
    Refaults { count: u64, source: &'static str },
}

/// What the idle tax has to do with a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taxed {
    /// There is none.
    Untaxed,
    /// Nobody knows what is active.
    NotSampled,
    /// So much is active, at so many percent.
    Active(Pages, u8),
}

/// What became of it when the host's memory was distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// Nothing.
    Whole,
    /// There was more.
    Plenty,
    /// All get less than they would like...
    Cut { total: Pages, wanted: Pages },
    /// ... or even less than their floors.
    BelowFloors { total: Pages, floors: Pages },
}

/// Why a VM has its target, and what makes up the difference. Displays as one line for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Why {
    pub(super) rule: Rule,
    pub(super) fit: Fit,
    /// What it holds above its limit.
    pub(super) over_limit: Pages,
    /// Why its balloon cannot give what is wanted.
    pub(super) cannot: Option<Refusal>,
    pub(super) swapped: bool,
}

impl Why {
    pub(super) fn new(rule: Rule) -> Why {
        Why {
            rule,
            fit: Fit::Whole,
            over_limit: Pages::ZERO,
            cannot: None,
            swapped: false,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Ceiling(pages) => write!(f, "all it may have: {pages}"),
            Rule::Reservation(pages) => write!(f, "its reservation: {pages}"),
            Rule::Share {
                pages,
                total,
                shares,
                weights,
                taxed,
            } => {
                write!(
                    f,
                    "fair share {pages} of {total} ({shares} of {weights} shares"
                )?;
                match taxed {
                    Taxed::Untaxed => write!(f, ")"),
                    Taxed::NotSampled => write!(f, ", not sampled: all counts as active)"),
                    Taxed::Active(active, tax) => {
                        write!(f, ", {active} active, idle tax {tax} %)")
                    }
                }
            }
            Rule::Range {
                percent,
                floor,
                ceiling,
            } => write!(f, "{percent} % of its dynamic range {floor} to {ceiling}"),
            Rule::DynamicMinimum => write!(f, "its dynamic minimum"),
            Rule::Committed {
                committed,
                source,
                floor,
            } => write!(f, "towards {committed} committed ({source}), floor {floor}"),
            Rule::Preferred { used, source } => {
                write!(f, "prefers 1.3 x {used} used ({source})")
            }
            Rule::Refaults { count, source } => write!(
                f,
                "{count} of {} refaults in 6 s ({source})",
                pressure::REFAULTS_MAX
            ),
        }
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fit::Whole => Ok(()),
            Fit::Plenty => write!(f, "; and its part of what is left"),
            Fit::Cut { total, wanted } => {
                write!(f, "; cut to {total} for all, who would like {wanted}")
            }
            Fit::BelowFloors { total, floors } => write!(
                f,
                "; cut below the floors: {total} for all, whose floors are {floors}"
            ),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.rule, self.fit)?;
        if self.over_limit > Pages::ZERO {
            write!(f, "; {} above its limit", self.over_limit)?;
        }
        if let Some(reason) = self.cannot {
            write!(f, "; {reason}")?;
            if self.swapped {
                write!(f, ": swapped instead")?;
            }
        }
        Ok(())
    }
}
