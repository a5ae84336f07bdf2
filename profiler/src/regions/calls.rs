//! What each call does to an [`AddressSpace`]: `mmap`, `munmap`, `mremap`, `brk`, `mprotect`,
//! `madvise`, `prctl(PR_SET_VMA)`.

use std::ops::Range;

use crate::events::{Call, Event};
use crate::units::page_ceil;

use super::address_space::pages;
use super::{AddressSpace, Advice, NO_ACCESS, OriginKind, PROT_RWX, Piece, rwx};

const MAP_FIXED: u32 = libc::MAP_FIXED as u32;
const MAP_FIXED_NOREPLACE: u32 = libc::MAP_FIXED_NOREPLACE as u32;
const MAP_HUGETLB: u32 = libc::MAP_HUGETLB as u32;
const MREMAP_FIXED: u32 = libc::MREMAP_FIXED as u32;
const MREMAP_DONTUNMAP: u32 = libc::MREMAP_DONTUNMAP as u32;
const PROT_GROWSDOWN: u32 = libc::PROT_GROWSDOWN as u32;

/// Huge page that `MAP_HUGETLB` means when its flags name no size.
const DEFAULT_HUGE_PAGE_SHIFT: u32 = 21;

/// `mremap` with its lengths rounded to pages.
struct Remap {
    old: u64,
    old_length: u64,
    new: u64,
    new_length: u64,
    flags: u32,
}

impl AddressSpace {
    /// Does what the call of `event` did. Calls that are not about the address space do nothing.
    pub fn apply(&mut self, event: &Event) {
        match &event.call {
            Call::Mmap { .. } => self.mmap(event),
            &Call::Munmap { address, length } => {
                if let Some(range) = pages(address, length) {
                    self.take(&range, event.began_ns);
                }
            }
            &Call::Mremap {
                old_address,
                old_length,
                new_length,
                flags,
                address,
            } => {
                let remap = Remap {
                    old: old_address,
                    old_length: page_ceil(old_length),
                    new: address,
                    new_length: page_ceil(new_length),
                    flags,
                };
                self.mremap(event, &remap);
            }
            &Call::Brk { address, .. } => self.brk(event, address),
            &Call::Mprotect {
                address,
                length,
                protection,
            } => self.mprotect(event, address, length, protection),
            &Call::Madvise {
                address,
                length,
                advice,
            } => self.madvise(event, address, length, advice),
            Call::NameVma {
                address,
                length,
                name,
            } => self.name_vma(event, *address, *length, name),
            Call::Fork { .. }
            | Call::MemfdCreate { .. }
            | Call::PeakCandidate { .. }
            | Call::OwnPeakCandidate { .. }
            | Call::Sigaltstack { .. }
            | Call::Exec { .. }
            | Call::Exit => {}
        }
    }

    fn mmap(&mut self, event: &Event) {
        let Call::Mmap {
            hint,
            length,
            protection,
            flags,
            address,
            ..
        } = event.call
        else {
            return;
        };
        let Some(range) = pages(address, mapped_length(length, flags)) else {
            return;
        };
        let kind = OriginKind::Mmap {
            hint,
            length,
            protection,
            flags,
        };
        let origin = self.add_origin(kind, event.call_stack, &range);
        let protection = rwx(protection);
        let piece = Piece {
            origin,
            reserved_by: None,
            protection,
            advice: Advice::empty(),
            ever_protected_none: protection == NO_ACCESS,
            name: None,
            born_ns: event.ended_ns,
        };
        // `MAP_FIXED_NOREPLACE` succeeds only where nothing is mapped, with or without `MAP_FIXED`.
        if flags & MAP_FIXED != 0 && flags & MAP_FIXED_NOREPLACE == 0 {
            self.lay(range, piece);
        } else {
            self.place(range, piece);
        }
    }

    fn mremap(&mut self, event: &Event, remap: &Remap) {
        let old_end = remap.old.checked_add(remap.old_length);
        let new_end = remap.new.checked_add(remap.new_length);
        if old_end.is_none() || new_end.is_none() {
            // No successful call carries such numbers.
            return;
        }
        if remap.old_length == 0 {
            self.duplicate(event, remap);
        } else if remap.new != remap.old {
            self.move_to(event, remap);
        } else if remap.new_length < remap.old_length {
            let tail = remap.old + remap.new_length..remap.old + remap.old_length;
            self.take(&tail, event.began_ns);
        } else if remap.new_length > remap.old_length {
            self.grow(event, remap);
        }
    }

