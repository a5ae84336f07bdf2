//! Starting the privileged profiler for one run, and reading what it found.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use profiler::{
    limits::Raises,
    results::{Host, Run, store},
    session::job::{Contract, Job, Load},
};

use crate::{
    build,
    process::{Command, line},
    programs::{Program, Ready},
    setup::{as_root, is_root},
};

/// How often a child is asked whether it has ended, so that a signal for us alone can be passed on.
const PATIENCE: Duration = Duration::from_millis(50);

/// The profiler, ready to be started as root.
pub struct Profiler {
    executable: PathBuf,
    /// Set when the user presses Ctrl-C.
    interrupted: Arc<AtomicBool>,
}

/// What came of one run.
pub enum Measured {
    /// A result, whatever its outcome.
    Run(Box<Run>, Box<Host>),
    /// The user does not want to go on.
    Interrupted,
}

impl Profiler {
    /// Builds it. Asks for the password where one is needed, gives back limits that an earlier run has left
    /// raised, and tries whether the probes can be attached.
    pub fn build(root: &Path) -> Result<Profiler> {
        eprintln!("building the profiler");
        let profiler = Profiler {
            executable: build::profiler(root)?,
            interrupted: Arc::default(),
        };
        profiler.check()?;
        Ok(profiler)
    }

    /// From now on a signal ends the run, and what was measured is kept.
    pub fn catch_signals(&self) -> Result<()> {
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, self.interrupted.clone())?;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if !is_root() && Command::new("sudo").arg("-v").status().is_err() {
            bail!("not root, and there is no sudo: attaching probes needs root; try this as root");
        }
        let output = self
            .command(&["doctor", "--quiet", "--restore"])
            .stdin(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            bail!("{}", last_line(&output.stderr));
        }
        Ok(())
    }

    /// Runs a job to its end.
    pub fn measure(&self, job: &Job) -> Result<Measured> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let (job_file, result_file) = (
            folder.path().join("job.json"),
            folder.path().join("result.json"),
        );
        fs::write(&job_file, serde_json::to_vec(job)?)?;
        let mut command = self.command(&["run", "--until-stdin-closes", "--job"]);
        command.arg(&job_file).arg("--output").arg(&result_file);
        // The other end of its stdin closes with us, however we end, and it ends the program then.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", line(&command)))?;
        let (status, complaint) = self.wait(child)?;
        if self.interrupted.load(Ordering::Relaxed) {
            return Ok(Measured::Interrupted);
        }
        if !result_file.exists() {
            bail!(
                "the profiler ended with {status}: {}",
                last_line(&complaint)
            );
        }
        let mut results = store::read(&result_file)?;
        let run = results.runs.pop().context("a result without a run")?;
        Ok(Measured::Run(Box::new(run), Box::new(results.host)))
    }

    fn wait(&self, mut child: Child) -> Result<(std::process::ExitStatus, Vec<u8>)> {
        let mut stderr = child.stderr.take().context("stderr is piped")?;
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            // What was read until an error is all there is.
            let _ = std::io::Read::read_to_end(&mut stderr, &mut text);
            text
        });
        let mut passed_on = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if self.interrupted.load(Ordering::Relaxed) && !passed_on {
                passed_on = true;
                // The terminal tells the profiler itself; a signal that was sent to us alone is passed on.
                let pid = child.id().cast_signed();
                // SAFETY: the child has not been waited for, so the number is still its own.
                unsafe { libc::kill(pid, libc::SIGINT) };
            }
            std::thread::sleep(PATIENCE);
        };
        Ok((status, reader.join().unwrap_or_default()))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let executable = self.executable.to_string_lossy();
        as_root(&[&[executable.as_ref()], arguments].concat())
    }
}

/// The environment that programs run in: ours, less what cargo added for its own children and what would
/// be taken for our word.
pub fn environment(own: &[(String, String)], ready: &[(String, String)]) -> Vec<(String, String)> {
    let foreign = |name: &str| {
        let from_cargo = name.starts_with("CARGO") || name.starts_with("RUST");
        from_cargo || name == "LD_LIBRARY_PATH" || Load::VARIABLES.contains(&name)
    };
    let mut environment: Vec<_> = own
        .iter()
        .filter(|(name, _)| !foreign(name) && !ready.iter().any(|(given, _)| given == name))
        .cloned()
        .collect();
    environment.extend_from_slice(ready);
    environment
}

/// The job of a program under its contract, with our own environment as far as programs get it; no command where
/// the program is not `ready`.
pub fn job(
    program: &Program,
    ready: Option<&Ready>,
    contract: Contract,
    own: &[(String, String)],
) -> Job {
    let (command, environment, version) = ready.map_or_else(Default::default, |ready| {
        let added = [ready.environment.clone(), contract.load.environment()].concat();
        (
            ready.argv(contract.tasks, contract.seconds),
            environment(own, &added),
            ready.version.clone(),
        )
    });
    Job {
        program: program.name.clone(),
        label: program.label.clone(),
        colour: Some(program.colour.clone()),
        version,
        command,
        environment,
        directory: None,
        contract: Some(contract),
        repeat: 0,
        ask_for_books: false,
        threads: Some(program.threads(contract.tasks)),
        raises: Raises::default(),
    }
}

/// Our own environment, as far as it is text.
pub fn own_environment() -> Vec<(String, String)> {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    let last = last.unwrap_or("it said nothing");
    last.trim().trim_start_matches("profiler: ").to_owned()
}

/// Keeps what an earlier invocation measured: its results move aside.
pub fn keep_previous(directory: &Path) -> Result<()> {
    let results = directory.join("results.json");
    if results.exists() {
        fs::rename(&results, directory.join("results.previous.json"))
            .with_context(|| format!("cannot move {} aside", results.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn programs_do_not_see_what_cargo_added() {
        let own = [
            pair("HOME", "/home/me"),
            pair("CARGO_MANIFEST_DIR", "/x"),
            pair("LD_LIBRARY_PATH", "/x/deps"),
            pair("PATH", "/bin"),
            pair("TASK_PAYLOAD", "1"),
        ];
        let ready = [pair("PATH", "/go/bin:/bin")];
        assert_eq!(
            environment(&own, &ready),
            [pair("HOME", "/home/me"), pair("PATH", "/go/bin:/bin")]
        );
    }

    #[test]
    fn the_last_words_are_the_reason() {
        assert_eq!(
            last_line(b"warming up\nprofiler: no permission\n\n"),
            "no permission"
        );
        assert_eq!(last_line(b""), "it said nothing");
    }
}
