//! DWARF byte by byte, as the Go linker writes it.

use super::*;
use crate::residency::MapsLine;
use proptest::prelude::*;

/// Abbreviations: 1 a unit, 2 a struct, 3 a member, 4 a number, 5 a name of a type, 6 a pointer.
const ABBREVIATIONS: &[u8] = &[
    1, 0x11, 1, 0x03, 0x08, 0, 0, // unit: name
    2, 0x13, 1, 0x03, 0x08, 0x0b, 0x0f, 0, 0, // struct: name, bytes
    3, 0x0d, 0, 0x03, 0x08, 0x38, 0x0f, 0x49, 0x10, 0, 0, // member: name, place, type
    4, 0x24, 0, 0x03, 0x08, 0x0b, 0x0b, 0, 0, // number: name, bytes
    5, 0x16, 0, 0x03, 0x08, 0x49, 0x10, 0, 0, // name: name, type
    6, 0x0f, 0, 0x03, 0x08, 0, 0, // pointer: name
    0,
];

#[derive(Default)]
struct Info {
    bytes: Vec<u8>,
    /// Where the unit begins that is being written.
    unit: usize,
}

impl Info {
    fn begin(&mut self, name: &str) {
        self.unit = self.bytes.len();
        // Length (later), version 4, abbreviations, bytes of an address.
        self.bytes.extend([0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8]);
        self.entry(1, name);
    }

