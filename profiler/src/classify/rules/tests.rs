//! The calls by which each runtime makes its memory, as they were seen in traces of it, and the rule
//! that must fire. Sizes and addresses are those of the traces.

use std::collections::HashSet;

use super::*;
use crate::{
    classify::evidence::ProcessFacts,
    events::Call,
    regions::{AddressSpace, before_attach::address_space, compare, script::*},
    residency::{
        Vma,
        standing::{Mapping, Standing, VmFlags},
    },
};

const NORESERVE: u32 = ANON | libc::MAP_NORESERVE as u32;
const RWX: u32 = RW | RX;

/// `mmap` of a range at no address of the program's choice.
fn map(start: u64, length: u64, protection: u32, flags: u32) -> Call {
    mmap(start..start + length, protection, flags)
}

/// `mmap` with the address that it got as its hint.
fn map_at(start: u64, length: u64, protection: u32, flags: u32) -> Call {
    let mut call = map(start, length, protection, flags);
    if let Call::Mmap { hint, .. } = &mut call {
        *hint = start;
    }
    call
}

fn commit(start: u64, length: u64, protection: u32) -> Call {
    map_at(start, length, protection, ANON | FIXED)
}

fn open(start: u64, length: u64, protection: u32) -> Call {
    mprotect(start..start + length, protection)
}

fn shared(mut vma: Vma) -> Vma {
    vma.shared = true;
    vma
}

/// What is known when a process of this runtime has made these calls: the VMAs are what the calls
/// give, where `named` has no other.
struct Scene {
    space: AddressSpace,
    vmas: Vec<Vma>,
    facts: ProcessFacts,
}

impl Scene {
    fn new(runtime: Runtime, calls: &[Call], named: &[Vma]) -> Scene {
        let mut space = AddressSpace::after_exec(1);
        for event in in_order(calls.iter().cloned()) {
            space.apply(&event);
        }
        let mut vmas = named.to_vec();
        for (range, piece) in space.pieces() {
            let overlaps = |vma: &Vma| vma.start < range.end && range.start < vma.end;
            if !named.iter().any(overlaps) {
                vmas.push(vma(range, piece.protection.into(), ""));
            }
        }
        vmas.sort_by_key(|vma| vma.start);
        compare(&mut space, &vmas);
        let facts = ProcessFacts::gather(runtime, &space, &vmas);
        Scene { space, vmas, facts }
    }

    fn rule(&self, address: u64, stack: Option<StackUse>) -> &'static Rule {
        let inside = |vma: &&Vma| (vma.start..vma.end).contains(&address);
        let piece = self.space.piece_at(address).map(|(_, piece)| piece);
        classify(&Evidence {
            facts: &self.facts,
            vma: self.vmas.iter().find(inside).expect("mapped"),
            piece,
            origin: piece.map(|piece| self.space.origin(piece.origin)),
            ground: piece
                .and_then(|piece| piece.reserved_by)
                .map(|id| self.space.origin(id)),
            given_name: piece
                .and_then(|piece| piece.name)
                .map(|id| self.space.name(id)),
            stack,
        })
    }
}

/// Where mmap places things that have no place of their own.
const M: u64 = 0x7f12_3400_0000;
/// Other places, 16 GiB apart.
const M2: u64 = M + 16 * GIB;
const M3: u64 = M + 32 * GIB;

struct Row {
    rule: &'static str,
    runtime: Runtime,
    calls: Vec<Call>,
    named: Vec<Vma>,
    at: u64,
    stack: Option<StackUse>,
}

fn row(rule: &'static str, runtime: Runtime, at: u64, calls: &[Call]) -> Row {
    Row {
        rule,
        runtime,
        calls: calls.to_vec(),
        named: Vec::new(),
        at,
        stack: None,
    }
}

impl Row {
    fn stack(self, stack: StackUse) -> Row {
        Row {
            stack: Some(stack),
            ..self
        }
    }

    fn with(self, named: &[Vma]) -> Row {
        Row {
            named: named.to_vec(),
            ..self
        }
    }
}

