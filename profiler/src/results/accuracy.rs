//! The document of `cargo xtask accuracy`: what adapters found, beside what the runtimes say themselves.

use serde::{Deserialize, Serialize};

use super::Host;

/// Every comparison of one invocation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// [`super::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Where it was found.
    pub host: Host,
    /// One a figure, in the order of the programs.
    pub comparisons: Vec<Comparison>,
}

/// One figure of one program: ours and the runtime's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Name of the program's folder.
    pub program: String,
    /// Name of the program for people.
    pub label: String,
    /// Versions of the runtime and of the libraries that matter.
    pub version: String,
    /// Concurrent tasks.
    pub tasks: u64,
    /// What is compared.
    pub what: String,
    /// What we found from outside, in bytes; `None` when there is none, for the reason below.
    pub ours_bytes: Option<u64>,
    /// What the runtime says, in bytes.
    pub theirs_bytes: Option<u64>,
    /// How far apart they may be, in percent of theirs.
    pub limit_percent: f64,
    /// How long the adapters took, in seconds; the program was frozen meanwhile.
    pub adapters_seconds: Option<f64>,
    /// Why there is nothing to compare.
    pub reason: Option<String>,
}

impl Comparison {
    /// Ours less theirs, in percent of theirs.
    pub fn difference_percent(&self) -> Option<f64> {
        let (ours, theirs) = (self.ours_bytes? as f64, self.theirs_bytes? as f64);
        // Of nothing, anything is infinitely much.
        Some(match ours == theirs {
            true => 0.0,
            false => (ours - theirs) / theirs * 100.0,
        })
    }

    /// Whether there are two figures, and they are near enough.
    pub fn holds(&self) -> bool {
        self.difference_percent()
            .is_some_and(|percent| percent.abs() <= self.limit_percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(ours_bytes: Option<u64>, theirs_bytes: Option<u64>) -> Comparison {
        Comparison {
            program: "tokio".into(),
            label: "Rust tokio".into(),
            version: String::new(),
            tasks: 1,
            what: "blocks in use".into(),
            ours_bytes,
            theirs_bytes,
            limit_percent: 0.1,
            adapters_seconds: None,
            reason: None,
        }
    }

    #[test]
    fn figures_hold_within_the_limit_on_either_side() {
        for ours in [999, 1000, 1001] {
            assert!(comparison(Some(ours), Some(1000)).holds(), "{ours}");
        }
        for ours in [998, 1002] {
            assert!(!comparison(Some(ours), Some(1000)).holds(), "{ours}");
        }
    }

    #[test]
    fn a_missing_figure_does_not_hold() {
        assert!(!comparison(None, Some(1000)).holds());
        assert!(!comparison(Some(1000), None).holds());
        assert!(!comparison(Some(1), Some(0)).holds());
        assert!(comparison(Some(0), Some(0)).holds());
    }
}
