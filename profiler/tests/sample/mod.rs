//! Made-up results in the shape of real ones, for tests only: twelve programs at 1, 10,000 and 100,000
//! tasks, the three thread programs failing at 100,000, one program unavailable. The totals are near to
//! what such programs take; nothing here was measured by this profiler.

#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]

use profiler::classify::Leaf;
use profiler::results::{
    Classes, Counters, EventCounts, Host, Kernel, LeafBytes, Outcome, Peak, Phase, Probe,
    ProbeState, Process, Region, Results, Run, SCHEMA_VERSION, Scope, TimelinePoint,
};
use profiler::units::MIB;

/// Numbers of tasks in [`results`].
pub const COUNTS: [u64; 3] = [1, 10_000, 100_000];

/// What the thread programs say at 100,000.
pub const PID_MAX: &str = "failed at 32,443: pid_max";

/// What the unavailable program says.
pub const NO_DOTNET: &str =
    "no .NET of version 6 or newer; cargo xtask run --install installs dotnet-sdk-8.0";

struct Sample {
    program: &'static str,
    label: &'static str,
    version: &'static str,
    /// MiB at each N: stacks, heap, runtime.
    classes: [Option<[f64; 3]>; 3],
    /// MiB at each N: kernel stacks, page tables, slab.
    kernel: [[f64; 3]; 3],
}

const LITTLE: [[f64; 3]; 3] = [[0.05, 0.06, 0.1], [0.05, 0.08, 0.1], [0.05, 0.15, 0.12]];

const SAMPLES: [Sample; 12] = [
    Sample {
        program: "rust-threads",
        label: "Rust threads",
        version: "rustc 1.95.0",
        classes: [Some([0.1, 0.2, 2.1]), Some([78.2, 14.9, 2.1]), None],
        kernel: [
            [0.03, 0.06, 0.08],
            [156.2, 39.4, 83.4],
            [506.7, 127.8, 270.1],
        ],
    },
    Sample {
        program: "c-threads",
        label: "C threads",
        version: "gcc 12.2.0, glibc 2.36",
        classes: [Some([0.1, 0.1, 1.1]), Some([78.3, 2.8, 1.2]), None],
        kernel: [
            [0.03, 0.05, 0.08],
            [156.3, 39.5, 80.4],
            [506.9, 128.0, 263.8],
        ],
    },
    Sample {
        program: "java-threads",
        label: "Java threads",
        version: "Temurin 25.0.1+8",
        classes: [Some([1.1, 6.2, 26.1]), Some([220.4, 14.0, 50.3]), None],
        kernel: [[0.4, 0.2, 0.3], [156.5, 20.2, 80.1], [507.2, 66.0, 260.0]],
    },
    Sample {
        program: "tokio",
        label: "Rust tokio",
        version: "rustc 1.95.0, tokio 1.54.1",
        classes: [
            Some([0.03, 0.3, 2.4]),
            Some([0.03, 4.5, 2.6]),
            Some([0.03, 42.3, 3.8]),
        ],
        kernel: LITTLE,
    },
    Sample {
        program: "async-std",
        label: "Rust async-std",
        version: "rustc 1.95.0, async-std 1.13.2",
        classes: [
            Some([0.03, 0.3, 2.0]),
            Some([0.03, 3.6, 2.2]),
            Some([0.03, 34.5, 2.6]),
        ],
        kernel: LITTLE,
    },
    Sample {
        program: "smol",
        label: "Rust smol",
        version: "rustc 1.95.0, smol 2.0.2",
        classes: [
            Some([0.03, 0.2, 1.9]),
            Some([0.03, 2.8, 2.0]),
            Some([0.03, 24.6, 2.5]),
        ],
        kernel: LITTLE,
    },
    Sample {
        program: "go",
        label: "Go",
        version: "go1.24.11",
        classes: [
            Some([0.1, 0.3, 1.5]),
            Some([19.6, 5.6, 2.5]),
            Some([195.4, 54.9, 5.7]),
        ],
        kernel: LITTLE,
    },
    Sample {
        program: "java-virtual",
        label: "Java virtual threads",
        version: "Temurin 25.0.1+8",
        classes: [
            Some([0.9, 6.8, 27.0]),
            Some([8.1, 26.0, 33.1]),
            Some([51.2, 75.4, 45.6]),
        ],
        kernel: [[0.4, 0.2, 0.3], [0.4, 0.3, 0.3], [0.4, 0.5, 0.3]],
    },
    Sample {
        program: "csharp",
        label: "C#",
        version: "",
        classes: [None, None, None],
        kernel: LITTLE,
    },
    Sample {
        program: "node",
        label: "Node.js",
        version: "node 20.20.2, V8 11.3",
        classes: [
            Some([0.1, 4.6, 34.4]),
            Some([0.1, 25.4, 36.2]),
            Some([0.1, 112.9, 38.5]),
        ],
        kernel: [[0.2, 0.5, 0.3], [0.2, 1.4, 0.3], [0.2, 3.8, 0.4]],
    },
    Sample {
        program: "asyncio",
        label: "Python asyncio",
        version: "CPython 3.11.2",
        classes: [
            Some([0.06, 7.6, 11.6]),
            Some([0.06, 21.4, 12.0]),
            Some([0.06, 148.0, 12.8]),
        ],
        kernel: LITTLE,
    },
    Sample {
        program: "elixir",
        label: "Elixir",
        version: "Elixir 1.14.0, OTP 25.2.3",
        classes: [
            Some([0.2, 38.1, 33.2]),
            Some([0.3, 62.9, 36.0]),
            Some([0.8, 300.9, 60.2]),
        ],
        kernel: [[0.5, 0.3, 0.4], [0.5, 0.4, 0.4], [0.5, 0.9, 0.4]],
    },
];

