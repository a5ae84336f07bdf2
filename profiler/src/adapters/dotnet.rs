//! .NET: objects and free memory in the heap of CoreCLR's collector.
//!
//! The collector tells debuggers where its structures are, in a versioned table (`struct GcDacVars`,
//! src/coreclr/gc/gcinterface.dac.h and gcinterface.dacvars.def of dotnet/runtime). Two versions of it are known:
//! that of CoreCLR 3.1 ([`segments`]) and that of .NET 9 ([`regions`]). Either way the heap is a list of
//! stretches, each the same inside:
//!
//! ```text
//! mem |objects, one behind the other| allocated ... committed ... reserved
//!
//! object    method table | fields, or the number of elements and the elements
//! ```
//!
//! Dead objects are turned into *free objects*, of a method table of their own, by the collector; dead ones
//! that it has not found yet look like any other. A thread allocates from a stretch of zeros, whose rest is
//! stepped over to the next object.
//!
//! Only the workstation collector.

mod regions;
mod segments;

use std::ops::Range;

use super::{
    Books, Refusal, Target, elf,
    memory::{Memory, Words},
    view::View,
    workers,
};
use crate::classify::{
    Leaf,
    division::{DivisionBuilder, Runs},
    runtime::Runtime,
};

const LIBRARY: &str = "libcoreclr.so";

/// More than any heap has; a list that is longer goes in circles.
const MOST_SEGMENTS: usize = 65_536;
/// `dac_heap_segment` (gcinterface.dac.h), the same in both interfaces.
mod segment {
    pub const ALLOCATED: u64 = 0;
    pub const COMMITTED: u64 = 8;
    pub const MEM: u64 = 32;
    pub const NEXT: u64 = 48;
}
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
    let wanted = |name: &str| segments::SYMBOLS.contains(&name) || regions::SYMBOLS.contains(&name);
    let Some(found) = elf::addresses(target.process, LIBRARY, wanted)? else {
        return Ok(None);
    };
    let all = |names: [&str; 2]| Some([*found.get(names[0])?, *found.get(names[1])?]);
    let heap = if let Some([table, free_object]) = all(segments::SYMBOLS) {
        segments::read(target.memory, table, target.memory.u64(free_object)?)?
    } else if let Some([table, descriptor]) = all(regions::SYMBOLS) {
        let view = View::of_process(target.memory, target.process, |name| name == LIBRARY);
        regions::read(&view, table, descriptor)?
    } else {
        return Err(Refusal(format!(
            "{LIBRARY} has neither the symbol {} of CoreCLR 3.1 nor {} of .NET 9",
            segments::SYMBOLS[0],
            regions::SYMBOLS[1],
        )));
    };
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
    /// Committed memory that is kept for the next objects and holds none.
    spare: Vec<Range<u64>>,
}

/// A stretch of the heap.
struct Segment {
    mem: u64,
    /// One past the last object.
    allocated: u64,
    /// One past the last byte that may be touched.
    committed: u64,
}

/// The collector's table for debuggers (`struct GcDacVars`): two versions, the size of a generation and, from
/// [`Collector::variables`] on, a pointer to each variable.
struct Collector<'a, W> {
    words: &'a W,
    /// Where the table is.
    at: u64,
    /// Bytes before its list of variables.
    variables: u64,
}

/// Places in the list of variables (gcinterface.dacvars.def) that have stayed the same.
mod variable {
    pub const GENERATIONS: u64 = 3;
    pub const HIGHEST_GENERATION: u64 = 4;
    pub const EPHEMERAL_SEGMENT: u64 = 7;
    pub const ALLOCATED: u64 = 12;
    /// Null unless the server collector runs, which has several heaps.
    pub const HEAPS: u64 = 20;
    pub const INVALID: u64 = 21;
}

/// Size of a generation, in the table.
const GENERATION_SIZE: u64 = 8;