    /// An old length of 0 leaves a shared mapping where it is and maps it a second time.
    fn duplicate(&mut self, event: &Event, remap: &Remap) {
        let Some(target) = pages(remap.new, remap.new_length) else {
            return;
        };
        let original = self.piece_at(remap.old).map(|(_, piece)| *piece);
        let original = original.unwrap_or_else(|| self.unexplained(event, &target));
        self.settle_at(target, original, event, remap.flags);
    }

    /// ```text
    /// before     | a | b    |
    ///            |-- old ---|
    /// after      | a | b          |
    /// ```
    fn grow(&mut self, event: &Event, remap: &Remap) {
        let old_end = remap.old + remap.old_length;
        let growth = old_end..remap.old + remap.new_length;
        let (last_start, last) = match self.piece_at(old_end - 1) {
            Some((range, piece)) => (range.start.max(remap.old), *piece),
            None => (old_end, self.unexplained(event, &growth)),
        };
        self.place(growth.clone(), last);
        // Old and new part become one again: a program that resizes a range is not unmapping parts
        // of it at the same time, so the later birth does no harm.
        let grown = Piece {
            born_ns: event.ended_ns,
            ..last
        };
        self.resync(last_start..growth.end, Some(grown));
    }

    /// Moves everything in the old range, keeping distances; the last piece takes the growth.
    ///
    /// ```text
    /// old        | a | b | hole | c |          new length < old: cut      new length > old:
    /// new        | a | b | left | c |          | a | b |                  | a | b | hole | c     |
    /// ```
    /// The kernel (6.17 and later) leaves alone what is at the destination of a hole.
    fn move_to(&mut self, event: &Event, remap: &Remap) {
        let old = remap.old..remap.old + remap.old_length;
        let moved = if remap.flags & MREMAP_DONTUNMAP == 0 {
            self.take(&old, event.began_ns)
        } else {
            let kept = self.meant(&old, event.began_ns);
            // The old range stays mapped but loses its pages, guard markers among them.
            self.alter(&old, event.began_ns, |piece| {
                piece.advice.remove(Advice::GUARD)
            });
            kept
        };
        for (part, piece) in self.with_unseen_filled(event, &old, moved) {
            let start = part.start - old.start;
            let end = match part.end - old.start {
                end if end == remap.old_length => remap.new_length,
                end => end.min(remap.new_length),
            };
            if start < end {
                let target = remap.new + start..remap.new + end;
                self.settle_at(target, piece, event, remap.flags);
            }
        }
    }

    /// A successful `mremap` proves that something is mapped where we know of nothing: at least at
    /// the start, and everywhere as long as mappings of the kernel's own are not yet adopted.
    fn with_unseen_filled(
        &mut self,
        event: &Event,
        old: &Range<u64>,
        known: Vec<(Range<u64>, Piece)>,
    ) -> Vec<(Range<u64>, Piece)> {
        if self.unseen.is_none() && !known.is_empty() {
            return known;
        }
        let mut all = Vec::with_capacity(known.len() + 1);
        let mut next = old.start;
        for (part, piece) in known {
            if next < part.start {
                all.push((next..part.start, self.unexplained(event, old)));
            }
            next = part.end;
            all.push((part, piece));
        }
        if next < old.end {
            all.push((next..old.end, self.unexplained(event, old)));
        }
        all
    }

    /// Puts the moved `piece` at its new address, where it is laid on something else or on nothing.
    fn settle_at(&mut self, target: Range<u64>, piece: Piece, event: &Event, flags: u32) {
        let piece = Piece {
            reserved_by: None,
            born_ns: event.ended_ns,
            ..piece
        };
        if flags & MREMAP_FIXED != 0 {
            self.lay(target, piece);
        } else {
            self.place(target, piece);
        }
    }

