//! A recorded event log → the [`Run`] that it was, without root and without the program.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};

use super::{
    analysis::{Analysis, Frozen},
    finish,
    follow::Ended,
    job::Job,
    ledger::OfProcesses,
    outcome::Words,
    phase_counters::PhaseCounters,
    timeline,
};
use crate::{
    classify::runtime::Image,
    events::{Call, log::Entry},
    probes::tier::Tier,
    results::{Counters, Run},
};

/// Drives the analysis with what was recorded. `job` says what was run.
///
/// A log has what came from the kernel about memory, and nothing else: the run has no counters, no
/// words of the program and no exit status, and begins at the epoch of Unix.
pub fn replay(log: Vec<Entry<Frozen>>, job: &Job) -> Result<Run> {
    let mut entries = log.into_iter();
    let Some(Entry::Root(root)) = entries.next() else {
        bail!("an event log begins with the process that was launched");
    };
    let mut analysis = Analysis::new(root);
    let mut exec_ns = None;
    let mut last_ns = 0;
    let mut timeline = Vec::new();
    let mut high_water_marks = HashMap::new();
    for entry in entries {
        match entry {
            Entry::Root(again) => bail!("two launched processes, {root} and {again}"),
            Entry::Sizes(sizes) => analysis.sizes = sizes,
            Entry::Image { tgid, path, go } => analysis.image(tgid, Image { path, go }),
            Entry::Event(event) => {
                if matches!(event.call, Call::Exec { .. }) {
                    exec_ns.get_or_insert(event.ended_ns);
                }
                last_ns = event.ended_ns;
                analysis.event(&event);
            }
            Entry::Snapshot(frozen) => {
                let snapshot = &frozen.snapshot;
                for process in &snapshot.processes {
                    let mark: &mut u64 = high_water_marks.entry(process.tgid).or_default();
                    *mark = process.vm_hwm_bytes.max(*mark);
                }
                let began_ns = exec_ns.context("a scan before the first exec")?;
                let after = Duration::from_nanos(snapshot.taken_ns.saturating_sub(began_ns));
                analysis.compare(snapshot);
                let composed = analysis.frozen(frozen);
                timeline.push(timeline::point(after.as_secs_f64(), &composed, 0));
            }
        }
    }
    let ended = Ended {
        own_cost: None,
        named: None,
        call_stack_counts: None,
        ledger: None,
        of_processes: OfProcesses::default(),
        refused_tiers: Vec::new(),
        analysis,
        high_water_marks,
        timeline,
        words: Words::default(),
        exec_ns: exec_ns.unwrap_or(last_ns),
        launch_ns: None,
        alive_ns: None,
        exit_ns: last_ns,
        exit_status: Some(0),
        scan_tier: Tier::C,
        attached: None,
        counters: Counters::default(),
        phase_counters: PhaseCounters::default(),
        // A recording has the moment of each scan, not how long it took.
        frozen: Duration::ZERO,
        probes: Vec::new(),
        warnings: Vec::new(),
        settings: Vec::new(),
    };
    let run = finish::run(ended, job, SystemTime::UNIX_EPOCH)?;
    Ok(Run {
        exit_status: None,
        ..run
    })
}
