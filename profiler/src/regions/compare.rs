//! Agreement with the kernel: [`compare()`] holds an [`AddressSpace`] against `/proc/PID/maps`.

use std::collections::VecDeque;
use std::ops::Range;

use rangemap::RangeSet;
use serde::{Deserialize, Serialize};

use crate::residency::Vma;

use super::address_space::cut;
use super::{AddressSpace, Advice, NO_ACCESS, Origin, OriginKind, Piece, rwx};

/// How far the region map agreed with `/proc/PID/maps`. All in bytes of address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Comparison {
    /// Mapped by the kernel (without `[vsyscall]`, which is in no address space).
    pub mapped_bytes: u64,
    /// Mapped by the kernel and taken over without blame: what exec put there, growth of the main
    /// stack, or everything when the profiler was attached late.
    pub adopted_bytes: u64,
    /// Mapped by the kernel, not by us: a call was lost.
    pub missing_bytes: u64,
    /// Mapped by us, not by the kernel: a removal was lost.
    pub stale_bytes: u64,
    /// Mapped by both with another protection.
    pub protection_bytes: u64,
    /// Mapped by both, but one as a file and the other anonymous, or one shared and the other
    /// private: a removal and a call were lost. Not counted in `protection_bytes` as well.
    pub backing_bytes: u64,
}

impl Comparison {
    /// Not one byte of disagreement.
    pub fn agrees(&self) -> bool {
        self.disagreement_bytes() == 0
    }

    /// Bytes in which map and kernel differed.
    pub fn disagreement_bytes(&self) -> u64 {
        self.missing_bytes + self.stale_bytes + self.protection_bytes + self.backing_bytes
    }
}

/// Holds `space` against `vmas` (`/proc/PID/maps` of the same process, in address order, read while
/// the process stood still and after all its events were applied), counts the bytes in which they
/// differ, and sets `space` to what the kernel says. After lost events this is the resync.
///
/// What the kernel mapped by itself has no event. The first comparison after exec adopts it as
/// [`OriginKind::Exec`]: the image and `ld.so` with their bss, the heap before the first `brk`, the
/// main stack, the vdso. Later ones let only the stacks grow downwards. Every other byte that no
/// event explains becomes [`OriginKind::Unknown`] and is counted.
pub fn compare(space: &mut AddressSpace, vmas: &[Vma]) -> Comparison {
    let vmas: Vec<&Vma> = vmas
        .iter()
        .filter(|vma| vma.start < vma.end && vma.name() != Some("[vsyscall]"))
        .collect();
    let images = images(space, &vmas);
    let mut result = Comparison::default();
    drop_stale(space, &vmas, &mut result);
    for vma in &vmas {
        result.mapped_bytes += vma.end - vma.start;
        check_known(space, vma, &mut result);
        adopt_gaps(space, vma, &images, &mut result);
    }
    if let Some(heap) = vmas.iter().rfind(|vma| is_named(vma, "[heap]")) {
        space.program_break = Some(heap.end);
    }
    space.settle();
    result
}

fn is_named(vma: &Vma, name: &str) -> bool {
    vma.name() == Some(name)
}

/// Removes what the kernel does not have.
fn drop_stale(space: &mut AddressSpace, vmas: &[&Vma], result: &mut Comparison) {
    let mapped: RangeSet<u64> = vmas.iter().map(|vma| vma.start..vma.end).collect();
    let stale: Vec<_> = space
        .pieces()
        .flat_map(|(range, _)| mapped.gaps(&range).collect::<Vec<_>>())
        .collect();
    for range in stale {
        result.stale_bytes += range.end - range.start;
        space.resync(range, None);
    }
}

