//! The programs that are measured: read from `programs/*/program.toml`, built, and made ready to start.
//!
//! A new program is a new folder there; `programs/README.md` explains every field. Nothing here knows a language.

mod build;
pub mod command;
mod prepare;

pub use prepare::{Prepared, Ready, Variant, prepare};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use profiler::session::job::Load;
use serde::Deserialize;

/// Kernel memory of one thread in bytes, for estimates: 16.0 KiB of kernel stack, 4.0 KiB of page table, 6.8 KiB of
/// slab objects and 0.7 KiB that they leave unused: `peak.kernel` of `c-threads` at 10,000 threads on Linux 6.18,
/// x86-64.
const KERNEL_BYTES_PER_THREAD: u64 = 28_300;

/// Threads that a runtime has for itself: compilers, collectors and schedulers grow with the CPUs.
const RUNTIME_THREADS: u64 = 128;

/// One program as its folder describes it.
#[derive(Debug)]
pub struct Program {
    /// The name of its folder, which is what people type.
    pub name: String,
    /// Its name in tables and charts.
    pub label: String,
    /// The runtime it belongs to, the same for programs that share one.
    pub runtime: String,
    /// Its colour in every chart, as `#rrggbb`; no two programs share one.
    pub colour: String,
    /// Kernel threads that one task needs: 1 for a thread, 0 for a task that shares threads.
    pub threads_per_task: u64,
    /// Mappings that one task adds to the process: 2 for a stack and its guard page.
    pub mappings_per_task: u64,
    /// What its tasks can be asked to hold while they wait.
    pub supports: Vec<Support>,
    /// What is known of its memory.
    pub estimate: Estimate,
    /// What of it is held against the runtime's own books.
    pub comparisons: Vec<Comparison>,
    folder: PathBuf,
    recipes: Vec<Recipe>,
}

/// Resident memory as an earlier measurement found it: good enough to refuse what cannot fit, and never a result.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// Resident bytes with next to no tasks.
    pub base_bytes: u64,
    /// Resident bytes that one more task adds.
    pub bytes_per_task: u64,
    /// The measurement that gave the two numbers.
    pub source: String,
}

/// What each task of a program can be asked to hold while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Support {
    /// So many bytes of its stack, by calls.
    StackDepth,
    /// An array of so many bytes.
    Payload,
}

/// One way to build and run a program; the first whose toolchains can be had is taken.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// Ids of toolchains that are needed to run it, and may be used to build it.
    toolchains: Vec<String>,
    /// Ids of toolchains that are needed to build it only; their environment is not the program's.
    #[serde(default)]
    build_toolchains: Vec<String>,
    #[serde(default)]
    build: Vec<Vec<String>>,
    #[serde(default)]
    build_environment: BTreeMap<String, String>,
    run: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    versions: Vec<VersionOf>,
    books: Option<Books>,
}

/// The same program, which tells its runtime's own books when it gets `SIGUSR2`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Books {
    /// Ids of toolchains that are needed to build it, beside the recipe's.
    #[serde(default)]
    toolchains: Vec<String>,
    /// Commands that make what it takes in `{books}`, after those of the recipe.
    #[serde(default)]
    build: Vec<Vec<String>>,
    /// Instead of the recipe's.
    run: Option<Vec<String>>,
    /// Beside the recipe's.
    #[serde(default)]
    environment: BTreeMap<String, String>,
}

/// Figures of ours and of the runtime that are to be equal.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// What they are, for people.
    pub what: String,
    /// Ours, `ADAPTER.BOOK`; summed.
    pub ours: Vec<String>,
    /// The runtime's, by the names in its books; summed.
    pub theirs: Vec<String>,
    /// How far apart they may be, in percent of theirs.
    pub limit_percent: f64,
    /// Or in bytes, where making the books takes memory itself.
    #[serde(default)]
    pub limit_bytes: u64,
    /// Only some versions of the runtime have the figure: where its books lack it, nothing is compared.
    #[serde(default)]
    pub where_told: bool,
    /// It tells whether both looks saw the same state: where it is past its limit, the program is run again.
    #[serde(default)]
    pub same_state: bool,
}

