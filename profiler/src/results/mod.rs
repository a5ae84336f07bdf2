//! The document that a run leaves behind: schema version 1 of `results.json`.
//!
//! Bytes and seconds throughout; the unit stands in the field's name. Charts and reports are drawn
//! from this document alone, so they can be drawn again from a file. `docs/results.md` documents the
//! schema for readers of the JSON.

pub mod accuracy;
pub mod call_stacks;
pub mod compare;
pub mod gates;
pub mod launch;
pub mod merge;
pub mod slopes;
pub mod store;
pub mod summary;
pub mod theil_sen;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::classify::{Class, Leaf};
pub use crate::{
    call_stacks::{CallStack, Frame},
    classify::Classes,
    kernel_memory::{GroupCheck, Kernel, SlabKind},
    probes::{
        attach::{Probe, ProbeState},
        call_stacks::CallStackCounts,
        counters::{Counters, Scope},
    },
};
pub use call_stacks::MadeBytes;

/// Version of the schema below. Raised when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything that one invocation measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Where it was measured.
    pub host: Host,
    /// One entry a run, in the order of running.
    pub runs: Vec<Run>,
    /// What a task costs, worked out from `runs`: see [`slopes::slopes`].
    #[serde(default)]
    pub slopes: Vec<slopes::Slope>,
}

impl Results {
    /// Those of a single run.
    pub fn of_run(run: Run, host: Host) -> Results {
        Results {
            schema_version: SCHEMA_VERSION,
            host,
            runs: vec![run],
            slopes: Vec::new(),
        }
    }
}

/// The machine and the settings that move memory figures.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Host {
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Name of the distribution (`PRETTY_NAME` of os-release).
    pub os: String,
    /// Model name of the first CPU.
    pub cpu: String,
    /// CPUs online.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Swap in bytes.
    pub swap_bytes: u64,
    /// The bracketed word of `/sys/kernel/mm/transparent_hugepage/enabled`.
    pub transparent_hugepages: String,
    /// `vm.overcommit_memory`
    pub overcommit_memory: u32,
    /// `kernel.randomize_va_space`
    pub randomize_va_space: u32,
    /// Version of the profiler.
    pub profiler_version: String,
    /// Where the eBPF object came from: built from source with which toolchain, or the committed one.
    pub ebpf_object: String,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Exit status 0 and, for a benchmark program, all tasks alive at once for long enough.
    Completed,
    /// The program ran, but not as it should; `reason` says what happened. Figures are those up to then.
    Failed,
    /// The program could not be run here; `reason` says why and what would help.
    Unavailable,
}