/// Checks what both have in the range of `vma`.
fn check_known(space: &mut AddressSpace, vma: &Vma, result: &mut Comparison) {
    let known: Vec<_> = space
        .overlapping(&(vma.start..vma.end))
        .map(|(range, piece)| (range, *piece))
        .collect();
    for (range, piece) in known {
        let bytes = range.end - range.start;
        if !backing_agrees(space.origin(piece.origin), vma) {
            result.backing_bytes += bytes;
            adopt(space, vma, range, OriginKind::Unknown);
        } else if piece.protection != rwx(vma.protection) {
            result.protection_bytes += bytes;
            let protection = rwx(vma.protection);
            let ever_protected_none = piece.ever_protected_none || protection == NO_ACCESS;
            let repaired = Piece {
                protection,
                ever_protected_none,
                ..piece
            };
            space.resync(range, Some(repaired));
        }
    }
}

/// Anonymous shared memory is a file to the kernel (`/dev/zero`), and so are huge pages.
fn backing_agrees(origin: &Origin, vma: &Vma) -> bool {
    let file = vma.inode() != 0;
    match origin.kind {
        OriginKind::Mmap { flags, .. } => {
            let shared = matches!(
                flags as i32 & libc::MAP_TYPE,
                libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE
            );
            let huge = origin.has_flag(libc::MAP_HUGETLB);
            vma.shared == shared && file == (origin.is_file() || shared || huge)
        }
        OriginKind::Brk => !file && !vma.shared,
        // Taken from the kernel's own word.
        OriginKind::Exec | OriginKind::Unknown => true,
    }
}

/// Takes over what only the kernel has in the range of `vma`.
fn adopt_gaps(space: &mut AddressSpace, vma: &Vma, images: &[Range<u64>], result: &mut Comparison) {
    let mut gaps: VecDeque<_> = space.gaps(&(vma.start..vma.end)).into();
    while let Some(gap) = gaps.pop_front() {
        if grow_down(space, vma, &gap) {
            result.adopted_bytes += gap.end - gap.start;
            continue;
        }
        let (part, told) = first_part(space, &gap);
        if part.end < gap.end {
            gaps.push_front(part.end..gap.end);
        }
        let kind = match &space.unseen {
            _ if is_kernels_own(vma) => Some(OriginKind::Exec),
            Some(unseen) if !told && unseen.kind == OriginKind::Unknown => {
                Some(OriginKind::Unknown)
            }
            Some(_) if !told && is_put_by_exec(vma, images) => Some(OriginKind::Exec),
            Some(_) | None => None,
        };
        let bytes = part.end - part.start;
        match kind {
            Some(_) => result.adopted_bytes += bytes,
            None => result.missing_bytes += bytes,
        }
        adopt(space, vma, part, kind.unwrap_or(OriginKind::Unknown));
    }
}

/// The part of `gap` from its start about which events were alike: told of, or never.
fn first_part(space: &AddressSpace, gap: &Range<u64>) -> (Range<u64>, bool) {
    let Some(unseen) = &space.unseen else {
        return (gap.clone(), false);
    };
    match unseen.touched.overlapping(gap).next() {
        Some(touched) if touched.start <= gap.start => (cut(touched, gap), true),
        Some(touched) => (gap.start..touched.start, false),
        None => (gap.clone(), false),
    }
}

/// The main stack and `MAP_GROWSDOWN` mappings grow by themselves when touched below their start.
fn grow_down(space: &mut AddressSpace, vma: &Vma, gap: &Range<u64>) -> bool {
    if gap.end >= vma.end {
        return false;
    }
    let Some((_, above)) = space.piece_at(gap.end) else {
        return false;
    };
    let above = *above;
    let grows =
        is_named(vma, "[stack]") || space.origin(above.origin).has_flag(libc::MAP_GROWSDOWN);
    if grows {
        space.resync(gap.clone(), Some(above));
    }
    grows
}

/// Mappings that only the kernel can make, whenever they appear.
fn is_kernels_own(vma: &Vma) -> bool {
    let names = ["[stack]", "[vdso]", "[vvar]", "[vvar_vclock]", "[uprobes]"];
    vma.name().is_some_and(|name| names.contains(&name))
}

fn is_put_by_exec(vma: &Vma, images: &[Range<u64>]) -> bool {
    is_named(vma, "[heap]")
        || images
            .iter()
            .any(|image| image.start <= vma.start && vma.end <= image.end)
}

