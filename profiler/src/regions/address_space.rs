//! The map of one address space: [`AddressSpace`].
//!
//! # Order across CPUs
//!
//! Events arrive in the order in which calls *return*. Between two threads this is not the order in
//! which the kernel did the work, and one case would ruin the map: an address that one thread gives
//! back and another thread gets before the first has returned.
//!
//! ```text
//! thread 1   munmap(X) |--------- X is free ------------------| returns at 40
//! thread 2                              mmap() = X |------| returns at 30
//!
//! events     mmap() = X [.., 30]     then     munmap(X) [10, 40]
//! ```
//!
//! Taken literally, the `munmap` would remove thread 2's new mapping. The rule that prevents it: **a
//! call that takes away or alters (`munmap`, the old side of `mremap`, a shrinking `brk`, `mprotect`,
//! `madvise`, a name) touches only pieces that were born (their call had returned) before it
//! began.** It is sound because a program can only mean memory whose address it already held when it
//! made the call, and it held the address only after the call that made the memory had returned. The
//! only other way for pieces to come under a call, the kernel reusing the address, is what the rule
//! excludes. (Where only the end of `mprotect` is hooked, it counts as having begun then. That would matter if somebody
//! gave back what another thread is just protecting.) `MAP_FIXED` replaces whatever is there: it names an address that the program has kept
//! reserved, so the kernel cannot have handed it to anyone else.
//!
//! When a new mapping arrives at an address that still seems taken, the removal is on its way. The
//! old piece is then set aside (`displaced`), because if the removal is an `mremap`, the piece is
//! needed at its new address:
//!
//! ```text
//! thread 1   mremap(X, Y) |--- Y = old X, X is free -----------| returns
//! thread 2                           mmap() = X |------| returns
//!
//! pieces     X: old    --mmap-->   X: new          --mremap-->   X: new    Y: old
//! displaced                        X: old
//! ```

use std::collections::HashMap;
use std::ops::Range;

use rangemap::{RangeMap, RangeSet};

use crate::units::{page_ceil, page_floor};

use super::{Advice, NameId, Origin, OriginId, OriginKind, Piece};

/// Which call put each byte of an address space where it is. See the module for the order in which
/// it takes events.
#[derive(Debug, Clone)]
pub struct AddressSpace {
    pieces: RangeMap<u64, Piece>,
    /// Never shrinks: a reservation that is wholly overlaid stays what `reserved_by` points to.
    pub(super) origins: Vec<Origin>,
    names: Vec<String>,
    name_ids: HashMap<String, NameId>,
    past_stacks: RangeSet<u64>,
    /// Oldest first, so that of two at one address the newer comes later. Nearly always empty.
    displaced: Vec<(Range<u64>, Piece)>,
    pub(super) program_break: Option<u64>,
    brk_origin: Option<OriginId>,
    /// Where call stacks are known: the number of that which grew the heap, by address.
    heap_growths: RangeMap<u64, u32>,
    pub(super) unseen: Option<Unseen>,
}

/// What is known of mappings that no event has told, until the first comparison adopts them.
#[derive(Debug, Clone)]
pub(super) struct Unseen {
    /// What they are.
    pub kind: OriginKind,
    /// When they came: `CLOCK_MONOTONIC`, in ns.
    pub born_ns: u64,
    /// Ranges that events have spoken of, mapped now or not: nothing there is unseen.
    pub touched: RangeSet<u64>,
}

impl AddressSpace {
    /// An address space in which nothing is mapped.
    pub fn empty() -> Self {
        AddressSpace {
            pieces: RangeMap::new(),
            origins: Vec::new(),
            names: Vec::new(),
            name_ids: HashMap::new(),
            past_stacks: RangeSet::new(),
            displaced: Vec::new(),
            program_break: None,
            brk_origin: None,
            heap_growths: RangeMap::new(),
            unseen: None,
        }
    }

    /// An address space with mappings of which no call was seen (attached late). The first
    /// comparison adopts them as [`OriginKind::Unknown`] without counting them.
    pub fn unknown() -> Self {
        Self::with_unseen(OriginKind::Unknown, 0)
    }

    /// The address space after a successful `execve` at `exec_ns`. The first comparison adopts what the
    /// kernel put there as [`OriginKind::Exec`].
    pub fn after_exec(exec_ns: u64) -> Self {
        Self::with_unseen(OriginKind::Exec, exec_ns)
    }

    fn with_unseen(kind: OriginKind, born_ns: u64) -> Self {
        let touched = RangeSet::new();
        AddressSpace {
            unseen: Some(Unseen {
                kind,
                born_ns,
                touched,
            }),
            ..Self::empty()
        }
    }

    /// The copy that a child gets by fork: all but what `MADV_DONTFORK` keeps from it.
    pub fn forked(&self) -> Self {
        let mut child = self.clone();
        for (range, piece) in self.pieces() {
            if piece.advice.contains(Advice::DONTFORK) {
                child.pieces.remove(range.clone());
                child.past_stacks.remove(range);
            }
        }
        child
    }

