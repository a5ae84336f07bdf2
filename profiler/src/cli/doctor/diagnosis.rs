//! What this machine allows, found out by trying; as one value, for people and as JSON.

use std::path::Path;

use profiler::{
    launch::group::TargetGroup,
    limits::{
        cgroup::pids_limits,
        raised::{Place, Raised},
        sysctl::{Sysctl, Sysctls},
    },
    probes::{
        attach::{Probe, Probes, Sizes},
        btf::Btf,
        counters::TreeCounters,
        object,
        tier::Tier,
    },
    residency::{Method, hidden_growth, scan},
    results::{Host, ProbeState},
    session::host,
    units::thousands,
};
use serde::Serialize;

use super::{
    permissions::{self, Permissions},
    runtimes::{self, Runtime},
};

/// Never read, and copied to by no more than what happens to run.
const SIZES: Sizes = Sizes {
    call_stacks: true,
    ring_bytes: 64 << 10,
    chunks: 1 << 10,
    own_chunks: 1,
    processes: 1,
    in_flight: 1,
};

/// Everything that the doctor tells. Bytes, and names as sysctl(8) has them.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    pub host: Host,
    pub ebpf_object_bytes: usize,
    pub permissions: Permissions,
    /// Which part of the kernel is there, tried one by one.
    pub features: Vec<Feature>,
    pub probes: ProbesFound,
    /// Ways of following residency, the best first.
    pub tiers: Vec<TierFound>,
    pub limits: Vec<Limit>,
    /// Limits that some run has raised; the error where that cannot be told.
    pub raised: Result<Vec<RaisedLimit>, String>,
    pub runtimes: Vec<Runtime>,
}

/// Something that a run uses when it is there.
#[derive(Debug, Serialize)]
pub struct Feature {
    pub name: &'static str,
    pub works: bool,
    /// What is used, or why not and what is done instead.
    pub detail: String,
}

/// The probes of tier C, which all runs need.
#[derive(Debug, Serialize)]
pub struct ProbesFound {
    pub attached: usize,
    pub total: usize,
    /// Those that are off, each with its reason.
    pub off: Vec<Off>,
    /// Why there are none.
    pub error: Option<String>,
}

/// A probe that is off.
#[derive(Debug, Serialize)]
pub struct Off {
    pub name: String,
    pub reason: String,
}

/// One way of following residency.
#[derive(Debug, Serialize)]
pub struct TierFound {
    pub tier: &'static str,
    pub what: &'static str,
    pub loads: bool,
    pub reason: Option<String>,
    pub off: Vec<Off>,
}

/// What threads and mappings come up against.
#[derive(Debug, Serialize)]
pub struct Limit {
    pub name: String,
    /// null: unlimited, or it cannot be read.
    pub value: Option<u64>,
}

/// A limit that is higher than it was.
#[derive(Debug, Serialize)]
pub struct RaisedLimit {
    pub name: &'static str,
    pub original: u64,
    pub current: u64,
}

/// Attaches the probes of tier C and lets them go again; the sentence that says why not.
pub fn try_probes() -> Result<Probes, profiler::probes::attach::AttachError> {
    Probes::attach(SIZES)
}

impl Diagnosis {
    /// Tries everything. Takes some seconds: each tier loads its programs.
    pub fn make() -> Diagnosis {
        let probes = match try_probes() {
            Ok(probes) => ProbesFound {
                attached: probes.attached(),
                total: probes.states.len(),
                off: off(&probes.states, ""),
                error: None,
            },
            Err(error) => ProbesFound {
                attached: 0,
                total: 0,
                off: Vec::new(),
                error: Some(format!("{:#}", anyhow::Error::from(error))),
            },
        };
        let tiers = match probes.error {
            None => tiers(),
            Some(_) => Vec::new(),
        };
        Diagnosis {
            host: host::read(),
            ebpf_object_bytes: object::BYTES.len(),
            permissions: permissions::read(),
            features: features(),
            probes,
            tiers,
            limits: limits(),
            raised: raised(),
            runtimes: runtimes::found(),
        }
    }
}

fn off(states: &[Probe], prefix: &str) -> Vec<Off> {
    let off = states
        .iter()
        .filter(|probe| probe.state == ProbeState::Off && probe.name.starts_with(prefix));
    off.map(|probe| Off {
        name: probe.name.clone(),
        reason: probe.reason.clone().unwrap_or_default(),
    })
    .collect()
}

