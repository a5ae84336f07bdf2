//! What the profiler itself takes, read from the kernel.

use std::{collections::BTreeMap, fs};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};

use crate::{
    residency::vm_hwm_bytes,
    results::{MapCost, OwnCost},
};

/// The eBPF maps that this process has open, largest first, by what the kernel says they take.
pub(super) fn maps() -> Vec<MapCost> {
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

/// What was taken until now.
pub(super) fn read(maps: Vec<MapCost>) -> Option<OwnCost> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(OwnCost {
        peak_rss_bytes: vm_hwm_bytes(std::process::id()).ok()?,
        cpu_seconds: seconds(usage.user_time()) + seconds(usage.system_time()),
        maps,
    })
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
    fn our_own_cost_is_read() {
        let cost = read(Vec::new()).unwrap();
        assert!(
            cost.peak_rss_bytes > 1 << 20 && cost.cpu_seconds >= 0.0,
            "{cost:?}"
        );
    }
}
