//! Do we follow this process?
//!
//! By thread group: a child is entered before it can run (`task:task_newtask`), so nothing of it is
//! missed, and threads need no entry at all.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use profiler_ebpf::counter;

use crate::maps::{FOLLOWED, count};

/// The calling thread: both ids are those of the initial PID namespace.
pub struct Caller {
    pub tgid: u32,
    pub tid: u32,
}

impl Caller {
    /// Both ids in one word, as the helper gives them: the key of the thread.
    pub fn key(&self) -> u64 {
        (u64::from(self.tgid) << 32) | u64::from(self.tid)
    }
}

/// The caller, if its process is followed.
#[inline(always)]
pub fn followed_caller() -> Option<Caller> {
    let both = bpf_get_current_pid_tgid();
    let caller = Caller {
        tgid: (both >> 32) as u32,
        tid: both as u32,
    };
    FOLLOWED.get_ptr(caller.tgid)?;
    Some(caller)
}

/// Follows a process from now on.
pub fn follow(tgid: u32) {
    if FOLLOWED.insert(tgid, 1, 0).is_err() {
        count(counter::FOLLOWED_FULL);
    }
}

/// 1: children of followed processes are not followed.
#[unsafe(no_mangle)]
static ONLY_GIVEN: u32 = 0;

/// Whether a new process is followed when its parent is.
#[inline(always)]
pub fn follows_children() -> bool {
    // SAFETY: a valid static; volatile, because user space sets its value at load and the compiler must not
    // fold the one seen here.
    unsafe { core::ptr::read_volatile(core::ptr::addr_of!(ONLY_GIVEN)) == 0 }
}
