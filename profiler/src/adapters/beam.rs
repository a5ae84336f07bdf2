//! BEAM, the virtual machine of Erlang and Elixir: what its allocators hold, and the stack and the heap of
//! each process.
//!
//! The machine gets its memory in *carriers*, by `mmap` or by malloc. A carrier belongs to one instance of
//! one allocator, and is a row of blocks without a gap (or one single block), so it can be walked like a
//! heap of malloc. Every process has one block for its heap and its stack, which grow towards each other:
//!
//! ```text
//! carrier   | header | block | block        | free block | block ... last block |
//!                             /              \
//!                            | head | heap -> |    gap    | <- stack | rest |
//!                                   heap     htop        stop       hend
//! ```
//!
//! Where to begin is told by symbols that the machine exports for its own tools and drivers: the
//! instances of allocators (`erts_allctr_thr_spec`) and the table of processes (`erts_proc`). What is
//! found is held against sums that the machine keeps beside it: carriers against the statistics of each
//! instance, the blocks of a carrier against its header, the layout of a process against the table's
//! `element_size`, and the heap of each process against the blocks. See `docs/runtimes/beam.md`.

mod carriers;
mod machine;
mod processes;

use super::{Books, Refusal, Target, memory::Memory};
use crate::classify::{
    Leaf, compose::ClassifiedRegion, division::DivisionBuilder, runtime::Runtime,
};
use carriers::{Block, Carrier, Holder, Instance};
use machine::Machine;
use processes::{Processes, Span, Table};
use std::ops::Range;

/// The rules whose regions hold carriers. Those inside the program break and arenas are glibc's.
const RULES: [&str; 3] = ["beam.carrier", "beam.literals", "malloc.large.vm"];

/// What the allocators of OTP 25 are for, by number (`ERTS_ALC_A_*`, made from
/// erts/emulator/beam/erl_alloc.types): name, and the leaf of their blocks.
const ALLOCATORS: [(u32, &str, Leaf); 10] = [
    // Scratch memory of one call.
    (2, "temp", Leaf::RuntimeInternal),
    (3, "sl", Leaf::RuntimeInternal),
    (4, "std", Leaf::RuntimeInternal),
    // Atoms, the tables of modules and of processes, timer wheels.
    (5, "ll", Leaf::RuntimeInternal),
    // Heaps of processes, old heaps, messages.
    (6, "eheap", Leaf::HeapObjects),
    (7, "ets", Leaf::HeapObjects),
    // `struct process`, monitors, links, timers.
    (8, "fix", Leaf::RuntimeInternal),
    (9, "literal", Leaf::Metadata),
    (10, "binary", Leaf::HeapObjects),
    (11, "driver", Leaf::RuntimeInternal),
];
/// The allocator that process heaps come from, the one of `struct process`, and the one of literals.
const EHEAP: u32 = 6;
const FIX: u32 = 8;
const LITERAL: u32 = 9;

/// Divides the carriers.
pub fn divide(target: &Target, into: &mut DivisionBuilder) -> Result<Option<Books>, Refusal> {
    if target.runtime != Runtime::Beam {
        return Ok(None);
    }
    let machine = Machine::of(target)?;
    divide_machine(target.memory, target.regions, &machine, into).map(Some)
}

/// As [`divide`], of a machine whose symbols are known.
fn divide_machine(
    memory: &Memory,
    regions: &[ClassifiedRegion],
    machine: &Machine,
    into: &mut DivisionBuilder,
) -> Result<Books, Refusal> {
    let instances = carriers::instances(memory, machine)?;
    let carriers = carriers::carriers(memory, &instances)?;
    let mut table = processes::table(memory, machine)?;
    let mut work = Division {
        memory,
        regions,
        processes: Processes::default(),
        spans: Vec::new(),
        matched: 0,
        into,
    };
    // First those with the processes, which tell where in the others their heaps are.
    let (processes, others): (Vec<&Carrier>, Vec<&Carrier>) = carriers
        .iter()
        .partition(|carrier| instances[carrier.instance].number == FIX);
    for carrier in processes {
        work.carrier(carrier)?;
        work.processes_in(carrier, &mut table)?;
    }
    table.must_be_empty()?;
    work.spans = work.processes.take_spans()?;
    for carrier in others {
        work.carrier(carrier)?;
    }
    if let Some(span) = work.spans.get(work.matched) {
        return Err(Refusal(format!(
            "the heap of a process at {:#x} is in no carrier",
            span.heap
        )));
    }
    let mut books = books_of(&carriers, &instances);
    work.cached_segments(&carriers, &instances, &mut books);
    work.processes.into_books(&work.spans, &mut books);
    Ok(books)
}

/// What the machine has in its own books, as found here.
fn books_of(carriers: &[Carrier], instances: &[Instance]) -> Books {
    let mut books = Books::new();
    for (number, name, _) in ALLOCATORS {
        let own = |carrier: &&Carrier| instances[carrier.instance].number == number;
        let sum = |of: fn(&Carrier) -> u64| carriers.iter().filter(own).map(of).sum::<u64>();
        books.insert(format!("{name}_carriers_bytes"), sum(Carrier::bytes));
        books.insert(
            format!("{name}_blocks_bytes"),
            sum(|carrier| carrier.blocks_bytes),
        );
    }
    books
}

