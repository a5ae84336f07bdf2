//! Which calls made the memory at the peak, as a tree for the flame graph: process, frames from the outermost in,
//! and what the bytes are.

use std::collections::BTreeMap;

use maud::{Markup, html};
use serde::Serialize;

use crate::classify::Class;
use crate::report::run::identifier;
use crate::results::{CallStack, Frame, MadeBytes, Run};

/// Nodes below this part of the whole are summed beside the others: they would be thinner than a pixel.
const LEAST_SHARE: u64 = 2000;

/// A node; its width is its bytes.
#[derive(Serialize)]
pub struct Node {
    name: String,
    /// Where that is: file and line, or module and offset.
    #[serde(skip_serializing_if = "String::is_empty")]
    place: String,
    bytes: u64,
    /// The class of all its bytes; `None` where there are several.
    class: Option<Class>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    children: Vec<Node>,
}

/// The tree while it grows: children by name and place.
#[derive(Default)]
struct Growing {
    bytes: u64,
    classes: Vec<Class>,
    children: BTreeMap<(String, String), Growing>,
}

/// The tree of a run; `None` where no call stack was taken.
pub fn tree(run: &Run) -> Option<Node> {
    let made = &run.peak.as_ref()?.made_by;
    if run.call_stacks.is_empty() || made.is_empty() {
        return None;
    }
    let mut root = Growing::default();
    for made in made.iter().filter(|made| made.bytes > 0) {
        root.add(made, &path(run, made));
    }
    let least = root.bytes / LEAST_SHARE;
    Some(root.finish(("RSS at the peak".to_owned(), String::new()), least))
}

/// From the outermost in.
fn path(run: &Run, made: &MadeBytes) -> Vec<(String, String)> {
    let mut path = Vec::new();
    if run.processes.len() > 1 {
        let process = run.processes.iter().find(|it| it.tgid == made.tgid);
        let executable = process.map_or("", |process| process.executable.as_str());
        path.push((
            format!("{} {}", made.tgid, base_name(executable)),
            executable.to_owned(),
        ));
    }
    match made.call_stack.and_then(|index| run.call_stacks.get(index)) {
        Some(stack) => path.extend(frames(stack)),
        None => path.push((format!("[{}]", made.made_by), String::new())),
    }
    let backing = made.backing.clone().unwrap_or_default();
    path.push((identifier(&made.leaf), backing));
    path
}

fn frames(stack: &CallStack) -> impl Iterator<Item = (String, String)> {
    let cut = stack.cut.as_ref();
    let cut = cut.map(|why| ("[outer frames missing]".to_owned(), why.clone()));
    cut.into_iter().chain(stack.frames.iter().map(frame))
}

fn frame(frame: &Frame) -> (String, String) {
    let module = base_name(&frame.module);
    let at = format!("{}+{:#x}", frame.module, frame.offset);
    let name = frame.function.clone();
    let name = name.unwrap_or_else(|| format!("{module}+{:#x}", frame.offset));
    let place = match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{file}:{line}"),
        (Some(file), None) => file.clone(),
        // Calls from several places of a function are one node.
        (None, _) if frame.function.is_some() => frame.module.clone(),
        (None, _) => at,
    };
    (name, place)
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl Growing {
    fn add(&mut self, made: &MadeBytes, path: &[(String, String)]) {
        let class = made.leaf.class();
        self.bytes += made.bytes;
        if !self.classes.contains(&class) {
            self.classes.push(class);
        }
        if let [first, rest @ ..] = path {
            let child = self.children.entry(first.clone()).or_default();
            child.add(made, rest);
        }
    }

    fn finish(self, (name, place): (String, String), least: u64) -> Node {
        let (large, small): (Vec<_>, Vec<_>) = self
            .children
            .into_iter()
            .partition(|(_, child)| child.bytes >= least);
        let mut children: Vec<Node> = large
            .into_iter()
            .map(|(key, child)| child.finish(key, least))
            .collect();
        children.sort_by_key(|child| std::cmp::Reverse(child.bytes));
        if !small.is_empty() {
            children.push(Node {
                name: format!("[{} smaller ones]", small.len()),
                place: String::new(),
                bytes: small.iter().map(|(_, child)| child.bytes).sum(),
                class: None,
                children: Vec::new(),
            });
        }
        Node {
            name,
            place,
            bytes: self.bytes,
            class: match self.classes.as_slice() {
                [one] => Some(*one),
                _ => None,
            },
            children,
        }
    }
}

