//! Work on parts of a heap, on all CPUs at once: the program stands still meanwhile, and nobody else needs them.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Parts that nobody has taken yet. Gives each with its place in the order of all.
pub struct Queue<'a, T> {
    parts: &'a [T],
    next: &'a AtomicUsize,
}

impl<'a, T> Iterator for Queue<'a, T> {
    type Item = (usize, &'a T);

    fn next(&mut self) -> Option<(usize, &'a T)> {
        // Nothing but the number itself is shared by it.
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        self.parts.get(index).map(|part| (index, part))
    }
}

/// Runs `work` on as many threads as there are CPUs, or parts, and gives what it made of each part in the order
/// of the parts. `work` is called once a thread and takes parts until the queue is empty, so that it can keep what
/// it has learned.
pub fn share<T: Sync, R: Send>(
    parts: &[T],
    work: impl Fn(Queue<T>) -> Vec<(usize, R)> + Sync,
) -> Vec<R> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let queue = || Queue { parts, next: &next };
    let mut made = thread::scope(|scope| {
        let others: Vec<_> = (1..cpus.min(parts.len()))
            .map(|_| scope.spawn(|| work(queue())))
            .collect();
        let mut made = work(queue());
        for other in others {
            match other.join() {
                Ok(its) => made.extend(its),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        made
    });
    made.sort_unstable_by_key(|(index, _)| *index);
    made.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_worked_on_once_and_comes_back_in_order() {
        let parts: Vec<u64> = (0..1000).collect();
        let doubled = share(&parts, |queue| {
            queue.map(|(index, part)| (index, 2 * part)).collect()
        });
        let expected: Vec<u64> = parts.iter().map(|part| 2 * part).collect();
        assert_eq!(doubled, expected);
        let none = share(&[] as &[u64], |queue| {
            queue.map(|(index, part)| (index, *part)).collect()
        });
        assert_eq!(none, [] as [u64; 0]);
    }
}
