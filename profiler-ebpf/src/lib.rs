//! The wire contract between the eBPF probes and user space: the records in the ring, the counters,
//! and the globals that are set at load.
//!
//! Plain integers only, padding spelt out, sizes checked at compile time. Both sides compile this
//! file, so a field cannot move on one side alone.
#![no_std]

pub mod call_stack_wire;
pub mod ledger_wire;

/// Bytes of a name in a [`NamedRecord`], the terminating zero included.
pub const NAME_LEN: usize = 64;

/// What a [`Record`] tells: the number of the system call on x86-64, or one of the life-cycle steps
/// below, which start where no system call number is.
///
/// `arch/x86/entry/syscalls/syscall_64.tbl`
pub mod kind {
    /// args: hint, length, protection, flags, fd, offset; result: address
    pub const MMAP: u32 = 9;
    /// args: address, length, protection
    pub const MPROTECT: u32 = 10;
    /// args: address, length
    pub const MUNMAP: u32 = 11;
    /// args: requested break; result: the break
    pub const BRK: u32 = 12;
    /// args: old address, old length, new length, flags, new address; result: address
    pub const MREMAP: u32 = 25;
    /// args: address, length, advice
    pub const MADVISE: u32 = 28;
    /// Never a record of its own: its arguments become part of [`NEWTASK`].
    pub const CLONE: u32 = 56;
    /// args: address, length (read from the `stack_t`)
    pub const SIGALTSTACK: u32 = 131;
    /// Only `PR_SET_VMA`. args: option, suboption, address, length; named
    pub const PRCTL: u32 = 157;
    /// result: file descriptor; named
    pub const MEMFD_CREATE: u32 = 319;
    /// args as [`MPROTECT`], then the key
    pub const PKEY_MPROTECT: u32 = 329;
    /// Never a record of its own: its arguments become part of [`NEWTASK`].
    pub const CLONE3: u32 = 435;

    /// A task was made. args: child's tid, clone flags, stack (lowest byte, 0 if unknown), stack top
    pub const NEWTASK: u32 = 1 << 16;
    /// A new image runs. args: tid before the exec; named
    pub const EXEC: u32 = NEWTASK + 1;
    /// The calling thread exits.
    pub const EXIT: u32 = NEWTASK + 2;
    /// The caller is about to take memory away, and the tree has never had more: a candidate for the
    /// peak (see [`crate::ledger_wire`]). args: epoch, pages of the tree
    pub const PEAK: u32 = NEWTASK + 3;
    /// The same of one address space alone. args: its epoch, its pages, its index, its thread group
    pub const OWN_PEAK: u32 = NEWTASK + 4;
}

/// One call or life-cycle step of a followed process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// `CLOCK_MONOTONIC` at the entry, in ns; as [`Record::ended_ns`] where only the return is hooked.
    pub began_ns: u64,
    /// `CLOCK_MONOTONIC` at the return, in ns.
    pub ended_ns: u64,
    /// See [`kind`].
    pub args: [u64; 6],
    /// Return value; never an error, failed calls are not recorded.
    pub result: i64,
    /// One of [`kind`].
    pub kind: u32,
    /// Thread group of the caller, in the initial PID namespace.
    pub tgid: u32,
    /// Thread id of the caller, in the initial PID namespace.
    pub tid: u32,
    /// The call stack, of calls that make memory: see [`call_stack_wire::id`].
    pub call_stack: u32,
}

/// A [`Record`] with the string that the call was given.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedRecord {
    /// The call.
    pub record: Record,
    /// NUL-terminated, cut at [`NAME_LEN`] - 1 bytes; bytes past the terminator mean nothing.
    pub name: [u8; NAME_LEN],
}

const _: () = assert!(size_of::<Record>() == 88 && size_of::<NamedRecord>() == 88 + NAME_LEN);

/// Indices into the per-CPU array `COUNTERS`.
pub mod counter {
    /// Records lost because the ring was full.
    pub const RING_FULL: u32 = 0;
    /// Calls lost because the table of calls in flight was full.
    pub const IN_FLIGHT_FULL: u32 = 1;
    /// Processes not followed because the table of followed processes was full.
    pub const FOLLOWED_FULL: u32 = 2;
    /// How many there are.
    pub const COUNT: u32 = 3;
}

/// Names of the programs, maps and globals in the object, as user space looks them up.
pub mod names {
    /// Attached to `syscalls:sys_enter_*`.
    pub const ENTER_SYSCALL: &str = "enter_syscall";
    /// Attached to `syscalls:sys_exit_*`.
    pub const EXIT_SYSCALL: &str = "exit_syscall";
    /// The two above once more, and again, for kernels that preempt them.
    pub const AGAIN: [(&str, &str); 2] = [
        ("enter_syscall_2", "exit_syscall_2"),
        ("enter_syscall_3", "exit_syscall_3"),
    ];
    /// In place of [`EXIT_SYSCALL`] where [`ENTER_SYSCALL`] is not attached.
    pub const EXIT_BY_REGISTERS: &str = "exit_by_registers";
    /// Attached to `task:task_newtask`.
    pub const NEWTASK: &str = "task_newtask";
    /// The same, where no `clone` is hooked.
    pub const NEWTASK_BY_REGISTERS: &str = "task_newtask_by_registers";
    /// Attached to `sched:sched_process_exec`.
    pub const EXEC: &str = "process_exec";
    /// Attached to `sched:sched_process_exit`.
    pub const EXIT: &str = "process_exit";

    /// Ring buffer of [`super::Record`]s and [`super::NamedRecord`]s.
    pub const RING: &str = "RING";
    /// Hooked calls that are under way, by thread.
    pub const IN_FLIGHT: &str = "IN_FLIGHT";
    /// Hash: tgid of a followed process → 1.
    pub const FOLLOWED: &str = "FOLLOWED";
    /// Per-CPU array of u64, see [`super::counter`].
    pub const COUNTERS: &str = "COUNTERS";

    /// Offset of `pid` in the record of `task:task_newtask`, in bytes.
    pub const NEWTASK_PID_OFFSET: &str = "NEWTASK_PID_OFFSET";
    /// Offset of `clone_flags` in the record of `task:task_newtask`, in bytes.
    pub const NEWTASK_FLAGS_OFFSET: &str = "NEWTASK_FLAGS_OFFSET";
    /// Offset of `filename` (`__data_loc`) in the record of `sched:sched_process_exec`, in bytes.
    pub const EXEC_FILENAME_OFFSET: &str = "EXEC_FILENAME_OFFSET";
    /// Offset of `old_pid` in the record of `sched:sched_process_exec`, in bytes.
    pub const EXEC_OLD_PID_OFFSET: &str = "EXEC_OLD_PID_OFFSET";
    /// 1: children of followed processes are not followed.
    pub const ONLY_GIVEN: &str = "ONLY_GIVEN";
}
