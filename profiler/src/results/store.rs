//! `results.json` on disk: written whole or not at all, read back with errors that say what to do.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::{Results, SCHEMA_VERSION};

/// User and group id that files shall belong to: the invoking user's when running under sudo
/// (`SUDO_UID`, `SUDO_GID`), so that root leaves nothing behind that the user cannot delete.
pub type Owner = (u32, u32);

/// Why results could not be written or read.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `write`, `read`, `create`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is not the JSON document that the schema describes.
    #[error("{} is not a results file", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where it departs from the schema, with line and column.
        source: serde_json::Error,
    },
    /// The file was written to another version of the schema.
    #[error("{} has results schema version {seen}, but this profiler reads version {expected}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        seen: u32,
        /// [`SCHEMA_VERSION`]
        expected: u32,
    },
}

fn failed_to(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source,
    }
}

/// Creates `directory` where it is missing and proves that a file can be made in it, so that a long
/// run does not end in an error that was there from the start.
pub fn ensure_writable(directory: &Path, owner: Option<Owner>) -> Result<(), StoreError> {
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
        .collect();
    fs::create_dir_all(directory).map_err(failed_to("create", directory))?;
    if let Some((user, group)) = owner {
        for created in missing {
            chown(created, Some(user), Some(group))
                .map_err(failed_to("change the owner of", created))?;
        }
    }
    // Asking access(2) would miss read-only and full file systems; making a file does not.
    let mut probe = tempfile::tempfile_in(directory).map_err(failed_to("write to", directory))?;
    probe
        .write_all(b"x")
        .map_err(failed_to("write to", directory))
}

/// `results` as pretty JSON.
pub fn json(results: &Results) -> Result<Vec<u8>, serde_json::Error> {
    let mut json = serde_json::to_vec_pretty(results)?;
    json.push(b'\n');
    Ok(json)
}

/// Writes `results` to `path` as [`json`]: see [`write_atomically`].
pub fn write(results: &Results, path: &Path, owner: Option<Owner>) -> Result<(), StoreError> {
    let json = json(results).map_err(|source| StoreError::Malformed {
        path: path.to_owned(),
        source,
    })?;
    write_atomically(path, &json, owner)
}

/// Replaces `path` with `bytes`: a reader, or a crash at any moment, sees the old file or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8], owner: Option<Owner>) -> Result<(), StoreError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed = || failed_to("write", path);
    // rename(2) is atomic within one file system only, hence the same directory.
    let mut file = tempfile::Builder::new()
        .prefix(".profiler-")
        .permissions(Permissions::from_mode(0o666)) // less the umask, as for any file; tempfile's own default is 0600
        .tempfile_in(directory)
        .map_err(failed())?;
    file.write_all(bytes).map_err(failed())?;
    if let Some((user, group)) = owner {
        chown(file.path(), Some(user), Some(group))
            .map_err(failed_to("change the owner of", path))?;
    }
    // Without it, a power cut may leave the new name on an empty file.
    file.as_file().sync_all().map_err(failed())?;
    file.persist(path).map_err(|error| failed()(error.error))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed())
}

/// Reads a results file back.
pub fn read(path: &Path) -> Result<Results, StoreError> {
    /// The one field that every version has: looked at first, so that a file of another version is
    /// called that and not "malformed".
    #[derive(Deserialize)]
    struct Version {
        schema_version: u32,
    }
    let json = fs::read(path).map_err(failed_to("read", path))?;
    let malformed = |source| StoreError::Malformed {
        path: path.to_owned(),
        source,
    };
    let Version {
        schema_version: seen,
    } = serde_json::from_slice(&json).map_err(malformed)?;
    if seen != SCHEMA_VERSION {
        return Err(StoreError::Version {
            path: path.to_owned(),
            seen,
            expected: SCHEMA_VERSION,
        });
    }
    serde_json::from_slice(&json).map_err(malformed)
}
