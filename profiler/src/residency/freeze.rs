//! Holds the target still while it is scanned: [`TargetGroup::freeze`].
//!
//! The means is the cgroup freezer (kernel 5.2): it stops a whole tree, and no process is told.
//! Without a cgroup it is SIGSTOP and SIGCONT, which a shell inside the target may notice, and which
//! have to be checked thread by thread. Processes that ran before the profiler came are held by ptrace:
//! [`trace_stop`](super::trace_stop) says why.
//!
//! Either way a thread that sleeps in the kernel is woken to be stopped. On Linux 6.18 sleeps on a
//! futex, in `nanosleep`, `poll`, `select` and `read` go on afterwards as if nothing had happened;
//! `epoll_wait` returns EINTR (signal(7), "Interruption of system calls and library functions by
//! stop signals"), which every event loop has to expect. RSS does not change.
//!
//! Cost on a virtual machine with two CPUs and Linux 6.18, threads asleep (`cost` in
//! `tests/residency.rs` prints it):
//!
//! | threads | cgroup: stop | let go | signals: stop | let go |
//! |---|---|---|---|---|
//! | 10,000 | 36-52 ms | 35-61 ms | 150-220 ms | 13-56 ms |
//! | 30,000 | 120-170 ms | 140-200 ms | 540-870 ms | 90-220 ms |

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::trace_stop::{TraceError, Traced};
use crate::launch::group::{Cgroup, GroupError, ProcessList, TargetGroup, signal, state};

/// Why the group could not be stopped. It has been let go again.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// Some thread did not stop in time, as one in an uninterruptible sleep does not.
    #[error("the target did not stop within {} ms", timeout.as_millis())]
    Timeout {
        /// How long we waited.
        timeout: Duration,
    },
    /// The group cannot be used.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Processes that are not ours could not be held.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// A stopped group, which goes on when this value is dropped.
///
/// If our process dies without dropping it, the group stays stopped; [`TargetGroup::kill`] works on
/// it all the same.
#[derive(Debug)]
#[must_use = "dropping it lets the target go on"]
pub struct Frozen<'a> {
    held: Held<'a>,
    /// What it took until every thread had stopped.
    pub took: Duration,
}

#[derive(Debug)]
enum Held<'a> {
    Cgroup(&'a Cgroup),
    /// Those that we stopped. One that was stopped before is not ours to wake.
    Processes(Vec<u32>),
    /// Of processes that are not ours.
    Traced(Traced),
}

impl TargetGroup {
    /// Stops every thread of the group, and returns when all of them have stopped.
    pub fn freeze(&self, timeout: Duration) -> Result<Frozen<'_>, FreezeError> {
        let begun = Instant::now();
        let deadline = begun + timeout;
        let mut frozen = match self {
            TargetGroup::Cgroup(cgroup) => {
                let frozen = Frozen {
                    held: Held::Cgroup(cgroup),
                    took: Duration::ZERO,
                };
                cgroup.write("cgroup.freeze", "1")?;
                if !cgroup.wait_for("frozen 1", deadline)? {
                    return Err(FreezeError::Timeout { timeout });
                }
                frozen
            }
            TargetGroup::Processes(processes) => {
                let mut frozen = Frozen {
                    held: Held::Processes(Vec::new()),
                    took: Duration::ZERO,
                };
                let Held::Processes(stopped) = &mut frozen.held else {
                    unreachable!("made above")
                };
                if !stop_all(processes, stopped, deadline) {
                    return Err(FreezeError::Timeout { timeout });
                }
                frozen
            }
            TargetGroup::Foreign(processes) => Frozen {
                held: Held::Traced(Traced::stop(|| processes.pids(), deadline)?),
                took: Duration::ZERO,
            },
        };
        frozen.took = begun.elapsed();
        Ok(frozen)
    }
}

impl Frozen<'_> {
    /// Lets the group go on, and tells if that failed. Returns when all threads may run again.
    pub fn thaw(mut self) -> Result<(), GroupError> {
        self.release()
    }

    fn release(&mut self) -> Result<(), GroupError> {
        match &mut self.held {
            Held::Cgroup(cgroup) => cgroup.write("cgroup.freeze", "0"),
            Held::Processes(stopped) => {
                stopped
                    .drain(..)
                    .for_each(|pid| signal(pid, Signal::SIGCONT));
                Ok(())
            }
            Held::Traced(traced) => {
                *traced = Traced::default();
                Ok(())
            }
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; `thaw` reports it. Twice does no harm.
        let _ = self.release();
    }
}

/// Stops every process of the list, and those that they fork while we are at it. `false`: the time
/// is over.
fn stop_all(processes: &ProcessList, stopped: &mut Vec<u32>, deadline: Instant) -> bool {
    let mut checked: Vec<u32> = Vec::new();
    loop {
        // A process that is not stopped yet may have forked: ask again until nobody is new.
        let fresh: Vec<u32> = processes
            .pids()
            .into_iter()
            .filter(|pid| !checked.contains(pid))
            .collect();
        if fresh.is_empty() {
            return true;
        }
        for &pid in &fresh {
            let before = state(&PathBuf::from(format!("/proc/{pid}/stat")));
            if !matches!(before, Some(b'T' | b't')) {
                stopped.push(pid);
                signal(pid, Signal::SIGSTOP);
            }
        }
        for &pid in &fresh {
            if !wait_until_stopped(pid, deadline) {
                return false;
            }
        }
        checked.extend(fresh);
    }
}

/// Waits until each thread of `pid` has stopped: the state of the process is that of its first
/// thread only, which may stop long before the last one does.
fn wait_until_stopped(pid: u32, deadline: Instant) -> bool {
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let mut pause = Duration::from_micros(50);
    // Thread directories that were running when last looked at.
    let threads = || -> Vec<PathBuf> {
        fs::read_dir(&tasks)
            .into_iter()
            .flatten()
            .flatten()
            .map(|task| task.path())
            .collect()
    };
    let mut all = threads();
    let mut running = all.clone();
    loop {
        running.retain(|task| {
            !matches!(
                state(&task.join("stat")),
                None | Some(b'T' | b't' | b'Z' | b'X')
            )
        });
        if running.is_empty() {
            // A thread started while we looked would be among the new ones.
            let now = threads();
            if now.len() <= all.len() {
                return true;
            }
            running.clone_from(&now);
            all = now;
            continue;
        }
        if Instant::now() >= deadline {
            return false;
        }
        // Nothing announces the stop of a process that is not our child.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}
