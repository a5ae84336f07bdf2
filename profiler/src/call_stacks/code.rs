//! Which code each process had mapped, and when: [`CodeSeen`].
//!
//! `/proc/PID/maps` is read when call stacks of a process arrive, and tells what is mapped then. A process
//! that is gone by then has left no names; its stacks stay unresolved.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use rangemap::RangeMap;

use crate::residency::Vma;

/// A mapping of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Where it is mapped.
    pub range: Range<u64>,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Inode of the file; 0: it is no file.
    pub inode: u64,
    /// Path, or the kernel's name; `None` for memory that a program filled with code.
    pub name: Option<Arc<str>>,
}

impl Code {
    /// Offset in its file of what is mapped at an address of it.
    pub fn file_offset(&self, address: u64) -> u64 {
        address - self.range.start + self.offset
    }
}

/// The code of one process at some time, by address.
pub type CodeMap = RangeMap<u64, Code>;

/// See the module.
#[derive(Debug, Default)]
pub struct CodeSeen {
    /// By process, in the order of time: `CLOCK_MONOTONIC` in ns, and what was mapped.
    readings: HashMap<u32, Vec<(u64, Vec<Code>)>>,
    /// By process: when it exec'd, in ns.
    execs: HashMap<u32, Vec<u64>>,
    /// By process: its parent, and when it was forked, in ns.
    parents: HashMap<u32, (u32, u64)>,
    names: HashSet<Arc<str>>,
}

impl CodeSeen {
    /// A process runs a new image.
    pub fn exec(&mut self, tgid: u32, ns: u64) {
        self.execs.entry(tgid).or_default().push(ns);
    }

    /// A process was made, with the memory of its parent or a copy of it.
    pub fn fork(&mut self, parent: u32, child: u32, ns: u64) {
        // A number may come again: what was seen of its last bearer lies before.
        self.parents.insert(child, (parent, ns));
    }

    /// Takes what `/proc/PID/maps` shows.
    pub fn read(&mut self, tgid: u32, ns: u64, vmas: &[Vma]) {
        let mut code = Vec::new();
        for vma in vmas {
            if vma.protection & libc::PROT_EXEC as u32 == 0 || vma.start >= vma.end {
                continue;
            }
            let name = vma.name().map(|name| self.name(name));
            code.push(Code {
                range: vma.start..vma.end,
                offset: vma.offset(),
                inode: vma.inode(),
                name,
            });
        }
        let readings = self.readings.entry(tgid).or_default();
        if readings.last().is_none_or(|(_, last)| *last != code) {
            readings.push((ns, code));
        }
    }

    fn name(&mut self, name: &str) -> Arc<str> {
        match self.names.get(name) {
            Some(known) => Arc::clone(known),
            None => {
                let name: Arc<str> = name.into();
                self.names.insert(Arc::clone(&name));
                name
            }
        }
    }

    /// The image that a process ran at a moment: it, or the forebear that it was forked from, and from when to
    /// when.
    pub fn image_at(&self, tgid: u32, ns: u64) -> Image {
        let execs = self.execs.get(&tgid).map_or(&[][..], Vec::as_slice);
        let next = execs.partition_point(|&exec| exec <= ns);
        let until = execs.get(next).copied().unwrap_or(u64::MAX);
        let began = next.checked_sub(1).map_or(0, |last| execs[last]);
        match self.parents.get(&tgid) {
            Some(&(parent, forked)) if forked <= ns && began <= forked && parent != tgid => Image {
                tgid,
                from: forked,
                until,
                of_parent: Some((parent, forked)),
            },
            _ => Image {
                tgid,
                from: began,
                until,
                of_parent: None,
            },
        }
    }

    /// All code that was seen of an image. Of two that were seen at one address, the later one.
    pub fn code_of(&self, image: &Image) -> CodeMap {
        let mut map = match image.of_parent {
            Some((parent, ns)) => self.code_of(&self.image_at(parent, ns)),
            None => CodeMap::new(),
        };
        for (ns, code) in self.readings.get(&image.tgid).into_iter().flatten() {
            if (image.from..image.until).contains(ns) {
                map.extend(code.iter().map(|code| (code.range.clone(), code.clone())));
            }
        }
        map
    }
}

/// What a process ran from one exec (or fork) to the next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Image {
    tgid: u32,
    from: u64,
    until: u64,
    of_parent: Option<(u32, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::MapsLine;

    fn vma(range: Range<u64>, protection: i32, name: &str) -> Vma {
        Vma::from(MapsLine {
            start: range.start,
            end: range.end,
            protection: protection as u32,
            shared: false,
            offset: 0x1000,
            inode: 3,
            name: Some(name.into()),
        })
    }

    fn names(seen: &CodeSeen, tgid: u32, ns: u64) -> Vec<String> {
        let code = seen.code_of(&seen.image_at(tgid, ns));
        code.iter()
            .map(|(_, code)| code.name.as_deref().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn code_belongs_to_the_image_that_was_running() {
        const RX: i32 = libc::PROT_READ | libc::PROT_EXEC;
        let mut seen = CodeSeen::default();
        seen.exec(7, 100);
        seen.read(
            7,
            110,
            &[
                vma(0..4096, RX, "/bin/sh"),
                vma(8192..12288, libc::PROT_READ, "/data"),
            ],
        );
        seen.read(
            7,
            120,
            &[vma(0..4096, RX, "/bin/sh"), vma(4096..8192, RX, "/lib/a")],
        );
        seen.fork(7, 8, 130);
        seen.exec(8, 150);
        seen.read(8, 160, &[vma(0..4096, RX, "/bin/ls")]);
        assert_eq!(names(&seen, 7, 105), ["/bin/sh", "/lib/a"]);
        assert_eq!(
            names(&seen, 8, 140),
            ["/bin/sh", "/lib/a"],
            "a copy of the parent's"
        );
        assert_eq!(names(&seen, 8, 155), ["/bin/ls"]);
        assert_eq!(names(&seen, 9, 155), [""; 0]);
        assert_eq!(
            seen.code_of(&seen.image_at(7, 105))
                .get(&5000)
                .map(|code| code.file_offset(5000)),
            Some(0x1000 + 5000 - 4096)
        );
    }
}
