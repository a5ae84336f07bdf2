//! What the page ledger has to know about the running kernel: offsets, and where physical memory and
//! per-CPU memory are mapped.
//!
//! Offsets come from [`Btf`]. The two base addresses are in no file (they are chosen at boot), so
//! they are found out: a probe on `getppid` reads kernel memory for this process alone, and each
//! guess is proved before it is believed. For physical memory: the page tables of this process, read
//! at the guessed base, must give for several pages the frames that `/proc/self/pagemap` names.

use std::{fs::File, hint::black_box, io, os::unix::fs::FileExt};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData},
    programs::TracePoint,
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use profiler_ebpf::ledger_wire::{Peek, names};

use super::{
    btf::{Btf, BtfError},
    object,
    tier::{Tier, TierError},
};
use crate::units::PAGE;

/// A new candidate for the peak has more pages than the last one by a part in 2^10 of them (0.1 %) and
/// 4 ([`profiler_ebpf::ledger_wire::growth_limit`]).
pub const SLACK_SHIFT: u64 = 10;

/// Bits 12 to 51: the frame in a page table entry (`PHYSICAL_PAGE_MASK`).
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;
const GIB: u64 = 1 << 30;
/// Guesses at most: the machine's memory in GiB, holes included.
const GUESSES: u64 = 64 * 1024;
/// Pages by which a guess is proved.
const PROOFS: usize = 8;

/// A global in the object, by name, and its value.
pub type Global = (&'static str, u64);

/// See the module. All in bytes or addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// [`Tier::A`] or [`Tier::B`]: for which of them.
    pub tier: Tier,
    /// Name of the global in the object, and its value.
    pub globals: Vec<Global>,
    /// CPU → offset of its per-CPU memory; empty where RSS has no part for each CPU.
    pub cpu_offsets: Vec<u64>,
}

impl Layout {
    /// Finds everything out. Needs tracefs, root and a single thread (it moves between CPUs).
    pub fn find_out(tier: Tier) -> Result<Layout, TierError> {
        let btf = Btf::of_kernel()?;
        if tier == Tier::B && btf.size_of("mm_rss_stat").is_ok() {
            return Err(TierError::Kernel(
                "threads keep page faults to themselves, so that the moment of the peak is not known (before Linux 6.2)"
                    .into(),
            ));
        }
        let mut oracle = Oracle::ask()?;
        let here = oracle.read(0)?;
        let mm = oracle.value(here.task + btf.offset_of("task_struct", "mm")?)?;
        let pgd = oracle.value(mm + btf.offset_of("mm_struct", "pgd")?)?;
        let top_shift = top_shift();
        let direct_map = direct_map(&mut oracle, pgd, top_shift)?;
        let huge_zero = huge_zero(&mut oracle, direct_map, pgd, top_shift).unwrap_or(0);
        let (cpu_offsets, counters) = counters(&btf, &mut oracle)?;
        let folio_index = btf
            .offset_of("folio", "index")
            // Before Linux 5.16 there are pages only.
            .or_else(|_| btf.offset_of("page", "index"))?;
        let mut globals = vec![
            (names::TASK_MM, btf.offset_of("task_struct", "mm")?),
            (names::TASK_TGID, btf.offset_of("task_struct", "tgid")?),
            (
                names::TASK_ACTIVE_MM,
                btf.offset_of("task_struct", "active_mm")?,
            ),
            (names::TASK_SIGNAL, btf.offset_of("task_struct", "signal")?),
            (names::SIGNAL_LIVE, btf.offset_of("signal_struct", "live")?),
            (
                names::SIGNAL_FLAGS,
                btf.offset_of("signal_struct", "flags")?,
            ),
            (names::MM_PGD, btf.offset_of("mm_struct", "pgd")?),
            (names::MM_BRK, btf.offset_of("mm_struct", "brk")?),
            (
                names::MM_START_STACK,
                btf.offset_of("mm_struct", "start_stack")?,
            ),
            (
                names::MM_TABLE_BYTES,
                btf.offset_of("mm_struct", "pgtables_bytes")?,
            ),
            (names::MM_MAPPINGS, btf.offset_of("mm_struct", "map_count")?),
            (names::FOLIO_INDEX, folio_index),
            (names::VMA_MM, btf.offset_of("vm_area_struct", "vm_mm")?),
            (names::DIRECT_MAP, direct_map),
            (names::FRAME_MASK, FRAME_MASK),
            (names::TOP_SHIFT, top_shift),
            (names::HUGE_ZERO, huge_zero),
            (names::MIGRATION_TYPES, migration_types(&btf)),
            (names::END_IS_HOOKED, u64::from(tier == Tier::A)),
            (names::SLACK_SHIFT, SLACK_SHIFT),
        ];
        globals.extend(counters);
        globals.extend(moves(&btf)?);
        Ok(Layout {
            tier,
            globals,
            cpu_offsets,
        })
    }
}

