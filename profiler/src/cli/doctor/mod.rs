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

use super::Failure;
use diagnosis::{Diagnosis, Off};

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
        println!("{json}");
    } else {
        print(&diagnosis);
    }
    match diagnosis.probes.error {
        Some(sentence) => Err(Failure::new(CANNOT_ATTACH, sentence)),
        None => Ok(0),
    }
}

fn print(diagnosis: &Diagnosis) {
    print_machine(diagnosis);
    print_permissions(diagnosis);
    for feature in &diagnosis.features {
        let works = if feature.works { "" } else { "no: " };
        println!("feature       {}: {works}{}", feature.name, feature.detail);
    }
    let probes = &diagnosis.probes;
    match probes.error {
        None => println!(
            "probes        {} of {} attached",
            probes.attached, probes.total
        ),
        Some(_) => println!("probes        none"),
    }
    print_off(&probes.off);
    for tier in &diagnosis.tiers {
        match &tier.reason {
            None => println!("tier {}        loads ({})", tier.tier, tier.what),
            Some(reason) => println!("tier {}        does not load: {reason}", tier.tier),
        }
        print_off(&tier.off);
    }
    for limit in &diagnosis.limits {
        println!("limit         {} = {}", limit.name, limit.shown());
    }
    print_raised(diagnosis);
    for runtime in &diagnosis.runtimes {
        let version = runtime
            .version
            .as_deref()
            .unwrap_or("does not tell its version");
        println!("runtime       {}: {version}", runtime.name);
    }
}

fn print_machine(diagnosis: &Diagnosis) {
    let host = &diagnosis.host;
    println!("profiler      {}", host.profiler_version);
    println!(
        "eBPF object   {} ({})",
        host.ebpf_object,
        human(diagnosis.ebpf_object_bytes as u64)
    );
    println!("kernel        {}", host.kernel);
    println!(
        "system        {}, {} CPUs, {}",
        host.os,
        host.cpus,
        human(host.memory_bytes)
    );
    println!(
        "settings      transparent hugepages {}, overcommit {}, swap {}",
        host.transparent_hugepages,
        host.overcommit_memory,
        human(host.swap_bytes)
    );
}

fn print_permissions(diagnosis: &Diagnosis) {
    let permissions = &diagnosis.permissions;
    println!("user          uid {}", permissions.effective_uid);
    for missing in &permissions.missing {
        println!("missing       {missing}");
    }
    let known = permissions.sysctls.iter();
    let sysctls: Vec<String> = known
        .filter_map(|(name, value)| Some(format!("{name} = {}", (*value)?)))
        .collect();
    println!("sysctl        {}", sysctls.join(", "));
    if let Some(lockdown) = &permissions.lockdown {
        println!("lockdown      {lockdown}");
    }
}

fn print_off(off: &[Off]) {
    for probe in off {
        println!("              {} is off: {}", probe.name, probe.reason);
    }
}

/// Limits that some run has raised; says nothing where there are none.
fn print_raised(diagnosis: &Diagnosis) {
    match &diagnosis.raised {
        Err(error) => println!("raised        unknown: {error}"),
        Ok(raised) => {
            for limit in raised {
                println!(
                    "raised        {} from {} to {}, until the run that needs it ends; should none be left, try \
                     `sudo profiler doctor --restore`",
                    limit.name,
                    thousands(limit.original),
                    thousands(limit.current)
                );
            }
        }
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
    for group in groups {
        println!("ended         {group}");
    }
    for (sysctl, value) in &outcome.restored {
        println!("restored      {} = {}", sysctl.name(), thousands(*value));
    }
    for (sysctl, value) in &outcome.left_alone {
        println!(
            "left alone    {} = {}, which somebody else has set since",
            sysctl.name(),
            thousands(*value)
        );
    }
    if outcome.in_use {
        println!("restored      nothing: a run that is under way needs what is raised");
    }
    Ok(())
}
