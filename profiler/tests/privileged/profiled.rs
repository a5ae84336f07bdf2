//! Runs a command under the profiler and gives its result, after checking what holds for every run.

use std::{
    fs,
    io::{BufReader, Read},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use profiler::{
    classify::Leaf,
    events::log::{self, Entry},
    residency::Snapshot,
    results::{Peak, Region, Results, Run},
    units::PAGE,
};
use tempfile::TempDir;

use crate::fixtures::{Told, build, told_by};

/// How long the profiler may take to scan a fixture that stands still: 100 ms here, see `peak`.
const LONG: Duration = Duration::from_secs(120);

/// The profiler with its arguments up to the command: by scans, so that what it says is of the plateau
/// that the tests look at. (The exact peak may be a page higher: a program that ends touches more.)
pub fn profiler(output: &Path) -> Command {
    profiler_with(&["--tier", "C"], output)
}

/// As [`profiler`], with other options.
pub fn profiler_with(options: &[&str], output: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_profiler"));
    command
        .arg("run")
        .args(options)
        .arg("-o")
        .arg(output)
        .arg("--");
    // These tests may themselves run under sudo, which is not what they are about.
    command.env_remove("SUDO_UID").env_remove("SUDO_GID");
    // SAFETY: prctl is a system call and nothing else.
    unsafe {
        // Where huge pages are always on, a page written would be 512 pages.
        command.pre_exec(|| match libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command
}

/// A profiler whose target consists of fixtures that now stand still.
pub struct Profiling {
    pub profiler: Child,
    pub told: Told,
    folder: TempDir,
    // Held open: a fixture that prints must not be killed by SIGPIPE.
    stdout: BufReader<ChildStdout>,
}

impl Profiling {
    /// Profiles a command that starts so many fixtures, and waits until they stand still.
    pub fn start(fixtures: usize, command: &[&str]) -> Profiling {
        Profiling::start_with(&["--tier", "C"], fixtures, command)
    }

    /// As [`start`](Self::start), with other options.
    pub fn start_with(options: &[&str], fixtures: usize, command: &[&str]) -> Profiling {
        let folder = tempfile::tempdir().expect("a folder for the result");
        let mut profiler = profiler_with(
            &[options, &["--event-log", &log_in(&folder)]].concat(),
            &folder.path().join("result.json"),
        );
        let mut profiler = profiler
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the profiler starts");
        let mut stdout = BufReader::new(profiler.stdout.take().expect("piped"));
        let told = told_by(fixtures, &mut stdout).unwrap_or_else(|| {
            let mut stderr = String::new();
            let _ = profiler
                .stderr
                .take()
                .map(|mut pipe| pipe.read_to_string(&mut stderr));
            panic!("{command:?} ended early: {stderr}")
        });
        Profiling {
            profiler,
            told,
            folder,
            stdout,
        }
    }

    /// Where the result will be.
    pub fn result(&self) -> PathBuf {
        self.folder.path().join("result.json")
    }

    /// Waits until the profiler has scanned the fixtures as they stand, which its log of events tells: the
    /// target itself cannot know. Gives their RSS, which is asked for anew each time: a fixture that has said that it
    /// stands still has yet to wait, and may touch a page for that.
    pub fn wait_for_scan_of(&self, tgids: &[u32]) -> u64 {
        let deadline = Instant::now() + LONG;
        let scanned = |entry: &Entry<Snapshot>| match entry {
            Entry::Snapshot(snapshot) => snapshot.processes.iter().map(|it| it.rss_bytes).sum(),
            _ => 0,
        };
        loop {
            let log = fs::read(log_in(&self.folder)).expect("the profiler writes it");
            // The last line may not be whole yet.
            let whole = log
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |end| end + 1);
            let entries = log::read(&log[..whole]).expect("whole lines");
            let rss_bytes = tgids.iter().map(|&tgid| rss_bytes(tgid)).sum();
            if entries.iter().any(|entry| scanned(entry) == rss_bytes) {
                return rss_bytes;
            }
            assert!(
                Instant::now() < deadline,
                "never scanned: {rss_bytes} bytes, the kernel's count at the plateau, but {:?}",
                entries.iter().map(scanned).collect::<Vec<u64>>()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the fixtures and gives the result. `tgids` are the processes of the tree at its peak.
    pub fn finish(mut self, tgids: &[u32]) -> Profiled {
        let rss_bytes = self.wait_for_scan_of(tgids);
        let rss_of_told = self
            .told
            .iter()
            .map(|(name, &(start, length))| (name.clone(), resident(tgids[0], start, length)))
            .collect();
        let told = std::mem::take(&mut self.told);
        let run = self.end();
        let peak = run.peak.as_ref().expect("it was scanned");
        assert_eq!(
            peak.rss_bytes, rss_bytes,
            "the kernel's count at the plateau"
        );
        assert_eq!(run.warnings, Vec::<String>::new());
        Profiled {
            run,
            told,
            smaps: rss_of_told,
        }
    }

    /// Ends the fixtures and gives the result.
    pub fn end(mut self) -> Run {
        drop(self.profiler.stdin.take());
        let result = self.result();
        // Read on to the end, or a command that prints more would wait for ever.
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("text");
        let output = self.profiler.wait_with_output().expect("the profiler ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        read_run(&result)
    }
}

fn log_in(folder: &TempDir) -> String {
    let path = folder.path().join("events.jsonl");
    path.to_str().expect("UTF-8").to_owned()
}

/// A finished run.
pub struct Profiled {
    pub run: Run,
    pub told: Told,
    /// Resident bytes of what was told in the first process, by its `smaps` at the plateau: of whole
    /// mappings, so it is only good for a range that fills some.
    pub smaps: std::collections::HashMap<String, u64>,
}

/// Profiles one fixture.
pub fn profile(name: &str, args: &[&str]) -> Profiled {
    let program = build(name);
    let command = [&[program.to_str().expect("UTF-8")], args].concat();
    let profiling = Profiling::start(1, &command);
    let pid = profiling.told["pid"].0 as u32;
    profiling.finish(&[pid])
}

/// Profiles a command that starts so many fixtures; `tgids` picks all processes of the tree out of
/// what they told, the one that tells of its memory first.
pub fn profile_tree(
    fixtures: usize,
    command: &[&str],
    tgids: impl FnOnce(&Told, u32) -> Vec<u32>,
) -> Profiled {
    let profiling = Profiling::start(fixtures, command);
    let tgids = tgids(&profiling.told, profiling.profiler.id());
    profiling.finish(&tgids)
}

impl Profiled {
    pub fn peak(&self) -> &Peak {
        self.run.peak.as_ref().expect("checked")
    }

    /// Pages of the regions for which a rule fired.
    pub fn rule(&self, rule: &str) -> u64 {
        let rows = self.peak().regions.iter().filter(|row| row.rule == rule);
        rows.map(|row| row.resident_bytes / PAGE).sum()
    }

    /// Regions of a leaf, and their pages.
    pub fn regions(&self, leaf: Leaf) -> Vec<u64> {
        let rows = self.peak().regions.iter().filter(|row| row.leaf == leaf);
        rows.map(|row| row.resident_bytes / PAGE).collect()
    }

    /// Pages of a leaf.
    pub fn leaf(&self, leaf: Leaf) -> u64 {
        let found = self.peak().leaves.iter().find(|row| row.leaf == leaf);
        found.map_or(0, |row| row.bytes / PAGE)
    }

    /// Pages of the regions that begin in what was told under this name, by rule.
    pub fn pages(&self, name: &str) -> Vec<(&str, u64)> {
        let (start, length) = self.told[name];
        let rows = self.peak().regions.iter().filter(|row| {
            (start..start + length).contains(&address(row).expect("fewer regions than rows"))
        });
        rows.map(|row| (row.rule.as_str(), row.resident_bytes / PAGE))
            .collect()
    }
}

/// Runs a fixture once more, four times at most, while it was gone before its mappings were read: one that does not
/// wait for that is the sooner one now and then, on a slow machine or one whose CPUs are taken.
pub fn until_seen<R>(run: impl Fn() -> R, was_seen: impl Fn(&R) -> bool) -> R {
    for _ in 0..4 {
        let run = run();
        if was_seen(&run) {
            return run;
        }
        eprintln!("gone before it was seen; once more");
    }
    run()
}

/// First byte of a row that stands for one region.
pub fn address(row: &Region) -> Option<u64> {
    let hex = row.start.as_ref()?.strip_prefix("0x").expect("0x");
    Some(u64::from_str_radix(hex, 16).expect("hexadecimal"))
}

/// Reads the only run of a result and checks what holds for every run.
pub fn read_run(path: &Path) -> Run {
    let text = fs::read_to_string(path).expect("the profiler has written it");
    let mut results: Results = serde_json::from_str(&text).expect("results");
    assert_eq!(results.runs.len(), 1);
    let run = results.runs.remove(0);
    assert_eq!(run.events.dropped, 0);
    assert_eq!(run.events.disagreeing_scans, 0);
    assert_eq!(run.events.disagreeing_bytes, 0);
    if let Some(peak) = &run.peak {
        let sum = |bytes: &mut dyn Iterator<Item = u64>| bytes.sum::<u64>();
        assert_eq!(peak.classes.total(), peak.rss_bytes);
        assert_eq!(
            sum(&mut peak.leaves.iter().map(|row| row.bytes)),
            peak.rss_bytes
        );
        assert_eq!(
            sum(&mut peak.regions.iter().map(|row| row.resident_bytes)),
            peak.rss_bytes
        );
        assert_eq!(
            sum(&mut run
                .processes
                .iter()
                .map(|process| process.rss_bytes_at_peak)),
            peak.rss_bytes,
            "{:#?}, {:?}, {:?}",
            run.processes,
            run.ledger,
            run.warnings
        );
        assert!(peak.pss_bytes <= peak.rss_bytes);
    }
    run
}

/// `Rss` of `smaps_rollup`, which is exact.
fn rss_bytes(tgid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{tgid}/smaps_rollup")).expect("alive");
    rollup.lines().find_map(rss_line).expect("Rss")
}

/// `Rss` of the mappings that begin in a range.
fn resident(tgid: u32, start: u64, length: u64) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{tgid}/smaps")).expect("alive");
    let mut inside = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        let header = line
            .split_once('-')
            .and_then(|(first, _)| u64::from_str_radix(first, 16).ok());
        if let Some(first) = header {
            inside = (start..start + length).contains(&first);
        } else if inside {
            bytes += rss_line(line).unwrap_or(0);
        }
    }
    bytes
}

fn rss_line(line: &str) -> Option<u64> {
    let kib = line.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<u64>().expect("a number") * 1024)
}

/// A user without any privilege.
pub const NOBODY: u32 = 65_534;

/// The profiler, to be run by a user without any privilege, where everybody can reach it: its folder may be closed
/// to others.
pub fn for_everybody(folder: &Path) -> Command {
    let copy = folder.join("profiler");
    fs::copy(env!("CARGO_BIN_EXE_profiler"), &copy).expect("a copy");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("ours");
    let mut command = Command::new(copy);
    command.uid(NOBODY).gid(NOBODY).current_dir(folder);
    command
}

/// Whether the running kernel is of this version or a later one.
pub fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("every Linux has it");
    let mut numbers = release
        .split(|it: char| !it.is_ascii_digit())
        .map(|it| it.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}
