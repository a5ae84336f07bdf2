//! The heap of .NET 9, and of what else has the same interface, whose library is stripped but exports what debuggers begin with:
//!
//! - `DotNetRuntimeContractDescriptor`: sizes and offsets of types, and places of globals, as JSON
//!   (docs/design/datacontracts/contract-descriptor.md of dotnet/runtime). It has the method table of free
//!   objects, and the form of method tables. The collector is not in it before .NET 11.
//! - `g_dacTable`: addresses of the variables that debuggers read (src/coreclr/inc/dacvars.h), among them the
//!   pointer to the collector's table. Which entry that is differs from release to release, so it is the one
//!   behind which such a table stands; were there two, the heap would be refused.
//!
//! A generation is a list of regions of 4 MiB, or more for large objects:
//!
//! ```text
//! generation_table[0..5].start_segment -> region -> region ...    gen 0, 1, 2, large and pinned objects
//! free_regions[0..3].head_free_region  -> region -> region ...    kept for the next ones
//! ```

use std::{collections::HashMap, ops::Range};

use serde::Deserialize;

use super::{Collector, GENERATION_SIZE, Heap, LIBRARY, MOST_SEGMENTS, segment};
use crate::adapters::{
    Refusal,
    memory::{Unreadable, Words},
};
use crate::units::page_floor;

/// Debuggers' table of variables, and the contract descriptor.
pub const SYMBOLS: [&str; 2] = ["g_dacTable", "DotNetRuntimeContractDescriptor"];

/// `struct ContractDescriptor` (src/coreclr/debug/datadescriptor of dotnet/runtime).
pub(super) mod descriptor {
    /// `DNCCDAC\0` in the processor's byte order.
    pub const MAGIC: u64 = 0x0043_4144_4343_4e44;
    /// Bytes of the JSON, 32 bits.
    pub const LENGTH: u64 = 12;
    pub const JSON: u64 = 16;
    /// Entries of `pointer_data`, 32 bits.
    pub const POINTERS: u64 = 24;
    pub const POINTER_DATA: u64 = 32;
}
/// Bytes of JSON that are believed; .NET 10 has 10,563.
const LONGEST_JSON: u32 = 1 << 20;

/// `major_version_number` of the collector's table.
pub(super) const INTERFACE: u8 = 2;
/// Entries of debuggers' table: .NET 9 has 158.
pub(super) const MOST_ENTRIES: u64 = 256;
/// `GcDacVars`: the number of generations stands before the variables, too.
pub(super) const GENERATIONS: u64 = 16;
pub(super) const VARIABLES: u64 = 24;
/// Generations 0 to 2, large objects, pinned ones.
pub(super) const LISTS: u64 = 5;
/// Further places in the list of variables (gcinterface.dacvars.def, 2.1 and later).
pub(super) mod variable {
    /// `c_gc_state`
    pub const BACKGROUND: u64 = 6;
    /// Offsets of `allocation_context`, `start_segment` and `allocation_start` (dac_generation_fields.h), 32 bits
    /// each; the last is -1 where the heap has regions.
    pub const GENERATION_FIELDS: u64 = 28;
    /// Null where the heap has segments (`libclrgc.so`).
    pub const TO_DECOMMIT: u64 = 30;
    pub const FREE_HUGE: u64 = 31;
    pub const FREE_REGIONS: u64 = 32;
}
/// `c_gc_state_free`: no background collection is under way.
const NO_BACKGROUND: u32 = 2;
/// `dac_region_free_list`
pub(super) const FREE_LIST_BYTES: u64 = 56;
pub(super) const FREE_LIST_HEAD: u64 = 40;
/// Basic, large and huge (`free_region_kind`, gcpriv.h).
const KINDS: u64 = 3;

/// Reads where the objects are.
pub fn read(view: &impl Words, table: u64, descriptor: u64) -> Result<Heap, Refusal> {
    let free_object = free_object(view, descriptor)?;
    let vars = find_collector(view, table)?;
    let collector = Collector {
        words: view,
        at: vars,
        variables: VARIABLES,
    };
    let variable = |place: u64| collector.variable(place);
    collector.ensure_at_rest()?;
    if view.u32(variable(variable::BACKGROUND)?)? != NO_BACKGROUND {
        return Err(Refusal("in the middle of a background collection".into()));
    }
    collector.ensure_one_heap()?;
    let generation_bytes = collector.generation_bytes()?;
    let highest = collector.highest_generation()?;
    let fields = variable(variable::GENERATION_FIELDS)?;
    let start_segment = u64::from(view.u32(fields.wrapping_add(4))?);
    let has_regions = view.u32(fields.wrapping_add(8))? == u32::MAX;
    if highest != 2 || !has_regions || start_segment + 8 > generation_bytes {
        return Err(Refusal(format!(
            "{highest} generations of {generation_bytes} bytes are not a heap of regions"
        )));
    }
    let segments = collector.segments(0..LISTS, start_segment)?;
    // A region begins at a page, its first object some words behind that.
    let before = segments.iter().map(|it| page_floor(it.mem)..it.mem);
    let mut spare: Vec<_> = before.collect();
    let lists = [
        (variable(variable::TO_DECOMMIT)?, KINDS),
        (variable(variable::FREE_HUGE)?, 1),
        (variable(variable::FREE_REGIONS)?, KINDS),
    ];
    for (first, number) in lists {
        for kind in 0..number {
            let head = first.wrapping_add(kind * FREE_LIST_BYTES + FREE_LIST_HEAD);
            spare_regions(view, view.u64(head)?, &mut spare)?;
        }
    }
    Ok(Heap {
        segments,
        free_object,
        spare,
    })
}