    /// The piece for memory that a call proves to be there and no call made. Its protection is a
    /// guess until the next comparison.
    fn unexplained(&mut self, event: &Event, range: &Range<u64>) -> Piece {
        let kind = match &self.unseen {
            Some(unseen) => unseen.kind.clone(),
            None => OriginKind::Unknown,
        };
        Piece {
            origin: self.add_origin(kind, 0, range),
            reserved_by: None,
            protection: rwx(PROT_RWX & !(libc::PROT_EXEC as u32)),
            advice: Advice::empty(),
            ever_protected_none: false,
            name: None,
            born_ns: event.ended_ns,
        }
    }

    /// The kernel maps from page to page, so a break inside a page maps all of it. The first `brk`
    /// seen tells where the break is and maps nothing: `ld.so` and libc begin with `brk(0)`.
    fn brk(&mut self, event: &Event, address: u64) {
        let before = self.program_break.replace(address).map(page_ceil);
        let after = page_ceil(address);
        match before {
            Some(before) if after > before => self.grow_heap(event, before..after),
            Some(before) if after < before => {
                self.take(&(after..before), event.began_ns);
            }
            Some(_) | None => {}
        }
    }

    fn grow_heap(&mut self, event: &Event, growth: Range<u64>) {
        let origin = self.brk_origin(event.call_stack, &growth);
        self.note_heap_growth(growth.clone(), event.call_stack);
        let piece = Piece {
            origin,
            reserved_by: None,
            protection: rwx((libc::PROT_READ | libc::PROT_WRITE) as u32),
            advice: Advice::empty(),
            ever_protected_none: false,
            name: None,
            born_ns: event.ended_ns,
        };
        self.place(growth.clone(), piece);
        // One heap, not one piece for each of thousands of small steps: the last of it takes the
        // birth of the growth, as when `mremap` grows.
        let last = growth.start.checked_sub(1).and_then(|at| self.piece_at(at));
        if let Some((range, last)) = last {
            let born_ns = last.born_ns;
            if (Piece { born_ns, ..piece }) == *last {
                self.resync(range, Some(piece));
            }
        }
    }

    fn mprotect(&mut self, event: &Event, address: u64, length: u64, protection: u32) {
        let Some(mut range) = pages(address, length) else {
            return;
        };
        if protection & PROT_GROWSDOWN != 0
            && let Some((around, _)) = self.piece_at(range.start)
        {
            range.start = around.start;
        }
        let protection = rwx(protection);
        self.alter(&range, event.began_ns, |piece| {
            piece.protection = protection;
            piece.ever_protected_none |= protection == NO_ACCESS;
        });
    }

    fn madvise(&mut self, event: &Event, address: u64, length: u64, advice: u32) {
        let Some(range) = pages(address, length) else {
            return;
        };
        let (set, clear) = match advice as i32 {
            libc::MADV_DONTFORK => (Advice::DONTFORK, Advice::empty()),
            libc::MADV_DOFORK => (Advice::empty(), Advice::DONTFORK),
            libc::MADV_HUGEPAGE => (Advice::HUGEPAGE, Advice::NOHUGEPAGE),
            libc::MADV_NOHUGEPAGE => (Advice::NOHUGEPAGE, Advice::HUGEPAGE),
            libc::MADV_DONTDUMP => (Advice::DONTDUMP, Advice::empty()),
            libc::MADV_DODUMP => (Advice::empty(), Advice::DONTDUMP),
            MADV_GUARD_INSTALL => (Advice::GUARD, Advice::empty()),
            MADV_GUARD_REMOVE => (Advice::empty(), Advice::GUARD),
            _ => return,
        };
        self.alter(&range, event.began_ns, |piece| {
            piece.advice.remove(clear);
            piece.advice.insert(set);
        });
    }

    fn name_vma(&mut self, event: &Event, address: u64, length: u64, name: &str) {
        let Some(range) = pages(address, length) else {
            return;
        };
        let name = (!name.is_empty()).then(|| self.name_id(name));
        self.alter(&range, event.began_ns, |piece| piece.name = name);
    }
}

/// `MADV_GUARD_INSTALL` and `MADV_GUARD_REMOVE` (Linux 6.13), not in the libc crate.
const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// Bytes that an `mmap` of `length` bytes maps, before rounding to small pages.
fn mapped_length(length: u64, flags: u32) -> u64 {
    if flags & MAP_HUGETLB == 0 {
        return length;
    }
    let shift = match flags >> libc::MAP_HUGE_SHIFT & 0x3f {
        0 => DEFAULT_HUGE_PAGE_SHIFT,
        shift => shift,
    };
    let huge = 1 << shift;
    length.checked_next_multiple_of(huge).unwrap_or(length)
}

