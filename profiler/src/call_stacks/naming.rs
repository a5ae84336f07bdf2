//! Captures → the call stacks of a result: those that are asked for are unwound and named.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::Arc,
};

use super::{
    CallStack,
    binary::Binary,
    capture::{Capture, why_none},
    code::{CodeMap, CodeSeen, Image},
    perf_map::PerfMap,
    symbols::frames_at,
    unwind::{Binaries, Unwinder},
};

/// Everything that was captured in a run.
#[derive(Debug, Default)]
pub struct Captures {
    by_id: HashMap<u32, Capture>,
    /// The code of the processes.
    pub code: CodeSeen,
}

/// Call stacks with names, and which capture became which.
#[derive(Debug, Default, PartialEq)]
pub struct Named {
    /// Each once.
    pub call_stacks: Vec<CallStack>,
    /// By the number in an event: index into `call_stacks`, or why there is none.
    numbers: HashMap<u32, Result<usize, String>>,
}

impl Named {
    /// The call stack of an event, or why there is none.
    pub fn of(&self, number: u32) -> Result<usize, String> {
        match why_none(number) {
            Some(why) => Err(why.to_owned()),
            None => self
                .numbers
                .get(&number)
                .cloned()
                .unwrap_or_else(|| Err("its call stack did not arrive".to_owned())),
        }
    }
}

impl Captures {
    /// Takes a capture.
    pub fn insert(&mut self, capture: Capture) {
        self.by_id.insert(capture.id, capture);
    }

    /// How many distinct stacks arrived.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// None arrived.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Unwinds and names those that are wanted, from the files that the code was mapped from.
    pub fn name(&self, wanted: &BTreeSet<u32>) -> Named {
        let mut by_image: HashMap<Image, Vec<&Capture>> = HashMap::new();
        for capture in wanted.iter().filter_map(|id| self.by_id.get(id)) {
            let image = self.code.image_at(capture.tgid, capture.taken_ns);
            by_image.entry(image).or_default().push(capture);
        }
        let mut binaries = Binaries::new();
        let mut named = BTreeMap::new();
        for (image, captures) in &by_image {
            let code = self.code.code_of(image);
            open_files(&code, &mut binaries);
            let jitted = captures.first().and_then(|capture| perf_map(capture.tgid));
            let mut unwinder = Unwinder::new(&code, &binaries);
            for capture in captures {
                let stack = name(capture, &code, &binaries, &mut unwinder, jitted.as_ref());
                named.insert(capture.id, stack);
            }
        }
        let mut result = Named::default();
        let mut known: HashMap<CallStack, usize> = HashMap::new();
        for (id, stack) in named {
            let index = stack.map(|stack| {
                let next = result.call_stacks.len();
                let index = *known.entry(stack.clone()).or_insert(next);
                if index == next {
                    result.call_stacks.push(stack);
                }
                index
            });
            result.numbers.insert(id, index);
        }
        result
    }
}

fn name(
    capture: &Capture,
    code: &CodeMap,
    binaries: &Binaries,
    unwinder: &mut Unwinder,
    jitted: Option<&PerfMap>,
) -> Result<CallStack, String> {
    if code.get(&capture.ip).is_none() {
        let why = match code.is_empty() {
            true => "its process was gone before its mappings were read",
            false => "it was called from code that was gone before it was seen",
        };
        return Err(why.to_owned());
    }
    let unwound = unwinder.unwind(capture);
    let outermost_first = unwound.addresses.iter().rev();
    Ok(CallStack {
        frames: outermost_first
            .flat_map(|&address| frames_at(address, code, binaries, jitted))
            .collect(),
        cut: unwound.cut.map(str::to_owned),
    })
}

fn open_files(code: &CodeMap, binaries: &mut Binaries) {
    for (_, code) in code.iter().filter(|(_, code)| code.inode != 0) {
        let Some(name) = &code.name else { continue };
        let key = (Arc::clone(name), code.inode);
        binaries
            .entry(key)
            // What cannot be read has frames without names.
            .or_insert_with(|| Binary::open(Path::new(name.as_ref()), code.inode).ok());
    }
}

/// What the runtime wrote for perf, if it did.
fn perf_map(tgid: u32) -> Option<PerfMap> {
    let text = std::fs::read_to_string(format!("/tmp/perf-{tgid}.map")).ok()?;
    Some(PerfMap::parse(&text))
}
