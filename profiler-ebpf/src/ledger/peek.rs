//! Lets user space find out, before the run, where physical memory and per-CPU memory are mapped:
//! `getppid` of the one process that asks reads eight bytes of kernel memory. Detached afterwards.

use core::ptr::addr_of;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel},
    macros::{map, tracepoint},
    maps::{Array, PerCpuArray},
    programs::TracePointContext,
};
use profiler_ebpf::ledger_wire::Peek;

#[map]
static PEEKS: Array<Peek> = Array::with_max_entries(1, 0);
#[map]
static PER_CPU_SAMPLE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[tracepoint]
pub fn ledger_peek(_ctx: TracePointContext) -> u32 {
    let Some(peek) = PEEKS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: only the process that asks gets past the comparison, and it waits for its answer.
    let peek = unsafe { &mut *peek };
    if peek.tgid != bpf_get_current_pid_tgid() >> 32 {
        return 0;
    }
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_kernel(peek.address as *const u64) } {
        Ok(value) => {
            peek.value = value;
            peek.error = 0;
        }
        Err(error) => peek.error = i64::from(error),
    }
    // SAFETY: the helper has no preconditions.
    peek.task = unsafe { bpf_get_current_task() };
    peek.slot = PER_CPU_SAMPLE.get_ptr(0).map_or(0, |slot| slot as u64);
    peek.array = addr_of!(PER_CPU_SAMPLE) as u64;
    0
}
