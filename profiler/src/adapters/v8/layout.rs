//! Where V8 keeps what the adapter reads, version by version, and which version a program holds.
//!
//! V8 has no stable layout and no description of it in the binary, so there is a table. Each offset was
//! taken from the source of that version (deps/v8 of Node.js) and checked against the code of the binaries
//! that are named; the adapter checks them once more on every process, by what they lead to.

use std::{fs::File, path::Path};

use object::{
    Endianness, ReadCache, ReadRef,
    elf::{FileHeader64, SHT_DYNSYM, gnu_hash},
    read::elf::{FileHeader, SectionHeader, Sym},
};

use crate::adapters::Refusal;

/// Major and minor version of V8; within one, embedders take fixes that change no layout.
pub type Version = (u32, u32);

/// `v8::internal::Version::major_` and `minor_` (src/utils/version.cc): initialised data, exported.
const MAJOR: &str = "_ZN2v88internal7Version6major_E";
const MINOR: &str = "_ZN2v88internal7Version6minor_E";

/// Offsets in bytes. Builds with compressed pointers or the sandbox differ, and fail the adapter's checks.
#[derive(Debug)]
pub struct Layout {
    /// The version.
    pub version: Version,
    /// Names of `AllocationSpace`, in order (src/common/globals.h), as `v8.getHeapSpaceStatistics` has them.
    pub spaces: &'static [&'static str],
    /// `Heap::space_` (src/heap/heap.h).
    pub heap_spaces: u64,
    /// How a page's structure is found from the first byte of the page.
    pub page_structure: PageStructure,
    /// `BasicMemoryChunk` (src/heap/basic-memory-chunk.h), `MemoryChunkMetadata` later
    /// (memory-chunk-metadata.h): `size_`, `heap_`, `area_start_`, `area_end_`, `allocated_bytes_`,
    /// `owner_`.
    pub size: u64,
    /// See `size`.
    pub heap: u64,
    /// See `size`.
    pub area_start: u64,
    /// See `size`.
    pub area_end: u64,
    /// See `size`.
    pub allocated: u64,
    /// See `size`.
    pub owner: u64,
    /// `MemoryChunk::concurrent_sweeping_` (src/heap/memory-chunk.h; `MutablePageMetadata` in
    /// mutable-page-metadata.h later): 0 when the page is swept.
    pub sweeping: u64,
    /// `list_node_.next_` beside it.
    pub next: u64,
    /// `categories_` beside it: the free lists of the page.
    pub categories: u64,
    /// `Space::free_list_` (src/heap/spaces.h).
    pub free_list: u64,
    /// Bytes by which `FreeSpace::size` counts (src/objects/free-space.h).
    pub free_unit: u64,
    /// `SemiSpaceNewSpace::to_space_` and `from_space_` (src/heap/new-spaces.h).
    pub to_space: u64,
    /// See `to_space`.
    pub from_space: u64,
    /// `SemiSpace::current_capacity_` (bytes of pages up to the current one) and `current_page_`.
    pub current_capacity: u64,
    /// See `current_capacity`.
    pub current_page: u64,
    /// Where allocation in the current page has come to; `None`: the linear area's top tells.
    pub allocation_top: Option<u64>,
    /// Where the linear allocation areas of the main thread are.
    pub linear: Linear,
    /// Whether `v8.getHeapSpaceStatistics` counts the rest of linear areas as used. Later versions give it
    /// back to the free list first (`Isolate::GetHeapSpaceStatistics`, src/api/api.cc).
    pub linear_is_used: bool,
}

/// How a page's structure is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageStructure {
    /// It begins the page.
    InPage,
    /// The page's second word points to it (`MemoryChunk::metadata_`, src/heap/memory-chunk.h).
    Pointer,
}

