//! A capture and the code that was mapped → the addresses of its frames.

use std::{collections::HashMap, ops::Range, sync::Arc};

use framehop::{
    FrameAddress, Module, Unwinder as _,
    x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64},
};

use super::{
    binary::{Binary, Bytes},
    capture::Capture,
    code::{Code, CodeMap},
};

/// More frames than a slice holds are a loop.
const MOST_FRAMES: usize = 512;

/// The binaries by path and inode; `None` where the file tells nothing (any more).
pub type Binaries = HashMap<(Arc<str>, u64), Option<Binary>>;

/// Unwinds the captures of one image of a process.
pub struct Unwinder<'a> {
    code: &'a CodeMap,
    unwinder: UnwinderX86_64<Bytes>,
    cache: CacheX86_64,
}

/// What became of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwound {
    /// An address inside the instruction of each frame (of a caller, its call), innermost first.
    pub addresses: Vec<u64>,
    /// Why the outermost frames are missing; `None`: none is.
    pub cut: Option<&'static str>,
}

impl<'a> Unwinder<'a> {
    /// For an image with this code. Every file of `code` is in `binaries`.
    pub fn new(code: &'a CodeMap, binaries: &Binaries) -> Unwinder<'a> {
        let mut unwinder = UnwinderX86_64::new();
        for (range, base, binary) in modules(code, binaries) {
            let sections = binary.unwind_sections();
            unwinder.add_module(Module::new(String::new(), range, base, sections));
        }
        Unwinder {
            code,
            unwinder,
            cache: CacheX86_64::new(),
        }
    }

    /// Walks from the innermost frame outwards: by unwind tables, and by frame pointers where there are none.
    pub fn unwind(&mut self, capture: &Capture) -> Unwound {
        let regs = UnwindRegsX86_64::new(capture.ip, capture.sp, capture.bp);
        let mut left_the_slice = false;
        let mut read = |address| {
            let word = capture.word_at(address);
            left_the_slice |= word.is_none();
            word.ok_or(())
        };
        let mut frames = self
            .unwinder
            .iter_frames(capture.ip, regs, &mut self.cache, &mut read);
        let mut addresses = Vec::new();
        let cut = loop {
            let address = match frames.next() {
                Ok(Some(FrameAddress::InstructionPointer(address))) => address,
                Ok(Some(frame)) => frame.address_for_lookup(),
                Ok(None) => break None,
                Err(_) => break Some("the next frame cannot be found"),
            };
            // What is no code was read from where no return address stood.
            if self.code.get(&address).is_none() {
                break Some("what follows is no code that was seen mapped");
            }
            addresses.push(address);
            if addresses.len() == MOST_FRAMES {
                break Some("there are too many frames");
            }
        };
        let cut = match (cut, left_the_slice) {
            (Some(_), true) => Some("deeper than the part of the stack that was copied"),
            (cut, _) => cut,
        };
        Unwound { addresses, cut }
    }
}

/// Of each file that is mapped: from its first to its last code, and where its address 0 would be.
fn modules<'b>(code: &CodeMap, binaries: &'b Binaries) -> Vec<(Range<u64>, u64, &'b Binary)> {
    let mut modules: Vec<(Range<u64>, u64, &Binary)> = Vec::new();
    for (range, code) in code.iter() {
        let Some((binary, address)) = address_in_file(code, range.start, binaries) else {
            continue;
        };
        let base = range.start.wrapping_sub(address);
        match modules.last_mut() {
            Some((last, known, same)) if *known == base && std::ptr::eq(*same, binary) => {
                last.end = range.end;
            }
            _ => modules.push((range.clone(), base, binary)),
        }
    }
    modules
}

/// The file that an address of `code` was mapped from, and the virtual address in it.
pub fn address_in_file<'b>(
    code: &Code,
    address: u64,
    binaries: &'b Binaries,
) -> Option<(&'b Binary, u64)> {
    let name = code.name.as_ref()?;
    let binary = binaries.get(&(Arc::clone(name), code.inode))?.as_ref()?;
    Some((binary, binary.address_of(code.file_offset(address))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(slice: &[u64]) -> Capture {
        Capture {
            id: 1,
            tgid: 7,
            taken_ns: 0,
            ip: 0x1010,
            sp: 0x7000,
            bp: 0x7010,
            slice: slice.to_vec(),
        }
    }

    fn jitted() -> CodeMap {
        let code = Code {
            range: 0x1000..0x2000,
            offset: 0,
            inode: 0,
            name: None,
        };
        CodeMap::from_iter([(0x1000..0x2000, code)])
    }

    /// ```text
    /// 7000  local
    /// 7008  local
    /// 7010  7030   <- rbp
    /// 7018  1100   return address
    /// 7020  local
    /// 7028  local
    /// 7030  0
    /// 7038  1200   return address
    /// ```
    #[test]
    fn frame_pointers_lead_where_there_are_no_tables() {
        let code = jitted();
        let mut unwinder = Unwinder::new(&code, &Binaries::new());
        let whole = capture(&[1, 2, 0x7030, 0x1100, 3, 4, 0, 0x1200]);
        let unwound = unwinder.unwind(&whole);
        assert_eq!(unwound.addresses[..2], [0x1010, 0x10ff]);
        let short = capture(&[1, 2, 0x7030, 0x1100]);
        let unwound = unwinder.unwind(&short);
        assert_eq!(unwound.addresses, [0x1010, 0x10ff]);
        assert_eq!(
            unwound.cut,
            Some("deeper than the part of the stack that was copied")
        );
    }

    #[test]
    fn what_is_no_code_is_no_frame() {
        let code = jitted();
        let mut unwinder = Unwinder::new(&code, &Binaries::new());
        let unwound = unwinder.unwind(&capture(&[1, 2, 0x7030, 0x9999_0000, 3, 4, 0x7040, 0x1200]));
        assert_eq!(unwound.addresses, [0x1010]);
        assert_eq!(
            unwound.cut,
            Some("what follows is no code that was seen mapped")
        );
    }
}
