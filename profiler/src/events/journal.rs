//! Events that wait, in few bytes: a program that starts 100,000 threads has 300,000 of them before its memory first
//! shrinks.

use super::{Call, Event};

/// Events in the order in which they came. Numbers that are close to those of the event before are written as the
/// difference, seven bits a byte, so that one takes some 20 bytes instead of [`Event`]'s 88.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    bytes: Vec<u8>,
    events: usize,
    last: Last,
}

/// What of an event the next one is told by.
#[derive(Debug, Clone, Copy, Default)]
struct Last {
    ended_ns: u64,
    tgid: u32,
    tid: u32,
    address: u64,
}

/// A call as numbers: its kind, then an address and what else it has, without zeros at the end.
struct Words<'a> {
    kind: u8,
    address: u64,
    others: [u64; 6],
    text: &'a str,
}

impl Journal {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.events
    }

    /// The memory that they take.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// The next event.
    pub fn push(&mut self, event: &Event) {
        let words = Words::of(&event.call);
        let last = self.last;
        let others = words.others.iter().rposition(|&word| word != 0);
        let others = &words.others[..others.map_or(0, |index| index + 1)];
        self.bytes.push(words.kind << 3 | others.len() as u8);
        self.difference(event.ended_ns, last.ended_ns);
        self.difference(event.began_ns, event.ended_ns);
        self.difference(event.tgid.into(), last.tgid.into());
        self.difference(event.tid.into(), last.tid.into());
        self.number(event.call_stack.into());
        self.difference(words.address, last.address);
        others.iter().for_each(|&word| self.number(word));
        self.number(words.text.len() as u64);
        self.bytes.extend(words.text.as_bytes());
        self.events += 1;
        self.last = Last {
            ended_ns: event.ended_ns,
            tgid: event.tgid,
            tid: event.tid,
            address: words.address,
        };
    }

    /// All of them, as they came.
    pub fn iter(&self) -> impl Iterator<Item = Event> {
        let mut reader = Reader {
            bytes: &self.bytes,
            last: Last::default(),
        };
        (0..self.events).map(move |_| reader.event().expect("written by `push`"))
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// The sign goes into the lowest bit, so that small differences either way are short.
    fn difference(&mut self, number: u64, from: u64) {
        let difference = number.wrapping_sub(from).cast_signed();
        self.number((difference << 1 ^ difference >> 63).cast_unsigned());
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    last: Last,
}

impl Reader<'_> {
    fn event(&mut self) -> Option<Event> {
        let [first, rest @ ..] = self.bytes else {
            return None;
        };
        self.bytes = rest;
        let (kind, number_of_others) = (first >> 3, usize::from(first & 7));
        let ended_ns = self.difference(self.last.ended_ns)?;
        let began_ns = self.difference(ended_ns)?;
        let tgid = self.difference(self.last.tgid.into())? as u32;
        let tid = self.difference(self.last.tid.into())? as u32;
        let call_stack = self.number()? as u32;
        let address = self.difference(self.last.address)?;
        let mut others = [0; 6];
        for word in others.get_mut(..number_of_others)? {
            *word = self.number()?;
        }
        let length = self.number()? as usize;
        let (text, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        self.last = Last {
            ended_ns,
            tgid,
            tid,
            address,
        };
        let words = Words {
            kind,
            address,
            others,
            text: str::from_utf8(text).ok()?,
        };
        Some(Event {
            began_ns,
            ended_ns,
            tgid,
            tid,
            call_stack,
            call: words.call()?,
        })
    }

    fn number(&mut self) -> Option<u64> {
        let (mut number, mut shift) = (0, 0);
        loop {
            let [byte, rest @ ..] = self.bytes else {
                return None;
            };
            self.bytes = rest;
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
    }

    fn difference(&mut self, from: u64) -> Option<u64> {
        let number = self.number()?;
        let difference = (number >> 1) ^ (number & 1).wrapping_neg();
        Some(from.wrapping_add(difference))
    }
}

impl Words<'_> {
    fn of(call: &Call) -> Words<'_> {
        let words = |kind, address, others: &[u64]| {
            let mut all = [0; 6];
            all[..others.len()].copy_from_slice(others);
            Words {
                kind,
                address,
                others: all,
                text: "",
            }
        };
        match call {
            &Call::Mmap {
                hint,
                length,
                protection,
                flags,
                fd,
                offset,
                address,
            } => {
                // -1, which most have, is 0.
                let fd = fd.wrapping_add(1).cast_unsigned();
                let (protection, flags) = (protection.into(), flags.into());
                let others = [length, protection, flags, fd.into(), offset, hint];
                words(0, address, &others)
            }
            &Call::Munmap { address, length } => words(1, address, &[length]),
            &Call::Mremap {
                old_address,
                old_length,
                new_length,
                flags,
                address,
            } => words(
                2,
                address,
                &[old_address, old_length, new_length, flags.into()],
            ),
            &Call::Brk { requested, address } => words(3, address, &[requested]),
            &Call::Mprotect {
                address,
                length,
                protection,
            } => words(4, address, &[length, protection.into()]),
            &Call::Madvise {
                address,
                length,
                advice,
            } => words(5, address, &[length, advice.into()]),
            &Call::Fork {
                child_tid,
                flags,
                stack,
                stack_top,
            } => words(
                6,
                stack,
                &[child_tid.into(), flags, stack_top.wrapping_sub(stack)],
            ),
            Call::MemfdCreate { name, fd } => Words {
                text: name,
                ..words(7, 0, &[fd.cast_unsigned().into()])
            },
            &Call::Sigaltstack { address, length } => words(8, address, &[length]),
            Call::NameVma {
                address,
                length,
                name,
            } => Words {
                text: name,
                ..words(9, *address, &[*length])
            },
            Call::Exec { path } => Words {
                text: path,
                ..words(10, 0, &[])
            },
            &Call::PeakCandidate { epoch, pages } => words(11, 0, &[epoch.into(), pages]),
            &Call::OwnPeakCandidate {
                epoch,
                pages,
                space,
                of,
            } => words(12, 0, &[epoch.into(), pages, space.into(), of.into()]),
            Call::Exit => words(13, 0, &[]),
        }
    }

    fn call(&self) -> Option<Call> {
        let (address, [one, two, three, four, five, six]) = (self.address, self.others);
        Some(match self.kind {
            0 => Call::Mmap {
                hint: six,
                length: one,
                protection: two as u32,
                flags: three as u32,
                fd: (four as u32).cast_signed().wrapping_sub(1),
                offset: five,
                address,
            },
            1 => Call::Munmap {
                address,
                length: one,
            },
            2 => Call::Mremap {
                old_address: one,
                old_length: two,
                new_length: three,
                flags: four as u32,
                address,
            },
            3 => Call::Brk {
                requested: one,
                address,
            },
            4 => Call::Mprotect {
                address,
                length: one,
                protection: two as u32,
            },
            5 => Call::Madvise {
                address,
                length: one,
                advice: two as u32,
            },
            6 => Call::Fork {
                child_tid: one as u32,
                flags: two,
                stack: address,
                stack_top: address.wrapping_add(three),
            },
            7 => Call::MemfdCreate {
                name: self.text.to_owned(),
                fd: (one as u32).cast_signed(),
            },
            8 => Call::Sigaltstack {
                address,
                length: one,
            },
            9 => Call::NameVma {
                address,
                length: one,
                name: self.text.to_owned(),
            },
            10 => Call::Exec {
                path: self.text.to_owned(),
            },
            11 => Call::PeakCandidate {
                epoch: one as u32,
                pages: two,
            },
            12 => Call::OwnPeakCandidate {
                epoch: one as u32,
                pages: two,
                space: three as u32,
                of: four as u32,
            },
            13 => Call::Exit,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any of the calls, made of these numbers.
    fn call(kind: u8, [a, b, c, d, e, f]: [u64; 6], text: &str) -> Call {
        let words = Words {
            kind,
            address: f,
            others: [a, b, c, d, e, a ^ f],
            text,
        };
        words.call().expect("one of the kinds")
    }

    proptest! {
        #[test]
        fn events_come_back_as_they_were(
            events in prop::collection::vec(
                (0..14_u8, any::<[u64; 6]>(), any::<[u32; 3]>(), any::<[u64; 2]>(), ".{0,9}", 0..60_u32),
                0..20,
            )
        ) {
            let event = |(kind, mut numbers, ids, times, text, shift): (u8, [u64; 6], [u32; 3], [u64; 2], String, u32)| {
                numbers.iter_mut().for_each(|number| *number >>= shift);
                Event {
                    began_ns: times[0],
                    ended_ns: times[1],
                    tgid: ids[0],
                    tid: ids[1],
                    call_stack: ids[2],
                    call: call(kind, numbers, &text),
                }
            };
            let events: Vec<Event> = events.into_iter().map(event).collect();
            let mut journal = Journal::default();
            events.iter().for_each(|event| journal.push(event));
            prop_assert_eq!(journal.len(), events.len());
            prop_assert_eq!(journal.iter().collect::<Vec<_>>(), events);
        }
    }

    #[test]
    fn starting_a_thread_takes_some_tens_of_bytes() {
        let mut journal = Journal::default();
        let event = |ns, call| Event {
            began_ns: ns - 2000,
            ended_ns: ns,
            tgid: 31_000,
            tid: 31_000,
            call_stack: 0,
            call,
        };
        for index in 0..1000 {
            let (ns, address) = (
                (1 << 50) + index * 40_000,
                0x7f00_0000_0000 - index * 8_392_704,
            );
            let length = 8_392_704;
            journal.push(&event(
                ns,
                Call::Mmap {
                    hint: 0,
                    length,
                    protection: 0,
                    flags: 0x20022,
                    fd: -1,
                    offset: 0,
                    address,
                },
            ));
            journal.push(&event(
                ns + 5000,
                Call::Mprotect {
                    address: address + 4096,
                    length: length - 4096,
                    protection: 3,
                },
            ));
            journal.push(&event(
                ns + 9000,
                Call::Fork {
                    child_tid: 31_001 + index as u32,
                    flags: 0x3d_0f00,
                    stack: address + 4096,
                    stack_top: address + length - 2432,
                },
            ));
        }
        assert!(journal.bytes.len() < 70 * 1000, "{}", journal.bytes.len());
    }
}
