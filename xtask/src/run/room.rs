//! Reading what the machine has room for.

use std::fs;

use anyhow::{Context, Result};
use profiler::{
    launch::held::Identity,
    limits::{
        cgroup::pids_limits,
        raised::Place,
        sysctl::{Sysctl, Sysctls},
    },
    units::KIB,
};

use super::preflight::{Room, UserLimit};
use crate::setup::is_root;

/// What there is now. What a run that is under way has raised counts as what it will be again.
pub fn read() -> Result<Room> {
    let raised = Place::of_this_machine().raised()?;
    let value = |sysctl| match raised.iter().find(|raised| raised.sysctl == sysctl) {
        Some(raised) => Some(raised.original),
        // A limit that cannot be read limits nothing as far as we can tell.
        None => Sysctls::default().read(sysctl).ok(),
    };
    Ok(Room {
        sysctls: Sysctl::ALL
            .into_iter()
            .filter_map(|sysctl| Some((sysctl, value(sysctl)?)))
            .collect(),
        threads_in_use: threads_in_use()?,
        groups: pids_limits(),
        user: user_limit()?,
        memory_bytes: available_bytes()?,
    })
}

/// The fourth figure of `/proc/loadavg` is RUNNABLE/ALL.
fn threads_in_use() -> Result<u64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let all = text
        .split_whitespace()
        .nth(3)
        .and_then(|both| both.split('/').nth(1));
    all.and_then(|all| all.parse().ok())
        .context("/proc/loadavg has no number of threads")
}

/// Of the user whom programs run as; root has no limit.
fn user_limit() -> Result<Option<UserLimit>> {
    // SAFETY: the call has no preconditions and cannot fail.
    let own = unsafe { libc::getuid() };
    let user = match is_root() {
        true => Identity::behind_sudo().map(|user| user.uid),
        false => Some(own),
    };
    let Some(user) = user else { return Ok(None) };
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes to the struct that it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot read RLIMIT_NPROC");
    }
    Ok(Some(UserLimit {
        max: limit.rlim_cur,
        in_use: threads_of(user)?,
    }))
}

/// Threads of a user.
fn threads_of(user: u32) -> Result<u64> {
    let mut threads = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        // One that is gone has no threads, and what is no process has no status.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        if number("Uid:") == Some(u64::from(user)) {
            threads += number("Threads:").unwrap_or(0);
        }
    }
    Ok(threads)
}

/// `MemAvailable`, in bytes.
fn available_bytes() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib * KIB)
        .context("/proc/meminfo has no MemAvailable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_read() {
        let room = read().unwrap();
        assert_eq!(room.sysctls.len(), Sysctl::ALL.len());
        assert!(
            room.sysctls.iter().all(|(_, value)| *value >= 1_000),
            "{room:?}"
        );
        assert!(
            room.threads_in_use > 1 && room.memory_bytes > 64 << 20,
            "{room:?}"
        );
    }

    #[test]
    fn our_own_threads_are_found() {
        // SAFETY: the call has no preconditions and cannot fail.
        let own = unsafe { libc::getuid() };
        let barrier = std::sync::Barrier::new(21);
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| barrier.wait());
            }
            let found = threads_of(own);
            barrier.wait();
            assert!(found.unwrap() > 20);
        });
    }
}
