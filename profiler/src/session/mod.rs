//! One run from launch to result. This is where the pipeline is plugged together and where waiting is
//! done; what is computed is computed in the modules that it calls.

pub mod analysis;
pub mod at_peak;
pub mod attach;
mod divide;
pub mod finish;
pub mod follow;
pub mod host;
pub mod image;
pub mod job;
mod ledger;
pub mod limits;
mod made_by;
mod oom_score;
pub mod outcome;
mod own_cost;
pub mod own_peak;
mod phase_counters;
pub mod replay;
mod signals;
mod status_line;
mod timeline;

use std::{
    ffi::OsString,
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    time::SystemTime,
};

use anyhow::{Context, Result};
use thiserror::Error;

use crate::{
    events::log::{self, Entry},
    kernel_memory::kinds,
    launch::{
        existing::AttachRefusal,
        group::{KILL_TIMEOUT, TargetGroup, end_abandoned},
        guardian::Guardian,
        held::{Held, Identity, LaunchError, Streams, Target},
    },
    limits::{
        Raises,
        raised::{Place, RaiseError, Restored},
    },
    probes::{
        attach::{AttachError, Probes, Sizes, Whom},
        counters::TreeCounters,
        object_sizes::ObjectSizes,
        tier::Tier,
    },
    results::{RefusedTier, Run},
    units::thousands,
};
use analysis::Frozen;
use follow::{Ended, Following};
use job::Job;
use oom_score::Spared;
pub use signals::told_to_end;

/// How a session is run, beside its job.
#[derive(Debug, Default)]
pub struct Options {
    /// Write everything that came from outside to this file.
    pub event_log: Option<PathBuf>,
    /// How residency is followed; `None` takes the best tier that can be had.
    pub tier: Option<Tier>,
    /// Take the call stacks of calls that make memory.
    pub call_stacks: bool,
    /// Whoever started us holds our stdin, a pipe: when that closes they are gone, and so is the reason to
    /// go on. It is taken for a hang-up.
    pub until_stdin_closes: bool,
    /// Say on stderr, where that is a terminal, how it is going.
    pub status_line: bool,
    /// The result goes to our stdout: what a command writes to its own goes to stderr.
    pub result_to_stdout: bool,
}

