//! Carriers: whose they are, and the blocks in them. Sources: erts/emulator/beam/erl_alloc_util.h and
//! erl_alloc_util.c of OTP 25.2.3 (`Allctr_t`, `Carrier_t`, `Block_t`), 64 bits.
//!
//! ```text
//! carrier + 0    bytes | 1 mapped by mseg | 2 single block
//!         + 8    next, and + 16 previous carrier of the instance
//!         + 24   the instance | 1 in the pool | 2 busy | 4 on its way home
//!         + 32   statistics; where there is a single block, that
//! block   + 0    bytes | 1 free | 2 the block before is free | 4 last of the carrier; 7 single block
//!                in use: bits 40 to 62 tell how many times 16 KiB the carrier is before it
//! ```

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

use super::{
    super::{
        Refusal,
        memory::{Memory, Words},
    },
    ALLOCATORS, EHEAP,
    machine::Machine,
};
use crate::units::PAGE;

/// In `Allctr_t`.
const NUMBER: u64 = 128;
const HEADER_BYTES: u64 = 296;
const SMALLEST_BLOCK: u64 = 312;
const MULTI_BLOCK_LIST: u64 = 336;
const SINGLE_BLOCK_LIST: u64 = 352;
const POOL_SENTINEL: u64 = 392;
const POOL_CARRIERS_BYTES: u64 = 648;
const POOL_CARRIERS: u64 = 656;
/// `CarriersStats_t`: number and bytes of the carriers mapped, then of those from malloc.
const SINGLE_BLOCK_STATS: u64 = 1088;
const MULTI_BLOCK_STATS: u64 = 1744;

/// In `Carrier_t`.
const NEXT: u64 = 8;
const PREVIOUS: u64 = 16;
const INSTANCE: u64 = 24;
/// `ErtsAlcCPoolData_t`, and in it: the next of the pool, the instance that made the carrier, the bytes of
/// blocks in use by allocator, and in all.
const POOL: u64 = 32;
const POOL_NEXT: u64 = POOL + 16;
const POOL_MAKER: u64 = POOL + 32;
const BLOCKS_BYTES: u64 = POOL + 168;
const ALL_BLOCKS_BYTES: u64 = POOL + 264;
/// `ERTS_ALC_A_COUNT`; the first has the number 1.
const NUMBERS: u64 = 12;

/// Low bits of sizes and of pointers.
const FLAGS: u64 = 7;
const MAPPED: u64 = 1;
const SINGLE: u64 = 2;
const POOL_MARKS: u64 = 3;
/// `SBC_HEADER_SIZE`.
const SINGLE_HEADER: u64 = 32;

const FREE: u64 = 1;
const PREVIOUS_FREE: u64 = 2;
const LAST: u64 = 4;
const SINGLE_BLOCK: u64 = FREE | PREVIOUS_FREE | LAST;
/// `MBC_ABLK_OFFSET_SHIFT`: 23 bits below the highest, which says that the block has a tag.
const OFFSET_SHIFT: u32 = 40;
const OFFSET_MASK: u64 = (1 << 23) - 1;
const TAGGED: u64 = 1 << 63;
/// `ERTS_MMAP_SUPERALIGNED_BITS` (sys/common/erl_mmap.h): carriers of many blocks lie at multiples of 16 KiB.
const UNIT_BITS: u32 = 14;

/// More instances of one allocator than there can be: `ERTS_MAX_NO_OF_SCHEDULERS` is 1024 (erl_vm.h), and
/// as many again for dirty ones.
const MOST_INSTANCES: u32 = 4096;

/// One instance of an allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instance {
    address: u64,
    /// `ERTS_ALC_A_*`
    pub(super) number: u32,
    /// From the start of a carrier to its first block.
    header_bytes: u64,
    smallest_block: u64,
}

/// Whose blocks a carrier has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// Those of one allocator.
    One(u32),
    /// Instances may share carriers (`+M<S>cp`).
    Several,
}

/// A carrier that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carrier {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) first_block: u64,
    /// Index of the instance that it counts for.
    pub(super) instance: usize,
    pub(super) holder: Holder,
    /// Bytes of its blocks that are in use, as the machine counts.
    pub(super) blocks_bytes: u64,
    /// By mseg, rather than by malloc.
    pub(super) mapped: bool,
    single: bool,
    smallest_block: u64,
}

