//! .NET: objects and free memory in the heap of CoreCLR's collector.
//!
//! The collector tells debuggers where its structures are, in a versioned table (`struct GcDacVars`,
//! src/gc/gcinterface.dac.h and gcinterface.dacvars.def of CoreCLR 3.1, interface 1). A heap is segments:
//!
//! ```text
//! generation_table[2].start_segment -> segment -> ... -> the ephemeral one   (small objects)
//! generation_table[3].start_segment -> segment -> ...                        (large objects)
//!
//! segment   mem |objects, one behind the other| allocated ... committed ... reserved
//! object    method table | fields, or the number of elements and the elements
//! ```
//!
//! Dead objects are turned into *free objects*, of a method table of their own, by the collector; dead ones
//! that it has not found yet look like any other. A thread allocates from a stretch of zeros, whose rest is
//! stepped over to the next object.
//!
//! Only the workstation collector, and CoreCLR 3.1, whose library keeps its symbols. Later ones are
//! stripped: their heap stays undivided.

use super::{
    Books, Refusal, Target, elf,
    memory::{Memory, Words},
    workers,
};
use crate::classify::{
    Leaf,
    division::{DivisionBuilder, Runs},
    runtime::Runtime,
};

const LIBRARY: &str = "libcoreclr.so";
const TABLE: &str = "g_gc_dac_vars";
const FREE_OBJECT: &str = "g_gc_pFreeObjectMethodTable";

/// `major_version_number`: raised when a variable or a type changes.
const INTERFACE: u8 = 1;
/// `GcDacVars`: major and minor version, size of a generation, then a pointer to each variable.
const GENERATION_SIZE: u64 = 8;
const VARIABLES: u64 = 16;
/// Places in the list of variables (gcinterface.dacvars.def).
mod variable {
    pub const GENERATIONS: u64 = 3;
    pub const HIGHEST_GENERATION: u64 = 4;
    pub const EPHEMERAL_SEGMENT: u64 = 7;
    pub const ALLOCATED: u64 = 12;
    /// Null unless the server collector runs, which has several heaps.
    pub const HEAPS: u64 = 20;
    pub const INVALID: u64 = 21;
}
/// `dac_generation`: `gc_alloc_context` of 56 bytes, then the first segment.
const START_SEGMENT: u64 = 56;
/// `dac_heap_segment`.
mod segment {
    pub const ALLOCATED: u64 = 0;
    pub const COMMITTED: u64 = 8;
    pub const MEM: u64 = 32;
    pub const NEXT: u64 = 48;
}
/// More than any heap has; a list that is longer goes in circles.
const MOST_SEGMENTS: usize = 65_536;
/// `MethodTable`: flags and size of an element in the first word, size of an object in the second
/// (src/vm/methodtable.h).
const HAS_ELEMENTS: u32 = 0x8000_0000;
const ALIGNMENT: u64 = 8;
/// `MIN_OBJECT_SIZE`: header, method table, one field.
const SMALLEST: u64 = 24;
/// Longest object: a little more than 2 GiB of elements.
const LARGEST: u64 = 4 << 30;

/// Method tables kept at hand.
const KNOWN: usize = 256;

/// Divides the heap of the collector.
pub fn divide(target: &Target, into: &mut DivisionBuilder) -> Result<Option<Books>, Refusal> {
    if target.runtime != Runtime::Dotnet {
        return Ok(None);
    }
    let Some(found) = elf::addresses(target.process, LIBRARY, |name| {
        [TABLE, FREE_OBJECT].contains(&name)
    })?
    else {
        return Ok(None);
    };
    let address = |name: &str| {
        let stripped = || Refusal(format!("{LIBRARY} has no symbol {name}; it is stripped"));
        found.get(name).copied().ok_or_else(stripped)
    };
    let (table, free_object) = (address(TABLE)?, address(FREE_OBJECT)?);
    let heap = Heap::read(target.memory, table, target.memory.u64(free_object)?)?;
    let tally = heap.divide(target.memory, into)?;
    Ok(Some(Books::from([
        ("object_bytes".into(), tally.objects),
        ("objects".into(), tally.number),
        ("free_object_bytes".into(), tally.free),
        ("allocating_bytes".into(), tally.allocating),
        ("committed_bytes".into(), tally.committed),
        ("segments".into(), heap.segments.len() as u64),
    ])))
}

/// Where objects are.
struct Heap {
    segments: Vec<Segment>,
    /// Method table of free objects.
    free_object: u64,
}

struct Segment {
    mem: u64,
    /// One past the last object.
    allocated: u64,
    /// One past the last byte that may be touched.
    committed: u64,
}

#[derive(Default)]
struct Tally {
    objects: u64,
    number: u64,
    free: u64,
    /// Zeros that a thread allocates from.
    allocating: u64,
    committed: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.objects += other.objects;
        self.number += other.number;
        self.free += other.free;
        self.allocating += other.allocating;
    }
}

/// What has been found in a segment.
#[derive(Default)]
struct Found {
    runs: Runs,
    tally: Tally,
}