/// A row about a VMA that no call explains.
fn only(rule: &'static str, runtime: Runtime, named: Vma) -> Row {
    row(rule, runtime, named.start, &[]).with(&[named])
}

fn stacks() -> Vec<Row> {
    use Runtime::*;
    let glibc = [
        map(M, 8 * MIB + P, NONE, ANON | STACK),
        open(M + P, 8 * MIB, RW),
    ];
    let hotspot = [map(M, MIB, RW, ANON | STACK)];
    let rust_alternate = [map(M, 3 * P, RW, ANON | STACK), open(M, P, NONE)];
    let musl = [map(M, 132 * KIB, NONE, ANON), open(M + P, 128 * KIB, RW)];
    let named = |text| [map(M, 256 * KIB, RW, ANON), name(M..M + 256 * KIB, text)];
    vec![
        only("stack.main", Native, vma(M..M + 33 * P, RW, "[stack]")),
        row("stack.thread", Native, M + P, &glibc).stack(StackUse::Live),
        row("stack.thread", Jvm, M, &hotspot).stack(StackUse::Live),
        row("stack.thread", Native, M + P, &musl).stack(StackUse::Live),
        row("stack.alternate", Native, M + P, &rust_alternate).stack(StackUse::Alternate),
        row("stack.cached", Native, M + P, &glibc),
        row("stack.cached", Native, M + P, &glibc).stack(StackUse::Cached),
        row("stack.cached", Native, M + P, &musl).stack(StackUse::Cached),
        row("named.stack", Native, M, &named(" glibc: unused stack")),
        row("named.stack", Native, M, &named(" glibc: pthread stack: 7")),
    ]
}

fn go() -> Vec<Row> {
    use Runtime::*;
    let arena = 0x1fb1_ec00_0000;
    let heap = |runtime, rule| {
        row(
            rule,
            runtime,
            arena + MIB,
            &[
                map_at(arena, 64 * MIB, NONE, ANON),
                commit(arena, 4 * MIB, RW),
            ],
        )
    };
    let named = |text| [map(M, 256 * KIB, RW, ANON), name(M..M + 256 * KIB, text)];
    let summary = [map(M, 512 * MIB, NONE, ANON), commit(M + 7 * P, P, RW)];
    let index = [
        map(M, 32 * MIB, RW, ANON),
        madvise(M..M + 32 * MIB, libc::MADV_NOHUGEPAGE),
    ];
    vec![
        heap(Go, "go.arena"),
        heap(Native, "unknown"),
        row("go.summary", Go, M + 7 * P, &summary),
        row("go.index", Go, M, &index),
        row("go.index", Go, M, &[map(M, 64 * KIB, RW, ANON)]),
        row("go.internal", Go, M, &[map(M, 256 * KIB, RW, ANON)]),
        row("go.internal", Go, M, &[map(M, 1_439_992, RW, ANON)]),
        row("named.go.metadata", Go, M, &named("Go: gc bits")),
        row("named.go.metadata", Go, M, &named("Go: page summary")),
        row("named.go.metadata", Go, M, &named("Go: scavenge index")),
        row("named.go.heap", Go, M, &named("Go: heap")),
        row("named.go.other", Go, M, &named("Go: immortal metadata")),
        only("named.go.heap", Go, vma(M..M + P, RW, "[anon:Go: heap]")),
    ]
}

