//! The table of processes, and where each has its heap and its stack.

use indexmap::IndexSet;

use super::{
    super::{
        Books, Refusal,
        memory::{Memory, Words},
    },
    carriers::Carrier,
    machine::{Machine, PROCESS_BYTES},
};

/// In `ErtsPTab` (erl_ptab.h, OTP 25): how many processes there are, the table, its length, the element
/// that stands for a process that is being made, and the bytes of one process.
const TABLE_COUNT: u64 = 128 + 8;
const TABLE: u64 = 192;
const TABLE_LENGTH: u64 = TABLE + 16;
const TABLE_INVALID: u64 = TABLE + 56;
const TABLE_ELEMENT_SIZE: u64 = TABLE + 80;
/// `ERTS_PTAB_MAX_SIZE` (erl_ptab.h).
const TABLE_LONGEST: u64 = 1 << 27;

/// In `struct process` (erl_process.h, OTP 25 with BeamAsm).
const HTOP: usize = 80;
const STOP: usize = 88;
const HEAP: usize = 128;
const HEND: usize = 136;
const ABANDONED_HEAP: usize = 144;
const HEAP_WORDS: usize = 152;
const OLD_HEND: usize = 504;
const OLD_HTOP: usize = 512;
const OLD_HEAP: usize = 520;
const STATE: usize = 640;

/// `ERTS_PSFLG_FREE`, `EXITING`, `RUNNING`, `GC`, `RUNNING_SYS`, `DIRTY_RUNNING`, `DIRTY_RUNNING_SYS`
/// (erl_process.h): its heap may be changing, or its pointers may be in registers of a thread. The flags
/// are above the bits of three priorities (`ERTS_PSFLGS_ZERO_BIT_OFFSET`).
const BUSY: u32 = (1 << 4 | 1 << 5 | 1 << 9 | 1 << 11 | 1 << 15 | 1 << 23 | 1 << 24) << 6;

/// The heap and the stack of a process, or its old heap, which has no stack: `stop` and `hend` are equal
/// then. The bytes between `htop` and `stop` hold nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) heap: u64,
    shape: Shape,
}

/// How far `htop`, `stop` and `hend` are behind `heap`, in words of eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    htop: u32,
    stop: u32,
    hend: u32,
}

/// Processes that have been read.
#[derive(Debug, Default)]
pub(super) struct Processes {
    spans: Vec<Span>,
    count: u64,
    /// Those that run, or collect, or end: their memory stays undivided.
    undivided: u64,
}

/// The heaps of all processes. There are as many as tasks, so each takes eight bytes; tasks are alike, and so are the
/// shapes of their heaps, which are kept once.
pub(super) struct Heaps<'a> {
    /// The carriers that may hold heaps, in address order, each with the words in those before it.
    carriers: Vec<(&'a Carrier, u64)>,
    /// Of each heap: above [`Heaps::SHAPE_BITS`] the words of all carriers before it, below them its shape.
    places: Vec<u64>,
    shapes: IndexSet<Shape>,
    count: u64,
    undivided: u64,
}

/// The processes of the table, in address order.
pub(super) fn table(memory: &Memory, machine: &Machine) -> Result<Vec<u64>, Refusal> {
    let table = machine.processes;
    let element_bytes = memory.u64(table.wrapping_add(TABLE_ELEMENT_SIZE))?;
    if element_bytes != PROCESS_BYTES {
        return Err(Refusal(format!(
            "a process of this machine is {element_bytes} bytes long, not {PROCESS_BYTES}: its structures differ"
        )));
    }
    let elements = memory.u64(table.wrapping_add(TABLE))?;
    let length = u64::from(memory.u32(table.wrapping_add(TABLE_LENGTH))?);
    let count = u64::from(memory.u32(table.wrapping_add(TABLE_COUNT))?);
    let invalid = memory.u64(table.wrapping_add(TABLE_INVALID))?;
    let end = elements.checked_add(8 * length);
    let sound = elements.is_multiple_of(8) && length <= TABLE_LONGEST && count <= length;
    let (Some(end), true) = (end, sound) else {
        return Err(Refusal(format!(
            "the table of processes at {elements:#x} cannot hold {count} of {length}"
        )));
    };
    let mut processes = Vec::new();
    // An entry that nobody used is zero, on a page that may not be resident.
    for part in memory.resident(elements, end) {
        for at in (part.start.max(elements)..part.end.min(end)).step_by(8) {
            let process = memory.u64(at)?;
            if process != 0 && process != invalid {
                processes.push(process);
            }
        }
    }
    if processes.len() as u64 != count {
        return Err(Refusal(format!(
            "the table at {elements:#x} has {} processes, and says {count}",
            processes.len()
        )));
    }
    processes.sort();
    Ok(processes)
}

