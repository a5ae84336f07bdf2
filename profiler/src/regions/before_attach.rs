//! The region map of a process that ran before anybody looked: what the calls must have been, by flags and
//! shape of the mappings.
//!
//! No call was seen. Each piece gets an origin that is marked [`Origin::before_attach`], whose arguments are
//! those that such a mapping is made with as a rule:
//!
//! ```text
//! shape                                                         taken for
//! |--- guard|rw nh        |   or a thread's stack pointer in it  a stack (MAP_STACK)
//! |rw nr  |--- nr         |   64 MiB, aligned                    a heap of a malloc arena, opened by mprotect
//! |rw ac  |---- nr        |                                      a reservation, in which mmap committed
//! |rw     |----           |                                      a reservation, opened by mprotect
//! |file|file rw|rw        |   inside what the file's headers say bss of an image
//! |rw                     |                                      one plain mmap, however many it was
//! ```
//!
//! What the kernel has merged stays merged: two blocks of malloc side by side are one mapping, and so are a
//! block and the committed part of a reservation above it.

use std::ops::Range;

use crate::residency::{
    Vma,
    standing::{Mapping, Standing, VmFlags},
};
use crate::units::{KIB, MIB};

use super::{
    AddressSpace, Advice, LowerEnd, NO_ACCESS, OriginId, OriginKind, PROT_NONE, PROT_RWX, Piece,
    Stack, rwx,
};

/// A guard below a stack is smaller than that; what is larger was reserved for something.
const GUARD_AT_MOST: u64 = MIB;
/// An inaccessible mapping from this size on is a reservation.
const RESERVATION_AT_LEAST: u64 = 64 * KIB;
/// glibc: `HEAP_MAX_SIZE` (malloc/arena.c), to which its heaps are aligned; so are the arenas of Go's heap
/// (runtime/malloc.go, `heapArenaBytes`).
const ARENA: u64 = 64 * MIB;
/// Below, memory is only where a program asked for it by address; above is where the kernel puts it. (HotSpot's
/// heap: compressed pointers reach 32 GiB.)
const CHOSEN_BY_PROGRAM: u64 = 32 << 30;

const PRIVATE_ANONYMOUS: u32 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
const NORESERVE: u32 = libc::MAP_NORESERVE as u32;
const MAP_STACK: u32 = libc::MAP_STACK as u32;

/// Anonymous private memory that is not part of an image.
struct Span {
    range: Range<u64>,
    protection: u32,
    flags: VmFlags,
    name: Option<String>,
    /// Its piece is in the map.
    done: bool,
}

impl Span {
    fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn is_closed(&self) -> bool {
        self.protection == PROT_NONE
    }

    fn has(&self, flags: VmFlags) -> bool {
        self.flags.contains(flags)
    }
}

/// The region map, and the stack of each thread that has one of its own.
pub fn address_space(standing: &Standing) -> (AddressSpace, Vec<(u32, Option<Stack>)>) {
    let mut space = AddressSpace::empty();
    let mut spans = Vec::new();
    let mut last_file = None;
    let in_address_space = |mapping: &&Mapping| {
        mapping.vma.start < mapping.vma.end && mapping.vma.name() != Some("[vsyscall]")
    };
    for Mapping { vma, flags } in standing.mappings.iter().filter(in_address_space) {
        let range = vma.start..vma.end;
        let name = vma.name().unwrap_or_default();
        if vma.inode() != 0 || vma.shared {
            last_file = Some(enter_file(&mut space, vma, *flags));
        } else if name == "[heap]" {
            space.program_break = Some(vma.end);
            let origin = space.brk_origin(0, &range);
            space.origins[origin.index()].before_attach = true;
            enter(&mut space, range, piece(origin, vma.protection, *flags));
        } else if name.starts_with('[') && !name.starts_with("[anon:") {
            let origin = origin(&mut space, OriginKind::Exec, &range);
            enter(&mut space, range, piece(origin, vma.protection, *flags));
        } else {
            let image = standing.images.iter().find(|it| it.contains(&vma.start));
            let bss_end = image.map_or(vma.start, |image| image.end.min(vma.end));
            if let (true, Some(file)) = (bss_end > vma.start, last_file) {
                let bss = vma.start..bss_end;
                let origin = plain(&mut space, &bss, 0, vma.protection, PRIVATE_ANONYMOUS);
                let laid = Piece {
                    reserved_by: Some(file),
                    ..piece(origin, vma.protection, *flags)
                };
                enter(&mut space, bss, laid);
            }
            if bss_end < vma.end {
                spans.push(Span {
                    range: bss_end..vma.end,
                    protection: vma.protection & PROT_RWX,
                    flags: *flags,
                    name: anonymous_name(name),
                    done: false,
                });
            }
        }
    }
    let stacks = enter_stacks(&mut space, &mut spans, standing);
    enter_arenas(&mut space, &mut spans);
    enter_reservations(&mut space, &mut spans);
    for span in spans.iter_mut().filter(|span| !span.done) {
        let range = span.range.clone();
        let flags = PRIVATE_ANONYMOUS | mmap_flags(span.flags);
        let origin = plain(&mut space, &range, 0, span.protection, flags);
        enter_span(&mut space, span, origin, None);
    }
    (space, stacks)
}