/// Where the counters of RSS are, and the offset of each CPU's part of them.
fn counters(btf: &Btf, oracle: &mut Oracle) -> Result<(Vec<u64>, Vec<Global>), TierError> {
    let base = btf.offset_of("mm_struct", "rss_stat")?;
    if let Ok(count) = btf.offset_of("mm_rss_stat", "count") {
        // Before Linux 6.2: `atomic_long_t count[]` (include/linux/mm_types_task.h).
        let plain = vec![
            (names::MM_RSS, base),
            (names::COUNTER_SIZE, 8),
            (names::COUNTER_COUNT, count),
            (names::COUNTER_COUNTERS, 0),
            (names::CPU_SLACK, 0),
            (names::CPUS, 0),
        ];
        return Ok((Vec::new(), plain));
    }
    let offsets = cpu_offsets(oracle, btf.offset_of("bpf_array", "pptrs")?)?;
    let cpus = offsets.len() as u64;
    // `percpu_counter_batch` (lib/percpu_counter.c): a CPU that reaches it gives its part away.
    let batch = (2 * cpus).max(32);
    let in_parts = vec![
        (names::MM_RSS, base),
        (names::COUNTER_SIZE, btf.size_of("percpu_counter")?),
        (
            names::COUNTER_COUNT,
            btf.offset_of("percpu_counter", "count")?,
        ),
        (
            names::COUNTER_COUNTERS,
            btf.offset_of("percpu_counter", "counters")?,
        ),
        (names::CPU_SLACK, cpus * (batch - 1)),
        (names::CPUS, cpus),
    ];
    Ok((offsets, in_parts))
}

/// The types of swap entries that are pages being moved, as bits (include/linux/swap.h). They are counted down
/// from 31, and what is above them depends on the version and on what was built in; this is so with device
/// memory, hardware poison and migration, which distributions have. Where they are others, no entry is
/// taken for one.
fn migration_types(btf: &Btf) -> u64 {
    // Linux 5.19: 31 is a marker, 27 to 30 device memory, 24 to 26 migration. 5.10: 30 and 31 device memory,
    // 28 and 29 migration. Folios (5.16) tell the two apart well enough.
    match btf.size_of("folio") {
        Ok(_) => 0b111 << 24,
        Err(_) => 0b11 << 28,
    }
}

/// `struct pagetable_move_control` (mm/internal.h), where `move_page_tables` takes one.
fn moves(btf: &Btf) -> Result<Vec<Global>, BtfError> {
    let fields = [
        (names::MOVE_VMA, "old"),
        (names::MOVE_OLD, "old_addr"),
        (names::MOVE_NEW, "new_addr"),
        (names::MOVE_LENGTH, "len_in"),
    ];
    const CONTROL: &str = "pagetable_move_control";
    if btf.size_of(CONTROL).is_err() {
        return Ok(Vec::new());
    }
    fields
        .map(|(name, field)| Ok((name, btf.offset_of(CONTROL, field)?)))
        .into_iter()
        .collect()
}

