//! `cargo xtask run`: the main job. Prepares the programs, measures each at every N, and leaves a
//! table, `results.json` and the charts.

mod request;

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use profiler::{
    charts,
    limits::Raises,
    report::{Colour, results_table},
    results::{Outcome, Results, SCHEMA_VERSION, slopes::slopes, store},
    session::{
        finish::unmeasured,
        host,
        job::{Contract, Job},
    },
    units::thousands,
};

use crate::{
    measure::{self, Measured, Profiler},
    programs::{self, Prepared, Program, Variant},
    progress::Progress,
};

/// The options of `cargo xtask run`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Numbers of concurrent tasks, with commas between them
    #[arg(
        long,
        value_name = "N,N,...",
        default_value = "100000",
        allow_hyphen_values = true
    )]
    tasks: String,
    /// Only these programs, with commas between them
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    programs: Vec<String>,
    /// How long each task waits
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 10.0,
        allow_negative_numbers = true
    )]
    seconds: f64,
    /// How often each program is run at each N
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Where the results and charts go
    #[arg(long, value_name = "DIR", default_value = "plots/latest")]
    output: PathBuf,
    /// Install on the system what cannot be had otherwise
    #[arg(long)]
    install: bool,
    /// Start even when the memory does not seem to suffice
    #[arg(long)]
    force: bool,
}

/// How the main job ended.
pub enum Ended {
    /// Everything was run.
    Done,
    /// The user pressed Ctrl-C; what was measured is kept.
    Interrupted,
}

/// A program at one N, once.
struct Planned<'a> {
    program: &'a Program,
    prepared: &'a Prepared,
    tasks: u64,
    repeat: u32,
}

/// Does the main job. An error before anything was started is bad input.
pub fn run(options: &Options, root: &Path) -> Result<Ended> {
    let counts = request::task_counts(&options.tasks)?;
    ensure!(
        options.seconds > 0.0 && options.seconds.is_finite(),
        "--seconds: {} is not a time to wait; expected a number above 0",
        options.seconds
    );
    let programs = programs::select(programs::load(root)?, &options.programs)?;
    if !options.force {
        request::fits(&programs, &counts, request::available_bytes()?)?;
    }
    let output = root.join(&options.output);
    store::ensure_writable(&output, None)?;

    let profiler = Profiler::build(root)?;
    let prepared = prepare(&programs, root, options.install);

    profiler.catch_signals()?;
    let planned = plan(&programs, &prepared, &counts, options.repeat);
    measure::keep_previous(&output)?;
    measure_all(&planned, &profiler, options.seconds, &output)
}

fn prepare(programs: &[Program], root: &Path, install: bool) -> Vec<Prepared> {
    let mut progress = Progress::new(programs.len() as u64);
    let prepared = programs.iter().map(|program| {
        progress.now(&format!("preparing {}", program.label));
        let tell = |step: &str| progress.now(&format!("preparing {}: {step}", program.label));
        let prepared = programs::prepare(program, Variant::Measured, root, install, &tell);
        if let Prepared::Unavailable { reason } = &prepared {
            progress.say(&format!("{} is unavailable: {reason}", program.label));
        }
        progress.step();
        prepared
    });
    let prepared = prepared.collect();
    progress.finish();
    prepared
}

fn plan<'a>(
    programs: &'a [Program],
    prepared: &'a [Prepared],
    counts: &[u64],
    repeats: u32,
) -> Vec<Planned<'a>> {
    let mut planned = Vec::new();
    for &tasks in counts {
        for (program, prepared) in programs.iter().zip(prepared) {
            planned.extend((0..repeats).map(|repeat| Planned {
                program,
                prepared,
                tasks,
                repeat,
            }));
        }
    }
    planned
}

fn measure_all(
    planned: &[Planned],
    profiler: &Profiler,
    seconds: f64,
    output: &Path,
) -> Result<Ended> {
    let own_environment = measure::own_environment();
    let file = output.join("results.json");
    let mut results = Results {
        schema_version: SCHEMA_VERSION,
        host: host::read(),
        runs: Vec::new(),
        slopes: Vec::new(),
    };
    let mut progress = Progress::new(planned.len() as u64);
    let mut ended = Ended::Done;
    for next in planned {
        let contract = Contract {
            tasks: next.tasks,
            seconds,
        };
        let job = next.job(contract, &own_environment);
        let run = match next.prepared {
            Prepared::Unavailable { reason } => unmeasured(
                &job,
                SystemTime::now(),
                Outcome::Unavailable,
                Some(reason.clone()),
            ),
            Prepared::Ready(_) => {
                let (label, tasks) = (&next.program.label, thousands(next.tasks));
                progress.now(&format!("measuring {label} with {tasks} tasks"));
                match profiler.measure(&job) {
                    Ok(Measured::Run(run, host)) => {
                        // The privileged profiler knows which object it loaded.
                        results.host = *host;
                        *run
                    }
                    Ok(Measured::Interrupted) => {
                        ended = Ended::Interrupted;
                        break;
                    }
                    Err(error) => unmeasured(
                        &job,
                        SystemTime::now(),
                        Outcome::Failed,
                        Some(format!("{error:#}")),
                    ),
                }
            }
        };
        if let (Outcome::Failed, Some(reason)) = (run.outcome, &run.reason) {
            progress.say(&format!(
                "{} with {} tasks failed: {reason}",
                run.label,
                thousands(next.tasks)
            ));
        }
        results.runs.push(run);
        results.slopes = slopes(&results);
        store::write(&results, &file, None)?;
        progress.step();
    }
    progress.finish();
    if results.runs.is_empty() {
        return Ok(ended);
    }
    print!("{}", results_table(&results, Colour::for_stdout()));
    let drawn = charts::draw_all(&results, output).context("cannot draw the charts")?;
    println!();
    let of_a_program = [charts::TIMELINES, charts::LEAVES].map(|folder| output.join(folder));
    let inside = |path: &Path, folder: &PathBuf| path.starts_with(folder);
    let single = drawn
        .iter()
        .filter(|path| !of_a_program.iter().any(|folder| inside(path, folder)));
    for path in [&file].into_iter().chain(single) {
        println!("{}", path.display());
    }
    for folder in &of_a_program {
        let files = drawn.iter().filter(|path| inside(path, folder)).count();
        if files > 0 {
            println!("{}/ ({files} files)", folder.display());
        }
    }
    Ok(ended)
}

impl Planned<'_> {
    fn job(&self, contract: Contract, own_environment: &[(String, String)]) -> Job {
        let (command, environment, version) = match self.prepared {
            Prepared::Ready(ready) => (
                ready.argv(contract.tasks, contract.seconds),
                measure::environment(own_environment, &ready.environment),
                ready.version.clone(),
            ),
            Prepared::Unavailable { .. } => Default::default(),
        };
        Job {
            program: self.program.name.clone(),
            label: self.program.label.clone(),
            colour: Some(self.program.colour.clone()),
            version,
            command,
            environment,
            directory: None,
            contract: Some(contract),
            repeat: self.repeat,
            ask_for_books: false,
            raises: Raises::default(),
        }
    }
}
