//! Results in the forms that files have, as literals.

mod sample;

use profiler::{
    export::{ExportError, Format},
    results::{Classes, Results, TimelinePoint},
};

fn text(format: Format, results: &Results) -> String {
    String::from_utf8(format.bytes(results).expect("there is enough")).expect("UTF-8")
}

/// A run with three points: looked at, polled only, and looked at again.
fn short_run() -> Results {
    let mut results = sample::one_run();
    let run = &mut results.runs[0];
    run.program = "sort, \"fast\"".into();
    run.tasks = None;
    let classes = |heap| Classes {
        stacks: 8192,
        heap,
        runtime: 4096,
        unclassified: 0,
    };
    let point = |seconds, classes: Option<Classes>, rss_bytes| TimelinePoint {
        seconds,
        rss_bytes,
        classes,
        kernel_bytes: classes.map(|_| 1024),
        spread_bytes: 0,
    };
    run.timeline = vec![
        point(0.02, Some(classes(4096)), 16384),
        point(0.04, None, 20480),
        point(0.06, Some(classes(12288)), 24576),
    ];
    results
}

#[test]
fn the_timeline_as_csv_leaves_empty_what_was_not_measured() {
    let expected = "\
program,tasks,repeat,seconds,rss_bytes,stacks_bytes,heap_bytes,runtime_bytes,unclassified_bytes,kernel_bytes,spread_bytes
\"sort, \"\"fast\"\"\",,0,0.02,16384,8192,4096,4096,0,1024,0
\"sort, \"\"fast\"\"\",,0,0.04,20480,,,,,,0
\"sort, \"\"fast\"\"\",,0,0.06,24576,8192,12288,4096,0,1024,0
";
    assert_eq!(text(Format::Csv, &short_run()), expected);
    assert_eq!(
        text(Format::Csv, &sample::results()).lines().count(),
        1 + sample::results()
            .runs
            .iter()
            .map(|run| run.timeline.len())
            .sum::<usize>()
    );
}

#[test]
fn json_is_the_document_itself() {
    let results = short_run();
    let back: Results = serde_json::from_str(&text(Format::Json, &results)).expect("JSON");
    assert_eq!(back, results);
}

#[test]
fn figures_are_the_ones_that_say_most() {
    let finding = |results: &Results| {
        let svg = text(Format::Svg, results);
        assert!(svg.starts_with("<svg"), "{}", &svg[..80]);
        svg
    };
    assert!(finding(&short_run()).contains("at the peak after"));
    assert!(finding(&sample::results()).contains("tokio"));
    // Its timeline is empty.
    assert!(matches!(
        Format::Png.bytes(&sample::one_run()),
        Err(ExportError::TooLittle(_))
    ));
}

#[test]
fn peaks_as_openmetrics() {
    let mut results = short_run();
    results.runs[0].processes[0].executable = "C:\\go \"1\"".into();
    let expected = include_str!("expected/peak.prom");
    assert_eq!(text(Format::OpenMetrics, &results), expected);
    // The samples of a family stand together, whatever the number of runs.
    let all = text(Format::OpenMetrics, &sample::results());
    let families = all.lines().filter(|line| line.starts_with("# TYPE"));
    assert_eq!(families.count(), 13);
    assert!(all.contains("{program=\"tokio\",tasks=\"10000\",repeat=\"0\",class=\"heap\"} "));
}

#[test]
fn a_page_in_markdown() {
    let mut results = short_run();
    let run = &mut results.runs[0];
    let peak = run.peak.as_mut().expect("a peak");
    peak.regions[0].backing = Some("a|b".into());
    run.processes[0].classes_at_peak = peak.classes;
    assert_eq!(
        text(Format::Markdown, &results),
        include_str!("expected/page.md")
    );
    let tables = text(Format::Markdown, &sample::results());
    assert!(
        tables.contains("| Rust tokio | 100,000 | 0.0 | 42.3 | 3.8 |"),
        "{tables}"
    );
    assert!(
        tables.contains("## What one more costs, in bytes"),
        "{tables}"
    );
}
