//! Each process as it was at its own peak, where that may be another moment than the peak of the tree.
//!
//! While there is but one process, its peak is the tree's, and nothing is kept here. From its first child
//! on, each process has a tree of its own that stands still at its own candidate, as
//! [`at_peak`](super::at_peak) says of the whole:
//!
//! ```text
//! parent   fork of 8                       child of the parent's   stands at its candidate, events of 7 wait
//! child    a copy of what 7 has now        (vfork: its parent's)   stands at its candidate, events of 8 wait
//! ```
//!
//! A process has had several address spaces if it exec'd. Of the candidates of all of them the one with
//! the most pages counts.

use std::collections::HashMap;

use profiler_ebpf::ledger_wire::Space;

use super::{
    analysis::Analysis,
    at_peak::{Seen, Still},
};
use crate::{
    classify::{
        compose::{Composition, compose},
        runtime::Image,
    },
    events::{Call, Event},
    regions::ProcessTree,
    residency::{Method, ResidentRange, Snapshot, ledger::Ledger, ranges::bytes},
    units::PAGE,
};

/// One process at the highest RSS of its own.
#[derive(Debug)]
pub struct OwnPeak {
    /// Of this process alone.
    pub composition: Composition,
    /// By how much it may be off, in bytes: its highest RSS less this one, what the kernel counted and no
    /// page was found for, and the other way round.
    pub error_bound_bytes: u64,
}

/// All processes.
#[derive(Debug, Default)]
pub(super) struct OwnPeaks {
    /// By thread group; empty while there is one process.
    processes: HashMap<u32, Own>,
    /// Processes that live in the memory of another one, since vfork.
    guests: HashMap<u32, u32>,
    /// While there is one process: the best of its candidates, and after how many of the events that wait for
    /// the tree's next candidate it came.
    only: Option<(Candidate, usize)>,
}

#[derive(Debug)]
struct Own {
    still: Still,
    candidate: Option<Candidate>,
}

/// A candidate of one address space.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    space: u32,
    epoch: u32,
    pages: u64,
}

impl OwnPeaks {
    /// Starts with processes that run already; a single one is as one that was launched.
    pub fn of_standing(tgids: &[u32], whole: &Still) -> OwnPeaks {
        let own = |&tgid: &u32| {
            let still = whole.clone();
            let candidate = None;
            (tgid, Own { still, candidate })
        };
        OwnPeaks {
            processes: match tgids {
                [_] => HashMap::new(),
                many => many.iter().map(own).collect(),
            },
            ..OwnPeaks::default()
        }
    }

    /// Takes an event, which `whole` does not have yet and `now` has.
    pub fn event(&mut self, event: &Event, whole: &Still, now: &ProcessTree) {
        if self.processes.is_empty() {
            match event.call {
                Call::OwnPeakCandidate {
                    epoch,
                    pages,
                    space,
                    ..
                } if self.only.is_none_or(|(best, _)| pages > best.pages) => {
                    let candidate = Candidate {
                        space,
                        epoch,
                        pages,
                    };
                    self.only = Some((candidate, whole.later.len()));
                    return;
                }
                Call::Fork { flags, .. } if flags & libc::CLONE_THREAD as u64 == 0 => {
                    self.part(event.tgid, whole);
                }
                _ => return,
            }
        }
        self.of_one(event, now);
    }

    /// The tree has a new candidate; that of the only process came before it.
    pub fn tree_stands(&mut self) {
        if let Some((_, events)) = &mut self.only {
            *events = 0;
        }
    }

    /// The only process is about to have a child.
    fn part(&mut self, tgid: u32, whole: &Still) {
        let mut still = whole.clone();
        let candidate = self.only.take().map(|(candidate, events)| {
            if events > 0 {
                still.stand(events);
            }
            candidate
        });
        self.processes.insert(tgid, Own { still, candidate });
    }

