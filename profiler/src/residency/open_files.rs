//! What a stopped process has open: `/proc/PID/fd`, and `fdinfo` of epoll instances (proc_pid_fd(5),
//! proc_pid_fdinfo(5)).

use std::{collections::HashSet, fs};

use super::{OpenFiles, proc_files::ProcDir, scan::ScanError, sockets::Protocols};

/// Inodes of pipes and sockets that have been counted: several descriptors may lead to one.
#[derive(Default)]
pub(super) struct Seen {
    inodes: HashSet<u64>,
    protocols: Protocols,
}

/// Counts what is open. A file that came from the parent by fork is the parent's, if that one is in
/// `tree`; one that its parent has closed since counts in each child.
pub(super) fn open_files(
    dir: &ProcDir,
    tree: &[u32],
    seen: &mut Seen,
) -> Result<OpenFiles, ScanError> {
    let status = dir.status()?;
    let parent = tree.contains(&status.parent).then_some(status.parent);
    let mut open = OpenFiles {
        slots: status.file_slots,
        timers: timers(dir),
        ..OpenFiles::default()
    };
    let list = fs::read_dir(dir.path().join("fd")).map_err(|error| dir.error("fd", error))?;
    for entry in list.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if parent.is_some_and(|parent| same_file(dir.pid(), parent, number)) {
            continue;
        }
        open.files += 1;
        // What cannot be read is a file like any other.
        let target = fs::read_link(entry.path()).unwrap_or_default();
        match sort_of(&target.to_string_lossy()) {
            Sort::Pipe(inode) => open.pipes += u64::from(seen.inodes.insert(inode)),
            Sort::Socket(inode) => {
                if seen.inodes.insert(inode) {
                    seen.protocols.count(dir, inode, &mut open.sockets);
                }
            }
            Sort::Epoll => {
                open.epolls += 1;
                open.epoll_entries += epoll_entries(dir, number);
            }
            Sort::Eventfd => open.eventfds += 1,
            Sort::Timerfd => open.timerfds += 1,
            Sort::Other => {}
        }
    }
    Ok(open)
}

#[derive(Debug, PartialEq, Eq)]
enum Sort {
    Pipe(u64),
    Socket(u64),
    Epoll,
    Eventfd,
    Timerfd,
    Other,
}

/// From where the link leads: `socket:[12345]`, `anon_inode:[eventfd]`, a path.
fn sort_of(target: &str) -> Sort {
    let inode = |kind: &str| -> Option<u64> {
        let rest = target.strip_prefix(kind)?;
        rest.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
    };
    match target {
        "anon_inode:[eventpoll]" => Sort::Epoll,
        "anon_inode:[eventfd]" => Sort::Eventfd,
        "anon_inode:[timerfd]" => Sort::Timerfd,
        _ => match (inode("pipe"), inode("socket")) {
            (Some(inode), _) => Sort::Pipe(inode),
            (_, Some(inode)) => Sort::Socket(inode),
            _ => Sort::Other,
        },
    }
}

/// A line `tfd: …` for each descriptor that is watched.
fn epoll_entries(dir: &ProcDir, number: u32) -> u64 {
    lines_with(dir, &format!("fdinfo/{number}"), "tfd:")
}

/// A kernel without `CONFIG_CHECKPOINT_RESTORE` does not tell.
fn timers(dir: &ProcDir) -> u64 {
    lines_with(dir, "timers", "ID:")
}

fn lines_with(dir: &ProcDir, name: &str, prefix: &str) -> u64 {
    let text = fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    text.lines().filter(|line| line.starts_with(prefix)).count() as u64
}

/// Whether descriptor `number` is the same open file in both processes. A kernel without kcmp(2)
/// leaves them apart.
fn same_file(one: u32, other: u32, number: u32) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    // SAFETY: kcmp(2) takes numbers only and changes nothing; 0 means that they are the same.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILE, number, number) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io,
        os::{fd::AsRawFd, unix::fs::MetadataExt},
    };

    #[test]
    fn links_tell_what_is_open() {
        assert_eq!(sort_of("pipe:[77]"), Sort::Pipe(77));
        assert_eq!(sort_of("socket:[78]"), Sort::Socket(78));
        assert_eq!(sort_of("anon_inode:[eventfd]"), Sort::Eventfd);
        assert_eq!(sort_of("/tmp/pipe:[77]"), Sort::Other);
        assert_eq!(sort_of("anon_inode:inotify"), Sort::Other);
    }

    #[test]
    fn both_ends_of_a_pipe_are_one_pipe_and_two_files() {
        let (read, write) = io::pipe().expect("a pipe");
        let path = format!("/proc/self/fd/{}", read.as_raw_fd());
        let inode = fs::metadata(path).expect("our pipe").ino();
        let mut seen = Seen::default();
        let dir = ProcDir::of(std::process::id()).expect("ourselves");
        let open = open_files(&dir, &[], &mut seen).expect("our files");
        // Other tests of this process have files too, which come and go.
        assert!(open.pipes >= 1 && open.files >= 2 * open.pipes.min(1) && open.slots >= 64);
        assert!(!seen.inodes.insert(inode), "our pipe has been counted");
        let number = read.as_raw_fd().cast_unsigned();
        assert!(same_file(std::process::id(), std::process::id(), number));
        drop(write);
    }
}
