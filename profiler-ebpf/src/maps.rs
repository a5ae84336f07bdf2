//! The maps, and the one way to write a record.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    macros::map,
    maps::{HashMap, PerCpuArray, RingBuf},
};
use profiler_ebpf::counter;

/// Bytes of the ring; user space may set another size at load.
const RING_BYTES: u32 = 16 << 20;

/// Records on their way to user space, in one global order.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Processes that are followed: tgid → 1.
#[map]
pub static FOLLOWED: HashMap<u32, u8> = HashMap::with_max_entries(65_536, 0);

/// Losses; see `profiler_ebpf::counter`.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// Adds one to a counter of this CPU.
pub fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the pointer is this CPU's own slot, and a tracepoint program is not preempted by
        // another one on its CPU.
        unsafe { *value += 1 }
    }
}

/// Writes a record into the ring, or counts it as lost.
///
/// User space looks at the ring every few milliseconds anyway, so a record wakes it only when a
/// quarter of the ring is full: a wake-up for each record would cost the target about 1 µs a call.
pub fn write<T: 'static>(record: T) {
    let Some(mut entry) = RING.reserve::<T>(0) else {
        return count(counter::RING_FULL);
    };
    entry.write(record);
    let wakeup = if RING.query(u64::from(BPF_RB_AVAIL_DATA)) > u64::from(RING_BYTES / 4) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    entry.submit(u64::from(wakeup));
}
