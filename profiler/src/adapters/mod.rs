//! Adapters: looking inside heaps and stacks from outside, by reading the memory of the frozen program.
//!
//! The rules tell what a region is for. An adapter knows how a runtime lays out such a region and tells
//! which bytes of it are task stacks, objects, or free. It never runs code in the program and never
//! touches a page that is not resident. What it reads is checked against itself (magic numbers, bounds,
//! sums), and one inconsistency makes it give up with a reason: the region then keeps the leaf of its
//! rule, undivided.
//!
//! ```text
//! frozen process -> regions by rule -> adapters -> Division (leaf by byte) + books -> compose
//! ```

pub mod beam;
pub mod cpython;
pub mod dotnet;
mod elf;
pub mod glibc;
pub mod go;
pub mod hotspot;
pub mod memory;
pub mod stacks;
pub mod v8;
mod view;
mod workers;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{
    classify::{
        division::{Division, DivisionBuilder},
        place::Region,
        runtime::{Image, Runtime},
    },
    residency::ProcessSnapshot,
};
use memory::{Memory, Unreadable};

/// A frozen process, as an adapter sees it.
pub struct Target<'a> {
    /// What may be read of it.
    pub memory: &'a Memory<'a>,
    /// Mappings and resident pages.
    pub process: &'a ProcessSnapshot,
    /// Its regions with a resident page, in address order.
    pub regions: &'a [Region<'a>],
    /// The runtime that it was recognised as.
    pub runtime: Runtime,
    /// Its executable.
    pub image: &'a Image,
    /// Its threads, as far as they could be asked.
    pub threads: &'a [StackPointer],
}

impl<'a> Target<'a> {
    /// Its regions of one rule.
    pub fn regions_of<'b>(&'b self, rule: &'b str) -> impl Iterator<Item = &'a Region<'a>> + 'b {
        self.regions
            .iter()
            .filter(move |region| region.rule.id == rule)
    }
}

/// Where a thread has its stack pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackPointer {
    /// Thread id.
    pub tid: u32,
    /// The stack pointer of the program, not of the kernel.
    pub address: u64,
    /// The lowest byte of its stack, where the call that started the thread told it.
    pub lowest: Option<u64>,
}

/// Why an adapter gave up, in words that name what was read: "malloc: the chunk at 0x… is larger than its
/// heap".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

impl From<Unreadable> for Refusal {
    fn from(unreadable: Unreadable) -> Refusal {
        Refusal(unreadable.to_string())
    }
}

/// Sums that an adapter has found, by name: bytes where the name ends with `_bytes`, else a number.
/// They are what the runtime's own books are compared with.
pub type Books = BTreeMap<String, u64>;

/// One adapter.
struct Adapter {
    /// Name in results and warnings.
    name: &'static str,
    /// Divides what it understands. `None`: there is nothing in this process for it.
    divide: fn(&Target, &mut DivisionBuilder) -> Result<Option<Books>, Refusal>,
}

/// All of them. No two divide the same region: each takes those of its own rules.
const ADAPTERS: [Adapter; 8] = [
    Adapter {
        name: "stacks",
        divide: stacks::divide,
    },
    Adapter {
        name: "glibc",
        divide: glibc::divide,
    },
    Adapter {
        name: "dotnet",
        divide: dotnet::divide,
    },
    Adapter {
        name: "go",
        divide: go::divide,
    },
    Adapter {
        name: "hotspot",
        divide: hotspot::divide,
    },
    Adapter {
        name: "beam",
        divide: beam::divide,
    },
    Adapter {
        name: "v8",
        divide: v8::divide,
    },
    Adapter {
        name: "cpython",
        divide: cpython::divide,
    },
];

/// What one adapter had to say of one process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// The process.
    pub tgid: u32,
    /// Name of the adapter.
    pub adapter: String,
    /// When the process was frozen for it: `CLOCK_MONOTONIC`, in ns.
    pub taken_ns: u64,
    /// How long it took, in seconds; the process was frozen meanwhile.
    pub seconds: f64,
    /// CPU time of the profiler meanwhile, of all its threads, in seconds.
    pub cpu_seconds: f64,
    /// Why it gave up; the regions are undivided then.
    pub refusal: Option<String>,
    /// What it found.
    pub books: Books,
}

/// What an adapter finds. A mistake in one must not end the run, least of all with the program frozen.
fn guarded<T>(look: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|_| {
        let mistake = "the adapter itself failed; this is a mistake in the profiler";
        Err(Refusal(mistake.into()))
    })
}

/// CPU time that this process has used; zero where the clock is missing.
fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    used.map_or(Duration::ZERO, Duration::from)
}

/// Runs every adapter on a frozen process.
pub fn divide(target: &Target, taken_ns: u64) -> (Division, Vec<Account>) {
    let mut all = Vec::new();
    let mut accounts = Vec::new();
    for adapter in &ADAPTERS {
        let (began, cpu_before) = (Instant::now(), cpu_time());
        let mut own = DivisionBuilder::default();
        let found = guarded(|| (adapter.divide)(target, &mut own));
        let (books, refusal) = match found {
            Ok(None) => continue,
            // An overlap is told of the adapter that made it.
            Ok(Some(books)) => match own.build() {
                Ok(division) => {
                    all.push(division);
                    (books, None)
                }
                Err(overlap) => (Books::new(), Some(overlap.to_string())),
            },
            Err(refusal) => (Books::new(), Some(refusal.to_string())),
        };
        accounts.push(Account {
            tgid: target.process.tgid,
            adapter: adapter.name.into(),
            taken_ns,
            seconds: began.elapsed().as_secs_f64(),
            cpu_seconds: cpu_time().saturating_sub(cpu_before).as_secs_f64(),
            refusal,
            books,
        });
    }
    match Division::of_layers(all) {
        Ok(division) => (division, accounts),
        Err(overlap) => {
            for account in &mut accounts {
                account.refusal = Some(format!("two adapters disagree: {overlap}"));
            }
            (Division::default(), accounts)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_that_panics_has_given_up() {
        let refusal = guarded::<()>(|| panic!("of the test")).expect_err("it panicked");
        assert!(refusal.0.contains("mistake in the profiler"), "{refusal}");
        assert_eq!(guarded(|| Ok(7)), Ok(7));
    }
}