/// One name and number of the version that results carry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionOf {
    name: String,
    command: Vec<String>,
    /// The version is the first number after this text in the command's output.
    #[serde(default)]
    after: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    label: String,
    runtime: String,
    colour: String,
    threads_per_task: u64,
    #[serde(default)]
    mappings_per_task: u64,
    #[serde(default)]
    supports: Vec<Support>,
    estimate: Estimate,
    recipe: Vec<Recipe>,
    #[serde(default)]
    compare: Vec<Comparison>,
}

impl Program {
    /// About how much memory the program and the kernel on its behalf will need, in bytes, with tasks that
    /// hold `load` bytes each.
    pub fn estimated_bytes(&self, tasks: u64, load: u64) -> u64 {
        let kernel = KERNEL_BYTES_PER_THREAD * self.threads_per_task;
        let per_task = (self.estimate.bytes_per_task + kernel).saturating_add(load);
        self.estimate
            .base_bytes
            .saturating_add(tasks.saturating_mul(per_task))
    }

    /// About how many threads it will have.
    pub fn threads(&self, tasks: u64) -> u64 {
        tasks
            .saturating_mul(self.threads_per_task)
            .saturating_add(RUNTIME_THREADS)
    }

    /// What it cannot be asked for, of what each task is to hold.
    pub fn lacks(&self, load: Load) -> Option<&'static str> {
        let lacks = |bytes, support| bytes > 0 && !self.supports.contains(&support);
        if lacks(load.stack_depth_bytes, Support::StackDepth) {
            return Some("its tasks have no stack of their own while they wait (--stack-depth)");
        }
        lacks(load.payload_bytes, Support::Payload)
            .then_some("its tasks cannot be given anything to hold (--payload)")
    }
}

/// Reads every program below `root`, the workspace's folder; sorted by name.
pub fn load(root: &Path) -> Result<Vec<Program>> {
    let folder = root.join("programs");
    let mut programs = Vec::new();
    for entry in folder
        .read_dir()
        .with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        let manifest = path.join("program.toml");
        if manifest.exists() {
            let text = std::fs::read_to_string(&manifest)?;
            programs.push(parse(&path, &text).with_context(|| manifest.display().to_string())?);
        }
    }
    ensure!(
        !programs.is_empty(),
        "no programs/*/program.toml in {}",
        root.display()
    );
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    for (i, program) in programs.iter().enumerate() {
        if let Some(twin) = programs[..i]
            .iter()
            .find(|earlier| earlier.colour == program.colour)
        {
            bail!(
                "{} and {} both have the colour {}, expected one each",
                twin.name,
                program.name,
                program.colour
            );
        }
    }
    Ok(programs)
}

fn parse(folder: &Path, text: &str) -> Result<Program> {
    let manifest: Manifest = toml::from_str(text)?;
    let colour = manifest.colour.to_ascii_lowercase();
    let digits = colour.strip_prefix('#').unwrap_or_default();
    ensure!(
        digits.len() == 6 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()),
        "`colour` is {:?}, expected \"#\" and six hex digits",
        manifest.colour
    );
    ensure!(
        manifest.threads_per_task <= 1,
        "`threads_per_task` is {}, expected 0 or 1",
        manifest.threads_per_task
    );
    ensure!(
        !manifest.recipe.is_empty(),
        "no [[recipe]], expected at least one"
    );
    for recipe in &manifest.recipe {
        for placeholder in ["{tasks}", "{seconds}"] {
            ensure!(
                recipe.run.iter().any(|word| word.contains(placeholder)),
                "`run` has no {placeholder}, expected the place where that argument goes"
            );
        }
    }
    Ok(Program {
        name: folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        label: manifest.label,
        runtime: manifest.runtime,
        colour,
        threads_per_task: manifest.threads_per_task,
        mappings_per_task: manifest.mappings_per_task,
        supports: manifest.supports,
        estimate: manifest.estimate,
        comparisons: manifest.compare,
        folder: folder.to_owned(),
        recipes: manifest.recipe,
    })
}

