//! Addresses of symbols in a process: from the symbol tables of the file on disk, which is not in the
//! process's memory as a whole, and where the file is mapped.

use std::{collections::HashMap, fs::File, os::unix::fs::MetadataExt};

use object::{
    Endianness, Object, ObjectSection, ObjectSegment,
    elf::{SHN_UNDEF, Sym64},
    pod::slice_from_bytes,
    read::ReadCache,
};

use super::Refusal;
use crate::{
    classify::runtime::file_name,
    residency::{ProcessSnapshot, Vma},
    units::page_floor,
};

/// Addresses of the wanted symbols that a library of this file name defines, exported or not, by name.
/// `None`: the process has not mapped it.
pub fn addresses(
    process: &ProcessSnapshot,
    library: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Option<HashMap<String, u64>>, Refusal> {
    let mapped = process.vmas.iter().find(|vma| {
        let name = vma.name().unwrap_or_default();
        vma.offset() == 0 && vma.inode() != 0 && file_name(name) == library
    });
    let Some(vma) = mapped else {
        return Ok(None);
    };
    let unreadable = |why: &str| Refusal(format!("the file of {library} {why}"));
    let file = open(process.tgid, vma).ok_or_else(|| unreadable("is not the one it was"))?;
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).map_err(|error| unreadable(&error.to_string()))?;
    let bias = bias(&elf, vma.start).ok_or_else(|| unreadable("does not map its header"))?;
    let mut found = HashMap::new();
    for (symbols, names) in [(".symtab", ".strtab"), (".dynsym", ".dynstr")] {
        let data = |name| {
            elf.section_by_name(name)
                .and_then(|section| section.data().ok())
        };
        let (Some(symbols), Some(names)) = (data(symbols), data(names)) else {
            continue;
        };
        let of_symbol = |(name, address): (&str, u64)| {
            wanted(name).then(|| (name.to_owned(), address.wrapping_add(bias)))
        };
        found.extend(definitions(symbols, names).filter_map(of_symbol));
    }
    Ok(Some(found))
}

/// Names and addresses of the symbols that a table defines. It and its names are read as a whole: to ask the
/// file for each name takes 50 ms for the 30,000 of libjvm, while the program stands still.
fn definitions<'a>(symbols: &'a [u8], names: &'a [u8]) -> impl Iterator<Item = (&'a str, u64)> {
    let (symbols, _) = slice_from_bytes::<Sym64<Endianness>>(
        symbols,
        symbols.len() / size_of::<Sym64<Endianness>>(),
    )
    .unwrap_or_default();
    symbols.iter().filter_map(|symbol| {
        let endian = Endianness::Little;
        if symbol.st_shndx.get(endian) == SHN_UNDEF {
            return None;
        }
        let name = names.get(symbol.st_name.get(endian) as usize..)?;
        let end = name.iter().position(|&byte| byte == 0)?;
        let name = std::str::from_utf8(&name[..end]).ok()?;
        Some((name, symbol.st_value.get(endian)))
    })
}

/// What to add to an address in the file, wrapping, when its first byte is mapped at `start`; `None` where no
/// segment has that byte.
pub fn bias<'a>(elf: &impl Object<'a>, start: u64) -> Option<u64> {
    let first = elf.segments().find(|it| it.file_range().0 == 0)?;
    Some(start.wrapping_sub(page_floor(first.address())))
}

/// The mapped file, as the process sees it; `None` when another one has its name by now.
pub fn open(tgid: u32, vma: &Vma) -> Option<File> {
    let path = format!("/proc/{tgid}/root{}", vma.name()?);
    let file = File::open(path).ok()?;
    (file.metadata().ok()?.ino() == vma.inode()).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::scan::{detect, glance};

    #[test]
    fn a_function_of_our_c_library_is_where_the_linker_put_it() {
        let process = glance(std::process::id(), detect()).expect("we are alive");
        let found = addresses(&process, "libc.so.6", |name| name == "getppid")
            .expect("it is an ELF file")
            .expect("we have mapped it");
        assert_eq!(
            found.get("getppid"),
            Some(&(libc::getppid as *const () as u64))
        );
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_library_that_is_not_mapped_has_no_addresses() {
        let process = glance(std::process::id(), detect()).expect("we are alive");
        assert_eq!(addresses(&process, "libnone.so", |_| true), Ok(None));
    }
}
