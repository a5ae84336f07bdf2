//! How many processes and threads the cgroups that we are in may have: `pids.max`, in version 1 (where the
//! controller has a hierarchy of its own) and in version 2.

use std::{
    fs,
    path::{Path, PathBuf},
};

use procfs::process::Process;

/// A cgroup with a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidsLimit {
    /// Its directory.
    pub directory: PathBuf,
    /// `pids.max`.
    pub max: u64,
    /// `pids.current`: threads in it and below.
    pub current: u64,
}

/// Every limit that holds for us, those of the groups above ours included. What cannot be read limits
/// nothing as far as we can tell.
pub fn pids_limits() -> Vec<PidsLimit> {
    let Ok(myself) = Process::myself() else {
        return Vec::new();
    };
    let (Ok(groups), Ok(mounts)) = (myself.cgroups(), myself.mountinfo()) else {
        return Vec::new();
    };
    let mut limits = Vec::new();
    for group in groups {
        let second_version = group.hierarchy == 0;
        let counts = second_version || group.controllers.iter().any(|name| name == "pids");
        let mount = mounts.iter().filter(|_| counts).find(|mount| {
            let options = &mount.super_options;
            match second_version {
                true => mount.fs_type == "cgroup2",
                false => mount.fs_type == "cgroup" && options.contains_key("pids"),
            }
        });
        let Some(mount) = mount else { continue };
        let below = Path::new(&group.pathname);
        // A container's mount shows a part of the hierarchy only.
        let below = below.strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let directory = mount.mount_point.join(below);
        let ancestors = directory.ancestors();
        limits.extend(
            ancestors
                .take_while(|directory| directory.starts_with(&mount.mount_point))
                .filter_map(limit_of),
        );
    }
    limits
}

fn limit_of(directory: &Path) -> Option<PidsLimit> {
    let number = |name: &str| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        text.trim().parse().ok() // `max` is no limit
    };
    Some(PidsLimit {
        max: number("pids.max")?,
        current: number("pids.current")?,
        directory: directory.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_a_limit_limits_nothing() {
        let group = tempfile::tempdir().unwrap();
        let write = |name, text| fs::write(group.path().join(name), text).unwrap();
        assert_eq!(limit_of(group.path()), None);
        write("pids.current", "17\n");
        write("pids.max", "max\n");
        assert_eq!(limit_of(group.path()), None);
        write("pids.max", "4915\n");
        let limit = limit_of(group.path()).unwrap();
        assert_eq!((limit.max, limit.current), (4_915, 17));
    }
}
