//! The group that the target and all its descendants live in: made before the target is started,
//! asked who is in it, killed as a whole, removed.
//!
//! A private cgroup (version 2) is the real thing: a child is in it from its first instruction and
//! cannot get out by daemonizing. Where none can be made (no cgroup2 mount, or no right to write
//! there), [`TargetGroup::without_cgroup`] has the same face over a list of processes.
//!
//! Files and their meaning: the kernel's `Documentation/admin-guide/cgroup-v2.rst`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;

use super::accounting::{self, GroupMemory};

/// Names of our cgroups begin so; the pid of the profiler follows.
const NAME_PREFIX: &str = "profiler-";
/// How long killed processes may take to be gone.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a group could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// No cgroup2 file system is mounted where we could see it.
    #[error("no cgroup2 mount that shows our own group")]
    NoCgroup2,
    /// A file of the group, or the group itself, could not be accessed.
    #[error("cannot access {}", path.display())]
    Access {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Processes of the group were still alive when the time was over.
    #[error("{} processes are still alive after SIGKILL", pids.len())]
    StillAlive {
        /// Their pids.
        pids: Vec<u32>,
    },
}

/// The processes that are measured, as one thing.
#[derive(Debug)]
pub enum TargetGroup {
    /// A private cgroup.
    Cgroup(Cgroup),
    /// No cgroup could be made.
    Processes(ProcessList),
    /// Processes that ran before we came: never ended, and left as they were found.
    Foreign(ProcessList),
}

/// A cgroup of version 2 that we made. Dropping the value does not remove it: whoever survives us
/// (a guardian) may still have to kill what is in it, and finds it by its path.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    procs: PathBuf,
}

/// Asks for the pids alive in a group that only the caller can tell.
pub struct ProcessList {
    list: Box<dyn Fn() -> Vec<u32> + Send + Sync>,
}

/// A list of the processes of a tree that somebody keeps, who learns of each start and end.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<Mutex<BTreeSet<u32>>>);

impl Known {
    /// A process has started.
    pub fn add(&self, pid: u32) {
        self.pids().insert(pid);
    }

    /// A process has ended.
    pub fn remove(&self, pid: u32) {
        self.pids().remove(&pid);
    }

    /// Who is there; `None` before anybody was.
    fn all(&self) -> Option<Vec<u32>> {
        let pids = self.pids();
        (!pids.is_empty()).then(|| pids.iter().copied().collect())
    }

    fn pids(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        // Nobody panics while they hold it; a set is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for ProcessList {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_tuple("ProcessList")
            .field(&self.pids())
            .finish()
    }
}

impl TargetGroup {
    /// Makes the cgroup `name` (one path component, not yet there) below our own, or where its memory is
    /// counted, see [`homes`]. Fails where there is no cgroup2 or no right to it; then
    /// [`TargetGroup::without_cgroup`] is the way on.
    pub fn create(name: &str) -> Result<TargetGroup, GroupError> {
        let mut made = Err(GroupError::NoCgroup2);
        for home in homes()? {
            let directory = home.join(name);
            made = fs::create_dir(&directory)
                .map_err(access(&directory))
                .map(|()| directory);
            if made.is_ok() {
                break;
            }
        }
        let directory = made?;
        accounting::make(&directory);
        let group = TargetGroup::at(directory);
        // A group can be made by anybody who may write to the directory, but the files in it may
        // still be of no use: before 5.2 there is no freezer.
        if let TargetGroup::Cgroup(cgroup) = &group {
            let freezer = cgroup.directory.join("cgroup.freeze");
            if let Err(error) = File::options().write(true).open(&freezer) {
                // The first error is the one that matters.
                let _ = group.remove();
                return Err(access(&freezer)(error));
            }
        }
        Ok(group)
    }

    /// Makes a cgroup of our own under a name that no living profiler has, once those of dead ones
    /// [are gone](end_abandoned).
    pub fn create_fresh() -> Result<TargetGroup, GroupError> {
        TargetGroup::create(&name_of(std::process::id()))
    }

