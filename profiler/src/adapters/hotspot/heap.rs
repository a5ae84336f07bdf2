//! The Java heap: where its objects are.
//!
//! Every collector here keeps objects without a gap from the bottom of a space to its top, and nothing from
//! its top to its end. G1 has a space a region of 1 to 32 MiB (hotspot/share/gc/g1/g1HeapRegion.hpp), Serial
//! and Parallel have one each for eden, the survivors and the old generation. What a thread has taken for
//! its next objects (TLAB, hotspot/share/gc/shared/threadLocalAllocBuffer.hpp) is the one gap below a top:
//!
//! ```text
//! bottom                          top of TLAB     its end               top of the space    end
//!   | object | object | object ... | nothing yet   | nothing (reserve) | object | object ... | nothing |
//! ```

use std::{ops::Range, sync::Arc};

use super::{
    klass::{Classes, Headers, WORD},
    tables::{Flags, Tables},
};
use crate::{
    adapters::{Refusal, memory::Words, view::View, workers},
    classify::{
        Leaf,
        division::{DivisionBuilder, Runs},
    },
};

/// What a space holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Objects that end in it.
    Plain,
    /// The start of an object of half a region or more.
    HumongousStart,
    /// The rest of such an object, and then what fills up the last region.
    HumongousRest,
}

/// Part of the heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Space {
    bottom: u64,
    top: u64,
    end: u64,
    kind: Kind,
}

/// Sums, in bytes where nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Spaces, regions of G1.
    pub spaces: u64,
    /// Spaces without any object.
    pub empty_spaces: u64,
    /// Bottom to top of all spaces.
    pub used: u64,
    /// Number of objects, but for fillers and stacks.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Collections that have stopped the program so far.
    pub collections: u64,
    /// Number of stack chunks.
    pub chunks: u64,
    /// Their bytes as a whole.
    pub chunk_bytes: u64,
    /// Bytes of frames in them.
    pub frame_bytes: u64,
    /// Objects that only fill gaps.
    pub filler_bytes: u64,
    /// What threads have taken and not used.
    pub tlab_bytes: u64,
    /// Bottom to top of spaces that could not be read.
    pub undivided_bytes: u64,
}

/// Most regions that are believed: G1 aims at 2048, and has more only beyond 64 GiB.
const MOST_REGIONS: u64 = 1 << 20;
/// Most threads that are believed: the largest number that the kernel's ids allow.
const MOST_THREADS: u32 = 1 << 22;

/// Divides the heap.
pub fn divide(
    view: &View,
    flags: &Flags,
    headers: &Headers,
    into: &mut DivisionBuilder,
) -> Result<Tally, Refusal> {
    let tables = headers.tables();
    let heap = view.u64(tables.global("Universe", &["_collectedHeap"])?)?;
    let field = |name: &[&str]| tables.offset(&["CollectedHeap"], name);
    let busy = field(&["_is_stw_gc_active", "_is_gc_active"])?;
    if view.u8(heap.wrapping_add(busy))? != 0 {
        return Err(Refusal("a collection was under way".into()));
    }
    let collections = view.u32(heap.wrapping_add(field(&["_total_collections"])?))?;
    let reserved = heap.wrapping_add(field(&["_reserved"])?);
    let start = view.u64(at(reserved, tables.offset(&["MemRegion"], &["_start"])?))?;
    let words = view.u64(at(
        reserved,
        tables.offset(&["MemRegion"], &["_word_size"])?,
    ))?;
    let bytes = words.checked_mul(WORD);
    let end = bytes.and_then(|bytes| start.checked_add(bytes));
    let reserved = start..end.ok_or_else(|| Refusal(format!("a heap of {words} words")))?;

    let mut spaces = if flags.is_set(view, "UseG1GC")? {
        regions_of_g1(view, tables, heap)?
    } else if flags.is_set(view, "UseSerialGC")? {
        spaces_of_serial(view, tables, heap)?
    } else if flags.is_set(view, "UseParallelGC")? && !flags.is_set(view, "UseNUMA")? {
        spaces_of_parallel(view, tables)?
    } else {
        return Err(Refusal(
            "the collector is none of G1, Serial and Parallel (without NUMA)".into(),
        ));
    };
    spaces.sort_unstable_by_key(|space| space.bottom);
    check(&spaces, &reserved)?;
    let holes = holes(view, tables, headers)?;

    let rows = rows(&spaces);
    let (shared, files) = (view.memory().shared(), view.files());
    let divided = workers::share(&rows, |queue| {
        let memory = shared.memory();
        let view = View::new(&memory, Arc::clone(&files));
        let classes = Classes::new(&view, headers);
        let walk = Walk {
            view: &view,
            classes: &classes,
            holes: &holes,
        };
        queue.map(|(index, row)| (index, walk.row(row))).collect()
    });

    let mut tally = Tally {
        collections: collections.into(),
        ..Tally::default()
    };
    let mut first_refusal = None;
    for row in divided {
        tally.add(&row.tally);
        into.append_builder(row.runs.into_builder());
        first_refusal = first_refusal.or(row.refusal);
    }
    match first_refusal {
        Some(refusal) if tally.undivided_bytes > tally.used / MOST_UNDIVIDED => Err(refusal),
        _ => Ok(tally),
    }
}

