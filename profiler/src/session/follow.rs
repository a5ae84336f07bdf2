//! Following a running target to its end: tokio waits for whatever comes next (the ring, the ticker,
//! the target's words, its exit, a signal), the rest is synchronous.

mod attached;
mod ended;
mod maps_policy;
mod waiting;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io::Write,
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::{signal::Signal, wait::waitpid};

use super::{
    EventLog, SessionError,
    analysis::{Analysis, Composed, Frozen},
    at_peak::AtPeak,
    divide::divide,
    image,
    job::Job,
    outcome::{Word, Words},
    own_cost,
    phase_counters::PhaseCounters,
    record,
    signals::{self, Deed, Received, Signals},
    status_line::{Now, StatusLine},
    timeline::{self, Due, Timeline},
};
use crate::{
    call_stacks::{Capture, Captures},
    events::{Call, Event, decode::decode, log::Entry},
    launch::{
        existing::pidfd,
        group::{Known, TargetGroup},
        held::Running,
    },
    peak::{ScanPolicy, Why},
    probes::{attach::Probes, counters::TreeCounters, object_sizes::ObjectSizes, tier::Tier},
    residency::{
        Method, Snapshot, StatmReader,
        freeze::FreezeError,
        hidden_growth::HiddenGrowth,
        scan::{self, scan_tree},
        vm_hwm_bytes,
    },
    results::{RefusedTier, TimelinePoint},
};
use maps_policy::MapsPolicy;
use waiting::{Next, Waiting};

pub(super) use attached::{Leave, command_and_environment};
pub(super) use ended::Ended;

/// How often RSS is polled.
pub(super) const POLL: Duration = Duration::from_millis(10);
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
    /// `None` in tier D.
    probes: Option<Probes>,
    /// `None` for a process that ran before we came: its threads have no counters of ours.
    counters: Option<TreeCounters>,
    /// Who belongs to the tree, for a group that does not know by itself.
    known: Option<Known>,
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
    /// Processes that have sent call stacks since it was read where their code is mapped.
    code_wanted: BTreeSet<u32>,
    /// Processes whose code is mapped as it was last read for them.
    code_current: HashSet<u32>,
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
    /// What the pages of the running tree were looked at last.
    last_look: Option<LastLook>,
    status: Option<StatusLine>,
    words: Words,
    /// `CLOCK_MONOTONIC` in ns at the first exec, and at the words that tasks are coming and are alive.
    exec_ns: Option<u64>,
    launch_ns: Option<u64>,
    alive_ns: Option<u64>,
    warnings: Vec<String>,
    refused_tiers: Vec<RefusedTier>,
    environment: &'a [(String, String)],
}

/// What the pages of the running tree were looked at, with what tells whether they changed since.
struct LastLook {
    /// RSS of each process in bytes, right before.
    polled: Vec<(u32, u64)>,
    /// Events that had been seen.
    events: u64,
    point: TimelinePoint,
}

/// Whether other code may be mapped after a call than before.
fn may_map_code(call: &Call) -> bool {
    match call {
        Call::Exec { .. } | Call::Mremap { .. } => true,
        Call::Mmap { protection, .. } | Call::Mprotect { protection, .. } => {
            protection & libc::PROT_EXEC as u32 != 0
        }
        _ => false,
    }
}

/// Whether the program is asked for its runtime's own books: see [`Job::ask_for_books`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Books {
    NotWanted,
    Wanted,
    /// What adapters found just before that is what counts.
    Asked,
}

