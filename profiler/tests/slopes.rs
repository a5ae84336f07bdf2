//! Slopes of sample results.

mod sample;

use profiler::results::Outcome;
use profiler::results::slopes::{Quantity, Slope, find, slopes};

fn of_tokio(slopes: &[Slope], class: Quantity) -> &Slope {
    find(slopes, "tokio", class).unwrap()
}

#[test]
fn every_program_has_a_line_for_each_class() {
    let slopes = slopes(&sample::results());
    // C# is unavailable.
    assert_eq!(slopes.len(), 11 * Quantity::ALL.len());
    let heap = of_tokio(&slopes, Quantity::Heap);
    // 0.3, 4.5 and 42.3 MiB at 1, 10,000 and 100,000 tasks.
    assert!((heap.bytes_per_task - 440.4).abs() < 1.0, "{heap:?}");
    assert_eq!((heap.points, heap.ci95), (3, None));
    let residual = heap.largest_residual.unwrap();
    assert_eq!(residual.tasks, 10_000);
    assert!((residual.percent - residual.bytes / 4.5 / 10_485.76).abs() < 0.1);

    // The sums of the classes grow as RSS does where each class grows along a line.
    let classes: f64 = Quantity::ALL[..4]
        .iter()
        .map(|class| of_tokio(&slopes, *class).bytes_per_task)
        .sum();
    let rss = of_tokio(&slopes, Quantity::Rss).bytes_per_task;
    assert!((classes - rss).abs() < 2.0, "{classes} {rss}");
    let total = of_tokio(&slopes, Quantity::Total).bytes_per_task;
    let kernel = of_tokio(&slopes, Quantity::Kernel).bytes_per_task;
    assert!((rss + kernel - total).abs() < 0.1);
}

#[test]
fn failed_runs_are_in_no_line() {
    let slopes = slopes(&sample::results());
    let threads = find(&slopes, "c-threads", Quantity::Total).unwrap();
    assert_eq!((threads.points, threads.largest_residual), (2, None));
}

#[test]
fn repeats_give_an_interval() {
    let slopes = slopes(&sample::repeated_results());
    let heap = of_tokio(&slopes, Quantity::Heap);
    let [low, high] = heap.ci95.unwrap();
    assert!(low < heap.bytes_per_task && heap.bytes_per_task < high);
    assert_eq!(heap.points, 15);
    // What does not move has no width.
    assert_eq!(of_tokio(&slopes, Quantity::Stacks).ci95, Some([0.0, 0.0]));
}

#[test]
fn kernel_memory_that_some_runs_lack_has_no_line() {
    let mut results = sample::results();
    let run = results.runs.iter_mut().find(|run| run.program == "tokio");
    let kernel = &mut run.unwrap().peak.as_mut().unwrap().kernel;
    *kernel = profiler::results::Kernel::default();
    let slopes = slopes(&results);
    assert!(find(&slopes, "tokio", Quantity::Rss).is_some());
    assert!(find(&slopes, "tokio", Quantity::Kernel).is_none());
    assert!(find(&slopes, "tokio", Quantity::Total).is_none());
}

#[test]
fn no_interval_is_null_in_the_document() {
    let mut results = sample::results();
    results.runs.retain(|run| run.outcome == Outcome::Completed);
    let json = serde_json::to_value(slopes(&results)).unwrap();
    assert!(json[0]["ci95"].is_null());
    assert_eq!(json[0]["class"], "stacks");
    let read: Vec<Slope> = serde_json::from_value(json).unwrap();
    assert_eq!(read, slopes(&results));
}