/// Where exec put the program and its `ld.so`: the files that no event explains, of which there can
/// be two, with the anonymous memory between and right after their mappings (bss).
///
/// ```text
/// 55..    |prog r|prog rx|prog rw|bss|              first unexplained file
/// 7f..        |libc, by mmap: explained|
/// 7f..                      |ld.so|ld.so|ld.so|bss|  last unexplained file
/// ```
fn images(space: &AddressSpace, vmas: &[&Vma]) -> Vec<Range<u64>> {
    let files: Vec<&Vma> = vmas
        .iter()
        .filter(|vma| vma.inode() != 0 && has_unseen_bytes(space, vma))
        .copied()
        .collect();
    let (Some(first), Some(last)) = (files.first(), files.last()) else {
        return Vec::new();
    };
    let mut images = vec![extent(&files, first)];
    if !is_same_file(first, last) {
        images.push(extent(&files, last));
    }
    for image in &mut images {
        for vma in vmas.iter().filter(|vma| vma.inode() == 0) {
            if vma.start == image.end && vma.name().is_none() {
                image.end = vma.end;
            }
        }
    }
    images
}

fn is_same_file(one: &Vma, other: &Vma) -> bool {
    one.inode() == other.inode() && one.name() == other.name()
}

fn extent(files: &[&Vma], file: &Vma) -> Range<u64> {
    let of_file = || files.iter().filter(|vma| is_same_file(vma, file));
    let start = of_file().map(|vma| vma.start).min();
    let end = of_file().map(|vma| vma.end).max();
    start.unwrap_or(file.start)..end.unwrap_or(file.end)
}

fn has_unseen_bytes(space: &AddressSpace, vma: &Vma) -> bool {
    let range = vma.start..vma.end;
    space.unseen.is_some()
        && space
            .gaps(&range)
            .iter()
            .any(|gap| first_unseen(space, gap))
}

fn first_unseen(space: &AddressSpace, gap: &Range<u64>) -> bool {
    let unseen = space.unseen.as_ref();
    unseen.is_some_and(|unseen| unseen.touched.gaps(gap).next().is_some())
}

/// Enters `range` as the kernel describes it.
fn adopt(space: &mut AddressSpace, vma: &Vma, range: Range<u64>, kind: OriginKind) {
    let born_ns = match (&space.unseen, &kind) {
        (Some(unseen), OriginKind::Exec) => unseen.born_ns,
        _ => 0,
    };
    let name = vma
        .name()
        .and_then(|name| name.strip_prefix("[anon:")?.strip_suffix(']'))
        .map(|name| space.name_id(name));
    let protection = rwx(vma.protection);
    let piece = Piece {
        origin: space.add_origin(kind, 0, &range),
        reserved_by: None,
        protection,
        advice: Advice::empty(),
        ever_protected_none: protection == NO_ACCESS,
        name,
        born_ns,
    };
    space.resync(range, Some(piece));
}

#[cfg(test)]
mod tests {
    use super::super::script::*;
    use super::*;
    use crate::events::Call;

    const EXEC_NS: u64 = 5;

    /// What the kernel shows right after exec of a dynamically linked program.
    fn image() -> Vec<Vma> {
        vec![
            vma(P * 10..P * 11, R, "/bin/prog"),
            vma(P * 11..P * 13, RX, "/bin/prog"),
            vma(P * 13..P * 14, RW, "/bin/prog"),
            vma(P * 14..P * 15, RW, ""),
            vma(P * 20..P * 22, RW, "[heap]"),
            vma(P * 500..P * 501, RX, "/lib/ld.so"),
            vma(P * 501..P * 502, RW, "/lib/ld.so"),
            vma(P * 502..P * 503, RW, ""),
            vma(P * 600..P * 610, RW, "[stack]"),
            vma(P * 700..P * 701, RX, "[vdso]"),
            vma(P * 900..P * 901, RX, "[vsyscall]"),
        ]
    }

