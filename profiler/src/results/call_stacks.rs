//! Which calls made the memory at the peak: the bytes that each call stack made.

use serde::{Deserialize, Serialize};

use crate::classify::Leaf;

/// Resident bytes at the peak that one call stack made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeBytes {
    /// Process that the bytes are resident in.
    pub tgid: u32,
    /// Index into `call_stacks` of the run; `None` where there is none, and `made_by` says why.
    pub call_stack: Option<usize>,
    /// The call that mapped the memory: `mmap`, `brk`, or why no call stack is known.
    pub made_by: String,
    /// What the bytes are.
    pub leaf: Leaf,
    /// Path of the mapped file, or the kernel's or program's name for the mapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<String>,
    /// Resident bytes.
    pub bytes: u64,
}