/// MiB in bytes, on a page boundary.
pub fn pages(mib: f64) -> u64 {
    (mib * MIB as f64) as u64 / 4096 * 4096
}

/// The twelve programs at each of [`COUNTS`].
pub fn results() -> Results {
    let runs = COUNTS
        .iter()
        .enumerate()
        .flat_map(|(index, tasks)| SAMPLES.iter().map(move |sample| sample.run(index, *tasks)));
    Results {
        schema_version: SCHEMA_VERSION,
        host: host(),
        runs: runs.collect(),
        slopes: Vec::new(),
    }
}

/// Five repeats of each completed run, spread by up to ±8 %; the fifth of Go's failed.
pub fn repeated_results() -> Results {
    let mut results = results();
    let once = std::mem::take(&mut results.runs);
    for (index, run) in once.into_iter().enumerate() {
        for repeat in 0..5 {
            let mut run = Run {
                repeat,
                ..run.clone()
            };
            let stretch = 1.0 + [0.0, 0.03, -0.04, 0.08, -0.02][(repeat as usize + index) % 5];
            if let Some(peak) = &mut run.peak {
                peak.classes.heap = pages(peak.classes.heap as f64 / MIB as f64 * stretch);
                peak.rss_bytes = peak.classes.total();
            }
            if run.program == "go" && repeat == 4 {
                run.outcome = Outcome::Failed;
                run.reason = Some("failed: exit status 2".to_owned());
                run.peak = None;
            }
            results.runs.push(run);
        }
    }
    results
}

/// One run alone, as `profiler run` leaves it.
pub fn one_run() -> Results {
    let mut results = results();
    results
        .runs
        .retain(|run| run.program == "go" && run.tasks == Some(100_000));
    results
}

/// No run at all.
pub fn empty() -> Results {
    Results {
        schema_version: SCHEMA_VERSION,
        host: Host::default(),
        runs: Vec::new(),
        slopes: Vec::new(),
    }
}

fn host() -> Host {
    Host {
        kernel: "6.18.5-amd64".to_owned(),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        cpu: "Example CPU E5-2600 v4 @ 2.40GHz".to_owned(),
        cpus: 2,
        memory_bytes: 23 << 30,
        swap_bytes: 0,
        transparent_hugepages: "madvise".to_owned(),
        overcommit_memory: 0,
        randomize_va_space: 2,
        profiler_version: "0.1.0".to_owned(),
        ebpf_object: "committed".to_owned(),
    }
}

