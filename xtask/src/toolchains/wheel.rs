//! Wheels of the Python package index, downloaded and unpacked by pip, which is a toolchain of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;

use super::definition::{Definition, Package};
use super::{Command, Shop, Toolchain, store};

/// The unpacked wheel.
pub fn unpacked(
    shop: &Shop,
    id: &str,
    definition: &Definition,
    wheel: &Package,
) -> Result<PathBuf> {
    let sha256 = wheel.sha256_here()?;
    store::copy(shop.folder, id, &definition.made_from(), |tree| {
        let pip = Pip(shop.obtain("pip")?);
        let downloads = tree.with_file_name("downloads");
        (shop.progress)(&format!("downloading {} {}", wheel.package, wheel.version));
        let pinned = format!("{}=={}", wheel.package, wheel.version);
        pip.run(&[
            "download",
            "--only-binary",
            ":all:",
            "--dest",
            store::word(&downloads)?,
            &pinned,
        ])?;

        let file = store::downloaded(&downloads, ("pip", &pinned, "wheel"), sha256)?;

        (shop.progress)(&format!("unpacking {} {}", wheel.package, wheel.version));
        pip.run(&[
            "install",
            "--no-index",
            "--no-compile",
            "--target",
            store::word(tree)?,
            store::word(&file)?,
        ])
    })
}

struct Pip(Toolchain);

impl Pip {
    fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut words = vec![self.0.variables.fill("{python3}")?];
        words.extend(["-m", "pip"].map(str::to_owned));
        words.extend(arguments.iter().map(|&word| word.to_owned()));
        words.extend(["--no-deps", "--quiet", "--no-cache-dir"].map(str::to_owned));
        let mut environment: BTreeMap<_, _> = self.0.environment.clone();
        // Nothing we do needs a newer pip or a virtual environment, whatever the user's settings say.
        environment.insert("PIP_DISABLE_PIP_VERSION_CHECK".into(), "1".into());
        environment.insert("PIP_REQUIRE_VIRTUALENV".into(), "0".into());
        Command::new(&words)?.environment(&environment).output()?;
        Ok(())
    }
}
