//! A call stack with names: [`CallStack`].

use serde::{Deserialize, Serialize};

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
