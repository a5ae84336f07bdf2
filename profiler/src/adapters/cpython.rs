//! CPython: which blocks of its allocator for small objects (pymalloc) are in use.
//!
//! An arena is cut into pools, a pool into blocks of one size class; a pool begins with a header:
//!
//! ```text
//! arena  | to the next multiple of a pool | pool | pool | ... |
//! pool   | header | block | block | ... up to nextoffset | never used |
//! ```
//!
//! The header counts the blocks in use and has the list of the free ones, each of which holds the address
//! of the next. So in every pool the blocks in use and those on the list must make up those ever used: that
//! proves the layout, pool by pool, whatever the version. Source: Objects/obmalloc.c of CPython 3.11 (`struct
//! pool_header`), in later versions Include/internal/pycore_obmalloc.h. A build without the GIL uses
//! mimalloc instead: there is no such pool in it, and it is refused.

use std::ops::Range;

use super::{
    Books, Refusal, Target,
    memory::{Memory, Unreadable, Words},
};
use crate::{
    classify::{Leaf, division::DivisionBuilder, runtime::Runtime},
    units::{KIB, MIB, PAGE, page_floor},
};

/// `ARENA_SIZE` and `POOL_SIZE`: with the radix tree of 3.10 and later, and before.
const SIZES: [(u64, u64); 2] = [(MIB, 16 * KIB), (256 * KIB, 4 * KIB)];
/// `POOL_OVERHEAD`: bytes of `struct pool_header`.
const HEADER: u64 = 48;
/// In it: the count of blocks in use (four bytes), the first free block, and four words of four bytes: the
/// number of the arena, the size class, the offset of the first block never used, and the last such offset.
const COUNT: u64 = 0;
const FREE_BLOCK: u64 = 8;
const ARENA_INDEX: u64 = 0x20;
const CLASS: u64 = 0x24;
const NEXT_OFFSET: u64 = 0x28;
const LAST_OFFSET: u64 = 0x2c;
/// `ALIGNMENT`: class n has blocks of 16 (n + 1) bytes.
const QUANTUM: u64 = 16;
/// `NB_SMALL_SIZE_CLASSES`: up to 512 bytes.
const CLASSES: u64 = 32;
/// The most blocks that a pool can have: one of 16 KiB, of the smallest class.
const MOST_BLOCKS: usize = 1024;

/// Divides the arenas.
pub fn divide(target: &Target, into: &mut DivisionBuilder) -> Result<Option<Books>, Refusal> {
    if target.runtime != Runtime::Cpython || target.regions_of("cpython.arena").next().is_none() {
        return Ok(None);
    }
    let mut tally = Tally::default();
    for region in target.regions_of("cpython.arena") {
        let length = region.range.end - region.range.start;
        let sizes = SIZES.iter().find(|(arena, _)| *arena == length);
        let pool = sizes.map_or(0, |&(_, pool)| pool);
        match pool != 0 && is_arena(target.memory, &region.range, pool) {
            true => arena(target.memory, &region.range, pool, &mut tally, into)?,
            // The rule knows arenas by their length, which a large block of malloc's may have too.
            false => tally.other_regions += 1,
        }
    }
    if tally.arenas == 0 {
        return Err(Refusal("no arena of pymalloc begins with a pool".into()));
    }
    Ok(Some(tally.into_books()))
}

#[derive(Default)]
struct Tally {
    arenas: u64,
    other_regions: u64,
    pools: u64,
    empty_pools: u64,
    /// Blocks in use by size class.
    blocks: [u64; CLASSES as usize],
    /// Blocks that were used, in pools that hold others.
    free_bytes: u64,
}

impl Tally {
    fn into_books(self) -> Books {
        let classes = (1..).zip(self.blocks);
        let bytes = classes
            .clone()
            .map(|(class, blocks)| QUANTUM * class * blocks);
        let mut books = Books::from([
            ("arenas".into(), self.arenas),
            ("regions_without_pools".into(), self.other_regions),
            ("pools_in_use".into(), self.pools),
            ("pools_empty".into(), self.empty_pools),
            // As `sys._debugmallocstats` calls them: bytes in allocated and in available blocks.
            ("allocated_bytes".into(), bytes.sum()),
            ("available_bytes".into(), self.free_bytes),
        ]);
        let used = classes.filter(|(_, blocks)| *blocks > 0);
        books
            .extend(used.map(|(class, blocks)| (format!("blocks_of_{}", QUANTUM * class), blocks)));
        books
    }
}

/// A pool that has held blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pool {
    at: u64,
    arena: u64,
    class: u64,
    /// Bytes of a block.
    block: u64,
    in_use: u64,
    /// Blocks ever used.
    carved: u64,
    first_free: u64,
}

/// The pools of an arena: those that fit, at multiples of their size.
fn pools(arena: &Range<u64>, size: u64) -> Range<u64> {
    arena.start.next_multiple_of(size)..arena.end & !(size - 1)
}

/// Whether the first pool looks like one: an arena is not made before a pool is needed.
fn is_arena(memory: &Memory, arena: &Range<u64>, size: u64) -> bool {
    let (at, mut header) = (pools(arena, size).start, [0; HEADER as usize]);
    memory.read(at, &mut header).is_ok() && matches!(pool(&header, at, size), Ok(Some(_)))
}

