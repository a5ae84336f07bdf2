//! The section on method: what was done, how exact it was in these runs, and what it cannot tell.

use crate::classify::Class;
use crate::report::run::title;
use crate::results::{Outcome, Peak, ProbeState, Results, Run};
use crate::units::{human, thousands};

use super::markdown::plain;

const METHOD: &str = "\
Every resident page, by the kernel's own rule for RSS, is given one leaf: by the calls that mapped it, which eBPF probes
record with their arguments, and by what adapters find in heaps and stacks of the frozen program from outside. Leaves sum
to classes, and classes to RSS, to the byte; what no rule knows is *unclassified*. What the kernel holds is counted object
by object, with the sizes of the running kernel, and is never part of RSS.
";

const LIMITS: &str = "
What this cannot tell: what is inside a heap whose layout is not known; why a garbage-collected heap has the size it has,
which is partly timing; and what the probes themselves cost the programs, which is part of the times above.
";

/// The section; `None` where nothing was measured.
pub fn section(results: &Results) -> Option<String> {
    let runs: Vec<&Run> = results
        .runs
        .iter()
        .filter(|run| run.outcome != Outcome::Unavailable && run.peak.is_some())
        .collect();
    if runs.is_empty() {
        return None;
    }
    let mut text = format!("## Method, and how far to trust it\n\n{METHOD}\n");
    for sentence in sentences(&runs) {
        text += &format!("- {}\n", plain(&sentence));
    }
    Some(text + LIMITS)
}

fn sentences(runs: &[&Run]) -> Vec<String> {
    let mut said = tiers(runs);
    said.extend(counted(
        runs.iter().flat_map(|run| {
            let refused = run.refused_tiers.iter();
            refused.map(|it| format!("Tier {} cannot be had here: {}", it.tier, it.reason))
        }),
        runs.len(),
    ));
    let sum = |of: fn(&Run) -> u64| thousands(runs.iter().map(|run| of(run)).sum());
    said.push(format!(
        "Events: {} seen, {} dropped; the region map and /proc/PID/maps disagreed at {} of {} scans.",
        sum(|run| run.events.seen),
        sum(|run| run.events.dropped),
        sum(|run| run.events.disagreeing_scans),
        sum(|run| run.events.scans)
    ));
    let losses = runs
        .iter()
        .filter_map(|run| run.ledger.as_ref()?.loss.clone());
    said.extend(counted(
        losses.map(|loss| format!("The page ledger lost something: {loss}")),
        runs.len(),
    ));
    said.extend(unclassified(runs));
    said.extend(adapters(runs));
    said.extend(kernel(runs));
    said.extend(cost(runs));
    let off = runs.iter().flat_map(|run| {
        let off = run
            .probes
            .iter()
            .filter(|probe| probe.state == ProbeState::Off);
        off.map(|probe| {
            let reason = probe.reason.as_deref().unwrap_or("no reason was recorded");
            format!("Probe off: {} ({reason})", probe.name)
        })
    });
    said.extend(counted(off, runs.len()));
    let warnings = runs
        .iter()
        .flat_map(|run| run.warnings.iter().map(|it| format!("Warning: {it}")));
    said.extend(counted(warnings, runs.len()));
    said
}

/// Each text once, with in how many of the runs it stands.
fn counted(texts: impl Iterator<Item = String>, runs: usize) -> Vec<String> {
    let mut tally: Vec<(String, usize)> = Vec::new();
    for text in texts {
        match tally.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => tally.push((text, 1)),
        }
    }
    let told = |(text, count): (String, usize)| match count {
        count if count >= runs => text,
        1 => format!("{text} (1 of {runs} runs)"),
        count => format!("{text} ({count} of {runs} runs)"),
    };
    tally.into_iter().map(told).collect()
}