impl Heap {
    fn read(memory: &Memory, table: u64, free_object: u64) -> Result<Heap, Refusal> {
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
        let ephemeral = memory.u64(variable(variable::EPHEMERAL_SEGMENT)?)?;
        let ephemeral_end = memory.u64(variable(variable::ALLOCATED)?)?;
        let mut segments = Vec::new();
        // Small objects of all generations, then the large ones.
        for generation in [highest, highest + 1] {
            let mut at = memory
                .u64(generations.wrapping_add(generation * generation_bytes + START_SEGMENT))?;
            while at != 0 {
                let segment = Segment {
                    mem: memory.u64(at.wrapping_add(segment::MEM))?,
                    allocated: match at == ephemeral {
                        true => ephemeral_end,
                        false => memory.u64(at.wrapping_add(segment::ALLOCATED))?,
                    },
                    committed: memory.u64(at.wrapping_add(segment::COMMITTED))?,
                };
                let in_order = at < segment.mem
                    && segment.mem <= segment.allocated
                    && segment.allocated <= segment.committed;
                if !in_order || segments.len() >= MOST_SEGMENTS {
                    return Err(Refusal(format!("there is no sound segment at {at:#x}")));
                }
                segments.push(segment);
                at = memory.u64(at.wrapping_add(segment::NEXT))?;
            }
        }
        Ok(Heap {
            segments,
            free_object,
        })
    }

    fn divide(&self, memory: &Memory, into: &mut DivisionBuilder) -> Result<Tally, Refusal> {
        let shared = memory.shared();
        let found = workers::share(&self.segments, |queue| {
            let memory = shared.memory();
            let walk = |segment| self.walk(&memory, segment);
            queue
                .map(|(index, segment)| (index, walk(segment)))
                .collect()
        });
        let mut tally = Tally::default();
        for (segment, found) in self.segments.iter().zip(found) {
            let found = found?;
            into.add_runs(found.runs);
            into.add(segment.allocated..segment.committed, Leaf::HeapFree);
            tally.add(&found.tally);
            tally.committed = tally
                .committed
                .saturating_add(segment.committed - segment.mem);
        }
        Ok(tally)
    }

    /// Every object of a segment. They are counted from method table to method table; the header of an object
    /// is the word before it, so the ranges lie one word too high, which changes no sum.
    fn walk(&self, memory: &Memory, segment: &Segment) -> Result<Found, Refusal> {
        let mut found = Found::default();
        let Found { runs, tally } = &mut found;
        let mut at = segment.mem;
        // The sizes of method tables.
        let mut known = vec![(0, 0, 0); KNOWN];
        while at < segment.allocated {
            let word = match memory.u64(at) {
                Ok(word) => word,
                // Zeros that nobody has touched yet.
                Err(_) => {
                    let there = memory.resident(at, segment.allocated).next();
                    // This page is not, or the one that the word reaches into.
                    let next = there.map_or(segment.allocated, |range| range.start.max(at + 1));
                    tally.allocating = tally.allocating.saturating_add(next - at);
                    at = next.next_multiple_of(ALIGNMENT).min(segment.allocated);
                    continue;
                }
            };
            // No object begins so near the end. The last word is the header of the next object, which is cleared
            // when that is made: it may be what an object left that is gone.
            if segment.allocated - at < SMALLEST {
                runs.add(at..segment.allocated, Leaf::HeapFree);
                tally.allocating += segment.allocated - at;
                break;
            }
            // Nothing yet, or the header of the next object.
            if word & 0xffff_ffff == 0 {
                runs.add(at..at + 8, Leaf::HeapFree);
                tally.allocating += 8;
                at += 8;
                continue;
            }
            let bad = |what: &str| Refusal(format!("the object at {at:#x} {what}"));
            // The collector marks objects in the lowest bits.
            let table = word & !7;
            let slot = &mut known[((table / 8) ^ (table / 8192)) as usize % KNOWN];
            if slot.0 != table {
                let flags = memory.u32(table).map_err(|_| bad("has no method table"))?;
                let base = u64::from(
                    memory
                        .u32(table.wrapping_add(4))
                        .map_err(|_| bad("has no method table"))?,
                );
                let element = match flags & HAS_ELEMENTS {
                    0 => 0,
                    _ => u64::from(flags & 0xffff),
                };
                *slot = (table, base, element);
            }
            let (_, base, element) = *slot;
            let elements = match element {
                0 => 0,
                _ => u64::from(memory.u32(at.wrapping_add(8))?),
            };
            let size = (base + element * elements).next_multiple_of(ALIGNMENT);
            if !(SMALLEST..=LARGEST).contains(&size) || size > segment.allocated - at {
                return Err(bad(&format!("cannot be {size} bytes long")));
            }
            let leaf = match table == self.free_object {
                true => Leaf::HeapFree,
                false => Leaf::HeapObjects,
            };
            runs.add(at..at + size, leaf);
            if leaf == Leaf::HeapFree {
                tally.free += size;
            } else {
                tally.objects += size;
                tally.number += 1;
            }
            at += size;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
