//! The registers with which the running thread entered the kernel: what it called, and with which arguments. They
//! stay as they were until it is back in the program, past the end of the call; only the result is put among them.
//! Since Linux 5.15 (`bpf_task_pt_regs`), so only programs of their own may look at them.

use aya_ebpf::helpers::{bpf_get_current_task_btf, bpf_task_pt_regs};

/// Where registers stand in `struct pt_regs`, in words (`arch/x86/include/uapi/asm/ptrace.h`).
const BP: usize = 4;
const R10: usize = 7;
const R9: usize = 8;
const R8: usize = 9;
const DX: usize = 12;
const SI: usize = 13;
const DI: usize = 14;
const ORIG_AX: usize = 15;
const IP: usize = 16;
const SP: usize = 19;

/// See the module.
pub struct Registers(*const u64);

impl Registers {
    /// Those of the running thread.
    #[inline(always)]
    pub fn of_caller() -> Option<Registers> {
        // SAFETY: the helpers have no preconditions; the second is given the running task.
        let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const u64;
        (!registers.is_null()).then_some(Registers(registers))
    }

    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        // SAFETY: the helper's result points to a whole `struct pt_regs`, of 21 words, and the verifier checks the load.
        unsafe { *self.0.add(index) }
    }

    /// Number of the system call.
    #[inline(always)]
    pub fn call(&self) -> u32 {
        self.word(ORIG_AX) as u32
    }

    /// Its arguments (`arch/x86/entry/entry_64.S`).
    #[inline(always)]
    pub fn arguments(&self) -> [u64; 6] {
        [DI, SI, DX, R10, R8, R9].map(|index| self.word(index))
    }

    /// The next instruction.
    #[inline(always)]
    pub fn ip(&self) -> u64 {
        self.word(IP)
    }

    /// The stack pointer.
    #[inline(always)]
    pub fn sp(&self) -> u64 {
        self.word(SP)
    }

    /// The frame pointer, where code keeps one.
    #[inline(always)]
    pub fn bp(&self) -> u64 {
        self.word(BP)
    }
}
