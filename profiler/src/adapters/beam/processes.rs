//! The table of processes, and where each has its heap and its stack.

use super::{
    super::{
        Books, Refusal,
        memory::{Memory, Words},
    },
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
/// then. The bytes between `htop` and `stop` hold nothing. There are as many as tasks, so each takes 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) heap: u64,
    /// How far the others are behind `heap`, in words.
    htop: u32,
    stop: u32,
    hend: u32,
}

/// What is known of the processes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Processes {
    spans: Vec<Span>,
    count: u64,
    /// Those that run, or collect, or end: their memory stays undivided.
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
    /// None yet.
    pub(super) fn with_room(processes: usize) -> Processes {
        Processes {
            spans: Vec::with_capacity(processes),
            ..Processes::default()
        }
    }

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

    /// Takes over others.
    pub(super) fn append(&mut self, mut other: Processes) {
        self.spans.append(&mut other.spans);
        self.count += other.count;
        self.undivided += other.undivided;
    }

    /// Heaps and old heaps, in address order.
    pub(super) fn take_spans(&mut self) -> Result<Vec<Span>, Refusal> {
        let mut spans = std::mem::take(&mut self.spans);
        spans.sort_unstable_by_key(|span| span.heap);
        match spans.windows(2).find(|it| it[0].hend() > it[1].heap) {
            None => Ok(spans),
            Some(pair) => Err(Refusal(format!(
                "two processes have the heap at {:#x}",
                pair[1].heap
            ))),
        }
    }

    /// Adds the sums over these processes and their heaps.
    pub(super) fn into_books(self, spans: &[Span], books: &mut Books) {
        let sum = |of: fn(&Span) -> u64| spans.iter().map(of).sum::<u64>();
        books.extend([
            ("processes".into(), self.count),
            ("processes_undivided".into(), self.undivided),
            (
                "process_heap_bytes".into(),
                sum(|span| span.hend() - span.heap),
            ),
            (
                "process_objects_bytes".into(),
                sum(|span| span.htop() - span.heap),
            ),
            (
                "process_gap_bytes".into(),
                sum(|span| span.stop() - span.htop()),
            ),
            (
                "process_stack_bytes".into(),
                sum(|span| span.hend() - span.stop()),
            ),
        ]);
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
            htop,
            stop,
            hend,
        })
    }

    pub(super) fn htop(&self) -> u64 {
        self.heap + 8 * u64::from(self.htop)
    }

    pub(super) fn stop(&self) -> u64 {
        self.heap + 8 * u64::from(self.stop)
    }

    pub(super) fn hend(&self) -> u64 {
        self.heap + 8 * u64::from(self.hend)
    }
}
