//! `REPORT.md`: results as the draft of a post. Whatever it says is worked out from them, so that another run says
//! something else; only what the method is and cannot do stands here as text.

mod findings;
mod markdown;
mod trust;

use crate::charts::{LEAVES, TIMELINES};
use crate::classify::runtime::file_name;
use crate::results::slopes::slopes_of;
use crate::results::summary::{
    Cell, cells, kernel_bytes, of_least_load, programs, task_counts, total_bytes,
};
use crate::results::{Host, Results, Run};
use crate::units::{human, thousands};

use super::columns::Flush;
use super::launch::launch_table;
use super::run::title;
use super::slopes::slopes_table;
use super::table::peaks_table;
use findings::largest_of_each;
use markdown::{code, code_cell, picture, plain, rows, table};

/// A chart that was drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chart {
    /// Its file without extension, relative to the post.
    pub name: String,
    /// Its title, which states what it shows.
    pub finding: String,
}

/// The post about `results`. `charts` are those that were drawn; no other is referred to.
pub fn post(results: &Results, charts: &[Chart]) -> String {
    let cells = cells(results);
    let Some(most) = task_counts(results).last().copied() else {
        return without_tasks(results);
    };
    let post = Post {
        results,
        charts,
        least: of_least_load(&cells),
        cells,
    };
    let sections = [
        post.opening(most),
        post.setup(),
        post.peaks(most),
        post.composition(),
        post.costs(),
        post.kernel(),
        post.launch(),
        post.timelines(),
        post.failures(),
        trust::section(results),
        post.versions(),
    ];
    sections
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("\n")
}

/// A post about commands that are not benchmark programs, which no chart compares.
fn without_tasks(results: &Results) -> String {
    let mut text = "# Where does the memory go?\n\n".to_owned();
    if results.runs.is_empty() {
        return text + "Nothing was run.\n";
    }
    for run in &results.runs {
        let found = match &run.peak {
            Some(peak) => crate::charts::finding_of_run(run, peak),
            None => title(run),
        };
        let command = code(&run.command.join(" "));
        text += &format!("- {} ({command})\n", plain(&found));
    }
    [text, trust::section(results).unwrap_or_default()].join("\n")
}

/// A word of a command; of a whole path the last part, since where somebody keeps their files is of no use to
/// the readers of a post.
fn without_folder(word: &str) -> &str {
    match word.starts_with('/') {
        true => file_name(word),
        false => word,
    }
}

struct Post<'a> {
    results: &'a Results,
    charts: &'a [Chart],
    /// All, of every load.
    cells: Vec<Cell<'a>>,
    /// Those in which tasks held least.
    least: Vec<Cell<'a>>,
}

