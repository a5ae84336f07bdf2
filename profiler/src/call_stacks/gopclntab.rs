//! Names of functions of a stripped Go program: `.gopclntab`, which Go itself needs for its stack traces.
//!
//! Layout of `runtime.pcHeader` and `functab` (`src/runtime/symtab.go` of Go 1.20 to 1.27; the magic number
//! changes with the layout): functions are given as offsets from the start of `.text`.

use object::{Object, ObjectSection, read::ReadRef};

use super::binary::Symbol;

/// Go 1.20 and later.
const MAGIC: u32 = 0xffff_fff1;

/// All functions; empty where there are none, or another version wrote them.
pub fn functions<'data, R: ReadRef<'data>>(elf: &object::File<'data, R>) -> Vec<Symbol> {
    let text = elf
        .section_by_name(".text")
        .map(|section| section.address());
    let names = [".gopclntab", ".data.rel.ro.gopclntab"];
    let table = names
        .into_iter()
        .find_map(|name| elf.section_by_name(name)?.uncompressed_data().ok());
    match (text, table) {
        (Some(text), Some(table)) => parse(&table, text).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// ```text
/// 0   magic, pad, minimum instruction, pointer size
/// 8   functions, files, start of text, offset of names, …, offset of the function table (7th word)
/// ```
fn parse(table: &[u8], text: u64) -> Option<Vec<Symbol>> {
    let half = |at: usize| Some(u32::from_le_bytes(table.get(at..at + 4)?.try_into().ok()?));
    let word = |index: usize| {
        let at = 8 + index * 8;
        let bytes = table.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    if half(0)? != MAGIC || table.get(7) != Some(&8) {
        return None;
    }
    let (count, names, functions) = (word(0)?, word(3)?, word(7)?);
    let mut symbols = Vec::new();
    for index in 0..count {
        let entry = functions + index * 8;
        let (start, end) = (half(entry)?, half(entry + 8)?);
        let function = functions + half(entry + 4)? as usize;
        // `_func`: entry offset, offset of the name.
        let name = table.get(names + half(function + 4)? as usize..)?;
        let name = name.split(|&byte| byte == 0).next()?;
        symbols.push(Symbol {
            range: text + u64::from(start)..text + u64::from(end),
            name: String::from_utf8_lossy(name).into_owned(),
        });
    }
    Some(symbols)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_the_names_of_the_table() {
        let mut table = vec![0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
        let names = 72_u64;
        let functions = 96_u64;
        for word in [2, 0, 0, names, 0, 0, 0, functions] {
            table.extend(word.to_le_bytes());
        }
        table.extend(*b"main.main\0runtime.x\0\0\0\0\0");
        // Two functions and the end of the last one, padding, then two `_func`s.
        table.extend(halves(&[0, 24, 0x40, 32, 0x60, 0, 0, 0, 0x40, 10]));
        let symbols = parse(&table, 0x401000).expect("a table");
        let symbol = |range, name: &str| Symbol {
            range,
            name: name.into(),
        };
        assert_eq!(
            symbols,
            [
                symbol(0x401000..0x401040, "main.main"),
                symbol(0x401040..0x401060, "runtime.x")
            ]
        );
        assert_eq!(parse(&table[..100], 0), None, "cut short");
        assert_eq!(parse(&[0; 100], 0), None, "no table");
    }

    fn halves(halves: &[u32]) -> Vec<u8> {
        halves.iter().flat_map(|half| half.to_le_bytes()).collect()
    }
}
