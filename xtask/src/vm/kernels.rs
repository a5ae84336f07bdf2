//! The kernels: Debian's for cloud machines, which have every driver that a virtual machine needs built
//! in. Downloaded and checked by apt, unpacked under `target/toolchains`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::toolchains::{self, Apt, Command};

/// What is booted when nothing else is asked for: the oldest kernel that the profiler supports, the long-term
/// ones that followed, and a new one.
pub const DEFAULT_SERIES: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.2"];

/// Archive and suite that hold a series; any other is looked for in [`NEWER`].
const STABLE: [(&str, &str, &str); 3] = [
    ("5.10", "debian-security", "bullseye-security"),
    ("6.1", "debian", "bookworm"),
    ("6.12", "debian", "trixie"),
];
const NEWER: [(&str, &str); 2] = [("debian", "trixie-backports"), ("debian", "sid")];

/// A kernel that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// `6.12`
    pub series: String,
    /// Debian's name for it, which `uname -r` gives: `6.12.107+deb13-cloud-amd64`.
    pub release: String,
    /// The compressed image.
    pub image: PathBuf,
}

/// A package that holds a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Package {
    name: String,
    release: String,
}

/// The newest kernel of a series, downloaded unless it is here already.
pub fn obtain(series: &str, toolchains: &Path, progress: &dyn Fn(&str)) -> Result<Kernel> {
    let mut suites: Vec<_> = STABLE
        .iter()
        .filter(|(stable, ..)| *stable == series)
        .map(|(_, archive, suite)| (*archive, *suite))
        .collect();
    if suites.is_empty() {
        suites.extend(NEWER);
    }
    let mut found: Option<(Package, Apt)> = None;
    let mut seen = Vec::new();
    for (archive, suite) in &suites {
        let apt = Apt::of_suite(toolchains, archive, suite)?;
        apt.refresh(progress)?;
        let names = apt.packages()?;
        if let Some(package) = newest(series, &names)
            && found
                .as_ref()
                .is_none_or(|(other, _)| numbers(&other.release) < numbers(&package.release))
        {
            found = Some((package, apt));
        }
        let releases = names.iter().filter_map(|name| release(name));
        seen.extend(releases.map(|release| series_of(release).to_owned()));
    }
    let Some((package, apt)) = found else {
        seen.sort_by_key(|series| numbers(series));
        seen.dedup();
        let suites: Vec<_> = suites.iter().map(|(_, suite)| *suite).collect();
        bail!(
            "no kernel {series} in Debian's {}; seen {}, try one of these",
            suites.join(" and "),
            seen.join(", ")
        );
    };
    let tree = toolchains::copy(
        toolchains,
        &format!("linux-{}", package.release),
        &package.name,
        |tree| unpack(&package.name, &apt, tree, progress),
    )?;
    Ok(Kernel {
        series: series.to_owned(),
        release: package.release,
        image: tree.join(IMAGE),
    })
}

/// The image's name in its folder.
const IMAGE: &str = "vmlinuz";

fn unpack(package: &str, apt: &Apt, tree: &Path, progress: &dyn Fn(&str)) -> Result<()> {
    progress(&format!("downloading Debian's {package}"));
    let (archives, whole) = (
        tree.with_file_name("archives"),
        tree.with_file_name("whole"),
    );
    std::fs::create_dir(&archives)?;
    let file = apt.download(package, &archives)?.display().to_string();
    Command::new(&["dpkg-deb", "--extract", &file, &whole.display().to_string()])?.output()?;
    // The modules are not needed; they are some 100 MB.
    let image = find_image(&whole)?
        .with_context(|| format!("{package} holds no {IMAGE}, neither in boot nor with modules"))?;
    std::fs::rename(image, tree.join(IMAGE)).context("cannot keep the kernel's image")
}

/// `boot/vmlinuz-RELEASE`, since Linux 7.0 `usr/lib/modules/RELEASE/vmlinuz`.
fn find_image(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in folder.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_image(&entry.path())? {
                return Ok(Some(found));
            }
        } else if entry.file_name().to_string_lossy().starts_with(IMAGE) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Of all packages the newest kernel of a series. Since Linux 7.0 the image is in `linux-binary-*`, and
/// `linux-image-*` only depends on it.
fn newest(series: &str, names: &[String]) -> Option<Package> {
    let kernels = names.iter().filter_map(|name| {
        let release = release(name).filter(|release| series_of(release) == series)?;
        Some(Package {
            name: name.clone(),
            release: release.to_owned(),
        })
    });
    kernels.max_by_key(|package| {
        let has_image = package.name.starts_with(BINARY);
        (numbers(&package.release), has_image)
    })
}

const BINARY: &str = "linux-binary-";

/// The release in the name of a package that is a signed kernel for cloud machines.
fn release(package: &str) -> Option<&str> {
    let release = package
        .strip_prefix(BINARY)
        .or_else(|| package.strip_prefix("linux-image-"))?;
    (release.starts_with(|c: char| c.is_ascii_digit()) && release.ends_with("-cloud-amd64"))
        .then_some(release)
}

/// `6.12.107+deb13-cloud-amd64` → `6.12`
fn series_of(release: &str) -> &str {
    let end = release.match_indices('.').nth(1);
    end.map_or(release, |(end, _)| &release[..end])
}

/// The numbers in a name, in their order.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest_of(series: &str, names: &[&str]) -> Option<(String, String)> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        newest(series, &names).map(|package| (package.name, package.release))
    }

    #[test]
    fn the_newest_release_counts_by_its_numbers() {
        let names = [
            "linux-image-6.12.9+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64-dbg",
            "linux-image-6.12.107+deb13-rt-amd64",
            "linux-image-6.12.108+deb13-cloud-amd64-unsigned",
            "linux-headers-6.12.109+deb13-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        assert_eq!(
            newest_of("6.12", &names),
            Some((
                "linux-image-6.12.107+deb13-cloud-amd64".to_owned(),
                "6.12.107+deb13-cloud-amd64".to_owned()
            ))
        );
        assert_eq!(newest_of("6.1", &names).unwrap().1, "6.1.0-50-cloud-amd64");
        assert_eq!(newest_of("6.2", &names), None);
    }

    #[test]
    fn the_package_with_the_image_comes_before_the_one_that_depends_on_it() {
        let names = [
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-image-7.2.13+deb14-cloud-amd64",
            "linux-binary-unsigned-7.2.13+deb14-cloud-amd64",
        ];
        assert_eq!(newest_of("7.2", &names).unwrap().0, names[0]);
    }
}
