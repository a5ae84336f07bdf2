//! Whole programs, traced with ptrace from their exec to the exit of the last process.
//!
//! What exec puts there has no event, and `ld.so` changes it before anyone looks: these tests hold
//! the adoption of it, and fork, vfork and threads, against the kernel.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use procfs::process::Process;
use profiler::events::{Call, Event};
use profiler::regions::{Comparison, OriginKind, ProcessTree, compare};
use profiler::residency::Vma;

use crate::{call, now_ns, text, vma_inside};

/// When to hold the map of a process against the kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    /// Only when its last thread exits, so that the first comparison comes late.
    AtExit,
    /// Right after exec too.
    AtExecAndExit,
}

/// What became of a traced program.
struct Traced {
    tree: ProcessTree,
    /// Comparisons in the order they were made, with the map before them and the process.
    comparisons: Vec<(u32, Comparison, String)>,
    /// Pieces of each origin at exit: exec, brk, mmap, unknown.
    pieces: [usize; 4],
}

/// A system call that a thread is in.
struct Pending {
    number: i64,
    args: [u64; 6],
    began_ns: u64,
}

struct Tracer {
    when: When,
    traced: Traced,
    /// Process of each thread that we know of.
    tgids: HashMap<i32, u32>,
    pending: HashMap<i32, Pending>,
    /// Threads that stopped before the call that made them told of them. They wait for it.
    early: Vec<i32>,
}

const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
/// `PTRACE_GET_SYSCALL_INFO` and the values of its first byte.
const GET_SYSCALL_INFO: u32 = 0x420e;
const AT_ENTRY: u8 = 1;
const AT_EXIT: u8 = 2;

impl Tracer {
    /// Runs the program to its end.
    #[expect(
        clippy::zombie_processes,
        reason = "a tracer gets the end of its children by waiting for any of them"
    )]
    fn run(command: &mut Command, when: When) -> Traced {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: one system call, which is all that may be done between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let child = command.spawn().expect("the program starts, under ptrace");
        let pid = child.id() as i32;
        let (stopped, _) = wait(pid).expect("the child stops at its exec");
        assert_eq!(stopped, pid);
        let options = libc::PTRACE_O_TRACESYSGOOD
            | libc::PTRACE_O_TRACEEXEC
            | libc::PTRACE_O_TRACEEXIT
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_EXITKILL;
        ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options as u64);
        let mut tracer = Tracer {
            when,
            traced: Traced {
                tree: ProcessTree::new(child.id()),
                comparisons: Vec::new(),
                pieces: [0; 4],
            },
            tgids: HashMap::from([(pid, child.id())]),
            pending: HashMap::new(),
            early: Vec::new(),
        };
        tracer.exec(pid);
        resume(pid, 0);
        while let Some((tid, status)) = wait(-1) {
            if libc::WIFSTOPPED(status) {
                tracer.stopped(tid, status);
            }
        }
        tracer.traced
    }

    fn stopped(&mut self, tid: i32, status: i32) {
        let signal = libc::WSTOPSIG(status);
        let mut deliver = 0;
        match status >> 16 {
            libc::PTRACE_EVENT_EXEC => self.exec(tid),
            libc::PTRACE_EVENT_EXIT => self.exit(tid),
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                self.fork(tid);
            }
            _ if !self.tgids.contains_key(&tid) => return self.early.push(tid),
            _ if signal == SYSCALL_STOP => self.syscall(tid),
            _ if signal != libc::SIGSTOP && signal != libc::SIGTRAP => deliver = signal,
            _ => {}
        }
        resume(tid, deliver);
    }

    fn apply(&mut self, tid: i32, began_ns: u64, call: Call) {
        self.traced.tree.apply(&Event {
            began_ns,
            ended_ns: now_ns(),
            tgid: self.tgids[&tid],
            tid: tid as u32,
            call_stack: 0,
            call,
        });
    }

    fn syscall(&mut self, tid: i32) {
        // struct ptrace_syscall_info: op, arch, instruction and stack pointer; then number and
        // arguments, or result and error flag.
        let mut info = [0_u64; 11];
        let size = size_of_val(&info) as u64;
        ptrace(GET_SYSCALL_INFO, tid, size, info.as_mut_ptr() as u64);
        match info[0] as u8 {
            AT_ENTRY => {
                let [_, _, _, number, a, b, c, d, e, f, _] = info;
                let pending = Pending {
                    number: number as i64,
                    args: [a, b, c, d, e, f],
                    began_ns: now_ns(),
                };
                self.pending.insert(tid, pending);
            }
            AT_EXIT => {
                let failed = info[4] as u8 != 0;
                if let Some(entry) = self.pending.remove(&tid)
                    && let Some(call) = call(entry.number, entry.args, info[3])
                    && !failed
                {
                    self.apply(tid, entry.began_ns, call);
                }
            }
            other => panic!("a stop that is no system call: {other}"),
        }
    }

    fn fork(&mut self, tid: i32) {
        let mut child = 0_u64;
        let child_at = &raw mut child as u64;
        ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, child_at);
        let entry = self.pending.get(&tid).expect("a call makes the child");
        let [first, second, ..] = entry.args;
        let (flags, stack, stack_top) = match entry.number {
            libc::SYS_clone3 => {
                // struct clone_args: flags is the first word, stack and its size the sixth and seventh.
                let word = |index: u64| peek(tid, first + index * 8);
                (word(0), word(5), word(5) + word(6))
            }
            libc::SYS_clone => (first, 0, second),
            libc::SYS_vfork => ((libc::CLONE_VFORK | libc::CLONE_VM) as u64, 0, 0),
            _ => (0, 0, 0),
        };
        let child_tid = child as u32;
        let tgid = if flags & libc::CLONE_THREAD as u64 != 0 {
            self.tgids[&tid]
        } else {
            child_tid
        };
        let call = Call::Fork {
            child_tid,
            flags,
            stack,
            stack_top,
        };
        self.apply(tid, now_ns(), call);
        self.tgids.insert(child as i32, tgid);
        if let Some(index) = self.early.iter().position(|early| *early == child as i32) {
            self.early.swap_remove(index);
            resume(child as i32, 0);
        }
    }

    fn exec(&mut self, tid: i32) {
        let path = "traced".to_owned();
        self.apply(tid, now_ns(), Call::Exec { path });
        if self.when == When::AtExecAndExit {
            self.compare(tid);
        }
    }

    fn exit(&mut self, tid: i32) {
        let process = self.traced.tree.process(self.tgids[&tid]);
        if process.expect("alive").threads.len() == 1 {
            self.compare(tid);
            self.count_pieces(tid);
        }
        self.apply(tid, now_ns(), Call::Exit);
    }

    fn compare(&mut self, tid: i32) {
        let tgid = self.tgids[&tid];
        let maps = Process::new(tid).and_then(|process| process.maps());
        let vmas: Vec<Vma> = maps
            .expect("maps of a stopped process can be read")
            .0
            .iter()
            .filter_map(|map| vma_inside(map, &(0..u64::MAX)))
            .collect();
        let space = self.traced.tree.space_mut(tgid).expect("alive");
        let before = text(space);
        let result = compare(space, &vmas);
        self.traced
            .comparisons
            .push((tgid, result, format!("{before}{vmas:x?}")));
    }

    fn count_pieces(&mut self, tid: i32) {
        let space = self.traced.tree.space(self.tgids[&tid]).expect("alive");
        for (_, piece) in space.pieces() {
            let index = match space.origin(piece.origin).kind {
                OriginKind::Exec => 0,
                OriginKind::Brk => 1,
                OriginKind::Mmap { .. } => 2,
                OriginKind::Unknown => 3,
            };
            self.traced.pieces[index] += 1;
        }
    }
}

