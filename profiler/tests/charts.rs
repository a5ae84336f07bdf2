//! Figures from sample results: what must stand in them, and that nothing makes them panic.

mod sample;

use std::path::{Path, PathBuf};

use profiler::charts::{self, ChartError};
use profiler::results::{Classes, Outcome, Phase, Results, Run, TimelinePoint};

/// Where the pictures of a test stay, to be looked at.
fn pictures(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("charts")
        .join(name);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn svg_of(results: &Results, name: &str) -> String {
    let (_, figure) = charts::figures(results)
        .into_iter()
        .find(|(found, _)| found == name)
        .unwrap();
    figure.svg
}

/// The value of an attribute of an SVG element.
fn attribute<'a>(element: &'a str, name: &str) -> &'a str {
    let start = element
        .find(&format!(" {name}=\""))
        .unwrap_or_else(|| panic!("{name} in {element}"))
        + name.len()
        + 3;
    element[start..].split('"').next().unwrap()
}

fn number(element: &str, name: &str) -> f64 {
    attribute(element, name).parse().unwrap()
}

/// What a text element says.
fn content(element: &str) -> &str {
    element.split(['<', '>']).nth(2).unwrap()
}

/// Where a text begins and ends.
fn extent(text: &str) -> (f64, f64) {
    let (x, width) = (number(text, "x"), number(text, "textLength"));
    match attribute(text, "text-anchor") {
        "start" => (x, x + width),
        "middle" => (x - width / 2.0, x + width / 2.0),
        "end" => (x - width, x),
        anchor => panic!("{anchor}"),
    }
}

/// The y of a text's baseline.
fn baseline(text: &str) -> f64 {
    // Hung from its top; only what stands below an axis hangs from its own lower end.
    let em = if attribute(text, "dy") == "0.76em" {
        0.76
    } else {
        0.0
    };
    number(text, "y") + em * number(text, "font-size")
}

/// Fills of the segments of RSS, and of the ground under the hatching of kernel memory.
const RSS: [&str; 4] = ["#E69F00", "#0072B2", "#8CCBEE", "#3C3C3C"];
const KERNEL: &str = "#F3F4F5";

/// The segments of the bar of `program` in `svg`: fill, x, width. They are level with its name, to the
/// right of it.
fn segments<'a>(svg: &'a str, program: &str) -> Vec<(&'a str, f64, f64)> {
    let name = svg
        .lines()
        .find(|line| line.starts_with("<text") && content(line) == program)
        .unwrap();
    let (y, (_, end)) = (baseline(name), extent(name));
    svg.lines()
        .filter(|line| line.starts_with("<rect"))
        .filter(|rectangle| {
            let top = number(rectangle, "y");
            (top..top + number(rectangle, "height")).contains(&y) && number(rectangle, "x") > end
        })
        .map(|rectangle| {
            let fill = attribute(rectangle, "fill");
            (fill, number(rectangle, "x"), number(rectangle, "width"))
        })
        .collect()
}

#[test]
fn every_figure_is_written_as_svg_and_as_png_at_twice_the_density() {
    let directory = pictures("once");
    let written = charts::draw_all(&sample::results(), &directory).unwrap();
    let names: Vec<&str> = written
        .iter()
        .map(|path| path.strip_prefix(&directory).unwrap().to_str().unwrap())
        .collect();
    let (of_a_program, of_all): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|name| name.contains('/'));
    // One for each program, at the largest N that it completed.
    assert_eq!(of_a_program.len(), 11 * 2);
    assert!(of_a_program.contains(&"leaves/tokio-100000.svg"));
    assert!(of_a_program.contains(&"leaves/rust-threads-10000.png"));
    assert_eq!(
        of_all,
        [
            "tasks-1.svg",
            "tasks-1.png",
            "tasks-10000.svg",
            "tasks-10000.png",
            "tasks-100000.svg",
            "tasks-100000.png",
            "launch-10000.svg",
            "launch-10000.png",
            "launch-100000.svg",
            "launch-100000.png",
            "scaling.svg",
            "scaling.png",
            "base-slope.svg",
            "base-slope.png",
            "composition.svg",
            "composition.png",
            "user-kernel.svg",
            "user-kernel.png"
        ]
    );
    let png = std::fs::read(directory.join("tasks-1.png")).unwrap();
    assert_eq!(
        &png[16..20],
        1600u32.to_be_bytes(),
        "width in the header of the PNG"
    );
}

