//! perf counters of the whole tree: CPU time, page faults, context switches, and cycles and
//! instructions where there is a PMU.
//!
//! They count whatever runs in the target's private cgroup, one counter a CPU (`PERF_FLAG_PID_CGROUP`):
//! threads then cost nothing. A counter that threads inherit makes each thread dearer to create, by some
//! microseconds for these four, and is what remains where there is no cgroup of version 2, or its perf_event
//! controller belongs to version 1.

use std::{fs, fs::File, io, path::Path};

use perf_event::{
    Builder, Counter,
    events::{Event, Hardware, Software},
};

use serde::{Deserialize, Serialize};

use super::attach::{Probe, ProbeState};

/// perf counters of the tree. `None`: the counter could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// How they were counted; `None` where there was no counter.
    #[serde(default)]
    pub scope: Option<Scope>,
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

/// What a counter follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything in the target's cgroup, from its release on: its exec is in it.
    Cgroup,
    /// The target, from its exec on, and every child and thread, each of which inherits the counter when it is
    /// created and pays for that.
    Inherited,
}

impl Counters {
    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Counters) -> Counters {
        let added = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
        Counters {
            scope: self.scope,
            task_clock_ns: added(self.task_clock_ns, earlier.task_clock_ns),
            minor_faults: added(self.minor_faults, earlier.minor_faults),
            major_faults: added(self.major_faults, earlier.major_faults),
            context_switches: added(self.context_switches, earlier.context_switches),
            cycles: added(self.cycles, earlier.cycles),
            instructions: added(self.instructions, earlier.instructions),
        }
    }
}

/// Open counters of the tree.
pub struct TreeCounters {
    scope: Scope,
    /// Why the cgroup could not be counted.
    refusal: Option<String>,
    task_clock: PerCpu,
    minor_faults: PerCpu,
    major_faults: PerCpu,
    context_switches: PerCpu,
    cycles: PerCpu,
    instructions: PerCpu,
}

/// One event: a counter for each CPU, or a single one for all. Empty where it could not be opened.
type PerCpu = Vec<Counter>;

impl TreeCounters {
    /// Opens the counters on a process that is held before its exec, and is in the cgroup `directory` where
    /// there is one. A counter that cannot be opened (hardware counters in most virtual machines) is left out.
    pub fn open(pid: i32, directory: Option<&Path>) -> TreeCounters {
        match TreeCounters::of_group(directory) {
            Ok(counters) => counters,
            Err(refusal) => {
                let open = |event| inherited(event, pid);
                TreeCounters {
                    refusal: Some(refusal),
                    ..TreeCounters::of_events(Scope::Inherited, open)
                }
            }
        }
    }

    fn of_group(directory: Option<&Path>) -> Result<TreeCounters, String> {
        let directory = directory.ok_or("the target has no cgroup")?;
        let group = File::open(directory).map_err(|error| error.to_string())?;
        let cpus = online_cpus().ok_or("no list of the CPUs that are online")?;
        // This one tells whether it can be done at all: it needs no hardware.
        of_cgroup(Software::TASK_CLOCK.into(), &group, &cpus).map_err(|error| error.to_string())?;
        let open = |event| of_cgroup(event, &group, &cpus);
        Ok(TreeCounters::of_events(Scope::Cgroup, open))
    }

    /// How the counters were attached, and why not in the better way.
    pub fn probe(&self) -> Probe {
        Probe {
            name: "perf:cgroup".to_owned(),
            state: match self.refusal {
                None => ProbeState::Attached,
                Some(_) => ProbeState::Off,
            },
            reason: self
                .refusal
                .as_ref()
                .map(|refusal| format!("counters are inherited instead: {refusal}")),
        }
    }

    fn of_events(scope: Scope, open: impl Fn(Event) -> io::Result<PerCpu>) -> TreeCounters {
        let open = |event: Event| open(event).unwrap_or_default();
        TreeCounters {
            scope,
            refusal: None,
            task_clock: open(Software::TASK_CLOCK.into()),
            minor_faults: open(Software::PAGE_FAULTS_MIN.into()),
            major_faults: open(Software::PAGE_FAULTS_MAJ.into()),
            context_switches: open(Software::CONTEXT_SWITCHES.into()),
            cycles: open(Hardware::CPU_CYCLES.into()),
            instructions: open(Hardware::INSTRUCTIONS.into()),
        }
    }

    /// The totals up to now, ended children and threads included.
    pub fn read(&mut self) -> Counters {
        let counters = Counters {
            scope: None,
            task_clock_ns: total(&mut self.task_clock),
            minor_faults: total(&mut self.minor_faults),
            major_faults: total(&mut self.major_faults),
            context_switches: total(&mut self.context_switches),
            cycles: total(&mut self.cycles),
            instructions: total(&mut self.instructions),
        };
        let scope = (counters != Counters::default()).then_some(self.scope);
        Counters { scope, ..counters }
    }
}

fn total(counters: &mut PerCpu) -> Option<u64> {
    if counters.is_empty() {
        return None;
    }
    counters.iter_mut().map(|counter| counter.read().ok()).sum()
}

fn of_cgroup(event: Event, group: &File, cpus: &[usize]) -> io::Result<PerCpu> {
    let open = |&cpu: &usize| {
        let mut builder = Builder::new()
            .kind(event.clone())
            .observe_cgroup(group)
            .one_cpu(cpu);
        with_kernel(&mut builder);
        let mut counter = builder.build()?;
        counter.enable()?;
        Ok(counter)
    };
    cpus.iter().map(open).collect()
}

fn inherited(event: Event, pid: i32) -> io::Result<PerCpu> {
    let mut builder = Builder::new().kind(event).observe_pid(pid).any_cpu();
    with_kernel(&mut builder).inherit(true).enable_on_exec(true);
    Ok(vec![builder.build()?])
}

/// Faults and switches happen in the kernel; the default leaves it out.
fn with_kernel<'a, 'b>(builder: &'b mut Builder<'a>) -> &'b mut Builder<'a> {
    builder.include_kernel().include_hv()
}

/// The CPUs that are online: `Documentation/admin-guide/cputopology.rst` of the kernel.
fn online_cpus() -> Option<Vec<usize>> {
    cpu_list(&fs::read_to_string("/sys/devices/system/cpu/online").ok()?)
}

/// The CPUs of a list such as `0-3,5`.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cpus_has_ranges_and_single_ones() {
        assert_eq!(cpu_list("0-3,5,8-9\n"), Some(vec![0, 1, 2, 3, 5, 8, 9]));
        assert_eq!(cpu_list("0\n"), Some(vec![0]));
        assert_eq!(cpu_list(""), None);
        assert_eq!(cpu_list("0-x"), None);
    }

    #[test]
    fn what_was_not_counted_is_not_counted_in_a_part_either() {
        let at = |clock, faults| Counters {
            scope: Some(Scope::Cgroup),
            task_clock_ns: Some(clock),
            minor_faults: faults,
            ..Counters::default()
        };
        assert_eq!(at(50, Some(7)).since(&at(20, Some(7))), at(30, Some(0)));
        assert_eq!(at(50, Some(7)).since(&at(20, None)), at(30, None));
    }
}
