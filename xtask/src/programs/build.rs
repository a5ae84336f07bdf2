//! Building a program once: again only when its source, its commands or a toolchain changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::toolchains::Command;

/// All that decides what a build makes.
pub struct Plan<'a> {
    /// The program's folder, where the commands run.
    pub source: &'a Path,
    /// Another folder with sources, if there is one.
    pub shared: Option<&'a Path>,
    /// Where the commands leave what they make.
    pub folder: &'a Path,
    /// The commands, in order.
    pub commands: Vec<Vec<String>>,
    /// Environment variables of the commands.
    pub environment: BTreeMap<String, String>,
    /// Versions of the toolchains.
    pub versions: Vec<String>,
}

impl Plan<'_> {
    /// Runs the commands, unless the same plan was carried out before; `starts` is told when they are run.
    pub fn carry_out(&self, starts: &dyn Fn()) -> Result<()> {
        let stamp = self.folder.join(".built");
        let fingerprint = self.fingerprint()?;
        if std::fs::read_to_string(&stamp).is_ok_and(|built| built == fingerprint) {
            return Ok(());
        }
        if !self.commands.is_empty() {
            starts();
        }
        std::fs::create_dir_all(self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        for words in &self.commands {
            Command::new(words)?
                .environment(&self.environment)
                .folder(self.source)
                .output()?;
        }
        std::fs::write(&stamp, fingerprint)
            .with_context(|| format!("cannot write {}", stamp.display()))
    }

    fn fingerprint(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        hasher.update(format!(
            "{:?}{:?}{:?}",
            self.commands, self.environment, self.versions
        ));
        let mut files = Vec::new();
        for folder in [Some(self.source), self.shared].into_iter().flatten() {
            list_files(folder, &mut files)?;
        }
        files.sort();
        for file in files {
            hasher.update(file.as_os_str().as_encoded_bytes());
            hasher.update(Sha256::digest(std::fs::read(&file)?));
        }
        Ok(hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }
}

fn list_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in folder
        .read_dir()
        .with_context(|| format!("cannot read {}", folder.display()))?
    {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_builds_again() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let builds = target.path().join("builds");
        std::fs::write(source.path().join("main.c"), "1").unwrap();
        let command = ["sh", "-c", &format!("echo built >> {}", builds.display())]
            .map(str::to_owned)
            .to_vec();
        let mut plan = Plan {
            source: source.path(),
            shared: None,
            folder: target.path(),
            commands: vec![command],
            environment: BTreeMap::new(),
            versions: vec!["12.2".into()],
        };
        let count = |plan: &Plan| {
            plan.carry_out(&|| {}).unwrap();
            std::fs::read_to_string(&builds).unwrap().lines().count()
        };
        assert_eq!(count(&plan), 1);
        assert_eq!(count(&plan), 1);
        std::fs::write(source.path().join("main.c"), "2").unwrap();
        assert_eq!(count(&plan), 2);
        plan.versions = vec!["12.3".into()];
        assert_eq!(count(&plan), 3);
    }
}
