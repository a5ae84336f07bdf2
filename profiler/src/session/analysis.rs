//! The pure middle of a session: events and frozen trees go in, the composition at the peak comes out.
//! A live session and the replay of a recorded log drive the same value.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    adapters::Account,
    classify::{
        Classes,
        compose::{Composition, compose},
        division::Division,
        runtime::Image,
    },
    events::{Call, Event},
    kernel_memory::{self, Kernel, Reading},
    launch::accounting::GroupMemory,
    probes::object_sizes::ObjectSizes,
    regions::{ProcessTree, compare},
    residency::{OpenFiles, ProcessSnapshot, Snapshot, standing::Standing},
    results::EventCounts,
};

/// What a composition comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Composed {
    /// RSS in bytes, the sum of the classes.
    pub rss_bytes: u64,
    /// RSS by class.
    pub classes: Classes,
    /// Kernel memory, bottom up, in bytes.
    pub kernel_bytes: u64,
}

/// A frozen tree: its pages, what adapters found on them, and what the kernel counted for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frozen {
    /// Every process with its pages.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// What adapters found, where they looked.
    #[serde(default)]
    pub divided: Vec<Divided>,
    /// The memory of its group.
    #[serde(default)]
    pub group: Option<GroupMemory>,
}

/// What adapters found in one process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divided {
    /// The process.
    pub tgid: u32,
    /// Its pages by leaf.
    pub division: Division,
    /// What each adapter had to say.
    pub accounts: Vec<Account>,
}

/// What adapters found in one process at one moment.
#[derive(Debug)]
pub struct Look {
    /// When it was frozen: `CLOCK_MONOTONIC`, in ns.
    pub taken_ns: u64,
    /// The process.
    pub tgid: u32,
    /// When it had exec'd last.
    pub image_ns: u64,
    /// Its pages by leaf.
    pub division: Arc<Division>,
    /// What each adapter had to say.
    pub accounts: Vec<Account>,
}

/// What has been learnt so far.
#[derive(Debug)]
pub struct Analysis {
    /// Sizes of the kernel's objects; empty where they are not known.
    pub sizes: ObjectSizes,
    /// The process that was launched.
    root: u32,
    /// The tree and its region maps.
    pub tree: ProcessTree,
    /// The executable of each process.
    pub images: HashMap<u32, Image>,
    /// What adapters found inside the processes, in the order of time.
    pub looks: Vec<Look>,
    /// When each process last exec'd: `CLOCK_MONOTONIC`, in ns.
    image_ns: HashMap<u32, u64>,
    /// How much arrived, and what did not fit.
    pub counts: EventCounts,
    /// Most mappings that a process had at once, as far as the region maps tell.
    pub mappings_peak: usize,
    /// The composition with the highest RSS so far.
    pub best: Option<Composition>,
    /// What was open when each process was frozen last.
    open: HashMap<u32, OpenFiles>,
    /// What the kernel counted for the group, in the order of time.
    readings: Vec<Reading>,
}

impl Analysis {
    /// Starts with the process that was launched.
    pub fn new(root: u32) -> Analysis {
        Analysis {
            sizes: ObjectSizes::default(),
            root,
            tree: ProcessTree::new(root),
            images: HashMap::new(),
            looks: Vec::new(),
            image_ns: HashMap::new(),
            counts: EventCounts::default(),
            mappings_peak: 0,
            best: None,
            open: HashMap::new(),
            readings: Vec::new(),
        }
    }

    /// Starts with processes that run already, the one that was asked for first.
    pub fn of_standing(standing: &[Standing]) -> Analysis {
        let root = standing.first().map_or(0, |process| process.tgid);
        Analysis {
            tree: ProcessTree::of_standing(standing),
            ..Analysis::new(root)
        }
    }

    /// Takes an event.
    pub fn event(&mut self, event: &Event) {
        self.counts.seen += 1;
        self.tree.apply(event);
        if let Call::Exec { .. } = event.call {
            self.image_ns.insert(event.tgid, event.ended_ns);
        }
        if let Some(space) = self.tree.space(event.tgid) {
            self.mappings_peak = self.mappings_peak.max(space.len());
        }
        if let Call::Fork {
            child_tid, flags, ..
        } = event.call
            && flags & libc::CLONE_THREAD as u64 == 0
        {
            // Until it execs, a child runs what its parent runs. A number may come again, so it must
            // not keep what it was last.
            match self.images.get(&event.tgid).cloned() {
                Some(image) => self.images.insert(child_tid, image),
                None => self.images.remove(&child_tid),
            };
        }
    }

    /// Takes a process as it stands, where no event tells; whether it has exec'd since it was taken last.
    pub fn stands(&mut self, standing: &Standing, now_ns: u64) -> bool {
        self.tree.stands(standing);
        self.mappings_peak = self.mappings_peak.max(standing.mappings.len());
        let known = self.images.get(&standing.tgid);
        let changed = known.is_none_or(|image| image.path != standing.executable);
        if changed && known.is_some() {
            self.image_ns.insert(standing.tgid, now_ns);
        }
        changed
    }

