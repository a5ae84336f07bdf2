//! From a program's folder to the command that starts it: toolchains, build, versions.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Program, Recipe, VersionOf, build};
use crate::toolchains::{self, Command, Install, Shop, Variables, Version};

/// What came of preparing a program.
#[derive(Debug)]
pub enum Prepared {
    /// It can be started.
    Ready(Ready),
    /// It cannot be had on this machine; the run goes on without it.
    Unavailable {
        /// What was tried and how each failed, and what to type, where there is something to type.
        reason: String,
    },
}

/// A program that can be started.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The words of the command; where N and SECONDS go, `{tasks}` and `{seconds}` stand. See [`Self::argv`].
    pub command: Vec<String>,
    /// Environment variables beside the inherited ones.
    pub environment: Vec<(String, String)>,
    /// What runs and with which libraries, as in `rustc 1.95.0, tokio 1.54.1`.
    pub version: String,
}

impl Ready {
    /// The command that starts this many tasks, each of which waits `seconds`.
    pub fn argv(&self, tasks: u64, seconds: f64) -> Vec<String> {
        let (tasks, seconds) = (tasks.to_string(), seconds.to_string());
        let fill = |word: &String| {
            word.replace("{tasks}", &tasks)
                .replace("{seconds}", &seconds)
        };
        self.command.iter().map(fill).collect()
    }
}

/// Which of its two forms a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// As it is measured.
    Measured,
    /// With what tells the runtime's own books.
    WithBooks,
}