    fn of_one(&mut self, event: &Event, now: &ProcessTree) {
        let home = *self.guests.get(&event.tgid).unwrap_or(&event.tgid);
        match event.call {
            Call::PeakCandidate { .. } => return,
            Call::OwnPeakCandidate {
                epoch,
                pages,
                space,
                of,
            } => {
                let candidate = Candidate {
                    space,
                    epoch,
                    pages,
                };
                if let Some(own) = self.processes.get_mut(&of) {
                    own.stand(candidate);
                }
                return;
            }
            Call::Fork {
                child_tid, flags, ..
            } if flags & libc::CLONE_VM as u64 == 0 => {
                self.guests.remove(&child_tid);
                if let Some(tree) = now.only(child_tid) {
                    self.processes.insert(child_tid, Own::at(tree));
                }
                return;
            }
            Call::Fork {
                child_tid, flags, ..
            } if flags & libc::CLONE_THREAD as u64 == 0 => {
                self.processes.remove(&child_tid);
                self.guests.insert(child_tid, home);
            }
            Call::Exec { .. } if home != event.tgid => {
                self.guests.remove(&event.tgid);
                let own = Own::at(ProcessTree::new(event.tgid));
                self.processes.insert(event.tgid, own);
            }
            _ => {}
        }
        let home = *self.guests.get(&event.tgid).unwrap_or(&event.tgid);
        if let Some(own) = self.processes.get_mut(&home) {
            own.still.later.push(event);
        }
    }

    /// Each process at its candidate, or why it is not told; nothing while there has been but one. `present` is
    /// what the page tables of processes that still live hold, read before the ledger was.
    pub fn compose(
        &mut self,
        ledger: &Ledger,
        present: &HashMap<u32, Vec<ResidentRange>>,
        seen: &Seen,
        analysis: &Analysis,
    ) -> HashMap<u32, Result<OwnPeak, String>> {
        let processes = self.processes.iter_mut();
        processes
            .map(|(&tgid, own)| (tgid, own.compose(ledger, present, seen, analysis)))
            .collect()
    }
}

impl Own {
    fn at(tree: ProcessTree) -> Own {
        Own {
            still: Still::at(tree),
            candidate: None,
        }
    }

    fn stand(&mut self, candidate: Candidate) {
        if self
            .candidate
            .is_none_or(|best| candidate.pages > best.pages)
        {
            self.candidate = Some(candidate);
            self.still.stand(self.still.later.len());
        }
    }

    fn compose(
        &mut self,
        ledger: &Ledger,
        present: &HashMap<u32, Vec<ResidentRange>>,
        seen: &Seen,
        analysis: &Analysis,
    ) -> Result<OwnPeak, String> {
        let candidate = self
            .candidate
            .ok_or("nothing of its memory was ever removed while it was followed")?;
        let index = candidate.space as usize;
        let space = ledger.spaces.get(index);
        let space = space.filter(|space| space.own_epoch == candidate.epoch);
        let space = space.ok_or("the record of its highest moment was lost")?;
        if space.own_lost > 0 {
            let lost = space.own_lost;
            return Err(format!(
                "{lost} copies of its memory found no room, or were not to be had"
            ));
        }
        let none = Vec::new();
        let now = match space.users {
            0 => &none,
            _ => present.get(&space.tgid).unwrap_or(&none),
        };
        if space.users > 0 && bytes(now) > space.highest_pages * PAGE {
            return Err("it outlives the command, with more than it had before".into());
        }
        let bits = ledger.resident_at_own(index, now);
        let of = Space {
            candidate_pages: space.own_pages,
            // Of the tree's candidate.
            candidate_table_bytes: 0,
            candidate_mappings: 0,
            ..*space
        };
        let (process, _) = self.still.process(&of, &bits, seen);
        let counted = space.own_pages * PAGE;
        let error_bound_bytes = (space.highest_pages.saturating_sub(space.own_pages)) * PAGE
            + process.unexplained_bytes.unsigned_abs();
        let tgid = process.tgid;
        let snapshot = Snapshot {
            taken_ns: space.own_ns,
            method: Method::default(),
            processes: vec![process],
        };
        let divisions = self.still.divisions(analysis.looks_nearest(space.own_ns));
        let images = HashMap::from([(tgid, self.image(tgid, seen, analysis))]);
        let composition = compose(&snapshot, &self.still.tree, &images, &divisions);
        debug_assert!(composition.rss_bytes >= counted);
        Ok(OwnPeak {
            composition,
            error_bound_bytes,
        })
    }

