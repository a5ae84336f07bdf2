//! The end of a run with a page ledger: reads it, composes the peak, and accounts for every loss.

use std::collections::HashMap;

use profiler_ebpf::ledger_wire::growth_limit;

use super::{analysis::Analysis, at_peak::AtPeak, own_peak::OwnPeak};
use crate::{
    probes::{layout::SLACK_SHIFT, ledger::LedgerProbes},
    residency::{
        Method, ResidentRange,
        hidden_growth::statm_is_exact,
        ledger::{Ledger, decode_space, decode_state},
        scan::present_pages,
    },
    results,
    units::PAGE,
};

/// A scan beats the ledger's candidate only by more than this part of it: below, the ledger's slack
/// explains it ([`SLACK_SHIFT`]).
const SLACK: u64 = 512;

/// The highest RSS of each process, by tgid: bytes, and `CLOCK_MONOTONIC` in ns.
pub(super) type Highest = HashMap<u32, (u64, u64)>;

/// What the ledger knows of single processes.
#[derive(Default)]
pub(super) struct OfProcesses {
    pub highest: Highest,
    /// By tgid: the process at its own peak, or why it is not told. Empty where there was one process.
    pub at_peak: HashMap<u32, Result<OwnPeak, String>>,
}

/// Reads the ledger after the command has ended. The composition at the peak becomes the best one of
/// `analysis`, unless a scan found clearly more.
pub(super) fn read(
    probes: &LedgerProbes,
    mut at_peak: AtPeak,
    analysis: &mut Analysis,
    method: Method,
    exec_ns: u64,
) -> (results::Ledger, OfProcesses) {
    let (present, ledger) = read_whole(probes, method);
    let state = &ledger.state;
    let seconds = |ns: u64| ns.saturating_sub(exec_ns) as f64 / 1e9;
    let mut account = results::Ledger {
        tier: probes.tier().name().into(),
        highest_bytes: state.highest_pages * PAGE,
        highest_at_seconds: seconds(state.highest_ns),
        composed_bytes: state.candidate_pages * PAGE,
        candidates: u64::from(state.epoch),
        removals: state.removals,
        copies: state.copies,
        pool_full: state.pool_full,
        spaces_full: state.spaces_full,
        unreadable: state.unreadable,
        unseen_removals: state.unseen_removals,
        recursion_misses: probes.recursion_misses(),
        rescans: present.len() as u64,
        ..results::Ledger::default()
    };
    if let Some((composition, agreement)) = at_peak.compose(&ledger, &present, analysis) {
        account.missing_bytes = agreement.missing_bytes;
        account.extra_bytes = agreement.extra_bytes;
        account.unmapped_bytes = agreement.unmapped_bytes;
        let scanned = analysis.best.as_ref().map_or(0, |best| best.rss_bytes);
        let found = composition.rss_bytes;
        if scanned <= found + found / SLACK + PAGE * 8 {
            analysis.best = Some(composition);
            account.composed = true;
        }
    }
    let differ = account.missing_bytes + account.extra_bytes;
    account.error_bound_bytes = at_most_pages(&ledger) * PAGE - account.composed_bytes + differ;
    let counted = account.highest_bytes - account.composed_bytes + differ;
    account.loss = loss(&account, counted);
    let of_processes = OfProcesses {
        highest: highest(&ledger),
        at_peak: at_peak.compose_own(&ledger, &present, analysis),
    };
    (account, of_processes)
}

/// How often pages and ledger are read again because a candidate was made meanwhile. A process that is attached to runs on
/// while it is read.
const READINGS: usize = 8;

/// The pages that are there now, by tgid, and the ledger, both of the same candidates.
fn read_whole(probes: &LedgerProbes, method: Method) -> (HashMap<u32, Vec<ResidentRange>>, Ledger) {
    let mut readings = 0;
    loop {
        let before = epochs(probes);
        // Pages first, ledger second: what changes in between has been copied by then.
        let mut present = HashMap::new();
        let spaces = probes.spaces().map(decode_space);
        for space in spaces.filter(|space| space.users > 0) {
            if let Ok(pages) = present_pages(space.tgid, method) {
                present.insert(space.tgid, pages);
            }
        }
        let ledger = Ledger::decode(
            probes.state(),
            probes.spaces(),
            probes.chunks(),
            probes.own_chunks(),
        );
        readings += 1;
        if epochs(probes) == before || readings == READINGS {
            return (present, ledger);
        }
    }
}

/// Those of the tree and of each space.
fn epochs(probes: &LedgerProbes) -> Vec<u32> {
    let of_spaces = probes.spaces().map(|words| decode_space(words).own_epoch);
    std::iter::once(decode_state(probes.state()).epoch)
        .chain(of_spaces)
        .collect()
}

/// The most pages that the tree may have had at any removal. Growth over the candidate by less than the slack makes no
/// new one, and is not counted to the page for the tree as a whole. What is counted whenever it may be a new highest is
/// each space, so that of a single one is exact.
fn at_most_pages(ledger: &Ledger) -> u64 {
    let state = &ledger.state;
    let of_spaces: u64 = ledger.spaces.iter().map(|it| it.highest_pages).sum();
    growth_limit(state.candidate_pages, SLACK_SHIFT)
        .min(of_spaces)
        .max(state.highest_pages)
}

/// A process has had several address spaces if it exec'd.
fn highest(ledger: &Ledger) -> Highest {
    let mut highest = Highest::new();
    for space in &ledger.spaces {
        let own = (space.highest_pages * PAGE, space.highest_ns);
        highest
            .entry(space.tgid)
            .and_modify(|known| *known = own.max(*known))
            .or_insert(own);
    }
    highest
}

/// `counted`: bytes by which what was counted and what was composed differ.
fn loss(account: &results::Ledger, counted: u64) -> Option<String> {
    let losses = [
        (account.pool_full, "copies found no room"),
        (account.spaces_full, "address spaces found no room"),
        (account.unreadable, "page tables could not be read"),
    ];
    let mut words: Vec<String> = losses
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    // Where a kernel may skip a probe, another one stands in front of it. What neither saw is missing in the
    // bits, or too much.
    let differ = account.missing_bytes + account.extra_bytes;
    if account.recursion_misses > 0 && differ > 0 {
        words.push(format!(
            "{} runs of a probe were skipped, by which {differ} bytes may be missing or too much",
            account.recursion_misses
        ));
    }
    // Counters that lag (before Linux 6.2) know less than the page tables do; that is no loss.
    let lagging = account.missing_bytes == 0 && !statm_is_exact();
    if counted > account.highest_bytes / 100 && !lagging {
        words.push(format!(
            "bits and counters differ by up to {} bytes ({} removals were not seen)",
            counted, account.unseen_removals
        ));
    }
    if !account.composed {
        words.push("a scan found more than it".into());
    }
    (!words.is_empty()).then(|| format!("the page ledger is incomplete: {}", words.join(", ")))
}
