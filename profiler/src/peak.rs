//! When to look: the moments at which the tree is frozen and scanned (tier C).
//!
//! RSS is polled, which costs the target nothing. A scan stops it, so one is made only when RSS has
//! passed that of the best scan so far: by a step while it grows, and again when it has come to rest.
//! What is missed in between is known: it is the distance to the kernel's own high-water mark.

use std::time::Duration;

/// Growth over the best scan that calls for a new one while RSS is still growing: 1 %.
const GROWTH: f64 = 1.01;
/// RSS that has not grown for so long is on a plateau.
const PLATEAU: Duration = Duration::from_millis(100);
/// The target may stand still for one part in so many of its time,
const BUDGET: u32 = 20;
/// and for one part in so many while RSS is far above the best scan,
const URGENT_BUDGET: u32 = 5;
/// which is 5 % and more.
const URGENT_GROWTH: f64 = 1.05;

/// Why the tree is scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// RSS is above the best scan by a step.
    Growth,
    /// RSS has come to rest above the best scan.
    AtRest,
}

/// Decides when the tree is scanned. Times are given as durations since the exec.
#[derive(Debug, Default)]
pub struct ScanPolicy {
    /// The ledger watches growth: scan on plateaus only.
    plateaus_only: bool,
    /// RSS of the best scan, in bytes, by the scan's own count.
    best_bytes: u64,
    /// Polled RSS at the best scan: its count may differ a little from the exact one.
    best_polled_bytes: u64,
    /// Highest polled RSS, and when it was reached.
    highest: (u64, Duration),
    /// When the last scan ended, and for how long it stopped the target.
    last: (Duration, Duration),
}

impl ScanPolicy {
    /// For runs with a page ledger: a scan is its referee, and the tree is stopped only where it has
    /// come to rest.
    pub fn plateaus_only() -> ScanPolicy {
        ScanPolicy {
            plateaus_only: true,
            ..ScanPolicy::default()
        }
    }

    /// Takes a polled RSS in bytes and says whether to scan now, and why.
    pub fn polled(&mut self, now: Duration, rss_bytes: u64) -> Option<Why> {
        if rss_bytes > self.highest.0 {
            self.highest = (rss_bytes, now);
        }
        let grown_by = |factor: f64| rss_bytes as f64 >= self.best_polled_bytes as f64 * factor;
        let budget = if grown_by(URGENT_GROWTH) {
            URGENT_BUDGET
        } else {
            BUDGET
        };
        let (ended, cost) = self.last;
        if rss_bytes <= self.best_polled_bytes || now < ended + cost * budget {
            return None;
        }
        let grown = grown_by(GROWTH);
        let at_rest = now.saturating_sub(self.highest.1) >= PLATEAU;
        match at_rest {
            true => Some(Why::AtRest),
            false => (grown && !self.plateaus_only).then_some(Why::Growth),
        }
    }

    /// Notes a scan that ended at `now`, stopped the target for `cost` and found `rss_bytes`, where
    /// the poll before it had said `polled_bytes`. Says whether it is the best one so far.
    pub fn scanned(
        &mut self,
        now: Duration,
        cost: Duration,
        polled_bytes: u64,
        rss_bytes: u64,
    ) -> bool {
        self.last = (now, cost);
        self.best_polled_bytes = self.best_polled_bytes.max(polled_bytes);
        let best = rss_bytes > self.best_bytes;
        if best {
            self.best_bytes = rss_bytes;
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn growth_by_a_step_calls_for_a_scan_and_less_does_not() {
        let mut policy = ScanPolicy::default();
        assert!(policy.polled(ms(10), 1_000_000).is_some());
        assert!(policy.scanned(ms(11), ms(0), 1_000_000, 1_000_000));
        assert_eq!(policy.polled(ms(20), 1_009_000), None);
        assert!(policy.polled(ms(30), 1_010_000).is_some());
    }

    #[test]
    fn with_a_ledger_growth_alone_stops_nobody() {
        let mut policy = ScanPolicy::plateaus_only();
        assert_eq!(policy.polled(ms(10), 1_000_000), None);
        assert_eq!(policy.polled(ms(20), 2_000_000), None);
        assert!(policy.polled(ms(120), 2_000_000).is_some());
    }

    #[test]
    fn a_plateau_above_the_best_scan_is_scanned_once() {
        let mut policy = ScanPolicy::default();
        policy.scanned(ms(0), ms(0), 1_000_000, 1_000_000);
        assert_eq!(policy.polled(ms(10), 1_004_096), None);
        assert_eq!(policy.polled(ms(100), 1_004_096), None);
        assert!(policy.polled(ms(110), 1_004_096).is_some());
        policy.scanned(ms(111), ms(1), 1_004_096, 1_004_096);
        assert_eq!(policy.polled(ms(500), 1_004_096), None);
    }

    #[test]
    fn the_target_is_not_stopped_for_more_than_its_share() {
        let mut policy = ScanPolicy::default();
        policy.scanned(ms(100), ms(10), 1_000_000, 1_000_000);
        assert_eq!(policy.polled(ms(299), 1_040_000), None);
        assert!(policy.polled(ms(300), 1_040_000).is_some());
        policy.scanned(ms(300), ms(10), 1_040_000, 1_040_000);
        assert!(
            policy.polled(ms(349), 2_000_000).is_none(),
            "not even when it is urgent"
        );
        assert!(
            policy.polled(ms(350), 2_000_000).is_some(),
            "sooner when it is urgent"
        );
    }

    #[test]
    fn falling_memory_is_never_scanned() {
        let mut policy = ScanPolicy::default();
        policy.scanned(ms(0), ms(0), 1_000_000, 1_000_000);
        assert_eq!(policy.polled(ms(10), 900_000), None);
        assert_eq!(policy.polled(ms(900), 900_000), None);
    }

    #[test]
    fn only_a_higher_scan_is_the_best() {
        let mut policy = ScanPolicy::default();
        assert!(policy.scanned(ms(0), ms(0), 100, 100));
        assert!(!policy.scanned(ms(1), ms(0), 120, 90));
        assert!(policy.scanned(ms(2), ms(0), 130, 101));
    }
}
