//! How commands end, or do not begin: the profiler's exit status, words and files.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
    process::{Command, Output, Stdio},
};

use profiler::results::{Outcome, Results, Run};

use crate::{
    fixtures::build,
    profiled::{NOBODY, Profiling, for_everybody, profiler, profiler_with, read_run},
    remains::Remains,
};

/// Runs the profiler to its end. The result is `None` when it wrote none.
fn run(command: &[&str], input: &str, environment: &[(&str, &str)]) -> (Output, Option<Run>) {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let mut profiler = profiler(&result)
        .args(command)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the profiler starts");
    let remains = Remains::of(profiler.id(), &result);
    let mut stdin = profiler.stdin.take().expect("piped");
    // One that does not read its input is none of our business.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = profiler.wait_with_output().expect("it ends");
    remains.assert_none_now();
    let run = result.exists().then(|| read_run(&result));
    (output, run)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn input_output_and_exit_status_are_those_of_the_command() {
    let script = "read word; echo \"said $word\"; echo \"and complained\" >&2; exit 7";
    let (output, run) = run(&["sh", "-c", script], "something\n", &[]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(text(&output.stdout), "said something\n");
    assert!(
        text(&output.stderr).starts_with("and complained\n"),
        "{output:?}"
    );
    let run = run.expect("a result");
    assert_eq!(run.exit_status, Some(7));
    assert_eq!(
        (run.outcome, run.reason.as_deref()),
        (Outcome::Failed, Some("exit status 7"))
    );
}

/// `-o -`: what the command writes goes to stderr, so that stdout is the result alone.
#[test]
fn a_result_on_stdout_is_not_mixed_with_what_the_command_writes() {
    let output = profiler(Path::new("-"))
        .args(["sh", "-c", "echo said; echo complained >&2; exit 3"])
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let results: Results = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(results.runs[0].exit_status, Some(3));
    assert!(
        text(&output.stderr).starts_with("said\ncomplained\n"),
        "{output:?}"
    );
}

/// The result is written all the same, with the command's own status; and a command that fails keeps its own.
#[test]
fn more_memory_than_allowed_is_an_exit_status_of_its_own() {
    let limited = |limit: &str, script: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        let result = folder.path().join("result.json");
        let output = profiler_with(&["--max-rss", limit], &result)
            .args(["sh", "-c", script])
            .output()
            .expect("it starts");
        (output, read_run(&result))
    };
    let (output, run) = limited("4K", "true");
    assert_eq!(output.status.code(), Some(123), "{output:?}");
    let last = text(&output.stderr).lines().last().expect("a sentence");
    assert!(last.starts_with("profiler: RSS at the peak is "), "{last}");
    assert!(
        last.ends_with(" more than --max-rss 4.0 KiB allows"),
        "{last}"
    );
    assert_eq!((run.exit_status, run.gates[0].kept), (Some(0), false));
    assert_eq!(limited("4K", "exit 5").0.status.code(), Some(5));
    let (output, run) = limited("1G", "true");
    assert_eq!((output.status.code(), run.gates[0].kept), (Some(0), true));
}

#[test]
fn a_program_may_end_before_it_is_scanned() {
    let (output, run) = run(&["true"], "", &[]);
    assert_eq!(output.status.code(), Some(0));
    let run = run.expect("a result");
    assert_eq!(
        (run.outcome, run.exit_status),
        (Outcome::Completed, Some(0))
    );
    // It may also have been slow enough.
    if run.peak.is_none() {
        assert_eq!(
            run.warnings,
            ["the program ended before it could be scanned"]
        );
    }
    assert_eq!(run.processes.len(), 1);
    assert!(run.events.seen > 5);
}

#[test]
fn a_signal_that_ends_the_program_shows_in_the_exit_status() {
    let (output, run) = run(&["sh", "-c", "kill -SEGV $$"], "", &[]);
    assert_eq!(output.status.code(), Some(128 + 11));
    let run = run.expect("a result");
    assert_eq!(run.exit_status, Some(139));
    assert_eq!(run.reason.as_deref(), Some("ended by signal 11"));
}

#[test]
fn commands_that_cannot_be_started() {
    let (output, result) = run(&["no-such-command"], "", &[]);
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(
        text(&output.stderr),
        "profiler: no command `no-such-command` in PATH; give its path, or check the spelling\n"
    );
    assert!(result.is_none() && output.stdout.is_empty());

    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    fs::write(&data, "no program").expect("a file");
    let broken = folder.path().join("broken");
    fs::write(&broken, "\x7fELF and no more").expect("a file");
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).expect("ours");
    for (path, error) in [(&data, "Permission denied"), (&broken, "Exec format error")] {
        let path = path.to_str().expect("UTF-8");
        let (output, result) = run(&[path], "", &[]);
        assert_eq!(output.status.code(), Some(126), "{output:?}");
        let sentence = format!("profiler: cannot execute `{path}`: {error}");
        assert!(text(&output.stderr).starts_with(&sentence), "{output:?}");
        assert_eq!(text(&output.stderr).lines().count(), 1);
        assert!(result.is_none());
    }
}