/// A list of regions without objects. Their ends of objects mean nothing any more.
fn spare_regions(
    view: &impl Words,
    mut at: u64,
    into: &mut Vec<Range<u64>>,
) -> Result<(), Refusal> {
    while at != 0 {
        let mem = view.u64(at.wrapping_add(segment::MEM))?;
        let committed = view.u64(at.wrapping_add(segment::COMMITTED))?;
        if mem > committed || into.len() >= MOST_SEGMENTS {
            return Err(Refusal(format!("there is no sound free region at {at:#x}")));
        }
        into.push(page_floor(mem)..committed);
        at = view.u64(at.wrapping_add(segment::NEXT))?;
    }
    Ok(())
}

/// The collector's table, by the entry of debuggers' table that leads to one.
fn find_collector(view: &impl Words, table: u64) -> Result<u64, Refusal> {
    let mut found = Vec::new();
    let mut seen = None;
    for entry in 0..MOST_ENTRIES {
        // An entry beyond the end of the table, or one that is no pointer, leads nowhere.
        let Ok(vars) = view
            .u64(table.wrapping_add(8 * entry))
            .and_then(|variable| view.u64(variable))
        else {
            continue;
        };
        match looks_like_collector(view, vars) {
            Ok(Some(INTERFACE)) if !found.contains(&vars) => found.push(vars),
            Ok(Some(INTERFACE)) | Ok(None) | Err(_) => {}
            Ok(Some(other)) => seen = Some(other),
        }
    }
    match (found.as_slice(), seen) {
        ([vars], _) => Ok(*vars),
        ([], Some(other)) => Err(Refusal(format!(
            "interface {other} of the collector is not known; {INTERFACE} is"
        ))),
        ([], None) => Err(Refusal(format!(
            "no entry of {} in {LIBRARY} leads to the collector's table",
            SYMBOLS[0]
        ))),
        (many, _) => Err(Refusal(format!(
            "{} entries of {} lead to what may be the collector's table",
            many.len(),
            SYMBOLS[0]
        ))),
    }
}

/// The interface's version when what stands here has the form of the collector's table: two small versions and
/// zeros in the first word, generations of a believable size, five of them, and in the variables pointers to their
/// number below the last two and to the table.
fn looks_like_collector(view: &impl Words, vars: u64) -> Result<Option<u8>, Unreadable> {
    let versions = view.u64(vars)?;
    let generation_bytes = view.u64(vars.wrapping_add(GENERATION_SIZE))?;
    let is_one = (1..1 << 16).contains(&versions)
        && versions & 0xff != 0
        && (64..4096).contains(&generation_bytes)
        && generation_bytes % 8 == 0
        && view.u64(vars.wrapping_add(GENERATIONS))? == LISTS
        && view.u64(vars.wrapping_add(VARIABLES + 8 * super::variable::GENERATIONS))? != 0;
    if !is_one {
        return Ok(None);
    }
    let highest =
        view.u64(vars.wrapping_add(VARIABLES + 8 * super::variable::HIGHEST_GENERATION))?;
    let is_one = view.u32(highest)? == 2;
    Ok(is_one.then_some(versions as u8))
}

/// What of the descriptor's JSON is of use here.
#[derive(Deserialize)]
struct Contracts {
    /// Offsets of fields by type and name; `!` is the size.
    types: HashMap<String, HashMap<String, serde_json::Value>>,
    /// `[value, type]`, or a value; a value in a list of one is an index into the pointers.
    globals: HashMap<String, serde_json::Value>,
}

/// The method table of free objects. Refuses another form of method tables and arrays than [`super::Heap`] walks.
fn free_object(view: &impl Words, at: u64) -> Result<u64, Refusal> {
    let bad = |what: &str| Refusal(format!("the contract descriptor of {LIBRARY} {what}"));
    if view.u64(at)? != descriptor::MAGIC {
        return Err(bad("does not begin with its magic number"));
    }
    let length = view.u32(at.wrapping_add(descriptor::LENGTH))?;
    if length > LONGEST_JSON {
        return Err(bad(&format!("has {length} bytes")));
    }
    let mut json = vec![0; length as usize];
    view.read(view.u64(at.wrapping_add(descriptor::JSON))?, &mut json)?;
    // Its length may count the zero byte at its end.
    let json = json.strip_suffix(&[0]).unwrap_or(&json);
    let contracts: Contracts =
        serde_json::from_slice(json).map_err(|error| bad(&format!("cannot be read: {error}")))?;
    let offset = |name: &str, field: &str| {
        let offset = contracts.types.get(name).and_then(|it| it.get(field));
        let number = |it: &serde_json::Value| it.as_u64().or_else(|| it.get(0)?.as_u64());
        offset.and_then(number)
    };
    let form = [
        ("Object", "m_pMethTab", 0),
        ("MethodTable", "MTFlags", 0),
        ("MethodTable", "BaseSize", 4),
        ("Array", "m_NumComponents", 8),
    ];
    for (name, field, known) in form {
        if offset(name, field) != Some(known) {
            return Err(bad(&format!(
                "has {name}.{field} at another place than {known}"
            )));
        }
    }
    let index = contracts
        .globals
        .get("FreeObjectMethodTable")
        .and_then(|global| global.get(0)?.get(0)?.as_u64())
        .ok_or_else(|| bad("does not name FreeObjectMethodTable"))?;
    if index >= u64::from(view.u32(at.wrapping_add(descriptor::POINTERS))?) {
        return Err(bad("names a pointer that it has not"));
    }
    let pointers = view.u64(at.wrapping_add(descriptor::POINTER_DATA))?;
    let global = view.u64(pointers.wrapping_add(8 * index))?;
    Ok(view.u64(global)?)
}

#[cfg(test)]
mod tests;
