//! Offsets of struct members from the kernel's own type information (`/sys/kernel/btf/vmlinux`).
//!
//! Rust has no CO-RE, so offsets are read here and set in the object at load. The format is that of
//! the kernel's `Documentation/bpf/btf.rst`; only what is asked for is parsed.

use std::{collections::HashMap, fs, io};

use thiserror::Error;

/// Where the kernel shows its types.
const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u32 = 0xeb9f;

/// Why an offset is not known.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The kernel shows no type information.
    #[error("cannot read {PATH} (the kernel needs CONFIG_DEBUG_INFO_BTF): {0}")]
    Read(#[from] io::Error),
    /// The bytes are not BTF.
    #[error("{PATH} is damaged: {0}")]
    Malformed(&'static str),
    /// The kernel's types lack something.
    #[error("the kernel has no `{0}`")]
    Missing(String),
}

/// Kinds of types (`include/uapi/linux/btf.h`).
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const ENUM64: u32 = 19;
}

/// One type: where it stands in the section.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    size_or_type: u32,
    /// Offset of what follows the three words.
    rest: usize,
}

impl Type {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }
    fn count(self) -> usize {
        (self.info & 0xffff) as usize
    }
}

/// The kernel's types.
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    types: Vec<Type>,
    structs: HashMap<String, u32>,
}

impl Btf {
    /// Those of the running kernel.
    pub fn of_kernel() -> Result<Btf, BtfError> {
        Btf::parse(fs::read(PATH)?)
    }

    fn parse(bytes: Vec<u8>) -> Result<Btf, BtfError> {
        let header = |at| word(&bytes, at).ok_or(BtfError::Malformed("too short"));
        if header(0)? & 0xffff != MAGIC {
            return Err(BtfError::Malformed("wrong magic"));
        }
        let length = header(4)? as usize;
        let (start, size) = (length + header(8)? as usize, header(12)? as usize);
        let strings = length + header(16)? as usize;
        let mut types = vec![Type {
            name: 0,
            info: 0,
            size_or_type: 0,
            rest: 0,
        }];
        let mut at = start;
        while at < start + size {
            let found = Type {
                name: header(at)?,
                info: header(at + 4)?,
                size_or_type: header(at + 8)?,
                rest: at + 12,
            };
            at += 12
                + match found.kind() {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * found.count(),
                    kind::ENUM | kind::FUNC_PROTO => 8 * found.count(),
                    _ => 0,
                };
            types.push(found);
        }
        let mut btf = Btf {
            bytes,
            strings,
            types,
            structs: HashMap::new(),
        };
        let named = |&(_, found): &(usize, &Type)| {
            matches!(found.kind(), kind::STRUCT | kind::TYPEDEF) && found.name != 0
        };
        let structs: HashMap<String, u32> = btf
            .types
            .iter()
            .enumerate()
            .filter(named)
            .map(|(id, found)| (btf.string(found.name), id as u32))
            .collect();
        btf.structs = structs;
        Ok(btf)
    }

