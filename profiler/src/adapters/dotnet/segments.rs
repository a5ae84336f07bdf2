//! The heap of CoreCLR 3.1, whose library keeps its symbols:
//!
//! ```text
//! generation_table[2].start_segment -> segment -> ... -> the ephemeral one   (small objects)
//! generation_table[3].start_segment -> segment -> ...                        (large objects)
//! ```
//!
//! Sources: src/gc/gcinterface.dac.h and gcinterface.dacvars.def of CoreCLR 3.1, interface 1.

use super::{Collector, Heap};
use crate::adapters::{
    Refusal,
    memory::{Memory, Words},
};

/// The table and the method table of free objects.
pub const SYMBOLS: [&str; 2] = ["g_gc_dac_vars", "g_gc_pFreeObjectMethodTable"];

/// `major_version_number`: raised when a variable or a type changes.
pub(super) const INTERFACE: u8 = 1;
/// `GcDacVars`: versions and size of a generation come before the variables.
pub(super) const VARIABLES: u64 = 16;
/// `dac_generation`: `gc_alloc_context` of 56 bytes, then the first segment.
pub(super) const START_SEGMENT: u64 = 56;

/// Reads where the objects are.
pub fn read(memory: &Memory, table: u64, free_object: u64) -> Result<Heap, Refusal> {
    let version = memory.u8(table)?;
    if version != INTERFACE {
        return Err(Refusal(format!(
            "interface {version} of the collector is not known; {INTERFACE} is"
        )));
    }
    let collector = Collector {
        words: memory,
        at: table,
        variables: VARIABLES,
    };
    collector.ensure_at_rest()?;
    collector.ensure_one_heap()?;
    let generation_bytes = collector.generation_bytes()?;
    let highest = collector.highest_generation()?;
    if highest != 2 || !(START_SEGMENT + 8..4096).contains(&generation_bytes) {
        return Err(Refusal(format!(
            "{highest} generations of {generation_bytes} bytes are not those of CoreCLR 3.1"
        )));
    }
    Ok(Heap {
        // Small objects of all generations, then the large ones.
        segments: collector.segments([highest, highest + 1], START_SEGMENT)?,
        free_object,
        spare: Vec::new(),
    })
}