/// JDK 17 and 25 with G1 on a machine of 24 GB.
fn jvm() -> Vec<Row> {
    let heap = 0x6_8740_0000;
    let heap_bytes = 6_320_816_128;
    let class_space = 0x7_ff00_0000_u64;
    let calls = [
        map_at(heap, heap_bytes, NONE, NORESERVE),
        commit(heap, 398_458_880, RW),
        map(M, heap_bytes / 512, NONE, NORESERVE),
        commit(M, P * 190, RW),
        map(M + GIB, heap_bytes / 64, NONE, NORESERVE),
        commit(M + GIB, P * 1520, RW),
        map(M + 2 * GIB, 240 * MIB, NONE, NORESERVE),
        commit(M + 2 * GIB, 2_555_904, RWX),
        map(M + 3 * GIB, 64 * MIB, NONE, NORESERVE),
        commit(M + 3 * GIB, 64 * KIB, RW),
        map_at(class_space, 1_090_519_040, NONE, NORESERVE),
        commit(class_space + 16 * MIB, 64 * KIB, RW),
        map_at(class_space, 13 * MIB, RW, FIXED | libc::MAP_PRIVATE as u32),
        map(M + 4 * GIB, 32 * MIB, NONE, NORESERVE),
        commit(M + 4 * GIB, P, RW),
        map(M2, 128 * MIB, NONE, NORESERVE),
        munmap(M2 + 64 * MIB..M2 + 128 * MIB),
        open(M2, 135_168, RW),
        brk(0x5555_0000_0000),
        brk(0x5555_0002_1000),
        map(M3, 900 * KIB, RW, ANON),
        map(M3 + GIB, 12 * KIB, RW, ANON),
    ];
    let archive = "/opt/jdk/lib/server/classes.jsa";
    let archive = vma(class_space..class_space + 13 * MIB, RW, archive);
    let at = |rule, at| row(rule, Runtime::Jvm, at, &calls).with(std::slice::from_ref(&archive));
    vec![
        at("jvm.heap", heap + 5 * MIB),
        at("jvm.gc_tables", M),
        at("jvm.gc_tables", M + GIB),
        at("jvm.code", M + 2 * GIB),
        at("jvm.metaspace", M + 3 * GIB),
        at("jvm.metaspace", class_space + 16 * MIB),
        at("jvm.cds", class_space + MIB),
        at("jvm.gc_other", M + 4 * GIB),
        at("malloc.arena.vm", M2 + P),
        at("malloc.brk.vm", 0x5555_0000_0000),
        at("malloc.large.vm", M3),
        at("libc.small", M3 + GIB),
        only(
            "jvm.heap.memfd",
            Runtime::Jvm,
            shared(vma(M..M + GIB, RW, "/memfd:java_heap (deleted)")),
        ),
    ]
}

/// Node 20: 512 KiB less a page are mapped for each page of V8's heap and cut to alignment.
fn node() -> Vec<Row> {
    let hint = 0x2a3f_1c5d_3000_u64;
    let page = hint.next_multiple_of(256 * KIB);
    let page_with = |rule, protection| {
        let calls = [
            map_at(hint, 520_192, NONE, NORESERVE),
            madvise(hint..hint + 520_192, libc::MADV_DONTFORK),
            munmap(hint..page),
            munmap(page + 256 * KIB..hint + 520_192),
            open(page, 256 * KIB, protection),
        ];
        row(rule, Runtime::Node, page, &calls)
    };
    let of_node_24 = [
        map(M, 256 * KIB, RW, ANON),
        madvise(M..M + 256 * KIB, libc::MADV_DONTFORK),
    ];
    let native_heap = [brk(0x3000_0000), brk(0x3002_1000)];
    vec![
        page_with("v8.heap", RW),
        page_with("v8.code", RX),
        page_with("v8.read_only", R),
        row("v8.heap", Runtime::Node, M, &of_node_24),
        row("malloc.brk", Runtime::Node, 0x3000_0000, &native_heap),
    ]
}

/// .NET Core 3.1
fn dotnet() -> Vec<Row> {
    let near_coreclr = 0x7f12_0000_0000_u64;
    let calls = [
        map_at(near_coreclr, 2_042_560_512, NONE, ANON),
        open(near_coreclr, 64 * KIB, RWX),
        open(near_coreclr + MIB, 64 * KIB, RW),
        map(M2, 402_661_376, NONE, ANON),
        open(M2, 256 * KIB, RW),
        map(M3, 3_641_344, NONE, ANON),
        open(M3, 128 * KIB, RW),
    ];
    let at = |rule, at| row(rule, Runtime::Dotnet, at, &calls);
    let mapped_twice = shared(vma(M..M + MIB, RX, "/memfd:doublemapper (deleted)"));
    vec![
        at("dotnet.gc_heap", M2),
        at("dotnet.code", near_coreclr),
        at("dotnet.loader", near_coreclr + MIB),
        at("dotnet.gc_tables", M3),
        only("jit.memfd", Runtime::Dotnet, mapped_twice),
    ]
}

