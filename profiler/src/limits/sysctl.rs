//! The settings of the kernel that limit threads and mappings.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// A setting that we know how to raise. Never `vm.overcommit_memory`: what it changes outlives the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Sysctl {
    /// One more than the highest pid; each thread has one.
    #[serde(rename = "kernel.pid_max")]
    PidMax,
    /// Threads of the whole system.
    #[serde(rename = "kernel.threads-max")]
    ThreadsMax,
    /// Mappings of one process.
    #[serde(rename = "vm.max_map_count")]
    MaxMapCount,
}

impl Sysctl {
    /// All of them.
    pub const ALL: [Sysctl; 3] = [Sysctl::PidMax, Sysctl::ThreadsMax, Sysctl::MaxMapCount];

    /// As sysctl(8) has it.
    pub fn name(self) -> &'static str {
        match self {
            Sysctl::PidMax => "kernel.pid_max",
            Sysctl::ThreadsMax => "kernel.threads-max",
            Sysctl::MaxMapCount => "vm.max_map_count",
        }
    }

    /// The highest value that Linux takes on a 64-bit machine.
    pub fn ceiling(self) -> u64 {
        match self {
            // PID_MAX_LIMIT, include/linux/threads.h
            Sysctl::PidMax => 4 << 20,
            // MAX_THREADS is FUTEX_TID_MASK: kernel/fork.c, include/uapi/linux/futex.h
            Sysctl::ThreadsMax => 0x3fff_ffff,
            // An int: kernel/sysctl.c
            Sysctl::MaxMapCount => i32::MAX as u64,
        }
    }
}

/// Where the settings are files.
#[derive(Debug, Clone)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Sysctls::at(Path::new("/proc/sys"))
    }
}

impl Sysctls {
    /// Below `root`, which is `/proc/sys` but in tests.
    pub fn at(root: &Path) -> Sysctls {
        Sysctls {
            root: root.to_owned(),
        }
    }

    /// The present value.
    pub fn read(&self, sysctl: Sysctl) -> io::Result<u64> {
        let text = fs::read_to_string(self.path(sysctl))?;
        text.trim()
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    pub(super) fn write(&self, sysctl: Sysctl, value: u64) -> io::Result<()> {
        fs::write(self.path(sysctl), value.to_string())
    }

    fn path(&self, sysctl: Sysctl) -> PathBuf {
        self.root.join(sysctl.name().replace('.', "/"))
    }
}
