//! Bytes from the ring → [`Event`].

use profiler_ebpf::{NamedRecord, Record, kind};
use thiserror::Error;

use super::{Call, Event};

/// Bytes that are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Neither a record nor a named record.
    #[error("a record of {0} bytes, expected {plain} or {named}", plain = size_of::<Record>(), named = size_of::<NamedRecord>())]
    Length(usize),
    /// A kind that this version does not know.
    #[error("a record of unknown kind {0}")]
    Kind(u32),
}

/// Decodes one item of the ring.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let record = Fields::of(bytes)?;
    let args = record.args;
    let call = match record.kind {
        kind::MMAP => Call::Mmap {
            hint: args[0],
            length: args[1],
            protection: args[2] as u32,
            flags: args[3] as u32,
            fd: args[4] as i32,
            offset: args[5],
            address: record.result,
        },
        kind::MUNMAP => Call::Munmap {
            address: args[0],
            length: args[1],
        },
        kind::MREMAP => Call::Mremap {
            old_address: args[0],
            old_length: args[1],
            new_length: args[2],
            flags: args[3] as u32,
            address: record.result,
        },
        kind::BRK => Call::Brk {
            requested: args[0],
            address: record.result,
        },
        kind::MPROTECT | kind::PKEY_MPROTECT => Call::Mprotect {
            address: args[0],
            length: args[1],
            protection: args[2] as u32,
        },
        kind::MADVISE => Call::Madvise {
            address: args[0],
            length: args[1],
            advice: args[2] as u32,
        },
        kind::SIGALTSTACK => Call::Sigaltstack {
            address: args[0],
            length: args[1],
        },
        kind::PRCTL => Call::NameVma {
            address: args[2],
            length: args[3],
            name: record.name,
        },
        kind::MEMFD_CREATE => Call::MemfdCreate {
            name: record.name,
            fd: record.result as i32,
        },
        kind::NEWTASK => Call::Fork {
            child_tid: args[0] as u32,
            flags: args[1],
            stack: args[2],
            stack_top: args[3],
        },
        kind::EXEC => Call::Exec { path: record.name },
        kind::EXIT => Call::Exit,
        kind::PEAK => Call::PeakCandidate {
            epoch: args[0] as u32,
            pages: args[1],
        },
        kind::OWN_PEAK => Call::OwnPeakCandidate {
            epoch: args[0] as u32,
            pages: args[1],
            space: args[2] as u32,
            of: args[3] as u32,
        },
        unknown => return Err(DecodeError::Kind(unknown)),
    };
    Ok(Event {
        began_ns: record.began_ns,
        ended_ns: record.ended_ns,
        tgid: record.tgid,
        tid: record.tid,
        call_stack: record.call_stack,
        call,
    })
}

/// The fields of [`Record`], read one by one in its order: nothing of the bytes is taken for a type
/// that has invalid values, and their alignment does not matter.
struct Fields {
    began_ns: u64,
    ended_ns: u64,
    args: [u64; 6],
    result: u64,
    kind: u32,
    tgid: u32,
    tid: u32,
    call_stack: u32,
    name: String,
}

