//! Which objects the kernel holds for threads, processes, mappings and open files, and what each takes.
//!
//! The table follows the kernel's sources from 5.10 to 6.18. A kind that a kernel does not have takes
//! nothing there: its cache is missing. *Charged*: memory that the kernel counts for the group of whoever
//! caused it (`SLAB_ACCOUNT`, `GFP_KERNEL_ACCOUNT`); the rest is memory all the same.

use serde::{Deserialize, Serialize};

use crate::{
    probes::object_sizes::{self, ObjectSizes, kmalloc_bytes},
    residency::objects::Objects,
};

/// With each charged object goes a pointer to who pays for it (`obj_full_size`, mm/memcontrol.c).
const OWNER: u64 = size_of::<u64>() as u64;

/// Mappings in one node of the tree that holds them, on the average: 13.1 of 60,024 mappings that a
/// program made one after the other, on Linux 6.18 (a leaf has room for 16).
const MAPPINGS_PER_NODE: u64 = 13;

/// Kernel objects of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlabKind {
    /// Name of the kind.
    pub kind: String,
    /// Objects; where a kind consists of several, the first of them.
    pub objects: u64,
    /// What they take.
    pub bytes: u64,
    /// The part of it that the kernel counts for the target's group.
    pub charged_bytes: u64,
    /// The number of objects is estimated; else it is counted.
    pub estimated: bool,
}

/// All kinds, largest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slab {
    /// Kinds that have objects.
    pub kinds: Vec<SlabKind>,
    /// What slabs full of these objects leave unused between them. Nobody is charged for it.
    pub unused_bytes: u64,
}

impl Slab {
    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.bytes).sum()
    }

    /// Bytes that are charged to the target's group.
    pub fn charged_bytes(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.charged_bytes).sum()
    }
}

/// How many of an object there are.
type Count = fn(&Objects) -> u64;

