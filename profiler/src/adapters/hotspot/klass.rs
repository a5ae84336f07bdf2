//! Objects: which class the header of one names, and with it how long the object is.
//!
//! ```text
//! at        mark word (8 bytes)
//! at + 8    narrow class pointer (4)     | class pointer (8)       | compact headers: it is in the mark word
//! at + 12   length of an array (4)       | at + 16: length (4)     | at + 8: length (4)
//! ```
//!
//! A class tells in its *layout helper* (`Klass::_layout_helper`, hotspot/share/oops/klass.hpp) how long its
//! instances are, or how long the header and the elements of an array are. Two kinds of instances have a
//! length of their own: classes themselves (`java.lang.Class`), and the stacks of virtual threads.

use std::{cell::RefCell, collections::HashMap};

use super::tables::{Flags, Tables};
use crate::adapters::view::View;
use crate::adapters::{Refusal, memory::Words};

/// Bytes of a word.
pub const WORD: u64 = 8;

/// How a class is found in an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Header {
    /// `-XX:+UseCompactObjectHeaders` (JDK 24): in the upper bits of the mark word.
    Compact { shift: u32 },
    /// `-XX:+UseCompressedClassPointers`, the default.
    Narrow,
    /// `-XX:-UseCompressedClassPointers`
    Wide,
}

/// How long the objects of a class are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// All the same, in bytes.
    Fixed(u64),
    /// Bytes before the elements, and the logarithm of the bytes of one.
    Array { header: u64, log2: u32 },
    /// `java.lang.Class`: words, in the field at this offset.
    Mirror { words_at: u64 },
    /// `jdk.internal.vm.StackChunk`.
    StackChunk(ChunkLayout),
}

/// What objects of a class are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// How long they are.
    pub length: Length,
    /// They only fill gaps, so that a heap can be walked.
    pub is_filler: bool,
}

/// Where `jdk.internal.vm.StackChunk` has its fields, in bytes from the start of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLayout {
    /// Words that the chunk has for frames.
    size_at: u64,
    /// Index of the first word in use.
    sp_at: u64,
    /// The first word for frames.
    stack_at: u64,
}

/// One object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Bytes.
    pub bytes: u64,
    /// It only fills a gap.
    pub is_filler: bool,
    /// Of a chunk of a stack: its frames, from the first byte in use.
    pub frames: Option<(u64, u64)>,
}

/// How the header of an object leads to its class, and where that says how long the object is.
#[derive(Clone, Copy)]
pub struct Headers<'a> {
    tables: &'a Tables,
    header: Header,
    base: u64,
    shift: u32,
    alignment: u64,
    /// Bits of the bitmap of a stack chunk for one word.
    bits_a_word: u64,
    layout_helper: u64,
    name: u64,
    symbol_length: u64,
    symbol_body: u64,
    slow_path: u32,
    header_shift: u32,
    header_mask: u32,
    log2_shift: u32,
    log2_mask: u32,
    mirror_words_at: u64,
}

/// Knows the classes.
pub struct Classes<'a> {
    view: &'a View<'a>,
    headers: &'a Headers<'a>,
    /// By the class pointer as the header has it. The array answers nearly all questions.
    known: RefCell<HashMap<u64, Class>>,
    recent: RefCell<Vec<(u64, Class)>>,
}

/// Classes kept at hand.
const RECENT: usize = 1024;
/// The longest instance that is believed, in bytes. A class has at most 65,535 fields of 8 bytes.
const LONGEST_INSTANCE: u64 = 1 << 20;

