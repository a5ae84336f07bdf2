//! `cargo xtask accuracy`: holds what adapters found inside the programs against the runtimes' own books.
//!
//! Each program is run once more, in a form that answers `SIGUSR2` with its runtime's books; it is asked
//! right after the adapters have looked. None of that happens in a measured run.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use profiler::{
    charts,
    results::{
        Run, SCHEMA_VERSION,
        accuracy::{Accuracy, Comparison, Unit},
        store,
    },
    session::{
        host,
        job::{Contract, Job, Load},
    },
    units::thousands,
};

use crate::{
    measure::{self, Measured, Profiler},
    programs::{self, Prepared, Program, Ready, Variant},
    progress::Progress,
};

/// The options of `cargo xtask accuracy`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Number of concurrent tasks; of kernel threads, at most 10,000
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    tasks: u64,
    /// Only these programs, with commas between them
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    programs: Vec<String>,
    /// How long each task waits
    #[arg(long, value_name = "SECONDS", default_value_t = 12.0)]
    seconds: f64,
    /// Where accuracy.json and the chart go
    #[arg(short, long, value_name = "DIR", default_value = "plots/latest")]
    output: PathBuf,
    /// Install on the system what cannot be had otherwise
    #[arg(long)]
    install: bool,
}

impl Options {
    /// What `cargo xtask test` verifies.
    pub fn of_tests() -> Options {
        Options {
            tasks: 10_000,
            programs: Vec::new(),
            seconds: 6.0,
            output: "target/accuracy".into(),
            install: false,
        }
    }
}

/// How often a program is run for two looks of the same state.
const MOST_TRIES: u32 = 3;

/// Threads of the kernel are verified at no more than this: more need raised limits.
const MOST_THREADS: u64 = 10_000;

/// N for this program.
fn tasks(program: &Program, options: &Options) -> u64 {
    match program.threads_per_task {
        0 => options.tasks,
        _ => options.tasks.min(MOST_THREADS),
    }
}

/// Runs the programs, prints both sides, and fails when one is past its limit.
pub fn run(options: &Options, root: &Path) -> Result<()> {
    let mut programs = programs::select(programs::load(root)?, &options.programs)?;
    programs.retain(|program| !program.comparisons.is_empty());
    ensure!(
        !programs.is_empty(),
        "none of these programs has a [[compare]] in its program.toml"
    );
    let output = root.join(&options.output);
    store::ensure_writable(&output, None)?;
    let profiler = Profiler::build(root)?;
    profiler.catch_signals()?;

    let mut accuracy = Accuracy {
        schema_version: SCHEMA_VERSION,
        host: host::read(),
        comparisons: Vec::new(),
    };
    let mut progress = Progress::new(programs.len() as u64);
    for program in &programs {
        progress.now(&format!("verifying {}", program.label));
        let tell = |step: &str| progress.now(&format!("preparing {}: {step}", program.label));
        let prepared = programs::prepare(program, Variant::WithBooks, root, options.install, &tell);
        for time in 1..=MOST_TRIES {
            let found = match &prepared {
                Prepared::Unavailable { reason } => Err(anyhow::anyhow!("{reason}")),
                Prepared::Ready(ready) => verify(program, ready, options, &profiler),
            };
            let (rows, same_state) = match found {
                Ok(None) => bail!("interrupted"),
                Ok(Some((run, host))) => {
                    accuracy.host = *host;
                    compare(program, tasks(program, options), Ok(&run))
                }
                Err(error) => compare(program, tasks(program, options), Err(&format!("{error:#}"))),
            };
            if same_state || time == MOST_TRIES {
                accuracy.comparisons.extend(rows);
                break;
            }
            progress.now(&format!(
                "verifying {} again: it was in another state when it was asked",
                program.label
            ));
        }
        let text = serde_json::to_vec_pretty(&accuracy)?;
        store::write_atomically(&output.join("accuracy.json"), &text, None)?;
        progress.step();
    }
    progress.finish();

    print!("{}", table(&accuracy.comparisons));
    for path in charts::draw_accuracy(&accuracy, &output).context("cannot draw the chart")? {
        println!("{}", path.display());
    }
    println!("{}", output.join("accuracy.json").display());
    let missed = accuracy.comparisons.iter().filter(|it| !it.holds()).count();
    ensure!(
        missed == 0,
        "{missed} of {} comparisons are past their limits or could not be made",
        accuracy.comparisons.len()
    );
    Ok(())
}

type Verified = Option<(Box<Run>, Box<profiler::results::Host>)>;

/// `None`: the user does not want to go on.
fn verify(
    program: &Program,
    ready: &Ready,
    options: &Options,
    profiler: &Profiler,
) -> Result<Verified> {
    let contract = Contract {
        tasks: tasks(program, options),
        seconds: options.seconds,
        load: Load::default(),
    };
    let job = Job {
        ask_for_books: true,
        ..measure::job(program, Some(ready), contract, &measure::own_environment())
    };
    Ok(match profiler.measure(&job)? {
        Measured::Run(run, host) => Some((run, host)),
        Measured::Interrupted => None,
    })
}