impl Carrier {
    /// With its header.
    pub(super) fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Heaps of processes may be in it.
    pub(super) fn holds_heaps(&self) -> bool {
        matches!(self.holder, Holder::One(EHEAP) | Holder::Several)
    }
}

/// A block, as the walk finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) start: u64,
    /// With its head.
    pub(super) size: u64,
    pub(super) used: bool,
}

impl Block {
    /// What the allocator gave out: behind the head of 8 bytes.
    pub(super) fn data(&self) -> u64 {
        self.start + 8
    }
}

/// Words that follow each other.
fn words<const N: usize>(memory: &Memory, address: u64) -> Result<[u64; N], Refusal> {
    let mut words = [0; N];
    for (index, word) in words.iter_mut().enumerate() {
        *word = memory.u64(address.wrapping_add(8 * index as u64))?;
    }
    Ok(words)
}

/// Every instance of every allocator.
pub(super) fn instances(memory: &Memory, machine: &Machine) -> Result<Vec<Instance>, Refusal> {
    let mut found = Vec::new();
    for (number, name, _) in ALLOCATORS {
        // Both tables have 24 bytes an allocator.
        let spec = machine.instances.wrapping_add(24 * u64::from(number));
        let info = machine.infos.wrapping_add(24 * u64::from(number));
        if memory.u32(spec)? == 1 {
            let count = memory.u32(spec.wrapping_add(12))?;
            let array = memory.u64(spec.wrapping_add(16))?;
            if count > MOST_INSTANCES || array > u64::MAX - 8 * u64::from(count) {
                return Err(Refusal(format!(
                    "{name}_alloc cannot have {count} instances"
                )));
            }
            for index in 0..u64::from(count) {
                let address = memory.u64(array + 8 * index)?;
                if address != 0 {
                    found.push(instance(memory, address, number)?);
                }
            }
        } else if memory.u32(info)? == 1 && memory.u32(info.wrapping_add(4))? == 1 {
            let address = memory.u64(info.wrapping_add(16))?;
            found.push(instance(memory, address, number)?);
        }
    }
    Ok(found)
}

fn instance(memory: &Memory, address: u64, number: u32) -> Result<Instance, Refusal> {
    let own = memory.u32(address.wrapping_add(NUMBER))?;
    let header_bytes = memory.u64(address.wrapping_add(HEADER_BYTES))?;
    let smallest_block = memory.u64(address.wrapping_add(SMALLEST_BLOCK))?;
    let header = ALL_BLOCKS_BYTES + 8..=PAGE;
    let sound = header_bytes.is_multiple_of(8) && (16..=PAGE).contains(&smallest_block);
    if own != number || !header.contains(&header_bytes) || !sound {
        return Err(Refusal(format!(
            "{address:#x} does not look like an instance of allocator {number}"
        )));
    }
    Ok(Instance {
        address,
        number,
        header_bytes,
        smallest_block,
    })
}

/// Every carrier in use, in address order. Their number and bytes are those of the instances' statistics.
pub(super) fn carriers(memory: &Memory, instances: &[Instance]) -> Result<Vec<Carrier>, Refusal> {
    let mut found = Vec::new();
    for index in 0..instances.len() {
        for single in [false, true] {
            employed(memory, instances, index, single, &mut found)?;
        }
    }
    pooled(memory, instances, &mut found)?;
    found.sort_unstable_by_key(|carrier| carrier.start);
    if let Some(pair) = found.windows(2).find(|it| it[0].end > it[1].start) {
        return Err(Refusal(format!(
            "the carriers at {:#x} and {:#x} overlap",
            pair[0].start, pair[1].start
        )));
    }
    Ok(found)
}

/// The carriers that an instance works with.
fn employed(
    memory: &Memory,
    instances: &[Instance],
    index: usize,
    single: bool,
    found: &mut Vec<Carrier>,
) -> Result<(), Refusal> {
    let address = instances[index].address;
    let (list, stats) = match single {
        true => (SINGLE_BLOCK_LIST, SINGLE_BLOCK_STATS),
        false => (MULTI_BLOCK_LIST, MULTI_BLOCK_STATS),
    };
    let [first, last] = words(memory, address.wrapping_add(list))?;
    let [mapped, mapped_bytes, from_malloc, malloc_bytes] =
        words(memory, address.wrapping_add(stats))?;
    let said = (
        mapped.saturating_add(from_malloc),
        mapped_bytes.saturating_add(malloc_bytes),
    );
    let (mut at, mut before) = (first, 0);
    let (mut count, mut bytes) = (0_u64, 0_u64);
    while at != 0 && count <= said.0 {
        let carrier = carrier(memory, instances, index, at, single)?;
        if memory.u64(at + PREVIOUS)? != before {
            return Err(Refusal(format!(
                "the carrier at {at:#x} does not follow the one at {before:#x}"
            )));
        }
        count += 1;
        bytes = bytes.saturating_add(carrier.bytes());
        found.push(carrier);
        (before, at) = (at, memory.u64(at + NEXT)?);
    }
    if (count, bytes) != said || before != last {
        return Err(Refusal(format!(
            "the instance at {address:#x} has {count} carriers of {bytes} bytes, and says {} of {}",
            said.0, said.1
        )));
    }
    Ok(())
}

