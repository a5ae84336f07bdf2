//! Attaches the probe that takes call stacks, and receives them.

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::ProgramFd,
};
use profiler_ebpf::call_stack_wire::{counter, names};
use serde::{Deserialize, Serialize};

use super::attach::{AttachError, Probe, ProbeState, kernel_error, program_error, tracepoint};

/// The calls whose stacks are taken: those that make memory. What `mremap` moves keeps the stack of the `mmap`
/// that made it, and a fork copies.
pub(super) const SYSCALLS: [&str; 2] = ["mmap", "brk"];

/// Distinct call stacks of a run: a slot of the table is 16 bytes and the kernel's own part of it.
const DISTINCT: u32 = 1 << 16;
/// Some 2,000 call stacks on their way.
const RING_BYTES: u32 = 8 << 20;

/// How many calls were looked at, and what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CallStackCounts {
    /// Calls that make memory (`mmap`, `brk`) whose stack was asked for.
    pub calls: u64,
    /// Distinct stacks that were copied.
    pub distinct: u64,
    /// Calls whose stack could not be read.
    pub unreadable: u64,
    /// Calls whose stack found no room on its way to us.
    pub lost: u64,
    /// Calls whose stack was one more than the table of distinct stacks has room for.
    pub table_full: u64,
}

/// See the module.
pub struct CallStackProbe {
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    /// For statistics.
    pub(super) program: Option<ProgramFd>,
}

impl CallStackProbe {
    /// Room for call stacks, or none.
    pub(super) fn size(loader: &mut EbpfLoader<'_>, wanted: bool) {
        if wanted {
            loader
                .map_max_entries(names::RING, RING_BYTES)
                .map_max_entries(names::IDS, DISTINCT);
        }
    }

    /// Attaches it; `None`, with the reason in `states`, on a kernel that lacks what it needs.
    pub(super) fn attach(
        ebpf: &mut Ebpf,
        states: &mut Vec<Probe>,
    ) -> Result<Option<CallStackProbe>, AttachError> {
        let program = tracepoint(ebpf, names::ENTER_MAPPING)?;
        let attached = program.load().and_then(|()| {
            SYSCALLS.iter().try_for_each(|call| {
                program
                    .attach("syscalls", &format!("sys_enter_{call}"))
                    .map(drop)
            })
        });
        states.extend(SYSCALLS.map(|call| {
            Probe {
                name: format!("syscalls:sys_enter_{call} with call stacks"),
                state: match attached {
                    Ok(()) => ProbeState::Attached,
                    Err(_) => ProbeState::Off,
                },
                reason: attached
                    .as_ref()
                    .err()
                    .map(|error| format!("call stacks need Linux 5.15 or later: {error}")),
            }
        }));
        if attached.is_err() {
            // One of the two may be attached: the plain program would record its calls twice.
            let _ = program.unload();
            return Ok(None);
        }
        let fd = program.fd().map_err(program_error)?;
        let fd = fd.try_clone().map_err(|error| kernel_error(&error))?;
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .ok_or_else(|| AttachError::Object(format!("map {name}")))
        };
        Ok(Some(CallStackProbe {
            ring: RingBuf::try_from(take(names::RING)?)?,
            counters: PerCpuArray::try_from(take(names::COUNTERS)?)?,
            program: Some(fd),
        }))
    }

    /// What `read` makes of the next call stack; `None` when there is none.
    pub fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.ring.next().map(|item| read(&item))
    }

    /// What became of the calls; `distinct` call stacks have arrived.
    pub fn counts(&self, distinct: u64) -> Result<CallStackCounts, AttachError> {
        let sum = |index| Ok::<u64, AttachError>(self.counters.get(&index, 0)?.iter().sum());
        Ok(CallStackCounts {
            calls: sum(counter::CALLS)?,
            distinct,
            unreadable: sum(counter::UNREADABLE)?,
            lost: sum(counter::LOST)?,
            table_full: sum(counter::TABLE_FULL)?,
        })
    }
}
