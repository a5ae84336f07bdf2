//! Growth that the kernel's own count of RSS does not show yet.
//!
//! Before Linux 6.2 each thread keeps its page faults to itself until it has had 64 of them
//! (`TASK_RSS_EVENTS_THRESH` in mm/memory.c), and later kernels keep some for each CPU. `statm` of a
//! process with 200 threads that touched two pages each shows none of them. Page faults themselves are
//! counted at once, and memory that is not shown yet came with one.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt, ptr, time::Instant};

use super::{Snapshot, StatmReader};
use crate::units::PAGE;

/// The kernel adds up the faults of every thread for us: that may take one part in so many of our time.
const BUDGET: u32 = 20;

/// Page faults since the last scan, as an upper bound of the growth since.
#[derive(Debug, Default)]
pub struct HiddenGrowth {
    /// What each process had at the last scan.
    at_scan: HashMap<u32, AtScan>,
    /// The last answer, and when the next one may be looked for.
    answer: u64,
    not_before: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct AtScan {
    rss_bytes: u64,
    faults: u64,
}

impl HiddenGrowth {
    /// `None` where `statm` shows every page at once, so that nothing is hidden.
    pub fn where_it_occurs() -> Option<HiddenGrowth> {
        (!statm_is_exact()).then(HiddenGrowth::default)
    }

    /// The RSS that these processes have at most, in bytes. Given: pid and RSS by `statm`.
    pub fn rss_at_most(&mut self, processes: &[(u32, u64)]) -> u64 {
        let began = Instant::now();
        if self.not_before.is_none_or(|moment| moment <= began) {
            let now = processes.iter().map(|&(pid, statm_bytes)| {
                // A process that is gone has no memory that could be hidden.
                (pid, statm_bytes, page_faults(pid).unwrap_or(0))
            });
            self.answer = at_most(&self.at_scan, now);
            self.not_before = Some(began + began.elapsed() * BUDGET);
        }
        self.answer
    }

    /// Takes a scan whose processes still stand still.
    pub fn scanned(&mut self, snapshot: &Snapshot) {
        let processes = snapshot.processes.iter().map(|process| {
            let at_scan = AtScan {
                rss_bytes: process.rss_bytes,
                faults: page_faults(process.tgid).unwrap_or(0),
            };
            (process.tgid, at_scan)
        });
        self.at_scan = processes.collect();
        self.not_before = None;
    }
}

/// Each process: what it had at the last scan and a page for each fault since, or what `statm` says.
fn at_most(
    at_scan: &HashMap<u32, AtScan>,
    processes: impl Iterator<Item = (u32, u64, u64)>,
) -> u64 {
    processes
        .map(|(pid, statm_bytes, faults)| {
            let then = at_scan.get(&pid).copied().unwrap_or_default();
            let grown = faults.saturating_sub(then.faults) * PAGE;
            statm_bytes.max(then.rss_bytes + grown)
        })
        .sum()
}

/// Minor and major page faults of a process, all its threads included.
fn page_faults(pid: u32) -> Option<u64> {
    let mut text = [0; 1024];
    let file = File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = file.read_at(&mut text, 0).ok()?;
    faults_in(&text[..length])
}

/// Fields 10 and 12 of `/proc/PID/stat`. The name, field 2, may hold blanks and parentheses.
fn faults_in(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let behind = std::str::from_utf8(stat.get(name_end + 2..)?).ok()?;
    let mut fields = behind.split(' ').skip(10 - 3);
    let minor: u64 = fields.next()?.parse().ok()?;
    let major: u64 = fields.nth(1)?.parse().ok()?;
    Some(minor + major)
}

/// Whether `statm` of a process shows a few pages as soon as they are there: tried three times, since a
/// count that lags may by chance come at the right moment.
pub fn statm_is_exact() -> bool {
    let Ok(statm) = StatmReader::open(std::process::id()) else {
        return false;
    };
    // The reader's own pages are there after its first use.
    let _ = statm.rss_bytes();
    (0..3).all(|_| shown_at_once(&statm).unwrap_or(false))
}

fn shown_at_once(statm: &StatmReader) -> Option<bool> {
    const PAGES: u64 = 8;
    let length = (PAGES * PAGE) as usize;
    // SAFETY: maps fresh memory at an address that the kernel chooses.
    let memory = unsafe {
        libc::mmap(
            ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return None;
    }
    let before = statm.rss_bytes();
    for page in 0..PAGES {
        // SAFETY: inside the mapping just made, which nobody else knows.
        unsafe {
            memory
                .byte_add((page * PAGE) as usize)
                .cast::<u8>()
                .write_volatile(1)
        };
    }
    let after = statm.rss_bytes();
    // SAFETY: nothing refers to the mapping any more.
    unsafe { libc::munmap(memory, length) };
    Some(after.ok()?.checked_sub(before.ok()?)? == PAGES * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_since_the_scan_are_pages_at_most() {
        let at_scan = HashMap::from([
            (
                1,
                AtScan {
                    rss_bytes: 1_000_000,
                    faults: 200,
                },
            ),
            (
                2,
                AtScan {
                    rss_bytes: 50_000_000,
                    faults: 9_000,
                },
            ),
        ]);
        // The first has grown out of sight, the second has ended, the third is new and in sight.
        let now = [(1, 600_000, 203), (3, 800_000, 100)];
        assert_eq!(
            at_most(&at_scan, now.into_iter()),
            1_000_000 + 3 * PAGE + 800_000
        );
    }

    #[test]
    fn faults_stand_behind_a_name_with_blanks() {
        let stat = b"7 (a) name (b) S 1 7 7 0 -1 4194560 1234 55 6 7 0 0 0 0 20 0 1 0 100 0 0";
        assert_eq!(faults_in(stat), Some(1240));
        assert_eq!(faults_in(b"7 (x) S 1"), None);
    }

    #[test]
    fn our_own_faults_are_counted_at_once() {
        let ours = || page_faults(std::process::id()).expect("alive");
        let before = ours();
        // More than malloc ever keeps for reuse, so that it is mapped anew: the heap of a thread's arena has 64 MiB
        // at most, and of the program break no more than twice 32 MiB stay (malloc/arena.c, malloc.c of glibc). An
        // optimised build would do without memory that nobody reads.
        let memory = std::hint::black_box(vec![1_u8; 129 << 20]);
        assert!(ours() > before, "{}", memory.len());
    }
}
