//! `programs/toolchains/<id>.toml`: what a toolchain is, and the ways to have it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{Toolchain, Variables, Version, search};

/// One toolchain as its file describes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Its name for people, as it stands after "needs".
    pub label: String,
    /// How one that is already here is found and judged.
    pub find: Option<Find>,
    /// How a project-local copy is made.
    #[serde(default)]
    pub provision: Provision,
}

/// Where to look for a toolchain that is already on the machine.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Find {
    /// The programs that must be there, all in one folder; each becomes a variable of its name.
    pub programs: Vec<String>,
    /// Folders to look in after those of `PATH`; a segment may hold one `*`.
    #[serde(default)]
    pub folders: Vec<String>,
    /// A command whose output is the path of the program behind `programs[0]`.
    pub real: Option<Vec<String>>,
    /// The command whose output holds the version: its first number counts.
    pub version: Vec<String>,
    /// The oldest version that will do.
    pub minimum: Version,
    /// What the version is of, where it is not of the programs.
    pub version_of: Option<String>,
}

/// How a copy is made without changing the system.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provision {
    /// Debian packages to unpack with everything they depend on that the system lacks.
    #[serde(default)]
    pub debian: Vec<String>,
    /// A wheel of the Python package index to unpack.
    pub wheel: Option<Package>,
    /// A package of the npm registry of which to unpack `files`.
    pub npm: Option<Package>,
    /// Patterns of the npm package's files, by the folder of the copy that they go to.
    #[serde(default)]
    pub files: BTreeMap<String, Vec<String>>,
    /// Debian packages that give the toolchain when installed on the system; `debian` unless said otherwise.
    #[serde(default)]
    pub install: Vec<String>,
    /// Files and folders inside the copy, each becoming a variable; a segment may hold one `*`.
    #[serde(default)]
    pub paths: BTreeMap<String, String>,
    /// Environment its tools need; may name the variables, `{tree}` and `{libraries}`.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// One pinned package. Serialised again, it is part of the unpacked copy's name.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// The package's name.
    pub package: String,
    /// The exact version.
    pub version: String,
    /// The SHA-256 of its file in lower-case hex, by processor architecture (`x86_64`, `aarch64`).
    pub sha256: BTreeMap<String, String>,
}

/// Reads every definition in `folder`; the id is the file's name without `.toml`.
pub fn load(folder: &Path) -> Result<BTreeMap<String, Definition>> {
    let mut definitions = BTreeMap::new();
    let entries = folder
        .read_dir()
        .with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let id = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&path)?;
        let definition = parse(&text).with_context(|| path.display().to_string())?;
        definitions.insert(id, definition);
    }
    Ok(definitions)
}

fn parse(text: &str) -> Result<Definition> {
    let definition: Definition = toml::from_str(text)?;
    if let Some(find) = &definition.find {
        ensure!(
            !find.programs.is_empty(),
            "`find.programs` is empty, expected at least one program"
        );
    }
    let provision = &definition.provision;
    let sources = [
        !provision.debian.is_empty(),
        provision.wheel.is_some(),
        provision.npm.is_some(),
    ];
    ensure!(
        sources.into_iter().filter(|&given| given).count() <= 1,
        "more than one of `provision.debian`, `provision.wheel` and `provision.npm` is given, expected one"
    );
    ensure!(
        provision.npm.is_some() != provision.files.is_empty(),
        "`provision.files` belongs to `provision.npm`, expected both or neither"
    );
    let packages = provision.wheel.iter().chain(&provision.npm);
    for (architecture, sha256) in packages.flat_map(|package| &package.sha256) {
        ensure!(
            sha256.len() == 64
                && sha256
                    .bytes()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
            "`sha256.{architecture}` of the package is {sha256:?}, expected 64 lower-case hex digits"
        );
    }
    Ok(definition)
}

