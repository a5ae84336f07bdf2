//! The memory at the peak as a profile that `go tool pprof` opens.
//!
//! `proto/profile.proto` of github.com/google/pprof; only the fields that are written stand here.

use std::{collections::HashMap, hash::Hash, io::Write};

use flate2::{Compression, write::GzEncoder};
use prost::Message;

use super::made_by::{Level, stacks};
use crate::results::Results;

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    /// Innermost first.
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    /// Otherwise pprof asks for symbols itself.
    #[prost(bool, tag = "7")]
    has_functions: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// The profile, not compressed (`.pb`).
pub fn plain(results: &Results) -> Vec<u8> {
    profile(results).encode_to_vec()
}

/// The profile, compressed (`.pb.gz`).
pub fn compressed(results: &Results) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&plain(results))?;
    encoder.finish()
}

fn profile(results: &Results) -> Profile {
    let mut builder = Builder::default();
    builder.string("");
    let resident = ValueType {
        kind: builder.string("resident"),
        unit: builder.string("bytes"),
    };
    let class = builder.string("class");
    // pprof takes the first mapping for the program.
    for process in results.runs.iter().flat_map(|run| run.processes.first()) {
        builder.mapping(&process.executable);
    }
    let mut sample = Vec::new();
    for stack in stacks(results) {
        let mut location_id: Vec<u64> = stack
            .levels
            .iter()
            .map(|level| builder.location(level))
            .collect();
        location_id.reverse();
        let text = builder.string(stack.class.name());
        sample.push(Sample {
            location_id,
            value: vec![stack.bytes.cast_signed()],
            label: vec![Label { key: class, text }],
        });
    }
    Profile {
        sample_type: vec![resident],
        sample,
        mapping: builder.mappings.values,
        location: builder.locations.values,
        function: builder.functions.values,
        string_table: builder.strings.values,
    }
}

/// Things that are written once and referred to by number.
struct Once<K, V> {
    numbers: HashMap<K, usize>,
    values: Vec<V>,
}

impl<K, V> Default for Once<K, V> {
    fn default() -> Self {
        Once {
            numbers: HashMap::new(),
            values: Vec::new(),
        }
    }
}

impl<K: Eq + Hash, V> Once<K, V> {
    /// Index of the value for a key, which `make` makes from that index where it is new.
    fn index(&mut self, key: K, make: impl FnOnce(usize) -> V) -> usize {
        let next = self.values.len();
        *self.numbers.entry(key).or_insert_with(|| {
            self.values.push(make(next));
            next
        })
    }
}

#[derive(Default)]
struct Builder {
    strings: Once<String, String>,
    mappings: Once<i64, Mapping>,
    functions: Once<(i64, i64), Function>,
    locations: Once<(u64, u64, u64, i64), Location>,
}

impl Builder {
    fn string(&mut self, text: &str) -> i64 {
        let index = self.strings.index(text.to_owned(), |_| text.to_owned());
        index as i64
    }

    fn mapping(&mut self, path: &str) -> u64 {
        let filename = self.string(path);
        let index = self.mappings.index(filename, |index| Mapping {
            id: index as u64 + 1,
            filename,
            has_functions: true,
        });
        index as u64 + 1
    }

    /// Numbers of everything but strings begin with 1.
    fn location(&mut self, level: &Level) -> u64 {
        let frame = level.frame;
        let name = self.string(&level.label);
        let filename = self.string(frame.and_then(|frame| frame.file.as_deref()).unwrap_or(""));
        let function = self.functions.index((name, filename), |index| Function {
            id: index as u64 + 1,
            name,
            filename,
        });
        let mapping_id = frame.map_or(0, |frame| self.mapping(&frame.module));
        let address = frame.map_or(0, |frame| frame.offset);
        let line = frame.and_then(|frame| frame.line).map_or(0, i64::from);
        let function_id = function as u64 + 1;
        let key = (mapping_id, address, function_id, line);
        let location = self.locations.index(key, |index| Location {
            id: index as u64 + 1,
            mapping_id,
            address,
            line: vec![Line { function_id, line }],
        });
        location as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_is_read_back_has_the_same_stacks_and_bytes() {
        let results = super::super::made_by::tests::results();
        let profile = Profile::decode(plain(&results).as_slice()).expect("a profile");
        let text = |index: i64| profile.string_table[index as usize].as_str();
        assert_eq!(text(0), "", "the first string is empty");
        let name = |location: &u64| {
            let location = &profile.location[*location as usize - 1];
            let function = &profile.function[location.line[0].function_id as usize - 1];
            text(function.name)
        };
        let first: Vec<&str> = profile.sample[0].location_id.iter().map(name).collect();
        assert_eq!(
            first,
            [
                "[heap: large blocks of malloc]",
                "libc.so.6+0x1f",
                "read<[u8; 4]>",
                "main",
                "[outer frames missing: too deep]",
                "server",
            ]
        );
        let sum: i64 = profile.sample.iter().map(|sample| sample.value[0]).sum();
        assert_eq!(sum, 12288);
        let kind = profile.sample_type[0];
        assert_eq!((text(kind.kind), text(kind.unit)), ("resident", "bytes"));
        let compressed = compressed(&results).expect("compressed");
        assert_eq!(compressed[..2], [0x1f, 0x8b], "gzip");
    }
}