impl<W: Words> Collector<'_, W> {
    /// The pointer to a variable.
    fn variable(&self, place: u64) -> Result<u64, Refusal> {
        let pointer = self.at.wrapping_add(self.variables + 8 * place);
        Ok(self.words.u64(pointer)?)
    }

    /// Refuses a heap whose structures are about to change.
    fn ensure_at_rest(&self) -> Result<(), Refusal> {
        match self.words.u32(self.variable(variable::INVALID)?)? {
            0 => Ok(()),
            _ => Err(Refusal("in the middle of a collection".into())),
        }
    }

    fn ensure_one_heap(&self) -> Result<(), Refusal> {
        match self.variable(variable::HEAPS)? {
            0 => Ok(()),
            _ => Err(Refusal(
                "the server collector runs, only workstation's is known".into(),
            )),
        }
    }

    fn generation_bytes(&self) -> Result<u64, Refusal> {
        Ok(self.words.u64(self.at.wrapping_add(GENERATION_SIZE))?)
    }

    fn highest_generation(&self) -> Result<u64, Refusal> {
        let highest = self.variable(variable::HIGHEST_GENERATION)?;
        Ok(u64::from(self.words.u32(highest)?))
    }

    /// All segments of some generations, whose first one stands `start_segment` bytes into a generation.
    fn segments(
        &self,
        generations: impl IntoIterator<Item = u64>,
        start_segment: u64,
    ) -> Result<Vec<Segment>, Refusal> {
        let table = self.variable(variable::GENERATIONS)?;
        let each = self.generation_bytes()?;
        let ephemeral = (
            self.words
                .u64(self.variable(variable::EPHEMERAL_SEGMENT)?)?,
            self.words.u64(self.variable(variable::ALLOCATED)?)?,
        );
        let mut segments = Vec::new();
        for generation in generations {
            let first = table.wrapping_add(generation * each + start_segment);
            Segment::read_list(self.words, self.words.u64(first)?, ephemeral, &mut segments)?;
        }
        Ok(segments)
    }
}

impl Segment {
    /// The one that is described at `at`, and where the next one is. `ephemeral` is the one that small objects are
    /// allocated from, with the end of its objects, which is kept apart.
    fn read(words: &impl Words, at: u64, ephemeral: (u64, u64)) -> Result<(Segment, u64), Refusal> {
        let field = |offset: u64| words.u64(at.wrapping_add(offset));
        let segment = Segment {
            mem: field(segment::MEM)?,
            allocated: match at == ephemeral.0 {
                true => ephemeral.1,
                false => field(segment::ALLOCATED)?,
            },
            committed: field(segment::COMMITTED)?,
        };
        let in_order = segment.mem <= segment.allocated && segment.allocated <= segment.committed;
        match in_order && segment.mem > 0 {
            true => Ok((segment, field(segment::NEXT)?)),
            false => Err(Refusal(format!("there is no sound segment at {at:#x}"))),
        }
    }

    /// All of a list that begins at `at`, behind those that are there already.
    fn read_list(
        words: &impl Words,
        mut at: u64,
        ephemeral: (u64, u64),
        into: &mut Vec<Segment>,
    ) -> Result<(), Refusal> {
        while at != 0 {
            if into.len() >= MOST_SEGMENTS {
                return Err(Refusal("a list of segments goes in circles".into()));
            }
            let (segment, next) = Segment::read(words, at, ephemeral)?;
            into.push(segment);
            at = next;
        }
        Ok(())
    }
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
            into.append_builder(found.runs.into_builder());
            into.add(segment.allocated..segment.committed, Leaf::HeapFree);
            tally.add(&found.tally);
            tally.committed = tally
                .committed
                .saturating_add(segment.committed - segment.mem);
        }
        for spare in &self.spare {
            into.add(spare.clone(), Leaf::HeapFree);
            tally.committed = tally.committed.saturating_add(spare.end - spare.start);
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
