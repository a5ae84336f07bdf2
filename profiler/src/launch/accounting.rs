//! What the kernel itself counts for the target's group beside RSS: kernel stacks, page tables, slab.
//!
//! With cgroup version 2 it is in `memory.stat` of the group that the target runs in, where its parent
//! hands the memory controller down. Where that controller is one of version 1, as in the hybrid layout,
//! a second group is made there for the time of the run.
//!
//! Files and their meaning: the kernel's `Documentation/admin-guide/cgroup-v2.rst` and
//! `Documentation/admin-guide/cgroup-v1/memory.rst`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use procfs::process::Process;
use serde::{Deserialize, Serialize};

/// Memory of a group at one moment, in bytes. `None`: this kernel does not tell it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupMemory {
    /// Which file says so.
    pub source: String,
    /// All kernel memory; before Linux 5.18 in version 2, the sum of its parts.
    pub kernel_bytes: u64,
    /// Page tables are in `kernel_bytes`. They are not in version 2 before Linux 5.18.
    pub has_page_tables: bool,
    /// Kernel stacks.
    pub stacks_bytes: Option<u64>,
    /// Page tables, those of the highest levels as far as the kernel counts them here.
    pub page_tables_bytes: Option<u64>,
    /// Slab objects.
    pub slab_bytes: Option<u64>,
    /// Memory that each CPU has a part of.
    pub percpu_bytes: Option<u64>,
    /// Buffers of sockets, beside `kernel_bytes`.
    pub socket_buffers_bytes: Option<u64>,
    /// Shared memory and tmpfs, mapped or not, beside `kernel_bytes`.
    pub shmem_bytes: Option<u64>,
}

/// Memory of the group whose directory in the hierarchy of version 2 is `directory`; `None` where
/// neither version counts it.
pub(super) fn read(directory: &Path) -> Option<GroupMemory> {
    let text = |path: PathBuf| fs::read_to_string(path).ok();
    let memory = match text(directory.join("memory.stat")) {
        Some(stat) => version_2(&stat),
        None => {
            let directory = companion(directory)?;
            let usage = text(directory.join("memory.kmem.usage_in_bytes"))?;
            let sockets = text(directory.join("memory.kmem.tcp.usage_in_bytes"));
            let stat = text(directory.join("memory.stat"));
            version_1(&usage, sockets.as_deref(), stat.as_deref())
        }
    };
    // A kernel that was booted with `cgroup.memory=nokmem` counts nothing.
    memory.filter(|memory| memory.kernel_bytes > 0)
}

/// The group of the same name in the memory hierarchy of version 1, below our own group there; `None`
/// where that is not mounted.
fn companion(directory: &Path) -> Option<PathBuf> {
    Some(own_memory_group()?.join(directory.file_name()?))
}

/// Makes the companion of a group. That there is none, or that it cannot be made, is told by [`read`].
pub(super) fn make(directory: &Path) {
    if !directory.join("memory.stat").exists()
        && let Some(companion) = companion(directory)
    {
        let _ = fs::create_dir(companion);
    }
}

/// Moves a process into the companion, before it has children.
pub(super) fn add(directory: &Path, pid: u32) {
    if let Some(companion) = companion(directory) {
        // Where it is not there, nothing is counted, which [`read`] tells.
        let _ = fs::write(companion.join("cgroup.procs"), pid.to_string());
    }
}

/// Moves a process out of the companion, to where we are ourselves.
pub(super) fn release(directory: &Path, pid: u32) {
    if let Some(companion) = companion(directory).filter(|path| path.exists()) {
        let _ = fs::write(companion.with_file_name("cgroup.procs"), pid.to_string());
    }
}

/// The companion of a group, if it is there: to be removed when its processes have ended.
pub(super) fn existing(directory: &Path) -> Option<PathBuf> {
    companion(directory).filter(|path| path.exists())
}

/// The directory of the memory hierarchy of version 1 that we are in.
pub(super) fn own_memory_group() -> Option<PathBuf> {
    let myself = Process::myself().ok()?;
    let own = myself
        .cgroups()
        .ok()?
        .into_iter()
        .find(|group| group.controllers.iter().any(|name| name == "memory"))?
        .pathname;
    myself
        .mountinfo()
        .ok()?
        .into_iter()
        .filter(|mount| mount.fs_type == "cgroup" && mount.super_options.contains_key("memory"))
        .find_map(|mount| {
            let below = Path::new(&own).strip_prefix(&mount.root).ok()?;
            Some(mount.mount_point.join(below))
        })
}

fn version_1(usage: &str, sockets: Option<&str>, stat: Option<&str>) -> Option<GroupMemory> {
    Some(GroupMemory {
        source: "memory.kmem.usage_in_bytes of a private cgroup".into(),
        kernel_bytes: usage.trim().parse().ok()?,
        has_page_tables: true,
        socket_buffers_bytes: sockets.and_then(|text| text.trim().parse().ok()),
        shmem_bytes: stat.and_then(|stat| field(stat, "total_shmem")),
        ..GroupMemory::default()
    })
}

fn version_2(stat: &str) -> Option<GroupMemory> {
    let parts = GroupMemory {
        source: "memory.stat of a private cgroup".into(),
        stacks_bytes: field(stat, "kernel_stack"),
        page_tables_bytes: field(stat, "pagetables"),
        slab_bytes: field(stat, "slab"),
        percpu_bytes: field(stat, "percpu"),
        socket_buffers_bytes: field(stat, "sock"),
        shmem_bytes: field(stat, "shmem"),
        ..GroupMemory::default()
    };
    if let Some(kernel_bytes) = field(stat, "kernel") {
        return Some(GroupMemory {
            kernel_bytes,
            has_page_tables: true,
            ..parts
        });
    }
    Some(GroupMemory {
        kernel_bytes: parts.stacks_bytes? + parts.slab_bytes? + parts.percpu_bytes.unwrap_or(0),
        has_page_tables: false,
        ..parts
    })
}

/// A number in a file of lines `name number`.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_has_one_number_and_shared_memory() {
        let stat = "cache 8192\nshmem 4096\ntotal_cache 8192\ntotal_shmem 4096\n";
        let memory = version_1("12054528\n", Some("0\n"), Some(stat)).unwrap();
        assert_eq!(
            (memory.kernel_bytes, memory.has_page_tables),
            (12_054_528, true)
        );
        assert_eq!(memory.shmem_bytes, Some(4096));
        assert_eq!(memory.slab_bytes, None);
        assert_eq!(version_1("many\n", None, None), None);
    }

    #[test]
    fn version_2_has_parts_and_since_5_18_their_sum() {
        let old = "anon 1\nkernel_stack 32768\npercpu 100\nsock 0\nshmem 0\nslab 5000\n";
        let memory = version_2(old).unwrap();
        assert_eq!(
            (memory.kernel_bytes, memory.has_page_tables),
            (37_868, false)
        );
        let new = "anon 1\nkernel 50000\nkernel_stack 32768\npagetables 8192\nslab 5000\n";
        let memory = version_2(new).unwrap();
        assert_eq!(
            (memory.kernel_bytes, memory.has_page_tables),
            (50_000, true)
        );
        assert_eq!(memory.page_tables_bytes, Some(8192));
        // A group without the controller has none of it.
        assert_eq!(version_2("anon 1\n"), None);
    }
}