fn anonymous_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("[anon:")?.strip_suffix(']')?;
    Some(name.to_owned())
}

fn mmap_flags(flags: VmFlags) -> u32 {
    let mut mmap = 0;
    if flags.contains(VmFlags::NORESERVE) {
        mmap |= NORESERVE;
    }
    if flags.contains(VmFlags::GROWSDOWN) {
        mmap |= libc::MAP_GROWSDOWN as u32;
    }
    if flags.contains(VmFlags::HUGETLB) {
        mmap |= libc::MAP_HUGETLB as u32;
    }
    mmap
}

fn advice(flags: VmFlags) -> Advice {
    [
        (VmFlags::DONTFORK, Advice::DONTFORK),
        (VmFlags::HUGEPAGE, Advice::HUGEPAGE),
        (VmFlags::DONTDUMP, Advice::DONTDUMP),
        (VmFlags::GUARD, Advice::GUARD),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .map(|(_, advice)| advice)
    .collect()
}

fn origin(space: &mut AddressSpace, kind: OriginKind, range: &Range<u64>) -> OriginId {
    let id = space.add_origin(kind, 0, range);
    space.origins[id.index()].before_attach = true;
    id
}

/// The `mmap` that a range must have come from.
fn plain(
    space: &mut AddressSpace,
    range: &Range<u64>,
    hint: u64,
    protection: u32,
    flags: u32,
) -> OriginId {
    let kind = OriginKind::Mmap {
        hint,
        length: range.end - range.start,
        protection: protection & PROT_RWX,
        flags,
    };
    origin(space, kind, range)
}

fn piece(origin: OriginId, protection: u32, flags: VmFlags) -> Piece {
    let protection = rwx(protection);
    Piece {
        origin,
        reserved_by: None,
        protection,
        advice: advice(flags),
        ever_protected_none: protection == NO_ACCESS,
        name: None,
        born_ns: 0,
    }
}

fn enter(space: &mut AddressSpace, range: Range<u64>, piece: Piece) {
    space.resync(range, Some(piece));
}

/// A mapping of a file, or shared memory; its origin.
fn enter_file(space: &mut AddressSpace, vma: &Vma, flags: VmFlags) -> OriginId {
    let kind = match vma.shared {
        true => libc::MAP_SHARED as u32,
        false => libc::MAP_PRIVATE as u32,
    };
    let id = plain(
        space,
        &(vma.start..vma.end),
        0,
        vma.protection,
        kind | mmap_flags(flags),
    );
    enter(space, vma.start..vma.end, piece(id, vma.protection, flags));
    id
}

/// Enters a span, as opened by `mprotect` if it is part of a reservation without a ground of its own.
fn enter_span(
    space: &mut AddressSpace,
    span: &mut Span,
    origin: OriginId,
    ground: Option<OriginId>,
) {
    span.done = true;
    let reserved = space.origin(origin).is_reservation();
    let name = span.name.as_deref().map(|name| space.name_id(name));
    let made = piece(origin, span.protection, span.flags);
    let made = Piece {
        reserved_by: ground,
        ever_protected_none: made.ever_protected_none || reserved,
        name,
        ..made
    };
    enter(space, span.range.clone(), made);
}

/// Thread stacks: by the guard below and `nh`, or by a stack pointer.
fn enter_stacks(
    space: &mut AddressSpace,
    spans: &mut [Span],
    standing: &Standing,
) -> Vec<(u32, Option<Stack>)> {
    let mut pointers: Vec<u64> = standing.threads.iter().filter_map(|it| it.1).collect();
    pointers.sort_unstable();
    let holds_pointer = |range: &Range<u64>| {
        let first = pointers.partition_point(|&pointer| pointer < range.start);
        pointers.get(first).is_some_and(|&it| it < range.end)
    };
    let mut found: Vec<Range<u64>> = Vec::new();
    for index in 0..spans.len() {
        let (below, rest) = spans.split_at_mut(index);
        let span = &mut rest[0];
        if span.is_closed() || span.has(VmFlags::DONTFORK) {
            continue;
        }
        let guard = below.last_mut().filter(|below| {
            below.range.end == span.range.start
                && below.is_closed()
                && below.length() <= GUARD_AT_MOST
                && !below.done
        });
        let guarded = guard.is_some() || span.has(VmFlags::GUARD) || span.has(VmFlags::GROWSDOWN);
        let is_stack = guarded && (span.has(VmFlags::NOHUGEPAGE) || holds_pointer(&span.range));
        if !is_stack {
            continue;
        }
        let start = guard.as_ref().map_or(span.range.start, |it| it.range.start);
        let whole = start..span.range.end;
        let flags = PRIVATE_ANONYMOUS | MAP_STACK | mmap_flags(span.flags);
        let origin = plain(space, &whole, 0, PROT_NONE, flags);
        if let Some(guard) = guard {
            enter_span(space, guard, origin, None);
        }
        found.push(span.range.clone());
        enter_span(space, span, origin, None);
    }
    let stack = |(tid, pointer): &(u32, Option<u64>)| {
        let at = (*pointer).filter(|_| *tid != standing.tgid)?;
        let index = found.partition_point(|range| range.end <= at);
        let range = found.get(index).filter(|range| range.contains(&at))?;
        Some(Stack {
            range: range.clone(),
            lower_end: LowerEnd::StackMapping,
        })
    };
    standing
        .threads
        .iter()
        .map(|it| (it.0, stack(it)))
        .collect()
}

/// Heaps of malloc's arenas. Two that touch are one mapping where both are fully open, so they are looked for
/// from boundary to boundary.
fn enter_arenas(space: &mut AddressSpace, spans: &mut Vec<Span>) {
    cut_at_arenas(spans);
    let mut index = 0;
    while index < spans.len() {
        let first = &spans[index];
        let begins =
            first.range.start.is_multiple_of(ARENA) && !first.is_closed() && is_arena_like(first);
        let mut next = index;
        let mut end = first.range.start;
        let target = first.range.start.saturating_add(ARENA);
        while begins
            && end < target
            && spans
                .get(next)
                .is_some_and(|span| span.range.start == end && is_arena_like(span))
        {
            end = spans[next].range.end;
            next += 1;
        }
        if !begins || end != target {
            index += 1;
            continue;
        }
        let whole = first.range.start..target;
        let flags = PRIVATE_ANONYMOUS | NORESERVE;
        let origin = plain(space, &whole, 0, PROT_NONE, flags);
        for span in &mut spans[index..next] {
            enter_span(space, span, origin, None);
        }
        index = next;
    }
}

fn is_arena_like(span: &Span) -> bool {
    span.has(VmFlags::NORESERVE) && !span.has(VmFlags::DONTFORK) && !span.done
}

/// Cuts open spans at the boundaries of arenas. What is closed ends with its arena, or is larger than one.
fn cut_at_arenas(spans: &mut Vec<Span>) {
    let mut cut = Vec::with_capacity(spans.len());
    for mut span in spans.drain(..) {
        while is_arena_like(&span) && !span.is_closed() {
            let boundary = (span.range.start + 1).next_multiple_of(ARENA);
            if boundary >= span.range.end {
                break;
            }
            cut.push(Span {
                range: span.range.start..boundary,
                name: span.name.clone(),
                ..span
            });
            span.range.start = boundary;
        }
        cut.push(span);
    }
    *spans = cut;
}

/// Reservations: neighbours among which one is large and closed. What is open above the last closed one was put
/// there by itself, except where the program itself chose the address.
fn enter_reservations(space: &mut AddressSpace, spans: &mut [Span]) {
    let mut index = 0;
    while index < spans.len() {
        let mut end = index + 1;
        while end < spans.len() && spans[end].range.start == spans[end - 1].range.end {
            end += 1;
        }
        // What is known already parts the neighbours.
        for group in spans[index..end].split_mut(|span| span.done) {
            enter_reservation(space, group);
        }
        index = end;
    }
}

fn enter_reservation(space: &mut AddressSpace, group: &mut [Span]) {
    let is_reserved = |span: &Span| span.is_closed() && span.length() >= RESERVATION_AT_LEAST;
    let in_heap = group
        .first()
        .is_some_and(|span| span.range.start < CHOSEN_BY_PROGRAM);
    let last = match group.iter().rposition(is_reserved) {
        Some(_) if in_heap => group.len(),
        Some(last) => last + 1,
        None => return,
    };
    let group = &mut group[..last];
    let whole = group[0].range.start..group[last - 1].range.end;
    let unaccounted = group
        .iter()
        .any(|span| span.is_closed() && span.has(VmFlags::NORESERVE));
    let chosen = in_heap || whole.start.is_multiple_of(ARENA);
    let flags = PRIVATE_ANONYMOUS | if unaccounted { NORESERVE } else { 0 };
    let hint = if chosen { whole.start } else { 0 };
    let reservation = plain(space, &whole, hint, PROT_NONE, flags);
    for span in group {
        // `mprotect` would have left it unaccounted.
        let laid_on = unaccounted && !span.is_closed() && !span.has(VmFlags::NORESERVE);
        if laid_on {
            let range = span.range.clone();
            let flags = PRIVATE_ANONYMOUS | libc::MAP_FIXED as u32;
            let own = plain(space, &range, range.start, span.protection, flags);
            enter_span(space, span, own, Some(reservation));
        } else {
            enter_span(space, span, reservation, None);
        }
    }
}

#[cfg(test)]
mod tests;
