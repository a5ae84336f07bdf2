//! The wire contract of call stacks: who was calling when memory was mapped.
//!
//! The kernel side copies the registers and a slice of the user's stack, and user space unwinds them later.
//! A program that starts 100,000 threads calls `mmap` 100,000 times from one place: a slice is sent once for
//! each distinct chain of return addresses, and [`Record::call_stack`](crate::Record) refers to it by number.
//!
//! Slices have a ring of their own, so that they can never push out records.

/// Bytes of stack that are copied at most.
pub const SLICE_BYTES: usize = 4096;

/// What stands in [`Record::call_stack`](crate::Record): the number of a [`CallStackRecord`], or one of these.
pub mod id {
    /// No stack was asked for.
    pub const NONE: u32 = 0;
    /// The stack could not be read.
    pub const UNREADABLE: u32 = u32::MAX;
    /// The ring of call stacks was full.
    pub const LOST: u32 = u32::MAX - 1;
    /// There are more distinct call stacks than the table holds.
    pub const TABLE_FULL: u32 = u32::MAX - 2;
    /// A CPU counts its stacks from 1 in so many bits; above them stands the number of the CPU.
    pub const BITS_OF_A_CPU: u32 = 20;
}

/// One distinct call stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CallStackRecord {
    /// Its number.
    pub id: u32,
    /// Process of the caller.
    pub tgid: u32,
    /// `CLOCK_MONOTONIC` when it was copied, in ns.
    pub taken_ns: u64,
    /// Instruction after the system call.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// `rbp`: the frame pointer, where there is one.
    pub bp: u64,
    /// Bytes of `slice` that were copied.
    pub length: u64,
    /// The stack from `sp` up.
    pub slice: [u64; SLICE_BYTES / 8],
}

const _: () = assert!(size_of::<CallStackRecord>() == 48 + SLICE_BYTES);

/// Indices into the per-CPU array `CALL_STACK_COUNTERS`.
pub mod counter {
    /// Calls whose stack was asked for.
    pub const CALLS: u32 = 0;
    /// Numbers that were given to distinct stacks.
    pub const NUMBERS: u32 = 1;
    /// Calls whose stack could not be read.
    pub const UNREADABLE: u32 = 2;
    /// Calls whose stack found no room in the ring.
    pub const LOST: u32 = 3;
    /// Calls whose stack found no room in the table.
    pub const TABLE_FULL: u32 = 4;
    /// How many there are.
    pub const COUNT: u32 = 5;
}

/// Names in the object.
pub mod names {
    /// Attached to `syscalls:sys_enter_mmap` and `sys_enter_brk`.
    pub const ENTER_MAPPING: &str = "enter_mapping";
    /// Ring buffer of [`super::CallStackRecord`]s.
    pub const RING: &str = "CALL_STACK_RING";
    /// Hash: hash of a process and its return addresses → number of the call stack.
    pub const IDS: &str = "CALL_STACK_IDS";
    /// Per-CPU array of u64, see [`super::counter`].
    pub const COUNTERS: &str = "CALL_STACK_COUNTERS";
}