    /// The group of another process, `profiler`, as far as that has come: the cgroup that it made by
    /// [`TargetGroup::create_fresh`], or else the target that it has forked.
    pub fn of_profiler(profiler: u32, root: u32) -> TargetGroup {
        let groups = homes().unwrap_or_default().into_iter();
        let mut groups = groups.map(|home| home.join(name_of(profiler)));
        match groups.find(|directory| directory.exists()) {
            Some(directory) => TargetGroup::at(directory),
            None => TargetGroup::descendants_of(root),
        }
    }

    /// A group without a cgroup: the process `root`, and what descends from it.
    pub fn descendants_of(root: u32) -> TargetGroup {
        TargetGroup::without_cgroup(move || descendants(root))
    }

    /// Processes that ran before we came: `root` and, with `tree`, what descends from it, but for ourselves; once
    /// somebody keeps the list `known`, those that stand in it.
    pub fn of_running(root: u32, tree: bool, known: Known) -> TargetGroup {
        let own = std::process::id();
        let list = Box::new(move || match (known.all(), tree) {
            (Some(pids), _) => pids,
            (None, true) => {
                let mut pids = descendants(root);
                pids.retain(|&pid| pid != own);
                pids
            }
            (None, false) => vec![root],
        });
        TargetGroup::Foreign(ProcessList { list })
    }

    /// The existing cgroup `directory`, for a process other than the one that made it.
    pub fn at(directory: PathBuf) -> TargetGroup {
        let procs = directory.join("cgroup.procs");
        TargetGroup::Cgroup(Cgroup { directory, procs })
    }

    /// A group by a list: `list` gives the processes alive at the moment of the call. What starts
    /// and ends between two calls is missed, which a cgroup never does.
    pub fn without_cgroup(list: impl Fn() -> Vec<u32> + Send + Sync + 'static) -> TargetGroup {
        TargetGroup::Processes(ProcessList {
            list: Box::new(list),
        })
    }

    /// The file that takes a pid ("0" for the writer itself) to move that process into the group;
    /// `None` without a cgroup.
    pub fn procs_path(&self) -> Option<&Path> {
        match self {
            TargetGroup::Cgroup(cgroup) => Some(&cgroup.procs),
            TargetGroup::Processes(_) | TargetGroup::Foreign(_) => None,
        }
    }

    /// The cgroup's directory; `None` without a cgroup.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            TargetGroup::Cgroup(cgroup) => Some(cgroup.directory()),
            TargetGroup::Processes(_) | TargetGroup::Foreign(_) => None,
        }
    }

    /// Moves process `pid`, with all its threads, into the group. Its later children are born in
    /// it. Does nothing without a cgroup, where the list decides who belongs.
    pub fn add(&self, pid: u32) -> Result<(), GroupError> {
        match self {
            TargetGroup::Cgroup(cgroup) => {
                fs::write(&cgroup.procs, pid.to_string()).map_err(access(&cgroup.procs))?;
                // Second: who is in the companion is in the group, and ends with it.
                accounting::add(&cgroup.directory, pid);
                Ok(())
            }
            TargetGroup::Processes(_) | TargetGroup::Foreign(_) => Ok(()),
        }
    }

    /// What the kernel counts for the group beside RSS; `None` where it counts nothing.
    pub fn memory(&self) -> Option<GroupMemory> {
        match self {
            TargetGroup::Cgroup(cgroup) => accounting::read(&cgroup.directory),
            TargetGroup::Processes(_) | TargetGroup::Foreign(_) => None,
        }
    }

    /// The processes alive in the group, those in groups below it included: in ascending order, each once.
    pub fn pids(&self) -> Result<Vec<u32>, GroupError> {
        let mut pids = match self {
            TargetGroup::Cgroup(cgroup) => cgroup.pids()?,
            TargetGroup::Processes(list) | TargetGroup::Foreign(list) => list.pids(),
        };
        // A cgroup may name one twice (Documentation/admin-guide/cgroup-v2.rst, `cgroup.procs`).
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills every process of the group by SIGKILL and waits until none is left (zombies do not
    /// count: waiting for children is their parent's business). A frozen group dies as well.
    pub fn kill(&self, timeout: Duration) -> Result<(), GroupError> {
        let deadline = Instant::now() + timeout;
        match self {
            TargetGroup::Cgroup(cgroup) => cgroup.kill(deadline),
            TargetGroup::Processes(processes) => processes.kill(deadline),
            TargetGroup::Foreign(_) => Ok(()),
        }
    }

    /// Moves all processes out of the group, to where we are ourselves: they outlive the measurement. One that is
    /// ending is not moved by the kernel, and stays until it is gone.
    pub fn release(&self) -> Result<(), GroupError> {
        let TargetGroup::Cgroup(cgroup) = self else {
            return Ok(());
        };
        let parent = own_cgroup()?.join("cgroup.procs");
        let mut moved = BTreeSet::new();
        loop {
            // One that is not moved yet may have forked.
            let mut pids = cgroup.pids()?;
            pids.retain(|pid| moved.insert(*pid));
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                accounting::release(&cgroup.directory, pid);
                match fs::write(&parent, pid.to_string()) {
                    // It has ended meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    result => result.map_err(access(&parent))?,
                }
            }
        }
    }

    /// Removes the cgroup, in which nobody may be but those that are ending, and the groups that the target made
    /// below it.
    pub fn remove(&self) -> Result<(), GroupError> {
        match self {
            TargetGroup::Cgroup(cgroup) => {
                // Where the time is over, the kernel says why it cannot be removed.
                cgroup.wait_for("populated 0", Instant::now() + KILL_TIMEOUT)?;
                let companion = accounting::existing(&cgroup.directory);
                let companion = companion.map_or(Ok(()), |path| remove_below(&path));
                remove_below(&cgroup.directory).and(companion)
            }
            TargetGroup::Processes(_) | TargetGroup::Foreign(_) => Ok(()),
        }
    }
}

