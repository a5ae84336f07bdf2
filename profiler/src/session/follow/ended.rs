//! What a session knows when its target has ended, or has been left.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use nix::sys::wait::WaitStatus;

use super::Following;
use crate::{
    call_stacks::Named,
    launch::existing::is_ending,
    probes::{counters::TreeCounters, tier::Tier},
    residency::StatmReader,
    results::{
        Attached, CallStackCounts, Counters, OwnCost, Probe, RefusedTier, Run, TimelinePoint,
    },
    session::{
        SessionError,
        analysis::Analysis,
        finish, host,
        job::Job,
        ledger::{self, OfProcesses},
        made_by,
        outcome::Words,
        own_cost,
        phase_counters::PhaseCounters,
        timeline,
    },
};

/// Everything that is known when the target has ended.
pub(in crate::session) struct Ended {
    /// What the page ledger found, in tiers A and B.
    pub ledger: Option<crate::results::Ledger>,
    /// And of each process.
    pub of_processes: OfProcesses,
    /// Better tiers that were refused.
    pub refused_tiers: Vec<RefusedTier>,
    pub analysis: Analysis,
    pub high_water_marks: HashMap<u32, u64>,
    pub frozen: Duration,
    pub timeline: Vec<TimelinePoint>,
    pub words: Words,
    pub exec_ns: u64,
    pub launch_ns: Option<u64>,
    pub alive_ns: Option<u64>,
    pub exit_ns: u64,
    /// Exit status, 128 + signal number when a signal ended it; `None` for a process that is no child of ours.
    pub exit_status: Option<i32>,
    /// What scans are called by, without a ledger: [`Tier::C`] or [`Tier::D`].
    pub scan_tier: Tier,
    /// Of a process that ran before we came.
    pub attached: Option<Attached>,
    pub counters: Counters,
    pub phase_counters: PhaseCounters,
    pub probes: Vec<Probe>,
    pub warnings: Vec<String>,
    pub settings: Vec<String>,
    /// The call stacks that made the memory at the peak; `None` where they were not taken.
    pub named: Option<Named>,
    /// What became of the calls whose stack was asked for.
    pub call_stack_counts: Option<CallStackCounts>,
    /// What measuring took.
    pub own_cost: Option<OwnCost>,
}

impl Following<'_> {
    /// Puts together what there is. `status` is that of a child, `attached` tells of any other process.
    pub(super) fn end(
        mut self,
        exit_ns: u64,
        status: Option<WaitStatus>,
        attached: Option<Attached>,
    ) -> Result<Ended, SessionError> {
        self.start = self.start.map(own_cost::Start::target_ended);
        let scan_tier = self.scan_tier();
        let mut analysis = self.analysis.expect("set before the loop");
        let mut skipped = 0;
        if let Some(probes) = &self.probes {
            analysis.counts.dropped = probes.dropped()?;
            skipped = probes.skipped();
        }
        if skipped > 0 && analysis.counts.disagreeing_bytes > 0 {
            self.warnings.push(format!(
                "{skipped} runs of a probe were skipped, calls of other programs among them; the region map was \
                 repaired from /proc/PID/maps"
            ));
        }
        let mut outlive = self
            .group
            .pids()
            .context("cannot list the target's group")?;
        let ended = status.and_then(|status| status.pid());
        outlive.retain(|&tgid| Some(tgid) != ended.map(|pid| pid.as_raw() as u32));
        // One that is ending is in the group until the kernel is done with it: a parent goes on when its vfork child
        // has done with their memory, not when the child is gone.
        outlive.retain(|&tgid| has_memory(tgid) && !is_ending(tgid));
        let outlive = outlive.len();
        if outlive > 0 && !self.ours_to_end && attached.is_none() {
            self.warnings.push(match outlive {
                1 => "1 process outlives the command; it goes on running and is not measured any more".into(),
                _ => format!(
                    "{outlive} processes outlive the command; they go on running and are not measured any more"
                ),
            });
        }
        let exec_ns = self.exec_ns.unwrap_or(exit_ns);
        let ledger_probes = self
            .probes
            .as_ref()
            .and_then(|probes| probes.ledger.as_ref());
        let (ledger, of_processes) = match (ledger_probes, self.at_peak) {
            (Some(probes), Some(at_peak)) => {
                let (ledger, of_processes) =
                    ledger::read(probes, at_peak, &mut analysis, self.method, exec_ns);
                (Some(ledger), of_processes)
            }
            _ => (None, OfProcesses::default()),
        };
        let probe = self.probes.as_ref().and_then(|it| it.call_stacks.as_ref());
        let named = probe.map(|_| {
            let best = analysis.best.as_ref();
            self.captures
                .name(&best.map(made_by::wanted).unwrap_or_default())
        });
        let distinct = self.captures.len() as u64;
        let call_stack_counts = probe.map(|probe| probe.counts(distinct)).transpose()?;
        let peak = ledger
            .as_ref()
            .filter(|ledger| ledger.composed)
            .and(analysis.best.as_ref())
            .map(|best| {
                let seconds = best.taken_ns.saturating_sub(exec_ns) as f64 / 1e9;
                timeline::point(seconds, &analysis.composed(best), 0)
            });
        Ok(Ended {
            ledger,
            of_processes,
            refused_tiers: self.refused_tiers,
            analysis,
            high_water_marks: self.high_water_marks,
            frozen: self.frozen,
            timeline: self.timeline.finish(peak),
            words: self.words,
            exec_ns,
            launch_ns: self.launch_ns,
            alive_ns: self.alive_ns,
            exit_ns,
            exit_status: status.map(exit_status).transpose()?,
            scan_tier,
            attached,
            named,
            call_stack_counts,
            own_cost: self.start.and_then(own_cost::read),
            counters: self
                .counters
                .as_mut()
                .map(TreeCounters::read)
                .unwrap_or_default(),
            phase_counters: self.phase_counters,
            probes: self
                .probes
                .into_iter()
                .flat_map(|probes| probes.states)
                .chain(self.counters.map(|counters| counters.probe()))
                .collect(),
            warnings: self.warnings,
            settings: host::settings(self.environment),
        })
    }
}

fn exit_status(status: WaitStatus) -> Result<i32> {
    match status {
        WaitStatus::Exited(_, code) => Ok(code),
        WaitStatus::Signaled(_, signal, _) => Ok(128 + signal as i32),
        other => Err(anyhow::anyhow!(
            "the target ended in an unexpected way: {other:?}"
        )),
    }
}

fn has_memory(tgid: u32) -> bool {
    let rss = StatmReader::open(tgid).and_then(|reader| reader.rss_bytes());
    rss.is_ok_and(|bytes| bytes > 0)
}

impl Ended {
    /// Puts the result together.
    pub fn into_run(self, job: &Job, started: SystemTime) -> Result<Run> {
        finish::run(self, job, started)
    }
}
