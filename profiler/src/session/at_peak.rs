//! The tree as it was at the candidate for the peak, and its composition.
//!
//! The ledger tells *which pages* were resident, and the ring tells *when* that was, in order with
//! the calls that shape the address spaces. So a second tree is kept that stands still at the latest
//! candidate: events wait, and those before it are applied when the tree is asked for, or when many wait.
//! Every event is applied twice in all, and nothing is ever copied.
//!
//! ```text
//! ring     mmap  munmap  PEAK 1  munmap  mmap  PEAK 2  munmap
//! tree     ------------------------------------------>|
//! later                                                 munmap
//! ```
//!
//! The tree of 100,000 threads takes five times the events that make it, so while a program runs, they wait:
//! it would have two such trees else.
//!
//! Where there is more than one process, each has a tree of its own beside it, which stands still at the
//! latest candidate for that process' own peak in the same way ([`own_peak`](super::own_peak)).
//!
//! What only `/proc/PID/maps` knows (paths, what exec mapped) is collected whenever that file is
//! read, before the candidate or after it.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
};

use rangemap::RangeMap;

use profiler_ebpf::ledger_wire::Space;

use super::{
    analysis::{Analysis, Look},
    own_peak::{OwnPeak, OwnPeaks},
};
use crate::{
    classify::{
        compose::{Composition, compose},
        division::Division,
    },
    events::{Call, Event, journal::Journal},
    regions::{AddressSpace, Origin, OriginKind, Piece, ProcessTree, compare},
    residency::{
        MapsLine, Method, ProcessSnapshot, ResidentRange, Snapshot, Vma,
        ledger::Ledger,
        ranges::{bytes, outside, settle},
        standing::Standing,
    },
    units::{MIB, PAGE},
};

/// How far below the `[stack]` that was seen the main stack may reach: its default limit.
const STACK_REACH: u64 = 8 * MIB;
/// What lies above the place where it began: arguments and environment, three quarters of 8 MiB at most
/// (`bprm_stack_limits`, fs/exec.c).
const ARGUMENTS: u64 = 6 * MIB;

/// With so many bytes of events, a million and a half, a tree goes on at its next candidate.
const MOST_WAITING: usize = 32 * MIB as usize;

/// See the module.
#[derive(Debug)]
pub struct AtPeak {
    /// The whole tree.
    whole: Still,
    epoch: u32,
    /// The processes, each at its own candidate.
    own: OwnPeaks,
    seen: Seen,
}

/// A tree that stands still at a candidate, and what has happened since.
#[derive(Debug, Clone)]
pub(super) struct Still {
    pub tree: ProcessTree,
    pub later: Journal,
    /// So many of the later events come before the candidate, and have yet to be applied.
    due: usize,
    /// When each process had last exec'd.
    image_then: HashMap<u32, u64>,
}

/// What was seen of mappings and pages, at whatever time.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// When each process last exec'd.
    image_now: HashMap<u32, u64>,
    /// Mappings, by process and image. `start` and `end` are left as they were seen.
    mappings: HashMap<Image, RangeMap<u64, Vma>>,
    /// Of a forked process that has not exec'd: whose image it runs.
    inherited: HashMap<u32, Image>,
    /// RSS less PSS when a process was last scanned.
    shared_bytes: HashMap<u32, u64>,
}

