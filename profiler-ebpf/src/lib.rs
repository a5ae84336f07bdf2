//! The wire contract between the eBPF probes and user space.
#![no_std]
