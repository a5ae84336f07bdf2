//! `profiler attach`: a process that runs already.

use std::time::Duration;

use clap::Args;
use profiler::{
    daemon::Work,
    probes::tier::Tier,
    report::{self, Colour},
    results::Results,
    session::{
        self, Options, SessionError,
        attach::{Request, attach_to},
        host,
    },
};

use super::{
    Failure,
    output::{self, OutputArguments},
    run::{OWN_FAILURE, parse_tier},
    through_daemon,
};

#[derive(Args)]
pub struct Arguments {
    /// The process; its descendants are followed, too
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: u32,

    /// Leave it after so many seconds; without this, when it ends or at Ctrl-C
    #[arg(short, long, value_name = "SECONDS", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Do not follow its descendants
    #[arg(long)]
    no_children: bool,

    /// Do not take the call stacks of the calls that map memory from now on
    #[arg(long)]
    no_call_stacks: bool,

    /// Do not say on the terminal how it is going
    #[arg(long)]
    no_progress: bool,

    #[command(flatten)]
    output: OutputArguments,

    /// How resident pages are followed: A or B keep a page ledger in the kernel (exact peak since attach), C scans
    /// the process as it grows, D does so without any probe; the default is the best that can be had
    #[arg(long, value_name = "TIER", value_parser = parse_tier)]
    tier: Option<Tier>,
}

pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let own = |error: anyhow::Error| Failure::new(OWN_FAILURE, error);
    let outputs = arguments
        .output
        .outputs()
        .map_err(|sentence| Failure::new(OWN_FAILURE, sentence))?;
    output::ensure_writable(&outputs).map_err(own)?;
    let request = Request {
        pid: arguments.pid,
        tree: !arguments.no_children,
        duration: arguments.duration,
    };
    let run = match through_daemon::reach(arguments.tier) {
        Some(daemon) => {
            let work = Work::Attach {
                pid: request.pid,
                tree: request.tree,
                seconds: request.duration.map(|duration| duration.as_secs_f64()),
            };
            through_daemon::ask(daemon, work, arguments.tier, false)?
        }
        None => {
            let options = Options {
                tier: arguments.tier,
                status_line: !arguments.no_progress,
                call_stacks: !arguments.no_call_stacks,
                ..Options::default()
            };
            attach_to(&request, &options).map_err(failure)?
        }
    };
    output::say(report::run_report(&run, Colour::for_stderr()));
    if !outputs.is_empty() {
        output::write(&Results::of_run(run, host::read()), &outputs).map_err(own)?;
    }
    Ok(0)
}

fn failure(error: session::SessionError) -> Failure {
    let status = match &error {
        SessionError::Interrupted(signal) => 128 + *signal as u8,
        _ => OWN_FAILURE,
    };
    Failure::new(status, &error)
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').unwrap_or(text);
    let duration = seconds.parse().ok().map(Duration::try_from_secs_f64);
    match duration {
        Some(Ok(duration)) if !duration.is_zero() => Ok(duration),
        _ => Err("expected a number of seconds above 0, such as 10 or 0.5".into()),
    }
}
