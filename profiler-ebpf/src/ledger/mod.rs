//! The page ledger: see `profiler_ebpf::ledger_wire` for what it is and how it is read.
//!
//! Nothing here is loaded unless the tier is chosen.

mod change;
mod copy;
mod existing;
mod faults;
mod functions;
mod huge;
mod kernel;
mod lifecycle;
mod lock;
mod maps;
mod peak;
mod peek;
mod removals;
