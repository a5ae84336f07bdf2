//! Processes, their threads and stacks: [`ProcessTree`].

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::events::{Call, Event};

use crate::residency::standing::Standing;

use super::{AddressSpace, before_attach::address_space};

const CLONE_VM: u64 = libc::CLONE_VM as u64;
const CLONE_VFORK: u64 = libc::CLONE_VFORK as u64;
const CLONE_THREAD: u64 = libc::CLONE_THREAD as u64;
const CLONE_PARENT: u64 = libc::CLONE_PARENT as u64;

/// The process that was launched and everything it started.
///
/// Takes events in the order in which their calls returned (see
/// [`address_space`](super::address_space) for what that guarantees). Three ways of making something
/// that runs:
///
/// ```text
/// clone flags           memory of the child                        alternate signal stack
/// THREAD (and VM)       it is a thread of the same process         none
/// neither               a copy of the parent's                     the parent's
/// VM (vfork)            the parent's own, until it execs or exits  the parent's with VFORK, else none
/// ```
#[derive(Debug, Clone)]
pub struct ProcessTree {
    /// Every process there ever was, in the order of their start.
    processes: Vec<Process>,
    /// Index of the live process with this tgid.
    live: HashMap<u32, usize>,
    spaces: BTreeMap<SpaceId, SharedSpace>,
    next_space: u32,
    orphan_events: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SpaceId(u32);

#[derive(Debug, Clone)]
struct SharedSpace {
    space: AddressSpace,
    /// Processes that live in it; it goes when the last one leaves.
    users: u32,
}

/// One process, alive or for the record.
#[derive(Debug, Clone)]
pub struct Process {
    /// Thread-group id.
    pub tgid: u32,
    /// Thread-group id of the process that made it; `None` for the root.
    pub parent: Option<u32>,
    /// Path of the image it last exec'd, at most 63 bytes of it; before that, the parent's.
    pub executable: Option<String>,
    /// When it was made: `CLOCK_MONOTONIC`, in ns; 0 for the root.
    pub began_ns: u64,
    /// When its last thread exited: `CLOCK_MONOTONIC`, in ns; `None` while it is alive.
    pub ended_ns: Option<u64>,
    /// Live threads by tid.
    pub threads: BTreeMap<u32, Thread>,
    /// The most threads that were alive at once since the last exec.
    pub threads_peak: usize,
    space: Option<SpaceId>,
    /// The thread that was last started on the stack with this top.
    stack_owners: HashMap<u64, u32>,
}

impl Process {
    /// Some thread of it has not exited.
    pub fn is_alive(&self) -> bool {
        self.ended_ns.is_none()
    }
}

/// One live thread.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Thread {
    /// The stack that `clone` was given; `None` for a main thread, which runs on `[stack]`.
    pub stack: Option<Stack>,
    /// Alternate signal stack, in bytes of address space. Boxed, for most threads have none.
    pub alt_stack: Option<Box<Range<u64>>>,
}

/// The stack of a thread. Thread control block and thread-local storage of glibc are above its top,
/// in the same mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// From the lowest byte to the top, where the thread began.
    pub range: Range<u64>,
    /// Where the lowest byte is known from.
    pub lower_end: LowerEnd,
}

/// Where the lower end of a [`Stack`] is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LowerEnd {
    /// `clone3` was told.
    Told,
    /// `clone` is told the top only: it is the start of the piece below the top, which was mapped
    /// with `MAP_STACK` or `MAP_GROWSDOWN` (older glibc).
    StackMapping,
    /// As before, in a piece without such a flag: musl's stacks, and goroutine memory in a pure Go
    /// program, where the piece is a whole heap arena. Believe it only together with other evidence.
    AnyMapping,
}

impl ProcessTree {
    fn empty() -> Self {
        ProcessTree {
            processes: Vec::new(),
            live: HashMap::new(),
            spaces: BTreeMap::new(),
            next_space: 0,
            orphan_events: 0,
        }
    }

    /// Starts with one process of one thread, about to exec. Until it does, its memory is unknown.
    pub fn new(root_tgid: u32) -> Self {
        let mut tree = ProcessTree::empty();
        let space = tree.add_space(AddressSpace::unknown());
        tree.add_process(Process {
            tgid: root_tgid,
            parent: None,
            executable: None,
            began_ns: 0,
            ended_ns: None,
            threads: BTreeMap::from([(root_tgid, Thread::default())]),
            threads_peak: 1,
            space: Some(space),
            stack_owners: HashMap::new(),
        });
        tree
    }