/// A place for the script to draw in.
pub fn flame(run: &Run, id: usize) -> Markup {
    html! {
        @if tree(run).is_some() {
            section {
                h3 { "Which calls made the memory at the peak" }
                figure {
                    div.flame data-run=(id) {
                        noscript { "The flame graph is drawn by a script." }
                    }
                    figcaption {
                        "As wide as the resident bytes that calls below made; the last row is what they are, in the colour \
                         of their class. A click enlarges a part, Escape leads back."
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::Leaf;

    fn frame(function: Option<&str>) -> Frame {
        Frame {
            function: function.map(str::to_owned),
            module: "/usr/bin/server".to_owned(),
            offset: 0x1f40,
            file: None,
            line: None,
        }
    }

    fn made(call_stack: Option<usize>, leaf: Leaf, bytes: u64) -> MadeBytes {
        MadeBytes {
            tgid: 7,
            call_stack,
            made_by: "mapped by exec".to_owned(),
            leaf,
            backing: None,
            bytes,
        }
    }

    /// `name bytes(children)`.
    fn told(node: &Node) -> String {
        let children: Vec<String> = node.children.iter().map(told).collect();
        let class = node.class.map_or("mixed", Class::name);
        format!(
            "{} {} {class}({})",
            node.name,
            node.bytes,
            children.join(" ")
        )
    }

    fn grown(stacks: &[CallStack], made_by: &[MadeBytes]) -> String {
        let mut root = Growing::default();
        for made in made_by {
            let mut path: Vec<(String, String)> = Vec::new();
            match made.call_stack {
                Some(index) => path.extend(frames(&stacks[index])),
                None => path.push((format!("[{}]", made.made_by), String::new())),
            }
            path.push((identifier(&made.leaf), String::new()));
            root.add(made, &path);
        }
        let least = root.bytes / LEAST_SHARE;
        told(&root.finish(("RSS".to_owned(), String::new()), least))
    }

    #[test]
    fn stacks_with_the_same_beginning_are_one_node() {
        let stack = |functions: &[Option<&str>]| CallStack {
            frames: functions.iter().map(|name| frame(*name)).collect(),
            cut: None,
        };
        let stacks = [
            stack(&[Some("main"), Some("grow")]),
            stack(&[Some("main"), None]),
        ];
        let made_by = [
            made(Some(0), Leaf::MallocUsed, 5000),
            made(Some(0), Leaf::MallocLarge, 3000),
            made(Some(1), Leaf::NativeStack, 1000),
            made(None, Leaf::Image, 999),
            made(None, Leaf::File, 1),
        ];
        assert_eq!(
            grown(&stacks, &made_by),
            "RSS 10000 mixed(main 9000 mixed(grow 8000 heap(malloc_used 5000 heap() malloc_large 3000 heap()) \
             server+0x1f40 1000 stacks(native_stack 1000 stacks())) [mapped by exec] 1000 runtime(image 999 runtime() \
             [1 smaller ones] 1 mixed()))"
        );
    }

    #[test]
    fn what_is_missing_of_a_stack_is_a_node() {
        let stacks = [CallStack {
            frames: vec![frame(Some("grow"))],
            cut: Some("no frame pointer".to_owned()),
        }];
        let graph = grown(&stacks, &[made(Some(0), Leaf::Malloc, 8)]);
        assert_eq!(
            graph,
            "RSS 8 heap([outer frames missing] 8 heap(grow 8 heap(malloc 8 heap())))"
        );
    }
}