/// A process, and when it exec'd; 0: it never did.
type Image = (u32, u64);

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
            whole: Still::at(ProcessTree::new(root)),
            epoch: 0,
            own: OwnPeaks::default(),
            seen: Seen::default(),
        }
    }

    /// Starts with processes that run already. They stand still meanwhile, and the ledger has not looked yet.
    pub fn of_standing(standing: &[Standing]) -> AtPeak {
        let whole = Still::at(ProcessTree::of_standing(standing));
        let tgids: Vec<u32> = standing.iter().map(|process| process.tgid).collect();
        let mut at_peak = AtPeak {
            own: OwnPeaks::of_standing(&tgids, &whole),
            whole,
            epoch: 0,
            seen: Seen::default(),
        };
        for process in standing {
            let vmas: Vec<Vma> = process.mappings.iter().map(|it| it.vma.clone()).collect();
            at_peak.seen.maps(process.tgid, &vmas, None);
        }
        at_peak
    }

    /// Takes an event, in the order of the ring. `now` is the tree after it.
    pub fn event(&mut self, event: &Event, now: &ProcessTree) {
        self.seen.event(event);
        self.own.event(event, &self.whole, now);
        match event.call {
            Call::PeakCandidate { epoch, .. } => {
                self.epoch = epoch;
                self.whole.stand(self.whole.later.len());
                self.own.tree_stands();
            }
            Call::OwnPeakCandidate { .. } => {}
            _ => self.whole.later.push(event),
        }
    }

    /// Takes what `/proc/PID/maps` shows now, and `now` as far as events tell.
    pub fn maps(&mut self, tgid: u32, vmas: &[Vma], now: &ProcessTree) {
        self.seen.maps(tgid, vmas, now.space(tgid));
    }

    /// Takes what a scan found out about sharing.
    pub fn scanned(&mut self, process: &ProcessSnapshot, now: &ProcessTree) {
        self.maps(process.tgid, &process.vmas, now);
        let shared = process.rss_bytes.saturating_sub(process.pss_bytes);
        self.seen.shared_bytes.insert(process.tgid, shared);
    }

    /// Each process at the highest of its own, as [`compose`](Self::compose) does it for the tree.
    pub fn compose_own(
        &mut self,
        ledger: &Ledger,
        present: &HashMap<u32, Vec<ResidentRange>>,
        analysis: &Analysis,
    ) -> HashMap<u32, Result<OwnPeak, String>> {
        self.own.compose(ledger, present, &self.seen, analysis)
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
        self.whole.go_on();
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
            let (snapshot, unmapped) = self.whole.process(space, &bits, &self.seen);
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
        let divisions = self
            .whole
            .divisions(analysis.looks_nearest(ledger.state.candidate_ns));
        let composition = compose(&snapshot, &self.whole.tree, &analysis.images, &divisions);
        Some((composition, agreement))
    }
}

impl Seen {
    fn event(&mut self, event: &Event) {
        match event.call {
            Call::Exec { .. } => {
                self.image_now.insert(event.tgid, event.ended_ns);
            }
            Call::Fork {
                child_tid, flags, ..
            } if flags & libc::CLONE_VM as u64 == 0 => {
                let image = self.image(event.tgid, self.image_now(event.tgid));
                self.inherited.insert(child_tid, image);
                // The number may have been that of another process.
                self.image_now.remove(&child_tid);
            }
            _ => {}
        }
    }

    /// Of anonymous memory that has no name, the call that made it tells everything. So it is not kept where that
    /// call is known: of 100,000 threads, nothing is.
    fn maps(&mut self, tgid: u32, vmas: &[Vma], now: Option<&AddressSpace>) {
        let image = (tgid, self.image_now(tgid));
        let seen = self.mappings.entry(image).or_default();
        for vma in vmas.iter().filter(|vma| vma.start < vma.end) {
            let mut next = vma.start;
            if let Some(now) = now.filter(|_| is_plain(vma)) {
                for (range, piece) in now.overlapping(&(vma.start..vma.end)) {
                    if !makes_plain(now.origin(piece.origin)) {
                        continue;
                    }
                    if next < range.start {
                        seen.insert(next..range.start, vma.clone());
                    }
                    next = range.end;
                    forget_others(seen, range);
                }
            }
            if next < vma.end {
                seen.insert(next..vma.end, vma.clone());
            }
        }
    }

    /// When a process last exec'd; 0: never.
    pub fn image_now(&self, tgid: u32) -> u64 {
        self.image_now.get(&tgid).copied().unwrap_or(0)
    }

    /// The image under which its mappings were seen: its own, or the one that it was forked with.
    fn image(&self, tgid: u32, exec_ns: u64) -> Image {
        let own = (tgid, exec_ns);
        match self.inherited.get(&tgid) {
            Some(&image) if exec_ns == 0 && !self.mappings.contains_key(&own) => image,
            _ => own,
        }
    }
}

impl Still {
    /// Before anything has happened to this tree.
    pub fn at(tree: ProcessTree) -> Still {
        Still {
            tree,
            later: Journal::default(),
            due: 0,
            image_then: HashMap::new(),
        }
    }

    /// There is a candidate that comes after so many of the later events.
    pub fn stand(&mut self, events: usize) {
        self.due = events;
        if self.later.bytes() > MOST_WAITING {
            self.go_on();
        }
    }

