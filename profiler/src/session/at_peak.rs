//! The tree as it was at the candidate for the peak, and its composition.
//!
//! The ledger tells *which pages* were resident, and the ring tells *when* that was, in order with
//! the calls that shape the address spaces. So a second tree is kept that stands still at the latest
//! candidate: later events wait, and are applied only when a newer candidate comes. Every event is
//! applied twice in all, and nothing is ever copied.
//!
//! ```text
//! ring     mmap  munmap  PEAK 1  munmap  mmap  PEAK 2  munmap
//! tree     ------------------------------------------>|
//! later                                                 munmap
//! ```
//!
//! What only `/proc/PID/maps` knows (paths, what exec mapped) is collected whenever that file is
//! read, before the candidate or after it.

use std::{collections::HashMap, ops::Range, sync::Arc};

use rangemap::RangeMap;

use profiler_ebpf::ledger_wire::Space;

use super::analysis::Analysis;
use crate::{
    classify::compose::{Composition, compose},
    events::{Call, Event},
    regions::{AddressSpace, Origin, OriginKind, Piece, ProcessTree, compare},
    residency::{
        Method, ProcessSnapshot, ResidentRange, Snapshot, Vma,
        ledger::Ledger,
        ranges::{bytes, outside, settle},
    },
    units::{MIB, PAGE},
};

/// How far below the `[stack]` that was seen the main stack may reach: its default limit.
const STACK_REACH: u64 = 8 * MIB;
/// What lies above the place where it began: arguments and environment, three quarters of 8 MiB at most
/// (`bprm_stack_limits`, fs/exec.c).
const ARGUMENTS: u64 = 6 * MIB;

/// See the module.
#[derive(Debug)]
pub struct AtPeak {
    tree: ProcessTree,
    later: Vec<Event>,
    /// When each process last exec'd: now, and at the candidate.
    image_now: HashMap<u32, u64>,
    image_then: HashMap<u32, u64>,
    /// Mappings that were seen, by process and image. `start` and `end` are left as they were seen.
    seen: HashMap<(u32, u64), RangeMap<u64, Vma>>,
    /// RSS less PSS when a process was last scanned.
    shared_bytes: HashMap<u32, u64>,
    epoch: u32,
}

/// How well bits and counters agree, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreement {
    /// Counted by the kernel, in no bit.
    pub missing_bytes: u64,
    /// In a bit, not counted by the kernel.
    pub extra_bytes: u64,
    /// In a bit, but in no mapping at that time: came after the candidate.
    pub unmapped_bytes: u64,
}

impl AtPeak {
    /// Starts with the process that was launched.
    pub fn new(root: u32) -> AtPeak {
        AtPeak {
            tree: ProcessTree::new(root),
            later: Vec::new(),
            image_now: HashMap::new(),
            image_then: HashMap::new(),
            seen: HashMap::new(),
            shared_bytes: HashMap::new(),
            epoch: 0,
        }
    }

    /// Takes an event, in the order of the ring.
    pub fn event(&mut self, event: &Event) {
        if let Call::Exec { .. } = event.call {
            self.image_now.insert(event.tgid, event.ended_ns);
        }
        let Call::PeakCandidate { epoch, .. } = event.call else {
            self.later.push(event.clone());
            return;
        };
        self.epoch = epoch;
        let mut last_act: HashMap<u32, usize> = HashMap::new();
        for (index, event) in self.later.iter().enumerate() {
            if event.call != Call::Exit {
                last_act.insert(event.tgid, index);
            }
        }
        // Memory is not removed by the exits that a process ends with, so the peak was there before
        // them already, and the stacks had their threads. They wait.
        let tree = &mut self.tree;
        let mut index = 0;
        self.later.retain(|event| {
            let waits = last_act.get(&event.tgid).is_none_or(|&last| index > last);
            index += 1;
            if !waits {
                tree.apply(event);
            }
            waits
        });
        self.image_then.clone_from(&self.image_now);
    }

    /// Takes what `/proc/PID/maps` shows now.
    pub fn maps(&mut self, tgid: u32, vmas: &[Vma]) {
        let image = self.image_now.get(&tgid).copied().unwrap_or(0);
        let seen = self.seen.entry((tgid, image)).or_default();
        for vma in vmas.iter().filter(|vma| vma.start < vma.end) {
            seen.insert(vma.start..vma.end, vma.clone());
        }
    }