impl Post<'_> {
    /// The chart of that name, if it was drawn.
    fn picture(&self, name: &str) -> Option<String> {
        let chart = self.charts.iter().find(|chart| chart.name == name)?;
        Some(picture(&format!("{name}.png"), &chart.finding))
    }

    /// All charts in that folder.
    fn pictures_in(&self, folder: &str) -> Vec<String> {
        let inside = |chart: &&Chart| {
            let rest = chart.name.strip_prefix(folder);
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let charts = self.charts.iter().filter(inside);
        charts
            .map(|chart| picture(&format!("{}.png", chart.name), &chart.finding))
            .collect()
    }

    /// Title, and what was found in short.
    fn opening(&self, most: u64) -> Option<String> {
        let tasks = match most {
            1 => "a task".to_owned(),
            most => format!("{} concurrent tasks", thousands(most)),
        };
        let mut text = format!("# Where does the memory of {tasks} go?\n\n");
        let mut said = findings::of_all(&self.least, &slopes_of(&self.least), most);
        if said.is_empty() {
            said.push("No program completed.".to_owned());
        }
        for finding in said {
            text += &format!("- {}\n", plain(&finding));
        }
        Some(text)
    }

    fn setup(&self) -> Option<String> {
        let Host {
            kernel,
            os,
            cpu,
            cpus,
            memory_bytes,
            swap_bytes,
            transparent_hugepages,
            overcommit_memory,
            randomize_va_space,
            profiler_version,
            ebpf_object,
        } = &self.results.host;
        let mut days: Vec<&str> = self
            .results
            .runs
            .iter()
            .filter_map(|run| run.started_at.get(..10))
            .collect();
        days.sort_unstable();
        let facts = [
            (
                "machine",
                format!("{cpus} × {cpu}, {}", human(*memory_bytes)),
            ),
            ("kernel", format!("Linux {kernel}")),
            ("system", os.clone()),
            (
                "settings",
                format!(
                    "transparent hugepages {transparent_hugepages}, overcommit {overcommit_memory}, address space \
                     randomisation {randomize_va_space}, swap {}",
                    human(*swap_bytes)
                ),
            ),
            (
                "profiler",
                format!("{profiler_version} (eBPF object: {ebpf_object})"),
            ),
            (
                "when",
                match days.as_slice() {
                    [first, .., last] if first != last => format!("{first} to {last}"),
                    [first, ..] => (*first).to_owned(),
                    [] => "unknown".to_owned(),
                },
            ),
        ];
        let mut text = "## Setup\n\n".to_owned();
        text += &rows(
            &[("", Flush::Left), ("", Flush::Left)],
            facts.map(|(name, value)| vec![name.to_owned(), plain(&value)]),
        );
        let command = self.command();
        text += &format!(
            "\nEach program starts N tasks; each task waits, and all N are alive at once before the first ends. Memory is \
             that of the moment with the highest RSS. {}\n",
            command.map_or(String::new(), |command| format!(
                "The same again: {}",
                code(&command)
            ))
        );
        Some(text)
    }

    /// What would run all this again, where one command would.
    fn command(&self) -> Option<String> {
        let listed = |values: Vec<u64>| {
            let mut values = values;
            values.sort_unstable();
            values.dedup();
            let words: Vec<String> = values.iter().map(u64::to_string).collect();
            words.join(",")
        };
        let runs = || self.results.runs.iter();
        let seconds = self.results.runs.first()?.task_seconds?;
        if runs().any(|run| run.task_seconds != Some(seconds)) {
            return None;
        }
        let programs = programs(&self.cells).join(",");
        let mut command = format!(
            "cargo xtask run -- --tasks {} --seconds {seconds} --programs {programs}",
            listed(task_counts(self.results))
        );
        let repeats = runs().map(|run| run.repeat + 1).max().unwrap_or(1);
        if repeats > 1 {
            command += &format!(" --repeat {repeats}");
        }
        type Load = fn(&Run) -> u64;
        let loads: [(&str, Load); 2] = [
            ("--stack-depth", |run| run.stack_depth_bytes),
            ("--payload", |run| run.payload_bytes),
        ];
        for (option, load) in loads {
            let values: Vec<u64> = runs().map(load).collect();
            if values.iter().any(|value| *value > 0) {
                command += &format!(" {option} {}", listed(values));
            }
        }
        Some(command)
    }

    /// The table of all, and the chart of each N, the largest first.
    fn peaks(&self, most: u64) -> Option<String> {
        let mut text = "## Peak memory\n\n".to_owned();
        text += &self
            .picture(&format!("tasks-{most}"))
            .map_or(String::new(), |it| it + "\n");
        text += &table(&peaks_table(&self.cells));
        let mut counts = task_counts(self.results);
        counts.pop();
        for count in counts.iter().rev() {
            text += &self
                .picture(&format!("tasks-{count}"))
                .map_or(String::new(), |it| format!("\n{it}"));
        }
        for count in task_counts(self.results) {
            text += &self
                .picture(&format!("load-{count}"))
                .map_or(String::new(), |it| format!("\n{it}"));
        }
        Some(text)
    }

    /// What the memory of each program is.
    fn composition(&self) -> Option<String> {
        let largest = largest_of_each(&self.least);
        if largest.is_empty() {
            return None;
        }
        let mut text = "## What it is\n\nEach program at the largest N that it completed, with what the kernel holds beside \
                        RSS.\n\n"
            .to_owned();
        for (cell, peak) in &largest {
            let label = plain(&cell.run().label);
            text += &format!(
                "- **{label}**, {}, {} of memory: {}.\n",
                findings::tasks(cell.tasks),
                human(total_bytes(peak)),
                plain(&findings::parts(peak))
            );
        }
        let charts = self.picture("composition").into_iter();
        for chart in charts.chain(self.pictures_in(LEAVES)) {
            text += &format!("\n{chart}");
        }
        Some(text)
    }

    /// Memory over time.
    fn timelines(&self) -> Option<String> {
        let charts = self.pictures_in(TIMELINES);
        (!charts.is_empty()).then(|| format!("## Over time\n\n{}", charts.join("\n")))
    }

    /// Base and slope.
    fn costs(&self) -> Option<String> {
        let slopes = slopes_of(&self.least);
        let costs = slopes_table(&self.least, &slopes)?;
        let mut text = "## What a task costs\n\n".to_owned();
        for finding in findings::costs(&self.least, &slopes) {
            text += &format!("- {}\n", plain(&finding));
        }
        text += &format!("\n{}", table(&costs));
        for name in ["scaling", "base-slope"] {
            text += &self
                .picture(name)
                .map_or(String::new(), |it| format!("\n{it}"));
        }
        Some(text)
    }

    /// The kernel's memory, of programs of which it is much.
    fn kernel(&self) -> Option<String> {
        let largest = largest_of_each(&self.least);
        let much: Vec<_> = largest
            .iter()
            .filter(|(_, peak)| {
                kernel_bytes(peak).is_some_and(|kernel| kernel * 10 >= peak.rss_bytes)
            })
            .collect();
        if much.is_empty() {
            return None;
        }
        let mut text = "## What the kernel holds\n\nRSS leaves it out. Programs of which it is a tenth of RSS or more:\n\n".to_owned();
        for (cell, peak) in much {
            text += &format!("- {}\n", plain(&findings::kernel(cell, peak)));
        }
        text += &self
            .picture("user-kernel")
            .map_or(String::new(), |it| format!("\n{it}"));
        Some(text)
    }

    fn launch(&self) -> Option<String> {
        let launch = launch_table(&self.cells)?;
        let mut text = format!("## Starting a task\n\n{}", table(&launch));
        for count in task_counts(self.results).iter().rev() {
            text += &self
                .picture(&format!("launch-{count}"))
                .map_or(String::new(), |it| format!("\n{it}"));
        }
        Some(text)
    }

    fn failures(&self) -> Option<String> {
        let failed: Vec<String> = self
            .cells
            .iter()
            .filter_map(|cell| {
                let failure = super::run::failure(cell.failure()?)?;
                let of = match (cell.failures(), cell.repeats()) {
                    (failures, repeats) if failures < repeats => {
                        format!(" ({failures} of {repeats} runs)")
                    }
                    _ => String::new(),
                };
                let label = plain(&cell.label());
                let tasks = findings::tasks(cell.tasks);
                Some(format!("- **{label}**, {tasks}{of}: {}\n", plain(&failure)))
            })
            .collect();
        (!failed.is_empty()).then(|| format!("## What did not complete\n\n{}", failed.concat()))
    }

    fn versions(&self) -> Option<String> {
        // The command of the largest N.
        let of_largest = |program: &&str| {
            let own = self.cells.iter().filter(|cell| cell.program() == *program);
            own.max_by_key(|cell| cell.tasks).map(Cell::run)
        };
        let programs = programs(&self.cells);
        let shown = programs.iter().filter_map(of_largest);
        let row = |run: &Run| {
            let or_dash = |text: String| {
                if text.is_empty() {
                    "-".to_owned()
                } else {
                    text
                }
            };
            let command = match run.command.as_slice() {
                [] => "-".to_owned(),
                words => code_cell(
                    &words
                        .iter()
                        .map(|word| without_folder(word))
                        .collect::<Vec<_>>()
                        .join(" "),
                ),
            };
            vec![
                plain(&run.label),
                or_dash(plain(&run.version)),
                command,
                or_dash(plain(&run.settings.join(", "))),
            ]
        };
        let headings =
            ["program", "version", "command", "settings"].map(|name| (name, Flush::Left));
        Some(format!(
            "## Versions and commands\n\nOf whole paths only the last part is shown; `results.json` has all of them.\n\n{}",
            rows(&headings, shown.map(row))
        ))
    }
}
