//! Processes that ran before the profiler came: what is found of them, and that they are left as they were.

use std::{
    collections::BTreeMap,
    fs,
    io::BufReader,
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use profiler::{
    classify::Leaf,
    results::{AttachEnd, MadeBytes, Run},
    units::{MIB, PAGE},
};

use crate::{
    fixtures::{Told, build, told_by},
    profiled::{Profiling, for_everybody, kernel_is_at_least, read_run},
    remains::until,
};

/// A fixture that stands still and is no child of the profiler.
struct Standing {
    child: Child,
    told: Told,
    stdout: BufReader<ChildStdout>,
}

impl Standing {
    fn start(name: &str, args: &[&str]) -> Standing {
        let mut child = Command::new(build(name))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let told = told_by(1, &mut stdout).expect("it stands still");
        Standing {
            child,
            told,
            stdout,
        }
    }

    fn pid(&self) -> u32 {
        self.told["pid"].0 as u32
    }

    fn status(&self, field: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("alive");
        let value = text.lines().find_map(|line| line.strip_prefix(field));
        value.expect("a field of status").trim().to_owned()
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn attach(pid: u32, options: &[&str], output: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_profiler"));
    command
        .args(["attach", "--pid", &pid.to_string(), "-o"])
        .arg(output)
        .args(options);
    command
}

fn attached(pid: u32, options: &[&str]) -> Run {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let output = attach(pid, options, &result).output();
    run_of(&output.expect("the profiler starts"), &result)
}

/// What a profiler has left behind that ended well.
fn run_of(output: &Output, result: &Path) -> Run {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    read_run(result)
}

/// Resident pages by rule.
fn rules(run: &Run) -> BTreeMap<String, u64> {
    let mut rules = BTreeMap::new();
    for row in &run.peak.as_ref().expect("it was scanned").regions {
        // What the kernel has merged is told apart by whoever saw the calls alone.
        let rule = match row.rule.as_str() {
            "libc.small" | "malloc.large" => "one plain mmap",
            rule => rule,
        };
        *rules.entry(rule.to_owned()).or_default() += row.resident_bytes / PAGE;
    }
    rules
}

/// Whether `VmFlags` tell that a mapping was made by `MAP_STACK` (`nh`): since Linux 6.7. Before, the stack that a
/// thread has left looks like any other memory.
fn stacks_can_be_told() -> bool {
    kernel_is_at_least(6, 7)
}

/// The same process at the same moment, once with every call seen from its start and once without.
fn assert_same_as_run(name: &str, args: &[&str]) {
    if !stacks_can_be_told() {
        eprintln!(
            "SKIPPED: this kernel does not tell stacks that no thread runs on (6.7 and later do)"
        );
        return;
    }
    let program = build(name);
    let command = [&[program.to_str().expect("UTF-8")], args].concat();
    let profiling = Profiling::start(1, &command);
    let pid = profiling.told["pid"].0 as u32;
    let mut found_by_tier = Vec::new();
    // The best that this kernel has, and those without a ledger.
    for tier in ["", "C", "D"] {
        let wish = ["--duration", "0.5", "--tier", tier];
        let found = attached(pid, if tier.is_empty() { &wish[..2] } else { &wish });
        assert_eq!(found.warnings, Vec::<String>::new(), "tier {tier}");
        let peak = found.peak.as_ref().expect("it was scanned");
        assert!(
            peak.regions
                .iter()
                .all(|row| row.before_attach || row.start.is_none())
        );
        found_by_tier.push((tier, rules(&found)));
    }
    let run = profiling.finish(&[pid]).run;
    let expected = rules(&run);
    for (tier, found) in found_by_tier {
        assert_eq!(found, expected, "{name}, tier {tier}");
    }
}

#[test]
fn stacks_with_threads_and_without_are_found_as_by_run() {
    assert_same_as_run("thread_stacks", &["8", "3"]);
}

#[test]
fn arenas_of_malloc_are_found_as_by_run() {
    assert_same_as_run("arenas", &[]);
}

#[test]
fn large_blocks_are_found_as_by_run() {
    assert_same_as_run("malloc_large", &[]);
}

#[test]
fn a_peak_since_attach_is_exact_however_short() {
    let mut standing = Standing::start("spikes", &[]);
    // It must wait already when it is stopped.
    until("its rest", || {
        standing.status("State:").starts_with("S ").then_some(())
    });
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let profiler = attaching(&standing, &result);
    told_by(1, &mut standing.stdout).expect("it was stopped, and had its spikes");
    drop(standing.child.stdin.take());
    let run = run_of(&profiler.wait_with_output().expect("it ends"), &result);
    let peak = run.peak.expect("it was looked at");
    if peak.tier == "C" {
        eprintln!("SKIPPED: no page ledger here");
        return;
    }
    // Before Linux 6.2 a moment shortly before may be taken for the peak, which the bound tells.
    let bound = peak.error_bound_bytes;
    // In rows, because a later mapping may cut it. Its size says which of them it was.
    let rows = peak.regions.iter();
    let (spike, written) = rows
        .filter(|row| row.rule == "malloc.large")
        .fold((0, 0), |(length, resident), row| {
            (length + row.length_bytes, resident + row.resident_bytes)
        });
    assert!(
        spike >= 20 * MIB && (spike - bound..=spike).contains(&written),
        "bound {bound}, {:?}",
        peak.regions
    );
    assert!(peak.rss_bytes + bound > spike);
    // Call stacks need Linux 5.15.
    if !peak.made_by.is_empty() {
        let made: u64 = peak.made_by.iter().map(|row| row.bytes).sum();
        assert_eq!(made, peak.rss_bytes);
        let before = |row: &&MadeBytes| row.made_by == "mapped before attach";
        assert!(
            peak.made_by
                .iter()
                .filter(before)
                .map(|row| row.bytes)
                .sum::<u64>()
                > 0
        );
        let largest = &peak.made_by[0];
        assert_eq!(
            (largest.made_by.as_str(), largest.leaf),
            ("mmap", Leaf::MallocLarge)
        );
        let stack = &run.call_stacks[largest.call_stack.expect("it was taken")];
        assert!(
            stack
                .frames
                .iter()
                .any(|frame| frame.function.as_deref() == Some("main")),
            "{stack:?}"
        );
    }
    let attached = run.attached.expect("it ran before");
    assert_eq!(attached.ended_by, AttachEnd::Exit);
    assert_eq!((attached.processes_at_attach, run.exit_status), (1, None));
}

/// A profiler that attaches to the process until it ends.
fn attaching(standing: &Standing, result: &Path) -> Child {
    let profiler = attach(standing.pid(), &[], result)
        .stderr(Stdio::piped())
        .spawn();
    profiler.expect("the profiler starts")
}

/// A profiler that has just stopped the process that it attaches to; `None`, which is said, where no stop is seen.
fn stopping(standing: &Standing, result: &Path) -> Option<Child> {
    let mut profiler = attaching(standing, result);
    let deadline = Instant::now() + Duration::from_secs(60);
    // Not `TracerPid`: between the two calls that stop it, it has a tracer and may still end.
    while !standing.status("State:").starts_with("t ") {
        if Instant::now() > deadline {
            profiler.kill().expect("alive");
            profiler.wait().expect("it ends");
            // On one CPU, whoever looks runs while nobody is stopped.
            eprintln!("SKIPPED: no stop was long enough to be seen here");
            return None;
        }
    }
    Some(profiler)
}

#[test]
fn its_end_ends_the_following() {
    // So many that it stands still for long enough to be seen.
    let mut standing = Standing::start("thread_stacks", &["1000", "3"]);
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let Some(profiler) = stopping(&standing, &result) else {
        return;
    };
    drop(standing.child.stdin.take());
    let run = run_of(&profiler.wait_with_output().expect("it ends"), &result);
    assert_eq!(run.attached.expect("attached").ended_by, AttachEnd::Exit);
}

#[test]
fn it_is_left_as_it_was_and_its_parent_is_told_nothing() {
    let standing = Standing::start("thread_stacks", &["50", "3"]);
    let cgroup = || fs::read_to_string(format!("/proc/{}/cgroup", standing.pid())).expect("alive");
    let before = (cgroup(), standing.status("SigPnd:"));
    let run = attached(standing.pid(), &["--duration", "0.5"]);
    let end = run.attached.expect("attached").ended_by;
    assert_eq!(end, AttachEnd::Duration);
    assert_eq!(before, (cgroup(), standing.status("SigPnd:")));
    assert!(!standing.status("State:").to_lowercase().starts_with('t'));
    assert_eq!(standing.status("TracerPid:"), "0");
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED;
    let told = waitpid(Pid::from_raw(standing.pid().cast_signed()), Some(flags));
    assert_eq!(told, Ok(WaitStatus::StillAlive));
}

#[test]
fn it_goes_on_when_the_profiler_is_killed_while_it_stands_still() {
    let standing = Standing::start("thread_stacks", &["1000", "3"]);
    let pid = standing.pid();
    let folder = tempfile::tempdir().expect("a folder");
    let Some(mut profiler) = stopping(&standing, &folder.path().join("result.json")) else {
        return;
    };
    kill(Pid::from_raw(profiler.id().cast_signed()), Signal::SIGKILL).expect("alive");
    profiler.wait().expect("it ends");
    until("its end", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("alive");
        let stopped = tasks.flatten().any(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.contains(") t ") || stat.contains(") T ")
        });
        (!stopped).then_some(())
    });
    assert_eq!(standing.status("TracerPid:"), "0");
}

fn refusal(pid: u32) -> String {
    let output = attach(
        pid,
        &["--duration", "1", "--format", "json"],
        Path::new("/dev/null"),
    )
    .output()
    .expect("the profiler starts");
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn what_cannot_be_followed_is_refused_in_a_sentence() {
    let standing = Standing::start("thread_stacks", &["2", "0"]);
    let pid = standing.pid();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("alive");
    let tid = tasks
        .flatten()
        .filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok())
        .find(|&tid| tid != pid)
        .expect("two threads");
    assert!(refusal(tid).contains(&format!("is a thread of process {pid}")));
    assert!(refusal(2).contains("thread of the kernel"));
    assert!(refusal(4_194_304).contains("no process has the id"));
}

#[test]
fn somebody_elses_process_is_refused_to_whoever_may_not_look() {
    let standing = Standing::start("malloc_large", &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let output = for_everybody(folder.path())
        .args(["attach", "--pid", &standing.pid().to_string()])
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("belongs to user 0 and may not be looked at by user 65534"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn without_any_privilege_there_is_still_an_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut profiler = for_everybody(folder.path());
    fs::copy(build("malloc_large"), folder.path().join("fixture")).expect("a copy");
    let output = profiler
        .args(["run", "-o", "-", "--", "./fixture"])
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let result = folder.path().join("result.json");
    fs::write(&result, &output.stdout).expect("ours");
    let run = read_run(&result);
    let refused: Vec<&str> = run
        .refused_tiers
        .iter()
        .map(|it| it.tier.as_str())
        .collect();
    assert_eq!(refused, ["A", "B", "C"]);
    assert!(
        said.contains("CAP_BPF") && said.contains("sudo profiler"),
        "{said}"
    );
    if let Some(peak) = &run.peak {
        assert_eq!(peak.tier, "D");
    }
}
