//! The browser that the HTML report is tested in: that of the system, else a copy under `target/toolchains`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result};

use crate::{
    process::Command,
    toolchains::{self, Install, Shop},
};

/// What names the browser to `profiler/tests/browser`.
const VARIABLE: &str = "CHROMIUM";

/// Tells tests that `command` runs which browser there is. Where none can be had, that is said, and tests that need
/// one say so again.
pub fn name_browser(command: &mut Command, root: &Path) {
    match obtain(root) {
        Ok(launcher) => {
            command.env(VARIABLE, launcher);
        }
        Err(error) => eprintln!("NOT TESTED: the HTML report in a browser: {error:#}"),
    }
}

/// A script that starts it: a copy needs an environment of its own, which must not be that of the tests.
fn obtain(root: &Path) -> Result<String> {
    let definitions = toolchains::load(&root.join("programs/toolchains"))?;
    let shop = Shop {
        definitions: &definitions,
        folder: &root.join("target/toolchains"),
        install: Install::No,
        progress: &|words| eprintln!("{words}"),
    };
    let chromium = shop.obtain("chromium")?;
    let executable = chromium.variables.fill("{chromium}")?;
    let mut script = "#!/bin/sh\n".to_owned();
    for (name, value) in &chromium.environment {
        script += &format!("export {name}={}\n", quoted(value));
    }
    script += &format!("exec {} \"$@\"\n", quoted(&executable));
    let launcher = root.join("target/chromium");
    fs::write(&launcher, script)
        .and_then(|()| fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", launcher.display()))?;
    Ok(launcher.display().to_string())
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_a_word() {
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }
}
