//! Present pages by the `PAGEMAP_SCAN` ioctl on `/proc/PID/pagemap` (kernel 6.7).
//!
//! Described in the kernel's `Documentation/admin-guide/mm/pagemap.rst`; structs and constants from
//! `include/uapi/linux/fs.h`:
//! <https://github.com/torvalds/linux/blob/v6.7/include/uapi/linux/fs.h>.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::ResidentRange;
use super::ranges::push;
use crate::units::PAGE;

/// `struct page_region`: a run of pages of the same categories.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    /// Of this struct, in bytes; the kernel checks it.
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    /// Out: where the walk stopped, `end` when it came to its end.
    walk_end: u64,
    /// Address of the `PageRegion`s to fill.
    vec: u64,
    /// Their number.
    vec_len: u64,
    /// 0: no limit.
    max_pages: u64,
    /// A page matches when all of `category_mask` are set, those of `category_inverted` being
    /// turned first.
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    /// The categories to tell apart in the answer.
    return_mask: u64,
}

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

// `PAGEMAP_SCAN` is _IOWR('f', 16, struct pm_scan_arg). It returns the number of regions filled.
nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PmScanArg);

/// Regions fetched by one call: 1.5 MiB of them. A target with more fragments takes several calls.
const REGIONS_PER_CALL: usize = 65_536;

/// The ranges in `start..end` (page aligned, user addresses) with a page present that is not the
/// zero page, in address order.
///
/// Guard pages and swapped pages are not present, so nothing more is needed to leave them out.
pub(super) fn present_ranges(
    pagemap: &File,
    start: u64,
    end: u64,
) -> io::Result<Vec<ResidentRange>> {
    let mut found = Vec::new();
    let mut regions = vec![PageRegion::default(); REGIONS_PER_CALL];
    let mut from = start;
    while from < end {
        let (filled, walk_end) = call(pagemap, from, end, &mut regions)?;
        for region in &regions[..filled] {
            let file = region.categories & PAGE_IS_FILE != 0;
            push(&mut found, region.start, region.end, file);
        }
        if walk_end <= from {
            return Err(io::Error::other(format!(
                "PAGEMAP_SCAN made no progress at {from:#x}"
            )));
        }
        from = walk_end;
    }
    Ok(found)
}

/// Whether the kernel has the ioctl: tries it on one page of ours.
pub(super) fn supported() -> bool {
    let Ok(pagemap) = File::open("/proc/self/pagemap") else {
        return false;
    };
    let here = crate::units::page_floor(&raw const pagemap as u64);
    call(&pagemap, here, here + PAGE, &mut [PageRegion::default()])
        .is_ok_and(|(filled, _)| filled == 1)
}

/// One call; gives the number of regions filled and where the walk stopped.
fn call(
    pagemap: &File,
    start: u64,
    end: u64,
    regions: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        start,
        end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: PAGE_IS_PFNZERO,
        category_mask: PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
        return_mask: PAGE_IS_PRESENT | PAGE_IS_FILE,
        ..PmScanArg::default()
    };
    // SAFETY: `arg` has the layout of struct pm_scan_arg and lives over the call; `vec` and
    // `vec_len` describe `regions`, which is borrowed mutably, of plain integers, so whatever the
    // kernel writes there is a valid value. No flag is set, so the target's pages are only read.
    let filled = unsafe { pagemap_scan(pagemap.as_raw_fd(), &mut arg)? };
    Ok((filled as usize, arg.walk_end))
}
