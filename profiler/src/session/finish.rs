//! From what a session saw to the [`Run`] that it leaves behind.

use std::{collections::BTreeMap, time::SystemTime};

use anyhow::Result;

use super::{
    follow::Ended,
    job::Job,
    ledger::OfProcesses,
    limits,
    made_by::{self, Makers},
    outcome::judge,
    timeline,
};
use crate::{
    adapters::Account,
    call_stacks::Named,
    classify::{
        Classes, Leaf,
        alike::{Alike, AlikeRegions},
        compose::{ClassifiedRegion, Composition, LARGEST},
    },
    kernel_memory::Kernel,
    probes::tier::Tier,
    results::{
        Adapter, Counters, EventCounts, LeafBytes, Outcome, Peak, Process, ProcessPeak, Region, Run,
    },
};

/// Of the tree, [`LARGEST`] regions stand in the results one by one, the others by rule and backing. The same of each process at its own peak, of which there may be thousands.
const SINGLE_REGIONS_OF_A_PROCESS: usize = 20;

pub(super) fn run(ended: Ended, job: &Job, started: SystemTime) -> Result<Run> {
    let seconds = |ns: u64| ns.saturating_sub(ended.exec_ns) as f64 / 1e9;
    let wall_seconds = seconds(ended.exit_ns);
    let threads = ended
        .analysis
        .tree
        .processes()
        .map(|process| process.threads_peak as u64)
        .max()
        .unwrap_or(0);
    let limit = limits::reached(threads, ended.analysis.mappings_peak as u64);
    let (outcome, reason) = match ended.exit_status {
        Some(exit_status) => judge(
            job.contract,
            exit_status,
            &ended.words,
            wall_seconds,
            limit.as_deref(),
        ),
        // A process that is not our child: how it ended is for its parent to know, and it may not have.
        None => (Outcome::Completed, None),
    };
    let mut warnings = ended.warnings;
    let counts = ended.analysis.counts;
    let orphans = ended.analysis.tree.orphan_events();
    if counts.dropped > 0 || orphans > 0 {
        warnings.push(format!(
            "{} events were lost and {orphans} came from unknown threads; the region map was repaired from /proc/PID/maps",
            counts.dropped
        ));
    }
    if let Some(loss) = ended.ledger.as_ref().and_then(|ledger| ledger.loss.clone()) {
        warnings.push(loss);
    }
    let accounts = accounts(&ended.analysis, job);
    for account in &accounts {
        if let Some(refusal) = &account.refusal {
            warnings.push(format!(
                "the adapter {} left the memory of process {} undivided: {refusal}",
                account.adapter, account.tgid
            ));
        }
    }
    if ended.analysis.best.is_none() {
        warnings.push("the program ended before it could be scanned".into());
    }
    let mut phases = timeline::phases(
        ended.launch_ns.map(seconds),
        ended.alive_ns.map(seconds),
        job.contract.map(|contract| contract.seconds),
        wall_seconds,
    );
    ended.phase_counters.fill(&mut phases, &ended.counters);
    let marks = &ended.high_water_marks;
    let whole = ended.analysis.best.as_ref().map(|best| {
        let marks = best
            .processes
            .iter()
            .map(|(tgid, rss, _)| marks.get(tgid).unwrap_or(rss));
        peak(
            best,
            ended.analysis.kernel(best, ended.exec_ns),
            marks.sum(),
            seconds(best.taken_ns),
            ended.ledger.as_ref(),
            ended.named.as_ref(),
            ended.scan_tier,
        )
    });
    Ok(Run {
        exit_status: ended.exit_status,
        attached: ended.attached,
        wall_seconds,
        frozen_seconds: ended.frozen.as_secs_f64(),
        launch_seconds: ended.alive_ns.map(seconds),
        phases,
        live_tasks_peak: ended.words.live_peak,
        processes: processes(
            &ended.analysis,
            &ended.of_processes,
            whole.as_ref(),
            seconds,
        ),
        peak: whole,
        timeline: ended.timeline,
        counters: ended.counters,
        events: counts,
        probes: ended.probes,
        warnings,
        settings: ended.settings,
        ledger: ended.ledger,
        refused_tiers: ended.refused_tiers,
        adapters: adapters(&accounts, seconds),
        own_cost: ended.own_cost,
        call_stacks: ended.named.map_or_else(Vec::new, |named| named.call_stacks),
        call_stack_counts: ended.call_stack_counts,
        books: ended.words.books,
        ..unmeasured(job, started, outcome, reason)
    })
}

