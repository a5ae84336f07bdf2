//! `profiler daemon`: members of its group profile their own processes through it, and nobody anything else.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Group, Pid},
};
use tempfile::TempDir;

use crate::{
    fixtures::{build, told_by},
    profiled::{NOBODY, for_everybody, kernel_is_at_least, read_run},
    remains::until,
    tracefs::Tracefs,
};

/// A daemon for the group of [`NOBODY`], and a folder that everybody may use.
struct Daemon {
    process: Child,
    socket: PathBuf,
    folder: TempDir,
    _tracefs: Tracefs,
}

impl Daemon {
    /// `None`, which is said, in a guest, where the group has no name, or the kernel is too old.
    fn start() -> Option<Daemon> {
        let Ok(Some(group)) = Group::from_gid(Gid::from_raw(NOBODY)) else {
            eprintln!("SKIPPED: group {NOBODY} has no name here");
            return None;
        };
        // A minute for each of them, and what the daemon does depends on the kernel in nothing that others do not see.
        if std::env::var_os("PROFILER_FIXTURES").is_some() {
            eprintln!("SKIPPED: the daemon is tried on the machine at hand, not in guests");
            return None;
        }
        // Before, maps count against RLIMIT_MEMLOCK, which is the client's.
        if !kernel_is_at_least(5, 11) {
            eprintln!("SKIPPED: the daemon gives no more than tier D before Linux 5.11");
            return None;
        }
        let tracefs = Tracefs::mounted();
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("daemon/socket");
        let mut process = Command::new(env!("CARGO_BIN_EXE_profiler"))
            .args(["daemon", "--group", &group.name, "--socket"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut said = String::new();
        BufReader::new(process.stderr.take().expect("piped"))
            .read_line(&mut said)
            .expect("text");
        let daemon = Daemon {
            process,
            socket,
            folder,
            _tracefs: tracefs,
        };
        assert!(said.contains("listening at"), "{said}");
        Some(daemon)
    }

    /// The profiler without any privilege, in the folder, which it opens to everybody.
    fn client(&self) -> Command {
        let mut client = for_everybody(self.folder.path());
        client.env("PROFILER_DAEMON_SOCKET", &self.socket);
        client
    }

    /// A fixture where everybody may execute it.
    fn fixture(&self, name: &str) -> PathBuf {
        let copy = self.folder.path().join(name);
        fs::copy(build(name), &copy).expect("a copy");
        copy
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Its result, which was written to stdout.
fn run_of(output: &Output, folder: &Path) -> profiler::results::Run {
    let result = folder.join("read.json");
    fs::write(&result, &output.stdout).expect("ours");
    read_run(&result)
}

#[test]
fn a_member_runs_a_command_as_themselves_with_probes() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let script = "id -u >&2; grep NoNewPrivs /proc/self/status >&2; exit 7";
    let output = daemon
        .client()
        .args(["run", "-o", "-", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("through the daemon at"), "{said}");
    assert!(said.contains(&format!("{NOBODY}\n")), "{said}");
    assert!(said.contains("NoNewPrivs:\t1"), "{said}");
    let run = run_of(&output, daemon.folder.path());
    assert_eq!(run.exit_status, Some(7));
    // It may have ended before it was looked at.
    if let Some(peak) = &run.peak {
        assert_eq!(peak.tier, "C", "{:?}", run.refused_tiers);
    }
    let refused = run.refused_tiers.iter().map(|it| it.tier.as_str());
    assert_eq!(refused.collect::<Vec<_>>(), ["A", "B"]);
}

#[test]
fn a_member_attaches_to_their_own_process_and_to_no_other() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let attach = |pid: u32| {
        daemon
            .client()
            .args([
                "attach",
                "--pid",
                &pid.to_string(),
                "--duration",
                "0.5",
                "-o",
                "-",
            ])
            .output()
            .expect("it starts")
    };
    let own = Command::new(daemon.fixture("malloc_large"))
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut own = own.expect("it starts");
    let told = told_by(1, &mut BufReader::new(own.stdout.take().expect("piped")));
    let pid = told.expect("it stands still")["pid"].0 as u32;
    let output = attach(pid);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let peak = run_of(&output, daemon.folder.path())
        .peak
        .expect("it had one");
    assert_eq!(peak.tier, "C");
    // Some blocks of 128 KiB and more.
    assert!(peak.classes.heap > 300_000, "{:?}", peak.classes);
    own.kill().expect("ours");
    own.wait().expect("ours");

    // The daemon itself is root's.
    let refused = attach(daemon.process.id());
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(
        said.contains("may not be looked at by user 65534"),
        "{said}"
    );
}

#[test]
fn the_doctor_tells_who_is_served() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let found = |client: &mut Command| {
        let output = client
            .args(["doctor", "--json"])
            .output()
            .expect("it starts");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        told["permissions"]["daemon"]["state"].clone()
    };
    assert_eq!(found(&mut daemon.client()), "listening");
    assert_eq!(found(daemon.client().gid(NOBODY - 1)), "not_a_member");
    let elsewhere = daemon.folder.path().join("none");
    let mut client = daemon.client();
    assert_eq!(
        found(client.env("PROFILER_DAEMON_SOCKET", elsewhere)),
        "none"
    );
}

#[test]
fn who_is_no_member_is_not_served_and_goes_on_alone() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let output = daemon
        .client()
        .gid(NOBODY - 1)
        .args(["run", "-o", "-", "--", "true"])
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let said = text(&output.stderr);
    assert!(said.contains("which is for members of its group"), "{said}");
    // It goes on by itself.
    assert!(output.status.success(), "{said}");
    assert_ne!(run_of(&output, daemon.folder.path()).refused_tiers.len(), 2);
}

#[test]
fn a_client_that_is_killed_leaves_no_program_running() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let marker = daemon.folder.path().join("started");
    let script = format!("echo $$ > '{}'; exec sleep 1000", marker.display());
    let mut client = daemon
        .client()
        .args(["run", "-o", "-", "--", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let pid: i32 = until("the command", || {
        fs::read_to_string(&marker).ok()?.trim().parse().ok()
    });
    kill(Pid::from_raw(client.id().cast_signed()), Signal::SIGKILL).expect("alive");
    client.wait().expect("ours");
    until("the end of the command", || {
        kill(Pid::from_raw(pid), None).err()
    });
}
