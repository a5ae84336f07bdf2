//! Present pages by reading `/proc/PID/pagemap`, one u64 a page: every kernel, but the cost grows
//! with the size of the mappings and not with what is resident in them.
//!
//! Bits from the kernel's `Documentation/admin-guide/mm/pagemap.rst`:
//!
//! ```text
//! 63 present | 62 swapped | 61 file or shared | 58 guard | 56 mapped here only | 54..0 page frame number
//! ```
//!
//! There is no bit for the zero page, which is present and not RSS. It is known by its frame number,
//! which we learn by reading an untouched page of our own. Frame numbers read as 0 without
//! `CAP_SYS_ADMIN`; then [`Unsure::Drop`] is the best guess.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use super::ranges::{never_rss, push};
use super::{ResidentRange, Vma};
use crate::units::{MIB, PAGE};

const PRESENT: u64 = 1 << 63;
const FILE: u64 = 1 << 61;
const MAPPED_HERE_ONLY: u64 = 1 << 56;
const FRAME: u64 = (1 << 55) - 1;

const HUGE_PAGE: u64 = 2 * MIB;

/// Entries read at once: 512 KiB, the page table entries of 256 MiB.
const ENTRIES_PER_READ: usize = 65_536;

/// Unmapped gaps up to this size, in bytes, are read over (their entries are 0): cheaper than a
/// further system call when the address space is chopped into many small VMAs.
const GAP_READ_OVER: u64 = MIB;

/// What to do with a page that may be the zero page, when frame numbers are hidden from us.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsure {
    /// Count it.
    Keep,
    /// Leave it out. An anonymous page shared with a forked relative is left out with it.
    Drop,
    /// Leave out whatever may be the huge zero page as well, which reads as a file page (seen on
    /// 6.18). Every page that others map too is left out with it.
    DropHuge,
}

/// The ranges in `vmas` with a page present that is not the zero page, in address order.
pub(super) fn present_ranges(
    pagemap: &File,
    vmas: &[Vma],
    unsure: Unsure,
) -> io::Result<Vec<ResidentRange>> {
    let zero = ZeroFrames::learn();
    let mut found = Vec::new();
    let mut block = vec![0_u8; ENTRIES_PER_READ * 8];
    for span in spans(vmas) {
        let mut at = span.start;
        while at < span.end {
            let pages = ((span.end - at) / PAGE).min(ENTRIES_PER_READ as u64);
            let block = &mut block[..pages as usize * 8];
            pagemap.read_exact_at(block, at / PAGE * 8)?;
            collect(at, block, &zero, unsure, &mut found);
            at += pages * PAGE;
        }
    }
    Ok(found)
}

/// Turns entries, the first of which is that of address `at`, into ranges.
fn collect(
    at: u64,
    entries: &[u8],
    zero: &ZeroFrames,
    unsure: Unsure,
    found: &mut Vec<ResidentRange>,
) {
    for (index, entry) in entries.chunks_exact(8).enumerate() {
        let entry = u64::from_ne_bytes(entry.try_into().expect("chunks of 8"));
        if entry & PRESENT == 0 || zero.contains(entry, unsure) {
            continue;
        }
        let start = at + index as u64 * PAGE;
        push(found, start, start + PAGE, entry & FILE != 0);
    }
}

/// The stretches of address space to read, so that neighbouring VMAs take one read.
fn spans(vmas: &[Vma]) -> Vec<Range<u64>> {
    let mut spans: Vec<Range<u64>> = Vec::new();
    // [vsyscall] is among those left out: it lies beyond the end of the file.
    for vma in vmas.iter().filter(|vma| !never_rss(vma)) {
        match spans.last_mut() {
            Some(last) if vma.start - last.end <= GAP_READ_OVER => last.end = vma.end,
            _ => spans.push(vma.start..vma.end),
        }
    }
    spans
}

/// The frames of the zero page and of the huge zero page; `None` where unknown.
#[derive(Clone, Copy, Default)]
struct ZeroFrames {
    page: Option<u64>,
    /// First of 512.
    huge: Option<u64>,
}

