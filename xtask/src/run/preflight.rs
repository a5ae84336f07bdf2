//! What a program at one N needs, held against what the machine has room for: said before anything starts.

use std::{fmt, path::PathBuf};

use profiler::{
    limits::{Raise, Raises, cgroup::PidsLimit, sysctl::Sysctl},
    units::{human, thousands},
};

/// Pids that Linux does not give out again: `RESERVED_PIDS`, kernel/pid.c.
const RESERVED_PIDS: u64 = 300;

/// What a program at one N takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Threads, the runtime's own included.
    pub threads: u64,
    /// Mappings of the process.
    pub mappings: u64,
    /// Resident and kernel memory in bytes, going by what earlier measurements found.
    pub memory_bytes: u64,
}

/// What there is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Settings as they are when no run has raised them.
    pub sysctls: Vec<(Sysctl, u64)>,
    /// Threads of the whole machine that are there already.
    pub threads_in_use: u64,
    /// Limits of the cgroups that programs will run in.
    pub groups: Vec<PidsLimit>,
    /// What limits the user whom programs run as; `None` for root, who has no limit.
    pub user: Option<UserLimit>,
    /// `MemAvailable` in bytes.
    pub memory_bytes: u64,
}

/// `RLIMIT_NPROC` of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserLimit {
    /// Threads that the user may have.
    pub max: u64,
    /// Threads that the user has.
    pub in_use: u64,
}

/// Something that a program at one N comes up against.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Obstacle {
    /// A setting that can be raised.
    Sysctl(Raise, u64),
    /// A setting that cannot be raised so far.
    Ceiling(Raise),
    /// `pids.max` of a group that is not ours to change.
    Group {
        directory: PathBuf,
        needed: u64,
        max: u64,
    },
    /// `RLIMIT_NPROC`
    Processes { needed: u64, max: u64 },
    /// Memory in bytes.
    Memory { needed: u64, available: u64 },
}

/// What comes of a program at one N.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is run, with these limits raised.
    Run(Raises),
    /// It would fail: why, and how to go on, in one sentence.
    Refuse(String),
}

/// Decides about one program at one N. `raise`: limits may be raised. `force`: what stands in the way
/// all the same is to be ignored.
pub fn decide(need: Need, room: &Room, raise: bool, force: bool) -> Decision {
    let (raisable, hard): (Vec<_>, Vec<_>) = obstacles(need, room)
        .into_iter()
        .partition(Obstacle::can_be_raised);
    let raises = match raise {
        true => raises(&raisable),
        false => Raises::default(),
    };
    let in_the_way: Vec<&Obstacle> = match raise {
        true => hard.iter().collect(),
        false => raisable.iter().chain(&hard).collect(),
    };
    if force || in_the_way.is_empty() {
        return Decision::Run(raises);
    }
    let listed: Vec<String> = in_the_way.iter().map(ToString::to_string).collect();
    let remedy = match hard.is_empty() {
        true => "try --raise-limits",
        false => "try fewer tasks, or --force",
    };
    Decision::Refuse(format!("needs {}; {remedy}", listed.join(", and ")))
}

fn obstacles(need: Need, room: &Room) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    let threads = need.threads.saturating_add(room.threads_in_use);
    for &(sysctl, is) in &room.sysctls {
        let at_least = match sysctl {
            Sysctl::PidMax => threads.saturating_add(RESERVED_PIDS),
            Sysctl::ThreadsMax => threads,
            Sysctl::MaxMapCount => need.mappings,
        };
        let raise = Raise { sysctl, at_least };
        if at_least > sysctl.ceiling() {
            obstacles.push(Obstacle::Ceiling(raise));
        } else if at_least > is {
            obstacles.push(Obstacle::Sysctl(raise, is));
        }
    }
    for group in &room.groups {
        let needed = need.threads.saturating_add(group.current);
        if needed > group.max {
            obstacles.push(Obstacle::Group {
                directory: group.directory.clone(),
                needed,
                max: group.max,
            });
        }
    }
    if let Some(UserLimit { max, in_use }) = room.user {
        let needed = need.threads.saturating_add(in_use);
        if needed > max {
            obstacles.push(Obstacle::Processes { needed, max });
        }
    }
    if need.memory_bytes > room.memory_bytes {
        obstacles.push(Obstacle::Memory {
            needed: need.memory_bytes,
            available: room.memory_bytes,
        });
    }
    obstacles
}

fn raises(obstacles: &[Obstacle]) -> Raises {
    let mut raises = Raises::default();
    for obstacle in obstacles {
        match *obstacle {
            Obstacle::Sysctl(raise, _) => raises.sysctls.push(raise),
            Obstacle::Processes { needed, .. } => raises.processes = Some(needed),
            _ => {}
        }
    }
    raises
}

