//! What an ELF file tells: where its parts are mapped, unwind tables, symbols and lines.
//!
//! Only the sections that are asked for are read, not the whole file.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use addr2line::gimli;
use framehop::ExplicitModuleSectionInfo;
use object::{
    Object, ObjectSection, ObjectSegment, ObjectSymbol, ReadCache, SymbolKind, read::ReadRef,
};

/// Where debuginfo packages put their files.
const DEBUG_ROOT: &str = "/usr/lib/debug/.build-id";

type Reader = gimli::EndianArcSlice<gimli::LittleEndian>;
/// Bytes of a section.
pub type Bytes = Arc<[u8]>;

/// A function, by its symbol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// Virtual addresses in the file; never empty.
    pub range: Range<u64>,
    /// As it stands in the file.
    pub name: String,
}

/// What an ELF file tells.
pub struct Binary {
    /// Of each loaded segment: offsets in the file, and the virtual address of the first.
    segments: Vec<(Range<u64>, u64)>,
    /// Sorted by start; those that contain others come first.
    symbols: Vec<Symbol>,
    /// Functions, files and lines, inlined calls included.
    pub lines: Option<addr2line::Context<Reader>>,
    text: Option<Range<u64>>,
    eh_frame: Option<(Range<u64>, Bytes)>,
    eh_frame_hdr: Option<(Range<u64>, Bytes)>,
    debug_frame: Option<Bytes>,
    got: Option<Range<u64>>,
}

impl Binary {
    /// Reads a file that was mapped with this inode, and its debug information where it is installed. An error
    /// where the file is another one by now, or no ELF file.
    pub fn open(path: &Path, inode: u64) -> io::Result<Binary> {
        let file = File::open(path)?;
        if file.metadata()?.ino() != inode {
            return Err(io::Error::other("the file was replaced since"));
        }
        let cache = ReadCache::new(file);
        let elf = object::File::parse(&cache).map_err(io::Error::other)?;
        let debug = debug_file(&elf).and_then(|path| Some(ReadCache::new(File::open(path).ok()?)));
        let debug = debug
            .as_ref()
            .and_then(|cache| object::File::parse(cache).ok());
        Ok(Binary::of(&elf, debug.as_ref()))
    }

    fn of<'data, R: ReadRef<'data>>(
        elf: &object::File<'data, R>,
        debug: Option<&object::File<'data, R>>,
    ) -> Binary {
        let mut symbols = functions(elf);
        symbols.extend(debug.iter().flat_map(|debug| functions(debug)));
        if symbols.is_empty() {
            symbols = super::gopclntab::functions(elf);
        }
        let with_code = |symbol: &Symbol| !symbol.range.is_empty();
        symbols.retain(with_code);
        symbols.sort_by(|one, other| {
            let key = |it: &Symbol| (it.range.start, std::cmp::Reverse(it.range.end));
            // Of several names for one function the plainest: `malloc`, not `__libc_malloc`.
            let plain = |it: &Symbol| {
                (
                    std::cmp::Reverse(it.name.bytes().take_while(|&byte| byte == b'_').count()),
                    std::cmp::Reverse(it.name.len()),
                )
            };
            key(one)
                .cmp(&key(other))
                .then_with(|| plain(one).cmp(&plain(other)))
        });
        let with_lines = [Some(elf), debug]
            .into_iter()
            .flatten()
            .find(|file| file.section_by_name(".debug_info").is_some());
        let range = |name| {
            let section = elf.section_by_name(name)?;
            Some(section.address()..section.address() + section.size())
        };
        let both = |name| Some((range(name)?, section(elf, name)?));
        Binary {
            segments: elf
                .segments()
                .map(|segment| {
                    let (offset, size) = segment.file_range();
                    (offset..offset + size, segment.address())
                })
                .collect(),
            symbols,
            lines: with_lines.and_then(lines),
            text: range(".text"),
            eh_frame: both(".eh_frame"),
            eh_frame_hdr: both(".eh_frame_hdr"),
            debug_frame: section(elf, ".debug_frame"),
            got: range(".got"),
        }
    }

    /// The virtual address of what stands at an offset of the file.
    pub fn address_of(&self, file_offset: u64) -> Option<u64> {
        let holds = |(range, _): &&(Range<u64>, u64)| range.contains(&file_offset);
        let (range, address) = self.segments.iter().find(holds)?;
        Some(file_offset - range.start + address)
    }

    /// The function whose symbol covers an address. One that merely lies before it does not count.
    pub fn function_at(&self, address: u64) -> Option<&str> {
        let after = self
            .symbols
            .partition_point(|symbol| symbol.range.start <= address);
        // Functions rarely contain others, so the one that covers is among the last few.
        let near = self.symbols[..after].iter().rev().take(16);
        let mut covering = near.filter(|symbol| symbol.range.contains(&address));
        covering.next().map(|symbol| symbol.name.as_str())
    }