/// `ru_maxrss`, and what is made from it, is carried over fork and exec.
#[test]
fn memory_of_the_launcher_is_not_the_programs() {
    let fat = vec![1_u8; 200 << 20];
    let program = build("malloc_large");
    let profiling = Profiling::start(1, &[program.to_str().expect("UTF-8")]);
    let pid = profiling.told["pid"].0 as u32;
    let run = profiling.finish(&[pid]);
    drop(std::hint::black_box(fat));
    let peak = run.peak();
    assert!(peak.rss_bytes < 10 << 20, "{}", peak.rss_bytes);
    assert!(peak.vm_hwm_bytes < 10 << 20, "{}", peak.vm_hwm_bytes);
    let polled = run.run.timeline.iter().map(|point| point.rss_bytes).max();
    assert!(polled.expect("polled") < 10 << 20, "{polled:?}");
}

#[test]
fn where_a_tier_that_needs_permission_was_asked_for_nothing_is_started_and_one_sentence_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let started = folder.path().join("started");
    let mut command = for_everybody(folder.path());
    let output = command
        .args(["run", "--tier", "C", "--", "touch"])
        .arg(&started)
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(!started.exists() && output.stdout.is_empty());
    let sentence = text(&output.stderr);
    assert_eq!(sentence.lines().count(), 1, "{sentence}");
    for part in [
        "CAP_BPF",
        "CAP_PERFMON",
        "kernel.unprivileged_bpf_disabled",
        "sudo profiler",
    ] {
        assert!(sentence.contains(part), "{sentence}");
    }
}

#[test]
fn the_doctor_is_quiet_and_says_no_by_its_exit_status() {
    let folder = tempfile::tempdir().expect("a folder");
    let doctor = |command: &mut Command| {
        let output = command
            .args(["doctor", "--quiet"])
            .output()
            .expect("it starts");
        assert!(output.stdout.is_empty(), "{output:?}");
        (output.status.code(), text(&output.stderr).lines().count())
    };
    assert_eq!(doctor(&mut for_everybody(folder.path())), (Some(2), 1));
    assert_eq!(
        doctor(&mut Command::new(env!("CARGO_BIN_EXE_profiler"))),
        (Some(0), 0)
    );
}

#[test]
fn the_doctor_tells_all_as_json_also_where_it_can_do_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let doctor = |command: &mut Command| {
        let output = command
            .args(["doctor", "--json"])
            .output()
            .expect("it starts");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), told)
    };
    let (status, told) = doctor(&mut Command::new(env!("CARGO_BIN_EXE_profiler")));
    assert_eq!(status, Some(0));
    assert!(told["probes"]["attached"].as_u64().is_some_and(|it| it > 5));
    assert_eq!(told["tiers"].as_array().map(Vec::len), Some(3));
    let (status, told) = doctor(&mut for_everybody(folder.path()));
    assert_eq!(status, Some(2));
    assert!(
        told["probes"]["error"]
            .as_str()
            .is_some_and(|error| error.contains("CAP_BPF"))
    );
    let missing = told["permissions"]["missing"].to_string();
    assert!(missing.contains("CAP_PERFMON: without it"), "{missing}");
}

#[test]
fn under_sudo_the_program_runs_as_the_user_and_the_result_is_theirs() {
    let folder = tempfile::tempdir().expect("a folder");
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("we are root");
    let result = folder.path().join("result.json");
    let output = profiler(&result)
        .args(["sh", "-c", "id -u; id -g; id -G"])
        .envs([("SUDO_UID", "65534"), ("SUDO_GID", "65534")])
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), "65534\n65534\n65534\n");
    let metadata = fs::metadata(&result).expect("the result");
    assert_eq!((metadata.uid(), metadata.gid()), (NOBODY, NOBODY));
    read_run(&result);
}

#[test]
fn a_result_that_cannot_be_written_is_said_before_anything_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let started = folder.path().join("started");
    let file = folder.path().join("file");
    fs::write(&file, "no folder").expect("ours");
    let output = profiler(&file.join("result.json"))
        .args(["touch", started.to_str().expect("UTF-8")])
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(text(&output.stderr).lines().count(), 1, "{output:?}");
    assert!(!started.exists());
}

#[test]
fn nobody_who_reads_stderr_is_no_reason_to_lose_what_was_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = profiler(&result)
        .args(["sh", "-c", "exit 7"])
        .stdin(Stdio::null())
        .stderr(writer)
        .status()
        .expect("the profiler starts");
    assert_eq!(status.code(), Some(7));
    assert_eq!(read_run(&result).exit_status, Some(7));
}
