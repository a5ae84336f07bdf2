//! Debian packages, downloaded by apt with what they depend on and unpacked without being installed.
//!
//! apt works with package lists, cache and locks of our own, so it needs no root and changes nothing. It reads the
//! system's list of sources and of installed packages: what is installed is not downloaded again. apt checks every
//! package against the archive's signed index. Versions are not pinned, since a mirror keeps only the newest.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Command, Definition, Shop, store};

/// How long a downloaded package list is good for.
const LIST_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The packages of `definition` and what the system lacks for them, in one tree.
pub fn unpacked(shop: &Shop, id: &str, definition: &Definition) -> Result<PathBuf> {
    store::copy(shop, id, definition, |tree| {
        let packages = &definition.provision.debian;
        let names = packages.join(", ");
        let apt = Apt {
            folder: std::path::absolute(shop.folder.join("apt"))?,
        };
        let archives = tree.with_file_name("archives");
        std::fs::create_dir_all(archives.join("partial"))?;
        apt.refresh(shop.progress)?;

        (shop.progress)(&format!("downloading Debian's {names}"));
        let archives_option = format!("Dir::Cache::archives={}", archives.display());
        let mut words = vec![
            "-o",
            &archives_option,
            "install",
            "--yes",
            "--download-only",
            "--no-install-recommends",
        ];
        words.extend(packages.iter().map(String::as_str));
        apt.run(&words)?;

        (shop.progress)(&format!("unpacking Debian's {names}"));
        for archive in archives.read_dir()? {
            let archive = archive?;
            let name = archive.file_name();
            // The C library must stay the one that the system's dynamic linker belongs to.
            if name.to_string_lossy().starts_with("libc6_") || archive.file_type()?.is_dir() {
                continue;
            }
            let file = archive.path().display().to_string();
            Command::new(&["dpkg-deb", "--extract", &file, &tree.display().to_string()])?
                .output()?;
        }
        point_links_into(tree, tree)
    })
}

/// Installs packages on the system itself, through sudo unless we are root.
pub fn install(packages: &[String]) -> Result<()> {
    // SAFETY: geteuid reads a number of this process and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let update = ["sudo", "apt-get", "update"].map(str::to_owned).to_vec();
    for words in [update, install_command(packages)] {
        Command::new(if is_root { &words[1..] } else { &words })?.output()?;
    }
    Ok(())
}

/// What a person would type to install the packages.
pub fn install_command(packages: &[String]) -> Vec<String> {
    let words = [
        "sudo",
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
    ];
    words
        .map(str::to_owned)
        .into_iter()
        .chain(packages.iter().cloned())
        .collect()
}

struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Downloads the package lists unless there are fresh ones.
    fn refresh(&self, progress: &dyn Fn(&str)) -> Result<()> {
        let stamp = self.folder.join("refreshed");
        let age = stamp
            .metadata()
            .ok()
            .and_then(|file| file.modified().ok()?.elapsed().ok());
        if age.is_some_and(|age| age < LIST_AGE) {
            return Ok(());
        }
        progress("downloading Debian's package lists");
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(self.folder.join(folder))?;
        }
        self.run(&["-o", "Acquire::Languages=none", "update"])?;
        std::fs::write(stamp, "").context("cannot note that the package lists are fresh")
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        if !Path::new("/var/lib/dpkg/status").exists() {
            bail!("this is not a Debian system, so its packages cannot be unpacked");
        }
        let folder = self.folder.display();
        let options = [
            format!("Dir::State={folder}/state"),
            format!("Dir::Cache={folder}/cache"),
            // apt started by root would download as a user who cannot enter our folder.
            "APT::Sandbox::User=root".to_owned(),
            // The lock that is not ours to take is that of the installed packages, which we only read.
            "Debug::NoLocking=1".to_owned(),
            "Acquire::Retries=2".to_owned(),
        ];
        let mut words = vec!["apt-get", "-qq"];
        words.extend(options.iter().flat_map(|option| ["-o", option.as_str()]));
        words.extend(arguments);
        Command::new(&words)?.output()?;
        Ok(())
    }
}

/// Makes absolute links within `folder` point into `tree`, where their targets were unpacked.
fn point_links_into(tree: &Path, folder: &Path) -> Result<()> {
    for entry in folder.read_dir()? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            point_links_into(tree, &path)?;
        } else if kind.is_symlink() {
            let target = path.read_link()?;
            let Ok(inside) = target.strip_prefix("/") else {
                continue;
            };
            if tree.join(inside).symlink_metadata().is_ok() {
                // Relative, since the tree is renamed when it is whole.
                let depth = path.strip_prefix(tree)?.components().count() - 1;
                let up: PathBuf = std::iter::repeat_n("..", depth).collect();
                std::fs::remove_file(&path)?;
                std::os::unix::fs::symlink(up.join(inside), &path)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_links_stay_inside_the_tree() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir_all(tree.join("etc/java")).unwrap();
        std::fs::create_dir_all(tree.join("usr/lib/java")).unwrap();
        std::fs::write(tree.join("etc/java/jvm.cfg"), "-server").unwrap();
        std::os::unix::fs::symlink("/etc/java/jvm.cfg", tree.join("usr/lib/java/jvm.cfg")).unwrap();
        std::os::unix::fs::symlink("/proc/self", tree.join("usr/elsewhere")).unwrap();
        point_links_into(&tree, &tree).unwrap();

        let moved = folder.path().join("moved");
        std::fs::rename(&tree, &moved).unwrap();
        assert_eq!(
            std::fs::read_to_string(moved.join("usr/lib/java/jvm.cfg")).unwrap(),
            "-server"
        );
        assert_eq!(
            moved.join("usr/elsewhere").read_link().unwrap(),
            Path::new("/proc/self")
        );
    }

    #[test]
    fn the_command_to_type_is_complete() {
        let words = install_command(&["elixir".to_owned()]);
        assert_eq!(
            words.join(" "),
            "sudo apt-get install --yes --no-install-recommends elixir"
        );
    }
}
