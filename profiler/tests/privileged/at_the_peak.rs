//! The page ledger's composition at the peak, against that of the same program which rests at its peak
//! and is frozen and scanned there.

use std::process::Stdio;

use profiler::{
    classify::Class,
    residency::hidden_growth::statm_is_exact,
    results::{Peak, Process, ProcessPeak, Run},
};

use crate::{
    fixtures::{build, told_by},
    profiled::{Profiling, address, profiler_with, read_run, until_seen},
};

/// `at_its_peak`, which stands still at its peak until it has been scanned there.
fn run_at_rest() -> Run {
    let program = build("at_its_peak");
    let command = ["setarch", "-R", program.to_str().expect("UTF-8")];
    let profiling = Profiling::start(1, &command);
    profiling.wait_for_scan_of(&[profiling.told["pid"].0 as u32]);
    profiling.end()
}

/// The same without a rest, in a tier; `None` where the kernel refuses it. Where it is gone before its mappings are read, what exec maps is told to be unclassified: such
/// a run says nothing of the others.
fn run_that_was_seen(tier: &str) -> Option<Run> {
    let is_classified = |run: &Run| {
        let peak = run.peak.as_ref();
        peak.is_some_and(|peak| peak.classes.get(Class::Unclassified) == 0)
    };
    until_seen(
        || run_fixture(tier, "at_its_peak", &[]),
        |run| run.as_ref().is_none_or(is_classified),
    )
}

fn run_fixture(tier: &str, name: &str, arguments: &[&str]) -> Option<Run> {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let output = profiler_with(&["--tier", tier], &result)
        // At the same addresses in every run: files are mapped in windows of sixteen pages, which would
        // otherwise lie elsewhere.
        .args(["setarch", "-R"])
        .arg(build(name))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the profiler starts");
    if output.status.success() {
        return Some(read_run(&result));
    }
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("no page ledger"), "{words}");
    eprintln!("SKIPPED: tier {tier}: {}", words.trim());
    None
}

#[test]
fn classes_at_the_peak_are_those_of_the_program_frozen_there() {
    let frozen = run_at_rest();
    let frozen = frozen.peak.expect("it was scanned");
    for tier in ["A", "B"] {
        let Some(run) = run_that_was_seen(tier) else {
            continue;
        };
        let (peak, ledger) = (run.peak.expect("a peak"), run.ledger.expect("a ledger"));
        assert_eq!(peak.tier, tier, "{ledger:?}");
        assert_eq!(ledger.loss, None);
        for class in Class::ALL {
            let pages = peak.classes.get(class).abs_diff(frozen.classes.get(class)) / 4096;
            // The barrier wakes threads in any order. Before Linux 6.2 each thread keeps up to 64 faults to
            // itself, so that the ledger may take a moment shortly before for the peak.
            let allowed = if statm_is_exact() {
                2
            } else {
                64 * peak.threads
            };
            assert!(
                pages <= allowed,
                "{}: {pages} pages apart: {:?} {:?}",
                class.name(),
                peak.classes,
                frozen.classes
            );
        }
        eprintln!(
            "tier {tier}: {:?}, frozen {:?}",
            peak.classes, frozen.classes
        );
        // The ledger reads the number of mappings from the kernel, the scan from a list of them. Neighbours
        // merge or do not by which thread touched them first.
        let mappings = |peak: &Peak| {
            let mut kinds = peak.kernel.slab.iter();
            let kind = kinds.find(|kind| kind.kind == "vm_area_struct");
            kind.expect("there are mappings").objects
        };
        if statm_is_exact() {
            let (ours, listed) = (mappings(&peak), mappings(&frozen));
            assert!(ours.abs_diff(listed) <= 2, "{ours} and {listed} mappings");
        }
        // The threads had not ended yet.
        assert!(peak.threads == 21 || !statm_is_exact(), "{}", peak.threads);
    }
}

/// 400 MiB for some milliseconds: scans do not hit them, and say so.
#[test]
fn scans_say_what_they_missed_of_a_short_peak() {
    let run = run_fixture("C", "transient", &["50", "400"]).expect("tier C runs everywhere");
    let peak = run.peak.expect("it was scanned");
    let high = peak.rss_bytes + peak.error_bound_bytes;
    let allocated = 450 << 20;
    // The kernel's high-water mark is short by what its counters have not flushed.
    assert!(high > allocated - allocated / 100, "{high}: {peak:?}");
    assert!(high < allocated + allocated / 50, "{high}");
}

#[test]
fn each_process_is_told_at_its_own_peak() {
    for tier in ["A", "B"] {
        two_peaks(tier);
    }
}

fn two_peaks(tier: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let output = profiler_with(&["--tier", tier], &result)
        .arg(build("two_peaks"))
        .stdin(Stdio::null())
        .output()
        .expect("the profiler starts");
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        assert!(words.contains("no page ledger"), "{words}");
        eprintln!("SKIPPED: tier {tier}: {}", words.trim());
        return;
    }
    let told = [output.stdout.as_slice(), b"ready\n"].concat();
    let told = told_by(1, &mut told.as_slice()).expect("all of it");
    let run = read_run(&result);
    let own = |name: &str| {
        let tgid = told[name].0 as u32;
        let process: &Process = run
            .processes
            .iter()
            .find(|process| process.tgid == tgid)
            .expect("it was followed");
        let peak = process.at_peak.as_ref();
        let peak = peak.unwrap_or_else(|| panic!("{tier} {name}: {:?}", process.at_peak_reason));
        assert_eq!(peak.classes.total(), peak.rss_bytes);
        let regions = peak.regions.iter().map(|row| row.resident_bytes);
        assert_eq!(regions.sum::<u64>(), peak.rss_bytes);
        let highest = process.highest_rss_bytes.expect("there is a ledger");
        assert!(peak.rss_bytes + peak.error_bound_bytes >= highest);
        // A new candidate has more by a thousandth and four pages.
        assert!(peak.error_bound_bytes <= highest / 1000 + 8 * 4096 || !statm_is_exact());
        (process, peak)
    };
    let ((parent, parents), (child, childs)) = (own("pid"), own("child"));
    let pages = |peak: &ProcessPeak, name: &str| -> u64 {
        let (start, length) = told[name];
        let inside = peak.regions.iter().filter(|row| {
            address(row).is_some_and(|address| (start..start + length).contains(&address))
        });
        inside.map(|row| row.resident_bytes / 4096).sum()
    };
    let found = ["before", "childs"].map(|name| pages(childs, name));
    assert_eq!(found, [60, 600], "{childs:?}");
    let found = ["before", "parents"].map(|name| pages(parents, name));
    assert_eq!(found, [40, 900], "{parents:?}");
    assert!(childs.at_seconds < parents.at_seconds);
    // By the kernel's own count of the child while it stood still there.
    let off = childs.rss_bytes.abs_diff(told["child"].1) / 4096;
    assert!(
        off <= if statm_is_exact() { 2 } else { 64 },
        "{off} pages off"
    );
    // The peak of both is the parent's, when the child had given most of it back.
    assert!(
        child.rss_bytes_at_peak + 500 * 4096 < childs.rss_bytes,
        "{child:?}"
    );
    assert!(
        parent.rss_bytes_at_peak.abs_diff(parents.rss_bytes) <= 8 * 4096,
        "{parent:?}"
    );
    eprintln!(
        "tier {tier}: child {} of {} bytes, bound {}; parent {} bytes, bound {}",
        childs.rss_bytes,
        told["child"].1,
        childs.error_bound_bytes,
        parents.rss_bytes,
        parents.error_bound_bytes
    );
}
