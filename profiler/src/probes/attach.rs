//! Loads the eBPF object and attaches its programs.
//!
//! Attaches to `syscalls:sys_enter_*`, `sys_exit_*` or both of [`SYSCALLS`], `task:task_newtask`,
//! `sched:sched_process_exec` and `sched:sched_process_exit`; produces the ring of records that
//! [`crate::events::decode`] understands.

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{ProgramError, ProgramFd, TracePoint},
};
use profiler_ebpf::{counter, ledger_wire, names};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    call_stacks::{self, CallStackProbe},
    functions::{allocates_in_probes, load_after_end, preempts_calls},
    intake::Intake,
    layout::Layout,
    ledger::{self, LedgerProbes},
    object,
    skipped::skipped,
    tier::{Tier, TierError},
    tracefs::{self, TracefsError},
};
use crate::privileges::{is_admin, may_probe, while_probing};

/// The hooked calls: name, and whether the region map is right without it. A call that this kernel
/// does not have cannot be made either, so a missing tracepoint costs nothing.
const SYSCALLS: [&str; 12] = [
    "mmap",
    "munmap",
    "mremap",
    "brk",
    "mprotect",
    "pkey_mprotect",
    "madvise",
    "clone",
    "clone3",
    "memfd_create",
    "sigaltstack",
    "prctl",
];

/// Those that every thread that is started needs, and of which nobody asks when they began: where the registers can be
/// read, their return tells all.
const BY_REGISTERS: [&str; 2] = ["mmap", "mprotect"];
/// Those that are hooked for the stack of the child, which `task_newtask` finds itself where the registers can be read.
const CLONES: [&str; 2] = ["clone", "clone3"];

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Where it attaches: `syscalls:sys_exit_mmap`.
    pub name: String,
    /// Attached or off.
    pub state: ProbeState,
    /// Why it is off.
    pub reason: Option<String>,
}

/// Whether a probe runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeState {
    /// It runs.
    Attached,
    /// It does not; the reason stands beside it.
    Off,
}

/// The highest `kernel.perf_event_paranoid` with which CAP_PERFMON is enough in every kernel.
const PARANOID: i32 = 2;

/// Why the probes could not be attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The kernel refuses BPF to this user.
    #[error(
        "no permission to load eBPF programs: seen {seen}, expected root or CAP_BPF and CAP_PERFMON; try `sudo profiler …`, \
         or once `sudo profiler setup`"
    )]
    Permission {
        /// Effective uid and the sysctl that matters.
        seen: String,
    },
    /// Debian's and Ubuntu's kernels keep perf events, and tracepoints with them, for `CAP_SYS_ADMIN` while this
    /// sysctl is above [`PARANOID`].
    #[error(
        "tracepoints are for root alone here: seen kernel.perf_event_paranoid={seen}, expected {PARANOID} or less; try \
         `sudo profiler …`, or `sudo sysctl kernel.perf_event_paranoid={PARANOID}`"
    )]
    PerfEventParanoid {
        /// What it is.
        seen: i32,
    },
    /// The kernel lacks something that the probes need.
    #[error(
        "this kernel ({release}) refuses the probes: {reason}; expected Linux 5.10 or later with CONFIG_BPF_SYSCALL and tracepoints"
    )]
    Kernel {
        /// `uname -r`
        release: String,
        /// What failed.
        reason: String,
    },
    /// tracefs is needed to find tracepoints.
    #[error(transparent)]
    Tracefs(#[from] TracefsError),
    /// The object and this program do not fit each other: a bug.
    #[error("the eBPF object lacks {0}; this is a bug")]
    Object(String),
    /// The page ledger cannot be had here.
    #[error("no page ledger: {0}")]
    Tier(#[from] TierError),
    /// The thread that empties the ring could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// A map could not be used.
    #[error("eBPF map: {0}")]
    Map(#[from] MapError),
}

/// The attached probes. Dropping them detaches everything.
pub struct Probes {
    /// Records from the kernel.
    pub ring: Intake,
    followed: HashMap<MapData, u32, u8>,
    counters: PerCpuArray<MapData, u64>,
    /// Call stacks, where they are taken.
    pub call_stacks: Option<CallStackProbe>,
    /// Every probe and its state.
    pub states: Vec<Probe>,
    /// The page ledger, in tiers A and B.
    pub ledger: Option<LedgerProbes>,
    /// Those that write records, for statistics.
    programs: Vec<ProgramFd>,
    /// Keeps programs and links alive.
    ebpf: Ebpf,
}

/// Who is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// Those that are given, and every child of theirs from its start.
    Tree,
    /// Those that are given, and nobody else.
    OnlyGiven,
}

/// How large the maps are that depend on what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of the ring, a power of two.
    pub ring_bytes: u32,
    /// Whether the call stacks of calls that make memory are taken.
    pub call_stacks: bool,
    /// Stretches of 2 MiB of which the ledger can keep a copy: 96 bytes in the pool and some 80 in the table
    /// that finds them.
    pub chunks: u32,
    /// The same for the peaks of single processes, which need copies of their own only where they are not
    /// those of the tree.
    pub own_chunks: u32,
    /// Processes that can be followed at once: 80 bytes each.
    pub processes: u32,
    /// Threads that can be in a hooked call at once: 16 bytes each, and 136 for each that is (before Linux 6.1 for
    /// each that can be).
    pub in_flight: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes {
            ring_bytes: 8 << 20,
            call_stacks: false,
            chunks: 1 << 19,
            own_chunks: 1 << 16,
            processes: 1 << 16,
            // Any number of threads that end at once can wait for the lock on the address space, in `munmap` or
            // `madvise`.
            in_flight: 1 << 17,
        }
    }
}