/// The result of a job of which nothing was measured, for example because its program cannot be had.
pub fn unmeasured(job: &Job, started: SystemTime, outcome: Outcome, reason: Option<String>) -> Run {
    let load = job.contract.map(|contract| contract.load);
    Run {
        program: job.program.clone(),
        label: job.label.clone(),
        colour: job.colour.clone(),
        version: job.version.clone(),
        command: job.command.clone(),
        tasks: job.contract.map(|contract| contract.tasks),
        parameter: None,
        task_seconds: job.contract.map(|contract| contract.seconds),
        stack_depth_bytes: load.map_or(0, |load| load.stack_depth_bytes),
        payload_bytes: load.map_or(0, |load| load.payload_bytes),
        repeat: job.repeat,
        started_at: humantime::format_rfc3339_seconds(started).to_string(),
        outcome,
        reason,
        exit_status: None,
        attached: None,
        wall_seconds: 0.0,
        frozen_seconds: 0.0,
        launch_seconds: None,
        live_tasks_peak: None,
        peak: None,
        timeline: Vec::new(),
        phases: Vec::new(),
        processes: Vec::new(),
        counters: Counters::default(),
        events: EventCounts::default(),
        probes: Vec::new(),
        warnings: Vec::new(),
        settings: Vec::new(),
        ledger: None,
        refused_tiers: Vec::new(),
        adapters: Vec::new(),
        own_cost: None,
        gates: Vec::new(),
        call_stacks: Vec::new(),
        call_stack_counts: None,
        books: None,
    }
}

fn peak(
    best: &Composition,
    kernel: Kernel,
    vm_hwm_bytes: u64,
    at_seconds: f64,
    ledger: Option<&crate::results::Ledger>,
    named: Option<&Named>,
    scan_tier: Tier,
) -> Peak {
    // A scan that beat the ledger is tier C's.
    let ledger = ledger.filter(|ledger| ledger.composed);
    Peak {
        at_seconds,
        rss_bytes: best.rss_bytes,
        pss_bytes: best.pss_bytes,
        vm_hwm_bytes,
        tier: ledger
            .map_or(scan_tier.name(), |ledger| &ledger.tier)
            .into(),
        error_bound_bytes: match ledger {
            Some(ledger) => ledger.error_bound_bytes,
            None => vm_hwm_bytes.saturating_sub(best.rss_bytes),
        },
        classes: best.classes,
        leaves: leaves(&best.leaves),
        regions: regions(best, LARGEST, named),
        made_by: named.map_or_else(Vec::new, |named| made_by::rows(best, named)),
        kernel,
        threads: best.objects.threads,
        reserved_bytes: best.reserved_bytes,
    }
}

/// Largest first.
fn leaves(by_leaf: &BTreeMap<Leaf, u64>) -> Vec<LeafBytes> {
    let mut leaves: Vec<LeafBytes> = by_leaf
        .iter()
        .map(|(&leaf, &bytes)| LeafBytes {
            class: leaf.class(),
            leaf,
            bytes,
        })
        .collect();
    leaves.sort_by_key(|leaf| std::cmp::Reverse(leaf.bytes));
    leaves
}

/// What adapters had to say at the peak, or, where the books were asked for, right before that.
fn accounts(analysis: &super::analysis::Analysis, job: &Job) -> Vec<Account> {
    let moment = match (job.ask_for_books, &analysis.best) {
        (false, Some(best)) => best.taken_ns,
        _ => u64::MAX,
    };
    let nearest = analysis.looks_nearest(moment).into_values();
    nearest.flat_map(|look| look.accounts.clone()).collect()
}

fn adapters(accounts: &[Account], seconds: impl Fn(u64) -> f64) -> Vec<Adapter> {
    let mut adapters: Vec<Adapter> = accounts
        .iter()
        .map(|account| Adapter {
            tgid: account.tgid,
            name: account.adapter.clone(),
            at_seconds: seconds(account.taken_ns),
            took_seconds: account.seconds,
            cpu_seconds: account.cpu_seconds,
            refusal: account.refusal.clone(),
            books: account.books.clone(),
        })
        .collect();
    adapters.sort_by(|one, other| (one.tgid, &one.name).cmp(&(other.tgid, &other.name)));
    adapters
}

/// The largest regions one by one, then the rest, alike ones as one row. The rows sum to RSS.
fn regions(composition: &Composition, one_by_one: usize, named: Option<&Named>) -> Vec<Region> {
    let mut sorted: Vec<&ClassifiedRegion> = composition.regions.iter().collect();
    sorted.sort_by_key(|region| region.largest_first());
    let (single, rest) = sorted.split_at(sorted.len().min(one_by_one));
    let mut rows: Vec<Region> = Vec::new();
    for region in single {
        let mut alone = AlikeRegions::default();
        alone.add(region);
        rows.extend(alone.iter().map(|alone| row(alone, named)));
    }
    let mut alike = composition.alike.clone();
    rest.iter().for_each(|region| alike.add(region));
    rows.extend(alike.iter().map(|alike| row(alike, named)));
    rows
}

fn row(alike: &Alike, named: Option<&Named>) -> Region {
    let makers = Makers::of(alike.made.iter().map(|(&by, leaves)| (by, leaves)));
    let told = named.and_then(|named| makers.largest(named));
    let (call_stack, made_by) = told.unzip();
    let leaf = alike.rule.leaf;
    Region {
        tgid: alike.tgid,
        start: alike.start.map(|start| format!("{start:#x}")),
        count: alike.count,
        length_bytes: alike.length_bytes,
        resident_bytes: alike.resident_bytes,
        kind: alike.rule.reason.into(),
        rule: alike.rule.id.into(),
        leaf,
        leaves: match alike.leaves.get(&leaf) {
            Some(&bytes) if bytes == alike.resident_bytes => Vec::new(),
            // Divided: not all of it is of its rule's leaf.
            _ => leaves(&alike.leaves),
        },
        backing: alike.backing.clone(),
        call_stack: call_stack.flatten(),
        made_by,
        before_attach: alike.before_attach,
    }
}

