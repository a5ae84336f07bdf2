//! How far the figures of a run can be trusted, a line a fact.

use crate::{
    results::{Attached, EventCounts, Peak, ProbeState, Run},
    units::{human, thousands},
};

/// The tier and its error bound, better tiers that were refused, what was lost, what measuring took, and
/// which probes are off.
pub fn trust(run: &Run) -> Vec<String> {
    let mut lines: Vec<String> = tier(run).into_iter().collect();
    lines.extend(run.attached.iter().flat_map(attached));
    lines.extend(
        run.refused_tiers
            .iter()
            .map(|refused| format!("not tier {}: {}", refused.tier, refused.reason)),
    );
    lines.extend(events(&run.events));
    lines.extend(own_cost(run));
    lines.extend(
        run.probes
            .iter()
            .filter(|probe| probe.state == ProbeState::Off)
            .map(|probe| {
                let reason = probe.reason.as_deref().unwrap_or("no reason was recorded");
                format!("probe off: {} ({reason})", probe.name)
            }),
    );
    lines
}

fn tier(run: &Run) -> Option<String> {
    let peak = run.peak.as_ref()?;
    let since = match run.attached {
        Some(_) => "attach",
        None => "exec",
    };
    let when = match is_exact(peak) {
        true => format!(", {:.3} s after {since}", peak.at_seconds),
        false => String::new(),
    };
    Some(format!("tier {}: {}{when}", peak.tier, exactness(peak)))
}

/// How far the peak may be from the true one: `the exact peak`.
pub fn exactness(peak: &Peak) -> String {
    match is_exact(peak) {
        true => "the exact peak".to_owned(),
        false => format!(
            "the true peak is at most {} higher",
            human(peak.error_bound_bytes)
        ),
    }
}

fn is_exact(peak: &Peak) -> bool {
    matches!(peak.tier.as_str(), "A" | "B") && peak.error_bound_bytes == 0
}

/// What is known of the time before, and what is not.
fn attached(attached: &Attached) -> Vec<String> {
    let processes = match attached.processes_at_attach {
        1 => "1 process".to_owned(),
        many => format!("{} processes", thousands(many)),
    };
    let mut lines = vec![format!(
        "attached to process {} ({processes}, {} threads): RSS was {} then, and at most {} before (VmHWM)",
        attached.pid,
        thousands(attached.threads_at_attach),
        human(attached.rss_bytes_at_attach),
        human(attached.vm_hwm_bytes_at_attach)
    )];
    let unknown = attached.unknown.iter();
    lines.extend(unknown.map(|what| format!("not known: {what}")));
    lines
}

fn events(counts: &EventCounts) -> Vec<String> {
    let mut lines = vec![format!(
        "events: {} seen, {} dropped; {} scans",
        thousands(counts.seen),
        thousands(counts.dropped),
        thousands(counts.scans)
    )];
    if counts.disagreeing_scans > 0 {
        lines.push(format!(
            "the region map and /proc/PID/maps disagreed at {} scans, on {}",
            thousands(counts.disagreeing_scans),
            human(counts.disagreeing_bytes)
        ));
    }
    lines
}

fn own_cost(run: &Run) -> Option<String> {
    let cost = run.own_cost.as_ref()?;
    let maps: u64 = cost.maps.iter().map(|map| map.bytes).sum();
    Some(format!(
        "the profiler took {:.1} s of CPU, {} of RSS and {} of maps in the kernel; before, {:.1} s and {} to \
         load its probes",
        cost.cpu_seconds,
        human(cost.peak_rss_bytes.saturating_sub(cost.mapped_bytes)),
        human(maps),
        cost.start_cpu_seconds,
        human(cost.start_peak_rss_bytes)
    ))
}
