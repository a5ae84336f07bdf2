//! Which runtimes PATH has, and in which versions: heaps are looked into by version.

use std::{
    io::Read,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde::Serialize;

/// How each runtime tells its version: name, command, argument.
const RUNTIMES: [(&str, &str, &str); 9] = [
    ("Go", "go", "version"),
    ("Java", "java", "-version"),
    (".NET", "dotnet", "--version"),
    ("Node.js", "node", "--version"),
    ("CPython", "python3", "--version"),
    ("Ruby", "ruby", "--version"),
    ("Elixir and Erlang", "elixir", "--version"),
    ("Rust", "rustc", "--version"),
    ("C compiler", "cc", "--version"),
];
/// One that has not answered by then is not going to.
const PATIENCE: Duration = Duration::from_secs(10);

/// One runtime that PATH has.
#[derive(Debug, Serialize)]
pub struct Runtime {
    pub name: &'static str,
    /// What it says; null where it said nothing, or nothing in time.
    pub version: Option<String>,
}

/// All that PATH has, and the C library that we run with.
pub fn found() -> Vec<Runtime> {
    let mut found = vec![Runtime {
        name: "glibc",
        version: Some(glibc()),
    }];
    found.extend(RUNTIMES.iter().filter_map(|(name, command, argument)| {
        let child = Command::new(command)
            .arg(argument)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        Some(Runtime {
            name,
            version: answer(child).and_then(|text| version_line(&text)),
        })
    }));
    found
}

/// What a child says on stdout, else on stderr, as Java does. Versions are short: no pipe fills up.
fn answer(mut child: std::process::Child) -> Option<String> {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().ok()?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut text = String::new();
    child.stdout.take()?.read_to_string(&mut text).ok()?;
    child.stderr.take()?.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The first line, and before it that of Elixir, which tells the version of Erlang first.
fn version_line(text: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let elixir = text.lines().find(|line| line.starts_with("Elixir "));
    let first = lines.next()?;
    Some(match elixir {
        Some(elixir) => format!("{elixir}; {first}"),
        None => first.to_owned(),
    })
}

fn glibc() -> String {
    // SAFETY: gives a string that is never freed (gnu_get_libc_version(3)).
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_line_that_tells_it() {
        let java = "openjdk version \"17.0.1\" 2021-10-19\nOpenJDK Runtime Environment\n";
        assert_eq!(
            version_line(java).as_deref(),
            Some("openjdk version \"17.0.1\" 2021-10-19")
        );
        let elixir = "Erlang/OTP 25 [erts-13.1.5]\n\nElixir 1.14.0 (compiled with Erlang/OTP 24)\n";
        assert_eq!(
            version_line(elixir).as_deref(),
            Some("Elixir 1.14.0 (compiled with Erlang/OTP 24); Erlang/OTP 25 [erts-13.1.5]")
        );
        assert_eq!(version_line("\n"), None);
    }

    #[test]
    fn this_machine_has_a_c_library() {
        let found = found();
        assert_eq!(found[0].name, "glibc");
        assert!(
            found[0]
                .version
                .as_deref()
                .is_some_and(|it| it.starts_with("2."))
        );
    }
}
