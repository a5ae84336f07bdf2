//! `profiler run`: any command by the path that the benchmark programs take.

use std::{collections::BTreeMap, fs, io::IsTerminal, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use profiler::{
    daemon::Work,
    launch::held::Identity,
    probes::tier::Tier,
    report::{self, Colour},
    results::{
        Results, Run, SCHEMA_VERSION,
        gates::{Gate, Gated},
        slopes::slopes,
    },
    session::{self, Options, SessionError, host, job::Job},
    units::parse_size,
};

use super::{
    Failure,
    output::{self, Output, OutputArguments},
    sweep::{self, Parameter, Planned},
    through_daemon,
};

/// Our own failures, as `env` and `timeout` have them; 126 and 127 are those of the command.
pub(super) const OWN_FAILURE: u8 = 125;
/// The command went well, and took more memory than it may.
const LIMIT_BROKEN: u8 = 123;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    output: OutputArguments,

    /// How resident pages are followed: A or B keep a page ledger in the kernel (exact peak), C scans
    /// the program as it grows, D does so without any probe; the default is the best that can be had
    #[arg(long, value_name = "TIER", value_parser = parse_tier)]
    tier: Option<Tier>,

    /// Fail when RSS at the peak is higher: `512MiB`, `1.5G`. The exit status is 123 then, unless the
    /// command itself failed
    #[arg(long, value_name = "SIZE", value_parser = parse_limit)]
    max_rss: Option<u64>,

    /// Fail, in the same way, when kernel memory at the peak is more
    #[arg(long, value_name = "SIZE", value_parser = parse_limit)]
    max_kernel: Option<u64>,

    /// Run the command at each of these values, which take the place of `{NAME}` in it, and work out what
    /// one more costs: `-P N 1,1000,100000 -- ./server --conns {N}`
    #[arg(short = 'P', long, num_args = 2, value_names = ["NAME", "VALUES"], conflicts_with = "job")]
    parameter: Vec<String>,

    /// Run it so many times, at each value
    #[arg(long, value_name = "K", default_value_t = 1, conflicts_with = "job",
          value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,

    /// Do not take the call stacks of calls that make memory
    #[arg(long)]
    no_call_stacks: bool,

    /// Do not say how it is going while the command runs. That is told where stderr is a terminal and stdout is
    /// none, so that it never mixes with what the command writes
    #[arg(long)]
    no_progress: bool,

    /// Record everything that came from the kernel, for a replay without root
    #[arg(long, value_name = "FILE", hide = true)]
    event_log: Option<PathBuf>,

    /// Run the job in this file; what `cargo xtask run` uses
    #[arg(long, value_name = "FILE", hide = true, conflicts_with = "command")]
    job: Option<PathBuf>,

    /// Stop when stdin, a pipe, is closed: whoever holds it open is gone
    #[arg(long, hide = true)]
    until_stdin_closes: bool,

    /// The command and its arguments
    #[arg(last = true, required_unless_present = "job", value_name = "COMMAND")]
    command: Vec<String>,
}

pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let own = |error: anyhow::Error| Failure::new(OWN_FAILURE, error);
    let sentence = |sentence: String| Failure::new(OWN_FAILURE, sentence);
    let outputs = arguments.output.outputs().map_err(sentence)?;
    output::ensure_writable(&outputs).map_err(own)?;
    let parameter = match arguments.parameter.as_slice() {
        [] => None,
        [name, values] => Some(Parameter::parse(name, values).map_err(sentence)?),
        _ => {
            return Err(sentence(
                "-P was given twice: expected one parameter".into(),
            ));
        }
    };
    let options = Options {
        event_log: arguments.event_log,
        tier: arguments.tier,
        // A benchmark is to cost no more than it must, and each of its tasks does the same.
        call_stacks: !arguments.no_call_stacks && arguments.job.is_none(),
        until_stdin_closes: arguments.until_stdin_closes,
        status_line: !arguments.no_progress
            && arguments.job.is_none()
            && !std::io::stdout().is_terminal(),
        result_to_stdout: outputs.iter().any(Output::is_stdout),
    };
    let measuring = Measuring {
        options,
        limits: [
            (Gated::Rss, arguments.max_rss),
            (Gated::Kernel, arguments.max_kernel),
        ],
    };
    if let Some(path) = &arguments.job {
        return measuring.job(&read_job(path).map_err(own)?, &outputs);
    }
    let plan = sweep::plan(&arguments.command, parameter.as_ref(), arguments.runs);
    match plan.map_err(sentence)?.as_slice() {
        [one] if parameter.is_none() => measuring.job(
            &Job::of_command(one.command.clone(), environment()),
            &outputs,
        ),
        plan => measuring.sweep(plan, parameter.as_ref(), arguments.runs, &outputs),
    }
}

/// How runs are measured and judged.
struct Measuring {
    options: Options,
    limits: [(Gated, Option<u64>); 2],
}

