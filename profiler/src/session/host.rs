//! The machine, and the settings that move memory figures.

use std::fs;

use crate::{probes::object, results::Host, units::KIB};

/// Environment variables that change how runtimes use memory.
const VARIABLES: [&str; 14] = [
    "MALLOC_ARENA_MAX",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "GOGC",
    "GOMEMLIMIT",
    "GODEBUG",
    "GOMAXPROCS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "_JAVA_OPTIONS",
    "NODE_OPTIONS",
    "PYTHONMALLOC",
    "ERL_FLAGS",
    "TOKIO_WORKER_THREADS",
];

/// Reads what there is to know about this machine.
pub fn read() -> Host {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let meminfo = text("/proc/meminfo");
    let field = |text: &str, name: &str, separator: char| {
        let value = text.lines().find_map(|line| {
            line.strip_prefix(name)?
                .trim_start()
                .strip_prefix(separator)
        });
        value
            .unwrap_or_default()
            .trim()
            .trim_matches('"')
            .to_owned()
    };
    let kib = |name| {
        field(&meminfo, name, ':')
            .trim_end_matches(" kB")
            .parse::<u64>()
            .unwrap_or(0)
            * KIB
    };
    let sysctl = |name: &str| {
        text(&format!("/proc/sys/{name}"))
            .trim()
            .parse()
            .unwrap_or(0)
    };
    let thp = text("/sys/kernel/mm/transparent_hugepage/enabled");
    Host {
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        os: field(&text("/etc/os-release"), "PRETTY_NAME", '='),
        cpu: field(&text("/proc/cpuinfo"), "model name", ':'),
        cpus: std::thread::available_parallelism().map_or(0, |cpus| cpus.get() as u32),
        memory_bytes: kib("MemTotal"),
        swap_bytes: kib("SwapTotal"),
        transparent_hugepages: thp.split(['[', ']']).nth(1).unwrap_or_default().to_owned(),
        overcommit_memory: sysctl("vm/overcommit_memory"),
        randomize_va_space: sysctl("kernel/randomize_va_space"),
        profiler_version: env!("CARGO_PKG_VERSION").to_owned(),
        ebpf_object: object::ORIGIN.to_owned(),
    }
}

/// Those of the target's environment variables, and the stack limit, that move memory figures.
pub fn settings(environment: &[(String, String)]) -> Vec<String> {
    let set = environment.iter().filter(|(name, _)| {
        VARIABLES.contains(&name.as_str())
            || ["DOTNET_", "COMPlus_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
    });
    let mut settings: Vec<String> = set.map(|(name, value)| format!("{name}={value}")).collect();
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_STACK)
    {
        settings.push(match soft {
            libc::RLIM_INFINITY => "RLIMIT_STACK=unlimited".to_owned(),
            bytes => format!("RLIMIT_STACK={bytes}"),
        });
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let host = read();
        assert!(host.memory_bytes > 64 << 20, "{host:?}");
        assert!(
            ["always", "madvise", "never"].contains(&host.transparent_hugepages.as_str()),
            "{host:?}"
        );
        assert!(
            !host.kernel.is_empty() && !host.cpu.is_empty() && host.cpus > 0,
            "{host:?}"
        );
    }

    #[test]
    fn only_variables_that_matter_are_kept() {
        let environment = [
            ("HOME".into(), "/root".into()),
            ("GOGC".into(), "50".into()),
        ];
        assert!(settings(&environment).contains(&"GOGC=50".to_owned()));
        assert!(
            !settings(&environment)
                .iter()
                .any(|setting| setting.starts_with("HOME"))
        );
    }
}
