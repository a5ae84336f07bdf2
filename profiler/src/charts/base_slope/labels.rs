//! Labels beside dots that may be close together: each where nothing is yet.

/// Height of a label in pixels.
const HEIGHT: i32 = 34;
/// Between a dot and its label.
const GAP: i32 = 16;
/// Half the side of the square that a dot keeps free.
const DOT: i32 = 10;
/// How far labels may be from their dots, in heights.
const FARTHEST: i32 = 12;

/// Where a label is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its left edge.
    pub left: i32,
    /// The middle of its height.
    pub middle: i32,
    /// It is not beside its dot, so that a line should lead there.
    pub far: bool,
    width: i32,
    rightwards: bool,
}

impl Place {
    /// Where a line from the dot ends.
    pub fn anchor(&self) -> (i32, i32) {
        match self.rightwards {
            true => (self.left - 6, self.middle),
            false => (self.left + self.width + 6, self.middle),
        }
    }

    fn overlaps(&self, other: &Place) -> bool {
        self.left < other.left + other.width + 8
            && other.left < self.left + self.width + 8
            && (self.middle - other.middle).abs() < HEIGHT
    }

    fn covers(&self, (x, y): (i32, i32)) -> bool {
        (self.left - DOT..self.left + self.width + DOT).contains(&x)
            && (self.middle - y).abs() < HEIGHT / 2 + DOT
    }
}

/// A place for the label of each dot, beside it or as near as can be; `bounds` are left, right and bottom.
pub fn place(dots: &[(i32, i32)], widths: &[i32], bounds: (i32, i32, i32)) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for (&dot, &width) in dots.iter().zip(widths) {
        let free = |place: &Place| {
            let inside = place.left >= bounds.0
                && place.left + width <= bounds.1
                && place.middle >= HEIGHT / 2
                && place.middle <= bounds.2 - HEIGHT / 2;
            inside
                && !places.iter().any(|other| place.overlaps(other))
                && !dots.iter().any(|other| place.covers(*other))
        };
        let candidates = candidates(dot, width);
        let place = candidates.iter().copied().find(free);
        places.push(place.unwrap_or(candidates[0]));
    }
    places
}

/// Right and left of the dot, then the same higher and lower, step by step.
fn candidates((x, y): (i32, i32), width: i32) -> Vec<Place> {
    let beside = |rightwards: bool, rise: i32| {
        let aside = GAP + if rise == 0 { 0 } else { GAP };
        Place {
            left: if rightwards {
                x + aside
            } else {
                x - aside - width
            },
            middle: y - rise,
            far: rise != 0,
            width,
            rightwards,
        }
    };
    (0..=FARTHEST * 2)
        .flat_map(|step| {
            let rise = step * HEIGHT / 2;
            [(true, rise), (true, -rise), (false, rise), (false, -rise)]
        })
        .map(|(rightwards, rise)| beside(rightwards, rise))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: (i32, i32, i32) = (100, 1500, 900);

    #[test]
    fn a_label_stands_right_of_its_dot_and_left_where_the_figure_ends() {
        let places = place(&[(300, 400), (1450, 100)], &[200, 200], BOUNDS);
        assert_eq!((places[0].left, places[0].far), (300 + GAP, false));
        assert_eq!((places[1].left, places[1].far), (1450 - GAP - 200, false));
    }

    #[test]
    fn labels_of_a_crowd_lie_over_neither_each_other_nor_a_dot() {
        let dots: Vec<(i32, i32)> = (0..12).map(|at| (700 + at % 4 * 9, 400 + at * 7)).collect();
        let places = place(&dots, &[260; 12], BOUNDS);
        for (index, one) in places.iter().enumerate() {
            assert!(places[..index].iter().all(|other| !one.overlaps(other)));
            assert!(dots.iter().all(|dot| !one.covers(*dot)), "{one:?}");
        }
    }
}
