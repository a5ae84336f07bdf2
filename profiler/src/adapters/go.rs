//! Go: goroutine stacks, objects and free memory in the arenas of its heap.
//!
//! An arena is divided into *spans*, runs of pages of 8 KiB, and every span that ever was has an `mspan`
//! that `mheap_.allspans` leads to. A span is of the collected heap (slots of one size), or it holds
//! stacks (also of one size), or the collector's own lists. What is in no span is free.
//!
//! ```text
//! arena    |  span of slots  |    span of stacks     |  free  |  span of slots |
//!          | used|free|used|~|  lo ...... sp ### hi  |
//!            slots      bits    unused      frames
//! ```
//!
//! Sources: Go 1.27, src/runtime/mheap.go (`mspan`, `initSpan`), stack.go (`stackpoolalloc`), runtime2.go
//! (`g`, `m`). [`layout`] finds where the fields are in the program at hand, [`spans`] and [`tasks`] read
//! them and hold them against each other and against the runtime's own sum.

mod layout;
mod spans;
mod tasks;

use std::ops::Range;

use super::{
    Books, Refusal, Target,
    memory::{Memory, Unreadable, Words},
};
use crate::classify::{Leaf, division::DivisionBuilder, runtime::Runtime};
use layout::{Field, Fields};
use spans::{Slots, Span, Stacks, Use};
use tasks::{Holder, Owner};

/// Arenas lie at multiples of this (`heapArenaBytes`, malloc.go: 64 MiB on 64-bit Linux).
const ARENA: u64 = 64 << 20;
/// The rules whose regions are arenas.
const RULES: [&str; 2] = ["go.arena", "named.go.heap"];

/// Divides the arenas.
pub fn divide(target: &Target, into: &mut DivisionBuilder) -> Result<Option<Books>, Refusal> {
    if target.runtime != Runtime::Go {
        return Ok(None);
    }
    let arenas = arenas(target);
    if arenas.is_empty() {
        // Before the runtime has started.
        return Ok(None);
    }
    let layout = layout::of(target.process.tgid);
    let layout = layout.as_ref().as_ref().map_err(Refusal::clone)?;
    let bias = layout.bias(&target.image.path, &target.process.vmas)?;
    let resident = target.process.resident.iter();
    let mut threads: Vec<u64> = target.threads.iter().map(|it| it.address).collect();
    threads.sort_unstable();
    let program = Program {
        memory: target.memory,
        fields: &layout.fields,
        resident_bytes: resident.map(|range| range.end - range.start).sum(),
        threads,
        mheap: layout.mheap.wrapping_add(bias),
        allgs: layout.allgs.wrapping_add(bias),
        allm: layout.allm.wrapping_add(bias),
    };
    program.divide(&arenas, into).map(Some)
}

/// Whole arenas, in address order, neighbours joined. Regions are those with a resident page, and parts of
/// an arena may have none.
fn arenas(target: &Target) -> Vec<Range<u64>> {
    let mut arenas: Vec<Range<u64>> = Vec::new();
    for region in target.regions {
        if !RULES.contains(&region.rule.id) {
            continue;
        }
        let start = region.range.start / ARENA * ARENA;
        let end = region.range.end.div_ceil(ARENA).saturating_mul(ARENA);
        match arenas.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => arenas.push(start..end),
        }
    }
    arenas
}

/// A frozen program and where its runtime keeps its books.
struct Program<'a> {
    memory: &'a Memory<'a>,
    fields: &'a Fields,
    /// Of the process: a list cannot be longer than what it leads to.
    resident_bytes: u64,
    /// Stack pointers of its threads, in ascending order.
    threads: Vec<u64>,
    mheap: u64,
    allgs: u64,
    allm: u64,
}

