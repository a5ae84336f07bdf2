//! Packages of the npm registry, downloaded by npm, which is a toolchain of its own, and unpacked by tar. Nothing
//! of them is run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::definition::Package;
use super::{Command, Shop, store};

/// The unpacked files.
pub fn unpacked(
    shop: &Shop,
    id: &str,
    package: &Package,
    files: &BTreeMap<String, Vec<String>>,
) -> Result<PathBuf> {
    let sha256 = package.sha256_here()?;
    store::copy(shop.folder, id, &(package, files), |tree| {
        let downloads = tree.with_file_name("downloads");
        std::fs::create_dir(&downloads)?;
        let asked = format!("{} {}", package.package, package.version);
        (shop.progress)(&format!("downloading {asked}"));
        download(shop, package, &downloads)?;

        let file = store::downloaded(&downloads, ("npm", &asked, "package"), sha256)?;

        (shop.progress)(&format!("unpacking {asked}"));
        for (folder, patterns) in files {
            unpack(&file, &tree.join(folder), patterns)?;
        }
        Ok(())
    })
}

fn download(shop: &Shop, package: &Package, into: &Path) -> Result<()> {
    let npm = shop.obtain("npm")?;
    let mut words = vec![npm.variables.fill("{node}")?, npm.variables.fill("{npm}")?];
    let pinned = format!("{}@{}", package.package, package.version);
    words.extend(
        [
            "pack",
            "--silent",
            "--pack-destination",
            store::word(into)?,
            &pinned,
        ]
        .map(str::to_owned),
    );
    let mut environment = npm.environment.clone();
    // What npm keeps would be another copy of everything.
    let cache = into.with_file_name("npm-cache");
    environment.insert("npm_config_cache".into(), store::word(&cache)?.into());
    environment.insert("npm_config_update_notifier".into(), "false".into());
    Command::new(&words)?
        .environment(&environment)
        .folder(into)
        .output()?;
    Ok(())
}

/// Files whose paths inside the package match, all into `folder`, without the folders that they lie in.
fn unpack(file: &Path, folder: &Path, patterns: &[String]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut words = [
        "tar",
        "--extract",
        "--gzip",
        "--no-same-owner",
        "--wildcards",
    ]
    .map(str::to_owned)
    .to_vec();
    words.push("--transform=s,.*/,,".into());
    words.extend(["--file".to_owned(), store::word(file)?.to_owned()]);
    words.extend(["--directory".to_owned(), store::word(folder)?.to_owned()]);
    words.push("--".into());
    words.extend(patterns.iter().cloned());
    Command::new(&words)?.output()?;
    Ok(())
}