#[test]
fn every_program_is_named_and_every_failure_says_its_cause() {
    let results = sample::results();
    let svg = svg_of(&results, "tasks-100000");
    for run in &results.runs {
        assert!(
            svg.contains(&format!(">{}</text>", run.label)),
            "{} is missing",
            run.label
        );
    }
    assert_eq!(svg.matches(&format!(">{}", sample::PID_MAX)).count(), 3);
    assert!(svg.contains(&format!(">unavailable: {}<", sample::NO_DOTNET)));
    assert!(svg.contains("Rust threads, C threads and Java threads failed; C# unavailable"));
    assert!(
        svg.contains(">100,000 tasks: 28 MiB (Rust smol) to 365 MiB (Elixir), kernel included<")
    );
}

#[test]
fn bars_are_as_long_as_their_bytes() {
    let results = sample::results();
    for count in sample::COUNTS {
        let svg = svg_of(&results, &format!("tasks-{count}"));
        let of = |label: &str| {
            let segments = segments(&svg, label);
            let (kernel, rss): (Vec<_>, Vec<_>) =
                segments.into_iter().partition(|(fill, ..)| *fill == KERNEL);
            assert!(rss.iter().all(|(fill, ..)| RSS.contains(fill)), "{rss:?}");
            assert_eq!(kernel.len(), 1, "{label}");
            let width: f64 = rss.iter().map(|(_, _, width)| width).sum();
            (rss, width, kernel[0])
        };
        let runs = || {
            let runs = results.runs.iter().filter(|run| run.tasks == Some(count));
            runs.filter(|run| run.outcome == Outcome::Completed)
        };
        // Pixels of the PNG for a byte, from the bar of Elixir: one scale must hold for all.
        let elixir = runs().find(|run| run.label == "Elixir").unwrap();
        let scale = of("Elixir").1 / elixir.peak.as_ref().unwrap().rss_bytes as f64;
        for run in runs() {
            let peak = run.peak.as_ref().unwrap();
            let (rss, drawn, (_, kernel_x, kernel_width)) = of(&run.label);
            assert!(
                (drawn - peak.rss_bytes as f64 * scale).abs() < 2.0,
                "{}: {drawn} px for {} bytes",
                run.label,
                peak.rss_bytes
            );
            assert!((kernel_width - peak.kernel.total() as f64 * scale).abs() < 2.0);
            let mut next = rss[0].1;
            for (fill, x, width) in rss {
                assert_eq!(x, next, "a gap before {fill} of {}", run.label);
                next += width;
            }
            assert_eq!(kernel_x, next, "kernel memory begins where RSS ends");
        }
    }
}

#[test]
fn segments_are_in_the_order_and_proportion_of_their_classes() {
    let results = sample::results();
    let svg = svg_of(&results, "tasks-100000");
    let segments = segments(&svg, "Java virtual threads");
    let fills: Vec<&str> = segments.iter().map(|(fill, ..)| *fill).collect();
    assert_eq!(fills, [RSS[0], RSS[1], RSS[2], RSS[3], KERNEL]);
    let run = results
        .runs
        .iter()
        .find(|run| run.label == "Java virtual threads" && run.tasks == Some(100_000));
    let peak = run.unwrap().peak.as_ref().unwrap();
    let scale =
        segments[..4].iter().map(|(_, _, width)| width).sum::<f64>() / peak.rss_bytes as f64;
    let classes = &peak.classes;
    let bytes = [
        classes.stacks,
        classes.heap,
        classes.runtime,
        classes.unclassified,
    ];
    for ((fill, _, width), bytes) in segments.iter().zip(bytes) {
        assert!((width - bytes as f64 * scale).abs() < 2.0, "{fill}");
    }
}

