//! The text files of `/proc/PID`: `maps`, `smaps`, `smaps_rollup`, `status`, `statm`
//! (proc_pid_maps(5) and its neighbours; the kernel's `Documentation/filesystems/proc.rst`).
//!
//! `maps` is parsed here and not by the `procfs` crate: that refuses a whole file for one path that
//! is not UTF-8, can panic on a file named `/SYSV…`, and tears names apart that we keep as they are.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::scan::ScanError;
use super::{MapsLine, Vma};
use crate::units::{KIB, PAGE};

/// Where a process's memory is shown.
///
/// That is `/proc/PID` as a rule. When the first thread has exited before the others, `/proc/PID`
/// shows a zombie without memory, and the memory is seen in `/proc/PID/task/TID` of a live thread.
pub(super) struct ProcDir {
    pid: u32,
    path: PathBuf,
}

/// What is read from `status`.
pub(super) struct Status {
    pub(super) vm_hwm_bytes: u64,
    pub(super) page_tables_bytes: u64,
    pub(super) threads: u64,
    /// Slots of the table of open files.
    pub(super) file_slots: u64,
    pub(super) parent: u32,
}

/// What is read from `smaps_rollup`.
pub(super) struct Rollup {
    pub(super) rss_bytes: u64,
    pub(super) pss_bytes: u64,
    pub(super) pss_shmem_bytes: Option<u64>,
}

/// One VMA in `smaps`, as far as a scan is checked against it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SmapsEntry {
    pub(super) vma: Vma,
    pub(super) rss_bytes: u64,
    /// The two-letter flags, as in `rd wr mr mw me ac`.
    pub(super) flags: String,
}

impl ProcDir {
    /// Finds the place that shows the memory of `pid`. [`ScanError::Gone`] when it has none left.
    pub(super) fn of(pid: u32) -> Result<ProcDir, ScanError> {
        let process = ProcDir {
            pid,
            path: PathBuf::from(format!("/proc/{pid}")),
        };
        if process.has_memory()? {
            return Ok(process);
        }
        let tasks = process.path.join("task");
        for task in fs::read_dir(&tasks).map_err(|error| process.error("task", error))? {
            let path = task.map_err(|error| process.error("task", error))?.path();
            let thread = ProcDir { pid, path };
            // A thread may end at any time; that says nothing about the others.
            if thread.has_memory().unwrap_or(false) {
                return Ok(thread);
            }
        }
        Err(ScanError::Gone { pid })
    }

