//! What the followed programs asked the kernel for: one [`Event`] a call, in domain types.
//!
//! Events are rare (tens to hundreds a run, a handful for each native thread). They arrive as bytes
//! from the kernel side ([`decode`]) or from a recorded log ([`log`]); everything to the right of
//! this module takes events and neither knows nor cares which.

pub mod decode;
pub mod journal;
pub mod log;

use serde::{Deserialize, Serialize};

/// One call or one life-cycle step of a followed process.
///
/// Only calls that succeeded become events. `tgid` and `tid` are those of the caller in the initial
/// PID namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When the call was entered: `CLOCK_MONOTONIC`, in ns. Equal to `ended_ns` for life-cycle steps, and for `mmap` and
    /// `mprotect` where only their return is hooked.
    pub began_ns: u64,
    /// When the call returned: `CLOCK_MONOTONIC`, in ns.
    pub ended_ns: u64,
    /// Process (thread group) of the caller.
    pub tgid: u32,
    /// Thread of the caller.
    pub tid: u32,
    /// Of a call that makes memory: the number of its call stack
    /// ([`call_stack_wire::id`](profiler_ebpf::call_stack_wire::id)); 0 for any other.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub call_stack: u32,
    /// What was done.
    pub call: Call,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a followed process did. Addresses and lengths are in bytes, lengths as the program gave them
/// (not rounded to pages).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "call")]
pub enum Call {
    /// `mmap(hint, length, protection, flags, fd, offset) = address`
    Mmap {
        /// First argument: 0 when the kernel was free to choose.
        hint: u64,
        /// Bytes asked for.
        length: u64,
        /// `PROT_*`
        protection: u32,
        /// `MAP_*`
        flags: u32,
        /// File descriptor, -1 for anonymous memory.
        fd: i32,
        /// Offset in the file, in bytes.
        offset: u64,
        /// Where the mapping is.
        address: u64,
    },
    /// `munmap(address, length)`
    Munmap {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// `mremap(old_address, old_length, new_length, flags, …) = address`
    Mremap {
        /// Where the range was.
        old_address: u64,
        /// Its length; 0 duplicates a shared mapping.
        old_length: u64,
        /// Its new length.
        new_length: u64,
        /// `MREMAP_*`
        flags: u32,
        /// Where the range is now.
        address: u64,
    },
    /// `brk(requested) = address`: the program break after the call, whether it moved or not.
    Brk {
        /// The break that was asked for; 0 asks for the present one.
        requested: u64,
        /// The break after the call.
        address: u64,
    },
    /// `mprotect(address, length, protection)` or `pkey_mprotect`
    Mprotect {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
        /// `PROT_*`
        protection: u32,
    },
    /// `madvise(address, length, advice)`
    Madvise {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
        /// `MADV_*`
        advice: u32,
    },
    /// A thread or process was made, by `clone`, `clone3`, `fork` or `vfork`. The event is written
    /// before the child runs for the first time.
    Fork {
        /// Thread id of the child (its tgid too, unless `CLONE_THREAD`).
        child_tid: u32,
        /// `CLONE_*`
        flags: u64,
        /// Lowest byte of the child's stack; 0 when only its top is known (`clone`) or none was given.
        stack: u64,
        /// One past the highest byte of the child's stack; 0 when none was given.
        stack_top: u64,
    },
    /// `memfd_create(name) = fd`
    MemfdCreate {
        /// The name, at most 63 bytes of it.
        name: String,
        /// The new file descriptor.
        fd: i32,
    },
    /// `sigaltstack(&{address, length})`
    Sigaltstack {
        /// Lowest byte of the alternate signal stack.
        address: u64,
        /// Bytes; 0 when the alternate stack was switched off.
        length: u64,
    },
    /// `prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, address, length, name)`
    NameVma {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
        /// The name, at most 63 bytes of it; empty takes the name away.
        name: String,
    },
    /// A successful `execve`: the address space is new and empty but for what the kernel put there.
    Exec {
        /// Path of the new image, at most 63 bytes of it.
        path: String,
    },
    /// The caller is about to take memory away, and the tree never had more pages than now: a
    /// candidate for the peak (page ledger).
    PeakCandidate {
        /// Number of the candidate, from 1.
        epoch: u32,
        /// Pages of the tree, by the kernel's exact count.
        pages: u64,
    },
    /// The same of one address space alone (page ledger).
    OwnPeakCandidate {
        /// Its number among those of the space, from 1.
        epoch: u32,
        /// Pages of the space, by the kernel's exact count.
        pages: u64,
        /// Index of the space in the ledger.
        space: u32,
        /// Process that the space was made for; whoever takes the memory away may be another one.
        of: u32,
    },
    /// The calling thread is exiting. The process is gone when its last thread has.
    Exit,
}
