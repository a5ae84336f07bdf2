//! Which functions of the kernel tier A hooks. They are no stable interface, so what a kernel has, and
//! with how many arguments, is read from its types; beside each stands where it was found so.

use std::ops::RangeInclusive;

use aya::{
    Ebpf,
    programs::{BtfTracePoint, FEntry, FExit, ProgramFd},
};
use profiler_ebpf::ledger_wire::names;

use super::{
    attach::{Probe, ProbeState},
    btf::Btf,
    object,
    tier::TierError,
};

/// One thing that has to be seen.
pub struct Role {
    /// What happens, for the person: "no probe sees …".
    pub what: &'static str,
    /// Without it the ledger would be wrong for any program.
    pub required: bool,
    /// Where it can be seen; the first that this kernel has is taken.
    pub ways: &'static [Way],
}

/// A function, and the program that understands its arguments.
pub struct Way {
    /// The program in the object.
    pub program: &'static str,
    /// The function in the kernel.
    pub function: &'static str,
    /// How many arguments it has where the program understands it.
    pub arguments: RangeInclusive<usize>,
}

const fn way(
    program: &'static str,
    function: &'static str,
    arguments: RangeInclusive<usize>,
) -> Way {
    Way {
        program,
        function,
        arguments,
    }
}

/// Whether this kernel preempts its own code by default: since Linux 6.13 there is lazy preemption, which
/// distributions chose. (Kernels that were built for full preemption before are taken for others; what
/// they skip is counted all the same.)
pub fn preemptible() -> bool {
    kernel_version().is_some_and(|version| version >= (6, 13))
}

/// Whether this kernel preempts programs of system calls' tracepoints: Linux 7.2 does
/// (`trace_call_bpf_faultable`), 6.18 does not; what lies between is taken for one that does, which costs
/// some time and is right either way.
pub fn preempts_calls() -> bool {
    kernel_version().is_some_and(|version| version >= (7, 0))
}

/// Whether a fault waits for nobody who changes another mapping: since Linux 6.4 (`lock_vma_under_rcu`). Before,
/// every thread that takes a fault during an `munmap` waits between the tracepoint, which tells of the fault,
/// and the page; and the candidate made meanwhile has this page too much.
pub fn locks_mappings() -> bool {
    kernel_version().is_some_and(|version| version >= (6, 4))
}

/// Whether a hash table that probes write to may take memory when it needs it: since Linux 6.1, where each has a
/// stock of its own (`bpf_mem_alloc`). Before, the kernel warns of such a table in its log
/// (`check_map_prog_compatibility`, kernel/bpf/verifier.c).
pub(super) fn allocates_in_probes() -> bool {
    kernel_version().is_some_and(|version| version >= (6, 1))
}

/// Major and minor number of the running kernel.
pub(super) fn kernel_version() -> Option<(u32, u32)> {
    let release = nix::sys::utsname::uname().map(|names| names.release().to_os_string());
    version(&release.unwrap_or_default().to_string_lossy())
}

/// `6.18.15+deb13-cloud-amd64` → (6, 18)
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Where every page fault passes.
const FAULT: &str = "handle_mm_fault";

/// Page faults, and pages that the kernel brings as if there had been one, before Linux 6.4. Since then
/// ([`locks_mappings`]), tier B's tracepoints tell of faults, at less cost, and [`LOOKUPS`] of the others.
pub const FAULTS: Role = Role {
    what: "page faults",
    required: true,
    ways: &[way(names::BEFORE_FAULT, FAULT, 4..=4)],
};

/// Where `handle_mm_fault` is called without a fault of the processor.
pub const LOOKUPS: [Role; 2] = [
    Role {
        what: "pages that a call brings",
        required: true,
        ways: &[
            way(names::BEFORE_LOOKUP, LOOKUP, 4..=4),
            way(names::BEFORE_LOOKUP, "follow_page_pte", 4..=5),
        ],
    },
    Role {
        what: "pages that futexes and drivers bring",
        required: true,
        ways: &[way(names::BEFORE_FIXUP, "fixup_user_fault", 4..=4)],
    },
];

/// What every lookup of a page passes, where it is a function of its own.
const LOOKUP: &str = "follow_page_mask";

/// Where it is not, what a lookup passes when there is no page table.
pub const LOOKUP_WITHOUT_TABLE: Role = Role {
    what: "pages that a call brings where there is no page table",
    required: true,
    ways: &[way(names::BEFORE_FIRST, "no_page_table", 3..=3)],
};