    /// What it ran then. Of an image that it has left, the path is known and nothing else.
    fn image(&self, tgid: u32, seen: &Seen, analysis: &Analysis) -> Image {
        if self.still.image_then(tgid) == seen.image_now(tgid) {
            return analysis.images.get(&tgid).cloned().unwrap_or_default();
        }
        let process = self.still.tree.process(tgid);
        let path = process.and_then(|process| process.executable.clone());
        Image {
            path: path.unwrap_or_default(),
            go: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::ledger_wire::{CHUNK_BYTES, CHUNK_NUMBER_BITS, Chunk, State};

    use super::*;
    use crate::{classify::Classes, session::at_peak::AtPeak};

    const PARENT: u32 = 7;
    const CHILD: u32 = 8;

    /// A session's two trees.
    struct Session {
        at_peak: AtPeak,
        analysis: Analysis,
        clock: u64,
    }

    impl Session {
        fn of(events: &[(u32, Call)]) -> Session {
            let mut session = Session {
                at_peak: AtPeak::new(PARENT),
                analysis: Analysis::new(PARENT),
                clock: 0,
            };
            for (tgid, call) in events {
                session.clock += 10;
                let event = Event {
                    began_ns: session.clock,
                    ended_ns: session.clock,
                    tgid: *tgid,
                    tid: *tgid,
                    call_stack: 0,
                    call: call.clone(),
                };
                session.analysis.event(&event);
                session.at_peak.event(&event, &session.analysis.tree);
            }
            session
        }

        /// What the process has at its own peak: first byte and pages of each region.
        fn regions(&mut self, ledger: &Ledger, tgid: u32) -> Result<Vec<(u64, u64)>, String> {
            let none = HashMap::new();
            let mut all = self.at_peak.compose_own(ledger, &none, &self.analysis);
            let own = all.remove(&tgid).unwrap_or(Err("not there".into()))?;
            let composition = own.composition;
            assert_eq!(own.error_bound_bytes, 0);
            assert_eq!(composition.classes.total(), composition.rss_bytes);
            assert_ne!(composition.classes, Classes::default());
            let regions = composition.regions.iter();
            Ok(regions
                .map(|region| (region.range.start, region.resident_bytes / PAGE))
                .collect())
        }
    }

    fn map(chunk: u64) -> Call {
        Call::Mmap {
            hint: 0,
            length: CHUNK_BYTES,
            protection: 3,
            flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
            fd: -1,
            offset: 0,
            address: chunk * CHUNK_BYTES,
        }
    }

    fn unmap(chunk: u64) -> Call {
        Call::Munmap {
            address: chunk * CHUNK_BYTES,
            length: CHUNK_BYTES,
        }
    }

    fn exec() -> Call {
        Call::Exec { path: "/x".into() }
    }

    fn fork(flags: i32) -> Call {
        Call::Fork {
            child_tid: CHILD,
            flags: flags as u64,
            stack: 0,
            stack_top: 0,
        }
    }

    fn own(space: u32, epoch: u32, pages: u64, of: u32) -> Call {
        Call::OwnPeakCandidate {
            epoch,
            pages,
            space,
            of,
        }
    }

    /// An ended space: its process, its own epoch, and its chunks with so many pages from the beginning of each.
    type Ended<'a> = (u32, u32, &'a [(u64, u64)]);

    /// Spaces at their own candidates.
    fn ledger(spaces: &[Ended]) -> Ledger {
        let mut chunks = Vec::new();
        for (index, (_, epoch, own)) in spaces.iter().enumerate() {
            chunks.extend(own.iter().map(|&(number, pages)| Chunk {
                key: (index as u64) << CHUNK_NUMBER_BITS | number,
                epoch: u64::from(*epoch),
                begun: u64::from(*epoch),
                taken: 1,
                bits: [(1 << pages) - 1, 0, 0, 0, 0, 0, 0, 0],
            }));
        }
        let space = |&(tgid, own_epoch, own): &Ended| {
            let own_pages = own.iter().map(|(_, pages)| pages).sum();
            Space {
                tgid,
                own_epoch,
                own_pages,
                highest_pages: own_pages,
                ..Space::default()
            }
        };
        let spaces = spaces.iter().map(space).collect();
        Ledger::of(State::default(), spaces, [], chunks)
    }

    #[test]
    fn each_process_stands_at_its_own_candidate() {
        let mut session = Session::of(&[
            (PARENT, exec()),
            (PARENT, map(1)),
            (PARENT, own(0, 1, 3, PARENT)),
            (PARENT, map(2)),
            (PARENT, fork(libc::SIGCHLD)),
            (CHILD, map(3)),
            (CHILD, own(1, 1, 9, CHILD)),
            (CHILD, unmap(3)),
            (CHILD, unmap(1)),
            (PARENT, unmap(1)),
            (PARENT, map(4)),
            (CHILD, Call::Exit),
        ]);
        // The parent's was before it mapped chunk 2, which the child has.
        let ledger = ledger(&[
            (PARENT, 1, &[(1, 3)]),
            (CHILD, 1, &[(1, 2), (2, 3), (3, 4)]),
        ]);
        let at = |chunk: u64, pages: u64| (chunk * CHUNK_BYTES, pages);
        let regions = session.regions(&ledger, PARENT);
        assert_eq!(regions, Ok(vec![at(1, 3)]));
        let regions = session.regions(&ledger, CHILD);
        assert_eq!(
            regions.map(|rows| rows.iter().map(|row| row.1).sum()),
            Ok(9)
        );
    }

    #[test]
    fn the_image_with_the_most_pages_counts() {
        let mut session = Session::of(&[
            (PARENT, exec()),
            (PARENT, map(1)),
            (PARENT, own(0, 1, 5, PARENT)),
            (PARENT, exec()),
            (PARENT, map(2)),
            (PARENT, own(1, 1, 2, PARENT)),
            (PARENT, fork(libc::CLONE_VM | libc::CLONE_VFORK)),
            (CHILD, exec()),
            (CHILD, map(6)),
            (CHILD, own(2, 1, 4, CHILD)),
            (CHILD, Call::Exit),
            (PARENT, map(3)),
            (PARENT, own(1, 2, 4, PARENT)),
        ]);
        let ledger = ledger(&[
            (PARENT, 1, &[(1, 5)]),
            (PARENT, 2, &[(2, 2), (3, 2)]),
            (CHILD, 1, &[(6, 4)]),
        ]);
        let regions = session.regions(&ledger, PARENT);
        assert_eq!(regions, Ok(vec![(CHUNK_BYTES, 5)]));
        let regions = session.regions(&ledger, CHILD);
        assert_eq!(regions, Ok(vec![(6 * CHUNK_BYTES, 4)]));
    }

    #[test]
    fn what_is_not_known_has_a_reason() {
        let mut session = Session::of(&[
            (PARENT, exec()),
            (PARENT, map(1)),
            (PARENT, own(0, 1, 3, PARENT)),
            (PARENT, fork(libc::SIGCHLD)),
        ]);
        let mut full = ledger(&[(PARENT, 1, &[(1, 3)])]);
        full.spaces[0].own_lost = 2;
        let newer = ledger(&[(PARENT, 2, &[(1, 3)])]);
        for (ledger, tgid, words) in [
            (&full, PARENT, "2 copies"),
            (&newer, PARENT, "was lost"),
            (&newer, CHILD, "ever removed"),
        ] {
            let reason = session.regions(ledger, tgid).expect_err(words);
            assert!(reason.contains(words), "{reason}");
        }
    }
}