fn tiers() -> Vec<TierFound> {
    let with_ledger = [
        (Tier::A, "page ledger, by the kernel's functions"),
        (Tier::B, "page ledger, by tracepoints"),
    ];
    let tried = with_ledger.into_iter().map(|(tier, what)| {
        let attached = Probes::attach_with_ledger(SIZES, tier);
        TierFound {
            tier: tier.name(),
            what,
            loads: attached.is_ok(),
            reason: attached.as_ref().err().map(ToString::to_string),
            off: attached.map_or_else(|_| Vec::new(), |probes| off(&probes.states, "ledger")),
        }
    });
    tried
        .chain([TierFound {
            tier: Tier::C.name(),
            what: "scans of the frozen program as it grows",
            loads: true,
            reason: None,
            off: Vec::new(),
        }])
        .collect()
}

fn features() -> Vec<Feature> {
    let btf = Btf::of_kernel().map(|_| "/sys/kernel/btf/vmlinux".to_owned());
    let group = TargetGroup::create_fresh();
    let directory = group.as_ref().ok().and_then(TargetGroup::directory);
    let counters = counters(directory);
    let parent = directory.and_then(Path::parent);
    let made = format!("in {}", parent.unwrap_or(Path::new("/")).display());
    let cgroup = group.and_then(|group| group.remove()).map(|()| made);
    vec![
        feature("BTF of the kernel", btf, "no page ledger (tiers A and B)"),
        feature(
            "private cgroup",
            cgroup,
            "the target is stopped by SIGSTOP, and the kernel's own figure is missing",
        ),
        match scan::detect() {
            Method::PagemapScan => Feature {
                name: "PAGEMAP_SCAN",
                works: true,
                detail: "ioctl on /proc/PID/pagemap".into(),
            },
            Method::Pagemap => Feature {
                name: "PAGEMAP_SCAN",
                works: false,
                detail: "pagemap is read instead, which takes longer (6.7 and later have it)"
                    .into(),
            },
        },
        match hidden_growth::statm_is_exact() {
            true => Feature {
                name: "exact statm",
                works: true,
                detail: "RSS is polled there".into(),
            },
            false => Feature {
                name: "exact statm",
                works: false,
                detail: "page faults are polled too: the kernel's count of RSS lags behind".into(),
            },
        },
        counters,
    ]
}

fn feature(
    name: &'static str,
    tried: Result<String, impl std::error::Error + Send + Sync + 'static>,
    instead: &str,
) -> Feature {
    match tried {
        Ok(detail) => Feature {
            name,
            works: true,
            detail,
        },
        Err(error) => Feature {
            name,
            works: false,
            detail: format!("{:#}; {instead}", anyhow::Error::from(error)),
        },
    }
}

fn counters(group: Option<&Path>) -> Feature {
    let probe = TreeCounters::open(std::process::id() as i32, group).probe();
    let works = probe.state == ProbeState::Attached;
    Feature {
        name: "perf counters",
        works,
        detail: match probe.reason {
            Some(reason) => reason,
            None => "they count the private cgroup".into(),
        },
    }
}

fn limits() -> Vec<Limit> {
    let sysctls = Sysctls::default();
    let mut limits: Vec<Limit> = Sysctl::ALL
        .into_iter()
        .map(|sysctl| Limit {
            name: sysctl.name().to_owned(),
            value: sysctls.read(sysctl).ok(),
        })
        .collect();
    let processes = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NPROC);
    limits.push(Limit {
        name: "RLIMIT_NPROC".into(),
        value: processes
            .ok()
            .map(|(soft, _)| soft)
            .filter(|&soft| soft != nix::sys::resource::RLIM_INFINITY),
    });
    limits.extend(pids_limits().into_iter().map(|limit| Limit {
        name: format!("{}/pids.max", limit.directory.display()),
        value: Some(limit.max),
    }));
    limits
}

fn raised() -> Result<Vec<RaisedLimit>, String> {
    let raised = Place::of_this_machine().raised();
    let told = |limit: Raised| RaisedLimit {
        name: limit.sysctl.name(),
        original: limit.original,
        current: limit.current,
    };
    raised
        .map(|limits| limits.into_iter().map(told).collect())
        .map_err(|error| error.to_string())
}

impl Limit {
    /// The value as people read it.
    pub fn shown(&self) -> String {
        self.value
            .map_or_else(|| "unlimited or unknown".to_owned(), thousands)
    }
}
