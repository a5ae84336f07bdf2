//! glibc's malloc: which chunks are in use, which are free, and what the arenas take themselves.
//!
//! A heap is a row of chunks without a gap. Each begins with the size of the one before it (when that is
//! free) and its own size, whose low bits are flags; the last one of an arena is its *top*:
//!
//! ```text
//! at           word 0: size of the previous chunk, if free (else its data)
//! at + 8       word 1: size | 1 the previous chunk is in use | 2 mapped | 4 not of the main arena
//! at + size    the next chunk
//! ```
//!
//! So the row is walked from the start of the heap, and has to end exactly at its end. Sources: glibc
//! 2.36, malloc/malloc.c (`struct malloc_chunk`, `struct malloc_state`, `tcache_perthread_struct`) and
//! malloc/arena.c (`heap_info`). Layouts are the same from 2.27 to 2.41 but for what is said below.
//!
//! What glibc's own `mallinfo2` calls in use includes the chunks that a thread keeps for itself
//! (tcache); they hold nothing, so they count as free here, and stand in the books by themselves.

mod row;

use std::{
    collections::{BTreeSet, HashSet},
    iter::Peekable,
    ops::Range,
};

use super::{
    Books, Refusal, Target,
    memory::{Memory, Unreadable, Words},
    workers,
};
use crate::classify::{Leaf, division::DivisionBuilder};
use row::Row;

/// Heaps of arenas lie at multiples of this (`HEAP_MAX_SIZE`, malloc/arena.c; twice
/// `DEFAULT_MMAP_THRESHOLD_MAX`).
const HEAP_ALIGNMENT: u64 = 64 << 20;
/// Bytes of `struct malloc_state` with 10 fastbins and 254 bins.
const STATE_BYTES: u64 = 0x898;
/// In `struct malloc_state`: the fastbins, the top chunk, the bins (two links each), what the arena has from
/// the system.
const STATE_FASTBINS: u64 = 0x10;
const FASTBINS: u64 = 10;
const STATE_TOP: u64 = 0x60;
const STATE_BINS: u64 = 0x70;
const BINS: u64 = 127;
const STATE_SYSTEM: u64 = 0x888;
/// In `heap_info`: the arena, and the bytes of this heap.
const HEAP_SIZE: u64 = 0x10;

const PREVIOUS_IN_USE: u64 = 1;
const FLAGS: u64 = 7;
/// Smallest chunk.
const SMALLEST: u64 = 32;
const ALIGNMENT: u64 = 16;
/// Of a chunk, before its data.
const CHUNK_HEADER: u64 = 16;
/// Chunks of this size and less end a heap that another one continues (`sysmalloc`).
const FENCE: u64 = 16;

/// `tcache_perthread_struct` of 2.30 and later: 64 counts of two bytes, 64 lists; as a chunk.
const TCACHE_BINS: u16 = 64;
const TCACHE_CHUNK: u64 = 0x290;
/// The largest chunk that a thread keeps: that of the last list.
const LARGEST_CACHED: u64 = SMALLEST + ALIGNMENT * (TCACHE_BINS as u64 - 1);
/// A list is at most 7 long by default; `glibc.malloc.tcache_count` allows this many.
const TCACHE_LONGEST: u16 = u16::MAX >> 1;

/// Lists that one thread of ours follows side by side.
const LISTS_AT_ONCE: usize = 1 << 16;

/// A static program's thread-local storage ends before that, in bytes from the start of the program break.
const EARLY_MOST: u64 = 64 << 10;

/// One heap: a row of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heap {
    /// First chunk.
    start: u64,
    /// One past the last.
    end: u64,
    /// Address of the arena; `None` for the main one, which lies in libc's data.
    arena: Option<u64>,
}

