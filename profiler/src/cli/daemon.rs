//! `profiler daemon`: profiling for those who may not.

use std::path::PathBuf;

use clap::Args;
use profiler::daemon::{SOCKET, server};

use super::{Failure, run::OWN_FAILURE};

#[derive(Args)]
pub struct Arguments {
    /// Who may use it: the members of this group, for their own processes
    #[arg(long, value_name = "GROUP", default_value = "profiler")]
    group: String,

    /// Where it listens
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

pub fn execute(arguments: &Arguments) -> Result<u8, Failure> {
    server::serve(&arguments.socket, &arguments.group)
        .map(|()| 0)
        .map_err(|error| Failure::new(OWN_FAILURE, error))
}
