//! The eBPF object in this executable.

/// The object, aligned as an ELF reader wants it.
pub static BYTES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes.o"));

/// Where it came from: "built from source with …" or "committed object".
pub const ORIGIN: &str = env!("PROFILER_EBPF_ORIGIN");