    /// Takes the executable of a process, since its last exec.
    pub fn image(&mut self, tgid: u32, image: Image) {
        self.images.insert(tgid, image);
    }

    /// Of each process, the look that is nearest to a moment.
    pub fn looks_nearest(&self, ns: u64) -> BTreeMap<u32, &Look> {
        let mut nearest: BTreeMap<u32, &Look> = BTreeMap::new();
        for look in &self.looks {
            let known = nearest.entry(look.tgid).or_insert(look);
            if look.taken_ns.abs_diff(ns) < known.taken_ns.abs_diff(ns) {
                *known = look;
            }
        }
        nearest
    }

    /// Holds the region maps against a snapshot, and repairs them where events were lost.
    pub fn compare(&mut self, snapshot: &Snapshot) {
        self.counts.scans += 1;
        let mut disagreeing_bytes = 0;
        for process in &snapshot.processes {
            if let Some(space) = self.tree.space_mut(process.tgid) {
                disagreeing_bytes += compare(space, &process.vmas).disagreement_bytes();
            }
        }
        self.counts.disagreeing_bytes += disagreeing_bytes;
        self.counts.disagreeing_scans += u64::from(disagreeing_bytes > 0);
    }

    /// Takes what adapters found, and classifies every resident page of a frozen tree, with which the region
    /// maps have been compared.
    pub fn frozen(&mut self, frozen: Frozen) -> Composed {
        let Frozen {
            snapshot,
            divided,
            group,
        } = frozen;
        let looks = divided.into_iter().map(|divided| Look {
            taken_ns: snapshot.taken_ns,
            tgid: divided.tgid,
            image_ns: self.image_of(divided.tgid),
            division: Arc::new(divided.division),
            accounts: divided.accounts,
        });
        let looks: Vec<Look> = looks.collect();
        self.looks.extend(looks);
        let open = snapshot.processes.iter();
        self.open
            .extend(open.filter_map(|process| Some((process.tgid, process.files?))));
        self.readings
            .extend(group.map(|group| Reading::of(&snapshot, group, self.root)));
        let composition = self.compose(&snapshot);
        let composed = self.composed(&composition);
        if self
            .best
            .as_ref()
            .is_none_or(|best| composition.rss_bytes > best.rss_bytes)
        {
            self.best = Some(composition);
        }
        composed
    }

    /// Classifies the pages of a running tree. Nothing is learnt from them: they are not those of one
    /// moment.
    pub fn glance(&self, mut snapshot: Snapshot) -> Composed {
        self.add_open_files(&mut snapshot.processes);
        self.composed(&self.compose(&snapshot))
    }

    /// To processes that were not frozen: what each had open when it was frozen last.
    pub fn add_open_files(&self, processes: &mut [ProcessSnapshot]) {
        for process in processes {
            process.files = self.open.get(&process.tgid).copied();
        }
    }

    /// What a composition comes to.
    pub fn composed(&self, composition: &Composition) -> Composed {
        Composed {
            rss_bytes: composition.rss_bytes,
            classes: composition.classes,
            kernel_bytes: kernel_memory::bottom_up_bytes(&composition.objects, &self.sizes),
        }
    }

    /// Kernel memory of a composition, with the group's figure nearest to it. Times are after `exec_ns`.
    pub fn kernel(&self, composition: &Composition, exec_ns: u64) -> Kernel {
        let moment = composition.taken_ns;
        let readings = self.readings.iter();
        let nearest = readings.min_by_key(|reading| reading.taken_ns.abs_diff(moment));
        Kernel::of(&composition.objects, &self.sizes, nearest, exec_ns)
    }

    /// Each process is divided by the last look since its last exec.
    fn compose(&self, snapshot: &Snapshot) -> Composition {
        let of_this_image = |look: &&Look| look.image_ns == self.image_of(look.tgid);
        let looks = self.looks.iter().filter(of_this_image);
        let divisions = looks
            .map(|look| (look.tgid, Arc::clone(&look.division)))
            .collect();
        compose(snapshot, &self.tree, &self.images, &divisions)
    }

    /// When a process last exec'd; 0 for one that never did.
    fn image_of(&self, tgid: u32) -> u64 {
        self.image_ns.get(&tgid).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        classify::runtime::Runtime,
        residency::{MapsLine, ResidentRange, Vma},
    };

    const ROOT: u32 = 100;
    const PAGE: u64 = crate::units::PAGE;

    fn event(tgid: u32, call: Call) -> Event {
        Event {
            began_ns: 10,
            ended_ns: 20,
            tgid,
            tid: tgid,
            call_stack: 0,
            call,
        }
    }