impl<'a> Following<'a> {
    pub fn new(
        job: &'a Job,
        group: &'a TargetGroup,
        probes: Option<Probes>,
        counters: Option<TreeCounters>,
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
            policy: match &probes {
                Some(probes) if probes.ledger.is_some() => ScanPolicy::plateaus_only(),
                _ => ScanPolicy::default(),
            },
            known: None,
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
            code_wanted: BTreeSet::new(),
            code_current: HashSet::new(),
            code_due: HashMap::new(),
            maps: MapsPolicy::default(),
            method: scan::detect(),
            statm: HashMap::new(),
            hidden_growth: HiddenGrowth::where_it_occurs(),
            high_water_marks: HashMap::new(),
            polls: 0,
            frozen: Duration::ZERO,
            timeline: Timeline::new(),
            last_look: None,
            status: None,
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

    /// With a line on the terminal that says how it is going.
    pub fn with_status_line(self, wanted: bool) -> Self {
        Following {
            status: wanted.then(StatusLine::new),
            ..self
        }
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
        if self.has_ledger() {
            self.at_peak = Some(AtPeak::new(pid.as_raw() as u32));
        }
        if self.probes.is_none() {
            self.begin_without_probes(pid.as_raw() as u32);
        }
        let exit = pidfd(pid.as_raw() as u32).context("cannot watch the target")?;
        let signals = Signals::open(self.ours_to_end).context("cannot wait for signals")?;
        let mut waiting = Waiting::new(
            self.ring(),
            exit,
            running.output,
            signals,
            until_stdin_closes,
        )?;
        let exit_ns = loop {
            match waiting.next().await? {
                Next::Ring => self.drain()?,
                Next::Tick => self.tick()?,
                Next::Stdout(line) => self.said(&line, monotonic_ns()),
                Next::Stderr(line) => {
                    // Whether anybody reads it is the target's matter as little as ours.
                    let _ = writeln!(std::io::stderr().lock(), "{line}");
                    self.words.stderr(&line);
                }
                Next::StdoutEnd | Next::StderrEnd | Next::Elapsed => {}
                Next::Exit => break monotonic_ns(),
                Next::Signal(received) => self.signalled(received, pid)?,
            }
        };
        let status = waitpid(pid, None).context("cannot wait for the target")?;
        for line in waiting.rest_of_stdout().await {
            self.said(&line, exit_ns);
        }
        for line in waiting.rest_of_stderr().await {
            self.words.stderr(&line);
        }
        self.drain()?;
        self.end(exit_ns, Some(status), None)
    }

    /// Takes a line of the target's stdout, which came at a time or shortly before.
    fn said(&mut self, line: &str, at_ns: u64) {
        match self.words.stdout(line) {
            Some(Word::Launch) => {
                self.launch_ns = Some(at_ns);
                self.phase_counters.launch = self.read_counters();
            }
            Some(Word::Alive) => {
                self.alive_ns = Some(at_ns);
                self.phase_counters.alive = self.read_counters();
            }
            None => {}
        }
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

    fn read_counters(&mut self) -> Option<crate::results::Counters> {
        self.counters.as_mut().map(TreeCounters::read)
    }

    fn has_ledger(&self) -> bool {
        self.probes
            .as_ref()
            .is_some_and(|probes| probes.ledger.is_some())
    }

    fn ring(&self) -> Option<std::os::fd::RawFd> {
        self.probes.as_ref().map(|probes| probes.ring.as_raw_fd())
    }

    /// What scans are called by.
    fn scan_tier(&self) -> Tier {
        match self.probes {
            Some(_) => Tier::C,
            None => Tier::D,
        }
    }

    /// Takes everything out of the ring that is in it now.
    fn drain(&mut self) -> Result<()> {
        if let Some(probes) = &mut self.probes {
            probes.ring.fetch();
        }
        loop {
            let Some(probes) = &mut self.probes else {
                return Ok(());
            };
            let Some(decoded) = probes.ring.next(decode) else {
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
        if may_map_code(&event.call) {
            self.code_current.remove(&event.tgid);
        }
        match &event.call {
            Call::Exec { .. } => {
                self.captures.code.exec(event.tgid, event.ended_ns);
                self.exec_ns.get_or_insert(event.ended_ns);
                // A short program may be gone when the next reading of all is due.
                if let (Some(at_peak), Ok(vmas)) = (&mut self.at_peak, scan::read_maps(event.tgid))
                {
                    at_peak.maps(event.tgid, &vmas, &analysis.tree);
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
                // A number may come again.
                self.code_current.remove(child_tid);
            }
            Call::Exit if analysis.tree.process(event.tgid).is_none() => {
                if let Some(probes) = &mut self.probes {
                    probes.forget(event.tgid);
                }
                if let Some(known) = &self.known {
                    known.remove(event.tgid);
                }
                self.statm.remove(&event.tgid);
            }
            Call::Fork { child_tid, .. } => {
                if let Some(known) = &self.known
                    && analysis.tree.process(*child_tid).is_some()
                {
                    known.add(*child_tid);
                }
            }
            _ => {}
        }
        record(&mut self.event_log, &Entry::Event(event))
    }

    /// Takes what has arrived, and looks where the code of those processes is mapped.
    fn take_call_stacks(&mut self) {
        let probes = self.probes.as_mut();
        let Some(probe) = probes.and_then(|probes| probes.call_stacks.as_mut()) else {
            return;
        };
        while let Some(capture) = probe.next(Capture::decode) {
            // The probes send nothing else.
            let Some(capture) = capture else { continue };
            self.code_wanted.insert(capture.tgid);
            self.captures.insert(capture);
        }
        let mut not_due = BTreeSet::new();
        for tgid in std::mem::take(&mut self.code_wanted) {
            let began = std::time::Instant::now();
            if self.code_current.contains(&tgid) {
                continue;
            }
            // It may call nothing any more, and lives on for a later time.
            if self.code_due.get(&tgid).is_some_and(|&due| began < due) {
                not_due.insert(tgid);
                continue;
            }
            // One that is gone has left its code in an earlier reading, or its stacks stay unresolved.
            if let Ok(vmas) = scan::read_maps(tgid) {
                self.captures.code.read(tgid, monotonic_ns(), &vmas);
                self.code_current.insert(tgid);
            }
            // So that a process with 200,000 mappings does not keep us from everything else.
            let due = began + began.elapsed() * READING_SHARE;
            self.code_due.insert(tgid, due);
        }
        self.code_wanted = not_due;
    }

    fn tick(&mut self) -> Result<()> {
        self.drain()?;
        let Some(exec_ns) = self.exec_ns else {
            return Ok(());
        };
        if self.phase_counters.waited.is_none() && self.have_waited(exec_ns) {
            self.phase_counters.waited = self.read_counters();
        }
        let now = Duration::from_nanos(monotonic_ns().saturating_sub(exec_ns));
        if self.probes.is_none() && self.polls.is_multiple_of(POLLS_PER_HIGH_WATER_MARK) {
            self.discover()?;
        }
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
        self.show_status(now, polled, &alive);
        let asking = self.books == Books::Wanted && self.is_settled();
        let scan = match asking {
            true => Some(Why::AtRest),
            false => self.policy.polled(now, at_most).filter(|_| at_most > 0),
        };
        let point = if let Some(why) = scan {
            let composed = self.scan(now, why)?;
            if asking {
                self.ask_for_books();
            }
            composed.map(|composed| timeline::point(now.as_secs_f64(), &composed, 0))
        } else {
            match self.timeline.due(now) {
                Due::Nothing => return Ok(()),
                Due::Composition if polled > 0 => Some(self.look(now, by_process)),
                Due::Composition | Due::Rss => None,
            }
        };
        let point = point.unwrap_or(TimelinePoint {
            seconds: now.as_secs_f64(),
            rss_bytes: polled,
            classes: None,
            kernel_bytes: None,
            spread_bytes: 0,
        });
        if let (Some(status), Some(classes)) = (&mut self.status, point.classes) {
            status.looked(classes);
        }
        self.timeline.push(point);
        Ok(())
    }

    fn show_status(&mut self, elapsed: Duration, rss_bytes: u64, alive: &[u32]) {
        let (Some(status), Some(analysis)) = (&mut self.status, &self.analysis) else {
            return;
        };
        status.show(|classes| Now {
            elapsed,
            rss_bytes,
            classes,
            threads: alive
                .iter()
                .filter_map(|&tgid| analysis.tree.process(tgid))
                .map(|process| process.threads.len())
                .sum(),
            events: analysis.counts.seen,
        });
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

    /// What the running tree is composed of, for the timeline: its pages are looked at, unless the last look stands.
    fn look(&mut self, now: Duration, polled: Vec<(u32, u64)>) -> TimelinePoint {
        let analysis = self.analysis.as_ref().expect("set before the loop");
        let events = analysis.counts.seen;
        // Without probes no call would be seen.
        if self.probes.is_some()
            && let Some(last) = &self.last_look
            && last.events == events
            && last.polled == polled
        {
            return TimelinePoint {
                seconds: now.as_secs_f64(),
                ..last.point
            };
        }
        let point = self.glance(now, &polled);
        self.last_look = Some(LastLook {
            polled,
            events,
            point,
        });
        point
    }

    /// Looks at the pages of the running tree.
    fn glance(&mut self, now: Duration, polled: &[(u32, u64)]) -> TimelinePoint {
        let began = std::time::Instant::now();
        let alive: Vec<u32> = polled.iter().map(|&(tgid, _)| tgid).collect();
        let polled: u64 = polled.iter().map(|(_, bytes)| bytes).sum();
        if self.probes.is_none() {
            self.stand(&alive);
        }
        let processes: Vec<_> = alive
            .iter()
            // One that is gone has no pages.
            .filter_map(|&tgid| scan::glance(tgid, self.method).ok())
            .collect();
        let analysis = self.analysis.as_ref().expect("set before the loop");
        if let Some(at_peak) = &mut self.at_peak {
            for process in &processes {
                at_peak.maps(process.tgid, &process.vmas, &analysis.tree);
            }
        }
        let snapshot = Snapshot {
            taken_ns: 0,
            method: self.method,
            processes,
        };
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
            if let (Ok(vmas), Some(at_peak), Some(analysis)) =
                (scan::read_maps(tgid), &mut self.at_peak, &self.analysis)
            {
                at_peak.maps(tgid, &vmas, &analysis.tree);
            }
        }
        self.maps.read(began, began.elapsed());
    }

    /// Stops the tree, scans it, lets adapters look inside where it is at rest, lets it go on, and only then
    /// classifies what was found.
    fn scan(&mut self, now: Duration, why: Why) -> Result<Option<Composed>> {
        let began = std::time::Instant::now();
        let frozen = match self.group.freeze(FREEZE_TIMEOUT) {
            Ok(frozen) => Some(frozen),
            // Somebody else holds it, or it may not be held. Two readings that agree are as good.
            Err(FreezeError::Trace(error)) => {
                self.warn_once(format!(
                    "the process runs while it is scanned, and no adapter looks inside: {error}"
                ));
                None
            }
            Err(error) => {
                self.warn_once(format!("a scan was left out: {error}"));
                return Ok(None);
            }
        };
        let taken_ns = monotonic_ns();
        self.drain()?;
        let pids = self.group.pids()?;
        if self.probes.is_none() {
            self.stand(&pids);
        }
        // Not what was polled before: an exec in between leaves little of that, and what grows anew up to there would
        // be taken for something that was scanned.
        let alive = self.alive();
        let polled = alive.iter().map(|&tgid| self.poll_rss(tgid)).sum();
        let group = self.group.memory();
        let snapshot = scan_tree(&pids, self.method, taken_ns);
        self.read_high_water_marks(&pids);
        // Every thread that was woken to be stopped is woken again to go on, which takes the target
        // about as long, and the CPUs from it.
        let thawing = frozen.as_ref().map_or(Duration::ZERO, |frozen| frozen.took);
        if let (Some(hidden), Ok(snapshot)) = (&mut self.hidden_growth, &snapshot) {
            hidden.scanned(snapshot);
        }
        let analysis = self.analysis.as_mut().expect("set before the loop");
        let mut divided = Vec::new();
        if let Ok(snapshot) = &snapshot {
            analysis.compare(snapshot);
            let probes = self.probes.as_ref();
            if probes.is_some_and(|probes| probes.call_stacks.is_some()) {
                for process in &snapshot.processes {
                    let code = &mut self.captures.code;
                    code.read(process.tgid, monotonic_ns(), &process.vmas);
                    self.code_current.insert(process.tgid);
                }
            }
            // While memory grows, adapters would look at what is about to change. In tier C the best scan may
            // be one of growth, and would be divided by a look at something else.
            let wanted = match self.books {
                Books::NotWanted => self.at_peak.is_some() || self.known.is_some(),
                Books::Wanted => true,
                Books::Asked => false,
            };
            // A process that was there before us has no launch whose scans would have to be quick.
            let now = why == Why::AtRest || (self.known.is_some() && self.at_peak.is_none());
            if now && wanted && frozen.is_some() {
                divided = divide(analysis, snapshot);
            }
        }
        let cost = began.elapsed();
        if let Some(frozen) = frozen {
            frozen.thaw()?;
            self.frozen += began.elapsed();
        }

        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.warn_once(format!("a scan was left out: {error}"));
                return Ok(None);
            }
        };
        if let (Some(at_peak), Some(analysis)) = (&mut self.at_peak, &self.analysis) {
            snapshot
                .processes
                .iter()
                .for_each(|process| at_peak.scanned(process, &analysis.tree));
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
        let composed = analysis.frozen(frozen);
        own_cost::give_memory_back();
        Ok(Some(composed))
    }

    fn warn_once(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

/// The clock of the events, in ns.
fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("every Linux has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
