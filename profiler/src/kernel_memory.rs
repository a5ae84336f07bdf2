//! Memory that the kernel holds for the tree, beside RSS.

use serde::{Deserialize, Serialize};

use crate::{classify::compose::Composition, units::KIB};

/// `THREAD_SIZE` on x86-64 without KASAN: four pages
/// (arch/x86/include/asm/page_64_types.h).
const KERNEL_STACK: u64 = 16 * KIB;

/// Memory that the kernel holds for the tree, outside RSS. A `None` part was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Kernel {
    /// Kernel stacks of live threads.
    pub stacks_bytes: Option<u64>,
    /// Page tables.
    pub page_tables_bytes: Option<u64>,
    /// Slab objects: task_struct, VMAs, files, timers.
    pub slab_bytes: Option<u64>,
    /// What the cross-check counted and the parts above do not explain.
    pub other_bytes: Option<u64>,
    /// How it was measured or estimated.
    pub source: String,
}

impl Kernel {
    /// Sum of the parts that were measured, in bytes.
    pub fn total(&self) -> u64 {
        [
            self.stacks_bytes,
            self.page_tables_bytes,
            self.slab_bytes,
            self.other_bytes,
        ]
        .into_iter()
        .flatten()
        .sum()
    }

    /// What `/proc` tells: the number of threads, and the size of the page tables. Slab is not in
    /// there.
    pub fn from_proc(composition: &Composition) -> Kernel {
        Kernel {
            stacks_bytes: Some(composition.threads * KERNEL_STACK),
            page_tables_bytes: Some(composition.page_tables_bytes),
            slab_bytes: None,
            other_bytes: None,
            source:
                "threads x 16 KiB of kernel stack, VmPTE of /proc/PID/status; slab not measured"
                    .into(),
        }
    }
}
