//! The code cache: which blocks of it are in use.
//!
//! Each of its heaps is a row of blocks in units of segments (hotspot/share/memory/heap.hpp). A block begins
//! with its length and whether it is used; behind the last block there is nothing. A map with a byte a
//! segment tells the same: 0 where a block begins, 0xFF where none ever was or is any more.

use super::{klass::WORD, tables::Tables};
use crate::{
    adapters::{Refusal, memory::Words, view::View},
    classify::{Leaf, division::DivisionBuilder},
};

/// Bytes in used blocks, and in free ones or behind the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Used blocks with their headers.
    pub used: u64,
    /// The rest of what is committed.
    pub free: u64,
    /// Number of used blocks.
    pub blocks: u64,
}

/// `CodeHeap::free_sentinel`
const NO_BLOCK: u8 = 0xff;
/// There is one for nmethods of each kind, and one for all else.
const MOST_HEAPS: u32 = 16;
/// `-XX:ReservedCodeCacheSize` is at most this, in bytes (2 GiB, `CODE_CACHE_SIZE_LIMIT`).
const LARGEST: u64 = 2 << 30;

/// Divides all heaps of the code cache.
pub fn divide(view: &View, tables: &Tables, into: &mut DivisionBuilder) -> Result<Tally, Refusal> {
    let heaps = view.u64(tables.global("CodeCache", &["_heaps"])?)?;
    let length = tables.offset(&["GrowableArrayBase"], &["_len"])?;
    // All instances of the template are laid out alike.
    let data = tables.offset(&["GrowableArray<int>"], &["_data"])?;
    let length = view.u32(heaps.wrapping_add(length))?;
    let data = view.u64(heaps.wrapping_add(data))?;
    if length > MOST_HEAPS {
        return Err(Refusal(format!("{length} heaps of code")));
    }
    let mut tally = Tally::default();
    for index in 0..u64::from(length) {
        let heap = view.u64(data.wrapping_add(index * WORD))?;
        divide_heap(view, tables, heap, &mut tally, into)?;
    }
    Ok(tally)
}

fn divide_heap(
    view: &View,
    tables: &Tables,
    heap: u64,
    tally: &mut Tally,
    into: &mut DivisionBuilder,
) -> Result<(), Refusal> {
    let field = |owner, name| tables.offset(&[owner], &[name]);
    let bounds = |space: u64| {
        let low = view.u64(space.wrapping_add(field("VirtualSpace", "_low")?))?;
        let high = view.u64(space.wrapping_add(field("VirtualSpace", "_high")?))?;
        match high.checked_sub(low) {
            Some(bytes) if bytes <= LARGEST => Ok((low, high)),
            _ => Err(Refusal(format!("no code is at {low:#x}..{high:#x}"))),
        }
    };
    let (low, high) = bounds(heap.wrapping_add(field("CodeHeap", "_memory")?))?;
    let (map, map_end) = bounds(heap.wrapping_add(field("CodeHeap", "_segmap")?))?;
    let log2 = view.u32(heap.wrapping_add(field("CodeHeap", "_log2_segment_size")?))?;
    if !(4..=16).contains(&log2) {
        return Err(Refusal(format!("segments of 1 << {log2} bytes of code")));
    }
    let header = field("HeapBlock", "_header")?;
    let length_at = header.wrapping_add(field("HeapBlock::Header", "_length")?);
    let used_at = header.wrapping_add(field("HeapBlock::Header", "_used")?);
    // Without this they would pass for tables of the collector; HotSpot counts them as code, too.
    into.add(map..map_end, Leaf::Jit);
    let mut at = low;
    while at < high {
        let segment = (at - low) >> log2;
        // Behind the last block nothing may ever have been written.
        let (Ok(length), Ok(used)) = (
            view.memory().u32(at.wrapping_add(length_at)),
            view.memory().u8(at.wrapping_add(used_at)),
        ) else {
            break;
        };
        let bytes = u64::from(length) << log2;
        if length == 0 {
            break;
        }
        let mapped = map.wrapping_add(segment);
        let mark = match mapped < map_end {
            true => view.memory().u8(mapped)?,
            false => return Err(Refusal(format!("the code at {at:#x} is not in the map"))),
        };
        if mark == NO_BLOCK {
            // What is left of a block that was cut off at the end.
            break;
        }
        if bytes > high - at || used > 1 || mark != 0 {
            return Err(Refusal(format!(
                "the block of code at {at:#x} cannot be {bytes} bytes long, used {used} and marked {mark}"
            )));
        }
        if used == 1 {
            tally.used += bytes;
            tally.blocks += 1;
            into.add(at..at + bytes, Leaf::Jit);
        } else {
            tally.free += bytes;
            into.add(at..at + bytes, Leaf::HeapFree);
        }
        at += bytes;
    }
    tally.free += high - at;
    into.add(at..high, Leaf::HeapFree);
    Ok(())
}
