//! Which system limit stopped the growth of a tree.

use crate::{
    limits::sysctl::{Sysctl, Sysctls},
    units::thousands,
};

/// A tree with this share of a limit that it has for itself has come up against it,
const OWN: f64 = 0.998;
/// and of a limit that it shares with other processes.
const SHARED: f64 = 0.97;

/// A sysctl that limits what a tree may have, how much of it the tree had, and which share of it
/// means that the limit was reached.
struct Limit {
    sysctl: Sysctl,
    used: u64,
    allowed: u64,
    reached: f64,
}

/// The limit that a tree comes up against which has had `threads` threads and whose largest process
/// has had `mappings` mappings: `kernel.pid_max = 32,768`.
pub fn reached(threads: u64, mappings: u64) -> Option<String> {
    let limit = |sysctl, used, reached| {
        // A limit that cannot be read limits nothing as far as we can tell.
        let allowed = Sysctls::default().read(sysctl).unwrap_or(u64::MAX);
        Limit {
            sysctl,
            used,
            allowed,
            reached,
        }
    };
    first_reached(&[
        limit(Sysctl::MaxMapCount, mappings, OWN),
        limit(Sysctl::PidMax, threads, SHARED),
        limit(Sysctl::ThreadsMax, threads, SHARED),
    ])
}

fn first_reached(limits: &[Limit]) -> Option<String> {
    let reached = |limit: &&Limit| limit.used as f64 >= limit.allowed as f64 * limit.reached;
    let limit = limits.iter().find(reached)?;
    Some(format!(
        "{} = {}",
        limit.sysctl.name(),
        thousands(limit.allowed)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(threads: u64, mappings: u64) -> Option<String> {
        let limit = |sysctl, used, allowed, reached| Limit {
            sysctl,
            used,
            allowed,
            reached,
        };
        first_reached(&[
            limit(Sysctl::MaxMapCount, mappings, 65_530, OWN),
            limit(Sysctl::PidMax, threads, 32_768, SHARED),
            limit(Sysctl::ThreadsMax, threads, 192_730, SHARED),
        ])
    }

    #[test]
    fn the_limit_that_is_used_up_is_named() {
        assert_eq!(
            first(32_443, 64_906).as_deref(),
            Some("kernel.pid_max = 32,768")
        );
        assert_eq!(
            first(16_368, 65_500).as_deref(),
            Some("vm.max_map_count = 65,530")
        );
        assert_eq!(first(10_000, 40_000), None);
    }
}
