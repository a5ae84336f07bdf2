//! Which address spaces are followed: tp_btf `task_newtask`, `sched_process_exec` and, where the memory
//! is still there (Linux 6.16), `sched_process_exit`. Before, tier B takes what comes ahead of the end of a
//! process: `exit_group`, the `exit` of its last thread, and a fatal signal. (In tier A a space ends with
//! `execve`, or with `exit_mmap`, whoever lived in it.)
//!
//! By `mm_struct`, so that threads need nothing and what other processes do to the memory counts.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf},
    macros::{btf_tracepoint, map},
    maps::{HashMap, LruHashMap},
    programs::BtfTracePointContext,
};

use super::{
    change::{before_removal, follow, forget, space_of},
    kernel::{read, read_int},
    lock::{self, Lock},
    maps::{
        end_is_hooked, mm_pgd, mm_start_stack, signal_flags, signal_live, space, state,
        task_active_mm, task_mm, task_signal, task_tgid, top_shift,
    },
    peak::look,
};
use crate::{follow::follows_children, maps::FOLLOWED};
use profiler_ebpf::ledger_wire::{Space, State};

/// `include/uapi/linux/sched.h`
const CLONE_VM: u64 = 0x0000_0100;
const CLONE_THREAD: u64 = 0x0001_0000;

/// End of user addresses: half of what the highest page table spans.
#[inline(always)]
fn user_end() -> u64 {
    1 << ((top_shift() + 8) & 63)
}

/// Thread groups inside `execve` → the space that they leave when it succeeds, and the thread that called. Of a call that
/// fails the entry stays; the oldest give way.
#[map]
static EXECING: LruHashMap<u32, Execing> = LruHashMap::with_max_entries(1024, 0);

#[derive(Clone, Copy)]
#[repr(C)]
struct Execing {
    space: u32,
    tid: u32,
}

#[inline(always)]
fn mm_of(task: u64) -> u64 {
    read(task.wrapping_add(task_mm())).unwrap_or(0)
}

/// Address of the caller's `mm_struct`, for programs that Linux 5.10 has to accept too.
#[inline(always)]
pub fn mm_of_caller() -> u64 {
    // SAFETY: the helper has no preconditions.
    mm_of(unsafe { bpf_get_current_task() })
}

/// Address of the caller's `mm_struct`; faster, since Linux 5.11.
#[inline(always)]
pub fn current_mm() -> u64 {
    // SAFETY: the helper has no preconditions. Its result may be read directly: the verifier knows
    // the type, and the offset is a constant to it.
    unsafe {
        let task = bpf_get_current_task_btf().cast::<u8>();
        task.add(task_mm() as usize).cast::<u64>().read()
    }
}

/// The caller's space, if it is followed.
#[inline(always)]
pub fn current_space() -> Option<u32> {
    space_of(current_mm())
}

/// Follows a space from now on. What it holds already came after the candidate.
#[inline(always)]
pub fn register(mm: u64, tgid: u32) {
    let Some(state) = state() else { return };
    if !lock::lock(Lock::Spaces) {
        state.spaces_full += 1;
        return;
    }
    enter(state, mm, tgid);
    lock::release(Lock::Spaces);
}

#[inline(always)]
fn enter(state: &mut State, mm: u64, tgid: u32) {
    let index = state.spaces as u32;
    let Some(space) = space(index) else {
        state.spaces_full += 1;
        return;
    };
    // Whoever had this address before has ended, even if the program that tells of it was skipped.
    if let Some(old) = space_of(mm) {
        if let Some(old) = super::maps::space(old) {
            end(old, state);
        }
        forget(mm);
    }
    let pgd = read(mm.wrapping_add(mm_pgd()));
    space.mm = mm;
    space.pgd = pgd.unwrap_or(0);
    space.start_stack = read(mm.wrapping_add(mm_start_stack())).unwrap_or(0);
    space.tgid = tgid;
    space.users = 1;
    space.born_epoch = state.epoch;
    space.ended_epoch = 0;
    if follow(mm, index).is_err() {
        state.spaces_full += 1;
        return;
    }
    state.spaces = u64::from(index) + 1;
    // What grows from now on may be this one, and not those that were there before.
    state.apart |= u64::from(index != 0);
}

