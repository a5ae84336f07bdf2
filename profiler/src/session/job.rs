//! What one session is to run and how its success is judged.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::limits::Raises;

/// A benchmark program at one N. `cargo xtask run` hands it to the privileged profiler as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Name of the program's folder.
    pub program: String,
    /// Name for people.
    pub label: String,
    /// Colour in charts, `#rrggbb`.
    pub colour: Option<String>,
    /// Versions of the runtime and of the libraries that matter.
    pub version: String,
    /// Command and arguments.
    pub command: Vec<String>,
    /// The whole environment of the program.
    pub environment: Vec<(String, String)>,
    /// Working directory; `None` keeps ours.
    pub directory: Option<PathBuf>,
    /// What a benchmark program promised; `None` for any other command.
    pub contract: Option<Contract>,
    /// 0 for the first repeat.
    pub repeat: u32,
    /// A run that is not to be measured but to be verified: when all tasks are alive and adapters have looked,
    /// the program is asked for its runtime's own books by `SIGUSR2`, and answers with a line `books={…}`.
    #[serde(default)]
    pub ask_for_books: bool,
    /// Limits that are to be higher while it runs.
    #[serde(default)]
    pub raises: Raises,
}

/// `PROGRAM N SECONDS`: N tasks, all alive at once, each waiting so many seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Contract {
    /// N
    pub tasks: u64,
    /// How long each task waits.
    pub seconds: f64,
}
