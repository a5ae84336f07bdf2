//! `cargo xtask launch`: how much longer tasks take to start under the profiler, side by side with the bare
//! program.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use profiler::{
    results::{Outcome, Run, theil_sen::median},
    session::job::{Contract, Job},
    units::thousands,
};

use crate::{
    measure::{self, Measured, Profiler},
    programs::{self, Prepared, Program, Ready, Variant},
};

/// The options of `cargo xtask launch`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Number of concurrent tasks; threads above 32,000 need raised limits
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    tasks: u64,
    /// The program
    #[arg(long, value_name = "NAME", default_value = "c-threads")]
    program: String,
    /// How often each side is run, in turn
    #[arg(long, value_name = "K", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each task waits: longer than the launch takes, or not all are alive at once
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
}

/// Runs both sides in turn and prints the ratio of their launches, from `launch=N` to `alive=N`.
pub fn run(options: &Options, root: &Path) -> Result<()> {
    let names = std::slice::from_ref(&options.program);
    let programs = programs::select(programs::load(root)?, names)?;
    let program = programs.first().context("no program of that name")?;
    let ready = match programs::prepare(program, Variant::Measured, root, false, &|_| {}) {
        Prepared::Ready(ready) => ready,
        Prepared::Unavailable { reason } => bail!("{} is unavailable: {reason}", program.label),
    };
    let profiler = Profiler::build(root)?;
    profiler.catch_signals()?;
    let environment = measure::environment(&measure::own_environment(), &ready.environment);
    let contract = Contract {
        tasks: options.tasks,
        seconds: options.seconds,
    };

    println!("{}, {} tasks", program.label, thousands(options.tasks));
    println!("round   bare s  profiled s   ratio");
    let mut ratios = Vec::new();
    for round in 1..=options.rounds {
        let bare = bare(&ready, contract, &environment)?;
        let job = job(program, &ready, contract, &environment);
        let profiled = match profiler.measure(&job)? {
            Measured::Run(run, _) => launch_of(&run)?,
            Measured::Interrupted => bail!("interrupted"),
        };
        let ratio = profiled / bare;
        println!("{round:>5}  {bare:>7.3}  {profiled:>10.3}  {ratio:>6.2}");
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    if let (Some(middle), [least, .., greatest]) = (median(&ratios), ratios.as_slice()) {
        println!("median of the ratios {middle:.2}, from {least:.2} to {greatest:.2}");
    }
    Ok(())
}

/// Seconds of the phase `launch` of a profiled run.
fn launch_of(run: &Run) -> Result<f64> {
    ensure!(
        run.outcome == Outcome::Completed,
        "the profiled run did not complete: {}",
        run.reason.as_deref().unwrap_or("no reason was recorded")
    );
    let phase = run.phases.iter().find(|phase| phase.name == "launch");
    let phase = phase.context("the program did not say that its tasks were alive")?;
    Ok(phase.to_seconds - phase.from_seconds)
}

/// The same of the program alone, from the moments at which its lines arrive.
fn bare(ready: &Ready, contract: Contract, environment: &[(String, String)]) -> Result<f64> {
    let argv = ready.argv(contract.tasks, contract.seconds);
    let (program, arguments) = argv.split_first().context("a program without a command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{program}`"))?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let (mut began, mut alive) = (None, None);
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if line.starts_with("launch=") {
            began = Some(Instant::now());
        } else if line.starts_with("alive=") {
            alive = Some(Instant::now());
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "the bare program ended with {status}");
    match (began, alive) {
        (Some(began), Some(alive)) => Ok(alive.duration_since(began).as_secs_f64()),
        _ => bail!(
            "not all {} tasks were alive at once; try a longer --seconds than {}",
            thousands(contract.tasks),
            contract.seconds
        ),
    }
}

fn job(
    program: &Program,
    ready: &Ready,
    contract: Contract,
    environment: &[(String, String)],
) -> Job {
    Job {
        program: program.name.clone(),
        label: program.label.clone(),
        colour: None,
        version: ready.version.clone(),
        command: ready.argv(contract.tasks, contract.seconds),
        environment: environment.to_vec(),
        directory: None,
        contract: Some(contract),
        repeat: 0,
        ask_for_books: false,
    }
}
