//! A session with a process that runs already: it is found, followed and left as it was.

use std::time::{Duration, SystemTime};

use anyhow::Context;

use super::{
    Options, SessionError, attach,
    follow::{self, Following, Leave},
    job::Job,
    map_sizes, signals,
};
use crate::{
    kernel_memory::kinds,
    launch::{
        existing::Existing,
        group::{Known, TargetGroup},
    },
    probes::{
        attach::{Probes, Whom},
        object_sizes::ObjectSizes,
    },
    results::Run,
};

/// What is to be followed, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// The process.
    pub pid: u32,
    /// Its descendants, too.
    pub tree: bool,
    /// Until this time is over; `None`: until it ends, or a signal comes.
    pub duration: Option<Duration>,
}

/// Follows a process that runs already. It is never signalled, moved or ended; it stands still for a moment while it
/// is read (see [`trace_stop`](crate::residency::trace_stop)). Must be called by the only thread there is.
pub fn attach_to(request: &Request, options: &Options) -> Result<Run, SessionError> {
    let process = Existing::find(request.pid)?;
    let job = job_of(&process);
    let known = Known::default();
    let group = TargetGroup::of_running(process.pid, request.tree, known.clone());
    // A signal waits until the event loop is there to act on it.
    signals::hold(true);
    let sizes = ObjectSizes::read(kinds::caches(), kinds::structs());
    let mut refused_tiers = Vec::new();
    let whom = match request.tree {
        true => Whom::Tree,
        false => Whom::OnlyGiven,
    };
    let mut probes = attach(
        options.tier,
        map_sizes(&job, options),
        whom,
        &mut refused_tiers,
    )?;
    if let Some(probes) = &mut probes {
        follow_all(probes, &group)?;
    }
    let started = SystemTime::now();
    let following = Following::new(&job, &group, probes, None, None, Vec::new(), refused_tiers)
        .with_sizes(sizes)
        .with_status_line(options.status_line);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let leave = Leave {
        after: request.duration,
        when_stdin_closes: options.until_stdin_closes,
    };
    let ended = runtime.block_on(following.until_left(process, known, leave))?;
    let mut run = ended.into_run(&job, started)?;
    // Of the limits of processes, only ours is known.
    run.settings
        .retain(|setting| !setting.starts_with("RLIMIT_"));
    Ok(run)
}

/// Follows all that are there. A child that starts while they are listed is followed by the kernel side, if its
/// parent is already, or else is in the next list.
fn follow_all(probes: &mut Probes, group: &TargetGroup) -> Result<(), SessionError> {
    let mut followed = Vec::new();
    loop {
        let pids = group.pids().context("cannot list the processes")?;
        let new: Vec<u32> = pids
            .into_iter()
            .filter(|pid| !followed.contains(pid))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        for &pid in &new {
            probes.follow(pid)?;
        }
        followed.extend(new);
    }
}

fn job_of(process: &Existing) -> Job {
    let (command, environment) = follow::command_and_environment(process.pid);
    let job = Job::of_command(command, environment);
    if !job.command.is_empty() {
        return job;
    }
    // Its arguments are gone: it has exited, or has overwritten them.
    let name = process.pid.to_string();
    Job {
        program: name.clone(),
        label: name,
        ..job
    }
}