    fn fork(child_tid: u32) -> Call {
        Call::Fork {
            child_tid,
            flags: libc::SIGCHLD as u64,
            stack: 0,
            stack_top: 0,
        }
    }

    /// Processes with one mapping of 16 pages, so many of them resident.
    fn frozen(taken_ns: u64, processes: &[(u32, u64)]) -> Frozen {
        let process = |&(tgid, pages): &(u32, u64)| ProcessSnapshot {
            tgid,
            vmas: vec![Vma::from(MapsLine {
                start: 0x10000,
                end: 0x20000,
                protection: 3,
                shared: false,
                offset: 0,
                inode: 0,
                name: None,
            })],
            resident: vec![ResidentRange {
                start: 0x10000,
                end: 0x10000 + pages * PAGE,
                file: false,
            }],
            rss_bytes: pages * PAGE,
            pss_bytes: pages * PAGE,
            vm_hwm_bytes: pages * PAGE,
            page_tables_bytes: 0,
            threads: 1,
            ..ProcessSnapshot::default()
        };
        let snapshot = Snapshot {
            taken_ns,
            processes: processes.iter().map(process).collect(),
            ..Snapshot::default()
        };
        Frozen {
            snapshot,
            divided: Vec::new(),
            group: None,
        }
    }

    /// After the exec of a program of this name, which mapped what [`frozen`] finds.
    fn after_exec(name: &str) -> Analysis {
        let mut analysis = Analysis::new(ROOT);
        let image = Image {
            path: name.into(),
            go: false,
        };
        analysis.image(ROOT, image);
        let path = name.to_owned();
        analysis.event(&event(ROOT, Call::Exec { path }));
        analysis.event(&event(
            ROOT,
            Call::Mmap {
                hint: 0,
                length: 0x10000,
                protection: 3,
                flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
                fd: -1,
                offset: 0,
                address: 0x10000,
            },
        ));
        analysis
    }

    #[test]
    fn the_best_is_the_highest_scan() {
        let mut analysis = after_exec("a");
        for (taken_ns, pages) in [(30, 3), (40, 7), (50, 5)] {
            let frozen = frozen(taken_ns, &[(ROOT, pages)]);
            analysis.compare(&frozen.snapshot);
            let composed = analysis.frozen(frozen);
            assert_eq!(composed.classes.total(), pages * PAGE);
        }
        let best = analysis.best.expect("three scans");
        assert_eq!((best.taken_ns, best.rss_bytes), (40, 7 * PAGE));
        assert_eq!((analysis.counts.seen, analysis.counts.scans), (2, 3));
        assert_eq!(analysis.counts.disagreeing_scans, 0);
    }

    #[test]
    fn the_look_nearest_to_a_moment_is_found() {
        let mut analysis = after_exec("a");
        for taken_ns in [30, 100, 900] {
            let divided = vec![Divided {
                tgid: ROOT,
                division: Division::default(),
                accounts: Vec::new(),
            }];
            analysis.frozen(Frozen {
                divided,
                ..frozen(taken_ns, &[(ROOT, 1)])
            });
        }
        let nearest = |ns| analysis.looks_nearest(ns)[&ROOT].taken_ns;
        assert_eq!([nearest(0), nearest(70), nearest(5000)], [30, 100, 900]);
        assert_eq!(analysis.looks[0].image_ns, 20);
    }

    #[test]
    fn a_child_runs_what_its_parent_runs_until_it_execs() {
        let mut analysis = after_exec("python3.11");
        analysis.event(&event(ROOT, fork(200)));
        analysis.event(&event(ROOT, fork(300)));
        let image = Image {
            path: "/usr/bin/cat".into(),
            go: false,
        };
        analysis.image(300, image);
        analysis.event(&event(300, Call::Exec { path: "cat".into() }));
        let all = frozen(30, &[(ROOT, 1), (200, 1), (300, 1)]);
        analysis.compare(&all.snapshot);
        analysis.frozen(all);
        let runtimes: Vec<Runtime> = analysis
            .best
            .expect("a scan")
            .processes
            .iter()
            .map(|(.., runtime)| *runtime)
            .collect();
        assert_eq!(
            runtimes,
            [Runtime::Cpython, Runtime::Cpython, Runtime::Native]
        );
    }

    #[test]
    fn what_the_kernel_has_and_no_event_told_is_counted() {
        let mut analysis = after_exec("a");
        // The first comparison after an exec adopts what exec put there.
        analysis.compare(&frozen(30, &[(ROOT, 1)]).snapshot);
        let munmap = Call::Munmap {
            address: 0x18000,
            length: 0x8000,
        };
        analysis.event(&Event {
            began_ns: 30,
            ended_ns: 35,
            ..event(ROOT, munmap)
        });
        analysis.compare(&frozen(40, &[(ROOT, 1)]).snapshot);
        assert_eq!(analysis.counts.disagreeing_scans, 1);
        assert_eq!(analysis.counts.disagreeing_bytes, 0x8000);
    }
}