#[cfg(test)]
mod tests {
    use super::super::script::*;
    use super::*;

    const NORESERVE: u32 = libc::MAP_NORESERVE as u32;
    const SHARED: u32 = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32;
    const MAYMOVE: i32 = libc::MREMAP_MAYMOVE;
    const MOVE_FIXED: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    const MOVE_DONTUNMAP: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;

    fn after_calls(calls: impl IntoIterator<Item = Call>) -> Vec<String> {
        text(&after(in_order(calls)))
    }

    #[test]
    fn mmap_rounds_up_to_pages_and_keeps_the_arguments() {
        let space = after([at(
            7,
            Call::Mmap {
                hint: P * 64,
                length: P + 1,
                protection: RW,
                flags: ANON | STACK,
                fd: -1,
                offset: 0,
                address: P * 2,
            },
        )]);
        assert_eq!(text(&space), ["2-4 rw- #0"]);
        let origin = &space.origins()[0];
        assert_eq!(origin.range(), P * 2..P * 4);
        let OriginKind::Mmap { hint, length, .. } = origin.kind else {
            panic!("{origin:?}");
        };
        assert_eq!((hint, length), (P * 64, P + 1));
        assert!(origin.has_flag(libc::MAP_STACK) && !origin.is_reservation() && !origin.is_file());
    }

    #[test]
    fn huge_pages_round_up_to_their_size() {
        let huge = ANON | libc::MAP_HUGETLB as u32;
        let one_gib = huge | 30 << libc::MAP_HUGE_SHIFT;
        assert_eq!(after_calls([mmap(0..P, RW, huge)]), ["0-512 rw- #0"]);
        assert_eq!(after_calls([mmap(0..P, RW, one_gib)]), ["0-262144 rw- #0"]);
    }

    #[test]
    fn neighbours_of_two_calls_stay_two() {
        assert_eq!(
            after_calls([mmap(0..P * 2, RW, ANON), mmap(P * 2..P * 4, RW, ANON)]),
            ["0-2 rw- #0", "2-4 rw- #1"]
        );
    }

    /// ```text
    /// before   |0 0 0 0|. .|1 1 1 1|
    /// munmap       |---------|
    /// ```
    #[test]
    fn munmap_cuts_several_mappings_and_a_hole() {
        assert_eq!(
            after_calls([
                mmap(0..P * 4, RW, ANON),
                mmap(P * 6..P * 10, R, ANON),
                munmap(P * 2..P * 7),
            ]),
            ["0-2 rw- #0", "7-10 r-- #1"]
        );
    }

    #[test]
    fn munmap_in_the_middle_leaves_two_parts_of_one_origin() {
        assert_eq!(
            after_calls([mmap(0..P * 6, RW, ANON), munmap(P * 2..P * 3 + 1)]),
            ["0-2 rw- #0", "4-6 rw- #0"]
        );
    }

    /// ```text
    /// before   |0 0 0 0|. .|1 1 1 1|
    /// fixed        |2 2 2 2 2|
    /// ```
    #[test]
    fn map_fixed_replaces_and_notes_what_it_was_laid_on() {
        assert_eq!(
            after_calls([
                mmap(0..P * 4, NONE, ANON),
                mmap(P * 6..P * 10, R, ANON),
                mmap(P * 2..P * 7, RW, ANON | FIXED),
            ]),
            [
                "0-2 --- #0",
                "2-4 rw- #2 on #0",
                "4-6 rw- #2",
                "6-7 rw- #2 on #1",
                "7-10 r-- #1",
            ]
        );
    }

    /// A heap that commits, decommits and commits again inside one reservation (V8, HotSpot).
    #[test]
    fn the_outermost_reservation_is_remembered() {
        let commit = |place, protection| mmap(place, protection, ANON | FIXED);
        assert_eq!(
            after_calls([
                mmap(0..P * 8, NONE, ANON | NORESERVE),
                commit(P * 2..P * 6, RW),
                commit(P * 3..P * 4, NONE),
                commit(P * 3..P * 5, RX),
            ]),
            [
                "0-2 --- #0",
                "2-3 rw- #1 on #0",
                "3-5 r-x #3 on #0",
                "5-6 rw- #1 on #0",
                "6-8 --- #0",
            ]
        );
    }

