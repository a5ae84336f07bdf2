//! Signals to the profiler while a target runs: whose they are, and what is done about them.
//!
//! A command is in the process group that we are in, so that a terminal treats it as if we were not there:
//! what keys send (Ctrl-C, Ctrl-\, Ctrl-Z) and a change of the window's size reach both. What a process sends
//! reaches us alone, and is passed on. Which one it was stands in `si_code` (sigaction(2)): the same
//! distinction that sudo makes (sudo(8), "Signal handling").

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::atomic::{AtomicI32, Ordering},
};

use nix::{
    sys::{
        signal::{SigSet, Signal, kill, raise},
        signalfd::{SfdFlags, SignalFd},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use tokio::io::unix::AsyncFd;

/// What ends a benchmark program, which is ours.
const TO_END: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];
/// What else may be meant for a command.
const FOR_COMMANDS: [Signal; 6] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGALRM,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// The last signal of [`TO_END`] that came in any session of this process; 0: none.
static TOLD_TO_END: AtomicI32 = AtomicI32::new(0);

/// The signal that somebody wanted all of it to end by, whatever the target made of it; `None`: none came.
pub fn told_to_end() -> Option<i32> {
    match TOLD_TO_END.load(Ordering::Relaxed) {
        0 => None,
        number => Some(number),
    }
}

/// One signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Its number.
    pub number: i32,
    /// Sent by a process, and to us alone; else by the kernel, to the target as well.
    pub by_process: bool,
}

impl Received {
    /// Whoever started us is gone.
    pub const HANG_UP: Received = Received {
        number: libc::SIGHUP,
        by_process: true,
    };
}

/// What to do about a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// The session ends.
    End,
    /// The target is sent the same.
    PassOn(Signal),
    /// A child has ended or stopped: see [`stop_with`].
    LookAtChild,
    /// The target has it already.
    Nothing,
}

/// What is done about a signal, when the target is ours to end and when it is not.
pub(super) fn deed(received: Received, ours_to_end: bool) -> Deed {
    match Signal::try_from(received.number) {
        Ok(Signal::SIGCHLD) => Deed::LookAtChild,
        Ok(_) if ours_to_end => Deed::End,
        Ok(signal) if received.by_process => Deed::PassOn(signal),
        _ => Deed::Nothing,
    }
}

fn handled(ours_to_end: bool) -> SigSet {
    let mut set: SigSet = TO_END.into_iter().collect();
    if !ours_to_end {
        set.extend(FOR_COMMANDS);
        set.add(Signal::SIGCHLD);
    }
    set
}

/// Keeps signals back until [`Signals`] takes them: their default would end us and leave the target to the
/// guardian. The target unblocks all before its exec.
pub(super) fn hold(ours_to_end: bool) {
    // Cannot fail: the set is valid.
    let _ = handled(ours_to_end).thread_block();
}

/// Where held signals come out. Dropping it lets them have their default effect again.
pub(super) struct Signals {
    source: AsyncFd<Source>,
    set: SigSet,
}

struct Source(SignalFd);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

impl Signals {
    /// Must be called in a runtime of tokio, after [`hold`].
    pub fn open(ours_to_end: bool) -> io::Result<Signals> {
        let set = handled(ours_to_end);
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let source = SignalFd::with_flags(&set, flags)?;
        // SAFETY: a `SignalFd` gives the same open descriptor until it is dropped, which is after the
        // registration ends.
        let source = unsafe { AsyncFd::register(Source(source)) }?;
        Ok(Signals { source, set })
    }

    /// The next signal. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> io::Result<Received> {
        loop {
            let mut ready = self.source.readable().await?;
            match ready.get_inner().0.read_signal()? {
                Some(info) => {
                    let number = info.ssi_signo as i32;
                    if TO_END.iter().any(|it| *it as i32 == number) {
                        TOLD_TO_END.store(number, Ordering::Relaxed);
                    }
                    return Ok(Received {
                        number,
                        // Above 0 are those of the kernel.
                        by_process: info.ssi_code <= 0,
                    });
                }
                None => ready.clear_ready(),
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Cannot fail: the set is valid.
        let _ = self.set.thread_unblock();
    }
}

/// Where a terminal has stopped the target, we stop as well, so that the shell that waits for us goes on; and
/// when we are told to go on, so is the target. A target that was stopped in another way is somebody else's,
/// who knows its pid and not ours.
pub(super) fn stop_with(target: Pid) {
    // Without WEXITED: a target that has ended is not reaped here.
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WSTOPPED;
    let Ok(WaitStatus::Stopped(_, signal)) = waitid(Id::Pid(target), flags) else {
        return;
    };
    if matches!(signal, Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU) {
        // Returns when we are continued.
        let _ = raise(Signal::SIGSTOP);
        let _ = kill(target, Signal::SIGCONT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_sends_is_passed_on_and_what_a_key_sends_is_not() {
        let received = |signal: Signal, by_process| Received {
            number: signal as i32,
            by_process,
        };
        for signal in TO_END.into_iter().chain(FOR_COMMANDS) {
            assert_eq!(deed(received(signal, true), false), Deed::PassOn(signal));
            assert_eq!(deed(received(signal, false), false), Deed::Nothing);
        }
        for signal in TO_END {
            assert_eq!(deed(received(signal, true), true), Deed::End);
            assert_eq!(deed(received(signal, false), true), Deed::End);
        }
        assert_eq!(
            deed(received(Signal::SIGCHLD, false), false),
            Deed::LookAtChild
        );
    }
}
