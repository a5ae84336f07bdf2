//! What is known of every byte of a range: [`Piece`].

use std::num::NonZeroU32;

use super::{OriginId, PROT_RWX, origin::one_more};

bitflags::bitflags! {
    /// Standing advice of `madvise`: what stays with the range and tells runtimes apart. Advice that
    /// acts once (`MADV_DONTNEED`, `MADV_FREE`) leaves nothing here: residency shows it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Advice: u8 {
        /// `MADV_DONTFORK`: children do not get it.
        const DONTFORK = 1;
        /// `MADV_HUGEPAGE`.
        const HUGEPAGE = 1 << 1;
        /// `MADV_NOHUGEPAGE`. `MAP_STACK` does the same in newer kernels and is not shown here.
        const NOHUGEPAGE = 1 << 2;
        /// `MADV_DONTDUMP`.
        const DONTDUMP = 1 << 3;
        /// `MADV_GUARD_INSTALL`: a guard that needs no `PROT_NONE` mapping of its own.
        const GUARD = 1 << 4;
    }
}

/// Index of a name given by `prctl(PR_SET_VMA)` in its [`AddressSpace`](super::AddressSpace).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameId(NonZeroU32);

impl NameId {
    /// # Panics
    ///
    /// From 2³² - 1 on.
    pub(super) fn at(index: usize) -> NameId {
        NameId(one_more(index))
    }

    /// The index.
    pub fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// What is known of every byte of a range.
///
/// Neighbours with equal pieces are one range, so equality means "made by the same call and treated
/// alike ever since".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The call that made it. A move by `mremap` keeps it.
    pub origin: OriginId,
    /// The outermost mapping that this one was laid on by `MAP_FIXED` (or `MREMAP_FIXED`): a
    /// `PROT_NONE` reservation, or the file mapping whose tail becomes the bss of a library. `None`
    /// when nothing was mapped there.
    pub reserved_by: Option<OriginId>,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC`, nothing else.
    pub protection: u8,
    /// Standing `madvise` flags.
    pub advice: Advice,
    /// The piece was `PROT_NONE` at some time since it was mapped, now included.
    pub ever_protected_none: bool,
    /// Name given by `prctl(PR_SET_VMA)`.
    pub name: Option<NameId>,
    /// When the call that put the piece *here* returned: `CLOCK_MONOTONIC`, in ns. Later than its
    /// origin after an `mremap`.
    pub born_ns: u64,
}

impl Piece {
    /// Reserved without access first and opened by `mprotect` later.
    pub fn committed_by_mprotect(&self) -> bool {
        self.ever_protected_none && self.protection != NO_ACCESS
    }
}

/// `PROT_NONE`, as [`Piece::protection`].
pub const NO_ACCESS: u8 = 0;

/// What of a protection is [`Piece::protection`].
pub fn rwx(protection: u32) -> u8 {
    (protection & PROT_RWX) as u8
}
