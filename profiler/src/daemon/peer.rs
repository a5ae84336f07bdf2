//! Who is at the other end: the user, and whether they stand where we do.

use std::{
    fs,
    io::{self, Write},
    mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The namespaces that must be ours: what runs in a container is to stay there, and we would run it outside.
const NAMESPACES: [&str; 7] = ["mnt", "user", "pid", "net", "ipc", "uts", "cgroup"];

/// A client, by what the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    /// The process that connected.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

impl Peer {
    /// `SO_PEERCRED` and `SO_PEERGROUPS`: as they were when it connected.
    pub fn of(stream: &UnixStream) -> io::Result<Peer> {
        let who = getsockopt(stream, PeerCredentials)?;
        Ok(Peer {
            pid: who.pid().cast_unsigned(),
            uid: who.uid(),
            gid: who.gid(),
            groups: groups(stream)?,
        })
    }

    /// Why nothing is done for it, in a sentence; `None`: nothing speaks against it.
    pub fn refusal(&self) -> Option<String> {
        if self.uid == 0 {
            return Some("root needs no daemon".into());
        }
        let folder = PathBuf::from(format!("/proc/{}", self.pid));
        let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let real_uid = field("Uid:").and_then(|ids| ids.split_whitespace().next()?.parse().ok());
        if real_uid != Some(self.uid) {
            return Some("the client has ended, or has become another user".into());
        }
        for name in NAMESPACES {
            let link = |folder: &Path| fs::read_link(folder.join("ns").join(name)).ok();
            if link(&folder) != link(Path::new("/proc/self")) {
                return Some(format!(
                    "the client is in another {name} namespace than the daemon (a container?), and what it starts would not be"
                ));
            }
        }
        if fs::read_link(folder.join("root")).ok().as_deref() != Some(Path::new("/")) {
            return Some("the client has another root directory than the daemon".into());
        }
        if field("Seccomp:").is_some_and(|mode| mode != "0") {
            return Some(
                "the client is under a seccomp filter, and what it starts would not be".into(),
            );
        }
        None
    }

    /// Goes to where the client is held back, as root: its cgroup, with the limits of that, and its OOM score.
    pub fn stand_in_its_place(&self) -> io::Result<()> {
        join_cgroup(self.pid)?;
        let adjust = fs::read_to_string(format!("/proc/{}/oom_score_adj", self.pid))?;
        // To be spared takes more than some daemons have; not to be spared does no harm.
        let _ = fs::write("/proc/self/oom_score_adj", adjust);
        Ok(())
    }

    /// Takes on its resource limits, once we have its ids, by which the kernel lets us see them. None is raised above
    /// ours.
    pub fn take_its_limits(&self) -> io::Result<()> {
        (0..=libc::RLIMIT_RTTIME).try_for_each(|resource| copy_limit(self.pid, resource))
    }
}

fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    // NGROUPS_MAX (include/uapi/linux/limits.h).
    let mut groups = vec![0_u32; 65_536];
    let mut length = mem::size_of_val(groups.as_slice()) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which `groups` has.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(length as usize / mem::size_of::<u32>());
    Ok(groups)
}

/// Moves us into the cgroup of version 2 that a process is in.
fn join_cgroup(pid: u32) -> io::Result<()> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.ok_or_else(|| io::Error::other("the client is in no cgroup of version 2"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .find_map(|line| line.split(' ').nth(4));
    let mount = mount.ok_or_else(|| io::Error::other("cgroup2 is not mounted"))?;
    let procs = Path::new(mount).join(path).join("cgroup.procs");
    fs::OpenOptions::new()
        .write(true)
        .open(&procs)?
        .write_all(b"0")
}

fn copy_limit(pid: u32, resource: libc::__rlimit_resource_t) -> io::Result<()> {
    let mut theirs = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let mut ours = theirs;
    let null = std::ptr::null_mut();
    // SAFETY: the kernel writes one limit of each; the pointers are to ours.
    let read = unsafe {
        libc::prlimit(pid as libc::pid_t, resource, null, &raw mut theirs)
            | libc::prlimit(0, resource, null, &raw mut ours)
    };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    let hard = theirs.rlim_max.min(ours.rlim_max);
    let limit = libc::rlimit {
        rlim_cur: theirs.rlim_cur.min(hard),
        rlim_max: hard,
    };
    // SAFETY: the kernel reads one limit.
    match unsafe { libc::prlimit(0, resource, &raw const limit, null) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first bytes of a request and the descriptors that come with them: stdin, stdout, stderr.
pub(super) fn receive_descriptors(stream: &UnixStream) -> io::Result<[OwnedFd; 3]> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0];
    let mut iov = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 3]);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut iov,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel has just made them, and nobody else has them.
            descriptors.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let count = descriptors.len();
    descriptors
        .try_into()
        .map_err(|_| io::Error::other(format!("{count} descriptors came, expected 3")))
}
