//! How large the kernel's objects are here. It depends on version, configuration and CPU (the state of the
//! FPU is part of `task_struct`), so sizes are read, not known.

use std::{collections::BTreeMap, fs};

use serde::{Deserialize, Serialize};

use super::{btf::Btf, functions::kernel_version};
use crate::units::PAGE;

/// Where the slab allocator shows its caches, aliases of merged ones included (`CONFIG_SLUB_DEBUG`).
const CACHES: &str = "/sys/kernel/slab";
/// Where it lists them otherwise; of merged ones only one name.
const LIST: &str = "/proc/slabinfo";
/// Size classes of `kmalloc` up to two pages (`kmalloc_info`, mm/slab_common.c); more takes whole pages.
const CLASSES: [u64; 13] = [
    8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192,
];

/// Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ObjectSizes {
    /// Slab caches by name; those that this kernel does not have are missing.
    pub caches: BTreeMap<String, Cache>,
    /// What `kmalloc` takes for structs, by name.
    pub structs: BTreeMap<String, u64>,
    /// Page tables of one address space that the kernel does not count in `VmPTE`: that of the highest
    /// level, two with page table isolation, and the one below it where there are five levels.
    pub top_tables_bytes: u64,
}

/// One slab cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// One object with its padding.
    pub object_bytes: u64,
    /// Objects in a slab.
    pub objects_per_slab: u64,
    /// Bytes of a slab.
    pub slab_bytes: u64,
}

impl Cache {
    /// What slabs full of this object leave unused for each.
    pub fn unused_bytes(&self) -> f64 {
        let used = self.object_bytes * self.objects_per_slab;
        let unused = self.slab_bytes.saturating_sub(used);
        unused as f64 / self.objects_per_slab.max(1) as f64
    }
}

impl ObjectSizes {
    /// Those of the running kernel, as far as it shows them to us. Empty: it shows none.
    pub fn read<'a>(
        caches: impl Iterator<Item = &'a str>,
        structs: impl Iterator<Item = &'a str>,
    ) -> ObjectSizes {
        let list = fs::read_to_string(LIST).unwrap_or_default();
        let of_cache = |name: &str| shown(name).or_else(|| listed(&list, name));
        let types = Btf::of_kernel().ok();
        let of_struct = |name: &str| types.as_ref()?.size_of(name).ok().map(kmalloc_bytes);
        ObjectSizes {
            caches: caches
                .filter_map(|name| Some((name.to_owned(), of_cache(name)?)))
                .collect(),
            structs: structs
                .filter_map(|name| Some((name.to_owned(), of_struct(name)?)))
                .collect(),
            top_tables_bytes: top_tables_bytes(),
        }
    }
}

/// What `kmalloc` takes for so many bytes.
pub fn kmalloc_bytes(bytes: u64) -> u64 {
    let class = CLASSES.into_iter().find(|&class| bytes <= class);
    class.unwrap_or_else(|| bytes.next_multiple_of(PAGE))
}

fn shown(name: &str) -> Option<Cache> {
    let number = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("{CACHES}/{name}/{file}")).ok()?;
        text.trim().parse().ok()
    };
    Some(Cache {
        object_bytes: number("slab_size")?,
        objects_per_slab: number("objs_per_slab")?,
        slab_bytes: PAGE << number("order")?.min(20),
    })
}

/// `name active_objs num_objs objsize objperslab pagesperslab : …`, slabinfo(5).
fn listed(list: &str, name: &str) -> Option<Cache> {
    let mut lines = list.lines().map(str::split_ascii_whitespace);
    let words = lines.find(|words| words.clone().next() == Some(name))?;
    let mut numbers = words.skip(3).map(|word| word.parse::<u64>().ok());
    Some(Cache {
        object_bytes: numbers.next()??,
        objects_per_slab: numbers.next()??,
        slab_bytes: numbers.next()?? * PAGE,
    })
}

fn top_tables_bytes() -> u64 {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag| flags.split_ascii_whitespace().any(|word| word == flag);
    top_tables(has("la57"), has("pti"), kernel_version())
}

/// Before Linux 6.16 two pages are taken for the highest level wherever isolation is built in, as
/// distributions do (`PGD_ALLOCATION_ORDER`, arch/x86/include/asm/pgalloc.h); since then where it is on.
fn top_tables(five_levels: bool, isolation: bool, version: Option<(u32, u32)>) -> u64 {
    let two = isolation || version.is_none_or(|version| version < (6, 16));
    PAGE * (1 + u64::from(two) + u64::from(five_levels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_the_list_are_found_by_the_whole_name() {
        let list = "slabinfo - version: 2.1\n\
            # name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>\n\
            task_struct_not 1 1 64 64 1 : tunables 0 0 0 : slabdata 1 1 0\n\
            task_struct 111 120 5888 5 8 : tunables 0 0 0 : slabdata 24 24 0\n";
        let cache = listed(list, "task_struct").unwrap();
        let expected = Cache {
            object_bytes: 5888,
            objects_per_slab: 5,
            slab_bytes: 32_768,
        };
        assert_eq!(cache, expected);
        // 5 x 5,888 of 32,768 bytes are used.
        assert!((cache.unused_bytes() - 665.6).abs() < 0.01);
        assert_eq!(listed(list, "task"), None);
        assert_eq!(listed("", "task_struct"), None);
    }

    #[test]
    fn kmalloc_rounds_up_to_its_classes() {
        let taken = [0, 8, 65, 640, 8192, 8193].map(kmalloc_bytes);
        assert_eq!(taken, [8, 8, 96, 1024, 8192, 12_288]);
    }

    #[test]
    fn the_highest_page_table_has_a_twin_where_it_is_isolated() {
        assert_eq!(top_tables(false, false, Some((6, 18))), PAGE);
        assert_eq!(top_tables(false, true, Some((6, 18))), 2 * PAGE);
        assert_eq!(top_tables(true, false, Some((6, 1))), 3 * PAGE);
    }
}
