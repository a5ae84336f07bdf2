//! Thread stacks: what lies below the stack pointer was touched, and is not used.
//!
//! A stack grows down. Below the stack pointer of a sleeping thread there is nothing of value (but for
//! the 128 bytes of the red zone, System V ABI for x86-64, 3.2.2): frames of calls that have returned, and
//! pages that a runtime touches in advance (HotSpot's `StackShadowPages`).

use super::{Books, Refusal, StackPointer, Target};
use crate::classify::{Leaf, division::DivisionBuilder, place::Region};

/// Bytes below the stack pointer that belong to the frame.
const RED_ZONE: u64 = 128;

/// The rules whose regions are stacks of live threads.
const RULES: [&str; 2] = ["stack.main", "stack.thread"];

/// Divides the stack of each thread at its stack pointer.
pub fn divide(target: &Target, into: &mut DivisionBuilder) -> Result<Option<Books>, Refusal> {
    let mut pointers: Vec<&StackPointer> = target.threads.iter().collect();
    pointers.sort_by_key(|pointer| pointer.address);
    let mut below_bytes = 0;
    let mut threads = 0;
    let is_stack = |region: &&Region| RULES.contains(&region.rule.id);
    for region in target.regions.iter().filter(is_stack) {
        let first = pointers.partition_point(|pointer| pointer.address < region.range.start);
        let inside = pointers[first..]
            .iter()
            .take_while(|pointer| pointer.address < region.range.end);
        let mut lower = region.range.start;
        for (index, pointer) in inside.enumerate() {
            // Stacks of several threads may be one region; then the lower end must be known.
            match pointer.lowest {
                Some(lowest) if lowest >= lower && lowest < pointer.address => lower = lowest,
                _ if index == 0 => {}
                _ => break,
            }
            let used = pointer.address.saturating_sub(RED_ZONE);
            if used > lower {
                into.add(lower..used, Leaf::StackBelowPointer);
                let resident = target.memory.resident(lower, used);
                below_bytes += resident.map(|part| part.end - part.start).sum::<u64>();
            }
            threads += 1;
            lower = pointer.address;
        }
    }
    Ok((threads > 0).then(|| {
        Books::from([
            ("threads".into(), threads),
            ("below_pointer_bytes".into(), below_bytes),
        ])
    }))
}