/// Divides the program break and the heaps of arenas.
pub fn divide(target: &Target, into: &mut DivisionBuilder) -> Result<Option<Books>, Refusal> {
    let heaps = heaps(target)?;
    if heaps.is_empty() {
        return Ok(None);
    }
    let used = match target.runtime.keeps_objects_outside_malloc() {
        true => Leaf::VmMalloc,
        false => Leaf::MallocUsed,
    };
    let mut walked = walk_all(target.memory, &heaps)?;
    let tops: Vec<u64> = walked.iter().filter_map(|heap| heap.top).collect();
    let cached = cached_by_threads(&mut walked);
    let fast = fast_chunks(target, &heaps, &tops)?;
    let divided = workers::share(&walked, |queue| {
        queue
            .map(|(index, heap)| (index, heap.divide(&cached, &fast, used)))
            .collect()
    });
    let mut books = Tally::default();
    for (division, tally) in divided {
        into.append_builder(division);
        books.add(&tally);
    }
    let main = heaps.iter().find(|heap| heap.arena.is_none());
    if let (Some(first), Some(main)) = (breaks(target).next(), main)
        && first.start < main.start
    {
        // Thread-local storage of a static program.
        into.add(first.start..main.start, Leaf::RuntimeInternal);
    }
    for heap in heaps.iter().filter(|heap| heap.arena.is_some()) {
        // `heap_info`, and in the first heap `malloc_state`.
        let base = heap.start & !(HEAP_ALIGNMENT - 1);
        into.add(base..heap.start, Leaf::RuntimeInternal);
        books.headers += heap.start - base;
    }
    books.arenas = heaps
        .iter()
        .map(|heap| heap.arena)
        .collect::<BTreeSet<_>>()
        .len() as u64;
    Ok(Some(books.into_books()))
}

/// Whether the next of these addresses is this one. Both come in order; those that are passed over are no chunks.
fn reaches(addresses: &mut Peekable<impl Iterator<Item = u64>>, at: u64) -> bool {
    while addresses.next_if(|&next| next < at).is_some() {}
    addresses.next_if_eq(&at).is_some()
}

/// Sums, in bytes unless they say otherwise.
#[derive(Default)]
struct Tally {
    in_use: u64,
    blocks: u64,
    free: u64,
    cached: u64,
    headers: u64,
    arenas: u64,
}

impl Tally {
    /// What one heap adds. Headers and arenas are counted once all are known.
    fn add(&mut self, heap: &Tally) {
        self.in_use += heap.in_use;
        self.blocks += heap.blocks;
        self.free += heap.free;
        self.cached += heap.cached;
    }

    fn into_books(self) -> Books {
        Books::from([
            // As `mallinfo2().uordblks` counts: with what threads keep.
            ("in_use_bytes".into(), self.in_use),
            ("in_use_blocks".into(), self.blocks),
            ("free_bytes".into(), self.free),
            ("thread_cache_bytes".into(), self.cached),
            // `mallinfo2` counts them as in use.
            ("arena_header_bytes".into(), self.headers),
            ("arenas".into(), self.arenas),
        ])
    }
}

/// The parts of the program break.
fn breaks<'a>(target: &'a Target) -> impl Iterator<Item = Range<u64>> + 'a {
    ["malloc.brk", "malloc.brk.vm"]
        .into_iter()
        .flat_map(|rule| target.regions_of(rule))
        .map(|region| region.range.clone())
}

/// The heaps of the process, by the regions that the rules found.
fn heaps(target: &Target) -> Result<Vec<Heap>, Refusal> {
    let memory = target.memory;
    let mut heaps = Vec::new();
    let breaks: Vec<_> = breaks(target).collect();
    if let (Some(first), Some(last)) = (breaks.first(), breaks.last()) {
        // The first page always is resident: it holds the first chunk.
        heaps.push(Heap {
            start: first_chunk(memory, first.start)?,
            end: last.end,
            arena: None,
        });
    }
    let arenas = target
        .regions_of("malloc.arena")
        .chain(target.regions_of("malloc.arena.vm"));
    let bases: BTreeSet<u64> = arenas
        .map(|region| region.range.start & !(HEAP_ALIGNMENT - 1))
        .collect();
    for base in bases {
        let arena = memory.u64(base)?;
        let size = memory.u64(base + HEAP_SIZE)?;
        // The arena lies behind the `heap_info` of its first heap, so that tells how long one is: 0x20
        // bytes, 0x30 since 2.35.
        let info = arena % HEAP_ALIGNMENT;
        let fits = size.is_multiple_of(ALIGNMENT) && size <= HEAP_ALIGNMENT && size > info;
        if !(0x20..=0x40).contains(&info) || !fits {
            return Err(Refusal(format!(
                "{base:#x} does not look like a heap of glibc"
            )));
        }
        let first = arena - info == base;
        let header = info + if first { STATE_BYTES } else { 0 };
        if size < header + SMALLEST {
            return Err(Refusal(format!("the heap at {base:#x} has no room")));
        }
        heaps.push(Heap {
            start: (base + header).next_multiple_of(ALIGNMENT),
            end: base + size,
            arena: Some(arena),
        });
    }
    heaps.sort_unstable_by_key(|heap| heap.start);
    Ok(heaps)
}

