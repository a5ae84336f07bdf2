//! Labels beside the ends of lines: each as near to its line as the others let it be.

/// Places labels of height `spacing` as near as can be to the wished positions (pixels from the top),
/// in their order and without overlap, between `top` and `bottom`. When there are too many for that
/// room, they overlap evenly.
pub fn place(wished: &[f64], spacing: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wished.len()).collect();
    order.sort_by(|a, b| wished[*a].total_cmp(&wished[*b]));
    let room = (bottom - top) / wished.len().saturating_sub(1).max(1) as f64;
    let spacing = spacing.min(room);

    // Isotonic regression by pooling: taking index × spacing off each wish turns "at least one spacing
    // apart" into "not falling"; labels that collide form a block at the mean of their wishes.
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for (rank, index) in order.iter().enumerate() {
        let mut block = (wished[*index] - rank as f64 * spacing, 1);
        while let Some((mean, count)) = blocks.pop_if(|(mean, _)| *mean > block.0) {
            let sum = mean * count as f64 + block.0 * block.1 as f64;
            block = (sum / (count + block.1) as f64, count + block.1);
        }
        blocks.push(block);
    }
    let highest = bottom - wished.len().saturating_sub(1) as f64 * spacing;
    let levels = blocks
        .iter()
        .flat_map(|(mean, count)| std::iter::repeat_n(mean.min(highest).max(top), *count));
    let mut placed = vec![0.0; wished.len()];
    for ((rank, index), level) in order.iter().enumerate().zip(levels) {
        placed[*index] = level + rank as f64 * spacing;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_with_room_stay_where_they_are() {
        assert_eq!(
            place(&[10.0, 50.0, 90.0], 16.0, 0.0, 100.0),
            [10.0, 50.0, 90.0]
        );
    }

    #[test]
    fn colliding_labels_spread_around_their_middle_in_order() {
        assert_eq!(
            place(&[50.0, 52.0, 51.0], 16.0, 0.0, 100.0),
            [35.0, 67.0, 51.0]
        );
    }

    #[test]
    fn labels_stay_inside() {
        assert_eq!(place(&[99.0, 100.0], 20.0, 0.0, 100.0), [80.0, 100.0]);
        assert_eq!(place(&[0.0, 1.0], 20.0, 0.0, 100.0), [0.0, 20.0]);
        assert_eq!(place(&[], 20.0, 0.0, 100.0), Vec::<f64>::new());
    }

    #[test]
    fn too_many_labels_share_the_room() {
        assert_eq!(place(&[5.0, 5.0, 5.0], 20.0, 0.0, 10.0), [0.0, 5.0, 10.0]);
    }
}
