//! `syscalls:sys_enter_*` of the calls that take pages away, or bring some without a fault.
//!
//! At the entry, because only then the pages are still there.

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};
use profiler_ebpf::kind;

use super::{
    copy::copy_range,
    kernel::read,
    lifecycle::{before_exec, current_mm, current_space},
    maps::{mm_brk, state},
    peak::look,
};

const NUMBER_OFFSET: usize = 8;
const ARGS_OFFSET: usize = 16;

const SHMDT: u32 = 67;
const EXECVE: u32 = 59;
const EXECVEAT: u32 = 322;

/// `include/uapi/asm-generic/mman-common.h`
const MAP_FIXED: u64 = 0x10;
const MREMAP_FIXED: u64 = 2;
const MADV_DONTNEED: u64 = 4;
const MADV_FREE: u64 = 8;
const MADV_REMOVE: u64 = 9;
const MADV_PAGEOUT: u64 = 21;
const MADV_POPULATE_READ: u64 = 22;
const MADV_POPULATE_WRITE: u64 = 23;
const MADV_DONTNEED_LOCKED: u64 = 24;
const MADV_COLLAPSE: u64 = 25;

#[tracepoint]
pub fn ledger_removal(ctx: TracePointContext) -> u32 {
    if let Some(space) = current_space() {
        let _ = try_removal(&ctx, space);
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
        kind::MMAP if args[3] & MAP_FIXED != 0 => {}
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
                look();
                copy(space, args[4], args[2]);
            }
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
        _ => return Ok(()),
    }
    look();
    copy(space, start, length);
    Ok(())
}

/// Copies what a call is about to change.
#[inline(always)]
fn copy(space: u32, start: u64, length: u64) {
    let Some(state) = state() else { return };
    let end = start.wrapping_add(length);
    if state.copying != 0 && end > start && end >> 63 == 0 {
        copy_range(space, state.epoch, start, end, false);
    }
}
