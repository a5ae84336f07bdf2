//! What is known of a target while it runs, in one line of a terminal that is drawn over itself.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    classify::{Class, Classes},
    units::{human, thousands},
};

/// How often it is drawn.
const PACE: Duration = Duration::from_millis(500);

/// What the line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Now {
    /// Since exec, or since we are there.
    pub elapsed: Duration,
    /// RSS of the tree in bytes.
    pub rss_bytes: u64,
    /// By class, where pages were looked at last.
    pub classes: Option<Classes>,
    /// Live threads of the tree.
    pub threads: usize,
    /// Events that have come.
    pub events: u64,
}

impl Now {
    fn line(&self) -> String {
        let mut line = format!(
            "{:.0} s  RSS {}",
            self.elapsed.as_secs_f64(),
            human(self.rss_bytes)
        );
        if let Some(classes) = self.classes {
            let class = |class: Class| format!("{} {}", class.name(), human(classes.get(class)));
            let classes: Vec<String> = Class::ALL
                .into_iter()
                .filter(|&it| it != Class::Unclassified || classes.get(it) > 0)
                .map(class)
                .collect();
            line += &format!(" ({})", classes.join(", "));
        }
        let (threads, events) = (thousands(self.threads as u64), thousands(self.events));
        line + &format!("  {threads} threads  {events} events")
    }
}

/// The line on stderr; nothing where that is no terminal. It goes when it is dropped.
#[derive(Debug)]
pub(super) struct StatusLine {
    bar: ProgressBar,
    drawn: Option<Instant>,
    /// Those of the last look at pages.
    classes: Option<Classes>,
}

impl StatusLine {
    pub fn new() -> StatusLine {
        let bar = ProgressBar::new_spinner();
        // `wide_msg` is cut where the terminal ends.
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        StatusLine {
            bar,
            drawn: None,
            classes: None,
        }
    }

    /// Takes what a look at pages has found.
    pub fn looked(&mut self, classes: Classes) {
        self.classes = Some(classes);
    }

    /// Draws it, if it is time to. `now` is asked with what was found last.
    pub fn show(&mut self, now: impl FnOnce(Option<Classes>) -> Now) {
        if self.drawn.is_none_or(|drawn| drawn.elapsed() >= PACE) {
            self.drawn = Some(Instant::now());
            self.bar.set_message(now(self.classes).line());
            self.bar.tick();
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now {
        elapsed: Duration::from_millis(12_340),
        rss_bytes: 46 << 20,
        classes: None,
        threads: 1_003,
        events: 25,
    };

    #[test]
    fn classes_are_told_once_pages_were_looked_at() {
        assert_eq!(NOW.line(), "12 s  RSS 46.0 MiB  1,003 threads  25 events");
        let mut classes = Classes::default();
        classes.add(Class::Stacks, 8 << 20);
        classes.add(Class::Heap, 36 << 20);
        classes.add(Class::Runtime, 2 << 20);
        let now = Now {
            classes: Some(classes),
            ..NOW
        };
        assert_eq!(
            now.line(),
            "12 s  RSS 46.0 MiB (stacks 8.0 MiB, heap 36.0 MiB, runtime 2.0 MiB)  1,003 threads  25 events"
        );
    }

    #[test]
    fn what_no_rule_explains_is_told_where_there_is_some() {
        let mut classes = Classes::default();
        classes.add(Class::Unclassified, 4096);
        let now = Now {
            classes: Some(classes),
            ..NOW
        };
        assert!(now.line().contains("unclassified 4.0 KiB"));
    }
}