fn processes(
    analysis: &super::analysis::Analysis,
    of_processes: &OfProcesses,
    whole: Option<&Peak>,
    seconds: impl Fn(u64) -> f64,
) -> Vec<Process> {
    let at_peak = analysis
        .best
        .as_ref()
        .map(|best| best.processes.as_slice())
        .unwrap_or_default();
    let mut classes: BTreeMap<u32, Classes> = BTreeMap::new();
    let mut add = |tgid, leaves: &BTreeMap<Leaf, u64>| {
        let own = classes.entry(tgid).or_default();
        for (leaf, &bytes) in leaves {
            own.add(leaf.class(), bytes);
        }
    };
    if let Some(best) = &analysis.best {
        best.regions.iter().for_each(|it| add(it.tgid, &it.leaves));
        best.alike.iter().for_each(|it| add(it.tgid, &it.leaves));
    }
    let own_peak = |tgid| own_peak(tgid, analysis, of_processes, whole, &seconds);
    let row = |process: &crate::regions::Process| {
        let highest = of_processes.highest.get(&process.tgid);
        let (own_peak, reason) = match own_peak(process.tgid) {
            Ok(peak) => (Some(peak), None),
            Err(reason) => (None, Some(reason)),
        };
        let at_peak = at_peak.iter().find(|(tgid, ..)| *tgid == process.tgid);
        Process {
            tgid: process.tgid,
            parent: process.parent,
            executable: process.executable.clone().unwrap_or_default(),
            runtime: at_peak
                .map_or("not alive at the peak", |(_, _, runtime)| runtime.name())
                .to_owned(),
            rss_bytes_at_peak: at_peak.map_or(0, |(_, rss, _)| *rss),
            classes_at_peak: classes.get(&process.tgid).copied().unwrap_or_default(),
            highest_rss_bytes: highest.map(|&(bytes, _)| bytes),
            highest_at_seconds: highest.map(|&(_, ns)| seconds(ns)),
            at_peak: own_peak,
            at_peak_reason: reason,
            threads_peak: process.threads_peak as u64,
        }
    };
    analysis.tree.processes().map(row).collect()
}

/// One process at its own peak, or why that is not told.
fn own_peak(
    tgid: u32,
    analysis: &super::analysis::Analysis,
    of_processes: &OfProcesses,
    whole: Option<&Peak>,
    seconds: impl Fn(u64) -> f64,
) -> Result<ProcessPeak, String> {
    let of = |composition: &Composition, error_bound_bytes| ProcessPeak {
        at_seconds: seconds(composition.taken_ns),
        rss_bytes: composition.rss_bytes,
        error_bound_bytes,
        classes: composition.classes,
        leaves: leaves(&composition.leaves),
        regions: regions(composition, SINGLE_REGIONS_OF_A_PROCESS, None),
    };
    match of_processes.at_peak.get(&tgid) {
        Some(Ok(own)) => return Ok(of(&own.composition, own.error_bound_bytes)),
        Some(Err(reason)) => return Err(reason.clone()),
        None => {}
    }
    // The only process there ever was.
    if let (1, Some(best), Some(whole)) = (analysis.tree.processes().count(), &analysis.best, whole)
    {
        return Ok(of(best, whole.error_bound_bytes));
    }
    Err(match whole.map(|whole| whole.tier.as_str()) {
        None => "the program ended before it could be scanned",
        Some("C" | "D") => "scans find the peak of the tree alone",
        Some(_) => "it lived in the memory of its parent, or was not followed",
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::rules::RULES;

    #[test]
    fn rows_of_regions_sum_to_the_whole() {
        let region = |index: u64| ClassifiedRegion {
            tgid: 7,
            range: index * 65_536..index * 65_536 + 8192,
            resident_bytes: if index < 3 { 8192 } else { 4096 },
            rule: &RULES[0],
            leaves: BTreeMap::new(),
            backing: None,
            made_by: crate::classify::compose::MadeBy::Unknown,
            growths: Vec::new(),
            before_attach: false,
        };
        let all = Composition {
            regions: (0..250).map(region).collect(),
            ..Composition::default()
        };
        let rows = regions(&all, LARGEST, None);
        assert_eq!(rows.len(), LARGEST + 1);
        assert_eq!(
            rows.iter().map(|row| row.resident_bytes).sum::<u64>(),
            3 * 8192 + 247 * 4096
        );
        assert_eq!(rows.iter().map(|row| row.count).sum::<u64>(), 250);
        assert_eq!(rows[0].start.as_deref(), Some("0x0"));
        assert_eq!(rows.last().unwrap().start, None);
    }
}