    /// `status` has the `Vm` lines only while there is an address space.
    fn has_memory(&self) -> Result<bool, ScanError> {
        Ok(field(&self.read("status")?, "VmHWM").is_some())
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn open(&self, name: &str) -> Result<File, ScanError> {
        File::open(self.path.join(name)).map_err(|error| self.error(name, error))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ScanError> {
        fs::read(self.path.join(name)).map_err(|error| self.error(name, error))
    }

    pub(super) fn maps(&self) -> Result<Vec<Vma>, ScanError> {
        // By line: the text of 200,000 mappings has 14 MB.
        let mut text = BufReader::with_capacity(64 * 1024, self.open("maps")?);
        let (mut vmas, mut line) = (Vec::new(), Vec::new());
        while text
            .read_until(b'\n', &mut line)
            .map_err(|error| self.error("maps", error))?
            > 0
        {
            let vma = parse_maps_line(line.strip_suffix(b"\n").unwrap_or(&line));
            vmas.push(vma.ok_or_else(|| self.malformed("maps", "a line that is not a mapping"))?);
            line.clear();
        }
        match vmas.is_empty() {
            true => Err(ScanError::Gone { pid: self.pid }),
            false => Ok(vmas),
        }
    }

    /// Costs 0.5 s at 200,000 VMAs: for when the cheaper files contradict each other.
    pub(super) fn smaps(&self) -> Result<Vec<SmapsEntry>, ScanError> {
        Ok(parse_smaps(&self.read("smaps")?))
    }

    pub(super) fn rollup(&self) -> Result<Rollup, ScanError> {
        let text = self.read("smaps_rollup")?;
        let kib = |key| field(&text, key).ok_or_else(|| self.malformed("smaps_rollup", key));
        Ok(Rollup {
            rss_bytes: kib("Rss")? * KIB,
            pss_bytes: kib("Pss")? * KIB,
            pss_shmem_bytes: kib("Pss_Shmem").ok().map(|kib| kib * KIB),
        })
    }

    pub(super) fn status(&self) -> Result<Status, ScanError> {
        let text = self.read("status")?;
        let number = |key| field(&text, key).ok_or_else(|| self.malformed("status", key));
        Ok(Status {
            vm_hwm_bytes: number("VmHWM")? * KIB,
            page_tables_bytes: number("VmPTE")? * KIB,
            threads: number("Threads")?,
            file_slots: number("FDSize")?,
            parent: number("PPid")? as u32,
        })
    }

    /// The error for a failed access to `name`; a process that ended meanwhile is told apart.
    pub(super) fn error(&self, name: &str, error: io::Error) -> ScanError {
        error_for(self.pid, &self.path.join(name), error)
    }

    fn malformed(&self, name: &str, what: &str) -> ScanError {
        ScanError::Malformed {
            path: self.path.join(name),
            what: what.to_owned(),
        }
    }
}

fn error_for(pid: u32, path: &Path, error: io::Error) -> ScanError {
    match error.raw_os_error() {
        // No such file: reaped. No such process: ended between open and read.
        Some(libc::ENOENT | libc::ESRCH) => ScanError::Gone { pid },
        // The address space went away under an open `pagemap`: it ends early.
        None if error.kind() == io::ErrorKind::UnexpectedEof => ScanError::Gone { pid },
        _ => ScanError::Read {
            path: path.to_owned(),
            source: error,
        },
    }
}

/// RSS for polling: `/proc/PID/statm`, kept open. 10 µs a reading whatever the process's size.
///
/// Exact on some kernels and approximate on others (per-CPU counters that are not summed); the
/// exact number is [`super::ProcessSnapshot::rss_bytes`].
#[derive(Debug)]
pub struct StatmReader {
    pid: u32,
    path: PathBuf,
    file: File,
}

impl StatmReader {
    /// Opens `/proc/PID/statm`. The reader stays with this process: it never shows a later process
    /// that was given the same pid.
    pub fn open(pid: u32) -> Result<StatmReader, ScanError> {
        let path = PathBuf::from(format!("/proc/{pid}/statm"));
        let file = File::open(&path).map_err(|error| error_for(pid, &path, error))?;
        Ok(StatmReader { pid, path, file })
    }

    /// RSS in bytes; 0 for a process that has ended and was not waited for yet.
    pub fn rss_bytes(&self) -> Result<u64, ScanError> {
        // Seven numbers of up to 20 digits.
        let mut text = [0; 160];
        let length = self
            .file
            .read_at(&mut text, 0)
            .map_err(|error| error_for(self.pid, &self.path, error))?;
        let resident = text[..length]
            .split(|byte| *byte == b' ')
            .nth(1)
            .and_then(decimal);
        resident
            .map(|pages| pages * PAGE)
            .ok_or_else(|| ScanError::Malformed {
                path: self.path.clone(),
                what: "the resident pages".to_owned(),
            })
    }
}

/// `VmHWM` of a process in bytes: the kernel's own high-water mark of its RSS, approximate.
pub fn vm_hwm_bytes(pid: u32) -> Result<u64, ScanError> {
    Ok(ProcDir::of(pid)?.status()?.vm_hwm_bytes)
}

/// Whether pages of `[vvar]`, the kernel's data for the vdso, count in RSS. Mapped by frame number (`pf` in
/// `VmFlags`) they do not; Linux 7.2 maps them as any page that has more owners (`mm`), and they do.
pub(super) fn vvar_is_rss() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| {
        let own = ProcDir::of(std::process::id()).and_then(|dir| dir.smaps());
        own.is_ok_and(|entries| entries.iter().any(is_counted_vvar))
    })
}