    /// Takes what a scan found out about sharing.
    pub fn scanned(&mut self, process: &ProcessSnapshot) {
        self.maps(process.tgid, &process.vmas);
        let shared = process.rss_bytes.saturating_sub(process.pss_bytes);
        self.shared_bytes.insert(process.tgid, shared);
    }

    /// The composition at the candidate; `None` before the first one. `present` is what the page
    /// tables of processes that still live hold, read before the ledger was. What adapters found is taken
    /// from the look nearest to that moment.
    pub fn compose(
        &mut self,
        ledger: &Ledger,
        present: &HashMap<u32, Vec<ResidentRange>>,
        analysis: &Analysis,
    ) -> Option<(Composition, Agreement)> {
        if ledger.state.epoch == 0 || ledger.state.epoch != self.epoch {
            return None;
        }
        let mut agreement = Agreement::default();
        let mut processes = Vec::new();
        for index in ledger.at_candidate() {
            let space = &ledger.spaces[index];
            let none = Vec::new();
            let now = match space.users {
                0 => &none,
                _ => present.get(&space.tgid).unwrap_or(&none),
            };
            let bits = ledger.resident(index, now);
            let (snapshot, unmapped) = self.process(space, &bits);
            agreement.unmapped_bytes += unmapped;
            agreement.missing_bytes += snapshot.unexplained_bytes.max(0).unsigned_abs();
            agreement.extra_bytes += snapshot.unexplained_bytes.min(0).unsigned_abs();
            processes.push(snapshot);
        }
        analysis.add_open_files(&mut processes);
        let snapshot = Snapshot {
            taken_ns: ledger.state.candidate_ns,
            method: Method::default(),
            processes,
        };
        let divisions = analysis
            .looks_nearest(ledger.state.candidate_ns)
            .into_iter()
            .filter(|(tgid, look)| *self.image_then.get(tgid).unwrap_or(&0) == look.image_ns)
            .map(|(tgid, look)| (tgid, Arc::clone(&look.division)))
            .collect();
        let composition = compose(&snapshot, &self.tree, &analysis.images, &divisions);
        Some((composition, agreement))
    }

    /// One process at the candidate, and the bytes in `bits` that no mapping of that time explains.
    fn process(&mut self, of: &Space, bits: &[ResidentRange]) -> (ProcessSnapshot, u64) {
        let (tgid, counted) = (of.tgid, of.candidate_pages * PAGE);
        let image = self.image_then.get(&tgid).copied().unwrap_or(0);
        let seen = self.seen.get(&(tgid, image));
        let mut vmas = match (self.tree.space(tgid), seen) {
            (Some(space), seen) => mappings(space, seen, bits),
            (None, Some(seen)) => mappings(&AddressSpace::empty(), Some(seen), bits),
            (None, None) => Vec::new(),
        };
        // What exec mapped has no event: taken over from what was seen.
        if let Some(space) = self.tree.space_mut(tgid) {
            compare(space, &vmas);
        }
        let mut resident = settle(&vmas, bits);
        let mut unmapped = bytes(bits) - bytes(&resident);
        let outside = outside(&vmas, bits);
        // Pages outside of every mapping came after the candidate, unless the kernel counted them.
        if unmapped > 0 && counted == bytes(&resident) + bytes(&outside) {
            vmas.extend(outside.iter().map(|range| unseen(range, of.start_stack)));
            vmas.sort_by_key(|vma| vma.start);
            resident = settle(&vmas, bits);
            unmapped = 0;
        }
        let found = bytes(&resident);
        let rss_bytes = counted.max(found);
        let threads = self
            .tree
            .process(tgid)
            .map_or(0, |process| process.threads.len());
        let shared = self.shared_bytes.get(&tgid).copied().unwrap_or(0);
        let snapshot = ProcessSnapshot {
            tgid,
            vmas,
            rss_bytes,
            pss_bytes: rss_bytes.saturating_sub(shared),
            vm_hwm_bytes: 0,
            page_tables_bytes: of.candidate_table_bytes,
            threads: threads as u64,
            mappings: of.candidate_mappings,
            files: None,
            pss_shmem_bytes: None,
            unexplained_bytes: counted.cast_signed() - found.cast_signed(),
            resident,
        };
        (snapshot, unmapped)
    }
}

