//! Theil-Sen: the median of the slopes between all pairs of runs, and the interval that ranks give it.
//!
//! H. Theil, "A rank-invariant method of linear and polynomial regression analysis" (1950); the interval is
//! that of P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", Journal of the
//! American Statistical Association 63 (1968), with the exact distribution of the statistic (Jonckheere
//! and Terpstra's, since repeats share their N) in place of its normal approximation: runs are few.
//! `docs/method.md` says why this fit and no other.

use super::summary::FEWEST_TASKS;

/// What an interval promises.
const CONFIDENCE: f64 = 0.95;

/// A line through the bytes of runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Bytes that a task adds.
    pub slope: f64,
    /// 95 % interval of the slope; `None` where the runs are too few for one.
    pub slope_interval: Option<[f64; 2]>,
    /// Bytes without a task: the median over the runs at the smallest N.
    pub base: f64,
    /// The least and the greatest base that those runs give, with the slope anywhere in its interval;
    /// `None` where one run and no interval say nothing about it.
    pub base_range: Option<[f64; 2]>,
}

/// The line through `runs`, each tasks and bytes; `None` where they do not span two groups of N.
pub fn fit(runs: &[(u64, f64)]) -> Option<Fit> {
    let mut runs = runs.to_vec();
    runs.sort_by_key(|(tasks, _)| *tasks);
    let groups: Vec<&[(u64, f64)]> = runs.chunk_by(|a, b| group(a.0) == group(b.0)).collect();
    let mut slopes = slopes_between(&groups);
    slopes.sort_by(f64::total_cmp);
    let slope = median(&slopes)?;
    let sizes: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let slope_interval =
        slopes_outside(&sizes).map(|outside| [slopes[outside], slopes[slopes.len() - 1 - outside]]);

    let bases = |slope: f64| {
        let mut bases: Vec<f64> = groups[0]
            .iter()
            .map(|(tasks, bytes)| bytes - slope * *tasks as f64)
            .collect();
        bases.sort_by(f64::total_cmp);
        bases
    };
    let base = median(&bases(slope))?;
    let [least, greatest] = slope_interval.unwrap_or([slope, slope]);
    let range = [*bases(greatest).first()?, *bases(least).last()?];
    let known = groups[0].len() > 1 || slope_interval.is_some();
    Some(Fit {
        slope,
        slope_interval,
        base,
        base_range: known.then_some(range),
    })
}

/// Runs of one group are not compared with each other: the repeats at one N, and all with so few tasks that
/// they tell of the base alone.
fn group(tasks: u64) -> u64 {
    if tasks < FEWEST_TASKS { 0 } else { tasks }
}

/// The slope of each pair of runs of different groups.
fn slopes_between(groups: &[&[(u64, f64)]]) -> Vec<f64> {
    let mut slopes = Vec::new();
    for (index, few) in groups.iter().enumerate() {
        for many in &groups[index + 1..] {
            for (tasks, bytes) in *few {
                let from_here =
                    |(more, other): &(u64, f64)| (other - bytes) / (more - tasks) as f64;
                slopes.extend(many.iter().map(from_here));
            }
        }
    }
    slopes
}

/// The middle of sorted values, the mean of the two in the middle where their number is even.
pub fn median(sorted: &[f64]) -> Option<f64> {
    let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some(f64::midpoint(sorted[low], sorted[high]))
}

/// How many of the slopes between groups of these sizes lie below the interval, and as many above it.
/// `None`: even from the least slope to the greatest it would be less than 95 %.
fn slopes_outside(sizes: &[usize]) -> Option<usize> {
    let mut below = 0.0;
    let probabilities = concordant_pairs(sizes);
    let outside = probabilities.iter().take_while(|probability| {
        below += **probability;
        below <= (1.0 - CONFIDENCE) / 2.0
    });
    outside.count().checked_sub(1)
}

/// The probability of each number of concordant pairs, from 0 on, when the bytes do not depend on the
/// group: every order of the runs is as likely as any other.
fn concordant_pairs(sizes: &[usize]) -> Vec<f64> {
    let (mut all, mut before) = (vec![1.0], 0);
    for &size in sizes {
        // What the next group adds does not depend on the order within those before it.
        all = convolved(&all, &concordant_pairs_of_two(before, size));
        before += size;
    }
    all
}

/// The same for two groups: Mann and Whitney's statistic, by its recurrence over the greatest of all
/// runs, which is one of the first group (and adds nothing) or of the second (and adds a pair with each of the
/// first).
fn concordant_pairs_of_two(first: usize, second: usize) -> Vec<f64> {
    // The row of `first - 1`, by the size of the second group.
    let mut row: Vec<Vec<f64>> = vec![vec![1.0]; second + 1];
    for few in 1..=first {
        for many in 1..=second {
            let all = (few + many) as f64;
            let mut next = vec![0.0; few * many + 1];
            for (pairs, probability) in row[many].iter().enumerate() {
                next[pairs] += probability * few as f64 / all;
            }
            for (pairs, probability) in row[many - 1].iter().enumerate() {
                next[pairs + few] += probability * many as f64 / all;
            }
            row[many] = next;
        }
    }
    row.pop().unwrap_or_default()
}

