//! What a guest's root file system holds: files of this machine at the paths that they have here, so that
//! an executable finds its dynamic linker and libraries without being told.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result};

use super::cpio::{self, Entry};
use crate::process::{Command, output};

/// A root file system in the making.
#[derive(Debug, Default)]
pub struct Image {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Image {
    /// Puts an entry of our own at `path`, with the folders above it.
    pub fn place(&mut self, path: impl AsRef<Path>, entry: Entry) {
        let path = path.as_ref();
        for above in path.ancestors().skip(1).filter(|above| *above != "/") {
            self.entries
                .entry(above.to_owned())
                .or_insert(Entry::Folder);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Copies an executable of this machine, its dynamic linker and its libraries.
    pub fn copy_executable(&mut self, path: &Path) -> Result<()> {
        self.place_executable(path, path)
    }

    /// As [`Self::copy_executable`], with the file at another path in the guest.
    pub fn place_executable(&mut self, path: &Path, place: &Path) -> Result<()> {
        let listed = output(Command::new("ldd").arg(path))?;
        for library in libraries(&listed) {
            self.copy(library)?;
        }
        if path == place {
            return self.copy(path);
        }
        self.place(place, Entry::File(read(path)?));
        Ok(())
    }

    /// Copies a file, and each symbolic link on the way to it.
    fn copy(&mut self, path: &Path) -> Result<()> {
        let mut walked = PathBuf::from("/");
        let mut components = path.components();
        while let Some(component) = components.next() {
            walked.push(component);
            if walked
                .symlink_metadata()
                .is_ok_and(|found| found.is_symlink())
            {
                let target = walked.read_link()?;
                self.place(&walked, Entry::Link(target.clone()));
                let folder = walked.parent().unwrap_or(Path::new("/"));
                return self.copy(&without_dots(
                    &folder.join(target).join(components.as_path()),
                ));
            }
        }
        if !self.entries.contains_key(path) {
            self.place(path, Entry::File(read(path)?));
        }
        Ok(())
    }

    /// The archive that a kernel unpacks.
    pub fn archive(&self) -> Vec<u8> {
        cpio::archive(&self.entries)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The paths in what `ldd` prints: `libc.so.6 => /lib/libc.so.6 (0x7f…)` and `/lib64/ld.so (0x7f…)`. What
/// the kernel itself provides has none.
fn libraries(listed: &str) -> impl Iterator<Item = &Path> {
    listed.lines().filter_map(|line| {
        let library = line.rsplit("=>").next()?.trim();
        let (path, _address) = library.split_once(" (0x")?;
        path.starts_with('/').then_some(Path::new(path))
    })
}

/// The path with each `..` taken literally; what stands before one is no link, since links are followed
/// from the left.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            component => plain.push(component),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd)\n\
             \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f01)\n\
             \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f02)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f03)\n";
        assert_eq!(
            libraries(listed).collect::<Vec<_>>(),
            [
                "/lib/x86_64-linux-gnu/libgcc_s.so.1",
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(Path::new)
        );
    }

    #[test]
    fn a_file_comes_with_the_links_on_the_way_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/libc.so.6"), "library").unwrap();
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
        std::os::unix::fs::symlink("../lib/libc.so.6", root.join("usr/libc")).unwrap();
        let mut image = Image::default();
        image.copy(&root.join("usr/libc")).unwrap();
        let inside: Vec<_> = image
            .entries
            .iter()
            .filter_map(|(path, entry)| Some((path.strip_prefix(&root).ok()?, entry)))
            .filter(|(path, _)| path.components().next().is_some())
            .collect();
        assert_eq!(
            inside,
            [
                (Path::new("lib"), &Entry::Link("usr/lib".into())),
                (Path::new("usr"), &Entry::Folder),
                (Path::new("usr/lib"), &Entry::Folder),
                (
                    Path::new("usr/lib/libc.so.6"),
                    &Entry::File(b"library".to_vec())
                ),
                (
                    Path::new("usr/libc"),
                    &Entry::Link("../lib/libc.so.6".into())
                ),
            ]
        );
    }
}