/// Finds or provisions what the program needs, and builds it; `root` is the workspace's folder. The system is changed
/// only when `install` is true and there is no other way. `progress` is told what is being done, in a few words.
pub fn prepare(
    program: &Program,
    variant: Variant,
    root: &Path,
    install: bool,
    progress: &dyn Fn(&str),
) -> Prepared {
    let definitions = match toolchains::load(&root.join("programs/toolchains")) {
        Ok(definitions) => definitions,
        Err(error) => {
            return Prepared::Unavailable {
                reason: format!("{error:#}"),
            };
        }
    };
    let folder = root.join("target/toolchains");
    let mut failures = Vec::new();
    // Every way that leaves the system alone comes before any that changes it.
    let attempts: &[Install] = if install {
        &[Install::No, Install::Allowed]
    } else {
        &[Install::No]
    };
    for &install in attempts {
        failures.clear();
        for recipe in &program.recipes {
            let shop = Shop {
                definitions: &definitions,
                folder: &folder,
                install,
                progress,
            };
            match follow(recipe, variant, program, root, &shop) {
                Ok(ready) => return Prepared::Ready(ready),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
    }
    Prepared::Unavailable {
        reason: failures.join("\n"),
    }
}

fn follow(
    recipe: &Recipe,
    variant: Variant,
    program: &Program,
    root: &Path,
    shop: &Shop,
) -> Result<Ready> {
    let books = match variant {
        Variant::Measured => None,
        Variant::WithBooks => Some(recipe.books.as_ref().context("it has no books")?),
    };
    let build_folder = root.join("target/programs").join(&program.name);
    let books_folder = build_folder.join("books");
    let mut variables = Variables::default();
    variables.set("source", text(&program.folder)?);
    variables.set("build", text(&build_folder)?);
    variables.set("books", text(&books_folder)?);
    variables.set("tasks", "{tasks}"); // filled in by Ready::argv
    variables.set("seconds", "{seconds}");

    let mut environment = BTreeMap::new();
    let mut versions = Vec::new();
    for id in &recipe.toolchains {
        let toolchain = shop.obtain(id)?;
        variables.extend(&toolchain.variables);
        environment.extend(toolchain.environment);
        versions.push(toolchain.version);
    }
    let mut build_environment = environment.clone();
    let for_books = books.iter().flat_map(|books| &books.toolchains);
    for id in recipe.build_toolchains.iter().chain(for_books) {
        let toolchain = shop.obtain(id)?;
        variables.extend(&toolchain.variables);
        build_environment.extend(toolchain.environment);
        versions.push(toolchain.version);
    }
    environment.extend(variables.fill_map(&recipe.environment)?);
    if let Some(books) = books {
        environment.extend(variables.fill_map(&books.environment)?);
    }
    build_environment.extend(variables.fill_map(&recipe.build_environment)?);

    // What several programs share to tell their books.
    let shared = program.folder.with_file_name("books");
    let plan = |folder, shared, commands: &[Vec<String>]| -> Result<build::Plan> {
        Ok(build::Plan {
            source: &program.folder,
            shared,
            folder,
            commands: commands
                .iter()
                .map(|words| variables.fill_all(words))
                .collect::<Result<Vec<_>>>()?,
            environment: build_environment.clone(),
            versions: versions.iter().flatten().map(Version::to_string).collect(),
        })
    };
    let starts = || (shop.progress)(&format!("building {}", program.name));
    plan(build_folder.as_path(), None, &recipe.build)?.carry_out(&starts)?;
    if let Some(books) = books {
        plan(books_folder.as_path(), Some(shared.as_path()), &books.build)?.carry_out(&starts)?;
    }

    let version = recipe
        .versions
        .iter()
        .map(|version| version_of(version, &variables, &environment, &program.folder))
        .collect::<Result<Vec<_>>>()?
        .join(", ");
    let run = books.and_then(|books| books.run.as_ref());
    let command = variables.fill_all(run.unwrap_or(&recipe.run))?;
    Ok(Ready {
        command,
        environment: environment.into_iter().collect(),
        version,
    })
}

/// The name and number of one part, as in `tokio 1.54.1`.
fn version_of(
    wanted: &VersionOf,
    variables: &Variables,
    environment: &BTreeMap<String, String>,
    folder: &Path,
) -> Result<String> {
    let words = variables.fill_all(&wanted.command)?;
    let answer = Command::new(&words)?
        .environment(environment)
        .folder(folder)
        .output()?;
    match answer
        .split_once(&wanted.after)
        .and_then(|(_, rest)| Version::first_in(rest))
    {
        Some(version) => Ok(format!("{} {version}", wanted.name)),
        None => bail!(
            "no version of {} in the answer of {}",
            wanted.name,
            words[0]
        ),
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not valid UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_go_where_the_command_wants_them() {
        let ready = Ready {
            command: ["erl", "+P", "1{tasks}", "{seconds}"]
                .map(str::to_owned)
                .to_vec(),
            environment: Vec::new(),
            version: String::new(),
        };
        assert_eq!(ready.argv(10_000, 2.5), ["erl", "+P", "110000", "2.5"]);
        assert_eq!(ready.argv(1, 10.0), ["erl", "+P", "11", "10"]);
    }

    /// A workspace with one program, `echo`, of this recipe, and a toolchain `gone` that is nowhere.
    fn workspace(recipe: &str) -> (tempfile::TempDir, Program) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("programs/echo");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(root.path().join("programs/toolchains")).unwrap();
        let gone = "label = 'a thing'\nfind = { programs = ['no-such-tool'], version = ['{no-such-tool}'], minimum = '2' }\n\
                    provision = { install = ['thing-dev'] }";
        std::fs::write(root.path().join("programs/toolchains/gone.toml"), gone).unwrap();
        let manifest = format!(
            "label = 'Echo'\nruntime = 'sh'\ncolour = '#000000'\nthreads_per_task = 0\n\
             estimate = {{ base_bytes = 1, bytes_per_task = 1, source = 'a test' }}\n{recipe}"
        );
        std::fs::write(folder.join("program.toml"), manifest).unwrap();
        let program = super::super::load(root.path()).unwrap().remove(0);
        (root, program)
    }

    #[test]
    fn a_missing_toolchain_is_told_with_the_command_that_installs_it() {
        let recipe = "[[recipe]]\ntoolchains = ['gone']\nrun = ['echo', '{tasks}', '{seconds}']\nversions = []";
        let (root, program) = workspace(recipe);
        let Prepared::Unavailable { reason } =
            prepare(&program, Variant::Measured, root.path(), false, &|_| {})
        else {
            panic!()
        };
        assert_eq!(
            reason,
            "no no-such-tool 2 or newer on PATH\n\
             to install a thing: sudo apt-get install --yes --no-install-recommends thing-dev"
        );
    }

    #[test]
    fn the_second_recipe_is_taken_when_the_first_cannot_be() {
        let recipe = "[[recipe]]\ntoolchains = ['gone']\nrun = ['x', '{tasks}', '{seconds}']\nversions = []\n\
                      [[recipe]]\ntoolchains = []\nrun = ['{build}/e', '{tasks}', '{seconds}']\n\
                      build = [['cp', '/bin/echo', '{build}/e']]\n\
                      versions = [{ name = 'echo', command = ['echo', 'V 1 W 2.5'], after = 'W' }]";
        let (root, program) = workspace(recipe);
        let Prepared::Ready(ready) =
            prepare(&program, Variant::Measured, root.path(), false, &|_| {})
        else {
            panic!()
        };
        assert_eq!(ready.version, "echo 2.5");
        assert!(Path::new(&ready.command[0]).exists());
    }

    #[test]
    fn a_failed_build_is_told_with_its_command() {
        let recipe = "[[recipe]]\ntoolchains = []\nrun = ['x', '{tasks}', '{seconds}']\nversions = []\n\
                      build = [['sh', '-c', 'echo no such header >&2; exit 1']]";
        let (root, program) = workspace(recipe);
        let Prepared::Unavailable { reason } =
            prepare(&program, Variant::Measured, root.path(), false, &|_| {})
        else {
            panic!()
        };
        let expected = "`sh -c 'echo no such header >&2; exit 1'` failed with exit status: 1\n  no such header";
        assert_eq!(reason, expected);
    }
}