fn convolved(one: &[f64], other: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; one.len() + other.len() - 1];
    for (at, p) in one.iter().enumerate() {
        for (further, q) in other.iter().enumerate() {
            sum[at + further] += p * q;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every order of the numbers below `count`.
    fn orders(count: usize) -> Vec<Vec<usize>> {
        let Some(last) = count.checked_sub(1) else {
            return vec![Vec::new()];
        };
        let insert = |order: Vec<usize>| {
            (0..count).map(move |at| {
                let mut longer = order.clone();
                longer.insert(at, last);
                longer
            })
        };
        orders(last).into_iter().flat_map(insert).collect()
    }

    #[test]
    fn the_distribution_of_concordant_pairs_is_that_of_all_orders() {
        for sizes in [vec![1, 1, 1, 1], vec![2, 2, 2], vec![3, 1, 2], vec![4, 3]] {
            let groups: Vec<usize> = sizes
                .iter()
                .enumerate()
                .flat_map(|(group, size)| vec![group; *size])
                .collect();
            let orders = orders(groups.len());
            let expected = concordant_pairs(&sizes);
            let mut counted = vec![0.0; expected.len()];
            for order in &orders {
                let pairs = (0..groups.len()).flat_map(|a| (0..a).map(move |b| (b, a)));
                let concordant =
                    pairs.filter(|&(b, a)| groups[b] < groups[a] && order[b] < order[a]);
                counted[concordant.count()] += 1.0 / orders.len() as f64;
            }
            for (one, other) in expected.iter().zip(&counted) {
                assert!(
                    (one - other).abs() < 1e-12,
                    "{sizes:?}: {expected:?} {counted:?}"
                );
            }
        }
    }

    #[test]
    fn few_runs_give_no_interval() {
        // 2 / 4! and 2 / C(6, 3) are more than 5 %; 2 / 5!, 2 / C(8, 4) and 2 / 90 are not.
        for (sizes, expected) in [
            (vec![1, 1], None),
            (vec![1, 1, 1, 1], None),
            (vec![3, 3], None),
            (vec![1; 5], Some(0)),
            (vec![4, 4], Some(0)),
            (vec![2, 2, 2], Some(0)),
        ] {
            assert_eq!(slopes_outside(&sizes), expected, "{sizes:?}");
        }
        // Ten single runs: Kendall's table gives 23 as the critical S, which leaves (45 - 23) / 2 slopes.
        assert_eq!(slopes_outside(&[1; 10]), Some(11));
    }

    #[test]
    fn an_exact_line_is_found_over_six_decades() {
        let line = |tasks: u64| (tasks, 2_800_000.0 + 450.0 * tasks as f64);
        let found = fit(&[1, 10_000, 100_000, 1_000_000].map(line)).unwrap();
        assert!((found.slope - 450.0).abs() < 1e-6);
        assert!((found.base - 2_800_000.0).abs() < 1e-3);
        assert_eq!((found.slope_interval, found.base_range), (None, None));

        let two = fit(&[line(1), line(10_000)]).unwrap();
        assert!((two.slope - 450.0).abs() < 1e-6);
        assert_eq!(two.slope_interval, None);
    }

    #[test]
    fn one_number_of_tasks_or_few_tasks_give_no_line() {
        assert_eq!(fit(&[]), None);
        assert_eq!(fit(&[(10_000, 5e6), (10_000, 6e6)]), None);
        assert_eq!(fit(&[(1, 5e6), (999, 6e6)]), None);
    }

    #[test]
    fn an_outlier_moves_neither_slope_nor_base() {
        let mut runs = Vec::new();
        for tasks in [1, 10_000, 100_000, 1_000_000_u64] {
            for noise in [-0.01, 0.0, 0.01] {
                let bytes = 2_800_000.0 + 450.0 * tasks as f64;
                runs.push((tasks, bytes * (1.0 + noise)));
            }
        }
        let clean = fit(&runs).unwrap();
        runs[11].1 *= 3.0;
        let found = fit(&runs).unwrap();
        assert!((found.slope - 450.0).abs() < 5.0, "{found:?}");
        assert!((found.base - 2_800_000.0).abs() < 1000.0, "{found:?}");
        let [low, high] = found.slope_interval.unwrap();
        assert!((low..=high).contains(&450.0) && high < 500.0, "{found:?}");
        let [low, high] = clean.slope_interval.unwrap();
        assert!(440.0 < low && high < 460.0, "{clean:?}");
        let [low, high] = clean.base_range.unwrap();
        assert!((low - 2_772_000.0).abs() < 1000.0 && (high - 2_828_000.0).abs() < 1000.0);
    }

    #[test]
    fn a_table_that_doubles_widens_the_interval() {
        // 64 bytes an entry, in a table of the next power of two.
        let bytes =
            |tasks: u64| 1e6 + 200.0 * tasks as f64 + 64.0 * tasks.next_power_of_two() as f64;
        let runs: Vec<(u64, f64)> = [1, 10_000, 40_000, 70_000, 100_000, 140_000]
            .map(|tasks| (tasks, bytes(tasks)))
            .to_vec();
        let found = fit(&runs).unwrap();
        let [low, high] = found.slope_interval.unwrap();
        // An entry takes from 64 to 128 bytes, as full as the table is.
        assert!((264.0..=328.0).contains(&found.slope), "{found:?}");
        assert!(low < found.slope && found.slope < high, "{found:?}");
    }

    #[test]
    fn small_numbers_of_tasks_say_something_of_the_base_alone() {
        let noisy = [
            (1, 2.9e6),
            (10, 2.7e6),
            (100, 2.8e6),
            (10_000, 6.8e6),
            (100_000, 42.8e6),
        ];
        let found = fit(&noisy).unwrap();
        assert!((found.slope - 400.0).abs() < 10.0, "{found:?}");
        assert!((found.base - 2.76e6).abs() < 0.05e6, "{found:?}");
    }
}
