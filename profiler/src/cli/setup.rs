//! `profiler setup`: file capabilities, so that this binary needs no sudo.

use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::unistd::{Group, Uid};
use profiler::privileges::FILE_CAPABILITIES;

use super::{Failure, output, run::OWN_FAILURE};

#[derive(Args)]
pub struct Arguments {
    /// Take the capabilities away again
    #[arg(long)]
    remove: bool,

    /// Let only members of this group execute the binary
    #[arg(long, value_name = "GROUP", conflicts_with = "remove")]
    group: Option<String>,
}

pub fn execute(arguments: &Arguments) -> Result<u8, Failure> {
    set_up(arguments)
        .map(|()| 0)
        .map_err(|error| Failure::new(OWN_FAILURE, error))
}

fn set_up(arguments: &Arguments) -> Result<()> {
    let binary = std::env::current_exe().context("cannot find this binary")?;
    if !Uid::effective().is_root() {
        bail!("setup needs root; try `sudo profiler setup`");
    }
    if arguments.remove {
        setcap(&["-r"], &binary)?;
        let done = format!("{} has no capabilities any more\n", binary.display());
        return output::print(done.as_bytes());
    }
    if let Some(name) = &arguments.group {
        restrict(&binary, name)?;
    }
    // Last: whoever owns a file takes its capabilities away.
    setcap(&[FILE_CAPABILITIES], &binary)?;
    let done = format!(
        "{} has {FILE_CAPABILITIES}\ntier C needs no sudo now, for one's own processes; see docs/privileges.md\n",
        binary.display()
    );
    output::print(done.as_bytes())
}

fn restrict(binary: &Path, name: &str) -> Result<()> {
    let group = Group::from_name(name)?
        .with_context(|| format!("there is no group {name}; try `groupadd --system {name}`"))?;
    chown(binary, Some(0), Some(group.gid.as_raw()))?;
    std::fs::set_permissions(binary, std::fs::Permissions::from_mode(0o750))?;
    Ok(())
}

fn setcap(arguments: &[&str], binary: &Path) -> Result<()> {
    let output = Command::new("setcap")
        .args(arguments)
        .arg(binary)
        .output()
        .context("cannot run setcap; on Debian it comes with `apt-get install libcap2-bin`")?;
    if !output.status.success() {
        bail!("setcap: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