/// Spaces that can be read without any other: each by itself, but what an object of several regions fills
/// together.
fn rows(spaces: &[Space]) -> Vec<&[Space]> {
    spaces
        .chunk_by(|_, next| next.kind == Kind::HumongousRest)
        .collect()
}

/// What has been found in a row of spaces.
#[derive(Default)]
struct Row {
    runs: Runs,
    tally: Tally,
    /// Why the first space that stays undivided does.
    refusal: Option<Refusal>,
}

/// A space may be unreadable for good reasons: a thread was stopped between taking memory and writing a
/// header, or classes of dead objects have been unloaded. It stays undivided. More than 1/20 is none.
const MOST_UNDIVIDED: u64 = 20;

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.spaces += other.spaces;
        self.empty_spaces += other.empty_spaces;
        self.used += other.used;
        self.undivided_bytes += other.undivided_bytes;
        self.objects += other.objects;
        self.object_bytes += other.object_bytes;
        self.chunks += other.chunks;
        self.chunk_bytes += other.chunk_bytes;
        self.frame_bytes += other.frame_bytes;
        self.filler_bytes += other.filler_bytes;
        self.tlab_bytes += other.tlab_bytes;
    }
}

fn at(address: u64, offset: u64) -> u64 {
    address.wrapping_add(offset)
}

/// Spaces, in address order, overlap nothing and lie in the heap.
fn check(spaces: &[Space], reserved: &Range<u64>) -> Result<(), Refusal> {
    let mut before = reserved.start;
    for space in spaces {
        let ordered = space.bottom <= space.top && space.top <= space.end;
        let aligned = space.bottom.is_multiple_of(WORD) && space.top.is_multiple_of(WORD);
        if !ordered || !aligned || space.bottom < before || space.end > reserved.end {
            return Err(Refusal(format!(
                "no space of the heap is {:#x}..{:#x}..{:#x}",
                space.bottom, space.top, space.end
            )));
        }
        before = space.end;
    }
    Ok(())
}

