//! apt with package lists, cache and locks of our own: it needs no root and changes nothing on the system. It checks
//! every list against the archive's signature, and every package against its list.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Command;

/// How long a downloaded package list is good for.
const LIST_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The keys of Debian's archive, those of later releases included.
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One set of sources, with a folder of its own.
pub struct Apt {
    folder: PathBuf,
    /// Options beside those that keep it in its folder.
    options: Vec<String>,
}

impl Apt {
    /// apt as the system has it: its sources, and what is installed.
    pub fn of_system(toolchains: &Path) -> Result<Self> {
        Ok(Self {
            folder: std::path::absolute(toolchains.join("apt"))?,
            options: Vec::new(),
        })
    }

    /// One suite of Debian alone, such as `trixie` of the archive `debian`, whatever release the system is; nothing
    /// counts as installed. The mirror is the one that the system takes that archive from.
    pub fn of_suite(toolchains: &Path, archive: &str, suite: &str) -> Result<Self> {
        let folder = std::path::absolute(toolchains.join(format!("apt-{suite}")))?;
        let words = [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
        ];
        let mirrors = Command::new(&words)?.output()?;
        let mirror = mirror_of(&mirrors, archive).with_context(|| {
            format!(
                "apt's sources name no mirror of the archive `{archive}`, expected an address that ends in /{archive}; \
                 try adding `deb ADDRESS {suite} main` to /etc/apt/sources.list"
            )
        })?;
        let sources = folder.join("sources.list");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        std::fs::write(
            &sources,
            format!("deb [signed-by={DEBIAN_KEYS}] {mirror} {suite} main\n"),
        )?;
        let options = vec![
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Dir::State::status=/dev/null".to_owned(),
        ];
        Ok(Self { folder, options })
    }

    /// Downloads the package lists unless there are fresh ones.
    pub fn refresh(&self, progress: &dyn Fn(&str)) -> Result<()> {
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

    /// `apt-get` with these words.
    pub fn run(&self, arguments: &[&str]) -> Result<()> {
        self.command(&["apt-get", "-qq"], arguments)?.output()?;
        Ok(())
    }

    /// Downloads one package into `folder`, which must be empty, and gives the file.
    pub fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        self.command(&["apt-get", "-qq"], &["download", package])?
            .folder(folder)
            .output()?;
        let file = folder.read_dir()?.next();
        let file = file.with_context(|| format!("apt downloaded nothing for {package}"))?;
        Ok(file?.path())
    }

    /// The names of all packages.
    pub fn packages(&self) -> Result<Vec<String>> {
        let names = self.command(&["apt-cache"], &["pkgnames"])?.output()?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    fn command(&self, program: &[&str], arguments: &[&str]) -> Result<Command> {
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
            // A mirror that stands still shows lists past their date. Their signature is checked all the
            // same, and what is unpacked from them is never installed.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ];
        let mut words = program.to_vec();
        let options = options.iter().chain(&self.options);
        words.extend(options.flat_map(|option| ["-o", option.as_str()]));
        words.extend(arguments);
        Command::new(&words)
    }
}

/// The first of these addresses, one a line, that is of `archive`; else its place beside that of `debian`,
/// as all mirrors have them.
fn mirror_of(addresses: &str, archive: &str) -> Option<String> {
    let of = |archive| {
        addresses
            .lines()
            .map(|address| address.trim_end_matches('/'))
            .find(|address| address.rsplit('/').next() == Some(archive))
    };
    let beside = || {
        let (folder, _) = of("debian")?.rsplit_once('/')?;
        Some(format!("{folder}/{archive}"))
    };
    of(archive).map(str::to_owned).or_else(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_archive_not_of_its_namesake() {
        let addresses = "https://mirror.example/debian-security/\nhttps://mirror.example/debian/\n";
        let mirror = |archive| mirror_of(addresses, archive);
        let address = |archive| Some(format!("https://mirror.example/{archive}"));
        assert_eq!(mirror("debian"), address("debian"));
        assert_eq!(mirror("debian-security"), address("debian-security"));
        assert_eq!(mirror("debian-ports"), address("debian-ports"));
        assert_eq!(mirror_of("https://mirror.example/ubuntu/", "debian"), None);
    }
}