/// Up to so many it is smaller, by 6 MiB: 2 MiB are some 20,000 records, which those do not make between two times that it
/// is emptied.
const FEW_THREADS: u64 = 1000;
/// Room for calls of other threads than those that are known.
const OTHER_CALLS: u32 = 1 << 14;
/// Room is made for no more calls than this: 32 MiB of the kernel's memory (272 before Linux 6.1).
const MOST_IN_FLIGHT: u32 = 1 << 21;

impl Sizes {
    /// For a program that is going to have about so many threads: each has a stack of its own, which lies in
    /// one or two stretches (1.0 for C and Rust, 1.3 for Java, with all the rest), and those of 64 GiB are left for
    /// everything else.
    pub fn for_threads(threads: u64) -> Sizes {
        let everything = Sizes::default();
        let chunks = threads.saturating_add(threads / 2).saturating_add(1 << 15);
        Sizes {
            chunks: chunks.min(u64::from(everything.chunks)) as u32,
            // One process has nearly all of the memory.
            own_chunks: 1 << 14,
            processes: 1 << 12,
            in_flight: u32::try_from(threads)
                .unwrap_or(u32::MAX)
                .saturating_add(OTHER_CALLS)
                .min(MOST_IN_FLIGHT),
            // They all end at once, with some 300 bytes of records each, while nobody else gets a CPU.
            ring_bytes: if threads <= FEW_THREADS {
                everything.ring_bytes / 4
            } else {
                everything.ring_bytes
            },
            ..everything
        }
    }
}

impl Probes {
    /// Loads and attaches everything but the ledger (tier C).
    pub fn attach(sizes: Sizes) -> Result<Probes, AttachError> {
        Probes::attach_tier(sizes, Tier::C, Whom::Tree)
    }

    /// Loads and attaches everything, the ledger of this tier too ([`Tier::A`] or [`Tier::B`]).
    pub fn attach_with_ledger(sizes: Sizes, tier: Tier) -> Result<Probes, AttachError> {
        Probes::attach_tier(sizes, tier, Whom::Tree)
    }