/// The roles by which this kernel's page faults are seen, and what is as good as one.
pub fn faults(kernel: &Btf) -> Vec<&'static Role> {
    if !locks_mappings() {
        return vec![&FAULTS];
    }
    let in_parts = kernel.function_arguments(LOOKUP).is_none();
    let without_table = in_parts.then_some(&LOOKUP_WITHOUT_TABLE);
    LOOKUPS.iter().chain(without_table).collect()
}

/// Function with which an address space ends.
const END: &str = "exit_mmap";
/// The same for the person.
const THE_END: &str = "the end of an address space";

/// What else there is to hook; checked, as those above, on 5.10, 6.1, 6.12, 6.18 and 7.2.
pub const ROLES: [Role; 12] = [
    Role {
        what: THE_END,
        required: true,
        ways: &[way(names::BEFORE_END, END, 1..=1)],
    },
    Role {
        what: "pages that are unmapped",
        required: true,
        ways: &[
            way(names::BEFORE_UNMAP, "unmap_page_range", 5..=5),
            // Since Linux 7.1.
            way(names::BEFORE_UNMAP, "__zap_vma_range", 5..=5),
        ],
    },
    Role {
        what: "page tables that are moved (mremap)",
        required: true,
        ways: &[
            // The seventh argument came with Linux 6.6. Before, `mremap` does not call it: it is inlined.
            way(names::BEFORE_MOVE, "move_page_tables", 7..=7),
            way(names::BEFORE_MOVE_BY_CONTROL, "move_page_tables", 1..=1),
            way(names::BEFORE_MOVE_AWAY, "ksm_madvise", 5..=5),
        ],
    },
    Role {
        what: "the places that page tables are moved to, before Linux 6.6,",
        required: false,
        ways: &[way(names::BEFORE_MOVE_HERE, "copy_vma", 5..=5)],
    },
    Role {
        what: "pages that the kernel takes back (reclaim)",
        required: false,
        ways: &[way(names::BEFORE_RECLAIM, "try_to_unmap_one", 4..=4)],
    },
    Role {
        what: "huge pages that are split",
        required: false,
        ways: &[way(names::BEFORE_MIGRATION, "try_to_migrate_one", 4..=4)],
    },
    // Where these two are skipped (`preemptible`), nobody else has seen it, unless a second program did.
    Role {
        what: "pages that the kernel takes back, where the first probe is skipped,",
        required: false,
        ways: &[way(names::BEFORE_RECLAIM_AGAIN, "try_to_unmap_one", 4..=4)],
    },
    Role {
        what: "huge pages that are split, where the first probe is skipped,",
        required: false,
        ways: &[way(
            names::BEFORE_MIGRATION_AGAIN,
            "try_to_migrate_one",
            4..=4,
        )],
    },
    Role {
        what: "huge pages made of small ones",
        required: false,
        ways: &[
            // The sixth argument came with Linux 7.2.
            way(names::BEFORE_COLLAPSE, "collapse_huge_page", 5..=6),
        ],
    },
    Role {
        what: "huge pages made of a file's",
        required: false,
        ways: &[way(
            names::BEFORE_COLLAPSE_FILE,
            "collapse_pte_mapped_thp",
            2..=3,
        )],
    },
    Role {
        what: "pages from userfaultfd",
        required: false,
        ways: &[
            way(names::BEFORE_FILL, "mcopy_atomic", 6..=6),
            // Linux 6.1 has this one too, with other arguments, beside the first.
            way(names::BEFORE_FILL_PAGE, "mfill_atomic_install_pte", 5..=6),
        ],
    },
    Role {
        what: "pages that a driver maps",
        required: false,
        ways: &[way(names::BEFORE_INSERT, "vm_insert_page", 3..=3)],
    },
];

/// Hooks a role where the kernel has a way to it; the descriptor of the program, for its statistics.
pub fn attach(
    role: &Role,
    ebpf: &mut Ebpf,
    kernel: &Btf,
    types: &aya::Btf,
    states: &mut Vec<Probe>,
) -> Result<Option<ProgramFd>, TierError> {
    let mut reasons = Vec::new();
    for way in role.ways {
        let Some(arguments) = kernel.function_arguments(way.function) else {
            reasons.push(format!("the kernel has no function {}", way.function));
            continue;
        };
        if !way.arguments.contains(&arguments) {
            reasons.push(format!("{} has {arguments} arguments", way.function));
            continue;
        }
        match attach_entry(way.program, way.function, ebpf, types) {
            Ok(program) => {
                states.push(attached(format!("ledger fentry:{}", way.function)));
                return Ok(Some(program));
            }
            Err(error) => reasons.push(format!("{}: {error}", way.function)),
        }
    }
    let reason = reasons.join("; ");
    if role.required {
        return Err(unseen(role.what, &reason));
    }
    states.push(Probe {
        name: format!("ledger fentry:{}", role.ways[0].function),
        state: ProbeState::Off,
        reason: Some(format!("{} are not seen: {reason}", role.what)),
    });
    Ok(None)
}

