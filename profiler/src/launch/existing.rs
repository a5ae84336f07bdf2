//! A process that runs already: whether it can be profiled, and the descriptor that stands for it whatever becomes
//! of its number.

use std::{
    fs, io,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::group::state;

/// Why a process cannot be profiled.
#[derive(Debug, Error)]
pub enum AttachRefusal {
    /// There is none.
    #[error("no process has the id {0}; `ps -e` lists those that there are")]
    None(u32),
    /// It is a thread.
    #[error("{tid} is a thread of process {pid}; try `profiler attach --pid {pid}`")]
    Thread {
        /// What was given.
        tid: u32,
        /// Its process.
        pid: u32,
    },
    /// It has no memory of its own.
    #[error("process {0} is a thread of the kernel, which has no memory of its own")]
    Kernel(u32),
    /// It has ended.
    #[error(
        "process {0} has ended and waits for its parent to take note (a zombie); it has no memory any more"
    )]
    Zombie(u32),
    /// It is ours.
    #[error("process {0} is this profiler itself; give the id of another process")]
    Ourselves(u32),
    /// Compatibility mode has other calls, which no probe sees.
    #[error("process {0} is a 32-bit program; only 64-bit programs can be profiled")]
    ThirtyTwoBit(u32),
    /// The kernel does not let us look at it.
    #[error(
        "process {pid} belongs to user {owner} and may not be looked at by user {user}; try `sudo profiler attach \
         --pid {pid}`, or CAP_SYS_PTRACE"
    )]
    NotPermitted {
        /// The process.
        pid: u32,
        /// Its user id.
        owner: u32,
        /// Ours.
        user: u32,
    },
    /// Something else.
    #[error("cannot look at process {pid}: {error}")]
    System {
        /// The process.
        pid: u32,
        /// What the system said.
        error: io::Error,
    },
}

/// A process that can be profiled.
#[derive(Debug)]
pub struct Existing {
    /// Its id.
    pub pid: u32,
    /// Becomes readable when it ends.
    pub descriptor: OwnedFd,
}

impl Existing {
    /// Checks everything that can be checked before anything is loaded.
    pub fn find(pid: u32) -> Result<Existing, AttachRefusal> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        if pid == std::process::id() {
            return Err(AttachRefusal::Ourselves(pid));
        }
        // Threads are found by name there, and are not listed.
        let status = fs::read_to_string(folder.join("status"));
        let status = status.map_err(|_| AttachRefusal::None(pid))?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let tgid = field("Tgid:").and_then(|tgid| tgid.parse().ok());
        if let Some(tgid) = tgid.filter(|&tgid| tgid != pid) {
            return Err(AttachRefusal::Thread {
                tid: pid,
                pid: tgid,
            });
        }
        // First the descriptor: what is found from here on is found of this process, or it has ended.
        let descriptor = pidfd(pid).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => AttachRefusal::None(pid),
            _ => AttachRefusal::System { pid, error },
        })?;
        if is_of_kernel(&folder) {
            return Err(AttachRefusal::Kernel(pid));
        }
        let others_live = field("Threads:").is_some_and(|threads| threads != "1");
        if matches!(state(&folder.join("stat")), Some(b'Z' | b'X')) && !others_live {
            return Err(AttachRefusal::Zombie(pid));
        }
        may_be_read(pid, &folder)?;
        if is_32_bit(&folder) {
            return Err(AttachRefusal::ThirtyTwoBit(pid));
        }
        Ok(Existing { pid, descriptor })
    }
}

/// A descriptor that becomes readable when the process exits (Linux 5.3).
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made the descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn is_of_kernel(folder: &Path) -> bool {
    const PF_KTHREAD: u64 = 0x0020_0000;
    flags(folder).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// The first thread of a process is on its way out, or gone.
pub fn is_ending(pid: u32) -> bool {
    const PF_EXITING: u64 = 0x4;
    flags(&PathBuf::from(format!("/proc/{pid}"))).is_none_or(|flags| flags & PF_EXITING != 0)
}

/// `PF_*` (include/linux/sched.h) of the first thread of a process: the seventh number behind the name in `stat`.
fn flags(folder: &Path) -> Option<u64> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_ascii_whitespace().nth(6)?.parse().ok()
}

/// The kernel's own answer, by the file that everything begins with.
fn may_be_read(pid: u32, folder: &Path) -> Result<(), AttachRefusal> {
    match fs::read(folder.join("maps")) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(AttachRefusal::NotPermitted {
                pid,
                owner: fs::metadata(folder).map_or(0, |folder| folder.uid()),
                user: nix::unistd::geteuid().as_raw(),
            })
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            Err(AttachRefusal::None(pid))
        }
        Err(error) => Err(AttachRefusal::System { pid, error }),
    }
}

/// By the fifth byte of its ELF file (`EI_CLASS`, elf(5)).
fn is_32_bit(folder: &Path) -> bool {
    use io::Read;
    const ELFCLASS32: u8 = 1;
    let mut identity = [0; 5];
    let file = fs::File::open(folder.join("exe"));
    file.and_then(|mut file| file.read_exact(&mut identity))
        .is_ok()
        && identity.starts_with(b"\x7fELF")
        && identity[4] == ELFCLASS32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn refused(pid: u32) -> String {
        match Existing::find(pid) {
            Ok(_) => panic!("{pid} was found"),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn ourselves_our_threads_and_nobody_are_refused() {
        let own = std::process::id();
        assert!(refused(own).contains("this profiler itself"));
        assert!(refused(u32::MAX / 4).starts_with("no process has the id"));
        let tid = std::thread::spawn(|| {
            let tid = nix::unistd::gettid().as_raw().cast_unsigned();
            (tid, refused(tid))
        });
        let (tid, said) = tid.join().unwrap();
        assert_eq!(
            said,
            format!("{tid} is a thread of process {own}; try `profiler attach --pid {own}`")
        );
    }

    #[test]
    fn a_zombie_is_refused_and_a_child_is_found() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert_eq!(Existing::find(child.id()).unwrap().pid, child.id());
        child.kill().unwrap();
        let ended = Existing::find(child.id());
        // Until it is waited for, it is a zombie; the signal may take a moment.
        let fd = pidfd(child.id()).unwrap();
        let mut poll = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&fd),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut poll, nix::poll::PollTimeout::NONE).unwrap();
        drop(ended);
        assert!(refused(child.id()).contains("zombie"));
        child.wait().unwrap();
    }

    #[test]
    fn the_class_of_a_program_is_in_its_fifth_byte() {
        let folder = tempfile::tempdir().unwrap();
        for (identity, is_32) in [(b"\x7fELF\x01", true), (b"\x7fELF\x02", false)] {
            fs::write(folder.path().join("exe"), identity).unwrap();
            assert_eq!(is_32_bit(folder.path()), is_32);
        }
    }

    #[test]
    fn a_thread_of_the_kernel_is_refused() {
        // 2 is kthreadd, where the machine's processes can be seen.
        if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.trim() == "kthreadd") {
            assert!(refused(2).contains("thread of the kernel"));
        }
    }
}