struct Division<'a> {
    memory: &'a Memory<'a>,
    regions: &'a [ClassifiedRegion],
    processes: Processes,
    /// Heaps of processes, in address order.
    spans: Vec<Span>,
    /// How many of `spans` have been found in blocks; carriers come in address order too.
    matched: usize,
    into: &'a mut DivisionBuilder,
}

impl Division<'_> {
    fn carrier(&mut self, carrier: &Carrier) -> Result<(), Refusal> {
        let ours = self.lies_in_ours(carrier.start..carrier.end);
        let leaf = match carrier.holder {
            // What of it is whose cannot be told: its blocks keep the leaf of the region.
            Holder::Several => None,
            Holder::One(number) => ALLOCATORS
                .iter()
                .find(|(known, ..)| *known == number)
                .map(|(.., leaf)| *leaf),
        };
        if ours {
            self.into
                .add(carrier.start..carrier.first_block, Leaf::RuntimeInternal);
        }
        carriers::walk(self.memory, carrier, |block| {
            self.block(carrier, &block, leaf, ours)
        })
    }

    /// Reads the processes in a carrier; right after its blocks, which are in the cache of [`Memory`].
    fn processes_in(&mut self, carrier: &Carrier, table: &mut Table) -> Result<(), Refusal> {
        for process in table.take_in(carrier.start..carrier.end) {
            self.processes.add(self.memory, *process)?;
        }
        Ok(())
    }

    fn block(
        &mut self,
        carrier: &Carrier,
        block: &Block,
        leaf: Option<Leaf>,
        ours: bool,
    ) -> Result<(), Refusal> {
        let end = block.start + block.size;
        if !block.used {
            self.add(ours, block.start..end, Leaf::HeapFree);
            return Ok(());
        }
        let next = self.spans.get(self.matched).copied();
        let reached = next.filter(|span| carrier.holds_heaps() && span.heap <= block.data());
        if let Some(span) = reached {
            if span.heap < block.data() || span.hend > end {
                return Err(Refusal(format!(
                    "the heap of a process at {:#x} is no block of a carrier",
                    span.heap
                )));
            }
            self.matched += 1;
            self.add(ours, block.start..span.htop, Leaf::HeapObjects);
            self.add(ours, span.htop..span.stop, Leaf::HeapFree);
            self.add(ours, span.stop..span.hend, Leaf::TaskStack);
            self.add(ours, span.hend..end, Leaf::HeapFree);
            return Ok(());
        }
        if let Some(leaf) = leaf {
            self.add(ours, block.start..end, leaf);
        }
        Ok(())
    }

    fn add(&mut self, ours: bool, range: Range<u64>, leaf: Leaf) {
        if ours {
            self.into.add(range, leaf);
        }
    }

    /// Whether all of a range that is resident is in regions of ours.
    fn lies_in_ours(&self, range: Range<u64>) -> bool {
        let first = self
            .regions
            .partition_point(|region| region.range.end <= range.start);
        let mut inside = self.regions[first..]
            .iter()
            .take_while(|region| region.range.start < range.end);
        inside.all(|region| RULES.contains(&region.rule.id))
    }

    /// Segments that have been a carrier and are kept for the next one (erts/emulator/sys/common/erl_mseg.c):
    /// the old header is still there, and no instance has the carrier.
    fn cached_segments(&mut self, carriers: &[Carrier], instances: &[Instance], books: &mut Books) {
        let (mut cached, mut resident, mut unknown) = (0, 0, 0);
        let ours = |region: &&ClassifiedRegion| RULES.contains(&region.rule.id);
        for region in self.regions.iter().filter(ours) {
            for gap in carriers::gaps(carriers, &region.range) {
                let mut at = gap.start;
                while let Some(end) = carriers::old_carrier(self.memory, instances, at, gap.end) {
                    cached += end - at;
                    resident += resident_bytes(self.memory, at..end);
                    self.into.add(at..end, Leaf::HeapFree);
                    at = end;
                }
                unknown += resident_bytes(self.memory, at..gap.end);
            }
        }
        // Literals have a mapping of their own.
        let mapped = carriers
            .iter()
            .filter(|carrier| carrier.mapped && instances[carrier.instance].number != LITERAL);
        books.extend([
            (
                "mapped_bytes".into(),
                mapped.map(Carrier::bytes).sum::<u64>() + cached,
            ),
            ("cached_segments_resident_bytes".into(), resident),
            ("not_carriers_resident_bytes".into(), unknown),
        ]);
    }
}

fn resident_bytes(memory: &Memory, range: Range<u64>) -> u64 {
    memory
        .resident(range.start, range.end)
        .map(|part| part.end - part.start)
        .sum()
}

#[cfg(test)]
mod tests;