fn regions_of_g1(view: &View, tables: &Tables, heap: u64) -> Result<Vec<Space>, Refusal> {
    // The class was called HeapRegion before JDK 23.
    const REGION: [&str; 2] = ["G1HeapRegion", "HeapRegion"];
    const MANAGER: [&str; 2] = ["G1HeapRegionManager", "HeapRegionManager"];
    const TYPE: [&str; 2] = ["G1HeapRegionType", "HeapRegionType"];
    let manager = at(heap, tables.offset(&["G1CollectedHeap"], &["_hrm"])?);
    let table = at(manager, tables.offset(&MANAGER, &["_regions"])?);
    let field = |name| tables.offset(&["G1HeapRegionTable"], &[name]);
    let base = view.u64(at(table, field("_base")?))?;
    let length = view.u64(at(table, field("_length")?))?;
    if length > MOST_REGIONS {
        return Err(Refusal(format!("G1 cannot have {length} regions")));
    }
    let grain = view.u64(
        tables
            .global(REGION[0], &["GrainBytes"])
            .or_else(|_| tables.global(REGION[1], &["GrainBytes"]))?,
    )?;
    let bottom = tables.offset(&REGION, &["_bottom"])?;
    let top = tables.offset(&REGION, &["_top"])?;
    let end = tables.offset(&REGION, &["_end"])?;
    let tag = at(
        tables.offset(&REGION, &["_type"])?,
        tables.offset(&TYPE, &["_tag"])?,
    );
    let tag_of = |name: &str| {
        let names = TYPE.map(|owner| format!("{owner}::{name}"));
        tables.constant(&[names[0].as_str(), names[1].as_str()])
    };
    let (starts, continues) = (
        tag_of("StartsHumongousTag")?,
        tag_of("ContinuesHumongousTag")?,
    );
    let mut spaces = Vec::new();
    for index in 0..length {
        let region = view.u64(at(base, index * WORD))?;
        // Memory of the heap that never was committed has no region.
        if region == 0 {
            continue;
        }
        let tag = i64::from(view.u32(at(region, tag))?);
        let space = Space {
            bottom: view.u64(at(region, bottom))?,
            top: view.u64(at(region, top))?,
            end: view.u64(at(region, end))?,
            kind: match tag {
                _ if tag == starts => Kind::HumongousStart,
                _ if tag == continues => Kind::HumongousRest,
                _ => Kind::Plain,
            },
        };
        if space.end.checked_sub(space.bottom) != Some(grain) {
            return Err(Refusal(format!(
                "the region of G1 at {:#x} is not {grain} bytes long",
                space.bottom
            )));
        }
        spaces.push(space);
    }
    Ok(spaces)
}

fn spaces_of_serial(view: &View, tables: &Tables, heap: u64) -> Result<Vec<Space>, Refusal> {
    // GenCollectedHeap before JDK 22, when `ContiguousSpace` had its bounds from `Space`.
    let generation = |name| {
        let offset = tables.offset(&["SerialHeap", "GenCollectedHeap"], &[name])?;
        Ok::<u64, Refusal>(view.u64(at(heap, offset))?)
    };
    let (young, old) = (generation("_young_gen")?, generation("_old_gen")?);
    let of = |generation: u64, owner: &str, name: &str| {
        let offset = tables.offset(&[owner], &[name])?;
        let space = view.u64(at(generation, offset))?;
        space_at(view, tables, space, &["ContiguousSpace", "Space"])
    };
    Ok(vec![
        of(young, "DefNewGeneration", "_eden_space")?,
        of(young, "DefNewGeneration", "_from_space")?,
        of(young, "DefNewGeneration", "_to_space")?,
        of(old, "TenuredGeneration", "_the_space")?,
    ])
}

fn spaces_of_parallel(view: &View, tables: &Tables) -> Result<Vec<Space>, Refusal> {
    let generation =
        |name| Ok::<u64, Refusal>(view.u64(tables.global("ParallelScavengeHeap", &[name])?)?);
    let (young, old) = (generation("_young_gen")?, generation("_old_gen")?);
    let of = |generation: u64, owner: &str, name: &str| {
        let offset = tables.offset(&[owner], &[name])?;
        let space = view.u64(at(generation, offset))?;
        space_at(view, tables, space, &["MutableSpace"])
    };
    Ok(vec![
        of(young, "PSYoungGen", "_eden_space")?,
        of(young, "PSYoungGen", "_from_space")?,
        of(young, "PSYoungGen", "_to_space")?,
        of(old, "PSOldGen", "_object_space")?,
    ])
}

fn space_at(view: &View, tables: &Tables, space: u64, owners: &[&str]) -> Result<Space, Refusal> {
    let word = |name| Ok::<u64, Refusal>(view.u64(at(space, tables.offset(owners, &[name])?))?);
    Ok(Space {
        bottom: word("_bottom")?,
        top: word("_top")?,
        end: word("_end")?,
        kind: Kind::Plain,
    })
}

/// No `ThreadLocalAllocBuffer` is as long, in bytes (threadLocalAllocBuffer.hpp: some 20 words in JDK 25).
const LONGEST_BUFFER: u64 = 512;