impl Fields {
    fn of(bytes: &[u8]) -> Result<Fields, DecodeError> {
        if bytes.len() != size_of::<Record>() && bytes.len() != size_of::<NamedRecord>() {
            return Err(DecodeError::Length(bytes.len()));
        }
        let (plain, name) = bytes.split_at(size_of::<Record>());
        let mut words = plain
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
        let mut word = || words.next().expect("the length was checked");
        let (began_ns, ended_ns) = (word(), word());
        let args = std::array::from_fn(|_| word());
        let result = word();
        let (kind_tgid, tid_stack) = (word().to_ne_bytes(), word().to_ne_bytes());
        let half = |bytes: [u8; 8], at: usize| {
            u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
        };
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(Fields {
            began_ns,
            ended_ns,
            args,
            result,
            kind: half(kind_tgid, 0),
            tgid: half(kind_tgid, 4),
            tid: half(tid_stack, 0),
            call_stack: half(tid_stack, 4),
            name: String::from_utf8_lossy(name).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, args: [u64; 6], result: i64) -> Record {
        Record {
            began_ns: 10,
            ended_ns: 20,
            args,
            result,
            kind,
            tgid: 7,
            tid: 8,
            call_stack: 5,
        }
    }

    fn bytes<T: Copy>(value: T) -> Vec<u8> {
        // SAFETY: both records are plain integers without implicit padding (checked where they are
        // defined), so every byte is initialised.
        unsafe {
            std::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<T>()).to_vec()
        }
    }

    fn call(record: Record) -> Call {
        decode(&bytes(record)).expect("a record").call
    }

    #[test]
    fn an_mmap_keeps_every_argument_and_its_caller() {
        let event = decode(&bytes(record(
            kind::MMAP,
            [0, 8192, 3, 0x20022, u64::MAX, 0],
            0x7f00_0000_0000,
        )))
        .unwrap();
        assert_eq!(
            event,
            Event {
                began_ns: 10,
                ended_ns: 20,
                tgid: 7,
                tid: 8,
                call_stack: 5,
                call: Call::Mmap {
                    hint: 0,
                    length: 8192,
                    protection: 3,
                    flags: 0x20022,
                    fd: -1,
                    offset: 0,
                    address: 0x7f00_0000_0000
                }
            }
        );
    }

    #[test]
    fn every_kind_becomes_its_call() {
        assert_eq!(
            call(record(kind::MUNMAP, [4096, 1, 0, 0, 0, 0], 0)),
            Call::Munmap {
                address: 4096,
                length: 1
            }
        );
        assert_eq!(
            call(record(kind::BRK, [0, 9, 9, 9, 9, 9], 4096)),
            Call::Brk {
                requested: 0,
                address: 4096
            }
        );
        assert_eq!(
            call(record(kind::MREMAP, [1, 2, 3, 1, 99, 0], 5)),
            Call::Mremap {
                old_address: 1,
                old_length: 2,
                new_length: 3,
                flags: 1,
                address: 5
            }
        );
        for protect in [kind::MPROTECT, kind::PKEY_MPROTECT] {
            assert_eq!(
                call(record(protect, [1, 2, 5, 1, 0, 0], 0)),
                Call::Mprotect {
                    address: 1,
                    length: 2,
                    protection: 5
                }
            );
        }
        assert_eq!(
            call(record(kind::MADVISE, [1, 2, 4, 0, 0, 0], 0)),
            Call::Madvise {
                address: 1,
                length: 2,
                advice: 4
            }
        );
        assert_eq!(
            call(record(kind::NEWTASK, [9, 0x10000, 4096, 8192, 0, 0], 0)),
            Call::Fork {
                child_tid: 9,
                flags: 0x10000,
                stack: 4096,
                stack_top: 8192
            }
        );
        assert_eq!(
            call(record(kind::SIGALTSTACK, [4096, 8192, 0, 0, 0, 0], 0)),
            Call::Sigaltstack {
                address: 4096,
                length: 8192
            }
        );
        assert_eq!(call(record(kind::EXIT, [0; 6], 0)), Call::Exit);
    }

    #[test]
    fn a_name_ends_at_its_terminator() {
        let mut name = [b'x'; profiler_ebpf::NAME_LEN];
        name[..6].copy_from_slice(b"vmem\0?");
        let named = NamedRecord {
            record: record(kind::MEMFD_CREATE, [0; 6], 5),
            name,
        };
        assert_eq!(
            decode(&bytes(named)).unwrap().call,
            Call::MemfdCreate {
                name: "vmem".into(),
                fd: 5
            }
        );
    }

    #[test]
    fn what_is_no_record_is_an_error_and_no_panic() {
        assert_eq!(decode(&[0; 87]), Err(DecodeError::Length(87)));
        assert_eq!(
            decode(&bytes(record(4242, [0; 6], 0))),
            Err(DecodeError::Kind(4242))
        );
    }
}
