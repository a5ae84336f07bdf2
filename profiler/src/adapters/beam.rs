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

use super::{
    Books, Refusal, Target,
    memory::{Memory, Shared},
    workers,
};
use crate::classify::{Leaf, division::DivisionBuilder, place::Region, runtime::Runtime};
use carriers::{Block, Carrier, Holder, Instance};
use machine::Machine;
use processes::{Heaps, Processes, Span};
use std::{
    iter::{self, Peekable},
    ops::Range,
    sync::{Mutex, PoisonError},
};

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
    regions: &[Region],
    machine: &Machine,
    into: &mut DivisionBuilder,
) -> Result<Books, Refusal> {
    let instances = carriers::instances(memory, machine)?;
    let carriers = carriers::carriers(memory, &instances)?;
    let table = processes::table(memory, machine)?;
    // First those with the processes, which tell where in the others their heaps are.
    let (with_processes, others): (Vec<&Carrier>, Vec<&Carrier>) = carriers
        .iter()
        .partition(|carrier| instances[carrier.instance].number == FIX);
    let number = table.len();
    let places = places(table, &with_processes)?;
    let work = Work {
        memory: memory.shared(),
        regions,
    };
    let (with_heaps, without): (Vec<&Carrier>, Vec<&Carrier>) = others
        .into_iter()
        .partition(|carrier| carrier.holds_heaps());
    let heaps = Mutex::new(Heaps::none_in(with_heaps, number));
    work.on_all(&places.by_carrier, into, |found, memory, (carrier, own)| {
        let mut its = Processes::default();
        found.carrier(memory, carrier, iter::empty())?;
        for &words in &places.words[own.clone()] {
            its.add(memory, carrier.start + 8 * u64::from(words))?;
        }
        // A thread that panics takes all of this with it.
        heaps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(its)
    })?;
    drop(places);
    let mut heaps = heaps.into_inner().unwrap_or_else(PoisonError::into_inner);
    heaps.sort()?;
    let shares: Vec<_> = heaps.by_carrier().collect();
    work.on_all(&shares, into, |found, memory, (carrier, own)| {
        found.carrier(memory, carrier, own.spans())
    })?;
    work.on_all(&without, into, |found, memory, carrier| {
        found.carrier(memory, carrier, iter::empty())
    })?;
    let mut books = books_of(&carriers, &instances);
    cached_segments(memory, regions, &carriers, &instances, into, &mut books);
    heaps.into_books(&mut books);
    Ok(books)
}

/// Where processes are. There are as many as tasks, so each takes four bytes.
struct Places<'a> {
    /// Words of eight bytes between the start of a carrier and a process in it.
    words: Vec<u32>,
    /// Each carrier, and which of the processes are in it.
    by_carrier: Vec<(&'a Carrier, Range<usize>)>,
}

/// Processes, by the carrier that they are in. Both come in address order.
fn places<'a>(processes: Vec<u64>, carriers: &[&'a Carrier]) -> Result<Places<'a>, Refusal> {
    let mut words = Vec::with_capacity(processes.len());
    let mut by_carrier = Vec::with_capacity(carriers.len());
    let mut rest = processes.iter().copied().peekable();
    for &carrier in carriers {
        let first = words.len();
        let behind = |process: u64| {
            let bytes = process.checked_sub(carrier.start)?;
            u32::try_from(bytes / 8)
                .ok()
                .filter(|_| bytes.is_multiple_of(8))
        };
        while let Some(process) = rest.next_if(|&process| process < carrier.end) {
            words.push(behind(process).ok_or_else(|| outside(process))?);
        }
        by_carrier.push((carrier, first..words.len()));
    }
    match rest.next() {
        None => Ok(Places { words, by_carrier }),
        Some(process) => Err(outside(process)),
    }
}

fn outside(process: u64) -> Refusal {
    Refusal(format!(
        "the process at {process:#x} is in no carrier of fix_alloc"
    ))
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

/// What all threads need that go through carriers.
#[derive(Clone, Copy)]
struct Work<'a> {
    memory: Shared<'a>,
    regions: &'a [Region<'a>],
}