impl Definition {
    /// What a project-local copy is made from.
    pub fn made_from(&self) -> impl Serialize {
        (&self.provision.debian, &self.provision.wheel)
    }

    /// The packages that give this toolchain when installed on the system; may be empty.
    pub fn system_packages(&self) -> &[String] {
        match self.provision.install.as_slice() {
            [] => &self.provision.debian,
            packages => packages,
        }
    }

    /// The toolchain unpacked under `tree`. A path that is not there is looked for at the same place on the system,
    /// since apt leaves out the dependencies that are installed already.
    pub fn in_tree(&self, tree: &Path) -> Result<Toolchain> {
        let mut variables = Variables::default();
        variables.set("tree", tree.display().to_string().trim_end_matches('/'));
        variables.set("libraries", &library_folders(tree));
        for (name, pattern) in &self.provision.paths {
            let path = [tree, Path::new("/")]
                .iter()
                .find_map(|root| first_match(&root.join(pattern)))
                .with_context(|| format!("no {pattern} in {}", tree.display()))?;
            variables.set(name, &path.display().to_string());
        }
        let environment = variables.fill_map(&self.provision.environment)?;
        let version = match &self.find {
            Some(find) => Some(search::version(find, &variables, &environment)?),
            None => None,
        };
        Ok(Toolchain {
            variables,
            environment,
            version,
        })
    }
}

/// What `LD_LIBRARY_PATH` must be for programs of an unpacked Debian tree.
fn library_folders(tree: &Path) -> String {
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    ["usr/lib", "lib"]
        .iter()
        .flat_map(|lib| [tree.join(lib).join(&triplet), tree.join(lib)])
        .map(|folder| folder.display().to_string())
        .collect::<Vec<_>>()
        .join(":")
}

fn first_match(pattern: &Path) -> Option<PathBuf> {
    search::matches(pattern).into_iter().next()
}

impl Find {
    /// What was looked for, for the message that it was not found.
    pub fn wanted(&self) -> String {
        let (programs, minimum) = (self.programs.join(" and "), &self.minimum);
        match &self.version_of {
            Some(of) => format!("{programs} with {of} {minimum} or newer on PATH"),
            None => format!("{programs} {minimum} or newer on PATH"),
        }
    }
}

impl Package {
    /// The checksum for this machine's processor.
    pub fn sha256_here(&self) -> Result<&str> {
        let here = std::env::consts::ARCH;
        let Some(sha256) = self.sha256.get(here) else {
            let known: Vec<_> = self.sha256.keys().map(String::as_str).collect();
            bail!(
                "{} {} is pinned for {} only, this machine is {here}",
                self.package,
                self.version,
                known.join(", ")
            );
        };
        Ok(sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_is_refused_by_name() {
        let error = parse("label = 'x'\nfnid = 1").unwrap_err();
        assert!(format!("{error:#}").contains("fnid"), "{error:#}");
    }

    #[test]
    fn a_short_checksum_is_refused() {
        let text = "label = 'x'\n[provision.wheel]\npackage = 'p'\nversion = '1'\nsha256 = { x86_64 = 'abc' }";
        let error = parse(text).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("\"abc\", expected 64 lower-case hex digits"),
            "{error}"
        );
    }

    #[test]
    fn paths_are_looked_for_in_the_tree_and_then_on_the_system() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tree.path().join("opt/lib-7/bin")).unwrap();
        let text = "label = 'x'\n[provision]\npaths = { bin = 'opt/lib-*/bin', proc = 'proc/self/maps' }\n\
                    environment = { HERE = '{bin}:{tree}' }";
        let toolchain = parse(text).unwrap().in_tree(tree.path()).unwrap();
        let root = tree.path().display();
        assert_eq!(
            toolchain.environment["HERE"],
            format!("{root}/opt/lib-7/bin:{root}")
        );
        assert_eq!(toolchain.variables.get("proc"), Some("/proc/self/maps"));
    }
}