    fn end(&mut self) {
        self.bytes.push(0);
        let length = (self.bytes.len() - self.unit - 4) as u32;
        self.bytes[self.unit..self.unit + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Where it is.
    fn entry(&mut self, code: u8, name: &str) -> u32 {
        let at = self.bytes.len() as u32;
        self.bytes.push(code);
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        at
    }

    fn number(&mut self, bytes: u8) -> u32 {
        let at = self.entry(4, "a number");
        self.bytes.push(bytes);
        at
    }

    fn named(&mut self, name: &str, of: u32) -> u32 {
        let at = self.entry(5, name);
        self.bytes.extend(of.to_le_bytes());
        at
    }

    fn strukt(&mut self, name: &str, bytes: u8, members: &[(&str, u8, u32)]) -> u32 {
        let at = self.entry(2, name);
        self.bytes.push(bytes);
        for &(name, place, of) in members {
            self.entry(3, name);
            self.bytes.push(place);
            self.bytes.extend(of.to_le_bytes());
        }
        self.bytes.push(0);
        at
    }
}

/// The types of a runtime; `without` is a member that it lacks.
fn info(without: &str) -> Vec<u8> {
    let mut info = Info::default();
    info.begin("internal/other");
    let [byte, two, word] = [1, 2, 8].map(|bytes| info.number(bytes));
    // Of the same name, in another package.
    info.strukt("runtime.g", 1, &[("stack", 77, word)]);
    info.end();
    info.begin("runtime");
    let pointer = info.entry(6, "*runtime.g");
    let state = info.strukt("runtime.mSpanStateBox", 1, &[("s", 0, byte)]);
    let named = info.named("runtime.mSpanStateBox", state);
    let slice = info.strukt("[]*runtime.mspan", 24, &[]);
    let mut strukt = |name: &str, members: &[(&str, u8, u32)]| {
        let members: Vec<_> = members
            .iter()
            .filter(|it| it.0 != without)
            .copied()
            .collect();
        info.strukt(name, 100, &members)
    };
    strukt(
        "runtime.mheap",
        &[("allspans", 8, slice), ("pagesInUse", 40, word)],
    );
    strukt(
        "runtime.mspan",
        &[
            ("startAddr", 24, word),
            ("npages", 32, word),
            ("freeindex", 48, two),
            ("nelems", 50, two),
            ("allocBits", 64, pointer),
            ("allocCount", 96, two),
            ("spanclass", 98, byte),
            ("state", 99, named),
            ("elemsize", 104, word),
            ("limit", 112, word),
        ],
    );
    let stack = strukt("runtime.stack", &[("lo", 0, word), ("hi", 8, word)]);
    let gobuf = strukt("runtime.gobuf", &[("sp", 0, word)]);
    strukt(
        "runtime.g",
        &[
            ("stack", 0, stack),
            ("sched", 56, gobuf),
            ("atomicstatus", 120, word),
        ],
    );
    strukt(
        "runtime.m",
        &[
            ("g0", 0, pointer),
            ("gsignal", 72, pointer),
            ("alllink", 90, pointer),
        ],
    );
    info.end();
    info.bytes
}

#[test]
fn fields_are_found_through_the_names_of_their_types() {
    let fields = fields(&info(""), ABBREVIATIONS, &[]).expect("sound DWARF");
    let field = |offset, bytes| Field { offset, bytes };
    assert_eq!(fields.mheap_allspans, field(8, 24));
    assert_eq!(fields.mspan_state, field(99, 1));
    assert_eq!(fields.mspan_alloc_bits, field(64, 8));
    assert_eq!(fields.g_sched, field(56, 100));
    assert_eq!(fields.mspan_large_type, None);
    assert_eq!(fields.inline_marks_bytes, 0);
    assert_eq!(fields.g_bytes, 156);
}

#[test]
fn a_field_that_is_not_there_is_told_by_its_name() {
    for (without, says) in [
        ("freeindex", "runtime.mspan has no field freeindex"),
        ("alllink", "runtime.m has no field alllink"),
    ] {
        let refusal = fields(&info(without), ABBREVIATIONS, &[]).expect_err("a field is missing");
        assert!(refusal.0.contains(says), "{refusal}");
    }
}

#[test]
fn symbols_are_found_by_their_whole_names() {
    let names = b"\0runtime.allgs\0runtime.allgs2\0";
    let mut table = vec![0; 24];
    for (name, address) in [(15_u32, 0x99_u64), (1, 0x1234)] {
        table.extend(name.to_le_bytes());
        table.extend([0x11, 0, 1, 0]);
        table.extend(address.to_le_bytes());
        table.extend([0; 8]);
    }
    assert_eq!(symbols(&table, names, ["runtime.allgs"]), Some([0x1234]));
    assert_eq!(symbols(&table, names, ["runtime.allm"]), None);
    assert_eq!(symbols(&table[..30], names, ["runtime.allgs"]), None);
    assert_eq!(symbols(&table, &names[..4], ["runtime.allgs"]), None);
}

#[test]
fn a_program_that_is_no_go_program_is_refused() {
    let layout = of(std::process::id());
    assert!(layout.is_err(), "{layout:?}");
}

#[test]
fn a_program_that_may_be_anywhere_is_found_by_its_first_mapping() {
    let mut layout = Layout {
        mheap: 0,
        allgs: 0,
        allm: 0,
        fixed: false,
        lowest: (0x1040, 0x40),
        fields: Fields::default(),
    };
    let vma = |start, offset, name: &str| {
        Vma::from(MapsLine {
            start,
            end: start + 0x1000,
            protection: 5,
            shared: false,
            offset,
            inode: 1,
            name: Some(name.to_owned()),
        })
    };
    let vmas = [
        vma(0x1000, 0, "/lib"),
        vma(0x5000, 0x1000, "/it"),
        vma(0x9000, 0, "/it"),
    ];
    assert_eq!(layout.bias("/it", &vmas), Ok(0x8000));
    assert!(layout.bias("/other", &vmas).is_err());
    layout.fixed = true;
    assert_eq!(layout.bias("/other", &vmas), Ok(0));
}

proptest! {
    #[test]
    fn damaged_dwarf_never_panics(
        damage in prop::collection::vec((0_usize..800, any::<u8>()), 1..8),
        length in 0_usize..900,
    ) {
        let mut bytes = info("");
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(length);
        let _ = fields(&bytes, ABBREVIATIONS, &[]);
    }
}
