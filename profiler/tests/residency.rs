//! Scans and freezes real processes: small C programs (`tests/fixtures`) that touch known pages, say
//! where they are, and stand still. Needs a C compiler named `cc`.
//!
//! As root everything runs. Without it frame numbers and the cgroup are out of reach, and what
//! cannot be tested then is said on stderr.

mod fixtures;

use std::fs;
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use profiler::launch::group::TargetGroup;
use profiler::residency::scan::{ScanError, detect, scan_process, scan_tree};
use profiler::residency::{Method, ProcessSnapshot, StatmReader, vm_hwm_bytes};
use profiler::units::PAGE;

use fixtures::{Told, build, told_by};

const A: bool = false;
const F: bool = true;

/// A fixture that stands still, with the regions that it told.
struct Fixture {
    child: Child,
    regions: Told,
}

impl Fixture {
    fn start(name: &str, args: &[&str]) -> Fixture {
        Fixture::try_start(name, args).unwrap_or_else(|| panic!("{name} gave up"))
    }

    /// `None`, and a line on stderr, when the kernel cannot do what the fixture needs.
    fn try_start(name: &str, args: &[&str]) -> Option<Fixture> {
        let mut child = Command::new(build(name))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("fixture starts");
        let mut stdout = BufReader::new(child.stdout.as_mut().expect("piped"));
        if let Some(regions) = told_by(1, &mut stdout) {
            return Some(Fixture { child, regions });
        }
        let status = child.wait().expect("fixture ends");
        // `UNSUPPORTED` of fixture.h.
        assert_eq!(status.code(), Some(77), "{name} failed");
        eprintln!("SKIPPED: this kernel does not support what {name}.c does");
        None
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Scans by every method that works here, insists that they agree and that the sum is right.
    fn scan(&self) -> ProcessSnapshot {
        scan_both(self.pid())
    }

    /// The resident runs in a region: first page, pages, from a file.
    fn runs(&self, snapshot: &ProcessSnapshot, region: &str) -> Vec<(u64, u64, bool)> {
        let (start, length) = self.regions[region];
        let overlapping = snapshot.resident.iter().filter_map(|range| {
            let (from, to) = (range.start.max(start), range.end.min(start + length));
            (from < to).then(|| ((from - start) / PAGE, (to - from) / PAGE, range.file))
        });
        overlapping.collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Ends by itself at the end of its input, unless a failed test left it frozen or busy.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn scan_both(pid: u32) -> ProcessSnapshot {
    let read = scan_process(pid, Method::Pagemap).expect("pagemap can be read");
    assert_eq!(read.unexplained_bytes, 0);
    assert_eq!(read.resident_bytes(), read.rss_bytes);
    if detect() == Method::PagemapScan {
        let scanned = scan_process(pid, Method::PagemapScan).expect("the ioctl works");
        // Not the whole snapshots: PSS moves with every other process that maps the same files.
        assert_eq!(scanned.resident, read.resident, "both methods see the same");
        assert!(scanned.vmas == read.vmas && scanned.rss_bytes == read.rss_bytes);
    } else {
        eprintln!("SKIPPED: no PAGEMAP_SCAN in this kernel");
    }
    read
}

#[test]
fn written_pages_count_and_zero_pages_do_not() {
    let fixture = Fixture::start("anonymous", &[]);
    let snapshot = fixture.scan();
    assert_eq!(
        fixture.runs(&snapshot, "written"),
        [(0, 3, A), (7, 1, A), (15, 1, A)]
    );
    assert_eq!(fixture.runs(&snapshot, "zero"), [(4, 2, A)]);
    assert_eq!(fixture.runs(&snapshot, "dontneed"), [(0, 8, A), (24, 8, A)]);
    assert_eq!(fixture.runs(&snapshot, "locked"), [(0, 64, A)]);
    assert_eq!(fixture.runs(&snapshot, "hidden"), [(2, 4, A)]);
    assert_eq!(snapshot.threads, 1);
    assert!(snapshot.page_tables_bytes > 0);
    assert!(snapshot.pss_bytes <= snapshot.rss_bytes);
}

#[test]
fn guard_pages_are_not_resident() {
    let Some(fixture) = Fixture::try_start("guard_pages", &[]) else {
        return;
    };
    assert_eq!(
        fixture.runs(&fixture.scan(), "guarded"),
        [(0, 2, A), (5, 3, A)]
    );
}

#[test]
fn copies_of_file_pages_are_anonymous() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("a name with blanks");
    let fixture = Fixture::start("file_cow", &[path.to_str().expect("UTF-8")]);
    let snapshot = fixture.scan();
    let expected = [(0, 3, F), (3, 2, A), (5, 10, F), (15, 1, A)];
    assert_eq!(fixture.runs(&snapshot, "file"), expected);
    let start = fixture.regions["file"].0;
    let vma = snapshot
        .vmas
        .iter()
        .find(|vma| vma.start == start)
        .expect("the mapping");
    let named = format!("{} (deleted)", path.display());
    assert_eq!(vma.name(), Some(named.as_str()));
}

#[test]
fn shared_memory_counts_as_file_and_pages_shared_by_fork_as_anonymous() {
    let fixture = Fixture::start("shared", &[]);
    let snapshot = fixture.scan();
    assert_eq!(fixture.runs(&snapshot, "shared"), [(1, 5, F)]);
    assert_eq!(fixture.runs(&snapshot, "inherited"), [(0, 10, A)]);
    assert!(snapshot.pss_bytes < snapshot.rss_bytes);
}

#[test]
fn huge_pages_count_page_by_page_and_the_huge_zero_page_not_at_all() {
    let fixture = Fixture::start("huge_pages", &[]);
    let snapshot = fixture.scan();
    assert_eq!(fixture.runs(&snapshot, "shared"), [(0, 512, F)]);
    assert_eq!(fixture.runs(&snapshot, "zero"), []);
    let never = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .map_or(true, |enabled| enabled.contains("[never]"));
    if never {
        eprintln!("SKIPPED: transparent huge pages are off");
        return;
    }
    assert_eq!(fixture.runs(&snapshot, "huge"), [(0, 512, A)]);
    assert_eq!(fixture.runs(&snapshot, "split"), [(0, 256, A)]);
}

#[test]
fn sparse_mappings_give_single_pages() {
    let fixture = Fixture::start("sparse", &["2", "16384"]);
    let runs: Vec<_> = (0..128).map(|index| (index * 4096, 1, A)).collect();
    assert_eq!(fixture.runs(&fixture.scan(), "sparse"), runs);
}

#[test]
fn a_very_large_sparse_mapping_is_read_by_its_touched_vmas() {
    let fixture = Fixture::start("sparse", &["96", "16384"]);
    assert_eq!(fixture.runs(&fixture.scan(), "sparse").len(), 96 * 64);
}

#[test]
fn more_ranges_than_one_call_returns() {
    let fixture = Fixture::start("sparse", &["1", "8"]);
    let runs: Vec<_> = (0..131_072).map(|index| (index * 2, 1, A)).collect();
    let snapshot = fixture.scan();
    assert!(
        fixture.runs(&snapshot, "sparse") == runs,
        "every second page of 1 GiB"
    );
}

#[test]
fn a_run_of_pages_goes_on_across_vmas() {
    let fixture = Fixture::start("many_vmas", &["20000", "3"]);
    let snapshot = fixture.scan();
    assert_eq!(fixture.runs(&snapshot, "all"), [(0, 60_000, A)]);
    assert!(snapshot.vmas.len() > 20_000);
}

#[test]
fn pages_mapped_by_frame_number_are_not_resident() {
    let Some(fixture) = Fixture::try_start("pfn_mapped", &[]) else {
        return;
    };
    // Older kernels map the ring page by page, which is RSS: the sum decides which it is.
    let runs = fixture.runs(&fixture.scan(), "ring");
    assert!(runs.is_empty() || runs == [(0, 9, F)], "{runs:?}");
}

#[test]
fn a_process_outlives_its_first_thread() {
    let fixture = Fixture::start("leader_exits", &[]);
    assert_eq!(fixture.runs(&fixture.scan(), "later"), [(4, 5, A)]);
}

#[test]
fn memory_that_two_processes_live_in_is_counted_once() {
    let fixture = Fixture::start("vfork_child", &[]);
    let child = u32::try_from(fixture.regions["child"].0).expect("a pid");
    let snapshot = scan_tree(&[fixture.pid(), child], detect(), 5).expect("both can be scanned");
    assert_eq!((snapshot.taken_ns, snapshot.processes.len()), (5, 1));
    assert_eq!(snapshot.rss_bytes(), fixture.scan().rss_bytes);
}

#[test]
fn a_process_that_is_gone_is_told_apart_and_left_out_of_the_tree() {
    let mut zombie = Command::new("true")
        .stdout(Stdio::piped())
        .spawn()
        .expect("true starts");
    // The end of its output comes with its exit; a zombie is left.
    zombie
        .stdout
        .take()
        .expect("piped")
        .read_to_end(&mut Vec::new())
        .expect("a pipe");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !matches!(
        scan_process(zombie.id(), detect()),
        Err(ScanError::Gone { .. })
    ) {
        assert!(Instant::now() < deadline, "a zombie has no memory");
    }
    let pid = zombie.id();
    zombie.wait().expect("a child");
    assert!(matches!(
        scan_process(pid, detect()),
        Err(ScanError::Gone { .. })
    ));
    assert!(matches!(
        StatmReader::open(pid),
        Err(ScanError::Gone { .. })
    ));

    let fixture = Fixture::start("anonymous", &[]);
    let snapshot = scan_tree(&[pid, fixture.pid()], detect(), 0).expect("one is left");
    assert_eq!(snapshot.processes.len(), 1);
}

#[test]
fn statm_gives_rss_without_a_scan() {
    let fixture = Fixture::start("sparse", &["2", "16384"]);
    let statm = StatmReader::open(fixture.pid()).expect("statm");
    let exact = fixture.scan().rss_bytes;
    let quick = statm.rss_bytes().expect("alive");
    // The bound of the kernel's per-CPU counters: three of them, a batch of 32 pages or more each.
    let cpus = std::thread::available_parallelism().expect("known").get() as u64;
    let bound = 3 * cpus * (32.max(2 * cpus)) * PAGE;
    assert!(quick.abs_diff(exact) <= bound, "{quick} {exact}");
    assert!(vm_hwm_bytes(fixture.pid()).expect("alive") + bound >= exact);
}

/// A group for `fixture`, as each means that this machine has.
fn groups(fixture: &Fixture, name: &str, pids: &[u32]) -> Vec<TargetGroup> {
    let listed = pids.to_vec();
    let mut groups = vec![TargetGroup::without_cgroup(move || listed.clone())];
    match TargetGroup::create(&format!("profiler-test-{name}-{}", std::process::id())) {
        Ok(group) => {
            for pid in pids {
                group.add(*pid).expect("processes can be moved in");
            }
            groups.push(group);
        }
        Err(error) => eprintln!("SKIPPED: no cgroup to freeze {}: {error}", fixture.pid()),
    }
    groups
}

const LONG: Duration = Duration::from_secs(30);

#[test]
fn a_frozen_tree_does_not_run_and_a_thawed_one_does() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("busy-{}", std::process::id()));
    let fixture = Fixture::start("busy", &[path.to_str().expect("UTF-8")]);
    let child = u32::try_from(fixture.regions["child"].0).expect("a pid");
    let counters = || -> Vec<u64> {
        let bytes = fs::read(&path).expect("the fixture's file");
        bytes[..40]
            .chunks(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("8")))
            .collect()
    };
    let groups = groups(&fixture, "busy", &[fixture.pid(), child]);
    for group in &groups {
        for _ in 0..5 {
            let frozen = group.freeze(LONG).expect("it stops");
            let before = counters();
            // Not to wait for anything: time in which it could run if it were not frozen.
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(counters(), before, "{group:?}");
            scan_tree(&group.pids().expect("a list"), detect(), 0).expect("a scan");
            frozen.thaw().expect("it goes on");
            let deadline = Instant::now() + LONG;
            while counters()
                .iter()
                .zip(&before)
                .any(|(now, then)| now == then)
            {
                assert!(Instant::now() < deadline, "all go on: {group:?}");
            }
        }
    }
    let last = groups.last().expect("one at least");
    let mut pids = last.pids().expect("a list");
    pids.sort_unstable();
    let mut both = [fixture.pid(), child];
    both.sort_unstable();
    assert_eq!(pids, both);
    let _still_frozen = last.freeze(LONG).expect("it stops");
    last.kill(LONG).expect("even a frozen group dies");
    groups
        .iter()
        .for_each(|group| group.remove().expect("an empty group"));
    fs::remove_file(&path).expect("the fixture's file");
}