fn cpython() -> Vec<Row> {
    let plain = |rule, runtime, length| row(rule, runtime, M, &[map(M, length, RW, ANON)]);
    // Of 8 KiB each, and one more than there can be in 1 MiB.
    let many: Vec<Call> = (0..129)
        .map(|index| map(M + index * 4 * P, 2 * P, RW, ANON))
        .collect();
    vec![
        plain("cpython.arena", Runtime::Cpython, MIB),
        plain("cpython.arena", Runtime::Cpython, 256 * KIB),
        plain("cpython.frames", Runtime::Cpython, 16_384),
        plain("malloc.large", Runtime::Cpython, 266_240),
        plain("malloc.large", Runtime::Native, MIB),
        plain("libc.small", Runtime::Native, 16_384),
        row("unknown", Runtime::Native, M, &many),
        row("libc.small", Runtime::Native, M, &many[..128]),
    ]
}

/// OTP 25
fn beam() -> Vec<Row> {
    use Runtime::Beam;
    let literals = [map(M, GIB, NONE, NORESERVE), commit(M, 64 * KIB, RW)];
    let aligned_at = M + 20 * P;
    let cut = aligned_at.next_multiple_of(256 * KIB);
    let aligning = [
        map(aligned_at, 8 * MIB + 256 * KIB - P, RW, ANON),
        munmap(aligned_at..cut),
        munmap(cut + 8 * MIB..aligned_at + 8 * MIB + 256 * KIB - P),
    ];
    let jit = shared(vma(M..M + 8 * MIB, RX, "/memfd:vmem (deleted)"));
    vec![
        row("beam.literals", Beam, M, &literals),
        row("beam.carrier", Beam, M, &[map(M, 32 * MIB, RW, ANON)]),
        row("beam.carrier", Beam, cut, &aligning),
        row("malloc.large.vm", Beam, M, &[map(M, 300 * KIB, RW, ANON)]),
        only("jit.memfd", Beam, jit),
    ]
}

fn native() -> Vec<Row> {
    use Runtime::Native;
    let arena = 0x7f5c_7000_0000;
    let found_by_trimming = [
        map(arena - 20 * MIB, 128 * MIB, NONE, NORESERVE),
        munmap(arena - 20 * MIB..arena),
        munmap(arena + 64 * MIB..arena + 108 * MIB),
        open(arena, 135_168, RW),
        open(arena + 135_168, P, RW),
    ];
    let beside_another = [
        map_at(arena, 64 * MIB, NONE, NORESERVE),
        open(arena, 135_168, RW),
    ];
    let heap = [brk(0x5555_0000_0000), brk(0x5555_0002_1000)];
    let resized = [
        map(M, 200 * KIB, RW, ANON),
        mremap(M..M + 200 * KIB, M2..M2 + MIB, libc::MREMAP_MAYMOVE),
    ];
    let library = "/usr/lib/libc.so.6";
    let bss = [
        map(M, 20 * P, R, libc::MAP_PRIVATE as u32),
        commit(M + 15 * P, 5 * P, RW),
    ];
    let program = 0x5555_5555_4000;
    let image = [
        vma(program..program + 2 * P, RX, "/usr/bin/program"),
        vma(program + 2 * P..program + 3 * P, RW, "/usr/bin/program"),
        vma(program + 3 * P..program + 9 * P, RW, ""),
    ];
    let locale = vma(M..M + 99 * P, R, "/usr/lib/locale/locale-archive");
    vec![
        row("malloc.arena", Native, arena, &found_by_trimming),
        row("malloc.arena", Native, arena + 135_168, &found_by_trimming),
        row("malloc.arena", Native, arena, &beside_another),
        row("malloc.brk", Native, 0x5555_0000_0000, &heap),
        row("malloc.large", Native, M2 + MIB - P, &resized),
        row("libc.small", Native, M, &[map(M, 3 * P, RW, ANON)]),
        row("image", Native, program, &[]).with(&image),
        row("image", Native, program + 2 * P, &[]).with(&image),
        row("image.bss", Native, program + 3 * P, &[]).with(&image),
        row("image.bss", Native, M + 15 * P, &bss).with(&[vma(M..M + 15 * P, RX, library)]),
        only("image", Native, vma(M..M + 2 * P, RX, "[vdso]")),
        only(
            "image",
            Native,
            vma(M..M + 4 * P, libc::PROT_READ as u32, "[vvar]"),
        ),
        only("file", Native, locale),
        only(
            "shared",
            Native,
            shared(vma(M..M + P, RW, "/dev/zero (deleted)")),
        ),
        only(
            "shared",
            Native,
            shared(vma(M..M + P, RW, "/memfd:mine (deleted)")),
        ),
        only("shared", Native, shared(vma(M..M + P, RW, "/dev/shm/mine"))),
        only(
            "shared",
            Native,
            shared(vma(M..M + P, RW, "/SYSV00000000 (deleted)")),
        ),
        row("unknown", Native, M, &[map_at(M, MIB, RW, ANON)]),
    ]
}