/// One run of one program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the program's folder, or of the executable for any other command.
    pub program: String,
    /// Name for people: `Rust tokio`.
    pub label: String,
    /// Colour of the program in charts: `#rrggbb`; `None` lets the chart choose.
    pub colour: Option<String>,
    /// Versions of the runtime and of the libraries that matter.
    pub version: String,
    /// Command and arguments.
    pub command: Vec<String>,
    /// N: the number of concurrent tasks asked for, or the value of `parameter`; `None` for a command that is
    /// neither a benchmark program nor part of a sweep.
    pub tasks: Option<u64>,
    /// Name of the parameter of a sweep (`-P`), of which `tasks` is the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// Seconds that each task waits.
    pub task_seconds: Option<f64>,
    /// How many bytes of its stack each task has called down while it waits; 0: as few as it takes.
    #[serde(default)]
    pub stack_depth_bytes: u64,
    /// Bytes of an array that each task holds while it waits; 0: none.
    #[serde(default)]
    pub payload_bytes: u64,
    /// 0 for the first repeat.
    pub repeat: u32,
    /// When the run began: UTC, RFC 3339, whole seconds.
    pub started_at: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not complete, in one sentence.
    pub reason: Option<String>,
    /// Exit status, 128 + signal number when a signal ended it.
    pub exit_status: Option<i32>,
    /// For `profiler attach`: what was found, and what cannot be known. Times are then after attaching where
    /// they are said to be after exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attached>,
    /// From exec to exit.
    pub wall_seconds: f64,
    /// Part of `wall_seconds` for which the tree was stopped to be scanned.
    pub frozen_seconds: f64,
    /// From exec to the program's word that all tasks are alive.
    pub launch_seconds: Option<f64>,
    /// The program's own count of tasks alive at once, at its highest.
    pub live_tasks_peak: Option<u64>,
    /// The moment of highest RSS that was seen; `None` when the program ended before it was looked at.
    pub peak: Option<Peak>,
    /// RSS over time, and its composition.
    pub timeline: Vec<TimelinePoint>,
    /// What the program did when; empty for a command that does not say.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// Every process of the tree.
    pub processes: Vec<Process>,
    /// perf counters of the tree.
    pub counters: Counters,
    /// How much of the event stream arrived.
    pub events: EventCounts,
    /// Every probe, attached or not.
    pub probes: Vec<Probe>,
    /// What a reader should know before trusting the figures.
    pub warnings: Vec<String>,
    /// Environment variables and limits that move memory figures, `NAME=value`.
    pub settings: Vec<String>,
    /// What the page ledger found; `None` in tier C.
    #[serde(default)]
    pub ledger: Option<Ledger>,
    /// Better tiers that were tried first.
    #[serde(default)]
    pub refused_tiers: Vec<RefusedTier>,
    /// Adapters that looked inside heaps and stacks, when the tree was at rest.
    #[serde(default)]
    pub adapters: Vec<Adapter>,
    /// What measuring took.
    #[serde(default)]
    pub own_cost: Option<OwnCost>,
    /// Limits that it was to keep.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<gates::Gate>,
    /// Call stacks that made the memory at the peak; [`Region::call_stack`] and
    /// [`call_stacks::MadeBytes::call_stack`] are indices into this.
    #[serde(default)]
    pub call_stacks: Vec<CallStack>,
    /// How many calls had their stack taken; `None` where that was switched off, or cannot be had.
    #[serde(default)]
    pub call_stack_counts: Option<CallStackCounts>,
    /// The runtime's own books right after that; asked for by `cargo xtask accuracy` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub books: Option<BTreeMap<String, u64>>,
}

/// A process that ran before the profiler came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// Its process id.
    pub pid: u32,
    /// Why it was followed no longer.
    pub ended_by: AttachEnd,
    /// RSS of its tree when the profiler attached; `peak` is the highest since then.
    pub rss_bytes_at_attach: u64,
    /// Sum of the kernel's high-water marks (`VmHWM`) of its processes at that moment: all that is known of the
    /// peak before.
    pub vm_hwm_bytes_at_attach: u64,
    /// Processes followed from the start.
    pub processes_at_attach: u64,
    /// Their threads.
    pub threads_at_attach: u64,
    /// What cannot be known, or could not be done, one sentence each.
    pub unknown: Vec<String>,
}

/// Why a process was followed no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachEnd {
    /// The time that was asked for was over.
    Duration,
    /// Ctrl-C, or another signal to the profiler.
    Signal,
    /// It ended.
    Exit,
}

/// What one adapter found in one process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    /// The process.
    pub tgid: u32,
    /// Name of the adapter.
    pub name: String,
    /// When the process was frozen for it, in seconds after exec.
    pub at_seconds: f64,
    /// How long it took; the process was frozen meanwhile.
    pub took_seconds: f64,
    /// CPU time of the profiler meanwhile, all its threads together; where the machine is shared, what remains of
    /// `took_seconds` is waiting for a CPU.
    #[serde(default)]
    pub cpu_seconds: f64,
    /// Why it gave up; the regions are undivided then.
    pub refusal: Option<String>,
    /// What it found, resident or not: bytes where the name ends with `_bytes`, else a number.
    pub books: BTreeMap<String, u64>,
}

/// What the profiler itself took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnCost {
    /// Its highest RSS while it loaded the probes, before the target began.
    pub start_peak_rss_bytes: u64,
    /// Its CPU time until then.
    pub start_cpu_seconds: f64,
    /// Its highest RSS from then on, which includes those maps that it reads in place.
    pub peak_rss_bytes: u64,
    /// The same until the target had ended: without reading the ledger and working out the results. 0 in older
    /// results.
    #[serde(default)]
    pub alive_peak_rss_bytes: u64,
    /// Those maps: part of either figure, and of `maps` too.
    #[serde(default)]
    pub mapped_bytes: u64,
    /// Its CPU time from then on, until the ledger was read.
    pub cpu_seconds: f64,
    /// Its eBPF maps, in memory of the kernel.
    pub maps: Vec<MapCost>,
}

