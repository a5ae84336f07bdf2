//! Reading the memory of a frozen process: only pages that are resident, in large blocks.
//!
//! A page that is not resident must not be read: the kernel would bring it, and the program would be
//! larger for being looked at.

use std::{cell::RefCell, io, io::IoSliceMut};

use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};

use crate::{
    residency::{ResidentRange, ranges::clip},
    units::PAGE,
};

/// Something at this address is not resident, or could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the memory at {address:#x} is not there to be read")]
pub struct Unreadable {
    /// First byte that was asked for.
    pub address: u64,
}

/// Memory that is read by address.
pub trait Words {
    /// Fills `into`. Fails when a part of it cannot be read.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable>;

    /// A little-endian word of eight bytes.
    fn u64(&self, address: u64) -> Result<u64, Unreadable> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A little-endian word of four bytes.
    fn u32(&self, address: u64) -> Result<u32, Unreadable> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// A little-endian word of two bytes.
    fn u16(&self, address: u64) -> Result<u16, Unreadable> {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// One byte.
    fn u8(&self, address: u64) -> Result<u8, Unreadable> {
        let mut byte = [0];
        self.read(address, &mut byte)?;
        Ok(byte[0])
    }
}

/// Where bytes come from: a process, or a recording of one in tests.
pub trait Source: Sync {
    /// Fills `into` with the bytes at `address`, all of which are resident.
    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()>;

    /// Fills `into` with parts of `each` bytes, one from each of `addresses`; all are resident.
    fn read_parts(&self, addresses: &[u64], each: usize, into: &mut [u8]) -> io::Result<()> {
        let mut parts = addresses.iter().zip(into.chunks_exact_mut(each));
        parts.try_for_each(|(&address, part)| self.read(address, part))
    }
}

/// The memory of a live process. Needs the right to ptrace it.
pub struct Process(pub u32);

impl Source for Process {
    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
        let wanted = into.len();
        let remote = RemoteIoVec {
            base: address as usize,
            len: wanted,
        };
        let pid = Pid::from_raw(self.0.cast_signed());
        match process_vm_readv(pid, &mut [IoSliceMut::new(into)], &[remote])? {
            read if read == wanted => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn read_parts(&self, addresses: &[u64], each: usize, into: &mut [u8]) -> io::Result<()> {
        let pid = Pid::from_raw(self.0.cast_signed());
        let groups = addresses.chunks(MOST_PARTS);
        for (group, into) in groups.zip(into.chunks_mut(MOST_PARTS * each)) {
            let part = |&address: &u64| RemoteIoVec {
                base: address as usize,
                len: each,
            };
            let remote: Vec<RemoteIoVec> = group.iter().map(part).collect();
            let wanted = into.len();
            if process_vm_readv(pid, &mut [IoSliceMut::new(into)], &remote)? != wanted {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

/// Parts that one call reads at most (`UIO_MAXIOV`, include/uapi/linux/uio.h).
const MOST_PARTS: usize = 1024;

/// Bytes read at once.
const BLOCK: u64 = 64 * 1024;
/// Blocks kept: 2 MiB a thread, which stay in the caches of a processor. Adapters go through memory in long strides,
/// with jumps back to a few places.
const SLOTS: u64 = 32;
const PAGES_PER_BLOCK: u64 = BLOCK / PAGE;

/// A block that has been read. Pages that are not in `present` hold no meaning.
struct Block {
    number: u64,
    /// Bit n: page n of the block was resident and has been read.
    present: u16,
    bytes: Box<[u8]>,
}

/// The resident memory of one frozen process.
pub struct Memory<'a> {
    source: &'a dyn Source,
    resident: &'a [ResidentRange],
    cache: RefCell<Vec<Option<Block>>>,
}

/// What of a [`Memory`] threads share.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    source: &'a dyn Source,
    resident: &'a [ResidentRange],
}

impl<'a> Shared<'a> {
    /// The memory, with blocks of its own.
    pub fn memory(self) -> Memory<'a> {
        Memory::new(self.source, self.resident)
    }
}

impl<'a> Memory<'a> {
    /// `resident` is in address order, and whole pages.
    pub fn new(source: &'a dyn Source, resident: &'a [ResidentRange]) -> Memory<'a> {
        let cache = (0..SLOTS).map(|_| None).collect();
        Memory {
            source,
            resident,
            cache: RefCell::new(cache),
        }
    }

    /// What another thread needs to read the same memory, with blocks of its own.
    pub fn shared(&self) -> Shared<'a> {
        Shared {
            source: self.source,
            resident: self.resident,
        }
    }

    /// Fills `into` with parts of `each` bytes, one from each of `addresses`, by few calls, past the blocks that
    /// are kept: for short things that lie far from each other.
    pub fn read_parts(
        &self,
        addresses: &[u64],
        each: usize,
        into: &mut [u8],
    ) -> Result<(), Unreadable> {
        for &address in addresses {
            self.all_there(address, each)?;
        }
        let first = addresses.first().copied().unwrap_or(0);
        let read = self.source.read_parts(addresses, each, into);
        read.map_err(|_| Unreadable { address: first })
    }

