//! Starting the target without a gap: the child is forked and held in a read, everything is attached
//! to it, and only then is it let go into its exec.
//!
//! The states are types: [`Held`] → [`Running`]. No ptrace is needed, and nothing of the target runs
//! before it is released.

use std::{
    ffi::{CString, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    unistd::{ForkResult, Gid, Pid, Uid, User, fork, getgrouplist, pipe2},
};
use thiserror::Error;

/// What to start.
#[derive(Debug, Clone)]
pub struct Target {
    /// Command and arguments; the command is looked up in `PATH` of `environment`.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory; `None` keeps ours.
    pub directory: Option<PathBuf>,
    /// Who it runs as; `None` keeps our user.
    pub user: Option<Identity>,
    /// Where its words go.
    pub streams: Streams,
}

/// The standard streams of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// All are ours.
    Ours,
    /// Ours, but what it writes to stdout goes to our stderr: stdout is for the result.
    StdoutToStderr,
    /// stdout and stderr come to us through pipes, and stdin is empty.
    Captured,
}

/// Ids that a target takes on before its exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// `HOME`, `USER` and `LOGNAME` of the user, where the user database knows them.
    pub environment: Vec<(String, String)>,
}

impl Identity {
    /// The user behind `sudo`, from `SUDO_UID` and `SUDO_GID`: the target runs as the person who
    /// typed the command, not as root. `None` when we are not root or root typed it.
    pub fn behind_sudo() -> Option<Identity> {
        if !Uid::effective().is_root() {
            return None;
        }
        let id = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
        let (uid, gid) = (id("SUDO_UID")?, id("SUDO_GID")?);
        (uid != 0).then(|| Identity::of(uid, gid))
    }

    fn of(uid: u32, gid: u32) -> Identity {
        let primary = Gid::from_raw(gid);
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let groups = user
            .as_ref()
            .and_then(|user| CString::new(user.name.clone()).ok())
            .and_then(|name| getgrouplist(&name, primary).ok())
            .unwrap_or_else(|| vec![primary]);
        let environment = user.map(|user| {
            let home = user.dir.to_string_lossy().into_owned();
            [
                ("HOME", home),
                ("USER", user.name.clone()),
                ("LOGNAME", user.name),
            ]
        });
        let environment = environment.into_iter().flatten();
        Identity {
            uid,
            gid,
            groups: groups.into_iter().map(Gid::as_raw).collect(),
            environment: environment
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }
}

/// Why a target could not be started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// No such command.
    #[error("no command `{0}` in PATH; give its path, or check the spelling")]
    NotFound(String),
    /// It is there, but not a program that we may execute.
    #[error("cannot execute `{command}`: {error}")]
    Exec {
        /// The path.
        command: String,
        /// What `execve`, `chdir` or `setuid` said.
        error: io::Error,
    },
    /// A string with a zero byte.
    #[error("an argument or environment variable holds a zero byte")]
    ZeroByte,
    /// fork or pipe failed.
    #[error("cannot start a process: {0}")]
    System(#[from] io::Error),
}

impl LaunchError {
    /// What a shell would exit with: 127 when the command was not found, 126 otherwise.
    pub fn exit_status(&self) -> i32 {
        match self {
            LaunchError::NotFound(_) => 127,
            _ => 126,
        }
    }
}

/// A forked child that waits before its exec.
pub struct Held {
    /// Its process id.
    pub pid: Pid,
    command: String,
    gate: File,
    exec_errors: File,
    output: Option<Output>,
}

/// Read ends of what a captured child writes.
pub struct Output {
    /// Its stdout.
    pub stdout: OwnedFd,
    /// Its stderr.
    pub stderr: OwnedFd,
}

/// A child that has executed its image.
pub struct Running {
    /// Its process id.
    pub pid: Pid,
    /// What it writes, when that is captured.
    pub output: Option<Output>,
}

impl Held {
    /// Forks the child. Must be called while this process has a single thread.
    pub fn fork(target: &Target) -> Result<Held, LaunchError> {
        let image = Image::prepare(target)?;
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from);
        let (gate_read, gate_write) = pipe()?;
        let (error_read, error_write) = pipe()?;
        let (output, writers) = if target.streams == Streams::Captured {
            let ((stdout, stdout_write), (stderr, stderr_write)) = (pipe()?, pipe()?);
            (
                Some(Output { stdout, stderr }),
                Some((stdout_write, stderr_write)),
            )
        } else {
            (None, None)
        };
        // SAFETY: there is one thread, so no lock can be held by another one across the fork; the
        // child calls only async-signal-safe functions on memory that was prepared before.
        match unsafe { fork() }.map_err(io::Error::from)? {
            ForkResult::Child => {
                drop(gate_write);
                let writers = writers
                    .as_ref()
                    .map(|(stdout, stderr)| (stdout.as_raw_fd(), stderr.as_raw_fd()));
                let redirects = match (target.streams, writers) {
                    (_, Some(writers)) => Redirects::Pipes(writers),
                    (Streams::StdoutToStderr, None) => Redirects::StdoutToStderr,
                    (_, None) => Redirects::None,
                };
                image.execute_when_released(
                    gate_read.as_raw_fd(),
                    error_write.as_raw_fd(),
                    redirects,
                )
            }
            ForkResult::Parent { child } => Ok(Held {
                pid: child,
                command: image.path.to_string_lossy().into_owned(),
                gate: gate_write.into(),
                exec_errors: error_read.into(),
                output,
            }),
        }
    }

