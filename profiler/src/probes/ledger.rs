//! Attaches the page ledger and reads it.
//!
//! Both tiers: tp_btf `task_newtask` and `sched_process_exec`, and since Linux 6.4 `page_fault_user` and
//! `page_fault_kernel`. Tier A: the kernel's functions in [`functions`]. Tier B: tp_btf `sched_process_exit`, and
//! before Linux 6.16 what comes ahead of it; `syscalls:sys_enter_*` of the calls that remove pages, of which tier A
//! has `execve`. Where programs at functions may be skipped ([`preemptible`](functions::preemptible)), tier A has all
//! of those. What they write is in maps that are mapped into this process, so reading costs the target nothing.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{Iter, ProgramError, ProgramFd, TracePoint},
};
use profiler_ebpf::ledger_wire::{
    Chunk, ChunkWords, SPACES, Space, SpaceWords, State, StateWords, names,
};

use super::{
    attach::{Probe, ProbeState, Sizes},
    btf::Btf,
    functions::{self, attached},
    layout::Layout,
    skipped::skipped,
    tier::{Tier, TierError},
};

/// Calls that take pages away, or bring them without a fault.
const REMOVALS: [&str; 6] = ["munmap", "mmap", "madvise", "brk", "mremap", "shmdt"];

/// Calls after which a process has other memory.
const EXECS: [&str; 2] = ["execve", "execveat"];

/// Calls that end a process, where its memory is gone by the time that the kernel tells of its end.
const ENDS: [&str; 2] = ["exit", "exit_group"];

/// Calls that bring pages to a place that only their result tells.
const ARRIVALS: [&str; 2] = ["mmap", "mremap"];

/// The attached ledger.
pub struct LedgerProbes {
    pool: Mapped,
    /// Entries of the pool.
    chunks: u32,
    /// As `pool` and `chunks`, for spaces' own candidates.
    own_pool: Mapped,
    own_chunks: u32,
    spaces: Mapped,
    state: Mapped,
    /// [`Tier::A`] or [`Tier::B`].
    tier: Tier,
    /// For statistics.
    programs: Vec<ProgramFd>,
}

impl LedgerProbes {
    /// Attaches to an object that was loaded with the globals of `layout` and large enough maps.
    pub fn attach(
        ebpf: &mut Ebpf,
        layout: &Layout,
        types: &aya::Btf,
        sizes: Sizes,
        states: &mut Vec<Probe>,
    ) -> Result<LedgerProbes, TierError> {
        let mut offsets: Array<&mut MapData, u64> = ebpf
            .map_mut(names::CPU_OFFSETS)
            .ok_or(TierError::Object(names::CPU_OFFSETS))?
            .try_into()
            .map_err(TierError::kernel)?;
        for (cpu, &offset) in layout.cpu_offsets.iter().enumerate() {
            offsets
                .set(cpu as u32, offset, 0)
                .map_err(TierError::kernel)?;
        }
        let mut probes = LedgerProbes {
            pool: pool(ebpf, names::POOL, sizes.chunks)?,
            chunks: sizes.chunks,
            own_pool: pool(ebpf, names::OWN_POOL, sizes.own_chunks)?,
            own_chunks: sizes.own_chunks,
            spaces: map(ebpf, names::SPACES, SPACES as usize * size_of::<Space>())?,
            state: map(ebpf, names::STATE, size_of::<State>())?,
            tier: layout.tier,
            programs: Vec::new(),
        };
        // Whom to follow first: a fault of a space that is not known means nothing.
        for (name, tracepoint) in names::LIFECYCLE {
            probes.attach_btf(ebpf, name, tracepoint, types)?;
            states.push(attached(format!("ledger tp_btf:{tracepoint}")));
        }
        let kernel = Btf::of_kernel()?;
        if layout.tier == Tier::A {
            probes.attach_functions(ebpf, &kernel, types, states)?;
        }
        if layout.tier == Tier::B || functions::locks_mappings() {
            for (name, tracepoint) in names::FAULTS {
                probes.attach_btf(ebpf, name, tracepoint, types)?;
                states.push(attached(format!("ledger tp_btf:{tracepoint}")));
            }
        }
        let tracepoints = layout.tier == Tier::B || functions::preemptible();
        if tracepoints {
            probes.attach_tracepoints(ebpf, &kernel, types, states)?;
        } else {
            probes.attach_calls(ebpf, names::BEFORE_EXEC, "sys_enter", &EXECS, states)?;
        }
        let collapse_is_hooked = kernel.function_arguments("collapse_huge_page").is_some();
        if tracepoints || !collapse_is_hooked {
            probes.attach_huge(ebpf, types, states);
        }
        Ok(probes)
    }

