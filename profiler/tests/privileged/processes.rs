//! Trees of processes: fork, vfork, spawn, and chains of exec.

use std::{fs, os::unix::fs::symlink};

use crate::{
    fixtures::build,
    profiled::{profile, profile_tree},
};

/// Path of a fixture, as an argument.
fn program(name: &str) -> String {
    build(name).to_str().expect("UTF-8").to_owned()
}

#[test]
fn memory_shared_by_fork_counts_in_both_and_once_in_pss() {
    let run = profile_tree(1, &[&program("fork_cow")], |told, _| {
        vec![told["pid"].0 as u32, told["child"].0 as u32]
    });
    // Each of the two has every page; 768 of them are the same.
    assert_eq!(
        run.pages("both"),
        [("malloc.large", 1024), ("malloc.large", 1024)]
    );
    let peak = run.peak();
    assert!(peak.rss_bytes - peak.pss_bytes >= 768 * 4096, "{peak:?}");
    let (parent, child) = (run.told["pid"].0 as u32, run.told["child"].0 as u32);
    let parents: Vec<_> = run
        .run
        .processes
        .iter()
        .map(|process| (process.tgid, process.parent))
        .collect();
    assert_eq!(parents, [(parent, None), (child, Some(parent))]);
}

#[test]
fn a_vfork_child_has_no_memory_of_its_own() {
    let run = profile("vfork_child", &[]);
    assert_eq!(run.pages("both"), [("libc.small", 2)]);
    assert_eq!(run.run.processes.len(), 2);
    assert_eq!(
        run.peak().threads,
        1,
        "the parent waits for its child, which is not scanned"
    );
}

#[test]
fn a_spawned_program_has_its_own() {
    let run = profile_tree(1, &[&program("spawn")], |told, _| {
        vec![told["pid"].0 as u32, told["child"].0 as u32]
    });
    assert_eq!(run.pages("ours"), [("malloc.large", 120)]);
    let processes = &run.run.processes;
    // The second one is that whose exec failed.
    assert_eq!(processes.len(), 3);
    assert_eq!(processes[1].rss_bytes_at_peak, 0);
    assert!(processes[2].executable.ends_with("/cat"), "{processes:?}");
    assert_eq!(processes[2].tgid, run.told["child"].0 as u32);
}

#[test]
fn a_chain_of_exec_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    symlink(build("anonymous"), folder.path().join("at-last")).expect("a link");
    // Each of `env` and `sh` looks into the two folders that are not there first.
    let path = format!(
        "PATH=/not/there:/nor/there:{}:/usr/bin:/bin",
        folder.path().display()
    );
    // More than a shell has, so that the peak of the chain is at its end.
    let command = [
        "env",
        &path,
        "sh",
        "-c",
        "exec sh -c 'exec env at-last 1024'",
    ];
    let chained = profile_tree(1, &command, |told, _| vec![told["pid"].0 as u32]);
    let alone = profile("anonymous", &["1024"]);
    let processes = &chained.run.processes;
    assert_eq!(processes.len(), 1);
    assert!(
        processes[0].executable.ends_with("/at-last"),
        "{processes:?}"
    );
    for region in ["written", "zero", "dontneed", "locked", "hidden"] {
        assert_eq!(chained.pages(region), alone.pages(region), "{region}");
    }
    let heap = |run: &crate::profiled::Profiled| run.peak().classes.heap;
    assert_eq!(heap(&chained), heap(&alone));
    assert_eq!(chained.peak().classes.unclassified, 0);
}

/// The target of a profiler and its children.
fn tree_of(profiler: u32) -> Vec<u32> {
    let children = |pid: u32| -> Vec<u32> {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("alive");
        list.split_whitespace()
            .map(|pid| pid.parse().expect("a pid"))
            .collect()
    };
    // The other child is the guardian, which has none.
    let is_guardian = |pid: u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).expect("alive");
        name == "profiler-guard\n"
    };
    let mut tree = children(profiler);
    tree.retain(|&pid| !is_guardian(pid));
    let below: Vec<u32> = tree.iter().flat_map(|&pid| children(pid)).collect();
    tree.extend(below);
    tree
}

#[test]
fn the_children_of_a_shell_are_measured_together() {
    // A shell gives its background jobs an empty input.
    let (brk, malloc_large) = (program("brk"), program("malloc_large"));
    let script = format!("exec 3<&0; '{brk}' 100 <&3 & '{malloc_large}'; wait");
    let run = profile_tree(2, &["sh", "-c", &script], |_, profiler| tree_of(profiler));
    assert_eq!(run.pages("block"), [("malloc.large", 101)]);
    assert!(run.rule("malloc.brk") >= 100);
    let alive: Vec<_> = run
        .run
        .processes
        .iter()
        .filter(|process| process.rss_bytes_at_peak > 0)
        .collect();
    assert_eq!(alive.len(), 3, "{alive:?}");
    assert_eq!(alive[1].parent, Some(alive[0].tgid));
    assert_eq!(alive[2].parent, Some(alive[0].tgid));
}
