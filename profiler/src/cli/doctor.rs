//! `profiler doctor`: what this machine allows, found out by trying.

use clap::Args;
use profiler::{
    launch::group::end_abandoned,
    limits::raised::Place,
    probes::{
        attach::{Probes, Sizes},
        object,
        tier::Tier,
    },
    residency::{Method, hidden_growth, scan},
    session::host,
    units::{human, thousands},
};

use super::Failure;

#[derive(Args)]
pub struct Arguments {
    /// Say nothing when all is well
    #[arg(short, long)]
    quiet: bool,

    /// End programs that a killed run has left behind, and give back limits that it raised
    #[arg(long)]
    restore: bool,
}

/// Never read, and copied to by no more than what happens to run.
const SIZES: Sizes = Sizes {
    ring_bytes: 64 << 10,
    chunks: 1 << 10,
    own_chunks: 1,
};

/// Exit status 2: the probes cannot be attached here.
const CANNOT_ATTACH: u8 = 2;
/// Exit status 3: limits stay raised.
const CANNOT_RESTORE: u8 = 3;

pub fn execute(arguments: &Arguments) -> Result<u8, Failure> {
    if arguments.restore {
        restore(arguments.quiet)?;
    }
    let attached = Probes::attach(SIZES);
    if arguments.quiet {
        return attached
            .map(|_| 0)
            .map_err(|error| Failure::new(CANNOT_ATTACH, error));
    }
    let host = host::read();
    println!("profiler      {}", host.profiler_version);
    println!(
        "eBPF object   {} ({})",
        object::ORIGIN,
        human(object::BYTES.len() as u64)
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
    let scan = match scan::detect() {
        Method::PagemapScan => "PAGEMAP_SCAN",
        Method::Pagemap => "pagemap (the kernel has no PAGEMAP_SCAN; 6.7 and later do)",
    };
    println!("scan          {scan}");
    let polling = if hidden_growth::statm_is_exact() {
        "statm"
    } else {
        "statm and page faults (the kernel's count of RSS lags behind)"
    };
    println!("polling       {polling}");
    print_raised();
    match attached {
        Ok(probes) => {
            println!(
                "probes        {} of {} attached",
                probes.attached(),
                probes.states.len()
            );
            for probe in probes.states.iter().filter(|probe| probe.reason.is_some()) {
                println!(
                    "              {} is off: {}",
                    probe.name,
                    probe.reason.as_deref().unwrap_or_default()
                );
            }
            drop(probes);
            print_tiers();
            Ok(0)
        }
        Err(error) => {
            println!("probes        none");
            Err(Failure::new(CANNOT_ATTACH, error))
        }
    }
}

/// Limits that some run has raised; says nothing where there are none.
fn print_raised() {
    let raised = match Place::of_this_machine().raised() {
        Ok(raised) => raised,
        Err(error) => return println!("raised        unknown: {error}"),
    };
    for limit in raised {
        println!(
            "raised        {} from {} to {}, until the run that needs it ends; should none be left, try \
             `sudo profiler doctor --restore`",
            limit.sysctl.name(),
            thousands(limit.original),
            thousands(limit.current)
        );
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

/// Which ways of following residency load here, and why the others do not.
fn print_tiers() {
    for (tier, what) in [
        (Tier::A, "page ledger, by the kernel's functions"),
        (Tier::B, "page ledger, by tracepoints"),
    ] {
        let name = tier.name();
        match Probes::attach_with_ledger(SIZES, tier) {
            Ok(probes) => {
                println!("tier {name}        loads ({what})");
                for probe in probes
                    .states
                    .iter()
                    .filter(|probe| probe.name.starts_with("ledger") && probe.reason.is_some())
                {
                    println!(
                        "              {} is off: {}",
                        probe.name,
                        probe.reason.as_deref().unwrap_or_default()
                    );
                }
            }
            Err(error) => println!("tier {name}        does not load: {error}"),
        }
    }
    println!("tier C        loads (scans of the frozen program as it grows)");
}
