//! Looking for a toolchain that is already on the machine.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::definition::Find;
use super::{Command, Toolchain, Variables, Version};

/// The first toolchain that is complete and new enough: along `PATH`, then in the definition's folders.
pub fn find(find: &Find) -> Result<Toolchain> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(
        find.folders
            .iter()
            .flat_map(|folder| matches(folder.as_ref())),
    );
    find_in(find, folders)
}

fn find_in(find: &Find, folders: impl Iterator<Item = PathBuf>) -> Result<Toolchain> {
    let mut rejected = Vec::new();
    for folder in folders.filter(|folder| folder.is_absolute()) {
        if !find
            .programs
            .iter()
            .all(|program| is_executable(&folder.join(program)))
        {
            continue;
        }
        match inspect(find, &folder) {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => rejected.push(format!("{error:#}")),
        }
    }
    rejected.dedup();
    match rejected.first() {
        None => bail!("no {}", find.wanted()),
        Some(first) => bail!("no {} ({first})", find.wanted()),
    }
}

fn inspect(find: &Find, folder: &Path) -> Result<Toolchain> {
    let mut variables = Variables::default();
    for program in &find.programs {
        variables.set(program, &folder.join(program).display().to_string());
    }
    if let Some(real) = &find.real {
        let path = Command::new(&variables.fill_all(real)?)?.output()?;
        variables.set(&find.programs[0], path.trim());
    }
    let environment = BTreeMap::new();
    let version = version(find, &variables, &environment)?;
    Ok(Toolchain {
        variables,
        environment,
        version: Some(version),
    })
}

/// The version of the toolchain behind `variables`; an error when it is too old.
pub fn version(
    find: &Find,
    variables: &Variables,
    environment: &BTreeMap<String, String>,
) -> Result<Version> {
    let command = variables.fill_all(&find.version)?;
    let answer = Command::new(&command)?.environment(environment).output()?;
    let version = Version::first_in(&answer)
        .with_context(|| format!("no version in the answer of {}", command[0]))?;
    if version < find.minimum {
        bail!("{} is {version}", command[0]);
    }
    Ok(version)
}

/// The existing paths that `pattern` stands for, sorted; each segment may hold one `*`.
pub fn matches(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for segment in pattern.components() {
        let segment = segment.as_os_str().to_string_lossy();
        found = match segment.split_once('*') {
            None => found.into_iter().map(|path| path.join(&*segment)).collect(),
            Some((start, end)) => found
                .iter()
                .flat_map(|folder| children(folder, start, end))
                .collect(),
        };
    }
    found.retain(|path| path.exists());
    found
}

fn children(folder: &Path, start: &str, end: &str) -> Vec<PathBuf> {
    let mut names: Vec<_> = folder
        .read_dir()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        })
        .collect();
    names.sort();
    names.iter().map(|name| folder.join(name)).collect()
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a program `tool` that answers with `version`.
    fn tool(version: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tool");
        std::fs::write(&path, format!("#!/bin/sh\necho tool v{version}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    fn wanted() -> Find {
        toml::from_str("programs = ['tool']\nversion = ['{tool}']\nminimum = '21'").unwrap()
    }

    #[test]
    fn an_old_one_is_passed_over_for_a_newer_one_behind_it() {
        let (old, new) = (tool("17.0.15"), tool("25.0.2"));
        let folders = [old.path().to_owned(), new.path().to_owned()];
        let found = find_in(&wanted(), folders.into_iter()).unwrap();
        assert_eq!(found.version.unwrap().to_string(), "25.0.2");
        assert_eq!(
            found.variables.get("tool"),
            new.path().join("tool").to_str()
        );
    }

    #[test]
    fn what_was_seen_is_told_beside_what_is_needed() {
        let old = tool("17.0.15");
        let error = find_in(&wanted(), [old.path().to_owned()].into_iter()).unwrap_err();
        let path = old.path().join("tool");
        assert_eq!(
            error.to_string(),
            format!(
                "no tool 21 or newer on PATH ({} is 17.0.15)",
                path.display()
            )
        );
        let error = find_in(&wanted(), std::iter::empty()).unwrap_err();
        assert_eq!(error.to_string(), "no tool 21 or newer on PATH");
    }
}
