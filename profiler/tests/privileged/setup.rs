//! `profiler setup`: a binary with file capabilities follows with probes what its user starts, and without them it does
//! not.

use std::{fs, os::unix::process::CommandExt, path::Path, process::Command};

use crate::{
    profiled::{NOBODY, for_everybody, kernel_is_at_least, read_run},
    tracefs::Tracefs,
};

/// What `setup` says, as root.
fn setup(binary: &Path, options: &[&str]) -> String {
    let output = Command::new(binary).arg("setup").args(options).output();
    let output = output.expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).expect("text")
}

/// The tiers that were refused to somebody without any privilege of their own, and why.
fn refused_to_nobody(binary: &Path, folder: &Path) -> Vec<(String, String)> {
    let result = folder.join("result.json");
    // There is no daemon that would stand in.
    let output = Command::new(binary)
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir(folder)
        .env("PROFILER_DAEMON_SOCKET", folder.join("none"))
        .args(["run", "-o"])
        .arg(&result)
        .args(["--", "true"])
        .output()
        .expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let refused = read_run(&result).refused_tiers.into_iter();
    refused.map(|it| (it.tier, it.reason)).collect()
}

fn tiers(refused: &[(String, String)]) -> Vec<&str> {
    refused.iter().map(|(tier, _)| tier.as_str()).collect()
}

/// Debian's kernels, and others that have taken its patch, keep tracepoints for root then.
fn tracepoints_are_kept_for_root() -> bool {
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").expect("it is there");
    let version = fs::read_to_string("/proc/version").expect("every Linux has it");
    paranoid.trim().parse::<i32>().expect("a number") > 2 && version.contains("Debian")
}

#[test]
fn file_capabilities_give_probes_and_are_taken_away_again() {
    if !kernel_is_at_least(5, 11) {
        eprintln!("SKIPPED: file capabilities give no more than tier D before Linux 5.11");
        return;
    }
    let _tracefs = Tracefs::mounted();
    let folder = tempfile::tempdir().expect("a folder");
    let client = for_everybody(folder.path());
    let binary = Path::new(client.get_program());
    let folder = folder.path();

    assert_eq!(tiers(&refused_to_nobody(binary, folder)), ["A", "B", "C"]);
    assert!(setup(binary, &["--remove"]).contains("had no capabilities"));
    assert!(setup(binary, &[]).contains("cap_bpf"));
    let refused = refused_to_nobody(binary, folder);
    if tracepoints_are_kept_for_root() {
        assert_eq!(tiers(&refused), ["A", "B", "C"]);
        let reason = &refused[2].1;
        assert!(
            reason.contains("sysctl kernel.perf_event_paranoid=2"),
            "{reason}"
        );
    } else {
        assert_eq!(tiers(&refused), ["A", "B"]);
    }
    assert!(setup(binary, &["--remove"]).contains("no capabilities any more"));
    assert_eq!(tiers(&refused_to_nobody(binary, folder)), ["A", "B", "C"]);
}
