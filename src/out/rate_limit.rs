//! Keeps what a guest or a hostile peer can make a process log within bounds.

use std::time::{Duration, Instant};

/// Lets a few lines in each period through and counts the others.
#[derive(Debug)]
pub struct RateLimit {
    lines: u32,
    period: Duration,
    /// When the present period began, with its first line.
    since: Option<Instant>,
    passed: u32,
    suppressed: u64,
}

impl RateLimit {
    /// At most `lines` in `period`.
    pub fn new(lines: u32, period: Duration) -> RateLimit {
        RateLimit {
            lines,
            period,
            since: None,
            passed: 0,
            suppressed: 0,
        }
    }

    /// `Some(n)` when a line may be logged now; `n` were suppressed since the last one.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now >= since + self.period) {
            self.since = Some(now);
            self.passed = 0;
        }
        if self.passed == self.lines {
            self.suppressed += 1;
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_instead_of_logged() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut limit = RateLimit::new(5, second);
        let passed = (0..100).filter_map(|_| limit.allow(start)).count();
        assert_eq!(passed, 5);
        assert_eq!(limit.allow(start + second / 2), None);
        assert_eq!(limit.allow(start + second), Some(96));
    }

    #[test]
    fn a_lone_line_keeps_its_distance() {
        let interval = Duration::from_secs(5);
        let start = Instant::now();
        let mut limit = RateLimit::new(1, interval);
        assert_eq!(limit.allow(start), Some(0));
        assert_eq!(limit.allow(start + interval / 2), None);
        assert_eq!(limit.allow(start + interval), Some(1));
    }
}