/// One process less in this space; the last one takes the memory with it. (If somebody else still holds
/// it, it goes later, with `exit_mmap`.)
#[inline(always)]
fn leave(index: u32, mm: u64) {
    let (Some(state), Some(space)) = (state(), space(index)) else {
        return;
    };
    // The parent of vfork goes on before its child tells of its exec, and may have another one by then. (Whoever has kept
    // the lock for so long that it is not to be had has been preempted.)
    let locked = lock::lock(Lock::Spaces);
    let is_last = space.users <= 1;
    if is_last {
        end(space, state);
    } else {
        space.users -= 1;
    }
    if locked {
        lock::release(Lock::Spaces);
    }
    if is_last && end_is_hooked() == 0 {
        forget(mm);
    }
}

/// One process more.
#[inline(always)]
fn join(index: u32) {
    let Some(space) = space(index) else { return };
    let locked = lock::lock(Lock::Spaces);
    space.users += 1;
    if locked {
        lock::release(Lock::Spaces);
    }
}

/// In no candidate from now on it counts.
#[inline(always)]
pub fn end(space: &mut Space, state: &State) {
    if space.users != 0 {
        space.users = 0;
        space.ended_epoch = state.epoch;
    }
}

/// Before the last process leaves: may be the peak, and everything is about to go.
#[inline(always)]
pub fn before_end(index: u32) {
    if space(index).is_some_and(|space| space.users == 1) {
        before_removal(index, 0, user_end());
    } else {
        look(index);
    }
}