/// Carriers that were given up for others to take (`cpool_insert`, erl_alloc_util.c): one ring by allocator,
/// or for all.
fn pooled(
    memory: &Memory,
    instances: &[Instance],
    found: &mut Vec<Carrier>,
) -> Result<(), Refusal> {
    let by_address: HashMap<u64, usize> = instances
        .iter()
        .enumerate()
        .map(|(index, instance)| (instance.address, index))
        .collect();
    let mut said = BTreeMap::new();
    let mut rings: BTreeMap<u64, u64> = BTreeMap::new();
    for instance in instances {
        let bytes = memory.u64(instance.address.wrapping_add(POOL_CARRIERS_BYTES))?;
        let count = memory.u64(instance.address.wrapping_add(POOL_CARRIERS))?;
        let sentinel = memory.u64(instance.address.wrapping_add(POOL_SENTINEL))?;
        if count != 0 {
            said.insert(instance.address, (count, bytes));
            let ring = rings.entry(sentinel).or_default();
            *ring = ring.saturating_add(count);
        }
    }
    let mut counted: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (sentinel, most) in rings {
        // Rings are of `ErtsAlcCPoolData_t`, which is in the carrier.
        let next = |at: u64| memory.u64(at.wrapping_add(POOL_NEXT - POOL));
        let mut at = next(sentinel)? & !POOL_MARKS;
        let mut seen = HashSet::new();
        while at != sentinel {
            if !seen.insert(at) || seen.len() as u64 > most {
                return Err(Refusal(format!(
                    "the pool at {sentinel:#x} does not end after {most} carriers"
                )));
            }
            let start = at.wrapping_sub(POOL);
            let owner = memory.u64(start.wrapping_add(INSTANCE))? & !FLAGS;
            let index = by_address.get(&owner).ok_or_else(|| {
                Refusal(format!(
                    "the carrier at {start:#x} in the pool is of no allocator"
                ))
            })?;
            let carrier = carrier(memory, instances, *index, start, false)?;
            let maker = memory.u64(start + POOL_MAKER)?;
            let sum = counted.entry(maker).or_default();
            sum.0 += 1;
            sum.1 = sum.1.saturating_add(carrier.bytes());
            found.push(carrier);
            at = next(at)? & !POOL_MARKS;
        }
    }
    if counted != said {
        return Err(Refusal(format!(
            "the pools have carriers {counted:x?}, and should have {said:x?}, by instance"
        )));
    }
    Ok(())
}

/// The carrier at an address, which must be of this instance.
fn carrier(
    memory: &Memory,
    instances: &[Instance],
    index: usize,
    start: u64,
    single: bool,
) -> Result<Carrier, Refusal> {
    let instance = &instances[index];
    let [head, _, _, owner] = words(memory, start)?;
    let size = head & !FLAGS;
    let header = match single {
        true => SINGLE_HEADER,
        false => instance.header_bytes,
    };
    let end = start.checked_add(size);
    let (Some(end), true) = (end, size > header) else {
        return Err(Refusal(format!(
            "the carrier at {start:#x} cannot be {size} bytes long"
        )));
    };
    if owner & !FLAGS != instance.address || (head & SINGLE != 0) != single {
        return Err(Refusal(format!(
            "the carrier at {start:#x} is not of the instance at {:#x}",
            instance.address
        )));
    }
    let first_block = start + header;
    let (holder, blocks_bytes) = match single {
        true => {
            let block = memory.u64(first_block)?;
            (Holder::One(instance.number), block & !FLAGS & !TAGGED)
        }
        false => (
            holder(memory, instance, start)?,
            memory.u64(start + ALL_BLOCKS_BYTES)?,
        ),
    };
    Ok(Carrier {
        start,
        end,
        first_block,
        instance: index,
        holder,
        blocks_bytes,
        mapped: head & MAPPED != 0,
        single,
        smallest_block: instance.smallest_block,
    })
}