    /// Loads and attaches what a tier needs. The error is [`AttachError::Tier`] where a worse tier may
    /// still be had.
    ///
    /// Tier D has no probes, so that nothing but tier C's could be attached for it.
    pub fn attach_tier(sizes: Sizes, tier: Tier, whom: Whom) -> Result<Probes, AttachError> {
        while_probing(|| match tier {
            Tier::A | Tier::B => {
                make_tracefs_available()?;
                Probes::load(sizes, whom, Some(&Layout::find_out(tier)?))
            }
            Tier::C | Tier::D => Probes::load(sizes, whom, None),
        })
    }

    fn load(sizes: Sizes, whom: Whom, layout: Option<&Layout>) -> Result<Probes, AttachError> {
        make_tracefs_available()?;
        let offset = |category, name, field| {
            tracefs::field_offset(category, name, field).map_err(as_permission)
        };
        let newtask_pid = offset("task", "task_newtask", "pid")?;
        let newtask_flags = offset("task", "task_newtask", "clone_flags")?;
        let exec_filename = offset("sched", "sched_process_exec", "filename")?;
        let exec_old_pid = offset("sched", "sched_process_exec", "old_pid")?;

        let mut loader = EbpfLoader::new();
        if let Some(layout) = layout {
            for (name, value) in &layout.globals {
                loader.override_global(name, value, true);
            }
            loader
                .map_max_entries(ledger_wire::names::POOL, sizes.chunks)
                .map_max_entries(ledger_wire::names::CHUNKS, sizes.chunks)
                .map_max_entries(ledger_wire::names::OWN_POOL, sizes.own_chunks)
                .map_max_entries(ledger_wire::names::OWN_CHUNKS, sizes.own_chunks)
                .map_max_entries(
                    ledger_wire::names::CPU_OFFSETS,
                    layout.cpu_offsets.len().max(1) as u32,
                );
        }
        CallStackProbe::size(&mut loader, sizes.call_stacks);
        let object = match allocates_in_probes() {
            true => object::with_table_on_demand(names::IN_FLIGHT),
            false => object::BYTES.into(),
        };
        let only_given = u32::from(whom == Whom::OnlyGiven);
        let mut ebpf = loader
            .override_global(names::ONLY_GIVEN, &only_given, true)
            .override_global(names::NEWTASK_PID_OFFSET, &newtask_pid, true)
            .override_global(names::NEWTASK_FLAGS_OFFSET, &newtask_flags, true)
            .override_global(names::EXEC_FILENAME_OFFSET, &exec_filename, true)
            .override_global(names::EXEC_OLD_PID_OFFSET, &exec_old_pid, true)
            .map_max_entries(names::RING, sizes.ring_bytes)
            .map_max_entries(names::IN_FLIGHT, sizes.in_flight)
            .map_max_entries(names::FOLLOWED, sizes.processes)
            .load(&object)
            .map_err(load_error)?;

        let of_ledger = match layout {
            Some(layout) => {
                let types = aya::Btf::from_sys_fs().map_err(TierError::kernel)?;
                if layout.tier == Tier::A {
                    load_after_end(&mut ebpf, &types)?;
                }
                Some((layout, types))
            }
            None => None,
        };
        let mut states = Vec::new();
        let mut taken = match sizes.call_stacks {
            true => CallStackProbe::attach(&mut ebpf, &mut states)?,
            false => None,
        };
        let by_registers = load_by_registers(&mut ebpf, &mut states)?;
        let has_stack = |call: &&str| taken.is_some() && call_stacks::SYSCALLS.contains(call);
        let at_return =
            |call: &&str| by_registers && BY_REGISTERS.contains(call) && !has_stack(call);
        let is_hooked = |call: &&str| !(at_return(call) || by_registers && CLONES.contains(call));
        let hooked = || SYSCALLS.into_iter().filter(is_hooked);
        let of = |side, call| ("syscalls", format!("sys_{side}_{call}"));
        let first = hooked().filter(|call| !has_stack(call));
        let first: Vec<_> = first.map(|call| of("enter", call)).collect();
        let entries: Vec<_> = hooked().map(|call| of("enter", call)).collect();
        let exits: Vec<_> = hooked().map(|call| of("exit", call)).collect();
        let returns = SYSCALLS.into_iter().filter(at_return);
        let returns: Vec<_> = returns.map(|call| of("exit", call)).collect();
        let one = |category, name: &str| vec![(category, name.to_owned())];
        let newtask = match by_registers {
            true => names::NEWTASK_BY_REGISTERS,
            false => names::NEWTASK,
        };
        let mut programs = vec![
            (newtask, one("task", "task_newtask")),
            (names::EXEC, one("sched", "sched_process_exec")),
            (names::EXIT, one("sched", "sched_process_exit")),
            // Entries first: an exit without its entry is ignored, an entry without its exit would stay.
            (names::ENTER_SYSCALL, first),
            (names::EXIT_SYSCALL, exits.clone()),
        ];
        if by_registers {
            programs.push((names::EXIT_BY_REGISTERS, returns));
        }
        if preempts_calls() {
            for (enter, exit) in names::AGAIN {
                programs.push((enter, entries.clone()));
                programs.push((exit, exits.clone()));
            }
        }
        let mut programs = programs
            .iter()
            .map(|(name, tracepoints)| attach_program(&mut ebpf, name, tracepoints, &mut states))
            .collect::<Result<Vec<_>, _>>()?;
        programs.extend(taken.as_mut().and_then(|taken| taken.program.take()));

        let ledger = of_ledger
            .map(|(layout, types)| {
                LedgerProbes::attach(&mut ebpf, layout, &types, sizes, &mut states)
            })
            .transpose()?;

        let mut take = |name: &str| {
            ebpf.take_map(name)
                .ok_or_else(|| AttachError::Object(format!("map {name}")))
        };
        Ok(Probes {
            ring: Intake::new(RingBuf::try_from(take(names::RING)?)?)
                .map_err(AttachError::Thread)?,
            followed: HashMap::try_from(take(names::FOLLOWED)?)?,
            counters: PerCpuArray::try_from(take(names::COUNTERS)?)?,
            call_stacks: taken,
            states,
            ledger,
            programs,
            ebpf,
        })
    }

