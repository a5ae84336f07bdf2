//! Of which protocol a socket is: the tables in `/proc/PID/net` of its network namespace (proc_pid_net(5)).

use std::{collections::HashMap, fs, path::PathBuf};

use super::{objects::Sockets, proc_files::ProcDir};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    UnixStream,
    Unix,
    Tcp,
    Tcp6,
    Udp,
    Udp6,
}

/// Sockets of every network namespace that has been looked into, by inode.
#[derive(Default)]
pub(super) struct Protocols {
    namespaces: HashMap<PathBuf, HashMap<u64, Protocol>>,
}

impl Protocols {
    /// Counts a socket of a process.
    pub(super) fn count(&mut self, dir: &ProcDir, inode: u64, into: &mut Sockets) {
        // One that does not tell its namespace is looked into like another one.
        let namespace = fs::read_link(dir.path().join("ns/net")).unwrap_or_default();
        let known = self
            .namespaces
            .entry(namespace)
            .or_insert_with(|| tables(dir));
        let count = match known.get(&inode) {
            Some(Protocol::UnixStream) => &mut into.unix_streams,
            Some(Protocol::Unix) => &mut into.unix,
            Some(Protocol::Tcp) => &mut into.tcp,
            Some(Protocol::Tcp6) => &mut into.tcp6,
            Some(Protocol::Udp) => &mut into.udp,
            Some(Protocol::Udp6) => &mut into.udp6,
            None => &mut into.others,
        };
        *count += 1;
    }
}

fn tables(dir: &ProcDir) -> HashMap<u64, Protocol> {
    let text = |name| fs::read_to_string(dir.path().join("net").join(name)).unwrap_or_default();
    let internet = [
        ("tcp", Protocol::Tcp),
        ("tcp6", Protocol::Tcp6),
        ("udp", Protocol::Udp),
        ("udp6", Protocol::Udp6),
    ];
    let mut sockets: HashMap<u64, Protocol> = unix(&text("unix")).collect();
    for (name, protocol) in internet {
        sockets.extend(column(&text(name), 9).map(|(_, inode)| (inode, protocol)));
    }
    sockets
}

/// `Num: RefCount Protocol Flags Type St Inode Path`
fn unix(text: &str) -> impl Iterator<Item = (u64, Protocol)> + '_ {
    column(text, 6).map(|(line, inode)| {
        // `SOCK_STREAM`
        let is_stream = line.split_ascii_whitespace().nth(4) == Some("0001");
        let protocol = match is_stream {
            true => Protocol::UnixStream,
            false => Protocol::Unix,
        };
        (inode, protocol)
    })
}

/// Each line after the headings, and the number in one of its columns.
fn column(text: &str, index: usize) -> impl Iterator<Item = (&str, u64)> {
    text.lines().skip(1).filter_map(move |line| {
        let word = line.split_ascii_whitespace().nth(index)?;
        Some((line, word.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_are_found_in_their_column() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            00000000a: 00000002 00000000 00010000 0001 01 571 /run/socket with blank\n\
            00000000b: 00000003 00000000 00000000 0002 03 572\n";
        let found: Vec<_> = unix(text).collect();
        assert_eq!(found, [(571, Protocol::UnixStream), (572, Protocol::Unix)]);
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
               0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12345 1 0\n";
        assert_eq!(
            column(text, 9).map(|(_, inode)| inode).collect::<Vec<_>>(),
            [12_345]
        );
    }
}
