//! Who has which stack: goroutines from `allgs`, threads from `allm`.

use std::collections::HashSet;

use super::{Field, Program, Refusal};
use crate::adapters::memory::Words;

/// Values of `g.atomicstatus` (runtime2.go). Those from 7 on differ in few versions, and mean what
/// `_Gwaiting` means for us: the goroutine sleeps, and has saved its stack pointer.
const IDLE: u64 = 0;
const RUNNING: u64 = 2;
const DEAD: u64 = 6;
/// `_Gdeadextra`, since Go 1.26: as dead, kept for a thread that C code calls from.
const DEAD_EXTRA: u64 = 11;
/// Added while the collector looks at the stack.
const SCAN: u64 = 0x1000;
/// The least that a pointer in `allgs` leads to; also for `allm`.
const LEAST_G: u64 = 128;

/// How far apart two `g` may begin that are read at once, in bytes: as long as the span that they lie in.
const NEAR: u64 = 8192;

/// A stack that somebody has. There are as many as tasks, so each takes 16 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stack {
    /// The lowest byte.
    pub lo: u64,
    bytes: u32,
    /// Bytes below the pointer, or [`Stack::NO_POINTER`], and in the two low bits the owner.
    unused_and_owner: u32,
}

impl Stack {
    const NO_POINTER: u32 = u32::MAX >> 2;

    /// `pointer` lies in `lo..=hi`. `None` for a stack of 1 GiB and more, which is the most that the runtime gives
    /// (`maxstacksize`, proc.go).
    fn new(lo: u64, hi: u64, owner: Owner, pointer: Option<u64>) -> Option<Stack> {
        let bytes = u32::try_from(hi - lo).ok();
        let bytes = bytes.filter(|&bytes| bytes < Self::NO_POINTER)?;
        let unused = pointer.map_or(Self::NO_POINTER, |pointer| (pointer - lo) as u32);
        Some(Stack {
            lo,
            bytes,
            unused_and_owner: unused << 2 | owner as u32,
        })
    }

    /// One past the highest byte.
    pub(super) fn hi(&self) -> u64 {
        self.lo + u64::from(self.bytes)
    }

    /// Where it is used from, up to `hi`. `None`: all of it may be in use.
    pub(super) fn pointer(&self) -> Option<u64> {
        let unused = self.unused_and_owner >> 2;
        (unused != Self::NO_POINTER).then_some(self.lo + u64::from(unused))
    }

    pub(super) fn owner(&self) -> Owner {
        let mut owners = Owner::ALL.into_iter();
        let own = owners.find(|&owner| owner as u32 == self.unused_and_owner & 3);
        own.expect("there are four")
    }
}

/// Whose stack it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Goroutine,
    /// It keeps its stack for the next one.
    EndedGoroutine,
    /// The runtime's own stack of a thread, `m.g0`.
    Thread,
    /// Where a thread handles signals, `m.gsignal`.
    Signals,
}

impl Owner {
    const ALL: [Owner; 4] = [
        Owner::Goroutine,
        Owner::EndedGoroutine,
        Owner::Thread,
        Owner::Signals,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Owner::Goroutine => "a goroutine",
            Owner::EndedGoroutine => "an ended goroutine",
            Owner::Thread => "a thread",
            Owner::Signals => "a thread's signals",
        }
    }
}

