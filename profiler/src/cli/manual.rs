//! What shells and man(1) know of the command line, made from the command line itself.

use std::io::{self, Write};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::{Failure, output};

/// Exit status when stdout takes no more.
const CANNOT_WRITE: u8 = 2;

#[derive(Args)]
pub struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

/// Prints the completions of a shell.
pub fn completions(arguments: &CompletionsArguments) -> Result<u8, Failure> {
    let mut command = super::Arguments::command();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "profiler", &mut script);
    print(&script)
}

/// Prints the man page: one for all subcommands.
pub fn man() -> Result<u8, Failure> {
    let page = page(super::Arguments::command());
    print(&page.map_err(|error| Failure::new(CANNOT_WRITE, error))?)
}

/// The page of the command, and then the description and the options of each subcommand.
fn page(mut command: Command) -> io::Result<Vec<u8>> {
    command.build();
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    for subcommand in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        if subcommand.get_name() == "help" {
            continue;
        }
        let name = format!("profiler {}", subcommand.get_name());
        writeln!(page, ".SH {}", name.to_uppercase())?;
        let man = clap_mangen::Man::new(subcommand.clone());
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    Ok(page)
}

fn print(bytes: &[u8]) -> Result<u8, Failure> {
    output::print(bytes)
        .map(|()| 0)
        .map_err(|error| Failure::new(CANNOT_WRITE, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_man_page_has_every_subcommand_and_option() {
        let page = page(super::super::Arguments::command()).unwrap();
        // Hyphens are escaped in roff.
        let page = String::from_utf8(page).unwrap().replace("\\-", "-");
        for word in [
            ".TH profiler 1",
            ".SH PROFILER RUN",
            ".SH PROFILER COMPARE",
            "--max-rss",
            "--threshold",
            "--restore",
        ] {
            assert!(page.contains(word), "{word} in:\n{page}");
        }
        assert!(
            !page.contains("profiler-run(1)"),
            "refers to a page that does not exist:\n{page}"
        );
        // What `cargo xtask` alone uses is hidden.
        assert!(!page.contains("--job"), "{page}");
    }
}