    /// Follows a process; its future children are followed by the kernel side itself.
    pub fn follow(&mut self, tgid: u32) -> Result<(), AttachError> {
        Ok(self.followed.insert(tgid, 1, 0)?)
    }

    /// Lets the page ledger look at the memory of followed processes that it does not know yet, and makes what they
    /// have now its first candidate; later, looks whether they have more than any candidate. Without a ledger
    /// there is nothing to do.
    pub fn look_at_existing(&mut self) -> Result<(), AttachError> {
        match &self.ledger {
            Some(_) => ledger::look_at_existing(&mut self.ebpf).map_err(AttachError::Tier),
            None => Ok(()),
        }
    }

    /// Forgets a process that has ended, so that a new one with its number is not taken for it.
    pub fn forget(&mut self, tgid: u32) {
        // Not there: the process was never followed, which is what we want.
        let _ = self.followed.remove(&tgid);
    }

    /// How many probes run.
    pub fn attached(&self) -> usize {
        self.states
            .iter()
            .filter(|probe| probe.state == ProbeState::Attached)
            .count()
    }

    /// Records lost so far, for whatever reason.
    pub fn dropped(&self) -> Result<u64, AttachError> {
        let mut total = 0;
        for index in 0..counter::COUNT {
            total += self.counters.get(&index, 0)?.iter().sum::<u64>();
        }
        Ok(total)
    }

    /// How often a program that writes records was skipped, for a call of any process on the machine.
    pub fn skipped(&self) -> u64 {
        skipped(&self.programs).iter().map(|(_, times)| times).sum()
    }
}

