//! Where the Go runtime keeps its books in this very program: addresses of its variables from the symbol
//! table, offsets of their fields from the DWARF that the Go linker writes. So nothing here depends on a
//! version of Go but the names of the fields, and a field that is not there is told by its name.
//!
//! It is read from the file: its pages need not be resident in the program.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::MetadataExt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use gimli::{AttributeValue, DebugAbbrev, DebugInfo, DebugStr, EndianSlice, LittleEndian, Reader};
use object::{Object, ObjectSection, ObjectSegment, elf::Sym64, pod, read::ReadCache};

use crate::{adapters::Refusal, residency::Vma, units::page_floor};

/// A member of a struct of the runtime, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Field {
    /// From the start of the struct.
    pub offset: u64,
    /// 1, 2, 4 or 8 where it is a number; anything where it is a struct.
    pub bytes: u64,
}

/// The fields that the walk reads, by struct of package `runtime`: mheap.go (`mheap`, `mspan`) and
/// runtime2.go (`g`, `m`, `stack`, `gobuf`) of Go 1.27; the names are those of 1.19 too.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Fields {
    pub mheap_allspans: Field,
    pub mheap_pages_in_use: Field,
    pub mspan_start: Field,
    pub mspan_pages: Field,
    pub mspan_free_index: Field,
    pub mspan_slots: Field,
    pub mspan_alloc_bits: Field,
    pub mspan_alloc_count: Field,
    pub mspan_class: Field,
    pub mspan_state: Field,
    pub mspan_slot_bytes: Field,
    pub mspan_limit: Field,
    /// Only since 1.22: then spans of small objects end with the bits of the collector
    /// (mbitmap.go, `heapBitsInSpan`).
    pub mspan_large_type: Option<Field>,
    pub g_stack: Field,
    pub g_sched: Field,
    pub g_status: Field,
    pub stack_lo: Field,
    pub stack_hi: Field,
    pub gobuf_sp: Field,
    pub m_g0: Field,
    pub m_gsignal: Field,
    pub m_next: Field,
    /// Bytes of `spanInlineMarkBits` (mgcmark_greenteagc.go); 0 where there is no such thing.
    pub inline_marks_bytes: u64,
    /// As much of a `g` as the fields above need, in bytes.
    pub g_bytes: u64,
}

/// What the file of a program tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Addresses as linked.
    pub mheap: u64,
    pub allgs: u64,
    pub allm: u64,
    /// Whether it runs where it was linked to; else at `start` of its mapping.
    fixed: bool,
    /// Lowest segment: address, and offset in the file.
    lowest: (u64, u64),
    pub fields: Fields,
}

/// Which file: device, inode, bytes, time of change in seconds and ns.
type Identity = (u64, u64, u64, i64, i64);

/// What reading a file came to.
type Reading = Arc<Result<Layout, Refusal>>;

/// What was found in files so far. Reading one takes some milliseconds for each MiB of its DWARF, and a
/// program is frozen more than once.
static READ: LazyLock<Mutex<HashMap<Identity, Reading>>> = LazyLock::new(Mutex::default);

/// The layout of the program that a process runs.
pub(super) fn of(tgid: u32) -> Reading {
    let refused = |why: String| Arc::new(Err(Refusal(why)));
    let file = match File::open(format!("/proc/{tgid}/exe")) {
        Ok(file) => file,
        Err(error) => return refused(format!("cannot open the program's file: {error}")),
    };
    let identity = match file.metadata() {
        Ok(it) => (it.dev(), it.ino(), it.size(), it.mtime(), it.mtime_nsec()),
        Err(error) => return refused(format!("cannot look at the program's file: {error}")),
    };
    // Held while reading: who asks for the same file meanwhile has to wait for it anyway. A reader that
    // panicked has put nothing in.
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    let layout = read
        .entry(identity)
        .or_insert_with(|| Arc::new(self::read(file)));
    Arc::clone(layout)
}

impl Layout {
    /// What has to be added to an address as linked. `path` is that of the program, as the kernel names
    /// its mappings.
    pub(super) fn bias(&self, path: &str, vmas: &[Vma]) -> Result<u64, Refusal> {
        if self.fixed {
            return Ok(0);
        }
        let (address, offset) = self.lowest;
        let first = vmas
            .iter()
            .find(|vma| vma.name() == Some(path) && vma.offset() == page_floor(offset));
        let vma = first.ok_or_else(|| Refusal(format!("{path} is not mapped from its start")))?;
        Ok(vma.start.wrapping_sub(page_floor(address)))
    }
}

