//! Where a program's runtime or compiler comes from: one already on this machine when it is new enough, else a
//! project-local copy under `target/toolchains`, else (only when allowed) the system's package manager.
//!
//! What a toolchain is stands in `programs/toolchains/<id>.toml`; `programs/README.md` explains every field.

mod apt;
mod command;
mod debian;
mod definition;
mod npm;
mod search;
mod store;
mod variables;
mod version;
mod wheel;

pub use apt::Apt;
pub use command::Command;
pub use definition::{Definition, load};
pub use store::copy;
pub use variables::Variables;
pub use version::Version;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Whether the system itself may be changed to get a toolchain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// Install packages with the system's package manager when nothing else works.
    Allowed,
    /// Leave the system as it is.
    No,
}

/// A toolchain that is ready for use.
#[derive(Debug)]
pub struct Toolchain {
    /// Its tools and folders by name, all absolute: what a recipe may write in braces.
    pub variables: Variables,
    /// Environment variables its tools need beside the inherited ones.
    pub environment: BTreeMap<String, String>,
    /// The version found; `None` where the definition names no command that tells it.
    pub version: Option<Version>,
}

/// What all toolchains are obtained with.
pub struct Shop<'a> {
    /// Every definition by id.
    pub definitions: &'a BTreeMap<String, Definition>,
    /// The folder for downloads and unpacked copies, `target/toolchains`.
    pub folder: &'a Path,
    /// Whether the system may be changed.
    pub install: Install,
    /// Told what is being done now, in a few words; only called for work that takes time.
    pub progress: &'a dyn Fn(&str),
}

impl Shop<'_> {
    /// Finds the toolchain, or provisions it; the error tells each thing that was tried.
    pub fn obtain(&self, id: &str) -> Result<Toolchain> {
        let definition = self
            .definitions
            .get(id)
            .with_context(|| format!("no toolchain named {id:?} in programs/toolchains"))?;
        let mut tried = Vec::new();
        if let Some(find) = &definition.find {
            match search::find(find) {
                Ok(toolchain) => return Ok(toolchain),
                Err(error) => tried.push(format!("{error:#}")),
            }
        }
        match self.provision(id, definition) {
            Ok(Some(toolchain)) => return Ok(toolchain),
            Ok(None) => {}
            Err(error) => tried.push(format!("{error:#}")),
        }
        if self.install == Install::Allowed && !definition.system_packages().is_empty() {
            match self.install_on_system(definition) {
                Ok(toolchain) => return Ok(toolchain),
                Err(error) => tried.push(format!("{error:#}")),
            }
        }
        let packages = definition.system_packages();
        if !packages.is_empty() {
            let command = debian::install_command(packages).join(" ");
            tried.push(format!("to install {}: {command}", definition.label));
        }
        bail!("{}", tried.join("\n"))
    }

    /// Makes a project-local copy; `None` when the definition knows no way to.
    fn provision(&self, id: &str, definition: &Definition) -> Result<Option<Toolchain>> {
        let provision = &definition.provision;
        if !provision.debian.is_empty() {
            let root = Path::new("/");
            if let Ok(toolchain) = definition.in_tree(root) {
                return Ok(Some(toolchain)); // the packages are installed on this system
            }
            let tree = debian::unpacked(self, id, definition)?;
            return definition.in_tree(&tree).map(Some);
        }
        if let Some(wheel) = &provision.wheel {
            let tree = wheel::unpacked(self, id, definition, wheel)?;
            return definition.in_tree(&tree).map(Some);
        }
        if let Some(package) = &provision.npm {
            let tree = npm::unpacked(self, id, package, &provision.files)?;
            return definition.in_tree(&tree).map(Some);
        }
        Ok(None)
    }

    fn install_on_system(&self, definition: &Definition) -> Result<Toolchain> {
        (self.progress)(&format!("installing {} on the system", definition.label));
        debian::install(definition.system_packages())?;
        match &definition.find {
            Some(find) => search::find(find),
            None => definition.in_tree(Path::new("/")),
        }
    }
}
