//! How residency is followed: which tier, and why a better one is not to be had.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::btf::BtfError;

/// How residency is followed (design section 3), best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// Page ledger fed by fentry/fexit hooks.
    A,
    /// Page ledger that copies page table entries before they change: tracepoints only.
    B,
    /// Scans of the frozen tree as it grows.
    C,
}

impl Tier {
    /// `"A"`, `"B"` or `"C"`, as in the results.
    pub fn name(self) -> &'static str {
        match self {
            Tier::A => "A",
            Tier::B => "B",
            Tier::C => "C",
        }
    }
}

/// Why a tier cannot be had here.
#[derive(Debug, Error)]
pub enum TierError {
    /// The kernel refuses or lacks something.
    #[error("{0}")]
    Kernel(String),
    /// The types of this kernel are not those that we know.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The object and this program do not fit each other: a bug.
    #[error("the eBPF object lacks {0}; this is a bug")]
    Object(&'static str),
}

impl TierError {
    /// An error of the kernel, with its causes.
    pub fn kernel(error: impl std::error::Error) -> TierError {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        TierError::Kernel(reason)
    }
}
