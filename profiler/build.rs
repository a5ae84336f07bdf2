//! Puts the eBPF object where `probes::object` includes it from.
//!
//! `cargo xtask` builds the object from source when it has the toolchain and names it in
//! `PROFILER_EBPF_OBJECT`; a plain `cargo build` takes the committed one, so it always works.

use std::{env, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-env-changed=PROFILER_EBPF_OBJECT");
    println!("cargo::rerun-if-env-changed=PROFILER_EBPF_TOOLCHAIN");
    let committed = Path::new("../profiler-ebpf/object/probes.o");
    println!("cargo::rerun-if-changed={}", committed.display());
    let (object, origin) = match env::var("PROFILER_EBPF_OBJECT") {
        Ok(path) => {
            println!("cargo::rerun-if-changed={path}");
            let toolchain = env::var("PROFILER_EBPF_TOOLCHAIN")
                .unwrap_or_else(|_| "an unnamed toolchain".into());
            (path, format!("built from source with {toolchain}"))
        }
        Err(_) => (
            committed.display().to_string(),
            "committed object".to_owned(),
        ),
    };
    let target = Path::new(&env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("probes.o");
    fs::copy(&object, target)
        .unwrap_or_else(|error| panic!("cannot copy the eBPF object {object}: {error}"));
    println!("cargo::rustc-env=PROFILER_EBPF_ORIGIN={origin}");
}