    #[test]
    fn what_was_unmapped_reserves_nothing() {
        assert_eq!(
            after_calls([
                mmap(0..P * 4, NONE, ANON),
                munmap(0..P * 4),
                mmap(0..P * 4, RW, ANON | FIXED),
            ]),
            ["0-4 rw- #1"]
        );
    }

    #[test]
    fn map_fixed_noreplace_is_laid_on_nothing() {
        let noreplace = ANON | MAP_FIXED_NOREPLACE;
        assert_eq!(
            after_calls([
                mmap(0..P * 2, RW, ANON),
                mmap(P * 2..P * 4, RW, noreplace),
                mmap(P * 4..P * 6, RW, noreplace | FIXED),
            ]),
            ["0-2 rw- #0", "2-4 rw- #1", "4-6 rw- #2"]
        );
    }

    /// A glibc arena: 128 MiB without access, trimmed to an aligned half, opened from its start.
    #[test]
    fn commit_by_mprotect_is_told_from_commit_by_mmap() {
        let space = after(in_order([
            mmap(0..P * 128, NONE, ANON | NORESERVE),
            munmap(0..P * 32),
            munmap(P * 96..P * 128),
            mprotect(P * 32..P * 65, RW),
            mprotect(P * 65..P * 66, RW),
        ]));
        assert_eq!(text(&space), ["32-66 rw- #0 was none", "66-96 --- #0"]);
        let (_, open) = space.piece_at(P * 33).expect("mapped");
        assert!(open.committed_by_mprotect());
        let (_, closed) = space.piece_at(P * 66).expect("mapped");
        assert!(!closed.committed_by_mprotect());
        assert!(space.origin(open.origin).is_reservation());
    }

    #[test]
    fn a_guard_page_that_is_opened_again_leaves_a_trace() {
        assert_eq!(
            after_calls([
                mmap(0..P * 4, RW, ANON),
                mprotect(0..P, NONE),
                mprotect(P * 2..P * 3, R),
                mprotect(0..P, RW),
            ]),
            [
                "0-1 rw- #0 was none",
                "1-2 rw- #0",
                "2-3 r-- #0",
                "3-4 rw- #0"
            ]
        );
    }

    #[test]
    fn mprotect_of_a_growing_stack_reaches_its_start() {
        let call = mprotect(P * 3..P * 4, RX | PROT_GROWSDOWN);
        assert_eq!(
            after_calls([mmap(0..P * 4, RW, ANON), call]),
            ["0-4 r-x #0"]
        );
    }

    #[test]
    fn advice_splits_and_can_be_taken_back() {
        let calls = [
            mmap(0..P * 8, RW, ANON),
            madvise(0..P * 4, libc::MADV_DONTFORK),
            madvise(P * 2..P * 6, libc::MADV_DONTDUMP),
            madvise(P * 6..P * 7, libc::MADV_NOHUGEPAGE),
            madvise(P * 7..P * 8, MADV_GUARD_INSTALL),
        ];
        assert_eq!(
            after_calls(calls.clone()),
            [
                "0-2 rw- #0 DONTFORK",
                "2-4 rw- #0 DONTFORK+DONTDUMP",
                "4-6 rw- #0 DONTDUMP",
                "6-7 rw- #0 NOHUGEPAGE",
                "7-8 rw- #0 GUARD",
            ]
        );
        let back = [
            madvise(0..P * 8, libc::MADV_DOFORK),
            madvise(0..P * 8, libc::MADV_DODUMP),
            madvise(0..P * 8, MADV_GUARD_REMOVE),
            madvise(0..P * 8, libc::MADV_HUGEPAGE),
            madvise(0..P * 8, libc::MADV_DONTNEED),
            madvise(0..P * 8, libc::MADV_FREE),
        ];
        assert_eq!(
            after_calls(calls.into_iter().chain(back)),
            ["0-8 rw- #0 HUGEPAGE"]
        );
    }

