//! Which rule each resident part of a process falls under: [`place`].

use std::ops::Range;

use rangemap::RangeMap;

use super::{
    evidence::{Evidence, ProcessFacts, StackUse},
    rules::{Rule, classify},
    runtime::{Image, Runtime},
};
use crate::{
    regions::{AddressSpace, LowerEnd, Origin, OriginKind, Piece, Process},
    residency::{ProcessSnapshot, ResidentRange, Vma},
    units::{KIB, page_ceil, page_floor},
};

/// A part of a process with a resident page, and the rule that fired for it. There may be hundreds of thousands.
#[derive(Debug, Clone)]
pub struct Region<'a> {
    /// Address range.
    pub range: Range<u64>,
    /// Resident bytes in it.
    pub resident_bytes: u64,
    /// The rule.
    pub rule: &'static Rule,
    /// Path of the mapped file, or the kernel's or program's name; `None` for anonymous memory.
    pub backing: Option<&'a str>,
}

/// The runtime of one process. Its regions are given to `each` in address order, with the call that made them.
pub fn place<'a>(
    process: &'a ProcessSnapshot,
    space: &'a AddressSpace,
    threads: Option<&Process>,
    image: Option<&Image>,
    mut each: impl FnMut(Region<'a>, Option<&'a Origin>),
) -> Runtime {
    let no_image = Image::default();
    let runtime = Runtime::recognise(image.unwrap_or(&no_image), &process.vmas);
    let facts = ProcessFacts::gather(runtime, space, &process.vmas);
    let stacks = threads
        .map(|threads| stack_ranges(threads, space, runtime))
        .unwrap_or_default();
    let mut resident = Resident::new(&process.resident);
    for vma in &process.vmas {
        for (range, piece, stack) in parts(vma, space, &stacks) {
            let resident_bytes = resident.bytes_in(&range);
            if resident_bytes == 0 {
                continue;
            }
            let origin = piece.map(|piece| space.origin(piece.origin));
            let given_name = piece.and_then(|piece| piece.name).map(|id| space.name(id));
            let evidence = Evidence {
                facts: &facts,
                vma,
                piece,
                origin,
                ground: piece
                    .and_then(|piece| piece.reserved_by)
                    .map(|id| space.origin(id)),
                given_name,
                stack,
            };
            let region = Region {
                range,
                resident_bytes,
                rule: classify(&evidence),
                backing: vma.name().or(given_name),
            };
            each(region, origin);
        }
    }
    runtime
}

type Part<'a> = (Range<u64>, Option<&'a Piece>, Option<StackUse>);

/// A VMA cut where a piece of the region map or a stack begins or ends.
fn parts<'a>(
    vma: &Vma,
    space: &'a AddressSpace,
    stacks: &RangeMap<u64, StackUse>,
) -> Vec<Part<'a>> {
    let whole = vma.start..vma.end;
    let mut pieces: Vec<(Range<u64>, Option<&Piece>)> = space
        .overlapping(&whole)
        .map(|(range, piece)| (range, Some(piece)))
        .collect();
    let mut next = whole.start;
    let mut gaps = Vec::new();
    for (range, _) in &pieces {
        if next < range.start {
            gaps.push((next..range.start, None));
        }
        next = range.end;
    }
    if next < whole.end {
        gaps.push((next..whole.end, None));
    }
    if !gaps.is_empty() {
        pieces.extend(gaps);
        pieces.sort_by_key(|(range, _)| range.start);
    }
    let mut parts = Vec::with_capacity(pieces.len());
    for (range, piece) in pieces {
        let mut next = range.start;
        for (stack, &using) in stacks.overlapping(&range) {
            let (start, end) = (stack.start.max(range.start), stack.end.min(range.end));
            if next < start {
                parts.push((next..start, piece, None));
            }
            parts.push((start..end, piece, Some(using)));
            next = end;
        }
        if next < range.end {
            parts.push((next..range.end, piece, None));
        }
    }
    parts
}

/// Which addresses are stacks, and how they are used: whole pages, because a page has one region.
///
/// glibc gives `clone3` the stack without the thread's control block and TLS, which lie above it in
/// the same mapping, so the whole mapping counts. A stack inside a much larger mapping (memory of a
/// program that manages its own stacks) counts with its own range alone.
fn stack_ranges(
    process: &Process,
    space: &AddressSpace,
    runtime: Runtime,
) -> RangeMap<u64, StackUse> {
    let mut ranges = RangeMap::new();
    for past in space.past_stacks() {
        mark(&mut ranges, space, &past, StackUse::Cached);
    }
    for thread in process.threads.values() {
        if let Some(stack) = &thread.stack {
            // Go runs threads on memory of its heap (rule go.arena accounts for it).
            let certain = stack.lower_end != LowerEnd::AnyMapping || runtime == Runtime::Native;
            if certain {
                mark(&mut ranges, space, &stack.range, StackUse::Live);
            }
        }
    }
    for thread in process.threads.values() {
        if let Some(alternate) = &thread.alt_stack
            && runtime != Runtime::Go
        {
            // Its own range alone: programs take it from malloc, or from the stack of its thread, and the pages at
            // its ends, which it shares with them, stay theirs.
            let pages = page_ceil(alternate.start)..page_floor(alternate.end);
            if !pages.is_empty() {
                ranges.insert(pages, StackUse::Alternate);
            }
        }
    }
    ranges
}

/// A mapping that exceeds its stack by no more than this was made for it: guard pages, TLS, control
/// block.
const AROUND_A_STACK: u64 = 256 * KIB;

fn mark(
    ranges: &mut RangeMap<u64, StackUse>,
    space: &AddressSpace,
    stack: &Range<u64>,
    using: StackUse,
) {
    let whole = stack
        .end
        .checked_sub(1)
        .and_then(|last| space.piece_at(last))
        .and_then(|(_, piece)| {
            let call = space.origin(piece.origin);
            let origin = call.range();
            // All growth of the program break is one origin, whose range is that of the first.
            let made_for_it = call.kind != OriginKind::Brk
                && origin.start <= stack.start
                && origin.end - origin.start <= stack.end - stack.start + AROUND_A_STACK;
            made_for_it.then_some((origin, piece.origin))
        });
    match whole {
        // The pages at its ends are in use for it, whatever else is on them.
        None => {
            if !stack.is_empty() {
                ranges.insert(page_floor(stack.start)..page_ceil(stack.end), using);
            }
        }
        // Parts that were unmapped meanwhile may hold something else by now.
        Some((origin, id)) => {
            for (part, piece) in space.overlapping(&origin) {
                if piece.origin == id || piece.reserved_by == Some(id) {
                    ranges.insert(part, using);
                }
            }
        }
    }
}

/// Counts resident bytes in ranges that are asked for in ascending order.
struct Resident<'a> {
    ranges: &'a [ResidentRange],
}

impl<'a> Resident<'a> {
    fn new(ranges: &'a [ResidentRange]) -> Self {
        Resident { ranges }
    }

    fn bytes_in(&mut self, range: &Range<u64>) -> u64 {
        let mut bytes = 0;
        while let Some(first) = self.ranges.first() {
            if first.start >= range.end {
                break;
            }
            bytes += first
                .end
                .min(range.end)
                .saturating_sub(first.start.max(range.start));
            if first.end > range.end {
                break;
            }
            self.ranges = &self.ranges[1..];
        }
        bytes
    }
}
