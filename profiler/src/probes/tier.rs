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
    /// The same without any probe: what `/proc` tells anybody of their own processes. Which call made a region is
    /// not known.
    D,
}

impl Tier {
    /// Those that keep a page ledger, the one to try first in front.
    pub const WITH_LEDGER: [Tier; 2] = [Tier::A, Tier::B];

    /// `"A"`, `"B"`, `"C"` or `"D"`, as in the results.
    pub fn name(self) -> &'static str {
        match self {
            Tier::A => "A",
            Tier::B => "B",
            Tier::C => "C",
            Tier::D => "D",
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
    /// An error of the kernel, with its causes, in one line.
    pub fn kernel(error: impl std::error::Error) -> TierError {
        let mut reason = one_line(&error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            let words = one_line(&cause.to_string());
            // A refused program's error names its cause itself.
            if !reason.contains(&words) {
                reason = format!("{reason}: {words}");
            }
            source = cause.source();
        }
        TierError::Kernel(reason)
    }
}

/// Of the verifier's log, which is as long as the program, the line that says what it refused.
fn one_line(message: &str) -> String {
    const STATISTICS: [&str; 3] = ["processed ", "verification time", "stack depth"];
    let (head, log) = message
        .split_once("Verifier output: ")
        .unwrap_or((message, ""));
    let refusal = log.lines().rev().find(|line| {
        !line.trim().is_empty() && !STATISTICS.iter().any(|begin| line.starts_with(begin))
    });
    let head = head.trim().trim_end_matches('.');
    match refusal {
        Some(line) => format!("{head} ({})", line.trim()),
        None => head.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line() {
        let log = "load failed: Invalid argument. Verifier output: 0: R1=ctx()\n31: (2f) r1 *= r3\n\
             math on a pointer is not allowed\nprocessed 28 insns\n";
        assert_eq!(
            one_line(log),
            "load failed: Invalid argument (math on a pointer is not allowed)"
        );
        assert_eq!(
            one_line("Operation not permitted. Verifier output: "),
            "Operation not permitted"
        );
    }
}
