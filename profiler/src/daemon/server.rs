//! The daemon's side. One thread, and one process a client: a session forks, and a client's trouble is its own.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::{PermissionsExt, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::set_no_new_privs,
        signal::{SigHandler, Signal, kill, signal},
        wait::waitpid,
    },
    unistd::{ForkResult, Gid, Group, Pid, Uid, fork, setgroups, setresgid, setresuid},
};

use super::{
    REQUEST_AT_MOST, Reply, Request, Work,
    peer::{Peer, receive_descriptors},
    read_message, write_message,
};
use crate::{
    launch::existing::pidfd,
    privileges,
    session::{self, Options, SessionError, attach},
};

/// Listens at `socket` for members of `group`, until it is ended by a signal. Must be called as root, by the only thread.
pub fn serve(socket: &Path, group: &str) -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("the daemon needs root, to become whoever it works for; try `sudo profiler daemon`");
    }
    let members = Group::from_name(group)?.with_context(|| {
        format!("there is no group {group}; try `sudo groupadd --system {group}`")
    })?;
    let listener = listen(socket, members.gid)?;
    // SAFETY: the default of the kernel for a handler that is never a function: ended supervisors are not waited for.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    eprintln!(
        "profiler: listening at {} for members of {group}",
        socket.display()
    );
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("cannot accept a client"),
        };
        // SAFETY: there is one thread, so no lock can be held by another one across the fork.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { .. }) => {}
            Ok(ForkResult::Child) => {
                drop(listener);
                supervise(stream);
                // SAFETY: ends the child without running the parent's exit handlers.
                unsafe { libc::_exit(0) }
            }
            Err(error) => eprintln!("profiler: a client is not served: {error}"),
        }
    }
}

fn listen(socket: &Path, group: Gid) -> Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mode = fs::metadata(folder)?.permissions().mode();
        // Whoever is to connect has to get there; what else lies there has modes of its own.
        fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o111))?;
    }
    if UnixStream::connect(socket).is_ok() {
        bail!("another daemon listens at {}", socket.display());
    }
    // What a daemon that was killed has left.
    let _ = fs::remove_file(socket);
    // SAFETY: takes a number and changes nothing but our own mask.
    let mask = unsafe { libc::umask(0o177) };
    let listener = UnixListener::bind(socket);
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    let listener = listener.with_context(|| format!("cannot listen at {}", socket.display()))?;
    chown(socket, Some(0), Some(group.as_raw()))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Root's side of one client: starts the worker, and tells it when the client has gone.
fn supervise(stream: UnixStream) {
    // Whoever started the daemon may have had it ignore some, which a command would inherit.
    for ours in [
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
        Signal::SIGTERM,
    ] {
        // SAFETY: the default is no function.
        let _ = unsafe { signal(ours, SigHandler::SigDfl) };
    }
    let peer = match Peer::of(&stream) {
        Ok(peer) => peer,
        Err(error) => return eprintln!("profiler: a client is not served: {error}"),
    };
    if let Some(refusal) = peer.refusal() {
        return answer(&stream, &failed(format!("the daemon refuses: {refusal}")));
    }
    // SAFETY: there is one thread.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            work(stream, &peer);
            // SAFETY: as in `serve`.
            unsafe { libc::_exit(0) }
        }
        Ok(ForkResult::Parent { child }) => watch(&stream, child),
        Err(error) => answer(
            &stream,
            &failed(format!("the daemon cannot start a worker: {error}")),
        ),
    }
}

