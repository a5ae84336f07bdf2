//! Bytes from the ring of call stacks → [`Capture`].

use profiler_ebpf::call_stack_wire::{CallStackRecord, SLICE_BYTES, id};

/// The stack of a thread in a system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Number by which events refer to it.
    pub id: u32,
    /// Process of the caller.
    pub tgid: u32,
    /// `CLOCK_MONOTONIC`, in ns.
    pub taken_ns: u64,
    /// Instruction after the system call.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// `rbp`: the frame pointer, where there is one.
    pub bp: u64,
    /// The stack from `sp` up, in words.
    pub slice: Vec<u64>,
}

impl Capture {
    /// Decodes one item of the ring; `None` for bytes that are no call stack.
    pub fn decode(bytes: &[u8]) -> Option<Capture> {
        if bytes.len() != size_of::<CallStackRecord>() {
            return None;
        }
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
        let mut word = || words.next().expect("the length was checked");
        let ids = word().to_ne_bytes();
        let half = |at: usize| u32::from_ne_bytes(ids[at..at + 4].try_into().expect("4 bytes"));
        let [taken_ns, ip, sp, bp, length] = std::array::from_fn(|_| word());
        let length = usize::try_from(length).ok()?;
        (length <= SLICE_BYTES).then(|| Capture {
            id: half(0),
            tgid: half(4),
            taken_ns,
            ip,
            sp,
            bp,
            slice: words.take(length / 8).collect(),
        })
    }

    /// The word at an address of the stack, if it was copied.
    pub fn word_at(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.sp)?;
        let index = usize::try_from(offset / 8).ok()?;
        match offset % 8 {
            0 => self.slice.get(index).copied(),
            _ => None,
        }
    }
}

/// Why an event has no call stack, where its number says so.
pub fn why_none(number: u32) -> Option<&'static str> {
    match number {
        id::NONE => Some("its call stack was not taken"),
        id::UNREADABLE => Some("its stack could not be read"),
        id::LOST => Some("the ring of call stacks was full"),
        id::TABLE_FULL => Some("the table of call stacks was full"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_keeps_what_was_copied_and_no_more() {
        let mut words = vec![7 | 9 << 32, 11, 0x401000, 0x7ffe_0000, 0x7ffe_0040, 24];
        words.extend((0..SLICE_BYTES as u64 / 8).map(|index| 100 + index));
        let bytes: Vec<u8> = words
            .iter()
            .flat_map(|word: &u64| word.to_ne_bytes())
            .collect();
        let capture = Capture::decode(&bytes).expect("a call stack");
        assert_eq!((capture.id, capture.tgid, capture.taken_ns), (7, 9, 11));
        assert_eq!((capture.ip, capture.bp), (0x401000, 0x7ffe_0040));
        assert_eq!(capture.slice, [100, 101, 102]);
        assert_eq!(capture.word_at(0x7ffe_0010), Some(102));
        assert_eq!(capture.word_at(0x7ffe_0018), None, "was not copied");
        assert_eq!(capture.word_at(0x7ffe_0004), None, "is no word");
        assert_eq!(capture.word_at(0x7ffd_fff8), None, "lies below");
        assert_eq!(Capture::decode(&bytes[8..]), None);
    }
}