impl<'a> Headers<'a> {
    /// Learns it from the tables.
    pub fn read(view: &View, tables: &'a Tables, flags: &Flags) -> Result<Headers<'a>, Refusal> {
        let header = if flags.is_set(view, "UseCompactObjectHeaders")? {
            let shift = tables.constant(&["markWord::klass_shift"])?;
            let shift = u32::try_from(shift).ok().filter(|&shift| shift < 64);
            Header::Compact {
                shift: shift.ok_or_else(|| Refusal("markWord::klass_shift is no shift".into()))?,
            }
        } else if flags.is_set(view, "UseCompressedClassPointers")? {
            Header::Narrow
        } else {
            Header::Wide
        };
        let (mut base, mut shift) = (0, 0);
        if header != Header::Wide {
            const OWNER: &str = "CompressedKlassPointers";
            base = view.u64(tables.global(OWNER, &["_base", "_narrow_klass._base"])?)?;
            shift = view.u32(tables.global(OWNER, &["_shift", "_narrow_klass._shift"])?)?;
            if shift > 16 {
                return Err(Refusal(format!("class pointers are shifted by {shift}")));
            }
        }
        let alignment = u64::from(flags.int(view, "ObjectAlignmentInBytes")?);
        if !alignment.is_power_of_two() || !(8..=256).contains(&alignment) {
            return Err(Refusal(format!(
                "objects at multiples of {alignment} bytes"
            )));
        }
        let small = |names: &[&str], most: u32| {
            let value = tables.constant(names)?;
            let value = u32::try_from(value).ok().filter(|&value| value <= most);
            value.ok_or_else(|| Refusal(format!("{} is too large", names.join("|"))))
        };
        let mirror = view.u32(tables.global("java_lang_Class", &["_oop_size_offset"])?)?;
        Ok(Headers {
            tables,
            header,
            base,
            shift,
            alignment,
            bits_a_word: match flags.is_set(view, "UseCompressedOops")? {
                true => 2,
                false => 1,
            },
            layout_helper: tables.offset(&["Klass"], &["_layout_helper"])?,
            name: tables.offset(&["Klass"], &["_name"])?,
            symbol_length: tables.offset(&["Symbol"], &["_length"])?,
            symbol_body: tables.offset(&["Symbol"], &["_body[0]", "_body"])?,
            slow_path: small(&["Klass::_lh_instance_slow_path_bit"], 7)?,
            header_shift: small(&["Klass::_lh_header_size_shift"], 31)?,
            header_mask: small(&["Klass::_lh_header_size_mask"], 0xffff)?,
            log2_shift: small(&["Klass::_lh_log2_element_size_shift"], 31)?,
            log2_mask: small(&["Klass::_lh_log2_element_size_mask"], 0xff)?,
            mirror_words_at: u64::from(mirror),
        })
    }

    /// What they were read from.
    pub fn tables(&self) -> &'a Tables {
        self.tables
    }

    /// Objects lie at multiples of this.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }
}