#[test]
fn bars_are_sorted_by_total_with_failures_last() {
    let svg = svg_of(&sample::results(), "tasks-10000");
    let at = |label: &str| svg.find(&format!(">{label}</text>")).unwrap();
    let order = [
        "Rust smol",
        "Rust tokio",
        "Go",
        "Elixir",
        "C threads",
        "Rust threads",
        "Java threads",
        "C#",
    ];
    assert!(
        order.is_sorted_by_key(|label| at(label)),
        "C threads go behind Elixir because of the kernel's part"
    );
}

#[test]
fn repeats_get_whiskers_and_a_failed_one_is_told() {
    let results = sample::repeated_results();
    charts::draw_all(&results, &pictures("repeated")).unwrap();
    let svg = svg_of(&results, "tasks-100000");
    assert!(svg.contains("1 of 5 runs failed"));
    assert!(svg.contains("median of 5 runs"));
}

#[test]
fn without_another_n_bytes_per_task_are_called_an_upper_limit() {
    let mut results = sample::results();
    results.runs.retain(|run| run.tasks == Some(100_000));
    charts::draw_all(&results, &pictures("alone")).unwrap();
    let figures = charts::figures(&results);
    let of_all = figures.iter().map(|(name, _)| name.as_str());
    let of_all: Vec<&str> = of_all.filter(|name| !name.contains('/')).collect();
    // Nothing that needs a second N; and no thread program completed.
    assert_eq!(of_all, ["tasks-100000", "launch-100000"]);
    assert!(figures[0].1.svg.contains("≤ 286 B/task"));
}

#[test]
fn scaling_of_a_sweep_names_the_parameter() {
    let mut results = sample::results();
    for run in &mut results.runs {
        run.parameter = Some("conns".to_owned());
    }
    let svg = svg_of(&results, "scaling");
    assert!(
        svg.contains(">conns</text>") || svg.contains("conns\n"),
        "{svg}"
    );
    assert!(svg.contains("the value of {conns} in the command"), "{svg}");
    assert!(!svg.contains("concurrent tasks"), "{svg}");
}

#[test]
fn scaling_has_a_labelled_line_for_each_program_and_a_cross_for_each_failure() {
    let svg = svg_of(&sample::results(), "scaling");
    for expected in [
        "Rust tokio",
        "458 B/task",
        "failed at 32,443",
        "No figure for C#",
        "1,000 MiB",
        "10,000",
    ] {
        assert!(svg.contains(expected), "{expected}");
    }
    let mut labels: Vec<f64> = svg
        .lines()
        .filter(|line| line.contains("font-weight=\"bold\""))
        .filter(|line| number(line, "font-size").round() == 26.0)
        .map(baseline)
        .collect();
    assert_eq!(labels.len(), 11);
    let crosses = svg
        .lines()
        .filter(|line| line.starts_with("<line") && line.contains("#A4262C"));
    assert_eq!(crosses.count(), 2 * 3, "two strokes a failure");
    labels.sort_by(f64::total_cmp);
    assert!(
        labels.windows(2).all(|pair| pair[1] - pair[0] > 30.0),
        "labels overlap: {labels:?}"
    );
}

#[test]
fn nothing_leaves_the_figure_and_no_text_lies_over_another() {
    for (name, figure) in charts::figures(&sample::results()) {
        let texts: Vec<&str> = figure
            .svg
            .lines()
            .filter(|line| line.starts_with("<text"))
            .collect();
        assert!(texts.len() > 15, "{name}");
        let root = figure.svg.lines().next().unwrap();
        let height = number(root, "height") * 2.0;
        assert_eq!(
            attribute(root, "viewBox"),
            format!("0 0 1600 {height}"),
            "{name}"
        );
        for text in &texts {
            let (left, right) = extent(text);
            assert!(left >= 38.0 && right <= 1562.0, "{name}: {text}");
            let y = baseline(text);
            assert!(y > 38.0 && y < height - 38.0, "{name}: {text}");
        }
        for (index, one) in texts.iter().enumerate() {
            for other in &texts[..index] {
                let apart = extent(one).1 <= extent(other).0 || extent(other).1 <= extent(one).0;
                assert!(
                    apart || (baseline(one) - baseline(other)).abs() > 20.0,
                    "{name}: {one} over {other}"
                );
            }
        }
    }
}