impl Program<'_> {
    fn divide(&self, arenas: &[Range<u64>], into: &mut DivisionBuilder) -> Result<Books, Refusal> {
        let spans = self.spans(arenas)?;
        let holders = self.holders(&spans)?;
        let mut tally = Tally::default();
        for span in &spans {
            match &span.usage {
                Use::Collector => {
                    tally.collector += span.bytes();
                    into.add(span.start..span.end(), Leaf::GcBookkeeping);
                }
                Use::Heap(slots) => self.divide_heap(span, slots, &mut tally, into)?,
                Use::Stacks(stacks) => {
                    divide_stacks(span, stacks, holders.of_span(span), &mut tally, into)?;
                }
            }
        }
        drop(holders);
        for arena in arenas {
            let mut free_from = arena.start;
            let first = spans.partition_point(|span| span.end() <= arena.start);
            let inside = spans.iter().skip(first);
            for span in inside.take_while(|span| span.start < arena.end) {
                into.add(free_from..span.start, Leaf::HeapFree);
                free_from = span.end();
            }
            into.add(free_from..arena.end, Leaf::HeapFree);
        }
        if tally.unsettled > self.threads.len() as u64 {
            return Err(Refusal(format!(
                "the slots of {} spans do not add up, and {} threads cannot be at work on more than one each",
                tally.unsettled,
                self.threads.len()
            )));
        }
        Ok(tally.into_books())
    }

    /// A span of the collected heap: its slots in use, free ones, and the collector's bits at its end.
    fn divide_heap(
        &self,
        span: &Span,
        slots: &Slots,
        tally: &mut Tally,
        into: &mut DivisionBuilder,
    ) -> Result<(), Refusal> {
        tally.heap += span.bytes();
        let Some(free) = self.free_slots(span, slots)? else {
            tally.unsettled += 1;
            tally.objects += span.bytes();
            into.add(span.start..span.end(), Leaf::HeapObjects);
            return Ok(());
        };
        // Runs of slots that are alike.
        let mut from = 0;
        while from < slots.number() {
            let is_free = free.contains(from);
            let mut to = from + 1;
            while to < slots.number() && free.contains(to) == is_free {
                to += 1;
            }
            let range = span.slots(slots, from..to);
            let bytes = range.end - range.start;
            if is_free {
                tally.free_slots += bytes;
                into.add(range, Leaf::HeapFree);
            } else {
                tally.objects += bytes;
                tally.number_of_objects += to - from;
                into.add(range, Leaf::HeapObjects);
            }
            from = to;
        }
        let end = span.slots(slots, 0..slots.number()).end;
        let bits = span.end() - self.collectors_bits(span, slots);
        tally.collector_bits += span.end() - bits;
        into.add(end..bits, Leaf::HeapFree);
        into.add(bits..span.end(), Leaf::GcBookkeeping);
        Ok(())
    }
}

