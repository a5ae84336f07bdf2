//! The page ledger's composition at the peak, against that of the same program which rests at its peak
//! and is frozen and scanned there.

use std::process::Stdio;

use profiler::{
    classify::Class,
    residency::hidden_growth::statm_is_exact,
    results::{Peak, Run},
};

use crate::{
    fixtures::build,
    profiled::{profiler_with, read_run},
};

/// Longer than RSS must be at rest to be scanned, see `peak`.
const REST_MS: &str = "1000";

/// One run of `at_its_peak` in a tier; `None` where the kernel refuses it.
fn run(tier: &str, rest_ms: &str) -> Option<Run> {
    run_fixture(tier, "at_its_peak", &[rest_ms])
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
    let frozen = run("C", REST_MS).expect("tier C runs everywhere");
    let frozen = frozen.peak.expect("it was scanned");
    for tier in ["A", "B"] {
        let Some(run) = run(tier, "0") else { continue };
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
