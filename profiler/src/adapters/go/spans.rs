//! The spans of the heap, from `mheap_.allspans`.

use std::ops::Range;

use super::{Program, Refusal};
use crate::adapters::memory::Words;

/// Bytes of a page of the heap (`_PageSize`, malloc.go and internal/runtime/gc; 8 KiB since Go 1.2).
/// That it still is so shows in every span: a large one has as many bytes as its pages.
const PAGE: u64 = 8192;
/// Values of `mspan.state` (`mSpanState`, mheap.go); the same since Go 1.9.
const DEAD: u64 = 0;
const IN_USE: u64 = 1;
const MANUAL: u64 = 2;
/// Bytes of a span that is cut into stacks (`_StackCacheSize`, malloc.go).
const STACK_CACHE: u64 = 32 << 10;
/// The low bit of `mspan.spanclass`: no pointers inside (`makeSpanClass`, mheap.go); the rest is the size
/// class, 0 for one large object.
const NO_POINTERS: u64 = 1;
/// The size from which objects have a header instead of bits in the span (`MinSizeForMallocHeader`,
/// internal/runtime/gc: a word of bits for 64 words of object).
const SMALL_OBJECT: u64 = 512;
/// The smallest object whose marks are in its span (`gcUsesSpanInlineMarkBits`, mgcmark_greenteagc.go).
const INLINE_MARKED: u64 = 16;
/// The smallest stack (`stackMin`, stack.go).
const LEAST_STACK: u64 = 2048;
/// The least that a pointer in `allspans` leads to.
const LEAST_MSPAN: u64 = 64;

/// A span that is in use. A million tasks have hundreds of thousands, so each takes 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u64,
    pages: u32,
    pub usage: Use,
}

const _: () = assert!(size_of::<Span>() == 32);

impl Span {
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE
    }

    /// One past the last byte.
    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes()
    }

    /// The bytes of its slots from one up to another.
    pub(super) fn slots(&self, slots: &Slots, numbers: Range<u64>) -> Range<u64> {
        let each = slots.each(self.bytes());
        self.start + numbers.start * each..self.start + numbers.end * each
    }
}

/// What a span is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Use {
    /// Objects of the collected heap.
    Heap(Slots),
    /// Stacks of one size.
    Stacks(Stacks),
    /// Work buffers and masks of the collector (`spanAllocWorkBuf`, `spanAllocPtrScalarBits`).
    Collector,
}

/// The stacks of a span of such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stacks {
    each: u32,
    /// How many are taken, by goroutines or by the caches of processors; of a span that is one large stack that is
    /// not kept.
    pub taken: Option<u16>,
    /// How many stacks there are in the spans before this one.
    before: u32,
}

impl Stacks {
    /// Bytes of each.
    pub(super) fn each(&self) -> u64 {
        self.each.into()
    }
}

/// The slots of a span of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slots {
    /// Address of the bits, its lower half and its upper one: a `u64` would make a span of 40 bytes.
    bits: [u32; 2],
    /// Bytes of the span behind the last slot. (Of each slot they may be more than a `u32` holds.)
    rest: u32,
    number: u16,
    free_index: u16,
    taken: u16,
    /// One object that is no small one.
    is_large: bool,
    has_pointers: bool,
}

impl Slots {
    pub(super) fn number(&self) -> u64 {
        self.number.into()
    }

    /// Bytes of each in a span of so many bytes.
    fn each(&self, span_bytes: u64) -> u64 {
        (span_bytes - u64::from(self.rest)) / self.number().max(1)
    }

    fn bits(&self) -> u64 {
        let [lower, upper] = self.bits.map(u64::from);
        upper << 32 | lower
    }
}

/// Which slots are free.
pub(super) struct Free {
    from: u64,
    bits: Vec<u8>,
}

impl Free {
    /// From `freeindex` on those without a bit; before it none (`mspan.freeindex`, mheap.go).
    pub(super) fn contains(&self, slot: u64) -> bool {
        let byte = self.bits.get((slot / 8) as usize).copied();
        slot >= self.from && byte.unwrap_or(0) >> (slot % 8) & 1 == 0
    }
}