    /// Starts with processes that run already, the one that is asked about first.
    pub fn of_standing(standing: &[Standing]) -> Self {
        let mut tree = ProcessTree::empty();
        for process in standing {
            tree.stands(process);
        }
        tree
    }

    /// Takes a process as it stands: one that nobody has told of, or anew one that is known. Which calls made
    /// its memory is forgotten.
    pub fn stands(&mut self, standing: &Standing) {
        let (space, stacks) = address_space(standing);
        let space = self.add_space(space);
        let stack_owners = stacks
            .iter()
            .filter_map(|(tid, stack)| Some((stack.as_ref()?.range.end, *tid)))
            .collect();
        let threads: BTreeMap<u32, Thread> = stacks
            .into_iter()
            .map(|(tid, stack)| {
                let alt_stack = None;
                (tid, Thread { stack, alt_stack })
            })
            .collect();
        let executable = Some(standing.executable.clone()).filter(|path| !path.is_empty());
        let parent = self.live.contains_key(&standing.parent);
        let parent = parent.then_some(standing.parent);
        match self.live.get(&standing.tgid).copied() {
            Some(index) => {
                self.leave_space(index);
                let process = &mut self.processes[index];
                process.threads_peak = process.threads_peak.max(threads.len());
                process.executable = executable.or(process.executable.take());
                process.threads = threads;
                process.stack_owners = stack_owners;
                process.space = Some(space);
            }
            None => self.add_process(Process {
                tgid: standing.tgid,
                parent,
                executable,
                began_ns: 0,
                ended_ns: None,
                threads_peak: threads.len(),
                threads,
                space: Some(space),
                stack_owners,
            }),
        }
    }

    /// A process has been seen to be gone, where no event tells.
    pub fn is_gone(&mut self, tgid: u32, ns: u64) {
        if let Some(&index) = self.live.get(&tgid) {
            self.end_process(index, ns);
        }
    }

    /// Does what the event tells. One from a process that is not known to be alive is counted as an
    /// orphan.
    pub fn apply(&mut self, event: &Event) {
        // It stands in the process that removes something, which may be gone for the tree already.
        if let Call::PeakCandidate { .. } | Call::OwnPeakCandidate { .. } = event.call {
            return;
        }
        let Some(&index) = self.live.get(&event.tgid) else {
            self.orphan_events += 1;
            return;
        };
        if event.call != Call::Exit {
            self.note_alive(index, event.tid);
        }
        match &event.call {
            Call::Fork {
                child_tid,
                flags,
                stack,
                stack_top,
            } => {
                let stack = self.stack(index, *stack, *stack_top);
                if flags & CLONE_THREAD != 0 {
                    self.start_thread(index, *child_tid, stack);
                } else {
                    self.start_process(index, event, *child_tid, *flags, stack);
                }
            }
            &Call::Sigaltstack { address, length } => {
                let end = address.saturating_add(length);
                let thread = self.processes[index].threads.entry(event.tid).or_default();
                thread.alt_stack = (address < end).then(|| Box::new(address..end));
            }
            Call::Exec { path } => self.exec(index, event, path),
            Call::Exit => self.exit(index, event),
            Call::Mmap { .. }
            | Call::Munmap { .. }
            | Call::Mremap { .. }
            | Call::Brk { .. }
            | Call::Mprotect { .. }
            | Call::Madvise { .. }
            | Call::NameVma { .. } => {
                if let Some(space) = self.space_at_mut(index) {
                    space.apply(event);
                }
            }
            Call::MemfdCreate { .. }
            | Call::PeakCandidate { .. }
            | Call::OwnPeakCandidate { .. } => {}
        }
    }

