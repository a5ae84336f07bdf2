//! HotSpot's own description of its structures, as libjvm exports it for the Serviceability Agent.
//!
//! `gHotSpotVMStructs`, `gHotSpotVMTypes` and the tables of constants (hotspot/share/runtime/vmStructs.cpp)
//! tell where each field lies, how large each type is and where globals are; more variables tell how the
//! tables themselves are laid out. They are in the symbol table of every libjvm, stripped or not, so no
//! offset has to be known here, and a build with other offsets is read as well.

use std::collections::HashMap;

use crate::{
    adapters::{Refusal, elf, memory::Words, view::View},
    residency::ProcessSnapshot,
};

/// The library that is HotSpot.
const LIBRARY: &str = "libjvm.so";
/// Entries of the longest table that is believed. JDK 17 has 792, JDK 25 has 588.
const LONGEST_TABLE: u64 = 20_000;

/// Whether what is mapped from this file may be read from there: libjvm and the class archives.
pub fn is_file_of_jvm(name: &str) -> bool {
    name == LIBRARY || name.ends_with(".jsa")
}

/// Addresses of the variables that libjvm exports, by name.
pub type Exports = HashMap<String, u64>;

/// Reads them from the symbol table of the library's file. `None`: the process has no libjvm.
pub fn exports(process: &ProcessSnapshot) -> Result<Option<Exports>, Refusal> {
    elf::addresses(process, LIBRARY, |name| name.starts_with("gHotSpotVM"))
}

/// The tables. Names are those of HotSpot's source.
#[derive(Debug, Default)]
pub struct Tables {
    /// By type and name: the offset in the type; of a static field, the address.
    fields: HashMap<(String, String), Place>,
    sizes: HashMap<String, u64>,
    constants: HashMap<String, i64>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    is_static: bool,
    at: u64,
}

impl Tables {
    /// Reads them all.
    pub fn read(view: &View, exports: &Exports) -> Result<Tables, Refusal> {
        let export = |name: &str| {
            let address = exports.get(name);
            let address = address.ok_or_else(|| Refusal(format!("libjvm exports no {name}")))?;
            Ok::<u64, Refusal>(view.u64(*address)?)
        };
        // Calls back with the address of each entry of a table. The last has no name.
        let entries = |table: &str, stride: &str, name: u64| {
            let (start, stride) = (export(table)?, export(stride)?);
            if !(1..=4096).contains(&stride) {
                return Err(Refusal(format!("{table}: entries of {stride} bytes")));
            }
            let mut entries = Vec::new();
            for index in 0..LONGEST_TABLE {
                let at = start.wrapping_add(index * stride);
                let Some(name) = view.text(view.u64(at.wrapping_add(name))?)? else {
                    return Ok(entries);
                };
                entries.push((at, name));
            }
            Err(Refusal(format!("{table} does not end")))
        };
        let mut tables = Tables::default();

        let entry = |field: &str| export(&format!("gHotSpotVMStructEntry{field}Offset"));
        let (field_name, is_static) = (entry("FieldName")?, entry("IsStatic")?);
        let (offset, address) = (entry("Offset")?, entry("Address")?);
        for (at, owner) in entries(
            "gHotSpotVMStructs",
            "gHotSpotVMStructEntryArrayStride",
            entry("TypeName")?,
        )? {
            let Some(name) = view.text(view.u64(at.wrapping_add(field_name))?)? else {
                continue;
            };
            let is_static = view.u32(at.wrapping_add(is_static))? != 0;
            let at = view.u64(at.wrapping_add(if is_static { address } else { offset }))?;
            tables.fields.insert((owner, name), Place { is_static, at });
        }

        let entry = |field: &str| export(&format!("gHotSpotVMTypeEntry{field}Offset"));
        let size = entry("Size")?;
        for (at, name) in entries(
            "gHotSpotVMTypes",
            "gHotSpotVMTypeEntryArrayStride",
            entry("TypeName")?,
        )? {
            let size = view.u64(at.wrapping_add(size))?;
            tables.sizes.insert(name, size);
        }

        for kind in ["Int", "Long"] {
            let entry = |field: &str| export(&format!("gHotSpotVM{kind}ConstantEntry{field}"));
            let value = entry("ValueOffset")?;
            for (at, name) in entries(
                &format!("gHotSpotVM{kind}Constants"),
                &format!("gHotSpotVM{kind}ConstantEntryArrayStride"),
                entry("NameOffset")?,
            )? {
                let at = at.wrapping_add(value);
                let value = match kind {
                    "Int" => i64::from(view.u32(at)?.cast_signed()),
                    _ => view.u64(at)?.cast_signed(),
                };
                tables.constants.insert(name, value);
            }
        }
        Ok(tables)
    }

