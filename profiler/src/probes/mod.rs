//! Attaching to the kernel: the eBPF probes ([`attach`]) the page ledger ([`ledger`],
//! [`functions`], [`layout`], [`tier`]) and the perf counters ([`counters`]).

pub mod attach;
pub mod btf;
pub mod call_stacks;
pub mod counters;
pub mod functions;
pub mod intake;
pub mod layout;
pub mod ledger;
pub mod object;
pub mod object_sizes;
mod skipped;
pub mod tier;
pub mod tracefs;