impl Processes {
    /// Reads a process.
    pub(super) fn add(&mut self, memory: &Memory, process: u64) -> Result<(), Refusal> {
        let mut bytes = [0; PROCESS_BYTES as usize];
        memory.read(process, &mut bytes)?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        self.count += 1;
        let state = word(STATE) as u32;
        // Without room for a collection, a process goes on in a fragment (`delay_garbage_collection`, erl_gc.c);
        // one that is being made has no heap yet.
        if state & BUSY != 0 || word(ABANDONED_HEAP) != 0 || word(HEAP) == 0 {
            self.undivided += 1;
            return Ok(());
        }
        let new = [HEAP, HTOP, STOP, HEND].map(word);
        let old = [OLD_HEAP, OLD_HTOP, OLD_HEND, OLD_HEND].map(word);
        let heap_bytes = word(HEAP_WORDS).checked_mul(8);
        let whole = |span: &Span| Some(span.hend() - span.heap) == heap_bytes;
        let (new_span, old_span) = (Span::of(new).filter(whole), Span::of(old));
        let (Some(span), true) = (new_span, old[0] == 0 || old_span.is_some()) else {
            return Err(Refusal(format!(
                "the process at {process:#x} has no heap that could be one: {new:x?}, old {old:x?}"
            )));
        };
        self.spans.push(span);
        self.spans.extend(old_span);
        Ok(())
    }
}

impl<'a> Heaps<'a> {
    const SHAPE_BITS: u32 = 24;