/// What each thread has taken for objects and not used, in address order.
fn holes(view: &View, tables: &Tables, headers: &Headers) -> Result<Vec<Range<u64>>, Refusal> {
    let list = view.u64(tables.global("ThreadsSMRSupport", &["_java_thread_list"])?)?;
    let field = |name| tables.offset(&["ThreadsList"], &[name]);
    let length = view.u32(at(list, field("_length")?))?;
    if length > MOST_THREADS {
        return Err(Refusal(format!("{length} Java threads")));
    }
    let threads = view.u64(at(list, field("_threads")?))?;
    let tlab = tables.offset(&["Thread"], &["_tlab"])?;
    let field = |name| tables.offset(&["ThreadLocalAllocBuffer"], &[name]);
    let (start, top, end) = (field("_start")?, field("_top")?, field("_end")?);
    // ThreadLocalAllocBuffer::alignment_reserve: room for the smallest filler, which is an empty array, or
    // for what prefetching may touch.
    const SMALLEST_FILLER: u64 = 2;
    let word = |owner, name| {
        let global = tables.global(owner, &[name]);
        global.map(|at| view.u32(at).map(u64::from))
    };
    let filler = word("CollectedHeap", "_lab_alignment_reserve").unwrap_or(Ok(SMALLEST_FILLER))?;
    let prefetch =
        word("ThreadLocalAllocBuffer", "_reserve_for_allocation_prefetch").unwrap_or(Ok(0))?;
    let reserve = filler.max(prefetch).saturating_mul(WORD);
    let reserve = reserve.next_multiple_of(headers.alignment());

    // The buffer of a thread lies in its `JavaThread`, and those of a hundred thousand threads far from each other
    // in the heap of malloc: of most blocks that hold one, nothing else would be used.
    let first = start.min(top).min(end);
    let bytes = start.max(top).max(end).saturating_add(WORD) - first;
    if bytes > LONGEST_BUFFER {
        return Err(Refusal(format!(
            "a ThreadLocalAllocBuffer of {bytes} bytes"
        )));
    }
    let buffers = (0..u64::from(length)).map(|index| {
        let thread = view.u64(at(threads, index * WORD))?;
        Ok(at(at(thread, tlab), first))
    });
    let buffers: Vec<u64> = buffers.collect::<Result<_, Refusal>>()?;
    let bytes = bytes as usize;
    let mut of_all = vec![0; buffers.len() * bytes];
    view.memory().read_parts(&buffers, bytes, &mut of_all)?;
    let mut holes = Vec::new();
    for buffer in of_all.chunks_exact(bytes) {
        let word = |field: u64| {
            let mut word = [0; WORD as usize];
            word.copy_from_slice(&buffer[(field - first) as usize..][..WORD as usize]);
            u64::from_le_bytes(word)
        };
        let (start, top, end) = (word(start), word(top), word(end));
        if start == 0 && top == 0 && end == 0 {
            continue;
        }
        let hard_end = end.checked_add(reserve);
        match hard_end {
            Some(hard_end) if start <= top && top <= end => holes.push(top..hard_end),
            _ => {
                return Err(Refusal(format!(
                    "no thread can allocate in {start:#x}..{top:#x}..{end:#x}"
                )));
            }
        }
    }
    holes.sort_unstable_by_key(|hole| hole.start);
    match holes.windows(2).find(|pair| pair[0].end > pair[1].start) {
        None => Ok(holes),
        Some(pair) => Err(Refusal(format!(
            "two threads allocate at {:#x}",
            pair[1].start
        ))),
    }
}

/// How far an object that starts in the first of these may reach.
fn limit(spaces: &[Space]) -> u64 {
    let first = spaces[0];
    if first.kind == Kind::Plain {
        return first.top;
    }
    let rest = spaces
        .windows(2)
        .take_while(|pair| pair[1].kind == Kind::HumongousRest && pair[1].bottom == pair[0].end);
    rest.last().map_or(first.top, |pair| pair[1].top)
}

/// Goes from object to object.
struct Walk<'a> {
    view: &'a View<'a>,
    classes: &'a Classes<'a>,
    holes: &'a [Range<u64>],
}

