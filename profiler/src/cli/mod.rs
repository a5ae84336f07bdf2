//! The command line: one file a subcommand.

mod attach;
mod compare;
mod daemon;
mod doctor;
mod manual;
pub mod output;
mod report;
mod run;
mod setup;
mod sweep;
mod through_daemon;

use clap::{Parser, Subcommand};

/// Where does the memory of a concurrent task go?
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command and break its memory at the peak into stacks, heap and runtime
    Run(run::Arguments),
    /// Show results again, or write them in another form
    Report(report::Arguments),
    /// Say what changed between two results; exit status 1 when memory grew past the threshold
    Compare(compare::Arguments),
    /// Do the same for a process that runs already, and leave it as it was
    Attach(attach::Arguments),
    /// Serve members of a group, so that they need no privilege (see docs/privileges.md)
    Daemon(daemon::Arguments),
    /// Give this binary the capabilities that it needs, so that it runs without sudo
    Setup(setup::Arguments),
    /// Say what this machine allows, and which eBPF object is in use
    Doctor(doctor::Arguments),
    /// Print what a shell needs to complete the command line
    Completions(manual::CompletionsArguments),
    /// Print the man page: `profiler man | man -l -`
    Man,
}

/// Exit status for files that are not what they should be; clap has the same for bad arguments.
const BAD_INPUT: u8 = 2;

/// What is told when something did not work.
pub struct Failure {
    /// One sentence.
    pub message: String,
    /// Exit status of the process.
    pub exit_status: u8,
}

impl Failure {
    fn new(exit_status: u8, error: impl std::fmt::Display) -> Failure {
        // The alternate form of anyhow's errors has the whole chain of causes.
        Failure {
            message: format!("{error:#}"),
            exit_status,
        }
    }
}

/// Does what the command line says; the value is the exit status.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    match arguments.command {
        Command::Run(arguments) => run::execute(arguments),
        Command::Report(arguments) => report::execute(arguments),
        Command::Compare(arguments) => compare::execute(&arguments),
        Command::Attach(arguments) => attach::execute(arguments),
        Command::Daemon(arguments) => daemon::execute(&arguments),
        Command::Setup(arguments) => setup::execute(&arguments),
        Command::Doctor(arguments) => doctor::execute(&arguments),
        Command::Completions(arguments) => manual::completions(&arguments),
        Command::Man => manual::man(),
    }
}
