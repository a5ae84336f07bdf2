//! `profiler daemon`: members of a group profile their own processes through it, without any privilege of theirs.
//!
//! ```text
//! client (a member)                       daemon (root)
//! profiler run -- COMMAND  -- socket -->  accepts; one supervisor a client
//!   request, stdin, stdout, stderr          `- worker: becomes the client, keeps CAP_BPF and CAP_PERFMON
//!   waits                                      `- the command, as the client
//!   <-- the run, as JSON ---------------------'
//! ```
//!
//! The worker is what a profiler with file capabilities is: the kernel itself holds everything that it reads of a process
//! against the client's user id, whatever becomes of a number in between. `docs/privileges.md` has the threat model.

pub mod client;
mod peer;
pub mod server;

use std::{
    io::{self, Read, Write},
    path::PathBuf,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{probes::tier::Tier, results::Run, session::job::Job};

/// Where the daemon listens.
pub const SOCKET: &str = "/run/profiler/daemon.sock";

/// A request is a command with its environment: the kernel lets a command have 2 MiB of both (`ARG_MAX`), and JSON takes
/// more for some characters.
const REQUEST_AT_MOST: u32 = 16 << 20;
/// A run with all its regions has some MiB.
const REPLY_AT_MOST: u32 = 1 << 30;

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// To be done.
    pub work: Work,
    /// How residency is to be followed.
    pub tier: Option<Tier>,
    /// The client's working directory.
    pub directory: PathBuf,
    /// The client's file mode creation mask.
    pub umask: u32,
    /// The result goes to the client's stdout.
    pub result_to_stdout: bool,
}

/// To be done for a client.
#[derive(Debug, Serialize, Deserialize)]
pub enum Work {
    /// Run a command.
    Run(Box<Job>),
    /// Follow a process.
    Attach {
        /// Its id.
        pid: u32,
        /// Its descendants, too.
        tree: bool,
        /// For how long, in seconds.
        seconds: Option<f64>,
    },
}

/// What becomes of it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// What was measured.
    Done(Box<Run>),
    /// Why nothing was.
    Failed {
        /// One sentence.
        message: String,
        /// Exit status for the client.
        exit_status: u8,
    },
}

/// Writes a message: its length in four bytes, little-endian, and JSON.
fn write_message(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_le_bytes())?;
    stream.write_all(&text)
}

/// Reads a message of at most so many bytes.
fn read_message<T: DeserializeOwned>(stream: &mut impl Read, at_most: u32) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > at_most {
        return Err(io::Error::other(format!(
            "a message of {length} bytes, expected {at_most} at most"
        )));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_back_and_one_that_is_too_long_is_refused() {
        let request = Request {
            work: Work::Attach {
                pid: 7,
                tree: true,
                seconds: Some(1.5),
            },
            tier: Some(Tier::C),
            directory: "/".into(),
            umask: 0o22,
            result_to_stdout: false,
        };
        let mut bytes = Vec::new();
        write_message(&mut bytes, &request).unwrap();
        let read: Request = read_message(&mut bytes.as_slice(), REQUEST_AT_MOST).unwrap();
        assert!(matches!(
            read.work,
            Work::Attach {
                pid: 7,
                tree: true,
                ..
            }
        ));
        let refused = read_message::<Request>(&mut bytes.as_slice(), 10);
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("expected 10 at most")
        );
    }
}
