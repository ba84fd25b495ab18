//! Keeps a guest from filling the host's log.

use std::time::{Duration, Instant};

/// Shortest time between two messages of one source.
const INTERVAL: Duration = Duration::from_secs(5);

/// Lets one message in five seconds through and counts the others.
#[derive(Debug, Default)]
pub struct RateLimit {
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// `Some(n)` when a message may be logged now; `n` were suppressed since the last one.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_an_interval_and_the_rest_counted() {
        let start = Instant::now();
        let mut limit = RateLimit::default();
        assert_eq!(limit.allow(start), Some(0));
        assert_eq!(limit.allow(start + INTERVAL / 2), None);
        assert_eq!(limit.allow(start + INTERVAL), Some(1));
    }
}
