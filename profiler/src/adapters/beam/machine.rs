//! Where the machine's tables are, and whether it is one whose structures are known.

use object::{Object, ObjectSegment, ObjectSymbol};

use super::super::{Refusal, Target, elf};

/// `sizeof(Process)` in OTP 25 with BeamAsm, the JIT compiler (struct process, erl_process.h).
pub(super) const PROCESS_BYTES: u64 = 776;

/// Addresses in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// `erts_proc`: the table of processes (`ErtsPTab`, erl_ptab.h).
    pub(super) processes: u64,
    /// `erts_allctr_thr_spec`: instances of each allocator (`ErtsAllocatorThrSpec_t`, erl_alloc.h).
    pub(super) instances: u64,
    /// `erts_allctrs_info`: allocators that have one instance (`ErtsAllocatorInfo_t`, erl_alloc.h).
    pub(super) infos: u64,
}

impl Machine {
    /// Reads the symbols of the executable, from its file.
    pub(super) fn of(target: &Target) -> Result<Machine, Refusal> {
        let file = std::fs::read(format!("/proc/{}/exe", target.process.tgid))
            .map_err(|error| Refusal(format!("the executable cannot be read: {error}")))?;
        let path = &target.image.path;
        let mapped = target
            .process
            .vmas
            .iter()
            .filter(|vma| vma.offset() == 0 && vma.name() == Some(path.as_str()))
            .map(|vma| vma.start)
            .min()
            .ok_or_else(|| Refusal(format!("{path} is not mapped from its start")))?;
        Machine::in_file(&file, mapped)
    }

    /// `mapped` is the address of the file's first byte.
    pub(super) fn in_file(file: &[u8], mapped: u64) -> Result<Machine, Refusal> {
        let elf = object::File::parse(file)
            .map_err(|error| Refusal(format!("the executable is no ELF file: {error}")))?;
        // All of these are for debuggers (erts/etc/unix/etp-commands.in; erts_init_etp, erl_init.c).
        let version = constant(&elf, "etp_erts_version")?;
        let version = String::from_utf8_lossy(version);
        let version = version.trim_end_matches('\0');
        if !version.starts_with("13.") {
            return Err(Refusal(format!(
                "erts {version} is not of OTP 25, the one whose structures are known"
            )));
        }
        for (name, wanted) in [
            ("etp_arch_bits", 64_u32),
            ("etp_debug_compiled", 0),
            ("etp_lock_count", 0),
            ("etp_lock_check", 0),
            ("etp_beamasm", 1),
        ] {
            if constant(&elf, name)? != wanted.to_ne_bytes() {
                return Err(Refusal(format!(
                    "{name} of erts {version} is not {wanted}: its structures differ"
                )));
            }
        }
        let bias = elf::bias(&elf, mapped)
            .ok_or_else(|| Refusal("the executable does not map its header".into()))?;
        let address = |name| {
            let symbol = elf
                .dynamic_symbols()
                .find(|symbol| symbol.name() == Ok(name) && symbol.is_definition());
            symbol
                .map(|symbol| symbol.address().wrapping_add(bias))
                .ok_or_else(|| Refusal(format!("erts {version} does not export {name}")))
        };
        Ok(Machine {
            processes: address("erts_proc")?,
            instances: address("erts_allctr_thr_spec")?,
            infos: address("erts_allctrs_info")?,
        })
    }
}

/// The bytes of a constant, from the file.
fn constant<'a>(elf: &object::File<'a>, name: &str) -> Result<&'a [u8], Refusal> {
    let missing = || Refusal(format!("{name} is missing: not a BEAM that is known"));
    let symbol = elf
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok(name) && symbol.is_definition())
        .ok_or_else(missing)?;
    elf.segments()
        .find_map(|segment| {
            let data = segment.data_range(symbol.address(), symbol.size());
            data.ok().flatten()
        })
        .ok_or_else(missing)
}
