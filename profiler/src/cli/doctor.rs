//! `profiler doctor`: what this machine allows, found out by trying.

use clap::Args;
use profiler::{
    probes::{attach::Probes, object, tier::Tier},
    residency::{Method, hidden_growth, scan},
    session::host,
    units::human,
};

use super::Failure;

#[derive(Args)]
pub struct Arguments {
    /// Say nothing when all is well
    #[arg(short, long)]
    quiet: bool,
}

/// The smallest ring that the kernel accepts is a page; this one is never read.
const RING_BYTES: u32 = 64 << 10;

/// Exit status 2: the probes cannot be attached here.
const CANNOT_ATTACH: u8 = 2;

pub fn execute(arguments: &Arguments) -> Result<u8, Failure> {
    let attached = Probes::attach(RING_BYTES);
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

/// Which ways of following residency load here, and why the others do not.
fn print_tiers() {
    for (tier, what) in [
        (Tier::A, "page ledger, by the kernel's functions"),
        (Tier::B, "page ledger, by tracepoints"),
    ] {
        let name = tier.name();
        match Probes::attach_with_ledger(RING_BYTES, tier) {
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