/// The huge page of zeros, which is never RSS: what a read of untouched memory maps. It stays for as
/// long as this process lives, whose memory now has a reference to it (`mm_get_huge_zero_folio`,
/// mm/huge_memory.c). `None` where no huge pages are to be had.
fn huge_zero(oracle: &mut Oracle, direct_map: u64, pgd: u64, top_shift: u64) -> Option<u64> {
    const HUGE: u64 = 2 << 20;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            2 * HUGE as usize,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return None;
    }
    let page = (start as u64).next_multiple_of(HUGE);
    // SAFETY: the aligned 2 MiB lie in the mapping above, which only this function knows, and which may
    // be read.
    let found = unsafe {
        libc::madvise(page as *mut _, HUGE as usize, libc::MADV_HUGEPAGE);
        black_box((page as *const u8).read_volatile());
        let mut read = |at| oracle.value(at).ok();
        let found = walk(&mut read, direct_map, pgd, top_shift, page);
        libc::munmap(start, 2 * HUGE as usize);
        found
    };
    found
        .filter(|&(_, shift)| shift == 21)
        .map(|(frame, _)| frame)
}

/// Bits of an address below the highest page table: five levels when the CPU uses them.
fn top_shift() -> u64 {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let five = cpu.lines().any(|line| {
        line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "la57")
    });
    if five { 48 } else { 39 }
}

/// Reads kernel memory through the probe.
struct Oracle {
    peeks: Array<MapData, Words>,
    _ebpf: Ebpf,
}

/// [`Peek`] as words, which is what the map takes.
type Words = [u64; size_of::<Peek>() / 8];

impl Oracle {
    fn ask() -> Result<Oracle, TierError> {
        let mut ebpf = EbpfLoader::new()
            .load(object::BYTES)
            .map_err(TierError::kernel)?;
        let program: &mut TracePoint = ebpf
            .program_mut(names::PEEK)
            .and_then(|program| program.try_into().ok())
            .ok_or(TierError::Object(names::PEEK))?;
        program.load().map_err(TierError::kernel)?;
        program
            .attach("syscalls", "sys_enter_getppid")
            .map_err(TierError::kernel)?;
        let peeks = ebpf
            .take_map(names::PEEKS)
            .ok_or(TierError::Object(names::PEEKS))?;
        Ok(Oracle {
            peeks: Array::try_from(peeks).map_err(TierError::kernel)?,
            _ebpf: ebpf,
        })
    }

    fn read(&mut self, address: u64) -> Result<Peek, TierError> {
        let question = [u64::from(std::process::id()), address, 0, 0, 0, 0, 0];
        self.peeks.set(0, question, 0).map_err(TierError::kernel)?;
        // SAFETY: getppid(2) takes nothing and changes nothing. The call itself is wanted, which the
        // C library may not make twice.
        unsafe { libc::syscall(libc::SYS_getppid) };
        let [tgid, address, value, error, task, slot, array] =
            self.peeks.get(&0, 0).map_err(TierError::kernel)?;
        let error = error.cast_signed();
        Ok(Peek {
            tgid,
            address,
            value,
            error,
            task,
            slot,
            array,
        })
    }

    fn value(&mut self, address: u64) -> Result<u64, TierError> {
        let answer = self.read(address)?;
        if answer.error != 0 {
            return Err(TierError::Kernel(format!(
                "kernel memory cannot be read (error {})",
                answer.error
            )));
        }
        Ok(answer.value)
    }
}

/// Where physical memory begins: the first guess that proves right.
fn direct_map(oracle: &mut Oracle, pgd: u64, top_shift: u64) -> Result<u64, TierError> {
    // Pages of our own that stay where they are.
    let mut pages = vec![0_u8; PROOFS * PAGE as usize * 2];
    pages.iter_mut().step_by(512).for_each(|byte| *byte = 1);
    let proofs = frames(black_box(&pages)).map_err(TierError::kernel)?;
    if proofs.is_empty() {
        return Err(TierError::Kernel(
            "/proc/self/pagemap hides page frame numbers (needs CAP_SYS_ADMIN)".into(),
        ));
    }
    let highest = pgd & !(GIB - 1);
    for guess in 0..GUESSES {
        let base = highest.wrapping_sub(guess * GIB);
        let right = |&(address, frame): &(u64, u64), oracle: &mut Oracle| {
            walk(
                &mut |at| oracle.value(at).ok(),
                base,
                pgd,
                top_shift,
                address,
            )
            .is_some_and(|(found, _)| found == frame)
        };
        if proofs.iter().all(|proof| right(proof, oracle)) {
            black_box(&pages);
            return Ok(base);
        }
        // Below the half that belongs to the kernel there is nothing to find.
        if base >> 63 == 0 {
            break;
        }
    }
    Err(TierError::Kernel(
        "the kernel's map of physical memory was not found".into(),
    ))
}