/// `TP_PROTO(struct task_struct *task, u64 clone_flags)`: fires before the child runs.
#[btf_tracepoint]
pub fn ledger_newtask(ctx: BtfTracePointContext) -> i32 {
    let flags: u64 = ctx.arg(1);
    if flags & CLONE_THREAD != 0 {
        return 0;
    }
    let Some(parent) = space_of(mm_of_caller()) else {
        return 0;
    };
    let task = ctx.arg::<*const c_void>(0) as u64;
    if flags & CLONE_VM != 0 {
        join(parent);
        return 0;
    }
    let mm = mm_of(task);
    if mm != 0 && follows_children() {
        register(mm, read_int(task.wrapping_add(task_tgid())) as u32);
    }
    0
}

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`: the new memory is in
/// place, the old one is gone, or only there for somebody who reads it.
#[btf_tracepoint]
pub fn ledger_exec(_ctx: BtfTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // Before the next question: a child of vfork may be one that is not followed.
    // SAFETY: the value is copied at once.
    if let Some(execing) = unsafe { EXECING.get(tgid) }.copied() {
        if let Some(space) = space(execing.space) {
            leave(execing.space, space.mm);
        }
        let _ = EXECING.remove(tgid);
    }
    if FOLLOWED.get_ptr(tgid).is_none() {
        return 0;
    }
    // A thread that was ended by the `execve` of another one left what is gone now.
    let _ = LEFT.remove(tgid);
    register(mm_of_caller(), tgid);
    0
}

/// Before `execve` replaces the memory. It may still fail, in which case the copies are for nothing
/// and do no harm. Tier A needs it too: whoever reads the memory at that moment (`/proc/PID/maps`, for one) has it end
/// later, with `exit_mmap`, when the process is another program already.
#[inline(always)]
pub fn before_exec(space: u32) {
    let both = bpf_get_current_pid_tgid();
    let tid = both as u32;
    let _ = EXECING.insert((both >> 32) as u32, Execing { space, tid }, 0);
    before_end(space);
}

/// Thread groups that end and have [left](before_process_ends) their space.
#[map]
static LEFT: HashMap<u32, u8> = HashMap::with_max_entries(4096, 0);

/// `struct signal_struct` of the caller, kernel address.
#[inline(always)]
fn signals() -> u64 {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    read(task.wrapping_add(task_signal())).unwrap_or(0)
}

/// Threads of the caller's group that have not begun to end.
#[inline(always)]
fn living_threads() -> i32 {
    read_int(signals().wrapping_add(signal_live()))
}

/// The caller is its group's only thread and about to end.
#[inline(always)]
pub fn before_thread_ends(index: u32) {
    if living_threads() == 1 {
        before_process_ends(index);
    }
}

/// The caller's thread group is about to end; its threads come here one by one. What others of them still do
/// before they end is not seen.
#[inline(always)]
pub fn before_process_ends(index: u32) {
    const BPF_NOEXIST: u64 = 1;
    let both = bpf_get_current_pid_tgid();
    let tgid = (both >> 32) as u32;
    // One thread in `execve` ends all the others, and what it leaves has been copied. (If it is this thread, the call has
    // failed.)
    // SAFETY: the value is copied at once.
    let execing = unsafe { EXECING.get(tgid) }.copied();
    if execing.is_some_and(|execing| execing.tid != both as u32)
        || LEFT.insert(tgid, 1, BPF_NOEXIST).is_err()
    {
        return;
    }
    let mm = mm_of_caller();
    before_end(index);
    leave(index, mm);
    // Of a call that failed.
    let _ = EXECING.remove(tgid);
}

/// `TP_PROTO(int sig, struct kernel_siginfo *info, struct k_sigaction *ka)`: `get_signal`, kernel/signal.c, is about
/// to act on a signal; one that ends a group comes to each of its threads, as SIGKILL.
#[btf_tracepoint]
pub fn ledger_signal(ctx: BtfTracePointContext) -> i32 {
    let Some(index) = current_space() else {
        return 0;
    };
    let signal = ctx.arg::<u64>(0) & 0xff;
    let action = ctx.arg::<*const c_void>(2) as u64;
    // The handler comes first in it; SIG_DFL is 0.
    if read(action) != Some(0) || !is_fatal(signal) {
        return 0;
    }
    let flags = read_int(signals().wrapping_add(signal_flags())) as u64;
    if signal == SIGKILL || flags & SIGNAL_UNKILLABLE == 0 {
        before_process_ends(index);
    }
    0
}

const SIGKILL: u64 = 9;
/// The first process of a PID namespace (include/linux/sched/signal.h).
const SIGNAL_UNKILLABLE: u64 = 0x40;
/// As bits: CONT, CHLD, WINCH and URG are ignored, STOP, TSTP, TTIN and TTOU stop
/// (`sig_kernel_ignore`, `sig_kernel_stop`).
const NOT_FATAL: u64 = 1 << 18 | 1 << 17 | 1 << 28 | 1 << 23 | 0b1111 << 19;

/// Whether a signal without a handler ends its process.
#[inline(always)]
fn is_fatal(signal: u64) -> bool {
    signal != 0 && (signal > 31 || NOT_FATAL >> signal & 1 == 0)
}

/// `sched_process_exit` before 6.16: the memory is gone. If nobody saw that coming, it counts no more at least.
#[btf_tracepoint]
pub fn ledger_after_exit(_ctx: BtfTracePointContext) -> i32 {
    // Most processes of a machine.
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    // A task without memory keeps that of the last one that had some.
    let mm = read(task.wrapping_add(task_active_mm())).unwrap_or(0);
    if living_threads() != 0 || LEFT.remove(tgid).is_ok() {
        return 0;
    }
    if let Some(index) = space_of(mm)
        && let (Some(space), Some(state)) = (space(index), state())
        && space.tgid == tgid
    {
        state.unseen_removals += 1;
        leave(index, mm);
    }
    0
}

/// `TP_PROTO(struct task_struct *p, bool group_dead)` since 6.16, where the memory is still there.
#[btf_tracepoint]
pub fn ledger_exit(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<u64>(1) & 0xff == 0 {
        return 0;
    }
    let mm = current_mm();
    if let Some(index) = current_space() {
        before_end(index);
        leave(index, mm);
    }
    0
}