    fn place(&self, owners: &[&str], names: &[&str], is_static: bool) -> Result<u64, Refusal> {
        for owner in owners {
            for name in names {
                let key = ((*owner).to_owned(), (*name).to_owned());
                if let Some(place) = self.fields.get(&key).filter(|it| it.is_static == is_static) {
                    return Ok(place.at);
                }
            }
        }
        Err(Refusal(format!(
            "this HotSpot does not tell where {}::{} is",
            owners.join("|"),
            names.join("|")
        )))
    }

    /// Where a field lies in its type, in bytes. Types and fields have changed names between versions: the
    /// first that is known counts.
    pub fn offset(&self, owners: &[&str], names: &[&str]) -> Result<u64, Refusal> {
        let offset = self.place(owners, names, false)?;
        if offset > LARGEST_OFFSET {
            let (owner, name) = (owners.join("|"), names.join("|"));
            return Err(Refusal(format!("{owner}::{name} at offset {offset:#x}")));
        }
        Ok(offset)
    }

    /// The address of a static field.
    pub fn global(&self, owner: &str, names: &[&str]) -> Result<u64, Refusal> {
        self.place(&[owner], names, true)
    }

    /// Bytes of a type.
    pub fn size(&self, name: &str) -> Result<u64, Refusal> {
        let size = self.sizes.get(name).copied();
        size.filter(|size| (1..=LARGEST_OFFSET).contains(size))
            .ok_or_else(|| Refusal(format!("this HotSpot does not tell how large {name} is")))
    }

    /// A constant, under the first of these names that it has.
    pub fn constant(&self, names: &[&str]) -> Result<i64, Refusal> {
        let known = names.iter().find_map(|&name| self.constants.get(name));
        known.copied().ok_or_else(|| {
            Refusal(format!(
                "this HotSpot has no constant {}",
                names.join(" or ")
            ))
        })
    }
}

/// No structure of HotSpot that is read here is this large.
const LARGEST_OFFSET: u64 = 1 << 20;

/// Flags of the command line, as HotSpot has set them, by name.
#[derive(Debug, Default)]
pub struct Flags(HashMap<String, u64>);

impl Flags {
    /// Reads the addresses of all flags (`JVMFlag::flags`).
    pub fn read(view: &View, tables: &Tables) -> Result<Flags, Refusal> {
        let flags = view.u64(tables.global("JVMFlag", &["flags"])?)?;
        let number = view.u64(tables.global("JVMFlag", &["numFlags"])?)?;
        let stride = tables.size("JVMFlag")?;
        let name = tables.offset(&["JVMFlag"], &["_name"])?;
        let value = tables.offset(&["JVMFlag"], &["_addr"])?;
        if number > LONGEST_TABLE {
            return Err(Refusal(format!("HotSpot cannot have {number} flags")));
        }
        let mut known = HashMap::new();
        for index in 0..number {
            let at = flags.wrapping_add(index * stride);
            if let Some(name) = view.text(view.u64(at.wrapping_add(name))?)? {
                known.insert(name, view.u64(at.wrapping_add(value))?);
            }
        }
        Ok(Flags(known))
    }

    /// Whether a flag is there and set.
    pub fn is_set(&self, view: &View, name: &str) -> Result<bool, Refusal> {
        match self.0.get(name) {
            None => Ok(false),
            Some(&address) => match view.u8(address)? {
                value @ (0 | 1) => Ok(value == 1),
                value => Err(Refusal(format!("the flag {name} is {value}"))),
            },
        }
    }

    /// The value of a flag of type `int`.
    pub fn int(&self, view: &View, name: &str) -> Result<u32, Refusal> {
        let address = self.0.get(name);
        let address = address.ok_or_else(|| Refusal(format!("HotSpot has no flag {name}")))?;
        Ok(view.u32(*address)?)
    }
}
