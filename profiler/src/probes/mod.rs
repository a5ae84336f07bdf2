//! Attaching to the kernel: the eBPF probes ([`attach`]) and the perf counters ([`counters`]).

pub mod attach;
pub mod counters;
pub mod object;
pub mod tracefs;
