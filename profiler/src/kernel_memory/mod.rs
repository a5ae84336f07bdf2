//! Memory that the kernel holds for the tree, beside RSS: bottom up, objects times their sizes, and held
//! against what the kernel itself counts for the target's group. Pure.

pub mod kinds;

use serde::{Deserialize, Serialize};

pub use kinds::SlabKind;

use crate::{
    launch::accounting::GroupMemory,
    probes::object_sizes::ObjectSizes,
    residency::{Snapshot, objects::Objects},
    units::KIB,
};

/// `THREAD_SIZE` on x86-64 without KASAN: four pages
/// (arch/x86/include/asm/page_64_types.h).
const KERNEL_STACK: u64 = 16 * KIB;

/// Memory that the kernel holds for the tree, outside RSS. A `None` part was not measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Kernel {
    /// Kernel stacks of live threads.
    pub stacks_bytes: Option<u64>,
    /// Page tables, `top_tables_bytes` included.
    pub page_tables_bytes: Option<u64>,
    /// Slab objects: task_struct, VMAs, files, timers. The sum of `slab`.
    pub slab_bytes: Option<u64>,
    /// What the kernel counted for the group and the parts above do not explain; 0 where they come to more
    /// than it counted, which `check` tells.
    pub other_bytes: Option<u64>,
    /// Shared memory of the group (shmem, tmpfs, memfd) that no process maps.
    #[serde(default)]
    pub unmapped_shmem_bytes: Option<u64>,
    /// Buffers of sockets.
    #[serde(default)]
    pub socket_buffers_bytes: Option<u64>,
    /// The page tables of the highest level, a part of `page_tables_bytes` that `VmPTE` leaves out.
    #[serde(default)]
    pub top_tables_bytes: Option<u64>,
    /// Slab objects by kind, largest first.
    #[serde(default)]
    pub slab: Vec<SlabKind>,
    /// What slabs full of these objects leave unused between them; in no part above, and in no group's
    /// figure.
    #[serde(default)]
    pub slab_unused_bytes: Option<u64>,
    /// The kernel's own figure for the group; `None` where there is none.
    #[serde(default)]
    pub check: Option<GroupCheck>,
    /// How it was measured or estimated.
    pub source: String,
}

/// The kernel's own figure for the target's group, when the tree was frozen, and ours at that moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GroupCheck {
    /// When, in seconds after exec.
    pub at_seconds: f64,
    /// The group's memory.
    #[serde(flatten)]
    pub group: GroupMemory,
    /// Our own figure for what the kernel charges to a group, without the first task, which was forked
    /// outside of it.
    pub bottom_up_bytes: u64,
    /// `kernel_bytes` less `bottom_up_bytes`.
    pub residue_bytes: i64,
}

/// What was found when the tree was frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// When: `CLOCK_MONOTONIC`, in ns.
    pub taken_ns: u64,
    /// What was there.
    objects: Objects,
    group: GroupMemory,
    mapped_shmem_bytes: Option<u64>,
}

impl Reading {
    /// Of a frozen tree. `launched` is the process that was forked outside of the group.
    pub fn of(snapshot: &Snapshot, group: GroupMemory, launched: u32) -> Reading {
        let objects = Objects::of(snapshot);
        let processes = &snapshot.processes;
        Reading {
            taken_ns: snapshot.taken_ns,
            objects: match processes.iter().any(|process| process.tgid == launched) {
                true => objects.without_launched(),
                false => objects,
            },
            group,
            mapped_shmem_bytes: processes
                .iter()
                .map(|process| process.pss_shmem_bytes)
                .sum(),
        }
    }

    fn check(&self, sizes: &ObjectSizes, exec_ns: u64) -> GroupCheck {
        let parts = Parts::of(&self.objects, sizes);
        let tables = match self.group.has_page_tables {
            true => parts.tables,
            false => 0,
        };
        let bottom_up_bytes = parts.stacks + tables + parts.slab.charged_bytes();
        GroupCheck {
            at_seconds: self.taken_ns.saturating_sub(exec_ns) as f64 / 1e9,
            residue_bytes: self.group.kernel_bytes.cast_signed() - bottom_up_bytes.cast_signed(),
            bottom_up_bytes,
            group: self.group.clone(),
        }
    }
}

