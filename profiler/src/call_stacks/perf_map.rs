//! Names of jitted code: `/tmp/perf-PID.map`, which runtimes write when they are asked to
//! (`node --perf-basic-prof`, `java -XX:+DumpPerfMapAtExit`, `PYTHONPERFSUPPORT=1`).
//!
//! `tools/perf/Documentation/jit-interface.txt`: a line is `START SIZE name`, both hexadecimal.

/// What a map names, in the order of its lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PerfMap {
    entries: Vec<(u64, u64, String)>,
}

impl PerfMap {
    /// Reads a map; lines that are none are passed over.
    pub fn parse(text: &str) -> PerfMap {
        let entries = text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ' ');
            let mut number =
                || u64::from_str_radix(parts.next()?.trim_start_matches("0x"), 16).ok();
            let (start, size) = (number()?, number()?);
            Some((start, size, parts.next()?.to_owned()))
        });
        PerfMap {
            entries: entries.collect(),
        }
    }

    /// The name of the code at an address; code moves, so the last line that covers it.
    pub fn name_at(&self, address: u64) -> Option<&str> {
        let covers = |(start, size, _): &&(u64, u64, String)| {
            address
                .checked_sub(*start)
                .is_some_and(|offset| offset < *size)
        };
        let found = self.entries.iter().rev().find(covers)?;
        Some(&found.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_covers_an_address_names_it() {
        let map = PerfMap::parse("1000 20 Script:~f a.js:1\nnonsense\n1000 10 RegExp:x\n");
        assert_eq!(map.name_at(0x100f), Some("RegExp:x"));
        assert_eq!(map.name_at(0x1010), Some("Script:~f a.js:1"));
        assert_eq!(map.name_at(0x1020), None);
    }
}