/// What has to be seen is not, so that the tier is not to be had.
fn unseen(what: &str, reason: &str) -> TierError {
    TierError::Kernel(format!("no probe sees {what}: {reason}"))
}

fn attach_entry(
    program: &'static str,
    function: &str,
    ebpf: &mut Ebpf,
    types: &aya::Btf,
) -> Result<ProgramFd, TierError> {
    let program: &mut FEntry = ebpf
        .program_mut(program)
        .and_then(|program| program.try_into().ok())
        .ok_or(TierError::Object(program))?;
    program.load(function, types).map_err(TierError::kernel)?;
    program.attach().map_err(TierError::kernel)?;
    let fd = program.fd().map_err(TierError::kernel)?;
    fd.try_clone().map_err(TierError::kernel)
}

/// Attaches a tp_btf program.
pub(super) fn attach_tracepoint(
    program: &'static str,
    tracepoint: &str,
    ebpf: &mut Ebpf,
    types: &aya::Btf,
) -> Result<ProgramFd, TierError> {
    let program: &mut BtfTracePoint = ebpf
        .program_mut(program)
        .and_then(|program| program.try_into().ok())
        .ok_or(TierError::Object(program))?;
    program.load(tracepoint, types).map_err(TierError::kernel)?;
    program.attach().map_err(TierError::kernel)?;
    let fd = program.fd().map_err(TierError::kernel)?;
    fd.try_clone().map_err(TierError::kernel)
}

/// An empty program where page faults pass: what the kernel's way to a program and back costs by itself. For
/// measurements; dropping it detaches it.
pub struct EmptyProbe {
    _ebpf: Ebpf,
}

impl EmptyProbe {
    /// Loads and attaches it alone, at the function `handle_mm_fault`.
    pub fn at_function() -> Result<EmptyProbe, TierError> {
        EmptyProbe::attach(|ebpf, types| attach_entry(names::EMPTY, FAULT, ebpf, types))
    }

    /// The same at the tracepoint `page_fault_user`.
    pub fn at_tracepoint() -> Result<EmptyProbe, TierError> {
        let (name, tracepoint) = names::EMPTY_TRACEPOINT;
        EmptyProbe::attach(|ebpf, types| attach_tracepoint(name, tracepoint, ebpf, types))
    }

    fn attach(
        attach: impl Fn(&mut Ebpf, &aya::Btf) -> Result<ProgramFd, TierError>,
    ) -> Result<EmptyProbe, TierError> {
        let mut ebpf = Ebpf::load(object::BYTES).map_err(TierError::kernel)?;
        let types = aya::Btf::from_sys_fs().map_err(TierError::kernel)?;
        attach(&mut ebpf, &types)?;
        Ok(EmptyProbe { _ebpf: ebpf })
    }
}

/// Loads what hooks the return of `exit_mmap`, which every kernel has. Where a kernel lets nobody load such a program, that
/// is known then, before anything is attached: to take a tracepoint away again takes some 70 ms each.
pub(super) fn load_after_end(ebpf: &mut Ebpf, types: &aya::Btf) -> Result<(), TierError> {
    let loaded = after_end(ebpf)?.load(END, types);
    loaded.map_err(|error| unseen(THE_END, &format!("{END}: {}", TierError::kernel(error))))
}

/// Hooks the return of `exit_mmap`, with what [`load_after_end`] has loaded.
pub(super) fn attach_after_end(
    ebpf: &mut Ebpf,
    states: &mut Vec<Probe>,
) -> Result<ProgramFd, TierError> {
    let program = after_end(ebpf)?;
    program.attach().map_err(TierError::kernel)?;
    states.push(attached(format!("ledger fexit:{END}")));
    let fd = program.fd().map_err(TierError::kernel)?;
    fd.try_clone().map_err(TierError::kernel)
}

fn after_end(ebpf: &mut Ebpf) -> Result<&mut FExit, TierError> {
    let program = ebpf.program_mut(names::AFTER_END);
    program
        .and_then(|program| program.try_into().ok())
        .ok_or(TierError::Object(names::AFTER_END))
}

pub(super) fn attached(name: String) -> Probe {
    Probe {
        name,
        state: ProbeState::Attached,
        reason: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_two_numbers_of_a_release() {
        assert_eq!(version("6.18.15+deb13-cloud-amd64"), Some((6, 18)));
        assert_eq!(version("7.2-rc1"), Some((7, 2)));
        assert_eq!(version("unknown"), None);
        assert!(version("6.12.107+deb13") < version("6.13.0"));
    }
}
