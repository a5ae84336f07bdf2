//! The `profiler` command: reads the command line, runs what it says, and turns errors into one
//! sentence and an exit status.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    match cli::execute(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            cli::output::say_line(format_args!("profiler: {}", failure.message));
            ExitCode::from(failure.exit_status)
        }
    }
}
