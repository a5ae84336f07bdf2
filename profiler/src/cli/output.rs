//! `-o FILE`, wherever there are results to write: which files, in which forms, and whether they can be written.

use std::{
    fmt::Display,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use profiler::{
    export::{ExportError, Format},
    launch::held::Identity,
    results::{Results, store},
};

/// Means standard output.
const STDOUT: &str = "-";

/// The options that say what to write.
#[derive(Args)]
pub struct OutputArguments {
    /// Write the result to this file, in the form that its ending says; may be given several times.
    /// `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    output: Vec<PathBuf>,

    /// The form of what goes to standard output, and of files whose names do not say it [default: json]
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    format: Option<Format>,
}

/// What to write, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// `None` is standard output.
    path: Option<PathBuf>,
    format: Format,
}

fn parse_format(name: &str) -> Result<Format, String> {
    Format::named(name).ok_or_else(|| {
        let names = Format::ENDINGS.map(|(ending, _)| ending);
        format!("expected one of {}", names.join(", "))
    })
}

impl OutputArguments {
    /// What is to be written; the error is a sentence about what was typed.
    pub fn outputs(&self) -> Result<Vec<Output>, String> {
        let outputs: Vec<Output> = self
            .output
            .iter()
            .map(|path| output(path, self.format))
            .collect::<Result<_, _>>()?;
        if outputs.is_empty() && self.format.is_some() {
            return Err("--format is for `-o`: expected `-o -` or `-o FILE` with it".into());
        }
        if outputs.iter().filter(|output| output.is_stdout()).count() > 1 {
            return Err("`-o -` was given twice, but standard output takes one result".into());
        }
        Ok(outputs)
    }

    /// As [`OutputArguments::outputs`], for commands whose stdout is free: a form alone is for stdout.
    pub fn outputs_or_stdout(&self) -> Result<Vec<Output>, String> {
        match (self.output.as_slice(), self.format) {
            ([], Some(format)) => Ok(vec![Output { path: None, format }]),
            _ => self.outputs(),
        }
    }
}

fn output(path: &Path, wish: Option<Format>) -> Result<Output, String> {
    if path == Path::new(STDOUT) {
        return Ok(Output {
            path: None,
            format: wish.unwrap_or(Format::Json),
        });
    }
    let format = Format::of_file(path).or(wish).ok_or_else(|| {
        format!(
            "the name {} does not say its form: expected one that ends in {}, or --format",
            path.display(),
            Format::known_endings()
        )
    })?;
    Ok(Output {
        path: Some(path.to_owned()),
        format,
    })
}

impl Output {
    /// Whether it goes to standard output.
    pub fn is_stdout(&self) -> bool {
        self.path.is_none()
    }

    /// Whether it is the document, from which all other forms can be made.
    pub fn is_document(&self) -> bool {
        self.format == Format::Json
    }

    fn ensure_writable(&self) -> Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        if path.is_dir() {
            anyhow::bail!(
                "{} is a directory: expected the name of a file in it",
                path.display()
            );
        }
        match is_replaced(path) {
            true => Ok(store::ensure_writable(directory(path), owner())?),
            false => Ok(()),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        match &self.path {
            None => write_to(io::stdout().lock(), bytes).context("cannot write to standard output"),
            Some(path) if is_replaced(path) => Ok(store::write_atomically(path, bytes, owner())?),
            Some(path) => fs::OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|file| write_to(file, bytes))
                .with_context(|| format!("cannot write {}", path.display())),
        }
    }
}

fn write_to(mut sink: impl Write, bytes: &[u8]) -> io::Result<()> {
    sink.write_all(bytes)?;
    sink.flush()
}

/// Prints to standard output. A reader that has seen enough, such as `head`, is no error.
pub fn print(bytes: &[u8]) -> Result<()> {
    match write_to(io::stdout().lock(), bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// Says something to the person, on standard error. Nobody who listens is no error: what was measured has yet to be
/// written, and the command's exit status to be told.
pub fn say(words: impl Display) {
    let _ = write!(io::stderr().lock(), "{words}");
}

/// As [`say`], with the end of the line.
pub fn say_line(words: impl Display) {
    say(format_args!("{words}\n"));
}

/// A device or a named pipe is written into: a file in its place would take it away from everybody.
fn is_replaced(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |metadata| metadata.is_file())
}

/// Proves that all of it can be written, before anything is measured.
pub fn ensure_writable(outputs: &[Output]) -> Result<()> {
    outputs.iter().try_for_each(Output::ensure_writable)
}

/// Writes `results`: what was measured first, what is drawn from it after. What they have too little for is
/// said and left out.
pub fn write(results: &Results, outputs: &[Output]) -> Result<()> {
    let (measured, drawn): (Vec<&Output>, Vec<&Output>) =
        outputs.iter().partition(|output| output.is_document());
    for output in measured.into_iter().chain(drawn) {
        match output.format.bytes(results) {
            Ok(bytes) => output.write(&bytes)?,
            Err(ExportError::TooLittle(why)) => {
                let name = output
                    .path
                    .as_deref()
                    .unwrap_or(Path::new("standard output"));
                say_line(format_args!(
                    "warning: {} is not written: {why}",
                    name.display()
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Who a result belongs to: the person who typed `sudo`.
fn owner() -> Option<(u32, u32)> {
    Identity::behind_sudo().map(|user| (user.uid, user.gid))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(names: &[&str], format: Option<Format>) -> Result<Vec<(bool, Format)>, String> {
        let arguments = OutputArguments {
            output: names.iter().map(PathBuf::from).collect(),
            format,
        };
        let outputs = arguments.outputs()?;
        Ok(outputs
            .iter()
            .map(|output| (output.is_stdout(), output.format))
            .collect())
    }

    #[test]
    fn standard_output_is_json_unless_a_form_is_asked_for() {
        assert_eq!(outputs(&["-"], None), Ok(vec![(true, Format::Json)]));
        let both = outputs(&["-", "a.png"], Some(Format::Csv));
        assert_eq!(both, Ok(vec![(true, Format::Csv), (false, Format::Png)]));
    }

    #[test]
    fn a_name_that_says_nothing_wants_a_form() {
        assert_eq!(
            outputs(&["result"], Some(Format::Text)),
            Ok(vec![(false, Format::Text)])
        );
        let sentence = outputs(&["result"], None).unwrap_err();
        assert!(sentence.starts_with("the name result does not say its form: expected one that"));
        assert!(outputs(&["-", "-"], None).unwrap_err().contains("twice"));
    }

    #[test]
    fn a_device_is_written_into_and_stays_one() {
        assert!(!is_replaced(Path::new("/dev/null")));
        let output = Output {
            path: Some("/dev/null".into()),
            format: Format::Json,
        };
        output.write(b"x").unwrap();
        assert!(!is_replaced(Path::new("/dev/null")));
        assert!(is_replaced(Path::new("/tmp/not there.json")));
        let folder = tempfile::tempdir().unwrap();
        let output = Output {
            path: Some(folder.path().to_owned()),
            format: Format::Json,
        };
        let error = output.ensure_writable().unwrap_err().to_string();
        assert!(error.ends_with("is a directory: expected the name of a file in it"));
    }
}