/// A mapping that no call made (exec did) and that was gone before `/proc/PID/maps` was read. The main
/// stack is known all the same, by the address where it began.
fn unseen(range: &ResidentRange, start_stack: u64) -> Vma {
    let stack = start_stack.saturating_sub(STACK_REACH)..start_stack.saturating_add(ARGUMENTS);
    let name = match stack.contains(&range.start) {
        true => "[stack]",
        false => "mapped by exec, gone before it was seen",
    };
    Vma {
        start: range.start,
        end: range.end,
        protection: 0,
        shared: false,
        offset: 0,
        inode: 0,
        name: Some(name.into()),
    }
}

/// The mappings at the candidate: the region map's pieces, with names where they were seen, and what
/// was seen and resident but in no piece (what exec mapped).
fn mappings(
    space: &AddressSpace,
    seen: Option<&RangeMap<u64, Vma>>,
    bits: &[ResidentRange],
) -> Vec<Vma> {
    let empty = RangeMap::new();
    let seen = seen.unwrap_or(&empty);
    let mut vmas = Vec::new();
    let mut covered: RangeMap<u64, ()> = RangeMap::new();
    for (range, piece) in space.pieces() {
        covered.insert(range.clone(), ());
        let origin = space.origin(piece.origin);
        let mut next = range.start;
        for (known, vma) in seen.overlapping(&range) {
            if !agrees(origin, vma) {
                continue;
            }
            let (start, end) = (known.start.max(range.start), known.end.min(range.end));
            if next < start {
                vmas.push(made_up(next..start, origin, piece));
            }
            vmas.push(Vma {
                start,
                end,
                protection: piece.protection,
                offset: vma.offset + (start - known.start),
                ..vma.clone()
            });
            next = end;
        }
        if next < range.end {
            vmas.push(made_up(next..range.end, origin, piece));
        }
    }
    for (known, vma) in seen.iter() {
        let is_stack = vma.name.as_deref() == Some("[stack]");
        let start = if is_stack {
            known.start.saturating_sub(STACK_REACH)
        } else {
            known.start
        };
        for gap in covered.gaps(&(start..known.end)).collect::<Vec<_>>() {
            let first = bits.partition_point(|range| range.end <= gap.start);
            let Some(resident) = bits.get(first).filter(|range| range.start < gap.end) else {
                continue;
            };
            // The stack reaches down to its lowest page; any other mapping is there as a whole.
            let start = match is_stack {
                true => gap.start.max(resident.start.min(known.start)),
                false => gap.start,
            };
            covered.insert(start..gap.end, ());
            vmas.push(Vma {
                start,
                end: gap.end,
                ..vma.clone()
            });
        }
    }
    vmas.sort_by_key(|vma| vma.start);
    vmas
}

/// Whether what was seen at another time can be this mapping: both shared or both a private file or
/// both neither.
fn agrees(origin: &Origin, vma: &Vma) -> bool {
    match origin.kind {
        OriginKind::Mmap { .. } => {
            is_shared(origin) == vma.shared && (vma.shared || origin.is_file() == (vma.inode != 0))
        }
        OriginKind::Brk => vma.inode == 0,
        OriginKind::Exec | OriginKind::Unknown => true,
    }
}

fn is_shared(origin: &Origin) -> bool {
    let kind = origin.mmap_flags() as i32 & libc::MAP_TYPE;
    matches!(kind, libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE)
}

