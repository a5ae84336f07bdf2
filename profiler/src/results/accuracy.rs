//! The document of `cargo xtask accuracy`: what adapters found, beside what the runtimes say themselves.

use serde::{Deserialize, Serialize};

use super::Host;
use crate::units::{human, thousands};

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

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes of memory.
    Bytes,
    /// Things: tasks, blocks.
    Number,
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
    /// What the two figures below are.
    pub unit: Unit,
    /// What we found from outside; `None` when there is none, for the reason below.
    pub ours: Option<u64>,
    /// What the runtime says.
    pub theirs: Option<u64>,
    /// How far apart they may be, in percent of theirs.
    pub limit_percent: f64,
    /// Or in bytes, where making the books takes memory itself; 0 where it does not.
    pub limit_bytes: u64,
    /// How long the adapters took, in seconds; the program was frozen meanwhile.
    pub adapters_seconds: Option<f64>,
    /// CPU time that they took, all threads together, in seconds.
    #[serde(default)]
    pub adapters_cpu_seconds: Option<f64>,
    /// Why there is nothing to compare.
    pub reason: Option<String>,
}

impl Comparison {
    /// A figure with its unit, for people.
    pub fn shown(&self, figure: u64) -> String {
        match self.unit {
            Unit::Bytes => human(figure),
            Unit::Number => thousands(figure),
        }
    }

    /// Ours less theirs, in percent of theirs.
    pub fn difference_percent(&self) -> Option<f64> {
        let (ours, theirs) = (self.ours? as f64, self.theirs? as f64);
        // Of nothing, anything is infinitely much.
        Some(match ours == theirs {
            true => 0.0,
            false => (ours - theirs) / theirs * 100.0,
        })
    }

    /// Whether there are two figures, and they are near enough.
    pub fn holds(&self) -> bool {
        let (Some(ours), Some(theirs)) = (self.ours, self.theirs) else {
            return false;
        };
        let within = |percent: f64| percent.abs() <= self.limit_percent;
        ours.abs_diff(theirs) <= self.limit_bytes || self.difference_percent().is_some_and(within)
    }

    /// `0.1 %`, or `3 % or 1.0 MiB`.
    pub fn limit(&self) -> String {
        match self.limit_bytes {
            0 => format!("{} %", self.limit_percent),
            bytes => format!("{} % or {}", self.limit_percent, human(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(ours: Option<u64>, theirs: Option<u64>) -> Comparison {
        Comparison {
            program: "tokio".into(),
            label: "Rust tokio".into(),
            version: String::new(),
            tasks: 1,
            what: "blocks in use".into(),
            unit: Unit::Bytes,
            ours,
            theirs,
            limit_percent: 0.1,
            limit_bytes: 0,
            adapters_seconds: None,
            adapters_cpu_seconds: None,
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
    fn what_the_books_take_themselves_is_allowed_for_in_bytes() {
        let with = |ours| Comparison {
            limit_bytes: 50,
            ..comparison(Some(ours), Some(1000))
        };
        assert!(with(950).holds());
        assert!(!with(949).holds());
        assert_eq!(with(0).limit(), "0.1 % or 50 B");
    }

    #[test]
    fn a_missing_figure_does_not_hold() {
        assert!(!comparison(None, Some(1000)).holds());
        assert!(!comparison(Some(1000), None).holds());
        assert!(!comparison(Some(1), Some(0)).holds());
        assert!(comparison(Some(0), Some(0)).holds());
    }
}
