//! `cargo xtask setup`: installs what a plain Debian lacks.

use std::path::Path;

use anyhow::Result;

use crate::{
    ebpf::{LINKER_ROOT, Toolchain},
    process::{Command, Run},
};

/// bpf-linker: the LLVM linker for BPF. Version 0.13.0 links against LLVM 22, Debian's newest.
const LINKER_VERSION: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// A compiler with the sources of `core`, and the LLVM that bpf-linker links against.
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "rust-web-src", "cargo-web", "llvm-22-dev"];

/// Prepares the toolchain of the eBPF object on Debian: packages by apt, bpf-linker by cargo into
/// `target/toolchains`.
pub fn ebpf(root: &Path) -> Result<()> {
    if let Some(toolchain) = Toolchain::find(root) {
        println!("the eBPF toolchain is there: {}", toolchain.versions);
        return Ok(());
    }
    as_root(&["apt-get", "-qq", "update"]).run()?;
    let install = ["apt-get", "-qq", "install", "-y", "--no-install-recommends"];
    as_root(&[&install[..], &DEBIAN_PACKAGES[..]].concat())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()?;
    Command::new("cargo")
        .args([
            "install",
            "--quiet",
            "--locked",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
        ])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(root.join(LINKER_ROOT))
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .run()?;
    let toolchain = Toolchain::find(root).ok_or_else(|| {
        anyhow::anyhow!(
            "the packages are installed, but no compiler with the sources of `core` was found"
        )
    })?;
    println!("the eBPF toolchain is there: {}", toolchain.versions);
    Ok(())
}

/// A command that root runs: as it is for root, through sudo otherwise.
pub fn as_root(words: &[&str]) -> Command {
    let words = if is_root() {
        words.to_vec()
    } else {
        [&["sudo"], words].concat()
    };
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Whether we are root.
pub fn is_root() -> bool {
    // SAFETY: the call has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
