//! `profiler`: where does the memory of a concurrent task go?
//!
//! The modules stand in the order of the pipeline; each imports only from those above it.
//!
//! ```text
//! limits -> launch -> probes -> events -> regions + residency -> classify -> adapters -> peak -> results -> charts -> report -> export
//! ```

pub mod units;

pub mod limits;

pub mod privileges;

pub mod launch;
pub mod probes;

pub mod events;
pub mod regions;
pub mod residency;

pub mod classify;

pub mod adapters;

pub mod call_stacks;
pub mod kernel_memory;
pub mod peak;
pub mod results;

pub mod charts;

pub mod report;

pub mod export;

pub mod session;

pub mod daemon;