impl<'a> Classes<'a> {
    /// None is known yet.
    pub fn new(view: &'a View<'a>, headers: &'a Headers<'a>) -> Classes<'a> {
        Classes {
            view,
            headers,
            known: RefCell::default(),
            recent: RefCell::new(vec![(u64::MAX, NO_CLASS); RECENT]),
        }
    }

    /// The object at `at`; `word` reads a word of the heap.
    pub fn object(
        &self,
        at: u64,
        mut word: impl FnMut(u64) -> Result<u64, Refusal>,
    ) -> Result<Object, Refusal> {
        // The word behind the mark word is read in any case: no object ends before it.
        let second = word(at.wrapping_add(WORD))?;
        let (pointer, length) = match self.headers.header {
            Header::Compact { shift } => (word(at)? >> shift, second & 0xffff_ffff),
            Header::Narrow => (second & 0xffff_ffff, second >> 32),
            // Of an array alone; other objects may end here.
            Header::Wide => (second, 0),
        };
        let class = self.class(pointer)?;
        let mut half = |offset: u64| {
            let place = at.wrapping_add(offset);
            let word = word(place & !(WORD - 1))?;
            Ok::<u64, Refusal>(word >> (8 * (place % WORD)) & 0xffff_ffff)
        };
        let mut frames = None;
        let bytes = match class.length {
            Length::Fixed(bytes) => Some(bytes),
            Length::Array { header, log2 } => {
                let length = match self.headers.header {
                    Header::Wide => half(2 * WORD)?,
                    _ => length,
                };
                (length <= i32::MAX as u64).then(|| header + (length << log2))
            }
            Length::Mirror { words_at } => Some(half(words_at)? * WORD),
            Length::StackChunk(layout) => {
                let (size, sp) = (half(layout.size_at)?, half(layout.sp_at)?);
                if size > i32::MAX as u64 || sp > size {
                    return Err(Refusal(format!(
                        "the stack chunk at {at:#x} cannot have {size} words, and word {sp} in use"
                    )));
                }
                let start = at.wrapping_add(layout.stack_at);
                frames = Some((
                    start.wrapping_add(sp * WORD),
                    start.wrapping_add(size * WORD),
                ));
                // instanceStackChunkKlass.inline.hpp: the fields, the words, and a bit for each place that
                // may hold a reference.
                let bitmap = (size * self.headers.bits_a_word).div_ceil(64);
                Some(layout.stack_at + (size + bitmap) * WORD)
            }
        };
        let bytes = bytes
            .map(|bytes| bytes.next_multiple_of(self.headers.alignment))
            .filter(|&bytes| bytes >= 2 * WORD || bytes == self.headers.alignment)
            .ok_or_else(|| Refusal(format!("the object at {at:#x} has no possible length")))?;
        Ok(Object {
            bytes,
            is_filler: class.is_filler,
            frames,
        })
    }

    fn class(&self, pointer: u64) -> Result<Class, Refusal> {
        // Classes lie at multiples of 8 bytes at least, and mostly of more.
        let slot = ((pointer >> 3) ^ (pointer >> 10)) as usize % RECENT;
        let (recent, class) = self.recent.borrow()[slot];
        if recent == pointer {
            return Ok(class);
        }
        let known = self.known.borrow().get(&pointer).copied();
        let class = match known {
            Some(class) => class,
            None => {
                let class = self.learn(pointer)?;
                self.known.borrow_mut().insert(pointer, class);
                class
            }
        };
        self.recent.borrow_mut()[slot] = (pointer, class);
        Ok(class)
    }

    fn learn(&self, pointer: u64) -> Result<Class, Refusal> {
        let klass = self
            .headers
            .base
            .wrapping_add(pointer << self.headers.shift);
        let at = |offset: u64| klass.wrapping_add(offset);
        let no_class = || Refusal(format!("there is no class at {klass:#x}"));
        let readable = |_| no_class();
        if pointer == 0 || !klass.is_multiple_of(WORD) {
            return Err(no_class());
        }
        let helper = self
            .view
            .u32(at(self.headers.layout_helper))
            .map_err(readable)?;
        let symbol = self.view.u64(at(self.headers.name)).map_err(readable)?;
        let name = self.symbol(symbol).map_err(|_| no_class())?;
        let is_filler =
            name == "jdk/internal/vm/FillerObject" || name == "[Ljdk/internal/vm/FillerElement;";
        let is_array = helper.cast_signed() < 0;
        let length = if is_array != name.starts_with('[') {
            return Err(no_class());
        } else if is_array {
            let header = helper >> self.headers.header_shift & self.headers.header_mask;
            let log2 = helper >> self.headers.log2_shift & self.headers.log2_mask;
            if !(8..=32).contains(&header) || log2 > 3 {
                return Err(no_class());
            }
            Length::Array {
                header: u64::from(header),
                log2,
            }
        } else {
            let bytes = u64::from(helper & !self.headers.slow_path);
            if bytes == 0 || bytes > LONGEST_INSTANCE || !bytes.is_multiple_of(WORD) {
                return Err(no_class());
            }
            match name.as_str() {
                "java/lang/Class" => Length::Mirror {
                    words_at: self.headers.mirror_words_at,
                },
                "jdk/internal/vm/StackChunk" => {
                    Length::StackChunk(self.chunk_layout(klass, bytes)?)
                }
                _ => Length::Fixed(bytes),
            }
        };
        Ok(Class { length, is_filler })
    }

    /// A `Symbol` (hotspot/share/oops/symbol.hpp): a length of two bytes, and the text.
    fn symbol(&self, address: u64) -> Result<String, Refusal> {
        let length = self
            .view
            .u16(address.wrapping_add(self.headers.symbol_length))?;
        let mut text = vec![0; usize::from(length)];
        self.view
            .read(address.wrapping_add(self.headers.symbol_body), &mut text)?;
        let text = String::from_utf8(text).ok();
        text.filter(|text| !text.is_empty() && !text.contains('\0'))
            .ok_or_else(|| Refusal(format!("the symbol at {address:#x} is no text")))
    }

    /// Where the fields of a stack chunk are, from the class's own list of fields: since JDK 21 a stream of
    /// compressed numbers (hotspot/share/oops/fieldInfo.hpp, `FieldInfoStream`; the numbers:
    /// hotspot/share/utilities/unsigned5.hpp):
    ///
    /// ```text
    /// declared fields, injected fields, then for each: name, signature, offset, access, flags,
    ///   initial value (if flag 0 is set), generic signature (flag 2), group (flag 4)
    /// ```
    fn chunk_layout(&self, klass: u64, bytes: u64) -> Result<ChunkLayout, Refusal> {
        let tables = self.headers.tables;
        let owner = ["InstanceKlass"];
        let stream = tables.offset(&owner, &["_fieldinfo_stream"])?;
        let stream = self.view.u64(klass.wrapping_add(stream))?;
        let constants = tables.offset(&owner, &["_constants"])?;
        let constants = self.view.u64(klass.wrapping_add(constants))?;
        let entries = constants.wrapping_add(tables.size("ConstantPool")?);
        let length = tables.offset(&["Array<Klass*>", "Array<u1>"], &["_length"])?;
        let length = self.view.u32(stream.wrapping_add(length))?;
        let refusal = || {
            Refusal(format!(
                "the fields of StackChunk at {stream:#x} are unreadable"
            ))
        };
        if length > 4096 {
            return Err(refusal());
        }
        let mut list = vec![0; length as usize];
        let data = tables.offset(&["Array<u1>"], &["_data"])?;
        self.view.read(stream.wrapping_add(data), &mut list)?;
        let bit = |name: &str| {
            let bit = tables.constant(&[&format!("FieldInfo::FieldFlags::_ff_{name}")])?;
            let bit = u32::try_from(bit).ok().filter(|&bit| bit < 32);
            Ok::<u32, Refusal>(1 << bit.ok_or_else(refusal)?)
        };
        let injected = bit("injected")?;
        let optional = [bit("initialized")?, bit("generic")?, bit("contended")?];

        let mut list = list.as_slice();
        let mut next = || unsigned5(&mut list).ok_or_else(refusal);
        let fields = u64::from(next()?) + u64::from(next()?);
        let mut found = [None, None];
        for _ in 0..fields {
            let (name, _signature, offset) = (next()?, next()?, next()?);
            let (_access, flags) = (next()?, next()?);
            for _ in optional.iter().filter(|&&bit| flags & bit != 0) {
                next()?;
            }
            if flags & injected != 0 {
                continue;
            }
            let entry = entries.wrapping_add(u64::from(name) * WORD);
            let name = self.symbol(self.view.u64(entry)?)?;
            for (wanted, found) in ["size", "sp"].iter().zip(&mut found) {
                if name == *wanted {
                    *found = Some(u64::from(offset));
                }
            }
        }
        let inside = |offset: &u64| offset.is_multiple_of(4) && offset + 4 <= bytes;
        match found.map(|offset| offset.filter(inside)) {
            [Some(size_at), Some(sp_at)] => Ok(ChunkLayout {
                size_at,
                sp_at,
                stack_at: bytes,
            }),
            _ => Err(Refusal("StackChunk has no fields size and sp".into())),
        }
    }
}