    /// What framehop unwinds by.
    pub fn unwind_sections(&self) -> ExplicitModuleSectionInfo<Bytes> {
        let range = |part: &Option<(Range<u64>, Bytes)>| part.as_ref().map(|it| it.0.clone());
        let data = |part: &Option<(Range<u64>, Bytes)>| part.as_ref().map(|it| it.1.clone());
        ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: self.text.clone(),
            got_svma: self.got.clone(),
            eh_frame_svma: range(&self.eh_frame),
            eh_frame: data(&self.eh_frame),
            eh_frame_hdr_svma: range(&self.eh_frame_hdr),
            eh_frame_hdr: data(&self.eh_frame_hdr),
            debug_frame: self.debug_frame.clone(),
            ..Default::default()
        }
    }
}

/// `/usr/lib/debug/.build-id/xx/yyyy.debug`
fn debug_file<'data, R: ReadRef<'data>>(elf: &object::File<'data, R>) -> Option<PathBuf> {
    let id = elf.build_id().ok().flatten()?;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (folder, name) = hex.split_at_checked(2)?;
    Some(
        Path::new(DEBUG_ROOT)
            .join(folder)
            .join(format!("{name}.debug")),
    )
}

/// Functions of both symbol tables, with their sizes.
fn functions<'data, R: ReadRef<'data>>(elf: &object::File<'data, R>) -> Vec<Symbol> {
    let symbols = elf.symbols().chain(elf.dynamic_symbols());
    symbols
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let start = symbol.address();
            Some(Symbol {
                range: start..start.checked_add(symbol.size())?,
                name: symbol.name().ok()?.to_owned(),
            })
        })
        .collect()
}

fn section<'data, R: ReadRef<'data>>(elf: &object::File<'data, R>, name: &str) -> Option<Bytes> {
    let data = elf.section_by_name(name)?.uncompressed_data().ok()?;
    (!data.is_empty()).then(|| data.into())
}

fn lines<'data, R: ReadRef<'data>>(
    elf: &object::File<'data, R>,
) -> Option<addr2line::Context<Reader>> {
    let load = |id: gimli::SectionId| -> Result<Reader, gimli::Error> {
        let bytes = section(elf, id.name()).unwrap_or_else(|| Arc::from([]));
        Ok(Reader::new(bytes, gimli::LittleEndian))
    };
    addr2line::Context::from_dwarf(gimli::Dwarf::load(load).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_symbols(symbols: &[(u64, u64, &str)]) -> Binary {
        let symbol = |&(start, end, name): &(u64, u64, &str)| Symbol {
            range: start..end,
            name: name.into(),
        };
        Binary {
            segments: vec![(0x1000..0x3000, 0x401000)],
            symbols: symbols.iter().map(symbol).collect(),
            lines: None,
            text: None,
            eh_frame: None,
            eh_frame_hdr: None,
            debug_frame: None,
            got: None,
        }
    }

    #[test]
    fn an_address_behind_a_function_is_not_in_it() {
        let binary = with_symbols(&[
            (0x10, 0x20, "malloc"),
            (0x40, 0x80, "outer"),
            (0x50, 0x60, "inner"),
        ]);
        assert_eq!(binary.function_at(0x1f), Some("malloc"));
        assert_eq!(
            binary.function_at(0x20),
            None,
            "the nearest symbol is not the answer"
        );
        assert_eq!(binary.function_at(0x8), None);
        assert_eq!(binary.function_at(0x55), Some("inner"));
        assert_eq!(binary.function_at(0x60), Some("outer"));
    }

    #[test]
    fn addresses_go_by_the_segment_that_holds_them() {
        let binary = with_symbols(&[]);
        assert_eq!(binary.address_of(0x1234), Some(0x401234));
        assert_eq!(binary.address_of(0x3000), None);
    }

    /// This very test program: names, and lines of its source.
    #[test]
    fn our_own_functions_have_names_and_lines() {
        let path = std::env::current_exe().unwrap();
        let inode = path.metadata().unwrap().ino();
        let binary = Binary::open(&path, inode).expect("a program");
        let address = with_symbols as *const () as u64;
        let maps = crate::residency::scan::read_maps(std::process::id()).unwrap();
        let vma = maps
            .iter()
            .find(|vma| (vma.start..vma.end).contains(&address));
        let vma = vma.expect("our code is mapped");
        let address = binary
            .address_of(address - vma.start + vma.offset())
            .unwrap();
        let name = binary.function_at(address).expect("a symbol");
        assert!(name.contains("with_symbols"), "{name}");
        let lines = binary.lines.as_ref().expect("debug information");
        let place = lines.find_location(address).unwrap().expect("a line");
        assert!(place.file.unwrap().ends_with("call_stacks/binary.rs"));
        assert!(Binary::open(&path, inode + 1).is_err(), "another file");
    }
}