    /// Every process there ever was, in the order of their start. A tgid can come twice.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter()
    }

    /// The live process with this thread-group id.
    pub fn process(&self, tgid: u32) -> Option<&Process> {
        Some(&self.processes[*self.live.get(&tgid)?])
    }

    /// The address space of a live process. Between vfork and exec it is the parent's.
    pub fn space(&self, tgid: u32) -> Option<&AddressSpace> {
        let id = self.process(tgid)?.space?;
        Some(&self.spaces.get(&id)?.space)
    }

    /// As [`space`](Self::space), for [`compare`](super::compare()).
    pub fn space_mut(&mut self, tgid: u32) -> Option<&mut AddressSpace> {
        let index = *self.live.get(&tgid)?;
        self.space_at_mut(index)
    }

    /// Both processes are alive and live in the same memory, so its pages count once.
    pub fn share_memory(&self, tgid: u32, other_tgid: u32) -> bool {
        let space = |tgid| self.process(tgid).and_then(|process| process.space);
        space(tgid).is_some() && space(tgid) == space(other_tgid)
    }

    /// A tree of this live process alone, with its memory.
    pub fn only(&self, tgid: u32) -> Option<ProcessTree> {
        let process = self.process(tgid)?.clone();
        let own = process.space.and_then(|id| {
            let space = self.spaces.get(&id)?.space.clone();
            Some((id, SharedSpace { space, users: 1 }))
        });
        Some(ProcessTree {
            processes: vec![process],
            live: HashMap::from([(tgid, 0)]),
            spaces: own.into_iter().collect(),
            next_space: self.next_space,
            orphan_events: 0,
        })
    }

    /// Events from processes that were not known to be alive, and exits of threads that were not.
    /// Above zero, events were lost.
    pub fn orphan_events(&self) -> u64 {
        self.orphan_events
    }

    /// A thread that does something is alive, even when the event of its start was lost.
    fn note_alive(&mut self, index: usize, tid: u32) {
        let process = &mut self.processes[index];
        process.threads.entry(tid).or_default();
        process.threads_peak = process.threads_peak.max(process.threads.len());
    }

    /// The stack that a child of the process at `index` was given.
    fn stack(&self, index: usize, start: u64, top: u64) -> Option<Stack> {
        if start != 0 && start < top {
            return Some(Stack {
                range: start..top,
                lower_end: LowerEnd::Told,
            });
        }
        let id = self.processes[index].space?;
        let space = &self.spaces.get(&id)?.space;
        let (range, piece) = space.piece_at(top.checked_sub(1)?)?;
        let origin = space.origin(piece.origin);
        let for_stacks = origin.has_flag(libc::MAP_STACK) || origin.has_flag(libc::MAP_GROWSDOWN);
        Some(Stack {
            range: range.start..top,
            lower_end: if for_stacks {
                LowerEnd::StackMapping
            } else {
                LowerEnd::AnyMapping
            },
        })
    }

    fn start_thread(&mut self, index: usize, tid: u32, stack: Option<Stack>) {
        if let Some(stack) = &stack {
            self.processes[index]
                .stack_owners
                .insert(stack.range.end, tid);
            let range = stack.range.clone();
            if let Some(space) = self.space_at_mut(index) {
                space.occupy_stack(range);
            }
        }
        let thread = Thread {
            stack,
            alt_stack: None,
        };
        let process = &mut self.processes[index];
        process.threads.insert(tid, thread);
        process.threads_peak = process.threads_peak.max(process.threads.len());
    }

    fn start_process(
        &mut self,
        index: usize,
        event: &Event,
        tgid: u32,
        flags: u64,
        stack: Option<Stack>,
    ) {
        let parent = &self.processes[index];
        let caller = parent.threads.get(&event.tid).cloned().unwrap_or_default();
        let shares_memory = flags & CLONE_VM != 0;
        let keeps_alt_stack = !shares_memory || flags & CLONE_VFORK != 0;
        let thread = Thread {
            // Without a stack of its own, the child runs on its caller's, or on the copy of it.
            stack: stack.or(caller.stack),
            alt_stack: caller.alt_stack.filter(|_| keeps_alt_stack),
        };
        let space = if shares_memory {
            parent.space.inspect(|id| {
                if let Some(shared) = self.spaces.get_mut(id) {
                    shared.users += 1;
                }
            })
        } else {
            self.forked_space(index, event.tid)
        };
        let parent = &self.processes[index];
        let by_sibling = flags & CLONE_PARENT != 0;
        let child = Process {
            tgid,
            parent: if by_sibling {
                parent.parent
            } else {
                Some(parent.tgid)
            },
            executable: parent.executable.clone(),
            began_ns: event.began_ns,
            ended_ns: None,
            stack_owners: thread
                .stack
                .iter()
                .map(|stack| (stack.range.end, tgid))
                .collect(),
            threads: BTreeMap::from([(tgid, thread)]),
            threads_peak: 1,
            space,
        };
        self.add_process(child);
    }

    /// A copy of the memory, in which the stacks of all threads but the caller's have no thread.
    fn forked_space(&mut self, index: usize, caller: u32) -> Option<SpaceId> {
        let parent = &self.processes[index];
        let mut space = self.spaces.get(&parent.space?)?.space.forked();
        for (_, thread) in parent.threads.iter().filter(|(tid, _)| **tid != caller) {
            if let Some(stack) = thread.stack.as_ref().filter(|stack| is_certain(stack)) {
                space.abandon_stack(stack.range.clone());
            }
        }
        // Last, for a thread whose exit is not yet told can have had the same stack.
        let own = parent.threads.get(&caller);
        if let Some(stack) = own.and_then(|thread| thread.stack.as_ref()) {
            space.occupy_stack(stack.range.clone());
        }
        Some(self.add_space(space))
    }

    /// The thread that execs becomes the only one and takes the leader's tid.
    fn exec(&mut self, index: usize, event: &Event, path: &str) {
        self.leave_space(index);
        let space = AddressSpace::after_exec(event.ended_ns);
        let space = self.add_space(space);
        let process = &mut self.processes[index];
        process.space = Some(space);
        process.executable = Some(path.to_owned());
        process.threads = BTreeMap::from([(process.tgid, Thread::default())]);
        process.threads_peak = 1;
        process.stack_owners.clear();
    }

    fn exit(&mut self, index: usize, event: &Event) {
        let process = &mut self.processes[index];
        let Some(thread) = process.threads.remove(&event.tid) else {
            self.orphan_events += 1;
            return;
        };
        if process.threads.is_empty() {
            self.end_process(index, event.ended_ns);
            return;
        }
        let Some(stack) = thread.stack.filter(is_certain) else {
            return;
        };
        // Kernels before 6.16 free the tid, and with it the stack, before they tell of the exit: by
        // now another thread can run on it.
        if process.stack_owners.get(&stack.range.end) == Some(&event.tid) {
            process.stack_owners.remove(&stack.range.end);
            if let Some(space) = self.space_at_mut(index) {
                space.abandon_stack(stack.range);
            }
        }
    }

    fn end_process(&mut self, index: usize, ended_ns: u64) {
        self.leave_space(index);
        let process = &mut self.processes[index];
        process.threads.clear();
        process.stack_owners.clear();
        process.ended_ns = Some(ended_ns);
        self.live.remove(&process.tgid);
    }

    fn add_process(&mut self, process: Process) {
        // The kernel uses a tgid again only when its process is gone: the exit was lost.
        if let Some(&previous) = self.live.get(&process.tgid) {
            self.end_process(previous, process.began_ns);
        }
        self.live.insert(process.tgid, self.processes.len());
        self.processes.push(process);
    }

    fn add_space(&mut self, space: AddressSpace) -> SpaceId {
        let id = SpaceId(self.next_space);
        self.next_space += 1;
        self.spaces.insert(id, SharedSpace { space, users: 1 });
        id
    }

    fn leave_space(&mut self, index: usize) {
        let Some(id) = self.processes[index].space.take() else {
            return;
        };
        if let Some(shared) = self.spaces.get_mut(&id) {
            shared.users -= 1;
            if shared.users == 0 {
                self.spaces.remove(&id);
            }
        }
    }

    fn space_at_mut(&mut self, index: usize) -> Option<&mut AddressSpace> {
        let id = self.processes[index].space?;
        Some(&mut self.spaces.get_mut(&id)?.space)
    }
}

