//! `cargo xtask run`: the main job. Prepares the programs, measures each at every N, and leaves a
//! table, `results.json`, the charts, the draft of a post and a page for the browser.

mod output;
mod preflight;
mod request;
mod room;

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Result, bail, ensure};
use profiler::{
    limits::Raises,
    results::{Outcome, Results, SCHEMA_VERSION, slopes::slopes, store},
    session::{
        finish::unmeasured,
        host,
        job::{Contract, Job, Load},
    },
    units::thousands,
};

use crate::{
    measure::{self, Measured, Profiler},
    programs::{self, Prepared, Program, Variant},
    progress::Progress,
};
use preflight::{Decision, Need, Room};

/// Mappings that a process has with next to no tasks; Java's some 400 are the most.
const RUNTIME_MAPPINGS: u64 = 2_000;

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
    #[arg(short, long, value_name = "DIR", default_value = "plots/latest")]
    output: PathBuf,
    /// Install on the system what cannot be had otherwise
    #[arg(long)]
    install: bool,
    /// Start even what does not seem to fit into memory or limits
    #[arg(long)]
    force: bool,
    /// Raise kernel.pid_max, kernel.threads-max and vm.max_map_count while a program runs that needs more
    #[arg(long)]
    raise_limits: bool,
    /// Bytes of its stack that each task calls down while it waits, with commas between several
    #[arg(
        long,
        value_name = "BYTES,...",
        default_value = "0",
        allow_hyphen_values = true
    )]
    stack_depth: String,
    /// Bytes that each task holds while it waits, with commas between several
    #[arg(
        long,
        value_name = "BYTES,...",
        default_value = "0",
        allow_hyphen_values = true
    )]
    payload: String,
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
    contract: Contract,
    decision: Decision,
    repeat: u32,
}

/// Does the main job. An error before anything was started is bad input.
pub fn run(options: &Options, root: &Path) -> Result<Ended> {
    let contracts = contracts(options)?;
    let programs = programs::select(programs::load(root)?, &options.programs)?;
    let output = root.join(&options.output);
    store::ensure_writable(&output, None)?;

    let profiler = Profiler::build(root)?;
    // After what an earlier run has left raised is given back.
    let decisions = decide(&programs, &contracts, &room::read()?, options)?;
    let prepared = prepare(&programs, root, options.install);

    profiler.catch_signals()?;
    let planned = plan(&programs, &prepared, &contracts, decisions, options.repeat);
    measure::keep_previous(&output)?;
    measure_all(&planned, &profiler, &output)
}

/// Every N with everything that its tasks are to hold.
fn contracts(options: &Options) -> Result<Vec<Contract>> {
    let seconds = options.seconds;
    ensure!(
        seconds > 0.0 && seconds.is_finite(),
        "--seconds: {seconds} is not a time to wait; expected a number above 0"
    );
    let depths = request::byte_counts("--stack-depth", &options.stack_depth)?;
    let payloads = request::byte_counts("--payload", &options.payload)?;
    let mut contracts = Vec::new();
    for tasks in request::task_counts(&options.tasks)? {
        for &stack_depth_bytes in &depths {
            contracts.extend(payloads.iter().map(|&payload_bytes| Contract {
                tasks,
                seconds,
                load: Load {
                    stack_depth_bytes,
                    payload_bytes,
                },
            }));
        }
    }
    Ok(contracts)
}

/// By contract, then by program. What would fail is said now, and is an error when nothing is left.
fn decide(
    programs: &[Program],
    contracts: &[Contract],
    room: &Room,
    options: &Options,
) -> Result<Vec<Decision>> {
    let mut decisions = Vec::new();
    let mut reasons = Vec::new();
    for contract in contracts {
        for program in programs {
            let need = need(program, contract);
            let decision = preflight::decide(need, room, options.raise_limits, options.force);
            if let Decision::Refuse(reason) = &decision {
                let tasks = thousands(contract.tasks);
                reasons.push(format!("{} with {tasks} tasks {reason}", program.label));
            }
            decisions.push(decision);
        }
    }
    if reasons.len() == decisions.len() {
        bail!("nothing can run here: {}", reasons.join("\n  "));
    }
    for reason in reasons {
        eprintln!("will not run: {reason}");
    }
    Ok(decisions)
}

fn need(program: &Program, contract: &Contract) -> Need {
    let each = |per_task: u64| contract.tasks.saturating_mul(per_task);
    Need {
        threads: program.threads(contract.tasks),
        mappings: each(program.mappings_per_task).saturating_add(RUNTIME_MAPPINGS),
        memory_bytes: program.estimated_bytes(contract.tasks, contract.load.bytes()),
    }
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
    contracts: &[Contract],
    decisions: Vec<Decision>,
    repeats: u32,
) -> Vec<Planned<'a>> {
    let mut planned = Vec::new();
    let mut decisions = decisions.into_iter();
    for &contract in contracts {
        for ((program, prepared), decision) in programs.iter().zip(prepared).zip(&mut decisions) {
            planned.extend((0..repeats).map(|repeat| Planned {
                program,
                prepared,
                contract,
                decision: decision.clone(),
                repeat,
            }));
        }
    }
    planned
}

fn measure_all(planned: &[Planned], profiler: &Profiler, output: &Path) -> Result<Ended> {
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
        let job = next.job(&own_environment);
        let without = |outcome, reason| unmeasured(&job, SystemTime::now(), outcome, Some(reason));
        let run = if let Some((outcome, reason)) = next.obstacle() {
            without(outcome, reason)
        } else {
            let (label, tasks) = (&next.program.label, thousands(next.contract.tasks));
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
                Err(error) => without(Outcome::Failed, format!("{error:#}")),
            }
        };
        if let (Outcome::Failed, Some(reason)) = (run.outcome, &run.reason) {
            progress.say(&format!(
                "{} with {} tasks failed: {reason}",
                run.label,
                thousands(next.contract.tasks)
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
    output::write(&results, output, &file)?;
    Ok(ended)
}

impl Planned<'_> {
    /// Why it is not run at all.
    fn obstacle(&self) -> Option<(Outcome, String)> {
        if let Prepared::Unavailable { reason } = self.prepared {
            return Some((Outcome::Unavailable, reason.clone()));
        }
        if let Some(reason) = self.program.lacks(self.contract.load) {
            return Some((Outcome::Unavailable, reason.to_owned()));
        }
        match &self.decision {
            Decision::Refuse(reason) => Some((Outcome::Failed, reason.clone())),
            Decision::Run(_) => None,
        }
    }

    fn job(&self, own_environment: &[(String, String)]) -> Job {
        let ready = match self.prepared {
            Prepared::Ready(ready) => Some(ready),
            Prepared::Unavailable { .. } => None,
        };
        Job {
            repeat: self.repeat,
            raises: match &self.decision {
                Decision::Run(raises) => raises.clone(),
                Decision::Refuse(_) => Raises::default(),
            },
            ..measure::job(self.program, ready, self.contract, own_environment)
        }
    }
}
