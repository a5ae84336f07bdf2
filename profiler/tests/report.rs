//! Tables and pages for the terminal, as literals.

mod sample;

use profiler::report::{Colour, results_table, run_report};
use profiler::results::{Classes, Outcome, ProcessPeak};

#[test]
fn the_table_is_aligned() {
    let mut results = sample::results();
    results
        .runs
        .retain(|run| ["tokio", "c-threads", "csharp"].contains(&run.program.as_str()));
    let expected = "\
program           N  stacks  heap  runtime  unclassified    RSS  kernel  B/task  wall  outcome
C threads         1     0.1   0.1      1.1           0.0    1.3     0.2          10.4  completed
Rust tokio        1     0.0   0.3      2.4           0.0    2.7     0.2          10.4  completed
C#                1                                                                    unavailable: no .NET of version 6 or newer; cargo xtask run --install installs dotnet-sdk-8.0
C threads    10,000    78.3   2.8      1.2           0.3   82.6   276.2   8,528  10.4  completed
Rust tokio   10,000     0.0   4.5      2.6           0.0    7.2     0.2     464  10.4  completed
C#           10,000                                                                    unavailable: no .NET of version 6 or newer; cargo xtask run --install installs dotnet-sdk-8.0
C threads   100,000   253.7   8.4      1.6           1.1  264.7   898.7          10.4  failed at 32,443: pid_max
Rust tokio  100,000     0.0  42.3      3.8           0.2   46.3     0.3     457  10.4  completed
C#          100,000                                                                    unavailable: no .NET of version 6 or newer; cargo xtask run --install installs dotnet-sdk-8.0

memory in MiB at the peak; kernel memory is outside RSS; wall in seconds
B/task: growth of RSS since the program's smallest N, divided by the tasks added

program     runs  base  stacks  heap  runtime  unclassified    RSS  kernel   total  95 % of total  furthest off
C threads      2   1.3   8,201   283       11            34  8,528  28,948  37,476              -
Rust tokio     3   2.7       0   440       15             2    457       1     458              -  +0.9 % at 10,000 (+0.1)

bytes per task: median of the slopes between all pairs of runs (Theil-Sen), with its 95 % interval;
base in MiB of RSS; furthest off: of RSS from that line, in percent and MiB of what was measured
no interval: too few runs; it takes one run at each of five N, two at three (--repeat 2) or four at two

program           N  all alive  launch   CPU  faults  switches  exit CPU  plateau CPU
C threads    10,000       0.31    9.00  13.5    0.20      1.00      27.0      150.0 %
Rust tokio   10,000       0.31    10.0  15.0    0.20      1.00      28.5      150.0 %
Rust tokio  100,000       0.31    10.0  15.0    0.20      1.00      16.3      150.0 %

all alive: seconds from exec; launch, CPU, faults and switches: µs, µs of CPU, page faults and context
switches a task, from launch=N to alive=N; exit CPU: µs a task; plateau CPU: percent of one CPU while all wait
";
    let table = results_table(&results, Colour::Off);
    println!("{table}");
    assert_eq!(table, expected);
}

#[test]
fn repeats_show_their_spread_and_give_an_interval() {
    let mut results = sample::repeated_results();
    results.runs.retain(|run| run.program == "tokio");
    let table = results_table(&results, Colour::Off);
    println!("{table}");
    assert!(table.contains("completed, median of 5 (RSS 44.6 to 49.7)\n"));
    assert!(table.contains(
        "RSS of repeats differs by more than 5 % of the median: Rust tokio at 10,000 by "
    ));
    assert!(!table.contains("no interval"));
    let row = table
        .lines()
        .find(|line| line.starts_with("Rust tokio") && line.contains(" to ") && line.contains('%'))
        .unwrap();
    let (low, rest) = row.split_once(" to ").unwrap();
    let low: u64 = low.split(' ').next_back().unwrap().parse().unwrap();
    let high: u64 = rest.split(' ').next().unwrap().parse().unwrap();
    assert!(
        (430..458).contains(&low) && (458..500).contains(&high),
        "{row}"
    );
}

