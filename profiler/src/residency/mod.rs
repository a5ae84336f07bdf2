//! Which pages are resident: a [`Snapshot`] of the frozen tree.
//!
//! [`freeze`] holds the tree still, [`scan`] takes the snapshot from `/proc`; the types here are
//! plain values, so that a recorded one serves as well.

pub mod freeze;
pub mod hidden_growth;
pub mod ledger;
pub mod objects;
mod open_files;
pub mod ranges;
pub mod scan;
pub mod stack_pointers;
pub mod standing;
pub mod trace_stop;

mod pagemap;
mod pagemap_scan;
mod proc_files;
mod reconcile;
mod sockets;

pub use objects::OpenFiles;
pub use proc_files::{StatmReader, vm_hwm_bytes};

use serde::{Deserialize, Serialize};

/// The tree at one frozen moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// When the tree was frozen: `CLOCK_MONOTONIC`, in ns.
    pub taken_ns: u64,
    /// How resident pages were found.
    pub method: Method,
    /// Every process that was alive and has memory of its own (see [`scan::scan_tree`]).
    pub processes: Vec<ProcessSnapshot>,
}

impl Snapshot {
    /// RSS of the tree in bytes, by the kernel's exact count (`smaps_rollup`).
    pub fn rss_bytes(&self) -> u64 {
        self.processes.iter().map(|process| process.rss_bytes).sum()
    }
}

/// How resident pages were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The `PAGEMAP_SCAN` ioctl (kernel 6.7).
    #[default]
    PagemapScan,
    /// Reading `/proc/PID/pagemap`, one u64 a page.
    Pagemap,
}

/// One process at the frozen moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessSnapshot {
    /// Thread-group id.
    pub tgid: u32,
    /// `/proc/PID/maps`, in address order.
    pub vmas: Vec<Vma>,
    /// Resident ranges in address order: what the kernel counts as RSS and nothing else (no zero
    /// page, no guard pages, no PFN mappings).
    pub resident: Vec<ResidentRange>,
    /// `Rss` of `smaps_rollup`, in bytes: exact.
    pub rss_bytes: u64,
    /// `Pss` of `smaps_rollup`, in bytes.
    pub pss_bytes: u64,
    /// `VmHWM`, in bytes: the kernel's own high-water mark, approximate.
    pub vm_hwm_bytes: u64,
    /// `VmPTE`, in bytes: page tables.
    pub page_tables_bytes: u64,
    /// Live threads.
    pub threads: u64,
    /// Mappings, by the kernel's own count; 0 where only `vmas` tells them.
    #[serde(default)]
    pub mappings: u64,
    /// What it has open; only of a frozen process.
    #[serde(default)]
    pub files: Option<OpenFiles>,
    /// `Pss_Shmem` of `smaps_rollup`, in bytes: shared memory that it maps; only of a frozen process, and
    /// since Linux 5.4.
    #[serde(default)]
    pub pss_shmem_bytes: Option<u64>,
    /// `rss_bytes` less the bytes of `resident`, after every correction with a known cause: 0 in a
    /// good scan. Positive: the kernel counts pages that the scan did not see; negative: the scan
    /// saw pages that the kernel does not count. It is never spread over the ranges.
    #[serde(default)]
    pub unexplained_bytes: i64,
}

impl ProcessSnapshot {
    /// Bytes of the resident ranges. Differs from `rss_bytes` by
    /// `unexplained_bytes`, which is 0 unless the scan went wrong.
    pub fn resident_bytes(&self) -> u64 {
        ranges::bytes(&self.resident)
    }
}

/// A mapping, in 32 bytes: a program of 100,000 threads has up to 400,000, nearly all of them anonymous.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "MapsLine", into = "MapsLine")]
pub struct Vma {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC` as in `rwx`.
    pub protection: u32,
    /// `MAP_SHARED` (`s`) rather than private (`p`).
    pub shared: bool,
    /// `None` for anonymous memory without a name.
    backing: Option<Box<Backing>>,
}

const _: () = assert!(size_of::<Vma>() == 32);

/// What a [`Vma`] shows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Backing {
    offset: u64,
    inode: u64,
    name: Option<String>,
}

/// One line of `/proc/PID/maps`, column by column.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct MapsLine {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC` as in `rwx`.
    pub protection: u32,
    /// `MAP_SHARED` (`s`) rather than private (`p`).
    pub shared: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Inode; 0 for anonymous memory.
    pub inode: u64,
    /// Path, or the kernel's name in brackets (`[heap]`, `[anon:…]`); `None` where the column is empty.
    pub name: Option<String>,
}

impl From<MapsLine> for Vma {
    fn from(line: MapsLine) -> Vma {
        let is_plain = line.offset == 0 && line.inode == 0 && line.name.is_none();
        Vma {
            start: line.start,
            end: line.end,
            protection: line.protection,
            shared: line.shared,
            backing: (!is_plain).then(|| {
                Box::new(Backing {
                    offset: line.offset,
                    inode: line.inode,
                    name: line.name,
                })
            }),
        }
    }
}

impl From<Vma> for MapsLine {
    fn from(vma: Vma) -> MapsLine {
        MapsLine {
            start: vma.start,
            end: vma.end,
            protection: vma.protection,
            shared: vma.shared,
            offset: vma.offset(),
            inode: vma.inode(),
            name: vma.backing.and_then(|backing| backing.name),
        }
    }
}

impl Vma {
    /// Offset in the file, in bytes; 0 for anonymous memory.
    pub fn offset(&self) -> u64 {
        self.backing.as_ref().map_or(0, |backing| backing.offset)
    }

    /// Inode; 0 for anonymous memory.
    pub fn inode(&self) -> u64 {
        self.backing.as_ref().map_or(0, |backing| backing.inode)
    }

    /// Path, or the kernel's name in brackets (`[heap]`, `[anon:…]`); `None` where the column is empty.
    pub fn name(&self) -> Option<&str> {
        self.backing.as_ref()?.name.as_deref()
    }

    /// From `start` to `end`, with the offset in the file that belongs there.
    pub fn part(&self, start: u64, end: u64) -> Vma {
        let mut part = Vma {
            start,
            end,
            ..self.clone()
        };
        if let Some(backing) = part.backing.as_mut().filter(|backing| backing.inode != 0) {
            backing.offset += start.saturating_sub(self.start);
        }
        part
    }
}

/// A run of resident pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResidentRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// The pages come from a file or from shared memory, unchanged; otherwise they are anonymous
    /// (private copies of file pages included).
    pub file: bool,
}