/// A mapping that was gone before anyone looked: what its call tells.
fn made_up(range: Range<u64>, origin: &Origin, piece: &Piece) -> Vma {
    let huge = origin.has_flag(libc::MAP_HUGETLB);
    Vma {
        start: range.start,
        end: range.end,
        protection: piece.protection,
        shared: is_shared(origin),
        offset: 0,
        inode: u64::from(origin.is_file() || is_shared(origin)),
        name: match origin.kind {
            OriginKind::Brk => Some("[heap]".into()),
            // Never RSS, and shared memory: known by these names (mm/shmem.c, mm/mmap.c).
            _ if huge => Some("/anon_hugepage".into()),
            _ if is_shared(origin) && !origin.is_file() => Some("/dev/zero (deleted)".into()),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use profiler_ebpf::ledger_wire::{CHUNK_BYTES, Chunk, State};

    const TGID: u32 = 7;

    fn event(call: Call) -> Event {
        Event {
            began_ns: 1,
            ended_ns: 1,
            tgid: TGID,
            tid: TGID,
            call,
        }
    }

    fn anonymous(address: u64, length: u64) -> Event {
        event(Call::Mmap {
            hint: 0,
            length,
            protection: 3,
            flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
            fd: -1,
            offset: 0,
            address,
        })
    }

    #[test]
    fn a_mapping_that_is_gone_again_is_in_the_composition_at_the_candidate() {
        let mut at_peak = AtPeak::new(TGID);
        let exec = event(Call::Exec {
            path: "/bin/x".into(),
        });
        let candidate = |epoch| event(Call::PeakCandidate { epoch, pages: 3 });
        let gone = event(Call::Munmap {
            address: 0,
            length: CHUNK_BYTES,
        });
        for event in [
            exec,
            anonymous(0, CHUNK_BYTES),
            candidate(1),
            gone,
            anonymous(1 << 30, 8192),
        ] {
            at_peak.event(&event);
        }
        let mut bits = [0; 8];
        bits[0] = 0b111;
        let ledger = Ledger::of(
            State {
                epoch: 1,
                candidate_pages: 3,
                candidate_ns: 9,
                ..State::default()
            },
            vec![Space {
                tgid: TGID,
                candidate_pages: 3,
                users: 1,
                ..Space::default()
            }],
            vec![Chunk {
                key: 0,
                epoch: 1,
                begun: 1,
                taken: 1,
                bits,
            }],
        );
        // Two pages that came after the candidate, in a mapping made after it.
        let now = ResidentRange {
            start: 1 << 30,
            end: (1 << 30) + 8192,
            file: false,
        };
        let present = HashMap::from([(TGID, vec![now])]);
        let (composition, agreement) = at_peak
            .compose(&ledger, &present, &Analysis::new(TGID))
            .expect("a candidate");
        assert_eq!(composition.rss_bytes, 3 * PAGE);
        assert_eq!(composition.regions.len(), 1);
        assert_eq!(composition.regions[0].range, 0..CHUNK_BYTES);
        assert_eq!(composition.regions[0].resident_bytes, 3 * PAGE);
        assert_eq!(
            agreement,
            Agreement {
                unmapped_bytes: 8192,
                ..Agreement::default()
            }
        );
    }

    #[test]
    fn the_exits_that_a_process_ends_with_come_after_its_peak() {
        let mut at_peak = AtPeak::new(TGID);
        let thread = |tid, call| Event { tid, ..event(call) };
        let start = event(Call::Fork {
            child_tid: TGID + 1,
            flags: (libc::CLONE_THREAD | libc::CLONE_VM) as u64,
            stack: 0,
            stack_top: 0,
        });
        let candidate = |epoch| event(Call::PeakCandidate { epoch, pages: 1 });
        let threads = |at_peak: &AtPeak| at_peak.tree.process(TGID).map(|it| it.threads.len());
        for event in [start, thread(TGID + 1, Call::Exit), candidate(1)] {
            at_peak.event(&event);
        }
        assert_eq!(threads(&at_peak), Some(2), "nothing came after the exit");
        for event in [anonymous(0, 4096), event(Call::Exit), candidate(2)] {
            at_peak.event(&event);
        }
        assert_eq!(
            threads(&at_peak),
            Some(1),
            "the first exit lies before a call"
        );
    }

    #[test]
    fn counted_pages_of_no_known_mapping_are_kept_and_named_so() {
        let mut at_peak = AtPeak::new(TGID);
        for event in [
            event(Call::Exec {
                path: "/bin/x".into(),
            }),
            anonymous(0, 4096),
        ] {
            at_peak.event(&event);
        }
        at_peak.event(&event(Call::PeakCandidate { epoch: 1, pages: 2 }));
        let range = |start, end| ResidentRange {
            start,
            end,
            file: false,
        };
        let start_stack = 1 << 40;
        let stack = range(start_stack - PAGE, start_stack + PAGE);
        let bits = [range(0, 2 * PAGE), stack];
        let counting = |candidate_pages| Space {
            tgid: TGID,
            candidate_pages,
            start_stack,
            ..Space::default()
        };
        let (snapshot, unmapped) = at_peak.process(&counting(4), &bits);
        assert_eq!((snapshot.unexplained_bytes, unmapped), (0, 0));
        let [_, image, stack] = &snapshot.vmas[..] else {
            panic!("{:?}", snapshot.vmas);
        };
        assert_eq!(image.start..image.end, PAGE..2 * PAGE);
        assert_eq!(stack.name.as_deref(), Some("[stack]"));
        // Had the kernel not counted them, they would have come later.
        let (snapshot, unmapped) = at_peak.process(&counting(1), &bits);
        assert_eq!((snapshot.unexplained_bytes, unmapped), (0, 3 * PAGE));
    }
}