impl Program<'_> {
    /// All stacks in address order. Those of threads may lie outside of the heap: the first thread's does,
    /// and with cgo all do.
    pub(super) fn stacks(&self) -> Result<Vec<Stack>, Refusal> {
        let mut stacks = self.goroutines()?;
        let mut seen = HashSet::new();
        let mut m = self.memory.u64(self.allm)?;
        while m != 0 {
            if !seen.insert(m) {
                return Err(Refusal(format!("the list allm comes back to {m:#x}")));
            }
            for (field, owner) in [
                (self.fields.m_g0, Owner::Thread),
                (self.fields.m_gsignal, Owner::Signals),
            ] {
                let g = self.number(m, field)?;
                if g != 0 {
                    let mut bytes = vec![0; self.fields.g_bytes as usize];
                    self.memory.read(g, &mut bytes)?;
                    stacks.extend(self.stack(g, &bytes, Some(owner))?);
                }
            }
            m = self.number(m, self.fields.m_next)?;
        }
        stacks.sort_unstable_by_key(|stack| stack.lo);
        Ok(stacks)
    }

    /// The stacks of goroutines. Every `g` lies in a span of such, which is read as a whole: between the
    /// spans lie stacks, many times as long. The list leads to those of one span one after the other, as a rule.
    fn goroutines(&self) -> Result<Vec<Stack>, Refusal> {
        let each = self.fields.g_bytes;
        let all = self.pointers(self.allgs, "allgs", LEAST_G)?;
        let mut stacks = Vec::with_capacity(all.length());
        let mut bytes = Vec::new();
        for part in all.parts() {
            let mut part = part?;
            part.sort_unstable();
            let mut rest = part.as_slice();
            while let Some(&first) = rest.first() {
                let near = rest.partition_point(|&g| g - first <= NEAR);
                let (now, later) = rest.split_at(near);
                let last = now.last().copied().unwrap_or(first);
                bytes.resize((last - first + each) as usize, 0);
                self.memory.read_past_cache(first, &mut bytes)?;
                for &g in now {
                    let at = (g - first) as usize;
                    let own = bytes.get(at..).unwrap_or_default();
                    stacks.extend(self.stack(g, own, None)?);
                }
                rest = later;
            }
        }
        Ok(stacks)
    }

    /// The stack of the `g` with these bytes, if it has one. It is a goroutine unless an owner is named.
    fn stack(&self, g: u64, bytes: &[u8], owner: Option<Owner>) -> Result<Option<Stack>, Refusal> {
        let fields = self.fields;
        let short = || Refusal(format!("the g at {g:#x} ends in the middle"));
        let within = |outer: Field, inner: Field| {
            let offset = outer.offset.checked_add(inner.offset);
            let field = offset.map(|offset| Field { offset, ..inner });
            field
                .and_then(|field| number(bytes, field))
                .ok_or_else(short)
        };
        let whole = Field::default();
        let status = within(whole, fields.g_status)? & !SCAN;
        let lo = within(fields.g_stack, fields.stack_lo)?;
        let hi = within(fields.g_stack, fields.stack_hi)?;
        let saved = within(fields.g_sched, fields.gobuf_sp)?;
        let owner = owner.unwrap_or(match status {
            IDLE | DEAD | DEAD_EXTRA => Owner::EndedGoroutine,
            _ => Owner::Goroutine,
        });
        if lo == 0 {
            return Ok(None);
        }
        let wrong = || {
            Refusal(format!(
                "the g at {g:#x} has a stack from {lo:#x} to {hi:#x}"
            ))
        };
        if hi <= lo {
            return Err(wrong());
        }
        let first = self.threads.partition_point(|&pointer| pointer < lo);
        let thread = self.threads.get(first).copied().filter(|&it| it < hi);
        let is_inside = lo < saved && saved <= hi;
        let pointer = match owner {
            _ if thread.is_some() => thread,
            Owner::EndedGoroutine => None,
            // Its thread is on another stack for a moment, and need not have saved the pointer of this one.
            Owner::Goroutine if status == RUNNING => None,
            Owner::Goroutine if !is_inside => {
                return Err(Refusal(format!(
                    "the goroutine at {g:#x} sleeps at {saved:#x}, outside of its stack {lo:#x}..{hi:#x}"
                )));
            }
            _ => Some(saved).filter(|_| is_inside),
        };
        let stack = Stack::new(lo, hi, owner, pointer);
        stack.map(Some).ok_or_else(wrong)
    }
}

/// A number in the bytes of a struct.
fn number(bytes: &[u8], field: Field) -> Option<u64> {
    let start = usize::try_from(field.offset).ok()?;
    let length = usize::try_from(field.bytes).ok()?;
    let own = bytes.get(start..start.checked_add(length)?)?;
    let mut word = [0; 8];
    word.get_mut(..length)?.copy_from_slice(own);
    Some(u64::from_le_bytes(word))
}
