//! Commands as people have them (docs/commands.md): each ends as it would by itself, and its classes sum to RSS, which
//! `read_run` checks.

use std::{
    fs,
    io::{BufReader, IoSliceMut},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use caps::{CapSet, Capability};
use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};
use profiler::{classify::Leaf, results::Run, units::MIB};

use crate::{
    fixtures::{build, told_by},
    profiled::{Profiling, profiler_with, read_run},
    remains::Remains,
};

/// Runs a command to its end by the best tier, with an empty input.
fn run(command: &[&str], set_up: impl FnOnce(&mut Command)) -> (Output, Run) {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let mut profiler = profiler_with(&[], &result);
    profiler
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    set_up(&mut profiler);
    let profiler = profiler.spawn().expect("the profiler starts");
    let remains = Remains::of(profiler.id(), &result);
    let output = profiler.wait_with_output().expect("it ends");
    remains.assert_none_now();
    (output, read_run(&result))
}

fn run_fixture(name: &str, arguments: &[&str]) -> (Output, Run) {
    let program = build(name);
    let command = [&[program.to_str().expect("UTF-8")], arguments].concat();
    run(&command, |_| {})
}

fn heap_bytes(run: &Run) -> u64 {
    run.peak.as_ref().expect("it had a peak").classes.heap
}

#[test]
fn a_pipeline_is_one_tree() {
    let script = "seq 1 100000 | sort -n | tail -n 1; exit 3";
    let (output, run) = run(&["sh", "-c", script], |_| {});
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"100000\n");
    assert_eq!(run.exit_status, Some(3));
    let mut programs: Vec<&str> = run
        .processes
        .iter()
        .filter_map(|process| process.executable.rsplit('/').next())
        .collect();
    programs.sort_unstable();
    for name in ["seq", "sort", "tail"] {
        assert!(programs.contains(&name), "{name} in {programs:?}");
    }
}

#[test]
fn a_daemon_counts_until_the_command_ends() {
    let (output, run) = run_fixture("daemonizes", &["20"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(heap_bytes(&run) >= 20 * MIB, "{:?}", run.peak);
}

#[test]
fn a_program_that_execs_itself_is_one_process_with_the_largest_image_at_its_peak() {
    let (output, run) = run_fixture("execs_itself", &["5"]);
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(run.processes.len(), 1);
    let heap = heap_bytes(&run);
    assert!((5 * MIB..6 * MIB).contains(&heap), "{heap}");
}

/// As a profiler does that reads `/proc/PID/maps` at that moment: whoever looks at the memory of a process keeps it from
/// ending, until after the `execve`.
#[test]
fn a_program_whose_memory_is_read_while_it_execs_had_it_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result.json");
    let mut profiler = profiler_with(&[], &result)
        .arg(build("execs_while_read"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the profiler starts");
    let mut stdout = BufReader::new(profiler.stdout.take().expect("piped"));
    let told = told_by(1, &mut stdout).expect("it waits to be read");
    let (trap, _) = told["trap"];
    let pid = Pid::from_raw(told["pid"].0 as i32);
    // It has to wait for this page until the program has ended, which execs as soon as that is asked for.
    let mut page = [0];
    let remote = RemoteIoVec {
        base: trap as usize,
        len: page.len(),
    };
    let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut page)], &[remote]);
    let output = profiler.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(42), "{read:?}");
    let run = read_run(&result);
    assert_eq!(run.processes.len(), 1);
    let heap = heap_bytes(&run);
    assert!((5 * MIB..6 * MIB).contains(&heap), "{heap}");
}