    fn with(mut vmas: Vec<Vma>, more: impl IntoIterator<Item = Vma>) -> Vec<Vma> {
        vmas.extend(more);
        vmas.sort_by_key(|vma| vma.start);
        vmas
    }

    fn exec_then(calls: impl IntoIterator<Item = Call>) -> AddressSpace {
        let mut space = AddressSpace::after_exec(EXEC_NS);
        for event in in_order(calls) {
            space.apply(&event);
        }
        space
    }

    fn kinds(space: &AddressSpace) -> Vec<(u64, &'static str)> {
        space
            .pieces()
            .map(|(range, piece)| {
                let kind = match space.origin(piece.origin).kind {
                    OriginKind::Mmap { .. } => "mmap",
                    OriginKind::Brk => "brk",
                    OriginKind::Exec => "exec",
                    OriginKind::Unknown => "unknown",
                };
                (range.start / P, kind)
            })
            .collect()
    }

    #[test]
    fn the_first_comparison_adopts_what_exec_put_there() {
        let mut space = exec_then([]);
        let pages = 1 + 2 + 1 + 1 + 2 + 1 + 1 + 1 + 10 + 1;
        assert_eq!(
            compare(&mut space, &image()),
            Comparison {
                mapped_bytes: P * pages,
                adopted_bytes: P * pages,
                ..Comparison::default()
            }
        );
        assert!(kinds(&space).iter().all(|(_, kind)| *kind == "exec"));
        assert_eq!(space.len(), 10);
        let (_, stack) = space.piece_at(P * 605).expect("adopted");
        assert_eq!(stack.born_ns, EXEC_NS);
        assert_eq!(space.program_break(), Some(P * 22));
        assert!(compare(&mut space, &image()).agrees());
    }

    /// `ld.so` protects its relocated data and unmaps parts before we first look.
    #[test]
    fn calls_on_the_image_before_the_first_comparison_do_not_count() {
        let mut space = exec_then([
            mprotect(P * 13..P * 14, R),
            munmap(P * 502..P * 503),
            mmap(P * 300..P * 302, R, libc::MAP_PRIVATE as u32),
            mmap(P * 301..P * 302, RW, ANON | FIXED),
        ]);
        let vmas: Vec<_> = image()
            .into_iter()
            .filter(|vma| vma.start != P * 502)
            .map(|mut vma| {
                if vma.start == P * 13 {
                    vma.protection = R;
                }
                vma
            })
            .collect();
        let library = [
            vma(P * 300..P * 301, R, "/lib/libc.so"),
            vma(P * 301..P * 302, RW, ""),
        ];
        let result = compare(&mut space, &with(vmas, library));
        assert!(result.agrees(), "{result:?}");
        let library: Vec<_> = text(&space)
            .into_iter()
            .filter(|line| line.starts_with("30"))
            .collect();
        assert_eq!(library, ["300-301 r-- #0", "301-302 rw- #1 on #0"]);
    }

    #[test]
    fn the_heap_that_brk_explains_is_not_adopted() {
        let mut space = exec_then([brk(P * 20), brk(P * 22)]);
        assert!(compare(&mut space, &image()).agrees());
        assert!(kinds(&space).contains(&(20, "brk")));
    }

    /// Exec maps at most two files, so a third one has lost its `mmap`.
    #[test]
    fn a_third_file_without_a_call_is_missing_even_at_first() {
        let mut space = exec_then([]);
        let more = [
            vma(P * 300..P * 303, R, "/lib/libc.so"),
            vma(P * 310..P * 311, RW, ""),
        ];
        let result = compare(&mut space, &with(image(), more));
        assert_eq!(result.missing_bytes, P * 4);
        assert!(kinds(&space).contains(&(300, "unknown")));
        assert!(kinds(&space).contains(&(310, "unknown")));
    }

    /// What an event unmapped cannot have been there since exec.
    #[test]
    fn a_range_that_events_spoke_of_is_not_adopted() {
        let mut space = exec_then([munmap(P * 12..P * 13)]);
        let result = compare(&mut space, &image());
        assert_eq!(result.missing_bytes, P);
        assert!(kinds(&space).contains(&(12, "unknown")));
    }

