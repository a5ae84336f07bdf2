//! What the rules may look at: everything that is known of one piece of memory.

use std::collections::HashSet;

use super::runtime::{Runtime, file_name};
use crate::{
    regions::{AddressSpace, Origin, OriginKind, Piece},
    residency::Vma,
    units::{KIB, MIB},
};

/// glibc: `DEFAULT_MMAP_THRESHOLD` (malloc/malloc.c), in bytes.
pub(super) const MMAP_THRESHOLD: u64 = 128 * KIB;

/// How a stack's range is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackUse {
    /// A live thread runs on it.
    Live,
    /// It is the alternate signal stack of a live thread.
    Alternate,
    /// It is kept for the next thread.
    Cached,
}

/// What is known of a process as a whole.
#[derive(Debug)]
pub struct ProcessFacts {
    /// Which rules of its own it has.
    pub runtime: Runtime,
    /// Files that are mapped executable somewhere: programs and libraries.
    images: HashSet<String>,
    /// Bytes reserved for the Java heap, when there is one.
    pub java_heap_bytes: Option<u64>,
    /// First byte of .NET's GC reservation, when there is one.
    pub dotnet_heap_start: Option<u64>,
    /// Bytes that stand in anonymous mappings of less than 128 KiB each, resident or not.
    pub small_mappings_bytes: u64,
}

/// Compressed object pointers reach 32 GiB, so HotSpot asks for its heap below that
/// (share/memory/virtualspace.cpp, `ReservedHeapSpace`).
const JAVA_HEAP_HINT_END: u64 = 32 << 30;

impl ProcessFacts {
    /// Gathers the facts from the calls that were made and the VMAs that are there.
    pub fn gather(runtime: Runtime, space: &AddressSpace, vmas: &[Vma]) -> ProcessFacts {
        const PROT_EXEC: u32 = libc::PROT_EXEC as u32;
        let executable = vmas
            .iter()
            .filter(|vma| vma.protection & PROT_EXEC != 0 && vma.inode() != 0);
        let reservations = || {
            space
                .origins()
                .iter()
                .filter(|origin| origin.is_reservation())
        };
        let java_heap = reservations()
            .filter(|origin| origin.has_flag(libc::MAP_NORESERVE))
            .filter(|origin| matches!(origin.kind, OriginKind::Mmap { hint, .. } if hint != 0 && hint < JAVA_HEAP_HINT_END))
            .map(|origin| origin.length)
            .max();
        let dotnet_heap = reservations().find(|origin| {
            matches!(origin.kind, OriginKind::Mmap { hint: 0, .. }) && origin.length >= 256 * MIB
        });
        let small = space.pieces().filter(|(_, piece)| {
            let length = plain_length(space.origin(piece.origin));
            piece.reserved_by.is_none() && length.is_some_and(|length| length < MMAP_THRESHOLD)
        });
        ProcessFacts {
            runtime,
            small_mappings_bytes: small.map(|(range, _)| range.end - range.start).sum(),
            images: executable
                .filter_map(|vma| vma.name().map(str::to_owned))
                .collect(),
            java_heap_bytes: java_heap.filter(|_| runtime == Runtime::Jvm),
            dotnet_heap_start: dotnet_heap
                .filter(|_| runtime == Runtime::Dotnet)
                .map(|origin| origin.start),
        }
    }
}

/// The length of an anonymous private mapping that was made readable and writable at once, with no address asked for.
fn plain_length(origin: &Origin) -> Option<u64> {
    const READ_WRITE: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;
    let OriginKind::Mmap {
        hint: 0,
        length,
        protection,
        ..
    } = origin.kind
    else {
        return None;
    };
    let private = origin.has_flag(libc::MAP_ANONYMOUS) && origin.has_flag(libc::MAP_PRIVATE);
    (private && protection & READ_WRITE == READ_WRITE).then_some(length)
}

/// Everything that is known of one piece of memory. Rules look at it through the methods below.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The process.
    pub facts: &'a ProcessFacts,
    /// The VMA that the piece is part of.
    pub vma: &'a Vma,
    /// The piece; `None` when the region map has nothing there.
    pub piece: Option<&'a Piece>,
    /// The call that made it.
    pub origin: Option<&'a Origin>,
    /// What it was laid on.
    pub ground: Option<&'a Origin>,
    /// Its name by `PR_SET_VMA`.
    pub given_name: Option<&'a str>,
    /// It is a stack.
    pub stack: Option<StackUse>,
}

impl<'a> Evidence<'a> {
    /// The runtime of the process.
    pub fn is(&self, runtime: Runtime) -> bool {
        self.facts.runtime == runtime
    }

    /// Name of the VMA: a path, or the kernel's name in brackets; empty when it has none.
    pub fn name(&self) -> &'a str {
        self.vma.name().unwrap_or_default()
    }

    /// Name given by the program: by `PR_SET_VMA` as we saw it, or as the kernel shows it.
    pub fn anonymous_name(&self) -> &'a str {
        let shown = self
            .name()
            .strip_prefix("[anon:")
            .and_then(|name| name.strip_suffix(']'));
        shown.or(self.given_name).unwrap_or_default()
    }

    /// The VMA maps a file.
    pub fn maps_file(&self) -> bool {
        self.vma.inode() != 0
    }

    /// The file is mapped executable somewhere in the process, or is an image by its name.
    pub fn maps_image(&self) -> bool {
        let name = file_name(self.name());
        self.maps_file()
            && (self.facts.images.contains(self.name())
                || name.ends_with(".so")
                || name.contains(".so.")
                || name.ends_with(".dll")
                || name.ends_with(".exe"))
    }

    /// The reservation that the memory was committed in: the `PROT_NONE` mapping that it was laid on,
    /// or that it is itself a part of, opened by `mprotect`.
    pub fn reservation(&self) -> Option<&'a Origin> {
        self.ground
            .or(self.origin)
            .filter(|origin| origin.is_reservation())
    }

    /// A reservation with all these `MAP_*` flags.
    pub fn reservation_with(&self, flags: i32) -> Option<&'a Origin> {
        self.reservation().filter(|origin| origin.has_flag(flags))
    }

    /// Committed by `mprotect` rather than by a second `mmap`.
    pub fn committed_by_mprotect(&self) -> bool {
        self.piece.is_some_and(Piece::committed_by_mprotect)
    }

    /// An anonymous private mapping, made readable and writable at once, with no address asked for:
    /// its length in bytes.
    pub fn plain_length(&self) -> Option<u64> {
        self.origin
            .filter(|_| self.ground.is_none())
            .and_then(plain_length)
    }

    /// Some of the memory may be executed.
    pub fn executable(&self) -> bool {
        self.vma.protection & libc::PROT_EXEC as u32 != 0
    }

    /// The program break.
    pub fn is_brk(&self) -> bool {
        self.name() == "[heap]"
            || self
                .origin
                .is_some_and(|origin| origin.kind == OriginKind::Brk)
    }

    /// Put there by the kernel at exec.
    pub fn from_exec(&self) -> bool {
        self.origin
            .is_some_and(|origin| origin.kind == OriginKind::Exec)
    }
}