impl Obstacle {
    fn can_be_raised(&self) -> bool {
        matches!(self, Obstacle::Sysctl(..) | Obstacle::Processes { .. })
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Sysctl(Raise { sysctl, at_least }, is) => write!(
                formatter,
                "{} >= {}, it is {}",
                sysctl.name(),
                thousands(*at_least),
                thousands(*is)
            ),
            Obstacle::Ceiling(Raise { sysctl, at_least }) => write!(
                formatter,
                "{} >= {}, and Linux takes {} at most",
                sysctl.name(),
                thousands(*at_least),
                thousands(sysctl.ceiling())
            ),
            Obstacle::Group {
                directory,
                needed,
                max,
            } => write!(
                formatter,
                "pids.max >= {} in {}, it is {}",
                thousands(*needed),
                directory.display(),
                thousands(*max)
            ),
            Obstacle::Processes { needed, max } => write!(
                formatter,
                "RLIMIT_NPROC >= {}, it is {}",
                thousands(*needed),
                thousands(*max)
            ),
            Obstacle::Memory { needed, available } => write!(
                formatter,
                "about {} of memory, {} are available",
                human(*needed),
                human(*available)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn room() -> Room {
        Room {
            sysctls: vec![
                (Sysctl::PidMax, 32_768),
                (Sysctl::ThreadsMax, 192_730),
                (Sysctl::MaxMapCount, 65_530),
            ],
            threads_in_use: 100,
            groups: Vec::new(),
            user: None,
            memory_bytes: 22 * GIB,
        }
    }

    fn threads(tasks: u64) -> Need {
        Need {
            threads: tasks,
            mappings: 2 * tasks,
            memory_bytes: 37_400 * tasks,
        }
    }

    fn refused(need: Need, room: &Room, raise: bool) -> String {
        match decide(need, room, raise, false) {
            Decision::Refuse(reason) => reason,
            Decision::Run(raises) => panic!("run with {raises:?}"),
        }
    }

    #[test]
    fn what_fits_is_run_as_it_is() {
        let decision = decide(threads(30_000), &room(), true, false);
        assert_eq!(decision, Decision::Run(Raises::default()));
    }

    #[test]
    fn a_limit_is_named_with_what_is_needed_and_how_to_go_on() {
        let need = Need {
            mappings: 1_000,
            ..threads(99_900)
        };
        assert_eq!(
            refused(need, &room(), false),
            "needs kernel.pid_max >= 100,300, it is 32,768; try --raise-limits"
        );
    }

    #[test]
    fn limits_are_raised_to_what_is_needed_and_no_other_is_touched() {
        let raise = |sysctl, at_least| Raise { sysctl, at_least };
        assert_eq!(
            decide(threads(100_000), &room(), true, false),
            Decision::Run(Raises {
                sysctls: vec![
                    raise(Sysctl::PidMax, 100_400),
                    raise(Sysctl::MaxMapCount, 200_000)
                ],
                processes: None,
            })
        );
    }

    #[test]
    fn memory_cannot_be_raised() {
        assert_eq!(
            refused(threads(1_000_000), &room(), true),
            "needs about 34.83 GiB of memory, 22.00 GiB are available; try fewer tasks, or --force"
        );
        let reason = refused(threads(1_000_000), &room(), false);
        assert!(reason.starts_with(
            "needs kernel.pid_max >= 1,000,400, it is 32,768, and kernel.threads-max"
        ));
        assert!(reason.ends_with("are available; try fewer tasks, or --force"));
    }

    #[test]
    fn no_setting_is_asked_to_go_beyond_what_linux_takes() {
        let need = Need {
            memory_bytes: 0,
            ..threads(5_000_000)
        };
        assert_eq!(
            refused(need, &room(), true),
            "needs kernel.pid_max >= 5,000,400, and Linux takes 4,194,304 at most; try fewer tasks, or --force"
        );
    }

    #[test]
    fn a_group_of_somebody_else_stays_as_it_is() {
        let group = PidsLimit {
            directory: "/sys/fs/cgroup/user.slice".into(),
            max: 10_813,
            current: 13,
        };
        let room = Room {
            groups: vec![group],
            ..room()
        };
        assert_eq!(
            refused(threads(20_000), &room, true),
            "needs pids.max >= 20,013 in /sys/fs/cgroup/user.slice, it is 10,813; try fewer tasks, or --force"
        );
    }

    #[test]
    fn the_limit_of_a_user_is_raised_for_the_program() {
        let user = UserLimit {
            max: 10_000,
            in_use: 7,
        };
        let room = Room {
            user: Some(user),
            ..room()
        };
        assert_eq!(
            refused(threads(20_000), &room, false),
            "needs RLIMIT_NPROC >= 20,007, it is 10,000; try --raise-limits"
        );
        let Decision::Run(raises) = decide(threads(20_000), &room, true, false) else {
            panic!("refused");
        };
        assert_eq!((raises.processes, raises.sysctls), (Some(20_007), vec![]));
    }

    #[test]
    fn force_runs_into_the_limit() {
        let decision = decide(threads(1_000_000), &room(), false, true);
        assert_eq!(decision, Decision::Run(Raises::default()));
    }
}
