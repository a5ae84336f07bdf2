//! What the user asked for, checked before anything starts.

use std::fs;

use anyhow::{Result, bail, ensure};
use profiler::units::{KIB, human, thousands};

use crate::programs::Program;

/// Reads a list such as `1,10000,100000`.
pub fn task_counts(text: &str) -> Result<Vec<u64>> {
    let mut counts = text
        .split(',')
        .map(|word| task_count(word.trim()))
        .collect::<Result<Vec<_>>>()?;
    counts.sort_unstable();
    counts.dedup();
    Ok(counts)
}

fn task_count(word: &str) -> Result<u64> {
    const EXPECTED: &str =
        "expected whole numbers from 1 up with commas between them, as in `--tasks 1,10000,100000`";
    let plain: String = word.chars().filter(|&digit| digit != '_').collect();
    match plain.parse() {
        Ok(0) => bail!("--tasks: 0 tasks use no memory; {EXPECTED}"),
        Ok(count) => Ok(count),
        Err(_) if plain.starts_with('-') => {
            bail!("--tasks: {word} is negative; {EXPECTED}")
        }
        Err(_) => bail!("--tasks: `{word}` is not a number of tasks; {EXPECTED}"),
    }
}

/// Refuses what cannot fit: the program and the count that need more than `available` bytes, going by
/// what earlier measurements found.
pub fn fits(programs: &[Program], counts: &[u64], available: u64) -> Result<()> {
    for &tasks in counts {
        for program in programs {
            let needed = program.estimated_bytes(tasks);
            ensure!(
                needed <= available,
                "{} with {} tasks needs about {} and {} are available; try fewer tasks, or --force",
                program.name,
                thousands(tasks),
                human(needed),
                human(available),
            );
        }
    }
    Ok(())
}

/// `MemAvailable`, in bytes.
pub fn available_bytes() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib * KIB)
        .ok_or_else(|| anyhow::anyhow!("/proc/meminfo has no MemAvailable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_sorted_and_told_once() {
        assert_eq!(
            task_counts("100000,1, 10_000,1").unwrap(),
            [1, 10_000, 100_000]
        );
    }

    #[test]
    fn each_bad_count_has_its_own_sentence() {
        let refused = |text| task_counts(text).unwrap_err().to_string();
        assert!(refused("0").starts_with("--tasks: 0 tasks use no memory; expected whole numbers"));
        assert!(refused("1,-5").starts_with("--tasks: -5 is negative; "));
        assert!(refused("many").starts_with("--tasks: `many` is not a number of tasks; "));
        assert!(refused("").starts_with("--tasks: `` is not a number of tasks; "));
        assert!(refused("1e6").starts_with("--tasks: `1e6` is not a number of tasks; "));
        assert!(refused("99999999999999999999").contains("is not a number of tasks"));
    }

    #[test]
    fn what_cannot_fit_is_refused_with_the_figures() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap();
        let programs =
            crate::programs::select(crate::programs::load(root).unwrap(), &["go".to_owned()])
                .unwrap();
        assert!(fits(&programs, &[1, 1_000_000], 8 << 30).is_ok());
        let refused = fits(&programs, &[1, 1_000_000], 1 << 30)
            .unwrap_err()
            .to_string();
        assert!(
            refused.starts_with("go with 1,000,000 tasks needs about 2.")
                && refused.ends_with("and 1.00 GiB are available; try fewer tasks, or --force"),
            "{refused}"
        );
    }
}
