//! A recorded run: everything that came from outside, one JSON value a line, in order of arrival.
//!
//! A log drives the whole pipeline to the right of `events` without root and without the programs.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Event;
use crate::probes::object_sizes::ObjectSizes;

/// One line of a log. `S` is the snapshot type of `residency`, which stands to the right of this
/// module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry<S> {
    /// The process that was launched: its tgid.
    Root(u32),
    /// How large the kernel's objects are there.
    Sizes(ObjectSizes),
    /// The executable that a process runs since its last exec.
    Image {
        /// The process.
        tgid: u32,
        /// Path of the executable.
        path: String,
        /// It is a Go program.
        go: bool,
    },
    /// An event of a followed process.
    Event(Event),
    /// The frozen tree.
    Snapshot(S),
}

/// Why a log could not be read.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file could not be read.
    #[error("cannot read the event log: {0}")]
    Io(#[from] io::Error),
    /// A line is no entry.
    #[error("line {line} of the event log is no entry: {error}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What the parser said.
        error: serde_json::Error,
    },
}

/// Writes one entry.
pub fn write<S: Serialize>(log: &mut impl Write, entry: &Entry<S>) -> io::Result<()> {
    serde_json::to_writer(&mut *log, entry)?;
    log.write_all(b"\n")
}

/// Reads a whole log.
pub fn read<S: for<'de> Deserialize<'de>>(log: impl BufRead) -> Result<Vec<Entry<S>>, LogError> {
    log.lines()
        .enumerate()
        .map(|(index, text)| {
            serde_json::from_str(&text?).map_err(|error| LogError::Line {
                line: index + 1,
                error,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Call;

    #[test]
    fn what_is_written_is_read_back() {
        let entries = vec![
            Entry::Root(7),
            Entry::Event(Event {
                began_ns: 1,
                ended_ns: 2,
                tgid: 7,
                tid: 7,
                call_stack: 0,
                call: Call::Brk {
                    requested: 0,
                    address: 4096,
                },
            }),
            Entry::Snapshot("frozen".to_owned()),
        ];
        let mut bytes = Vec::new();
        for entry in &entries {
            write(&mut bytes, entry).unwrap();
        }
        assert_eq!(read::<String>(bytes.as_slice()).unwrap(), entries);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = read::<String>(&b"{\"root\":7}\nnonsense\n"[..]).unwrap_err();
        assert!(
            error.to_string().starts_with("line 2 of the event log"),
            "{error}"
        );
    }
}
