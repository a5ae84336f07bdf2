//! tracefs: where the kernel tells the ids and the record layouts of its tracepoints.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use thiserror::Error;

/// Where distributions mount it.
const MOUNT_POINT: &str = "/sys/kernel/tracing";

/// Why tracefs cannot be used.
#[derive(Debug, Error)]
pub enum TracefsError {
    /// It is not mounted and could not be mounted.
    #[error(
        "tracefs is not mounted at {MOUNT_POINT} and mounting it failed ({0}); try `sudo mount -t tracefs tracefs {MOUNT_POINT}`"
    )]
    Mount(nix::Error),
    /// The description of a tracepoint could not be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A tracepoint's record has no such field: the kernel is not one we know.
    #[error("the kernel's record of {tracepoint} has no field `{field}`")]
    Field {
        /// `category/name`
        tracepoint: String,
        /// The field.
        field: String,
    },
}

/// Makes tracefs readable for this process.
///
/// Where nobody has mounted it, it is mounted in a mount namespace of our own: nobody else sees it and
/// it goes with the process, however that ends. A program to be profiled must therefore be forked
/// before this is called.
pub fn make_available() -> Result<(), TracefsError> {
    if Path::new(MOUNT_POINT).join("events").exists() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(TracefsError::Mount)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(TracefsError::Mount)?;
    mount(
        Some("tracefs"),
        MOUNT_POINT,
        Some("tracefs"),
        MsFlags::empty(),
        none,
    )
    .map_err(TracefsError::Mount)
}

/// Byte offset of a field in the record of a tracepoint, from its `format` file.
pub fn field_offset(category: &str, name: &str, field: &str) -> Result<u32, TracefsError> {
    let path = Path::new(MOUNT_POINT)
        .join("events")
        .join(category)
        .join(name)
        .join("format");
    let text = fs::read_to_string(&path).map_err(|error| TracefsError::Read { path, error })?;
    parse_field_offset(&text, field).ok_or_else(|| TracefsError::Field {
        tracepoint: format!("{category}:{name}"),
        field: field.to_owned(),
    })
}

/// Finds `field` in the text of a `format` file: lines such as
/// `field:pid_t pid; offset:8; size:4; signed:1;`, with tabs between the parts.
fn parse_field_offset(format: &str, field: &str) -> Option<u32> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().strip_prefix("field:")?.split(';');
        let declared = parts.next()?.split_whitespace().last()?;
        let declared = declared.split('[').next()?;
        if declared != field {
            return None;
        }
        parts
            .find_map(|part| part.trim().strip_prefix("offset:"))?
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWTASK: &str = "name: task_newtask\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:pid_t pid;\toffset:8;\tsize:4;\tsigned:1;\n\
        \tfield:char comm[16];\toffset:12;\tsize:16;\tsigned:0;\n\
        \tfield:u64 clone_flags;\toffset:32;\tsize:8;\tsigned:0;\n";

    #[test]
    fn offsets_come_from_the_declared_name_alone() {
        assert_eq!(parse_field_offset(NEWTASK, "pid"), Some(8));
        assert_eq!(parse_field_offset(NEWTASK, "comm"), Some(12));
        assert_eq!(parse_field_offset(NEWTASK, "clone_flags"), Some(32));
        assert_eq!(parse_field_offset(NEWTASK, "flags"), None);
    }

    #[test]
    fn a_string_field_is_found_behind_its_type() {
        let exec = "\tfield:__data_loc char[] filename;\toffset:8;\tsize:4;\tsigned:0;\n";
        assert_eq!(parse_field_offset(exec, "filename"), Some(8));
    }
}
