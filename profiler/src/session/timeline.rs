//! RSS over time and what it was composed of: when to look, and what is kept.
//!
//! RSS is polled all the time. Looking at the composition costs the profiler time on a CPU, and who changes mappings
//! waits for it, so it is done for one part in [`BUDGET`] of the time at most. The target is not stopped for it.

use std::time::Duration;

use super::analysis::Composed;
use crate::results::{Phase, TimelinePoint};

/// Points of a timeline at most; past that, every second one is dropped and half as many are taken.
const POINTS: usize = 512;
/// Distance of the points at first.
const SPACING: Duration = Duration::from_millis(20);
/// Looking takes one part in so many of the time.
const BUDGET: u32 = 30;

/// What the next point should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// No point yet.
    Nothing,
    /// RSS alone: the last composition was dear.
    Rss,
    /// RSS and its composition.
    Composition,
}

/// The timeline in the making. Times are durations since the exec.
#[derive(Debug)]
pub(super) struct Timeline {
    points: Vec<TimelinePoint>,
    spacing: Duration,
    last: Option<Duration>,
    look_again: Duration,
}

impl Timeline {
    pub fn new() -> Timeline {
        Timeline {
            points: Vec::new(),
            spacing: SPACING,
            last: None,
            look_again: Duration::ZERO,
        }
    }

    /// What to do at `now`.
    pub fn due(&self, now: Duration) -> Due {
        if self.last.is_some_and(|last| now < last + self.spacing) {
            Due::Nothing
        } else if now < self.look_again {
            Due::Rss
        } else {
            Due::Composition
        }
    }

    /// Notes that a composition was looked at from `began` on and took so long.
    pub fn looked(&mut self, began: Duration, took: Duration) {
        self.look_again = began + took * BUDGET;
    }

    /// Takes a point. Points come in the order of their time.
    pub fn push(&mut self, point: TimelinePoint) {
        self.last = Some(Duration::from_secs_f64(point.seconds));
        self.points.push(point);
        if self.points.len() > POINTS {
            self.spacing *= 2;
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }

    /// The points, and among them the peak's own composition, which no look may have hit.
    pub fn finish(mut self, peak: Option<TimelinePoint>) -> Vec<TimelinePoint> {
        if let Some(peak) = peak {
            let at = self
                .points
                .partition_point(|point| point.seconds <= peak.seconds);
            self.points.insert(at, peak);
        }
        self.points
    }
}

/// A point with a composition.
pub(super) fn point(seconds: f64, composed: &Composed, spread_bytes: u64) -> TimelinePoint {
    TimelinePoint {
        seconds,
        rss_bytes: composed.rss_bytes,
        classes: Some(composed.classes),
        kernel_bytes: Some(composed.kernel_bytes),
        spread_bytes,
    }
}

/// The phases of a benchmark program, from what it said: `launch_s` and `alive_s` are when the lines
/// `launch=N` and `alive=N` arrived, in seconds after exec. None without the latter.
pub(super) fn phases(
    launch_s: Option<f64>,
    alive_s: Option<f64>,
    task_seconds: Option<f64>,
    wall_seconds: f64,
) -> Vec<Phase> {
    let (Some(alive), Some(task_seconds)) = (alive_s, task_seconds) else {
        return Vec::new();
    };
    let launch = launch_s.unwrap_or(0.0).min(alive);
    // The first tasks end so long after they were started.
    let end = (launch + task_seconds).clamp(alive, wall_seconds.max(alive));
    let bounds = [
        ("start", 0.0),
        ("launch", launch),
        ("plateau", alive),
        ("exit", end),
        ("", wall_seconds),
    ];
    bounds
        .windows(2)
        .map(|pair| Phase {
            name: pair[0].0.to_owned(),
            from_seconds: pair[0].1,
            to_seconds: pair[1].1,
            counters: None,
        })
        .filter(|phase| phase.to_seconds > phase.from_seconds)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::Classes;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn composed(rss_bytes: u64) -> Composed {
        Composed {
            rss_bytes,
            classes: Classes::default(),
            kernel_bytes: 0,
        }
    }

    #[test]
    fn a_long_timeline_is_thinned_and_taken_more_rarely() {
        let mut timeline = Timeline::new();
        let mut taken = 0;
        for tick in 0..10_000_u64 {
            let now = ms(tick * 10);
            if timeline.due(now) == Due::Nothing {
                continue;
            }
            timeline.push(point(now.as_secs_f64(), &composed(tick), 0));
            taken += 1;
        }
        assert!(taken < 2000, "{taken}");
        let points = timeline.finish(None);
        assert!((POINTS / 2..=POINTS).contains(&points.len()));
        assert!(points.is_sorted_by(|a, b| a.seconds < b.seconds));
        assert!(points.last().unwrap().seconds > 99.0);
    }

    #[test]
    fn a_dear_look_is_followed_by_points_of_rss_alone() {
        let mut timeline = Timeline::new();
        assert_eq!(timeline.due(ms(0)), Due::Composition);
        timeline.looked(ms(0), ms(50));
        timeline.push(point(0.050, &composed(1), 0));
        assert_eq!(timeline.due(ms(60)), Due::Nothing);
        assert_eq!(timeline.due(ms(70)), Due::Rss);
        assert_eq!(timeline.due(ms(1499)), Due::Rss);
        assert_eq!(timeline.due(ms(1500)), Due::Composition);
    }

    #[test]
    fn the_peak_stands_at_its_time() {
        let mut timeline = Timeline::new();
        for seconds in [0.1, 0.2] {
            timeline.push(point(seconds, &composed(1), 0));
        }
        let points = timeline.finish(Some(point(0.15, &composed(9), 0)));
        assert_eq!(points[1].rss_bytes, 9);
        assert_eq!(points.len(), 3);
    }

    #[test]
    fn phases_follow_each_other_without_a_gap() {
        let phases = |launch, alive| phases(launch, alive, Some(1.0), 3.0);
        let names_of = |phases: &[Phase]| -> Vec<String> {
            phases.iter().map(|phase| phase.name.clone()).collect()
        };
        let all = phases(Some(0.5), Some(1.0));
        assert_eq!(names_of(&all), ["start", "launch", "plateau", "exit"]);
        assert!(
            all.windows(2)
                .all(|pair| pair[0].to_seconds == pair[1].from_seconds)
        );
        assert_eq!((all[3].from_seconds, all[3].to_seconds), (1.5, 3.0));
        // The launch took longer than a task waits: there was no moment of rest.
        assert_eq!(
            names_of(&phases(Some(0.1), Some(2.0))),
            ["start", "launch", "exit"]
        );
        // A program that does not say when it begins, and one whose tasks never were alive.
        assert_eq!(
            names_of(&phases(None, Some(0.5))),
            ["launch", "plateau", "exit"]
        );
        assert_eq!(phases(Some(0.5), None), []);
    }
}
