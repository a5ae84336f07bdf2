//! `syscalls:sys_enter_*` of the calls that take pages away, or bring some without a fault: tier B, and in
//! front of tier A's functions where those may be skipped. (Before `execve`, tier A always looks.)
//!
//! At the entry, because only then the pages are still there. Two calls bring pages without a fault to
//! a place that only their result tells, `mmap` with `MAP_POPULATE` and `mremap`: at their exit, what
//! lies beside the new range is copied, and the range itself as empty. That is right, because a
//! chunk that had a page there at the candidate was copied when the page went.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{map, tracepoint},
    maps::HashMap,
    programs::TracePointContext,
};
use profiler_ebpf::kind;

use super::{
    change::{before_removal, space_of, wanted_at},
    copy::copy_beside,
    kernel::read,
    lifecycle::{
        before_exec, before_process_ends, before_thread_ends, current_mm, current_space,
        mm_of_caller,
    },
    maps::{self, mm_brk, state},
};

const NUMBER_OFFSET: usize = 8;
const ARGS_OFFSET: usize = 16;

const SHMDT: u32 = 67;
const EXECVE: u32 = 59;
const EXECVEAT: u32 = 322;
const EXIT: u32 = 60;
const EXIT_GROUP: u32 = 231;

/// `include/uapi/asm-generic/mman-common.h`
const MAP_FIXED: u64 = 0x10;
const MAP_LOCKED: u64 = 0x2000;
const MAP_POPULATE: u64 = 0x8000;
const MREMAP_FIXED: u64 = 2;
const MADV_DONTNEED: u64 = 4;
const MADV_FREE: u64 = 8;
const MADV_REMOVE: u64 = 9;
const MADV_PAGEOUT: u64 = 21;
const MADV_POPULATE_READ: u64 = 22;
const MADV_POPULATE_WRITE: u64 = 23;
const MADV_DONTNEED_LOCKED: u64 = 24;
const MADV_COLLAPSE: u64 = 25;

/// Programs that do the same: see `syscalls.rs` for why. What the first one has copied is not copied again.
macro_rules! alike {
    ($act:ident: $($name:ident),*) => {$(
        #[tracepoint]
        pub fn $name(ctx: TracePointContext) -> u32 {
            if let Some(space) = current_space() {
                let _ = $act(&ctx, space);
            }
            0
        }
    )*};
}

alike!(try_removal: ledger_removal, ledger_removal_2, ledger_removal_3);
alike!(try_arrival: ledger_arrival, ledger_arrival_2, ledger_arrival_3);

/// At the entry of `execve` and `execveat`, where tier A has nothing else of this file; Linux 5.10 accepts it, too.
#[tracepoint]
pub fn ledger_before_exec(_ctx: TracePointContext) -> u32 {
    if let Some(space) = space_of(mm_of_caller()) {
        before_exec(space);
    }
    0
}

#[inline(always)]
fn try_removal(ctx: &TracePointContext, space: u32) -> Result<(), i32> {
    // SAFETY: both offsets lie inside the record of every sys_enter tracepoint; words past the last
    // argument of a call are never looked at.
    let (number, args) = unsafe {
        (
            ctx.read_at::<u32>(NUMBER_OFFSET)?,
            ctx.read_at::<[u64; 6]>(ARGS_OFFSET)?,
        )
    };
    let (mut start, mut length) = (args[0], args[1]);
    match number {
        kind::MUNMAP => {}
        kind::MMAP => {
            if args[3] & (MAP_POPULATE | MAP_LOCKED) != 0 {
                arriving(space, length);
            }
            if args[3] & MAP_FIXED == 0 {
                return Ok(());
            }
        }
        kind::MADVISE => match args[2] {
            MADV_DONTNEED | MADV_FREE | MADV_REMOVE | MADV_PAGEOUT | MADV_DONTNEED_LOCKED
            | MADV_COLLAPSE | MADV_POPULATE_READ | MADV_POPULATE_WRITE => {}
            _ => return Ok(()),
        },
        kind::BRK => {
            let now = read(current_mm().wrapping_add(mm_brk())).ok_or(0)?;
            if start == 0 || start >= now {
                return Ok(());
            }
            length = now - start;
        }
        kind::MREMAP => {
            if args[3] & MREMAP_FIXED != 0 {
                before_removal(space, args[4], args[4].wrapping_add(args[2]));
            }
            before_removal(space, start, start.wrapping_add(length));
            arriving(space, args[2]);
            return Ok(());
        }
        SHMDT => {
            // Its length is known to the kernel alone; what it holds is not copied.
            start = 0;
            length = 0;
        }
        EXECVE | EXECVEAT => {
            before_exec(space);
            return Ok(());
        }
        EXIT => {
            before_thread_ends(space);
            return Ok(());
        }
        EXIT_GROUP => {
            before_process_ends(space);
            return Ok(());
        }
        _ => return Ok(()),
    }
    // Even without a range there is something to look at.
    before_removal(space, start, start.wrapping_add(length));
    Ok(())
}

/// A call that may bring pages.
#[derive(Clone, Copy)]
#[repr(C)]
struct Arrival {
    /// How many bytes it maps.
    length: u64,
    /// The epoch in which it began. What comes in a later one may have come before that one's candidate,
    /// or after it.
    epoch: u32,
    /// The same of the space's own.
    own_epoch: u32,
}

/// Calls under way: thread → what it brings. Full: as if the call had not been seen.
#[map]
static ARRIVING: HashMap<u64, Arrival> = HashMap::with_max_entries(4096, 0);

#[inline(always)]
fn arriving(space: u32, length: u64) {
    if let (Some(state), Some(space)) = (state(), maps::space(space)) {
        let arrival = Arrival {
            length,
            epoch: state.epoch,
            own_epoch: space.own_epoch,
        };
        let _ = ARRIVING.insert(bpf_get_current_pid_tgid(), arrival, 0);
    }
}

#[inline(always)]
fn try_arrival(ctx: &TracePointContext, space: u32) -> Result<(), i32> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread inserts and removes its own key; the value is copied at once.
    let Some(arrival) = (unsafe { ARRIVING.get(thread) }).copied() else {
        return Ok(());
    };
    let _ = ARRIVING.remove(thread);
    // SAFETY: the offset lies inside the record of every sys_exit tracepoint.
    let start = unsafe { ctx.read_at::<u64>(ARGS_OFFSET)? };
    let end = start.wrapping_add(arrival.length);
    // Errors are the highest addresses, so nothing is copied for them.
    if let Some(wanted) = wanted_at(space, start, end) {
        copy_beside(
            space,
            wanted.of_epochs(arrival.epoch, arrival.own_epoch),
            start,
            end,
        );
    }
    Ok(())
}
