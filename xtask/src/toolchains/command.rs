//! Running a command to its end; its failure is told with the exact words to type again.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::process::line;

/// How many lines of a failed command's last words are shown.
const LAST_LINES: usize = 6;

/// A command that is not a shell's: a program and its arguments.
pub struct Command(std::process::Command);

impl Command {
    /// A command from its words; the first is the program.
    pub fn new<S: AsRef<str>>(words: &[S]) -> Result<Self> {
        let [program, arguments @ ..] = words else {
            bail!("empty command")
        };
        let mut command = std::process::Command::new(program.as_ref());
        command
            .args(arguments.iter().map(AsRef::as_ref))
            .stdin(Stdio::null());
        Ok(Self(command))
    }

    /// Adds to the inherited environment.
    pub fn environment(mut self, environment: &BTreeMap<String, String>) -> Self {
        self.0.envs(environment);
        self
    }

    /// Runs it in `folder`.
    pub fn folder(mut self, folder: &Path) -> Self {
        self.0.current_dir(folder);
        self
    }

    /// What it wrote to stdout and then to stderr; an error unless it exits with 0.
    pub fn output(mut self) -> Result<String> {
        let typed = line(&self.0);
        let output = self
            .0
            .output()
            .with_context(|| format!("cannot run `{typed}`"))?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if !output.status.success() {
            let lines: Vec<_> = text
                .lines()
                .map(str::trim_end)
                .filter(|line| !line.is_empty())
                .collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ");
            bail!("`{typed}` failed with {}\n  {last}", output.status);
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_its_last_words() {
        let words = ["sh", "-c", "echo first; echo why it failed >&2; exit 3"];
        let error = Command::new(&words)
            .unwrap()
            .output()
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(
            "`sh -c 'echo first; echo why it failed >&2; exit 3'` failed with exit status: 3"
        ));
        assert!(error.ends_with("why it failed"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Command::new(&["no-such-program-here"])
            .unwrap()
            .output()
            .unwrap_err();
        assert!(
            format!("{error:#}").contains("cannot run `no-such-program-here`: "),
            "{error:#}"
        );
    }
}
