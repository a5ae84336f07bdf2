//! Signals to the profiler and from its terminal: each reaches the command once.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Stdio,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use profiler::results::store;

use crate::{
    fixtures::{build, told_by},
    profiled::{profiler, profiler_with, read_run},
    remains::until,
};

/// The state of a process: `R`, `S`, `T` (stopped), ...
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn next_line(source: &mut impl BufRead) -> String {
    let mut line = String::new();
    source.read_line(&mut line).expect("text");
    line.trim().to_owned()
}

#[test]
fn what_a_process_sends_reaches_the_command_which_decides() {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let mut profiler = profiler(&result)
        .arg(build("signals"))
        // A job of its own, as a shell makes one: an orphaned group cannot be stopped.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the profiler starts");
    let _input = profiler.stdin.take();
    let mut stdout = BufReader::new(profiler.stdout.take().expect("piped"));
    let told = told_by(1, &mut stdout).expect("it runs");
    let (us, target) = (Pid::from_raw(profiler.id() as i32), told["pid"].0 as i32);
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGWINCH,
    ] {
        kill(us, signal).expect("it is alive");
        assert_eq!(next_line(&mut stdout), format!("signal {}", signal as i32));
    }

    // Both stop, as one job of a shell, and both go on.
    kill(us, Signal::SIGTSTP).expect("it is alive");
    for pid in [target, us.as_raw()] {
        until("stopped", || (state(pid) == Some('T')).then_some(()));
    }
    kill(us, Signal::SIGCONT).expect("it is alive");
    for pid in [target, us.as_raw()] {
        until("going on", || (state(pid) != Some('T')).then_some(()));
    }

    kill(us, Signal::SIGTERM).expect("it is alive");
    // How often it was told to go on does not matter.
    let last = std::iter::repeat_with(|| next_line(&mut stdout)).find(|line| line != "signal 18");
    assert_eq!(last.as_deref(), Some("signal 15"));
    assert_eq!(profiler.wait().expect("it ends").code(), Some(9));
    assert_eq!(read_run(&result).exit_status, Some(9));
}

/// The command itself may make nothing of it.
#[test]
fn an_interrupted_sweep_keeps_what_was_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let mut profiler = profiler_with(&["--tier", "C", "-P", "N", "1,2,3"], &result)
        .arg(build("signals"))
        .arg("{N}")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the profiler starts");
    let mut input = profiler.stdin.take().expect("piped");
    let mut stdout = BufReader::new(profiler.stdout.take().expect("piped"));
    told_by(1, &mut stdout).expect("the first one runs");
    input.write_all(b"go on\n").expect("it reads");
    told_by(1, &mut stdout).expect("the second one runs");
    let us = Pid::from_raw(profiler.id() as i32);
    kill(us, Signal::SIGINT).expect("it is alive");
    assert_eq!(next_line(&mut stdout), "signal 2");
    input.write_all(b"go on\n").expect("it reads");
    assert_eq!(profiler.wait().expect("it ends").code(), Some(128 + 2));
    let results = store::read(&result).expect("a result");
    let told: Vec<_> = results
        .runs
        .iter()
        .map(|run| (run.tasks, run.parameter.as_deref(), run.exit_status))
        .collect();
    assert_eq!(
        told,
        [(Some(1), Some("N"), Some(0)), (Some(2), Some("N"), Some(0))]
    );
}

/// A terminal of its own for the profiler; our end of it.
fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (0, 0);
    // SAFETY: two integers are written, and nothing else is asked for.
    let status = unsafe {
        libc::openpty(
            &mut ours,
            &mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(status, 0, "a pseudo-terminal");
    // SAFETY: the call has just made both, and nobody else has them.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

#[test]
fn what_keys_send_reaches_the_command_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let (mut keys, theirs) = terminal();
    let mut command = profiler(&result);
    // SAFETY: system calls and nothing else.
    unsafe {
        command.pre_exec(|| {
            // Its session, its terminal, and the foreground of it.
            match libc::setsid() >= 0 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 {
                true => Ok(()),
                false => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut profiler = command
        .arg(build("signals"))
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the profiler starts");
    let mut stdout = BufReader::new(profiler.stdout.take().expect("piped"));
    let told = told_by(1, &mut stdout).expect("it runs");
    let us = Pid::from_raw(profiler.id() as i32);
    let target = Pid::from_raw(told["pid"].0 as i32);
    assert_eq!(
        nix::unistd::getpgid(Some(target)),
        nix::unistd::getpgid(Some(us)),
        "one job of the terminal"
    );
    for (key, signal) in [(3, Signal::SIGINT), (28, Signal::SIGQUIT)] {
        keys.write_all(&[key]).expect("a key");
        assert_eq!(next_line(&mut stdout), format!("signal {}", signal as i32));
    }
    // A second one of those would come before this.
    kill(us, Signal::SIGUSR1).expect("it is alive");
    assert_eq!(next_line(&mut stdout), "signal 10");

    kill(us, Signal::SIGTERM).expect("it is alive");
    assert_eq!(next_line(&mut stdout), "signal 15");
    assert_eq!(profiler.wait().expect("it ends").code(), Some(9));
}
