//! Holding processes still that are not ours: `PTRACE_SEIZE` and `PTRACE_INTERRUPT` (ptrace(2)).
//!
//! Of the ways there are, this disturbs least. SIGSTOP is seen by the parent (a shell says "Stopped", a
//! supervisor may act), and SIGCONT by the program itself. A cgroup freezer needs the process to be moved, which
//! takes it out of its limits. A ptrace stop is told to nobody but us, sends no signal, keeps a process stopped
//! that was stopped before, and ends by itself when we die, however that happens (`exit_ptrace`,
//! kernel/ptrace.c): a killed profiler leaves nothing stopped, and no guardian is needed.
//!
//! What can be seen of it: `TracerPid` in `/proc/PID/status` while the stop lasts, and what any stop does to a
//! thread that sleeps in the kernel: it is woken, and `epoll_wait` and a few other calls return EINTR then
//! (signal(7), "Interruption of system calls and library functions by stop signals"). A process that has a
//! tracer already (a debugger, strace) cannot be held.
//!
//! All of it must be done by one thread: the kernel takes threads for tracers, not processes.

use std::{
    collections::HashSet,
    io,
    time::{Duration, Instant},
};

use super::standing::threads;
use crate::launch::group::ended;

/// Why processes could not be held. None is.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Somebody else traces it, or it may not be traced by us.
    #[error("process {pid} cannot be stopped: {error}{hint}")]
    Refused {
        /// The process.
        pid: u32,
        /// What the kernel said.
        error: io::Error,
        /// What would help, where that is known.
        hint: &'static str,
    },
    /// A thread did not stop in time, as one in an uninterruptible sleep does not.
    #[error("thread {tid} did not stop in time")]
    Timeout {
        /// The thread.
        tid: u32,
    },
}

/// Threads that stand still until this is dropped.
#[derive(Debug, Default)]
pub struct Traced {
    threads: Vec<Thread>,
    /// Thread ids that have been asked, those that have ended since included.
    asked: HashSet<u32>,
}

#[derive(Debug)]
struct Thread {
    tid: u32,
    /// It is the first of its process.
    leads: bool,
    stopped: bool,
    /// A signal that was on its way to it, which it gets when it goes on.
    signal: i32,
}

/// How a thread that has been waited for was found.
enum Seen {
    Running,
    Stopped { signal: i32 },
    Gone,
}

impl Traced {
    /// Stops every thread of the processes that `list` gives, and of those that it gives when asked again:
    /// who is not stopped yet may start others.
    pub fn stop(list: impl Fn() -> Vec<u32>, deadline: Instant) -> Result<Traced, TraceError> {
        let mut traced = Traced::default();
        loop {
            let before = traced.asked.len();
            for pid in list() {
                for tid in threads(pid) {
                    traced.seize(pid, tid)?;
                }
            }
            traced.wait(deadline)?;
            if traced.asked.len() == before {
                return Ok(traced);
            }
        }
    }

    fn seize(&mut self, pid: u32, tid: u32) -> Result<(), TraceError> {
        if !self.asked.insert(tid) {
            return Ok(());
        }
        match request(libc::PTRACE_SEIZE, tid, 0) {
            Ok(()) => {}
            // It has ended, or is about to.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            // The kernel refuses to trace a thread that is ending by the same error as one that may not be traced.
            Err(_) if ended(tid) => return Ok(()),
            Err(error) => return Err(refusal(pid, error)),
        }
        self.threads.push(Thread {
            tid,
            leads: tid == pid,
            stopped: false,
            signal: 0,
        });
        // One that is gone meanwhile is found by waiting for it.
        let _ = request(libc::PTRACE_INTERRUPT, tid, 0);
        Ok(())
    }

