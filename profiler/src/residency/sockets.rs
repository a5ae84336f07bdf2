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

/// Sockets of every network namespace that has been looked into.
#[derive(Default)]
pub(super) struct Protocols {
    namespaces: HashMap<PathBuf, Namespace>,
}

/// By inode. Where a machine has much memory, the kernel takes some ten milliseconds to list its connections, of however
/// few: that is left until somebody has a socket that is no Unix socket, which most event loops do not.
#[derive(Default)]
struct Namespace {
    known: HashMap<u64, Protocol>,
    has_internet: bool,
}

impl Protocols {
    /// Counts a socket of a process.
    pub(super) fn count(&mut self, dir: &ProcDir, inode: u64, into: &mut Sockets) {
        // One that does not tell its namespace is looked into like another one.
        let namespace = fs::read_link(dir.path().join("ns/net")).unwrap_or_default();
        let namespace = self
            .namespaces
            .entry(namespace)
            .or_insert_with(|| Namespace::unix(dir));
        let count = match namespace.protocol(dir, inode) {
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

impl Namespace {
    fn unix(dir: &ProcDir) -> Namespace {
        Namespace {
            known: unix(&table(dir, "unix")).collect(),
            has_internet: false,
        }
    }

    fn protocol(&mut self, dir: &ProcDir, inode: u64) -> Option<Protocol> {
        if !self.has_internet && !self.known.contains_key(&inode) {
            self.has_internet = true;
            for (name, protocol) in INTERNET {
                let text = table(dir, name);
                let sockets = column(&text, 9).map(|(_, inode)| (inode, protocol));
                self.known.extend(sockets);
            }
        }
        self.known.get(&inode).copied()
    }
}

const INTERNET: [(&str, Protocol); 4] = [
    ("tcp", Protocol::Tcp),
    ("tcp6", Protocol::Tcp6),
    ("udp", Protocol::Udp),
    ("udp6", Protocol::Udp6),
];

fn table(dir: &ProcDir, name: &str) -> String {
    fs::read_to_string(dir.path().join("net").join(name)).unwrap_or_default()
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
    use std::{
        net::TcpListener,
        os::{
            fd::AsRawFd,
            unix::{fs::MetadataExt, net::UnixStream},
        },
    };

    use super::*;

    #[test]
    fn connections_are_listed_when_a_socket_is_no_unix_socket() {
        let inode = |socket: &dyn AsRawFd| {
            let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
            fs::metadata(path).expect("our socket").ino()
        };
        let (unix, _other_end) = UnixStream::pair().expect("a pair");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let dir = ProcDir::of(std::process::id()).expect("ourselves");
        let mut protocols = Protocols::default();
        let mut counted = Sockets::default();
        protocols.count(&dir, inode(&unix), &mut counted);
        assert!(protocols.namespaces.values().all(|it| !it.has_internet));
        protocols.count(&dir, inode(&tcp), &mut counted);
        assert_eq!((counted.unix_streams, counted.tcp), (1, 1));
    }

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
