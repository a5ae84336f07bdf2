//! Which runtime a process is: it decides which rules apply, because runtimes use the same calls for
//! different ends.

use serde::{Deserialize, Serialize};

use crate::residency::Vma;

/// What is known of an executable image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Image {
    /// Its path (`/proc/PID/exe`).
    pub path: String,
    /// It has a `.go.buildinfo` section, which the Go linker always writes (cmd/link, since 1.13) and
    /// which stripping keeps.
    pub go: bool,
}

impl Image {
    /// The last component of the path.
    pub fn name(&self) -> &str {
        file_name(&self.path)
    }
}

/// A runtime that has rules of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// None of those below: C, C++, Rust and whatever else gets its memory from libc.
    Native,
    /// Go
    Go,
    /// HotSpot
    Jvm,
    /// Node.js (V8)
    Node,
    /// CPython
    Cpython,
    /// Erlang and Elixir
    Beam,
    /// .NET (CoreCLR)
    Dotnet,
}

impl Runtime {
    /// Recognises the runtime by its image and by the libraries that it has mapped.
    pub fn recognise(image: &Image, vmas: &[Vma]) -> Runtime {
        let mapped = |library: &str| {
            vmas.iter()
                .filter_map(|vma| vma.name())
                .any(|path| file_name(path).starts_with(library))
        };
        if image.go {
            Runtime::Go
        } else if mapped("libjvm.so") {
            Runtime::Jvm
        } else if mapped("libcoreclr.so") {
            Runtime::Dotnet
        } else if image.name().starts_with("beam.") {
            Runtime::Beam
        } else if matches!(image.name(), "node" | "nodejs") || mapped("libnode.so") {
            Runtime::Node
        } else if image.name().starts_with("python") || mapped("libpython") {
            Runtime::Cpython
        } else {
            Runtime::Native
        }
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Native => "native",
            Runtime::Go => "Go",
            Runtime::Jvm => "HotSpot JVM",
            Runtime::Node => "Node.js",
            Runtime::Cpython => "CPython",
            Runtime::Beam => "BEAM",
            Runtime::Dotnet => ".NET",
        }
    }

    /// The tasks' objects live in a heap of the runtime's own, so that what the C allocator holds
    /// belongs to the virtual machine.
    pub fn keeps_objects_outside_malloc(self) -> bool {
        matches!(
            self,
            Runtime::Go | Runtime::Jvm | Runtime::Beam | Runtime::Dotnet
        )
    }
}

/// The last component of a path; the whole string when it has none.
pub fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::MapsLine;

    fn vmas(paths: &[&str]) -> Vec<Vma> {
        let vma = |path: &&str| {
            Vma::from(MapsLine {
                start: 0,
                end: 4096,
                protection: 5,
                shared: false,
                offset: 0,
                inode: 1,
                name: Some((*path).to_owned()),
            })
        };
        paths.iter().map(vma).collect()
    }

    fn recognise(path: &str, go: bool, mapped: &[&str]) -> Runtime {
        Runtime::recognise(
            &Image {
                path: path.into(),
                go,
            },
            &vmas(mapped),
        )
    }

    #[test]
    fn runtimes_are_known_by_image_or_library() {
        assert_eq!(recognise("/opt/server", true, &[]), Runtime::Go);
        assert_eq!(
            recognise(
                "/opt/jdk/bin/java",
                false,
                &["/opt/jdk/lib/server/libjvm.so"]
            ),
            Runtime::Jvm
        );
        assert_eq!(
            recognise("/usr/bin/app", false, &["/usr/share/dotnet/libcoreclr.so"]),
            Runtime::Dotnet
        );
        assert_eq!(
            recognise("/usr/lib/erlang/erts-13.1.5/bin/beam.smp", false, &[]),
            Runtime::Beam
        );
        assert_eq!(recognise("/usr/bin/node", false, &[]), Runtime::Node);
        assert_eq!(
            recognise("/usr/bin/python3.11", false, &[]),
            Runtime::Cpython
        );
        assert_eq!(
            recognise(
                "/usr/bin/blender",
                false,
                &["/usr/lib/libpython3.11.so.1.0"]
            ),
            Runtime::Cpython
        );
        assert_eq!(
            recognise("/usr/bin/redis-server", false, &["/usr/lib/libc.so.6"]),
            Runtime::Native
        );
    }
}
