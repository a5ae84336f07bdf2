//! What changed between two documents.

mod sample;

use profiler::{
    report::{Colour, comparison_report},
    results::{
        Outcome, Results,
        compare::{Comparison, Unit, compare},
        gates::{Gate, Gated},
        merge::merge,
        slopes::Quantity,
    },
    units::MIB,
};

/// Go alone, with its heap so many MiB larger at each N.
fn grown(results: Results, mib: u64) -> Results {
    let mut results = results;
    results
        .runs
        .retain(|run| run.program == "go" && run.outcome == Outcome::Completed);
    for run in &mut results.runs {
        let peak = run.peak.as_mut().expect("completed");
        peak.classes.heap += mib * MIB;
        peak.rss_bytes += mib * MIB;
    }
    results
}

fn rss_at(comparison: &Comparison, tasks: u64) -> &profiler::results::compare::Change {
    let changes = comparison.changes.iter();
    let mut found = changes
        .filter(|change| change.subject.tasks == Some(tasks) && change.quantity == Quantity::Rss);
    found.next().expect("compared")
}

#[test]
fn growth_beyond_the_threshold_is_told() {
    let (old, new) = (grown(sample::results(), 0), grown(sample::results(), 20));
    let comparison = compare(&old, &new);
    let change = rss_at(&comparison, 100_000);
    assert_eq!(change.after - change.before, (20 * MIB) as f64);
    assert_eq!((change.unit, change.noise), (Unit::Bytes, None));
    assert!(change.is_past(5.0) && !change.is_past(10.0));
    assert!(comparison.is_past(5.0));
    // In the other direction it shrank, which is no failure.
    assert!(!compare(&new, &old).is_past(0.0));
    assert!(!compare(&old, &old).is_past(0.0));
}

#[test]
fn what_lies_within_the_noise_is_no_change() {
    let before = grown(sample::repeated_results(), 0);
    let little = compare(&before, &grown(sample::repeated_results(), 1));
    let change = rss_at(&little, 100_000);
    assert!(change.noise.is_some_and(|noise| noise > MIB as f64));
    assert!(!change.beyond_noise && !change.is_past(0.0));
    let much = compare(&before, &grown(sample::repeated_results(), 60));
    assert!(rss_at(&much, 100_000).is_past(5.0));
}

#[test]
fn slopes_are_compared_too() {
    let old = grown(sample::results(), 0);
    let mut new = old.clone();
    for run in &mut new.runs {
        let peak = run.peak.as_mut().expect("completed");
        peak.classes.heap += run.tasks.expect("N") * 1000;
        peak.rss_bytes += run.tasks.expect("N") * 1000;
    }
    let comparison = compare(&old, &new);
    let per_task = comparison
        .changes
        .iter()
        .find(|change| change.unit == Unit::BytesPerTask && change.quantity == Quantity::Rss)
        .expect("two N");
    assert!(
        (per_task.after - per_task.before - 1000.0).abs() < 1.0,
        "{per_task:?}"
    );
}

#[test]
fn a_program_that_does_not_complete_any_more_is_no_success() {
    let old = grown(sample::results(), 0);
    let mut new = old.clone();
    new.runs[0].outcome = Outcome::Failed;
    new.runs[0].reason = Some("ended by signal 9".into());
    new.runs[1].program = "go2".into();
    let comparison = compare(&old, &new);
    assert_eq!(comparison.broken.len(), 1);
    assert_eq!(comparison.broken[0].1, "ended by signal 9");
    assert_eq!(comparison.gone[0].tasks, Some(10_000));
    assert_eq!(comparison.new[0].program, "go2");
    assert!(comparison.is_past(100.0));
    let text = comparison_report(&comparison, 100.0, Colour::Off);
    assert!(text.contains("Go at N = 1 does not complete any more: ended by signal 9\n"));
    assert!(text.contains("Go at N = 10,000 is in the first file alone\n"));
    assert!(text.ends_with("1 do not complete any more\n"), "{text}");
}

#[test]
fn the_report_states_change_noise_and_verdict() {
    let (old, new) = (grown(sample::results(), 0), grown(sample::results(), 20));
    let text = comparison_report(&compare(&old, &new), 5.0, Colour::Off);
    let expected = include_str!("expected/comparison.txt");
    println!("{text}");
    assert_eq!(text, expected);
    let coloured = comparison_report(
        &compare(
            &grown(sample::repeated_results(), 60),
            &grown(sample::repeated_results(), 0),
        ),
        5.0,
        Colour::On,
    );
    assert!(
        coloured.contains("\x1b[32m"),
        "what shrank beyond the noise"
    );
}

#[test]
fn documents_of_one_machine_become_one() {
    let one = grown(sample::results(), 0);
    let both = merge(vec![one.clone(), one.clone()])
        .expect("one machine")
        .expect("two");
    assert_eq!(both.runs.len(), 2 * one.runs.len());
    assert_eq!(both.runs[one.runs.len()].repeat, 1);
    assert!(!both.slopes.is_empty());
    let mut other = one.clone();
    other.host.cpus += 1;
    assert!(merge(vec![one, other]).is_err());
}

#[test]
fn a_limit_is_kept_broken_or_not_known_to_be_kept() {
    let mut run = sample::one_run().runs.remove(0);
    let rss = run.peak.as_ref().expect("a peak").rss_bytes;
    let judged = |limit, run: &_| Gate::judge(Gated::Rss, limit, run);
    assert_eq!(judged(rss, &run).broken(), None);
    assert_eq!(
        judged(rss - MIB, &run).broken().as_deref(),
        Some("RSS at the peak is 257.0 MiB, 1.0 MiB more than --max-rss 256.0 MiB allows")
    );
    run.peak = None;
    let unknown = judged(rss, &run);
    assert!(!unknown.kept);
    assert_eq!(
        unknown.broken().as_deref(),
        Some("RSS at the peak was not measured, so --max-rss 257.0 MiB is not known to be kept")
    );
}
