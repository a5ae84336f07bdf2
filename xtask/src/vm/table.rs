//! All kernels together: a row each, and below it what failed and what was left out.

use super::report::{Job, Report};

/// One kernel that was booted.
pub struct Booted {
    /// `uname -r`, or what should have been booted.
    pub release: String,
    /// What it told.
    pub report: Report,
    /// It was killed when its time was over.
    pub hung: bool,
    /// From the start of the machine to its end.
    pub seconds: f64,
}

impl Booted {
    /// Each job ran and succeeded, and each test executable ran a test.
    pub fn succeeded(&self, jobs: &[String]) -> bool {
        self.report.done
            && jobs.iter().all(|name| {
                self.job(name).is_some_and(|job| {
                    job.succeeded() && job.counts().is_none_or(|counts| counts.passed > 0)
                })
            })
    }

    fn job(&self, name: &str) -> Option<&Job> {
        self.report.jobs.iter().find(|job| job.name == name)
    }

    /// A few words about a job.
    fn cell(&self, name: &str) -> String {
        let Some(job) = self.job(name) else {
            return "not run".to_owned();
        };
        let Some(ended) = &job.ended else {
            return if self.hung { "hung" } else { "crashed" }.to_owned();
        };
        match job.counts() {
            Some(counts) if counts.failed > 0 => {
                format!("{} FAILED, {} passed", counts.failed, counts.passed)
            }
            Some(counts) if job.succeeded() && counts.passed > 0 => {
                match job.skipped().iter().map(|(_, times)| times).sum() {
                    0 => format!("{} passed", counts.passed),
                    skips => format!("{} passed, {skips} skips", counts.passed),
                }
            }
            Some(_) if job.succeeded() => "NO TESTS".to_owned(),
            _ if job.succeeded() => "ok".to_owned(),
            _ => format!("FAILED: {ended}"),
        }
    }
}

/// The table: a column for each of `jobs`, and the seconds.
pub fn table(kernels: &[Booted], jobs: &[String]) -> String {
    let heading = ["kernel"]
        .into_iter()
        .chain(jobs.iter().map(String::as_str));
    let mut rows = vec![heading.chain(["seconds"]).map(str::to_owned).collect()];
    rows.extend(kernels.iter().map(|kernel| {
        let mut row = vec![kernel.release.clone()];
        row.extend(jobs.iter().map(|name| kernel.cell(name)));
        row.push(format!("{:.0}", kernel.seconds));
        row
    }));
    aligned(&rows)
}

/// Below the table: how each kernel is measured, and what its tests left out.
pub fn details(kernels: &[Booted]) -> String {
    let mut text = String::new();
    for kernel in kernels {
        text += &format!("\n{}\n", kernel.release);
        for job in &kernel.report.jobs {
            if job.name == "doctor" {
                let told = ["scan", "polling", "probes", "tier", "     "];
                let lines = job.lines.iter();
                let lines = lines.filter(|line| told.iter().any(|begin| line.starts_with(begin)));
                lines.for_each(|line| text += &format!("  {}\n", spaced(line)));
            }
            // What the tests measured: see `profiler/tests/ledger.rs`.
            for line in &job.lines {
                let figures = line.find("COST ").or_else(|| line.find("tier "));
                if let Some(at) = figures
                    && [super::payload::COST, "ledger"].contains(&job.name.as_str())
                    && !line.contains("SKIPPED")
                {
                    text += &format!("  {}\n", &line[at..]);
                }
            }
            for (reason, times) in job.skipped() {
                text += &format!("  {} skipped, {times} times: {reason}\n", job.name);
            }
            for test in job.failures() {
                text += &format!("  {} FAILED: {test}\n", job.name);
            }
        }
    }
    text
}

fn spaced(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booted(console: &str, hung: bool) -> Booted {
        Booted {
            release: "5.10".to_owned(),
            report: Report::read(console),
            hung,
            seconds: 61.4,
        }
    }

    #[test]
    fn a_row_tells_each_job() {
        let jobs = ["doctor", "residency", "regions", "privileged", "last"].map(str::to_owned);
        let console = "@guest begin doctor\nscan          pagemap\n@guest end doctor 1.0 exit 0\n\
             @guest begin residency\nx ... SKIPPED: no cgroup\ntest result: ok. 7 passed; 0 failed; 1 ignored;\n\
             @guest end residency 2.0 exit 0\n\
             @guest begin regions\nfailures:\n    one\ntest result: FAILED. 6 passed; 1 failed; 0 ignored;\n\
             @guest end regions 2.0 exit 101\n\
             @guest begin privileged\n";
        let kernel = booted(console, true);
        assert!(!kernel.succeeded(&jobs));
        assert_eq!(
            table(&[kernel], &jobs),
            "kernel  doctor  residency          regions             privileged  last     seconds\n\
             5.10    ok      7 passed, 1 skips  1 FAILED, 6 passed  hung        not run  61\n"
        );
        assert_eq!(
            details(&[booted(console, true)]),
            "\n5.10\n  scan pagemap\n  residency skipped, 1 times: no cgroup\n  regions FAILED: one\n"
        );
    }

    #[test]
    fn a_test_executable_without_tests_is_a_failure() {
        let jobs = ["privileged".to_owned()];
        let nothing = "@guest begin privileged\ntest result: ok. 0 passed; 0 failed; 0 ignored;\n\
             @guest end privileged 0.1 exit 0\n@guest done\n";
        assert!(!booted(nothing, false).succeeded(&jobs));
        let one = nothing.replace("0 passed", "1 passed");
        assert!(booted(&one, false).succeeded(&jobs));
        assert!(!booted(one.strip_suffix("@guest done\n").unwrap(), false).succeeded(&jobs));
    }
}
