//! What the counters say of each phase of a benchmark program: they are read when it says that it begins to
//! launch tasks and that all are alive, and when the first of them have waited their time.

use crate::results::{Counters, Phase};

/// Readings of the counters between the phases.
#[derive(Debug, Default)]
pub(super) struct PhaseCounters {
    /// When the launch began.
    pub launch: Option<Counters>,
    /// When all tasks were alive.
    pub alive: Option<Counters>,
    /// When the first tasks had waited their time.
    pub waited: Option<Counters>,
}

impl PhaseCounters {
    /// Gives each of `phases`, which follow each other, its part of `all`.
    pub fn fill(&self, phases: &mut [Phase], all: &Counters) {
        let nothing = all.since(all);
        let mut begins: Vec<Option<Counters>> = Vec::new();
        for (index, phase) in phases.iter().enumerate() {
            let after = index
                .checked_sub(1)
                .map(|before| phases[before].name.as_str());
            begins.push(match (after, phase.name.as_str()) {
                (None, _) => Some(nothing),
                (Some("plateau"), _) => self.waited,
                (Some("launch"), _) => self.alive,
                (Some(_), _) => self.launch,
            });
        }
        begins.push(Some(*all));
        for (phase, bounds) in phases.iter_mut().zip(begins.windows(2)) {
            phase.counters = match (bounds[0], bounds[1]) {
                (Some(begin), Some(end)) => Some(end.since(&begin)),
                _ => None,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(ns: u64) -> Counters {
        Counters {
            task_clock_ns: Some(ns),
            ..Counters::default()
        }
    }

    fn filled(names: &[&str], readings: &PhaseCounters) -> Vec<Option<u64>> {
        let phase = |name: &&str| Phase {
            name: (*name).to_owned(),
            from_seconds: 0.0,
            to_seconds: 1.0,
            counters: None,
        };
        let mut phases: Vec<Phase> = names.iter().map(phase).collect();
        readings.fill(&mut phases, &clock(100));
        let of_phase = |phase: &Phase| {
            phase
                .counters
                .map(|counters| counters.task_clock_ns.unwrap())
        };
        phases.iter().map(of_phase).collect()
    }

    #[test]
    fn the_parts_add_up_to_the_whole() {
        let readings = PhaseCounters {
            launch: Some(clock(10)),
            alive: Some(clock(60)),
            waited: Some(clock(65)),
        };
        let [start, launch, plateau, exit] = ["start", "launch", "plateau", "exit"];
        let some = |parts: &[u64]| parts.iter().copied().map(Some).collect::<Vec<_>>();
        assert_eq!(
            filled(&[start, launch, plateau, exit], &readings),
            some(&[10, 50, 5, 35])
        );
        // The launch outlasted the waiting.
        assert_eq!(
            filled(&[start, launch, exit], &readings),
            some(&[10, 50, 40])
        );
        assert_eq!(
            filled(&[launch, plateau, exit], &readings),
            some(&[60, 5, 35])
        );
    }

    #[test]
    fn a_reading_that_is_missing_leaves_out_both_its_phases() {
        let readings = PhaseCounters {
            launch: Some(clock(10)),
            alive: Some(clock(60)),
            waited: None,
        };
        assert_eq!(
            filled(&["start", "launch", "plateau", "exit"], &readings),
            [Some(10), Some(50), None, None]
        );
        assert_eq!(filled(&[], &readings), []);
    }
}