#[test]
fn a_process_that_was_stopped_already_stays_stopped() {
    let fixture = Fixture::start("anonymous", &[]);
    let pid = fixture.pid();
    let group = TargetGroup::without_cgroup(move || vec![pid]);
    let id = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGSTOP).expect("our child");
    let untraced = nix::sys::wait::WaitPidFlag::WUNTRACED;
    nix::sys::wait::waitpid(id, Some(untraced)).expect("it stops");
    drop(group.freeze(LONG).expect("it is stopped"));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("alive");
    assert!(stat.contains(") T "), "{stat}");
}

#[test]
fn groups_of_the_target_below_ours_belong_to_it() {
    let fixture = Fixture::start("anonymous", &[]);
    let groups = groups(&fixture, "nested", &[fixture.pid()]);
    let Some(TargetGroup::Cgroup(cgroup)) = groups.get(1) else {
        return;
    };
    let below = cgroup.directory().join("made by the target");
    fs::create_dir(&below).expect("a group below");
    fs::write(below.join("cgroup.procs"), fixture.pid().to_string()).expect("moved");
    assert_eq!(groups[1].pids().expect("a list"), [fixture.pid()]);
    groups[1].kill(LONG).expect("it dies");
    groups[1].remove().expect("both are removed");
}

/// Prints what freezing and scanning cost. Run it alone, in release mode:
///
/// ```text
/// cargo test --release -p profiler --test residency -- --ignored --nocapture cost
/// ```
#[test]
#[ignore = "prints figures, takes most of the machine's thread ids"]
fn cost() {
    for threads in ["10000", "30000"] {
        let fixture = Fixture::start("threads", &[threads]);
        let statm = StatmReader::open(fixture.pid()).expect("statm");
        let groups = groups(&fixture, "cost", &[fixture.pid()]);
        let before = statm.rss_bytes().expect("alive");
        for (group, means) in groups.iter().zip(["SIGSTOP", "cgroup "]) {
            for _ in 0..3 {
                let frozen = group.freeze(LONG).expect("it stops");
                let took = frozen.took;
                let begun = Instant::now();
                frozen.thaw().expect("it goes on");
                println!(
                    "{threads} threads, {means}: frozen in {took:.1?}, let go in {:.1?}",
                    begun.elapsed()
                );
            }
        }
        let _frozen = groups.last().expect("one").freeze(LONG).expect("it stops");
        println!(
            "{threads} threads: RSS {before} before, {} after freezing",
            statm.rss_bytes().expect("alive")
        );
        print_scan_times(&fixture, &format!("{threads} threads"));
        groups
            .iter()
            .for_each(|group| group.kill(LONG).expect("it dies"));
        groups
            .iter()
            .for_each(|group| group.remove().expect("empty"));
    }
    let fixture = Fixture::start("many_vmas", &["1", "1000000"]);
    print_scan_times(&fixture, "1 VMA, 1,000,000 pages");
    drop(fixture);
    let fixture = Fixture::start("many_vmas", &["60000", "16"]);
    print_scan_times(&fixture, "60,000 VMAs, 960,000 pages");
    drop(fixture);
    // On both sides of the size from which on plain pagemap asks smaps first.
    for gib in ["60", "70"] {
        let fixture = Fixture::start("sparse", &[gib, "16384"]);
        print_scan_times(&fixture, &format!("{gib} GiB mapped, a page in 16 MiB"));
    }
}

fn print_scan_times(fixture: &Fixture, what: &str) {
    for method in [Method::PagemapScan, Method::Pagemap] {
        let mut times: Vec<Duration> = (0..5)
            .map(|_| {
                let begun = Instant::now();
                let snapshot = scan_process(fixture.pid(), method).expect("a scan");
                assert_eq!(snapshot.unexplained_bytes, 0);
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        println!(
            "{what}: {method:?} in {:.1?} (fastest {:.1?})",
            times[2], times[0]
        );
    }
}