impl ZeroFrames {
    /// Learnt once. The mapping that shows the huge zero page is never unmapped: the kernel may
    /// free that page when nobody uses it, and have another one later.
    fn learn() -> ZeroFrames {
        static LEARNT: OnceLock<ZeroFrames> = OnceLock::new();
        *LEARNT.get_or_init(|| {
            let Ok(pagemap) = File::open("/proc/self/pagemap") else {
                return ZeroFrames::default();
            };
            let page = frame_behind_a_read(&pagemap, libc::MADV_NOHUGEPAGE);
            // Without huge pages the read finds the small zero page again.
            let huge =
                frame_behind_a_read(&pagemap, libc::MADV_HUGEPAGE).filter(|_| page.is_some());
            ZeroFrames {
                page,
                huge: huge.filter(|frame| Some(*frame) != page),
            }
        })
    }

    fn contains(&self, entry: u64, unsure: Unsure) -> bool {
        let frame = entry & FRAME;
        match self.page {
            Some(page) => {
                frame == page
                    || self
                        .huge
                        .is_some_and(|huge| (huge..huge + HUGE_PAGE / PAGE).contains(&frame))
            }
            // The zero page is never counted as mapped by anybody.
            None => match unsure {
                Unsure::Keep => false,
                Unsure::Drop => entry & (FILE | MAPPED_HERE_ONLY) == 0,
                Unsure::DropHuge => entry & MAPPED_HERE_ONLY == 0,
            },
        }
    }
}

/// Maps 2 MiB of our own, reads the first byte, and gives the frame that the kernel put there.
fn frame_behind_a_read(pagemap: &File, advice: libc::c_int) -> Option<u64> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            2 * HUGE_PAGE as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if map == libc::MAP_FAILED {
        return None;
    }
    let aligned = (map as u64).next_multiple_of(HUGE_PAGE);
    // SAFETY: the aligned 2 MiB lie inside the 4 MiB just mapped, which nobody else knows of and
    // which are never unmapped; the advice changes no contents, and the read is of mapped memory.
    unsafe {
        libc::madvise(aligned as *mut libc::c_void, HUGE_PAGE as usize, advice);
        std::ptr::read_volatile(aligned as *const u8);
    }
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, aligned / PAGE * 8).ok()?;
    Some(u64::from_ne_bytes(entry) & FRAME).filter(|frame| *frame != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(entries: &[u64]) -> Vec<u8> {
        entries
            .iter()
            .flat_map(|entry| entry.to_ne_bytes())
            .collect()
    }

    #[test]
    fn present_pages_become_ranges_and_zero_pages_do_not() {
        let zero = ZeroFrames {
            page: Some(7),
            huge: Some(512),
        };
        let entries = bytes_of(&[
            PRESENT | 100,
            PRESENT | 101,
            PRESENT | 7,        // zero page
            1 << 62 | 1 << 58,  // guard page: swapped
            PRESENT | FILE | 9, // file page
            0,
            PRESENT | 1023, // last of the huge zero page
            PRESENT | 1024,
        ]);
        let mut found = Vec::new();
        collect(0x10000, &entries, &zero, Unsure::Keep, &mut found);
        let expected = [
            (0x10000, 0x12000, false),
            (0x14000, 0x15000, true),
            (0x17000, 0x18000, false),
        ];
        assert_eq!(
            found,
            expected.map(|(start, end, file)| ResidentRange { start, end, file })
        );
    }

    #[test]
    fn without_frame_numbers_the_caller_chooses() {
        let entries = bytes_of(&[PRESENT, PRESENT | MAPPED_HERE_ONLY, PRESENT | FILE]);
        let pages_found = |unsure| {
            let mut found = Vec::new();
            collect(0, &entries, &ZeroFrames::default(), unsure, &mut found);
            super::super::ranges::bytes(&found) / PAGE
        };
        assert_eq!(pages_found(Unsure::Keep), 3);
        assert_eq!(pages_found(Unsure::Drop), 2);
        assert_eq!(pages_found(Unsure::DropHuge), 1);
    }
}
