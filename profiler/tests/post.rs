//! The draft of a post: as a whole against `fixtures/post.md`, which is to be read as a reader would, and what
//! changes with the results.

mod sample;

use profiler::report::{Chart, post};
use profiler::results::{Outcome, Results};

fn charts(names: &[&str]) -> Vec<Chart> {
    let chart = |name: &&str| Chart {
        name: (*name).to_owned(),
        finding: format!("what {name} shows"),
    };
    names.iter().map(chart).collect()
}

fn only(mut results: Results, programs: &[&str]) -> Results {
    let shown = |program: &str| programs.contains(&program);
    results.runs.retain(|run| shown(&run.program));
    results
}

#[test]
fn the_whole_draft() {
    let results = only(sample::results(), &["c-threads", "tokio", "go", "csharp"]);
    let charts = charts(&[
        "tasks-1",
        "tasks-10000",
        "tasks-100000",
        "launch-10000",
        "scaling",
        "composition",
        "user-kernel",
        "timelines/go-100000",
        "leaves/go-100000",
    ]);
    let text = post(&results, &charts);
    println!("{text}");
    assert_eq!(text, include_str!("fixtures/post.md"));
}

#[test]
fn only_charts_that_were_drawn_are_shown() {
    let results = sample::results();
    assert!(!post(&results, &[]).contains("!["));
    let text = post(&results, &charts(&["scaling"]));
    assert_eq!(text.matches("![").count(), 1);
    assert!(text.contains("![what scaling shows](scaling.png)\n\n*what scaling shows*\n"));
}

#[test]
fn repeats_give_intervals_and_a_command_that_repeats() {
    let results = only(sample::repeated_results(), &["go", "tokio"]);
    let text = post(&results, &[]);
    assert!(text.contains("--programs tokio,go --repeat 5`"), "{text}");
    let interval = "bytes, the kernel's part included (95 % interval ";
    assert_eq!(text.matches(interval).count(), 2, "{text}");
    assert!(!text.contains("too few runs"));
    assert!(
        text.contains("- **Go**, 100,000 tasks (1 of 5 runs): failed: exit status 2\n"),
        "{text}"
    );
}

#[test]
fn where_nothing_completed_the_draft_says_so() {
    let mut results = only(sample::results(), &["csharp"]);
    let text = post(&results, &[]);
    assert!(text.starts_with(
        "# Where does the memory of 100,000 concurrent tasks go?\n\n- No program completed.\n"
    ));
    assert!(!text.contains("## Method"), "nothing was measured");
    results.runs.clear();
    assert_eq!(
        post(&results, &[]),
        "# Where does the memory go?\n\nNothing was run.\n"
    );
}

#[test]
fn commands_without_tasks_are_listed() {
    let mut results = sample::one_run();
    results.runs[0].tasks = None;
    results.runs[0].command = vec!["a`b".to_owned(), "<c>".to_owned()];
    let text = post(&results, &[]);
    let listed = "- Go: 257.0 MiB at the peak after 4.2 s, 76 % of it stacks (`` a`b <c> ``)\n";
    assert!(text.contains(listed), "{text}");
}

#[test]
fn names_are_text() {
    let mut results = only(sample::results(), &["c-threads"]);
    let hostile = "<script>|x|\n# `y` *z* ![i](http://example.org/i.png)";
    for run in &mut results.runs {
        run.label = hostile.to_owned();
        run.outcome = Outcome::Failed;
        run.reason = Some(hostile.to_owned());
        run.command = vec![hostile.to_owned()];
    }
    let text = post(&results, &[]);
    let outside_code: String = text
        .split('\n')
        .filter(|line| !line.contains("` <script>"))
        .collect();
    for markup in ["<script>", "\n# `", "![i]", " *z* "] {
        assert!(!outside_code.contains(markup), "{markup} in {text}");
    }
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    let table: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("| \\<script"))
        .collect();
    assert!(!table.is_empty());
    assert!(
        table.iter().all(|line| [5, 12].contains(&cells(line))),
        "{table:?}"
    );
}