fn read(file: File) -> Result<Layout, Refusal> {
    let unreadable = |error: object::Error| Refusal(format!("the program's file: {error}"));
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).map_err(unreadable)?;
    if !elf.is_64() || !elf.is_little_endian() {
        return Err(Refusal(
            "only programs of 64 bits, little endian, are read".into(),
        ));
    }
    let section = |name: &str| -> Result<_, Refusal> {
        match elf.section_by_name(name) {
            Some(section) => section.uncompressed_data().map_err(unreadable),
            None => Ok(Default::default()),
        }
    };
    let [mheap, allgs, allm] = symbols(
        &section(".symtab")?,
        &section(".strtab")?,
        ["runtime.mheap_", "runtime.allgs", "runtime.allm"],
    )
    .ok_or_else(|| {
        Refusal("the program is stripped: it has no symbol table that names the heap".into())
    })?;
    let info = section(".debug_info")?;
    if info.is_empty() {
        return Err(Refusal(
            "the program is stripped: it has no DWARF that tells the fields of the runtime".into(),
        ));
    }
    let lowest = elf.segments().min_by_key(|segment| segment.address());
    let lowest = lowest.map_or((0, 0), |it| (it.address(), it.file_range().0));
    Ok(Layout {
        mheap,
        allgs,
        allm,
        fixed: elf.kind() == object::ObjectKind::Executable,
        lowest,
        fields: fields(&info, &section(".debug_abbrev")?, &section(".debug_str")?)?,
    })
}

/// Addresses of variables. Straight over the two sections: through `object`'s symbols each name would be
/// a read of the file.
fn symbols<const N: usize>(table: &[u8], names: &[u8], wanted: [&str; N]) -> Option<[u64; N]> {
    let endian = object::Endianness::Little;
    let symbols: &[Sym64<object::Endianness>] = pod::slice_from_all_bytes(table).ok()?;
    let mut found = [None; N];
    for symbol in symbols {
        let name = names
            .get(symbol.st_name.get(endian) as usize..)
            .unwrap_or_default();
        for (slot, wanted) in found.iter_mut().zip(wanted) {
            let rest = name.strip_prefix(wanted.as_bytes());
            if rest.is_some_and(|rest| rest.first() == Some(&0)) {
                *slot = Some(symbol.st_value.get(endian));
            }
        }
    }
    let mut addresses = [0; N];
    for (address, found) in addresses.iter_mut().zip(found) {
        *address = found.filter(|&it| it != 0)?;
    }
    Some(addresses)
}

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Unit<'a> = gimli::UnitHeader<Bytes<'a>>;

/// The structs that hold the fields, and what is found of them: bytes, and members by name.
const STRUCTS: [&str; 6] = ["mheap", "mspan", "g", "m", "stack", "gobuf"];
/// More than any `g` has.
const MOST_BYTES: u64 = 4096;
/// Its size alone is asked for.
const INLINE_MARKS: &str = "spanInlineMarkBits";

#[derive(Debug, Default)]
struct Struct {
    bytes: u64,
    members: HashMap<String, Field>,
}

/// Reads the fields from DWARF: versions 4 (up to Go 1.24) and 5.
fn fields(info: &[u8], abbreviations: &[u8], strings: &[u8]) -> Result<Fields, Refusal> {
    let dwarf = Dwarf {
        info: DebugInfo::new(info, LittleEndian),
        abbreviations: DebugAbbrev::new(abbreviations, LittleEndian),
        strings: DebugStr::new(strings, LittleEndian),
    };
    let structs = dwarf
        .structs()
        .map_err(|error| Refusal(format!("the program's DWARF: {error}")))?;
    let member = |owner: &str, name: &str| {
        let owner_found = structs.get(owner);
        owner_found
            .and_then(|it| it.members.get(name).copied())
            .ok_or_else(|| {
                Refusal(format!(
                    "this version of Go is not known: its runtime.{owner} has no field {name}"
                ))
            })
    };
    // A number must have the size of one.
    let number = |owner: &str, name: &str| {
        let field = member(owner, name)?;
        match field.bytes {
            1 | 2 | 4 | 8 => Ok(field),
            bytes => Err(Refusal(format!(
                "this version of Go is not known: its runtime.{owner}.{name} has {bytes} bytes"
            ))),
        }
    };
    let [g_stack, g_sched, g_status] = [
        member("g", "stack")?,
        member("g", "sched")?,
        number("g", "atomicstatus")?,
    ];
    let ends = [g_stack, g_sched, g_status].map(|it| it.offset.saturating_add(it.bytes));
    let g_bytes = ends.into_iter().max().unwrap_or(0);
    if g_bytes > MOST_BYTES {
        return Err(Refusal(format!("a runtime.g cannot have {g_bytes} bytes")));
    }
    Ok(Fields {
        mheap_allspans: member("mheap", "allspans")?,
        mheap_pages_in_use: number("mheap", "pagesInUse")?,
        mspan_start: number("mspan", "startAddr")?,
        mspan_pages: number("mspan", "npages")?,
        mspan_free_index: number("mspan", "freeindex")?,
        mspan_slots: number("mspan", "nelems")?,
        mspan_alloc_bits: number("mspan", "allocBits")?,
        mspan_alloc_count: number("mspan", "allocCount")?,
        mspan_class: number("mspan", "spanclass")?,
        mspan_state: number("mspan", "state")?,
        mspan_slot_bytes: number("mspan", "elemsize")?,
        mspan_limit: number("mspan", "limit")?,
        mspan_large_type: member("mspan", "largeType").ok(),
        g_stack,
        g_sched,
        g_status,
        stack_lo: number("stack", "lo")?,
        stack_hi: number("stack", "hi")?,
        gobuf_sp: number("gobuf", "sp")?,
        m_g0: number("m", "g0")?,
        m_gsignal: number("m", "gsignal")?,
        m_next: number("m", "alllink")?,
        inline_marks_bytes: structs.get(INLINE_MARKS).map_or(0, |it| it.bytes),
        g_bytes,
    })
}