impl Traced {
    fn assert_agrees(&self) {
        for (tgid, result, before) in &self.comparisons {
            assert!(result.agrees(), "process {tgid}: {result:?}\n{before}");
        }
        let [exec, brk, mmap, unknown] = self.pieces;
        assert!(exec > 0 && brk > 0 && mmap > 0, "{:?}", self.pieces);
        assert_eq!(unknown, 0);
        assert_eq!(self.tree.orphan_events(), 0);
        assert!(self.tree.processes().all(|process| !process.is_alive()));
    }
}

/// A stop or an end of a child of this thread (the children of other tests are not ours).
fn wait(pid: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place to write to.
    let pid = unsafe { libc::waitpid(pid, &mut status, libc::__WALL | libc::__WNOTHREAD) };
    (pid > 0).then_some((pid, status))
}

fn ptrace(request: u32, tid: i32, address: u64, data: u64) -> i64 {
    // SAFETY: the tracee is ours and stopped; where the kernel writes to `data`, the callers pass
    // the address of a variable of the size that the request asks for.
    unsafe { libc::ptrace(request, tid, address, data) }
}

/// A tracee that was killed meanwhile cannot be resumed, and need not be.
fn resume(tid: i32, signal: i32) {
    ptrace(libc::PTRACE_SYSCALL, tid, 0, signal as u64);
}

/// A word of the tracee's memory.
fn peek(tid: i32, address: u64) -> u64 {
    ptrace(libc::PTRACE_PEEKDATA, tid, address, 0) as u64
}

#[test]
fn a_shell_with_children_agrees_with_the_kernel() {
    for when in [When::AtExit, When::AtExecAndExit] {
        // Children that exec, and some that go on in their copy of the shell's memory.
        let script = "/bin/true; (read x; :); (x=$(seq 100000); :); /bin/ls / | /bin/cat";
        let traced = Tracer::run(Command::new("/bin/sh").args(["-c", script]), when);
        traced.assert_agrees();
        let processes = traced.tree.processes().count();
        assert!(processes >= 5, "{processes} processes");
        assert!(traced.comparisons.len() >= processes);
    }
}

#[test]
fn a_program_with_threads_agrees_with_the_kernel() {
    let this = std::env::current_exe().expect("we run from a file");
    for when in [When::AtExit, When::AtExecAndExit] {
        let arguments = ["--exact", "programs::threads_come_and_go"];
        let traced = Tracer::run(Command::new(&this).args(arguments), when);
        traced.assert_agrees();
        let peak = traced.tree.processes().map(|process| process.threads_peak);
        assert!(peak.max() >= Some(THREADS + 1));
    }
}

const THREADS: usize = 8;

/// The program of the test above: threads with heaps of their own, twice, on cached stacks.
#[test]
fn threads_come_and_go() {
    for round in 0..2 {
        let start = std::sync::Barrier::new(THREADS);
        let bytes: usize = thread::scope(|scope| {
            let work = |index: usize| {
                start.wait();
                vec![1_u8; (index + round + 1) << 16].len()
            };
            let threads: Vec<_> = (0..THREADS)
                .map(|index| scope.spawn(move || work(index)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("it does not panic"))
                .sum()
        });
        assert_eq!(bytes, (THREADS * (THREADS + 1) / 2 + THREADS * round) << 16);
    }
}
