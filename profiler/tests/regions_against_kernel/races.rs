//! Threads that get each other's addresses: the order of events when calls overlap.
//!
//! Four threads map memory at hints inside one small arena, pass it to each other, move it, open and
//! close it, and give it back. The kernel hands an address out again as soon as it is free, often before
//! the call that freed it has returned. The events, put in the order of returning as the ring has
//! them, must still give the kernel's map.

use std::ops::Range;
use std::sync::{Barrier, Mutex};
use std::thread;

use profiler::events::{Call, Event};
use profiler::regions::{AddressSpace, Origin, OriginKind, compare};
use profiler::residency::Vma;

use crate::{PAGE, now_ns, smaps, text, vma_inside};

/// Not the arena of the sequences, which run in forks of this process.
const ARENA: Range<u64> = 0x2100_0000_0000..0x2100_0000_0000 + SLOTS * PAGE;
const SLOTS: u64 = 12;
const THREADS: u32 = 4;
/// Steps of one thread in one race: few, since later steps hide what earlier ones got wrong.
const STEPS: u32 = 20;
/// Races to run at most, for reuse to happen often enough.
const RACES: u64 = 3000;
/// Races to run at least.
const FEWEST_RACES: u64 = 300;
/// Times that an address must have been reused before the event of its removal.
const ENOUGH: usize = 20;

/// Memory that nobody uses at the moment and anybody may take.
type Pool = Mutex<Vec<Range<u64>>>;

struct Racer<'a> {
    tid: u32,
    random: u64,
    pool: &'a Pool,
    events: Vec<Event>,
}

impl Racer<'_> {
    fn run(mut self) -> Vec<Event> {
        for _ in 0..STEPS {
            match self.below(6) {
                0..=2 => self.map(),
                3 => self.unmap(),
                4 => self.grow(),
                _ => self.protect(),
            }
        }
        self.events
    }

    /// Xorshift: enough to vary the steps, and the same ones in each run.
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    /// Makes a call. Yielding before the time is taken makes others run in between.
    fn call(&mut self, number: i64, args: [u64; 5]) -> Option<(Range<u64>, u64)> {
        let [a, b, c, d, e] = args;
        let began_ns = now_ns();
        // SAFETY: the calls map memory where the kernel finds room, or change memory from the pool,
        // which holds only such memory, and to which nothing points.
        let result = unsafe { libc::syscall(number, a, b, c, d, e, 0) };
        if self.below(2) == 0 {
            thread::yield_now();
        }
        let result = u64::try_from(result).ok()?;
        Some((began_ns..now_ns(), result))
    }

    fn record(&mut self, time: Range<u64>, call: Call) {
        self.events.push(Event {
            began_ns: time.start,
            ended_ns: time.end,
            tgid: 1,
            tid: self.tid,
            call_stack: 0,
            call,
        });
    }

    fn map(&mut self) {
        let slot = self.below(SLOTS);
        let length = (1 + self.below(3)) * PAGE;
        let hint = ARENA.start + slot * PAGE;
        let protection = self.protection();
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
        let args = [hint, length, protection.into(), flags.into(), u64::MAX];
        let Some((time, address)) = self.call(libc::SYS_mmap, args) else {
            return;
        };
        let call = Call::Mmap {
            hint,
            length,
            protection,
            flags,
            fd: -1,
            offset: 0,
            address,
        };
        self.record(time, call);
        self.put(address..address + length);
    }

    fn protection(&mut self) -> u32 {
        let choices = [
            libc::PROT_NONE,
            libc::PROT_READ,
            libc::PROT_READ | libc::PROT_WRITE,
        ];
        choices[self.below(3) as usize] as u32
    }

    /// Into the pool, or back to the kernel when it is outside of the arena.
    fn put(&mut self, range: Range<u64>) {
        if ARENA.start <= range.start && range.end <= ARENA.end {
            self.pool.lock().expect("no racer panicked").push(range);
        } else {
            self.give_back(range);
        }
    }

    fn take(&mut self) -> Option<Range<u64>> {
        let random = self.below(u64::MAX) as usize;
        let mut pool = self.pool.lock().expect("no racer panicked");
        let index = random.checked_rem(pool.len())?;
        Some(pool.swap_remove(index))
    }

    fn give_back(&mut self, range: Range<u64>) {
        let (address, length) = (range.start, range.end - range.start);
        let Some((time, _)) = self.call(libc::SYS_munmap, [address, length, 0, 0, 0]) else {
            panic!("munmap of {range:x?} failed");
        };
        self.record(time, Call::Munmap { address, length });
    }

    fn unmap(&mut self) {
        if let Some(range) = self.take() {
            self.give_back(range);
        }
    }

    /// Grows in place or, more often, moves away and leaves its address to others.
    fn grow(&mut self) {
        let Some(range) = self.take() else { return };
        let (old_address, old_length) = (range.start, range.end - range.start);
        let new_length = old_length + PAGE;
        let flags = libc::MREMAP_MAYMOVE as u32;
        let args = [old_address, old_length, new_length, flags.into(), 0];
        let Some((time, address)) = self.call(libc::SYS_mremap, args) else {
            return self.put(range);
        };
        let call = Call::Mremap {
            old_address,
            old_length,
            new_length,
            flags,
            address,
        };
        self.record(time, call);
        self.put(address..address + new_length);
    }

    fn protect(&mut self) {
        let Some(range) = self.take() else { return };
        let protection = self.protection();
        let (address, length) = (range.start, range.end - range.start);
        let args = [address, length, protection.into(), 0, 0];
        if let Some((time, _)) = self.call(libc::SYS_mprotect, args) {
            let call = Call::Mprotect {
                address,
                length,
                protection,
            };
            self.record(time, call);
        }
        self.put(range);
    }
}