    /// Goes on to the candidate.
    fn go_on(&mut self) {
        let due = std::mem::take(&mut self.due);
        if due == 0 {
            return;
        }
        let mut last_act: HashMap<u32, usize> = HashMap::new();
        let later = std::mem::take(&mut self.later);
        for (index, event) in later.iter().take(due).enumerate() {
            if event.call != Call::Exit {
                last_act.insert(event.tgid, index);
            }
        }
        // Memory is not removed by the exits that a process ends with, so the peak was there before
        // them already, and the stacks had their threads. They wait.
        for (index, event) in later.iter().enumerate() {
            if last_act.get(&event.tgid).is_none_or(|&last| index > last) {
                self.later.push(&event);
                continue;
            }
            self.tree.apply(&event);
            if let Call::Exec { .. } = event.call {
                self.image_then.insert(event.tgid, event.ended_ns);
            }
        }
    }

    /// When a process had last exec'd; 0: never.
    pub fn image_then(&self, tgid: u32) -> u64 {
        self.image_then.get(&tgid).copied().unwrap_or(0)
    }

    /// What adapters found, of those processes that had the same image.
    pub fn divisions(&self, looks: BTreeMap<u32, &Look>) -> HashMap<u32, Arc<Division>> {
        let same_image = |(tgid, look): &(u32, &Look)| self.image_then(*tgid) == look.image_ns;
        let looks = looks.into_iter().filter(same_image);
        looks
            .map(|(tgid, look)| (tgid, Arc::clone(&look.division)))
            .collect()
    }

    /// One process at the candidate, and the bytes in `bits` that no mapping of that time explains.
    pub fn process(
        &mut self,
        of: &Space,
        bits: &[ResidentRange],
        known: &Seen,
    ) -> (ProcessSnapshot, u64) {
        self.go_on();
        let (tgid, counted) = (of.tgid, of.candidate_pages * PAGE);
        let image = known.image(tgid, self.image_then(tgid));
        let seen = known.mappings.get(&image);
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
        let shared = known.shared_bytes.get(&tgid).copied().unwrap_or(0);
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
    Vma::from(MapsLine {
        start: range.start,
        end: range.end,
        name: Some(name.into()),
        ..MapsLine::default()
    })
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
            let mut part = vma.part(start, end);
            part.protection = piece.protection.into();
            vmas.push(part);
            next = end;
        }
        if next < range.end {
            vmas.push(made_up(next..range.end, origin, piece));
        }
    }
    for (known, vma) in seen.iter() {
        let is_stack = vma.name() == Some("[stack]");
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
            vmas.push(vma.part(start, gap.end));
        }
    }
    vmas.sort_by_key(|vma| vma.start);
    vmas
}

/// Private anonymous memory without a name.
fn is_plain(vma: &Vma) -> bool {
    vma.name().is_none() && vma.inode() == 0 && !vma.shared
}

/// Whether a mapping of this call is plain, unless it was given a name.
fn makes_plain(origin: &Origin) -> bool {
    let is_mmap = matches!(origin.kind, OriginKind::Mmap { .. });
    is_mmap && !origin.is_file() && !is_shared(origin) && !origin.has_flag(libc::MAP_HUGETLB)
}

/// Nothing but plain memory is there any more.
fn forget_others(seen: &mut RangeMap<u64, Vma>, range: Range<u64>) {
    if seen.overlapping(&range).any(|(_, vma)| !is_plain(vma)) {
        seen.remove(range);
    }
}

