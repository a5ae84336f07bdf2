//! Profiles small C programs with known answers, page by page, and sees what is left when things go
//! wrong. Needs root and a C compiler named `cc`; `cargo xtask test` runs it.
//!
//! Everything goes through the built `profiler`: a session forks, so it wants a process of its own.

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod at_the_peak;
mod attached;
mod call_stacks;
mod commands;
mod counters;
mod daemon;
mod endings;
mod kernel_memory;
mod killed;
mod memory;
mod processes;
mod profiled;
mod raised;
mod remains;
mod setup;
mod signals;
mod threads;
mod tracefs;
