//! Following a running target to its end: tokio waits for whatever comes next (the ring, the ticker,
//! the target's words, its exit, a signal), the rest is synchronous.

use std::{
    collections::{BTreeSet, HashMap},
    future::pending,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use nix::sys::{
    signal::Signal,
    wait::{WaitStatus, waitpid},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines, unix::AsyncFd},
    net::unix::pipe,
    time::{Interval, MissedTickBehavior, interval},
};

use super::{
    EventLog, SessionError,
    analysis::{Analysis, Composed, Frozen},
    at_peak::AtPeak,
    divide::divide,
    image,
    job::Job,
    ledger::OfProcesses,
    made_by,
    outcome::{Word, Words},
    own_cost,
    phase_counters::PhaseCounters,
    record,
    signals::{self, Deed, Received, Signals},
    timeline::{self, Due, Timeline},
};
use crate::{
    call_stacks::{Capture, Captures, Named},
    events::{Call, Event, decode::decode, log::Entry},
    launch::{
        group::TargetGroup,
        held::{Output, Running},
    },
    peak::{ScanPolicy, Why},
    probes::{attach::Probes, counters::TreeCounters, object_sizes::ObjectSizes},
    residency::{
        Method, Snapshot, StatmReader,
        hidden_growth::HiddenGrowth,
        scan::{self, scan_tree},
        vm_hwm_bytes,
    },
    results::{CallStackCounts, Counters, OwnCost, Probe, RefusedTier, TimelinePoint},
};

/// How often RSS is polled.
const POLL: Duration = Duration::from_millis(10);
/// The high-water marks are read every so many polls, and at each scan.
const POLLS_PER_HIGH_WATER_MARK: u32 = 5;
/// After this time with all tasks alive, a program is asked for its runtime's books.
const SETTLED: Duration = Duration::from_secs(1);
/// Of the time, one part in so many may go into reading where code is mapped.
const READING_SHARE: u32 = 10;
/// How long the target may take to stand still.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// A target on its way.
pub(super) struct Following<'a> {
    group: &'a TargetGroup,
    /// A benchmark program is ours to end; any other command decides itself what a signal means.
    ours_to_end: bool,
    /// The runtime's own books.
    books: Books,
    probes: Probes,
    counters: TreeCounters,
    phase_counters: PhaseCounters,
    /// How long each task waits.
    task_wait: Option<Duration>,
    event_log: EventLog,
    /// Sizes of the kernel's objects, on their way to the analysis.
    sizes: ObjectSizes,
    analysis: Option<Analysis>,
    /// With a page ledger: the tree at the candidate for the peak.
    at_peak: Option<AtPeak>,
    start: Option<own_cost::Start>,
    /// Call stacks that have arrived.
    captures: Captures,
    /// When the mappings of each process may be read again for them.
    code_due: HashMap<u32, std::time::Instant>,
    maps: MapsPolicy,
    policy: ScanPolicy,
    method: Method,
    statm: HashMap<u32, StatmReader>,
    /// Where `statm` lags behind.
    hidden_growth: Option<HiddenGrowth>,
    high_water_marks: HashMap<u32, u64>,
    polls: u32,
    frozen: Duration,
    timeline: Timeline,
    words: Words,
    /// `CLOCK_MONOTONIC` in ns at the first exec, and at the words that tasks are coming and are alive.
    exec_ns: Option<u64>,
    launch_ns: Option<u64>,
    alive_ns: Option<u64>,
    warnings: Vec<String>,
    refused_tiers: Vec<RefusedTier>,
    environment: &'a [(String, String)],
}

/// Whether the program is asked for its runtime's own books: see [`Job::ask_for_books`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Books {
    NotWanted,
    Wanted,
    /// What adapters found just before that is what counts.
    Asked,
}