    fn wait(&mut self, deadline: Instant) -> Result<(), TraceError> {
        let mut pause = Duration::from_micros(20);
        loop {
            self.threads.retain_mut(|thread| {
                if thread.stopped {
                    return true;
                }
                match look(thread.tid) {
                    Seen::Running => true,
                    Seen::Gone => false,
                    Seen::Stopped { signal } => {
                        thread.stopped = true;
                        thread.signal = signal;
                        true
                    }
                }
            });
            let Some(running) = self.threads.iter().find(|thread| !thread.stopped) else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                return Err(TraceError::Timeout { tid: running.tid });
            }
            // Waiting for one would not tell of the others, nor of the deadline.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }

    /// Lets all of them go on, with the signals that were on their way.
    fn release(&mut self) {
        let (mut killed, mut left) = (Vec::new(), Vec::new());
        for thread in self.threads.drain(..) {
            match request(libc::PTRACE_DETACH, thread.tid, thread.signal) {
                Ok(()) => {}
                Err(_) if thread.stopped => killed.push(thread),
                Err(_) => left.push(thread.tid),
            }
        }
        // Nothing but SIGKILL ends such a stop, as when a thread that was let go before ends the process. They stay
        // zombies until their tracer has seen it, and their process does not end before; its first thread is one to be
        // waited for when all others are gone (`delay_group_leader`, include/linux/sched/signal.h).
        killed.sort_by_key(|thread| thread.leads);
        killed.iter().for_each(|thread| wait_for_end(thread.tid));
        // Those that had not stopped yet must stop to be let go.
        let deadline = Instant::now() + Duration::from_secs(1);
        while !left.is_empty() && Instant::now() < deadline {
            left.retain(|&tid| match look(tid) {
                Seen::Gone => false,
                Seen::Running => true,
                Seen::Stopped { signal } => request(libc::PTRACE_DETACH, tid, signal).is_err(),
            });
            if !left.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.release();
    }
}

fn refusal(pid: u32, error: io::Error) -> TraceError {
    let restricted = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
        .is_ok_and(|scope| scope.trim() != "0");
    let traced = std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
        status
            .lines()
            .filter_map(|line| line.strip_prefix("TracerPid:"))
            .any(|tracer| tracer.trim() != "0")
    });
    TraceError::Refused {
        pid,
        error,
        hint: match (traced, restricted) {
            (true, _) => " (a debugger traces it)",
            (false, true) => " (kernel.yama.ptrace_scope: needs CAP_SYS_PTRACE)",
            (false, false) => "",
        },
    }
}

fn request(request: libc::c_uint, tid: u32, data: i32) -> io::Result<()> {
    let data = data as usize as *mut libc::c_void;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests take numbers only, and touch no memory of ours.
    match unsafe { libc::ptrace(request, tid as libc::pid_t, none, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits for a thread of ours that was killed. What it had not told of its stop comes before its end.
fn wait_for_end(tid: u32) {
    while let Seen::Stopped { .. } = waited_for(tid, 0) {}
}

fn look(tid: u32) -> Seen {
    waited_for(tid, libc::WNOHANG)
}

/// `waitpid`, with flags besides `__WALL`.
fn waited_for(tid: u32, flags: libc::c_int) -> Seen {
    let mut status = 0;
    let found = loop {
        // SAFETY: the status is ours to be written.
        let found =
            unsafe { libc::waitpid(tid as libc::pid_t, &raw mut status, libc::__WALL | flags) };
        if found != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break found;
        }
    };
    match found {
        0 => Seen::Running,
        -1 => Seen::Gone,
        _ if libc::WIFSTOPPED(status) => {
            // The stop that was asked for is an event; any other is a signal that it was about to get.
            let event = status >> 16;
            let signal = if event == 0 {
                libc::WSTOPSIG(status)
            } else {
                0
            };
            Seen::Stopped { signal }
        }
        _ => Seen::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        path::Path,
        process::{Child, Command},
    };

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn state(pid: u32) -> Option<u8> {
        crate::launch::group::state(Path::new(&format!("/proc/{pid}/stat")))
    }

    #[test]
    fn a_process_stands_still_until_it_is_let_go() {
        let sleeper = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap());
        let pid = sleeper.0.id();
        let deadline = Instant::now() + Duration::from_secs(60);
        let traced = Traced::stop(|| vec![pid], deadline).expect("a child of ours");
        assert_eq!(state(pid), Some(b't'));
        drop(traced);
        assert!(!matches!(state(pid), Some(b't' | b'T')));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
    }

    #[test]
    fn one_that_was_stopped_stays_stopped() {
        let sleeper = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap());
        let pid = sleeper.0.id();
        crate::launch::group::signal(pid, nix::sys::signal::Signal::SIGSTOP);
        let deadline = Instant::now() + Duration::from_secs(60);
        let until_stopped = || {
            while state(pid) != Some(b'T') && Instant::now() < deadline {
                std::thread::yield_now();
            }
        };
        until_stopped();
        drop(Traced::stop(|| vec![pid], deadline).expect("a child of ours"));
        // On its way from one stop to the other it runs in the kernel.
        until_stopped();
        assert_eq!(state(pid), Some(b'T'));
    }

    #[test]
    fn one_that_is_killed_meanwhile_is_no_trouble() {
        let mut sleeper = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap());
        let pid = sleeper.0.id();
        let deadline = Instant::now() + Duration::from_secs(60);
        let traced = Traced::stop(|| vec![pid], deadline).expect("a child of ours");
        sleeper.0.kill().unwrap();
        drop(traced);
        // It was ours to wait for as its tracer already, or still is as its parent.
        let _ = sleeper.0.wait();
        assert!(matches!(state(pid), None | Some(b'Z' | b'X')));
    }
}