impl Measuring {
    /// One run. Its report goes to stderr, except that of a benchmark program, which is one of many.
    fn job(&self, job: &Job, outputs: &[Output]) -> Result<u8, Failure> {
        let run = self.run(job)?;
        let (broken, exit_status) = judged(&run);
        if job.contract.is_none() {
            output::say(report::run_report(&run, Colour::for_stderr()));
        }
        if !outputs.is_empty() {
            write(&results(vec![run]), outputs)?;
        }
        broken
            .iter()
            .for_each(|sentence| output::say_line(format_args!("profiler: {sentence}")));
        Ok(exit_status)
    }

    /// Several runs. What was measured is written after each, and stays when the next one is interrupted.
    fn sweep(
        &self,
        plan: &[Planned],
        parameter: Option<&Parameter>,
        runs: u32,
        outputs: &[Output],
    ) -> Result<u8, Failure> {
        let kept: Vec<Output> = outputs
            .iter()
            .filter(|output| output.is_document() && !output.is_stdout())
            .cloned()
            .collect();
        let mut results = results(Vec::new());
        let mut exit_status = 0;
        let mut failure = None;
        for planned in plan {
            let title = planned.title(parameter, runs);
            output::say_line(format_args!("{title}: {}", planned.command.join(" ")));
            let job = Job {
                repeat: planned.repeat,
                ..Job::of_command(planned.command.clone(), environment())
            };
            let mut run = match self.run(&job) {
                Ok(run) => run,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            };
            run.tasks = planned.value;
            run.parameter = parameter.map(|parameter| parameter.name.clone());
            let (broken, status) = judged(&run);
            output::say_line(format_args!("{title}: {}", report::run_summary(&run)));
            broken.iter().for_each(|sentence| {
                output::say_line(format_args!("profiler: {title}: {sentence}"))
            });
            exit_status = if exit_status == 0 {
                status
            } else {
                exit_status
            };
            results.runs.push(run);
            results.slopes = slopes(&results);
            write(&results, &kept)?;
            if let Some(signal) = session::told_to_end() {
                output::say_line(format_args!(
                    "profiler: interrupted by signal {signal}; what was measured until then is kept"
                ));
                exit_status = 128 + signal as u8;
                break;
            }
        }
        if !results.runs.is_empty() {
            output::say(format_args!(
                "\n{}",
                report::results_report(&results, Colour::for_stderr())
            ));
            write(&results, outputs)?;
        }
        failure.map_or(Ok(exit_status), Err)
    }

    fn run(&self, job: &Job) -> Result<Run, Failure> {
        let options = &self.options;
        // A benchmark program is run as its job says, and a recording is made here.
        let plain = job.contract.is_none() && options.event_log.is_none();
        let daemon = plain.then(|| through_daemon::reach(options.tier)).flatten();
        let mut run = match daemon {
            Some(daemon) => {
                let work = Work::Run(Box::new(job.clone()));
                through_daemon::ask(daemon, work, options.tier, options.result_to_stdout)?
            }
            None => session::run(job, options).map_err(|error| match &error {
                SessionError::Launch(launch) => Failure::new(launch.exit_status() as u8, launch),
                SessionError::Interrupted(signal) => Failure::new(128 + *signal as u8, &error),
                _ => Failure::new(OWN_FAILURE, &error),
            })?,
        };
        let limits = self.limits.into_iter();
        run.gates = limits
            .filter_map(|(on, limit)| Some(Gate::judge(on, limit?, &run)))
            .collect();
        Ok(run)
    }
}

/// What to say of limits that were not kept, and the exit status of the profiler for this run.
fn judged(run: &Run) -> (Vec<String>, u8) {
    let broken: Vec<String> = run.gates.iter().filter_map(Gate::broken).collect();
    let exit_status = match run.exit_status.unwrap_or(0) as u8 {
        0 if !broken.is_empty() => LIMIT_BROKEN,
        of_command => of_command,
    };
    (broken, exit_status)
}

fn results(runs: Vec<Run>) -> Results {
    Results {
        schema_version: SCHEMA_VERSION,
        host: host::read(),
        runs,
        slopes: Vec::new(),
    }
}

fn write(results: &Results, outputs: &[Output]) -> Result<(), Failure> {
    output::write(results, outputs).map_err(|error| Failure::new(OWN_FAILURE, error))
}

fn parse_limit(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "expected a size such as 512MiB, 1.5G or 800000".into())
}

pub(super) fn parse_tier(name: &str) -> Result<Tier, String> {
    match name {
        "A" | "a" => Ok(Tier::A),
        "B" | "b" => Ok(Tier::B),
        "C" | "c" => Ok(Tier::C),
        "D" | "d" => Ok(Tier::D),
        _ => Err("expected A, B, C or D".into()),
    }
}

fn read_job(path: &PathBuf) -> Result<Job> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no job", path.display()))
}

/// Our own environment, with the home of the person behind `sudo`, as whom the command runs.
fn environment() -> Vec<(String, String)> {
    // A variable that is not UTF-8 cannot be written into a job; the command does without it.
    let mut environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    environment.extend(
        Identity::behind_sudo()
            .into_iter()
            .flat_map(|user| user.environment),
    );
    environment.into_iter().collect()
}
