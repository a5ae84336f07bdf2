//! Out of memory, the kernel ends the program and not the one who measures it.

use std::fs;

/// Of the process that reads it (proc_pid_oom_score_adj(5)).
const OWN: &str = "/proc/self/oom_score_adj";
/// Never chosen (`OOM_SCORE_ADJ_MIN`, include/uapi/linux/oom.h).
const NEVER: &str = "-1000";

/// While it lives, this process and those that it forks are not chosen. Both are in the cgroup whose limit the program may
/// come up against, and until the pages of a program that was ended are given back, the kernel may end the next
/// one, which would be us, with all that was measured.
pub struct Spared {
    before: String,
}

impl Spared {
    /// Where it may be asked for: that takes `CAP_SYS_RESOURCE`. A program forked before keeps its own score.
    pub fn ask() -> Option<Spared> {
        let before = fs::read_to_string(OWN).ok()?;
        fs::write(OWN, NEVER).ok()?;
        Some(Spared { before })
    }
}

impl Drop for Spared {
    fn drop(&mut self) {
        // To raise it again, which the next program would inherit otherwise, takes no right.
        let _ = fs::write(OWN, &self.before);
    }
}
