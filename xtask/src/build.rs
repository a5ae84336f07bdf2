//! Building the profiler, with the eBPF object from source where that is possible.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    ebpf,
    process::{Command, Run},
};

/// Builds the profiler and gives the path of its executable.
pub fn profiler(root: &Path) -> Result<PathBuf> {
    let mut build = Command::new("cargo");
    build
        .args(["build", "--quiet", "--release", "--package", "profiler"])
        .current_dir(root);
    name_object(&mut build, ebpf::build_if_possible(root)?);
    build.run()?;
    Ok(root.join("target/release/profiler"))
}

/// Tells the profiler's build script which object to take; without one it takes the committed one.
pub fn name_object(build: &mut Command, built: Option<ebpf::Built>) {
    if let Some(built) = built {
        build
            .env("PROFILER_EBPF_OBJECT", built.path)
            .env("PROFILER_EBPF_TOOLCHAIN", built.versions);
    }
}
