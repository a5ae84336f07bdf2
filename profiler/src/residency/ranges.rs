//! Resident ranges as a list in address order, and what of it the kernel counts as RSS. No I/O.

use super::{ResidentRange, Vma, proc_files::vvar_is_rss};

/// Appends `start..end` to a list in address order, growing the last range where it continues it.
pub(super) fn push(ranges: &mut Vec<ResidentRange>, start: u64, end: u64, file: bool) {
    match ranges.last_mut() {
        Some(last) if last.end == start && last.file == file => last.end = end,
        _ => ranges.push(ResidentRange { start, end, file }),
    }
}

/// Bytes of all `ranges`.
pub fn bytes(ranges: &[ResidentRange]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// The part of `ranges` inside `start..end`.
pub fn clip(
    ranges: &[ResidentRange],
    start: u64,
    end: u64,
) -> impl Iterator<Item = ResidentRange> + '_ {
    let first = ranges.partition_point(|range| range.end <= start);
    ranges[first..]
        .iter()
        .take_while(move |range| range.start < end)
        .map(move |range| ResidentRange {
            start: range.start.max(start),
            end: range.end.min(end),
            file: range.file,
        })
}

/// Joins what the page tables say with the VMAs: drops the pages of VMAs that are never RSS, and
/// calls every page of a shared mapping a file page.
///
/// A shared mapping cannot hold an anonymous page, but before Linux 6.11 a huge page of shared
/// memory did not say that it comes from a file (`PM_FILE` was set for small pages only, says the commit
/// "indicate PM_FILE for PMD-mapped file THP").
pub fn settle(vmas: &[Vma], present: &[ResidentRange]) -> Vec<ResidentRange> {
    let mut settled = Vec::with_capacity(present.len());
    let mut rest = present;
    for vma in vmas.iter().filter(|vma| !never_rss(vma)) {
        // Both lists are in address order, so nothing before this VMA is needed again.
        rest = &rest[rest.partition_point(|range| range.end <= vma.start)..];
        for piece in clip(rest, vma.start, vma.end) {
            push(
                &mut settled,
                piece.start,
                piece.end,
                piece.file || vma.shared,
            );
        }
    }
    settled
}

/// The part of `ranges` that lies in no VMA.
pub fn outside(vmas: &[Vma], ranges: &[ResidentRange]) -> Vec<ResidentRange> {
    let mut left = Vec::new();
    for range in ranges {
        let mut start = range.start;
        let first = vmas.partition_point(|vma| vma.end <= range.start);
        for vma in vmas[first..].iter().take_while(|vma| vma.start < range.end) {
            if start < vma.start {
                push(&mut left, start, vma.start, range.file);
            }
            start = vma.end;
        }
        if start < range.end {
            push(&mut left, start, range.end, range.file);
        }
    }
    left
}

/// VMAs whose pages are present in the page tables and never in RSS, as far as the name tells it:
/// kernel pages mapped by frame number, and huge pages of hugetlbfs. Those that only `smaps` gives
/// away are found by [`super::reconcile`].
pub(super) fn never_rss(vma: &Vma) -> bool {
    match vma.name() {
        Some("[vvar]") => !vvar_is_rss(),
        name => matches!(
            name,
            Some("[vvar_vclock]" | "[vsyscall]" | "/anon_hugepage" | "/anon_hugepage (deleted)")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::MapsLine;

    fn vma(start: u64, end: u64, shared: bool, name: Option<&str>) -> Vma {
        Vma::from(MapsLine {
            start,
            end,
            protection: 3,
            shared,
            offset: 0,
            inode: 0,
            name: name.map(str::to_owned),
        })
    }

    fn range(start: u64, end: u64, file: bool) -> ResidentRange {
        ResidentRange { start, end, file }
    }

    #[test]
    fn a_range_that_continues_the_last_one_joins_it() {
        let mut ranges = Vec::new();
        push(&mut ranges, 0x1000, 0x2000, false);
        push(&mut ranges, 0x2000, 0x3000, false);
        push(&mut ranges, 0x3000, 0x4000, true);
        push(&mut ranges, 0x5000, 0x6000, true);
        assert_eq!(
            ranges,
            [
                range(0x1000, 0x3000, false),
                range(0x3000, 0x4000, true),
                range(0x5000, 0x6000, true)
            ]
        );
        assert_eq!(bytes(&ranges), 0x4000);
    }

    #[test]
    fn a_range_over_several_vmas_is_settled_by_each() {
        //  present   |===================|        |==|
        //  VMAs      |-private-|-vclock-|-shared-|     (the last range lies outside every VMA)
        let vmas = [
            vma(0x1000, 0x3000, false, None),
            vma(0x3000, 0x4000, false, Some("[vvar_vclock]")),
            vma(0x4000, 0x6000, true, None),
        ];
        let present = [range(0x1000, 0x5000, false), range(0x7000, 0x8000, false)];
        assert_eq!(
            settle(&vmas, &present),
            [range(0x1000, 0x3000, false), range(0x4000, 0x5000, true)]
        );
    }

    #[test]
    fn what_lies_outside_of_every_vma_is_cut_out() {
        //  ranges  |==================|   |==|
        //  VMAs       |--|   |--|
        let vmas = [
            vma(0x2000, 0x3000, false, None),
            vma(0x5000, 0x6000, false, None),
        ];
        assert_eq!(
            outside(
                &vmas,
                &[range(0x1000, 0x8000, false), range(0xa000, 0xb000, true)]
            ),
            [
                range(0x1000, 0x2000, false),
                range(0x3000, 0x5000, false),
                range(0x6000, 0x8000, false),
                range(0xa000, 0xb000, true)
            ]
        );
    }

    #[test]
    fn clipping_cuts_at_both_ends() {
        let ranges = [range(0x1000, 0x4000, false), range(0x5000, 0x6000, true)];
        assert_eq!(
            clip(&ranges, 0x2000, 0x5800).collect::<Vec<_>>(),
            [range(0x2000, 0x4000, false), range(0x5000, 0x5800, true)]
        );
        assert_eq!(clip(&ranges, 0x4000, 0x5000).count(), 0);
    }
}
