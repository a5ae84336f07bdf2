//! The region map against the kernel: real calls are made, become events, and the map built from the
//! events must agree with `/proc/PID/maps`, byte for byte. Needs no privileges.
//!
//! - `sequences`: random calls of every kind in one thread.
//! - `races`: threads that hand addresses to each other, for the order of events.
//! - `programs`: whole programs from exec to exit.

mod programs;
mod races;
mod sequences;

use std::ops::Range;

use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};
use profiler::events::Call;
use profiler::regions::AddressSpace;
use profiler::residency::{MapsLine, Vma};

const PAGE: u64 = 4096;

/// The smaps of a process, in address order.
fn smaps(pid: i32) -> Vec<MemoryMap> {
    let process = Process::new(pid).expect("the process is alive");
    process.smaps().expect("smaps can be read").0
}

/// The part of a mapping inside `frame`, as the profiler sees it.
fn vma_inside(map: &MemoryMap, frame: &Range<u64>) -> Option<Vma> {
    let (start, end) = (map.address.0.max(frame.start), map.address.1.min(frame.end));
    let bits = [
        (MMPermissions::READ, libc::PROT_READ),
        (MMPermissions::WRITE, libc::PROT_WRITE),
        (MMPermissions::EXECUTE, libc::PROT_EXEC),
    ];
    let protection = bits
        .iter()
        .filter(|(bit, _)| map.perms.contains(*bit))
        .fold(0, |all, (_, protection)| all | *protection as u32);
    (start < end).then(|| {
        Vma::from(MapsLine {
            start,
            end,
            protection,
            shared: map.perms.contains(MMPermissions::SHARED),
            offset: map.offset,
            inode: map.inode,
            name: column(&map.pathname),
        })
    })
}

/// The last column of a line of maps.
fn column(path: &MMapPath) -> Option<String> {
    Some(match path {
        MMapPath::Path(path) => path.display().to_string(),
        MMapPath::Heap => "[heap]".into(),
        MMapPath::Stack => "[stack]".into(),
        MMapPath::Vdso => "[vdso]".into(),
        MMapPath::Vvar => "[vvar]".into(),
        MMapPath::Vsyscall => "[vsyscall]".into(),
        MMapPath::Other(name) => format!("[{name}]"),
        _ => return None,
    })
}

/// One line a piece, for the message of a failed assertion.
fn text(space: &AddressSpace) -> String {
    space
        .pieces()
        .map(|(range, piece)| format!("{:x}-{:x} {piece:?}\n", range.start, range.end))
        .collect()
}

/// `CLOCK_MONOTONIC`, in ns.
fn now_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec to write to, and the call is allowed after fork.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A system call that succeeded, if it is one that changes mappings.
fn call(number: i64, args: [u64; 6], result: u64) -> Option<Call> {
    let [a, b, c, d, e, f] = args;
    Some(match number {
        libc::SYS_mmap => Call::Mmap {
            hint: a,
            length: b,
            protection: c as u32,
            flags: d as u32,
            fd: e as i32,
            offset: f,
            address: result,
        },
        libc::SYS_munmap => Call::Munmap {
            address: a,
            length: b,
        },
        libc::SYS_mremap => Call::Mremap {
            old_address: a,
            old_length: b,
            new_length: c,
            flags: d as u32,
            address: result,
        },
        libc::SYS_mprotect => Call::Mprotect {
            address: a,
            length: b,
            protection: c as u32,
        },
        libc::SYS_madvise => Call::Madvise {
            address: a,
            length: b,
            advice: c as u32,
        },
        libc::SYS_brk => Call::Brk {
            requested: a,
            address: result,
        },
        _ => return None,
    })
}
