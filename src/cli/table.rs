//! Figures as tables. Columns are MiB with one decimal place, and what is shown adds up.

use crate::host::accounts::{Figures, HostFigures, VmFigures};
use crate::words::ExitReason;

/// A column of bytes: its heading and its figure of a VM.
type Column = (&'static str, fn(&VmFigures) -> u64);

const LIVE: &[Column] = &[
    ("TARGET", |vm| vm.memory.target_bytes),
    ("CONSUMED", |vm| vm.memory.consumed_bytes),
    ("SHARED", |vm| vm.memory.shared_bytes),
    ("BALLOONED", |vm| vm.memory.gauges.ballooned.bytes()),
    ("SWAPPED", |vm| vm.memory.gauges.taken_out().bytes()),
];

const CLOSING: &[Column] = &[
    ("MEMORY", |vm| vm.memory_bytes),
    ("TARGET", |vm| vm.memory.target_bytes),
    ("CONSUMED", |vm| vm.memory.consumed_bytes),
    ("PRIVATE", |vm| vm.memory.private_bytes),
    ("SHARED", |vm| vm.memory.shared_bytes),
    ("SAVED", |vm| vm.memory.saved_bytes),
    ("ZERO", |vm| vm.memory.gauges.zero.bytes()),
    ("BALLOONED", |vm| vm.memory.gauges.ballooned.bytes()),
    ("COMPRESSED", |vm| vm.memory.gauges.compressed.bytes()),
    ("SWAPPED", |vm| vm.memory.gauges.swapped.bytes()),
];

/// Longest name of a state, as in "swap full".
const STATE_WIDTH: usize = 9;

/// Rounds `parts` to tenths of a MiB so that they add up to their rounded sum.
pub fn tenths(parts: &[u64]) -> Vec<u64> {
    const TENTH_BYTES: f64 = (1 << 20) as f64 / 10.0;
    let mut shown = Vec::with_capacity(parts.len());
    let (mut exact, mut rounded) = (0_u64, 0_u64);
    for part in parts {
        exact += part;
        // Rounding the running sum carries each part's error into the next.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a sum of memory sizes: far below 2^53 tenths of a MiB, never negative"
        )]
        let sum = (exact as f64 / TENTH_BYTES).round() as u64;
        shown.push(sum - rounded);
        rounded = sum;
    }
    shown
}

fn mib(tenths: u64) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn one(bytes: u64) -> String {
    mib(tenths(&[bytes])[0])
}

/// A size for people.
pub fn mib_of(bytes: u64) -> String {
    format!("{} MiB", one(bytes))
}

/// How a VM ended, in a word or two.
pub fn exit_word(vm: &VmFigures) -> String {
    match &vm.exit {
        None => vm.state.name().to_owned(),
        Some(exit) => match exit.reason {
            ExitReason::GuestExit => format!("exit {}", exit.code),
            ExitReason::Shutdown => "shutdown".to_owned(),
            ExitReason::Reset => "reset".to_owned(),
            ExitReason::Stopped => "stopped".to_owned(),
            ExitReason::Killed => "killed".to_owned(),
            ExitReason::Error => "error".to_owned(),
        },
    }
}

fn guest(vm: &VmFigures) -> [String; 2] {
    let dash = || "-".to_owned();
    match vm.guest {
        Some(guest) => [
            guest.pages_verified.to_string(),
            guest.pages_corrupt.to_string(),
        ],
        None => [dash(), dash()],
    }
}

/// The rows of the VMs under their headings, then their sum.
fn rows(figures: &Figures, columns: &[Column]) -> Vec<Vec<String>> {
    let heading = ["NAME", "STATE"].into_iter();
    let heading = heading.chain(columns.iter().map(|(name, _)| *name));
    let heading = heading.chain(["VERIFIED", "CORRUPT"]).map(str::to_owned);
    let cells: Vec<Vec<u64>> = columns
        .iter()
        .map(|(_, figure)| tenths(&figures.vms.iter().map(figure).collect::<Vec<_>>()))
        .collect();
    let mut rows = vec![heading.collect::<Vec<_>>()];
    for (n, vm) in figures.vms.iter().enumerate() {
        let mut row = vec![vm.name.clone(), exit_word(vm)];
        row.extend(cells.iter().map(|column| mib(column[n])));
        row.extend(guest(vm));
        rows.push(row);
    }
    let mut sum = vec!["sum, MiB".to_owned(), String::new()];
    sum.extend(cells.iter().map(|column| mib(column.iter().sum())));
    let guests = || figures.vms.iter().filter_map(|vm| vm.guest);
    sum.push(
        guests()
            .map(|guest| guest.pages_verified)
            .sum::<u64>()
            .to_string(),
    );
    sum.push(
        guests()
            .map(|guest| guest.pages_corrupt)
            .sum::<u64>()
            .to_string(),
    );
    rows.push(sum);
    rows
}

/// Texts to the left, figures to the right.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|n| rows.iter().map(|row| row[n].len()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(n, (cell, &width))| match n {
            // No word that comes next moves the columns of the live table.
            1 => format!("{cell:<0$}", width.max(STATE_WIDTH)),
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// One line on the host.
pub fn host_line(host: &HostFigures) -> String {
    let leased = match host.leased_bytes {
        0 => String::new(),
        bytes => format!(", {} leased", one(bytes)),
    };
    format!(
        "host: {}, {} of {} MiB consumed, {} free{leased}, {} frames shared by {} pages",
        host.state.name(),
        one(host.consumed_bytes),
        one(host.memory_bytes),
        one(host.free_bytes),
        host.frames_shared,
        host.pages_sharing
    )
}

/// The live table: a line for each VM, then one on the host.
pub fn lines(figures: &Figures) -> Vec<String> {
    let mut rows = rows(figures, LIVE);
    rows.pop();
    let mut lines = aligned(&rows);
    lines.push(host_line(&figures.host));
    lines
}

/// The closing table, with its sum and the identity that it obeys.
pub fn closing(figures: &Figures) -> Vec<String> {
    let host = &figures.host;
    let mut lines = aligned(&rows(figures, CLOSING));
    let mut parts: Vec<u64> = figures
        .vms
        .iter()
        .map(|vm| vm.memory.consumed_bytes)
        .collect();
    parts.push(host.overhead_bytes);
    let shown = tenths(&parts);
    let overhead = shown.last().copied().unwrap_or(0);
    let total: u64 = shown.iter().sum();
    lines.push(format!(
        "consumed: sum {} + overhead {} = host {} MiB (peak {}, budget {})",
        mib(total - overhead),
        mib(overhead),
        mib(total),
        one(host.consumed_bytes_peak),
        one(host.memory_bytes)
    ));
    let seconds = &host.state_seconds;
    lines.push(format!(
        "states: high {:.1} s, soft {:.1} s, hard {:.1} s, low {:.1} s; {} frames shared by {} pages",
        seconds.high, seconds.soft, seconds.hard, seconds.low, host.frames_shared, host.pages_sharing
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_shown_adds_up(parts in prop::collection::vec(0..1_u64 << 40, 0..50)) {
            let shown = tenths(&parts);
            let total: u64 = parts.iter().sum();
            prop_assert_eq!(shown.iter().sum::<u64>(), tenths(&[total])[0]);
            for (shown, exact) in shown.iter().zip(&parts) {
                prop_assert!((*shown * (1 << 20)).abs_diff(*exact * 10) <= 1 << 20);
            }
        }
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let lines = aligned(&[row(["NAME", "STATE", "X"]), row(["a", "running", "10.0"])]);
        assert_eq!(lines, ["NAME  STATE         X", "a     running    10.0"]);
    }
}
