//! What this process may do, and doing no more of it than it must.
//!
//! Loading probes takes `CAP_BPF` and `CAP_PERFMON`, and reading what tracefs says of them `CAP_DAC_READ_SEARCH`
//! where only root may read it, found out by trying on Linux 6.18. That is what `profiler setup` gives to the file,
//! as *permitted* and not as effective: each is taken up where it is needed ([`while_probing`]). The last one lets
//! any file be read, so it is put down again at once: the files that the person names are read as that person.

use caps::{CapSet, Capability, CapsHashSet};

/// What loading and following takes.
const PROBING: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_PERFMON];
/// For tracefs alone.
const TRACEFS: Capability = Capability::CAP_DAC_READ_SEARCH;

/// The same in the notation of setcap(8).
pub const FILE_CAPABILITIES: &str = "cap_bpf,cap_perfmon,cap_dac_read_search=p";

/// Whether probes may be loaded: root's `CAP_SYS_ADMIN`, or what [`FILE_CAPABILITIES`] gives.
pub fn may_probe() -> bool {
    let has = |cap| caps::has_cap(None, CapSet::Permitted, cap).unwrap_or(false);
    has(Capability::CAP_SYS_ADMIN) || PROBING.into_iter().all(has)
}

/// The names of what is permitted, of those that matter here.
pub fn permitted() -> Vec<String> {
    let permitted = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let mut names: Vec<String> = PROBING
        .into_iter()
        .chain([
            TRACEFS,
            Capability::CAP_SYS_PTRACE,
            Capability::CAP_SYS_ADMIN,
        ])
        .filter(|cap| permitted.contains(cap))
        .map(|cap| cap.to_string())
        .collect();
    names.sort_unstable();
    names
}

/// Does what needs the capabilities for probes. Where they are only permitted they are taken up; that for tracefs is put
/// down afterwards. What is not permitted stays away: the kernel says so to whoever needs it.
pub fn while_probing<T>(work: impl FnOnce() -> T) -> T {
    for cap in PROBING {
        let _ = caps::raise(None, CapSet::Effective, cap);
    }
    let had = caps::has_cap(None, CapSet::Effective, TRACEFS).unwrap_or(false);
    let _ = caps::raise(None, CapSet::Effective, TRACEFS);
    let done = work();
    if !had {
        let _ = caps::drop(None, CapSet::Effective, TRACEFS);
    }
    done
}

/// Keeps what probes take as permitted, and gives up everything else for good. For a process that has just become
/// another user and has kept its capabilities over that.
pub fn keep_only_for_probes() -> Result<(), caps::errors::CapsError> {
    let keep: CapsHashSet = PROBING.into_iter().chain([TRACEFS]).collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Effective)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Permitted, &keep)
}