    /// Fills `into` by a call of its own, past the blocks that are kept: for things that are few in a block,
    /// most of which would be read for nothing.
    pub fn read_past_cache(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        self.all_there(address, into.len())?;
        let read = self.source.read(address, into);
        read.map_err(|_| Unreadable { address })
    }

    /// Fails where a part of these bytes is not resident.
    fn all_there(&self, address: u64, bytes: usize) -> Result<(), Unreadable> {
        let end = address.checked_add(bytes as u64);
        let there = clip(self.resident, address, end.ok_or(Unreadable { address })?);
        let there: u64 = there.map(|part| part.end - part.start).sum();
        match there == bytes as u64 {
            true => Ok(()),
            false => Err(Unreadable { address }),
        }
    }

    /// Bytes that lie in one page of a block that is kept: the way that nearly all words are read.
    fn kept<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let cache = self.cache.borrow();
        let block = cache[(address / BLOCK % SLOTS) as usize].as_ref()?;
        let offset = (address % BLOCK) as usize;
        let is_present = block.present >> (offset as u64 / PAGE) & 1 == 1;
        let in_page = address % PAGE + N as u64 <= PAGE;
        if block.number != address / BLOCK || !is_present || !in_page {
            return None;
        }
        block.bytes.get(offset..offset + N)?.try_into().ok()
    }

    fn array<const N: usize>(&self, address: u64) -> Result<[u8; N], Unreadable> {
        if let Some(bytes) = self.kept(address) {
            return Ok(bytes);
        }
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Bytes inside one page.
    fn read_in_page(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let number = address / BLOCK;
        let mut cache = self.cache.borrow_mut();
        let slot = &mut cache[(number % SLOTS) as usize];
        if slot.as_ref().is_none_or(|block| block.number != number) {
            let bytes = slot.take().map(|block| block.bytes);
            *slot = Some(self.load(number, bytes));
        }
        let block = slot.as_ref().expect("just filled");
        let offset = (address % BLOCK) as usize;
        if block.present >> (offset as u64 / PAGE) & 1 == 0 {
            return Err(Unreadable { address });
        }
        into.copy_from_slice(&block.bytes[offset..offset + into.len()]);
        Ok(())
    }

    fn load(&self, number: u64, bytes: Option<Box<[u8]>>) -> Block {
        let start = number * BLOCK;
        let mut block = Block {
            number,
            present: 0,
            bytes: bytes.unwrap_or_else(|| vec![0; BLOCK as usize].into_boxed_slice()),
        };
        for range in clip(self.resident, start, start.saturating_add(BLOCK)) {
            let (from, to) = (range.start - start, range.end - start);
            let into = &mut block.bytes[from as usize..to as usize];
            if self.source.read(range.start, into).is_ok() {
                for page in from / PAGE..to / PAGE {
                    block.present |= 1 << (page % PAGES_PER_BLOCK);
                }
            }
        }
        block
    }

    /// What of `start..end` is resident, in address order.
    pub fn resident(&self, start: u64, end: u64) -> impl Iterator<Item = ResidentRange> + '_ {
        clip(self.resident, start, end)
    }
}

impl Words for Memory<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let mut done = 0;
        while done < into.len() {
            let at = address
                .checked_add(done as u64)
                .ok_or(Unreadable { address })?;
            let in_page = (PAGE - at % PAGE).min((into.len() - done) as u64) as usize;
            self.read_in_page(at, &mut into[done..done + in_page])?;
            done += in_page;
        }
        Ok(())
    }

    fn u64(&self, address: u64) -> Result<u64, Unreadable> {
        self.array(address).map(u64::from_le_bytes)
    }

    fn u32(&self, address: u64) -> Result<u32, Unreadable> {
        self.array(address).map(u32::from_le_bytes)
    }

    fn u16(&self, address: u64) -> Result<u16, Unreadable> {
        self.array(address).map(u16::from_le_bytes)
    }

    fn u8(&self, address: u64) -> Result<u8, Unreadable> {
        self.array(address).map(|[byte]: [u8; 1]| byte)
    }
}

/// A process made of literal bytes, for the tests of adapters.
#[cfg(test)]
pub mod fake {
    use super::*;
    use std::{collections::BTreeMap, ops::Range};

    /// Pages by address, all zero until written.
    #[derive(Debug, Default)]
    pub struct Fake {
        pages: BTreeMap<u64, Vec<u8>>,
    }

    impl Fake {
        /// Writes bytes; the pages that they touch are resident from then on.
        pub fn write(&mut self, address: u64, bytes: &[u8]) {
            for (at, part) in by_page(address, bytes.len()) {
                let page = self.pages.entry(at & !(PAGE - 1));
                let page = page.or_insert_with(|| vec![0; PAGE as usize]);
                page[(at % PAGE) as usize..][..part.len()].copy_from_slice(&bytes[part]);
            }
        }

        /// Writes a little-endian word.
        pub fn put(&mut self, address: u64, word: u64) {
            self.write(address, &word.to_le_bytes());
        }

