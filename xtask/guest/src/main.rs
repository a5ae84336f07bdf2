//! The first process of a guest of `cargo xtask vm`: mounts what a Linux system has, runs the jobs in
//! [`JOBS`] one after the other, and switches the machine off.
//!
//! `cargo xtask vm` links it statically and packs it as `/init`. It tells what it does in lines that
//! begin with [`MARK`]; `xtask/src/vm/report.rs` reads them from the serial console.

use std::{
    ffi::CString,
    fs, io,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

/// One job a line: its name, `VARIABLE=value` as often as need be, the program and its arguments.
const JOBS: &str = "/guest/jobs";
/// Begins each line of ours; the jobs write to the same console.
const MARK: &str = "@guest";
/// The variables that a job has beside its own.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin"),
    ("HOME", "/root"),
    ("RUST_BACKTRACE", "1"),
];

/// File system and where it goes. One that this kernel lacks is told and left out.
const MOUNTS: [(&str, &str); 9] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tracefs", "/sys/kernel/tracing"),
    ("bpf", "/sys/fs/bpf"),
];

fn main() {
    for (kind, target) in MOUNTS {
        if let Err(error) = mount(kind, target) {
            say(&format!("mount {kind} {error}"));
        }
    }
    // The groups of the jobs count their memory, as those of a session under systemd do.
    if let Err(error) = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory") {
        say(&format!("mount cgroup memory {error}"));
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    say(&format!("booted {}", release.trim()));
    match fs::read_to_string(JOBS) {
        Ok(jobs) => jobs.lines().for_each(run),
        Err(error) => say(&format!("jobs {error}")),
    }
    say("done");
    // SAFETY: neither call has a precondition. The console is flushed by the driver's shutdown.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
}

/// A line for the host. The empty line before it ends whatever a job left unfinished.
fn say(words: &str) {
    println!("\n{MARK} {words}");
}

/// Runs one job and tells how it ended: `exit 0`, `signal 9`, or why it did not start.
fn run(line: &str) {
    let mut words = line.split(' ');
    let Some(name) = words.next().filter(|name| !name.is_empty()) else {
        return;
    };
    let mut words = words.peekable();
    let mut environment = ENVIRONMENT.to_vec();
    while let Some(variable) = words.next_if(|word| word.contains('=')) {
        environment.extend(variable.split_once('='));
    }
    let mut command = Command::new(words.next().unwrap_or_default());
    command
        .args(words)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null());

    say(&format!("begin {name}"));
    let began = Instant::now();
    let ended = match command.spawn() {
        Ok(child) => wait(child.id().cast_signed()),
        Err(error) => format!("start {error}"),
    };
    say(&format!(
        "end {name} {:.1} {ended}",
        began.elapsed().as_secs_f64()
    ));
    // SAFETY: signals every process but ourselves; what a job left behind must not disturb the next.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Waits for `pid`, and for every orphan that ends meanwhile, as the first process must.
fn wait(pid: i32) -> String {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place to write to.
        let ended = unsafe { libc::waitpid(-1, &mut status, 0) };
        if ended < 0 {
            return format!("lost {}", io::Error::last_os_error());
        }
        if ended == pid && libc::WIFEXITED(status) {
            return format!("exit {}", libc::WEXITSTATUS(status));
        }
        if ended == pid {
            return format!("signal {}", libc::WTERMSIG(status));
        }
    }
}

fn mount(kind: &str, target: &str) -> io::Result<()> {
    // Some mount points are made by the file system above them.
    if !Path::new(target).exists() {
        fs::create_dir_all(target)?;
    }
    let (kind, target) = (CString::new(kind)?, CString::new(target)?);
    // SAFETY: the strings end with a zero and live until the call returns; no data is passed.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