/// Whose blocks there are in the carrier, by its own statistics.
fn holder(memory: &Memory, instance: &Instance, start: u64) -> Result<Holder, Refusal> {
    let mut holder = Holder::One(instance.number);
    for number in 1..=NUMBERS {
        let bytes = memory.u64(start + BLOCKS_BYTES + 8 * (number - 1))?;
        if bytes != 0 && number != u64::from(instance.number) {
            holder = Holder::Several;
        }
    }
    Ok(holder)
}

/// Goes through the blocks of a carrier, which have to end with it, and to sum to what its header says.
pub(super) fn walk(
    memory: &Memory,
    carrier: &Carrier,
    mut each: impl FnMut(Block) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let refused = |at: u64, why: &str| {
        let start = carrier.start;
        Err(Refusal(format!(
            "the block at {at:#x} of the carrier at {start:#x} {why}"
        )))
    };
    let mut at = carrier.first_block;
    if carrier.single {
        let size = carrier.blocks_bytes;
        let head = memory.u64(at)?;
        if head & FLAGS != SINGLE_BLOCK || size < 8 || size > carrier.end - at {
            return refused(at, "is not its single one");
        }
        each(Block {
            start: at,
            size,
            used: true,
        })?;
        if at + size < carrier.end {
            // The rest of the last page, or of the segment.
            each(Block {
                start: at + size,
                size: carrier.end - at - size,
                used: false,
            })?;
        }
        return Ok(());
    }
    let mut used_bytes = 0;
    let mut before_is_free = false;
    loop {
        let head = memory.u64(at)?;
        let used = head & FREE == 0;
        let size = match used {
            true => head & !FLAGS & ((1 << OFFSET_SHIFT) - 1),
            false => head & !FLAGS & !TAGGED,
        };
        if size < carrier.smallest_block || size > carrier.end - at {
            return refused(at, "has a size that does not fit");
        }
        if (head & PREVIOUS_FREE != 0) != before_is_free || (!used && before_is_free) {
            return refused(at, "is wrong about the one before");
        }
        let units = (at >> UNIT_BITS) - (carrier.start >> UNIT_BITS);
        if used && (head >> OFFSET_SHIFT) & OFFSET_MASK != units {
            return refused(at, "is of another carrier");
        }
        used_bytes += if used { size } else { 0 };
        each(Block {
            start: at,
            size,
            used,
        })?;
        at += size;
        before_is_free = !used;
        if head & LAST != 0 {
            break;
        }
        if at >= carrier.end {
            return refused(at, "would be behind its end");
        }
    }
    if at != carrier.end || used_bytes != carrier.blocks_bytes {
        return Err(Refusal(format!(
            "the blocks of the carrier at {:#x} end at {at:#x} with {used_bytes} bytes in use, and should at {:#x} with {}",
            carrier.start, carrier.end, carrier.blocks_bytes
        )));
    }
    Ok(())
}

/// What carriers leave of a range.
pub(super) fn gaps(carriers: &[Carrier], range: &Range<u64>) -> Vec<Range<u64>> {
    let first = carriers.partition_point(|carrier| carrier.end <= range.start);
    let mut gaps = Vec::new();
    let mut at = range.start;
    for carrier in carriers[first..]
        .iter()
        .take_while(|carrier| carrier.start < range.end)
    {
        if at < carrier.start {
            gaps.push(at..carrier.start);
        }
        at = carrier.end;
    }
    if at < range.end {
        gaps.push(at..range.end);
    }
    gaps
}

/// Where the segment at an address ends, if it begins with what was the header of a carrier, and ends within
/// bounds.
pub(super) fn old_carrier(
    memory: &Memory,
    instances: &[Instance],
    at: u64,
    bound: u64,
) -> Option<u64> {
    let [head, _, _, owner] = words(memory, at).ok()?;
    let size = head & !FLAGS;
    let known = instances
        .iter()
        .any(|instance| instance.address == owner & !FLAGS);
    let sound = head & MAPPED != 0 && size.is_multiple_of(PAGE) && at.is_multiple_of(PAGE);
    let end = at.checked_add(size).filter(|end| *end <= bound)?;
    (known && sound && size != 0).then_some(end)
}