/// Stands in the place of no class.
const NO_CLASS: Class = Class {
    length: Length::Fixed(0),
    is_filler: false,
};

/// Takes one number from a stream: bytes from 192 on say that another follows, which counts 64 times as much;
/// zero is no byte of a number.
fn unsigned5(list: &mut &[u8]) -> Option<u32> {
    let mut sum = 0_u32;
    for place in 0..5 {
        let (&byte, rest) = list.split_first()?;
        *list = rest;
        let digit = u32::from(byte).checked_sub(1)?;
        sum = sum.wrapping_add(digit << (6 * place));
        if byte < 192 {
            break;
        }
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_stream_have_one_to_five_bytes() {
        // unsigned5.hpp: up to 0xBE in one byte, 0x307E in two, then all of 32 bits.
        let cases: [(&[u8], Option<u32>); 6] = [
            (&[1], Some(0)),
            (&[191], Some(0xbe)),
            (&[192, 1], Some(0xbf)),
            (&[255, 191], Some(0x307e)),
            (&[0], None),
            (&[200], None),
        ];
        for (bytes, number) in cases {
            assert_eq!(unsigned5(&mut &bytes[..]), number, "{bytes:?}");
        }
        assert_eq!(unsigned5(&mut &[255; 9][..]).map(|_| ()), Some(()));
    }
}
