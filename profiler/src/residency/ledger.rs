//! The page ledger, read: which pages each address space had at the candidate for the peak.
//!
//! Pure: words of the maps in, ranges out. How the ledger works stands in
//! [`profiler_ebpf::ledger_wire`].

use profiler_ebpf::ledger_wire::{
    CHUNK_BYTES, CHUNK_NUMBER_BITS, CHUNK_WORDS, Chunk, ChunkWords, Space, SpaceWords, State,
    StateWords,
};

use super::ResidentRange;
use super::ranges::push;
use crate::units::PAGE;

/// The ledger at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// The tree.
    pub state: State,
    /// Every address space there ever was.
    pub spaces: Vec<Space>,
    /// Copied chunks of the current epoch, and of the older ones that spaces share, by key.
    chunks: Vec<Chunk>,
    /// Copied chunks of spaces' own epochs, by key.
    own_chunks: Vec<Chunk>,
}

impl Ledger {
    /// Decodes the records of the four maps.
    pub fn decode(
        state: StateWords,
        spaces: impl Iterator<Item = SpaceWords>,
        chunks: impl Iterator<Item = ChunkWords>,
        own_chunks: impl Iterator<Item = ChunkWords>,
    ) -> Ledger {
        let (state, spaces) = (decode_state(state), spaces.map(decode_space).collect());
        let (chunks, own_chunks) = (chunks.map(decode_chunk), own_chunks.map(decode_chunk));
        Ledger::of(state, spaces, chunks, own_chunks)
    }

    /// A ledger of these parts. Chunks of other epochs are left out.
    pub fn of(
        state: State,
        spaces: Vec<Space>,
        chunks: impl IntoIterator<Item = Chunk>,
        own_chunks: impl IntoIterator<Item = Chunk>,
    ) -> Ledger {
        let space = |chunk: &Chunk| spaces.get((chunk.key >> CHUNK_NUMBER_BITS) as usize);
        let is_of = |chunk: &Chunk, epoch: u32| epoch != 0 && chunk.epoch == u64::from(epoch);
        let is_trees = |chunk: &Chunk| {
            let shared = |space: &Space| is_of(chunk, space.own_is_trees);
            is_of(chunk, state.epoch) || space(chunk).is_some_and(shared)
        };
        let is_own =
            |chunk: &Chunk| space(chunk).is_some_and(|space| is_of(chunk, space.own_epoch));
        // Most of a pool may be of other epochs, and is not kept even for a moment.
        let mut chunks: Vec<Chunk> = chunks.into_iter().filter(is_trees).collect();
        let mut own_chunks: Vec<Chunk> = own_chunks.into_iter().filter(is_own).collect();
        chunks.sort_unstable_by_key(|chunk| chunk.key);
        own_chunks.sort_unstable_by_key(|chunk| chunk.key);
        Ledger {
            state,
            spaces,
            chunks,
            own_chunks,
        }
    }

    /// Indices of the address spaces that had pages at the candidate.
    pub fn at_candidate(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.spaces.len()).filter(|&index| {
            let space = &self.spaces[index];
            let epoch = self.state.epoch;
            let ended_before = space.users == 0 && space.ended_epoch < epoch;
            epoch != 0 && space.born_epoch < epoch && !ended_before
        })
    }

    /// Resident ranges of a space at the tree's candidate, in address order.
    ///
    /// `now` is what the page tables hold, in address order; it must have been read *before* the
    /// ledger was: a chunk that changed in between is then among the copied ones, which win. For a
    /// space that has ended it is empty. Whether a page is a file's is not told for copied chunks.
    pub fn resident(&self, index: usize, now: &[ResidentRange]) -> Vec<ResidentRange> {
        let chunks = of_space(&self.chunks, index).iter();
        overlay(
            chunks.filter(|chunk| chunk.epoch == u64::from(self.state.epoch)),
            now,
        )
    }

    /// The same at the space's own candidate.
    pub fn resident_at_own(&self, index: usize, now: &[ResidentRange]) -> Vec<ResidentRange> {
        let own = of_space(&self.own_chunks, index);
        let is_own = |key| own.binary_search_by_key(&key, |chunk| chunk.key).is_ok();
        let epoch = u64::from(self.spaces[index].own_is_trees);
        let shared = of_space(&self.chunks, index)
            .iter()
            .filter(|chunk| epoch != 0 && chunk.epoch == epoch && !is_own(chunk.key));
        let mut chunks: Vec<&Chunk> = own.iter().chain(shared).collect();
        chunks.sort_unstable_by_key(|chunk| chunk.key);
        overlay(chunks.into_iter(), now)
    }
}