/// Everything that is known when the target has ended.
pub(super) struct Ended {
    /// What the page ledger found, in tiers A and B.
    pub ledger: Option<crate::results::Ledger>,
    /// And of each process.
    pub of_processes: OfProcesses,
    /// Better tiers that were refused.
    pub refused_tiers: Vec<RefusedTier>,
    pub analysis: Analysis,
    pub high_water_marks: HashMap<u32, u64>,
    pub frozen: Duration,
    pub timeline: Vec<TimelinePoint>,
    pub words: Words,
    pub exec_ns: u64,
    pub launch_ns: Option<u64>,
    pub alive_ns: Option<u64>,
    pub exit_ns: u64,
    /// Exit status, 128 + signal number when a signal ended it.
    pub exit_status: i32,
    pub counters: Counters,
    pub phase_counters: PhaseCounters,
    pub probes: Vec<Probe>,
    pub warnings: Vec<String>,
    pub settings: Vec<String>,
    /// Processes of the tree that outlive the command, or have not quite ended.
    pub leftovers: Vec<u32>,
    /// The call stacks that made the memory at the peak; `None` where they were not taken.
    pub named: Option<Named>,
    /// What became of the calls whose stack was asked for.
    pub call_stack_counts: Option<CallStackCounts>,
    /// What measuring took.
    pub own_cost: Option<OwnCost>,
}

enum Next {
    Ring,
    Tick,
    Stdout(String),
    Stderr(String),
    StdoutEnd,
    StderrEnd,
    Exit,
    Signal(Received),
}

impl<'a> Following<'a> {
    pub fn new(
        job: &'a Job,
        group: &'a TargetGroup,
        probes: Probes,
        counters: TreeCounters,
        event_log: EventLog,
        warnings: Vec<String>,
        refused_tiers: Vec<RefusedTier>,
    ) -> Self {
        Following {
            group,
            ours_to_end: job.contract.is_some(),
            books: match job.ask_for_books {
                true => Books::Wanted,
                false => Books::NotWanted,
            },
            policy: match probes.ledger {
                Some(_) => ScanPolicy::plateaus_only(),
                None => ScanPolicy::default(),
            },
            probes,
            counters,
            phase_counters: PhaseCounters::default(),
            task_wait: job
                .contract
                .and_then(|contract| Duration::try_from_secs_f64(contract.seconds).ok()),
            event_log,
            sizes: ObjectSizes::default(),
            analysis: None,
            at_peak: None,
            start: None,
            captures: Captures::default(),
            code_due: HashMap::new(),
            maps: MapsPolicy::default(),
            method: scan::detect(),
            statm: HashMap::new(),
            hidden_growth: HiddenGrowth::where_it_occurs(),
            high_water_marks: HashMap::new(),
            polls: 0,
            frozen: Duration::ZERO,
            timeline: Timeline::new(),
            words: Words::default(),
            exec_ns: None,
            launch_ns: None,
            alive_ns: None,
            warnings,
            refused_tiers,
            environment: &job.environment,
        }
    }

    /// With what loading the probes took; without it, what measuring took is not told.
    pub fn with_start(self, start: Option<own_cost::Start>) -> Self {
        Following { start, ..self }
    }

    /// With the sizes of the kernel's objects; without them slab is not told.
    pub fn with_sizes(self, sizes: ObjectSizes) -> Self {
        Following { sizes, ..self }
    }

    /// Waits and works until the target has exited.
    pub async fn until_end(
        mut self,
        running: Running,
        until_stdin_closes: bool,
    ) -> Result<Ended, SessionError> {
        let pid = running.pid;
        let mut analysis = Analysis::new(pid.as_raw() as u32);
        analysis.sizes = std::mem::take(&mut self.sizes);
        self.analysis = Some(analysis);
        if self.probes.ledger.is_some() {
            self.at_peak = Some(AtPeak::new(pid.as_raw() as u32));
        }
        let signals = Signals::open(self.ours_to_end).context("cannot wait for signals")?;
        let mut waiting = Waiting::new(&self.probes, running, signals, until_stdin_closes)?;
        let exit_ns = loop {
            match waiting.next().await? {
                Next::Ring => self.drain()?,
                Next::Tick => self.tick()?,
                Next::Stdout(line) => {
                    let now = monotonic_ns();
                    match self.words.stdout(&line) {
                        Some(Word::Launch) => {
                            self.launch_ns = Some(now);
                            self.phase_counters.launch = Some(self.counters.read());
                        }
                        Some(Word::Alive) => {
                            self.alive_ns = Some(now);
                            self.phase_counters.alive = Some(self.counters.read());
                        }
                        None => {}
                    }
                }
                Next::Stderr(line) => {
                    eprintln!("{line}");
                    self.words.stderr(&line);
                }
                Next::StdoutEnd | Next::StderrEnd => {}
                Next::Exit => break monotonic_ns(),
                Next::Signal(received) => self.signalled(received, pid)?,
            }
        };
        let status = waitpid(pid, None).context("cannot wait for the target")?;
        for line in waiting.rest_of_stdout().await {
            self.words.stdout(&line);
        }
        for line in waiting.rest_of_stderr().await {
            self.words.stderr(&line);
        }
        self.drain()?;
        self.end(exit_ns, status)
    }

