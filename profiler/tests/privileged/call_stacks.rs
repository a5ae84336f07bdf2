//! The call stacks that made the memory of a program whose calls are known.

use profiler::{
    classify::Leaf,
    probes::attach::ProbeState,
    results::{MadeBytes, Run},
};

use crate::{fixtures::build, profiled::Profiling};

/// The program ends when it has been scanned: a scan reads where its code is mapped, without which its functions have
/// no names.
fn run(options: &[&str]) -> Run {
    let program = build("call_stacks");
    let profiling = Profiling::start_with(options, 1, &[program.to_str().expect("UTF-8")]);
    profiling.wait_for_scan_of(&[profiling.told["pid"].0 as u32]);
    profiling.end()
}

/// Kernels before 5.15 have none, and say so.
fn are_taken(run: &Run) -> bool {
    let probe = run
        .probes
        .iter()
        .find(|probe| probe.name.ends_with("with call stacks"));
    let probe = probe.expect("there is a probe for them");
    if probe.state == ProbeState::Off {
        eprintln!("SKIPPED: {}", probe.reason.as_deref().unwrap_or_default());
    }
    probe.state == ProbeState::Attached
}

/// The functions of the program itself from `main`, or the start of a thread, on.
fn functions<'a>(run: &'a Run, row: &MadeBytes) -> Vec<&'a str> {
    let stack = row.call_stack.map(|index| &run.call_stacks[index]);
    let frames = stack.into_iter().flat_map(|stack| &stack.frames);
    frames
        .filter(|frame| frame.module.ends_with("call_stacks"))
        .filter_map(|frame| frame.function.as_deref())
        .filter(|name| *name != "_start")
        .collect()
}

/// MiB that this chain of functions made as large blocks, rounded down.
fn large_mib(run: &Run, chain: &[&str]) -> u64 {
    let rows = &run.peak.as_ref().expect("a peak").made_by;
    let rows = rows.iter().filter(|row| row.leaf == Leaf::MallocLarge);
    let made = rows.filter(|row| functions(run, row) == chain);
    made.map(|row| row.bytes).sum::<u64>() >> 20
}

#[test]
fn each_call_has_the_chain_that_made_it() {
    let run = run(&[]);
    if !are_taken(&run) {
        return;
    }
    assert_eq!(large_mib(&run, &["main", "outer", "middle", "inner"]), 16);
    assert_eq!(
        large_mib(&run, &["in_a_thread", "outer", "middle", "inner"]),
        12
    );
    // What was moved and grew keeps the stack of its mmap.
    assert_eq!(large_mib(&run, &["main", "maps_itself"]), 8);

    let peak = run.peak.as_ref().expect("a peak");
    let heap = peak
        .made_by
        .iter()
        .filter(|row| row.made_by == "brk" && functions(&run, row) == ["main", "grows_the_heap"]);
    let heap: u64 = heap.map(|row| row.bytes).sum();
    assert!(
        (1_700_000..2_200_000).contains(&heap),
        "{heap} bytes of heap"
    );
}

#[test]
fn bytes_by_call_sum_to_rss_and_what_has_no_stack_says_why() {
    for options in [&["--tier", "C"][..], &[]] {
        let run = run(options);
        if !are_taken(&run) {
            return;
        }
        let peak = run.peak.as_ref().expect("a peak");
        let sum: u64 = peak.made_by.iter().map(|row| row.bytes).sum();
        assert_eq!(sum, peak.rss_bytes);
        for row in &peak.made_by {
            let known = row.call_stack.is_some();
            assert_eq!(
                known,
                ["mmap", "brk"].contains(&row.made_by.as_str()),
                "{row:?}"
            );
            let told = ["mapped by exec", "not captured: "];
            assert!(
                known || told.iter().any(|words| row.made_by.contains(words)),
                "{row:?}"
            );
        }
        let counts = run.call_stack_counts.expect("counted");
        assert_eq!((counts.lost, counts.table_full), (0, 0));
        assert!(counts.distinct <= counts.calls, "{counts:?}");
        assert_eq!(run.events.dropped, 0);
    }
}

/// Every name is that of a symbol which covers its address.
#[test]
fn names_are_those_that_cover_the_address() {
    let run = run(&[]);
    if !are_taken(&run) {
        return;
    }
    let program = build("call_stacks");
    let symbols = std::process::Command::new("nm")
        .arg("-S")
        .arg(&program)
        .output();
    let Ok(symbols) = symbols else {
        eprintln!("SKIPPED: no nm");
        return;
    };
    let symbols = String::from_utf8(symbols.stdout).expect("text");
    let covers = |name: &str, offset: u64| {
        symbols.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [start, size, _, symbol] = words[..] else {
                return false;
            };
            let hex = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
            symbol == name && (hex(start)..hex(start) + hex(size)).contains(&offset)
        })
    };
    let frames = run.call_stacks.iter().flat_map(|stack| &stack.frames);
    let mut seen = 0;
    for frame in frames.filter(|frame| program.ends_with(frame.module.rsplit('/').next().unwrap()))
    {
        if let Some(name) = &frame.function {
            assert!(covers(name, frame.offset), "{frame:?}");
            seen += 1;
        }
    }
    assert!(seen >= 10, "{seen} frames");
}

#[test]
fn they_can_be_left_off() {
    let run = run(&["--no-call-stacks"]);
    assert!(run.call_stacks.is_empty() && run.call_stack_counts.is_none());
    let peak = run.peak.as_ref().expect("a peak");
    assert!(peak.made_by.is_empty());
    assert!(peak.regions.iter().all(|row| row.made_by.is_none()));
}
