//! `profiler setup`: file capabilities, so that this binary needs no sudo.

use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::unistd::{Group, Uid};
use profiler::privileges::{FILE_CAPABILITIES, give_to_file, take_from_file};

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
        let had = take_from_file(&binary)
            .with_context(|| format!("cannot take capabilities from {}", binary.display()))?;
        let done = match had {
            true => format!("{} has no capabilities any more\n", binary.display()),
            false => format!("{} had no capabilities\n", binary.display()),
        };
        return output::print(done.as_bytes());
    }
    if let Some(name) = &arguments.group {
        restrict(&binary, name)?;
    }
    // Last: whoever owns a file takes its capabilities away.
    give_to_file(&binary).with_context(|| {
        format!(
            "cannot give capabilities to {}; they take root of the machine and a file system with extended attributes",
            binary.display()
        )
    })?;
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