/// Runs the racers against each other. Their events in the order of returning.
fn race(seed: u64, pool: &Pool) -> Vec<Event> {
    let start = Barrier::new(THREADS as usize);
    let mut events = thread::scope(|scope| {
        let racers: Vec<_> = (0..THREADS)
            .map(|tid| {
                let racer = Racer {
                    tid,
                    random: seed * u64::from(THREADS) + u64::from(tid) + 1,
                    pool,
                    events: Vec::new(),
                };
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    racer.run()
                })
            })
            .collect();
        racers
            .into_iter()
            .flat_map(|racer| racer.join().expect("no racer panicked"))
            .collect::<Vec<_>>()
    });
    events.sort_by_key(|event| event.ended_ns);
    events
}

/// Mappings in the arena that returned before the call that had freed their address did.
fn reuses_before_removal(events: &[Event]) -> usize {
    let mut found = 0;
    let mut recent: Vec<(u64, Range<u64>)> = Vec::new();
    for event in events {
        let removed = match event.call {
            Call::Munmap { address, length } => address..address + length,
            Call::Mremap {
                old_address,
                old_length,
                address,
                ..
            } if address != old_address => old_address..old_address + old_length,
            _ => 0..0,
        };
        found += recent
            .iter()
            .filter(|(ended_ns, new)| {
                *ended_ns > event.began_ns && new.start < removed.end && removed.start < new.end
            })
            .count();
        if let Call::Mmap {
            address, length, ..
        } = event.call
            && ARENA.contains(&address)
        {
            recent.push((event.ended_ns, address..address + length));
        }
        let excess = recent.len().saturating_sub(64);
        recent.drain(..excess);
    }
    found
}

#[test]
fn addresses_reused_before_their_removal_returns_stay_with_the_new_owner() {
    let mut reused = 0;
    for seed in 1..=RACES {
        let pool = Pool::default();
        let events = race(seed, &pool);
        let mut space = AddressSpace::empty();
        for event in &events {
            space.apply(event);
        }
        let vmas: Vec<Vma> = smaps(std::process::id() as i32)
            .iter()
            .filter_map(|map| vma_inside(map, &ARENA))
            .collect();
        let before = text(&space);
        let result = compare(&mut space, &vmas);
        assert!(result.agrees(), "{result:?}\n{before}{vmas:#x?}");
        // What was moved must have been found, also from under its new owner.
        let explained = |origin: &Origin| matches!(origin.kind, OriginKind::Mmap { .. });
        assert!(space.origins().iter().all(explained), "seed {seed}");

        let mut sweep = Racer {
            tid: 0,
            random: 1,
            pool: &pool,
            events: Vec::new(),
        };
        while let Some(range) = sweep.take() {
            sweep.give_back(range);
        }
        reused += reuses_before_removal(&events);
        if reused >= ENOUGH && seed >= FEWEST_RACES {
            return;
        }
    }
    panic!("an address was reused early only {reused} times: this proves nothing");
}
