//! The eBPF probes. Each hook family has a file of its own; this one only lists them.
//!
//! Built for `bpfel-unknown-none` only (feature `kernel`): see `cargo xtask setup --ebpf`.
#![no_std]
#![no_main]
// Atomic operations whose result is used: `core`'s own are not there for this target.
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "see above")]

mod call_stacks;
mod follow;
mod ledger;
mod lifecycle;
mod maps;
mod registers;
mod syscalls;

/// Lets the verifier's GPL-only helpers (probe reads) be called.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program that could reach this.
    loop {}
}