/// Where the linear allocation areas (`LinearAllocationArea`: start, top, limit) of the main thread are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linear {
    /// Each space points to its own (`SpaceWithLinearArea::allocation_info_`).
    OfSpace {
        /// Offset of the pointer.
        pointer: u64,
    },
    /// The heap has one `MainAllocator` a space (src/heap/heap-allocator.h), some of them optional: then the
    /// byte behind it tells.
    OfHeap {
        /// `Heap::heap_allocator_`, a pointer.
        allocator: u64,
        /// Offsets of those that always are there.
        always: &'static [u64],
        /// Those that may be, each with the offset of its flag.
        optional: &'static [(u64, u64)],
        /// `MainAllocator::allocation_info_`.
        pointer: u64,
    },
}

/// The version of V8 that a program or library on disk holds.
pub fn version_of(path: &Path) -> Result<Version, Refusal> {
    let refuse = |what: &str| Refusal(format!("{}: {what}", path.display()));
    let file = File::open(path).map_err(|error| refuse(&error.to_string()))?;
    let cache = ReadCache::new(file);
    let number = |name: &str| exported_number(&cache, name);
    match (number(MAJOR), number(MINOR)) {
        (Ok(Some(major)), Ok(Some(minor))) => Ok((major, minor)),
        (Err(error), _) | (_, Err(error)) => Err(refuse(&error.to_string())),
        _ => Err(refuse("it exports no version of V8")),
    }
}

/// An initialised `int` that a file exports. Found by the hash table of its symbols: going through the
/// names, of which Node.js exports up to 75,000, takes half a second.
fn exported_number(file: &ReadCache<File>, name: &str) -> Result<Option<u32>, object::read::Error> {
    let header = FileHeader64::<Endianness>::parse(file)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, file)?;
    let (Some((hashes, _)), Some(versions)) = (
        sections.gnu_hash(endian, file)?,
        sections.versions(endian, file)?,
    ) else {
        return Ok(None);
    };
    let symbols = sections.symbols(endian, file, SHT_DYNSYM)?;
    let hash = gnu_hash(name.as_bytes());
    let found = hashes.find(endian, name.as_bytes(), hash, None, &symbols, &versions);
    let Some((_, symbol)) = found else {
        return Ok(None);
    };
    let address = symbol.st_value(endian);
    let bytes = sections.iter().find_map(|section| {
        let inside = address.checked_sub(section.sh_addr(endian))?;
        let (offset, size) = section.file_range(endian)?;
        let ends = inside.checked_add(4)? <= size && section.sh_addr(endian) != 0;
        file.read_bytes_at(offset.checked_add(inside)?, 4)
            .ok()
            .filter(|_| ends)
    });
    Ok(bytes.and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?))))
}

/// The layout of a version.
pub fn layout_of(version: Version) -> Result<&'static Layout, Refusal> {
    let known = LAYOUTS.iter().find(|layout| layout.version == version);
    known.ok_or_else(|| {
        let (major, minor) = version;
        Refusal(format!("the layout of V8 {major}.{minor} is not known"))
    })
}

