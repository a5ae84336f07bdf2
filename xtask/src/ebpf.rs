//! Building the eBPF object from source, and comparing it with the committed one.
//!
//! The BPF target has no prebuilt `core`, so a build needs the sources of the standard library and
//! `-Z build-std`: a nightly (or any toolchain with `RUSTC_BOOTSTRAP=1`) with `rust-src`, or Debian's
//! `rustc-web` with `rust-web-src`; and `bpf-linker`, which `cargo xtask setup --ebpf` builds.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::process::{Command, Run, output};

/// The committed object, for machines without the toolchain.
const COMMITTED: &str = "profiler-ebpf/object/probes.o";
/// What the committed object was built with.
const COMMITTED_TOOLCHAIN: &str = "profiler-ebpf/object/toolchain.txt";
/// Where `setup --ebpf` puts bpf-linker, below the root.
pub const LINKER_ROOT: &str = "target/toolchains/bpf-linker";

/// A toolchain that can build the object.
pub struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    linker: PathBuf,
    /// "rustc 1.96.0, bpf-linker 0.13.0"
    pub versions: String,
}

/// An object that was built from source.
#[derive(Debug, Clone)]
pub struct Built {
    /// The ELF file.
    pub path: PathBuf,
    /// [`Toolchain::versions`]
    pub versions: String,
}

impl Toolchain {
    /// The first complete toolchain: Debian's (the one that made the committed object), then that of
    /// PATH. `None` when `core`'s sources or bpf-linker are missing.
    pub fn find(root: &Path) -> Option<Toolchain> {
        let linker = find_linker(root)?;
        let on_path = env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
        let candidates = [
            ("/usr/bin/cargo".into(), "/usr/bin/rustc".into()),
            (on_path, PathBuf::from("rustc")),
        ];
        candidates.into_iter().find_map(|(cargo, rustc)| {
            let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"])).ok()?;
            let core =
                Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
            if !core.exists() {
                return None;
            }
            let versions = format!(
                "{}, {}",
                short_version(&output(Command::new(&rustc).arg("--version")).ok()?),
                output(Command::new(&linker).arg("--version")).ok()?.trim()
            );
            Some(Toolchain {
                cargo,
                rustc,
                linker: linker.clone(),
                versions,
            })
        })
    }

    /// Builds the object. The same sources and toolchain give the same bytes, wherever they stand.
    pub fn build(&self, root: &Path) -> Result<Built> {
        let target = root.join("target/ebpf");
        let home = env::var("CARGO_HOME")
            .or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")))?;
        let flags = [
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            "-Ctarget-cpu=v3".to_owned(),
            format!("-Clinker={}", self.linker.display()),
            format!("--remap-path-prefix={}=profiler", root.display()),
            format!("--remap-path-prefix={home}=cargo"),
        ];
        Command::new(&self.cargo)
            .args([
                "build",
                "--quiet",
                "--release",
                "--package",
                "profiler-ebpf",
                "--bin",
                "probes",
            ])
            .args([
                "--features",
                "kernel",
                "--target",
                "bpfel-unknown-none",
                "-Zbuild-std=core",
            ])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(root)
            .env("RUSTC", &self.rustc)
            // build-std is unstable; this is what lets a stable compiler do it.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env_remove("RUSTUP_TOOLCHAIN")
            .run()?;
        Ok(Built {
            path: target.join("bpfel-unknown-none/release/probes"),
            versions: self.versions.clone(),
        })
    }
}

/// bpf-linker of `setup --ebpf`, else that of PATH.
fn find_linker(root: &Path) -> Option<PathBuf> {
    let ours = root.join(LINKER_ROOT).join("bin/bpf-linker");
    if ours.exists() {
        return Some(ours);
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join("bpf-linker"))
        .find(|path| path.exists())
}

/// `rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)` → `rustc 1.96.0 (ac68faa20 2026-05-25)`
fn short_version(version: &str) -> &str {
    version
        .trim()
        .split_inclusive(')')
        .next()
        .unwrap_or(version)
}

/// Builds the object where that is possible. `None`: the committed one serves.
pub fn build_if_possible(root: &Path) -> Result<Option<Built>> {
    Toolchain::find(root)
        .map(|toolchain| toolchain.build(root))
        .transpose()
}

/// What to do with a fresh build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Comparison {
    /// Fail when the committed object differs.
    Check,
    /// Replace the committed object.
    Bless,
}

/// Builds the object and compares it with the committed one, or replaces that.
pub fn compare(root: &Path, comparison: Comparison) -> Result<()> {
    let toolchain = Toolchain::find(root)
        .context("no toolchain can build the eBPF object; try `cargo xtask setup --ebpf`")?;
    let built = toolchain.build(root)?;
    let (committed, recorded) = (root.join(COMMITTED), root.join(COMMITTED_TOOLCHAIN));
    let fresh = fs::read(&built.path)?;
    if comparison == Comparison::Bless {
        fs::write(&committed, &fresh)?;
        fs::write(&recorded, format!("{}\n", built.versions))?;
        println!(
            "{COMMITTED}: {} bytes, built with {}",
            fresh.len(),
            built.versions
        );
        return Ok(());
    }
    if fs::read(&committed)? != fresh {
        bail!(
            "the committed eBPF object (built with {}) is not what its sources give with {}; try `cargo xtask object bless`",
            fs::read_to_string(recorded)?.trim(),
            built.versions,
        );
    }
    println!(
        "{COMMITTED} is what its sources give with {}",
        built.versions
    );
    Ok(())
}
