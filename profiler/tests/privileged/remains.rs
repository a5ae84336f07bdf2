//! What a profiler may leave behind: processes, its cgroup, mounts.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long the guardian may take; it needs some milliseconds.
const LONG: Duration = Duration::from_secs(20);

/// How long to wait for what must come.
const FOR_EVER: Duration = Duration::from_secs(60);

/// What `look` finds, once it finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + FOR_EVER;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// Finds what is left of one profiler and its target.
pub struct Remains {
    profiler: u32,
    /// In the command line of the profiler, and of the guardian, which is its fork.
    marker: PathBuf,
    /// Of the only file system that a profiler mounts.
    mounts: Vec<String>,
}

impl Remains {
    /// Of the profiler with this pid, which writes its result to a path that no other one has.
    pub fn of(profiler: u32, result: &Path) -> Remains {
        Remains {
            profiler,
            marker: result.to_owned(),
            mounts: mounts_of("tracefs"),
        }
    }

    /// The cgroup of the profiler, when it has made one.
    pub fn cgroup(&self) -> Option<PathBuf> {
        let name = format!("profiler-{}", self.profiler);
        let mounts = mounts_of("cgroup2");
        mounts.iter().find_map(|root| find(Path::new(root), &name))
    }

    /// Its companion, where memory is counted in a hierarchy of version 1.
    fn companion(&self) -> Option<PathBuf> {
        let name = format!("profiler-{}", self.profiler);
        let mounts = mounts_of("cgroup");
        let mut memory = mounts.iter().filter(|root| root.ends_with("/memory"));
        memory.find_map(|root| find(Path::new(root), &name))
    }

    /// Processes of the profiler, its guardian, and those in `more`, as far as they are alive.
    fn alive(&self, more: &[u32]) -> Vec<String> {
        let marker = self.marker.to_str().expect("UTF-8");
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let found = pids.filter_map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            // A zombie has no command line.
            let ours = command.contains(marker) || (more.contains(&pid) && !command.is_empty());
            ours.then(|| format!("{pid} {command}"))
        });
        found.collect()
    }

    /// The profiler has ended by itself: nothing is left at this moment.
    pub fn assert_none_now(&self) {
        assert_eq!(self.alive(&[]), Vec::<String>::new());
        assert_eq!((self.cgroup(), self.companion()), (None, None));
        assert_eq!(mounts_of("tracefs"), self.mounts);
    }

    /// The profiler was killed: nothing is left in the end, the processes `targets` included.
    pub fn assert_none_soon(&self, targets: &[u32]) {
        let deadline = Instant::now() + LONG;
        loop {
            let alive = self.alive(targets);
            let cgroup = self.cgroup().or_else(|| self.companion());
            if alive.is_empty() && cgroup.is_none() {
                break;
            }
            assert!(Instant::now() < deadline, "left: {alive:?} {cgroup:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(mounts_of("tracefs"), self.mounts);
    }
}

/// Where file systems of this type are mounted.
fn mounts_of(file_system: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc");
    let points = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let found = right.split(' ').next() == Some(file_system);
        found.then(|| left.split(' ').nth(4))?
    });
    points.map(str::to_owned).collect()
}

/// The directory of this name, wherever it is below: where we are in the hierarchy does not matter.
fn find(root: &Path, name: &str) -> Option<PathBuf> {
    let here = root.join(name);
    if here.exists() {
        return Some(here);
    }
    let below = fs::read_dir(root).ok()?.flatten();
    below
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .find_map(|entry| find(&entry.path(), name))
}
