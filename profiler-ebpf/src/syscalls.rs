//! `syscalls:sys_enter_*` and `sys_exit_*` of the calls that shape an address space.
//!
//! One program serves all entries and one all exits: both records carry the number of the call, so
//! the number itself is the kind of the record. The arguments wait in [`IN_FLIGHT`] between the two,
//! because only the exit knows whether the call succeeded and where the mapping went. Of `mmap` and `mprotect`, which
//! every thread that is started needs, nobody asks when they began: [`exit_by_registers`] finds their arguments
//! where the thread left them, and their entry is not hooked.
//!
//! ```text
//! name: sys_enter_mmap                     name: sys_exit_mmap
//!   field:int __syscall_nr;  offset:8        field:int __syscall_nr;  offset:8
//!   field:unsigned long addr; offset:16      field:long ret;          offset:16
//!   …one word an argument
//! ```

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_user, bpf_probe_read_user_str_bytes},
    macros::{map, tracepoint},
    maps::HashMap,
    programs::TracePointContext,
};
use profiler_ebpf::{NAME_LEN, NamedRecord, Record, call_stack_wire::id, counter, kind};

use crate::{
    call_stacks::take,
    follow::{Caller, followed_caller},
    maps::{count, write},
    registers::Registers,
};

const NUMBER_OFFSET: usize = 8;
const ARGS_OFFSET: usize = 16;
const RESULT_OFFSET: usize = 16;

/// `include/uapi/linux/prctl.h`
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Offsets of `flags`, `stack` and `stack_size` in `struct clone_args`
/// (`include/uapi/linux/sched.h`), in words.
const CLONE_ARGS_FLAGS: usize = 0;
const CLONE_ARGS_STACK: usize = 5;
const CLONE_ARGS_STACK_SIZE: usize = 6;

/// A call that was entered and has not returned.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct InFlight {
    pub began_ns: u64,
    pub args: [u64; 6],
    /// `profiler_ebpf::call_stack_wire::id`
    pub call_stack: u64,
}

/// By thread. Who loads it makes room for threads that are known to come: those that end at once wait here for
/// the lock on their address space. A full table is counted.
#[map]
pub static IN_FLIGHT: HashMap<u64, InFlight> = HashMap::with_max_entries(16_384, 0);

/// Programs that do the same. Since Linux 7.2 those of system calls are preempted, and one that is under way
/// on a CPU for one task is skipped there for the others (`trace_call_bpf_faultable`,
/// kernel/trace/bpf_trace.c). Then the next one runs. Whichever comes later finds done what it would do: an entry
/// is noted again, an exit finds no entry any more.
macro_rules! alike {
    ($act:ident: $($name:ident),*) => {$(
        #[tracepoint]
        pub fn $name(ctx: TracePointContext) -> u32 {
            if let Some(caller) = followed_caller() {
                let _ = $act(&ctx, &caller);
            }
            0
        }
    )*};
}

/// In place of [`enter_syscall`] at `mmap` and `brk`, where call stacks are taken: a program of its own, because
/// kernels before 5.15 refuse what it calls.
#[tracepoint]
pub fn enter_mapping(ctx: TracePointContext) -> u32 {
    if let Some(caller) = followed_caller() {
        // `brk(0)` asks where the break is, and makes nothing.
        // SAFETY: as in `try_enter`.
        let asks = unsafe {
            ctx.read_at::<u32>(NUMBER_OFFSET) == Ok(kind::BRK)
                && ctx.read_at::<u64>(ARGS_OFFSET) == Ok(0)
        };
        let call_stack = if asks { id::NONE } else { take(&caller) };
        let _ = try_enter(&ctx, &caller, call_stack);
    }
    0
}

alike!(enter: enter_syscall);
alike!(enter_again: enter_syscall_2, enter_syscall_3);
alike!(try_exit: exit_syscall, exit_syscall_2, exit_syscall_3);
alike!(try_exit_by_registers: exit_by_registers);

#[inline(always)]
fn enter(ctx: &TracePointContext, caller: &Caller) -> Result<(), i32> {
    try_enter(ctx, caller, id::NONE)
}

/// Keeps the call stack that [`enter_mapping`] may have noted.
#[inline(always)]
fn enter_again(ctx: &TracePointContext, caller: &Caller) -> Result<(), i32> {
    // SAFETY: only this thread inserts and removes its own key, so the value stays while it is read.
    let noted = unsafe { IN_FLIGHT.get(caller.key()) };
    try_enter(
        ctx,
        caller,
        noted.map_or(id::NONE, |call| call.call_stack as u32),
    )
}

