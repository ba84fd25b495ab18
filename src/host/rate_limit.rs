//! Keeps what a hostile peer can make us log within bounds.

use std::time::Duration;

/// Lines in one second, at most.
const LINES_PER_SECOND: u32 = 5;

/// Lets a few lines a second through and counts the others.
#[derive(Debug, Default)]
pub struct RateLimit {
    second: u64,
    lines: u32,
    suppressed: u64,
}

/// Whether a line may be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Yes; so many were not, before it.
    Yes {
        /// Lines suppressed since the last one.
        suppressed: u64,
    },
    /// No.
    No,
}

impl RateLimit {
    /// Asks for one line at `now`.
    pub fn ask(&mut self, now: Duration) -> Allowed {
        if now.as_secs() != self.second {
            self.second = now.as_secs();
            self.lines = 0;
        }
        if self.lines == LINES_PER_SECOND {
            self.suppressed += 1;
            return Allowed::No;
        }
        self.lines += 1;
        Allowed::Yes {
            suppressed: std::mem::take(&mut self.suppressed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_instead_of_logged() {
        let mut limit = RateLimit::default();
        let allowed = (0..100)
            .filter(|_| limit.ask(Duration::ZERO) != Allowed::No)
            .count();
        assert_eq!(allowed, 5);
        assert_eq!(
            limit.ask(Duration::from_secs(1)),
            Allowed::Yes { suppressed: 95 }
        );
    }
}
