//! The client's side: hands a request and its standard streams to the daemon, and waits.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use nix::sys::signal::{SigSet, Signal};
use thiserror::Error;

use super::{REPLY_AT_MOST, Reply, Request, read_message, write_message};
use crate::results::Run;

/// Our own failures, as `env` and `timeout` have them.
pub const OWN_FAILURE: u8 = 125;

/// Why there is no result.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The daemon, or the work, refused.
    #[error("{message}")]
    Refused {
        /// One sentence.
        message: String,
        /// Exit status of the process.
        exit_status: u8,
    },
    /// The daemon went away.
    #[error("the daemon went away: {0}")]
    Gone(#[from] io::Error),
}

/// Whether a daemon can be reached.
pub enum Reached {
    /// It waits for a request.
    Yes(UnixStream),
    /// It is there, and not for us.
    NotAMember,
    /// There is none.
    No,
}

/// Tries to reach the daemon at `socket`.
pub fn reach(socket: &Path) -> Reached {
    match UnixStream::connect(socket) {
        Ok(stream) => Reached::Yes(stream),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Reached::NotAMember,
        Err(_) => Reached::No,
    }
}

/// Has it done. Ctrl-C and its like are passed on: we close our side of the stream, and wait for the result all the same.
/// Should we be killed, the stream is closed by that.
pub fn ask(mut stream: UnixStream, request: &Request) -> Result<Run, ClientError> {
    pass_signals_on(stream.try_clone()?)?;
    send_descriptors(&stream)?;
    write_message(&mut stream, request)?;
    match read_message(&mut stream, REPLY_AT_MOST)? {
        Reply::Done(run) => Ok(*run),
        Reply::Failed {
            message,
            exit_status,
        } => Err(ClientError::Refused {
            message,
            exit_status,
        }),
    }
}

/// The first signal ends the work, a second one us.
fn pass_signals_on(stream: UnixStream) -> io::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    signals.thread_block()?;
    let wait = move || {
        if signals.wait().is_ok() {
            let _ = stream.shutdown(Shutdown::Write);
        }
        if let Ok(signal) = signals.wait() {
            std::process::exit(128 + signal as i32);
        }
    };
    std::thread::Builder::new().spawn(wait)?;
    Ok(())
}

/// One byte, with our standard streams.
fn send_descriptors(stream: &UnixStream) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let descriptors = [
        stdin.as_fd().as_raw_fd(),
        stdout.as_fd().as_raw_fd(),
        stderr.as_fd().as_raw_fd(),
    ];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&[0])],
        &rights,
        MsgFlags::empty(),
        None,
    )?;
    Ok(())
}
