//! The folder of unpacked copies. A copy is made in a temporary folder and renamed when it is whole, so that a folder
//! that has its final name is complete, whatever interrupted us before.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// The finished copy of `id` in the folder `toolchains`, made by `fill` in the given empty folder unless it is there
/// already. Its name holds a hash of what it is made from, so that a changed pin makes a new copy.
pub fn copy(
    toolchains: &Path,
    id: &str,
    made_from: &impl Serialize,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let name = format!(
        "{id}-{}",
        &hex(&Sha256::digest(serde_json::to_vec(made_from)?))[..8]
    );
    let finished = toolchains.join(&name);
    if finished.exists() {
        return Ok(finished);
    }
    std::fs::create_dir_all(toolchains)
        .with_context(|| format!("cannot create {}", toolchains.display()))?;
    let unfinished = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .tempdir_in(toolchains)?;
    let tree = unfinished.path().join("tree");
    std::fs::create_dir(&tree)?;
    fill(&tree)?;
    match std::fs::rename(&tree, &finished) {
        Err(_) if finished.exists() => {} // another process was faster; its copy is as good
        renamed => renamed.with_context(|| format!("cannot create {}", finished.display()))?,
    }
    Ok(finished)
}

/// The one file that `tool` has downloaded into `folder` when asked for `pinned`, which is to be one `kind`, once it
/// is [verified](verify).
pub fn downloaded(
    folder: &Path,
    (tool, pinned, kind): (&str, &str, &str),
    sha256: &str,
) -> Result<PathBuf> {
    let files = folder.read_dir()?.collect::<Result<Vec<_>, _>>()?;
    ensure!(
        files.len() == 1,
        "{tool} left {} files for {pinned}, expected one {kind}",
        files.len()
    );
    let file = files[0].path();
    verify(&file, sha256)?;
    Ok(file)
}

/// A path as a word of a command.
pub fn word(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not valid UTF-8", path.display()))
}

/// Refuses a file whose SHA-256 is not the pinned one.
fn verify(file: &Path, sha256: &str) -> Result<()> {
    let mut hasher = Sha256::new();
    let mut content = std::fs::File::open(file)?;
    std::io::copy(&mut content, &mut hasher)?;
    let seen = hex(&hasher.finalize());
    if seen != sha256 {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        bail!("{name} was downloaded with SHA-256 {seen}, expected {sha256}; it is not used");
    }
    Ok(())
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_checksum_is_refused_in_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("go.whl");
        std::fs::write(&file, "hello").unwrap();
        let right = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        verify(&file, right).unwrap();
        let wrong = right.replace('2', "3");
        assert_eq!(
            verify(&file, &wrong).unwrap_err().to_string(),
            format!("go.whl was downloaded with SHA-256 {right}, expected {wrong}; it is not used")
        );
    }

    #[test]
    fn a_copy_that_failed_is_not_taken_for_a_finished_one() {
        let folder = tempfile::tempdir().unwrap();
        let pin = "version 1";
        let half = |tree: &Path| {
            std::fs::write(tree.join("half"), "")?;
            bail!("the power went off")
        };
        assert!(copy(folder.path(), "x", &pin, half).is_err());
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);

        let whole = |tree: &Path| Ok(std::fs::write(tree.join("whole"), "")?);
        let tree = copy(folder.path(), "x", &pin, whole).unwrap();
        assert!(tree.join("whole").exists());
        let again = copy(folder.path(), "x", &pin, |_| bail!("made twice")).unwrap();
        assert_eq!(again, tree);
    }
}
