//! What runs in a guest: the profiler, its test executables and the programs that they start, packed with
//! the first process that runs them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{cpio::Entry, image::Image};
use crate::{
    build, ebpf,
    process::{Command, Run, output},
    test::{Kind, executable},
};

/// Test executables of the profiler that a kernel can make fail, one file or folder each in `profiler/tests`.
const TESTS: [&str; 4] = ["residency", "regions_against_kernel", "privileged", LEDGER];
const LEDGER: &str = "ledger";
/// What the tests of the page ledger are told: Debian's kernels refuse no function of theirs, so that tier
/// A loads on each of them.
const LEDGER_VARIABLES: &str = "PROFILER_REQUIRED_TIERS=A";
/// The measurement in [`LEDGER`], and its name as a job.
pub const COST: &str = "cost";
/// Programs of this machine that the tests start.
const PROGRAMS: [&str; 16] = [
    "true", "sh", "seq", "sort", "tail", "ls", "cat", "sleep", "grep", "touch", "env", "id",
    "setarch", "unshare", "umount", "findmnt",
];
/// Where the C programs of the tests are, and the compiler's arguments for them.
const FIXTURES: &str = "profiler/tests/fixtures";
/// The target of the guests; Debian's kernels for amd64 run nothing else.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The whole pipeline once, whatever the tests cover: a run that could not look at the memory has no peak.
const RUN: &str = "/guest/run";
const RUN_SCRIPT: &str = "set -e
$PROFILER run -o /tmp/run.json -- /bin/sh -c 'sleep 1 | /guest/fixtures/threads 200'
! grep -q '\"peak\": null' /tmp/run.json
";
/// Where the C programs are in a guest.
const GUEST_FIXTURES: &str = "/guest/fixtures";

/// A root file system, packed.
pub struct Payload {
    /// The archive with everything.
    pub initramfs: PathBuf,
    /// One with no jobs, to find out whether a machine boots at all.
    pub empty: PathBuf,
    /// The jobs' names, in order.
    pub jobs: Vec<String>,
}

/// What the guests are for.
#[derive(Debug, Clone, Copy)]
pub enum Purpose<'a> {
    /// All jobs; with a filter, only tests whose name holds it.
    Test(Option<&'a str>),
    /// Only [`COST`], in instructions.
    Count,
}

/// Builds and packs everything. `folder` is for the files made on the way.
pub fn pack(
    root: &Path,
    folder: &Path,
    purpose: Purpose,
    progress: &dyn Fn(&str),
) -> Result<Payload> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the guests are x86-64, this machine is {}; expected one that builds for them",
        std::env::consts::ARCH
    );
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    progress("building the guest's first process");
    let mut image = Image::default();
    image.place("/init", Entry::File(fs::read(first_process(root)?)?));
    // The console is opened before anything is mounted.
    image.place("/dev/console", Entry::Device(5, 1));
    image.place("/guest/jobs", Entry::File(Vec::new()));
    image.place(
        "/etc/passwd",
        text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
    );
    image.place(
        "/etc/os-release",
        text("PRETTY_NAME=\"guest of cargo xtask vm\"\n"),
    );
    image.place(RUN, text(RUN_SCRIPT));
    image.place("/etc/group", text("root:x:0:\nnogroup:x:65534:\n"));
    for folder in ["/proc", "/sys", "/tmp", "/root"] {
        image.place(folder, Entry::Folder);
    }
    let empty = folder.join("empty.cpio");
    fs::write(&empty, image.archive())?;

    progress("building the profiler and its tests");
    let built = Built::new(root)?;
    progress("packing");
    for program in PROGRAMS {
        image.copy_executable(&find(program)?)?;
    }
    for (name, program) in fixtures(root, &folder.join("fixtures"))? {
        image.place_executable(&program, &Path::new(GUEST_FIXTURES).join(name))?;
    }
    for executable in built.tests.iter().chain([&built.profiler]) {
        let stripped = strip(executable, folder)?;
        image.place_executable(&stripped, executable)?;
    }
    // Tests keep their own files here.
    image.place(root.join("target/tmp"), Entry::Folder);

    let jobs = match purpose {
        Purpose::Test(filter) => jobs(&built, filter)?,
        Purpose::Count => vec![(COST, cost(&built))],
    };
    let list: String = jobs
        .iter()
        .map(|(name, words)| format!("{name} {words}\n"))
        .collect();
    image.place("/guest/jobs", text(&list));
    let initramfs = folder.join("guest.cpio");
    fs::write(&initramfs, image.archive())?;
    Ok(Payload {
        initramfs,
        empty,
        jobs: jobs.into_iter().map(|(name, _)| name.to_owned()).collect(),
    })
}

