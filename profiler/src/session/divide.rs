//! Lets the adapters look at a frozen tree.

use super::analysis::{Analysis, Divided};
use crate::{
    adapters::{
        StackPointer, Target,
        memory::{Memory, Process},
    },
    classify::{place::place, runtime::Image},
    regions::AddressSpace,
    residency::{ProcessSnapshot, Snapshot, stack_pointers::stack_pointers},
};

/// Divides every process of a snapshot. They must still be frozen, and the region maps must have been held
/// against the snapshot.
pub(super) fn divide(analysis: &Analysis, snapshot: &Snapshot) -> Vec<Divided> {
    let of_process = |process| divide_process(analysis, process, snapshot.taken_ns);
    snapshot.processes.iter().map(of_process).collect()
}

fn divide_process(analysis: &Analysis, process: &ProcessSnapshot, taken_ns: u64) -> Divided {
    let tgid = process.tgid;
    let tree = &analysis.tree;
    let unseen = AddressSpace::empty();
    let space = tree.space(tgid).unwrap_or(&unseen);
    let image = analysis.images.get(&tgid);
    let mut regions = Vec::new();
    let runtime = place(process, space, tree.process(tgid), image, |region, _| {
        regions.push(region);
    });
    let source = Process(tgid);
    let none = Image::default();
    let target = Target {
        memory: &Memory::new(&source, &process.resident),
        process,
        regions: &regions,
        runtime,
        image: image.unwrap_or(&none),
        threads: &threads(analysis, tgid),
    };
    let (division, accounts) = crate::adapters::divide(&target, taken_ns);
    Divided {
        tgid,
        division,
        accounts,
    }
}

/// A process that cannot be asked has no thread: its stacks stay undivided.
fn threads(analysis: &Analysis, tgid: u32) -> Vec<StackPointer> {
    let known = analysis.tree.process(tgid);
    let lowest = |tid| {
        let thread = known?.threads.get(&tid)?;
        thread.stack.as_ref().map(|stack| stack.range.start)
    };
    let pointers = stack_pointers(tgid).unwrap_or_default();
    pointers
        .into_iter()
        .map(|(tid, address)| StackPointer {
            tid,
            address,
            lowest: lowest(tid),
        })
        .collect()
}
