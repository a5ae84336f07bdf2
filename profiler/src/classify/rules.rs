//! The rules: evidence → kind → leaf. One ordered table; the first rule that matches wins.
//!
//! Sizes and flags are those that each runtime's sources show; `seen_on` names the versions on which
//! a rule was checked. A rule that needs more than the arguments of calls says so in its reason.

use super::{
    Leaf,
    evidence::{Evidence, MMAP_THRESHOLD, StackUse},
    runtime::Runtime,
};
use crate::{
    regions::{Advice, OriginKind},
    units::{KIB, MIB, PAGE},
};

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// Its name in results, and the kind of the region.
    pub id: &'static str,
    /// What the evidence means, and why.
    pub reason: &'static str,
    /// Runtimes and versions on which it was seen.
    pub seen_on: &'static str,
    /// The leaf that it gives.
    pub leaf: Leaf,
    /// Whether it matches.
    pub matches: fn(&Evidence) -> bool,
}

/// The rule that fires for this evidence. The last rule matches anything.
pub fn classify(evidence: &Evidence) -> &'static Rule {
    RULES
        .iter()
        .find(|rule| (rule.matches)(evidence))
        .expect("the last rule matches anything")
}

const GIB: u64 = 1024 * MIB;

/// glibc: `HEAP_MAX_SIZE` is 64 MiB; twice that is mapped to find an aligned one (malloc/arena.c).
const ARENA_BYTES: u64 = 64 * MIB;
/// ld.so and libc map some ten KiB for themselves; a hundred times as much is not theirs.
const SMALL_OF_LIBC: u64 = MIB;