/// A span of stacks; those that nobody has wait to be used again.
fn divide_stacks(
    span: &Span,
    stacks: &Stacks,
    holders: &[Option<Holder>],
    tally: &mut Tally,
    into: &mut DivisionBuilder,
) -> Result<(), Refusal> {
    let each = stacks.each();
    tally.stacks += span.bytes();
    for (lo, holder) in (span.start..).step_by(each as usize).zip(holders) {
        let hi = lo + each;
        let Some(holder) = holder else {
            tally.pooled += each;
            into.add(lo..hi, Leaf::HeapFree);
            continue;
        };
        let (unused, used) = match holder.owner() {
            Owner::Goroutine => (Leaf::TaskStackUnused, Leaf::TaskStack),
            Owner::EndedGoroutine => (Leaf::HeapFree, Leaf::HeapFree),
            Owner::Thread => (Leaf::StackBelowPointer, Leaf::NativeStack),
            Owner::Signals => (Leaf::AlternateStack, Leaf::AlternateStack),
        };
        let pointer = lo + holder.unused().unwrap_or(0);
        into.add(lo..pointer, unused);
        into.add(pointer..hi, used);
        match holder.owner() {
            Owner::Goroutine => {
                tally.goroutines += 1;
                tally.goroutine_stacks += each;
                tally.goroutine_stacks_used += hi - pointer;
                tally.without_pointer += u64::from(holder.unused().is_none());
            }
            Owner::EndedGoroutine => tally.pooled += each,
            Owner::Thread => tally.thread_stacks += each,
            Owner::Signals => tally.signal_stacks += each,
        }
    }
    let taken = holders.iter().flatten().count();
    if stacks.taken.is_some_and(|most| taken > usize::from(most)) {
        return Err(Refusal(format!(
            "the span of stacks at {:#x} has fewer stacks taken than there are goroutines on it",
            span.start
        )));
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Tally {
    heap: u64,
    objects: u64,
    number_of_objects: u64,
    free_slots: u64,
    collector_bits: u64,
    unsettled: u64,
    stacks: u64,
    goroutines: u64,
    goroutine_stacks: u64,
    goroutine_stacks_used: u64,
    without_pointer: u64,
    thread_stacks: u64,
    signal_stacks: u64,
    pooled: u64,
    collector: u64,
}

impl Tally {
    fn into_books(self) -> Books {
        Books::from([
            // `MemStats.HeapInuse` and `MemStats.HeapAlloc`.
            ("heap_in_use_bytes".into(), self.heap),
            ("heap_objects_bytes".into(), self.objects),
            ("heap_objects".into(), self.number_of_objects),
            ("heap_free_slots_bytes".into(), self.free_slots),
            ("heap_collector_bits_bytes".into(), self.collector_bits),
            ("unsettled_spans".into(), self.unsettled),
            // `MemStats.StackInuse`.
            ("stack_in_use_bytes".into(), self.stacks),
            // Those of the runtime too, which `runtime.NumGoroutine` leaves out.
            ("goroutines".into(), self.goroutines),
            ("goroutine_stacks_bytes".into(), self.goroutine_stacks),
            (
                "goroutine_stacks_used_bytes".into(),
                self.goroutine_stacks_used,
            ),
            ("stacks_without_pointer".into(), self.without_pointer),
            ("thread_stacks_bytes".into(), self.thread_stacks),
            ("signal_stacks_bytes".into(), self.signal_stacks),
            ("pooled_stacks_bytes".into(), self.pooled),
            ("collector_spans_bytes".into(), self.collector),
        ])
    }
}

impl Program<'_> {
    /// A number in a struct at `base`.
    fn number(&self, base: u64, field: Field) -> Result<u64, Unreadable> {
        let address = base.wrapping_add(field.offset);
        match field.bytes {
            1 => self.memory.u8(address).map(u64::from),
            2 => self.memory.u16(address).map(u64::from),
            4 => self.memory.u32(address).map(u64::from),
            _ => self.memory.u64(address),
        }
    }

    /// A slice of pointers. `what` it is, and how many bytes each leads to at least.
    fn pointers(&self, slice: u64, what: &str, each: u64) -> Result<Pointers<'_>, Refusal> {
        // A slice is data, length, capacity (runtime/slice.go).
        let word = |number: u64| self.memory.u64(slice.wrapping_add(8 * number));
        let (data, length, capacity) = (word(0)?, word(1)?, word(2)?);
        if length > capacity || length > self.resident_bytes / each {
            return Err(Refusal(format!(
                "{what} at {slice:#x} cannot have {length} elements"
            )));
        }
        Ok(Pointers {
            memory: self.memory,
            data,
            length,
        })
    }
}

/// A slice of pointers of the program, which is read in parts: it may be as long as there are tasks.
struct Pointers<'a> {
    memory: &'a Memory<'a>,
    data: u64,
    length: u64,
}

/// Pointers that are read at once.
const POINTERS: u64 = 8192;

impl Pointers<'_> {
    /// The addresses, in the order of the slice.
    fn parts(&self) -> impl Iterator<Item = Result<Vec<u64>, Unreadable>> + '_ {
        let firsts = (0..self.length).step_by(POINTERS as usize);
        firsts.map(|first| {
            let mut bytes = vec![0; POINTERS.min(self.length - first) as usize * 8];
            self.memory
                .read(self.data.wrapping_add(8 * first), &mut bytes)?;
            let words = bytes.chunks_exact(8).map(|word| {
                let word = word.try_into().expect("chunks of eight bytes");
                u64::from_le_bytes(word)
            });
            Ok(words.collect())
        })
    }
}

#[cfg(test)]
mod tests;
