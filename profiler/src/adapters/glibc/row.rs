//! The chunks of all heaps, as the walk finds them: one or two bytes each, since a program may have millions.

/// A chunk, as the walk finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub at: u64,
    pub size: u64,
    pub in_use: bool,
}

/// Chunks in address order. Where one begins behind the one before it, only its size is written down:
///
/// ```text
/// code     size / UNIT << 1 | in use, seven bits a byte, low ones first, the highest bit on all but the last
/// ```
#[derive(Debug, Default)]
pub(super) struct Row {
    codes: Vec<u8>,
    marks: Vec<Mark>,
    /// One past the last chunk.
    end: u64,
    /// Chunks since the last mark.
    unmarked: u32,
}

/// A place from which codes can be read.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Where the chunk begins.
    at: u64,
    /// Index of its first code.
    code: usize,
}

/// All sizes are multiples of it (`MALLOC_ALIGNMENT`, malloc/malloc.c).
const UNIT: u64 = super::ALIGNMENT;
/// Chunks from one mark to the next at most: what a search decodes. A mark takes 16 bytes, half a byte a chunk.
const BETWEEN_MARKS: u32 = 32;

impl Row {
    /// The next chunk, whose size is a multiple of 16 bytes.
    pub fn push(&mut self, chunk: Chunk) {
        debug_assert!(chunk.size.is_multiple_of(UNIT) && chunk.at >= self.end);
        if chunk.at != self.end || self.unmarked == BETWEEN_MARKS || self.marks.is_empty() {
            self.unmarked = 0;
            self.marks.push(Mark {
                at: chunk.at,
                code: self.codes.len(),
            });
        }
        let mut rest = chunk.size / UNIT * 2 + u64::from(chunk.in_use);
        while rest >= 0x80 {
            self.codes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.codes.push(rest as u8);
        self.unmarked += 1;
        self.end = chunk.at + chunk.size;
    }

    /// All of them, in address order.
    pub fn iter(&self) -> impl Iterator<Item = Chunk> {
        (0..self.marks.len()).flat_map(|mark| self.behind_mark(mark))
    }

    /// The chunk that begins at this address.
    pub fn find(&self, at: u64) -> Option<Chunk> {
        let behind = self.marks.partition_point(|mark| mark.at <= at);
        let mut chunks = self.behind_mark(behind.checked_sub(1)?);
        chunks.find(|chunk| chunk.at == at)
    }

    /// From one mark to the next.
    fn behind_mark(&self, mark: usize) -> impl Iterator<Item = Chunk> {
        let Mark { mut at, code } = self.marks[mark];
        let next = self.marks.get(mark + 1);
        let end = next.map_or(self.codes.len(), |next| next.code);
        let mut codes = self.codes[code..end].iter();
        std::iter::from_fn(move || {
            let (mut word, mut shift) = (0, 0);
            loop {
                let code = codes.next()?;
                word |= u64::from(code & 0x7f) << shift;
                shift += 7;
                if code & 0x80 == 0 {
                    break;
                }
            }
            let chunk = Chunk {
                at,
                size: word / 2 * UNIT,
                in_use: word & 1 == 1,
            };
            at += chunk.size;
            Some(chunk)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_back_as_they_were_and_are_found_by_their_address() {
        let mut row = Row::default();
        let mut chunks = Vec::new();
        let mut at = 0x5555_0000_0010;
        for index in 0..2000_u64 {
            let size = match index {
                700 => 1 << 40,
                _ => 32 + index % 100 * 16,
            };
            chunks.push(Chunk {
                at,
                size,
                in_use: index % 3 > 0,
            });
            // A hole where another heap begins.
            at += size + if index == 1234 { 1 << 26 } else { 0 };
        }
        chunks.iter().for_each(|&chunk| row.push(chunk));
        assert_eq!(row.iter().collect::<Vec<_>>(), chunks);
        for &chunk in &chunks {
            assert_eq!(row.find(chunk.at), Some(chunk));
            assert_eq!(row.find(chunk.at + 16), None);
        }
        assert_eq!(row.find(0), None);
        assert!(row.codes.len() < 2 * chunks.len() + 8);
    }
}
