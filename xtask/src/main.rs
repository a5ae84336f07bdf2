//! `cargo xtask`: everything around the profiler.
fn main() {}