/// Those of one space, in a list by key.
fn of_space(chunks: &[Chunk], index: usize) -> &[Chunk] {
    let first = |index: usize| {
        chunks.partition_point(|chunk| chunk.key >> CHUNK_NUMBER_BITS < index as u64)
    };
    &chunks[first(index)..first(index + 1)]
}

/// What the chunks hold, which come in address order, and where there is none, what the page tables hold.
fn overlay<'a>(
    chunks: impl Iterator<Item = &'a Chunk>,
    now: &[ResidentRange],
) -> Vec<ResidentRange> {
    let mut resident = Vec::new();
    let mut rest = Rest { now, from: 0 };
    for chunk in chunks {
        let start = (chunk.key & ((1 << CHUNK_NUMBER_BITS) - 1)) * CHUNK_BYTES;
        rest.until(start, &mut resident);
        rest.from = start + CHUNK_BYTES;
        for (from, to) in runs(&chunk.bits) {
            push(&mut resident, start + from * PAGE, start + to * PAGE, false);
        }
    }
    rest.until(u64::MAX, &mut resident);
    resident
}

/// What the page tables hold, from an address on.
struct Rest<'a> {
    now: &'a [ResidentRange],
    from: u64,
}

impl Rest<'_> {
    fn until(&mut self, end: u64, into: &mut Vec<ResidentRange>) {
        for range in super::ranges::clip(self.now, self.from, end) {
            push(into, range.start, range.end, range.file);
        }
    }
}

/// Runs of set bits: first, one past the last.
fn runs(bits: &[u64; CHUNK_WORDS]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (index, &word) in bits.iter().enumerate() {
        let mut rest = word;
        while rest != 0 {
            let from = u64::from(rest.trailing_zeros());
            let length = u64::from((!(rest >> from)).trailing_zeros());
            let start = index as u64 * 64 + from;
            match runs.last_mut() {
                Some(last) if last.1 == start => last.1 += length,
                _ => runs.push((start, start + length)),
            }
            rest = if from + length >= 64 {
                0
            } else {
                rest & (u64::MAX << (from + length))
            };
        }
    }
    runs
}

/// The two halves of a word, in the order in which a struct has them.
fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

fn decode_chunk([key, epoch, begun, taken, bits @ ..]: ChunkWords) -> Chunk {
    Chunk {
        key,
        epoch,
        begun,
        taken,
        bits,
    }
}

/// The one [`State`].
pub fn decode_state([first, spaces, rest @ ..]: StateWords) -> State {
    let (epoch, growing_in) = halves(first);
    let [
        candidate_pages,
        candidate_ns,
        highest_pages,
        highest_ns,
        rest @ ..,
    ] = rest;
    let [
        chunks,
        pool_full,
        spaces_full,
        unreadable,
        unseen_removals,
        copies,
        removals,
        own_chunks,
        stamp,
        apart,
    ] = rest;
    State {
        epoch,
        growing_in,
        spaces,
        candidate_pages,
        candidate_ns,
        highest_pages,
        highest_ns,
        chunks,
        pool_full,
        spaces_full,
        unreadable,
        unseen_removals,
        copies,
        removals,
        own_chunks,
        stamp,
        apart,
    }
}