#[test]
fn odd_results_are_drawn_without_panic() {
    assert_eq!(charts::figures(&sample::empty()), Vec::new());

    let mut one = sample::one_run();
    one.runs[0].tasks = Some(1);
    charts::draw_all(&one, &pictures("one")).unwrap();

    let mut not_a_benchmark = sample::one_run();
    not_a_benchmark.runs[0].tasks = None;
    assert_eq!(charts::figures(&not_a_benchmark), Vec::new());

    let mut all_failed = sample::results();
    for (index, run) in all_failed.runs.iter_mut().enumerate() {
        run.outcome = Outcome::Failed;
        run.reason = Some(format!(
            "exit status 1: <\"&{}\u{1b}[0m",
            "very long ".repeat(index)
        ));
        run.peak = run.peak.take().filter(|_| index % 2 == 0);
    }
    charts::draw_all(&all_failed, &pictures("all-failed")).unwrap();

    let mut enormous = sample::results();
    for run in enormous.runs.iter_mut().filter(|run| run.program != "smol") {
        run.label = run.label.repeat(9);
        run.tasks = run
            .tasks
            .map(|tasks| tasks.saturating_mul(u64::MAX / 100_000));
        run.colour = Some("no colour \"/>".to_owned());
        if let Some(peak) = &mut run.peak {
            peak.classes = Classes {
                stacks: u64::MAX,
                heap: u64::MAX,
                runtime: 0,
                unclassified: 1,
            };
            peak.rss_bytes = u64::MAX;
            peak.error_bound_bytes = u64::MAX;
            peak.kernel.slab_bytes = Some(u64::MAX);
        }
    }
    charts::draw_all(&enormous, &pictures("enormous")).unwrap();

    let mut nothing = sample::results();
    for run in &mut nothing.runs {
        run.tasks = run.tasks.filter(|tasks| *tasks != 1).or(Some(0));
        if let Some(peak) = &mut run.peak {
            peak.classes = Classes::default();
            peak.rss_bytes = 0;
            peak.kernel = Default::default();
        }
    }
    charts::draw_all(&nothing, &pictures("nothing")).unwrap();
}

#[test]
fn one_bar_far_longer_than_the_rest_stays_readable() {
    let mut results = sample::results();
    results.runs.retain(|run| run.tasks == Some(100_000));
    for run in results
        .runs
        .iter_mut()
        .filter(|run| run.program == "elixir")
    {
        run.peak = Some(sample::peak([120.0, 8000.0, 900.0], [0.5, 16.0, 0.4]));
    }
    charts::draw_all(&results, &pictures("long")).unwrap();
}

#[test]
fn a_million_tasks_have_room_on_the_axes() {
    let mut results = sample::results();
    let mut more: Vec<_> = results
        .runs
        .iter()
        .filter(|run| run.tasks == Some(100_000))
        .cloned()
        .collect();
    for run in &mut more {
        run.tasks = Some(1_000_000);
        if let Some(peak) = run
            .peak
            .as_mut()
            .filter(|_| run.outcome == Outcome::Completed)
        {
            *peak = sample::peak(
                [0.5, peak.rss_bytes as f64 / 104_857.6, 40.0],
                [0.1, 4.0, 0.2],
            );
        }
    }
    results.runs.extend(more);
    charts::draw_all(&results, &pictures("million")).unwrap();
    let svg = svg_of(&results, "scaling");
    assert!(
        ["1", "10,000", "100,000", "1,000,000"]
            .iter()
            .all(|count| svg.contains(&format!(">{count}</text>")))
    );
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let error = charts::draw_all(&sample::one_run(), Path::new("/nonexistent")).unwrap_err();
    let refused = matches!(error, ChartError::Save(_) | ChartError::Folder(_));
    assert!(refused, "{error}");
    // A file system that is full at the first byte.
    let full = charts::draw_all(&sample::one_run(), Path::new("/dev/full"));
    assert!(full.is_err());
}