    /// A program of ours is ended; a command is told what it has not been told by its terminal.
    fn signalled(&self, received: Received, pid: nix::unistd::Pid) -> Result<(), SessionError> {
        match signals::deed(received, self.ours_to_end) {
            Deed::End => return Err(SessionError::Interrupted(received.number)),
            // One that has just ended cannot be told any more.
            Deed::PassOn(signal) => drop(nix::sys::signal::kill(pid, signal)),
            Deed::LookAtChild => signals::stop_with(pid),
            Deed::Nothing => {}
        }
        Ok(())
    }

    /// Takes everything out of the ring.
    fn drain(&mut self) -> Result<()> {
        loop {
            let Some(decoded) = self.probes.ring.next(decode) else {
                self.take_call_stacks();
                self.read_maps();
                return Ok(());
            };
            match decoded {
                Ok(event) => self.take(event)?,
                Err(error) => self
                    .warnings
                    .push(format!("an item of the ring was ignored: {error}")),
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<()> {
        let analysis = self.analysis.as_mut().expect("set before the loop");
        analysis.event(&event);
        if let Some(at_peak) = &mut self.at_peak {
            at_peak.event(&event, &analysis.tree);
            self.maps.event(&event.call);
        }
        match &event.call {
            Call::Exec { .. } => {
                self.captures.code.exec(event.tgid, event.ended_ns);
                self.exec_ns.get_or_insert(event.ended_ns);
                // A short program may be gone when the next reading of all is due.
                if let (Some(at_peak), Ok(vmas)) = (&mut self.at_peak, scan::read_maps(event.tgid))
                {
                    at_peak.maps(event.tgid, &vmas);
                }
                if let Some(image) = image::read(event.tgid) {
                    record(
                        &mut self.event_log,
                        &Entry::Image {
                            tgid: event.tgid,
                            path: image.path.clone(),
                            go: image.go,
                        },
                    )?;
                    analysis.image(event.tgid, image);
                }
            }
            Call::Fork {
                child_tid, flags, ..
            } if flags & libc::CLONE_THREAD as u64 == 0 => {
                let ns = event.ended_ns;
                self.captures.code.fork(event.tgid, *child_tid, ns);
            }
            Call::Exit if analysis.tree.process(event.tgid).is_none() => {
                self.probes.forget(event.tgid);
                self.statm.remove(&event.tgid);
            }
            _ => {}
        }
        record(&mut self.event_log, &Entry::Event(event))
    }

    /// Takes what has arrived, and looks where the code of those processes is mapped.
    fn take_call_stacks(&mut self) {
        let Some(probe) = &mut self.probes.call_stacks else {
            return;
        };
        let mut callers = BTreeSet::new();
        while let Some(capture) = probe.next(Capture::decode) {
            // The probes send nothing else.
            let Some(capture) = capture else { continue };
            callers.insert(capture.tgid);
            self.captures.insert(capture);
        }
        for tgid in callers {
            let began = std::time::Instant::now();
            if self.code_due.get(&tgid).is_some_and(|&due| began < due) {
                continue;
            }
            // One that is gone has left its code in an earlier reading, or its stacks stay unresolved.
            if let Ok(vmas) = scan::read_maps(tgid) {
                self.captures.code.read(tgid, monotonic_ns(), &vmas);
            }
            // So that a process with 200,000 mappings does not keep us from everything else.
            let due = began + began.elapsed() * READING_SHARE;
            self.code_due.insert(tgid, due);
        }
    }

    fn tick(&mut self) -> Result<()> {
        self.drain()?;
        let Some(exec_ns) = self.exec_ns else {
            return Ok(());
        };
        if self.phase_counters.waited.is_none() && self.have_waited(exec_ns) {
            self.phase_counters.waited = Some(self.counters.read());
        }
        let now = Duration::from_nanos(monotonic_ns().saturating_sub(exec_ns));
        let alive = self.alive();
        let by_process: Vec<(u32, u64)> = alive
            .iter()
            .map(|&tgid| (tgid, self.poll_rss(tgid)))
            .collect();
        let polled: u64 = by_process.iter().map(|(_, bytes)| bytes).sum();
        let at_most = match &mut self.hidden_growth {
            Some(hidden) => hidden.rss_at_most(&by_process),
            None => polled,
        };
        if self.polls.is_multiple_of(POLLS_PER_HIGH_WATER_MARK) {
            self.read_high_water_marks(&alive);
        }
        self.polls += 1;
        let asking = self.books == Books::Wanted && self.is_settled();
        let scan = match asking {
            true => Some(Why::AtRest),
            false => self.policy.polled(now, at_most).filter(|_| at_most > 0),
        };
        let point = if let Some(why) = scan {
            let composed = self.scan(now, at_most, why)?;
            if asking {
                self.ask_for_books();
            }
            composed.map(|composed| timeline::point(now.as_secs_f64(), &composed, 0))
        } else {
            match self.timeline.due(now) {
                Due::Nothing => return Ok(()),
                Due::Composition if polled > 0 => Some(self.glance(now, &alive, polled)),
                Due::Composition | Due::Rss => None,
            }
        };
        self.timeline.push(point.unwrap_or(TimelinePoint {
            seconds: now.as_secs_f64(),
            rss_bytes: polled,
            classes: None,
            kernel_bytes: None,
            spread_bytes: 0,
        }));
        Ok(())
    }

    /// The first tasks have waited their time, so the plateau is over.
    fn have_waited(&self, exec_ns: u64) -> bool {
        let began = self.launch_ns.unwrap_or(exec_ns);
        let waited = |wait: Duration| monotonic_ns() >= began + wait.as_nanos() as u64;
        self.alive_ns.is_some() && self.task_wait.is_some_and(waited)
    }

    /// All tasks have been alive for a while.
    fn is_settled(&self) -> bool {
        self.alive_ns
            .is_some_and(|alive| monotonic_ns() >= alive + SETTLED.as_nanos() as u64)
    }

    /// See [`Job::ask_for_books`].
    fn ask_for_books(&mut self) {
        self.books = Books::Asked;
        let analysis = self.analysis.as_ref().expect("set before the loop");
        if let Some(root) = analysis.tree.processes().next() {
            let pid = nix::unistd::Pid::from_raw(root.tgid.cast_signed());
            // One that has ended has no books.
            let _ = nix::sys::signal::kill(pid, Signal::SIGUSR2);
        }
    }

    /// Looks at the pages of the running tree, for the timeline.
    fn glance(&mut self, now: Duration, alive: &[u32], polled: u64) -> TimelinePoint {
        let began = std::time::Instant::now();
        let processes: Vec<_> = alive
            .iter()
            // One that is gone has no pages.
            .filter_map(|&tgid| scan::glance(tgid, self.method).ok())
            .collect();
        if let Some(at_peak) = &mut self.at_peak {
            for process in &processes {
                at_peak.maps(process.tgid, &process.vmas);
            }
        }
        let snapshot = Snapshot {
            taken_ns: 0,
            method: self.method,
            processes,
        };
        let analysis = self.analysis.as_ref().expect("set before the loop");
        let composed = analysis.glance(snapshot);
        let after: u64 = alive.iter().map(|&tgid| self.poll_rss(tgid)).sum();
        self.timeline.looked(now, began.elapsed());
        timeline::point(now.as_secs_f64(), &composed, after.abs_diff(polled))
    }

    /// Processes that are alive and have executed their image.
    fn alive(&self) -> Vec<u32> {
        let tree = &self.analysis.as_ref().expect("set before the loop").tree;
        let mut alive: Vec<u32> = Vec::new();
        for process in tree.processes().filter(|process| process.is_alive()) {
            // A vfork child lives in its parent's memory, which counts once.
            if !alive
                .iter()
                .any(|&other| tree.share_memory(other, process.tgid))
            {
                alive.push(process.tgid);
            }
        }
        alive
    }

    fn poll_rss(&mut self, tgid: u32) -> u64 {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.statm.entry(tgid)
            && let Ok(reader) = StatmReader::open(tgid)
        {
            entry.insert(reader);
        }
        // A process that is gone has no RSS.
        self.statm
            .get(&tgid)
            .and_then(|reader| reader.rss_bytes().ok())
            .unwrap_or(0)
    }

    fn read_high_water_marks(&mut self, alive: &[u32]) {
        for &tgid in alive {
            if let Ok(bytes) = vm_hwm_bytes(tgid) {
                let mark = self.high_water_marks.entry(tgid).or_default();
                *mark = bytes.max(*mark);
            }
        }
    }

    /// Names of mappings for the composition at the peak, without stopping anyone.
    fn read_maps(&mut self) {
        if self.at_peak.is_none() || !self.maps.is_due() {
            return;
        }
        let began = std::time::Instant::now();
        for tgid in self.alive() {
            // One that is gone has left its names in an earlier reading, or never had any.
            if let (Ok(vmas), Some(at_peak)) = (scan::read_maps(tgid), &mut self.at_peak) {
                at_peak.maps(tgid, &vmas);
            }
        }
        self.maps.read(began, began.elapsed());
    }

    /// Stops the tree, scans it, lets adapters look inside where it is at rest, lets it go on, and only then
    /// classifies what was found.
    fn scan(&mut self, now: Duration, polled: u64, why: Why) -> Result<Option<Composed>> {
        let began = std::time::Instant::now();
        let frozen = match self.group.freeze(FREEZE_TIMEOUT) {
            Ok(frozen) => frozen,
            Err(error) => {
                self.warn_once(format!("a scan was left out: {error}"));
                return Ok(None);
            }
        };
        let taken_ns = monotonic_ns();
        self.drain()?;
        let mut pids = self.group.pids()?;
        pids.sort_unstable();
        let group = self.group.memory();
        let snapshot = scan_tree(&pids, self.method, taken_ns);
        self.read_high_water_marks(&pids);
        // Every thread that was woken to be stopped is woken again to go on, which takes the target
        // about as long, and the CPUs from it.
        let thawing = frozen.took;
        if let (Some(hidden), Ok(snapshot)) = (&mut self.hidden_growth, &snapshot) {
            hidden.scanned(snapshot);
        }
        let analysis = self.analysis.as_mut().expect("set before the loop");
        let mut divided = Vec::new();
        if let Ok(snapshot) = &snapshot {
            analysis.compare(snapshot);
            // While memory grows, adapters would look at what is about to change. In tier C the best scan may
            // be one of growth, and would be divided by a look at something else.
            let wanted = match self.books {
                Books::NotWanted => self.at_peak.is_some(),
                Books::Wanted => true,
                Books::Asked => false,
            };
            if why == Why::AtRest && wanted {
                divided = divide(analysis, snapshot);
            }
        }
        frozen.thaw()?;
        let cost = began.elapsed();
        self.frozen += cost;

        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.warn_once(format!("a scan was left out: {error}"));
                return Ok(None);
            }
        };
        if let Some(at_peak) = &mut self.at_peak {
            snapshot
                .processes
                .iter()
                .for_each(|process| at_peak.scanned(process));
        }
        let unexplained: i64 = snapshot
            .processes
            .iter()
            .map(|process| process.unexplained_bytes)
            .sum();
        if unexplained != 0 {
            self.warn_once(format!(
                "the kernel counts {unexplained} bytes more than a scan found"
            ));
        }
        // What was polled where `statm` lags is a bound, which the scan has replaced by the truth.
        let polled = match self.hidden_growth {
            Some(_) => snapshot.rss_bytes(),
            None => polled,
        };
        self.policy
            .scanned(now + cost, cost + thawing, polled, snapshot.rss_bytes());
        let frozen = Frozen {
            snapshot,
            divided,
            group,
        };
        record(&mut self.event_log, &Entry::Snapshot(&frozen))?;
        let analysis = self.analysis.as_mut().expect("set before the loop");
        Ok(Some(analysis.frozen(frozen)))
    }

    fn warn_once(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn end(mut self, exit_ns: u64, status: WaitStatus) -> Result<Ended, SessionError> {
        let mut analysis = self.analysis.expect("set before the loop");
        analysis.counts.dropped = self.probes.dropped()?;
        let skipped = self.probes.skipped();
        if skipped > 0 && analysis.counts.disagreeing_bytes > 0 {
            self.warnings.push(format!(
                "{skipped} runs of a probe were skipped, calls of other programs among them; the region map was \
                 repaired from /proc/PID/maps"
            ));
        }
        let mut leftovers = self
            .group
            .pids()
            .context("cannot list the target's group")?;
        leftovers.retain(|&tgid| Some(tgid) != status.pid().map(|pid| pid.as_raw() as u32));
        // One that is ending is in the group until the kernel is done with it, and has no memory by then: a
        // parent goes on when the memory of its vfork child is gone, not when the child is.
        let outlive = leftovers.iter().filter(|&&tgid| has_memory(tgid)).count();
        if outlive > 0 && !self.ours_to_end {
            self.warnings.push(format!(
                "{outlive} processes outlive the command; they go on running and are not measured any more"
            ));
        }
        let exec_ns = self.exec_ns.unwrap_or(exit_ns);
        let (ledger, of_processes) = match (&self.probes.ledger, self.at_peak) {
            (Some(probes), Some(at_peak)) => {
                let (ledger, of_processes) =
                    super::ledger::read(probes, at_peak, &mut analysis, self.method, exec_ns);
                (Some(ledger), of_processes)
            }
            _ => (None, OfProcesses::default()),
        };
        let named = self.probes.call_stacks.as_ref().map(|_| {
            let best = analysis.best.as_ref();
            self.captures
                .name(&best.map(made_by::wanted).unwrap_or_default())
        });
        let distinct = self.captures.len() as u64;
        let probe = self.probes.call_stacks.as_ref();
        let call_stack_counts = probe.map(|probe| probe.counts(distinct)).transpose()?;
        let peak = ledger
            .as_ref()
            .filter(|ledger| ledger.composed)
            .and(analysis.best.as_ref())
            .map(|best| {
                let seconds = best.taken_ns.saturating_sub(exec_ns) as f64 / 1e9;
                timeline::point(seconds, &analysis.composed(best), 0)
            });
        Ok(Ended {
            ledger,
            of_processes,
            refused_tiers: self.refused_tiers,
            analysis,
            high_water_marks: self.high_water_marks,
            frozen: self.frozen,
            timeline: self.timeline.finish(peak),
            words: self.words,
            exec_ns,
            launch_ns: self.launch_ns,
            alive_ns: self.alive_ns,
            exit_ns,
            exit_status: match status {
                WaitStatus::Exited(_, code) => code,
                WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
                other => {
                    return Err(anyhow::anyhow!(
                        "the target ended in an unexpected way: {other:?}"
                    )
                    .into());
                }
            },
            named,
            call_stack_counts,
            own_cost: self.start.and_then(own_cost::read),
            counters: self.counters.read(),
            phase_counters: self.phase_counters,
            probes: self
                .probes
                .states
                .into_iter()
                .chain([self.counters.probe()])
                .collect(),
            warnings: self.warnings,
            settings: super::host::settings(self.environment),
            leftovers,
        })
    }
}

/// When to read `/proc/PID/maps` of the whole running tree: after a file mapping or a candidate, and for
/// one part in twenty of the time at most.
#[derive(Default)]
struct MapsPolicy {
    wanted: bool,
    not_before: Option<std::time::Instant>,
}

impl MapsPolicy {
    fn event(&mut self, call: &Call) {
        self.wanted |= match call {
            Call::PeakCandidate { .. } | Call::OwnPeakCandidate { .. } => true,
            Call::Mmap { fd, .. } => *fd >= 0,
            _ => false,
        };
    }

    fn is_due(&self) -> bool {
        self.wanted
            && self
                .not_before
                .is_none_or(|at| std::time::Instant::now() >= at)
    }

    fn read(&mut self, began: std::time::Instant, cost: Duration) {
        self.wanted = false;
        self.not_before = Some(began + (cost * 20).max(POLL));
    }
}

/// Everything that can happen, as one future.
struct Waiting {
    ring: AsyncFd<OwnedFd>,
    ticker: Interval,
    exit: AsyncFd<OwnedFd>,
    stdout: Option<Lines<BufReader<pipe::Receiver>>>,
    stderr: Option<Lines<BufReader<pipe::Receiver>>>,
    signals: Signals,
    /// Held open by whoever started us.
    lifeline: Option<Lines<BufReader<pipe::Receiver>>>,
}

impl Waiting {
    fn new(
        probes: &Probes,
        running: Running,
        signals: Signals,
        until_stdin_closes: bool,
    ) -> Result<Waiting> {
        let mut ticker = interval(POLL);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (stdout, stderr) = match running.output {
            Some(Output { stdout, stderr }) => (Some(lines(stdout)?), Some(lines(stderr)?)),
            None => (None, None),
        };
        // SAFETY: the ring is open for as long as `probes` is borrowed.
        let ring =
            unsafe { BorrowedFd::borrow_raw(probes.ring.as_raw_fd()) }.try_clone_to_owned()?;
        Ok(Waiting {
            ring: watch(ring)?,
            ticker,
            exit: watch(pidfd(running.pid.as_raw())?)?,
            stdout,
            stderr,
            signals,
            lifeline: match until_stdin_closes {
                true => Some(lines(io::stdin().as_fd().try_clone_to_owned()?)?),
                false => None,
            },
        })
    }

    async fn next(&mut self) -> Result<Next> {
        Ok(tokio::select! {
            ready = self.ring.readable() => {
                ready?.clear_ready();
                Next::Ring
            }
            _ = self.ticker.tick() => Next::Tick,
            line = next_line(&mut self.stdout) => line?.map_or(Next::StdoutEnd, Next::Stdout),
            line = next_line(&mut self.stderr) => line?.map_or(Next::StderrEnd, Next::Stderr),
            ready = self.exit.readable() => {
                ready?.retain_ready();
                Next::Exit
            }
            received = self.signals.next() => Next::Signal(received?),
            _ = end_of(&mut self.lifeline) => Next::Signal(Received::HANG_UP),
        })
    }

    async fn rest_of_stdout(&mut self) -> Vec<String> {
        rest(&mut self.stdout).await
    }

    async fn rest_of_stderr(&mut self) -> Vec<String> {
        rest(&mut self.stderr).await
    }
}

fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same open descriptor until it is dropped, which is after the
    // registration ends.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

fn lines(fd: OwnedFd) -> io::Result<Lines<BufReader<pipe::Receiver>>> {
    Ok(BufReader::new(pipe::Receiver::from_owned_fd(fd)?).lines())
}

/// The next line; never, once the writer has closed its end.
async fn next_line(
    source: &mut Option<Lines<BufReader<pipe::Receiver>>>,
) -> io::Result<Option<String>> {
    match source {
        Some(lines) => {
            let line = lines.next_line().await?;
            if line.is_none() {
                *source = None;
            }
            Ok(line)
        }
        None => pending().await,
    }
}

/// The end of what can be read; never, where there is nothing to read from.
async fn end_of(source: &mut Option<Lines<BufReader<pipe::Receiver>>>) {
    loop {
        // Once it fails, nobody is at the other end either.
        if !matches!(next_line(source).await, Ok(Some(_))) {
            return;
        }
    }
}

/// What is still in the pipe of a program that has exited. A child of it may hold the pipe open, so
/// this waits for no more than there is.
async fn rest(source: &mut Option<Lines<BufReader<pipe::Receiver>>>) -> Vec<String> {
    let mut rest = Vec::new();
    while source.is_some() {
        match tokio::time::timeout(POLL, next_line(source)).await {
            Ok(Ok(Some(line))) => rest.push(line),
            _ => break,
        }
    }
    rest
}

/// A descriptor that becomes readable when the process exits (Linux 5.3).
fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made the descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn has_memory(tgid: u32) -> bool {
    let rss = StatmReader::open(tgid).and_then(|reader| reader.rss_bytes());
    rss.is_ok_and(|bytes| bytes > 0)
}

/// The clock of the events, in ns.
fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("every Linux has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

impl Ended {
    /// Puts the result together.
    pub fn into_run(self, job: &Job, started: SystemTime) -> Result<crate::results::Run> {
        super::finish::run(self, job, started)
    }
}
