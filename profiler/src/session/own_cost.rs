//! What the profiler itself takes, read from the kernel.

use std::{collections::BTreeMap, fs};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};

use crate::{
    residency::vm_hwm_bytes,
    results::{MapCost, OwnCost},
    units::KIB,
};

/// The eBPF maps that this process has open, largest first, by what the kernel says they take.
fn maps() -> Vec<MapCost> {
    let names: BTreeMap<u32, String> = aya::maps::loaded_maps()
        .flatten()
        .map(|map| (map.id(), map.name_as_str().unwrap_or("?").to_owned()))
        .collect();
    let mut costs = BTreeMap::new();
    let entries = fs::read_dir("/proc/self/fdinfo").into_iter().flatten();
    for entry in entries.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if let Some((id, bytes)) = map_of(&text) {
            let name = names.get(&id).cloned().unwrap_or_else(|| id.to_string());
            costs.insert(id, MapCost { name, bytes });
        }
    }
    let mut costs: Vec<MapCost> = costs.into_values().collect();
    costs.sort_by_key(|map| std::cmp::Reverse(map.bytes));
    costs
}

/// Id and size of the map that a file of fdinfo is about.
fn map_of(text: &str) -> Option<(u32, u64)> {
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    Some((number("map_id:")? as u32, number("memlock:")?))
}

/// What loading the probes has taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    peak_rss_bytes: u64,
    cpu_seconds: f64,
    /// The highest RSS since, until the target had ended.
    alive_peak_rss_bytes: Option<u64>,
}

impl Start {
    /// To be called when the target has ended.
    pub(super) fn target_ended(self) -> Start {
        Start {
            alive_peak_rss_bytes: vm_hwm_bytes(std::process::id()).ok(),
            ..self
        }
    }
}

/// RSS of this process that is eBPF maps which it reads in place: the kernel's memory of the maps.
fn mapped_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    mapped_in(&text)
}

/// The sum of `Rss` of those mappings in a text of smaps.
fn mapped_in(text: &str) -> u64 {
    let mut is_map = false;
    let mut kib = 0;
    for line in text.lines() {
        match line.strip_prefix("Rss:") {
            Some(rss) if is_map => {
                let number = rss.trim().trim_end_matches(" kB").parse();
                kib += number.unwrap_or(0);
            }
            Some(_) => {}
            // `bpf_map_new_fd`, kernel/bpf/syscall.c.
            None if line.contains('-') => is_map = line.ends_with("anon_inode:bpf-map"),
            None => {}
        }
    }
    kib * KIB
}

/// To be called before the first list of some megabytes is made. Once one has been freed, glibc would take the next ones
/// of up to 32 MiB out of the heap (M_MMAP_THRESHOLD grows, mallopt(3)), where they leave holes and are copied to grow, and
/// keep twice as much at the end of each of its heaps. With a threshold that is set, each is a mapping of its own,
/// which `mremap` makes longer and which goes when it is freed.
pub(super) fn give_long_lists_mappings() {
    // SAFETY: takes numbers.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 * 1024);
    }
}

/// To be called when the probes are loaded and the target is about to begin. Gives memory back: the types of the
/// whole kernel have been read, and some 40 MB of free memory would stay with malloc.
pub(super) fn start() -> Option<Start> {
    let start = Start {
        peak_rss_bytes: vm_hwm_bytes(std::process::id()).ok()?,
        cpu_seconds: cpu_seconds()?,
        alive_peak_rss_bytes: None,
    };
    give_memory_back();
    // 5: the high-water mark begins anew (`CLEAR_REFS_MM_HIWATER_RSS`, fs/proc/task_mmu.c). A kernel without it
    // leaves the mark of the start.
    let _ = fs::write("/proc/self/clear_refs", "5");
    Some(start)
}

/// Gives free memory back to the kernel, which malloc would keep for the next time: what a look at a large program has
/// taken may be needed for a moment only, while what is kept lies above it.
pub(super) fn give_memory_back() {
    // SAFETY: takes a number, and gives back what nobody has.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What was taken since, and before.
pub(super) fn read(start: Start) -> Option<OwnCost> {
    let peak_rss_bytes = vm_hwm_bytes(std::process::id()).ok()?;
    Some(OwnCost {
        start_peak_rss_bytes: start.peak_rss_bytes,
        start_cpu_seconds: start.cpu_seconds,
        peak_rss_bytes,
        alive_peak_rss_bytes: start.alive_peak_rss_bytes.unwrap_or(peak_rss_bytes),
        mapped_bytes: mapped_bytes(),
        cpu_seconds: cpu_seconds()? - start.cpu_seconds,
        maps: maps(),
    })
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_known_by_its_fdinfo() {
        let text = "pos:\t0\nflags:\t02000002\nmap_type:\t27\nmax_entries:\t16777216\nmemlock:\t16855384\nmap_id:\t7\n";
        assert_eq!(map_of(text), Some((7, 16_855_384)));
        assert_eq!(map_of("pos:\t0\nflags:\t0100002\n"), None);
    }

    #[test]
    fn maps_that_are_read_in_place_are_known_by_their_name() {
        let text = "7f00-7f10 r--s 00000000 00:0f 12   anon_inode:bpf-map\nSize: 64 kB\nRss:                  60 kB\n\
                    7f10-7f20 rw-p 00000000 00:00 0 \nSize: 64 kB\nRss:                   8 kB\n";
        assert_eq!(mapped_in(text), 60 * KIB);
        assert_eq!(mapped_bytes(), 0);
    }

    #[test]
    fn the_start_is_told_apart_from_the_rest() {
        let start = start().unwrap();
        let cost = read(start).unwrap();
        assert_eq!(cost.start_peak_rss_bytes, start.peak_rss_bytes);
        assert!(cost.peak_rss_bytes > 1 << 20, "{cost:?}");
        assert!(cost.cpu_seconds >= 0.0, "{cost:?}");
    }
}
