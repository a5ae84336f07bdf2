//! What the perf counters say of a program whose phases are known.

use std::{fs, process::Command};

use profiler::results::{Counters, Run, Scope};

use crate::profiled::read_run;

/// Runs a shell script as a benchmark program of one task that waits a tenth of a second.
fn run(script: &str) -> Run {
    let folder = tempfile::tempdir().expect("a folder");
    let (job, result) = (
        folder.path().join("job.json"),
        folder.path().join("result.json"),
    );
    let text = serde_json::json!({
        "program": "script", "label": "Script", "colour": null, "version": "", "repeat": 0,
        "command": ["sh", "-c", script], "environment": [["PATH", "/usr/bin:/bin"]],
        "directory": null, "contract": {"tasks": 1, "seconds": 0.1},
    });
    fs::write(&job, text.to_string()).expect("ours");
    let status = Command::new(env!("CARGO_BIN_EXE_profiler"))
        .args(["run", "--tier", "C", "--job"])
        .arg(&job)
        .arg("--output")
        .arg(&result)
        .env_remove("SUDO_UID")
        .status()
        .expect("the profiler starts");
    assert!(status.success(), "{status}");
    read_run(&result)
}

fn of_phase(run: &Run, name: &str) -> Counters {
    let phase = run.phases.iter().find(|phase| phase.name == name);
    let phase = phase.unwrap_or_else(|| panic!("no {name} in {:?}", run.phases));
    phase.counters.expect("read at its begin and end")
}

/// The work is done in a child of the launch, the rest waits.
#[test]
fn the_work_of_a_launch_is_counted_there_and_nowhere_else() {
    let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
    let run = run(&format!(
        "echo launch=1; sh -c '{work}'; sh -c true; sh -c true; echo alive=1; sleep 0.6; echo live_peak=1"
    ));
    let whole = run.counters;
    let probe = run.probes.iter().find(|probe| probe.name == "perf:cgroup");
    let probe = probe.expect("told in any case");
    match &probe.reason {
        None => assert_eq!(whole.scope, Some(Scope::Cgroup)),
        Some(reason) => {
            println!("SKIPPED: {reason}");
            assert_eq!(whole.scope, Some(Scope::Inherited));
        }
    }
    let clock = |counters: Counters| counters.task_clock_ns.expect("a software counter");
    let launch = of_phase(&run, "launch");
    assert!(clock(launch) > clock(whole) / 2, "{launch:?} of {whole:?}");
    // At least the forks, execs and waits behind the work: those before may be over when its words are read.
    assert!(launch.minor_faults.expect("counted") > 10, "{launch:?}");
    assert!(launch.context_switches.expect("counted") > 0, "{launch:?}");
    let parts: u64 = run
        .phases
        .iter()
        .map(|phase| clock(phase.counters.expect("read")))
        .sum();
    assert_eq!(parts, clock(whole), "{:?}", run.phases);
}

#[test]
fn counters_cover_children_that_have_ended() {
    let run = run(
        "for i in 1 2 3 4 5 6 7 8 9 10; do sh -c true; done; echo alive=1; echo live_peak=1; sleep 0.2",
    );
    // Each shell has an image, a stack and a heap of its own.
    assert!(run.counters.minor_faults.expect("counted") > 10 * 20);
    assert!(run.counters.context_switches.expect("counted") >= 10);
}