    #[test]
    fn names_come_and_go() {
        assert_eq!(
            after_calls([
                mmap(0..P * 6, RW, ANON),
                name(0..P * 4, "Go: heap"),
                name(P * 2..P * 3, ""),
            ]),
            [
                "0-2 rw- #0 'Go: heap'",
                "2-3 rw- #0",
                "3-4 rw- #0 'Go: heap'",
                "4-6 rw- #0",
            ]
        );
    }

    #[test]
    fn brk_is_one_heap_of_one_origin() {
        let space = after(in_order([
            brk(P * 10),
            brk(P * 12),
            brk(P * 13 + 1),
            brk(P * 14),
            brk(P * 16),
            brk(P * 13 - 1),
            brk(P * 14),
        ]));
        assert_eq!(text(&space), ["10-14 rw- #0"]);
        assert_eq!(space.program_break(), Some(P * 14));
        assert_eq!(space.origins()[0].kind, OriginKind::Brk);
        assert_eq!(space.origins()[0].range(), P * 10..P * 12);
    }

    #[test]
    fn brk_takes_back_everything() {
        assert_eq!(
            after_calls([brk(P * 10), brk(P * 12), brk(P * 10)]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn mremap_shrinks_in_place() {
        assert_eq!(
            after_calls([
                mmap(0..P * 6, RW, ANON),
                mremap(0..P * 6, 0..P * 2, MAYMOVE),
            ]),
            ["0-2 rw- #0"]
        );
    }

    #[test]
    fn mremap_grows_in_place_with_the_piece_at_its_end() {
        assert_eq!(
            after_calls([
                mmap(0..P * 4, RW, ANON),
                mprotect(0..P * 2, R),
                mremap(P * 3..P * 4, P * 3..P * 7, 0),
            ]),
            ["0-2 r-- #0", "2-3 rw- #0", "3-7 rw- #0"]
        );
    }

    #[test]
    fn mremap_moves_all_pieces_and_grows_the_last() {
        assert_eq!(
            after_calls([
                mmap(0..P * 4, RW, ANON),
                mprotect(0..P, R),
                mremap(0..P * 4, P * 20..P * 26, MAYMOVE),
            ]),
            ["20-21 r-- #0", "21-26 rw- #0"]
        );
    }

    /// ```text
    /// before   |0 0 0 0|   |1 1 1 1|
    /// mremap   |------| ->   |0 0|       shrunk, laid on the middle of 1
    /// ```
    #[test]
    fn mremap_fixed_shrinks_and_replaces() {
        assert_eq!(
            after_calls([
                mmap(0..P * 4, RW, ANON),
                mmap(P * 6..P * 10, NONE, ANON),
                mremap(0..P * 4, P * 7..P * 9, MOVE_FIXED),
            ]),
            ["6-7 --- #1", "7-9 rw- #0 on #1", "9-10 --- #1"]
        );
    }

    #[test]
    fn mremap_keeps_holes_and_what_is_behind_them() {
        assert_eq!(
            after_calls([
                mmap(0..P, RW, ANON),
                mmap(P * 2..P * 3, R, ANON),
                mmap(P * 10..P * 13, NONE, ANON),
                mremap(0..P * 3, P * 10..P * 13, MOVE_FIXED),
            ]),
            ["10-11 rw- #0 on #2", "11-12 --- #2", "12-13 r-- #1 on #2"]
        );
    }

    #[test]
    fn mremap_dontunmap_leaves_the_old_range_mapped() {
        assert_eq!(
            after_calls([
                mmap(0..P * 4, RW, ANON),
                madvise(0..P, MADV_GUARD_INSTALL),
                mremap(0..P * 4, P * 8..P * 12, MOVE_DONTUNMAP),
            ]),
            ["0-4 rw- #0", "8-9 rw- #0 GUARD", "9-12 rw- #0"]
        );
    }

    #[test]
    fn mremap_of_nothing_maps_shared_memory_twice() {
        assert_eq!(
            after_calls([
                mmap(0..P * 4, RW, SHARED),
                mremap(0..0, P * 8..P * 12, MAYMOVE),
            ]),
            ["0-4 rw- #0", "8-12 rw- #0"]
        );
    }

    #[test]
    fn mremap_of_memory_no_call_made_is_unknown() {
        let space = after(in_order([mremap(0..P, P * 8..P * 9, MAYMOVE)]));
        assert_eq!(text(&space), ["8-9 rw- #0"]);
        assert_eq!(space.origins()[0].kind, OriginKind::Unknown);
    }

    /// ```text
    /// thread 1   munmap |10-----------40|
    /// thread 2       mmap |20--30|
    /// ```
    #[test]
    fn a_late_munmap_spares_the_new_owner_of_its_address() {
        let space = after([
            at(1, mmap(0..P * 4, RW, ANON)),
            during(20..30, mmap(P..P * 2, R, ANON)),
            during(10..40, munmap(0..P * 4)),
        ]);
        assert_eq!(text(&space), ["1-2 r-- #1"]);
    }

    #[test]
    fn a_munmap_after_the_return_of_mmap_removes() {
        let space = after([
            during(20..30, mmap(P..P * 2, R, ANON)),
            during(30..40, munmap(0..P * 4)),
        ]);
        assert_eq!(text(&space), Vec::<String>::new());
    }

    #[test]
    fn a_late_mremap_still_finds_what_it_moved() {
        let space = after([
            at(1, mmap(0..P * 4, RX, ANON)),
            during(20..30, mmap(P..P * 2, R, ANON)),
            during(10..40, mremap(0..P * 4, P * 8..P * 12, MAYMOVE)),
        ]);
        assert_eq!(text(&space), ["1-2 r-- #1", "8-12 r-x #0"]);
    }

    /// As above, and the new owner is gone too before the news of the move comes.
    #[test]
    fn a_late_mremap_finds_what_it_moved_under_a_hole() {
        let space = after([
            at(1, mmap(0..P * 4, RX, ANON)),
            during(20..30, mmap(P..P * 2, R, ANON)),
            during(31..35, munmap(P..P * 2)),
            during(10..40, mremap(0..P * 4, P * 8..P * 12, MAYMOVE)),
        ]);
        assert_eq!(text(&space), ["8-12 r-x #0"]);
    }

    /// ```text
    /// thread 1   mremap(X, Y) |10------------------------------------40|
    /// thread 2        mmap = X |15-20|  mremap(X, Z) |22---------------------45|
    /// thread 3                                           mmap = X |25-30|
    /// ```
    #[test]
    fn late_mremaps_find_each_its_own_at_one_address() {
        let space = after([
            at(1, mmap(0..P * 2, RX, ANON)),
            during(15..20, mmap(0..P * 2, R, ANON)),
            during(25..30, mmap(0..P, RW, ANON)),
            during(10..40, mremap(0..P * 2, P * 4..P * 6, MAYMOVE)),
            during(22..45, mremap(0..P * 2, P * 8..P * 10, MAYMOVE)),
        ]);
        let expected = ["0-1 rw- #2", "4-6 r-x #0", "8-10 r-- #1"];
        assert_eq!(text(&space), expected);
    }

    #[test]
    fn late_mprotect_and_madvise_spare_the_new_owner() {
        let space = after([
            during(20..30, mmap(0..P, RW, ANON)),
            during(10..40, mprotect(0..P, NONE)),
            during(10..40, madvise(0..P, libc::MADV_DONTFORK)),
            during(10..40, name(0..P, "old")),
        ]);
        assert_eq!(text(&space), ["0-1 rw- #0"]);
    }

    #[test]
    fn a_moved_piece_is_born_where_it_arrives() {
        let space = after([
            at(1, mmap(0..P, RW, ANON)),
            during(20..30, mremap(0..P, P * 8..P * 9, MAYMOVE)),
            // Had the address before it was given away: cannot mean what was moved there.
            during(10..40, munmap(P * 8..P * 9)),
        ]);
        assert_eq!(text(&space), ["8-9 rw- #0"]);
    }

    #[test]
    fn numbers_no_call_can_carry_do_nothing() {
        let end = u64::MAX;
        assert_eq!(
            after_calls([
                mmap(P..P, RW, ANON),
                munmap(0..0),
                munmap(end - 1..end),
                mremap(0..end, 0..end, MAYMOVE),
                mremap(end - P + 1..end, 0..P, MAYMOVE),
                mprotect(end - 1..end, R),
                madvise(0..0, libc::MADV_DONTFORK),
            ]),
            Vec::<String>::new()
        );
    }
}
