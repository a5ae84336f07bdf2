//! When the scan and `smaps_rollup` disagree: which VMA is it, and do we know why?
//!
//! A VMA's ranges are replaced only when a known cause makes them agree with `smaps` to the byte:
//!
//! - pages mapped by frame number (`VmFlags` `pf`, `io`, `mm`: device memory, ring buffers) and huge
//!   pages of hugetlbfs (`ht`) are present, and never in RSS;
//! - the huge zero page: `PAGEMAP_SCAN` marks it as a zero page since mid-2025 only (commit "fix
//!   PAGE_IS_PFNZERO detection for the huge zero folio"; backported to 6.12), so the VMA is read
//!   again by frame number;
//! - the zero page and the huge zero page, when frame numbers are hidden from us.

use super::pagemap::{self, Unsure};
use super::proc_files::{ProcDir, SmapsEntry};
use super::ranges::{bytes, clip, push, settle};
use super::scan::ScanError;
use super::{ResidentRange, Vma};

/// Flags of VMAs whose present pages are not in RSS (`smaps` in `Documentation/filesystems/proc.rst`).
const NOT_RSS_FLAGS: [&str; 4] = ["pf", "io", "mm", "ht"];

/// `ranges` with every VMA put right that disagrees with `smaps` for a known cause; the rest is left
/// as it was scanned.
pub(super) fn reconcile(
    dir: &ProcDir,
    ranges: &[ResidentRange],
) -> Result<Vec<ResidentRange>, ScanError> {
    let pagemap = dir.open("pagemap")?;
    correct(&dir.smaps()?, ranges, |vma, unsure| {
        let vma = std::slice::from_ref(vma);
        let present = pagemap::present_ranges(&pagemap, vma, unsure)
            .map_err(|error| dir.error("pagemap", error))?;
        Ok(settle(vma, &present))
    })
}

fn correct(
    entries: &[SmapsEntry],
    ranges: &[ResidentRange],
    read_again: impl Fn(&Vma, Unsure) -> Result<Vec<ResidentRange>, ScanError>,
) -> Result<Vec<ResidentRange>, ScanError> {
    let mut corrected = Vec::with_capacity(ranges.len());
    for entry in entries {
        let mut own: Vec<_> = clip(ranges, entry.vma.start, entry.vma.end).collect();
        if bytes(&own) != entry.rss_bytes
            && let Some(right) = right_ranges(entry, &read_again)?
        {
            own = right;
        }
        for range in own {
            push(&mut corrected, range.start, range.end, range.file);
        }
    }
    Ok(corrected)
}

/// The ranges of a VMA by the first cause that makes them agree with `smaps`.
fn right_ranges(
    entry: &SmapsEntry,
    read_again: impl Fn(&Vma, Unsure) -> Result<Vec<ResidentRange>, ScanError>,
) -> Result<Option<Vec<ResidentRange>>, ScanError> {
    let mut flags = entry.flags.split(' ');
    if entry.rss_bytes == 0 && flags.any(|flag| NOT_RSS_FLAGS.contains(&flag)) {
        return Ok(Some(Vec::new()));
    }
    for unsure in [Unsure::Keep, Unsure::Drop, Unsure::DropHuge] {
        let ranges = read_again(&entry.vma, unsure)?;
        if bytes(&ranges) == entry.rss_bytes {
            return Ok(Some(ranges));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::MapsLine;

    fn entry(start: u64, end: u64, rss_bytes: u64, flags: &str) -> SmapsEntry {
        let vma = Vma::from(MapsLine {
            start,
            end,
            protection: 3,
            shared: false,
            offset: 0,
            inode: 0,
            name: None,
        });
        SmapsEntry {
            vma,
            rss_bytes,
            flags: flags.to_owned(),
        }
    }

    fn range(start: u64, end: u64) -> ResidentRange {
        ResidentRange {
            start,
            end,
            file: false,
        }
    }

    #[test]
    fn only_a_known_cause_changes_the_ranges() {
        let entries = [
            entry(0x1000, 0x3000, 0x2000, "rd wr"),    // agrees
            entry(0x3000, 0x5000, 0, "rd wr pf io"),   // frames mapped by number
            entry(0x5000, 0x7000, 0x1000, "rd wr hg"), // agrees when read again
            entry(0x7000, 0x9000, 0x1000, "rd wr"),    // no cause known: stays as scanned
        ];
        let read_again = |vma: &Vma, unsure| {
            let found = match (vma.start, unsure) {
                (0x5000, Unsure::Drop) => vec![range(0x6000, 0x7000)],
                _ => vec![range(vma.start, vma.end)],
            };
            Ok(found)
        };
        let corrected = correct(&entries, &[range(0x1000, 0x9000)], read_again).unwrap();
        assert_eq!(corrected, [range(0x1000, 0x3000), range(0x6000, 0x9000)]);
    }
}