#[test]
fn a_static_program_has_an_image_and_a_heap() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("static");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/malloc_large.c");
    let compiled = Command::new("cc")
        .args(["-static", "-std=gnu11", "-O1", "-o"])
        .args([&program, &source])
        .stderr(Stdio::null())
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no C compiler that links statically");
        return;
    }
    // By a scan while it stands still: one that ends at once is gone before its mappings are seen.
    let profiling = Profiling::start(1, &[program.to_str().expect("UTF-8")]);
    let pid = profiling.told["pid"].0 as u32;
    let profiled = profiling.finish(&[pid]);
    let image = profiled.leaf(Leaf::Image);
    assert!(image > 20, "a C library is part of it: {image} pages");
    assert_eq!(profiled.leaf(Leaf::MallocLarge), 101);
    assert_eq!(profiled.peak().classes.unclassified, 0);
}

/// A group in which memory is limited, with the profiler in it as in a container.
struct Limited(PathBuf);

impl Limited {
    fn to(bytes: u64) -> Option<Limited> {
        let roots = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ];
        let name = format!("profiler-test-{}", std::process::id());
        roots.into_iter().find_map(|(root, limit)| {
            let folder = Path::new(root).join(&name);
            fs::create_dir(&folder).ok()?;
            let group = Limited(folder);
            let limit = group.0.join(limit);
            // Where the file is missing the controller is elsewhere.
            (limit.exists() && fs::write(&limit, bytes.to_string()).is_ok()).then_some(group)
        })
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_program_that_is_killed_for_memory_ends_by_that_signal() {
    let Some(group) = Limited::to(768 * MIB) else {
        eprintln!("SKIPPED: no memory controller to be had");
        return;
    };
    let procs = group.0.join("cgroup.procs");
    let program = build("grows_for_ever");
    let (output, run) = run(&[program.to_str().expect("UTF-8")], |profiler| {
        // SAFETY: opens and writes a file, which a child of a process with other threads may do.
        unsafe {
            profiler.pre_exec(move || fs::write(&procs, "0"));
        }
    });
    assert_eq!(output.status.code(), Some(128 + libc::SIGKILL));
    assert_eq!(run.exit_status, Some(128 + libc::SIGKILL));
    let rss = run.peak.as_ref().expect("it had a peak").rss_bytes;
    assert!((256 * MIB..768 * MIB).contains(&rss), "{rss}");
}

#[test]
fn out_of_memory_the_profiler_is_spared_and_the_program_is_not() {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).expect("they are ours")
    {
        eprintln!("SKIPPED: root without CAP_SYS_RESOURCE");
        return;
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("it is there");
    let (output, _) = run(
        &[
            "sh",
            "-c",
            "cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj",
        ],
        |_| {},
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("{own}-1000\n")
    );
}

const MAX_MAP_COUNT: &str = "/proc/sys/vm/max_map_count";

/// Gives back what it was.
struct MapCount(String);

impl Drop for MapCount {
    fn drop(&mut self) {
        let _ = fs::write(MAX_MAP_COUNT, &self.0);
    }
}

#[test]
fn an_address_space_of_200_000_mappings_is_told_whole() {
    let before = MapCount(fs::read_to_string(MAX_MAP_COUNT).expect("it is there"));
    let count: u64 = before.0.trim().parse().expect("a number");
    fs::write(MAX_MAP_COUNT, count.max(300_000).to_string()).expect("we are root");
    let (output, run) = run_fixture("many_vmas", &["200000", "1"]);
    assert_eq!(output.status.code(), Some(0));
    let heap = heap_bytes(&run);
    assert!(heap >= 200_000 * 4096, "{heap}");
    let mappings = run.peak.as_ref().and_then(|peak| {
        let kinds = &peak.kernel.slab;
        let kind = kinds.iter().find(|kind| kind.kind == "vm_area_struct");
        Some(kind?.objects)
    });
    assert!(mappings >= Some(200_000), "{mappings:?}");
}

/// `doctor | head -1` and the like.
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    for arguments in [&["doctor"][..], &["man"], &["completions", "bash"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_profiler"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        drop(command.stdout.take());
        let output = command.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        assert_eq!(stderr, "", "{arguments:?}");
    }
}
