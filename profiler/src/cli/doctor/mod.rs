//! `profiler doctor`: what this machine allows, found out by trying.

mod diagnosis;
mod permissions;
mod runtimes;

use clap::Args;
use profiler::{
    launch::group::end_abandoned,
    limits::raised::Place,
    units::{human, thousands},
};

use super::{Failure, output};
use diagnosis::{Diagnosis, Off};
use permissions::DaemonState;

#[derive(Args)]
pub struct Arguments {
    /// Say nothing when all is well
    #[arg(short, long)]
    quiet: bool,

    /// Say it as JSON, for a bug report
    #[arg(long, conflicts_with = "quiet")]
    json: bool,

    /// End programs that a killed run has left behind, and give back limits that it raised
    #[arg(long)]
    restore: bool,
}

/// Exit status 2: the probes cannot be attached here.
const CANNOT_ATTACH: u8 = 2;
/// Exit status 3: limits stay raised.
const CANNOT_RESTORE: u8 = 3;

pub fn execute(arguments: &Arguments) -> Result<u8, Failure> {
    if arguments.restore {
        restore(arguments.quiet || arguments.json)?;
    }
    if arguments.quiet {
        return diagnosis::try_probes()
            .map(|_| 0)
            .map_err(|error| Failure::new(CANNOT_ATTACH, error));
    }
    let diagnosis = Diagnosis::make();
    if arguments.json {
        let json = serde_json::to_string_pretty(&diagnosis)
            .map_err(|error| Failure::new(CANNOT_ATTACH, error))?;
        print(&json)?;
    } else {
        print(&told(&diagnosis).join("\n"))?;
    }
    match diagnosis.probes.error {
        Some(sentence) => Err(Failure::new(CANNOT_ATTACH, sentence)),
        None => Ok(0),
    }
}

/// Prints lines.
fn print(text: &str) -> Result<(), Failure> {
    output::print(format!("{text}\n").as_bytes())
        .map_err(|error| Failure::new(CANNOT_ATTACH, error))
}

/// The diagnosis in lines, for people.
fn told(diagnosis: &Diagnosis) -> Vec<String> {
    let mut lines = machine(diagnosis);
    lines.extend(permissions(diagnosis));
    lines.extend(diagnosis.features.iter().map(|feature| {
        let works = if feature.works { "" } else { "no: " };
        format!("feature       {}: {works}{}", feature.name, feature.detail)
    }));
    lines.extend(probes(diagnosis));
    lines.extend(
        diagnosis
            .limits
            .iter()
            .map(|limit| format!("limit         {} = {}", limit.name, limit.shown())),
    );
    lines.extend(raised(diagnosis));
    lines.extend(diagnosis.runtimes.iter().map(|runtime| {
        let version = runtime.version.as_deref();
        let version = version.unwrap_or("does not tell its version");
        format!("runtime       {}: {version}", runtime.name)
    }));
    lines
}

fn machine(diagnosis: &Diagnosis) -> Vec<String> {
    let host = &diagnosis.host;
    vec![
        format!("profiler      {}", host.profiler_version),
        format!(
            "eBPF object   {} ({})",
            host.ebpf_object,
            human(diagnosis.ebpf_object_bytes as u64)
        ),
        format!("kernel        {}", host.kernel),
        format!(
            "system        {}, {} CPUs, {}",
            host.os,
            host.cpus,
            human(host.memory_bytes)
        ),
        format!(
            "settings      transparent hugepages {}, overcommit {}, swap {}",
            host.transparent_hugepages,
            host.overcommit_memory,
            human(host.swap_bytes)
        ),
    ]
}

fn permissions(diagnosis: &Diagnosis) -> Vec<String> {
    let permissions = &diagnosis.permissions;
    let mut lines = vec![format!("user          uid {}", permissions.effective_uid)];
    lines.extend(
        permissions
            .missing
            .iter()
            .map(|missing| format!("missing       {missing}")),
    );
    let known = permissions.sysctls.iter();
    let sysctls: Vec<String> = known
        .filter_map(|(name, value)| Some(format!("{name} = {}", (*value)?)))
        .collect();
    lines.push(format!("sysctl        {}", sysctls.join(", ")));
    let lockdown = permissions.lockdown.iter();
    lines.extend(lockdown.map(|lockdown| format!("lockdown      {lockdown}")));
    lines.push(match permissions.file_capabilities {
        Some(true) => "binary        has file capabilities (profiler setup)".into(),
        Some(false) => "binary        has no file capabilities; `sudo profiler setup` gives tier C without sudo".into(),
        None => "binary        file capabilities cannot be read".into(),
    });
    let socket = permissions.daemon.socket.display();
    lines.push(match permissions.daemon.state {
        DaemonState::Listening => {
            format!("daemon        listens at {socket} for us: tier C without sudo")
        }
        DaemonState::NotAMember => {
            format!("daemon        at {socket} is for members of its group, which we are not")
        }
        DaemonState::None => format!("daemon        none at {socket} (docs/privileges.md)"),
    });
    lines
}

fn probes(diagnosis: &Diagnosis) -> Vec<String> {
    let probes = &diagnosis.probes;
    let mut lines = vec![match probes.error {
        None => format!(
            "probes        {} of {} attached",
            probes.attached, probes.total
        ),
        Some(_) => "probes        none".to_owned(),
    }];
    lines.extend(off(&probes.off));
    for tier in &diagnosis.tiers {
        lines.push(match &tier.reason {
            None => format!("tier {}        loads ({})", tier.tier, tier.what),
            Some(reason) => format!("tier {}        does not load: {reason}", tier.tier),
        });
        lines.extend(off(&tier.off));
    }
    lines
}

fn off(probes: &[Off]) -> impl Iterator<Item = String> {
    probes
        .iter()
        .map(|probe| format!("              {} is off: {}", probe.name, probe.reason))
}

/// Limits that some run has raised; says nothing where there are none.
fn raised(diagnosis: &Diagnosis) -> Vec<String> {
    match &diagnosis.raised {
        Err(error) => vec![format!("raised        unknown: {error}")],
        Ok(raised) => raised
            .iter()
            .map(|limit| {
                format!(
                    "raised        {} from {} to {}, until the run that needs it ends; should none be left, try \
                     `sudo profiler doctor --restore`",
                    limit.name,
                    thousands(limit.original),
                    thousands(limit.current)
                )
            })
            .collect(),
    }
}

fn restore(quiet: bool) -> Result<(), Failure> {
    let failed = |error| Failure::new(CANNOT_RESTORE, error);
    // A program that runs on may need what is raised.
    let groups = end_abandoned();
    let outcome = Place::of_this_machine()
        .restore_abandoned()
        .map_err(failed)?;
    if quiet {
        return Ok(());
    }
    let mut lines: Vec<String> = groups
        .iter()
        .map(|group| format!("ended         {group}"))
        .collect();
    let restored = outcome.restored.iter();
    lines.extend(
        restored.map(|(sysctl, value)| {
            format!("restored      {} = {}", sysctl.name(), thousands(*value))
        }),
    );
    lines.extend(outcome.left_alone.iter().map(|(sysctl, value)| {
        format!(
            "left alone    {} = {}, which somebody else has set since",
            sysctl.name(),
            thousands(*value)
        )
    }));
    if outcome.in_use {
        lines.push("restored      nothing: a run that is under way needs what is raised".into());
    }
    if lines.is_empty() {
        return Ok(());
    }
    print(&lines.join("\n"))
}