/// A run that rises to 30 MiB in its launch, of which 20 MiB are heap, and rests there.
fn with_a_timeline() -> Results {
    let mut results = sample::results();
    let run = results
        .runs
        .iter_mut()
        .find(|run| run.program == "tokio" && run.tasks == Some(100_000))
        .unwrap();
    let point = |seconds, heap: u64, runtime: u64, spread: u64| TimelinePoint {
        seconds,
        rss_bytes: (heap + runtime) << 20,
        classes: Some(Classes {
            heap: heap << 20,
            runtime: runtime << 20,
            ..Classes::default()
        }),
        kernel_bytes: Some(5 << 20),
        spread_bytes: spread << 20,
    };
    run.timeline = vec![
        point(0.0, 1, 2, 0),
        point(1.0, 20, 10, 3),
        point(10.0, 20, 10, 0),
    ];
    run.wall_seconds = 11.0;
    let phase = |name: &str, from_seconds, to_seconds| Phase {
        name: name.to_owned(),
        from_seconds,
        to_seconds,
        counters: None,
    };
    run.phases = vec![
        phase("start", 0.0, 0.01),
        phase("launch", 0.01, 1.0),
        phase("plateau", 1.0, 10.0),
        phase("exit", 10.0, 11.0),
    ];
    let peak = run.peak.as_mut().unwrap();
    peak.rss_bytes = 30 << 20;
    peak.classes = run.timeline[1].classes.unwrap();
    peak.at_seconds = 1.0;
    results
}

#[test]
fn a_timeline_stacks_its_classes_and_names_its_phases() {
    let results = with_a_timeline();
    charts::draw_all(&results, &pictures("timeline")).unwrap();
    let svg = svg_of(&results, "timelines/tokio-100000");
    assert!(
        svg.contains(
            "Rust tokio, 100,000 tasks: 30.0 MiB at the peak after 1.0 s, 67 % of it heap"
        )
    );
    let words: Vec<&str> = svg
        .lines()
        .filter(|line| line.starts_with("<text"))
        .map(content)
        .collect();
    for word in [
        "launch",
        "plateau",
        "peak 30.0 MiB",
        "seconds after exec",
        "heap",
        "runtime",
    ] {
        assert!(words.contains(&word), "{word} is missing of {words:?}");
    }
    // 10 ms of eleven seconds have no room for a name, but stand in words.
    assert!(!words.contains(&"start"));
    assert!(svg.contains("start 10 ms, launch 990 ms, plateau 9.0 s, exit 1.0 s"));
    // It may go over the end of a line.
    let text = words.join(" ");
    assert!(text.contains("RSS moved by up to 3.0 MiB meanwhile"));
    // No stacks, so neither an area nor a legend for them.
    assert!(!words.contains(&"stacks"));
    let areas: Vec<&str> = svg
        .lines()
        .filter(|line| line.starts_with("<polygon"))
        .map(|line| attribute(line, "fill"))
        .collect();
    assert_eq!(areas, [RSS[1], RSS[2]]);
    // The top of the stack is at its highest where 30 MiB are on the axis.
    let dot = svg
        .lines()
        .find(|line| line.starts_with("<circle"))
        .map(|line| number(line, "cy"))
        .unwrap();
    let top = svg
        .lines()
        .filter(|line| line.starts_with("<polygon"))
        .flat_map(|line| attribute(line, "points").split_whitespace())
        .filter_map(|point| point.split_once(',')?.1.parse().ok())
        .fold(f64::INFINITY, f64::min);
    assert!((dot - top).abs() <= 1.0, "{dot} {top}");
}

#[test]
fn a_run_that_was_looked_at_once_has_no_timeline() {
    let mut results = with_a_timeline();
    for run in &mut results.runs {
        run.timeline.truncate(1);
        assert!(charts::timeline_of(&results_of(run), run).is_none());
    }
}

