//! From regions to classes: every resident page gets exactly one [`Leaf`], leaves roll up into
//! [`Class`]es, and the classes sum to RSS.

pub mod alike;
pub mod compose;
pub mod division;
pub mod evidence;
pub mod place;
pub mod rules;
pub mod runtime;

use serde::{Deserialize, Serialize};

/// What the memory is for. The four sum to RSS exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Memory a task's call frames live in.
    Stacks,
    /// What the tasks' objects live in.
    Heap,
    /// Overhead of the runtime and its allocators.
    Runtime,
    /// No rule fired. Never folded into another class.
    Unclassified,
}

impl Class {
    /// All classes, in the order in which tables and charts show them.
    pub const ALL: [Class; 4] = [
        Class::Stacks,
        Class::Heap,
        Class::Runtime,
        Class::Unclassified,
    ];

    /// The name in tables, legends and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Class::Stacks => "stacks",
            Class::Heap => "heap",
            Class::Runtime => "runtime",
            Class::Unclassified => "unclassified",
        }
    }
}

/// What a region holds: the finest division made. Each leaf belongs to one [`Class`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leaf {
    /// The stack of a live thread, thread-local storage and control block included; from the stack
    /// pointer up where that is known.
    NativeStack,
    /// What a live thread has touched below its stack pointer: frames of calls that have returned, and
    /// pages that a runtime touches in advance.
    StackBelowPointer,
    /// A thread stack kept for reuse; no live thread runs on it.
    CachedStack,
    /// An alternate signal stack.
    AlternateStack,
    /// Frames of an interpreter, in memory of their own (CPython's data stack chunks).
    InterpreterStack,
    /// Frames of tasks that have no stack of the system: goroutines, virtual threads, processes of BEAM.
    TaskStack,
    /// The rest of the memory that such a task has for its frames.
    TaskStackUnused,
    /// Memory of the C allocator, undivided: the brk heap and the arenas of threads.
    Malloc,
    /// Blocks of the C allocator that are in use, with their headers.
    MallocUsed,
    /// Blocks that the C allocator mapped one by one.
    MallocLarge,
    /// A garbage-collected or otherwise managed heap, undivided.
    ManagedHeap,
    /// Objects in such a heap: those in use, and those that no collection has found dead yet.
    HeapObjects,
    /// Memory that processes can share: `MAP_SHARED` without a file, memfds, `/dev/shm`.
    SharedMemory,
    /// Program text, data, bss of the executable and its libraries, the dynamic loader, vdso and its data.
    Image,
    /// Other mapped files.
    File,
    /// Code made at run time.
    Jit,
    /// Class metadata, archives of it, literals, read-only heap space.
    Metadata,
    /// Card tables, mark bitmaps, page summaries and the like.
    GcBookkeeping,
    /// Resident memory inside a heap that holds nothing: free blocks, and what they leave between them.
    HeapFree,
    /// The C allocator's memory where a virtual machine, not the tasks, allocates from it.
    VmMalloc,
    /// Structures of the runtime that can be told apart.
    RuntimeInternal,
    /// No rule fired.
    Unknown,
}

impl Leaf {
    /// The class that this leaf is part of.
    pub fn class(self) -> Class {
        match self {
            Leaf::NativeStack
            | Leaf::CachedStack
            | Leaf::StackBelowPointer
            | Leaf::AlternateStack
            | Leaf::InterpreterStack
            | Leaf::TaskStack
            | Leaf::TaskStackUnused => Class::Stacks,
            Leaf::Malloc
            | Leaf::MallocUsed
            | Leaf::MallocLarge
            | Leaf::ManagedHeap
            | Leaf::HeapObjects
            | Leaf::SharedMemory => Class::Heap,
            Leaf::Image
            | Leaf::File
            | Leaf::Jit
            | Leaf::Metadata
            | Leaf::GcBookkeeping
            | Leaf::HeapFree
            | Leaf::VmMalloc
            | Leaf::RuntimeInternal => Class::Runtime,
            Leaf::Unknown => Class::Unclassified,
        }
    }
}

impl Leaf {
    /// What it is, in a few words.
    pub fn words(self) -> &'static str {
        match self {
            Leaf::NativeStack => "stacks of threads",
            Leaf::StackBelowPointer => "stack below the pointer",
            Leaf::CachedStack => "stacks kept for reuse",
            Leaf::AlternateStack => "alternate signal stacks",
            Leaf::InterpreterStack => "frames of the interpreter",
            Leaf::TaskStack => "frames of tasks",
            Leaf::TaskStackUnused => "unused stack of tasks",
            Leaf::Malloc => "malloc (undivided)",
            Leaf::MallocUsed => "malloc in use",
            Leaf::MallocLarge => "large blocks of malloc",
            Leaf::ManagedHeap => "managed heap (undivided)",
            Leaf::HeapObjects => "objects in the heap",
            Leaf::SharedMemory => "shared memory",
            Leaf::Image => "programs and libraries",
            Leaf::File => "other mapped files",
            Leaf::Jit => "code made at run time",
            Leaf::Metadata => "metadata",
            Leaf::GcBookkeeping => "bookkeeping of the collector",
            Leaf::HeapFree => "free inside heaps",
            Leaf::VmMalloc => "malloc of the runtime",
            Leaf::RuntimeInternal => "structures of the runtime",
            Leaf::Unknown => "no rule fired",
        }
    }

    /// Memory in which an adapter may look: heaps and stacks. Not files, which have changed their place if
    /// somebody found a heap there before.
    pub fn is_divisible(self) -> bool {
        matches!(
            self,
            Leaf::NativeStack
                | Leaf::InterpreterStack
                | Leaf::Malloc
                | Leaf::MallocLarge
                | Leaf::VmMalloc
                | Leaf::ManagedHeap
                | Leaf::Jit
                | Leaf::Metadata
                | Leaf::GcBookkeeping
                | Leaf::RuntimeInternal
        )
    }
}

/// Bytes by class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Classes {
    /// [`Class::Stacks`]
    pub stacks: u64,
    /// [`Class::Heap`]
    pub heap: u64,
    /// [`Class::Runtime`]
    pub runtime: u64,
    /// [`Class::Unclassified`]
    pub unclassified: u64,
}

impl Classes {
    /// Bytes of one class.
    pub fn get(&self, class: Class) -> u64 {
        match class {
            Class::Stacks => self.stacks,
            Class::Heap => self.heap,
            Class::Runtime => self.runtime,
            Class::Unclassified => self.unclassified,
        }
    }

    /// Adds to one class.
    pub fn add(&mut self, class: Class, bytes: u64) {
        *match class {
            Class::Stacks => &mut self.stacks,
            Class::Heap => &mut self.heap,
            Class::Runtime => &mut self.runtime,
            Class::Unclassified => &mut self.unclassified,
        } += bytes;
    }

    /// Sum over the classes: RSS.
    pub fn total(&self) -> u64 {
        self.stacks + self.heap + self.runtime + self.unclassified
    }
}