impl Sample {
    fn run(&self, index: usize, tasks: u64) -> Run {
        let threads = self.program.ends_with("-threads");
        let outcome = match self.classes[index] {
            Some(_) => Outcome::Completed,
            None if threads => Outcome::Failed,
            None => Outcome::Unavailable,
        };
        // Threads got as far as the kernel let them.
        let classes = self.classes[index].or_else(|| {
            let [stacks, heap, runtime] = self.classes[1].filter(|_| threads)?;
            Some([stacks * 3.24, heap * 3.0, runtime * 1.3])
        });
        Run {
            call_stacks: Vec::new(),
            call_stack_counts: None,
            program: self.program.to_owned(),
            label: self.label.to_owned(),
            colour: None,
            version: self.version.to_owned(),
            command: vec![
                format!("target/programs/{}", self.program),
                tasks.to_string(),
                "10".to_owned(),
            ],
            tasks: Some(tasks),
            parameter: None,
            task_seconds: Some(10.0),
            stack_depth_bytes: 0,
            payload_bytes: 0,
            repeat: 0,
            attached: None,
            started_at: "2026-03-14T09:26:53Z".to_owned(),
            outcome,
            reason: match outcome {
                Outcome::Completed => None,
                Outcome::Failed => Some(PID_MAX.to_owned()),
                Outcome::Unavailable => Some(NO_DOTNET.to_owned()),
            },
            exit_status: match outcome {
                Outcome::Completed => Some(0),
                Outcome::Failed => Some(1),
                Outcome::Unavailable => None,
            },
            wall_seconds: if classes.is_some() { 10.4 } else { 0.0 },
            frozen_seconds: 0.1,
            launch_seconds: (outcome == Outcome::Completed).then_some(0.31),
            live_tasks_peak: match outcome {
                Outcome::Completed => Some(tasks),
                Outcome::Failed => Some(32_443),
                Outcome::Unavailable => None,
            },
            peak: classes.map(|classes| Peak {
                threads: if threads { tasks + 1 } else { 6 },
                ..peak(classes, self.kernel[index])
            }),
            timeline: vec![TimelinePoint {
                seconds: 0.5,
                rss_bytes: 4096,
                classes: None,
                kernel_bytes: None,
                spread_bytes: 0,
            }],
            phases: match outcome {
                Outcome::Completed => self.phases(tasks),
                _ => Vec::new(),
            },
            processes: vec![Process {
                tgid: 4711,
                parent: None,
                executable: format!("target/programs/{}", self.program),
                runtime: "go".to_owned(),
                rss_bytes_at_peak: classes
                    .map_or(0, |classes| peak(classes, self.kernel[index]).rss_bytes),
                classes_at_peak: Classes::default(),
                highest_rss_bytes: None,
                highest_at_seconds: None,
                at_peak: None,
                at_peak_reason: None,
                threads_peak: 6,
            }],
            counters: Counters {
                task_clock_ns: Some(1_250_000_000),
                minor_faults: Some(66_214),
                ..Counters::default()
            },
            events: EventCounts {
                seen: 412,
                dropped: 0,
                scans: 9,
                disagreeing_scans: 0,
                disagreeing_bytes: 0,
            },
            probes: vec![
                Probe {
                    name: "syscalls:sys_enter_mmap".to_owned(),
                    state: ProbeState::Attached,
                    reason: None,
                },
                Probe {
                    name: "perf:cycles".to_owned(),
                    state: ProbeState::Off,
                    reason: Some("no hardware counters here".to_owned()),
                },
            ],
            warnings: Vec::new(),
            settings: vec!["GOGC=100".to_owned()],
            ledger: None,
            refused_tiers: Vec::new(),
            adapters: Vec::new(),
            own_cost: None,
            gates: Vec::new(),
            books: None,
        }
    }
}

