//! What the kernel did not run: a program is skipped on a CPU where it is already under way, which happens
//! where programs are preempted. (System calls' from Linux 7.2 on, functions' from 6.13 on.)

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::programs::ProgramFd;

/// Names of the programs that were skipped, and how often, whoever came by.
pub fn skipped(programs: &[ProgramFd]) -> Vec<(String, u64)> {
    let statistics = |program: &ProgramFd| statistics(program.as_fd().as_raw_fd()).ok();
    programs
        .iter()
        .filter_map(statistics)
        .filter(|(_, times)| *times > 0)
        .collect()
}

/// `name` (15 bytes at most) and `recursion_misses` of `struct bpf_prog_info` (include/uapi/linux/bpf.h),
/// by `BPF_OBJ_GET_INFO_BY_FD`; aya does not show the latter.
fn statistics(program: i32) -> io::Result<(String, u64)> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    const NAME: usize = 64;
    const RECURSION_MISSES: usize = 208;
    #[repr(C)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = [0_u64; 32];
    let attributes = Attributes {
        fd: program as u32,
        length: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes to `info`, and both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let name: Vec<u8> = info[NAME / 8..NAME / 8 + 2]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take_while(|&byte| byte != 0)
        .collect();
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok((name, info[RECURSION_MISSES / 8]))
}
