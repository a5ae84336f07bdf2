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

/// The object with hash tables that take memory for an entry when it comes, so that a table may be as large as the
/// largest program needs and costs what this one does. Else all of it is taken at the start.
///
/// Only for kernels with memory that probes may take anywhere ([`super::functions::allocates_in_probes`]).
pub fn with_tables_on_demand() -> Cow<'static, [u8]> {
    on_demand(BYTES).map_or(Cow::Borrowed(BYTES), Cow::Owned)
}

/// `None` where it is not an object with maps of this form.
fn on_demand(object: &[u8]) -> Option<Vec<u8>> {
    let mut changed = object.to_vec();
    for definition in definitions(object)? {
        if word(object, definition + MAP_TYPE)? == BPF_MAP_TYPE_HASH {
            let flags = word(object, definition + MAP_FLAGS)? | BPF_F_NO_PREALLOC;
            let at = definition + MAP_FLAGS;
            changed[at..at + size_of::<u32>()].copy_from_slice(&flags.to_le_bytes());
        }
    }
    Some(changed)
}

/// Where the definition of each map begins in the file.
fn definitions(object: &[u8]) -> Option<Vec<usize>> {
    let elf = object::File::parse(object).ok()?;
    let maps = elf.section_by_name("maps")?;
    let (offset, _) = maps.file_range()?;
    let symbols = elf
        .symbols()
        .filter(|symbol| symbol.section_index() == Some(maps.index()));
    let symbols = symbols.filter(|symbol| symbol.is_definition());
    Some(
        symbols
            .map(|symbol| (offset + symbol.address()) as usize)
            .collect(),
    )
}

fn word(object: &[u8], at: usize) -> Option<u32> {
    let bytes = object.get(at..at + size_of::<u32>())?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hash_table_takes_memory_on_demand_and_nothing_else_changes() {
        let changed = on_demand(BYTES).unwrap();
        let definitions = definitions(BYTES).unwrap();
        let is_table = |&&at: &&usize| word(BYTES, at + MAP_TYPE) == Some(BPF_MAP_TYPE_HASH);
        let tables: Vec<&usize> = definitions.iter().filter(is_table).collect();
        assert!(
            tables.len() >= 5,
            "{} of {}",
            tables.len(),
            definitions.len()
        );
        for &&table in &tables {
            assert_eq!(word(&changed, table + MAP_FLAGS), Some(BPF_F_NO_PREALLOC));
        }
        let differ = BYTES
            .iter()
            .zip(&changed)
            .filter(|(one, other)| one != other);
        assert_eq!(differ.count(), tables.len());
    }
}