fn arena(
    memory: &Memory,
    arena: &Range<u64>,
    size: u64,
    tally: &mut Tally,
    into: &mut DivisionBuilder,
) -> Result<(), Refusal> {
    let pools = pools(arena, size);
    let mut index = None;
    tally.arenas += 1;
    into.add(arena.start..pools.start, Leaf::HeapFree);
    // A header that is not there has never been written.
    let there = |at: &u64| memory.resident(page_floor(*at), at + PAGE).next().is_some();
    let heads: Vec<u64> = pools.clone().step_by(size as usize).filter(there).collect();
    // Most pools are full, and of those the header is all that is needed.
    let mut headers = vec![0; heads.len() * HEADER as usize];
    memory.read_parts(&heads, HEADER as usize, &mut headers)?;
    let mut headers = heads
        .iter()
        .zip(headers.chunks_exact(HEADER as usize))
        .peekable();
    for at in pools.clone().step_by(size as usize) {
        let header = headers.next_if(|(head, _)| **head == at);
        let found = header.map_or(Ok(None), |(_, header)| pool(header, at, size))?;
        let Some(pool) = found else {
            into.add(at..at + size, Leaf::HeapFree);
            continue;
        };
        if *index.get_or_insert(pool.arena) != pool.arena {
            return Err(Refusal(format!(
                "the pool at {at:#x} says it is of another arena than those before it"
            )));
        }
        divide_pool(memory, &pool, size, tally, into)?;
    }
    into.add(pools.end..arena.end, Leaf::HeapFree);
    Ok(())
}

/// The pool with this header. `None`: it has never been used.
fn pool(header: &[u8], at: u64, size: u64) -> Result<Option<Pool>, Refusal> {
    let number = |offset: u64, bytes: u64| {
        let own = &header[offset as usize..(offset + bytes) as usize];
        own.iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u64::from(byte))
    };
    let half = |offset| number(offset, 4);
    let (class, next, last) = (half(CLASS), half(NEXT_OFFSET), half(LAST_OFFSET));
    let (in_use, first_free) = (half(COUNT), number(FREE_BLOCK, 8));
    if (class, next, last, in_use, first_free) == (0, 0, 0, 0, 0) {
        return Ok(None);
    }
    let block = QUANTUM * (class + 1);
    let sound = class < CLASSES
        && last == size - block
        && (HEADER + block..=size).contains(&next)
        && (next - HEADER).is_multiple_of(block)
        && in_use <= (next - HEADER) / block;
    match sound {
        true => Ok(Some(Pool {
            at,
            arena: half(ARENA_INDEX),
            class,
            block,
            in_use,
            carved: (next - HEADER) / block,
            first_free,
        })),
        false => Err(Refusal(format!(
            "what should be a pool of pymalloc is none: {at:#x}"
        ))),
    }
}

fn divide_pool(
    memory: &Memory,
    pool: &Pool,
    size: u64,
    tally: &mut Tally,
    into: &mut DivisionBuilder,
) -> Result<(), Refusal> {
    let free = free_blocks(memory, pool)?;
    if pool.in_use == 0 {
        tally.empty_pools += 1;
        into.add(pool.at..pool.at + size, Leaf::HeapFree);
        return Ok(());
    }
    tally.pools += 1;
    tally.blocks[pool.class as usize] += pool.in_use;
    tally.free_bytes += ((size - HEADER) / pool.block - pool.in_use) * pool.block;
    into.add(pool.at..pool.at + HEADER, Leaf::RuntimeInternal);
    let leaf = |number: u64| match free[number as usize] {
        true => Leaf::HeapFree,
        false => Leaf::HeapObjects,
    };
    let address = |number: u64| pool.at + HEADER + pool.block * number;
    let mut first = 0;
    for number in 1..=pool.carved {
        if number == pool.carved || leaf(number) != leaf(first) {
            into.add(address(first)..address(number), leaf(first));
            first = number;
        }
    }
    into.add(address(pool.carved)..pool.at + size, Leaf::HeapFree);
    Ok(())
}

/// Which blocks of a pool are on its free list, by number.
fn free_blocks(memory: &Memory, pool: &Pool) -> Result<[bool; MOST_BLOCKS], Refusal> {
    let mut free = [false; MOST_BLOCKS];
    let mut at = pool.first_free;
    let mut length = 0;
    while at != 0 {
        let offset = at.wrapping_sub(pool.at).wrapping_sub(HEADER);
        let number = offset / pool.block;
        let known = number < pool.carved && offset.is_multiple_of(pool.block);
        if !known || std::mem::replace(&mut free[number as usize], true) {
            return Err(Refusal(format!(
                "the free list of the pool at {:#x} leads to {at:#x}, which is no free block of it",
                pool.at
            )));
        }
        length += 1;
        at = memory.u64(at).map_err(|Unreadable { address }| {
            Refusal(format!(
                "the free block at {address:#x} is not there to be read"
            ))
        })?;
    }
    if pool.in_use + length != pool.carved {
        return Err(Refusal(format!(
            "of {} blocks of the pool at {:#x} {} are in use and {length} free",
            pool.carved, pool.at, pool.in_use
        )));
    }
    Ok(free)
}

#[cfg(test)]
mod tests;
