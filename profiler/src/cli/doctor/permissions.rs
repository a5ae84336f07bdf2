//! What this process may do, and the settings that decide about it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use profiler::{
    daemon::client::{self, Reached},
    privileges::file_has_any,
};
use serde::Serialize;

use crate::cli::through_daemon;

/// Capabilities that matter here: name, bit (include/uapi/linux/capability.h), and what lacks without it.
const CAPABILITIES: [(&str, u32, &str); 7] = [
    ("CAP_BPF", 39, "eBPF programs cannot be loaded"),
    ("CAP_PERFMON", 38, "probes cannot be attached"),
    (
        "CAP_SYS_PTRACE",
        19,
        "pages and mappings of other users' processes cannot be read",
    ),
    (
        "CAP_DAC_OVERRIDE",
        1,
        "tracefs and the cgroup of the target may be closed to us",
    ),
    (
        "CAP_SYS_ADMIN",
        21,
        "tracefs cannot be mounted, nor maps of the kernel told",
    ),
    (
        "CAP_SYS_RESOURCE",
        24,
        "RLIMIT_NPROC cannot be raised above its hard limit",
    ),
    ("CAP_KILL", 5, "programs of other users cannot be ended"),
];
/// With this one, those of eBPF are there too (capabilities(7)).
const ALL_OF_BPF: &str = "CAP_SYS_ADMIN";

/// Settings that decide about permissions.
const SYSCTLS: [&str; 5] = [
    "kernel.unprivileged_bpf_disabled",
    "kernel.perf_event_paranoid",
    "kernel.kptr_restrict",
    "kernel.yama.ptrace_scope",
    "kernel.dmesg_restrict",
];

/// Who we are and what we may.
#[derive(Debug, Serialize)]
pub struct Permissions {
    pub effective_uid: u32,
    /// By name.
    pub capabilities: BTreeMap<&'static str, bool>,
    /// By name; null where this kernel has none or it cannot be read.
    pub sysctls: BTreeMap<&'static str, Option<i64>>,
    /// A sentence for each capability that is missing.
    pub missing: Vec<String>,
    /// `/sys/kernel/security/lockdown`, as far as it can be read: `integrity` and `confidentiality`
    /// restrict eBPF.
    pub lockdown: Option<String>,
    /// Whether this binary has file capabilities (`profiler setup`); null where that cannot be read.
    pub file_capabilities: Option<bool>,
    pub daemon: DaemonFound,
}

/// The daemon, for whoever may load no probes.
#[derive(Debug, Serialize)]
pub struct DaemonFound {
    pub socket: PathBuf,
    pub state: DaemonState,
}

/// Whether it would do what we ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonState {
    Listening,
    NotAMember,
    None,
}

/// Asks the kernel.
pub fn read() -> Permissions {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = capabilities(effective(&status));
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").ok();
    Permissions {
        effective_uid: nix::unistd::Uid::effective().as_raw(),
        missing: missing(&capabilities),
        capabilities,
        sysctls: SYSCTLS
            .into_iter()
            .map(|name| (name, sysctl(name)))
            .collect(),
        lockdown: lockdown.and_then(|text| Some(text.split(['[', ']']).nth(1)?.to_owned())),
        file_capabilities: file_has_any(Path::new("/proc/self/exe")),
        daemon: daemon(),
    }
}

fn daemon() -> DaemonFound {
    let socket = through_daemon::socket();
    let state = match client::reach(&socket) {
        Reached::Yes(_) => DaemonState::Listening,
        Reached::NotAMember => DaemonState::NotAMember,
        Reached::No => DaemonState::None,
    };
    DaemonFound { socket, state }
}

/// The mask in `/proc/PID/status`; none where it cannot be read.
fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn capabilities(mask: u64) -> BTreeMap<&'static str, bool> {
    CAPABILITIES
        .iter()
        .map(|(name, bit, _)| (*name, mask >> bit & 1 == 1))
        .collect()
}

fn missing(capabilities: &BTreeMap<&'static str, bool>) -> Vec<String> {
    let has = |name: &str| capabilities.get(name) == Some(&true);
    CAPABILITIES
        .iter()
        .filter(|(name, ..)| !has(name))
        .filter(|(name, ..)| !(has(ALL_OF_BPF) && ["CAP_BPF", "CAP_PERFMON"].contains(name)))
        .map(|(name, _, lacks)| format!("{name}: without it {lacks}"))
        .collect()
}

fn sysctl(name: &str) -> Option<i64> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named_with_what_it_is_for() {
        let mask = effective("Name:\tx\nCapEff:\t000000c000000000\nCapBnd:\t0\n");
        let all = capabilities(mask);
        assert_eq!((all["CAP_BPF"], all["CAP_PERFMON"]), (true, true));
        let missing_here = missing(&all);
        assert_eq!(missing_here.len(), 5);
        assert!(missing_here[0].starts_with("CAP_SYS_PTRACE: without it pages"));
        assert_eq!(missing(&capabilities(u64::MAX)), Vec::<String>::new());
        // Before Linux 5.8 had the two, this one was for both.
        assert!(
            missing(&capabilities(1 << 21))
                .iter()
                .all(|line| !line.contains("BPF") && !line.contains("PERFMON"))
        );
    }
}
