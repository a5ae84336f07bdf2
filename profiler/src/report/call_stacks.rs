//! A call stack in the room of a table's cell.

use crate::results::{CallStack, Region, Run};

/// Functions shown of one stack.
const SHOWN: usize = 3;
/// Files whose functions every stack ends in: that `mmap` was called is known already.
const EVERYWHERE: [&str; 3] = ["libc.so", "ld-linux", "libpthread"];

/// Which call made a region and from where, innermost function first: `mmap: alloc_pool < main`. Empty where call
/// stacks were not taken.
pub fn origin(run: &Run, region: &Region) -> String {
    let made_by = region.made_by.clone().unwrap_or_default();
    let stack = region
        .call_stack
        .and_then(|index| run.call_stacks.get(index));
    match stack.map(innermost) {
        Some(functions) if !functions.is_empty() => format!("{made_by}: {functions}"),
        _ => made_by,
    }
}

/// The functions next to the call, those of the C library left out where there are others.
fn innermost(stack: &CallStack) -> String {
    let of_program = stack.frames.iter().rev().filter(|frame| {
        let file = frame.module.rsplit('/').next().unwrap_or_default();
        !EVERYWHERE.iter().any(|name| file.starts_with(name))
    });
    let names: Vec<&str> = of_program
        .filter_map(|frame| frame.function.as_deref())
        .take(SHOWN)
        .collect();
    names.join(" < ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Frame;

    #[test]
    fn functions_of_the_program_are_told_innermost_first() {
        let frame = |function: Option<&str>, module: &str| Frame {
            function: function.map(str::to_owned),
            module: module.to_owned(),
            offset: 0,
            file: None,
            line: None,
        };
        let stack = CallStack {
            frames: vec![
                frame(Some("_start"), "/bin/app"),
                frame(Some("main"), "/bin/app"),
                frame(Some("serve"), "/bin/app"),
                frame(None, "/bin/app"),
                frame(Some("grow"), "/lib/libpool.so.1"),
                frame(Some("malloc"), "/usr/lib/libc.so.6"),
                frame(Some("mmap"), "/usr/lib/libc.so.6"),
            ],
            cut: None,
        };
        assert_eq!(innermost(&stack), "grow < serve < main");
    }
}