/// Nothing but a stack can be in its range.
fn is_certain(stack: &Stack) -> bool {
    stack.lower_end != LowerEnd::AnyMapping
}

#[cfg(test)]
mod tests {
    use super::super::script::*;
    use super::*;

    const ROOT: u32 = TGID;
    const THREAD: u64 = CLONE_THREAD | CLONE_VM;
    const VFORK: u64 = CLONE_VM | CLONE_VFORK;
    const NOTHING: [&str; 0] = [];

    fn fork(child_tid: u32, flags: u64, stack: Range<u64>) -> Call {
        Call::Fork {
            child_tid,
            flags,
            stack: stack.start,
            stack_top: stack.end,
        }
    }

    fn exec(path: &str) -> Call {
        Call::Exec {
            path: path.to_owned(),
        }
    }

    fn sigaltstack(place: Range<u64>) -> Call {
        Call::Sigaltstack {
            address: place.start,
            length: place.end - place.start,
        }
    }

    fn tree(events: impl IntoIterator<Item = Event>) -> ProcessTree {
        let mut tree = ProcessTree::new(ROOT);
        for event in events {
            tree.apply(&event);
        }
        tree
    }

    fn map(tree: &ProcessTree, tgid: u32) -> Vec<String> {
        text(tree.space(tgid).expect("alive"))
    }

