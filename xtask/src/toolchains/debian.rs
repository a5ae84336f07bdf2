//! Debian packages, downloaded by apt with what they depend on and unpacked without being installed: what is
//! installed on the system is not downloaded again. Versions are not pinned, since a mirror keeps only the newest.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::apt::Apt;
use super::{Command, Definition, Shop, store};

/// The packages of `definition` and what the system lacks for them, in one tree.
pub fn unpacked(shop: &Shop, id: &str, definition: &Definition) -> Result<PathBuf> {
    store::copy(shop.folder, id, &definition.made_from(), |tree| {
        let packages = &definition.provision.debian;
        let names = packages.join(", ");
        let apt = Apt::of_system(shop.folder)?;
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
