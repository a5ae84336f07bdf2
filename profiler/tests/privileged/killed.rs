//! Signals to the profiler. However it ends, no program is left running, no guardian, no cgroup and
//! no mount.

use std::{
    fs,
    io::BufReader,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    fixtures::{build, told_by},
    profiled::{Profiling, profiler, read_run},
    remains::{Remains, until},
};

fn send(process: &Child, signal: Signal) {
    kill(Pid::from_raw(process.id() as i32), signal).expect("it is alive");
}

fn start(name: &str) -> (Profiling, Remains) {
    let program = build(name);
    let profiling = Profiling::start(1, &[program.to_str().expect("UTF-8")]);
    let remains = Remains::of(profiling.profiler.id(), &profiling.result());
    (profiling, remains)
}

#[test]
fn killed_before_the_program_is_released() {
    let folder = tempfile::tempdir().expect("a folder");
    let started = folder.path().join("started");
    let result = folder.path().join("result.json");
    // While the target is held, the guardian and the cgroup are made, and while probes are attached.
    let early = (0..10).map(|step| (false, Duration::from_micros(400 * step)));
    let late = [0, 5, 50, 300].map(|ms| (true, Duration::from_millis(ms)));
    for (with_cgroup, later) in early.chain(late) {
        let mut profiler = profiler(&result)
            .args(["touch", started.to_str().expect("UTF-8")])
            .stderr(Stdio::null())
            .spawn()
            .expect("the profiler starts");
        let remains = Remains::of(profiler.id(), &result);
        if with_cgroup {
            until("a cgroup with the held program", || {
                held_program(remains.cgroup()?)
            });
        }
        // Not to wait for anything: a moment like any other.
        std::thread::sleep(later);
        send(&profiler, Signal::SIGKILL);
        let status = profiler.wait().expect("it ends");
        remains.assert_none_soon(&[]);
        if status.success() || started.exists() {
            eprintln!("{later:?} was too late: the program was released");
        }
        let _ = fs::remove_file(&started);
    }
}

/// The held program of a profiler's cgroup.
fn held_program(cgroup: PathBuf) -> Option<u32> {
    let list = fs::read_to_string(cgroup.join("cgroup.procs")).ok()?;
    list.lines().next()?.parse().ok()
}

#[test]
fn killed_while_the_program_runs() {
    let (mut profiling, remains) = start("fork_cow");
    let targets = ["pid", "child"].map(|name| profiling.told[name].0 as u32);
    send(&profiling.profiler, Signal::SIGKILL);
    profiling.profiler.wait().expect("it ends");
    remains.assert_none_soon(&targets);
}

#[test]
fn killed_while_the_program_is_frozen() {
    let (mut profiling, remains) = start("growing");
    let target = profiling.told["pid"].0 as u32;
    let Some(cgroup) = remains.cgroup() else {
        eprintln!("SKIPPED: no cgroup to freeze");
        return;
    };
    until("a scan", || {
        let events = fs::read_to_string(cgroup.join("cgroup.events")).ok()?;
        events.contains("frozen 1").then_some(())
    });
    send(&profiling.profiler, Signal::SIGKILL);
    profiling.profiler.wait().expect("it ends");
    remains.assert_none_soon(&[target]);
}

/// Where there is no cgroup2, scans stop the target by signals.
#[test]
fn killed_while_the_program_is_stopped_by_signals() {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let fixture = build("growing");
    let run = [
        env!("CARGO_BIN_EXE_profiler"),
        "run",
        "--tier",
        "C",
        "-o",
        result.to_str().expect("UTF-8"),
    ];
    let hide = "umount -l $(findmnt -nlo TARGET -t cgroup2) && exec \"$@\"";
    let mut profiler = Command::new("unshare")
        .args(["--mount", "sh", "-c", hide, "sh"])
        .args(run)
        .arg("--")
        .arg(fixture)
        .env_remove("SUDO_UID")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare starts");
    let remains = Remains::of(profiler.id(), &result);
    let mut stdout = BufReader::new(profiler.stdout.take().expect("piped"));
    let Some(told) = told_by(1, &mut stdout) else {
        profiler.wait().expect("it ends");
        eprintln!("SKIPPED: no cgroup2 to take away");
        return;
    };
    assert_eq!(remains.cgroup(), None);
    let target = told["pid"].0 as u32;
    until("a scan", || {
        let stat = fs::read_to_string(format!("/proc/{target}/stat")).ok()?;
        stat.contains(") T ").then_some(())
    });
    send(&profiler, Signal::SIGKILL);
    profiler.wait().expect("it ends");
    remains.assert_none_soon(&[target]);
}

#[test]
fn a_request_to_end_is_passed_on() {
    let (mut profiling, remains) = start("malloc_large");
    // Waiting for the profiler would close its input, and the fixture would end by itself.
    let _input = profiling.profiler.stdin.take();
    send(&profiling.profiler, Signal::SIGTERM);
    let status = profiling.profiler.wait().expect("it ends");
    assert_eq!(status.code(), Some(128 + 15));
    remains.assert_none_now();
    assert_eq!(read_run(&profiling.result()).exit_status, Some(143));
}

#[test]
fn children_that_outlive_the_command_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    // A shell gives its background jobs an empty input.
    let script = format!("exec 3<&0; '{}' <&3 &", build("malloc_large").display());
    let mut profiler = profiler(&result)
        .args(["sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the profiler starts");
    let remains = Remains::of(profiler.id(), &result);
    let input = profiler.stdin.take().expect("piped");
    assert_eq!(profiler.wait().expect("it ends").code(), Some(0));
    remains.assert_none_now();

    let mut stdout = BufReader::new(profiler.stdout.take().expect("piped"));
    let told = told_by(1, &mut stdout).expect("the child still runs");
    let command = fs::read_to_string(format!("/proc/{}/cmdline", told["pid"].0)).expect("alive");
    assert!(command.contains("malloc_large"), "{command}");
    drop(input);
    let run = read_run(&result);
    let said = "1 process outlives the command; it goes on running and is not measured any more";
    assert!(
        run.warnings.iter().any(|warning| warning == said),
        "{:?}",
        run.warnings
    );
}

/// A benchmark program is ours to end.
#[test]
fn an_interrupt_ends_a_benchmark_program() {
    let folder = tempfile::tempdir().expect("a folder");
    let (started, job) = (
        folder.path().join("started"),
        folder.path().join("job.json"),
    );
    let script = format!("echo $$ > '{}'; sleep 1000", started.display());
    let text = serde_json::json!({
        "program": "sleeper", "label": "Sleeper", "colour": null, "version": "", "repeat": 0,
        "command": ["sh", "-c", script], "environment": [["PATH", "/usr/bin:/bin"]],
        "directory": null, "contract": {"tasks": 1, "seconds": 1000.0},
    });
    fs::write(&job, text.to_string()).expect("ours");
    let mut profiler = Command::new(env!("CARGO_BIN_EXE_profiler"))
        .args(["run", "--tier", "C", "--job"])
        .arg(&job)
        .env_remove("SUDO_UID")
        .stderr(Stdio::null())
        .spawn()
        .expect("the profiler starts");
    let remains = Remains::of(profiler.id(), &job);
    let target = until("the program runs", || {
        fs::read_to_string(&started)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    });
    send(&profiler, Signal::SIGINT);
    assert_eq!(profiler.wait().expect("it ends").code(), Some(128 + 2));
    remains.assert_none_now();
    assert!(!fs::exists(format!("/proc/{target}/exe")).expect("/proc"));
}