struct Dwarf<'a> {
    info: DebugInfo<Bytes<'a>>,
    abbreviations: DebugAbbrev<Bytes<'a>>,
    strings: DebugStr<Bytes<'a>>,
}

impl<'a> Dwarf<'a> {
    /// The structs of package runtime that are asked for.
    fn structs(&self) -> gimli::Result<HashMap<&'static str, Struct>> {
        let mut headers = Vec::new();
        let mut units = self.info.units();
        while let Some(unit) = units.next()? {
            headers.push(unit);
        }
        let mut found = HashMap::new();
        for unit in &headers {
            // A package has units of its own; those of others are not gone through.
            let abbreviations = unit.abbreviations(&self.abbreviations)?;
            let mut entries = unit.entries(&abbreviations);
            let root = entries.next_dfs()?;
            let name = root.and_then(|root| self.name(root));
            if name.as_deref() != Some("runtime") {
                continue;
            }
            let mut open: Option<(&'static str, isize)> = None;
            while let Some(entry) = entries.next_dfs()? {
                let depth = entry.depth();
                open = open.filter(|(_, of)| depth > *of);
                match (entry.tag(), open) {
                    (gimli::DW_TAG_structure_type, _) => {
                        let name = self.name(entry);
                        let name = name.as_deref().and_then(|it| it.strip_prefix("runtime."));
                        let mut wanted = STRUCTS.iter().chain([&INLINE_MARKS]);
                        let Some(name) = wanted.find(|it| Some(**it) == name) else {
                            continue;
                        };
                        let value = Struct {
                            bytes: number(entry.attr_value(gimli::DW_AT_byte_size)),
                            members: HashMap::new(),
                        };
                        found.insert(*name, value);
                        open = Some((name, depth));
                    }
                    (gimli::DW_TAG_member, Some((owner, of))) if depth == of + 1 => {
                        let offset = entry.attr_value(gimli::DW_AT_data_member_location);
                        let of_type = entry.attr_value(gimli::DW_AT_type);
                        let field = Field {
                            offset: number(offset),
                            bytes: self.bytes_of(of_type, unit, &headers)?,
                        };
                        if let (Some(name), Some(it)) = (self.name(entry), found.get_mut(owner)) {
                            it.members.insert(name, field);
                        }
                    }
                    _ => {}
                }
            }
            let all = STRUCTS.iter().all(|name| found.contains_key(name));
            if all && found.contains_key(INLINE_MARKS) {
                break;
            }
        }
        Ok(found)
    }

    fn name(&self, entry: &gimli::DebuggingInformationEntry<Bytes<'a>>) -> Option<String> {
        let name = match entry.attr_value(gimli::DW_AT_name)? {
            AttributeValue::String(name) => name,
            AttributeValue::DebugStrRef(at) => self.strings.get_str(at).ok()?,
            _ => return None,
        };
        name.to_string().ok().map(str::to_owned)
    }

    /// Bytes of a type: through the names that it has, which are entries of their own.
    fn bytes_of(
        &self,
        reference: Option<AttributeValue<Bytes<'a>>>,
        unit: &Unit<'a>,
        units: &[Unit<'a>],
    ) -> gimli::Result<u64> {
        let mut reference = reference;
        let mut unit = unit;
        // A name of a name of a name; a longer chain goes in a circle.
        for _ in 0..8 {
            let at = match reference {
                Some(AttributeValue::UnitRef(at)) => at,
                Some(AttributeValue::DebugInfoRef(at)) => {
                    let index = units.partition_point(|unit| start(unit) <= at.0);
                    let Some(of) = index.checked_sub(1).and_then(|index| units.get(index)) else {
                        return Ok(0);
                    };
                    unit = of;
                    gimli::UnitOffset(at.0 - start(of))
                }
                _ => return Ok(0),
            };
            let abbreviations = unit.abbreviations(&self.abbreviations)?;
            let entry = unit.entry(&abbreviations, at)?;
            if entry.tag() == gimli::DW_TAG_pointer_type {
                // Go leaves out the size.
                return Ok(8);
            }
            if entry.has_attr(gimli::DW_AT_byte_size) {
                return Ok(number(entry.attr_value(gimli::DW_AT_byte_size)));
            }
            reference = entry.attr_value(gimli::DW_AT_type);
        }
        Ok(0)
    }
}

fn start(unit: &Unit) -> usize {
    unit.debug_info_offset().map_or(0, |at| at.0)
}

/// Sizes and offsets are constants, whose form differs by version.
fn number<R: Reader>(value: Option<AttributeValue<R>>) -> u64 {
    value.and_then(|value| value.udata_value()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
