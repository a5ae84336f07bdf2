//! Takes a [`Snapshot`] of stopped processes from `/proc`.
//!
//! What counts is what the kernel counts as RSS and nothing else, and that is checked: the ranges of
//! a process must add up to `Rss` of its `smaps_rollup` to the byte. Where they do not, the process
//! is scanned a second time (compaction may have had a page in its hands), then `reconcile`
//! looks for the cause, and what is left is reported as
//! [`ProcessSnapshot::unexplained_bytes`](super::ProcessSnapshot).
//!
//! Cost on a virtual machine with two CPUs and Linux 6.18, either method (`cost` in
//! `tests/residency.rs` prints it): 80 ms for 30,000 threads, 70-100 ms for 1,000,000 pages in one
//! mapping, 140 ms for 960,000 pages in 60,000 mappings. The files read for the check are the larger
//! part of it.
//!
//! The processes have to stand still ([`super::freeze`]); the figures of a running one contradict
//! each other.

use std::io;
use std::path::PathBuf;

use super::open_files::{Seen, open_files};
use super::pagemap::Unsure;
use super::proc_files::ProcDir;
use super::ranges::{bytes, settle};
use super::{
    Method, ProcessSnapshot, ResidentRange, Snapshot, Vma, pagemap, pagemap_scan, reconcile,
};
use crate::units::MIB;

/// Why a process could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// It has ended, or has no memory of its own any more (a zombie).
    #[error("process {pid} is gone")]
    Gone {
        /// Thread-group id.
        pid: u32,
    },
    /// A file of `/proc` could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of `/proc` does not have the form that the kernel documents.
    #[error("unexpected contents of {}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
}

/// The best method that this kernel has, found out by trying it.
pub fn detect() -> Method {
    if pagemap_scan::supported() {
        Method::PagemapScan
    } else {
        Method::Pagemap
    }
}

