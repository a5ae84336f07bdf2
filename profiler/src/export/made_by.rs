//! The memory at the peak as stacks of words, each with its bytes: what flame graphs, folded stacks and pprof
//! all show. They sum to RSS.

use std::collections::BTreeMap;

use crate::{
    classify::Class,
    results::{CallStack, Frame, MadeBytes, Results, Run},
};

/// Bytes that one call stack made for one purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack<'a> {
    /// Process, call frames outermost first, and what the memory is.
    pub levels: Vec<Level<'a>>,
    /// Of the memory.
    pub class: Class,
    /// Resident bytes.
    pub bytes: u64,
}

/// One word of a stack.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Level<'a> {
    /// What is written.
    pub label: String,
    /// The frame, where it is one.
    pub frame: Option<&'a Frame>,
}

impl Level<'_> {
    fn word(label: String) -> Self {
        Level { label, frame: None }
    }
}

/// The stacks of all runs, in the order of their bytes. Where there are several runs, each stands at the root.
pub fn stacks(results: &Results) -> Vec<Stack<'_>> {
    let several = results.runs.len() > 1;
    let of_run = |run| {
        let name = several.then(|| run_name(run));
        let rows = run.peak.iter().flat_map(|peak| &peak.made_by);
        rows.map(move |row| stack(row, run, name.clone()))
    };
    results.runs.iter().flat_map(of_run).collect()
}

fn run_name(run: &Run) -> String {
    let tasks = run.tasks.map(|tasks| format!(", {tasks} tasks"));
    let repeat = (run.repeat > 0).then(|| format!(", repeat {}", run.repeat));
    let parts = [Some(run.label.clone()), tasks, repeat];
    parts.into_iter().flatten().collect()
}

fn stack<'a>(row: &'a MadeBytes, run: &'a Run, name: Option<String>) -> Stack<'a> {
    let mut levels: Vec<Level> = name.map(Level::word).into_iter().collect();
    levels.push(Level::word(process_name(row.tgid, run)));
    match row.call_stack.and_then(|index| run.call_stacks.get(index)) {
        Some(call_stack) => levels.extend(frames(call_stack)),
        None => levels.push(Level::word(format!("[{}]", row.made_by))),
    }
    levels.push(Level::word(purpose(row)));
    Stack {
        levels,
        class: row.leaf.class(),
        bytes: row.bytes,
    }
}

fn process_name(tgid: u32, run: &Run) -> String {
    let process = run.processes.iter().find(|process| process.tgid == tgid);
    let executable = process.map_or("", |process| process.executable.as_str());
    match file_name(executable) {
        "" => format!("process {tgid}"),
        name => name.to_owned(),
    }
}

fn frames(call_stack: &CallStack) -> impl Iterator<Item = Level<'_>> {
    let cut = call_stack.cut.as_ref();
    let cut = cut.map(|why| Level::word(format!("[outer frames missing: {why}]")));
    let frames = call_stack.frames.iter().map(|frame| Level {
        label: frame_label(frame),
        frame: Some(frame),
    });
    cut.into_iter().chain(frames)
}

fn frame_label(frame: &Frame) -> String {
    match &frame.function {
        Some(function) => function.clone(),
        None => format!("{}+{:#x}", file_name(&frame.module), frame.offset),
    }
}

/// `[heap: blocks in use]`, `[runtime: programs and libraries libc.so.6]`
fn purpose(row: &MadeBytes) -> String {
    let what = format!("{}: {}", row.leaf.class().name(), row.leaf.words());
    match row
        .backing
        .as_deref()
        .filter(|backing| backing.starts_with('/'))
    {
        Some(path) => format!("[{what} {}]", file_name(path)),
        None => format!("[{what}]"),
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Folded stacks: a line a stack, its words apart by `;`, then its bytes. What `flamegraph.pl`, inferno and
/// speedscope read.
pub fn folded(results: &Results) -> String {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for stack in stacks(results) {
        let words = stack.levels.iter().map(|level| folded_word(&level.label));
        let line = words.collect::<Vec<_>>().join(";");
        *lines.entry(line).or_default() += stack.bytes;
    }
    let lines = lines.iter();
    lines
        .map(|(line, bytes)| format!("{line} {bytes}\n"))
        .collect()
}

/// A semicolon would part a word in two (`[u8; 4]`), a line break the line.
pub(super) fn folded_word(label: &str) -> String {
    label.replace(';', ",").replace(['\n', '\r'], " ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run of `server`: 8 KiB by `main → read<[u8; 4]>`, 4 KiB by exec.
    pub fn results() -> Results {
        let text = include_str!("../../tests/sample/made_by.json");
        serde_json::from_str(text).expect("a result")
    }

    #[test]
    fn folded_stacks_sum_to_rss() {
        let results = results();
        let text = folded(&results);
        assert_eq!(
            text,
            "server;[mapped by exec];[runtime: programs and libraries libc.so.6] 4096\n\
             server;[outer frames missing: too deep];main;read<[u8, 4]>;libc.so.6+0x1f;[heap: large blocks of malloc] 8192\n"
        );
        let sum: u64 = text
            .lines()
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(sum, results.runs[0].peak.as_ref().unwrap().rss_bytes);
    }
}
