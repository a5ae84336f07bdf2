//! `cargo xtask test`: every test. Those that attach probes need root; their executables are built as
//! the user and started through sudo; those of the HTML report need a browser. In the end, what adapters find at 10,000 tasks is held against the
//! runtimes' own books.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{
    accuracy,
    browser::name_browser,
    build, ebpf,
    process::{Command, Run, output},
    setup::as_root,
};

/// The options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only tests whose name holds this
    filter: Option<String>,
}

/// Test executables that need root, one file each in `profiler/tests`.
const PRIVILEGED: [&str; 2] = ["privileged", "ledger"];

/// Runs all tests; fails at the first executable with a failing test.
pub fn run(options: &Options, root: &Path) -> Result<()> {
    let built = ebpf::build_if_possible(root)?;
    let with_object = |arguments: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(arguments).current_dir(root);
        build::name_object(&mut command, built.clone());
        command
    };
    let mut unprivileged = with_object(&["test", "--workspace"]);
    unprivileged.args(&options.filter);
    name_browser(&mut unprivileged, root);
    unprivileged.run()?;

    // The programs under test are part of the build.
    with_object(&["build", "--package", "profiler"]).run()?;
    for name in PRIVILEGED {
        let list = [
            "test",
            "--package",
            "profiler",
            "--features",
            "privileged-tests",
        ];
        let arguments = [
            &list[..],
            &["--test", name, "--no-run", "--message-format=json"],
        ]
        .concat();
        let messages = output(&mut with_object(&arguments))?;
        let executable = executable(&messages, name, Kind::Test)
            .with_context(|| format!("cargo built no test executable `{name}`"))?;
        // One at a time: each test attaches probes and counts pages.
        let mut test = as_root(&[&executable, "--test-threads=1"]);
        test.current_dir(root.join("profiler"))
            .args(&options.filter);
        test.run()?;
    }
    if options.filter.is_none() {
        accuracy::run(&accuracy::Options::of_tests(), root)?;
    }
    Ok(())
}

/// What an executable is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file or folder in `tests`.
    Test,
    /// `main.rs`.
    Program,
}

/// The path in cargo's message about the target `name`.
pub fn executable(messages: &str, name: &str, kind: Kind) -> Option<String> {
    let kind = match kind {
        Kind::Test => "test",
        Kind::Program => "bin",
    };
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| {
            let target = &message["target"];
            message["reason"] == "compiler-artifact"
                && target["name"] == name
                && target["kind"][0] == kind
        })
        .find_map(|message| message["executable"].as_str().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_that_of_the_named_target() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"profiler","kind":["lib"]},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"profiler","kind":["bin"]},"executable":"/t/profiler"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"privileged","kind":["test"]},"executable":"/t/privileged-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let found = |name, kind| executable(messages, name, kind);
        assert_eq!(
            found("privileged", Kind::Test).as_deref(),
            Some("/t/privileged-1")
        );
        assert_eq!(
            found("profiler", Kind::Program).as_deref(),
            Some("/t/profiler")
        );
        assert_eq!(found("profiler", Kind::Test), None);
    }
}
