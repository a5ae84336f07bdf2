//! What there is to know of a process that runs already: its mappings with their `VmFlags`, its threads with
//! their stack pointers, and how far its images reach.
//!
//! No call that made any of it was seen, so this is all the evidence there is
//! ([`before_attach`](crate::regions::before_attach) makes a region map of it). The process should stand
//! still; of one that runs, each part is right at its own moment, and running threads have no stack pointer.

use std::{collections::HashMap, fs, ops::Range, path::Path};

use object::{Object, ObjectSegment, read::ReadCache};

use super::{Vma, proc_files::ProcDir, scan::ScanError, stack_pointers::stack_pointers};
use crate::units::{page_ceil, page_floor};

bitflags::bitflags! {
    /// Those of the kernel's `VmFlags` (`show_smap_vma_flags`, fs/proc/task_mmu.c) that tell how a mapping was
    /// made or advised.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct VmFlags: u16 {
        /// `nr`: `MAP_NORESERVE`; it stays when `mprotect` opens the mapping.
        const NORESERVE = 1;
        /// `ac`: its pages count as committed.
        const ACCOUNTED = 1 << 1;
        /// `nh`: `MADV_NOHUGEPAGE`, or `MAP_STACK` since Linux 6.7.
        const NOHUGEPAGE = 1 << 2;
        /// `hg`: `MADV_HUGEPAGE`.
        const HUGEPAGE = 1 << 3;
        /// `dc`: `MADV_DONTFORK`.
        const DONTFORK = 1 << 4;
        /// `dd`: `MADV_DONTDUMP`.
        const DONTDUMP = 1 << 5;
        /// `gd`: grows down.
        const GROWSDOWN = 1 << 6;
        /// `ht`: huge pages of hugetlbfs.
        const HUGETLB = 1 << 7;
        /// `gu`: has guard pages (`MADV_GUARD_INSTALL`).
        const GUARD = 1 << 8;
    }
}

impl VmFlags {
    /// From the line of `smaps`: `rd wr mr mw me nr`.
    pub fn parse(text: &str) -> VmFlags {
        let flag = |word| match word {
            "nr" => VmFlags::NORESERVE,
            "ac" => VmFlags::ACCOUNTED,
            "nh" => VmFlags::NOHUGEPAGE,
            "hg" => VmFlags::HUGEPAGE,
            "dc" => VmFlags::DONTFORK,
            "dd" => VmFlags::DONTDUMP,
            "gd" => VmFlags::GROWSDOWN,
            "ht" => VmFlags::HUGETLB,
            "gu" => VmFlags::GUARD,
            _ => VmFlags::empty(),
        };
        text.split_ascii_whitespace().map(flag).collect()
    }
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Its line of `maps`.
    pub vma: Vma,
    /// Its flags; empty where the kernel does not tell them.
    pub flags: VmFlags,
}

/// A process that runs already.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Thread-group id.
    pub tgid: u32,
    /// Thread-group id of its parent.
    pub parent: u32,
    /// Path of its executable; empty where it may not be read.
    pub executable: String,
    /// In address order.
    pub mappings: Vec<Mapping>,
    /// Its threads, with their stack pointers where they could be asked.
    pub threads: Vec<(u32, Option<u64>)>,
    /// Address ranges of its program and libraries by their ELF headers, zero-initialised data included.
    pub images: Vec<Range<u64>>,
}

impl Standing {
    /// Reads it all from `/proc`. Costs 2.6 µs a mapping (`smaps`).
    pub fn read(pid: u32) -> Result<Standing, ScanError> {
        let dir = ProcDir::of(pid)?;
        let mappings: Vec<Mapping> = dir
            .smaps()?
            .into_iter()
            .map(|entry| Mapping {
                flags: VmFlags::parse(&entry.flags),
                vma: entry.vma,
            })
            .collect();
        if mappings.is_empty() {
            return Err(ScanError::Gone { pid });
        }
        let pointers: HashMap<u32, u64> = stack_pointers(pid)
            .unwrap_or_default()
            .into_iter()
            .collect();
        let executable = fs::read_link(format!("/proc/{pid}/exe"));
        Ok(Standing {
            tgid: pid,
            parent: dir.status()?.parent,
            executable: executable
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
            images: images(pid, &mappings),
            threads: threads(pid)
                .into_iter()
                .map(|tid| (tid, pointers.get(&tid).copied()))
                .collect(),
            mappings,
        })
    }
}

/// Thread ids of a process, in ascending order; none when it is gone.
pub fn threads(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    let mut tids: Vec<u32> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    tids.sort_unstable();
    tids
}

/// The program and the libraries: where each begins, by its first mapping, and how long it is, by its file.
fn images(pid: u32, mappings: &[Mapping]) -> Vec<Range<u64>> {
    const PROT_EXEC: u32 = libc::PROT_EXEC as u32;
    let mut images: Vec<Range<u64>> = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        let vma = &mapping.vma;
        let is_known = images.iter().any(|image| image.contains(&vma.start));
        let Some(path) = vma.name().filter(|path| path.starts_with('/')) else {
            continue;
        };
        if vma.protection & PROT_EXEC == 0 || vma.inode() == 0 || is_known {
            continue;
        }
        let of_file =
            |other: &&Mapping| other.vma.inode() == vma.inode() && other.vma.offset() == 0;
        let Some(first) = mappings[..=index].iter().rev().find(of_file) else {
            continue;
        };
        // As the process sees it: it may have another root.
        let file = format!("/proc/{pid}/root{path}");
        if let Some(length) = length_of_image(Path::new(&file)) {
            images.push(first.vma.start..first.vma.start.saturating_add(length));
        }
    }
    images
}

/// Bytes from the first to the last address that an ELF file is loaded to, in whole pages.
fn length_of_image(path: &Path) -> Option<u64> {
    let cache = ReadCache::new(fs::File::open(path).ok()?);
    let file = object::File::parse(&cache).ok()?;
    let start = file.segments().map(|segment| segment.address()).min()?;
    let end = file
        .segments()
        .filter_map(|segment| segment.address().checked_add(segment.size()))
        .max()?;
    page_ceil(end).checked_sub(page_floor(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_two_letter_words() {
        let flags = VmFlags::parse("rd wr mr mw me dc nr sd");
        assert_eq!(flags, VmFlags::DONTFORK | VmFlags::NORESERVE);
        assert_eq!(VmFlags::parse(""), VmFlags::empty());
    }

    #[test]
    fn we_ourselves_are_read() {
        let me = Standing::read(std::process::id()).expect("we are alive");
        assert!(me.threads.iter().any(|&(tid, _)| tid == me.tgid));
        assert!(me.mappings.is_sorted_by_key(|mapping| mapping.vma.start));
        assert!(
            me.mappings
                .iter()
                .any(|mapping| mapping.flags.contains(VmFlags::ACCOUNTED))
        );
        // This very function lies in an image, and in the mapping of one.
        let here = we_ourselves_are_read as *const () as u64;
        assert!(me.images.iter().any(|image| image.contains(&here)));
    }
}