/// Addresses inside `pages` and the physical address behind each.
fn frames(pages: &[u8]) -> io::Result<Vec<(u64, u64)>> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let first = (pages.as_ptr() as u64).next_multiple_of(PAGE);
    let mut found = Vec::new();
    for index in 0..PROOFS as u64 {
        let address = first + index * PAGE;
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, address / PAGE * 8)?;
        let entry = u64::from_ne_bytes(entry);
        let frame = (entry & ((1 << 55) - 1)) * PAGE;
        if entry >> 63 == 1 && frame != 0 {
            found.push((address, frame));
        }
    }
    Ok(found)
}

/// Physical address behind `address`, by the page tables at `pgd`, if physical memory is at `base`; and
/// how many bits of it are inside the page.
fn walk(
    read: &mut impl FnMut(u64) -> Option<u64>,
    base: u64,
    pgd: u64,
    top_shift: u64,
    address: u64,
) -> Option<(u64, u64)> {
    const PRESENT: u64 = 1;
    const HUGE: u64 = 1 << 7;
    let (mut table, mut shift) = (pgd, top_shift);
    loop {
        let entry = read(table.wrapping_add((address >> shift & 511) * 8))?;
        if entry & PRESENT == 0 {
            return None;
        }
        if shift == 12 || (entry & HUGE != 0 && shift <= 30) {
            let inside = (1_u64 << shift) - 1;
            return Some(((entry & FRAME_MASK & !inside) + (address & inside), shift));
        }
        table = base.wrapping_add(entry & FRAME_MASK);
        shift -= 9;
    }
}

/// The offset of each CPU: its slot of a per-CPU array, less the array's address for CPU "none".
fn cpu_offsets(oracle: &mut Oracle, pptrs: u64) -> Result<Vec<u64>, TierError> {
    let before = sched_getaffinity(Pid::from_raw(0)).map_err(TierError::kernel)?;
    let mut offsets = Vec::new();
    for cpu in 0..CpuSet::count() {
        if !before.is_set(cpu).unwrap_or(false) {
            continue;
        }
        let mut one = CpuSet::new();
        one.set(cpu).map_err(TierError::kernel)?;
        sched_setaffinity(Pid::from_raw(0), &one).map_err(TierError::kernel)?;
        let array = oracle.read(0)?.array;
        let answer = oracle.read(array + pptrs)?;
        offsets.resize(cpu + 1, 0);
        offsets[cpu] = answer.slot.wrapping_sub(answer.value);
    }
    sched_setaffinity(Pid::from_raw(0), &before).map_err(TierError::kernel)?;
    if offsets.contains(&0) {
        return Err(TierError::Kernel(
            "not every CPU may be used, so its part of a counter cannot be found".into(),
        ));
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_walk_descends_to_the_page_and_stops_at_a_huge_one() {
        const BASE: u64 = 0xffff_8880_0000_0000;
        let memory: HashMap<u64, u64> = [
            (BASE + 0x1000, 0x2000 | 1),             // top, entry 0
            (BASE + 0x2000, 0x3000 | 1),             // 1 GiB each
            (BASE + 0x3000, 0x4000 | 1),             // 2 MiB: page of entries
            (BASE + 0x3008, 0x20_0000 | 1 | 1 << 7), // 2 MiB: huge page
            (BASE + 0x4008, 0x9000 | 1 | 1 << 63),   // the second page
        ]
        .into();
        let mut read = |at: u64| Some(memory.get(&at).copied().unwrap_or(0));
        let mut at = |address| walk(&mut read, BASE, BASE + 0x1000, 39, address);
        assert_eq!(at(0x1234), Some((0x9234, 12)));
        assert_eq!(at(0x20_1234), Some((0x20_1234, 21)));
        assert_eq!(at(0x3000), None);
    }
}
