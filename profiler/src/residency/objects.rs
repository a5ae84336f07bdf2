//! What the kernel holds objects for: how many threads, mappings and open files a tree has. Pure.

use serde::{Deserialize, Serialize};

use super::{ProcessSnapshot, Snapshot, Vma, ranges::clip};

/// What one process has open. What it shares with its parent in the tree is counted there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OpenFiles {
    /// Open files of any sort.
    pub files: u64,
    /// Pipes; both ends are one.
    pub pipes: u64,
    /// Sockets.
    pub sockets: Sockets,
    /// epoll instances.
    pub epolls: u64,
    /// Descriptors that they watch.
    pub epoll_entries: u64,
    /// Event counters.
    pub eventfds: u64,
    /// Timers with a descriptor.
    pub timerfds: u64,
    /// POSIX timers (`timer_create`).
    pub timers: u64,
    /// Slots of the table of descriptors.
    pub slots: u64,
}

/// Sockets by protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sockets {
    /// Streams between processes.
    pub unix_streams: u64,
    /// Datagrams and packets between processes.
    pub unix: u64,
    /// TCP over IPv4.
    pub tcp: u64,
    /// TCP over IPv6.
    pub tcp6: u64,
    /// UDP over IPv4.
    pub udp: u64,
    /// UDP over IPv6.
    pub udp6: u64,
    /// Of any other protocol.
    pub others: u64,
}

impl Sockets {
    /// All of them.
    pub fn total(&self) -> u64 {
        let internet = self.tcp + self.tcp6 + self.udp + self.udp6;
        self.unix_streams + self.unix + internet + self.others
    }
}

impl OpenFiles {
    fn add(&mut self, other: &OpenFiles) {
        let sums = [
            (&mut self.files, other.files),
            (&mut self.pipes, other.pipes),
            (&mut self.sockets.unix_streams, other.sockets.unix_streams),
            (&mut self.sockets.unix, other.sockets.unix),
            (&mut self.sockets.tcp, other.sockets.tcp),
            (&mut self.sockets.tcp6, other.sockets.tcp6),
            (&mut self.sockets.udp, other.sockets.udp),
            (&mut self.sockets.udp6, other.sockets.udp6),
            (&mut self.sockets.others, other.sockets.others),
            (&mut self.epolls, other.epolls),
            (&mut self.epoll_entries, other.epoll_entries),
            (&mut self.eventfds, other.eventfds),
            (&mut self.timerfds, other.timerfds),
            (&mut self.timers, other.timers),
            // The first 64 are part of the table itself (`NR_OPEN_DEFAULT`, include/linux/fdtable.h).
            (
                &mut self.slots,
                if other.slots > 64 { other.slots } else { 0 },
            ),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
    }
}

/// What a tree has at one moment, as far as the kernel holds objects for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Objects {
    /// Live threads.
    pub threads: u64,
    /// Thread groups.
    pub processes: u64,
    /// Address spaces.
    pub spaces: u64,
    /// Mappings.
    pub mappings: u64,
    /// Mappings with pages of their own.
    pub anonymous_mappings: u64,
    /// Page tables that `VmPTE` counts, in bytes.
    pub page_tables_bytes: u64,
    /// Processes whose open files nobody has looked at.
    pub without_files: u64,
    /// What is open; `slots` are those of tables of more than 64.
    pub open: OpenFiles,
}

impl Objects {
    /// Those of a snapshot.
    pub fn of(snapshot: &Snapshot) -> Objects {
        let mut objects = Objects::default();
        for process in &snapshot.processes {
            objects.threads += process.threads;
            objects.processes += 1;
            objects.spaces += 1;
            objects.mappings += mappings(process);
            objects.anonymous_mappings += anonymous_mappings(process);
            objects.page_tables_bytes += process.page_tables_bytes;
            match &process.files {
                Some(files) => objects.open.add(files),
                None => objects.without_files += 1,
            }
        }
        objects
    }

    /// Without what the launched process brought along: it was forked outside of its group, and what the
    /// kernel held for it then is counted there. Its address space is of its exec, and counts here.
    pub fn without_launched(self) -> Objects {
        Objects {
            threads: self.threads.saturating_sub(1),
            processes: self.processes.saturating_sub(1),
            ..self
        }
    }
}

/// The page at the end of the address space is shown as a mapping and is none (`gate_vma`).
fn is_gate(vma: &Vma) -> bool {
    vma.name() == Some("[vsyscall]")
}

fn mappings(process: &ProcessSnapshot) -> u64 {
    match process.mappings {
        0 => process.vmas.iter().filter(|vma| !is_gate(vma)).count() as u64,
        counted => counted,
    }
}

/// Those that have pages of their own now. One that gave all of them back still has its objects, and
/// neighbours of one kind may share theirs.
fn anonymous_mappings(process: &ProcessSnapshot) -> u64 {
    let private = process.vmas.iter().filter(|vma| !vma.shared);
    let with_own =
        private.filter(|vma| clip(&process.resident, vma.start, vma.end).any(|range| !range.file));
    with_own.count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::MapsLine;
    use crate::residency::ResidentRange;

    fn vma(start: u64, shared: bool, name: Option<&str>) -> Vma {
        Vma::from(MapsLine {
            start,
            end: start + 0x1000,
            protection: 3,
            shared,
            offset: 0,
            inode: 0,
            name: name.map(str::to_owned),
        })
    }

    fn process(vmas: Vec<Vma>, resident: &[(u64, bool)], files: OpenFiles) -> ProcessSnapshot {
        let range = |&(start, file)| ResidentRange {
            start,
            end: start + 0x1000,
            file,
        };
        ProcessSnapshot {
            tgid: 1,
            vmas,
            resident: resident.iter().map(range).collect(),
            page_tables_bytes: 40_960,
            threads: 3,
            files: Some(files),
            ..ProcessSnapshot::default()
        }
    }

    #[test]
    fn only_private_mappings_with_pages_of_their_own_are_anonymous() {
        let vmas = vec![
            vma(0x1000, false, None),
            vma(0x2000, false, Some("/file")),
            vma(0x3000, true, None),
            vma(0x4000, false, None),
            vma(0xffff_ffff_ff60_0000, false, Some("[vsyscall]")),
        ];
        let open = OpenFiles {
            files: 3,
            slots: 64,
            ..OpenFiles::default()
        };
        let resident = [(0x1000, false), (0x2000, true), (0x3000, true)];
        let large = OpenFiles { slots: 256, ..open };
        let snapshot = Snapshot {
            processes: vec![
                process(vmas.clone(), &resident, open),
                ProcessSnapshot {
                    mappings: 9,
                    ..process(vmas, &resident, large)
                },
            ],
            ..Snapshot::default()
        };
        let objects = Objects::of(&snapshot);
        assert_eq!((objects.mappings, objects.anonymous_mappings), (4 + 9, 2));
        assert_eq!((objects.threads, objects.spaces), (6, 2));
        assert_eq!((objects.open.files, objects.open.slots), (6, 256));
        let charged = objects.without_launched();
        assert_eq!(
            (charged.threads, charged.processes, charged.spaces),
            (5, 1, 2)
        );
    }
}