fn all_rows() -> Vec<Row> {
    [
        stacks(),
        go(),
        jvm(),
        node(),
        dotnet(),
        cpython(),
        beam(),
        native(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn each_signature_fires_its_rule() {
    for row in all_rows() {
        let scene = Scene::new(row.runtime, &row.calls, &row.named);
        let fired = scene.rule(row.at, row.stack).id;
        let about = (row.runtime, &row.calls, &row.named, row.at);
        assert_eq!(fired, row.rule, "{about:x?}");
    }
}

#[test]
fn each_rule_has_a_signature() {
    // What was there before the profiler attached comes from no call: see below.
    let other = ["cpython.arenas"];
    let tested: HashSet<&str> = all_rows().iter().map(|row| row.rule).chain(other).collect();
    let all: HashSet<&str> = RULES.iter().map(|rule| rule.id).collect();
    assert_eq!(
        all.difference(&tested).count(),
        0,
        "{:?}",
        all.difference(&tested)
    );
    assert_eq!(all.len(), RULES.len(), "ids are unique");
}

#[test]
fn merged_arenas_are_believed_of_what_was_there_before_alone() {
    let standing = Standing {
        tgid: TGID,
        mappings: vec![Mapping {
            vma: vma(M..M + 7 * MIB + P, RW, ""),
            flags: VmFlags::ACCOUNTED,
        }],
        ..Standing::default()
    };
    let (space, _) = address_space(&standing);
    let vmas: Vec<Vma> = standing.mappings.into_iter().map(|it| it.vma).collect();
    let facts = ProcessFacts::gather(Runtime::Cpython, &space, &vmas);
    let before = Scene { space, vmas, facts };
    assert_eq!(before.rule(M, None).id, "cpython.arenas");
    let calls = [map(M, 7 * MIB + P, RW, ANON)];
    let seen = Scene::new(Runtime::Cpython, &calls, &[]);
    assert_eq!(seen.rule(M, None).id, "malloc.large");
}

#[test]
fn rules_say_what_they_mean_and_where_it_was_seen() {
    for rule in RULES {
        assert!(
            !rule.reason.is_empty() && !rule.seen_on.is_empty(),
            "{}",
            rule.id
        );
        let charset =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '_';
        assert!(rule.id.chars().all(charset), "{}", rule.id);
    }
}

#[test]
fn the_last_rule_matches_anything_and_is_the_only_one_without_a_class() {
    let scene = Scene::new(Runtime::Native, &[], &[vma(M..M + P, RW, "")]);
    // Adopted, and no call or exec explains it.
    assert_eq!(scene.rule(M, None).id, "unknown");
    let unknown = RULES.iter().filter(|rule| rule.leaf == Leaf::Unknown);
    assert_eq!(unknown.map(|rule| rule.id).collect::<Vec<_>>(), ["unknown"]);
    assert_eq!(RULES.last().expect("rules").id, "unknown");
}