impl Cgroup {
    /// The group's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes `value` to the group's file `name`.
    pub(crate) fn write(&self, name: &str, value: &str) -> Result<(), GroupError> {
        let path = self.directory.join(name);
        fs::write(&path, value).map_err(access(&path))
    }

    /// Waits until `cgroup.events` has `line`, such as `frozen 1`. `false`: the time is over.
    pub(crate) fn wait_for(&self, line: &str, deadline: Instant) -> Result<bool, GroupError> {
        let path = self.directory.join("cgroup.events");
        wait_for_line(&path, line, deadline).map_err(access(&path))
    }

    fn pids(&self) -> Result<Vec<u32>, GroupError> {
        let mut pids = Vec::new();
        collect_pids(&self.directory, &mut pids)?;
        Ok(pids)
    }

    fn kill(&self, deadline: Instant) -> Result<(), GroupError> {
        // 5.14 and later. It kills also what is being forked at this moment.
        if self.directory.join("cgroup.kill").exists() {
            self.write("cgroup.kill", "1")?;
            if self.wait_for("populated 0", deadline)? {
                return Ok(());
            }
        }
        // Older kernels: a fork may have slipped through between the list and the signals, so
        // again and again until the group is empty. The waits only bound the pace of that.
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            pids.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
            let pause = Instant::now() + Duration::from_millis(20);
            if self.wait_for("populated 0", pause.min(deadline))? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(GroupError::StillAlive { pids: self.pids()? });
            }
        }
    }
}

impl ProcessList {
    /// The processes alive now.
    pub fn pids(&self) -> Vec<u32> {
        (self.list)()
    }