fn is_counted_vvar(entry: &SmapsEntry) -> bool {
    let by_frame_number = entry.flags.split(' ').any(|flag| flag == "pf");
    entry.vma.name() == Some("[vvar]") && !by_frame_number
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
}

/// The number after `key:`, whatever its unit.
fn field(text: &[u8], key: &str) -> Option<u64> {
    lines(text).find_map(|line| field_of_line(line, key))
}

fn field_of_line(line: &[u8], key: &str) -> Option<u64> {
    let value = line
        .strip_prefix(key.as_bytes())?
        .strip_prefix(b":")?
        .trim_ascii();
    decimal(value.split(|byte| *byte == b' ').next()?)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// One line of `maps`; `None` for any other line, such as the fields of `smaps`.
///
/// ```text
/// 7f2c1a000000-7f2c1a021000 rw-p 00000000 00:00 0           [anon:a name]
/// 55d0c3a00000-55d0c3a28000 r-xp 00028000 08:01 1048602     /opt/my app (deleted)
/// ```
///
/// The name is everything after the padding: it may hold blanks, and the kernel writes a newline
/// in it as `\012`. What is not UTF-8 in it is replaced, since it is only shown and matched.
fn parse_maps_line(line: &[u8]) -> Option<Vma> {
    let mut columns = line.splitn(6, |byte| *byte == b' ');
    let mut range = columns.next()?.splitn(2, |byte| *byte == b'-');
    let (start, end) = (hexadecimal(range.next()?)?, hexadecimal(range.next()?)?);
    let permissions = columns.next()?;
    let offset = hexadecimal(columns.next()?)?;
    let _device = columns.next()?;
    let inode = decimal(columns.next()?)?;
    let name = columns.next().unwrap_or_default().trim_ascii_start();
    let [read, write, execute, share] = *permissions else {
        return None;
    };
    let bit = |flag: u8, letter: u8, bit: libc::c_int| if flag == letter { bit as u32 } else { 0 };
    Some(Vma::from(MapsLine {
        start,
        end,
        protection: bit(read, b'r', libc::PROT_READ)
            | bit(write, b'w', libc::PROT_WRITE)
            | bit(execute, b'x', libc::PROT_EXEC),
        shared: share == b's',
        offset,
        inode,
        name: (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned()),
    }))
}

fn parse_smaps(text: &[u8]) -> Vec<SmapsEntry> {
    let mut entries: Vec<SmapsEntry> = Vec::new();
    for line in lines(text) {
        if let Some(vma) = parse_maps_line(line) {
            entries.push(SmapsEntry {
                vma,
                rss_bytes: 0,
                flags: String::new(),
            });
        } else if let Some(entry) = entries.last_mut() {
            if let Some(rss_kib) = field_of_line(line, "Rss") {
                entry.rss_bytes = rss_kib * KIB;
            } else if let Some(flags) = line.strip_prefix(b"VmFlags:") {
                entry.flags = String::from_utf8_lossy(flags.trim_ascii()).into_owned();
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines_keep_their_names_whole() {
        let text = b"\
55d0c3a00000-55d0c3a28000 r-xp 00028000 08:01 1048602                    /opt/my app (deleted)
7f2c1a000000-7f2c1a021000 rw-p 00000000 00:00 0
7f2c1b000000-7f2c1b021000 ---p 00000000 00:00 0                          [anon:Go: heap reservation]
7f2c1c000000-7f2c1c001000 rw-s 00000000 00:01 42                         /SYSV
7f2c1d000000-7f2c1d001000 r--p 00001000 08:01 43                         /tmp/caf\xe9
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";
        let vmas: Vec<Vma> = lines(text).filter_map(parse_maps_line).collect();
        let names: Vec<Option<&str>> = vmas.iter().map(|vma| vma.name()).collect();
        assert_eq!(
            names,
            [
                Some("/opt/my app (deleted)"),
                None,
                Some("[anon:Go: heap reservation]"),
                Some("/SYSV"),
                Some("/tmp/caf\u{fffd}"),
                Some("[vsyscall]"),
            ]
        );
        assert_eq!(
            vmas[0],
            Vma::from(MapsLine {
                start: 0x55d0_c3a0_0000,
                end: 0x55d0_c3a2_8000,
                protection: 5,
                shared: false,
                offset: 0x28000,
                inode: 1_048_602,
                name: Some("/opt/my app (deleted)".to_owned()),
            })
        );
        assert_eq!(
            (vmas[2].protection, vmas[3].shared, vmas[4].offset()),
            (0, true, 0x1000)
        );
    }

    #[test]
    fn smaps_gives_rss_and_flags_of_each_vma() {
        let text = b"\
7f2c1a000000-7f2c1a021000 rw-p 00000000 00:00 0
Size:                132 kB
Rss:                  12 kB
Pss:                   6 kB
VmFlags: rd wr mr mw me ac
7f2c1b000000-7f2c1b021000 rw-s 00000000 00:0e 1                          anon_inode:[perf_event]
Rss:                   0 kB
VmFlags: rd wr sh mr mw me ms pf io dc de dd
";
        let entries = parse_smaps(text);
        let seen: Vec<(u64, &str)> = entries
            .iter()
            .map(|entry| (entry.rss_bytes, entry.flags.as_str()))
            .collect();
        let expected = [
            (12 * KIB, "rd wr mr mw me ac"),
            (0, "rd wr sh mr mw me ms pf io dc de dd"),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_data_of_the_vdso_counts_where_it_is_mapped_as_pages() {
        let counted = |name: &str, flags: &str| {
            let text = format!(
                "7faed4c02000-7faed4c06000 r--p 00000000 00:00 0    {name}\nRss: 0 kB\nVmFlags: {flags}\n"
            );
            is_counted_vvar(&parse_smaps(text.as_bytes())[0])
        };
        // Linux 7.2, 6.18, and another mapping of 7.2's.
        assert!(counted("[vvar]", "rd mr io de dd sd mm"));
        assert!(!counted("[vvar]", "rd mr pf io de dd sd"));
        assert!(!counted("[vvar_vclock]", "rd mr io de dd sd mm"));
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = b"Name:\tx\nVmHWM:\t   19284 kB\nVmPTE:\t      84 kB\nThreads:\t12\n";
        assert_eq!(field(status, "VmHWM"), Some(19_284));
        assert_eq!(field(status, "Threads"), Some(12));
        assert_eq!(field(status, "Thread"), None);
    }

    /// `cargo test --release -p profiler --lib -- --ignored --nocapture cost_of_parsing_maps`
    #[test]
    #[ignore = "prints figures"]
    fn cost_of_parsing_maps() {
        let mut text = String::new();
        for index in 0..200_000_u64 {
            let (start, end) = (
                0x7f00_0000_0000 + index * 4096,
                0x7f00_0000_1000 + index * 4096,
            );
            let access = if index % 2 == 0 { "---p" } else { "rw-p" };
            text += &format!("{start:x}-{end:x} {access} 00000000 00:00 0 \n");
        }
        let begun = std::time::Instant::now();
        let vmas = lines(text.as_bytes()).filter_map(parse_maps_line).count();
        println!("{vmas} VMAs parsed in {:.1?}", begun.elapsed());
        let begun = std::time::Instant::now();
        let maps: procfs::process::MemoryMaps =
            procfs::FromRead::from_read(text.as_bytes()).expect("well formed");
        println!("{} VMAs by procfs in {:.1?}", maps.len(), begun.elapsed());
    }
}