    /// In pages, rounded down.
    fn past_stacks(tree: &ProcessTree, tgid: u32) -> Vec<String> {
        let space = tree.space(tgid).expect("alive");
        let pages = |range: Range<u64>| format!("{}-{}", range.start / P, range.end / P);
        space.past_stacks().map(pages).collect()
    }

    /// Two threads of the root on stacks with a guard page below each.
    fn two_threads() -> Vec<Event> {
        vec![
            at(1, exec("/bin/prog")),
            at(10, mmap(0..P * 4, NONE, ANON | STACK)),
            at(20, mprotect(P..P * 4, RW)),
            at(30, fork(101, THREAD, P..P * 4 - 64)),
            at(40, mmap(P * 4..P * 8, NONE, ANON | STACK)),
            at(50, mprotect(P * 5..P * 8, RW)),
            at(60, fork(102, THREAD, P * 5..P * 8 - 64)),
        ]
    }

    #[test]
    fn threads_have_the_stacks_clone_was_given() {
        let tree = tree(two_threads());
        let process = tree.process(ROOT).expect("alive");
        assert_eq!(process.threads_peak, 3);
        assert_eq!(process.threads[&ROOT], Thread::default());
        assert_eq!(
            process.threads[&102].stack,
            Some(Stack {
                range: P * 5..P * 8 - 64,
                lower_end: LowerEnd::Told
            })
        );
    }

    /// `clone` knows only the top. Below it: a stack mapping, or just any.
    #[test]
    fn a_stack_of_which_only_the_top_is_told_begins_with_its_mapping() {
        let mut events = two_threads();
        events.push(at(70, mmap(P * 20..P * 30, RW, ANON)));
        events.push(at(80, fork(103, THREAD, 0..P * 4 - 64)));
        events.push(at(90, fork(104, THREAD, 0..P * 25)));
        events.push(at(95, fork(105, THREAD, 0..P * 90)));
        let tree = tree(events);
        let stack = |tid| {
            tree.process(ROOT).expect("alive").threads[&tid]
                .stack
                .clone()
        };
        assert_eq!(
            stack(103),
            Some(Stack {
                range: P..P * 4 - 64,
                lower_end: LowerEnd::StackMapping
            })
        );
        assert_eq!(
            stack(104),
            Some(Stack {
                range: P * 20..P * 25,
                lower_end: LowerEnd::AnyMapping
            })
        );
        assert_eq!(stack(105), None);
    }

    #[test]
    fn the_stack_of_an_exited_thread_is_cached_until_reused_or_unmapped() {
        let mut tree = tree(two_threads());
        tree.apply(&by(ROOT, 101, at(70, Call::Exit)));
        tree.apply(&by(ROOT, 102, at(80, Call::Exit)));
        let space = tree.space(ROOT).expect("alive");
        assert_eq!(
            space.past_stacks().collect::<Vec<_>>(),
            [P..P * 4 - 64, P * 5..P * 8 - 64]
        );
        tree.apply(&at(90, fork(103, THREAD, P..P * 4 - 64)));
        tree.apply(&at(100, munmap(P * 4..P * 8)));
        assert_eq!(past_stacks(&tree, ROOT), NOTHING);
        assert_eq!(tree.process(ROOT).expect("alive").threads_peak, 3);
    }

    /// Kernels before 6.16 hand the stack out again before they tell of the exit.
    #[test]
    fn a_stack_reused_before_the_exit_is_told_is_not_cached() {
        let mut events = two_threads();
        events.push(at(70, fork(103, THREAD, P..P * 4 - 64)));
        events.push(by(ROOT, 101, at(80, Call::Exit)));
        let mut tree = tree(events);
        assert_eq!(past_stacks(&tree, ROOT), NOTHING);
        tree.apply(&by(ROOT, 103, at(90, Call::Exit)));
        assert_eq!(past_stacks(&tree, ROOT), ["1-3"]);
    }

