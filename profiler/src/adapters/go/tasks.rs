//! Who has which stack: goroutines from `allgs`, threads from `allm`.

use std::{collections::HashSet, num::NonZeroU32};

use super::{
    Field, Program, Refusal,
    spans::{Span, Use},
};
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

/// Who has a stack, and from where on it is used. There are as many as tasks, so each takes four bytes: in the two
/// low bits the owner, above them [`Holder::NO_POINTER`], or one more than that and the bytes below the pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder(NonZeroU32);

const _: () = assert!(size_of::<Option<Holder>>() == 4);

impl Holder {
    const NO_POINTER: u32 = 1;
    /// Bytes of the largest stack: the runtime gives 1,000,000,000 at most (`maxstacksize`, proc.go).
    const LARGEST: u64 = (u32::MAX >> 2) as u64 - 2;

    /// `unused` is at most [`Holder::LARGEST`].
    fn new(owner: Owner, unused: Option<u32>) -> Holder {
        let unused = unused.map_or(Self::NO_POINTER, |unused| unused + Self::NO_POINTER + 1);
        let both = NonZeroU32::new(unused << 2 | owner as u32);
        Holder(both.expect("the upper part is never zero"))
    }

    /// Bytes of the stack that are not used. `None`: all of it may be in use.
    pub(super) fn unused(self) -> Option<u64> {
        let unused = (self.0.get() >> 2).checked_sub(Self::NO_POINTER + 1);
        unused.map(u64::from)
    }

    pub(super) fn owner(self) -> Owner {
        let mut owners = Owner::ALL.into_iter();
        let own = owners.find(|&owner| owner as u32 == self.0.get() & 3);
        own.expect("there are four")
    }
}

/// A stack that somebody has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stack {
    /// The lowest byte.
    lo: u64,
    /// One past the highest byte.
    hi: u64,
    holder: Holder,
}

/// Who has which of the stacks in spans, by [`Span::stacks`].
pub(super) struct Holders<'a> {
    spans: &'a [Span],
    of: Vec<Option<Holder>>,
    /// Where the last one was put: the next is mostly in the same span, or in the one behind it.
    near: usize,
}

impl<'a> Holders<'a> {
    fn of_nobody(spans: &'a [Span]) -> Holders<'a> {
        let all = spans.iter().map(|span| span.stacks().end).max();
        Holders {
            spans,
            of: vec![None; all.unwrap_or(0)],
            near: 0,
        }
    }

    /// Those of the stacks of a span, in address order.
    pub(super) fn of_span(&self, span: &Span) -> &[Option<Holder>] {
        self.of.get(span.stacks()).unwrap_or_default()
    }

    /// The span that an address lies in.
    fn span_of(&mut self, address: u64) -> Option<&'a Span> {
        let spans = self.spans;
        let is_in = |index: usize| {
            let span = spans.get(index)?;
            (span.start <= address && address < span.end()).then_some((index, span))
        };
        let near = is_in(self.near).or_else(|| is_in(self.near + 1));
        let (index, span) = near.or_else(|| {
            let behind = spans.partition_point(|span| span.start <= address);
            is_in(behind.checked_sub(1)?)
        })?;
        self.near = index;
        Some(span)
    }

    /// Notes a stack. Those of threads may be mappings of their own, or lie elsewhere in the heap.
    fn put(&mut self, stack: Stack) -> Result<(), Refusal> {
        let Stack { lo, hi, holder } = stack;
        let owner = holder.owner();
        let span = self.span_of(lo);
        let Some((span, Use::Stacks(stacks))) = span.map(|span| (span, &span.usage)) else {
            return match owner {
                Owner::Thread | Owner::Signals => Ok(()),
                Owner::Goroutine | Owner::EndedGoroutine => Err(Refusal(format!(
                    "the stack {lo:#x}..{hi:#x} of {} is in no span of stacks",
                    owner.name()
                ))),
            };
        };
        let (behind, each) = (lo - span.start, stacks.each());
        let fits = behind.is_multiple_of(each) && hi - lo == each;
        let number = span.stacks().start + (behind / each) as usize;
        match self.of.get_mut(number) {
            Some(free @ None) if fits => *free = Some(holder),
            _ => {
                return Err(Refusal(format!(
                    "the stack {lo:#x}..{hi:#x} of {} is none of the span of stacks at {:#x}",
                    owner.name(),
                    span.start
                )));
            }
        }
        Ok(())
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
    /// Who has the stacks of these spans.
    pub(super) fn holders<'a>(&self, spans: &'a [Span]) -> Result<Holders<'a>, Refusal> {
        let mut holders = Holders::of_nobody(spans);
        self.goroutines(&mut holders)?;
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
                    let stack = self.stack(g, &bytes, Some(owner))?;
                    stack.map_or(Ok(()), |stack| holders.put(stack))?;
                }
            }
            m = self.number(m, self.fields.m_next)?;
        }
        Ok(holders)
    }

    /// The stacks of goroutines. Every `g` lies in a span of such, which is read as a whole: between the
    /// spans lie stacks, many times as long. The list leads to those of one span one after the other, as a rule.
    fn goroutines(&self, holders: &mut Holders) -> Result<(), Refusal> {
        let each = self.fields.g_bytes;
        let all = self.pointers(self.allgs, "allgs", LEAST_G)?;
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
                    let stack = self.stack(g, own, None)?;
                    stack.map_or(Ok(()), |stack| holders.put(stack))?;
                }
                rest = later;
            }
        }
        Ok(())
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
        if hi <= lo || hi - lo > Holder::LARGEST {
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
        let unused = pointer.map(|pointer| (pointer - lo) as u32);
        Ok(Some(Stack {
            lo,
            hi,
            holder: Holder::new(owner, unused),
        }))
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
