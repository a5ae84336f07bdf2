//! The machine: QEMU with a serial console and nothing else.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    process::{Command, line},
    toolchains::Toolchain,
};

/// The largest test maps 1 GiB and touches half of it, beside the files in memory.
const MEMORY_MIB: u32 = 3072;
/// Two, so that threads run beside each other and counters of each CPU differ.
const CPUS: u32 = 2;
/// A panic ends the guest at once, an oops is a panic.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 oops=panic";
/// How often a guest is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// What a guest may take to its first process with KVM; one that takes longer does not work.
const KVM_BOOT: Duration = Duration::from_secs(20);

/// What runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// The same with one processor, whose clock counts its instructions: one a nanosecond.
    Counting,
}

/// How a guest came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It switched itself off, or panicked.
    ByItself,
    /// It was still running when its time was over, and was killed.
    Hung,
}

/// A guest that has ended.
#[derive(Debug)]
pub struct Guest {
    /// Everything on its console.
    pub console: String,
    /// Why it ended.
    pub ended: Ended,
    /// From start to end.
    pub seconds: f64,
}

/// A QEMU that can boot guests.
pub struct Machine<'a> {
    /// Where it is.
    pub qemu: &'a Toolchain,
    /// With what.
    pub accelerator: Accelerator,
    /// When a guest counts as hung.
    pub timeout: Duration,
    /// Where QEMU's own complaints go.
    pub complaints: Complaints,
}

/// Where QEMU's own complaints go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Complaints {
    /// To the person.
    Shown,
    /// Nowhere: this is only a try.
    Dropped,
}

impl Machine<'_> {
    /// Boots `kernel` with `initramfs`, and waits for its end. Each line of the console goes to `log` at
    /// once and is shown to `watch`.
    pub fn run(
        &self,
        kernel: &Path,
        initramfs: &Path,
        log: &Path,
        watch: &(dyn Fn(&str) + Sync),
    ) -> Result<Guest> {
        let mut command = self.command(kernel, initramfs)?;
        let mut log =
            fs::File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        end_with_us(&mut command);
        let began = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(match self.complaints {
                Complaints::Shown => Stdio::inherit(),
                Complaints::Dropped => Stdio::null(),
            })
            .spawn()
            .with_context(|| format!("cannot start `{}`", line(&command)))?;
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut console = Vec::new();
                let mut begin = 0;
                while output.read_until(b'\n', &mut console)? > 0 {
                    log.write_all(&console[begin..])?;
                    watch(String::from_utf8_lossy(&console[begin..]).trim_end());
                    begin = console.len();
                }
                Ok(String::from_utf8_lossy(&console).into_owned())
            });
            let ended = self.wait(&mut child, began);
            if ended.is_err() {
                let _ = child.kill();
            }
            let console: Result<String> = reader.join().expect("the reader does not panic");
            Ok(Guest {
                console: console.context("cannot keep the console")?,
                ended: ended?,
                seconds: began.elapsed().as_secs_f64(),
            })
        })
    }

    fn wait(&self, child: &mut Child, began: Instant) -> Result<Ended> {
        loop {
            if child.try_wait()?.is_some() {
                return Ok(Ended::ByItself);
            }
            if began.elapsed() > self.timeout {
                child.kill().context("cannot kill the hung guest")?;
                child.wait()?;
                return Ok(Ended::Hung);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn command(&self, kernel: &Path, initramfs: &Path) -> Result<Command> {
        let fill = |name: &str| self.qemu.variables.fill(name);
        let mut command = Command::new(fill("{qemu-system-x86_64}")?);
        command.envs(&self.qemu.environment);
        // Only an unpacked copy has to be told where its own files are.
        for folder in ["{firmware}", "{bios}"]
            .into_iter()
            .filter_map(|name| fill(name).ok())
        {
            command.args(["-L", &folder]);
        }
        let (accelerator, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            // QEMU 7.2 leaves garbage in the flags after `cmpxchg16b`, which the kernel's allocator (SLUB)
            // uses where the CPU has it: Linux 6.12 died of that in two boots of seven. And with a thread for
            // each guest CPU, one of them runs into code that the other is patching (a probe that comes or
            // goes): 6.12 died of that in `__schedule`. One thread takes turns.
            Accelerator::Tcg | Accelerator::Counting => ("tcg,thread=single", "max,-cx16"),
        };
        let cpus = match self.accelerator {
            Accelerator::Counting => {
                command.args(["-icount", "shift=0"]);
                1
            }
            _ => CPUS,
        };
        command
            .args(["-machine", "q35", "-accel", accelerator, "-cpu", cpu])
            .args(["-m", &MEMORY_MIB.to_string(), "-smp", &cpus.to_string()])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", KERNEL_ARGUMENTS]);
        Ok(command)
    }
}

/// A machine outlives nobody who would look at it: it is killed when the thread that started it is gone, which waits
/// for its end.
fn end_with_us(command: &mut Command) {
    // SAFETY: prctl(2) is a system call without memory of ours, and may be made between fork and exec.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
        );
    }
}

/// KVM when it is here and boots this kernel, the translator otherwise: a `/dev/kvm` inside a virtual
/// machine may open and yet run no guest.
pub fn accelerator(
    qemu: &Toolchain,
    kernel: &Path,
    initramfs: &Path,
    log: &Path,
) -> Result<Accelerator> {
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    if device.is_err() {
        return Ok(Accelerator::Tcg);
    }
    let machine = Machine {
        qemu,
        accelerator: Accelerator::Kvm,
        timeout: KVM_BOOT,
        complaints: Complaints::Dropped,
    };
    let guest = machine.run(kernel, initramfs, log, &|_| ())?;
    let booted = super::report::Report::read(&guest.console)
        .release
        .is_some();
    Ok(if booted {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    })
}
