//! Short ways to write events, and region maps as text, for the tests of this module.
//!
//! Places are in pages: `P * 2..P * 4` is `2-4` in the text.

use std::ops::Range;

use crate::events::{Call, Event};
use crate::residency::{MapsLine, Vma};
use crate::units::PAGE;

use super::{AddressSpace, Advice, Piece};

pub const P: u64 = PAGE;
pub const NONE: u32 = libc::PROT_NONE as u32;
pub const R: u32 = libc::PROT_READ as u32;
pub const RW: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;
pub const RX: u32 = (libc::PROT_READ | libc::PROT_EXEC) as u32;
/// Private anonymous memory.
pub const ANON: u32 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
pub const FIXED: u32 = libc::MAP_FIXED as u32;
pub const STACK: u32 = libc::MAP_STACK as u32;

/// Process and thread of events that do not say another.
pub const TGID: u32 = 100;

/// A call of the only thread that takes from `ns` to `ns + 1`.
pub fn at(ns: u64, call: Call) -> Event {
    during(ns..ns + 1, call)
}

/// A call with its own begin and end.
pub fn during(ns: Range<u64>, call: Call) -> Event {
    Event {
        began_ns: ns.start,
        ended_ns: ns.end,
        tgid: TGID,
        tid: TGID,
        call_stack: 0,
        call,
    }
}

/// The same event by another process or thread.
pub fn by(tgid: u32, tid: u32, event: Event) -> Event {
    Event { tgid, tid, ..event }
}

pub fn mmap(place: Range<u64>, protection: u32, flags: u32) -> Call {
    Call::Mmap {
        hint: 0,
        length: place.end - place.start,
        protection,
        flags,
        fd: if flags & libc::MAP_ANONYMOUS as u32 == 0 {
            3
        } else {
            -1
        },
        offset: 0,
        address: place.start,
    }
}

pub fn munmap(place: Range<u64>) -> Call {
    Call::Munmap {
        address: place.start,
        length: place.end - place.start,
    }
}

pub fn mremap(old: Range<u64>, new: Range<u64>, flags: i32) -> Call {
    Call::Mremap {
        old_address: old.start,
        old_length: old.end - old.start,
        new_length: new.end - new.start,
        flags: flags as u32,
        address: new.start,
    }
}

pub fn mprotect(place: Range<u64>, protection: u32) -> Call {
    Call::Mprotect {
        address: place.start,
        length: place.end - place.start,
        protection,
    }
}

pub fn madvise(place: Range<u64>, advice: i32) -> Call {
    Call::Madvise {
        address: place.start,
        length: place.end - place.start,
        advice: advice as u32,
    }
}

pub fn brk(address: u64) -> Call {
    Call::Brk {
        requested: address,
        address,
    }
}

pub fn name(place: Range<u64>, name: &str) -> Call {
    Call::NameVma {
        address: place.start,
        length: place.end - place.start,
        name: name.to_owned(),
    }
}

/// An empty address space after these events.
pub fn after(events: impl IntoIterator<Item = Event>) -> AddressSpace {
    let mut space = AddressSpace::empty();
    for event in events {
        space.apply(&event);
    }
    space
}

/// The calls one after another, each returning before the next begins.
pub fn in_order(calls: impl IntoIterator<Item = Call>) -> Vec<Event> {
    (10..)
        .step_by(10)
        .zip(calls)
        .map(|(ns, call)| at(ns, call))
        .collect()
}

/// One line a piece: `pages protection #origin`, then what is out of the ordinary.
pub fn text(space: &AddressSpace) -> Vec<String> {
    space
        .pieces()
        .map(|(range, piece)| line(space, range, piece))
        .collect()
}

fn line(space: &AddressSpace, range: Range<u64>, piece: &Piece) -> String {
    let (start, end) = (range.start / P, range.end / P);
    let bit = |flag: i32, shown| {
        if u32::from(piece.protection) & flag as u32 != 0 {
            shown
        } else {
            '-'
        }
    };
    let (r, w, x) = (
        bit(libc::PROT_READ, 'r'),
        bit(libc::PROT_WRITE, 'w'),
        bit(libc::PROT_EXEC, 'x'),
    );
    let mut line = format!("{start}-{end} {r}{w}{x} #{}", piece.origin.index());
    if let Some(reservation) = piece.reserved_by {
        line += &format!(" on #{}", reservation.index());
    }
    if piece.committed_by_mprotect() {
        line += " was none";
    }
    if piece.advice != Advice::empty() {
        let names: Vec<_> = piece.advice.iter_names().map(|(name, _)| name).collect();
        line += &format!(" {}", names.join("+"));
    }
    if let Some(name) = piece.name {
        line += &format!(" '{}'", space.name(name));
    }
    line
}

/// A line of `/proc/PID/maps`: private, of a file when `name` is a path.
pub fn vma(place: Range<u64>, protection: u32, name: &str) -> Vma {
    Vma::from(MapsLine {
        start: place.start,
        end: place.end,
        protection,
        shared: false,
        offset: 0,
        inode: name
            .strip_prefix('/')
            .map_or(0, |path| path.bytes().map(u64::from).sum()),
        name: (!name.is_empty()).then(|| name.to_owned()),
    })
}