    fn attach_functions(
        &mut self,
        ebpf: &mut Ebpf,
        kernel: &Btf,
        types: &aya::Btf,
        states: &mut Vec<Probe>,
    ) -> Result<(), TierError> {
        for role in functions::ROLES.iter().chain(functions::faults(kernel)) {
            let program = functions::attach(role, ebpf, kernel, types, states)?;
            self.programs.extend(program);
        }
        let after_end = functions::attach_after_end(ebpf, states)?;
        self.programs.push(after_end);
        Ok(())
    }

    fn attach_tracepoints(
        &mut self,
        ebpf: &mut Ebpf,
        kernel: &Btf,
        types: &aya::Btf,
        states: &mut Vec<Probe>,
    ) -> Result<(), TierError> {
        let is_there = kernel.memory_is_there_at_exit()?;
        // Tier A hooks the end itself.
        let ends_by_calls = !is_there && self.tier == Tier::B;
        let ends: &[(&str, &str)] = match (is_there, ends_by_calls) {
            (true, _) => &[names::EXIT],
            (false, true) => &names::ENDS,
            (false, false) => &[],
        };
        for &(name, tracepoint) in ends {
            self.attach_btf(ebpf, name, tracepoint, types)?;
            states.push(attached(format!("ledger tp_btf:{tracepoint}")));
        }
        let mut removals = [&REMOVALS[..], &EXECS].concat();
        if ends_by_calls {
            removals.extend(ENDS);
        }
        let again: &[(&str, &str)] = match functions::preempts_calls() {
            true => &names::AGAIN,
            false => &[],
        };
        for &(removal, arrival) in [(names::REMOVAL, names::ARRIVAL)].iter().chain(again) {
            self.attach_calls(ebpf, removal, "sys_enter", &removals, states)?;
            self.attach_calls(ebpf, arrival, "sys_exit", &ARRIVALS, states)?;
        }
        Ok(())
    }

    /// A kernel without huge pages does not have the tracepoint and does not need it.
    fn attach_huge(&mut self, ebpf: &mut Ebpf, types: &aya::Btf, states: &mut Vec<Probe>) {
        let (name, tracepoint) = names::HUGE;
        let huge = self.attach_btf(ebpf, name, tracepoint, types);
        states.push(Probe {
            reason: huge.as_ref().err().map(ToString::to_string),
            state: match huge {
                Ok(()) => ProbeState::Attached,
                Err(_) => ProbeState::Off,
            },
            name: format!("ledger tp_btf:{tracepoint}"),
        });
    }

    /// [`Tier::A`] or [`Tier::B`].
    pub fn tier(&self) -> Tier {
        self.tier
    }

    fn attach_btf(
        &mut self,
        ebpf: &mut Ebpf,
        name: &'static str,
        tracepoint: &str,
        kernel_types: &aya::Btf,
    ) -> Result<(), TierError> {
        let program = functions::attach_tracepoint(name, tracepoint, ebpf, kernel_types)?;
        self.programs.push(program);
        Ok(())
    }

    fn attach_calls(
        &mut self,
        ebpf: &mut Ebpf,
        name: &'static str,
        side: &str,
        calls: &[&str],
        states: &mut Vec<Probe>,
    ) -> Result<(), TierError> {
        let program: &mut TracePoint = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(TierError::Object(name))?;
        program.load().map_err(TierError::kernel)?;
        for call in calls {
            program
                .attach("syscalls", &format!("{side}_{call}"))
                .map_err(TierError::kernel)?;
            states.push(attached(format!("ledger syscalls:{side}_{call}")));
        }
        self.keep(program.fd())
    }