/// Where the chunks of the program break begin. A static program takes the storage of its first thread from there before
/// it calls malloc (`_dl_early_allocate`, elf/dl-early_allocate.c); malloc's own first chunk is its thread's tcache. The row
/// that begins at what is taken for it has to end at the heap's end, as any other.
fn first_chunk(memory: &Memory, start: u64) -> Result<u64, Unreadable> {
    let is_size = |head: u64| head & !FLAGS >= SMALLEST && head & PREVIOUS_IN_USE != 0;
    if is_size(memory.u64(start + 8)?) {
        return Ok(start);
    }
    let first = (start..start + EARLY_MOST)
        .step_by(ALIGNMENT as usize)
        .find(|at| memory.u64(at + 8) == Ok(TCACHE_CHUNK | PREVIOUS_IN_USE));
    Ok(first.unwrap_or(start))
}

/// What one heap holds.
#[derive(Debug, Default)]
struct Walked {
    chunks: Row,
    /// Its top chunk, if it has one: the others end with a fence.
    top: Option<u64>,
    /// Chunks that threads may keep for themselves, in address order.
    links: Vec<Link>,
    /// Where the lists begin of what may be a thread's cache.
    lists: Vec<Step>,
}

impl Walked {
    /// Divides it. `cached` and `fast` are the addresses of all chunks that threads keep, and that are in fastbins, in order.
    fn divide(&self, cached: &[u64], fast: &[u64], used: Leaf) -> (DivisionBuilder, Tally) {
        let (mut into, mut tally) = (DivisionBuilder::default(), Tally::default());
        let from_here =
            |addresses: &[u64]| addresses.partition_point(|&at| at < self.chunks.start());
        let mut cached = cached[from_here(cached)..].iter().copied().peekable();
        let mut fast = fast[from_here(fast)..].iter().copied().peekable();
        for chunk in self.chunks.iter() {
            let kept = reaches(&mut cached, chunk.at);
            tally.cached += if kept { chunk.size } else { 0 };
            let is_fast = reaches(&mut fast, chunk.at);
            let free = !chunk.in_use || is_fast;
            if free {
                tally.free += chunk.size;
            } else {
                tally.in_use += chunk.size;
                tally.blocks += 1;
            }
            let leaf = if free || kept { Leaf::HeapFree } else { used };
            into.add(chunk.at..chunk.at + chunk.size, leaf);
        }
        (into, tally)
    }
}

/// Walks all heaps, side by side.
fn walk_all(memory: &Memory, heaps: &[Heap]) -> Result<Vec<Walked>, Refusal> {
    let shared = memory.shared();
    let walked = workers::share(heaps, |queue| {
        let memory = shared.memory();
        queue
            .map(|(index, heap)| (index, walk(&memory, heap, heaps)))
            .collect()
    });
    walked.into_iter().collect()
}

/// Walks one of all heaps.
fn walk(memory: &Memory, heap: &Heap, heaps: &[Heap]) -> Result<Walked, Refusal> {
    let mut walked = Walked {
        chunks: Row::at(heap.start),
        ..Walked::default()
    };
    let mut at = heap.start;
    let mut head = memory.u64(at + 8)?;
    loop {
        let size = head & !FLAGS;
        if size == heap.end - at {
            walked.chunks.push(size, false);
            walked.top = Some(at);
            return Ok(walked);
        }
        if size < SMALLEST || !size.is_multiple_of(ALIGNMENT) || size > heap.end - at {
            return Err(Refusal(format!(
                "the chunk at {at:#x} cannot be {size} bytes long; not glibc's malloc, or in the middle of a call"
            )));
        }
        let next = at + size;
        let next_head = memory.u64(next + 8)?;
        let in_use = next_head & PREVIOUS_IN_USE != 0;
        walked.chunks.push(size, in_use);
        if in_use && size <= LARGEST_CACHED {
            walked.links.extend(link(memory, at, size, heaps));
        }
        if in_use && size == TCACHE_CHUNK {
            walked.lists.extend(lists(memory, at + CHUNK_HEADER));
        }
        if next_head & !FLAGS <= FENCE {
            // What is left of the heap is its fence.
            walked.chunks.push(heap.end - next, false);
            return Ok(walked);
        }
        (at, head) = (next, next_head);
    }
}

