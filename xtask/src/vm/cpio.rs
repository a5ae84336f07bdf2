//! The archive that a kernel unpacks into its first root file system: cpio in the "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's sources).

use std::{
    collections::BTreeMap,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// What stands at a path in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A folder.
    Folder,
    /// A file that everybody may read and execute.
    File(Vec<u8>),
    /// A symbolic link to this path.
    Link(PathBuf),
    /// A character device: major and minor number.
    Device(u32, u32),
}

/// `S_IFDIR` and so on: the kind of a file in its mode.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const DEVICE: u32 = 0o020_000;

/// The archive of these absolute paths. A path sorts behind the folder it is in, as the kernel needs it.
pub fn archive(entries: &BTreeMap<PathBuf, Entry>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, (path, entry)) in entries.iter().enumerate() {
        let (mode, content, device) = match entry {
            Entry::Folder => (FOLDER | 0o755, &[][..], (0, 0)),
            Entry::File(content) => (FILE | 0o755, content.as_slice(), (0, 0)),
            Entry::Link(target) => (LINK | 0o777, target.as_os_str().as_bytes(), (0, 0)),
            Entry::Device(major, minor) => (DEVICE | 0o600, &[][..], (*major, *minor)),
        };
        let name = path.strip_prefix("/").unwrap_or(path);
        append(&mut bytes, number as u32 + 1, mode, name, content, device);
    }
    append(&mut bytes, 0, 0, Path::new("TRAILER!!!"), &[], (0, 0));
    bytes
}

fn append(
    bytes: &mut Vec<u8>,
    number: u32,
    mode: u32,
    name: &Path,
    content: &[u8],
    device: (u32, u32),
) {
    let name = name.as_os_str().as_bytes();
    let size = u32::try_from(content.len()).expect("no file of 4 GiB is packed");
    // Number, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), length of
    // the name with its zero, checksum.
    let fields = [
        number,
        mode,
        0,
        0,
        1,
        0,
        size,
        0,
        0,
        device.0,
        device.1,
        name.len() as u32 + 1,
        0,
    ];
    bytes.extend(b"070701");
    for field in fields {
        bytes.extend(format!("{field:08X}").bytes());
    }
    bytes.extend(name);
    bytes.push(0);
    align(bytes);
    bytes.extend(content);
    align(bytes);
}

/// Header with name, and content, each end at a multiple of four.
fn align(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_newc() {
        let entries = BTreeMap::from([
            ("/bin".into(), Entry::Folder),
            ("/bin/sh".into(), Entry::File(b"hello".to_vec())),
            ("/console".into(), Entry::Device(5, 1)),
            ("/lib".into(), Entry::Link("usr/lib".into())),
        ]);
        // Number, mode (040755, 0100755, 020600, 0120777), owner, group, links, time; size, device of the file
        // system, device, length of the name, checksum; name; content.
        let expected = concat!(
            "070701 00000001 000041ED 00000000 00000000 00000001 00000000 ",
            "00000000 00000000 00000000 00000000 00000000 00000004 00000000 ",
            "bin\0\0\0",
            "070701 00000002 000081ED 00000000 00000000 00000001 00000000 ",
            "00000005 00000000 00000000 00000000 00000000 00000007 00000000 ",
            "bin/sh\0\0\0\0hello\0\0\0",
            "070701 00000003 00002180 00000000 00000000 00000001 00000000 ",
            "00000000 00000000 00000000 00000005 00000001 00000008 00000000 ",
            "console\0\0\0",
            "070701 00000004 0000A1FF 00000000 00000000 00000001 00000000 ",
            "00000007 00000000 00000000 00000000 00000000 00000004 00000000 ",
            "lib\0\0\0usr/lib\0",
            "070701 00000000 00000000 00000000 00000000 00000001 00000000 ",
            "00000000 00000000 00000000 00000000 00000000 0000000B 00000000 ",
            "TRAILER!!!\0\0\0\0",
        )
        .replace(' ', "");
        assert_eq!(
            String::from_utf8_lossy(&archive(&entries)).replace('\0', "·"),
            expected.replace('\0', "·")
        );
    }
}
