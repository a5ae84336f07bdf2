//! Who was calling when memory was mapped.
//!
//! The probes send the registers and a slice of the user's stack, once for each distinct chain of return
//! addresses; every event of a call that makes memory names its slice. At the end, those slices that made
//! memory which is resident at the peak are unwound and given names, from the files that the code was
//! mapped from.
//!
//! - [`capture`]: bytes → a [`Capture`].
//! - [`code`]: where each process had which code mapped, and when.
//! - [`binary`]: what an ELF file tells: unwind tables, symbols, lines.
//!   `gopclntab`: the names of a stripped Go program.
//! - [`unwind`]: a capture and the code → addresses.
//! - [`symbols`]: addresses → names; [`perf_map`]: those of jitted code.
//! - [`naming`]: captures → [`CallStack`]s, as they stand in a result.

pub mod binary;
pub mod capture;
pub mod code;
mod gopclntab;
pub mod naming;
pub mod perf_map;
pub mod stack;
pub mod symbols;
pub mod unwind;

pub use capture::Capture;
pub use naming::{Captures, Named};
pub use stack::{CallStack, Frame};
