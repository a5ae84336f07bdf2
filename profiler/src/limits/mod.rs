//! Limits of the system that a tree of many threads comes up against: reading them, and raising them for
//! as long as they are needed.

pub mod cgroup;
pub mod raised;
pub mod sysctl;

use serde::{Deserialize, Serialize};

use sysctl::Sysctl;

/// What is to be raised before a program is started, and given back when it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Raises {
    /// Settings of the whole system.
    pub sysctls: Vec<Raise>,
    /// `RLIMIT_NPROC` of the program: processes and threads that its user may have.
    pub processes: Option<u64>,
}

impl Raises {
    /// There is nothing to raise.
    pub fn is_empty(&self) -> bool {
        *self == Raises::default()
    }
}

/// One setting, and what it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raise {
    /// The setting.
    pub sysctl: Sysctl,
    /// What is needed. A setting that is higher stays as it is.
    pub at_least: u64,
}