/// One eBPF map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapCost {
    /// Its name.
    pub name: String,
    /// Kernel memory, as the kernel works it out.
    pub bytes: u64,
}

/// A tier that cannot be had here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTier {
    /// `"A"` or `"B"`.
    pub tier: String,
    /// Why.
    pub reason: String,
}

/// The page ledger's own account: what it found, and everything that it may have missed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Ledger {
    /// `"A"` or `"B"`: what fed it.
    pub tier: String,
    /// The composition in `peak` is the ledger's (else that of a scan which found more).
    pub composed: bool,
    /// Highest RSS of the tree by the kernel's exact counters, looked at before every removal.
    pub highest_bytes: u64,
    /// When that was, in seconds after exec.
    pub highest_at_seconds: f64,
    /// RSS by the same counters at the moment whose composition is told.
    pub composed_bytes: u64,
    /// By how much the composition may be off: highest less composed, plus missing
    /// and extra.
    pub error_bound_bytes: u64,
    /// Counted by the kernel at that moment, and in no page found.
    pub missing_bytes: u64,
    /// Pages found that the kernel does not count.
    pub extra_bytes: u64,
    /// Pages found in no mapping of that moment: they came later, and are left out.
    pub unmapped_bytes: u64,
    /// Candidates for the peak.
    pub candidates: u64,
    /// Removals that were looked at.
    pub removals: u64,
    /// Stretches of 2 MiB that were copied before they changed.
    pub copies: u64,
    /// Copies that found no room.
    pub pool_full: u64,
    /// Address spaces that found no room.
    pub spaces_full: u64,
    /// Page tables that could not be read.
    pub unreadable: u64,
    /// Times that memory went without a removal that was seen (reclaim, truncated files).
    pub unseen_removals: u64,
    /// Runs of a probe that were skipped because it was running already.
    pub recursion_misses: u64,
    /// Processes whose pages were scanned at the end, because they outlive the command.
    pub rescans: u64,
    /// The losses in one sentence; `None`: nothing was lost.
    pub loss: Option<String>,
}

/// The composition of the tree's memory at the highest RSS that a scan saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peak {
    /// Seconds after exec.
    pub at_seconds: f64,
    /// RSS of the tree, summed over processes: the classes sum to this, to the byte.
    pub rss_bytes: u64,
    /// PSS of the tree.
    pub pss_bytes: u64,
    /// Sum over processes of the kernel's own high-water mark (`VmHWM`), as last read.
    pub vm_hwm_bytes: u64,
    /// `"A"`, `"B"`, `"C"` or `"D"`: how residency was followed.
    pub tier: String,
    /// By how much the true peak may exceed `rss_bytes`: the kernel's high-water mark less `rss_bytes`.
    pub error_bound_bytes: u64,
    /// RSS by class.
    pub classes: Classes,
    /// RSS by leaf, largest first.
    pub leaves: Vec<LeafBytes>,
    /// RSS by region, largest first; small alike regions are one row with a `count`.
    pub regions: Vec<Region>,
    /// RSS by the call stack that made it, largest first; sums to `rss_bytes`. Empty where call stacks were
    /// not taken.
    #[serde(default)]
    pub made_by: Vec<MadeBytes>,
    /// Memory that the kernel holds for the tree, beside RSS.
    pub kernel: Kernel,
    /// Live threads of the tree.
    pub threads: u64,
    /// Virtual memory mapped, in bytes.
    pub reserved_bytes: u64,
}

/// Bytes of one leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafBytes {
    /// The class that the leaf is part of.
    pub class: Class,
    /// The leaf.
    pub leaf: Leaf,
    /// Resident bytes.
    pub bytes: u64,
}

