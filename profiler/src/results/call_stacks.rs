//! Which calls made the memory at the peak: call stacks, and the bytes that each made.

use serde::{Deserialize, Serialize};

use crate::classify::Leaf;

/// Who was calling when memory was mapped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CallStack {
    /// Outermost frame first; the last one made the system call.
    pub frames: Vec<Frame>,
    /// The outermost frames are missing, and why; `None` for a stack that is told from its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<String>,
}

/// One frame of a [`CallStack`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    /// Name of the function, demangled; `None` where no symbol covers the address.
    pub function: Option<String>,
    /// Path of the file that the code was mapped from; `[jitted code]` and the like where there is none.
    pub module: String,
    /// Where in the module: its virtual address, as `objdump` and `addr2line` count; without a file, the
    /// address in the process.
    pub offset: u64,
    /// Source file, where the debug information tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line in `file`, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

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

/// How many calls were looked at, and what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CallStackCounts {
    /// Calls that make memory (`mmap`, `brk`) whose stack was asked for.
    pub calls: u64,
    /// Distinct stacks that were copied.
    pub distinct: u64,
    /// Calls whose stack could not be read.
    pub unreadable: u64,
    /// Calls whose stack found no room on its way to us.
    pub lost: u64,
    /// Calls whose stack was one more than the table of distinct stacks has room for.
    pub table_full: u64,
}