/// Name and command of each job. An executable without a test that passes the filter is none.
fn jobs<'a>(built: &Built, filter: Option<&str>) -> Result<Vec<(&'a str, String)>> {
    let profiler = built.profiler.display();
    let mut jobs = vec![
        ("doctor", format!("{profiler} doctor")),
        ("run", format!("PROFILER={profiler} /bin/sh {RUN}")),
    ];
    for (name, executable) in TESTS.iter().zip(&built.tests) {
        let mut list = Command::new(executable);
        if !output(list.args(filter).arg("--list"))?.contains(": test") {
            continue;
        }
        // One at a time, and nothing caught: what a test skips, it says.
        let words = format!(
            "PROFILER_FIXTURES={GUEST_FIXTURES} {LEDGER_VARIABLES} {} --test-threads=1 --nocapture {}",
            executable.display(),
            filter.unwrap_or_default()
        );
        jobs.push((name, words.trim_end().to_owned()));
    }
    Ok(jobs)
}

/// The command of [`COST`].
fn cost(built: &Built) -> String {
    let ledger = TESTS.iter().position(|&name| name == LEDGER);
    let executable = built.tests[ledger.expect("it is one of them")].display();
    format!(
        "PROFILER_FIXTURES={GUEST_FIXTURES} {LEDGER_VARIABLES} PROFILER_COUNT_INSTRUCTIONS=1 {executable} \
         --test-threads=1 --nocapture --ignored {COST}"
    )
}

/// The executables of the profiler.
struct Built {
    profiler: PathBuf,
    /// In the order of [`TESTS`].
    tests: Vec<PathBuf>,
}

impl Built {
    fn new(root: &Path) -> Result<Built> {
        let mut command = Command::new("cargo");
        command
            // Optimised, since a translated guest is some forty times slower than this machine.
            .args(["test", "--quiet", "--release", "--package", "profiler"])
            .args(["--features", "privileged-tests"])
            .args(["--no-run", "--message-format=json"])
            .args(TESTS.iter().flat_map(|name| ["--test", name]))
            .current_dir(root);
        build::name_object(&mut command, ebpf::build_if_possible(root)?);
        let messages = output(&mut command)?;
        let built = |name, kind| {
            executable(&messages, name, kind)
                .map(PathBuf::from)
                .with_context(|| format!("cargo built no executable `{name}`"))
        };
        Ok(Built {
            profiler: built("profiler", Kind::Program)?,
            tests: TESTS
                .iter()
                .map(|name| built(name, Kind::Test))
                .collect::<Result<_>>()?,
        })
    }
}

/// Builds `xtask/guest` without shared libraries, so that it runs before anything else is there.
fn first_process(root: &Path) -> Result<PathBuf> {
    let target = root.join("target/guest");
    Command::new("cargo")
        .args(["build", "--quiet", "--release", "--package", "guest-init"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .current_dir(root)
        .run()?;
    Ok(target.join(TARGET).join("release/guest-init"))
}

/// Compiles the C programs of the tests, for a guest has no compiler: name and executable of each.
fn fixtures(root: &Path, folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    fs::create_dir_all(folder)?;
    let sources = root.join(FIXTURES);
    let mut built = Vec::new();
    for entry in sources.read_dir()? {
        let source = entry?.path();
        if source.extension().is_none_or(|extension| extension != "c") {
            continue;
        }
        let name = source
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let program = folder.join(&name);
        Command::new("cc")
            .arg(format!("@{}", sources.join("flags").display()))
            .arg("-o")
            .args([&program, &source])
            .run()?;
        built.push((name, program));
    }
    Ok(built)
}

/// A copy without debug information, which is nine tenths of a file; the names of functions stay, for
/// backtraces.
fn strip(executable: &Path, folder: &Path) -> Result<PathBuf> {
    let stripped = folder.join(executable.file_name().unwrap_or_default());
    Command::new("strip")
        .args(["--strip-debug", "-o"])
        .args([&stripped, executable])
        .run()?;
    Ok(stripped)
}

fn text(content: &str) -> Entry {
    Entry::File(content.as_bytes().to_vec())
}

/// A program in `/bin`, where shells and scripts expect it.
fn find(program: &str) -> Result<PathBuf> {
    let path = Path::new("/bin").join(program);
    ensure!(
        path.exists(),
        "no {}, which the tests start",
        path.display()
    );
    Ok(path)
}