    #[test]
    fn goroutine_memory_is_never_taken_for_a_cached_stack() {
        let tree = tree([
            at(1, exec("/bin/go")),
            at(10, mmap(0..P * 90, RW, ANON)),
            at(20, fork(101, THREAD, 0..P * 8)),
            by(ROOT, 101, at(30, Call::Exit)),
        ]);
        assert_eq!(past_stacks(&tree, ROOT), NOTHING);
    }

    #[test]
    fn alternate_stacks_belong_to_threads() {
        let mut tree = tree(two_threads());
        tree.apply(&by(ROOT, 101, at(70, sigaltstack(P * 30..P * 33))));
        tree.apply(&by(ROOT, 102, at(71, sigaltstack(P * 40..P * 43))));
        tree.apply(&by(ROOT, 102, at(72, sigaltstack(0..0))));
        tree.apply(&by(ROOT, 101, at(73, fork(103, THREAD, P * 50..P * 52))));
        let threads = &tree.process(ROOT).expect("alive").threads;
        let alt = |tid| threads[&tid].alt_stack.as_deref().cloned();
        assert_eq!(alt(101), Some(P * 30..P * 33));
        assert_eq!((alt(102), alt(103)), (None, None));
    }

    #[test]
    fn fork_copies_memory_and_the_callers_stacks() {
        let mut events = two_threads();
        events.extend([
            by(ROOT, 101, at(70, sigaltstack(P * 30..P * 33))),
            at(71, mmap(P * 60..P * 64, RW, ANON)),
            at(72, madvise(P * 60..P * 62, libc::MADV_DONTFORK)),
            by(ROOT, 101, at(80, fork(200, 0, 0..0))),
            by(200, 200, at(90, munmap(0..P * 2))),
            at(91, munmap(P * 60..P * 64)),
        ]);
        let tree = tree(events);
        let parent = ["0-1 --- #0", "1-4 rw- #0 was none"];
        let other = ["4-5 --- #1", "5-8 rw- #1 was none"];
        assert_eq!(map(&tree, ROOT), [parent, other].concat());
        assert_eq!(
            map(&tree, 200),
            ["2-4 rw- #0 was none", other[0], other[1], "62-64 rw- #2"]
        );
        let child = tree.process(200).expect("alive");
        assert_eq!(child.parent, Some(ROOT));
        assert_eq!(child.executable.as_deref(), Some("/bin/prog"));
        let thread = &child.threads[&200];
        assert_eq!(
            thread.stack.as_ref().map(|stack| stack.range.start),
            Some(P)
        );
        assert_eq!(thread.alt_stack.as_deref(), Some(&(P * 30..P * 33)));
        // Thread 102 did not come along, its stack did.
        assert_eq!(past_stacks(&tree, 200), ["5-7"]);
        assert!(!tree.share_memory(ROOT, 200));
    }

    #[test]
    fn a_vfork_child_writes_into_its_parents_map_until_exec() {
        let mut tree = tree(two_threads());
        tree.apply(&at(70, fork(200, VFORK, 0..0)));
        tree.apply(&by(200, 200, at(80, munmap(0..P * 4))));
        let parent = ["4-5 --- #1", "5-8 rw- #1 was none"];
        assert_eq!(map(&tree, ROOT), parent);
        assert!(tree.share_memory(ROOT, 200));
        tree.apply(&by(200, 200, at(90, exec("/bin/child"))));
        tree.apply(&by(200, 200, at(95, mmap(0..P, R, ANON))));
        assert_eq!(map(&tree, ROOT), parent);
        assert_eq!(map(&tree, 200), ["0-1 r-- #0"]);
        assert!(!tree.share_memory(ROOT, 200));
    }

    #[test]
    fn the_end_of_a_vfork_child_leaves_its_parents_memory() {
        let mut tree = tree(two_threads());
        tree.apply(&at(70, fork(200, VFORK, P * 5..P * 8 - 64)));
        tree.apply(&by(200, 200, at(80, Call::Exit)));
        assert_eq!(map(&tree, ROOT).len(), 4);
        assert_eq!(past_stacks(&tree, ROOT), NOTHING);
    }

    #[test]
    fn clone_without_vfork_has_no_alternate_stack() {
        let tree = tree([
            at(1, exec("/bin/prog")),
            at(10, sigaltstack(P..P * 4)),
            at(20, fork(200, CLONE_VM, 0..0)),
            at(30, fork(201, VFORK, 0..0)),
        ]);
        let alt = |tgid: u32| {
            let process = tree.process(tgid).expect("alive");
            process.threads[&tgid].alt_stack.as_deref().cloned()
        };
        assert_eq!((alt(200), alt(201)), (None, Some(P..P * 4)));
    }

