//! The end of a run with a page ledger: reads it, composes the peak, and accounts for every loss.

use std::collections::HashMap;

use super::{analysis::Analysis, at_peak::AtPeak, own_peak::OwnPeak};
use crate::{
    probes::ledger::LedgerProbes,
    residency::{
        Method,
        hidden_growth::statm_is_exact,
        ledger::{Ledger, decode_space},
        scan::present_pages,
    },
    results,
    units::PAGE,
};

/// A scan beats the ledger's candidate only by more than this part of it: below, the ledger's slack
/// explains it (`SLACK_SHIFT`).
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
    account.error_bound_bytes = account.highest_bytes - account.composed_bytes
        + account.missing_bytes
        + account.extra_bytes;
    account.loss = loss(&account);
    let of_processes = OfProcesses {
        highest: highest(&ledger),
        at_peak: at_peak.compose_own(&ledger, &present, analysis),
    };
    (account, of_processes)
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

fn loss(account: &results::Ledger) -> Option<String> {
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
    if account.error_bound_bytes > account.highest_bytes / 100 && !lagging {
        words.push(format!(
            "bits and counters differ by up to {} bytes ({} removals were not seen)",
            account.error_bound_bytes, account.unseen_removals
        ));
    }
    if !account.composed {
        words.push("a scan found more than it".into());
    }
    (!words.is_empty()).then(|| format!("the page ledger is incomplete: {}", words.join(", ")))
}