/// Why there is no result.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The probes could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The command could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The process cannot be followed.
    #[error(transparent)]
    Refused(#[from] AttachRefusal),
    /// Limits could not be raised.
    #[error(transparent)]
    Raise(#[from] RaiseError),
    /// A signal ended the session; its number.
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// Where the recording goes.
type EventLog = Option<BufWriter<File>>;

/// Runs a job and measures it. Must be called while this process has a single thread: it forks.
pub fn run(job: &Job, options: &Options) -> Result<Run, SessionError> {
    let event_log = options
        .event_log
        .as_ref()
        .map(|path| File::create(path).with_context(|| format!("cannot create {}", path.display())))
        .transpose()?
        .map(BufWriter::new);

    let mut warnings = Vec::new();
    let place = Place::of_this_machine();
    // First what the dead left running: see the end of this function.
    end_abandoned();
    told(place.restore_abandoned(), &mut warnings);
    raise_processes(&job.raises)?;
    // In this order nothing is left whenever we are killed: the held target ends with a pipe of ours,
    // and the guardian, which is told of it, is there before the cgroup is.
    let held = Held::fork(&target(job, options))?;
    let _spared = Spared::ask();
    let root = held.pid.as_raw() as u32;
    let profiler = std::process::id();
    let limits = match job.raises.sysctls.is_empty() {
        true => None,
        false => Some(place.hold()?),
    };
    let guardian = Guardian::fork(|| TargetGroup::of_profiler(profiler, root), limits.as_ref())
        .context("cannot fork the guardian")?;
    let group = make_group(root, &mut warnings);
    let started = SystemTime::now();
    let raised = limits.as_ref().map(|hold| hold.raise(&job.raises.sysctls));
    let ended = raised
        .unwrap_or(Ok(()))
        .map_err(SessionError::from)
        .and_then(|()| attach_and_follow(job, held, &group, options, event_log, warnings));

    // Whatever the target left behind goes with it when it was ours to end, or never began; a command's
    // own children that outlive it are let go.
    let release = match &ended {
        Ok(_) if job.contract.is_none() => group.release(),
        _ => group.kill(KILL_TIMEOUT),
    };
    release.context("cannot empty the target's group")?;
    group.remove().context("cannot remove the target's group")?;
    // While limits are as they were for the program: the result says which one it came up against.
    let run = ended.and_then(|ended| Ok(ended.into_run(job, started)?));
    // Only now: above `vm.max_map_count` the calls of a program that runs would fail.
    let mut warnings = Vec::new();
    if let Some(hold) = &limits {
        told(hold.release(), &mut warnings);
    }
    guardian.dismiss();
    let mut run = run?;
    run.warnings.append(&mut warnings);
    Ok(run)
}

/// What a reader should know about limits that were to be given back.
fn told(restored: Result<Restored, RaiseError>, warnings: &mut Vec<String>) {
    match restored {
        Ok(restored) => warnings.extend(restored.left_alone.iter().map(|(sysctl, value)| {
            let (name, value) = (sysctl.name(), thousands(*value));
            format!("{name} was raised and somebody else has set it since: it stays at {value}")
        })),
        Err(error) => warnings.push(format!(
            "raised limits were not given back: {error}; try `sudo profiler doctor --restore`"
        )),
    }
}

/// The target inherits it; that it is ours too does no harm.
fn raise_processes(raises: &Raises) -> Result<(), anyhow::Error> {
    use nix::sys::resource::{Resource::RLIMIT_NPROC, getrlimit, setrlimit};
    let Some(wanted) = raises.processes else {
        return Ok(());
    };
    let (soft, hard) = getrlimit(RLIMIT_NPROC)?;
    if soft >= wanted {
        return Ok(());
    }
    setrlimit(RLIMIT_NPROC, wanted, hard.max(wanted))
        .with_context(|| format!("cannot raise RLIMIT_NPROC to {}", thousands(wanted)))
}

/// From the held child to its end.
fn attach_and_follow(
    job: &Job,
    held: Held,
    group: &TargetGroup,
    options: &Options,
    mut event_log: EventLog,
    warnings: Vec<String>,
) -> Result<Ended, SessionError> {
    let root = held.pid.as_raw() as u32;
    group
        .add(root)
        .context("cannot move the target into its group")?;
    record(&mut event_log, &Entry::Root(root))?;
    let sizes = ObjectSizes::read(kinds::caches(), kinds::structs());
    record(&mut event_log, &Entry::Sizes(sizes.clone()))?;

    let mut refused_tiers = Vec::new();
    let mut probes = attach(
        options.tier,
        map_sizes(job, options),
        Whom::Tree,
        &mut refused_tiers,
    )?;
    if let Some(probes) = &mut probes {
        probes.follow(root)?;
    }
    let counters = TreeCounters::open(held.pid.as_raw(), group.directory());
    // Once the target runs, a signal waits until the event loop is there to act on it.
    signals::hold(job.contract.is_some());
    let start = own_cost::start();
    let running = held.release()?;

    let following = Following::new(
        job,
        group,
        probes,
        Some(counters),
        event_log,
        warnings,
        refused_tiers,
    )
    .with_sizes(sizes)
    .with_start(start)
    .with_status_line(options.status_line);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(following.until_end(running, options.until_stdin_closes))
}

fn map_sizes(job: &Job, options: &Options) -> Sizes {
    Sizes {
        call_stacks: options.call_stacks,
        ..job.threads.map_or_else(Sizes::default, Sizes::for_threads)
    }
}

/// The probes of a tier; without a wish, of the best tier that loads. `None` in tier D, which is what is left to
/// whoever may not load any.
fn attach(
    wish: Option<Tier>,
    sizes: Sizes,
    whom: Whom,
    refused: &mut Vec<RefusedTier>,
) -> Result<Option<Probes>, AttachError> {
    own_cost::give_long_lists_mappings();
    match wish {
        Some(Tier::D) => return Ok(None),
        Some(tier) => return Probes::attach_tier(sizes, tier, whom).map(Some),
        None => {}
    }
    let mut refuse = |tier: Tier, reason: String| {
        refused.push(RefusedTier {
            tier: tier.name().into(),
            reason,
        });
    };
    for tier in Tier::WITH_LEDGER {
        match Probes::attach_tier(sizes, tier, whom) {
            Err(AttachError::Tier(error)) => refuse(tier, error.to_string()),
            Err(error) if !nix::unistd::geteuid().is_root() => refuse(tier, error.to_string()),
            other => return other.map(Some),
        }
    }
    match Probes::attach_tier(sizes, Tier::C, whom) {
        // Root is told what is wrong; for anybody else it is a matter of permission, one way or the other.
        Err(error) if !nix::unistd::geteuid().is_root() => {
            refuse(Tier::C, error.to_string());
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn make_group(root: u32, warnings: &mut Vec<String>) -> TargetGroup {
    TargetGroup::create_fresh().unwrap_or_else(|error| {
        warnings.push(format!(
            "the target is stopped by SIGSTOP for each scan, because it has no cgroup: {error}"
        ));
        TargetGroup::descendants_of(root)
    })
}

fn target(job: &Job, options: &Options) -> Target {
    Target {
        argv: job.command.iter().map(OsString::from).collect(),
        environment: job
            .environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        directory: job.directory.clone(),
        user: Identity::behind_sudo(),
        streams: match job.contract {
            Some(_) => Streams::Captured,
            None if options.result_to_stdout => Streams::StdoutToStderr,
            None => Streams::Ours,
        },
    }
}

fn record(event_log: &mut EventLog, entry: &Entry<&Frozen>) -> Result<(), anyhow::Error> {
    match event_log {
        Some(file) => {
            log::write(file, entry).context("cannot write the event log")?;
            // A snapshot is rare, and ends what came before it: so much can be read while we run.
            match entry {
                Entry::Snapshot(_) => file.flush().context("cannot write the event log"),
                _ => Ok(()),
            }
        }
        None => Ok(()),
    }
}
