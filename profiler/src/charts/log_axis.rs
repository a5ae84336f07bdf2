//! Ticks of logarithmic axes.

use crate::units::thousands;

/// A line across the plot.
pub struct Tick {
    /// Where.
    pub value: f64,
    /// Empty for the lines between.
    pub label: String,
}

/// Powers of ten of `unit` within the range, and the steps between where there are few of those; `name` is the
/// unit's.
pub fn ticks((low, high): (f64, f64), unit: f64, name: &str) -> Vec<Tick> {
    let (low, high) = (low / unit, high / unit);
    let (few, very_few) = (high / low < 1e5, high / low < 2000.0);
    let mut ticks = Vec::new();
    for power in low.log10().floor() as i32..=high.log10().ceil() as i32 {
        for factor in [1.0, 2.0, 5.0] {
            let value = factor * 10f64.powi(power);
            let is_power = factor == 1.0;
            if !(low..=high).contains(&value) || !(is_power || few) {
                continue;
            }
            let label = match value {
                _ if !(is_power || very_few) => String::new(),
                value if value < 1.0 => format!("{value} {name}"),
                value => format!("{} {name}", thousands(value as u64)),
            };
            ticks.push(Tick {
                value: value * unit,
                label,
            });
        }
    }
    ticks
}

/// From the least to the greatest of `values`, and at least to twice the least.
pub fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    (low, high.max(low * 2.0))
}
