//! Taking records out of the ring, in order and in time. Whoever wants them may be busy for seconds with
//! hundreds of thousands of mappings, while a program that runs fills the ring in one; so a thread empties it
//! into memory as well.

use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use nix::sys::signal::SigSet;

/// How often the ring is emptied: 8 MiB are some 75,000 records, and so many are not made in this time.
const PACE: Duration = Duration::from_millis(20);

/// The ring, and what was taken out of it and is still to be read.
pub struct Intake {
    shared: Arc<Mutex<Shared>>,
    descriptor: RawFd,
    /// Dropping it ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    ring: RingBuf<MapData>,
    waiting: VecDeque<Box<[u8]>>,
}

impl Intake {
    pub(super) fn new(ring: RingBuf<MapData>) -> std::io::Result<Intake> {
        let descriptor = ring.as_raw_fd();
        let shared = Arc::new(Mutex::new(Shared {
            ring,
            waiting: VecDeque::new(),
        }));
        let (stop, stopped) = channel();
        let its_share = shared.clone();
        // The thread inherits our mask: signals are for the others.
        let ours = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
        let thread = std::thread::Builder::new()
            .name("intake".into())
            .spawn(move || {
                go_first();
                while stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                    lock(&its_share).empty_ring();
                }
            });
        ours.thread_set_mask()?;
        Ok(Intake {
            shared,
            descriptor,
            stop: Some(stop),
            thread: Some(thread?),
        })
    }

    /// What `read` makes of the next record; `None` when there is none.
    pub fn next<T>(&self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let mut shared = lock(&self.shared);
        if let Some(record) = shared.waiting.pop_front() {
            return Some(read(&record));
        }
        shared.ring.next().map(|record| read(&record))
    }
}

impl Shared {
    fn empty_ring(&mut self) {
        while let Some(record) = self.ring.next() {
            self.waiting.push_back(Box::from(&*record));
        }
    }
}

/// Puts the calling thread before all that is not of a real-time class: on a machine whose CPUs are all taken, its
/// turn would come too late. It needs little of them. Without the privilege it stays as it is.
fn go_first() {
    // SAFETY: takes numbers only; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}

/// A panic of the other thread leaves whole records behind.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsRawFd for Intake {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.stop = None;
        // It has nothing to say.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