/// Objects times sizes, in bytes.
struct Parts {
    stacks: u64,
    tables: u64,
    top_tables: u64,
    slab: kinds::Slab,
}

impl Parts {
    fn of(objects: &Objects, sizes: &ObjectSizes) -> Parts {
        let top_tables = objects.spaces * sizes.top_tables_bytes;
        Parts {
            stacks: objects.threads * KERNEL_STACK,
            tables: objects.page_tables_bytes + top_tables,
            top_tables,
            slab: kinds::slab(objects, sizes),
        }
    }
}

/// Kernel stacks, page tables and slab objects, in bytes: what can be told of a running tree.
pub fn bottom_up_bytes(objects: &Objects, sizes: &ObjectSizes) -> u64 {
    let parts = Parts::of(objects, sizes);
    parts.stacks + parts.tables + parts.slab.bytes()
}

impl Kernel {
    /// The parts that were measured, with their names for people, in bytes.
    pub fn parts(&self) -> [(&'static str, Option<u64>); 6] {
        [
            ("stacks", self.stacks_bytes),
            ("page tables", self.page_tables_bytes),
            ("slab", self.slab_bytes),
            ("unmapped shmem", self.unmapped_shmem_bytes),
            ("socket buffers", self.socket_buffers_bytes),
            ("other", self.other_bytes),
        ]
    }

    /// Sum of the parts that were measured, in bytes; `None` when none was. Saturates: charts must survive
    /// absurd documents.
    pub fn measured(&self) -> Option<u64> {
        let parts = self.parts().into_iter().filter_map(|(_, bytes)| bytes);
        parts.reduce(u64::saturating_add)
    }

    /// The same, 0 when nothing was measured.
    pub fn total(&self) -> u64 {
        self.measured().unwrap_or(0)
    }

    /// For what there was at the peak. `reading` is that of the scan nearest to it.
    pub fn of(
        objects: &Objects,
        sizes: &ObjectSizes,
        reading: Option<&Reading>,
        exec_ns: u64,
    ) -> Kernel {
        let parts = Parts::of(objects, sizes);
        let check = reading.map(|reading| reading.check(sizes, exec_ns));
        let has_slab = !sizes.caches.is_empty();
        let group = reading.map(|reading| &reading.group);
        let mapped = reading.and_then(|reading| reading.mapped_shmem_bytes);
        Kernel {
            stacks_bytes: Some(parts.stacks),
            page_tables_bytes: Some(parts.tables),
            top_tables_bytes: Some(parts.top_tables),
            slab_bytes: has_slab.then(|| parts.slab.bytes()),
            slab_unused_bytes: has_slab.then_some(parts.slab.unused_bytes),
            // Without sizes, slab is in it.
            other_bytes: check
                .as_ref()
                .map(|check| check.residue_bytes.max(0).unsigned_abs()),
            unmapped_shmem_bytes: group
                .and_then(|group| Some(group.shmem_bytes?.saturating_sub(mapped?))),
            socket_buffers_bytes: group.and_then(|group| group.socket_buffers_bytes),
            source: source(has_slab, objects.without_files, check.as_ref()),
            slab: match has_slab {
                true => parts.slab.kinds,
                false => Vec::new(),
            },
            check,
        }
    }
}

fn source(has_slab: bool, without_files: u64, check: Option<&GroupCheck>) -> String {
    let counted = match (has_slab, without_files) {
        (true, 0) => "objects counted, times their sizes in this kernel".to_owned(),
        (true, processes) => format!(
            "objects counted, times their sizes in this kernel; without the open files of \
             {processes} processes, which were never frozen"
        ),
        (false, _) => {
            "threads x 16 KiB of kernel stack, VmPTE of /proc/PID/status; slab not measured".into()
        }
    };
    match check {
        Some(check) => format!("{counted}; checked against {}", check.group.source),
        None => format!("{counted}; not checked: no figure of its group"),
    }
}

#[cfg(test)]
mod tests;
