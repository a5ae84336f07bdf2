//! What this process may do, and doing no more of it than it must.
//!
//! Loading probes takes `CAP_BPF` and `CAP_PERFMON`, and reading what tracefs says of them `CAP_DAC_READ_SEARCH`
//! where only root may read it, found out by trying on Linux 6.18. That is what `profiler setup` gives to the file,
//! as *permitted* and not as effective: each is taken up where it is needed ([`while_probing`]). The last one lets
//! any file be read, so it is put down again at once: the files that the person names are read as that person.

use std::{io, path::Path};

use caps::{CapSet, Capability, CapsHashSet};
use rustix::{
    fs::{XattrFlags, getxattr, removexattr, setxattr},
    io::Errno,
};

/// What loading and following takes.
const PROBING: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_PERFMON];
/// For tracefs alone.
const TRACEFS: Capability = Capability::CAP_DAC_READ_SEARCH;

/// What is given to a binary, and kept by a worker of the daemon.
fn given() -> impl Iterator<Item = Capability> {
    PROBING.into_iter().chain([TRACEFS])
}

/// [`given`] in the notation of setcap(8).
pub const FILE_CAPABILITIES: &str = "cap_bpf,cap_perfmon,cap_dac_read_search=p";

/// Whether probes may be loaded: root's `CAP_SYS_ADMIN`, or what [`FILE_CAPABILITIES`] gives.
pub fn may_probe() -> bool {
    let has = |cap| caps::has_cap(None, CapSet::Permitted, cap).unwrap_or(false);
    is_admin() || PROBING.into_iter().all(has)
}

/// Whether what Debian's kernels keep for `CAP_SYS_ADMIN` may be done.
pub fn is_admin() -> bool {
    caps::has_cap(None, CapSet::Permitted, Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// The names of what is permitted, of those that matter here.
pub fn permitted() -> Vec<String> {
    let permitted = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let mut names: Vec<String> = given()
        .chain([Capability::CAP_SYS_PTRACE, Capability::CAP_SYS_ADMIN])
        .filter(|cap| permitted.contains(cap))
        .map(|cap| cap.to_string())
        .collect();
    names.sort_unstable();
    names
}

/// Does what needs the capabilities for probes. Where they are only permitted they are taken up; that for tracefs is put
/// down afterwards. What is not permitted stays away: the kernel says so to whoever needs it.
pub fn while_probing<T>(work: impl FnOnce() -> T) -> T {
    for cap in PROBING {
        let _ = caps::raise(None, CapSet::Effective, cap);
    }
    let had = caps::has_cap(None, CapSet::Effective, TRACEFS).unwrap_or(false);
    let _ = caps::raise(None, CapSet::Effective, TRACEFS);
    let done = work();
    if !had {
        let _ = caps::drop(None, CapSet::Effective, TRACEFS);
    }
    done
}

/// Keeps what probes take as permitted, and gives up everything else for good. For a process that has just become
/// another user and has kept its capabilities over that.
pub fn keep_only_for_probes() -> Result<(), caps::errors::CapsError> {
    let keep: CapsHashSet = given().collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Effective)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Permitted, &keep)
}

/// The extended attribute in which a file has its capabilities (include/uapi/linux/xattr.h).
const ATTRIBUTE: &str = "security.capability";
/// `VFS_CAP_REVISION_2` (include/uapi/linux/capability.h): two words of 32 bits each for the permitted and the
/// inheritable, and no flag for effective.
const REVISION: u32 = 0x0200_0000;

/// Gives [`FILE_CAPABILITIES`] to a file, in place of any that it has. Takes root, and a file system with extended
/// attributes.
pub fn give_to_file(path: &Path) -> io::Result<()> {
    let permitted = given().fold(0, |mask, cap| mask | cap.bitmask());
    Ok(setxattr(
        path,
        ATTRIBUTE,
        &attribute(permitted),
        XattrFlags::empty(),
    )?)
}

/// Takes all capabilities from a file; says whether it had any.
pub fn take_from_file(path: &Path) -> io::Result<bool> {
    match removexattr(path, ATTRIBUTE) {
        Ok(()) => Ok(true),
        Err(Errno::NODATA) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a file has capabilities; `None` where that cannot be read.
pub fn file_has_any(path: &Path) -> Option<bool> {
    // With no room, the kernel tells the length.
    match getxattr(path, ATTRIBUTE, &mut [0_u8; 0]) {
        Ok(length) => Some(length > 0),
        Err(Errno::NODATA | Errno::NOTSUP) => Some(false),
        Err(_) => None,
    }
}

/// `struct vfs_cap_data` (include/uapi/linux/capability.h) with so many permitted capabilities, bit by bit.
fn attribute(permitted: u64) -> [u8; 20] {
    let (low, high) = (permitted as u32, (permitted >> 32) as u32);
    let mut bytes = [0; 20];
    for (at, word) in [REVISION, low, 0, high, 0].into_iter().enumerate() {
        bytes[at * 4..][..4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_file_has_no_capabilities_and_one_that_is_not_there_none_to_tell() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(file_has_any(file.path()), Some(false));
        assert!(!take_from_file(file.path()).unwrap());
        assert_eq!(file_has_any(Path::new("/nowhere/at/all")), None);
    }

    #[test]
    fn the_attribute_has_the_layout_of_the_kernel() {
        // What `setcap cap_bpf,cap_perfmon,cap_dac_read_search=p` leaves: bits 39, 38 and 2.
        assert_eq!(
            attribute(1 << 39 | 1 << 38 | 1 << 2),
            [
                0, 0, 0, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0
            ]
        );
    }
}