#[inline(always)]
fn try_enter(ctx: &TracePointContext, caller: &Caller, call_stack: u32) -> Result<(), i32> {
    // SAFETY: both offsets lie inside the record of every sys_enter tracepoint; words past the last
    // argument of a call are read from the same per-CPU buffer and never looked at.
    let (number, mut args) = unsafe {
        (
            ctx.read_at::<u32>(NUMBER_OFFSET)?,
            ctx.read_at::<[u64; 6]>(ARGS_OFFSET)?,
        )
    };
    match number {
        kind::PRCTL if args[0] != PR_SET_VMA => return Ok(()),
        kind::SIGALTSTACK => {
            if args[0] == 0 {
                return Ok(());
            }
            // `stack_t` is { void *ss_sp; int ss_flags; size_t ss_size; }
            // SAFETY: reads through a user pointer, which the helper checks.
            let stack = unsafe { bpf_probe_read_user(args[0] as *const [u64; 3])? };
            const SS_DISABLE: u32 = 2;
            args[1] = if stack[1] as u32 & SS_DISABLE != 0 {
                0
            } else {
                stack[2]
            };
            args[0] = stack[0];
        }
        kind::CLONE | kind::CLONE3 => {
            let [flags, stack, top] = cloned(number, &args)?;
            (args[0], args[1], args[2]) = (flags, stack, top);
        }
        _ => {}
    }
    // SAFETY: the helper has no preconditions.
    let began_ns = unsafe { bpf_ktime_get_ns() };
    if IN_FLIGHT
        .insert(
            caller.key(),
            InFlight {
                began_ns,
                args,
                call_stack: u64::from(call_stack),
            },
            0,
        )
        .is_err()
    {
        count(counter::IN_FLIGHT_FULL);
    }
    Ok(())
}

/// What a `clone` or `clone3` with these arguments asks for: flags, and the stack of the child: the lowest byte, 0 if it
/// is not told, and one past the highest.
#[inline(always)]
pub fn cloned(number: u32, args: &[u64; 6]) -> Result<[u64; 3], i32> {
    if number == kind::CLONE {
        // clone(flags, top of the stack, …); in the lowest byte of the flags is a signal (`CSIGNAL`).
        return Ok([u64::from(args[0] as u32 & !0xff), 0, args[1]]);
    }
    // SAFETY: reads through a user pointer, which the helper checks. The smallest version of the struct holds these seven
    // words and one more.
    let clone_args = unsafe { bpf_probe_read_user(args[0] as *const [u64; 7])? };
    let stack = clone_args[CLONE_ARGS_STACK];
    let bytes = clone_args[CLONE_ARGS_STACK_SIZE];
    Ok([
        clone_args[CLONE_ARGS_FLAGS],
        stack,
        stack.wrapping_add(bytes),
    ])
}

/// Number and result of a call that returns. By plain loads: a helper for each would take longer than all the rest.
#[inline(always)]
fn returned(ctx: &TracePointContext) -> (u32, i64) {
    let record = ctx.as_ptr().cast::<u8>();
    // SAFETY: both lie inside the record of every sys_exit tracepoint, at multiples of their size; the verifier checks the
    // loads.
    unsafe {
        (
            *record.add(NUMBER_OFFSET).cast(),
            *record.add(RESULT_OFFSET).cast(),
        )
    }
}

/// In place of [`try_exit`], where the entry is not hooked. Not for a kernel that may skip a program and run another: two
/// of them would record a call twice.
#[inline(always)]
fn try_exit_by_registers(ctx: &TracePointContext, caller: &Caller) -> Result<(), i32> {
    let (number, result) = returned(ctx);
    // An address of a page or zero, which no error is. A call that seccomp or a tracer keeps from being made has an end and
    // no entry; what stands in the place of its result then, its own number for one (SECCOMP_RET_TRAP), mostly is neither.
    let is_made = match number {
        kind::MMAP => result != 0 && result & 0xfff == 0,
        _ => result == 0,
    };
    if !is_made {
        return Ok(());
    }
    let registers = Registers::of_caller().ok_or(0)?;
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    write(Record {
        began_ns: now,
        ended_ns: now,
        args: registers.arguments(),
        result,
        kind: number,
        tgid: caller.tgid,
        tid: caller.tid,
        call_stack: id::NONE,
    });
    Ok(())
}

#[inline(always)]
fn try_exit(ctx: &TracePointContext, caller: &Caller) -> Result<(), i32> {
    let key = caller.key();
    // SAFETY: only this thread inserts and removes its own key, so the value stays while it is copied.
    let Some(call) = (unsafe { IN_FLIGHT.get(key).copied() }) else {
        return Ok(());
    };
    let _ = IN_FLIGHT.remove(key);
    let (number, result) = returned(ctx);
    // The highest 4095 values are errors (include/linux/err.h); a clone was recorded as a new task.
    if (-4095..0).contains(&result) || number == kind::CLONE || number == kind::CLONE3 {
        return Ok(());
    }
    let record = Record {
        began_ns: call.began_ns,
        // SAFETY: the helper has no preconditions.
        ended_ns: unsafe { bpf_ktime_get_ns() },
        args: call.args,
        result,
        kind: number,
        tgid: caller.tgid,
        tid: caller.tid,
        call_stack: call.call_stack as u32,
    };
    match number {
        kind::PRCTL => write(named(record, call.args[4])),
        kind::MEMFD_CREATE => write(named(record, call.args[0])),
        _ => write(record),
    }
    Ok(())
}

/// `record` with the string at user address `address`; empty when it cannot be read.
#[inline(always)]
fn named(record: Record, address: u64) -> NamedRecord {
    let mut named = NamedRecord {
        record,
        name: [0; NAME_LEN],
    };
    // SAFETY: reads through a user pointer, which the helper checks; it writes at most NAME_LEN bytes.
    let _ = unsafe { bpf_probe_read_user_str_bytes(address as *const u8, &mut named.name) };
    named
}