        /// Makes all pages of a range resident.
        pub fn touch(&mut self, start: u64, end: u64) {
            let mut page = start & !(PAGE - 1);
            while page < end {
                self.pages
                    .entry(page)
                    .or_insert_with(|| vec![0; PAGE as usize]);
                page += PAGE;
            }
        }

        /// The resident pages, one range each.
        pub fn resident(&self) -> Vec<ResidentRange> {
            let range = |&start: &u64| ResidentRange {
                start,
                end: start + PAGE,
                file: false,
            };
            self.pages.keys().map(range).collect()
        }
    }

    impl Source for Fake {
        fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
            for (at, part) in by_page(address, into.len()) {
                let page = self.pages.get(&(at & !(PAGE - 1)));
                let page = page.expect("only resident pages are read");
                let length = part.len();
                into[part].copy_from_slice(&page[(at % PAGE) as usize..][..length]);
            }
            Ok(())
        }
    }

    /// Cuts `length` bytes from `address` on where pages end: the address of each part, and its place among the bytes.
    fn by_page(address: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = address + done as u64;
            let end = length.min(done + (PAGE - at % PAGE) as usize);
            let part = done..end;
            done = end;
            (!part.is_empty()).then_some((at, part))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{fake::Fake, *};

    #[test]
    fn only_resident_pages_are_read_across_pages_and_blocks() {
        let mut fake = Fake::default();
        fake.put(BLOCK - 4, 0x1122_3344_5566_7788);
        fake.put(2 * BLOCK, 7);
        let resident = fake.resident();
        let memory = Memory::new(&fake, &resident);
        assert_eq!(memory.u64(BLOCK - 4), Ok(0x1122_3344_5566_7788));
        assert_eq!(memory.u32(BLOCK), Ok(0x1122_3344));
        assert_eq!(memory.u64(2 * BLOCK), Ok(7));
        let address = 2 * BLOCK - 8;
        assert_eq!(memory.u64(address), Err(Unreadable { address }));
        assert_eq!(
            memory.u64(BLOCK + PAGE - 4),
            Err(Unreadable {
                address: BLOCK + PAGE
            })
        );
    }

    #[test]
    fn past_the_cache_too_only_resident_pages_are_read() {
        let mut fake = Fake::default();
        fake.put(PAGE - 4, 0x1122_3344_5566_7788);
        let resident = fake.resident();
        let memory = Memory::new(&fake, &resident);
        let mut bytes = [0; 8];
        assert_eq!(memory.read_past_cache(PAGE - 4, &mut bytes), Ok(()));
        assert_eq!(u64::from_le_bytes(bytes), 0x1122_3344_5566_7788);
        for address in [2 * PAGE - 4, 4 * PAGE, u64::MAX - 4] {
            let read = memory.read_past_cache(address, &mut bytes);
            assert_eq!(read, Err(Unreadable { address }));
        }
    }

    /// The words 0 to 4,999 in our own memory, and the pages that they are on.
    fn words_of_ours() -> (Vec<u64>, [ResidentRange; 1]) {
        let words: Vec<u64> = (0..5000).collect();
        let start = words.as_ptr() as u64;
        let resident = ResidentRange {
            start: start & !(PAGE - 1),
            end: (start + 40_000).next_multiple_of(PAGE),
            file: false,
        };
        (words, [resident])
    }

    #[test]
    fn parts_are_read_in_their_order_and_only_from_resident_pages() {
        let (words, resident) = words_of_ours();
        let start = words.as_ptr() as u64;
        let source = Process(std::process::id());
        let memory = Memory::new(&source, &resident);
        // More than one call takes, from the last to the first.
        let addresses: Vec<u64> = (0..3000).rev().map(|index| start + 8 * index).collect();
        let mut bytes = vec![0; 8 * addresses.len()];
        assert_eq!(memory.read_parts(&addresses, 8, &mut bytes), Ok(()));
        assert_eq!(bytes[..8], 2999_u64.to_le_bytes());
        assert_eq!(
            bytes[bytes.len() - 16..],
            [1, 0_u64].map(u64::to_le_bytes).concat()
        );
        for address in [resident[0].end, resident[0].end - 4] {
            let read = memory.read_parts(&[start, address], 8, &mut [0; 16]);
            assert_eq!(read, Err(Unreadable { address }));
        }
        drop(words);
    }

    #[test]
    fn our_own_memory_can_be_read() {
        let (words, resident) = words_of_ours();
        let start = words.as_ptr() as u64;
        let source = Process(std::process::id());
        let memory = Memory::new(&source, &resident);
        assert_eq!(memory.u64(start + 8 * 4321), Ok(4321));
        drop(words);
    }

    #[test]
    fn blocks_that_share_a_slot_are_read_again() {
        let mut fake = Fake::default();
        let far = SLOTS * BLOCK;
        fake.put(64, 1);
        fake.put(far + 64, 2);
        let resident = fake.resident();
        let memory = Memory::new(&fake, &resident);
        for _ in 0..2 {
            assert_eq!(memory.u64(64), Ok(1));
            assert_eq!(memory.u64(far + 64), Ok(2));
        }
    }
}