/// A chunk that looks as if a thread kept it: as an entry of a list. 100,000 threads have half a million.
#[derive(Debug, Clone, Copy)]
struct Link {
    /// Address of the entry, which is the data of the chunk; in the bits that no address has, the size of the chunk in
    /// [`ALIGNMENT`]s.
    entry_and_size: u64,
    /// The next entry, 0 behind the last.
    next: u64,
}

/// An address of user space has 57 bits at most (Documentation/arch/x86/x86_64/5level-paging.rst).
const ADDRESS_BITS: u32 = 57;
const _: () = assert!(LARGEST_CACHED / ALIGNMENT < 1 << (u64::BITS - ADDRESS_BITS));

impl Link {
    fn new(entry: u64, size: u64, next: u64) -> Link {
        let entry_and_size = entry | (size / ALIGNMENT) << ADDRESS_BITS;
        Link {
            entry_and_size,
            next,
        }
    }

    fn entry(&self) -> u64 {
        self.entry_and_size & ((1 << ADDRESS_BITS) - 1)
    }

    fn size(&self) -> u64 {
        (self.entry_and_size >> ADDRESS_BITS) * ALIGNMENT
    }
}

/// The chunk at `at` as an entry of a list; `None` when it leads to no heap.
fn link(memory: &Memory, at: u64, size: u64, heaps: &[Heap]) -> Option<Link> {
    let entry = at + CHUNK_HEADER;
    // `REVEAL_PTR`, since 2.32: the next pointer is mixed with its own address. Where the page of the data is not
    // resident, nothing was kept there.
    let next = memory.u64(entry).ok()? ^ (entry >> 12);
    let leads_on = next == 0 || {
        let behind = heaps.partition_point(|heap| heap.start <= next);
        let heap = behind.checked_sub(1).map(|index| heaps[index]);
        next.is_multiple_of(ALIGNMENT) && heap.is_some_and(|heap| next < heap.end)
    };
    leads_on.then(|| Link::new(entry, size, next))
}

/// Addresses of the chunks that threads keep for themselves, in order. A thread's lists are in a chunk of one
/// size, which other data may have too: so each of its words has to be right.
fn cached_by_threads(walked: &mut [Walked]) -> Vec<u64> {
    let mut steps: Vec<Step> = Vec::new();
    for heap in &mut *walked {
        steps.extend(std::mem::take(&mut heap.lists));
    }
    // Nobody else needs them, and there may be a few MiB of them.
    let links: Vec<Vec<Link>> = walked
        .iter_mut()
        .map(|heap| std::mem::take(&mut heap.links))
        .collect();
    let parts: Vec<&[Step]> = steps.chunks(LISTS_AT_ONCE).collect();
    let followed = workers::share(&parts, |queue| {
        queue
            .map(|(index, lists)| (index, follow(lists.to_vec(), &links)))
            .collect()
    });
    let refuted: HashSet<u64> = followed
        .iter()
        .flat_map(|it| &it.refuted)
        .copied()
        .collect();
    let found = followed.into_iter().flat_map(|it| it.found);
    let mut cached: Vec<u64> = found
        .filter(|(_, cache)| !refuted.contains(cache))
        .map(|(at, _)| at)
        .collect();
    // They are a few long runs in order, which this way of sorting makes use of.
    cached.sort();
    cached.dedup();
    cached
}

/// Where lists lead.
#[derive(Default)]
struct Followed {
    /// Addresses of chunks, each with that of the cache whose list it is in.
    found: Vec<(u64, u64)>,
    /// Addresses of what cannot be a cache.
    refuted: Vec<u64>,
}

/// Follows lists side by side, one step at a time in the order of addresses, so that what may be an entry is gone
/// through, and not searched.
fn follow(mut steps: Vec<Step>, links: &[Vec<Link>]) -> Followed {
    let mut followed = Followed::default();
    while !steps.is_empty() {
        steps.sort_unstable_by_key(|step| step.entry);
        let mut next_steps = Vec::new();
        let mut links = links.iter().flatten().peekable();
        for step in steps {
            while links.next_if(|link| link.entry() < step.entry).is_some() {}
            let link = links.peek().filter(|link| link.entry() == step.entry);
            // Bin n holds chunks of 32 + 16 n bytes.
            let size = SMALLEST + ALIGNMENT * u64::from(step.bin);
            let Some(&&Link { next, .. }) = link.filter(|link| link.size() == size) else {
                followed.refuted.push(step.cache);
                continue;
            };
            followed.found.push((step.entry - CHUNK_HEADER, step.cache));
            match (step.left - 1, next) {
                (0, 0) => {}
                (0, _) => followed.refuted.push(step.cache),
                (left, entry) => next_steps.push(Step {
                    entry,
                    left,
                    ..step
                }),
            }
        }
        steps = next_steps;
    }
    followed
}