    /// Lets the child go, and returns when it has executed its image or failed to.
    pub fn release(mut self) -> Result<Running, LaunchError> {
        self.gate.write_all(&[1])?;
        let mut errno = [0; 4];
        // The pipe is close-on-exec: end of file means that the exec went through.
        match self.exec_errors.read_exact(&mut errno) {
            Err(_) => Ok(Running {
                pid: self.pid,
                output: self.output,
            }),
            Ok(()) => {
                let error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
                Err(LaunchError::Exec {
                    command: self.command,
                    error,
                })
            }
        }
    }
}

/// Everything that the child needs, allocated before the fork.
struct Image {
    path: PathBuf,
    path_c: CString,
    argv: Vec<CString>,
    environment: Vec<CString>,
    directory: Option<CString>,
    user: Option<Identity>,
}

impl Image {
    fn prepare(target: &Target) -> Result<Image, LaunchError> {
        let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| LaunchError::ZeroByte);
        let command = target
            .argv
            .first()
            .ok_or_else(|| LaunchError::NotFound(String::new()))?;
        let search = target
            .environment
            .iter()
            .find(|(name, _)| name == "PATH")
            .map(|(_, value)| value.clone());
        let path = find_command(Path::new(command), search, target.directory.as_deref())
            .ok_or_else(|| LaunchError::NotFound(command.to_string_lossy().into_owned()))?;
        let environment = target
            .environment
            .iter()
            .map(|(name, value)| c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat()));
        Ok(Image {
            path_c: c_string(path.as_os_str().as_bytes())?,
            path,
            argv: target
                .argv
                .iter()
                .map(|arg| c_string(arg.as_bytes()))
                .collect::<Result<_, _>>()?,
            environment: environment.collect::<Result<_, _>>()?,
            directory: target
                .directory
                .as_ref()
                .map(|path| c_string(path.as_os_str().as_bytes()))
                .transpose()?,
            user: target.user.clone(),
        })
    }

    /// The child's side: waits for the gate, then becomes the target.
    fn execute_when_released(&self, gate: RawFd, errors: RawFd, redirects: Redirects) -> ! {
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings
                .iter()
                .map(|string| string.as_ptr())
                .chain([std::ptr::null()])
                .collect()
        };
        // Allocating is allowed here: the parent had one thread, so the allocator's locks are free.
        let (argv, environment) = (pointers(&self.argv), pointers(&self.environment));
        let mut released = 0_u8;
        // SAFETY: plain system calls on descriptors and buffers that live until the exec; the arrays
        // of pointers end with a null and point into `self`.
        unsafe {
            if libc::read(gate, (&raw mut released).cast(), 1) != 1 {
                libc::_exit(127); // the profiler is gone
            }
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            // Rust ignores SIGPIPE, and an ignored signal stays ignored over an exec.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let ready = redirects.apply()
                && self.user.as_ref().is_none_or(become_user)
                && self
                    .directory
                    .as_ref()
                    .is_none_or(|directory| libc::chdir(directory.as_ptr()) == 0);
            if ready {
                libc::execve(self.path_c.as_ptr(), argv.as_ptr(), environment.as_ptr());
            }
            let errno = *libc::__errno_location();
            let _ = libc::write(errors, (&raw const errno).cast(), 4);
            libc::_exit(127)
        }
    }
}

/// What becomes of the child's standard streams.
#[derive(Clone, Copy)]
enum Redirects {
    None,
    StdoutToStderr,
    /// Write ends for stdout and stderr; stdin is empty.
    Pipes((RawFd, RawFd)),
}

impl Redirects {
    /// The child's side, between fork and exec. Whether it went well; `errno` says why not.
    fn apply(self) -> bool {
        // SAFETY: plain system calls on descriptors of the child, in which nothing else runs.
        unsafe {
            match self {
                Redirects::None => true,
                Redirects::StdoutToStderr => {
                    libc::dup2(libc::STDERR_FILENO, libc::STDOUT_FILENO) >= 0
                }
                Redirects::Pipes((stdout, stderr)) => {
                    // 0 is free then, and the lowest number is what is opened.
                    libc::close(libc::STDIN_FILENO);
                    libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) == libc::STDIN_FILENO
                        && libc::dup2(stdout, libc::STDOUT_FILENO) >= 0
                        && libc::dup2(stderr, libc::STDERR_FILENO) >= 0
                }
            }
        }
    }
}

/// Takes on the ids, groups first: afterwards there is no right to change them any more.
fn become_user(user: &Identity) -> bool {
    // SAFETY: `groups` points to as many ids as its length says.
    unsafe {
        libc::setgroups(user.groups.len(), user.groups.as_ptr()) == 0
            && libc::setgid(user.gid) == 0
            && libc::setuid(user.uid) == 0
    }
}

/// The file that a shell would execute: names with a slash as they are, others from `search`.
fn find_command(
    command: &Path,
    search: Option<OsString>,
    directory: Option<&Path>,
) -> Option<PathBuf> {
    let from =
        |path: &Path| directory.map_or_else(|| path.to_owned(), |directory| directory.join(path));
    if command.as_os_str().as_bytes().contains(&b'/') {
        return from(command).exists().then(|| command.to_owned());
    }
    let search = search.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&search)
        .map(|folder| folder.join(command))
        .find(|path| {
            let path = from(path);
            path.is_file() && nix::unistd::access(&path, nix::unistd::AccessFlags::X_OK).is_ok()
        })
}
