//! When the names of mappings are read for the composition at the peak.

use std::time::{Duration, Instant};

use super::POLL;
use crate::events::Call;

/// When to read `/proc/PID/maps` of the whole running tree: after a file mapping or a candidate, and for
/// one part in twenty of the time at most.
#[derive(Default)]
pub(super) struct MapsPolicy {
    wanted: bool,
    not_before: Option<Instant>,
}

impl MapsPolicy {
    /// Takes a call that may have brought names.
    pub fn event(&mut self, call: &Call) {
        self.wanted |= match call {
            Call::PeakCandidate { .. } | Call::OwnPeakCandidate { .. } => true,
            Call::Mmap { fd, .. } => *fd >= 0,
            _ => false,
        };
    }

    /// Whether to read them now.
    pub fn is_due(&self) -> bool {
        self.wanted && self.not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// Notes a reading.
    pub fn read(&mut self, began: Instant, cost: Duration) {
        self.wanted = false;
        self.not_before = Some(began + (cost * 20).max(POLL));
    }
}