    /// For the statistics of the program.
    fn keep(&mut self, fd: Result<&ProgramFd, ProgramError>) -> Result<(), TierError> {
        let fd = fd.map_err(TierError::kernel)?;
        self.programs
            .push(fd.try_clone().map_err(TierError::kernel)?);
        Ok(())
    }

    /// The one [`State`].
    pub fn state(&self) -> StateWords {
        self.state.record(0)
    }

    /// All [`Space`]s in use.
    pub fn spaces(&self) -> impl Iterator<Item = SpaceWords> {
        let spaces = self.state()[offset_of!(State, spaces) / 8].min(u64::from(SPACES));
        (0..spaces as usize).map(|index| self.spaces.record(index))
    }

    /// All [`Chunk`]s in use. They may be written while they are read; whoever decodes them looks at the
    /// epoch.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkWords> {
        let chunks = self.state()[offset_of!(State, chunks) / 8].min(u64::from(self.chunks));
        (0..chunks as usize).map(|index| self.pool.record(index))
    }

    /// The same of spaces' own candidates.
    pub fn own_chunks(&self) -> impl Iterator<Item = ChunkWords> {
        let used = self.state()[offset_of!(State, own_chunks) / 8];
        let chunks = used.min(u64::from(self.own_chunks));
        (0..chunks as usize).map(|index| self.own_pool.record(index))
    }

    /// How often programs were skipped because they were already running on their CPU.
    pub fn recursion_misses(&self) -> u64 {
        self.skipped().iter().map(|(_, times)| times).sum()
    }

    /// The same for each program that was.
    pub fn skipped(&self) -> Vec<(String, u64)> {
        skipped(&self.programs)
    }
}

/// See [`Probes::look_at_existing`](super::attach::Probes::look_at_existing).
pub(super) fn look_at_existing(ebpf: &mut Ebpf) -> Result<(), TierError> {
    let program: &mut Iter = ebpf
        .program_mut(names::EXISTING)
        .and_then(|program| program.try_into().ok())
        .ok_or(TierError::Object(names::EXISTING))?;
    if program.fd().is_err() {
        let types = aya::Btf::from_sys_fs().map_err(TierError::kernel)?;
        program.load("task", &types).map_err(TierError::kernel)?;
    }
    let link = program.attach().map_err(TierError::kernel)?;
    let link = program.take_link(link).map_err(TierError::kernel)?;
    let mut threads = link.into_file().map_err(TierError::kernel)?;
    // It writes nothing: reading is what runs it.
    io::copy(&mut threads, &mut io::sink()).map_err(TierError::kernel)?;
    Ok(())
}

/// A map of the kernel, mapped for reading.
struct Mapped {
    start: NonNull<u8>,
    length: usize,
}

fn pool(ebpf: &Ebpf, name: &'static str, chunks: u32) -> Result<Mapped, TierError> {
    map(ebpf, name, chunks as usize * size_of::<Chunk>())
}

fn map(ebpf: &Ebpf, name: &'static str, bytes: usize) -> Result<Mapped, TierError> {
    let found = ebpf.map(name).ok_or(TierError::Object(name))?;
    let aya::maps::Map::Array(data) = found else {
        return Err(TierError::Object(name));
    };
    Mapped::of(data.fd().as_fd().as_raw_fd(), bytes).map_err(TierError::kernel)
}

impl Mapped {
    fn of(fd: i32, bytes: usize) -> io::Result<Mapped> {
        let length = bytes.next_multiple_of(crate::units::PAGE as usize);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap gives no null");
        Ok(Mapped { start, length })
    }

    /// The record of so many words at an index. The kernel side may write while it is copied, so it is
    /// read word by word as it is and not through a reference that promises more.
    fn record<const WORDS: usize>(&self, index: usize) -> [u64; WORDS] {
        let first = index * WORDS;
        assert!((first + WORDS) * 8 <= self.length, "a record of the map");
        // SAFETY: inside the mapping, which is aligned to pages; volatile, because the kernel side writes.
        std::array::from_fn(|word| unsafe {
            self.start.cast::<u64>().add(first + word).read_volatile()
        })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference into it outlives `copy`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