    fn string(&self, offset: u32) -> String {
        let from = self
            .bytes
            .get(self.strings + offset as usize..)
            .unwrap_or_default();
        let text = from.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    fn find(&self, name: &str) -> Result<Type, BtfError> {
        let id = self
            .structs
            .get(name)
            .ok_or_else(|| BtfError::Missing(name.to_owned()))?;
        Ok(self.types[*id as usize])
    }

    /// Size of a struct, in bytes.
    pub fn size_of(&self, name: &str) -> Result<u64, BtfError> {
        Ok(u64::from(self.find(name)?.size_or_type))
    }

    /// Offset of a member, in bytes. Members of unnamed structs inside count as the struct's own.
    pub fn offset_of(&self, name: &str, member: &str) -> Result<u64, BtfError> {
        self.bits_of(self.find(name)?, member)
            .map(|bits| bits / 8)
            .ok_or_else(|| BtfError::Missing(format!("{name}.{member}")))
    }

    fn bits_of(&self, found: Type, member: &str) -> Option<u64> {
        (0..found.count()).find_map(|index| {
            let at = found.rest + 12 * index;
            let (name, id, offset) = (
                word(&self.bytes, at)?,
                word(&self.bytes, at + 4)?,
                word(&self.bytes, at + 8)?,
            );
            // With the highest bit of `info`, the upper eight bits are the size of a bit field.
            let offset = u64::from(if found.info >> 31 == 1 {
                offset & 0xff_ffff
            } else {
                offset
            });
            if name != 0 {
                return (self.string(name) == member).then_some(offset);
            }
            let inner = *self.types.get(id as usize)?;
            if !matches!(inner.kind(), kind::STRUCT | kind::UNION) {
                return None;
            }
            self.bits_of(inner, member).map(|bits| bits + offset)
        })
    }

    /// Number of arguments of a function of the kernel, if it has one of that name.
    pub fn function_arguments(&self, name: &str) -> Option<usize> {
        let named = |found: &&Type| found.kind() == kind::FUNC && self.string(found.name) == name;
        let function = self.types.iter().find(named)?;
        let prototype = self.types.get(function.size_or_type as usize)?;
        (prototype.kind() == kind::FUNC_PROTO).then(|| prototype.count())
    }

    /// Number of arguments of a tracepoint.
    pub fn tracepoint_arguments(&self, name: &str) -> Result<usize, BtfError> {
        let name = format!("btf_trace_{name}");
        let missing = || BtfError::Missing(name.clone());
        let mut found = self.find(&name)?;
        while matches!(found.kind(), kind::TYPEDEF | kind::PTR) {
            found = *self
                .types
                .get(found.size_or_type as usize)
                .ok_or_else(missing)?;
        }
        if found.kind() != kind::FUNC_PROTO {
            return Err(missing());
        }
        // The first is the probe's own data.
        Ok(found.count().saturating_sub(1))
    }

    /// Whether the memory of an ending process is still there when `sched_process_exit` fires: since Linux
    /// 6.16, with which the tracepoint got its second argument.
    pub fn memory_is_there_at_exit(&self) -> Result<bool, BtfError> {
        Ok(self.tracepoint_arguments("sched_process_exit")? >= 2)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct outer { int a; struct { int b; }; int c: 3; }
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0";
        let types: &[u32] = &[
            1,
            kind::INT << 24,
            4,
            32, // 1
            0,
            kind::STRUCT << 24 | 1,
            4,
            13,
            1,
            0, // 2, unnamed: b
            5,
            1 << 31 | kind::STRUCT << 24 | 3,
            12,
            11,
            1,
            0,
            0,
            2,
            32,
            15,
            1,
            3 << 24 | 64, // 3
            0,
            kind::FUNC_PROTO << 24 | 2,
            0,
            11,
            1,
            13,
            1, // 4: (int a, int b)
            5,
            kind::FUNC << 24,
            4, // 5: outer()
        ];
        let mut bytes = Vec::new();
        for value in [
            MAGIC | 1 << 16,
            24,
            0,
            types.len() as u32 * 4,
            types.len() as u32 * 4,
            strings.len() as u32,
        ] {
            bytes.extend(value.to_le_bytes());
        }
        types
            .iter()
            .for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn offsets_reach_into_unnamed_structs_and_bit_fields() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.size_of("outer").unwrap(), 12);
        let offsets = ["a", "b", "c"].map(|member| btf.offset_of("outer", member).unwrap());
        assert_eq!(offsets, [0, 4, 8]);
        assert!(
            matches!(btf.offset_of("outer", "d"), Err(BtfError::Missing(name)) if name == "outer.d")
        );
        // A function may have the name of a struct.
        assert_eq!(btf.function_arguments("outer"), Some(2));
        assert_eq!(btf.function_arguments("inner"), None);
    }

    #[test]
    fn what_is_no_btf_is_an_error() {
        assert!(Btf::parse(vec![0; 24]).is_err());
        assert!(Btf::parse(sample()[..40].to_vec()).is_err());
    }
}