#[test]
fn a_load_has_a_figure_of_its_own_and_no_bar_in_the_others() {
    let mut results = sample::results();
    let threads = |run: &&Run| run.program == "c-threads" && run.tasks == Some(10_000);
    let tokio = |run: &&Run| run.program == "tokio" && run.tasks == Some(10_000);
    let loaded = |run: &Run| Run {
        stack_depth_bytes: 8_192,
        ..run.clone()
    };
    let deep = loaded(results.runs.iter().find(threads).unwrap());
    let cannot = Run {
        outcome: Outcome::Unavailable,
        peak: None,
        ..loaded(results.runs.iter().find(tokio).unwrap())
    };
    let without_load = charts::figures(&results).len();
    results.runs.extend([deep, cannot]);
    let figures = charts::figures(&results);
    assert_eq!(figures.len(), without_load + 1);
    let svg = |name: &str| {
        let found = figures.iter().find(|(known, _)| known == name);
        &found.expect("drawn").1.svg
    };
    let load = svg("load-10000");
    assert!(load.contains("10,000 tasks, each with 0 B to 8.0 KiB down its stack"));
    assert!(load.contains("8.0 KiB deep") && !load.contains("Rust tokio"));
    assert!(!svg("tasks-10000").contains("8.0 KiB deep"));
    assert_eq!(results.runs.len(), sample::results().runs.len() + 2);
}

fn results_of(run: &Run) -> Results {
    Results {
        runs: vec![run.clone()],
        ..sample::results()
    }
}

#[test]
fn a_program_alone_and_programs_without_a_line_are_drawn() {
    let mut results = sample::results();
    results.runs.retain(|run| run.program == "c-threads");
    charts::draw_all(&results, &pictures("one-program")).unwrap();
    let svg = svg_of(&results, "base-slope");
    assert!(svg.contains("C threads takes 1.4 MiB, and 37,476 B a task"));
    let svg = svg_of(&results, "user-kernel");
    assert!(svg.contains("Threads: the kernel holds 3.3 times the RSS (C threads)"));
    assert!(svg.contains(">28.3 KiB a thread (stacks 16.0, page tables 4.0, slab 8.2)<"));

    // A base that is below nothing has no place on a logarithmic axis.
    for run in &mut results.runs {
        if let Some(peak) = run.peak.as_mut().filter(|_| run.tasks == Some(1)) {
            peak.rss_bytes = 0;
            peak.kernel = profiler::results::Kernel {
                stacks_bytes: Some(0),
                ..Default::default()
            };
        }
    }
    let figures = charts::figures(&results);
    assert!(figures.iter().all(|(name, _)| name != "base-slope"));
}

#[test]
fn intervals_are_bars_through_their_dots() {
    let results = sample::repeated_results();
    let svg = svg_of(&results, "base-slope");
    assert!(svg.contains("95 % interval"));
    // Across and upright, beside the grid's lines.
    let colour = "#0077AA";
    let bars = svg
        .lines()
        .filter(|line| line.starts_with("<polyline") && line.contains(colour));
    assert!(bars.count() >= 2, "of tokio");
}

#[test]
fn a_launch_is_told_in_microseconds_of_a_task() {
    let svg = svg_of(&sample::results(), "launch-100000");
    // Two letters of Go, ten of Rust tokio.
    for expected in [
        "starting one takes 2.00 µs (Go) to 20.0 µs (Java virtual threads)",
        ">10.0 µs<",
        ">15.0 µs<",
        ">0.20 page faults, 1.00 context switches<",
        "Rust threads, C threads and Java threads failed; C# unavailable",
    ] {
        assert!(svg.contains(expected), "{expected}");
    }
    let mut silent = sample::results();
    silent.runs.iter_mut().for_each(|run| run.phases.clear());
    let figures = charts::figures(&silent);
    assert!(!figures.iter().any(|(name, _)| name.starts_with("launch")));
}