/// The versions that are known.
pub static LAYOUTS: [Layout; 3] = [
    // Node.js 20 (20.20.2: V8 11.3.244.8).
    Layout {
        version: (11, 3),
        spaces: &[
            "read_only_space",
            "new_space",
            "old_space",
            "code_space",
            "shared_space",
            "new_large_object_space",
            "large_object_space",
            "code_large_object_space",
            "shared_large_object_space",
        ],
        heap_spaces: 0x1c8,
        page_structure: PageStructure::InPage,
        size: 0,
        heap: 0x10,
        area_start: 0x18,
        area_end: 0x20,
        allocated: 0x28,
        owner: 0x40,
        sweeping: 0xe0,
        next: 0x108,
        categories: 0x118,
        free_list: 0x40,
        free_unit: 1,
        to_space: 0x168,
        from_space: 0x278,
        current_capacity: 0x50,
        current_page: 0x88,
        allocation_top: None,
        linear: Linear::OfSpace { pointer: 0x50 },
        linear_is_used: true,
    },
    // Node.js 22 (22.20.0: V8 12.4.254.21).
    Layout {
        version: (12, 4),
        spaces: &[
            "read_only_space",
            "new_space",
            "old_space",
            "code_space",
            "shared_space",
            "trusted_space",
            "new_large_object_space",
            "large_object_space",
            "code_large_object_space",
            "shared_large_object_space",
            "trusted_large_object_space",
        ],
        heap_spaces: 0x138,
        page_structure: PageStructure::Pointer,
        size: 0x10,
        heap: 0x18,
        area_start: 0x20,
        area_end: 0x28,
        allocated: 0x30,
        owner: 0x48,
        sweeping: 0xf0,
        next: 0x108,
        categories: 0x118,
        free_list: 0x48,
        free_unit: 1,
        to_space: 0x78,
        from_space: 0x108,
        current_capacity: 0x50,
        current_page: 0x88,
        allocation_top: Some(0x1b0),
        linear: Linear::OfHeap {
            allocator: 0x20,
            always: &[0x198, 0x2c0, 0x3e8],
            optional: &[(0x70, 0x190), (0x510, 0x630)],
            pointer: 0xa0,
        },
        linear_is_used: false,
    },
    // Node.js 24 (24.19.0: V8 13.6.233.17).
    Layout {
        version: (13, 6),
        spaces: &[
            "read_only_space",
            "new_space",
            "old_space",
            "code_space",
            "shared_space",
            "trusted_space",
            "shared_trusted_space",
            "new_large_object_space",
            "large_object_space",
            "code_large_object_space",
            "shared_large_object_space",
            "shared_trusted_large_object_space",
            "trusted_large_object_space",
        ],
        heap_spaces: 0x160,
        page_structure: PageStructure::Pointer,
        size: 0x30,
        heap: 0x40,
        area_start: 0x48,
        area_end: 0x38,
        allocated: 0x18,
        owner: 0x50,
        sweeping: 0xf0,
        next: 0x108,
        categories: 0x118,
        free_list: 0x50,
        free_unit: 8,
        to_space: 0x60,
        from_space: 0xe0,
        current_capacity: 0x58,
        current_page: 0x70,
        allocation_top: Some(0x160),
        linear: Linear::OfHeap {
            allocator: 0x20,
            always: &[0x178, 0x270, 0x368],
            optional: &[(0x80, 0x170), (0x460, 0x550), (0x558, 0x648)],
            pointer: 0xa0,
        },
        linear_is_used: false,
    },
];

/// In `BaseSpace`, after the table of virtual functions (src/heap/base-space.h): `heap_`, `id_` (four
/// bytes), `committed_`; in `Space` behind it the first page of `memory_chunk_list_` (src/heap/spaces.h).
/// The same in all of [`LAYOUTS`].
pub const SPACE_HEAP: u64 = 0x8;
/// See [`SPACE_HEAP`].
pub const SPACE_ID: u64 = 0x10;
/// See [`SPACE_HEAP`].
pub const SPACE_COMMITTED: u64 = 0x18;
/// See [`SPACE_HEAP`].
pub const SPACE_FIRST_PAGE: u64 = 0x28;

/// In `FreeList`: `number_of_categories_` (src/heap/free-list.h).
pub const FREE_LIST_CATEGORIES: u64 = 0x8;
/// In `FreeListCategory` (src/heap/free-list.h): `type_` and `available_` of four bytes each, then `top_`.
pub const CATEGORY_AVAILABLE: u64 = 0x4;
/// See [`CATEGORY_AVAILABLE`].
pub const CATEGORY_TOP: u64 = 0x8;
/// In a `FreeSpace` (src/objects/free-space.h): the size as a Smi, so in the upper half; the next one.
pub const FREE_SIZE: u64 = 0x8;
/// See [`FREE_SIZE`].
pub const FREE_NEXT: u64 = 0x10;
