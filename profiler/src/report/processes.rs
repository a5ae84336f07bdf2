//! The processes of a run, each with its memory at the tree's peak by class.

use crate::{
    classify::Class,
    results::{Process, Run},
    units::{human, thousands},
};

use super::columns::{Flush, Table};

/// Processes shown one by one; the JSON has all.
const SHOWN: usize = 12;

/// Those with most memory at the peak, and a row for the rest of those that were alive then.
pub fn processes_table(run: &Run) -> Table<9> {
    let mut processes: Vec<&Process> = run.processes.iter().collect();
    processes.sort_by_key(|process| std::cmp::Reverse(process.rss_bytes_at_peak));
    let (shown, rest) = processes.split_at(processes.len().min(SHOWN));
    let mut rows: Vec<[String; 9]> = shown.iter().map(|process| row(process)).collect();
    rows.extend(rest_row(rest));
    Table {
        headings: [
            "tgid",
            "stacks",
            "heap",
            "runtime",
            "unclassified",
            "RSS",
            "threads",
            "recognised as",
            "executable",
        ],
        flush: {
            let mut flush = [Flush::Right; 9];
            flush[7] = Flush::Left;
            flush[8] = Flush::Left;
            flush
        },
        rows,
    }
}

/// Those that had more at a moment of their own than at the peak of the tree, each then; `None`: there is none.
pub fn own_peaks_table(run: &Run) -> Option<Table<7>> {
    let own = |process: &Process| {
        let own = process.at_peak.clone()?;
        (own.rss_bytes > process.rss_bytes_at_peak).then_some((process.tgid, own))
    };
    let mut peaks: Vec<_> = run.processes.iter().filter_map(own).collect();
    peaks.sort_by_key(|(_, own)| std::cmp::Reverse(own.rss_bytes));
    let rows = peaks.iter().take(SHOWN).map(|(tgid, own)| {
        let [stacks, heap, runtime, unclassified] =
            Class::ALL.map(|class| human(own.classes.get(class)));
        let at = format!("{:.3} s", own.at_seconds);
        let rss = human(own.rss_bytes);
        [
            tgid.to_string(),
            at,
            stacks,
            heap,
            runtime,
            unclassified,
            rss,
        ]
    });
    let headings = [
        "tgid",
        "after exec",
        "stacks",
        "heap",
        "runtime",
        "unclassified",
        "RSS",
    ];
    (!peaks.is_empty()).then(|| Table {
        headings,
        flush: [Flush::Right; 7],
        rows: rows.collect(),
    })
}

fn row(process: &Process) -> [String; 9] {
    let class = |class| human(process.classes_at_peak.get(class));
    // Documents of older versions do not tell the classes of a process.
    let known = process.classes_at_peak.total() == process.rss_bytes_at_peak;
    let [stacks, heap, runtime, unclassified] = match process.rss_bytes_at_peak {
        1.. if known => Class::ALL.map(class),
        _ => std::array::from_fn(|_| "-".to_owned()),
    };
    [
        process.tgid.to_string(),
        stacks,
        heap,
        runtime,
        unclassified,
        match process.rss_bytes_at_peak {
            0 => "not alive".to_owned(),
            bytes => human(bytes),
        },
        thousands(process.threads_peak),
        process.runtime.clone(),
        process.executable.clone(),
    ]
}

fn rest_row(rest: &[&Process]) -> Option<[String; 9]> {
    if rest.is_empty() {
        return None;
    }
    let class = |class| human(rest.iter().map(|it| it.classes_at_peak.get(class)).sum());
    let [stacks, heap, runtime, unclassified] = Class::ALL.map(class);
    let alive = rest.iter().filter(|it| it.rss_bytes_at_peak > 0).count();
    Some([
        String::new(),
        stacks,
        heap,
        runtime,
        unclassified,
        human(rest.iter().map(|it| it.rss_bytes_at_peak).sum()),
        String::new(),
        String::new(),
        format!(
            "{} more, {} of them alive at the peak",
            thousands(rest.len() as u64),
            thousands(alive as u64)
        ),
    ])
}
