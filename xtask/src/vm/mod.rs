//! `cargo xtask vm`: boots Debian's kernels in QEMU and runs there what depends on the kernel: the
//! profiler itself and the tests that look at real processes.
//!
//! A guest has no disk, no network and no distribution: its root file system is the archive that
//! [`payload`] packs, its first process `xtask/guest`, and its serial console the only way out.

mod cpio;
mod image;
mod kernels;
mod machine;
mod payload;
mod report;
mod table;

use std::{
    fs,
    num::NonZero,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

use crate::toolchains::{self, Install, Shop};
use kernels::Kernel;
use machine::{Accelerator, Complaints, Ended, Machine};
use payload::Purpose;
use report::Report;
use table::Booted;

/// The options of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Kernels to boot, each as `6.12`
    #[arg(default_values_t = kernels::DEFAULT_SERIES.map(str::to_owned))]
    versions: Vec<String>,

    /// Seconds after which a guest counts as hung and is killed
    #[arg(long, default_value_t = 1800)]
    timeout: u64,

    /// Guests that run at the same time [default: as many as there are CPUs, and one with KVM or --cost]
    #[arg(long)]
    jobs: Option<NonZero<usize>>,

    /// Only tests whose name holds this
    #[arg(long)]
    filter: Option<String>,

    /// Only count what a page fault costs with each tier, in instructions
    #[arg(long, conflicts_with = "filter")]
    cost: bool,

    /// Install QEMU on the system when it can be had in no other way
    #[arg(long)]
    install: bool,
}

/// How many of a job's last lines are shown when it failed.
const LAST_LINES: usize = 40;

/// Boots every kernel, prints the table, and fails when anything failed on any of them.
pub fn run(options: &Options, root: &Path) -> Result<()> {
    let began = Instant::now();
    let progress = |words: &str| eprintln!("{words}");
    let folder = root.join("target/vm");
    let toolchains = root.join("target/toolchains");
    let kernels = options
        .versions
        .iter()
        .map(|series| kernels::obtain(series, &toolchains, &progress))
        .collect::<Result<Vec<_>>>()?;
    let definitions = toolchains::load(&root.join("programs/toolchains"))?;
    let shop = Shop {
        definitions: &definitions,
        folder: &toolchains,
        install: if options.install {
            Install::Allowed
        } else {
            Install::No
        },
        progress: &progress,
    };
    let qemu = shop.obtain("qemu")?;
    let purpose = match options.cost {
        true => Purpose::Count,
        false => Purpose::Test(options.filter.as_deref()),
    };
    let payload = payload::pack(root, &folder, purpose, &progress)?;

    let Some(first) = kernels.first() else {
        bail!("no kernel is asked for; try `cargo xtask vm 6.12`");
    };
    let accelerator = match purpose {
        Purpose::Count => Accelerator::Counting,
        Purpose::Test(_) => {
            machine::accelerator(&qemu, &first.image, &payload.empty, &folder.join("kvm.log"))?
        }
    };
    let machine = Machine {
        qemu: &qemu,
        accelerator,
        timeout: Duration::from_secs(options.timeout),
        complaints: Complaints::Shown,
    };
    let with = match accelerator {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "TCG, since KVM is not here or boots no guest",
        Accelerator::Counting => "TCG, counting instructions",
    };
    // A translated guest takes one CPU (see `Machine::run`), whatever it has itself.
    let at_once = options.jobs.map_or_else(
        || match accelerator {
            Accelerator::Tcg => std::thread::available_parallelism().map_or(1, NonZero::get),
            Accelerator::Kvm | Accelerator::Counting => 1,
        },
        NonZero::get,
    );
    eprintln!(
        "booting {} kernels with {with}, {at_once} at a time",
        kernels.len()
    );
    let boot = |kernel: &Kernel| -> Result<Booted> {
        let release = &kernel.release;
        let log = folder.join(format!("{release}.log"));
        let guest = machine.run(&kernel.image, &payload.initramfs, &log, &|line| {
            if let Some(name) = line.strip_prefix("@guest begin ") {
                eprintln!("{release}: {name}");
            }
        })?;
        let outcome = Booted {
            release: release.clone(),
            report: Report::read(&guest.console),
            hung: guest.ended == Ended::Hung,
            seconds: guest.seconds,
        };
        if outcome.succeeded(&payload.jobs) {
            eprintln!("{release}: {:.0} s", guest.seconds);
        } else {
            // At once, and in one piece.
            eprintln!(
                "{}the whole console is in {}",
                last_words(&outcome, &guest.console),
                log.display()
            );
        }
        Ok(outcome)
    };
    let guests = rayon::ThreadPoolBuilder::new()
        .num_threads(at_once)
        .build()
        .context("cannot start threads for the guests")?;
    let booted = guests.install(|| {
        let each = kernels.par_iter().with_max_len(1);
        each.map(boot).collect::<Result<Vec<_>>>()
    })?;

    print!("{}", table::table(&booted, &payload.jobs));
    print!("{}", table::details(&booted));
    println!(
        "\n{} kernels in {:.0} s, payload {} MiB",
        booted.len(),
        began.elapsed().as_secs_f64(),
        fs::metadata(&payload.initramfs)?.len() >> 20
    );
    let failed: Vec<_> = booted
        .iter()
        .filter(|kernel| !kernel.succeeded(&payload.jobs))
        .map(|kernel| kernel.release.as_str())
        .collect();
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(", "));
    }
    Ok(())
}

/// A line with this, and so many below it, tell why a test failed.
const PANIC: &str = "panicked at";
const PANIC_LINES: usize = 6;

/// The panics and the end of what each failed job wrote, or the end of the console when there was none.
fn last_words(kernel: &Booted, console: &str) -> String {
    let jobs = kernel.report.jobs.iter().filter(|job| !job.succeeded());
    let mut parts: Vec<(String, Vec<&str>)> = jobs
        .map(|job| {
            let lines = job.lines.iter().map(String::as_str).collect();
            (format!("{} on {}", job.name, kernel.release), lines)
        })
        .collect();
    if parts.is_empty() {
        parts.push((kernel.release.clone(), console.lines().collect()));
    }
    let mut text = String::new();
    for (heading, lines) in parts {
        text += &format!("--- {heading}: the last of {} lines\n", lines.len());
        let last = lines.len().saturating_sub(LAST_LINES);
        let is_panic = |from: usize| lines[from].contains(PANIC);
        let panics = (0..last).filter(|&at| (at.saturating_sub(PANIC_LINES)..=at).any(is_panic));
        for line in panics.chain(last..lines.len()).map(|at| lines[at]) {
            text += &format!("    {line}\n");
        }
    }
    text
}
