//! Time from the processor's time-stamp counter.

use core::arch::x86_64::{__cpuid, _rdtsc};

use tidemark_guest_model::cmdline::{OptionError, Options};

/// Frequency taken where nothing better is known. Only the pace of polling and of reports depends
/// on it.
const DEFAULT_KHZ: u64 = 2_500_000;
const PLAUSIBLE_KHZ: core::ops::RangeInclusive<u64> = 500_000..=10_000_000;

/// Ticks and what they are in time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    ticks_per_ms: u64,
}

/// The present, in ticks.
#[must_use]
pub fn now() -> u64 {
    // SAFETY: every x86-64 processor has the counter, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

impl Clock {
    /// Takes the frequency from the option `tsc_khz`, the processor's description, or guesses.
    pub fn new<'a>(options: &Options<'a>) -> Result<Self, OptionError<'a>> {
        let given = options.number("tsc_khz", 0, *PLAUSIBLE_KHZ.end())?;
        let khz = [
            Some(given),
            from_crystal(),
            from_base_frequency(),
            from_hypervisor(),
        ]
        .into_iter()
        .flatten()
        .find(|khz| PLAUSIBLE_KHZ.contains(khz))
        .unwrap_or(DEFAULT_KHZ);
        Ok(Self { ticks_per_ms: khz })
    }

    /// That many ticks in nanoseconds.
    #[must_use]
    pub fn ns(self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000 / u128::from(self.ticks_per_ms)) as u64
    }

    /// That many milliseconds in ticks.
    #[must_use]
    pub const fn ms(self, milliseconds: u64) -> u64 {
        self.ticks_per_ms.saturating_mul(milliseconds)
    }
}

/// Leaf 0x15: crystal frequency times ratio.
fn from_crystal() -> Option<u64> {
    let leaf = leaf(0, 0x15)?;
    let hertz = u64::from(leaf.ecx) * u64::from(leaf.ebx);
    hertz.checked_div(u64::from(leaf.eax) * 1000)
}

/// Leaf 0x16: base frequency in MHz.
fn from_base_frequency() -> Option<u64> {
    Some(u64::from(leaf(0, 0x16)?.eax & 0xffff) * 1000)
}

/// Leaf 0x40000010: frequency in kHz, a convention of hypervisors.
fn from_hypervisor() -> Option<u64> {
    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    (__cpuid(1).ecx & HYPERVISOR_PRESENT != 0).then_some(())?;
    Some(u64::from(leaf(0x4000_0000, 0x4000_0010)?.eax))
}

fn leaf(base: u32, leaf: u32) -> Option<core::arch::x86_64::CpuidResult> {
    (__cpuid(base).eax >= leaf).then(|| __cpuid(leaf))
}
