//! HotSpot: which bytes of the Java heap are objects, stacks of virtual threads, or free, and which bytes of
//! the code cache are used.
//!
//! The frames of a virtual thread that is not running lie in the heap, in objects of the class
//! `jdk.internal.vm.StackChunk`:
//!
//! ```text
//! fields | words that no frame uses | frames, from word `sp` to word `size` | bitmap of references
//! ```
//!
//! So the heap is walked from object to object. All offsets come from the tables that libjvm exports
//! ([`tables`]); what is known here is the form of an object's header and of a few structures, which is the
//! same from JDK 17 to 25. Only JDK 21 and later have virtual threads (but for previews).
//!
//! Sources: openjdk/jdk, the files that each module names; checked on the builds that docs/runtimes/hotspot.md
//! names.

mod code;
mod heap;
mod klass;
mod tables;

use super::{Books, Refusal, Target, memory::Words, view::View};
use crate::classify::{division::DivisionBuilder, runtime::Runtime};
use klass::Headers;
use tables::{Exports, Flags, Tables};

/// Versions on which this was checked, and those between.
const VERSIONS: std::ops::RangeInclusive<u32> = 17..=25;

/// Divides the Java heap and the code cache.
pub fn divide(target: &Target, into: &mut DivisionBuilder) -> Result<Option<Books>, Refusal> {
    if target.runtime != Runtime::Jvm {
        return Ok(None);
    }
    let Some(exports) = tables::exports(target.process)? else {
        return Ok(None);
    };
    let view = View::of_process(target.memory, target.process, tables::is_file_of_jvm);
    let mut books = divide_machine(&view, &exports, into)?;
    books.extend(resident(target));
    Ok(Some(books))
}

/// Resident bytes by rule: `resident.jvm.heap_bytes`. What `jcmd System.map` tells by its tags.
fn resident(target: &Target) -> Books {
    let mut books = Books::new();
    for region in target.regions {
        let name = format!("resident.{}_bytes", region.rule.id);
        *books.entry(name).or_default() += region.resident_bytes;
    }
    books
}

fn divide_machine(
    view: &View,
    exports: &Exports,
    into: &mut DivisionBuilder,
) -> Result<Books, Refusal> {
    let tables = Tables::read(view, exports)?;
    let version = tables.global("Abstract_VM_Version", &["_vm_major_version"])?;
    let version = view.u32(version)?;
    if !VERSIONS.contains(&version) {
        return Err(Refusal(format!(
            "this is HotSpot {version}, and {} to {} are known",
            VERSIONS.start(),
            VERSIONS.end()
        )));
    }
    let flags = Flags::read(view, &tables)?;
    let headers = Headers::read(view, &tables, &flags)?;
    let heap = heap::divide(view, &flags, &headers, into)?;
    let code = code::divide(view, &tables, into)?;
    Ok(Books::from([
        ("collections".into(), heap.collections),
        ("regions".into(), heap.spaces),
        ("empty_regions".into(), heap.empty_spaces),
        ("heap_used_bytes".into(), heap.used),
        ("objects".into(), heap.objects),
        ("object_bytes".into(), heap.object_bytes),
        ("stack_chunks".into(), heap.chunks),
        ("stack_chunk_bytes".into(), heap.chunk_bytes),
        ("stack_frame_bytes".into(), heap.frame_bytes),
        ("filler_bytes".into(), heap.filler_bytes),
        ("thread_buffer_bytes".into(), heap.tlab_bytes),
        ("undivided_bytes".into(), heap.undivided_bytes),
        ("code_used_bytes".into(), code.used),
        ("code_free_bytes".into(), code.free),
        ("code_blocks".into(), code.blocks),
    ]))
}

#[cfg(test)]
mod tests;