/// In order; the first match wins.
pub static RULES: &[Rule] = &[
    Rule {
        id: "stack.main",
        reason: "the kernel names the stack of the first thread",
        seen_on: "all",
        leaf: Leaf::NativeStack,
        matches: |e| e.name() == "[stack]",
    },
    Rule {
        id: "stack.thread",
        reason: "clone or clone3 was given this memory as the stack of a thread that is alive",
        seen_on: "glibc 2.36",
        leaf: Leaf::NativeStack,
        matches: |e| e.stack == Some(StackUse::Live),
    },
    Rule {
        id: "stack.alternate",
        reason: "sigaltstack was given this memory",
        seen_on: "Rust 1.95, .NET 3.1",
        leaf: Leaf::AlternateStack,
        matches: |e| e.stack == Some(StackUse::Alternate),
    },
    Rule {
        id: "stack.cached",
        reason: "a thread stack (MAP_STACK, or once given to clone) on which no thread is alive",
        seen_on: "glibc 2.36",
        leaf: Leaf::CachedStack,
        matches: |e| {
            e.stack == Some(StackUse::Cached)
                || e.origin
                    .is_some_and(|origin| origin.has_flag(libc::MAP_STACK))
        },
    },
    Rule {
        id: "named.stack",
        reason: "the program itself names the mapping a thread stack",
        seen_on: "glibc 2.42 source",
        leaf: Leaf::CachedStack,
        matches: |e| {
            e.anonymous_name().contains("glibc: unused stack")
                || e.anonymous_name().contains("glibc: pthread")
        },
    },
    Rule {
        id: "named.go.metadata",
        reason: "the Go runtime names its own structures",
        seen_on: "Go 1.27 source",
        leaf: Leaf::GcBookkeeping,
        matches: |e| {
            e.anonymous_name().strip_prefix("Go: ").is_some_and(|name| {
                ["gc bits", "page", "scavenge", "heap index"]
                    .iter()
                    .any(|part| name.starts_with(part))
            })
        },
    },
    Rule {
        id: "named.go.heap",
        reason: "the Go runtime names its heap",
        seen_on: "Go 1.27 source",
        leaf: Leaf::ManagedHeap,
        matches: |e| e.anonymous_name().starts_with("Go: heap"),
    },
    Rule {
        id: "named.go.other",
        reason: "any other mapping that the Go runtime names",
        seen_on: "Go 1.27 source",
        leaf: Leaf::RuntimeInternal,
        matches: |e| e.anonymous_name().starts_with("Go: "),
    },
    Rule {
        id: "jit.memfd",
        reason: "code that is mapped twice, writable and executable, through a memfd of this name",
        seen_on: "OTP 25 (vmem), .NET 7 source (doublemapper)",
        leaf: Leaf::Jit,
        matches: |e| {
            e.name().starts_with("/memfd:vmem") || e.name().starts_with("/memfd:doublemapper")
        },
    },
    Rule {
        id: "jvm.heap.memfd",
        reason: "ZGC keeps the Java heap in a memfd of this name",
        seen_on: "JDK 25",
        leaf: Leaf::ManagedHeap,
        matches: |e| e.name().starts_with("/memfd:java_heap"),
    },
    Rule {
        id: "go.arena",
        reason: "a 64 MiB arena of the Go heap: reserved at an address of the runtime's choice, committed in it; holds goroutine stacks too",
        seen_on: "Go 1.27",
        leaf: Leaf::ManagedHeap,
        matches: |e| {
            e.is(Runtime::Go)
                && e.reservation().is_some_and(|origin| {
                    origin.start.is_multiple_of(ARENA_BYTES)
                        && origin.length.is_multiple_of(ARENA_BYTES)
                        && matches!(origin.kind, OriginKind::Mmap { hint, .. } if hint != 0)
                })
        },
    },
    Rule {
        id: "go.summary",
        reason: "page summaries and scavenge index: reserved without access, committed page by page (mpagealloc_64bit.go)",
        seen_on: "Go 1.27",
        leaf: Leaf::GcBookkeeping,
        matches: |e| e.is(Runtime::Go) && e.reservation().is_some(),
    },
    Rule {
        id: "go.index",
        reason: "the arena index, and the bits of the collector (malloc.go, mheap.go)",
        seen_on: "Go 1.27",
        leaf: Leaf::GcBookkeeping,
        matches: |e| {
            e.is(Runtime::Go)
                && matches!(e.plain_length(), Some(length) if length == 32 * MIB || length == 64 * KIB)
        },
    },
    Rule {
        id: "go.internal",
        reason: "other memory that the Go runtime maps for itself (persistentalloc, profiler buckets)",
        seen_on: "Go 1.27",
        leaf: Leaf::RuntimeInternal,
        matches: |e| e.is(Runtime::Go) && e.plain_length().is_some(),
    },
    Rule {
        id: "jvm.cds",
        reason: "the archive of preloaded classes",
        seen_on: "JDK 17, 25",
        leaf: Leaf::Metadata,
        matches: |e| e.is(Runtime::Jvm) && e.name().ends_with(".jsa"),
    },
    Rule {
        id: "jvm.heap",
        reason: "the largest unaccounted reservation below 32 GiB: the Java heap; holds virtual-thread stacks too",
        seen_on: "JDK 17, 25 (G1)",
        leaf: Leaf::ManagedHeap,
        matches: |e| {
            e.facts.java_heap_bytes.is_some()
                && e.reservation_with(libc::MAP_NORESERVE)
                    .map(|origin| origin.length)
                    == e.facts.java_heap_bytes
        },
    },
    Rule {
        id: "jvm.gc_tables",
        reason: "1/512 or 1/64 of the heap: card table, block offsets, mark bitmap",
        seen_on: "JDK 17, 25 (G1)",
        leaf: Leaf::GcBookkeeping,
        matches: |e| {
            let Some(heap) = e.facts.java_heap_bytes else {
                return false;
            };
            e.reservation_with(libc::MAP_NORESERVE)
                .is_some_and(|origin| {
                    [512, 64]
                        .iter()
                        .any(|part| origin.length.abs_diff(heap / part) <= PAGE)
                })
        },
    },
    Rule {
        id: "jvm.code",
        reason: "executable memory inside an unaccounted reservation: the code cache",
        seen_on: "JDK 17, 25",
        leaf: Leaf::Jit,
        matches: |e| {
            e.is(Runtime::Jvm)
                && e.executable()
                && e.reservation_with(libc::MAP_NORESERVE).is_some()
        },
    },
    Rule {
        id: "jvm.metaspace",
        reason: "64 MiB nodes of metaspace, or the class space of 1 GiB and more, committed by mmap",
        seen_on: "JDK 17, 25",
        leaf: Leaf::Metadata,
        matches: |e| {
            e.is(Runtime::Jvm)
                && !e.committed_by_mprotect()
                && e.reservation_with(libc::MAP_NORESERVE)
                    .is_some_and(|origin| origin.length == 64 * MIB || origin.length >= GIB)
        },
    },
    Rule {
        id: "jvm.gc_other",
        reason: "any other unaccounted reservation that HotSpot commits by mmap",
        seen_on: "JDK 17, 25",
        leaf: Leaf::GcBookkeeping,
        matches: |e| {
            e.is(Runtime::Jvm)
                && !e.committed_by_mprotect()
                && e.reservation_with(libc::MAP_NORESERVE).is_some()
        },
    },
    Rule {
        id: "v8.code",
        reason: "executable memory that children do not get",
        seen_on: "Node 20, 24",
        leaf: Leaf::Jit,
        matches: |e| e.is(Runtime::Node) && is_v8(e) && e.executable(),
    },
    Rule {
        id: "v8.read_only",
        reason: "a page of V8's heap that may only be read",
        seen_on: "Node 20",
        leaf: Leaf::Metadata,
        matches: |e| e.is(Runtime::Node) && is_v8(e) && e.vma.protection == libc::PROT_READ as u32,
    },
    Rule {
        id: "v8.heap",
        reason: "a page of V8's heap: kept from children by MADV_DONTFORK",
        seen_on: "Node 20, 24",
        leaf: Leaf::ManagedHeap,
        matches: |e| e.is(Runtime::Node) && is_v8(e),
    },
    Rule {
        id: "dotnet.gc_heap",
        reason: "the first reservation of 256 MiB or more at no particular address: the GC heap",
        seen_on: ".NET Core 3.1",
        leaf: Leaf::ManagedHeap,
        matches: |e| {
            e.facts.dotnet_heap_start.is_some()
                && e.reservation().map(|origin| origin.start) == e.facts.dotnet_heap_start
        },
    },
    Rule {
        id: "dotnet.code",
        reason: "executable memory in a reservation: jitted code and stubs",
        seen_on: ".NET Core 3.1",
        leaf: Leaf::Jit,
        matches: |e| e.is(Runtime::Dotnet) && e.executable() && e.reservation().is_some(),
    },
    Rule {
        id: "dotnet.loader",
        reason: "data in the reservation near libcoreclr: the loader's heaps (method tables, descriptors)",
        seen_on: ".NET Core 3.1",
        leaf: Leaf::Metadata,
        matches: |e| {
            e.is(Runtime::Dotnet)
                && e.reservation().is_some_and(
                    |origin| matches!(origin.kind, OriginKind::Mmap { hint, .. } if hint != 0),
                )
        },
    },
    Rule {
        id: "malloc.arena",
        reason: "a 64 MiB heap of a thread's malloc arena: unaccounted, committed by mprotect",
        seen_on: "glibc 2.36",
        leaf: Leaf::Malloc,
        matches: |e| !e.facts.runtime.keeps_objects_outside_malloc() && is_arena(e),
    },
    Rule {
        id: "malloc.arena.vm",
        reason: "as malloc.arena, where a virtual machine allocates from it",
        seen_on: "glibc 2.36 under JDK 25, OTP 25, .NET 3.1",
        leaf: Leaf::VmMalloc,
        matches: is_arena,
    },
    Rule {
        id: "dotnet.gc_tables",
        reason: "any other reservation that CoreCLR commits by mprotect: card table, mark array, image layouts",
        seen_on: ".NET Core 3.1",
        leaf: Leaf::GcBookkeeping,
        matches: |e| {
            e.is(Runtime::Dotnet) && e.reservation().is_some() && e.committed_by_mprotect()
        },
    },
    Rule {
        id: "cpython.arena",
        reason: "1 MiB: an arena of pymalloc (256 KiB up to 3.9); holds coroutine frames too",
        seen_on: "CPython 3.11",
        leaf: Leaf::ManagedHeap,
        matches: |e| {
            e.is(Runtime::Cpython)
                && matches!(e.plain_length(), Some(length) if length == MIB || length == 256 * KIB)
        },
    },
    Rule {
        id: "cpython.arenas",
        reason: "1 MiB or more, there before the profiler attached: arenas of pymalloc of which the kernel has made one mapping, and blocks of malloc among them",
        seen_on: "CPython 3.11",
        leaf: Leaf::ManagedHeap,
        matches: |e| {
            e.is(Runtime::Cpython)
                && e.origin.is_some_and(|origin| origin.before_attach)
                && matches!(e.plain_length(), Some(length) if length > MIB)
        },
    },
    Rule {
        id: "cpython.frames",
        reason: "16 KiB: a chunk of the interpreter's frame stack (_PyThreadState_BumpFramePointerSlow)",
        seen_on: "CPython 3.11",
        leaf: Leaf::InterpreterStack,
        matches: |e| e.is(Runtime::Cpython) && e.plain_length() == Some(16 * KIB),
    },
    Rule {
        id: "beam.literals",
        reason: "the 1 GiB reservation for literals",
        seen_on: "OTP 25",
        leaf: Leaf::Metadata,
        matches: |e| {
            e.is(Runtime::Beam)
                && e.reservation_with(libc::MAP_NORESERVE)
                    .is_some_and(|origin| origin.length == GIB)
        },
    },
    Rule {
        id: "beam.carrier",
        reason: "a multiple of 256 KiB (plus what aligning takes): a carrier of one of BEAM's allocators",
        seen_on: "OTP 25",
        leaf: Leaf::ManagedHeap,
        matches: |e| {
            const UNIT: u64 = 256 * KIB;
            e.is(Runtime::Beam)
                && e.plain_length().is_some_and(|length| {
                    length >= UNIT
                        && (length.is_multiple_of(UNIT) || (length + PAGE).is_multiple_of(UNIT))
                })
        },
    },
    Rule {
        id: "malloc.brk",
        reason: "the program break: malloc's first heap",
        seen_on: "glibc 2.36",
        leaf: Leaf::Malloc,
        matches: |e| !e.facts.runtime.keeps_objects_outside_malloc() && e.is_brk(),
    },
    Rule {
        id: "malloc.brk.vm",
        reason: "as malloc.brk, where a virtual machine allocates from it",
        seen_on: "glibc 2.36 under JDK 25, OTP 25, .NET 3.1",
        leaf: Leaf::VmMalloc,
        matches: |e| e.is_brk(),
    },
    Rule {
        id: "shared",
        reason: "shared memory without a file of its own: MAP_SHARED|MAP_ANONYMOUS, memfd, /dev/shm, System V",
        seen_on: "all",
        leaf: Leaf::SharedMemory,
        matches: |e| {
            let prefixes = ["/dev/zero", "/memfd:", "/dev/shm/", "/SYSV"];
            e.vma.shared && prefixes.iter().any(|prefix| e.name().starts_with(prefix))
        },
    },
    Rule {
        id: "image",
        reason: "a program or library: text, read-only data, relocated data",
        seen_on: "all",
        leaf: Leaf::Image,
        matches: |e| e.maps_image() || ["[vdso]", "[vvar]"].contains(&e.name()),
    },
    Rule {
        id: "file",
        reason: "any other mapped file",
        seen_on: "all",
        leaf: Leaf::File,
        matches: |e| e.maps_file(),
    },
    Rule {
        id: "image.bss",
        reason: "zero-initialised data: anonymous memory that exec put behind an image, or that was laid on the mapping of a library",
        seen_on: "all",
        leaf: Leaf::Image,
        matches: |e| e.from_exec() || e.ground.is_some_and(|ground| ground.is_file()),
    },
    Rule {
        id: "malloc.large",
        reason: "128 KiB or more, mapped on its own: a large block of malloc",
        seen_on: "glibc 2.36",
        leaf: Leaf::MallocLarge,
        matches: |e| {
            !e.facts.runtime.keeps_objects_outside_malloc()
                && e.plain_length()
                    .is_some_and(|length| length >= MMAP_THRESHOLD)
        },
    },
    Rule {
        id: "malloc.large.vm",
        reason: "as malloc.large, where a virtual machine allocates it",
        seen_on: "glibc 2.36 under JDK 25, OTP 25, .NET 3.1",
        leaf: Leaf::VmMalloc,
        matches: |e| {
            e.plain_length()
                .is_some_and(|length| length >= MMAP_THRESHOLD)
        },
    },
    Rule {
        id: "libc.small",
        reason: "less than 128 KiB, mapped on its own: thread-local storage and buffers of ld.so and libc (in a native \
                 program with more than 1 MiB of such it is the program's own, and unclassified)",
        seen_on: "glibc 2.36",
        leaf: Leaf::RuntimeInternal,
        matches: |e| {
            e.plain_length().is_some()
                && (!e.is(Runtime::Native) || e.facts.small_mappings_bytes <= SMALL_OF_LIBC)
        },
    },
    Rule {
        id: "unknown",
        reason: "no other rule matched",
        seen_on: "all",
        leaf: Leaf::Unknown,
        matches: |_| true,
    },
];

/// V8 keeps its memory from children (`base::OS::Allocate`, platform-posix.cc). Node 20 reserves it
/// without access first; Node 24 maps it readable and writable at once. glibc and libuv give no such
/// advice.
fn is_v8(e: &Evidence) -> bool {
    e.piece
        .is_some_and(|piece| piece.advice.contains(Advice::DONTFORK))
}

fn is_arena(e: &Evidence) -> bool {
    e.committed_by_mprotect()
        && e.reservation_with(libc::MAP_NORESERVE)
            .is_some_and(|origin| origin.length == ARENA_BYTES || origin.length == 2 * ARENA_BYTES)
}

#[cfg(test)]
mod tests;
