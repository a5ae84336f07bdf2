//! The region map: which call put each byte of each process where it is.
//!
//! Takes [`events`](crate::events) in the order in which the calls returned, gives for every mapped
//! address the call that made it, what it was laid on, its protection, advice and name. Pure: no
//! I/O. The kernel merges and splits its VMAs as it likes, which never matters here, because the map
//! is ours; [`compare()`] holds it against `/proc/PID/maps` and repairs it when events were lost.
//!
//! - [`piece`]: the value of a range; [`origin`]: the call behind it.
//! - [`address_space`]: the map of one address space, and the rule for order across CPUs.
//! - [`calls`]: what each call does to that map.
//! - [`process_tree`]: processes, their threads and stacks, fork, vfork and exec.
//! - [`mod@compare`]: agreement with the kernel.
//! - [`before_attach`]: the map of a process that ran before anybody looked.

pub mod address_space;
pub mod before_attach;
pub mod calls;
pub mod compare;
pub mod origin;
pub mod piece;
pub mod process_tree;
#[cfg(test)]
pub(crate) mod script;

pub use address_space::AddressSpace;
pub use compare::{Comparison, compare};
pub use origin::{Origin, OriginId, OriginKind};
pub use piece::{Advice, NO_ACCESS, NameId, Piece, rwx};
pub use process_tree::{LowerEnd, Process, ProcessTree, Stack, Thread};

/// `PROT_NONE`: the pages exist on paper only.
pub const PROT_NONE: u32 = libc::PROT_NONE as u32;

/// The bits of a protection that `/proc/PID/maps` shows as `rwx`.
pub const PROT_RWX: u32 = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u32;
