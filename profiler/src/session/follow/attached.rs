//! Processes that ran before we came, and trees of which no event tells: what is known of them is what `/proc`
//! shows.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};

use super::{Ended, FREEZE_TIMEOUT, Following, Next, Waiting, monotonic_ns};
use crate::{
    launch::{existing::Existing, group::Known},
    peak::{ScanPolicy, Why},
    residency::{scan::ScanError, standing::Standing, vm_hwm_bytes},
    results::{AttachEnd, Attached, RefusedTier},
    session::{
        SessionError, analysis::Analysis, at_peak::AtPeak, image, own_cost, signals::Signals,
    },
};

/// When a process is left.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::session) struct Leave {
    /// After this time; `None`: when it ends, or at a signal.
    pub after: Option<Duration>,
    /// When our stdin is closed.
    pub when_stdin_closes: bool,
}

impl Following<'_> {
    /// Follows a process that runs already, until it ends or it is time to leave it. The kernel side follows it
    /// and its tree already, where there are probes; `known` is the list of its group.
    pub async fn until_left(
        mut self,
        process: Existing,
        known: Known,
        leave: Leave,
    ) -> Result<Ended, SessionError> {
        let mut attached = self.begin(process.pid, known)?;
        self.start = own_cost::start();
        let waiting = Waiting::new(
            self.ring(),
            process.descriptor,
            None,
            // Whatever would end us: we leave the process first.
            Signals::open(true).context("cannot wait for signals")?,
            leave.when_stdin_closes,
        )?;
        let mut waiting = waiting.at_most(leave.after);
        attached.ended_by = loop {
            match waiting.next().await? {
                Next::Ring => self.drain()?,
                Next::Tick => self.tick()?,
                Next::Exit => break AttachEnd::Exit,
                Next::Elapsed => break AttachEnd::Duration,
                Next::Signal(_) => break AttachEnd::Signal,
                Next::Stdout(_) | Next::Stderr(_) | Next::StdoutEnd | Next::StderrEnd => {}
            }
        };
        let end_ns = monotonic_ns();
        self.drain()?;
        if attached.ended_by != AttachEnd::Exit {
            self.last_look()?;
        }
        self.end(end_ns, None, Some(attached))
    }

    /// Takes the tree as it stands.
    fn begin(&mut self, pid: u32, known: Known) -> Result<Attached> {
        let mut unknown = vec![
            "which calls made what was there at attach: its regions are classified by flags and shape of the mappings"
                .to_owned(),
            "the peak before attach, but for the kernel's own high-water mark".to_owned(),
            "how long the process takes to launch, and its counters: CPU time, page faults, context switches".to_owned(),
        ];
        let frozen = match self.group.freeze(FREEZE_TIMEOUT) {
            Ok(frozen) => Some(frozen),
            Err(error) => {
                unknown.push(format!(
                    "what changed while the process was first read, because it could not be stopped for that: {error}"
                ));
                None
            }
        };
        // What the ring tells until here stands in `/proc` already.
        if let Some(probes) = &mut self.probes {
            probes.ring.fetch();
            while probes.ring.next(|_| ()).is_some() {}
        }
        let now = monotonic_ns();
        let standing = self.read_standing(pid)?;
        let mut analysis = Analysis::of_standing(&standing);
        analysis.sizes = std::mem::take(&mut self.sizes);
        self.analysis = Some(analysis);
        self.exec_ns = Some(now);
        self.known = Some(known.clone());
        for process in &standing {
            if self.probes.is_some() {
                known.add(process.tgid);
            }
            self.take_image(process.tgid);
        }
        if self.has_ledger() {
            self.let_ledger_look(&standing);
        }
        let tgids: Vec<u32> = standing.iter().map(|process| process.tgid).collect();
        let attached = Attached {
            pid,
            ended_by: AttachEnd::Exit,
            rss_bytes_at_attach: tgids.iter().map(|&tgid| self.poll_rss(tgid)).sum(),
            vm_hwm_bytes_at_attach: tgids
                .iter()
                .filter_map(|&tgid| vm_hwm_bytes(tgid).ok())
                .sum(),
            processes_at_attach: standing.len() as u64,
            threads_at_attach: standing.iter().map(|it| it.threads.len() as u64).sum(),
            unknown,
        };
        if let Some(frozen) = frozen {
            self.frozen += frozen.took;
            frozen.thaw()?;
            self.frozen = Duration::from_nanos(monotonic_ns().saturating_sub(now));
        }
        Ok(attached)
    }

    /// The tree, the process itself first.
    fn read_standing(&mut self, pid: u32) -> Result<Vec<Standing>> {
        let mut pids = self.group.pids()?;
        pids.sort_by_key(|&other| (other != pid, other));
        let mut standing = Vec::new();
        for other in pids {
            match Standing::read(other) {
                Ok(process) => standing.push(process),
                Err(ScanError::Gone { .. }) if other == pid => break,
                Err(error) if other == pid => return Err(error.into()),
                // A child may end at any time, or belong to somebody else.
                Err(error) => self.warn_once(format!("a process is left out: {error}")),
            }
        }
        if standing.first().is_none_or(|first| first.tgid != pid) {
            bail!("process {pid} ended before it could be read, so nothing was measured");
        }
        Ok(standing)
    }

    /// The state now becomes the first candidate for the peak. Where that fails there is no ledger.
    fn let_ledger_look(&mut self, standing: &[Standing]) {
        let looked = self.probes.as_mut().map(|probes| probes.look_at_existing());
        match looked {
            Some(Ok(())) => self.at_peak = Some(AtPeak::of_standing(standing)),
            Some(Err(error)) => {
                let tier = self.probes.as_ref().and_then(|it| it.ledger.as_ref());
                self.refused_tiers.push(RefusedTier {
                    tier: tier.map_or("B", |ledger| ledger.tier().name()).into(),
                    reason: format!(
                        "the memory that is there already cannot be told to it: {error}"
                    ),
                });
                self.policy = ScanPolicy::default();
            }
            None => {}
        }
    }

    /// Before the process is left: growth without any removal is no candidate yet, and who was never at rest has
    /// not been looked into.
    fn last_look(&mut self) -> Result<()> {
        if let (Some(probes), true) = (&mut self.probes, self.at_peak.is_some())
            && let Err(error) = probes.look_at_existing()
        {
            self.warn_once(format!("the page ledger did not look at the end: {error}"));
        }
        self.drain()?;
        let analysis = self.analysis.as_ref().context("set at the begin")?;
        if analysis.looks.is_empty() || analysis.best.is_none() {
            let began = self.exec_ns.unwrap_or(0);
            let now = Duration::from_nanos(monotonic_ns().saturating_sub(began));
            self.scan(now, Why::AtRest)?;
        }
        Ok(())
    }

    /// Tier D: no event tells of the exec that has just been.
    pub(super) fn begin_without_probes(&mut self, pid: u32) {
        self.exec_ns = Some(monotonic_ns());
        self.take_image(pid);
    }

    /// Tier D: takes processes anew, as they stand. Who may not be looked at stays what it was.
    pub(super) fn stand(&mut self, pids: &[u32]) {
        for &pid in pids {
            match Standing::read(pid) {
                Ok(standing) => {
                    let changed = {
                        let analysis = self.analysis.as_mut().expect("set before the loop");
                        analysis.stands(&standing, monotonic_ns())
                    };
                    if changed {
                        self.take_image(pid);
                    }
                }
                Err(ScanError::Gone { .. }) => {}
                Err(error) => self.warn_once(format!("a process is left out: {error}")),
            }
        }
    }

    /// Tier D: who has come, and who is gone.
    pub(super) fn discover(&mut self) -> Result<()> {
        let pids = self.group.pids()?;
        let alive = self.alive();
        let new: Vec<u32> = pids
            .iter()
            .copied()
            .filter(|pid| !alive.contains(pid))
            .collect();
        self.stand(&new);
        let analysis = self.analysis.as_mut().expect("set before the loop");
        for tgid in alive.into_iter().filter(|tgid| !pids.contains(tgid)) {
            analysis.tree.is_gone(tgid, monotonic_ns());
            self.statm.remove(&tgid);
        }
        Ok(())
    }

    fn take_image(&mut self, tgid: u32) {
        let analysis = self.analysis.as_mut().expect("set before the loop");
        if let Some(image) = image::read(tgid) {
            analysis.image(tgid, image);
        }
    }
}

/// Command and environment of a process, as far as it still tells them and lets us read them.
pub(in crate::session) fn command_and_environment(
    pid: u32,
) -> (Vec<String>, Vec<(String, String)>) {
    let strings = |name: &str| -> Vec<String> {
        let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        bytes
            .split(|&byte| byte == 0)
            .filter(|string| !string.is_empty())
            .map(|string| String::from_utf8_lossy(string).into_owned())
            .collect()
    };
    let variable = |text: String| {
        let (name, value) = text.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    let environment = strings("environ").into_iter().filter_map(variable);
    (strings("cmdline"), environment.collect())
}
