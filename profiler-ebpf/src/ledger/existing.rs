//! `iter/task`: address spaces that live already when the profiler comes (since Linux 5.8).
//!
//! User space reads the iterator's file, by which this program runs once for every thread of the machine, in
//! the reader, and once more at the end. The first reading follows those that are in `FOLLOWED` and makes
//! their RSS now the first candidate; a later one finds nothing new and only looks, so that growth without
//! any removal has its candidate, too.

use core::ffi::c_void;

use super::{
    change::space_of,
    kernel::{read, read_int},
    lifecycle::register,
    maps::{space, task_mm, task_tgid},
    peak::look,
};
use crate::maps::FOLLOWED;

/// `struct bpf_iter__task`, kernel/bpf/task_iter.c
#[repr(C)]
pub struct TaskContext {
    meta: *const c_void,
    /// Null at the end.
    task: *const c_void,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn ledger_existing(context: *mut TaskContext) -> i32 {
    // SAFETY: the kernel passes a valid context, and the verifier knows its layout.
    let task = unsafe { (*context).task };
    if task.is_null() {
        look(0);
        return 0;
    }
    let task = task as u64;
    let tgid = read_int(task.wrapping_add(task_tgid())) as u32;
    if FOLLOWED.get_ptr(tgid).is_none() {
        return 0;
    }
    // 0: a thread of the kernel, or one that is ending.
    let mm = read(task.wrapping_add(task_mm())).unwrap_or(0);
    if mm == 0 {
        return 0;
    }
    match space_of(mm) {
        None => register(mm, tgid),
        // A child of vfork before its exec, which has one thread.
        Some(index) => {
            if let Some(space) = space(index)
                && space.tgid != tgid
                && space.born_epoch == 0
                && is_first_candidate_to_come()
            {
                space.users += 1;
            }
        }
    }
    0
}

/// Later readings find those again that the first has counted.
#[inline(always)]
fn is_first_candidate_to_come() -> bool {
    super::maps::state().is_some_and(|state| state.epoch == 0)
}