    fn kill(&self, deadline: Instant) -> Result<(), GroupError> {
        loop {
            let mut alive = self.pids();
            alive.retain(|pid| !ended(*pid));
            if alive.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(GroupError::StillAlive { pids: alive });
            }
            alive.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
            // Nothing tells us about the end of processes that are not our children.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Sends a signal. That the process has ended meanwhile is fine; that it belongs to somebody else
/// is noticed by whoever waits for the effect.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}

/// The state letter in a `stat` file of `/proc/PID` or of one of its threads; `None` when it is
/// gone. It comes after the name in parentheses, which may itself hold blanks and parentheses.
pub(crate) fn state(stat: &Path) -> Option<u8> {
    let text = fs::read(stat).ok()?;
    let name_end = text.iter().rposition(|byte| *byte == b')')?;
    text.get(name_end + 2).copied()
}

/// The process or thread has ended, even if nobody has waited for it yet.
pub(crate) fn ended(pid: u32) -> bool {
    matches!(
        state(&PathBuf::from(format!("/proc/{pid}/stat"))),
        None | Some(b'Z' | b'X')
    )
}

/// The directory of the cgroup2 that we are in.
///
/// The mount may show only a part of the hierarchy (a container): its root is then a prefix of our
/// path. In the hybrid layout it is not at `/sys/fs/cgroup` but below it.
fn own_cgroup() -> Result<PathBuf, GroupError> {
    let myself = Process::myself().map_err(|_| GroupError::NoCgroup2)?;
    let groups = myself.cgroups().map_err(|_| GroupError::NoCgroup2)?;
    let mounts = myself.mountinfo().map_err(|_| GroupError::NoCgroup2)?;
    let own = groups.into_iter().find(|group| group.hierarchy == 0);
    let own = own.ok_or(GroupError::NoCgroup2)?.pathname;
    mounts
        .into_iter()
        .filter(|mount| mount.fs_type == "cgroup2")
        .find_map(|mount| {
            Some(
                mount
                    .mount_point
                    .join(Path::new(&own).strip_prefix(&mount.root).ok()?),
            )
        })
        .ok_or(GroupError::NoCgroup2)
}

/// Where a group of ours may be made, best first: the nearest group from our own upwards that hands the
/// memory controller down (in an ordinary session ours does not, because it has processes), and our own.
/// No group is left that limits something, as that of a container does: its limits are the target's.
fn homes() -> Result<Vec<PathBuf>, GroupError> {
    own_cgroup().map(homes_of)
}

/// Files of limits; they begin with `max` where there is none.
const LIMITS: [&str; 5] = [
    "memory.max",
    "memory.high",
    "memory.swap.max",
    "pids.max",
    "cpu.max",
];

fn is_limited(group: &Path) -> bool {
    LIMITS.iter().any(|limit| {
        let value = fs::read_to_string(group.join(limit));
        value.is_ok_and(|value| !value.starts_with("max"))
    })
}

fn homes_of(own: PathBuf) -> Vec<PathBuf> {
    let counts = |group: &&Path| {
        let controllers = fs::read_to_string(group.join("cgroup.subtree_control"));
        controllers.is_ok_and(|names| names.split_whitespace().any(|name| name == "memory"))
    };
    let mut may_be_left = true;
    let reachable = |group: &&Path| {
        let is_reachable = may_be_left;
        may_be_left = !is_limited(group);
        is_reachable
    };
    // The root of the hierarchy is the last that has such a file.
    let mut groups = own
        .ancestors()
        .take_while(|group| group.join("cgroup.subtree_control").exists())
        .take_while(reachable);
    let mut homes: Vec<PathBuf> = groups
        .find(counts)
        .map(Path::to_owned)
        .into_iter()
        .collect();
    if homes.first() != Some(&own) {
        homes.push(own);
    }
    homes
}

fn name_of(profiler: u32) -> String {
    format!("{NAME_PREFIX}{profiler}")
}

/// Ends what profilers that were killed together with their guardians left running, and removes their
/// groups; the names of those. That one cannot be removed is no reason not to measure.
pub fn end_abandoned() -> Vec<String> {
    let mut ended_groups = Vec::new();
    for (name, directory) in abandoned(homes().unwrap_or_default()) {
        let group = TargetGroup::at(directory);
        let gone = group.kill(KILL_TIMEOUT).and_then(|()| group.remove());
        ended_groups.extend(gone.is_ok().then_some(name));
    }
    // A companion whose group is gone already.
    for (_, directory) in abandoned(accounting::own_memory_group()) {
        let _ = fs::remove_dir(directory);
    }
    ended_groups
}

/// Groups of profilers that are gone, with their names.
fn abandoned(homes: impl IntoIterator<Item = PathBuf>) -> Vec<(String, PathBuf)> {
    let groups = homes.into_iter().filter_map(|home| subgroups(&home).ok());
    let named = groups.flatten().filter_map(|directory| {
        let name = directory.file_name()?.to_string_lossy().into_owned();
        let owner = name.strip_prefix(NAME_PREFIX)?.parse().ok()?;
        ended(owner).then_some((name, directory))
    });
    named.collect()
}

/// `root` and the processes that descend from it, by the parents that `/proc` names. One whose parent
/// has ended is not found.
fn descendants(root: u32) -> Vec<u32> {
    let processes = procfs::process::all_processes()
        .into_iter()
        .flatten()
        .flatten();
    let parents: Vec<(u32, u32)> = processes
        .filter_map(|process| process.stat().ok())
        .map(|stat| (stat.pid.cast_unsigned(), stat.ppid.cast_unsigned()))
        .collect();
    let mut found: Vec<u32> = parents
        .iter()
        .map(|(pid, _)| *pid)
        .filter(|pid| *pid == root)
        .collect();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(
            parents
                .iter()
                .filter(|(_, ppid)| *ppid == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found
}

fn collect_pids(directory: &Path, pids: &mut Vec<u32>) -> Result<(), GroupError> {
    let procs = directory.join("cgroup.procs");
    let text = fs::read_to_string(&procs).map_err(access(&procs))?;
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    subgroups(directory)?
        .iter()
        .try_for_each(|below| collect_pids(below, pids))
}

fn remove_below(directory: &Path) -> Result<(), GroupError> {
    subgroups(directory)?
        .iter()
        .try_for_each(|below| remove_below(below))?;
    fs::remove_dir(directory).map_err(access(directory))
}

fn subgroups(directory: &Path) -> Result<Vec<PathBuf>, GroupError> {
    let entries = fs::read_dir(directory).map_err(access(directory))?;
    let directories = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.map(|entry| entry.path()).collect())
}

/// How often a file is read that has not been announced as changed, in ms.
const PACE_MS: u8 = 1;

/// The kernel announces a change of the file by POLLPRI to those who have read it since they opened
/// it, but bundles changes that come within 10 ms (`cgroup_file_notify`, kernel/cgroup/cgroup.c). A
/// target that is being frozen would stand still for all of them, so the file is read more often.
fn wait_for_line(path: &Path, line: &str, deadline: Instant) -> io::Result<bool> {
    let file = File::open(path)?;
    loop {
        let mut text = [0; 256];
        let length = file.read_at(&mut text, 0)?;
        if text[..length]
            .split(|byte| *byte == b'\n')
            .any(|found| found == line.as_bytes())
        {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let pause = PollTimeout::from(PACE_MS);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], pause) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn access(path: &Path) -> impl Fn(io::Error) -> GroupError + '_ {
    move |source| GroupError::Access {
        path: path.to_owned(),
        source,
    }
}

impl GroupError {
    /// The group's files are out of our reach (not mounted, read-only, not ours), so that another
    /// means is worth a try, rather than that the group itself is in trouble.
    pub fn is_unavailable(&self) -> bool {
        match self {
            GroupError::NoCgroup2 => true,
            GroupError::Access { source, .. } => matches!(
                source.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotFound
            ),
            GroupError::StillAlive { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `root/slice/session`, of which the first two hand the memory controller down.
    fn hierarchy() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().expect("a folder");
        let own = root.path().join("slice/session");
        fs::create_dir_all(&own).expect("ours");
        for (group, controllers) in [
            ("", "memory pids"),
            ("slice", "memory"),
            ("slice/session", ""),
        ] {
            let file = root.path().join(group).join("cgroup.subtree_control");
            fs::write(file, controllers).expect("ours");
        }
        (root, own)
    }

    #[test]
    fn the_nearest_group_that_counts_memory_comes_first() {
        let (root, own) = hierarchy();
        fs::write(own.join("memory.max"), "max\n").expect("ours");
        let slice = root.path().join("slice");
        assert_eq!(homes_of(own.clone()), [slice, own]);
    }

    #[test]
    fn a_group_with_a_limit_is_not_left() {
        for (limit, value) in [("memory.max", "805306368\n"), ("cpu.max", "50000 100000\n")] {
            let (_root, own) = hierarchy();
            fs::write(own.join(limit), value).expect("ours");
            assert_eq!(homes_of(own.clone()), [own]);
        }
    }
}