/// The programs of these names, in this order; all of them when there are no names.
pub fn select(mut programs: Vec<Program>, names: &[String]) -> Result<Vec<Program>> {
    if names.is_empty() {
        return Ok(programs);
    }
    let mut selected: Vec<Program> = Vec::new();
    for name in names {
        if let Some(index) = programs.iter().position(|program| program.name == *name) {
            selected.push(programs.remove(index));
        } else if !selected.iter().any(|program| program.name == *name) {
            let known = programs
                .iter()
                .chain(&selected)
                .map(|program| program.name.as_str());
            let nearest = known.max_by(|a, b| {
                strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name))
            });
            bail!(
                "no program named {name:?}, did you mean {:?}?",
                nearest.unwrap_or_default()
            );
        }
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKIO: &str = r##"
        label = "Rust tokio"
        runtime = "rust"
        colour = "#FF5AAF"
        threads_per_task = 0
        estimate = { base_bytes = 1_000, bytes_per_task = 10, source = "a test" }
        [[recipe]]
        toolchains = ["rust"]
        run = ["{build}/tokio", "{tasks}", "{seconds}"]
        versions = []
    "##;

    fn tokio() -> Program {
        parse(Path::new("programs/tokio"), TOKIO).unwrap()
    }

    fn refusal(from: &str, to: &str) -> String {
        format!(
            "{:#}",
            parse(Path::new("programs/tokio"), &TOKIO.replace(from, to)).unwrap_err()
        )
    }

    #[test]
    fn a_program_is_named_by_its_folder() {
        let program = tokio();
        assert_eq!(
            (program.name.as_str(), program.colour.as_str()),
            ("tokio", "#ff5aaf")
        );
    }

    #[test]
    fn each_mistake_is_told_with_what_was_expected() {
        assert_eq!(
            refusal("#FF5AAF", "pink"),
            "`colour` is \"pink\", expected \"#\" and six hex digits"
        );
        assert_eq!(
            refusal("_task = 0", "_task = 2"),
            "`threads_per_task` is 2, expected 0 or 1"
        );
        assert_eq!(
            refusal("\"{tasks}\"", "\"7\""),
            "`run` has no {tasks}, expected the place where that argument goes"
        );
        assert!(refusal("label", "lable").contains("unknown field `lable`"));
        assert!(refusal("runtime = \"rust\"", "").contains("missing field `runtime`"));
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let error = select(load(workspace()).unwrap(), &["tokyo".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no program named \"tokyo\", did you mean \"tokio\"?"
        );
        let error = select(
            load(workspace()).unwrap(),
            &["tokio".into(), "java-thread".into()],
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "no program named \"java-thread\", did you mean \"java-threads\"?"
        );
    }

    #[test]
    fn programs_come_in_the_order_asked_for_and_once() {
        let names = ["smol", "go", "smol"].map(str::to_owned);
        let selected = select(load(workspace()).unwrap(), &names).unwrap();
        let names: Vec<_> = selected
            .iter()
            .map(|program| program.name.as_str())
            .collect();
        assert_eq!(names, ["smol", "go"]);
    }

    #[test]
    fn a_thread_is_estimated_with_its_kernel_memory() {
        let mut program = tokio();
        assert_eq!(program.estimated_bytes(100, 0), 2_000);
        program.threads_per_task = 1;
        assert_eq!(
            program.estimated_bytes(100, 0),
            2_000 + 100 * KERNEL_BYTES_PER_THREAD
        );
        assert_eq!(program.estimated_bytes(u64::MAX, 0), u64::MAX);
        assert_eq!(program.estimated_bytes(1, u64::MAX), u64::MAX);
    }

    #[test]
    fn what_a_program_cannot_do_is_named() {
        let load = |stack_depth_bytes, payload_bytes| Load {
            stack_depth_bytes,
            payload_bytes,
        };
        let mut program = tokio();
        assert_eq!(program.lacks(load(0, 0)), None);
        assert!(
            program
                .lacks(load(1, 0))
                .unwrap()
                .ends_with("(--stack-depth)")
        );
        assert!(program.lacks(load(0, 1)).unwrap().ends_with("(--payload)"));
        program.supports = vec![Support::Payload];
        assert_eq!(program.lacks(load(0, 1)), None);
    }

    #[test]
    fn every_program_names_toolchains_that_exist() {
        let definitions =
            crate::toolchains::load(&workspace().join("programs/toolchains")).unwrap();
        for program in load(workspace()).unwrap() {
            for recipe in &program.recipes {
                let books = recipe.books.iter().flat_map(|books| &books.toolchains);
                let own = recipe.toolchains.iter().chain(&recipe.build_toolchains);
                for id in own.chain(books) {
                    assert!(definitions.contains_key(id), "{} needs {id}", program.name);
                }
            }
        }
    }

    fn workspace() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }
}