    #[test]
    fn each_kind_of_disagreement_is_counted_and_repaired() {
        let mut space = after(in_order([
            mmap(0..P * 4, RW, ANON),
            mmap(P * 6..P * 8, RW, ANON),
            mmap(P * 10..P * 12, R, libc::MAP_PRIVATE as u32),
        ]));
        let vmas = [
            // 0: stale.
            vma(P..P * 3, RW, ""),
            vma(P * 3..P * 4, NONE, ""),
            // 4-6: missing.
            vma(P * 4..P * 8, RW, "[anon:late]"),
            vma(P * 10..P * 11, R, "/some/file"),
            vma(P * 11..P * 12, R, ""),
        ];
        assert_eq!(
            compare(&mut space, &vmas),
            Comparison {
                mapped_bytes: P * 9,
                adopted_bytes: 0,
                missing_bytes: P * 2,
                stale_bytes: P,
                protection_bytes: P,
                backing_bytes: P,
            }
        );
        assert_eq!(
            text(&space),
            [
                "1-3 rw- #0",
                "3-4 --- #0",
                "4-6 rw- #3 'late'",
                "6-8 rw- #1",
                "10-11 r-- #2",
                "11-12 r-- #4",
            ]
        );
        assert!(compare(&mut space, &vmas).agrees());
    }

    #[test]
    fn shared_memory_that_became_private_is_another_mapping() {
        let shared = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32;
        let mut space = after(in_order([
            mmap(0..P, RW, shared),
            mmap(P..P * 2, RW, shared),
        ]));
        let mut zero = vma(0..P, RW, "/dev/zero (deleted)");
        zero.shared = true;
        let result = compare(&mut space, &[zero, vma(P..P * 2, RW, "")]);
        assert_eq!((result.backing_bytes, result.disagreement_bytes()), (P, P));
    }

    #[test]
    fn the_main_stack_grows_by_itself_at_any_time() {
        let mut space = exec_then([]);
        compare(&mut space, &image());
        let origins = space.origins().len();
        let mut vmas = image();
        vmas[8].start = P * 595;
        let result = compare(&mut space, &vmas);
        assert_eq!((result.adopted_bytes, result.agrees()), (P * 5, true));
        assert_eq!(space.origins().len(), origins);
        assert_eq!(space.piece_at(P * 596).expect("grown").0, P * 595..P * 610);
    }

    #[test]
    fn a_mapping_that_grows_down_grows_by_itself() {
        let growing = ANON | libc::MAP_GROWSDOWN as u32;
        let mut space = after(in_order([mmap(P * 8..P * 10, RW, growing)]));
        assert!(compare(&mut space, &[vma(P * 5..P * 10, RW, "")]).agrees());
        assert_eq!(text(&space), ["5-10 rw- #0"]);
    }

    #[test]
    fn after_a_late_attach_everything_is_unknown_and_nothing_counts() {
        let mut space = AddressSpace::unknown();
        let more = [vma(P * 300..P * 303, R, "/lib/libc.so")];
        let result = compare(&mut space, &with(image(), more.clone()));
        assert!(result.agrees());
        assert!(kinds(&space).contains(&(300, "unknown")));
        assert!(kinds(&space).contains(&(600, "exec")));
        // From then on we should know.
        let again = compare(
            &mut space,
            &with(image(), [more[0].clone(), vma(0..P, RW, "")]),
        );
        assert_eq!(again.missing_bytes, P);
    }

    #[test]
    fn a_lost_growth_of_the_heap_is_found_and_later_brk_calls_fit() {
        let mut space = after(in_order([brk(P * 20), brk(P * 22)]));
        let result = compare(&mut space, &[vma(P * 20..P * 30, RW, "[heap]")]);
        assert_eq!(result.missing_bytes, P * 8);
        space.apply(&at(1000, brk(P * 25)));
        assert!(compare(&mut space, &[vma(P * 20..P * 25, RW, "[heap]")]).agrees());
    }
}
