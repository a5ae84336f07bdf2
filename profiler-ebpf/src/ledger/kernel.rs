//! Reading kernel memory: integers only, into a word that holds a value already. (Through aya's
//! generic helper, LLVM leaves the error case undefined, which the verifier refuses.)

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

#[inline(always)]
pub fn read(address: u64) -> Option<u64> {
    let mut value = 0_u64;
    // SAFETY: the helper checks the source and writes eight bytes to `value`.
    let error = unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 8, address as *const _) };
    if error == 0 { Some(value) } else { None }
}

/// An `int`; 0 when it cannot be read.
#[inline(always)]
pub fn read_int(address: u64) -> i32 {
    let mut value = 0_i32;
    // SAFETY: as above, four bytes. On an error the helper clears them.
    let _ = unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 4, address as *const _) };
    value
}
