//! Taking records out of the ring, in order and in time. Whoever wants them may be busy for seconds with
//! hundreds of thousands of mappings, or without a CPU while 100,000 threads end, and a program that runs fills the
//! ring in one; so a thread of its own empties it into memory, and nobody else.

use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
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
    /// Taken over from the thread and not yet read.
    ours: Waiting,
    /// Taken out by the thread. Locked for an exchange only: should who reads lose its CPU, the ring is emptied all the
    /// same.
    waiting: Arc<Mutex<Waiting>>,
    descriptor: RawFd,
    /// Asks the thread to empty the ring now; dropping it ends the thread.
    ask: Option<Sender<()>>,
    /// Its answer.
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Records that were taken out of the ring, one behind the other in blocks: 300,000 pieces of memory would take
/// longer and, once freed, stay with malloc.
#[derive(Default)]
struct Waiting {
    blocks: VecDeque<Block>,
}

/// Records, each behind its length in four bytes.
struct Block {
    bytes: Vec<u8>,
    /// Where the next one begins.
    next: usize,
}

/// Bytes of a block, as a rule; a longer record has one of its own.
const BLOCK: usize = 64 * 1024;

impl Waiting {
    fn push(&mut self, record: &[u8]) {
        let needed = 4 + record.len();
        let has_room = |block: &&mut Block| block.bytes.capacity() - block.bytes.len() >= needed;
        let block = match self.blocks.back_mut().filter(has_room) {
            Some(block) => block,
            None => {
                self.blocks.push_back(Block {
                    bytes: Vec::with_capacity(BLOCK.max(needed)),
                    next: 0,
                });
                self.blocks.back_mut().expect("just pushed")
            }
        };
        let length = u32::try_from(record.len()).expect("the ring is shorter");
        block.bytes.extend(length.to_ne_bytes());
        block.bytes.extend(record);
    }

    /// What `read` makes of the oldest record.
    fn pop<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let block = self.blocks.front_mut()?;
        let (length, rest) = block.bytes[block.next..].split_first_chunk()?;
        let length = u32::from_ne_bytes(*length) as usize;
        let made = read(&rest[..length]);
        block.next += 4 + length;
        if block.next == block.bytes.len() {
            self.blocks.pop_front();
        }
        Some(made)
    }
}

impl Intake {
    pub(super) fn new(ring: RingBuf<MapData>) -> std::io::Result<Intake> {
        let descriptor = ring.as_raw_fd();
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let theirs = waiting.clone();
        let (ask, asked) = channel();
        let (tell, done) = channel();
        // The thread inherits our mask: signals are for the others.
        let ours = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
        let thread = std::thread::Builder::new()
            .name("intake".into())
            .spawn(move || {
                go_first();
                empty_when_due(ring, &theirs, &asked, &tell);
            });
        ours.thread_set_mask()?;
        Ok(Intake {
            ours: Waiting::default(),
            waiting,
            descriptor,
            ask: Some(ask),
            done,
            thread: Some(thread?),
        })
    }

    /// Has the ring emptied, and takes over what has come. What comes meanwhile waits for the next time: a program that
    /// starts threads makes some while a few are read, and whoever asked for those at once would ask all day.
    pub fn fetch(&mut self) {
        // The thread lives as long as we do; had it panicked, what it has taken out would still be there.
        if self.ask.as_ref().is_some_and(|ask| ask.send(()).is_ok()) {
            let _ = self.done.recv();
        }
        self.ours.blocks.append(&mut lock(&self.waiting).blocks);
    }

    /// What `read` makes of the next record that was taken over; `None` when there is none.
    pub fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.ours.pop(read)
    }
}

/// What the thread does: empties the ring when asked and at every [`PACE`].
fn empty_when_due(
    mut ring: RingBuf<MapData>,
    waiting: &Mutex<Waiting>,
    asked: &Receiver<()>,
    tell: &Sender<()>,
) {
    loop {
        let request = asked.recv_timeout(PACE);
        if request == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        let mut taken = Waiting::default();
        while let Some(record) = ring.next() {
            taken.push(&record);
        }
        lock(waiting).blocks.append(&mut taken.blocks);
        if request.is_ok() && tell.send(()).is_err() {
            return;
        }
    }
}

/// Puts the calling thread before all others, or, where a real-time class is not to be had, before most: on a machine
/// whose CPUs are all taken, its turn would come too late. It needs little of them. Without the privilege it stays as
/// it is.
fn go_first() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread, and the parameter outlives the call, which only reads it.
    let status = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &lowest) };
    if status != 0 {
        // SAFETY: takes numbers only; 0 is the calling thread.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    }
}

/// A panic of the other thread leaves whole blocks behind.
fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsRawFd for Intake {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.ask = None;
        // It has nothing to say.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_wait_in_their_order_and_leave_nothing_behind() {
        let record = |number: usize| match number % 1000 {
            999 => vec![9; BLOCK + 1],
            _ => number.to_ne_bytes().repeat(1 + number % 15),
        };
        let mut waiting = Waiting::default();
        let mut read = 0;
        for number in 0..30_000 {
            waiting.push(&record(number));
            if number % 3 == 0 {
                assert_eq!(waiting.pop(<[u8]>::to_vec), Some(record(read)));
                read += 1;
            }
        }
        assert!(waiting.blocks.len() > 20);
        for number in read..30_000 {
            assert_eq!(waiting.pop(<[u8]>::to_vec), Some(record(number)));
        }
        assert_eq!(waiting.pop(<[u8]>::to_vec), None);
        assert!(waiting.blocks.is_empty());
    }
}