impl Walk<'_> {
    /// A row of spaces; see [`rows`].
    fn row(&self, spaces: &[Space]) -> Row {
        let mut row = Row::default();
        // End of the last object: one of several regions ends in the last of them.
        let mut end_of_object = Ok(0);
        for (index, space) in spaces.iter().enumerate() {
            row.tally.spaces += 1;
            row.tally.used += space.top - space.bottom;
            row.tally.empty_spaces += u64::from(space.top == space.bottom);
            let (mut runs, mut own) = (Runs::default(), Tally::default());
            end_of_object = match (space.kind, end_of_object) {
                (Kind::HumongousRest, Err(refusal)) => Err(refusal),
                (Kind::HumongousRest, Ok(end)) if end < space.bottom => Err(Refusal(format!(
                    "the region at {:#x} continues no object",
                    space.bottom
                ))),
                (Kind::HumongousRest, Ok(end)) => self.objects(
                    space,
                    end.max(space.bottom),
                    limit(&spaces[index..]),
                    &mut runs,
                    &mut own,
                ),
                (_, _) => self.objects(
                    space,
                    space.bottom,
                    limit(&spaces[index..]),
                    &mut runs,
                    &mut own,
                ),
            };
            let humongous = space.kind != Kind::Plain;
            match &end_of_object {
                Ok(end) => {
                    row.runs.append(runs);
                    // An object of several regions belongs to where it starts, and fills these.
                    let free = match humongous {
                        true => space.end.min((*end).max(space.bottom)),
                        false => space.top,
                    };
                    row.runs.add(free..space.end, Leaf::HeapFree);
                    row.tally.add(&own);
                }
                Err(refusal) => {
                    row.tally.undivided_bytes += space.top - space.bottom;
                    row.refusal.get_or_insert_with(|| refusal.clone());
                    if !humongous {
                        row.runs.add(space.top..space.end, Leaf::HeapFree);
                    }
                }
            }
        }
        row
    }

    /// The objects from `from` to the top of a space; where the last of them ends, which is not beyond
    /// `limit`.
    fn objects(
        &self,
        space: &Space,
        from: u64,
        limit: u64,
        runs: &mut Runs,
        tally: &mut Tally,
    ) -> Result<u64, Refusal> {
        let first = self.holes.partition_point(|hole| hole.start < from);
        let mut holes = self.holes[first..].iter().peekable();
        let mut at = from;
        while at < space.top {
            if let Some(hole) = holes.next_if(|hole| hole.start <= at) {
                if hole.start < at || hole.end > space.top {
                    return Err(Refusal(format!(
                        "the thread's buffer at {:#x} begins inside an object, or ends outside the space",
                        hole.start
                    )));
                }
                tally.tlab_bytes += hole.end - hole.start;
                runs.add(hole.clone(), Leaf::HeapFree);
                at = hole.end;
                continue;
            }
            let object = self.object(at)?;
            // `at` is below `limit`, as `limit` is not below the top.
            if object.bytes > limit - at {
                return Err(Refusal(format!(
                    "the object at {at:#x} cannot be {} bytes long",
                    object.bytes
                )));
            }
            let end = at + object.bytes;
            match object.frames {
                _ if object.is_filler => {
                    tally.filler_bytes += object.bytes;
                    runs.add(at..end, Leaf::HeapFree);
                }
                None => {
                    tally.objects += 1;
                    tally.object_bytes += object.bytes;
                    runs.add(at..end, Leaf::HeapObjects);
                }
                Some((used, used_end)) => {
                    if used < at || used_end < used || used_end > end {
                        return Err(Refusal(format!("the stack chunk at {at:#x} is too short")));
                    }
                    tally.chunks += 1;
                    tally.chunk_bytes += object.bytes;
                    tally.frame_bytes += used_end - used;
                    runs.add(at..used, Leaf::TaskStackUnused);
                    runs.add(used..used_end, Leaf::TaskStack);
                    runs.add(used_end..end, Leaf::TaskStackUnused);
                }
            }
            at = end;
        }
        Ok(at)
    }

    fn object(&self, at: u64) -> Result<super::klass::Object, Refusal> {
        let memory = self.view.memory();
        self.classes
            .object(at, |address| match memory.u64(address) {
                Ok(word) => Ok(word),
                // Objects that the class archive brings may not have been touched yet.
                Err(_) => Ok(self.view.u64(address)?),
            })
    }
}
