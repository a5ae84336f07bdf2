//! Limits that are raised for a run: however it ends, they are what they were, and no program is left.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::remains::{Remains, until};

/// Raising it harms nobody.
const SETTING: &str = "/proc/sys/vm/max_map_count";

fn setting() -> u64 {
    let text = fs::read_to_string(SETTING).expect("every Linux has it");
    text.trim().parse().expect("a number")
}

fn until_setting(value: u64) {
    until(&format!("max_map_count = {value}"), || {
        (setting() == value).then_some(())
    });
}

fn profiler(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_profiler"));
    command.args(arguments).env_remove("SUDO_UID");
    command
}

/// What the setting is when nobody has raised it.
fn original() -> u64 {
    let status = profiler(&["doctor", "--quiet", "--restore"]).status();
    assert!(status.expect("it starts").success());
    setting()
}

/// A benchmark program that sleeps, under a profiler that raises the setting.
struct Sleeper {
    profiler: Child,
    remains: Remains,
    lifeline: Option<ChildStdin>,
    folder: TempDir,
}

impl Sleeper {
    fn start(at_least: u64) -> Sleeper {
        let folder = tempfile::tempdir().expect("a folder");
        let (started, job) = (started(&folder), folder.path().join("job.json"));
        let script = format!(
            "echo $(cat {SETTING}) $$ > '{}'; exec sleep 1000",
            started.display()
        );
        let text = serde_json::json!({
            "program": "sleeper", "label": "Sleeper", "colour": null, "version": "", "repeat": 0,
            "command": ["sh", "-c", script], "environment": [["PATH", "/usr/bin:/bin"]],
            "directory": null, "contract": {"tasks": 1, "seconds": 1000.0},
            "raises": {
                "sysctls": [{"sysctl": "vm.max_map_count", "at_least": at_least}],
                "processes": null,
            },
        });
        fs::write(&job, text.to_string()).expect("ours");
        let mut command = profiler(&["run", "--tier", "C", "--until-stdin-closes", "--job"]);
        let command = command
            .arg(&job)
            .stdin(Stdio::piped())
            .stderr(Stdio::null());
        let mut profiler = command.spawn().expect("the profiler starts");
        Sleeper {
            remains: Remains::of(profiler.id(), &job),
            lifeline: profiler.stdin.take(),
            profiler,
            folder,
        }
    }

    /// Waits for the program; its pid, and what the setting was when it began.
    fn target(&self) -> (u32, u64) {
        until("the program runs", || {
            let text = fs::read_to_string(started(&self.folder)).ok()?;
            // It is there before it is written, by one call.
            let (value, pid) = text.trim().split_once(' ')?;
            Some((
                pid.parse().expect("a number"),
                value.parse().expect("a number"),
            ))
        })
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.profiler.id() as i32), signal).expect("it is alive");
    }

    fn wait(&mut self) -> Option<i32> {
        self.profiler.wait().expect("it ends").code()
    }

    /// Of the guardian, a fork of the profiler under another name.
    fn guardian(&self) -> Option<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.profiler.id());
        let children = fs::read_to_string(children).ok()?;
        let named = |pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim() == "profiler-guard")
        };
        children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .find(named)
    }
}

fn started(folder: &TempDir) -> PathBuf {
    folder.path().join("started")
}

#[test]
fn they_are_raised_before_the_program_starts_and_given_back_after_an_interrupt() {
    let original = original();
    let mut run = Sleeper::start(original + 1_000);
    assert_eq!(run.target().1, original + 1_000);
    let shown = profiler(&["doctor"]).output().expect("it starts").stdout;
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(
        shown.contains("raised        vm.max_map_count from "),
        "{shown}"
    );
    run.send(Signal::SIGINT);
    assert_eq!(run.wait(), Some(128 + 2));
    assert_eq!(setting(), original);
    run.remains.assert_none_now();
}

#[test]
fn killed_while_the_program_runs_the_guardian_gives_them_back() {
    let original = original();
    let mut run = Sleeper::start(original + 1_000);
    let (target, _) = run.target();
    run.send(Signal::SIGKILL);
    run.wait();
    until_setting(original);
    // Not before the program had ended.
    assert!(!Path::new(&format!("/proc/{target}/exe")).exists());
    run.remains.assert_none_soon(&[target]);
}

#[test]
fn killed_at_any_moment_of_the_start_nothing_stays() {
    let original = original();
    // From the moment they are raised until the program runs; later ones are a matter of luck.
    for step in 0..8 {
        let mut run = Sleeper::start(original + 1_000);
        if step > 0 {
            until_setting(original + 1_000);
        }
        let moment = Instant::now() + Duration::from_millis(1 << step);
        until("a moment like any other", || {
            (Instant::now() >= moment).then_some(())
        });
        run.send(Signal::SIGKILL);
        run.wait();
        run.remains.assert_none_soon(&[]);
        until_setting(original);
    }
}

#[test]
fn killed_together_with_its_guardian_the_next_start_gives_them_back() {
    let original = original();
    let doctor: &[&str] = &["doctor", "--quiet", "--restore"];
    let next_run: &[&str] = &["run", "--tier", "C", "--", "true"];
    for next in [doctor, next_run] {
        let mut run = Sleeper::start(original + 1_000);
        let (target, _) = run.target();
        let guardian = until("the guardian", || run.guardian());
        for pid in [guardian, run.profiler.id()] {
            kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("it is alive");
        }
        run.wait();
        // Until its end it holds the lock by which the next start knows that somebody needs the setting.
        until("the end of the guardian", || {
            let stat = fs::read_to_string(format!("/proc/{guardian}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
                .then_some(())
        });
        assert_eq!(setting(), original + 1_000);
        assert!(Path::new(&format!("/proc/{target}/exe")).exists());
        let output = profiler(next).output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(setting(), original, "after {next:?}");
        run.remains.assert_none_soon(&[target]);
    }
}

#[test]
fn the_last_of_two_runs_gives_them_back() {
    let original = original();
    let mut first = Sleeper::start(original + 1_000);
    first.target();
    let mut second = Sleeper::start(original + 2_000);
    assert_eq!(second.target().1, original + 2_000);
    first.send(Signal::SIGTERM);
    first.wait();
    assert_eq!(setting(), original + 2_000);
    second.send(Signal::SIGTERM);
    second.wait();
    assert_eq!(setting(), original);
}

/// As when `cargo xtask run` is killed.
#[test]
fn whoever_started_us_is_gone() {
    let original = original();
    let mut run = Sleeper::start(original + 1_000);
    let (target, _) = run.target();
    drop(run.lifeline.take());
    assert_eq!(run.wait(), Some(128 + 1));
    assert_eq!(setting(), original);
    assert!(!Path::new(&format!("/proc/{target}/exe")).exists());
    run.remains.assert_none_now();
}