/// Whether what was seen at another time can be this mapping: both shared or both a private file or
/// both neither.
fn agrees(origin: &Origin, vma: &Vma) -> bool {
    match origin.kind {
        OriginKind::Mmap { .. } => {
            is_shared(origin) == vma.shared
                && (vma.shared || origin.is_file() == (vma.inode() != 0))
        }
        OriginKind::Brk => vma.inode() == 0,
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
    Vma::from(MapsLine {
        start: range.start,
        end: range.end,
        protection: piece.protection.into(),
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use profiler_ebpf::ledger_wire::{CHUNK_BYTES, Chunk, State};

    const TGID: u32 = 7;

    /// Both of the trees that a session keeps.
    struct Both {
        at_peak: AtPeak,
        now: ProcessTree,
    }

    impl Both {
        fn new() -> Both {
            Both {
                at_peak: AtPeak::new(TGID),
                now: ProcessTree::new(TGID),
            }
        }

        fn event(&mut self, event: &Event) {
            self.now.apply(event);
            self.at_peak.event(event, &self.now);
        }
    }

    fn event(call: Call) -> Event {
        Event {
            began_ns: 1,
            ended_ns: 1,
            tgid: TGID,
            tid: TGID,
            call_stack: 0,
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
        let mut both = Both::new();
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
            both.event(&event);
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
            [],
        );
        // Two pages that came after the candidate, in a mapping made after it.
        let now = ResidentRange {
            start: 1 << 30,
            end: (1 << 30) + 8192,
            file: false,
        };
        let present = HashMap::from([(TGID, vec![now])]);
        let (composition, agreement) = both
            .at_peak
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
    fn of_plain_memory_with_a_known_call_nothing_is_kept() {
        let mut both = Both::new();
        let path = "/bin/x".into();
        both.event(&event(Call::Exec { path }));
        both.event(&anonymous(4 * PAGE, 4 * PAGE));
        let vma = |start: u64, end: u64, name: Option<&str>| {
            Vma::from(MapsLine {
                start: start * PAGE,
                end: end * PAGE,
                protection: 3,
                shared: false,
                offset: 0,
                inode: 0,
                name: name.map(str::to_owned),
            })
        };
        let kept = |both: &Both| -> Vec<_> {
            let seen = both.at_peak.seen.mappings.values().flat_map(RangeMap::iter);
            let pages = |(range, vma): (&Range<u64>, &Vma)| {
                (
                    range.start / PAGE,
                    range.end / PAGE,
                    vma.name().map(str::to_owned),
                )
            };
            seen.map(pages).collect()
        };
        // A name that was taken away again, and memory of exec on both sides of what the call made.
        both.at_peak
            .maps(TGID, &[vma(5, 7, Some("[anon:x]"))], &both.now);
        assert_eq!(kept(&both), [(5, 7, Some("[anon:x]".into()))]);
        both.at_peak.maps(TGID, &[vma(2, 10, None)], &both.now);
        assert_eq!(kept(&both), [(2, 4, None), (8, 10, None)]);
    }

    #[test]
    fn the_exits_that_a_process_ends_with_come_after_its_peak() {
        let mut both = Both::new();
        let thread = |tid, call| Event { tid, ..event(call) };
        let start = event(Call::Fork {
            child_tid: TGID + 1,
            flags: (libc::CLONE_THREAD | libc::CLONE_VM) as u64,
            stack: 0,
            stack_top: 0,
        });
        let candidate = |epoch| event(Call::PeakCandidate { epoch, pages: 1 });
        let threads = |both: &mut Both| {
            let whole = &mut both.at_peak.whole;
            whole.go_on();
            whole.tree.process(TGID).map(|it| it.threads.len())
        };
        for event in [start, thread(TGID + 1, Call::Exit), candidate(1)] {
            both.event(&event);
        }
        assert_eq!(threads(&mut both), Some(2), "nothing came after the exit");
        for event in [anonymous(0, 4096), event(Call::Exit), candidate(2)] {
            both.event(&event);
        }
        assert_eq!(
            threads(&mut both),
            Some(1),
            "the first exit lies before a call"
        );
    }

    #[test]
    fn counted_pages_of_no_known_mapping_are_kept_and_named_so() {
        let mut both = Both::new();
        for event in [
            event(Call::Exec {
                path: "/bin/x".into(),
            }),
            anonymous(0, 4096),
        ] {
            both.event(&event);
        }
        both.event(&event(Call::PeakCandidate { epoch: 1, pages: 2 }));
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
        let seen = Seen::default();
        let (snapshot, unmapped) = both.at_peak.whole.process(&counting(4), &bits, &seen);
        assert_eq!((snapshot.unexplained_bytes, unmapped), (0, 0));
        let [_, image, stack] = &snapshot.vmas[..] else {
            panic!("{:?}", snapshot.vmas);
        };
        assert_eq!(image.start..image.end, PAGE..2 * PAGE);
        assert_eq!(stack.name(), Some("[stack]"));
        // Had the kernel not counted them, they would have come later.
        let (snapshot, unmapped) = both.at_peak.whole.process(&counting(1), &bits, &seen);
        assert_eq!((snapshot.unexplained_bytes, unmapped), (0, 3 * PAGE));
    }
}
