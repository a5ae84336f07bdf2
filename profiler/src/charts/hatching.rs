//! Diagonal bands that fill a rectangle exactly: SVG patterns are beyond plotters, and lines with square
//! ends would stick out of it.

/// From one band to the next, across.
const PERIOD: i32 = 14;
/// Width of a band, across.
const WIDTH: i32 = 4;

/// The parts inside the rectangle between two corners of bands that rise to the right. They run through
/// the whole figure, so the hatching of two rectangles matches.
pub fn bands([(left, top), (right, bottom)]: [(i32, i32); 2]) -> Vec<Vec<(i32, i32)>> {
    // On a line that rises at 45°, x + y is the same everywhere. It enters the rectangle at the bottom
    // or the left side and leaves it at the top or the right one.
    let enters = |sum: i32| {
        let y = (sum - left).min(bottom);
        (sum - y, y)
    };
    let leaves = |sum: i32| {
        let x = (sum - top).min(right);
        (x, sum - x)
    };
    let (least, greatest) = (left + top, right + bottom);
    let first = least.div_euclid(PERIOD) * PERIOD;
    (first..greatest)
        .step_by(PERIOD as usize)
        .map(|from| (from.max(least), (from + WIDTH).min(greatest)))
        .filter(|(from, to)| from < to)
        .map(|(from, to)| {
            let within = |(x, y): &(i32, i32)| (from + 1..to).contains(&(x + y));
            let corner = |corner: (i32, i32)| Some(corner).filter(within);
            [
                Some(enters(from)),
                Some(leaves(from)),
                corner((right, top)),
                Some(leaves(to)),
                Some(enters(to)),
                corner((left, bottom)),
            ]
            .into_iter()
            .flatten()
            .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twice the area of a polygon.
    fn area(polygon: &[(i32, i32)]) -> i32 {
        let next = polygon.iter().cycle().skip(1);
        let crossed = polygon.iter().zip(next).map(|(a, b)| a.0 * b.1 - b.0 * a.1);
        crossed.sum::<i32>().abs()
    }

    #[test]
    fn bands_stay_inside_and_cover_their_share() {
        for corners in [
            [(301, 77), (361, 125)],
            [(300, 77), (303, 125)],
            [(14, 28), (40, 54)],
        ] {
            let [(left, top), (right, bottom)] = corners;
            let bands = bands(corners);
            for (x, y) in bands.iter().flatten() {
                assert!((left..=right).contains(x) && (top..=bottom).contains(y));
            }
            let hatched: i32 = bands.iter().map(|band| area(band)).sum();
            let share = f64::from(hatched) / f64::from(2 * (right - left) * (bottom - top));
            let expected = f64::from(WIDTH) / f64::from(PERIOD);
            assert!((share - expected).abs() < 0.06, "{share} in {corners:?}");
        }
    }

    #[test]
    fn nothing_is_hatched_without_an_area() {
        assert_eq!(bands([(5, 5), (5, 5)]), Vec::<Vec<(i32, i32)>>::new());
        let flat = bands([(5, 0), (5, 40)]);
        assert!(flat.iter().all(|band| area(band) == 0));
    }
}
