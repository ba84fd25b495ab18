//! What the guest `meter` prints on its console, read while it runs.

/// A phase that went over each page once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pages {
    /// Position of the phase in the list.
    pub phase: u64,
    /// How many pages there were.
    pub pages: u64,
    /// Time for all of them.
    pub ns: u64,
    /// Of one page: what half of them took at most.
    pub p50: u64,
    /// What 99 of 100 took at most.
    pub p99: u64,
    /// What the worst took.
    pub worst: u64,
}

/// Random operations, counted over a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Whole seconds since the phase began.
    pub window: u64,
    /// Operations.
    pub ops: u64,
    /// In this time.
    pub ns: u64,
}

/// All that a console says so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Phases that have begun: how many, the first one's number being 0.
    pub begun: u64,
    /// Phases over all pages that have ended.
    pub pages: Vec<Pages>,
    /// Windows of operations.
    pub windows: Vec<Window>,
    /// Whether everything is done.
    pub ended: bool,
}

impl Said {
    /// Reads a console; a line that is not complete yet is left out, as is what others print.
    pub fn read(console: &str) -> Said {
        let mut said = Said::default();
        let complete = console.rfind('\n').map_or("", |end| &console[..end]);
        for line in complete.lines() {
            let Some(rest) = line.strip_prefix("meter: ") else {
                continue;
            };
            let key = |name: &str| {
                let mut words = rest.split(' ');
                words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            };
            let number = |name| key(name)?.parse::<u64>().ok();
            if rest == "end" {
                said.ended = true;
            } else if key("begin").is_some() {
                said.begun = number("phase").map_or(said.begun, |phase| phase + 1);
            } else if let (Some(phase), Some(pages)) = (number("phase"), number("pages")) {
                said.pages.push(Pages {
                    phase,
                    pages,
                    ns: number("ns").unwrap_or(0),
                    p50: number("p50").unwrap_or(0),
                    p99: number("p99").unwrap_or(0),
                    worst: number("worst").unwrap_or(0),
                });
            } else if let (Some(ops), Some(ns)) = (number("ops"), number("ns")) {
                let window = number("window").unwrap_or(0);
                said.windows.push(Window { window, ops, ns });
            }
        }
        said
    }

    /// The phase at this position of the list, if it is over.
    pub fn phase(&self, number: u64) -> Option<Pages> {
        self.pages
            .iter()
            .find(|pages| pages.phase == number)
            .copied()
    }

    /// Thousand operations a second in the seconds `from` to `to`, the last one not included.
    pub fn kilo_ops(&self, from: u64, to: u64) -> Option<f64> {
        let mut counted = (0_u64, 0_u64);
        for window in &self.windows {
            if (from..to).contains(&window.window) {
                counted = (counted.0 + window.ops, counted.1 + window.ns);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let rate = counted.0 as f64 * 1e6 / counted.1 as f64;
        (counted.1 > 0).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_read_to_its_last_whole_line() {
        let console = "meter: set=16 khz=2500000\n\
            meter: phase=0 begin=fill\n\
            meter: phase=0 fill pages=16 ns=8000 p50=400 p99=900 worst=1000\n\
            corrupt: index=3\n\
            meter: phase=1 begin=ops\n\
            meter: phase=1 ops=1000 window=0 ns=1000000000\n\
            meter: phase=1 ops=3000 window=1 ns=1000000000\n\
            meter: phase=1 ops=30";
        let said = Said::read(console);
        let fill = said.phase(0).unwrap();
        assert_eq!((fill.pages, fill.ns, fill.worst), (16, 8000, 1000));
        assert_eq!((said.begun, said.windows.len(), said.ended), (2, 2, false));
        assert_eq!(said.kilo_ops(0, 2), Some(2.0));
        assert_eq!(said.kilo_ops(1, 9), Some(3.0));
        assert_eq!(said.kilo_ops(2, 9), None);
        assert!(Said::read("meter: end\n").ended);
        assert!(!Said::read("meter: end").ended);
    }
}
