//! A machine of literal bytes: the tables, a few classes, one heap and one code cache.

use super::*;
use crate::{
    adapters::{
        memory::{Memory, Words, fake::Fake},
        view::Files,
    },
    classify::{
        Leaf,
        division::{Division, DivisionBuilder},
    },
    units::PAGE,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Where the parts of the machine lie.
const LIBRARY: u64 = 0x7f00_0000_0000;
const NAMES: u64 = LIBRARY + 0x10_0000;
const GLOBALS: u64 = LIBRARY + 0x20_0000;
const STRUCTURES: u64 = 0x7f10_0000_0000;
const CLASSES: u64 = 0x10_0000;
const HEAP: u64 = 0x7_0000_0000;
const CODE: u64 = 0x7f20_0000_0000;

/// A region of G1.
const GRAIN: u64 = 4 * PAGE;

/// Narrow pointers of the classes: offsets from [`CLASSES`].
const STRING: u64 = 0x400;
const BYTES: u64 = 0x800;
const MIRROR: u64 = 0xc00;
const CHUNK: u64 = 0x1000;
const FILLER: u64 = 0x1400;

/// Builds the machine; remembers where things are.
struct Machine {
    fake: Fake,
    exports: Exports,
    names: u64,
    globals: u64,
    entries: BTreeMap<&'static str, u64>,
}

impl Machine {
    fn new() -> Machine {
        let mut machine = Machine {
            fake: Fake::default(),
            exports: Exports::new(),
            names: NAMES,
            globals: GLOBALS,
            entries: BTreeMap::new(),
        };
        for (name, value) in [
            ("gHotSpotVMStructEntryTypeNameOffset", 0),
            ("gHotSpotVMStructEntryFieldNameOffset", 8),
            ("gHotSpotVMStructEntryIsStaticOffset", 16),
            ("gHotSpotVMStructEntryOffsetOffset", 24),
            ("gHotSpotVMStructEntryAddressOffset", 32),
            ("gHotSpotVMStructEntryArrayStride", 40),
            ("gHotSpotVMTypeEntryTypeNameOffset", 0),
            ("gHotSpotVMTypeEntrySizeOffset", 8),
            ("gHotSpotVMTypeEntryArrayStride", 16),
            ("gHotSpotVMIntConstantEntryNameOffset", 0),
            ("gHotSpotVMIntConstantEntryValueOffset", 8),
            ("gHotSpotVMIntConstantEntryArrayStride", 16),
            ("gHotSpotVMLongConstantEntryNameOffset", 0),
            ("gHotSpotVMLongConstantEntryValueOffset", 8),
            ("gHotSpotVMLongConstantEntryArrayStride", 16),
        ] {
            let at = machine.global(value);
            machine.exports.insert(name.into(), at);
        }
        for (index, name) in ["Structs", "Types", "IntConstants", "LongConstants"]
            .into_iter()
            .enumerate()
        {
            let table = LIBRARY + 0x1_0000 * index as u64;
            let at = machine.global(table);
            machine.exports.insert(format!("gHotSpotVM{name}"), at);
            machine.entries.insert(name, table);
            // The end of the table: an entry without a name.
            machine.fake.touch(table, table + 0x1_0000);
        }
        machine.describe();
        machine.classes();
        machine
    }

    fn name(&mut self, name: &str) -> u64 {
        let at = self.names;
        self.fake.write(at, name.as_bytes());
        self.fake.write(at + name.len() as u64, &[0]);
        self.names += name.len() as u64 + 1;
        at
    }

    fn global(&mut self, value: u64) -> u64 {
        let at = self.globals;
        self.fake.put(at, value);
        self.globals += 8;
        at
    }

    fn entry(&mut self, table: &'static str, words: &[u64]) {
        let at = self.entries[table];
        for (index, &word) in words.iter().enumerate() {
            self.fake.put(at + 8 * index as u64, word);
        }
        self.entries.insert(table, at + 8 * words.len() as u64);
    }

    fn field(&mut self, owner: &str, name: &str, offset: u64) {
        let (owner, name) = (self.name(owner), self.name(name));
        self.entry("Structs", &[owner, name, 0, offset, 0]);
    }

    /// A static field; where it lies.
    fn variable(&mut self, owner: &str, name: &str, value: u64) -> u64 {
        let at = self.global(value);
        let (owner, name) = (self.name(owner), self.name(name));
        self.entry("Structs", &[owner, name, 1, 0, at]);
        at
    }

    fn describe(&mut self) {
        for (owner, name, offset) in [
            ("JVMFlag", "_addr", 0),
            ("JVMFlag", "_name", 8),
            ("Klass", "_layout_helper", 8),
            ("Klass", "_name", 24),
            ("Symbol", "_length", 4),
            ("Symbol", "_body[0]", 6),
            ("InstanceKlass", "_fieldinfo_stream", 64),
            ("InstanceKlass", "_constants", 72),
            ("Array<Klass*>", "_length", 0),
            ("Array<u1>", "_data", 4),
            ("CollectedHeap", "_is_stw_gc_active", 0),
            ("CollectedHeap", "_total_collections", 4),
            ("CollectedHeap", "_reserved", 8),
            ("MemRegion", "_start", 0),
            ("MemRegion", "_word_size", 8),
            ("G1CollectedHeap", "_hrm", 32),
            ("G1HeapRegionManager", "_regions", 0),
            ("G1HeapRegionTable", "_base", 0),
            ("G1HeapRegionTable", "_length", 8),
            ("G1HeapRegion", "_bottom", 0),
            ("G1HeapRegion", "_end", 8),
            ("G1HeapRegion", "_top", 16),
            ("G1HeapRegion", "_type", 24),
            ("G1HeapRegionType", "_tag", 0),
            ("ThreadsList", "_length", 4),
            ("ThreadsList", "_threads", 8),
            ("Thread", "_tlab", 16),
            ("ThreadLocalAllocBuffer", "_start", 0),
            ("ThreadLocalAllocBuffer", "_top", 8),
            ("ThreadLocalAllocBuffer", "_end", 16),
            ("GrowableArrayBase", "_len", 0),
            ("GrowableArray<int>", "_data", 8),
            ("CodeHeap", "_memory", 0),
            ("CodeHeap", "_segmap", 32),
            ("CodeHeap", "_log2_segment_size", 64),
            ("VirtualSpace", "_low", 0),
            ("VirtualSpace", "_high", 8),
            ("HeapBlock", "_header", 0),
            ("HeapBlock::Header", "_length", 0),
            ("HeapBlock::Header", "_used", 4),
        ] {
            self.field(owner, name, offset);
        }
        for (owner, name, value) in [
            ("Abstract_VM_Version", "_vm_major_version", 25),
            ("CompressedKlassPointers", "_base", CLASSES),
            ("CompressedKlassPointers", "_shift", 0),
            ("java_lang_Class", "_oop_size_offset", 16),
            ("G1HeapRegion", "GrainBytes", GRAIN),
            ("Universe", "_collectedHeap", STRUCTURES),
            (
                "ThreadsSMRSupport",
                "_java_thread_list",
                STRUCTURES + 0x1000,
            ),
            ("CollectedHeap", "_lab_alignment_reserve", 2),
            ("CodeCache", "_heaps", STRUCTURES + 0x3000),
            ("JVMFlag", "flags", STRUCTURES + 0x2000),
            ("JVMFlag", "numFlags", 4),
        ] {
            self.variable(owner, name, value);
        }
        for (name, size) in [("JVMFlag", 16), ("ConstantPool", 16)] {
            let name = self.name(name);
            self.entry("Types", &[name, size]);
        }
        for (name, value) in [
            ("Klass::_lh_instance_slow_path_bit", 1),
            ("Klass::_lh_header_size_shift", 16),
            ("Klass::_lh_header_size_mask", 0xff),
            ("Klass::_lh_log2_element_size_shift", 0),
            ("Klass::_lh_log2_element_size_mask", 0x3f),
            ("G1HeapRegionType::StartsHumongousTag", 4),
            ("G1HeapRegionType::ContinuesHumongousTag", 5),
            ("FieldInfo::FieldFlags::_ff_initialized", 0),
            ("FieldInfo::FieldFlags::_ff_injected", 1),
            ("FieldInfo::FieldFlags::_ff_generic", 2),
            ("FieldInfo::FieldFlags::_ff_contended", 4),
        ] {
            let name = self.name(name);
            self.entry("IntConstants", &[name, value]);
        }
        for (index, (name, value)) in [
            ("UseG1GC", 1),
            ("UseCompressedClassPointers", 1),
            ("UseCompressedOops", 1),
            ("ObjectAlignmentInBytes", 8),
        ]
        .into_iter()
        .enumerate()
        {
            let (name, value) = (self.name(name), self.global(value));
            let flag = STRUCTURES + 0x2000 + 16 * index as u64;
            self.fake.put(flag, value);
            self.fake.put(flag + 8, name);
        }
        // The heap and no region yet; no thread; no heap of code.
        self.fake.put(STRUCTURES, 0);
        self.fake.put(STRUCTURES + 8, HEAP);
        self.fake.put(STRUCTURES + 16, 16 * GRAIN / 8);
        self.fake.put(STRUCTURES + 32, STRUCTURES + 0x4000);
        self.fake.put(STRUCTURES + 40, 0);
        self.fake.put(STRUCTURES + 0x1000, 0);
        self.fake.put(STRUCTURES + 0x1008, STRUCTURES + 0x5000);
        self.fake.put(STRUCTURES + 0x3000, 0);
        self.fake.put(STRUCTURES + 0x3008, STRUCTURES + 0x6000);
    }

    fn symbol(&mut self, at: u64, text: &str) -> u64 {
        self.fake.write(at + 4, &(text.len() as u16).to_le_bytes());
        self.fake.write(at + 6, text.as_bytes());
        at
    }

    fn class(&mut self, pointer: u64, name: &str, layout_helper: u32) {
        let at = CLASSES + pointer;
        self.fake.write(at + 8, &layout_helper.to_le_bytes());
        let symbol = self.symbol(at + 0x100, name);
        self.fake.put(at + 24, symbol);
    }

    fn classes(&mut self) {
        let array = 0xc000_0000 | 16 << 16;
        self.class(STRING, "java/lang/String", 24);
        self.class(BYTES, "[B", array);
        self.class(MIRROR, "java/lang/Class", 24 | 1);
        self.class(FILLER, "[Ljdk/internal/vm/FillerElement;", array | 2);
        self.class(CHUNK, "jdk/internal/vm/StackChunk", 32 | 1);
        // Its fields: size at 16, sp at 20, and one that is injected; each name is a word of the pool.
        let (stream, pool) = (CLASSES + CHUNK + 0x200, CLASSES + CHUNK + 0x280);
        let fields = [2, 1, 1, 9, 16, 0, 0, 2, 9, 20, 0, 0, 77, 9, 24, 0, 2];
        let coded: Vec<u8> = fields.iter().map(|number| number + 1).collect();
        self.fake.write(stream, &(coded.len() as u32).to_le_bytes());
        self.fake.write(stream + 4, &coded);
        let klass = CLASSES + CHUNK;
        self.fake.put(klass + 64, stream);
        self.fake.put(klass + 72, pool);
        let (size, sp) = (
            self.symbol(klass + 0x300, "size"),
            self.symbol(klass + 0x320, "sp"),
        );
        self.fake.put(pool + 16 + 8, size);
        self.fake.put(pool + 16 + 16, sp);
    }

    /// Adds a region; objects are its class and the word behind the header, one after the other.
    fn region(&mut self, top: u64, tag: u64) -> u64 {
        let number = {
            let resident = self.fake.resident();
            let memory = Memory::new(&self.fake, &resident);
            memory.u64(STRUCTURES + 40).expect("there")
        };
        let region = STRUCTURES + 0x7000 + 32 * number;
        let bottom = HEAP + GRAIN * number;
        for (offset, word) in [bottom, bottom + GRAIN, bottom + top, tag]
            .into_iter()
            .enumerate()
        {
            self.fake.put(region + 8 * offset as u64, word);
        }
        self.fake.put(STRUCTURES + 0x4000 + 8 * number, region);
        self.fake.put(STRUCTURES + 40, number + 1);
        self.fake.touch(bottom, bottom + GRAIN);
        bottom
    }

    fn object(&mut self, at: u64, class: u64, length: u64) {
        self.fake.put(at, 1);
        self.fake.put(at + 8, class | length << 32);
    }

    /// A thread that allocates here.
    fn thread(&mut self, start: u64, top: u64, end: u64) {
        let thread = STRUCTURES + 0x8000;
        for (offset, word) in [start, top, end].into_iter().enumerate() {
            self.fake.put(thread + 16 + 8 * offset as u64, word);
        }
        self.fake.put(STRUCTURES + 0x5000, thread);
        self.fake.write(STRUCTURES + 0x1004, &1_u32.to_le_bytes());
    }

    fn divided(&self) -> Result<(Division, Books), Refusal> {
        let resident = self.fake.resident();
        let memory = Memory::new(&self.fake, &resident);
        let mut into = DivisionBuilder::default();
        let books = divide_machine(
            &View::new(&memory, Files::default()),
            &self.exports,
            &mut into,
        )?;
        Ok((into.build().expect("no overlap"), books))
    }
}

/// One region: a string (24), 100 bytes (16 + 104), a class of 5 words (40), a chunk of 70 words with the
/// frames from word 60 (32 + 560 + 24 for 140 bits), and a filler of 20 ints (96).
fn machine_with_one_of_each() -> Machine {
    let mut machine = Machine::new();
    let bottom = machine.region(24 + 120 + 40 + 616 + 96, 2);
    machine.object(bottom, STRING, 0);
    machine.object(bottom + 24, BYTES, 100);
    machine.object(bottom + 144, MIRROR, 0);
    machine.fake.put(bottom + 144 + 16, 5);
    machine.object(bottom + 184, CHUNK, 0);
    machine.fake.put(bottom + 184 + 16, 70 | 60 << 32);
    machine.object(bottom + 800, FILLER, 20);
    machine
}

#[test]
fn a_region_is_divided_to_the_byte() {
    let (division, books) = machine_with_one_of_each().divided().expect("a sound heap");
    assert_eq!(
        division.leaves(HEAP..HEAP + GRAIN),
        [
            (Leaf::TaskStack, 80),
            (Leaf::TaskStackUnused, 616 - 80),
            (Leaf::HeapObjects, 184),
            (Leaf::HeapFree, GRAIN - 800),
        ]
    );
    assert_eq!((books["objects"], books["object_bytes"]), (3, 184));
    assert_eq!(
        (books["stack_chunks"], books["stack_chunk_bytes"]),
        (1, 616)
    );
    assert_eq!(books["stack_frame_bytes"], 80);
    assert_eq!(books["filler_bytes"], 96);
    assert_eq!(books["heap_used_bytes"], 896);
    assert_eq!(books["undivided_bytes"], 0);
}

#[test]
fn what_a_thread_has_taken_and_not_used_is_free() {
    let mut machine = Machine::new();
    // A string, 40 bytes of a buffer and the 16 behind its end, a string.
    let bottom = machine.region(24 + 56 + 24, 2);
    machine.object(bottom, STRING, 0);
    machine.object(bottom + 80, STRING, 0);
    machine.thread(bottom, bottom + 24, bottom + 64);
    let (division, books) = machine.divided().expect("a sound heap");
    assert_eq!(books["thread_buffer_bytes"], 56);
    assert_eq!(
        division.leaves(bottom..bottom + GRAIN),
        [(Leaf::HeapObjects, 48), (Leaf::HeapFree, GRAIN - 48)]
    );
}

#[test]
fn an_object_may_fill_several_regions() {
    let mut machine = Machine::new();
    let length = GRAIN + 100;
    let bottom = machine.region(GRAIN, 4);
    machine.object(bottom, BYTES, length - 16);
    // Its end, and a filler up to the top.
    machine.region(104 + 24, 5);
    machine.object(bottom + GRAIN + 104, FILLER, 2);
    let after = machine.region(24, 2);
    machine.object(after, STRING, 0);
    let (division, books) = machine.divided().expect("a sound heap");
    assert_eq!(books["object_bytes"], GRAIN + 104 + 24);
    assert_eq!(
        division.leaves(bottom..bottom + 3 * GRAIN),
        [
            (Leaf::HeapObjects, GRAIN + 104 + 24),
            (Leaf::HeapFree, 2 * GRAIN - 104 - 24),
        ]
    );
}

#[test]
fn a_heap_that_is_not_as_it_should_be_is_refused() {
    type Case = (&'static str, fn(&mut Machine));
    let cases: [Case; 9] = [
        ("there is no class at 0x100777", |it| {
            it.fake.put(HEAP + 8, 0x777)
        }),
        ("there is no class", |it| it.fake.put(HEAP + 8, 0)),
        ("cannot be", |it| it.object(HEAP + 24, BYTES, 0x7fff_ffff)),
        ("no possible length", |it| {
            it.object(HEAP + 24, BYTES, 0xffff_ffff)
        }),
        ("no possible length", |it| it.fake.put(HEAP + 160, 0)),
        ("word 71 in use", |it| {
            it.fake.put(HEAP + 200, 70 | 71 << 32)
        }),
        ("no space of the heap", |it| {
            it.fake.put(STRUCTURES + 0x7000 + 16, HEAP + 2 * GRAIN)
        }),
        ("collection was under way", |it| it.fake.put(STRUCTURES, 1)),
        ("0xffffffff regions", |it| {
            it.fake.put(STRUCTURES + 40, 0xffff_ffff)
        }),
    ];
    for (says, break_it) in cases {
        let mut machine = machine_with_one_of_each();
        break_it(&mut machine);
        let refusal = machine.divided().map(|(_, books)| books);
        let refusal = refusal.expect_err(says).0;
        let says = says.replace("0xffffffff", "4294967295");
        assert!(refusal.contains(&says), "{says}: {refusal}");
    }
}

#[test]
fn tables_that_do_not_end_and_unknown_versions_are_refused() {
    let mut machine = machine_with_one_of_each();
    machine.exports.remove("gHotSpotVMTypes");
    let refusal = machine.divided().expect_err("a table is missing");
    assert!(refusal.0.contains("gHotSpotVMTypes"), "{refusal}");

    let mut machine = machine_with_one_of_each();
    let stride = machine.exports["gHotSpotVMTypeEntryArrayStride"];
    machine.fake.put(stride, 0);
    let refusal = machine.divided().expect_err("entries of no length");
    assert!(refusal.0.contains("entries of 0 bytes"), "{refusal}");

    let mut machine = machine_with_one_of_each();
    machine.variable("Abstract_VM_Version", "_vm_major_version", 8);
    let refusal = machine.divided().expect_err("an old version");
    assert!(refusal.0.contains("HotSpot 8"), "{refusal}");
}

/// A heap of code of two pages with segments of 128 bytes; blocks are their length in segments and whether
/// they are used.
fn machine_with_code(blocks: &[(u32, u8)]) -> Machine {
    let mut machine = machine_with_one_of_each();
    let heap = STRUCTURES + 0x9000;
    let map = STRUCTURES + 0xa000;
    machine.fake.put(STRUCTURES + 0x3000, 1);
    machine.fake.put(STRUCTURES + 0x6000, heap);
    for (offset, word) in [
        (0, CODE),
        (8, CODE + 2 * PAGE),
        (32, map),
        (40, map + 64),
        (64, 7),
    ] {
        machine.fake.put(heap + offset, word);
    }
    machine.fake.write(map, &[0xff; 64]);
    machine.fake.touch(CODE, CODE + 2 * PAGE);
    let mut segment = 0;
    for &(length, used) in blocks {
        let at = CODE + 128 * u64::from(segment);
        machine.fake.write(at, &length.to_le_bytes());
        machine.fake.write(at + 4, &[used]);
        machine.fake.write(map + u64::from(segment), &[0]);
        segment += length;
    }
    machine
}

#[test]
fn blocks_of_code_are_used_or_free() {
    let machine = machine_with_code(&[(4, 1), (6, 0), (10, 1)]);
    let (division, books) = machine.divided().expect("sound code");
    assert_eq!(books["code_used_bytes"], 14 * 128);
    assert_eq!(books["code_free_bytes"], 2 * PAGE - 14 * 128);
    assert_eq!(
        division.leaves(CODE..CODE + 2 * PAGE),
        [(Leaf::Jit, 14 * 128), (Leaf::HeapFree, 2 * PAGE - 14 * 128)]
    );
    let refusal = machine_with_code(&[(4, 1), (65, 1)]).divided();
    let refusal = refusal.map(|(_, books)| books).expect_err("too long");
    assert!(refusal.0.contains("0x7f2000000200"), "{refusal}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a few words of any part are, there is an answer, and no byte is given away twice.
    #[test]
    fn broken_machines_are_refused_or_read(
        changes in prop::collection::vec(
            (0_usize..6, 0_u64..0x400, prop_oneof![any::<u64>(), 0_u64..0x2000, Just(u64::MAX)]),
            1..6,
        )
    ) {
        let mut machine = machine_with_code(&[(4, 1), (6, 0), (10, 1)]);
        machine.thread(HEAP + 896, HEAP + 896, HEAP + 896);
        let parts = [LIBRARY, GLOBALS, STRUCTURES, CLASSES + CHUNK, HEAP, CODE];
        for (part, word, value) in changes {
            let pages = if parts[part] == STRUCTURES { 11 } else { 1 };
            let at = parts[part] + (8 * word) % (pages * PAGE);
            machine.fake.put(at, value);
        }
        // Building fails on an overlap, which `divided` does not forgive.
        let _ = machine.divided();
    }

    /// A heap of any bytes.
    #[test]
    fn any_heap_is_refused_or_read(words in prop::collection::vec(any::<u64>(), 112)) {
        let mut machine = machine_with_one_of_each();
        for (index, word) in words.into_iter().enumerate() {
            machine.fake.put(HEAP + 8 * index as u64, word);
        }
        let _ = machine.divided();
    }
}