/// A space of the map, from its words.
pub fn decode_space(words: SpaceWords) -> Space {
    let [
        mm,
        pgd,
        candidate_pages,
        candidate_table_bytes,
        candidate_mappings,
        rest @ ..,
    ] = words;
    let [
        pages,
        highest_pages,
        highest_ns,
        start_stack,
        who,
        when,
        own @ ..,
    ] = rest;
    let ((tgid, users), (born_epoch, ended_epoch)) = (halves(who), halves(when));
    let [own_pages, own_ns, own_epochs, own_rest] = own;
    let ((own_epoch, own_growing_in), (own_is_trees, own_lost)) =
        (halves(own_epochs), halves(own_rest));
    Space {
        mm,
        pgd,
        candidate_pages,
        candidate_table_bytes,
        candidate_mappings,
        pages,
        highest_pages,
        highest_ns,
        start_stack,
        tgid,
        users,
        born_epoch,
        ended_epoch,
        own_pages,
        own_ns,
        own_epoch,
        own_growing_in,
        own_is_trees,
        own_lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ResidentRange {
        ResidentRange {
            start,
            end,
            file: false,
        }
    }

    fn chunk(space: u64, number: u64, epoch: u64, bits: [u64; CHUNK_WORDS]) -> Chunk {
        Chunk {
            key: space << CHUNK_NUMBER_BITS | number,
            epoch,
            begun: epoch,
            taken: 1,
            bits,
        }
    }

    fn ledger(chunks: &[Chunk]) -> Ledger {
        let mut state = StateWords::default();
        state[0] = 7;
        let mut pool = Vec::new();
        for chunk in chunks {
            let mut words = ChunkWords::default();
            words[..4].copy_from_slice(&[chunk.key, chunk.epoch, chunk.begun, chunk.taken]);
            words[4..].copy_from_slice(&chunk.bits);
            pool.push(words);
        }
        let (spaces, own) = (std::iter::empty(), std::iter::empty());
        Ledger::decode(state, spaces, pool.into_iter(), own)
    }

    #[test]
    fn a_copied_chunk_wins_over_what_is_there_now() {
        //  now      |---- chunk 1 ----|---- chunk 2 ----|     (all resident)
        //  copied                      two pages, 64 apart; space 1 and an old epoch do not count
        let mut bits = [0; CHUNK_WORDS];
        bits[0] = 1 << 63;
        bits[1] = 1;
        bits[7] = 1 << 63;
        let ledger = ledger(&[
            chunk(1, 1, 7, [u64::MAX; 8]),
            chunk(0, 2, 7, bits),
            chunk(0, 1, 6, [0; 8]),
        ]);
        let two = CHUNK_BYTES * 2;
        assert_eq!(
            ledger.resident(0, &[range(CHUNK_BYTES, CHUNK_BYTES * 3)]),
            [
                range(CHUNK_BYTES, two),
                range(two + 63 * PAGE, two + 65 * PAGE),
                range(two + 511 * PAGE, two + 512 * PAGE),
            ]
        );
        assert_eq!(ledger.resident(1, &[]), [range(CHUNK_BYTES, two)]);
        assert_eq!(ledger.resident(2, &[]), []);
    }

    #[test]
    fn at_its_own_candidate_a_space_has_its_own_chunks_and_shared_ones_and_the_rest() {
        //  chunk     1                2                  3            4
        //  tree's    epoch 5: page 1  epoch 5: page 2    epoch 7: 0   -
        //  own       epoch 3: page 9  epoch 2: page 8    -            epoch 3: page 7
        //  now       nothing          nothing            all          all
        let one = |bit: u32| [1 << bit, 0, 0, 0, 0, 0, 0, 0];
        let state = State {
            epoch: 7,
            ..State::default()
        };
        let space = Space {
            own_epoch: 3,
            own_is_trees: 5,
            ..Space::default()
        };
        let trees = [
            chunk(1, 1, 5, one(1)),
            chunk(1, 2, 5, one(2)),
            chunk(1, 3, 7, one(0)),
        ];
        let own = [
            chunk(1, 4, 3, one(7)),
            chunk(1, 1, 3, one(9)),
            chunk(1, 2, 2, one(8)),
        ];
        let ledger = Ledger::of(state, vec![Space::default(), space], trees, own);
        let page = |number: u64, page: u64| {
            let start = number * CHUNK_BYTES + page * PAGE;
            range(start, start + PAGE)
        };
        let all = range(3 * CHUNK_BYTES, 5 * CHUNK_BYTES);
        let whole = range(3 * CHUNK_BYTES, 4 * CHUNK_BYTES);
        assert_eq!(
            ledger.resident_at_own(1, &[all]),
            [page(1, 9), page(2, 2), whole, page(4, 7)]
        );
        assert_eq!(ledger.resident_at_own(0, &[]), []);
        // What is of the tree's candidate is so still.
        assert_eq!(
            ledger.resident(1, &[all]),
            [page(3, 0), range(4 * CHUNK_BYTES, 5 * CHUNK_BYTES)]
        );
    }

    #[test]
    fn runs_cross_words_and_end_at_the_last_bit() {
        assert_eq!(runs(&[u64::MAX; 8]), [(0, 512)]);
        assert_eq!(runs(&[0; 8]), []);
        assert_eq!(
            runs(&[0b1011, 0, 0, 0, 0, 0, 0, 1 << 63]),
            [(0, 2), (3, 4), (511, 512)]
        );
    }

    #[test]
    fn only_spaces_that_lived_at_the_candidate_count() {
        let mut ledger = ledger(&[]);
        let space = |users, born_epoch, ended_epoch| Space {
            users,
            born_epoch,
            ended_epoch,
            ..Space::default()
        };
        ledger.spaces = vec![
            space(1, 0, 0),
            space(1, 7, 0),
            space(0, 3, 6),
            space(0, 3, 7),
            // Ended before there was any candidate.
            space(0, 0, 0),
        ];
        assert_eq!(ledger.at_candidate().collect::<Vec<_>>(), [0, 3]);
    }
}
