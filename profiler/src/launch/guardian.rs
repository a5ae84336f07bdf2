//! A small process that outlives us: when the profiler dies, however it dies, the guardian ends every
//! process of the target's group, removes the group and gives back limits that were raised.
//!
//! It holds the read end of a pipe whose write end only the profiler has. End of file without a word
//! before it means that the profiler is gone.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, RawFd},
};

use nix::{
    fcntl::OFlag,
    sys::{
        signal::{SigSet, SigmaskHow, sigprocmask},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, pipe2, setsid},
};

use super::group::{KILL_TIMEOUT, TargetGroup};
use crate::limits::raised::Hold;

/// What the profiler says when the guardian is not needed any more.
const DISMISSED: u8 = b'D';

/// The profiler's hold on its guardian. Dropping it without [`Guardian::dismiss`] is the same as
/// dying: the group is killed and removed.
pub struct Guardian {
    pid: Pid,
    word: Option<File>,
}

impl Guardian {
    /// Forks the guardian of a group, which need not be there yet: `group` is asked when we have died.
    /// Must be called while this process has a single thread. The target may be forked already, as long
    /// as it ends by itself when we do. Raised limits stay until the group has ended.
    pub fn fork(
        group: impl FnOnce() -> TargetGroup,
        limits: Option<&Hold>,
    ) -> io::Result<Guardian> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: there is one thread, so no lock can be held by another one across the fork.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Guardian {
                pid: child,
                word: Some(write.into()),
            }),
            ForkResult::Child => {
                drop(write);
                stand_guard(File::from(read), group, limits);
                // SAFETY: ends the child without running the parent's exit handlers.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Sends the guardian home: the group is no longer its business.
    pub fn dismiss(mut self) {
        if let Some(word) = &mut self.word {
            // A guardian that is already gone has nothing to be told.
            let _ = word.write_all(&[DISMISSED]);
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // Closing the pipe ends the guardian, after its work if it was not dismissed.
        self.word = None;
        let _ = waitpid(self.pid, None);
    }
}

fn stand_guard(mut word: File, group: impl FnOnce() -> TargetGroup, limits: Option<&Hold>) {
    // A session of its own and no signals: Ctrl-C and hang-ups are for the profiler.
    let _ = setsid();
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    // SAFETY: PR_SET_NAME reads a NUL-terminated string of at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"profiler-guard".as_ptr()) };
    close_all_but(word.as_raw_fd(), limits.map(Hold::descriptor));
    let mut byte = [0];
    if matches!(word.read(&mut byte), Ok(1)) && byte[0] == DISMISSED {
        return;
    }
    let group = group();
    // Nobody is left to tell about an error.
    let ended = group.kill(KILL_TIMEOUT);
    let _ = group.remove();
    // Of a program that still runs, calls would fail; the next start finds what was raised.
    if let (Ok(()), Some(limits)) = (ended, limits) {
        let _ = limits.release();
    }
}

/// Closes every other descriptor, so that no pipe stays open because the guardian has its other end.
fn close_all_but(one: RawFd, other: Option<RawFd>) {
    let close = |first: RawFd, last: u32| {
        // SAFETY: closes descriptors that nothing in this process uses any more.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }
    };
    let other = other.unwrap_or(one);
    let (low, high) = (one.min(other), one.max(other));
    let mut first = 0;
    for keep in [low, high] {
        if keep > first {
            close(first, (keep - 1) as u32);
        }
        first = keep + 1;
    }
    close(first, u32::MAX);
}