impl Span {
    /// The numbers of its stacks, if it has any.
    pub(super) fn stacks(&self) -> Range<usize> {
        match &self.usage {
            Use::Stacks(stacks) => {
                let first = stacks.before as usize;
                first..first + (self.bytes() / stacks.each()) as usize
            }
            _ => 0..0,
        }
    }
}

/// Numbers the stacks of all spans.
fn number_stacks(spans: &mut [Span]) -> Result<(), Refusal> {
    let mut before = 0;
    for span in spans {
        let start = span.start;
        if let Use::Stacks(stacks) = &mut span.usage {
            stacks.before = u32::try_from(before).map_err(|_| {
                Refusal(format!(
                    "there are {before} stacks before the span at {start:#x}"
                ))
            })?;
            before = span.stacks().end;
        }
    }
    Ok(())
}

impl Program<'_> {
    /// All spans in address order: what is resident of them lies in arenas, none overlap, and those of the collected heap
    /// have as many pages as the runtime counts.
    pub(super) fn spans(&self, arenas: &[Range<u64>]) -> Result<Vec<Span>, Refusal> {
        let fields = self.fields;
        let slice = self.mheap.wrapping_add(fields.mheap_allspans.offset);
        let mut spans = Vec::new();
        for part in self
            .pointers(slice, "mheap_.allspans", LEAST_MSPAN)?
            .parts()
        {
            for mspan in part? {
                spans.extend(self.span(mspan)?);
            }
        }
        spans.sort_unstable_by_key(|span| span.start);
        number_stacks(&mut spans)?;
        for pair in spans.windows(2) {
            if let [span, next] = pair
                && span.end() > next.start
            {
                return Err(Refusal(format!(
                    "the spans at {:#x} and {:#x} overlap",
                    span.start, next.start
                )));
            }
        }
        let mut pages = 0;
        for span in &spans {
            let outside = self.memory.resident(span.start, span.end()).any(|part| {
                let row = arenas.partition_point(|arena| arena.end <= part.start);
                let arena = arenas.get(row);
                arena.is_none_or(|arena| part.start < arena.start || arena.end < part.end)
            });
            if outside {
                return Err(Refusal(format!(
                    "the span at {:#x} is in no arena of the heap",
                    span.start
                )));
            }
            if let Use::Heap(_) = span.usage {
                pages += span.bytes() / PAGE;
            }
        }
        let counted = self.number(self.mheap, fields.mheap_pages_in_use)?;
        if pages != counted {
            return Err(Refusal(format!(
                "the spans of the heap have {pages} pages, the runtime counts {counted}"
            )));
        }
        Ok(spans)
    }

    /// The span of an `mspan`, if it has one.
    fn span(&self, mspan: u64) -> Result<Option<Span>, Refusal> {
        let fields = self.fields;
        // Processors keep some that have never been used (`p.mspancache`, runtime2.go). Nobody has written
        // those, so their page need not be there. Were it swapped out, the sums would not come out.
        let state = self.number(mspan, fields.mspan_state).unwrap_or(DEAD);
        if state == DEAD {
            return Ok(None);
        }
        let start = self.number(mspan, fields.mspan_start)?;
        let pages = self.number(mspan, fields.mspan_pages)?;
        let each = self.number(mspan, fields.mspan_slot_bytes)?;
        let taken = self.number(mspan, fields.mspan_alloc_count)?;
        let wrong = |what: &str| {
            Err(Refusal(format!(
                "the mspan at {mspan:#x} (start {start:#x}, {pages} pages, state {state}, slots of {each} bytes) {what}"
            )))
        };
        let bytes = pages.checked_mul(PAGE).filter(|&bytes| bytes > 0);
        let end = bytes.and_then(|bytes| start.checked_add(bytes));
        let (Some(bytes), Some(end), Ok(pages)) = (bytes, end, u32::try_from(pages)) else {
            return wrong("has an impossible size");
        };
        if !start.is_multiple_of(PAGE) || start == 0 {
            return wrong("does not begin with a page");
        }
        let usage = match state {
            IN_USE => {
                let number = self.number(mspan, fields.mspan_slots)?;
                let limit = self.number(mspan, fields.mspan_limit)?;
                let class = self.number(mspan, fields.mspan_class)?;
                let is_large = class & !NO_POINTERS == 0;
                let used = number.checked_mul(each).filter(|_| each >= 8);
                let rest = used.and_then(|used| bytes.checked_sub(used));
                let (Ok(slots), Some(rest)) = (u16::try_from(number), rest) else {
                    return wrong("has more slots than bytes");
                };
                let Ok(rest) = u32::try_from(rest) else {
                    return wrong("has slots that do not fit it");
                };
                if number == 0 || !(start..=end).contains(&limit) || is_large && number != 1 {
                    return wrong("has slots that do not fit it");
                }
                let free_index = self.number(mspan, fields.mspan_free_index)?;
                let (Ok(free_index), Ok(taken)) = (free_index.try_into(), taken.try_into()) else {
                    return wrong("counts more slots than there are");
                };
                let bits = self.number(mspan, fields.mspan_alloc_bits)?;
                Use::Heap(Slots {
                    bits: [bits as u32, (bits >> 32) as u32],
                    rest,
                    number: slots,
                    free_index,
                    taken,
                    is_large,
                    has_pointers: class & NO_POINTERS == 0,
                })
            }
            MANUAL if each == 0 => Use::Collector,
            MANUAL
                if bytes == each
                    || bytes == STACK_CACHE
                        && each.is_power_of_two()
                        && (LEAST_STACK..bytes).contains(&each) =>
            {
                let one = bytes == each;
                let (Ok(each), Ok(taken)) = (each.try_into(), taken.try_into()) else {
                    return wrong("has stacks that do not fit it");
                };
                Use::Stacks(Stacks {
                    each,
                    taken: (!one).then_some(taken),
                    before: 0,
                })
            }
            MANUAL => return wrong("has stacks that do not fit it"),
            _ => return wrong("has an unknown state"),
        };
        Ok(Some(Span {
            start,
            pages,
            usage,
        }))
    }

    /// Which slots of a span are free. `None` when their number is not the one that the span keeps: a
    /// thread is at work on it, taking a slot or sweeping.
    pub(super) fn free_slots(&self, span: &Span, slots: &Slots) -> Result<Option<Free>, Refusal> {
        if slots.free_index > slots.number {
            return Err(Refusal(format!(
                "the span at {:#x} looks for free slots behind its {} slots",
                span.start, slots.number
            )));
        }
        let mut free = Free {
            from: slots.free_index.into(),
            bits: vec![0; usize::from(slots.number.div_ceil(8))],
        };
        // Bits on a page that nobody has written are zero, as they are left here; the sum tells whether
        // that is so.
        if slots.free_index < slots.number
            && self.memory.read(slots.bits(), &mut free.bits).is_err()
        {
            free.bits.fill(0);
        }
        let taken = (0..slots.number()).filter(|&slot| !free.contains(slot));
        Ok((taken.count() == usize::from(slots.taken)).then_some(free))
    }

    /// How many bytes the collector's bits take at the end of a span of small objects: a bit for each
    /// word where objects have pointers, and marks. 0 where the slots leave another rest than they would
    /// beside such bits: then this version of Go does it otherwise.
    pub(super) fn collectors_bits(&self, span: &Span, slots: &Slots) -> u64 {
        let has_bits = self.fields.mspan_large_type.is_some();
        let each = slots.each(span.bytes());
        if !has_bits || slots.is_large || each > SMALL_OBJECT {
            return 0;
        }
        let pointers = match slots.has_pointers {
            true => span.bytes() / 64,
            false => 0,
        };
        let marks = match each >= INLINE_MARKED {
            true => self.fields.inline_marks_bytes,
            false => 0,
        };
        let bits = pointers.saturating_add(marks);
        let room = span.bytes().checked_sub(bits);
        match room.map(|room| room / each) == Some(slots.number()) {
            true => bits,
            false => 0,
        }
    }
}