impl<'a> Work<'a> {
    /// Does the same with each of these, on all CPUs, and adds what has been found.
    fn on_all<T: Sync>(
        self,
        parts: &[T],
        into: &mut DivisionBuilder,
        each: impl Fn(&mut Found, &Memory, &T) -> Result<(), Refusal> + Sync,
    ) -> Result<(), Refusal> {
        let found = workers::share(parts, |queue| {
            let memory = self.memory.memory();
            let of_part = |part| {
                let mut found = Found {
                    regions: self.regions,
                    into: DivisionBuilder::default(),
                };
                each(&mut found, &memory, part).map(|()| found.into)
            };
            queue.map(|(index, part)| (index, of_part(part))).collect()
        });
        for found in found {
            into.append_builder(found?);
        }
        Ok(())
    }
}

/// What has been found in a carrier.
struct Found<'a> {
    regions: &'a [Region<'a>],
    into: DivisionBuilder,
}

impl Found<'_> {
    /// Divides a carrier with these heaps of processes in it.
    fn carrier(
        &mut self,
        memory: &Memory,
        carrier: &Carrier,
        spans: impl Iterator<Item = Span>,
    ) -> Result<(), Refusal> {
        let mut spans = spans.peekable();
        let ours = lies_in_ours(self.regions, carrier.start..carrier.end);
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
        carriers::walk(memory, carrier, |block| {
            self.block(&block, &mut spans, leaf, ours)
        })?;
        spans.next().map_or(Ok(()), |span| Err(no_block(&span)))
    }

    /// A block, which may be the next of these heaps.
    fn block(
        &mut self,
        block: &Block,
        spans: &mut Peekable<impl Iterator<Item = Span>>,
        leaf: Option<Leaf>,
        ours: bool,
    ) -> Result<(), Refusal> {
        let end = block.start + block.size;
        if !block.used {
            self.add(ours, block.start..end, Leaf::HeapFree);
            return Ok(());
        }
        if let Some(span) = spans.next_if(|span| span.heap <= block.data()) {
            if span.heap < block.data() || span.hend() > end {
                return Err(no_block(&span));
            }
            self.add(ours, block.start..span.htop(), Leaf::HeapObjects);
            self.add(ours, span.htop()..span.stop(), Leaf::HeapFree);
            self.add(ours, span.stop()..span.hend(), Leaf::TaskStack);
            self.add(ours, span.hend()..end, Leaf::HeapFree);
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
}

fn no_block(span: &Span) -> Refusal {
    Refusal(format!(
        "the heap of a process at {:#x} is no block of a carrier",
        span.heap
    ))
}

/// Whether all of a range that is resident is in regions of ours.
fn lies_in_ours(regions: &[Region], range: Range<u64>) -> bool {
    let first = regions.partition_point(|region| region.range.end <= range.start);
    let mut inside = regions[first..]
        .iter()
        .take_while(|region| region.range.start < range.end);
    inside.all(|region| RULES.contains(&region.rule.id))
}

/// Segments that have been a carrier and are kept for the next one (erts/emulator/sys/common/erl_mseg.c):
/// the old header is still there, and no instance has the carrier.
fn cached_segments(
    memory: &Memory,
    regions: &[Region],
    carriers: &[Carrier],
    instances: &[Instance],
    into: &mut DivisionBuilder,
    books: &mut Books,
) {
    let (mut cached, mut resident, mut unknown) = (0, 0, 0);
    let ours = |region: &&Region| RULES.contains(&region.rule.id);
    for region in regions.iter().filter(ours) {
        for gap in carriers::gaps(carriers, &region.range) {
            let mut at = gap.start;
            while let Some(end) = carriers::old_carrier(memory, instances, at, gap.end) {
                cached += end - at;
                resident += resident_bytes(memory, at..end);
                into.add(at..end, Leaf::HeapFree);
                at = end;
            }
            unknown += resident_bytes(memory, at..gap.end);
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

fn resident_bytes(memory: &Memory, range: Range<u64>) -> u64 {
    memory
        .resident(range.start, range.end)
        .map(|part| part.end - part.start)
        .sum()
}

#[cfg(test)]
mod tests;
