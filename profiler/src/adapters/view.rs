//! Memory of a process with the files behind it: for what a runtime says about itself in read-only data that
//! nobody has read yet.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    sync::Arc,
};

use super::{
    Refusal, elf,
    memory::{Memory, Unreadable, Words},
};
use crate::{
    classify::runtime::file_name,
    residency::{ProcessSnapshot, Vma},
    units::PAGE,
};

/// Bytes of the longest text that is believed; the longest name in HotSpot's tables (JDK 25) has 82.
const LONGEST_TEXT: usize = 512;

/// What may be read: resident pages from memory, and other pages of some mapped files, such as a runtime's
/// library, from there. Those have not been written (a page that was is resident, or in swap, where what is
/// read instead fails the checks of whoever reads it).
pub struct View<'a> {
    memory: &'a Memory<'a>,
    files: Files,
    pages: RefCell<HashMap<u64, Box<[u8]>>>,
}

/// The files behind a view, which threads may share.
pub type Files = Arc<Vec<Mapped>>;

/// A mapped file.
pub struct Mapped {
    range: Range<u64>,
    offset: u64,
    file: File,
}

impl<'a> View<'a> {
    /// Of memory, with files behind it.
    pub fn new(memory: &'a Memory<'a>, files: Files) -> View<'a> {
        View {
            memory,
            files,
            pages: RefCell::default(),
        }
    }

    /// The files behind it.
    pub fn files(&self) -> Files {
        Arc::clone(&self.files)
    }

    /// With those files of a process behind it whose names are `wanted`.
    pub fn of_process(
        memory: &'a Memory<'a>,
        process: &ProcessSnapshot,
        wanted: impl Fn(&str) -> bool,
    ) -> View<'a> {
        let known = |vma: &&Vma| wanted(file_name(vma.name().unwrap_or_default()));
        let open = |vma: &Vma| {
            Some(Mapped {
                range: vma.start..vma.end,
                offset: vma.offset(),
                file: elf::open(process.tgid, vma)?,
            })
        };
        let files = process.vmas.iter().filter(known).filter_map(open);
        View::new(memory, Arc::new(files.collect()))
    }

    /// The resident memory.
    pub fn memory(&self) -> &'a Memory<'a> {
        self.memory
    }

    fn read_in_page_of_file(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { address };
        let page = address - address % PAGE;
        let mut pages = self.pages.borrow_mut();
        let bytes = match pages.entry(page) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let file = self.files.iter().find(|it| it.range.contains(&page));
                let mapped = file.ok_or(unreadable)?;
                let mut bytes = vec![0; PAGE as usize].into_boxed_slice();
                let offset = (page - mapped.range.start).checked_add(mapped.offset);
                let read = mapped.file.read_at(&mut bytes, offset.ok_or(unreadable)?);
                // The last page of a file is zero behind its end.
                read.map_err(|_| unreadable)?;
                unknown.insert(bytes)
            }
        };
        let offset = (address - page) as usize;
        into.copy_from_slice(&bytes[offset..offset + into.len()]);
        Ok(())
    }

    /// A text that ends with a zero byte; `None` for the null address.
    pub fn text(&self, address: u64) -> Result<Option<String>, Refusal> {
        if address == 0 {
            return Ok(None);
        }
        let mut text = Vec::new();
        let mut at = address;
        while text.len() < LONGEST_TEXT {
            let mut part = [0; 64];
            let in_page = ((PAGE - at % PAGE) as usize).min(part.len());
            let part = &mut part[..in_page];
            self.read(at, part)?;
            let end = part.iter().position(|&byte| byte == 0);
            text.extend_from_slice(&part[..end.unwrap_or(in_page)]);
            if end.is_some() {
                let text = String::from_utf8(text).ok();
                return text
                    .map(Some)
                    .ok_or_else(|| Refusal(format!("the name at {address:#x} is no text")));
            }
            at = at.wrapping_add(in_page as u64);
        }
        Err(Refusal(format!("the name at {address:#x} does not end")))
    }
}

impl Words for View<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        if self.memory.read(address, into).is_ok() {
            return Ok(());
        }
        let mut done = 0;
        while done < into.len() {
            let at = address
                .checked_add(done as u64)
                .ok_or(Unreadable { address })?;
            let in_page = ((PAGE - at % PAGE) as usize).min(into.len() - done);
            let part = &mut into[done..done + in_page];
            if self.memory.read(at, part).is_err() {
                self.read_in_page_of_file(at, part)?;
            }
            done += in_page;
        }
        Ok(())
    }
}