    #[test]
    fn exec_leaves_one_thread_and_nothing_mapped() {
        let mut events = two_threads();
        events.push(by(ROOT, 101, at(70, Call::Exit)));
        events.push(by(ROOT, 102, at(80, exec("/bin/next"))));
        let tree = tree(events);
        let process = tree.process(ROOT).expect("alive");
        assert_eq!(process.executable.as_deref(), Some("/bin/next"));
        assert_eq!(process.threads, BTreeMap::from([(ROOT, Thread::default())]));
        assert_eq!(process.threads_peak, 1);
        assert_eq!(map(&tree, ROOT), Vec::<String>::new());
        assert_eq!(past_stacks(&tree, ROOT), NOTHING);
    }

    #[test]
    fn a_process_ends_with_its_last_thread() {
        let mut events = two_threads();
        events.push(at(70, Call::Exit));
        events.push(by(ROOT, 101, at(80, Call::Exit)));
        let mut tree = tree(events);
        assert_eq!(tree.process(ROOT).expect("102 lives").threads.len(), 1);
        tree.apply(&by(ROOT, 102, at(90, Call::Exit)));
        assert!(tree.process(ROOT).is_none() && tree.space(ROOT).is_none());
        let record: Vec<_> = tree.processes().collect();
        assert_eq!(record.len(), 1);
        assert_eq!(record[0].ended_ns, Some(91));
        assert_eq!(record[0].threads_peak, 3);
    }

    #[test]
    fn a_tgid_can_come_again() {
        let tree = tree([
            at(1, fork(200, 0, 0..0)),
            by(200, 200, at(2, Call::Exit)),
            at(3, fork(200, 0, 0..0)),
            // The exit of this one was lost.
            at(4, fork(200, 0, 0..0)),
        ]);
        let ends: Vec<_> = tree
            .processes()
            .map(|process| (process.tgid, process.ended_ns))
            .collect();
        assert_eq!(
            ends,
            [(ROOT, None), (200, Some(3)), (200, Some(4)), (200, None)]
        );
    }

    #[test]
    fn clone_parent_makes_a_sibling() {
        let tree = tree([
            at(1, fork(200, 0, 0..0)),
            by(200, 200, at(2, fork(300, CLONE_PARENT, 0..0))),
        ]);
        assert_eq!(tree.process(300).expect("alive").parent, Some(ROOT));
    }

    #[test]
    fn orphans_are_counted_and_lost_threads_found() {
        let tree = tree([
            by(7, 7, at(1, mmap(0..P, RW, ANON))),
            by(7, 7, at(2, Call::Exit)),
            by(ROOT, 105, at(3, mmap(0..P, RW, ANON))),
            by(ROOT, 106, at(4, Call::Exit)),
        ]);
        assert_eq!(tree.orphan_events(), 3);
        let process = tree.process(ROOT).expect("alive");
        assert_eq!(
            process.threads.keys().copied().collect::<Vec<_>>(),
            [ROOT, 105]
        );
        assert_eq!(process.threads_peak, 2);
    }

    /// 100,000 threads: two pieces each, and every lookup must still find the right one.
    #[test]
    fn a_hundred_thousand_threads_fit() {
        let mut tree = ProcessTree::new(ROOT);
        tree.apply(&at(1, exec("/bin/prog")));
        for index in 0..100_000 {
            let (ns, base) = (10 + index * 10, index * 4 * P);
            tree.apply(&at(ns, mmap(base..base + P * 4, NONE, ANON | STACK)));
            tree.apply(&at(ns + 2, mprotect(base + P..base + P * 4, RW)));
            let stack = base + P..base + P * 4;
            tree.apply(&at(ns + 4, fork(1000 + index as u32, THREAD, stack)));
        }
        let space = tree.space(ROOT).expect("alive");
        assert_eq!(space.len(), 200_000);
        let (range, piece) = space.piece_at(77_777 * 4 * P + P).expect("mapped");
        assert_eq!(range.start, 77_777 * 4 * P + P);
        assert_eq!(piece.born_ns, 10 + 77_777 * 10 + 1);
        assert_eq!(tree.process(ROOT).expect("alive").threads_peak, 100_001);
    }
}
