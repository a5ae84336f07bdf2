//! Limits that a run was to keep: `--max-rss` and `--max-kernel`.

use serde::{Deserialize, Serialize};

use super::{Run, summary::kernel_bytes};
use crate::units::human;

/// What a limit is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gated {
    /// RSS of the tree at its peak.
    Rss,
    /// Kernel memory at that moment, outside RSS.
    Kernel,
}

/// One limit, and whether it was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// On what.
    pub on: Gated,
    /// The limit in bytes.
    pub limit_bytes: u64,
    /// What there was; `None`: it was not measured.
    pub measured_bytes: Option<u64>,
    /// Not more than the limit. What was not measured has not been kept.
    pub kept: bool,
}

impl Gate {
    /// Holds `limit_bytes` against what was measured in `run`.
    pub fn judge(on: Gated, limit_bytes: u64, run: &Run) -> Gate {
        let measured_bytes = run.peak.as_ref().and_then(|peak| match on {
            Gated::Rss => Some(peak.rss_bytes),
            Gated::Kernel => kernel_bytes(peak),
        });
        Gate {
            on,
            limit_bytes,
            measured_bytes,
            kept: measured_bytes.is_some_and(|bytes| bytes <= limit_bytes),
        }
    }

    /// Why it was not kept, in one sentence; `None` where it was.
    pub fn broken(&self) -> Option<String> {
        let (what, option) = match self.on {
            Gated::Rss => ("RSS at the peak", "--max-rss"),
            Gated::Kernel => ("kernel memory at the peak", "--max-kernel"),
        };
        let limit = human(self.limit_bytes);
        match self.measured_bytes {
            _ if self.kept => None,
            None => Some(format!(
                "{what} was not measured, so {option} {limit} is not known to be kept"
            )),
            Some(bytes) => Some(format!(
                "{what} is {}, {} more than {option} {limit} allows",
                human(bytes),
                human(bytes - self.limit_bytes)
            )),
        }
    }
}
