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
    /// Threads that it is going to have, where that is known: the ledger takes room for them.
    #[serde(default)]
    pub threads: Option<u64>,
    /// Limits that are to be higher while it runs.
    #[serde(default)]
    pub raises: Raises,
}

impl Job {
    /// Any command, named after its executable; without a name where it has none.
    pub fn of_command(command: Vec<String>, environment: Vec<(String, String)>) -> Job {
        let name = command
            .first()
            .and_then(|name| name.rsplit('/').next())
            .unwrap_or_default()
            .to_owned();
        Job {
            program: name.clone(),
            label: name,
            colour: None,
            version: String::new(),
            command,
            environment,
            directory: None,
            contract: None,
            repeat: 0,
            ask_for_books: false,
            threads: None,
            raises: Raises::default(),
        }
    }
}

/// `PROGRAM N SECONDS`: N tasks, all alive at once, each waiting so many seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Contract {
    /// N
    pub tasks: u64,
    /// How long each task waits.
    pub seconds: f64,
    /// What each task does meanwhile.
    #[serde(default)]
    pub load: Load,
}

/// What each task holds while it waits, in bytes; none of either as a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Load {
    /// How far down its stack it has called.
    pub stack_depth_bytes: u64,
    /// An array of its own that was written to.
    pub payload_bytes: u64,
}

impl Load {
    /// The variables by which a program is told.
    pub const VARIABLES: [&str; 2] = ["TASK_STACK_DEPTH", "TASK_PAYLOAD"];

    /// How a program is told: no variable where there is nothing to hold.
    pub fn environment(self) -> Vec<(String, String)> {
        let values = [self.stack_depth_bytes, self.payload_bytes];
        let told = Load::VARIABLES.into_iter().zip(values);
        told.filter(|(_, bytes)| *bytes > 0)
            .map(|(name, bytes)| (name.to_owned(), bytes.to_string()))
            .collect()
    }

    /// Both together.
    pub fn bytes(self) -> u64 {
        self.stack_depth_bytes.saturating_add(self.payload_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_has_nothing_to_hold_is_told_nothing() {
        let load = Load {
            stack_depth_bytes: 0,
            payload_bytes: 1024,
        };
        let told = [("TASK_PAYLOAD".to_owned(), "1024".to_owned())];
        assert_eq!(load.environment(), told);
        assert_eq!(Load::default().environment(), []);
    }
}