    /// All ranges in address order. Neighbours differ in some field of their piece.
    pub fn pieces(&self) -> impl Iterator<Item = (Range<u64>, &Piece)> {
        self.pieces
            .iter()
            .map(|(range, piece)| (range.clone(), piece))
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Nothing is mapped, as far as events told.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The range around `address` and its piece.
    pub fn piece_at(&self, address: u64) -> Option<(Range<u64>, &Piece)> {
        let (range, piece) = self.pieces.get_key_value(&address)?;
        Some((range.clone(), piece))
    }

    /// The pieces inside `range` in address order, cut to it.
    pub fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = (Range<u64>, &Piece)> {
        self.pieces
            .overlapping(range)
            .map(|(found, piece)| (cut(found, range), piece))
    }

    /// The parts of `range` in which nothing is mapped, in address order.
    pub fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        self.pieces.gaps(range).collect()
    }

    /// The call behind a piece of this address space.
    ///
    /// # Panics
    ///
    /// When `id` is from another address space (and not from one that this was forked from).
    pub fn origin(&self, id: OriginId) -> &Origin {
        &self.origins[id.index()]
    }

    /// Every call that ever mapped something here, in the order of their ids.
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// A name given by `prctl(PR_SET_VMA)`.
    ///
    /// # Panics
    ///
    /// When `id` is from another address space (and not from one that this was forked from).
    pub fn name(&self, id: NameId) -> &str {
        &self.names[id.index()]
    }

    /// Stacks whose thread is gone and whose memory is still mapped and not taken by another thread:
    /// the stack cache. Ranges that touch are one.
    pub fn past_stacks(&self) -> impl Iterator<Item = Range<u64>> {
        self.past_stacks.iter().cloned()
    }

    /// The program break, in bytes, once a `brk` told it.
    pub fn program_break(&self) -> Option<u64> {
        self.program_break
    }

    /// The parts of `range` by the call stack that grew the heap there, in address order: all growth of the
    /// program break is one origin, but each growth has a call stack of its own. Empty where none is known.
    pub fn heap_growths(&self, range: &Range<u64>) -> impl Iterator<Item = (Range<u64>, u32)> {
        self.heap_growths
            .overlapping(range)
            .map(|(found, &number)| (cut(found, range), number))
    }

    pub(super) fn note_heap_growth(&mut self, growth: Range<u64>, call_stack: u32) {
        if call_stack != 0 {
            self.heap_growths.insert(growth, call_stack);
        }
    }

    /// The thread on this stack is gone. Only what is mapped counts.
    pub(super) fn abandon_stack(&mut self, stack: Range<u64>) {
        let mapped: Vec<_> = self.overlapping(&stack).map(|(range, _)| range).collect();
        self.past_stacks.extend(mapped);
    }

    /// A thread runs on this stack.
    pub(super) fn occupy_stack(&mut self, stack: Range<u64>) {
        if !stack.is_empty() {
            self.past_stacks.remove(stack);
        }
    }

    pub(super) fn add_origin(
        &mut self,
        kind: OriginKind,
        call_stack: u32,
        range: &Range<u64>,
    ) -> OriginId {
        let id = OriginId::at(self.origins.len());
        self.origins.push(Origin {
            kind,
            call_stack,
            start: range.start,
            length: range.end - range.start,
            before_attach: false,
        });
        id
    }

    /// The origin that all `brk` growth shares; `range` is that of the first.
    pub(super) fn brk_origin(&mut self, call_stack: u32, range: &Range<u64>) -> OriginId {
        match self.brk_origin {
            Some(origin) => origin,
            None => {
                let origin = self.add_origin(OriginKind::Brk, call_stack, range);
                self.brk_origin = Some(origin);
                origin
            }
        }
    }

    pub(super) fn name_id(&mut self, name: &str) -> NameId {
        if let Some(id) = self.name_ids.get(name) {
            return *id;
        }
        let id = NameId::at(self.names.len());
        self.names.push(name.to_owned());
        self.name_ids.insert(name.to_owned(), id);
        id
    }

    /// An event spoke of this range, so what is or is not there is no longer unseen.
    pub(super) fn touch(&mut self, range: &Range<u64>) {
        if let Some(unseen) = &mut self.unseen {
            unseen.touched.insert(range.clone());
        }
    }

    /// Puts `piece` where the kernel found room. What still seems mapped there is set aside until
    /// its removal arrives.
    pub(super) fn place(&mut self, range: Range<u64>, piece: Piece) {
        let displaced: Vec<_> = self.copies(&range);
        self.displaced.extend(displaced);
        self.set(range, piece);
    }