    /// None yet, in carriers that come in address order; with room for so many.
    pub(super) fn none_in(
        carriers: impl IntoIterator<Item = &'a Carrier>,
        room: usize,
    ) -> Heaps<'a> {
        let mut before = 0;
        let each = |carrier: &'a Carrier| {
            let own = (carrier, before);
            before += carrier.bytes() / 8;
            own
        };
        Heaps {
            carriers: carriers.into_iter().map(each).collect(),
            places: Vec::with_capacity(room),
            shapes: IndexSet::new(),
            count: 0,
            undivided: 0,
        }
    }

    /// Takes over what has been read.
    pub(super) fn take(&mut self, processes: Processes) -> Result<(), Refusal> {
        self.count += processes.count;
        self.undivided += processes.undivided;
        for Span { heap, shape } in processes.spans {
            let behind = |(carrier, _): &(&Carrier, u64)| carrier.end <= heap;
            let carrier = self.carriers.get(self.carriers.partition_point(behind));
            let Some((carrier, before)) = carrier.filter(|(carrier, _)| carrier.start <= heap)
            else {
                return Err(Refusal(format!(
                    "the heap of a process at {heap:#x} is in no carrier"
                )));
            };
            let words = before + (heap - carrier.start) / 8;
            let (shape, _) = self.shapes.insert_full(shape);
            if shape >> Self::SHAPE_BITS != 0 || words >> (u64::BITS - Self::SHAPE_BITS) != 0 {
                return Err(Refusal(format!(
                    "the heaps of processes have {shape} shapes and more, or lie behind {words} words"
                )));
            }
            self.places.push(words << Self::SHAPE_BITS | shape as u64);
        }
        Ok(())
    }

    /// Puts them in address order. None may be where another is.
    pub(super) fn sort(&mut self) -> Result<(), Refusal> {
        self.places.sort_unstable();
        let overlaps = |pair: &&[u64]| {
            let [(words, shape), (next, _)] = [pair[0], pair[1]].map(|place| self.part(place));
            words + u64::from(shape.hend) > next
        };
        let Some(pair) = self.places.windows(2).find(overlaps) else {
            return Ok(());
        };
        let words = self.part(pair[1]).0;
        let index = self
            .carriers
            .partition_point(|(_, before)| *before <= words);
        let at = index.checked_sub(1).map_or(0, |index| {
            let (carrier, before) = self.carriers[index];
            carrier.start + 8 * (words - before)
        });
        Err(Refusal(format!("two processes have the heap at {at:#x}")))
    }

    /// The words before a heap, and its shape.
    fn part(&self, place: u64) -> (u64, Shape) {
        let shape = place & ((1 << Self::SHAPE_BITS) - 1);
        (place >> Self::SHAPE_BITS, self.shapes[shape as usize])
    }

    /// Each carrier, and which of the heaps are in it, once they are sorted.
    pub(super) fn by_carrier(&self) -> impl Iterator<Item = (&'a Carrier, InCarrier<'_>)> {
        self.carriers.iter().map(|&(carrier, before)| {
            let end = before + carrier.bytes() / 8;
            let from = |words: u64| {
                let is_before = |place: &u64| place >> Self::SHAPE_BITS < words;
                self.places.partition_point(is_before)
            };
            let own = InCarrier {
                heaps: self,
                places: &self.places[from(before)..from(end)],
                start: carrier.start,
                before,
            };
            (carrier, own)
        })
    }

    /// Adds the sums over the processes and their heaps.
    pub(super) fn into_books(self, books: &mut Books) {
        let sum = |of: fn(Shape) -> u32| {
            let words = |&place: &u64| u64::from(of(self.part(place).1));
            8 * self.places.iter().map(words).sum::<u64>()
        };
        books.extend([
            ("processes".into(), self.count),
            ("processes_undivided".into(), self.undivided),
            ("process_heap_bytes".into(), sum(|shape| shape.hend)),
            ("process_objects_bytes".into(), sum(|shape| shape.htop)),
            (
                "process_gap_bytes".into(),
                sum(|shape| shape.stop - shape.htop),
            ),
            (
                "process_stack_bytes".into(),
                sum(|shape| shape.hend - shape.stop),
            ),
        ]);
    }
}

/// The heaps in one carrier.
#[derive(Clone, Copy)]
pub(super) struct InCarrier<'a> {
    heaps: &'a Heaps<'a>,
    places: &'a [u64],
    /// First byte of the carrier, and the words of the carriers before it.
    start: u64,
    before: u64,
}

impl InCarrier<'_> {
    /// In address order.
    pub(super) fn spans(&self) -> impl Iterator<Item = Span> {
        self.places.iter().map(|&place| {
            let (words, shape) = self.heaps.part(place);
            Span {
                heap: self.start + 8 * (words - self.before),
                shape,
            }
        })
    }
}

impl Span {
    /// `heap`, `htop`, `stop` and `hend`, if they are in order and of less than 32 GiB.
    fn of(places: [u64; 4]) -> Option<Span> {
        let [heap, ..] = places;
        let sound = heap != 0 && places.is_sorted() && places.iter().all(|at| at.is_multiple_of(8));
        let [_, htop, stop, hend] = sound
            .then_some(places)?
            .map(|at| u32::try_from((at - heap) / 8).ok());
        let (htop, stop, hend) = (htop?, stop?, hend.filter(|&words| words > 0)?);
        Some(Span {
            heap,
            shape: Shape { htop, stop, hend },
        })
    }

    pub(super) fn htop(&self) -> u64 {
        self.behind(self.shape.htop)
    }

    pub(super) fn stop(&self) -> u64 {
        self.behind(self.shape.stop)
    }

    pub(super) fn hend(&self) -> u64 {
        self.behind(self.shape.hend)
    }

    fn behind(&self, words: u32) -> u64 {
        self.heap + 8 * u64::from(words)
    }
}
