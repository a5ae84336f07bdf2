//! The eBPF object in this executable.

use std::borrow::Cow;

use object::{Object, ObjectSection, ObjectSymbol};

/// The object, aligned as an ELF reader wants it.
pub static BYTES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes.o"));

/// Where it came from: "built from source with …" or "committed object".
pub const ORIGIN: &str = env!("PROFILER_EBPF_ORIGIN");

/// include/uapi/linux/bpf.h
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_F_NO_PREALLOC: u32 = 1;

/// Where `map_type` and `map_flags` are in the definition of a map (`struct bpf_map_def`, libbpf 0.8's
/// src/bpf_helpers.h): all its members are `u32`.
const MAP_TYPE: usize = 0;
const MAP_FLAGS: usize = 4 * size_of::<u32>();

/// The object with a hash table that takes memory for an entry when it comes, so that it may be as large as the
/// largest program needs and costs what this one does. Else all of it is taken at the start.
///
/// Only for kernels with memory that probes may take anywhere ([`super::functions::allocates_in_probes`]), and for a
/// table that gets one entry at a time, with interrupts on: the kernel's stock for it (`bpf_mem_alloc`) is some dozens
/// of entries, which an interrupt refills.
pub fn with_table_on_demand(name: &str) -> Cow<'static, [u8]> {
    on_demand(BYTES, name).map_or(Cow::Borrowed(BYTES), Cow::Owned)
}

/// `None` where it is not an object with such a table in this form.
fn on_demand(object: &[u8], name: &str) -> Option<Vec<u8>> {
    let definition = definition(object, name)?;
    if word(object, definition + MAP_TYPE)? != BPF_MAP_TYPE_HASH {
        return None;
    }
    let at = definition + MAP_FLAGS;
    let flags = word(object, at)? | BPF_F_NO_PREALLOC;
    let mut changed = object.to_vec();
    changed[at..at + size_of::<u32>()].copy_from_slice(&flags.to_le_bytes());
    Some(changed)
}

/// Where the definition of a map begins in the file.
fn definition(object: &[u8], name: &str) -> Option<usize> {
    let elf = object::File::parse(object).ok()?;
    let maps = elf.section_by_name("maps")?;
    let (offset, _) = maps.file_range()?;
    let symbol = elf.symbol_by_name(name)?;
    let is_map = symbol.section_index() == Some(maps.index());
    is_map.then_some((offset + symbol.address()) as usize)
}

fn word(object: &[u8], at: usize) -> Option<u32> {
    let bytes = object.get(at..at + size_of::<u32>())?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_takes_memory_on_demand_and_nothing_else_changes() {
        let changed = on_demand(BYTES, "IN_FLIGHT").unwrap();
        let table = definition(BYTES, "IN_FLIGHT").unwrap();
        assert_eq!(word(BYTES, table + MAP_FLAGS), Some(0));
        assert_eq!(word(&changed, table + MAP_FLAGS), Some(BPF_F_NO_PREALLOC));
        let pairs = BYTES.iter().zip(&changed);
        assert_eq!(pairs.filter(|(one, other)| one != other).count(), 1);
        assert_eq!(on_demand(BYTES, "RING"), None);
        assert_eq!(on_demand(BYTES, "no such map"), None);
    }
}
