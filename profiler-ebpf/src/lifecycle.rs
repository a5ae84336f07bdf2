//! `task:task_newtask`, `sched:sched_process_exec` and `sched:sched_process_exit`: how the tree grows
//! and shrinks.
//!
//! The layout of these records differs between kernels (a fixed `comm` became a string), so user
//! space reads the offsets from tracefs and sets them at load.

use core::ptr::addr_of;

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel_str_bytes},
    macros::tracepoint,
    programs::TracePointContext,
};
use profiler_ebpf::{NAME_LEN, NamedRecord, Record, kind};

use crate::{
    follow::{Caller, follow, followed_caller, follows_children},
    maps::write,
    registers::Registers,
    syscalls::{IN_FLIGHT, cloned},
};

#[unsafe(no_mangle)]
static NEWTASK_PID_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
static NEWTASK_FLAGS_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
static EXEC_FILENAME_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
static EXEC_OLD_PID_OFFSET: u32 = 0;

/// `include/uapi/linux/sched.h`
const CLONE_THREAD: u64 = 0x0001_0000;

/// The value that user space gave a global at load; the compiler must not fold the one seen here.
#[inline(always)]
fn offset(global: *const u32) -> usize {
    // SAFETY: called with the statics above only.
    unsafe { core::ptr::read_volatile(global) as usize }
}

#[inline(always)]
fn record(kind: u32, caller: &Caller, args: [u64; 6]) -> Record {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    Record {
        began_ns: now,
        ended_ns: now,
        args,
        result: 0,
        kind,
        tgid: caller.tgid,
        tid: caller.tid,
        call_stack: 0,
    }
}

/// Fires in `copy_process`, after everything that can fail and before the child runs (kernel/fork.c).
#[tracepoint]
pub fn task_newtask(ctx: TracePointContext) -> u32 {
    if let Some(caller) = followed_caller() {
        // SAFETY: only this thread inserts and removes its own key.
        let call = unsafe { IN_FLIGHT.get(caller.key()) };
        let stack = call.map_or((0, 0), |call| (call.args[1], call.args[2]));
        let _ = try_newtask(&ctx, &caller, |_| stack);
    }
    0
}

/// In place of [`task_newtask`], where `clone` and `clone3` are not hooked: their arguments are still where the thread
/// left them.
#[tracepoint]
pub fn task_newtask_by_registers(ctx: TracePointContext) -> u32 {
    if let Some(caller) = followed_caller() {
        let _ = try_newtask(&ctx, &caller, stack_in_registers);
    }
    0
}

/// Of the call that makes a task with these flags. A task that the kernel makes itself (an io_uring worker) may come right
/// behind such a call, whose registers are still there.
#[inline(always)]
fn stack_in_registers(flags: u64) -> (u64, u64) {
    let Some(registers) = Registers::of_caller() else {
        return (0, 0);
    };
    let number = registers.call();
    if number != kind::CLONE && number != kind::CLONE3 {
        return (0, 0);
    }
    match cloned(number, &registers.arguments()) {
        Ok([asked, stack, top]) if asked == flags => (stack, top),
        _ => (0, 0),
    }
}

/// `stack`: of a task with these flags, the lowest byte of what the call gives it, and one past the highest; zeroes for fork,
/// vfork and tasks that the kernel makes itself.
#[inline(always)]
fn try_newtask(
    ctx: &TracePointContext,
    caller: &Caller,
    stack: impl FnOnce(u64) -> (u64, u64),
) -> Result<(), i32> {
    // SAFETY: the offsets are those that tracefs gives for this record.
    let (child, flags) = unsafe {
        (
            ctx.read_at::<u32>(offset(addr_of!(NEWTASK_PID_OFFSET)))?,
            ctx.read_at::<u64>(offset(addr_of!(NEWTASK_FLAGS_OFFSET)))?,
        )
    };
    if flags & CLONE_THREAD == 0 {
        if !follows_children() {
            return Ok(());
        }
        follow(child);
    }
    let (stack, top) = stack(flags);
    write(record(
        kind::NEWTASK,
        caller,
        [u64::from(child), flags, stack, top, 0, 0],
    ));
    Ok(())
}

/// Fires when the new image is in place and its first instruction has not run (fs/exec.c).
#[tracepoint]
pub fn process_exec(ctx: TracePointContext) -> u32 {
    if let Some(caller) = followed_caller() {
        let _ = try_exec(&ctx, &caller);
    }
    0
}

#[inline(always)]
fn try_exec(ctx: &TracePointContext, caller: &Caller) -> Result<(), i32> {
    // SAFETY: the offsets are those that tracefs gives for this record.
    let (location, old_tid) = unsafe {
        (
            ctx.read_at::<u32>(offset(addr_of!(EXEC_FILENAME_OFFSET)))?,
            ctx.read_at::<u32>(offset(addr_of!(EXEC_OLD_PID_OFFSET)))?,
        )
    };
    let mut named = NamedRecord {
        record: record(kind::EXEC, caller, [u64::from(old_tid), 0, 0, 0, 0, 0]),
        name: [0; NAME_LEN],
    };
    // `__data_loc`: the low half is the string's offset from the start of the record.
    let path = ctx
        .as_ptr()
        .cast::<u8>()
        .wrapping_add((location & 0xffff) as usize);
    // SAFETY: the helper checks the address and writes at most NAME_LEN bytes.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(path, &mut named.name) };
    write(named);
    Ok(())
}

#[tracepoint]
pub fn process_exit(_ctx: TracePointContext) -> u32 {
    if let Some(caller) = followed_caller() {
        write(record(kind::EXIT, &caller, [0; 6]));
    }
    0
}
