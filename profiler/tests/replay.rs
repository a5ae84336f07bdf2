//! Recorded runs (`tests/recordings/NAME.log`), replayed to a report without root and without the
//! program. What is expected stands beside each as `NAME.txt`; `BLESS=1 cargo test --test replay`
//! writes it anew.
//!
//! A recording is made by `profiler run --event-log NAME.log -- COMMAND` (root), from a program of
//! `tests/fixtures`. Folders of the machine are replaced by `/opt`.

use std::{fs, io::BufReader, path::Path};

use profiler::{
    events::log,
    report::{Colour, run_report},
    results::Run,
    session::{job::Job, replay::replay},
};

/// The run that was recorded under this name.
fn replayed(name: &str) -> Run {
    let path = recordings().join(name).with_extension("log");
    let file = fs::File::open(&path).expect("a recording");
    let entries = log::read(BufReader::new(file)).expect("a log");
    replay(entries, &Job::of_command(vec![name.into()], Vec::new()))
        .expect("it begins with its root")
}

fn recordings() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings"))
}

/// What must stay as it is: every figure of the composition to the byte, and the report.
fn text(run: &Run) -> String {
    let peak = run.peak.as_ref().expect("it was scanned");
    let mut text = format!(
        "rss {} pss {} kernel {} reserved {} threads {}\n{:?}\n{:?}\n",
        peak.rss_bytes,
        peak.pss_bytes,
        peak.kernel.total(),
        peak.reserved_bytes,
        peak.threads,
        peak.classes,
        run.events,
    );
    for row in &peak.leaves {
        text += &format!("{:?} {}\n", row.leaf, row.bytes);
    }
    for row in &peak.regions {
        let (start, backing) = (row.start.as_deref(), row.backing.as_deref());
        text += &format!(
            "{} {} of {} {} {} {}\n",
            row.tgid,
            row.resident_bytes,
            row.length_bytes,
            row.rule,
            start.unwrap_or("*"),
            backing.unwrap_or("-"),
        );
    }
    text + "\n" + &run_report(run, Colour::Off)
}

fn check(name: &str) -> Run {
    let run = replayed(name);
    let path = recordings().join(name).with_extension("txt");
    let text = text(&run);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &text).expect("the recordings can be written");
    }
    let expected = fs::read_to_string(&path).expect("blessed once");
    assert_eq!(text, expected, "see the head of {} for BLESS=1", file!());
    run
}

/// Seven threads, of which four end.
#[test]
fn threads() {
    let run = check("threads");
    assert_eq!(run.processes[0].threads_peak, 8);
    assert_eq!(run.peak.expect("a scan").threads, 4);
}

/// `sh -c 'exec env ./fork_cow'` with a folder in `PATH` that is not there: two execs, then a fork.
#[test]
fn exec_and_fork() {
    let run = check("exec_and_fork");
    assert_eq!(run.processes.len(), 2);
    assert_eq!(run.processes[1].parent, Some(run.processes[0].tgid));
}

#[test]
fn a_log_without_its_beginning_is_refused() {
    let error = replay(
        Vec::new(),
        &Job::of_command(vec!["nothing".into()], Vec::new()),
    )
    .expect_err("nothing was recorded");
    assert_eq!(
        error.to_string(),
        "an event log begins with the process that was launched"
    );
}
