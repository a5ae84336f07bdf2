//! Did the program do what it promised? Nothing is believed that was not seen or said.

use std::collections::BTreeMap;

use super::job::Contract;
use crate::{results::Outcome, units::thousands};

/// A word of the program that marks a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// `launch=N`: its runtime has started, tasks come next.
    Launch,
    /// The first `alive=N`: all tasks are alive now.
    Alive,
}

/// What a program wrote that matters to us: the lines of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    /// The first `alive=N`: all tasks are alive now.
    pub alive: Option<u64>,
    /// The last `live_peak=N`.
    pub live_peak: Option<u64>,
    /// The runtime's own books, when it was asked for them.
    pub books: Option<BTreeMap<String, u64>>,
    /// Last line on stderr that is not blank.
    pub complaint: Option<String>,
}

impl Words {
    /// Takes a line of stdout.
    pub fn stdout(&mut self, line: &str) -> Option<Word> {
        let (name, value) = line.trim().split_once('=')?;
        let count = value.parse().ok();
        match name {
            "books" => self.books = serde_json::from_str(value).ok(),
            "live_peak" => self.live_peak = count,
            "launch" => return count.map(|_| Word::Launch),
            "alive" if self.alive.is_none() => {
                self.alive = count;
                return count.map(|_| Word::Alive);
            }
            _ => {}
        }
        None
    }

    /// Takes a line of stderr. What Rust's panics add in the end ("note: run with …") is no reason.
    pub fn stderr(&mut self, line: &str) {
        if !line.trim().is_empty() && !line.starts_with("note: ") {
            self.complaint = Some(line.trim().to_owned());
        }
    }
}

/// Judges a run that ended. `limit` names a system limit that the tree came up against.
pub fn judge(
    contract: Option<Contract>,
    exit_status: i32,
    words: &Words,
    wall_seconds: f64,
    limit: Option<&str>,
) -> (Outcome, Option<String>) {
    let failed = |reason: String| (Outcome::Failed, Some(reason));
    let how_it_ended = || match exit_status {
        129.. => format!("ended by signal {}", exit_status - 128),
        _ => format!("exit status {exit_status}"),
    };
    let Some(contract) = contract else {
        return if exit_status == 0 {
            (Outcome::Completed, None)
        } else {
            failed(how_it_ended())
        };
    };
    if exit_status != 0 {
        let what = words.complaint.clone().unwrap_or_else(how_it_ended);
        return failed(match limit {
            Some(limit) => format!("{what} ({limit})"),
            None => what,
        });
    }
    match words.live_peak {
        None => failed("it never said live_peak=N".into()),
        Some(peak) if peak != contract.tasks => failed(format!(
            "{} of {} tasks were alive at once",
            thousands(peak),
            thousands(contract.tasks)
        )),
        Some(_) if wall_seconds < contract.seconds => failed(format!(
            "it ended after {wall_seconds:.1} s, before its tasks can have waited {} s",
            contract.seconds
        )),
        Some(_) => (Outcome::Completed, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::job::Load;

    const CONTRACT: Option<Contract> = Some(Contract {
        tasks: 10_000,
        seconds: 10.0,
        load: Load {
            stack_depth_bytes: 0,
            payload_bytes: 0,
        },
    });

    fn words(live_peak: Option<u64>, complaint: Option<&str>) -> Words {
        Words {
            alive: live_peak,
            live_peak,
            books: None,
            complaint: complaint.map(str::to_owned),
        }
    }

    #[test]
    fn a_kept_contract_completes() {
        assert_eq!(
            judge(CONTRACT, 0, &words(Some(10_000), None), 10.2, None),
            (Outcome::Completed, None)
        );
    }

    #[test]
    fn what_a_program_says_is_not_enough() {
        let reason = |words: &Words, status, wall, limit| {
            judge(CONTRACT, status, words, wall, limit).1.unwrap()
        };
        assert_eq!(
            reason(&words(Some(9_999), None), 0, 10.2, None),
            "9,999 of 10,000 tasks were alive at once"
        );
        assert_eq!(
            reason(&words(None, None), 0, 10.2, None),
            "it never said live_peak=N"
        );
        assert_eq!(
            reason(&words(Some(10_000), None), 0, 9.9, None),
            "it ended after 9.9 s, before its tasks can have waited 10 s"
        );
        assert_eq!(
            reason(&words(None, None), 137, 1.0, None),
            "ended by signal 9"
        );
        assert_eq!(
            reason(
                &words(None, Some("failed at 32443: EAGAIN")),
                1,
                1.0,
                Some("kernel.pid_max = 32,768")
            ),
            "failed at 32443: EAGAIN (kernel.pid_max = 32,768)"
        );
    }

    #[test]
    fn any_other_command_is_judged_by_its_exit_status_alone() {
        assert_eq!(
            judge(None, 0, &Words::default(), 0.1, None),
            (Outcome::Completed, None)
        );
        assert_eq!(
            judge(None, 3, &Words::default(), 0.1, None),
            (Outcome::Failed, Some("exit status 3".into()))
        );
        assert_eq!(
            judge(None, 139, &Words::default(), 0.1, None),
            (Outcome::Failed, Some("ended by signal 11".into()))
        );
    }

    #[test]
    fn the_words_of_the_contract_are_found_among_others() {
        let mut words = Words::default();
        assert_eq!(words.stdout("warming up"), None);
        assert_eq!(words.stdout("launch=10000"), Some(Word::Launch));
        assert_eq!(words.stdout("alive=10000\n"), Some(Word::Alive));
        assert_eq!(words.stdout("alive=10000"), None);
        assert_eq!(words.stdout("live_peak=10000"), None);
        assert_eq!(words.stdout(r#"books={"StackInuse": 4096}"#), None);
        assert_eq!(
            words.books,
            Some(BTreeMap::from([("StackInuse".into(), 4096)]))
        );
        words.stderr("failed at 7: no luck");
        words.stderr("   ");
        words.stderr(
            "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
        );
        assert_eq!(words.live_peak, Some(10_000));
        assert_eq!(words.complaint.as_deref(), Some("failed at 7: no luck"));
    }
}
