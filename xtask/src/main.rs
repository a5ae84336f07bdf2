//! `cargo xtask`: everything around the profiler. One module a subcommand.

mod accuracy;
mod browser;
mod build;
mod ebpf;
mod launch;
mod measure;
mod process;
mod programs;
mod progress;
mod run;
mod setup;
mod test;
mod toolchains;
mod vm;

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use clap::Parser;

/// Everything around the profiler.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Arguments {
    /// The main job: run every program, break down its memory, draw the charts
    Run(run::Options),
    /// Run all tests, those that need root included
    Test(test::Options),
    /// Prepare this machine
    Setup {
        /// Install what building the eBPF object from source needs (Debian)
        #[arg(long, required = true)]
        ebpf: bool,
    },
    /// Compare the committed eBPF object with a fresh build, or replace it
    Object {
        /// What to do
        comparison: ebpf::Comparison,
    },
    /// Prepare the programs and print how each is started
    Programs(programs::command::Options),
    /// Hold what is found inside the programs against their runtimes' own books
    Accuracy(accuracy::Options),
    /// Measure how much longer tasks take to start under the profiler
    Launch(launch::Options),
    /// Boot other kernels in QEMU and run there the tests that depend on the kernel
    Vm(vm::Options),
}

/// Bad input, or something that is missing.
const REFUSED: u8 = 2;
/// 128 + SIGINT, as a shell has it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the manifest's folder has a parent");
    let mut arguments: Vec<_> = std::env::args_os().collect();
    // `cargo xtask run -- --tasks 1`: the options may stand behind a `--`, as with `cargo run`.
    if arguments.get(2).is_some_and(|argument| argument == "--") {
        arguments.remove(2);
    }
    match execute(Arguments::parse_from(arguments), root) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(REFUSED)
        }
    }
}

fn execute(arguments: Arguments, root: &Path) -> Result<ExitCode> {
    match arguments {
        Arguments::Run(options) => {
            if let run::Ended::Interrupted = run::run(&options, root)? {
                return Ok(ExitCode::from(INTERRUPTED));
            }
        }
        Arguments::Test(options) => test::run(&options, root)?,
        Arguments::Setup { ebpf: _ } => setup::ebpf(root)?,
        Arguments::Object { comparison } => ebpf::compare(root, comparison)?,
        Arguments::Programs(options) => programs::command::run(&options, root)?,
        Arguments::Accuracy(options) => accuracy::run(&options, root)?,
        Arguments::Launch(options) => launch::run(&options, root)?,
        Arguments::Vm(options) => vm::run(&options, root)?,
    }
    Ok(ExitCode::SUCCESS)
}