    /// Puts `piece` over whatever is there, as `MAP_FIXED` does, and notes what it was laid on.
    ///
    /// ```text
    /// before     |  A (a reservation)   |   hole   |  B, laid on C  |
    /// piece           |----------------------------------|
    /// after      | A  | on A            | on none  | C   |  B on C  |
    /// ```
    pub(super) fn lay(&mut self, range: Range<u64>, piece: Piece) {
        let ground = self.copies(&range);
        self.set(range, piece);
        for (part, below) in ground {
            let reserved_by = below
                .reserved_by
                .or(Some(below.origin))
                // A mapping moved within itself does not reserve itself.
                .filter(|reservation| *reservation != piece.origin);
            self.pieces.insert(
                part,
                Piece {
                    reserved_by,
                    ..piece
                },
            );
        }
    }

    fn set(&mut self, range: Range<u64>, piece: Piece) {
        self.touch(&range);
        self.past_stacks.remove(range.clone());
        self.pieces.insert(range, piece);
    }

    /// Takes out of `range` what a call that began at `began_ns` can have meant, in address order.
    pub(super) fn take(&mut self, range: &Range<u64>, began_ns: u64) -> Vec<(Range<u64>, Piece)> {
        let mut taken = self.meant(range, began_ns);
        for (part, _) in &taken {
            self.pieces.remove(part.clone());
            self.past_stacks.remove(part.clone());
        }
        taken.extend(self.take_displaced(range, began_ns, &taken));
        taken.sort_by_key(|(part, _)| part.start);
        self.touch(range);
        taken
    }

    /// What a call that began at `began_ns` meant in `range` outside of `taken`, if the address was
    /// reused before the news of the call came. An address can have been reused more than once: the
    /// newest piece that the call can have meant is the one.
    fn take_displaced(
        &mut self,
        range: &Range<u64>,
        began_ns: u64,
        taken: &[(Range<u64>, Piece)],
    ) -> Vec<(Range<u64>, Piece)> {
        if self.displaced.is_empty() {
            return Vec::new();
        }
        let mut rest = RangeSet::from([range.clone()]);
        for (part, _) in taken {
            rest.remove(part.clone());
        }
        let mut meant = Vec::new();
        let mut kept = Vec::new();
        for (place, piece) in self.displaced.drain(..).rev() {
            let mut left = RangeSet::from([place.clone()]);
            if piece.born_ns <= began_ns {
                let parts: Vec<_> = rest.overlapping(&place).cloned().collect();
                for part in parts {
                    let part = cut(&part, &place);
                    rest.remove(part.clone());
                    left.remove(part.clone());
                    meant.push((part, piece));
                }
            }
            kept.extend(left.into_iter().map(|part| (part, piece)));
        }
        kept.reverse();
        self.displaced = kept;
        meant
    }

    /// Changes what a call that began at `began_ns` can have meant in `range`.
    pub(super) fn alter(&mut self, range: &Range<u64>, began_ns: u64, change: impl Fn(&mut Piece)) {
        for (part, mut piece) in self.meant(range, began_ns) {
            let before = piece;
            change(&mut piece);
            if piece != before {
                self.pieces.insert(part, piece);
            }
        }
    }

    /// Pieces in `range` that were born before a call that began at `began_ns`. Equal times count
    /// as before: within one tick no address can be given back and handed out again.
    pub(super) fn meant(&self, range: &Range<u64>, began_ns: u64) -> Vec<(Range<u64>, Piece)> {
        self.overlapping(range)
            .filter(|(_, piece)| piece.born_ns <= began_ns)
            .map(|(part, piece)| (part, *piece))
            .collect()
    }

    fn copies(&self, range: &Range<u64>) -> Vec<(Range<u64>, Piece)> {
        self.overlapping(range)
            .map(|(part, piece)| (part, *piece))
            .collect()
    }

    /// Sets a range to what the kernel says is there, without any of the rules above.
    pub(super) fn resync(&mut self, range: Range<u64>, piece: Option<Piece>) {
        match piece {
            Some(piece) => self.pieces.insert(range, piece),
            None => {
                self.past_stacks.remove(range.clone());
                self.pieces.remove(range);
            }
        }
    }

    /// The kernel has been asked: nothing is unseen, no removal is on its way.
    pub(super) fn settle(&mut self) {
        self.unseen = None;
        self.displaced.clear();
    }
}

/// The part of `range` inside `frame`; they must overlap.
pub(super) fn cut(range: &Range<u64>, frame: &Range<u64>) -> Range<u64> {
    range.start.max(frame.start)..range.end.min(frame.end)
}

/// The whole pages of `length` bytes at `address`, as the kernel rounds them; `None` when there are
/// none (a length of 0, or a number that no successful call can carry).
pub(super) fn pages(address: u64, length: u64) -> Option<Range<u64>> {
    let start = page_floor(address);
    let end = page_ceil(address.checked_add(length)?);
    (start < end).then_some(start..end)
}
