//! The heap of CoreCLR 3.1, whose library keeps its symbols:
//!
//! ```text
//! generation_table[2].start_segment -> segment -> ... -> the ephemeral one   (small objects)
//! generation_table[3].start_segment -> segment -> ...                        (large objects)
//! ```
//!
//! Sources: src/gc/gcinterface.dac.h and gcinterface.dacvars.def of CoreCLR 3.1, interface 1.

use super::{Heap, Segment};
use crate::adapters::{
    Refusal,
    memory::{Memory, Words},
};

/// The table and the method table of free objects.
pub const SYMBOLS: [&str; 2] = ["g_gc_dac_vars", "g_gc_pFreeObjectMethodTable"];

/// `major_version_number`: raised when a variable or a type changes.
pub(super) const INTERFACE: u8 = 1;
/// `GcDacVars`: major and minor version, size of a generation, then a pointer to each variable.
pub(super) const GENERATION_SIZE: u64 = 8;
pub(super) const VARIABLES: u64 = 16;
/// Places in the list of variables (gcinterface.dacvars.def).
pub(super) mod variable {
    pub const GENERATIONS: u64 = 3;
    pub const HIGHEST_GENERATION: u64 = 4;
    pub const EPHEMERAL_SEGMENT: u64 = 7;
    pub const ALLOCATED: u64 = 12;
    /// Null unless the server collector runs, which has several heaps.
    pub const HEAPS: u64 = 20;
    pub const INVALID: u64 = 21;
}
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
    let variable = |place: u64| memory.u64(table.wrapping_add(VARIABLES + 8 * place));
    if memory.u32(variable(variable::INVALID)?)? != 0 {
        return Err(Refusal("in the middle of a collection".into()));
    }
    if variable(variable::HEAPS)? != 0 {
        return Err(Refusal(
            "the server collector runs, only workstation's is known".into(),
        ));
    }
    let generation_bytes = memory.u64(table.wrapping_add(GENERATION_SIZE))?;
    let highest = u64::from(memory.u32(variable(variable::HIGHEST_GENERATION)?)?);
    if highest != 2 || !(START_SEGMENT + 8..4096).contains(&generation_bytes) {
        return Err(Refusal(format!(
            "{highest} generations of {generation_bytes} bytes are not those of CoreCLR 3.1"
        )));
    }
    let generations = variable(variable::GENERATIONS)?;
    let ephemeral = (
        memory.u64(variable(variable::EPHEMERAL_SEGMENT)?)?,
        memory.u64(variable(variable::ALLOCATED)?)?,
    );
    let mut segments = Vec::new();
    // Small objects of all generations, then the large ones.
    for generation in [highest, highest + 1] {
        let first = generations.wrapping_add(generation * generation_bytes + START_SEGMENT);
        Segment::read_list(memory, memory.u64(first)?, ephemeral, &mut segments)?;
    }
    Ok(Heap {
        segments,
        free_object,
        spare: Vec::new(),
    })
}