#[test]
fn the_page_about_one_run_shows_where_memory_went() {
    let expected = "\
Go, 100,000 tasks
target/programs/go 100000 10

peak RSS 257.0 MiB at 4.25 s of 10.40 s, 6 threads (PSS 256.0 MiB, reserved 8.00 GiB)
  stacks                   195.4 MiB  76.0 %
    native_stack           195.4 MiB  76.0 %
  heap                      54.9 MiB  21.4 %
    managed_heap            54.9 MiB  21.4 %
  runtime                    5.7 MiB   2.2 %
    image                    5.7 MiB   2.2 %
  unclassified               1.0 MiB   0.4 %
    unknown                  1.0 MiB   0.4 %

kernel memory, outside RSS: 320.0 KiB (made up for tests)
  stacks                    48.0 KiB
  page tables              152.0 KiB
  slab                     120.0 KiB
  other                 not measured
  RSS and kernel           257.3 MiB

processes
  tgid  stacks  heap  runtime  unclassified        RSS  threads  recognised as  executable
  4711       -     -        -             -  257.0 MiB        6  go             target/programs/go

largest regions
   resident  regions  leaf          rule         kind          backing
  195.4 MiB        7  native_stack  clone-stack  thread stack  anonymous
   54.9 MiB        1  managed_heap  go-arena     heap arena    [anon: Go: heap]
    5.7 MiB        1  image         image        executable    target/programs/sample

tier C: the true peak is at most 256.0 KiB higher
events: 412 seen, 0 dropped; 9 scans
probe off: perf:cycles (no hardware counters here)
";
    let page = run_report(&sample::one_run().runs[0], Colour::Off);
    println!("{page}");
    assert_eq!(page, expected);
}

#[test]
fn a_process_that_had_more_at_another_time_is_told_there() {
    let mut run = sample::one_run().runs.remove(0);
    let own = ProcessPeak {
        at_seconds: 1.25,
        rss_bytes: 300 << 20,
        error_bound_bytes: 0,
        classes: Classes {
            heap: 299 << 20,
            unclassified: 1 << 20,
            ..Classes::default()
        },
        leaves: Vec::new(),
        regions: Vec::new(),
    };
    let rows = "\
\nprocesses that had more at another time
  tgid  after exec  stacks       heap  runtime  unclassified        RSS
  4711     1.250 s     0 B  299.0 MiB      0 B       1.0 MiB  300.0 MiB\n\n";
    for (rss_bytes, told) in [(300 << 20, true), (257 << 20, false)] {
        run.processes[0].at_peak = Some(ProcessPeak {
            rss_bytes,
            ..own.clone()
        });
        let page = run_report(&run, Colour::Off);
        assert_eq!(page.contains(rows), told, "{page}");
    }
}

#[test]
fn nothing_gives_no_table() {
    assert_eq!(results_table(&sample::empty(), Colour::Off), "");
}

#[test]
fn colour_only_where_it_is_wanted() {
    let results = sample::results();
    assert!(!results_table(&results, Colour::Off).contains('\x1b'));
    let coloured = results_table(&results, Colour::On);
    let failed = coloured
        .lines()
        .filter(|line| line.starts_with("\x1b[31m"))
        .count();
    assert_eq!(failed, 6, "three programs at 100,000, and C# at each N");
}

#[test]
fn a_failed_run_says_why_even_without_a_peak() {
    let mut run = sample::one_run().runs.remove(0);
    run.outcome = Outcome::Failed;
    run.reason = Some("exit status 2 before all tasks were alive".to_owned());
    run.peak = None;
    run.warnings
        .push("12 events were dropped; try a larger ring".to_owned());
    let page = run_report(&run, Colour::Off);
    assert!(
        page.contains("\nfailed: exit status 2 before all tasks were alive\n"),
        "{page}"
    );
    assert!(
        page.ends_with("warning: 12 events were dropped; try a larger ring\n"),
        "{page}"
    );
}
