//! Which way to go: by ourselves, or through the daemon.

use std::{os::unix::net::UnixStream, path::PathBuf};

use profiler::{
    daemon::{
        Request, SOCKET, Work,
        client::{self, ClientError, Reached},
    },
    privileges,
    probes::tier::Tier,
    results::Run,
};

use super::{Failure, output, run::OWN_FAILURE};

/// For a daemon that listens elsewhere.
const SOCKET_VARIABLE: &str = "PROFILER_DAEMON_SOCKET";

/// Where the daemon is looked for.
pub fn socket() -> PathBuf {
    std::env::var_os(SOCKET_VARIABLE).map_or_else(|| SOCKET.into(), PathBuf::from)
}

/// The daemon, where it can do more than we: we may not load probes, it is there, and it is for us. What is decided is
/// said.
pub fn reach(tier: Option<Tier>) -> Option<UnixStream> {
    if privileges::may_probe() || tier == Some(Tier::D) {
        return None;
    }
    let socket = socket();
    match client::reach(&socket) {
        Reached::Yes(stream) => {
            output::say_line(format_args!(
                "profiler: through the daemon at {}",
                socket.display()
            ));
            Some(stream)
        }
        Reached::NotAMember => {
            output::say_line(format_args!(
                "profiler: not through the daemon at {}, which is for members of its group; try `sudo usermod -aG profiler \
                 $USER` and log in anew",
                socket.display()
            ));
            None
        }
        Reached::No => None,
    }
}

/// Has it done there.
pub fn ask(
    stream: UnixStream,
    work: Work,
    tier: Option<Tier>,
    result_to_stdout: bool,
) -> Result<Run, Failure> {
    let directory = std::env::current_dir().map_err(|error| Failure::new(OWN_FAILURE, error))?;
    let request = Request {
        work,
        tier,
        directory,
        umask: umask(),
        result_to_stdout,
    };
    client::ask(stream, &request).map_err(|error| match &error {
        ClientError::Refused { exit_status, .. } => Failure::new(*exit_status, &error),
        ClientError::Gone(_) => Failure::new(OWN_FAILURE, &error),
    })
}

/// The mask can be asked for only by setting it.
fn umask() -> u32 {
    // SAFETY: takes a number and changes nothing but our own mask, which is given back at once.
    unsafe {
        let mask = libc::umask(0o077);
        libc::umask(mask);
        mask
    }
}