/// Snapshot of the stopped processes `pids`, in that order. Those that are gone are left out, and so
/// are those that live in the memory of another one (a vfork child before exec): their pages are
/// counted there.
///
/// `taken_ns` is when they were stopped: `CLOCK_MONOTONIC`, in ns.
pub fn scan_tree(pids: &[u32], method: Method, taken_ns: u64) -> Result<Snapshot, ScanError> {
    let mut processes: Vec<ProcessSnapshot> = Vec::with_capacity(pids.len());
    for &pid in pids {
        match scan_process(pid, method) {
            Ok(process) if processes.iter().any(|other| same_memory(other, &process)) => {}
            Ok(process) => processes.push(process),
            Err(ScanError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let tree: Vec<u32> = processes.iter().map(|process| process.tgid).collect();
    let mut seen = Seen::default();
    for process in &mut processes {
        // One that is gone has nothing open.
        process.files = ProcDir::of(process.tgid)
            .and_then(|dir| open_files(&dir, &tree, &mut seen))
            .ok();
    }
    Ok(Snapshot {
        taken_ns,
        method,
        processes,
    })
}

/// `/proc/PID/maps` of a process that may be running: each line is right, at its own moment.
pub fn read_maps(pid: u32) -> Result<Vec<Vma>, ScanError> {
    ProcDir::of(pid)?.maps()
}

/// The present pages of a process that may be running, zero pages left out, in address order.
pub fn present_pages(pid: u32, method: Method) -> Result<Vec<ResidentRange>, ScanError> {
    let dir = ProcDir::of(pid)?;
    let vmas = dir.maps()?;
    present_ranges(&dir, &vmas, method)
}

/// A process that may be running, as far as its pages can be told then: those that came or went
/// meanwhile may be missing. RSS is the sum of what was found; PSS and the high-water mark are not read.
pub fn glance(pid: u32, method: Method) -> Result<ProcessSnapshot, ScanError> {
    let dir = ProcDir::of(pid)?;
    let vmas = dir.maps()?;
    let resident = settle(&vmas, &present_ranges(&dir, &vmas, method)?);
    let status = dir.status()?;
    Ok(ProcessSnapshot {
        tgid: pid,
        vmas,
        rss_bytes: bytes(&resident),
        resident,
        pss_bytes: 0,
        vm_hwm_bytes: 0,
        page_tables_bytes: status.page_tables_bytes,
        threads: status.threads,
        mappings: 0,
        files: None,
        pss_shmem_bytes: None,
        unexplained_bytes: 0,
    })
}

/// Snapshot of one stopped process.
pub fn scan_process(pid: u32, method: Method) -> Result<ProcessSnapshot, ScanError> {
    // The thread by whose place it was read may have ended meanwhile; the next place is that of one that lives.
    let first = scan_once(pid, method).or_else(|_| scan_once(pid, method))?;
    if first.unexplained_bytes == 0 {
        return Ok(first);
    }
    let mut second = scan_once(pid, method)?;
    if second.unexplained_bytes != 0 {
        second.resident = reconcile::reconcile(&ProcDir::of(pid)?, &second.resident)?;
        second.unexplained_bytes = unexplained(second.rss_bytes, &second.resident);
    }
    Ok(second)
}

fn scan_once(pid: u32, method: Method) -> Result<ProcessSnapshot, ScanError> {
    let dir = ProcDir::of(pid)?;
    let vmas = dir.maps()?;
    let resident = settle(&vmas, &present_ranges(&dir, &vmas, method)?);
    let rollup = dir.rollup()?;
    let status = dir.status()?;
    Ok(ProcessSnapshot {
        tgid: pid,
        unexplained_bytes: unexplained(rollup.rss_bytes, &resident),
        vmas,
        resident,
        rss_bytes: rollup.rss_bytes,
        pss_bytes: rollup.pss_bytes,
        vm_hwm_bytes: status.vm_hwm_bytes,
        page_tables_bytes: status.page_tables_bytes,
        threads: status.threads,
        mappings: 0,
        files: None,
        pss_shmem_bytes: rollup.pss_shmem_bytes,
    })
}

/// The first address that is not user memory: bit 63 parts the halves of the address space.
const KERNEL_HALF: u64 = 1 << 63;

/// Plain `pagemap` costs 0.8 ms a GiB of mappings, whether anything is resident in them or not, and
/// the reservations of a runtime may be terabytes. From this size on `smaps` (2.6 µs a mapping) is
/// asked first, and mappings without a resident page are not read.
const SMAPS_PAYS_BYTES: u64 = 64 * 1024 * MIB;

/// The present pages of the process, in address order, before the VMAs are asked what they are.
fn present_ranges(
    dir: &ProcDir,
    vmas: &[Vma],
    method: Method,
) -> Result<Vec<ResidentRange>, ScanError> {
    let pagemap = dir.open("pagemap")?;
    let user: Vec<&Vma> = vmas.iter().filter(|vma| vma.start < KERNEL_HALF).collect();
    let found = match method {
        Method::PagemapScan => {
            let start = user.first().map_or(0, |vma| vma.start);
            let end = user.last().map_or(0, |vma| vma.end);
            pagemap_scan::present_ranges(&pagemap, start, end)
        }
        Method::Pagemap
            if user.iter().map(|vma| vma.end - vma.start).sum::<u64>() > SMAPS_PAYS_BYTES =>
        {
            let entries = dir.smaps()?.into_iter().filter(|entry| entry.rss_bytes > 0);
            let vmas: Vec<Vma> = entries.map(|entry| entry.vma).collect();
            pagemap::present_ranges(&pagemap, &vmas, Unsure::Keep)
        }
        Method::Pagemap => pagemap::present_ranges(&pagemap, vmas, Unsure::Keep),
    };
    found.map_err(|error| dir.error("pagemap", error))
}

fn unexplained(rss_bytes: u64, resident: &[ResidentRange]) -> i64 {
    rss_bytes.cast_signed() - bytes(resident).cast_signed()
}

/// Whether two processes share one address space. The kernel is asked only about those that look
/// the same; a kernel without kcmp(2) leaves them apart.
fn same_memory(one: &ProcessSnapshot, other: &ProcessSnapshot) -> bool {
    const KCMP_VM: libc::c_int = 1;
    one.rss_bytes == other.rss_bytes
        && one.vmas == other.vmas
        // SAFETY: kcmp(2) takes numbers only and changes nothing; 0 means that they are the same.
        && unsafe { libc::syscall(libc::SYS_kcmp, one.tgid, other.tgid, KCMP_VM, 0, 0) } == 0
}