/// One region of one process, or several alike ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Process that the region belongs to.
    pub tgid: u32,
    /// First byte, hexadecimal; `None` for a row that stands for several regions.
    pub start: Option<String>,
    /// Regions that this row stands for.
    pub count: u64,
    /// Bytes of address space.
    pub length_bytes: u64,
    /// Resident bytes.
    pub resident_bytes: u64,
    /// What the rule says it is.
    pub kind: String,
    /// Id of the rule that fired.
    pub rule: String,
    /// The leaf it counts as, where it is not divided.
    pub leaf: Leaf,
    /// Its resident bytes by leaf, largest first, where an adapter has divided it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaves: Vec<LeafBytes>,
    /// Path of the mapped file, or the kernel's or program's name for the mapping.
    pub backing: Option<String>,
    /// Index into [`Run::call_stacks`] of the call stack that made most of its resident bytes; `None` where
    /// none is known, and `made_by` says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_stack: Option<usize>,
    /// The call that mapped it: `mmap`, `brk`, or why there is no call stack. `None` where call stacks were
    /// not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<String>,
    /// It was there before the profiler attached (or, in tier D, no call is ever seen): the rule went by flags
    /// and shape of the mapping alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub before_attach: bool,
}

/// RSS of the tree at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TimelinePoint {
    /// Seconds after exec.
    pub seconds: f64,
    /// RSS of the tree: the sum of `classes`, or what `statm` says where there are none.
    pub rss_bytes: u64,
    /// By class, where pages were looked at.
    pub classes: Option<Classes>,
    /// Kernel stacks, page tables and slab objects, bottom up, where pages were looked at.
    #[serde(default)]
    pub kernel_bytes: Option<u64>,
    /// By how much RSS moved while the pages of the running tree were looked at; 0 where it stood still
    /// or the page ledger had kept them.
    #[serde(default)]
    pub spread_bytes: u64,
}

/// A part of the run of a benchmark program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// `start` (of the runtime), `launch` (of the tasks), `plateau` (all tasks wait), `exit`.
    pub name: String,
    /// Seconds after exec.
    pub from_seconds: f64,
    /// Seconds after exec.
    pub to_seconds: f64,
    /// perf counters of this part; `None` where they were not read at its begin or end.
    #[serde(default)]
    pub counters: Option<Counters>,
}

/// One process of the tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Its thread-group id.
    pub tgid: u32,
    /// Its parent in the tree; `None` for the command itself, and where no event told of the process.
    pub parent: Option<u32>,
    /// Last image that it executed; empty where no event told of the process.
    pub executable: String,
    /// Which runtime it was recognised as.
    pub runtime: String,
    /// Its RSS at the tree's peak; 0 when it was not alive then.
    pub rss_bytes_at_peak: u64,
    /// The same by class.
    #[serde(default)]
    pub classes_at_peak: Classes,
    /// The highest RSS of this process alone, by the page ledger; `None` in tier C.
    #[serde(default)]
    pub highest_rss_bytes: Option<u64>,
    /// When that was, in seconds after the first exec.
    #[serde(default)]
    pub highest_at_seconds: Option<f64>,
    /// The composition of this process alone at its own peak, by the page ledger; where there is but one
    /// process, that of the tree. `None` for the reason below.
    #[serde(default)]
    pub at_peak: Option<ProcessPeak>,
    /// Why `at_peak` is not told.
    #[serde(default)]
    pub at_peak_reason: Option<String>,
    /// Most threads alive at once.
    pub threads_peak: u64,
}

/// One process at its own peak.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessPeak {
    /// Seconds after the first exec.
    pub at_seconds: f64,
    /// RSS of the process: the classes sum to this, to the byte.
    pub rss_bytes: u64,
    /// By how much it may be off.
    pub error_bound_bytes: u64,
    /// RSS by class.
    pub classes: Classes,
    /// RSS by leaf, largest first.
    pub leaves: Vec<LeafBytes>,
    /// RSS by region, largest first; small alike regions are one row with a `count`.
    pub regions: Vec<Region>,
}

/// How much of the event stream arrived, and what had to be repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventCounts {
    /// Events received.
    pub seen: u64,
    /// Events lost because the ring was full.
    pub dropped: u64,
    /// Scans taken.
    pub scans: u64,
    /// Scans at which the region map and `/proc/PID/maps` disagreed.
    pub disagreeing_scans: u64,
    /// Bytes of address space on which they disagreed, summed over scans.
    pub disagreeing_bytes: u64,
}
