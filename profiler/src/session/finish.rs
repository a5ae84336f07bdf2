//! From what a session saw to the [`Run`] that it leaves behind.

use std::{
    collections::{BTreeMap, HashMap},
    time::SystemTime,
};

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
        runtime::Runtime,
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
    let at_peak = ended.analysis.best.as_ref().map(by_tgid);
    let at_peak = at_peak.unwrap_or_default();
    let marks = &ended.high_water_marks;
    let whole = ended.analysis.best.as_ref().map(|best| {
        let marks = at_peak
            .iter()
            .map(|(tgid, it)| marks.get(tgid).unwrap_or(&it.rss_bytes));
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
            at_peak,
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

/// One row for each process there ever was. Those of the composition sum to its RSS, whatever became of the events:
/// a process that none told of has a row, too.
fn processes(
    analysis: &super::analysis::Analysis,
    of_processes: &OfProcesses,
    mut at_peak: BTreeMap<u32, AtPeak>,
    whole: Option<&Peak>,
    seconds: impl Fn(u64) -> f64,
) -> Vec<Process> {
    let peak_ns = analysis.best.as_ref().map_or(0, |best| best.taken_ns);
    let all: Vec<&crate::regions::Process> = analysis.tree.processes().collect();
    let had_number = who_had_number(all.iter().map(|it| (it.tgid, it.began_ns)), peak_ns);
    let own_peak = |tgid| own_peak(tgid, analysis, of_processes, whole, &seconds);
    let row = |(index, process): (usize, &crate::regions::Process)| {
        let highest = of_processes.highest.get(&process.tgid);
        let (own_peak, reason) = match own_peak(process.tgid) {
            Ok(peak) => (Some(peak), None),
            Err(reason) => (None, Some(reason)),
        };
        let is_of_peak = had_number.get(&process.tgid) == Some(&index);
        let at_peak = is_of_peak.then(|| at_peak.remove(&process.tgid)).flatten();
        Process {
            tgid: process.tgid,
            parent: process.parent,
            executable: process.executable.clone().unwrap_or_default(),
            runtime: at_peak
                .as_ref()
                .map_or("not alive at the peak", |it| it.runtime.name())
                .to_owned(),
            rss_bytes_at_peak: at_peak.as_ref().map_or(0, |it| it.rss_bytes),
            classes_at_peak: at_peak.map(|it| it.classes).unwrap_or_default(),
            highest_rss_bytes: highest.map(|&(bytes, _)| bytes),
            highest_at_seconds: highest.map(|&(_, ns)| seconds(ns)),
            at_peak: own_peak,
            at_peak_reason: reason,
            threads_peak: process.threads_peak as u64,
        }
    };
    let mut rows: Vec<Process> = all.iter().copied().enumerate().map(row).collect();
    rows.extend(at_peak.into_iter().map(|(tgid, it)| Process {
        tgid,
        parent: None,
        executable: String::new(),
        runtime: it.runtime.name().to_owned(),
        rss_bytes_at_peak: it.rss_bytes,
        classes_at_peak: it.classes,
        highest_rss_bytes: None,
        highest_at_seconds: None,
        at_peak: None,
        at_peak_reason: Some("no event told of this process".into()),
        threads_peak: 0,
    }));
    rows
}

/// One process in the composition of the tree.
struct AtPeak {
    rss_bytes: u64,
    /// That of the largest of its address spaces.
    runtime: Runtime,
    largest_bytes: u64,
    classes: Classes,
}

/// A process inside `execve` may have two address spaces in a composition: they are summed.
fn by_tgid(composition: &Composition) -> BTreeMap<u32, AtPeak> {
    let mut all: BTreeMap<u32, AtPeak> = BTreeMap::new();
    for &(tgid, rss_bytes, runtime) in &composition.processes {
        let own = all.entry(tgid).or_insert_with(|| AtPeak {
            rss_bytes: 0,
            runtime,
            largest_bytes: 0,
            classes: Classes::default(),
        });
        own.rss_bytes += rss_bytes;
        if rss_bytes > own.largest_bytes {
            (own.runtime, own.largest_bytes) = (runtime, rss_bytes);
        }
    }
    let mut add = |tgid, leaves: &BTreeMap<Leaf, u64>| {
        if let Some(own) = all.get_mut(&tgid) {
            for (leaf, &bytes) in leaves {
                own.classes.add(leaf.class(), bytes);
            }
        }
    };
    let regions = composition.regions.iter();
    regions.for_each(|it| add(it.tgid, &it.leaves));
    composition
        .alike
        .iter()
        .for_each(|it| add(it.tgid, &it.leaves));
    all
}

/// Which of the processes (tgid and when it began) had a number at a moment: the last one that had begun, since the
/// kernel gives a number again when its process is gone.
fn who_had_number(processes: impl Iterator<Item = (u32, u64)>, at_ns: u64) -> HashMap<u32, usize> {
    let mut had = HashMap::new();
    for (index, (tgid, began_ns)) in processes.enumerate() {
        if began_ns <= at_ns || !had.contains_key(&tgid) {
            had.insert(tgid, index);
        }
    }
    had
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
    fn a_process_with_two_address_spaces_is_their_sum_and_has_the_runtime_of_the_larger() {
        let composition = Composition {
            processes: vec![
                (7, 0, Runtime::Native),
                (8, 4096, Runtime::Native),
                (7, 8192, Runtime::Go),
            ],
            ..Composition::default()
        };
        let all: Vec<_> = by_tgid(&composition)
            .into_iter()
            .map(|(tgid, it)| (tgid, it.rss_bytes, it.runtime))
            .collect();
        assert_eq!(all, [(7, 8192, Runtime::Go), (8, 4096, Runtime::Native)]);
    }

    #[test]
    fn a_number_that_is_given_twice_is_that_of_the_process_that_had_it_then() {
        let processes = [(7, 0), (8, 10), (8, 30), (9, 40)];
        let had = |at_ns| {
            let had = who_had_number(processes.into_iter(), at_ns);
            [7, 8, 9].map(|tgid| had[&tgid])
        };
        assert_eq!(had(20), [0, 1, 3]);
        assert_eq!(had(30), [0, 2, 3]);
    }

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