/// One row for each comparison of the program, and whether both looks were of the same state, as far as there are two.
fn compare(program: &Program, tasks: u64, run: Result<&Run, &str>) -> (Vec<Comparison>, bool) {
    let books = run.map(Books::of).map_err(str::to_owned);
    let told = |wanted: &&programs::Comparison| match &books {
        Ok(books) if wanted.where_told => sum(&books.theirs, &wanted.theirs).is_ok(),
        _ => true,
    };
    let mut same_state = true;
    let rows = program.comparisons.iter().filter(told).map(|wanted| {
        let figures = books.as_ref().map_err(Clone::clone).and_then(|books| {
            let ours = sum(&books.ours, &wanted.ours).map_err(|name| books.missing(&name));
            let theirs = sum(&books.theirs, &wanted.theirs)
                .map_err(|name| format!("the program's books have no {name}"));
            Ok((ours?, theirs?))
        });
        let row = Comparison {
            program: program.name.clone(),
            label: program.label.clone(),
            version: run.map(|run| run.version.clone()).unwrap_or_default(),
            tasks,
            what: wanted.what.clone(),
            unit: match wanted.ours.iter().all(|name| name.ends_with("_bytes")) {
                true => Unit::Bytes,
                false => Unit::Number,
            },
            ours: figures.as_ref().ok().map(|(ours, _)| *ours),
            theirs: figures.as_ref().ok().map(|(_, theirs)| *theirs),
            limit_percent: wanted.limit_percent,
            limit_bytes: wanted.limit_bytes,
            adapters_seconds: books.as_ref().ok().map(|books| books.seconds),
            adapters_cpu_seconds: books.as_ref().ok().map(|books| books.cpu_seconds),
            reason: figures.err(),
        };
        same_state &= !wanted.same_state || row.reason.is_some() || row.holds();
        row
    });
    (rows.collect(), same_state)
}

/// Both sides of one run.
struct Books {
    /// By `ADAPTER.BOOK`, of the program's own process.
    ours: BTreeMap<String, u64>,
    theirs: BTreeMap<String, u64>,
    /// Adapters that gave up: name and why.
    refusals: BTreeMap<String, String>,
    /// Why the run did not complete.
    failure: Option<String>,
    seconds: f64,
    cpu_seconds: f64,
}

impl Books {
    fn of(run: &Run) -> Books {
        let root = run.processes.first().map_or(0, |process| process.tgid);
        let adapters = || run.adapters.iter().filter(|adapter| adapter.tgid == root);
        let named = |adapter: &profiler::results::Adapter| {
            let name = adapter.name.clone();
            let books = adapter.books.clone().into_iter();
            books.map(move |(book, value)| (format!("{name}.{book}"), value))
        };
        Books {
            ours: adapters().flat_map(named).collect(),
            theirs: run.books.clone().unwrap_or_default(),
            refusals: adapters()
                .filter_map(|it| Some((it.name.clone(), it.refusal.clone()?)))
                .collect(),
            failure: run.reason.clone(),
            seconds: adapters().map(|adapter| adapter.took_seconds).sum(),
            cpu_seconds: adapters().map(|adapter| adapter.cpu_seconds).sum(),
        }
    }

    /// Why we have no such figure.
    fn missing(&self, name: &str) -> String {
        let adapter = name.split('.').next().unwrap_or(name);
        match (self.refusals.get(adapter), &self.failure) {
            (Some(refusal), _) => format!("{adapter} gave up: {refusal}"),
            (None, Some(failure)) => failure.clone(),
            (None, None) => format!("no adapter found {name}"),
        }
    }
}

/// The sum of the books of these names; the name of one that is missing.
fn sum(books: &BTreeMap<String, u64>, names: &[String]) -> Result<u64, String> {
    names
        .iter()
        .map(|name| books.get(name).copied().ok_or_else(|| name.clone()))
        .sum()
}

fn table(rows: &[Comparison]) -> String {
    let mut text = format!(
        "{:<22} {:>9}  {:<38} {:>10} {:>10} {:>9} {:>16} {:>9} {:>9}\n",
        "program", "tasks", "figure", "ours", "theirs", "apart", "limit", "adapters", "their CPU"
    );
    for row in rows {
        let milliseconds =
            |time: Option<f64>| time.map_or("-".into(), |time| format!("{:.0} ms", time * 1e3));
        let figure = |figure: Option<u64>| figure.map_or("-".into(), |figure| row.shown(figure));
        text += &format!(
            "{:<22} {:>9}  {:<38} {:>10} {:>10} {:>9} {:>16} {:>9} {:>9} {}\n",
            row.label,
            thousands(row.tasks),
            row.what,
            figure(row.ours),
            figure(row.theirs),
            row.difference_percent()
                .map_or("-".into(), |percent| format!("{percent:+.3} %")),
            row.limit(),
            milliseconds(row.adapters_seconds),
            milliseconds(row.adapters_cpu_seconds),
            match (&row.reason, row.holds()) {
                (Some(reason), _) => reason,
                (None, true) => "",
                (None, false) => "PAST ITS LIMIT",
            }
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_summed_and_a_missing_one_is_named() {
        let books = BTreeMap::from([("a.x".to_owned(), 1), ("a.y".to_owned(), 2)]);
        let names = ["a.x", "a.y"].map(str::to_owned);
        assert_eq!(sum(&books, &names), Ok(3));
        assert_eq!(sum(&books, &["a.z".to_owned()]), Err("a.z".to_owned()));
    }

    #[test]
    fn an_adapter_that_gave_up_is_the_reason() {
        let books = Books {
            ours: BTreeMap::new(),
            theirs: BTreeMap::new(),
            refusals: BTreeMap::from([("go".into(), "stripped".into())]),
            failure: Some("exit status 1".into()),
            seconds: 0.0,
            cpu_seconds: 0.0,
        };
        assert_eq!(books.missing("go.stacks"), "go gave up: stripped");
        assert_eq!(books.missing("glibc.in_use"), "exit status 1");
    }
}