/// Where an object is.
enum Place {
    /// In a slab cache of its own.
    Cache(&'static str),
    /// In the second one on kernels that do not have the first.
    Either(&'static str, &'static str),
    /// Allocated by the size of a struct.
    Struct(&'static str),
    /// Allocated by a size: so many of a struct, or bytes.
    Array(&'static str, u64),
    Bytes(u64),
}

struct Row {
    kind: &'static str,
    place: Place,
    count: Count,
    charged: bool,
    estimated: bool,
}

const fn row(kind: &'static str, place: Place, count: Count) -> Row {
    Row {
        kind,
        place,
        count,
        charged: true,
        estimated: false,
    }
}

impl Row {
    const fn uncharged(self) -> Row {
        Row {
            charged: false,
            ..self
        }
    }

    const fn estimated(self) -> Row {
        Row {
            estimated: true,
            ..self
        }
    }
}

use Place::{Array, Bytes, Cache, Either, Struct};

/// Rows of one kind stand together.
const ROWS: [Row; 37] = [
    row("task_struct", Cache("task_struct"), |of| of.threads),
    row("pid", Cache("pid"), |of| of.threads),
    // The mapping of a kernel stack (`CONFIG_VMAP_STACK`, which distributions have): itself, the gap that
    // alignment leaves behind its guard page, and the list of its four pages.
    row("stack_mapping", Cache("vmap_area"), |of| 2 * of.threads)
        .uncharged()
        .estimated(),
    row("stack_mapping", Struct("vm_struct"), |of| of.threads)
        .uncharged()
        .estimated(),
    row("stack_mapping", Bytes(4 * 8), |of| of.threads)
        .uncharged()
        .estimated(),
    row("signal", Cache("signal_cache"), |of| of.processes),
    row("sighand", Cache("sighand_cache"), |of| of.processes),
    row("files", Cache("files_cache"), |of| of.processes),
    row("fs", Cache("fs_cache"), |of| of.processes),
    row("cred", Cache("cred"), |of| of.spaces),
    row("mm_struct", Cache("mm_struct"), |of| of.spaces),
    row("vm_area_struct", Cache("vm_area_struct"), |of| of.mappings),
    // Linux 6.4 to 6.14; before and after it is part of the mapping.
    row("vma_lock", Cache("vma_lock"), |of| of.mappings),
    // Since Linux 6.1. A tree has a root and leaves.
    row("maple_node", Cache("maple_node"), |of| {
        of.mappings / MAPPINGS_PER_NODE + of.spaces
    })
    .uncharged()
    .estimated(),
    row("anon_vma", Cache("anon_vma"), |of| of.anonymous_mappings).estimated(),
    row("anon_vma_chain", Cache("anon_vma_chain"), |of| {
        of.anonymous_mappings
    })
    .estimated(),
    row("file", Cache("filp"), |of| of.open.files),
    // The pointers; two bits each beside them are left out.
    row("file_slots", Bytes(8), |of| of.open.slots),
    row("pipe", Struct("pipe_inode_info"), |of| of.open.pipes),
    // `PIPE_DEF_BUFFERS` (include/linux/pipe_fs_i.h)
    row("pipe", Array("pipe_buffer", 16), |of| of.open.pipes),
    row("pipe", Cache("inode_cache"), |of| of.open.pipes),
    row("pipe", Cache("dentry"), |of| of.open.pipes),
    row("socket", Cache("sock_inode_cache"), |of| {
        of.open.sockets.total()
    }),
    row("socket", Cache("dentry"), |of| of.open.sockets.total()),
    row("socket", Either("UNIX-STREAM", "UNIX"), |of| {
        of.open.sockets.unix_streams
    }),
    row("socket", Cache("UNIX"), |of| of.open.sockets.unix),
    row("socket", Cache("TCP"), |of| of.open.sockets.tcp),
    row("socket", Cache("TCPv6"), |of| of.open.sockets.tcp6),
    row("socket", Cache("UDP"), |of| of.open.sockets.udp),
    row("socket", Cache("UDPv6"), |of| of.open.sockets.udp6),
    // Files without a name of their own have an entry each all the same.
    row("anonymous_dentry", Cache("dentry"), |of| {
        of.open.epolls + of.open.eventfds + of.open.timerfds
    }),
    row("epoll", Struct("eventpoll"), |of| of.open.epolls).uncharged(),
    row("epoll_entry", Cache("eventpoll_epi"), |of| {
        of.open.epoll_entries
    }),
    row("epoll_entry", Cache("eventpoll_pwq"), |of| {
        of.open.epoll_entries
    }),
    row("eventfd", Struct("eventfd_ctx"), |of| of.open.eventfds).uncharged(),
    row("timerfd", Struct("timerfd_ctx"), |of| of.open.timerfds).uncharged(),
    row("posix_timer", Cache("posix_timers_cache"), |of| {
        of.open.timers
    }),
];

/// Names of the caches whose sizes are wanted.
pub fn caches() -> impl Iterator<Item = &'static str> {
    ROWS.iter().flat_map(|row| match row.place {
        Cache(name) => [Some(name), None].into_iter().flatten(),
        Either(first, second) => [Some(first), Some(second)].into_iter().flatten(),
        _ => [None, None].into_iter().flatten(),
    })
}

/// Names of the structs whose sizes are wanted.
pub fn structs() -> impl Iterator<Item = &'static str> {
    ROWS.iter().filter_map(|row| match row.place {
        Struct(name) | Array(name, _) => Some(name),
        _ => None,
    })
}

/// What the objects of a tree take.
pub fn slab(objects: &Objects, sizes: &ObjectSizes) -> Slab {
    let mut slab = Slab::default();
    for row in &ROWS {
        let count = (row.count)(objects);
        let Some((each, unused)) = size_of_one(&row.place, sizes).filter(|_| count > 0) else {
            continue;
        };
        let owner = if row.charged { OWNER } else { 0 };
        let bytes = count * (each + owner);
        let charged_bytes = if row.charged { bytes } else { 0 };
        slab.unused_bytes += (count as f64 * unused) as u64;
        match slab.kinds.last_mut().filter(|last| last.kind == row.kind) {
            Some(kind) => {
                kind.bytes += bytes;
                kind.charged_bytes += charged_bytes;
            }
            None => slab.kinds.push(SlabKind {
                kind: row.kind.to_owned(),
                objects: count,
                bytes,
                charged_bytes,
                estimated: row.estimated,
            }),
        }
    }
    slab.kinds.sort_by_key(|kind| std::cmp::Reverse(kind.bytes));
    slab
}

fn of_cache(cache: &object_sizes::Cache) -> Option<(u64, f64)> {
    Some((cache.object_bytes, cache.unused_bytes()))
}

/// Bytes of one object, and what a slab leaves unused for it; `None` where the kernel does not tell.
fn size_of_one(place: &Place, sizes: &ObjectSizes) -> Option<(u64, f64)> {
    match *place {
        Cache(name) => of_cache(sizes.caches.get(name)?),
        Either(first, second) => of_cache(
            sizes
                .caches
                .get(first)
                .or_else(|| sizes.caches.get(second))?,
        ),
        // Size classes are powers of two, or three quarters of one: next to nothing is left.
        Struct(name) => Some((kmalloc_bytes(*sizes.structs.get(name)?), 0.0)),
        Array(name, count) => Some((kmalloc_bytes(count * sizes.structs.get(name)?), 0.0)),
        Bytes(bytes) => Some((bytes, 0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::OpenFiles;

    fn sizes(caches: &[(&str, u64)]) -> ObjectSizes {
        let cache = |&(name, object_bytes): &(&str, u64)| {
            let cache = object_sizes::Cache {
                object_bytes,
                objects_per_slab: 32_768 / object_bytes,
                slab_bytes: 32_768,
            };
            (name.to_owned(), cache)
        };
        ObjectSizes {
            caches: caches.iter().map(cache).collect(),
            structs: [("vm_struct".to_owned(), 72), ("pipe_buffer".to_owned(), 40)].into(),
            top_tables_bytes: 4096,
        }
    }

    #[test]
    fn kinds_are_objects_times_sizes_and_pay_for_their_owner() {
        let objects = Objects {
            threads: 1000,
            mappings: 2000,
            ..Objects::default()
        };
        let sizes = sizes(&[
            ("task_struct", 5888),
            ("vm_area_struct", 192),
            ("vmap_area", 72),
        ]);
        let slab = slab(&objects, &sizes);
        let kinds: Vec<(&str, u64, u64, u64)> = slab
            .kinds
            .iter()
            .map(|kind| {
                (
                    kind.kind.as_str(),
                    kind.objects,
                    kind.bytes,
                    kind.charged_bytes,
                )
            })
            .collect();
        assert_eq!(
            kinds,
            [
                ("task_struct", 1000, 5_896_000, 5_896_000),
                ("vm_area_struct", 2000, 400_000, 400_000),
                // Two areas, 96 bytes for a struct of 72, and a list of four pages, all for nobody.
                ("stack_mapping", 2000, 144_000 + 96_000 + 32_000, 0),
            ]
        );
        assert_eq!(slab.charged_bytes(), 6_296_000);
        // 5 of 5,888 bytes in 32 KiB leave 3,328; 170 of 192 leave 128; 455 of 72 leave 8.
        assert_eq!(slab.unused_bytes, 665_600 + 1505 + 35);
    }

    #[test]
    fn arrays_are_rounded_as_a_whole_and_unknown_caches_are_left_out() {
        let objects = Objects {
            open: OpenFiles {
                pipes: 2,
                epolls: 1,
                ..OpenFiles::default()
            },
            ..Objects::default()
        };
        let slab = slab(&objects, &sizes(&[]));
        let [pipe] = &slab.kinds[..] else {
            panic!("{slab:?}");
        };
        // 16 buffers of 40 bytes take 1024.
        assert_eq!(
            (pipe.kind.as_str(), pipe.bytes),
            ("pipe", 2 * (1024 + OWNER))
        );
    }

    #[test]
    fn rows_of_a_kind_stand_together() {
        let mut kinds: Vec<&str> = ROWS.iter().map(|row| row.kind).collect();
        kinds.dedup();
        let all = kinds.len();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), all);
    }
}
