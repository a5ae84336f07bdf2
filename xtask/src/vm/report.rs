//! What a guest told on its console: the lines of `xtask/guest`, and those of Rust's test harness.

/// Begins each line of the guest's first process.
const MARK: &str = "@guest ";

/// Everything that a guest told.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    /// `uname -r`, once it had booted.
    pub release: Option<String>,
    /// The jobs that were begun, in order.
    pub jobs: Vec<Job>,
    /// It came to the end of its jobs.
    pub done: bool,
}

/// One job.
#[derive(Debug, Default, PartialEq)]
pub struct Job {
    /// As the host named it.
    pub name: String,
    /// `exit 0`, `signal 9`; `None` when it was still running as the guest ended.
    pub ended: Option<String>,
    /// How long it ran.
    pub seconds: f64,
    /// What it wrote, line by line.
    pub lines: Vec<String>,
}

/// What one run of a test executable came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed, those included that skipped a part aloud.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests marked `#[ignore]`.
    pub ignored: usize,
}

impl Report {
    /// Reads a console. Kernel messages and what else stands there belongs to the job that runs.
    pub fn read(console: &str) -> Report {
        let mut report = Report::default();
        for line in console.lines() {
            let line = line.trim_end_matches('\r');
            match line.strip_prefix(MARK) {
                Some(words) => report.told(words),
                None => {
                    let running = report.jobs.last_mut().filter(|job| job.ended.is_none());
                    if let Some(job) = running {
                        job.lines.push(line.to_owned());
                    }
                }
            }
        }
        report
    }

    fn told(&mut self, words: &str) {
        let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
        match verb {
            "booted" => self.release = Some(rest.to_owned()),
            "begin" => self.jobs.push(Job {
                name: rest.to_owned(),
                ..Job::default()
            }),
            "end" => {
                let mut parts = rest.splitn(3, ' ').skip(1);
                let seconds = parts.next().and_then(|seconds| seconds.parse().ok());
                let ended = parts.next().map(str::to_owned);
                if let Some(job) = self.jobs.last_mut() {
                    (job.seconds, job.ended) = (seconds.unwrap_or_default(), ended);
                }
            }
            "done" => self.done = true,
            _ => {}
        }
    }
}

impl Job {
    /// It ran to its end, and well.
    pub fn succeeded(&self) -> bool {
        self.ended.as_deref() == Some("exit 0")
    }

    /// The sum in the last line of the harness; `None` when there is none.
    pub fn counts(&self) -> Option<Counts> {
        let sums = self.lines.iter().rev();
        let sum = sums.filter_map(|line| line.strip_prefix("test result: "));
        sum.map(|sum| {
            let number = |what| {
                let before = sum.split(what).next()?.trim_end();
                before.rsplit(' ').next()?.parse().ok()
            };
            Counts {
                passed: number("passed").unwrap_or(0),
                failed: number("failed;").unwrap_or(0),
                ignored: number("ignored").unwrap_or(0),
            }
        })
        .next()
    }

    /// The tests that failed, by name.
    pub fn failures(&self) -> Vec<&str> {
        // The last list; the one before it holds what the tests wrote.
        let Some(heading) = self.lines.iter().rposition(|line| line == "failures:") else {
            return Vec::new();
        };
        self.lines[heading + 1..]
            .iter()
            .map_while(|line| line.strip_prefix("    "))
            .collect()
    }

    /// What was left out and why, each reason once: the rest of a line behind `SKIPPED: `.
    pub fn skipped(&self) -> Vec<(&str, usize)> {
        let mut reasons: Vec<(&str, usize)> = Vec::new();
        for line in &self.lines {
            let Some((_, reason)) = line.split_once("SKIPPED: ") else {
                continue;
            };
            match reasons.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, times)) => *times += 1,
                None => reasons.push((reason, 1)),
            }
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    0.0] Linux version 5.10\r\n\
        \r\n@guest booted 5.10.0-46-cloud-amd64\r\n\
        \r\n@guest begin doctor\r\n\
        probes        27 of 27 attached\r\n\
        \r\n@guest end doctor 1.2 exit 0\r\n\
        \r\n@guest begin residency\r\n\
        running 3 tests\r\n\
        test one ... SKIPPED: no PAGEMAP_SCAN in this kernel\r\n\
        ok\r\n\
        test two ... SKIPPED: no PAGEMAP_SCAN in this kernel\r\n\
        FAILED\r\n\
        failures:\r\n\
        \r\n\
        failures:\r\n    nested::two\r\n    three\r\n\r\n\
        test result: FAILED. 1 passed; 2 failed; 4 ignored; 0 measured; 0 filtered out; finished in 2.0s\r\n\
        \r\n@guest end residency 2.5 exit 101\r\n\
        \r\n@guest begin privileged\r\n\
        test hangs ... [   31.0] watchdog\r\n";

    #[test]
    fn a_console_is_read_up_to_where_the_guest_hung() {
        let report = Report::read(CONSOLE);
        assert_eq!(report.release.as_deref(), Some("5.10.0-46-cloud-amd64"));
        let ends: Vec<_> = report
            .jobs
            .iter()
            .map(|job| (job.name.as_str(), job.ended.as_deref(), job.seconds))
            .collect();
        assert_eq!(
            ends,
            [
                ("doctor", Some("exit 0"), 1.2),
                ("residency", Some("exit 101"), 2.5),
                ("privileged", None, 0.0)
            ]
        );
        assert!(!report.done);
        assert!(Report::read("@guest done\r\n").done);
    }

    #[test]
    fn tests_are_counted_named_and_their_gaps_told_once() {
        let report = Report::read(CONSOLE);
        let job = &report.jobs[1];
        let counts = Counts {
            passed: 1,
            failed: 2,
            ignored: 4,
        };
        assert_eq!(job.counts(), Some(counts));
        assert_eq!(job.failures(), ["nested::two", "three"]);
        assert_eq!(job.skipped(), [("no PAGEMAP_SCAN in this kernel", 2)]);
        assert_eq!(report.jobs[0].counts(), None);
    }
}