/// Until the worker has ended: when the client closes its side, or has ended, that is taken for Ctrl-C.
fn watch(stream: &UnixStream, worker: Pid) {
    let Ok(end) = pidfd(worker.as_raw().cast_unsigned()) else {
        return;
    };
    let half_closed = PollFlags::from_bits_retain(libc::POLLRDHUP);
    let mut gone = false;
    loop {
        let mut sources = vec![PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        if !gone {
            // Bytes are the worker's to read until it has its request; only the end concerns us.
            sources.push(PollFd::new(stream.as_fd(), half_closed));
        }
        match poll(&mut sources, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => break,
            Ok(_) => {}
        }
        let seen = |index: usize| {
            let source: Option<&PollFd> = sources.get(index);
            // `None` are bits that nix does not name, as that of the half-closed stream.
            source.is_some_and(|source| source.any().unwrap_or(true))
        };
        if seen(0) {
            break;
        }
        if seen(1) {
            gone = true;
            let _ = kill(worker, Signal::SIGINT);
        }
    }
    let _ = waitpid(worker, None);
}

/// The worker: root at first, the client from then on.
fn work(mut stream: UnixStream, peer: &Peer) {
    let reply = match become_client(peer).and_then(|()| done(&mut stream)) {
        Ok(reply) => reply,
        Err(error) => failed(format!("the daemon cannot do it: {error:#}")),
    };
    answer(&stream, &reply);
}

/// Takes on everything of the client, limits first, and keeps of root's capabilities those for probes.
fn become_client(peer: &Peer) -> Result<()> {
    nix::unistd::setsid().context("setsid")?;
    peer.stand_in_its_place()
        .context("cannot join the cgroup of the client")?;
    set_no_new_privs().context("no_new_privs")?;
    caps::securebits::set_keepcaps(true).context("keepcaps")?;
    let groups: Vec<Gid> = peer.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).context("setgroups")?;
    let (uid, gid) = (Uid::from_raw(peer.uid), Gid::from_raw(peer.gid));
    setresgid(gid, gid, gid).context("setresgid")?;
    setresuid(uid, uid, uid).context("setresuid")?;
    privileges::keep_only_for_probes().context("capabilities")?;
    peer.take_its_limits()
        .context("cannot take the limits of the client")
}

/// Everything from here on is done with the client's rights.
fn done(stream: &mut UnixStream) -> Result<Reply> {
    let descriptors = receive_descriptors(stream).context("no request")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request: Request = read_message(stream, REQUEST_AT_MOST).context("no request")?;
    for (number, descriptor) in descriptors.iter().enumerate() {
        redirect(descriptor, number as i32)?;
    }
    drop(descriptors);
    std::env::set_current_dir(&request.directory)
        .with_context(|| format!("cannot enter {}", request.directory.display()))?;
    // SAFETY: takes a number and changes nothing but our own mask.
    unsafe { libc::umask((request.umask & 0o777) as libc::mode_t) };
    let options = Options {
        tier: request.tier,
        result_to_stdout: request.result_to_stdout,
        ..Options::default()
    };
    let run = match request.work {
        Work::Run(mut job) => {
            // Limits of the machine are root's alone.
            job.raises = Default::default();
            session::run(&job, &options)
        }
        Work::Attach { pid, tree, seconds } => {
            let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            let request = attach::Request {
                pid,
                tree,
                duration,
            };
            attach::attach_to(&request, &options)
        }
    };
    Ok(match run {
        Ok(run) => Reply::Done(Box::new(run)),
        Err(error) => Reply::Failed {
            exit_status: match &error {
                SessionError::Launch(launch) => launch.exit_status() as u8,
                SessionError::Interrupted(signal) => 128 + *signal as u8,
                _ => super::client::OWN_FAILURE,
            },
            message: error.to_string(),
        },
    })
}

fn redirect(descriptor: &OwnedFd, to: i32) -> Result<()> {
    // SAFETY: both numbers are open descriptors of ours; standard streams are nobody's to close.
    match unsafe { libc::dup2(descriptor.as_raw_fd(), to) } {
        -1 => Err(io::Error::last_os_error()).context("cannot take a standard stream"),
        _ => Ok(()),
    }
}

fn failed(message: String) -> Reply {
    Reply::Failed {
        message,
        exit_status: super::client::OWN_FAILURE,
    }
}

/// A client that is gone needs no answer.
fn answer(mut stream: &UnixStream, reply: &Reply) {
    let _ = write_message(&mut stream, reply);
}