/// A place in a thread's list of chunks.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Address of the entry.
    entry: u64,
    /// Address of the `tcache_perthread_struct` whose list it is.
    cache: u64,
    /// Entries from this one on.
    left: u16,
    /// Which of its lists.
    bin: u16,
}

/// The first step of each list of the `tcache_perthread_struct` at `address`; none when it cannot be one: as when a part is
/// not resident, since glibc writes all of it (`tcache_init`).
fn lists(memory: &Memory, address: u64) -> Vec<Step> {
    let mut words = [0; 10 * TCACHE_BINS as usize];
    if memory.read(address, &mut words).is_err() {
        return Vec::new();
    }
    // How long each list is, then where each begins.
    let (lengths, entries) = words.split_at(2 * usize::from(TCACHE_BINS));
    let (lengths, _) = lengths.as_chunks();
    let (entries, _) = entries.as_chunks();
    let mut steps = Vec::new();
    for (bin, (&length, &entry)) in (0..).zip(lengths.iter().zip(entries)) {
        let (left, entry) = (u16::from_le_bytes(length), u64::from_le_bytes(entry));
        if left > TCACHE_LONGEST || (left == 0) != (entry == 0) {
            return Vec::new();
        }
        if left > 0 {
            steps.push(Step {
                entry,
                cache: address,
                left,
                bin,
            });
        }
    }
    steps
}

/// Addresses of the chunks in fastbins, in order, which look like chunks in use.
fn fast_chunks(target: &Target, heaps: &[Heap], tops: &[u64]) -> Result<Vec<u64>, Refusal> {
    let mut states: BTreeSet<u64> = heaps.iter().filter_map(|heap| heap.arena).collect();
    states.extend(main_arena(target, heaps, tops));
    let mut fast = BTreeSet::new();
    for state in states {
        for bin in 0..FASTBINS {
            let mut at = target.memory.u64(state + STATE_FASTBINS + 8 * bin)?;
            while at != 0 {
                let size = target.memory.u64(at.wrapping_add(8))? & !FLAGS;
                if size != SMALLEST + ALIGNMENT * bin || !fast.insert(at) {
                    return Err(Refusal(format!(
                        "the list of fast chunks at {state:#x} leads to {at:#x}, which is no chunk of it"
                    )));
                }
                let data = at.wrapping_add(16);
                at = target.memory.u64(data)? ^ (data >> 12);
            }
        }
    }
    Ok(fast.into_iter().collect())
}

/// The main arena, in libc's data: the place that holds the address of the top chunk of the program break. The end of a
/// buffer of stdio may be that address too, so the bins have to be there as well, and what the arena has from the system
/// is not less than the program break.
fn main_arena(target: &Target, heaps: &[Heap], tops: &[u64]) -> Option<u64> {
    let main = heaps.iter().find(|heap| heap.arena.is_none())?;
    let top = *tops
        .iter()
        .find(|&&top| (main.start..main.end).contains(&top))?;
    let data = target.regions.iter().filter(|region| {
        let file = region.backing.unwrap_or_default();
        file.contains("libc.so") || file.contains("libc-2")
    });
    for region in data {
        for part in target.memory.resident(region.range.start, region.range.end) {
            for at in (part.start..part.end).step_by(8) {
                if target.memory.u64(at) != Ok(top) || at < part.start + STATE_TOP {
                    continue;
                }
                let state = at - STATE_TOP;
                let system = target.memory.u64(state + STATE_SYSTEM).unwrap_or(0);
                if system >= main.end - main.start && has_bins(target.memory, state, main) {
                    return Some(state);
                }
            }
        }
    }
    None
}

/// Whether each link of each bin leads to a chunk of the heap or, where the bin is empty, to the bin itself
/// (malloc/malloc.c, `bin_at`).
fn has_bins(memory: &Memory, state: u64, main: &Heap) -> bool {
    (0..BINS).all(|bin| {
        let itself = state + STATE_TOP + 16 * bin;
        [0, 8].into_iter().all(|link| {
            let leads_to = memory.u64(state + STATE_BINS + 16 * bin + link);
            leads_to.is_ok_and(|at| at == itself || (main.start..main.end).contains(&at))
        })
    })
}

#[cfg(test)]
mod tests;
