//! Maps and globals of the ledger. User space gives the large maps one entry when the tier is off.

use core::ptr::addr_of;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap},
};
use profiler_ebpf::ledger_wire::{Chunk, SPACES as SPACE_COUNT, Space, State};

#[map]
pub static POOL: Array<Chunk> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static CHUNKS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);
#[map]
pub static OWN_POOL: Array<Chunk> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static OWN_CHUNKS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);
#[map]
pub static SPACES: Array<Space> = Array::with_max_entries(SPACE_COUNT, BPF_F_MMAPABLE);
/// `mm_struct` of a live space → its index.
#[map]
pub static SPACE_OF: HashMap<u64, u32> = HashMap::with_max_entries(SPACE_COUNT, 0);
#[map]
pub static STATE: Array<State> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static CPU_OFFSETS: Array<u64> = Array::with_max_entries(1, 0);
macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident = $accessor:ident;)*) => {$(
        #[unsafe(no_mangle)]
        static $name: u64 = 0;
        $(#[$doc])*
        #[inline(always)]
        pub fn $accessor() -> u64 {
            // SAFETY: a valid static; volatile, because user space sets its value at load and the
            // compiler must not fold the one seen here.
            unsafe { core::ptr::read_volatile(addr_of!($name)) }
        }
    )*};
}

globals! {
    TASK_MM = task_mm;
    TASK_TGID = task_tgid;
    TASK_ACTIVE_MM = task_active_mm;
    TASK_SIGNAL = task_signal;
    SIGNAL_LIVE = signal_live;
    SIGNAL_FLAGS = signal_flags;
    MM_PGD = mm_pgd;
    MM_BRK = mm_brk;
    MM_START_STACK = mm_start_stack;
    MM_TABLE_BYTES = mm_table_bytes;
    MM_MAPPINGS = mm_mappings;
    MM_RSS = mm_rss;
    COUNTER_SIZE = counter_size;
    COUNTER_COUNT = counter_count;
    COUNTER_COUNTERS = counter_counters;
    FOLIO_INDEX = folio_index;
    VMA_MM = vma_mm;
    MOVE_VMA = move_vma;
    MOVE_OLD = move_old;
    MOVE_NEW = move_new;
    MOVE_LENGTH = move_length;
    CPU_SLACK = cpu_slack;
    CPUS = cpus;
    DIRECT_MAP = direct_map;
    FRAME_MASK = frame_mask;
    TOP_SHIFT = top_shift;
    HUGE_ZERO = huge_zero;
    MIGRATION_TYPES = migration_types;
    END_IS_HOOKED = end_is_hooked;
    SLACK_SHIFT = slack_shift;
}

#[inline(always)]
pub fn state() -> Option<&'static mut State> {
    // SAFETY: the map has one entry that is never freed. Other CPUs change the same words; every
    // field is a plain integer whose torn or late value costs accuracy that the read-out measures.
    STATE.get_ptr_mut(0).map(|state| unsafe { &mut *state })
}

#[inline(always)]
pub fn space(index: u32) -> Option<&'static mut Space> {
    // SAFETY: as for `state`.
    SPACES
        .get_ptr_mut(index)
        .map(|space| unsafe { &mut *space })
}
