//! The chunks of a heap, as the walk finds them: one or two bytes each, since a program may have millions.

use super::ALIGNMENT;

/// A chunk, as the walk finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub at: u64,
    pub size: u64,
    pub in_use: bool,
}

/// Chunks one behind the other, so only their sizes are written down:
///
/// ```text
/// code     size / ALIGNMENT << 1 | in use, seven bits a byte, low ones first, the highest bit on all but the last
/// ```
#[derive(Debug, Default)]
pub(super) struct Row {
    /// Where the first chunk begins.
    start: u64,
    codes: Vec<u8>,
}

impl Row {
    /// No chunks yet; the first begins here.
    pub fn at(start: u64) -> Row {
        let codes = Vec::new();
        Row { start, codes }
    }

    /// Where the first chunk begins.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The chunk behind the last one. Its size is a multiple of 16 bytes.
    pub fn push(&mut self, size: u64, in_use: bool) {
        debug_assert!(size.is_multiple_of(ALIGNMENT));
        let mut rest = size / ALIGNMENT * 2 + u64::from(in_use);
        while rest >= 0x80 {
            self.codes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.codes.push(rest as u8);
    }

    /// All of them, in address order.
    pub fn iter(&self) -> impl Iterator<Item = Chunk> {
        let mut at = self.start;
        let mut codes = self.codes.iter();
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
                size: word / 2 * ALIGNMENT,
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
    fn chunks_come_back_as_they_were() {
        let mut at = 0x5555_0000_0010;
        let mut row = Row::at(at);
        let mut chunks = Vec::new();
        for index in 0..2000_u64 {
            let size = match index {
                700 => 1 << 40,
                _ => 32 + index % 100 * 16,
            };
            let in_use = index % 3 > 0;
            row.push(size, in_use);
            chunks.push(Chunk { at, size, in_use });
            at += size;
        }
        assert_eq!(row.iter().collect::<Vec<_>>(), chunks);
        assert!(row.codes.len() < 2 * chunks.len() + 8);
    }
}
