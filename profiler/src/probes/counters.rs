//! perf counters of the whole tree: CPU time, page faults, context switches, and cycles and
//! instructions where there is a PMU.

use perf_event::{
    Builder, Counter,
    events::{Event, Hardware, Software},
};

use serde::{Deserialize, Serialize};

/// perf counters of the tree, over the whole run. `None`: the counter could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// CPU time in ns.
    pub task_clock_ns: Option<u64>,
    /// Minor page faults.
    pub minor_faults: Option<u64>,
    /// Major page faults.
    pub major_faults: Option<u64>,
    /// Context switches.
    pub context_switches: Option<u64>,
    /// CPU cycles (hardware).
    pub cycles: Option<u64>,
    /// Instructions retired (hardware).
    pub instructions: Option<u64>,
}

/// Open counters. They start at the target's exec and are inherited by every child and thread.
pub struct TreeCounters {
    task_clock: Option<Counter>,
    minor_faults: Option<Counter>,
    major_faults: Option<Counter>,
    context_switches: Option<Counter>,
    cycles: Option<Counter>,
    instructions: Option<Counter>,
}

impl TreeCounters {
    /// Opens the counters on a process that is held before its exec. One that cannot be opened
    /// (hardware counters in most virtual machines) is left out.
    pub fn open(pid: i32) -> TreeCounters {
        let open = |event: Event| {
            let mut builder = Builder::new().kind(event).observe_pid(pid).any_cpu();
            // Faults and switches happen in the kernel; the default leaves it out.
            builder
                .inherit(true)
                .enable_on_exec(true)
                .include_kernel()
                .include_hv();
            builder.build().ok()
        };
        TreeCounters {
            task_clock: open(Software::TASK_CLOCK.into()),
            minor_faults: open(Software::PAGE_FAULTS_MIN.into()),
            major_faults: open(Software::PAGE_FAULTS_MAJ.into()),
            context_switches: open(Software::CONTEXT_SWITCHES.into()),
            cycles: open(Hardware::CPU_CYCLES.into()),
            instructions: open(Hardware::INSTRUCTIONS.into()),
        }
    }

    /// The totals, ended children and threads included.
    pub fn read(&mut self) -> Counters {
        let read = |counter: &mut Option<Counter>| {
            counter.as_mut().and_then(|counter| counter.read().ok())
        };
        Counters {
            task_clock_ns: read(&mut self.task_clock),
            minor_faults: read(&mut self.minor_faults),
            major_faults: read(&mut self.major_faults),
            context_switches: read(&mut self.context_switches),
            cycles: read(&mut self.cycles),
            instructions: read(&mut self.instructions),
        }
    }
}
