//! `cargo xtask launch`: how much dearer tasks are to start under the profiler, side by side with the bare
//! program: the time that passes, and CPU time, which depends less on what else the machine does.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use profiler::{
    results::{Outcome, Run, theil_sen::median},
    session::job::{Contract, Load},
    units::thousands,
};

use crate::{
    measure::{self, Measured, Profiler},
    programs::{self, Prepared, Ready, Variant},
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
    let own_environment = measure::own_environment();
    let environment = measure::environment(&own_environment, &ready.environment);
    let contract = Contract {
        tasks: options.tasks,
        seconds: options.seconds,
        load: Load::default(),
    };

    println!("{}, {} tasks", program.label, thousands(options.tasks));
    println!("         time, s                    CPU, s");
    println!("round   bare  profiled   ratio   bare  profiled   ratio");
    let (mut of_time, mut of_cpu) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let bare = bare(&ready, contract, &environment)?;
        let job = measure::job(program, Some(&ready), contract, &own_environment);
        let profiled = match profiler.measure(&job)? {
            Measured::Run(run, _) => launch_of(&run)?,
            Measured::Interrupted => bail!("interrupted"),
        };
        let ratios = [profiled.time / bare.time, profiled.cpu / bare.cpu];
        println!(
            "{round:>5}  {:>5.2}  {:>8.2}  {:>6.2}  {:>5.2}  {:>8.2}  {:>6.2}",
            bare.time, profiled.time, ratios[0], bare.cpu, profiled.cpu, ratios[1]
        );
        of_time.push(ratios[0]);
        of_cpu.push(ratios[1]);
    }
    print!("{}{}", summary("time", of_time), summary("CPU", of_cpu));
    Ok(())
}

fn summary(what: &str, mut ratios: Vec<f64>) -> String {
    ratios.sort_by(f64::total_cmp);
    match (median(&ratios), ratios.as_slice()) {
        (Some(middle), [least, .., greatest]) => {
            format!("{what}: median of the ratios {middle:.2}, from {least:.2} to {greatest:.2}\n")
        }
        _ => String::new(),
    }
}

/// What a launch took, in seconds.
struct Launched {
    time: f64,
    cpu: f64,
}

/// The phase `launch` of a profiled run.
fn launch_of(run: &Run) -> Result<Launched> {
    ensure!(
        run.outcome == Outcome::Completed,
        "the profiled run did not complete: {}",
        run.reason.as_deref().unwrap_or("no reason was recorded")
    );
    let phase = run.phases.iter().find(|phase| phase.name == "launch");
    let phase = phase.context("the program did not say that its tasks were alive")?;
    let clock = phase.counters.and_then(|counters| counters.task_clock_ns);
    Ok(Launched {
        time: phase.to_seconds - phase.from_seconds,
        cpu: clock.context("the CPU time was not counted")? as f64 / 1e9,
    })
}

/// The same of the program alone, from the moments at which its lines arrive.
fn bare(ready: &Ready, contract: Contract, environment: &[(String, String)]) -> Result<Launched> {
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
            began = Some((Instant::now(), cpu_seconds(child.id())?));
        } else if line.starts_with("alive=") {
            alive = Some((Instant::now(), cpu_seconds(child.id())?));
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "the bare program ended with {status}");
    match (began, alive) {
        (Some((began, cpu_before)), Some((alive, cpu_after))) => Ok(Launched {
            time: alive.duration_since(began).as_secs_f64(),
            cpu: cpu_after - cpu_before,
        }),
        _ => bail!(
            "not all {} tasks were alive at once; try a longer --seconds than {}",
            thousands(contract.tasks),
            contract.seconds
        ),
    }
}

/// CPU time that a process has taken so far, all its threads included, in seconds.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut clock = 0;
    // SAFETY: both calls write to what they are given, which is of the type that they expect.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        let error = libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock);
        ensure!(error == 0, "process {pid} has no CPU clock");
        let read = libc::clock_gettime(clock, &raw mut time);
        ensure!(read == 0, "the CPU clock of process {pid} cannot be read");
        time
    };
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}
