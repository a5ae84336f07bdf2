//! The call behind a range: [`Origin`].

use std::{num::NonZeroU32, ops::Range};

use super::{PROT_NONE, PROT_RWX};

/// Index of an [`Origin`] in its [`AddressSpace`](super::AddressSpace). A copy made by fork keeps the
/// numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginId(NonZeroU32);

impl OriginId {
    /// # Panics
    ///
    /// From 2³² - 1 on: so many mappings nobody makes.
    pub(super) fn at(index: usize) -> OriginId {
        OriginId(one_more(index))
    }

    /// The index.
    pub fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// An index that leaves 0 for "none".
pub(super) fn one_more(index: usize) -> NonZeroU32 {
    let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
    number.expect("fewer than 2^32 of them")
}

/// The call that asked for a range of memory, with its arguments.
///
/// It describes the call, not what became of its range: `start` and `length` stay what they were
/// when parts are unmapped or moved elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The call and its arguments.
    pub kind: OriginKind,
    /// The number of its call stack, as in [`Event::call_stack`](crate::events::Event::call_stack). Of
    /// [`OriginKind::Brk`] that of the first growth; see
    /// [`AddressSpace::heap_growths`](super::AddressSpace::heap_growths).
    pub call_stack: u32,
    /// First byte of the range.
    pub start: u64,
    /// Bytes, whole pages. For [`OriginKind::Brk`] those of the first growth.
    pub length: u64,
    /// The call was made before anybody looked: `kind` is what flags and shape of the mapping say that it must
    /// have been (see [`before_attach`](super::before_attach)).
    pub before_attach: bool,
}

/// How a range came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginKind {
    /// `mmap`, with its arguments as the program gave them.
    Mmap {
        /// 0 when the kernel was free to choose.
        hint: u64,
        /// Bytes, not rounded to pages.
        length: u64,
        /// `PROT_*`
        protection: u32,
        /// `MAP_*`
        flags: u32,
    },
    /// Growth of the program break. All growth in one address space shares one origin.
    Brk,
    /// Put there by the kernel at exec: the image, `ld.so`, the main stack, the vdso. Adopted from
    /// `/proc/PID/maps`.
    Exec,
    /// Adopted from `/proc/PID/maps`, and no call that explains it was seen.
    Unknown,
}

impl Origin {
    /// The range the call was given.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.length
    }

    /// `MAP_*` of an `mmap`, 0 for anything else.
    pub fn mmap_flags(&self) -> u32 {
        match self.kind {
            OriginKind::Mmap { flags, .. } => flags,
            OriginKind::Brk | OriginKind::Exec | OriginKind::Unknown => 0,
        }
    }

    /// The `mmap` carried this `MAP_*` flag, such as `libc::MAP_STACK`.
    pub fn has_flag(&self, flag: i32) -> bool {
        self.mmap_flags() & flag as u32 != 0
    }

    /// An `mmap` that asked for address space and no access: memory is committed in it later, by
    /// `mprotect` or by laying another `mmap` on it.
    pub fn is_reservation(&self) -> bool {
        matches!(self.kind, OriginKind::Mmap { protection, .. } if protection & PROT_RWX == PROT_NONE)
    }

    /// An `mmap` of a file (a memfd counts as one).
    pub fn is_file(&self) -> bool {
        matches!(self.kind, OriginKind::Mmap { .. }) && !self.has_flag(libc::MAP_ANONYMOUS)
    }
}