impl Sample {
    /// A launch of some microseconds a task, more with a longer name; then rest and exit.
    fn phases(&self, tasks: u64) -> Vec<Phase> {
        let launch = tasks as f64 * self.label.len() as f64 * 1e-6;
        let bounds = [
            0.0,
            0.01,
            0.01 + launch,
            10.01 + launch,
            10.1 + 2.0 * launch,
        ];
        let names = ["start", "launch", "plateau", "exit"];
        let phase = |(name, bounds): (&str, &[f64])| {
            let seconds = bounds[1] - bounds[0];
            Phase {
                name: name.to_owned(),
                from_seconds: bounds[0],
                to_seconds: bounds[1],
                counters: Some(Counters {
                    scope: Some(Scope::Cgroup),
                    task_clock_ns: Some((seconds * 1.5e9) as u64),
                    minor_faults: Some(tasks / 5),
                    major_faults: Some(0),
                    context_switches: Some(tasks),
                    ..Counters::default()
                }),
            }
        };
        names
            .into_iter()
            .zip(bounds.windows(2))
            .map(phase)
            .collect()
    }
}

/// A peak with the given MiB of stacks, heap and runtime, and of kernel stacks, page tables and slab.
pub fn peak(
    [stacks, heap, runtime]: [f64; 3],
    [kernel_stacks, page_tables, slab]: [f64; 3],
) -> Peak {
    let unclassified = pages((stacks + heap + runtime) * 0.004);
    let classes = Classes {
        stacks: pages(stacks),
        heap: pages(heap),
        runtime: pages(runtime),
        unclassified,
    };
    let leaf = |leaf: Leaf, bytes| LeafBytes {
        class: leaf.class(),
        leaf,
        bytes,
    };
    let region = |start: Option<&str>,
                  count,
                  resident_bytes,
                  kind: &str,
                  rule: &str,
                  leaf,
                  backing: Option<&str>| Region {
        tgid: 4711,
        start: start.map(str::to_owned),
        count,
        length_bytes: resident_bytes * 2,
        resident_bytes,
        kind: kind.to_owned(),
        rule: rule.to_owned(),
        leaf,
        leaves: Vec::new(),
        backing: backing.map(str::to_owned),
        before_attach: false,
        call_stack: None,
        made_by: None,
    };
    Peak {
        at_seconds: 4.25,
        rss_bytes: classes.total(),
        pss_bytes: classes.total() - 1_048_576.min(classes.total()),
        vm_hwm_bytes: classes.total() + 262_144,
        tier: "C".to_owned(),
        error_bound_bytes: 262_144,
        classes,
        leaves: vec![
            leaf(Leaf::ManagedHeap, classes.heap),
            leaf(Leaf::NativeStack, classes.stacks),
            leaf(Leaf::Image, classes.runtime),
            leaf(Leaf::Unknown, unclassified),
        ],
        regions: largest_first(vec![
            region(
                Some("0xc000000000"),
                1,
                classes.heap,
                "heap arena",
                "go-arena",
                Leaf::ManagedHeap,
                Some("[anon: Go: heap]"),
            ),
            region(
                None,
                7,
                classes.stacks,
                "thread stack",
                "clone-stack",
                Leaf::NativeStack,
                None,
            ),
            region(
                Some("0x400000"),
                1,
                classes.runtime,
                "executable",
                "image",
                Leaf::Image,
                Some("target/programs/sample"),
            ),
        ]),
        made_by: Vec::new(),
        kernel: Kernel {
            stacks_bytes: Some(pages(kernel_stacks)),
            page_tables_bytes: Some(pages(page_tables)),
            slab_bytes: Some(pages(slab)),
            other_bytes: None,
            source: "made up for tests".to_owned(),
            ..Kernel::default()
        },
        threads: 6,
        reserved_bytes: 1 << 33,
    }
}

fn largest_first(mut regions: Vec<Region>) -> Vec<Region> {
    regions.sort_by_key(|region| std::cmp::Reverse(region.resident_bytes));
    regions
}