fn attach_program(
    ebpf: &mut Ebpf,
    program: &str,
    tracepoints: &[(&str, String)],
    states: &mut Vec<Probe>,
) -> Result<ProgramFd, AttachError> {
    let program = tracepoint(ebpf, program)?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(error) => return Err(program_error(error)),
    }
    for (category, name) in tracepoints {
        let (state, reason) = match program.attach(category, name) {
            Ok(_) => (ProbeState::Attached, None),
            Err(error) if *category == "syscalls" => (ProbeState::Off, Some(error.to_string())),
            Err(error) => return Err(program_error(error)),
        };
        states.push(Probe {
            name: format!("{category}:{name}"),
            state,
            reason,
        });
    }
    let fd = program.fd().map_err(program_error)?;
    fd.try_clone().map_err(|error| kernel_error(&error))
}

/// Whether the programs are loaded that read arguments from registers. What is skipped on a kernel that preempts calls is
/// done by another program, which finds in the table what was done; without the table, it could not.
fn load_by_registers(ebpf: &mut Ebpf, states: &mut Vec<Probe>) -> Result<bool, AttachError> {
    if preempts_calls() {
        return Ok(false);
    }
    for name in [names::EXIT_BY_REGISTERS, names::NEWTASK_BY_REGISTERS] {
        if let Err(error) = tracepoint(ebpf, name)?.load() {
            let calls = [BY_REGISTERS, CLONES].concat().join(", ");
            states.push(Probe {
                name: "syscalls: arguments from registers".to_owned(),
                state: ProbeState::Off,
                reason: Some(format!(
                    "{calls} are hooked at their entry, too; that is not needed from Linux 5.15 on: {error}"
                )),
            });
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn tracepoint<'a>(
    ebpf: &'a mut Ebpf,
    program: &str,
) -> Result<&'a mut TracePoint, AttachError> {
    ebpf.program_mut(program)
        .and_then(|found| found.try_into().ok())
        .ok_or_else(|| AttachError::Object(format!("program {program}")))
}

fn load_error(error: EbpfError) -> AttachError {
    match error {
        EbpfError::MapError(_) if !may_probe() => permission_error(),
        EbpfError::ProgramError(error) => program_error(error),
        error => kernel_error(&error),
    }
}

pub(super) fn program_error(error: ProgramError) -> AttachError {
    if !may_probe() {
        return permission_error();
    }
    match sysctl("perf_event_paranoid").parse() {
        Ok(seen) if seen > PARANOID && !is_admin() && is_for_want_of_permission(&error) => {
            AttachError::PerfEventParanoid { seen }
        }
        _ => kernel_error(&error),
    }
}

/// Whether the kernel's own error at the bottom says so (`EACCES` or `EPERM`).
fn is_for_want_of_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut errors = std::iter::successors(Some(error), |error| error.source());
    errors.any(|error| {
        error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    })
}

/// Without permission, what fails next says so in clearer words.
fn make_tracefs_available() -> Result<(), TracefsError> {
    tracefs::make_available().or_else(|error| if may_probe() { Err(error) } else { Ok(()) })
}

/// A file of tracefs that cannot be read says "not root" more often than anything else.
fn as_permission(error: TracefsError) -> AttachError {
    if may_probe() {
        error.into()
    } else {
        permission_error()
    }
}

pub(super) fn kernel_error(error: &dyn std::error::Error) -> AttachError {
    let release =
        nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    AttachError::Kernel {
        release: release.unwrap_or_default(),
        reason,
    }
}

/// `?` where it cannot be read.
fn sysctl(name: &str) -> String {
    let value = std::fs::read_to_string(format!("/proc/sys/kernel/{name}"));
    value.map_or_else(|_| "?".to_owned(), |value| value.trim().to_owned())
}

fn permission_error() -> AttachError {
    AttachError::Permission {
        seen: format!(
            "uid {} (kernel.unprivileged_bpf_disabled={}, kernel.perf_event_paranoid={})",
            nix::unistd::geteuid(),
            sysctl("unprivileged_bpf_disabled"),
            sysctl("perf_event_paranoid"),
        ),
    }
}