fn tiers(runs: &[&Run]) -> Vec<String> {
    let mut peaks: Vec<&Peak> = runs.iter().filter_map(|run| run.peak.as_ref()).collect();
    peaks.sort_by(|one, other| one.tier.cmp(&other.tier));
    let of_tier = |peaks: &[&Peak]| {
        let (tier, number) = (&peaks[0].tier, peaks.len());
        let bound = peaks
            .iter()
            .map(|peak| peak.error_bound_bytes)
            .max()
            .unwrap_or(0);
        let exact = match bound {
            0 if tier != "C" => "the exact peak in each".to_owned(),
            bound => format!("the true peak is at most {} higher", human(bound)),
        };
        let plural = if number == 1 { "" } else { "s" };
        format!("Tier {tier} in {number} run{plural}: {exact}.")
    };
    peaks
        .chunk_by(|one, other| one.tier == other.tier)
        .map(of_tier)
        .collect()
}

/// The run of which least is known.
fn unclassified(runs: &[&Run]) -> Option<String> {
    let share = |peak: &Peak| {
        peak.classes.get(Class::Unclassified) as f64 / peak.rss_bytes.max(1) as f64 * 100.0
    };
    let shares = runs
        .iter()
        .filter_map(|run| Some((share(run.peak.as_ref()?), run)));
    let (most, run) = shares.max_by(|one, other| one.0.total_cmp(&other.0))?;
    Some(match most {
        0.0 => "Nothing is unclassified.".to_owned(),
        most => format!(
            "Unclassified is at most {most:.2} % of RSS ({}).",
            title(run)
        ),
    })
}

fn adapters(runs: &[&Run]) -> Vec<String> {
    let all: Vec<_> = runs
        .iter()
        .flat_map(|run| run.adapters.iter().map(move |it| (*run, it)))
        .collect();
    let mut names: Vec<&str> = all
        .iter()
        .map(|(_, adapter)| adapter.name.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut said = Vec::new();
    if !names.is_empty() {
        said.push(format!(
            "Adapters that looked into heaps and stacks: {}.",
            names.join(", ")
        ));
    }
    let refusals = all.iter().filter_map(|(run, adapter)| {
        let reason = adapter.refusal.as_ref()?;
        Some(format!(
            "The adapter {} gave up on {}: {reason}",
            adapter.name, run.label
        ))
    });
    said.extend(counted(refusals, runs.len()));
    said
}

/// Where it comes from, and how far it is from the kernel's own figure.
fn kernel(runs: &[&Run]) -> Vec<String> {
    let sources = runs
        .iter()
        .filter_map(|run| Some(&run.peak.as_ref()?.kernel.source));
    let sources = sources.filter(|source| !source.is_empty());
    let mut said = counted(
        sources.map(|source| format!("Kernel memory: {source}")),
        runs.len(),
    );
    let percent = runs.iter().filter_map(|run| {
        let check = run.peak.as_ref()?.kernel.check.as_ref()?;
        let residue = check.residue_bytes as f64 / check.group.kernel_bytes.max(1) as f64;
        Some((residue * 100.0, title(run)))
    });
    let most = percent.max_by(|one, other| one.0.abs().total_cmp(&other.0.abs()));
    said.extend(most.map(|(most, title)| {
        format!("The kernel's own figure for the group differs from that by {most:+.2} % at most ({title}).")
    }));
    said
}

fn cost(runs: &[&Run]) -> Option<String> {
    let costs = || runs.iter().filter_map(|run| run.own_cost.as_ref());
    let cpu = costs().map(|cost| cost.cpu_seconds).reduce(f64::max)?;
    let rss = costs()
        .map(|cost| cost.peak_rss_bytes.saturating_sub(cost.mapped_bytes))
        .max()?;
    let maps = costs()
        .map(|cost| cost.maps.iter().map(|map| map.bytes).sum::<u64>())
        .max()?;
    let frozen = runs.iter().map(|run| run.frozen_seconds).reduce(f64::max)?;
    Some(format!(
        "Measuring took at most {cpu:.1} s of CPU, {} of RSS and {} of the kernel's memory a run; a program was stopped \
         for {frozen:.2} s at most.",
        human(rss),
        human(maps)
    ))
}
